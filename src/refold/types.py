"""The values that travel through a model, and the shape legend every docstring uses.

====== ==========================================================================
B      rows of a batch
E      entries of a field: columns of a block, pixels of an image, flattened
P      numbers a likelihood needs per row (``E`` for a mean, more for classes)
C      channels or width of a hidden state
L      tokens, where a field is a sequence; vectors have no such axis
D      size of the code
====== ==========================================================================

These are made in every step, so they are slotted and not frozen, which would double their cost;
nothing changes one after it is made.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import torch
from torch import Tensor

Costs: TypeAlias = dict[str, tuple[Tensor, float]]
"""Costs by name, each a scalar and the factor that makes it its mean per row of the batch."""


@dataclass(slots=True)
class Batch:
    """Rows as tensors: one ``[B, *shape]`` per field, and which entries were observed.

    ``observed[name]`` is a boolean ``[B, E]``, or None where every entry is. An entry that is
    not observed holds the field's neutral value, so that it can be fed but never scored. Of a
    target of which only a part is scored, ``observed`` is that part and ``known`` what was observed
    of the rows.
    """

    x: dict[str, Tensor]
    observed: dict[str, Tensor | None]
    known: dict[str, Tensor | None] | None = None

    def __len__(self) -> int:
        return next(iter(self.x.values())).shape[0]

    def rows(self, index: Tensor | slice) -> Batch:
        """Rows by a tensor of positions or by a slice (a view)."""
        if isinstance(index, slice):
            return Batch(
                {k: v[index] for k, v in self.x.items()},
                {k: None if o is None else o[index] for k, o in self.observed.items()},
            )
        return Batch(
            {k: v.index_select(0, index) for k, v in self.x.items()},
            {k: None if o is None else o.index_select(0, index) for k, o in self.observed.items()},
        )

    def whole(self) -> Batch:
        """Rows with all that was observed of them, whatever of it is scored."""
        return self if self.known is None else Batch(self.x, self.known)

    def only(self, names: Collection[str]) -> Batch:
        """The same rows with the named fields alone."""
        return Batch(
            {k: v for k, v in self.x.items() if k in names},
            {k: o for k, o in self.observed.items() if k in names},
        )

    def tensors(self) -> list[Tensor]:
        """Every tensor, in one order."""
        every = (self.x, self.observed, self.known or {})
        return [t for group in every for t in group.values() if t is not None]

    def with_tensors(self, given: Sequence[Tensor]) -> Batch:
        """The same batch of other tensors, as :meth:`tensors` orders them."""
        left = iter(given)

        def renewed(group: dict[str, Tensor | None]) -> dict[str, Tensor | None]:
            return {k: None if t is None else next(left) for k, t in group.items()}

        x = {k: next(left) for k in self.x}
        observed = renewed(self.observed)
        return Batch(x, observed, None if self.known is None else renewed(self.known))

    def to(self, device: torch.device | str) -> Batch:
        """Copy to a device (no copy where it is there already)."""
        return Batch(
            {k: v.to(device) for k, v in self.x.items()},
            {k: None if o is None else o.to(device) for k, o in self.observed.items()},
        )


@dataclass(slots=True)
class Code:
    """What a latent makes of a hidden state.

    ``z`` ``[B, D]`` is the code; ``terms`` are costs per row ``[B]`` that belong to the score;
    ``aux`` are scalar costs of the batch as a whole; ``stats`` are per-row figures ``[B, *]`` never
    optimised, or one row of sums over the batch, which the history shows by way of the gauge of
    their name; ``beside`` is what the latent made on its way, ``[B, *]``, for penalties. With
    several ``draws`` of each row's code, ``z`` is ``[draws * B, D]``, the first draw of all rows
    first, and so are the terms; the objective is then the importance-weighted bound.
    """

    z: Tensor
    terms: dict[str, Tensor] = field(default_factory=dict[str, Tensor])
    aux: dict[str, Tensor] = field(default_factory=dict[str, Tensor])
    stats: dict[str, Tensor] = field(default_factory=dict[str, Tensor])
    beside: dict[str, Tensor] = field(default_factory=dict[str, Tensor])
    draws: int = 1
