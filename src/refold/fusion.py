"""The body between the fields and the code: fields joined, folded, unfolded and parted again."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn

from refold.backbones.mlp import Mlp
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
        """Return the bias of the last layer, ``[sum(outputs)]``, in the fields' order."""


fusions: Registry[Fusion] = Registry("fusion")
register = fusions.register


@final
@register("concat")
class Concat(Fusion):
    r"""Hidden states side by side, through dense layers of widths ``hidden`` and back.

    The way back has the same widths in reverse, or those of ``mirror`` in the order given.

    .. math:: h = W f(c) + b + \underbrace{A c}_{\text{linear}}, \qquad
              c' = W' g(z) + b' + \underbrace{A' z}_{\text{linear}}

    ``linear=True`` adds the two linear maps beside the layers: a path for the principal
    components, which the layers then only have to improve on. Without ``hidden`` the body is
    linear and needs no second path.
    """

    def __init__(
        self,
        inputs: dict[str, int],
        outputs: dict[str, int],
        into: int,
        code: int,
        *,
        hidden: tuple[int, ...] = (),
        mirror: tuple[int, ...] | None = None,
        linear: bool = False,
        activation: str = "relu",
        norm: str = "none",
        dropout: float = 0.0,
        init: str = "auto",
    ) -> None:
        super().__init__(inputs, outputs, into, code)
        self.hidden, self.mirror = hidden, mirror
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
        self.down = Mlp(width_in, hidden, final=into, **kind)
        self.up = Mlp(code, hidden[::-1] if mirror is None else mirror, final=width_out, **kind)
        if linear and self.layered:
            self.linear_down = nn.Linear(width_in, into, bias=False)
            self.linear_up = nn.Linear(code, width_out, bias=False)

    def encode(self, hidden: dict[str, Tensor]) -> Tensor:
        """Join and fold."""
        joined = (
            torch.cat([hidden[k] for k in self.inputs], 1)
            if len(hidden) > 1
            else (next(iter(hidden.values())))
        )
        h = self.down(joined)
        return h + self.linear_down(joined) if self.linear and self.layered else h

    def decode(self, z: Tensor) -> dict[str, Tensor]:
        """Unfold and part."""
        joined = self.up(z)
        if self.linear and self.layered:
            joined = joined + self.linear_up(z)
        if len(self.outputs) == 1:
            return {next(iter(self.outputs)): joined}
        parts = joined.split(list(self.outputs.values()), 1)
        return dict(zip(self.outputs, parts, strict=True))

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
