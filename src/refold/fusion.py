"""The body between the fields and the code: fields joined, folded, unfolded and parted again."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn

from refold.backbones.base import Pairs, blocks, there_and_back
from refold.backbones.mlp import Mlp, mirrored
from refold.backbones.stages import DenseStage, plain
from refold.errors import InputError
from refold.parts import Registry


@dataclass(frozen=True)
class LinearPath:
    """Weights ``[into, inputs]`` and ``[outputs, code]`` of a linear way through the body.

    ``beside`` are the last weights of the layers that add to it: zero, they leave it alone.
    """

    down: Tensor
    up: Tensor
    down_bias: Tensor
    up_bias: Tensor
    beside: tuple[Tensor, ...]


class Fusion(nn.Module, ABC):
    """Maps hidden states of the fields to one, and one hidden state to those of the fields.

    ``inputs`` and ``outputs`` are the widths by field name; ``into`` is the width the latent
    asks for, ``code`` the size of the code.
    """

    def __init__(
        self, inputs: dict[str, int], outputs: dict[str, int], into: int, code: int
    ) -> None:
        super().__init__()
        self.inputs, self.outputs, self.into, self.code = inputs, outputs, into, code

    @abstractmethod
    def encode(self, hidden: dict[str, Tensor]) -> Tensor:
        """``{field: [B, C]}`` to the latent's input ``[B, into]``."""

    @abstractmethod
    def decode(self, z: Tensor) -> dict[str, Tensor]:
        """Code ``[B, D]`` to ``{field: [B, C]}``."""

    @abstractmethod
    def linear_path(self) -> LinearPath | None:
        """Return the linear way from inputs to code to outputs, where there is one."""

    @abstractmethod
    def last_bias(self) -> Tensor:
        """Return what is added last, ``[sum(outputs)]`` in the fields' order, to start from."""

    @property
    @abstractmethod
    def pairs(self) -> Pairs:
        """Return layers on the way down with those that undo them on the way up, outermost first.

        Empty where there are no layers or the two ways do not mirror each other.
        """

    @abstractmethod
    def outer(self, hidden: dict[str, Tensor], count: int) -> dict[str, Tensor]:
        """``{field: [B, C]}`` to the same by way of the ``count`` outermost pairs, without code."""


fusions: Registry[Fusion] = Registry("fusion")
register = fusions.register


@final
@register("concat")
class Concat(Fusion):
    r"""Hidden states side by side, through dense layers of widths ``hidden`` and back.

    An entry of ``hidden`` is a width, or the options of a :class:`DenseStage`, such as
    ``{"width": 64, "repeat": 2, "norm": "batch", "residual": True}``; what it does not say is as
    in the rest of the body. The way back is the same layers in reverse, or ``mirror`` in the order
    given.

    .. math:: h = W f(c) + b + \underbrace{A c}_{\text{linear}}, \qquad
              c' = W' g(z) + b' + \underbrace{A' z}_{\text{linear}}

    ``linear=True`` adds the two linear maps beside the layers: a path for the principal
    components, which the layers then only have to improve on. Without ``hidden`` the body is
    linear and needs no second path.

    >>> body = Concat({"x": 784}, {"x": 784}, 3, 3, hidden=(128, 64, 12))
    >>> [m.out_features for half in (body.down, body.up) for m in half if isinstance(m, nn.Linear)]
    [128, 64, 12, 3, 12, 64, 128, 784]
    """

    def __init__(
        self,
        inputs: dict[str, int],
        outputs: dict[str, int],
        into: int,
        code: int,
        *,
        hidden: tuple[int | Mapping[str, Any] | DenseStage, ...] = (),
        mirror: tuple[int | Mapping[str, Any] | DenseStage, ...] | None = None,
        linear: bool = False,
        activation: str = "relu",
        norm: str = "none",
        dropout: float = 0.0,
        init: str = "auto",
    ) -> None:
        super().__init__(inputs, outputs, into, code)
        self.linear, self.activation = linear, activation
        self.layered = bool(hidden or mirror)
        self.norm, self.dropout, self.init = norm, dropout, init
        kind: dict[str, Any] = {
            "activation": activation,
            "norm": norm,
            "dropout": dropout,
            "init": init,
        }
        width_in, width_out = sum(inputs.values()), sum(outputs.values())
        with said_of("hidden"):
            self.down = Mlp(width_in, hidden, final=into, **kind)
        back = mirrored(self.down.layers) if mirror is None else mirror
        with said_of("hidden" if mirror is None else "mirror"):
            self.up = Mlp(code, back, final=width_out, **kind)
        # Plain values only now that they were read, so that what cannot be read is said as given.
        self.hidden = plain(hidden)
        self.mirror = None if mirror is None else plain(mirror)
        if linear and self.layered:
            self.linear_down = nn.Linear(width_in, into, bias=False)
            self.linear_up = nn.Linear(code, width_out, bias=False)

    @property
    def pairs(self) -> Pairs:
        """The layers down and those up; none where ``mirror`` leads back through other widths."""
        there, back = ([layer.width for layer in half.layers] for half in (self.down, self.up))
        if there != back[::-1]:
            return ()
        return tuple(zip(blocks(self.down), reversed(blocks(self.up)), strict=True))

    def outer(self, hidden: dict[str, Tensor], count: int) -> dict[str, Tensor]:
        """Join, run through the outer layers, and part."""
        return part(there_and_back(self.pairs[:count], join(hidden, self.inputs)), self.outputs)

    def encode(self, hidden: dict[str, Tensor]) -> Tensor:
        """Join and fold."""
        joined = join(hidden, self.inputs)
        h = self.down(joined)
        return h + self.linear_down(joined) if self.linear and self.layered else h

    def decode(self, z: Tensor) -> dict[str, Tensor]:
        """Unfold and part."""
        joined = self.up(z)
        if self.linear and self.layered:
            joined = joined + self.linear_up(z)
        return part(joined, self.outputs)

    def linear_path(self) -> LinearPath | None:
        """Return the path beside the layers, or the layers themselves where they are linear."""
        weights = (self.down.last.weight, self.up.last.weight)
        biases = (self.down.last.bias, self.up.last.bias)
        if not self.layered:
            return LinearPath(*weights, *biases, beside=())
        if not self.linear:
            return None
        return LinearPath(self.linear_down.weight, self.linear_up.weight, *biases, beside=weights)

    def last_bias(self) -> Tensor:
        """Return the bias that meets the fields."""
        return self.up.last.bias


@final
@register("direct")
class Direct(Fusion):
    r"""No layers: the fields' hidden states side by side are the code, and the code is theirs.

    .. math:: h = c, \qquad c' = z + b

    For codes that are feature maps, such as spatial winner-take-all, and for training stages one
    by one. :math:`b` is not trained and zero for fields whose decoder has a bias of its own; for
    others it is the constant that training starts from.
    Raises :class:`InputError` where the code has another size than the hidden states.

    >>> body = Direct({"x": 6}, {"x": 6}, 6, 6)
    >>> body.encode({"x": torch.ones(2, 6)}).shape, body.decode(torch.ones(2, 6))["x"].shape
    (torch.Size([2, 6]), torch.Size([2, 6]))
    """

    bias: Tensor

    def __init__(
        self, inputs: dict[str, int], outputs: dict[str, int], into: int, code: int
    ) -> None:
        super().__init__(inputs, outputs, into, code)
        width_in, width_out = sum(inputs.values()), sum(outputs.values())
        if into != width_in or code != width_out:
            raise InputError(
                f"the fusion 'direct' has no layers to change sizes: the fields' encoders give "
                f"{width_in} numbers where the latent takes {into}, and their decoders take "
                f"{width_out} where the code has {code}; set the latent's size to {width_out}, or "
                f"use the fusion 'concat'"
            )
        self.register_buffer("bias", torch.zeros(width_out))

    @property
    def pairs(self) -> Pairs:
        """No layers."""
        return ()

    def outer(self, hidden: dict[str, Tensor], count: int) -> dict[str, Tensor]:
        """Never asked: there are no pairs."""
        raise AssertionError

    def encode(self, hidden: dict[str, Tensor]) -> Tensor:
        """Join."""
        return join(hidden, self.inputs)

    def decode(self, z: Tensor) -> dict[str, Tensor]:
        """Part."""
        return part(z + self.bias, self.outputs)

    def linear_path(self) -> LinearPath | None:
        """Return None: there is nothing to set."""
        return None

    def last_bias(self) -> Tensor:
        """Return the constant that is added to the code."""
        return self.bias


@contextmanager
def said_of(option: str) -> Generator[None]:
    """Name the option that a wrong stage was found in."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{option}, {error}" if "stage" in str(error) else str(error)) from error


def join(hidden: Mapping[str, Tensor], widths: Mapping[str, int]) -> Tensor:
    """Put the fields' hidden states ``{field: [B, C]}`` side by side; one alone stays as it is."""
    if len(hidden) == 1:
        return next(iter(hidden.values()))
    return torch.cat([hidden[k] for k in widths], 1)


def part(joined: Tensor, widths: Mapping[str, int]) -> dict[str, Tensor]:
    """Give each field its ``widths`` of what stands side by side."""
    if len(widths) == 1:
        return {next(iter(widths)): joined}
    parts = joined.split(list(widths.values()), 1)
    return dict(zip(widths, parts, strict=True))
