"""Noise for tables, whose columns differ in kind: the share is of all columns of a row together.

Columns of one kind are packed into one field, but that is our affair, not the user's: a share per
field would never reach the one column of two levels beside twenty of numbers.
"""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from refold.data.corruptions.base import Corruption, check_share, entries_of, fill, register
from refold.data.corruptions.masking import check_value
from refold.ops.topk import exact_mask
from refold.types import Batch


def draw_columns(
    batch: Batch, rows: int, fraction: float, generator: torch.Generator
) -> dict[str, Tensor]:
    """Draw an exact share of the entries of all fields together: ``{field: [rows, E]}``."""
    sizes = [entries_of(x) for x in batch.x.values()]
    device = next(iter(batch.x.values())).device
    total = sum(sizes)
    mask = exact_mask(rows, total, round(fraction * total), generator, device)
    return dict(zip(batch.x, mask.split(sizes, 1), strict=True))


@final
@register("swap")
class Swap(Corruption):
    """Swap noise: an exact share of each row's cells take the value of another row.

    ``fraction`` of the columns of all fields together, rounded to the nearest whole number, are
    drawn for each row, and each such cell takes the value of the same column in some other row of
    the batch, drawn for that cell alone. So every value is one the column really has, classes
    included, and nothing marks it as wrong. Where the other row's cell is missing this one becomes
    missing too, and where this one was, it is filled: whether a cell is observed travels with its
    value. A batch of one row has no other and stays as it is.

    Source: Jahrer, first place in Porto Seguro's Safe Driver Prediction, 2017.

    >>> x = torch.arange(4.0)[:, None].expand(4, 10)
    >>> (Swap(fraction=0.3).corrupt(x) != x).sum(1)
    tensor([3, 3, 3, 3])
    """

    def __init__(self, *, fraction: float = 0.15) -> None:
        check_share(fraction, "the swapped fraction")
        self.fraction = fraction

    def __call__(self, batch: Batch, generator: torch.Generator) -> Batch:
        """Swap the drawn cells."""
        rows = len(batch)
        if rows < 2:
            return batch
        swapped: dict[str, Tensor] = {}
        observed: dict[str, Tensor | None] = {}
        for name, mask in draw_columns(batch, rows, self.fraction, generator).items():
            x, seen = batch.x[name], batch.observed[name]
            step = torch.randint(1, rows, mask.shape, generator=generator, device=x.device)
            donor = (torch.arange(rows, device=x.device)[:, None] + step) % rows
            flat = x.flatten(1)
            swapped[name] = torch.where(mask, flat.gather(0, donor), flat).view_as(x)
            observed[name] = (
                None if seen is None else torch.where(mask, seen.gather(0, donor), seen)
            )
        return Batch(swapped, observed)


@final
@register("columns")
class Columns(Corruption):
    """Hide whole columns: the same ones in every row of a batch, others in the next batch.

    ``fraction`` of the columns of all fields together, rounded to the nearest whole number, become
    ``value`` (0 is a standardised column's mean and the first of two levels); a class among
    several becomes missing. Pixels of images count as columns.

    >>> Columns(fraction=0.5).corrupt(torch.ones(3, 4)).sum(0).sort().values
    tensor([0., 0., 3., 3.])
    """

    def __init__(self, *, fraction: float = 0.25, value: float = 0.0) -> None:
        check_share(fraction, "the hidden fraction of columns")
        check_value(value)
        self.fraction, self.value = fraction, value

    def __call__(self, batch: Batch, generator: torch.Generator) -> Batch:
        """Hide the drawn columns."""
        masks = draw_columns(batch, 1, self.fraction, generator)
        return Batch(
            {k: fill(x, masks[k].view(x.shape[1:]), self.value) for k, x in batch.x.items()},
            batch.observed,
        )
