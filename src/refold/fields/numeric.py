"""Continuous columns, packed into one block."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self, final

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from refold.casting import cast
from refold.errors import InputError
from refold.fields.base import Encoded, Numbers, arrow_type, learnt, register, scalar
from refold.table import Arrow, Column, compute

FAR = 1e6  # standard deviations; squares of more would leave single precision


@final
@register("numeric")
@dataclass(frozen=True, kw_only=True)
class Numeric(Numbers):
    r"""Numbers, standardised per column: :math:`x = (v - \bar v) / s`.

    Means and standard deviations are taken over the observed training cells, in float64. Dates
    and times count as numbers. Integers come back rounded, in their own type. ``whole`` says of
    each column whether it held nothing but whole numbers although its type is floating, as
    integers with gaps do in pandas.

    >>> import pyarrow as pa
    >>> column = {"age": pa.chunked_array([[20, 30, None]])}
    >>> field = Numeric(columns=("age",)).fit(column)
    >>> field.to_tensor(column).x
    tensor([[-1.],
            [ 1.],
            [ 0.]])
    >>> field.to_values(torch.tensor([[0.02], [9.0]]))["age"].to_pylist()
    [25, 30]
    """

    native: ClassVar[str] = "mse"
    allowed: ClassVar[tuple[str, ...]] = ("mse", "l1", "huber", "gaussian", "laplace", "student")
    mean: tuple[float, ...] = learnt(())
    std: tuple[float, ...] = learnt(())
    low: tuple[float, ...] = learnt(())
    high: tuple[float, ...] = learnt(())
    types: tuple[str, ...] = learnt(())
    whole: tuple[bool, ...] = learnt(())

    def fit(self, columns: Mapping[str, Column]) -> Self:
        """Learn each column's mean, standard deviation, range and type."""
        values = matrix(columns, self.columns)
        scale = Scale.of(values)
        return replace(
            self,
            mean=tuple(scale.mean.tolist()),
            std=tuple(scale.std.tolist()),
            low=tuple(scale.low.tolist()),
            high=tuple(scale.high.tolist()),
            missing=bool(np.isnan(values).any()),
            types=tuple(str(scalar(columns[c]).type) for c in self.columns),
            whole=tuple(
                bool(pa.types.is_floating(scalar(columns[c]).type) and only_whole(values[:, i]))
                for i, c in enumerate(self.columns)
            ),
        )

    def to_tensor(self, columns: Mapping[str, Column]) -> Encoded:
        """Standardise; a missing cell becomes 0, its mean."""
        values = matrix(columns, self.columns, self.types)
        refuse_infinite(values, self.columns)
        x = standardise(values, np.array(self.mean), np.array(self.std))
        notes = far_out(x, np.array(self.low), np.array(self.high), self.columns)
        return Encoded(*tensors(x), notes)

    def to_values(self, point: Tensor) -> dict[str, Column]:
        """Return to units, kept in the training range, and to each column's own type."""
        inside = point.double().cpu().numpy().clip(np.array(self.low), np.array(self.high))
        values = inside * np.array(self.std) + np.array(self.mean)
        return own_types(values, self.columns, self.types)

    @property
    def bounds(self) -> tuple[list[float], list[float]]:
        """Standardised training range."""
        return list(self.low), list(self.high)


@dataclass(frozen=True)
class Scale:
    """Mean, standard deviation (1 where constant) and standardised range of each column."""

    mean: NDArray[np.float64]
    std: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]

    @classmethod
    def of(cls, values: NDArray[Any], pooled: bool = False) -> Scale:
        """Learn from ``values`` ``[n, E]``, NaN where missing; ``pooled`` shares one deviation."""
        seen = np.isfinite(values)  # what is infinite is refused later, by its row
        count = np.maximum(seen.sum(0), 1)
        mean = np.where(seen, values, 0.0).sum(0, dtype=np.float64) / count
        centred = np.where(seen, values - mean, 0.0)
        variance = np.square(centred).sum(0) / count
        if pooled:
            variance = np.full_like(variance, variance.mean())
        std = np.sqrt(variance)
        # Rounding leaves a constant column of large values a deviation that is not quite zero.
        size = np.where(seen, np.abs(values), 0.0).max(0)
        std = np.where(std > 1e-12 * size, std, 1.0)
        return cls(mean, std, centred.min(0) / std, centred.max(0) / std)

    def unit(self) -> Scale:
        """Return the same with every deviation 1: centred in the data's own unit."""
        return Scale(self.mean, np.ones_like(self.std), self.low * self.std, self.high * self.std)


def matrix(
    columns: Mapping[str, Column], names: tuple[str, ...], types: tuple[str, ...] = ()
) -> NDArray[np.float64]:
    """Scalar columns side by side, ``[n, K]`` in float64, NaN where missing.

    Times count in the unit of the Arrow ``types`` where these are given.
    """
    found = [scalar(columns[c]) for c in names]
    for i, t in enumerate(types):
        if pa.types.is_temporal(found[i].type) and pa.types.is_temporal(arrow_type(t)):
            found[i] = cast(found[i], arrow_type(t))
    return np.stack([numbers(column, c) for column, c in zip(found, names, strict=True)], axis=1)


def own_types(
    values: NDArray[np.float64], names: tuple[str, ...], types: tuple[str, ...]
) -> dict[str, Column]:
    """Columns of a matrix ``[n, K]``, each in its own Arrow type."""
    return {
        c: cast(pa.chunked_array([values[:, i]]), arrow_type(t))
        for i, (c, t) in enumerate(zip(names, types, strict=True))
    }


def only_whole(values: NDArray[np.float64]) -> bool:
    """Whether all values are whole numbers, NaN left out, and there is one."""
    seen = values[~np.isnan(values)]
    return len(seen) > 0 and bool((seen == np.rint(seen)).all())


def mean_of(x: NDArray[np.float64]) -> tuple[float, ...]:
    """Mean of each column ``[n, K]`` where it is finite, 0 where it never is."""
    seen = np.isfinite(x)
    total = np.where(seen, x, 0.0).sum(0)
    return tuple((total / np.maximum(seen.sum(0), 1)).tolist())


def numbers(column: Arrow, name: str) -> NDArray[np.float64]:
    """Cast a scalar column to float64, NaN where missing; text that is no number is an error."""
    kind = column.type
    if pa.types.is_temporal(kind):
        column = column.cast(pa.int32() if kind.bit_width == 32 else pa.int64())
    try:
        floats = column.cast(pa.float64(), safe=False)
    except pa.ArrowInvalid as error:
        raise InputError(
            f"column '{name}' is to be numbers, but holds text that is no number: {error}"
        ) from error
    except pa.ArrowNotImplementedError as error:
        raise InputError(f"column '{name}' has type {kind}, which is no number") from error
    return compute.fill_null(floats, float("nan")).to_numpy()


def refuse_infinite(values: NDArray[Any], names: tuple[str, ...]) -> None:
    """Raise for the first infinite value, naming its column and row."""
    if not np.isinf(values).any():
        return
    row, column = (int(i[0]) for i in np.nonzero(np.isinf(values)))
    raise InputError(
        f"column '{names[column]}' holds infinity in row {row}: Input contains infinity, expected "
        f"finite numbers or missing values; replace it or leave the cell empty"
    )


def standardise(
    values: NDArray[Any], mean: NDArray[np.float64], std: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Centre and scale in float64, kept within what single precision can square."""
    x = values - mean
    x /= std
    return np.clip(x, -FAR, FAR, out=x)


def tensors(
    x: NDArray[Any], fill: NDArray[np.float64] | float = 0.0
) -> tuple[Tensor, Tensor | None]:
    """Single-precision tensor with ``fill`` for NaN, and the mask of what was there (None: all)."""
    absent = np.isnan(x)
    if not absent.any():
        return torch.from_numpy(np.ascontiguousarray(x, dtype=np.float32)), None
    filled = np.where(absent, fill, x).astype(np.float32)
    return torch.from_numpy(filled), torch.from_numpy(~absent).flatten(1)


def far_out(
    x: NDArray[np.float64],
    low: NDArray[np.float64],
    high: NDArray[np.float64],
    names: tuple[str, ...],
) -> list[str]:
    """Remark on columns with values ten standard deviations outside the training range."""
    if x.size and x.min() >= (low - 10).max() and x.max() <= (high + 10).min():
        return []  # as nearly always: two looks at all, and none at each column
    far = ((x < low - 10) | (x > high + 10)).sum(0)
    return [
        f"column '{names[i]}': {far[i]} values more than ten standard deviations outside the "
        f"training range"
        for i in np.flatnonzero(far)[:5]
    ]
