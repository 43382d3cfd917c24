"""An encoder of its own for every field, and their features added or averaged."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, TypeAlias, final

import torch
from torch import Tensor, nn

from refold.backbones.base import Pairs
from refold.backbones.dense import said_of
from refold.backbones.layers import ACTIVATIONS, Style
from refold.backbones.mlp import Mlp, mirrored
from refold.backbones.stages import WIDEST, Dense, DenseStage, plain, read
from refold.errors import InputError
from refold.fusion.base import Fusion, Leads, LinearPath, part, register

Stages: TypeAlias = tuple[int | Mapping[str, Any] | DenseStage, ...]


class Towers(Fusion):
    """Every input has dense layers of its own, ``hidden``, which end in ``ends`` numbers.

    What is made of those is :meth:`fuse`. The way back is one stack for all outputs: the layers in
    reverse, or ``mirror`` in the order given. In rows in which a field is absent, nothing depends
    on its hidden state.
    """

    def __init__(
        self,
        inputs: dict[str, int],
        outputs: dict[str, int],
        into: int,
        code: int,
        ends: int,
        hidden: tuple[Dense, ...],
        mirror: tuple[Dense, ...] | None,
        style: Style,
    ) -> None:
        super().__init__(inputs, outputs, into, code)
        self.activation, self.norm = style.activation, style.norm
        self.dropout, self.init = style.dropout, style.init
        kind = asdict(style)
        with said_of("hidden"):
            towers = [Mlp(width, hidden, final=ends, **kind) for width in inputs.values()]
        self.towers = nn.ModuleList(towers)
        back = mirrored(towers[0].layers) if mirror is None else mirror
        with said_of("hidden" if mirror is None else "mirror"):
            self.up = Mlp(code, back, final=sum(outputs.values()), **kind)
        self.hidden = plain(hidden)
        self.mirror = None if mirror is None else plain(mirror)

    @abstractmethod
    def fuse(self, features: Tensor, seen: Tensor | None) -> Tensor:
        """``[B, K, ends]`` to ``[B, into]``, by what of it is there: ``seen`` ``[B, K]`` or all."""

    @property
    def leads(self) -> Leads:
        """The first layer of each field's own."""
        first = (next(m for m in t.modules() if isinstance(m, nn.Linear)) for t in self.towers)
        return tuple(((name,), layer) for name, layer in zip(self.inputs, first, strict=True))

    @property
    def pairs(self) -> Pairs:
        """None: several layers down would have one to undo them."""
        return ()

    def outer(self, hidden: dict[str, Tensor], count: int) -> dict[str, Tensor]:
        """Never asked: there are no pairs."""
        raise AssertionError

    def features(
        self, hidden: dict[str, Tensor], present: Mapping[str, Tensor]
    ) -> tuple[Tensor, Tensor | None]:
        """Features ``[B, K, ends]`` of ``K`` inputs, and which are there, ``[B, K]``; None: all.

        What is absent enters as zeros, whatever stands in its place.
        """
        given = {k: present[k] for k in self.inputs if k in present}
        states = [
            hidden[k].masked_fill(~given[k].unsqueeze(1), 0.0) if k in given else hidden[k]
            for k in self.inputs
        ]
        features = torch.stack([t(h) for t, h in zip(self.towers, states, strict=True)], 1)
        if not given:
            return features, None
        always = torch.ones_like(next(iter(given.values())))
        return features, torch.stack([given.get(k, always) for k in self.inputs], 1)

    def encode(self, hidden: dict[str, Tensor], present: Mapping[str, Tensor]) -> Tensor:
        """Run each field's layers, and fuse what is there."""
        return self.fuse(*self.features(hidden, present))

    def decode(self, z: Tensor) -> dict[str, Tensor]:
        """Unfold and part."""
        return part(self.up(z), self.outputs)

    def linear_path(self) -> LinearPath | None:
        """Return None: there is nothing to set."""
        return None

    def last_bias(self) -> Tensor:
        """Return the bias that meets the fields."""
        return self.up.last.bias


@final
@register("sum")
class Sum(Towers):
    r"""The sum of what each field's own layers say, and a linear map to what the latent takes.

    .. math:: h = W \, a\Bigl(\sum_{k \in \text{present}} f_k(c_k)\Bigr) + b

    :math:`f_k` are dense layers of widths ``hidden`` and a linear map to ``width`` numbers (None:
    the last of ``hidden``, or what the latent takes). :math:`a` is the ``activation``; with neither
    ``hidden`` nor ``width`` there is none, and the whole is linear. An absent field adds nothing.

    >>> body = Sum({"a": 3, "b": 2}, {"a": 3}, 2, 2, hidden=(8,)).eval()
    >>> a, b, seen = torch.ones(2, 3), torch.ones(2, 2), torch.tensor([True, False])
    >>> h = body.encode({"a": a, "b": b}, {"b": seen})
    >>> h.shape, bool((h[1] == body.encode({"a": a, "b": -b}, {"b": seen})[1]).all())
    (torch.Size([2, 2]), True)
    """

    def __init__(
        self,
        inputs: dict[str, int],
        outputs: dict[str, int],
        into: int,
        code: int,
        *,
        width: int | None = None,
        hidden: Stages = (),
        mirror: Stages | None = None,
        activation: str = "relu",
        norm: str = "none",
        dropout: float = 0.0,
        init: str = "auto",
    ) -> None:
        style = Style(activation, norm, dropout, init)
        ends = feature_width(width, hidden, into)
        super().__init__(inputs, outputs, into, code, ends, hidden, mirror, style)
        self.width = width
        self.act = rectified(activation, width is None and not hidden)
        self.last = nn.Linear(ends, into)

    def fuse(self, features: Tensor, seen: Tensor | None) -> Tensor:
        """Add up what is there."""
        return self.last(self.act(shown(features, seen).sum(1)))


@final
@register("mean")
class Mean(Towers):
    r"""The mean of what each present field's own layers say, and a linear map.

    .. math:: h = W \, a\Bigl(\tfrac{1}{|P|} \sum_{k \in P} f_k(c_k)\Bigr) + b, \qquad
              P = \text{present}

    As :class:`Sum`, but of the same size however many fields are there; where none is, the mean is
    zero.

    >>> body = Mean({"a": 3, "b": 3}, {"a": 3}, 2, 2, hidden=(8,))
    >>> body.encode({"a": torch.ones(4, 3), "b": torch.ones(4, 3)}, {}).shape
    torch.Size([4, 2])
    """

    def __init__(
        self,
        inputs: dict[str, int],
        outputs: dict[str, int],
        into: int,
        code: int,
        *,
        width: int | None = None,
        hidden: Stages = (),
        mirror: Stages | None = None,
        activation: str = "relu",
        norm: str = "none",
        dropout: float = 0.0,
        init: str = "auto",
    ) -> None:
        style = Style(activation, norm, dropout, init)
        ends = feature_width(width, hidden, into)
        super().__init__(inputs, outputs, into, code, ends, hidden, mirror, style)
        self.width = width
        self.act = rectified(activation, width is None and not hidden)
        self.last = nn.Linear(ends, into)

    def fuse(self, features: Tensor, seen: Tensor | None) -> Tensor:
        """Average what is there."""
        if seen is None:
            return self.last(self.act(features.mean(1)))
        count = seen.sum(1, keepdim=True).clamp_min(1)
        return self.last(self.act(shown(features, seen).sum(1) / count))


def shown(features: Tensor, seen: Tensor | None) -> Tensor:
    """Features ``[B, K, C]`` with zeros where a field is absent."""
    return features if seen is None else features * seen.unsqueeze(2).to(features.dtype)


def feature_width(width: int | None, hidden: tuple[Dense, ...], into: int) -> int:
    """Return the numbers that each field's layers end in.

    Raises :class:`InputError` for a ``width`` that cannot be.
    """
    if width is not None:
        if not 1 <= width <= WIDEST:
            raise InputError(f"width is {width}; it must be from 1 to {WIDEST:,}")
        return width
    with said_of("hidden"):
        return read(DenseStage, hidden)[-1].width if hidden else into


def rectified(activation: str, linear: bool) -> nn.Module:
    """Return the activation by name, or none where all is to be ``linear``."""
    return ACTIVATIONS["identity" if linear or activation == "none" else activation]()
