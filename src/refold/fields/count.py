"""Columns of counts, packed into one block."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Self, final

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from refold.errors import InputError
from refold.fields.base import Encoded, Numbers, learnt, register, scalar
from refold.fields.numeric import matrix, mean_of, own_types, refuse_infinite, tensors
from refold.table import Column
from refold.wording import counted

FAR = np.log(20.0)  # counts so many times the largest in training are remarked on


@final
@register("count")
@dataclass(frozen=True, kw_only=True)
class Count(Numbers):
    r"""Whole numbers from 0 up, as the logarithm of one more: :math:`x = \log(1 + v)`.

    ``x`` is ``[B, K]``; a missing cell holds its column's mean. Values come back whole, in the
    training range and in their column's own type. No column is taken for counts unless it is
    declared, because many whole numbers count nothing.

    Raises :class:`InputError` for a value that is negative or no whole number.

    >>> import pyarrow as pa, torch
    >>> column = {"visits": pa.chunked_array([[0, 3, None]])}
    >>> field = Count(columns=("visits",)).fit(column)
    >>> field.to_tensor(column).x[:, 0]
    tensor([0.0000, 1.3863, 0.6931])
    >>> field.to_values(torch.tensor([[1.2], [-4.0]]))["visits"].to_pylist()
    [2, 0]
    """

    native: ClassVar[str] = "poisson"
    allowed: ClassVar[tuple[str, ...]] = ("poisson", "negative_binomial")
    margin: ClassVar[float] = 1.0
    apart: ClassVar[float] = 0.7
    low: tuple[float, ...] = learnt(())
    high: tuple[float, ...] = learnt(())
    fill: tuple[float, ...] = learnt(())
    types: tuple[str, ...] = learnt(())

    def fit(self, columns: Mapping[str, Column]) -> Self:
        """Learn each column's range, mean and type; values are judged when they are encoded."""
        values = matrix(columns, self.columns)
        x = np.log1p(np.where(np.isfinite(values), np.maximum(values, 0.0), np.nan))
        high = np.where(np.isnan(x), 0.0, x).max(0, initial=0.0)
        return replace(
            self,
            low=tuple(np.where(np.isnan(x), high, x).min(0).tolist()),
            high=tuple(high.tolist()),
            fill=mean_of(x),
            missing=bool(np.isnan(values).any()),
            types=tuple(str(scalar(columns[c]).type) for c in self.columns),
        )

    def to_tensor(self, columns: Mapping[str, Column]) -> Encoded:
        """Take logarithms; a missing cell becomes the mean."""
        values = matrix(columns, self.columns)
        refuse_infinite(values, self.columns)
        refuse_no_count(values, self.columns)
        x = np.log1p(values)
        far = (x > np.array(self.high) + FAR).sum(0)
        notes = [
            f"column '{self.columns[i]}': {counted(far[i], 'value')} more than twenty times the "
            f"largest in training"
            for i in np.flatnonzero(far)[:5]
        ]
        return Encoded(*tensors(x, np.array(self.fill)), notes)

    def to_values(self, point: Tensor) -> dict[str, Column]:
        """Return to whole numbers, kept in the training range, in each column's own type."""
        low, high = (np.array(b) for b in self.bounds)
        inside = np.clip(point.double().cpu().numpy(), low, high)
        return own_types(np.rint(np.expm1(inside)), self.columns, self.types)

    @property
    def bounds(self) -> tuple[list[float], list[float]]:
        """Training range of the logarithms."""
        return list(self.low), list(self.high)


def refuse_no_count(values: NDArray[np.float64], names: tuple[str, ...]) -> None:
    """Raise for the first value that counts nothing, naming its column and row."""
    with np.errstate(invalid="ignore"):
        wrong = (values < 0) | (values != np.rint(values)) & ~np.isnan(values)
    if not wrong.any():
        return
    row, column = (int(i[0]) for i in np.nonzero(wrong))
    raise InputError(
        f"column '{names[column]}' holds {values[row, column]:g} in row {row}; a count is a whole "
        f"number from 0 up: correct the value, or declare the column numeric"
    )
