"""A block of shares that sum to one: one row of an array."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar, Self, final

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from refold.casting import as_dtype
from refold.errors import InputError
from refold.fields.base import Encoded, Field, learnt, register
from refold.fields.numeric import refuse_infinite, tensors
from refold.fields.vector import block, check_size, check_width
from refold.table import Column

LOOSE = 0.01  # how far a sum may be from one
EXACT = 1e-6  # how far without being mentioned


@final
@register("distribution")
@dataclass(frozen=True, kw_only=True)
class Distribution(Field):
    r"""Rows of ``K`` shares, ``[n, K]``, that are not negative and sum to one.

    .. math:: x = v / \textstyle\sum_k v_k

    Sums within 1 % of one are accepted and made one; ``normalise=True`` divides any row of numbers
    from 0 up by its sum. A row with a missing share is missing as a whole, and holds the mean.
    ``size``, where given, is the ``K`` that is expected. Shares come back in the array's type, and
    in float64 where that is one of whole numbers.

    Raises :class:`InputError` for a negative share, a sum that is not one, a row of zeros, and rows
    of another size.

    >>> import torch
    >>> column = {"p": np.array([[0.2, 0.8], [1.0, 0.0]])}
    >>> field = Distribution(2, columns=("p",)).fit(column)
    >>> field.to_tensor(column).x
    tensor([[0.2000, 0.8000],
            [1.0000, 0.0000]])
    """

    block: ClassVar[bool] = True
    native: ClassVar[str] = "kl"
    allowed: ClassVar[tuple[str, ...]] = ("kl",)
    margin: ClassVar[float] = 0.0
    apart: ClassVar[float] = 0.25
    size: int | None = field(default=None, kw_only=False)
    normalise: bool = False
    fill: tuple[float, ...] = learnt(())
    dtype: str = learnt("float64")

    def fit(self, columns: Mapping[str, Column]) -> Self:
        """Learn the mean distribution; rows are judged when they are encoded."""
        given = block(columns, self.columns[0])
        values = given.astype(np.float64).reshape(len(given), -1)
        check_size(self.columns[0], values.shape[1], self.size)
        usable = np.isfinite(values).all(1) & (values >= 0).all(1) & (values.sum(1) > 0)
        total = (values[usable] / values[usable].sum(1, keepdims=True)).sum(0)
        width = values.shape[1]
        mean = total / total.sum() if usable.any() else np.full(width, 1.0 / width)
        return replace(
            self,
            fill=tuple(mean.tolist()),
            missing=bool(np.isnan(values).any()),
            dtype=str(given.dtype) if given.dtype.kind == "f" else "float64",
        )

    def to_tensor(self, columns: Mapping[str, Column]) -> Encoded:
        """Make every sum one; a missing row becomes the mean."""
        given = block(columns, self.columns[0])
        values = given.astype(np.float64).reshape(len(given), -1)
        check_width(self.columns[0], values.shape[1], len(self.fill))
        refuse_infinite(values, self.entries)
        values = np.where(np.isnan(values).any(1, keepdims=True), np.nan, values)
        total = values.sum(1)
        self._refuse(values, total)
        x, seen = tensors(values / total[:, None], np.array(self.fill))
        return Encoded(x, seen, [] if self.normalise else self._loose(total))

    def _loose(self, total: NDArray[np.float64]) -> list[str]:
        """Remark on rows that did not sum to one exactly."""
        off = np.abs(total - 1)
        loose = off > EXACT
        if not loose.any():
            return []
        return [
            f"field '{self.columns[0]}': {loose.sum()} rows sum to one but for up to "
            f"{off[loose].max():.1g}, and were divided by their sum"
        ]

    def _refuse(self, values: NDArray[np.float64], total: NDArray[np.float64]) -> None:
        """Raise for the first row that is no distribution."""
        name = self.columns[0]
        with np.errstate(invalid="ignore"):
            negative, zero = (values < 0).any(1), total == 0
            wrong = np.abs(total - 1) > LOOSE
        if negative.any():
            row = int(np.flatnonzero(negative)[0])
            raise InputError(
                f"field '{name}' holds {values[row].min():g} in row {row}; shares of a "
                f"distribution are 0 or more: correct the value"
            )
        if zero.any():
            row = int(np.flatnonzero(zero)[0])
            raise InputError(
                f"field '{name}' is zero throughout in row {row}, which has no shares; give a row "
                f"that sums to 1, or NaN where it is unknown"
            )
        if wrong.any() and not self.normalise:
            row = int(np.flatnonzero(wrong)[0])
            raise InputError(
                f"field '{name}' sums to {total[row]:g} in row {row}, but a distribution sums to "
                f"1; divide every row by its sum, or declare Distribution(normalise=True)"
            )

    def to_values(self, point: Tensor) -> dict[str, Column]:
        """Return shares that sum to one, in the array's type."""
        shares = point.double().cpu().numpy().clip(0.0)
        total = shares.sum(1, keepdims=True)
        mean = np.array(self.fill)
        shares = np.where(total > 0, shares / np.where(total > 0, total, 1.0), mean)
        return {self.columns[0]: as_dtype(shares, np.dtype(self.dtype))}

    @property
    def shape(self) -> tuple[int, ...]:
        """One number per share."""
        return (len(self.fill),)

    @property
    def cell(self) -> tuple[int, ...]:
        """One number per share."""
        return (len(self.fill),)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Numbers have one level."""
        return (1,) * len(self.fill)

    @property
    def entries(self) -> tuple[str, ...]:
        """Return the block's name and the share's position."""
        return tuple(f"{self.columns[0]}{i}" for i in range(len(self.fill)))

    @property
    def bounds(self) -> tuple[list[float], list[float]]:
        """Shares lie in [0, 1]."""
        return [0.0] * len(self.fill), [1.0] * len(self.fill)
