"""Continuous columns, packed into one block."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self, TypeAlias, TypeVar, final

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from refold.casting import cast
from refold.errors import InputError
from refold.fields.base import Encoded, Numbers, arrow_type, learnt, register, scalar
from refold.table import Arrow, Column, compute
from refold.wording import counted

FAR = 1e6  # standard deviations; squares of more would leave single precision
FAR_OUT = 10.0  # standard deviations beyond the training range that are remarked on
TILE = 1 << 18  # numbers that are scaled at a time: two megabytes, which stay in cache
NEAR = 8.0  # deviations from zero of a mean, from which single precision would lose digits
MANY = 1 << 21  # numbers from which threads share them

T = TypeVar("T")
Pooling: TypeAlias = Callable[[NDArray[np.float64], NDArray[np.float64]], bool]
"""Whether columns of these least and largest values are in one unit."""


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
        return scaled(values, self.mean, self.std, self.low, self.high, self.columns)

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
    def of(cls, values: NDArray[Any], pooled: bool | Pooling = False) -> Scale:
        """Learn from ``values`` ``[n, E]``, NaN where missing.

        ``pooled`` shares one deviation, or says from the least and largest of the columns whether.
        """
        whole = bool(np.isfinite(values.sum(dtype=np.float64)))
        seen = None if whole else np.isfinite(values)  # what is infinite is refused later
        count = np.float64(len(values)) if seen is None else np.maximum(seen.sum(0), 1)
        mean = (values if seen is None else np.where(seen, values, 0.0)).sum(0, np.float64) / count

        def work(begin: int, end: int) -> tuple[NDArray[np.float64], ...]:
            """Sums of squares, least and largest of the rows from ``begin`` to ``end``."""
            squares = np.zeros(values.shape[1])
            low, high = np.full(values.shape[1], np.inf), np.full(values.shape[1], -np.inf)
            for at in tiles(values, begin, end):
                centred = values[at] - mean
                if seen is not None:
                    centred[~seen[at]] = 0.0
                squares += np.einsum("ij,ij->j", centred, centred)
                np.minimum(low, centred.min(0), out=low)
                np.maximum(high, centred.max(0), out=high)
            return squares, low, high

        squares, lows, highs = zip(*by_threads(work, values), strict=True)
        low, high = np.min(lows, axis=0), np.max(highs, axis=0)
        variance = np.sum(squares, axis=0) / count
        if pooled(low + mean, high + mean) if callable(pooled) else pooled:
            variance = np.full_like(variance, variance.mean())
        std = np.sqrt(variance)
        # Rounding leaves a constant column of large values a deviation that is not quite zero.
        size = np.maximum(np.abs(low + mean), np.abs(high + mean))
        std = np.where(std > 1e-12 * size, std, 1.0)
        return cls(mean, std, low / std, high / std)

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
    if all(c.type in (pa.float32(), pa.float64()) for c in found):
        return interleaved(pa.Table.from_arrays(found, names=[str(i) for i in range(len(found))]))
    return np.stack([numbers(column, c) for column, c in zip(found, names, strict=True)], axis=1)


def interleaved(table: Arrow) -> NDArray[np.float64]:
    """Columns of floating types as a matrix ``[n, K]``, by tiles that stay in cache."""
    values = np.empty((len(table), table.num_columns))
    begin = 0
    for batch in table.to_batches(max_chunksize=max(1, TILE // table.num_columns)):
        values[begin : begin + len(batch)] = batch.to_tensor(null_to_nan=True).to_numpy()
        begin += len(batch)
    return values


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
    some = False
    for at in tiles(values):
        part = values[at]
        here = part == np.rint(part)
        some = some or bool(here.any())
        if not here.all() and not (here | np.isnan(part)).all():
            return False
    return some


def by_threads(work: Callable[[int, int], T], values: NDArray[Any]) -> list[T]:
    """Do ``work`` on rows from one number to another, in parts that threads share where many."""
    threads = torch.get_num_threads() if values.size > MANY else 1
    marks = [len(values) * i // threads for i in range(threads + 1)]
    if threads == 1:
        return [work(0, len(values))]
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(work, marks[:-1], marks[1:]))


def tiles(values: NDArray[Any], begin: int = 0, end: int | None = None) -> Iterator[slice]:
    """Slices of rows that stay in cache, of all rows or of those from ``begin`` to ``end``."""
    last = len(values) if end is None else end
    step = max(1, TILE // max(1, values[:1].size))
    return (slice(i, min(i + step, last)) for i in range(begin, last, step))


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


def scaled(
    values: NDArray[Any],
    mean: Sequence[float],
    std: Sequence[float],
    low: Sequence[float],
    high: Sequence[float],
    names: tuple[str, ...],
) -> Encoded:
    r"""Numbers ``[n, K]`` as :math:`x = (v - \bar v) / s`, 0 where missing.

    Computed in float64, or in single precision where the values have no more and lie around zero,
    and kept within what single precision can square, a tile at a time, so that
    nothing but the result is as large as the values; threads share the rows where there are many.
    Raises :class:`InputError` for infinity; remarks on columns with values far outside the training
    range, ``low`` to ``high``.
    """
    centre, scale, least, most = (np.asarray(v, np.float64) for v in (mean, std, low, high))
    single = values.dtype == np.float32 and bool((np.abs(centre) <= NEAR * scale).all())
    kind = torch.float32 if single else torch.float64
    centres, scales = (torch.from_numpy(v).to(kind) for v in (centre, scale))
    near = (least - FAR_OUT).max(initial=-np.inf), (most + FAR_OUT).min(initial=np.inf)
    x = torch.empty(values.shape)
    mask: Tensor | None = None
    far = np.zeros(values.shape[1], np.int64)
    for at in tiles(values) if values.size else ():
        part = torch.sub(tensor_of(values[at], single), centres, out=x[at] if single else None)
        part /= scales
        lowest, highest = (float(v) for v in torch.aminmax(part))
        if not (lowest >= -FAR and highest <= FAR):  # missing, infinite or far, which is rare
            refuse_infinite(values, names)
            absent = part.clamp_(-FAR, FAR).isnan()
            if absent.any():
                mask = torch.ones(values.shape, dtype=torch.bool) if mask is None else mask
                mask[at] = ~absent
        if not (lowest >= near[0] and highest <= near[1]):
            there = part.numpy()
            far += ((there < least - FAR_OUT) | (there > most + FAR_OUT)).sum(0)
        x[at] = part
    if mask is not None:
        x.masked_fill_(~mask, 0.0)
    return Encoded(x, mask, remarks_on_far(far, names))


def tensor_of(values: NDArray[Any], single: bool) -> Tensor:
    """Numbers in double precision, or in single; not a copy where they are and may be written."""
    given = np.ascontiguousarray(values, np.float32 if single else np.float64)
    return torch.from_numpy(given if given.flags.writeable else given.copy())


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
    return remarks_on_far(((x < low - FAR_OUT) | (x > high + FAR_OUT)).sum(0), names)


def remarks_on_far(far: NDArray[np.int64], names: tuple[str, ...]) -> list[str]:
    """Say of how many values of each column are far outside the training range."""
    return [
        f"column '{names[i]}': {counted(int(far[i]), 'value')} more than ten standard deviations "
        f"outside the training range"
        for i in np.flatnonzero(far)[:5]
    ]
