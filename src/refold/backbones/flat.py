"""Backbones without layers: the field's numbers, or an embedding of its classes, as they are."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor, nn

from refold.backbones.base import Backbone, Geometry, Pairs, Skips, register, with_mask


class Layerless(Backbone):
    """A backbone that leaves all layers, and the way back, to the body."""

    @property
    def decoded(self) -> int:
        """Return the likelihood's parameters themselves."""
        return self.geometry.params

    @property
    def pairs(self) -> Pairs:
        """No layers."""
        return ()

    @property
    def skipping(self) -> bool:
        """Nothing passes beside the code."""
        return False

    def decode(self, h: Tensor, skips: Skips) -> Tensor:
        """Pass through."""
        return h

    def outer(self, x: Tensor, visible: Tensor | None, count: int) -> Tensor:
        """Never asked: there are no pairs."""
        raise AssertionError

    def start_at(self, params: Tensor) -> bool:
        """Leave it to the body, whose last layer gives the parameters."""
        return False


@final
@register("flat")
class Flat(Layerless):
    """Numbers pass through, flattened; the dense body shared by all fields does the rest.

    Where entries can be missing, the mask of what is there follows the numbers.
    """

    def __init__(self, geometry: Geometry) -> None:
        super().__init__(geometry)

    @property
    def encoded(self) -> int:
        """One number per entry, and one per mask entry."""
        return len(self.geometry.sizes) * (2 if self.geometry.missing else 1)

    def encode(self, x: Tensor, visible: Tensor | None) -> tuple[Tensor, Skips]:
        """Flatten, and append the mask."""
        return with_mask(x.flatten(1), visible, self.geometry), ()


@final
@register("embed")
class Embed(Layerless):
    """Classes become learnt vectors: all columns share one table, each with its own rows.

    A missing class has a row of its own, so the encoder is told. ``width`` numbers per column.

    Source: Guo & Berkhahn, Entity Embeddings of Categorical Variables, 2016 (arXiv:1604.06737).
    """

    offset: Tensor

    def __init__(self, geometry: Geometry, *, width: int = 8) -> None:
        super().__init__(geometry)
        self.width = width
        if not geometry.reads:
            return
        rows = torch.tensor(geometry.sizes) + 1
        self.table = nn.Parameter(torch.randn(int(rows.sum()), width) / width**0.5)
        self.register_buffer("offset", rows.cumsum(0) - rows + 1, persistent=False)
        with torch.no_grad():  # until a missing class is met in training, it says nothing
            self.table[self.offset - 1] = 0.0

    @property
    def encoded(self) -> int:
        """``width`` numbers per column."""
        return len(self.geometry.sizes) * self.width

    def encode(self, x: Tensor, visible: Tensor | None) -> tuple[Tensor, Skips]:
        """Look up each column's class; -1 is the row before its first."""
        classes = (x if visible is None else x.masked_fill(~visible, -1)).clamp_min(-1)
        # Adding up the gradient by rows takes an eighth of the time that F.embedding's way takes.
        rows = self.table.index_select(0, (classes + self.offset).flatten())
        return rows.view(len(x), self.encoded), ()
