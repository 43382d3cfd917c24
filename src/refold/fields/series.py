"""Series: numbers in steps, of one length or each of its own, in one channel or several."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, NamedTuple, Self, final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from torch import Tensor

from refold.casting import as_dtype, list_parts
from refold.errors import InputError, unknown
from refold.fields.base import Encoded, Field, learnt, register
from refold.fields.numeric import FAR, Scale, far_out, refuse_infinite, tensors
from refold.table import Column, is_list

SCALES = ("channel", "window", "none")


@final
@register("series")
@dataclass(frozen=True, kw_only=True)
class Series(Field):
    r"""Series ``[n, T]`` or ``[n, T, C]``, or lists of arrays ``[T_i]`` or ``[T_i, C]``, scaled.

    .. math:: x_{tc} = (v_{tc} - m_c) / s_c

    ``scale="channel"`` takes the mean :math:`m_c` and deviation :math:`s_c` of each channel over
    the training rows; ``"window"`` those of each row by itself, so that only its form is learnt;
    ``"none"`` leaves values as they are. Inside, a series is ``[B, T, C]`` with ``T`` the longest
    of training, or at most ``length``: what is beyond is cut, with a remark, and does not come
    back. A shorter one is missing after its last step.

    Rows that are rebuilt have the length, and with ``"window"`` the level and scale, of the rows
    given. A code alone says neither: series unfolded from codes, or drawn, have all ``T`` steps,
    and with ``"window"`` the average level and scale of training.

    Raises :class:`InputError` for an unknown ``scale``, infinite values, another number of
    channels, and arrays of another number of steps than those of training.

    >>> column = {"x": pa.chunked_array([[[1.0, 3.0], [5.0]]])}
    >>> own = Series(columns=("x",)).fit(column)
    >>> own.to_tensor(column).x[:, :, 0]
    tensor([[-1.2247,  0.0000],
            [ 1.2247,  0.0000]])
    >>> own.to_tensor(column).observed.tolist()
    [[True, True], [True, False]]
    """

    block: ClassVar[bool] = True
    native: ClassVar[str] = "mse"
    allowed: ClassVar[tuple[str, ...]] = ("mse", "l1", "huber", "gaussian", "laplace", "student")
    length: int | None = field(default=None, kw_only=False)
    scale: str = "channel"
    mean: tuple[float, ...] = learnt(())
    std: tuple[float, ...] = learnt(())
    low: tuple[float, ...] = learnt(())
    high: tuple[float, ...] = learnt(())
    steps: int = learnt(0)
    plain: bool = learnt(True)
    """Whether steps were numbers: there was no axis of channels."""
    ragged: bool = learnt(False)
    """Whether training rows were lists, each of a length of its own."""
    dtype: str = learnt("float64")

    def __post_init__(self) -> None:
        if self.scale not in SCALES:
            raise unknown("scale", self.scale, SCALES)
        if self.length is not None and self.length < 1:
            raise InputError(f"a series' length is {self.length}; give the most steps, 1 or more")

    def fit(self, columns: Mapping[str, Column]) -> Self:
        """Learn the number of steps and channels, and each channel's mean, scale and range."""
        name = self.columns[0]
        given = padded(columns[name], name)
        values = given.values[:, : self.length]
        _, steps, channels = values.shape
        if steps * channels == 0:
            raise InputError(
                f"no training row of series '{name}' has a step; give series of one step or more"
            )
        self._refuse(values, channels)
        flat = values.reshape(-1, channels)
        scale = Scale.of(flat)
        if self.scale == "window":
            level, spread = levels(values)
            mean, std = average(level, 0.0), average(spread, 1.0)
            level, spread = filled_in(level, mean), filled_in(spread, std)
            inside = Scale.of(((values - level) / spread).reshape(-1, channels)).unit()
            scale = Scale(mean, std, inside.low + inside.mean, inside.high + inside.mean)
        elif self.scale == "none":
            ones, unit = np.ones(channels), scale.unit()
            scale = Scale(0.0 * ones, ones, unit.low + unit.mean, unit.high + unit.mean)
        return replace(
            self,
            mean=tuple(scale.mean.tolist()),
            std=tuple(scale.std.tolist()),
            low=tuple(scale.low.tolist()),
            high=tuple(scale.high.tolist()),
            steps=steps,
            plain=given.plain,
            ragged=not isinstance(columns[name], np.ndarray),
            missing=bool(np.isnan(values).any()),
            dtype=given.dtype,
        )

    def to_tensor(self, columns: Mapping[str, Column]) -> Encoded:
        """Scale to ``[B, T, C]``; what is missing, the steps after a row's last too, becomes 0."""
        given, notes = self._kept(columns[self.columns[0]])
        level, spread = self._scales(given.values)
        x = np.clip((given.values - level) / spread, -FAR, FAR)
        channels = len(self.mean)
        names = self.columns if channels == 1 else tuple(
            f"{self.columns[0]}[·, {c}]" for c in range(channels)
        )  # fmt: skip
        notes += far_out(x.reshape(-1, channels), np.array(self.low), np.array(self.high), names)
        return Encoded(*tensors(x), notes)

    def to_values(self, point: Tensor) -> dict[str, Column]:
        """Return to units and type, at the average level and scale, each of all ``T`` steps."""
        values = self.numbers(point)
        if not self.ragged:
            return {self.columns[0]: self._array(values, self.plain)}
        return {self.columns[0]: self._lists(values, np.full(len(values), self.steps), self.plain)}

    def to_values_like(self, point: Tensor, given: Column) -> dict[str, Column]:
        """Return to units and type, each row with the length, level and scale of the row given.

        A row that is missing as a whole has all ``T`` steps.
        """
        if not isinstance(given, np.ndarray) and pa.types.is_null(given.type):
            return self.to_values(point)
        values = self.numbers(point, given)
        if isinstance(given, np.ndarray):
            plain = given.ndim == 2
            return {self.columns[0]: self._array(values[:, : given.shape[1]], plain)}
        known = padded(given, self.columns[0])
        lengths = np.where(known.lengths < 0, self.steps, np.minimum(known.lengths, self.steps))
        return {self.columns[0]: self._lists(values, lengths, known.plain)}

    def numbers(self, point: Tensor, given: Column | None = None) -> NDArray[np.float64]:
        """Points ``[B, E]`` in the user's units, ``[B, T, C]``, at the levels of ``given`` rows."""
        x = point.double().cpu().numpy().reshape(-1, *self.shape)
        level, spread = np.array(self.mean), np.array(self.std)
        if given is not None:
            level, spread = self._scales(self._kept(given)[0].values)
        return x * spread + level

    def given_numbers(self, given: Column) -> NDArray[np.float64]:
        """Values as they were given, ``[B, T, C]``, NaN where there are none."""
        return self._kept(given)[0].values

    def gaps(self, given: Column) -> NDArray[np.bool_]:
        """Which entries ``[B, E]`` are missing up to each row's last step, and could be filled.

        All are where a row is missing as a whole.
        """
        known = self._kept(given)[0]
        lengths = np.where(known.lengths < 0, self.steps, known.lengths)
        inside = np.arange(self.steps) < lengths[:, None]
        return (np.isnan(known.values) & inside[:, :, None]).reshape(len(lengths), -1)

    def filled(self, given: Column, values: Column) -> Column:
        """Return given rows with ``values`` where they have gaps; rows keep their lengths."""
        name = self.columns[0]
        if isinstance(given, np.ndarray):
            other = padded(values, name).values[:, : given.shape[1]].reshape(given.shape)
            return np.where(np.isnan(given), as_dtype(other, given.dtype), given)
        if pa.types.is_null(given.type):
            return values
        known, other = padded(given, name), padded(values, name)
        steps = max(known.values.shape[1], other.values.shape[1])
        mine, theirs = (_to_steps(v.values, steps) for v in (known, other))
        whole = np.where(np.isnan(mine), theirs, mine)
        lengths = np.where(known.lengths < 0, other.lengths, known.lengths)
        return lists(whole, lengths, known.plain, np.dtype(known.dtype))

    def _refuse(self, values: NDArray[np.float64], channels: int) -> None:
        if np.isinf(values).any():
            flat = values.reshape(len(values), -1)
            refuse_infinite(flat, _names(self.columns[0], values.shape[1], channels))

    def _kept(self, column: Column) -> tuple[Padded, list[str]]:
        """Series of ``T`` steps, checked; what is beyond is cut."""
        name, channels, notes = self.columns[0], len(self.mean), list[str]()
        given = padded(column, name, channels)
        if given.values.shape[2] != channels:
            raise InputError(
                f"series '{name}' have {given.values.shape[2]} channels, but {channels} in "
                f"training; give {channels}"
            )
        width = given.values.shape[1]
        fixed = isinstance(column, np.ndarray) and not self.ragged and self.length is None
        if fixed and width != self.steps:
            raise InputError(
                f"series '{name}' have {width} steps, but {self.steps} in training; give series of "
                f"{self.steps}, or fit on lists of series or with series(length={self.steps})"
            )
        cut = int((given.lengths > self.steps).sum())
        if cut:
            notes.append(
                f"'{name}': {cut} of {len(given.lengths)} series are longer than the {self.steps} "
                f"steps of the model, and were cut there"
            )
        values = _to_steps(given.values, self.steps)
        self._refuse(values, channels)
        kept = np.minimum(given.lengths, self.steps)
        return given._replace(values=values, lengths=kept), notes

    def _scales(self, values: NDArray[np.float64]) -> tuple[NDArray[Any], NDArray[Any]]:
        """Level and scale of rows, to be taken from and divided by: ``[B, 1, C]`` or ``[C]``."""
        mean, std = np.array(self.mean), np.array(self.std)
        if self.scale != "window":
            return mean, std
        level, spread = levels(values)
        return filled_in(level, mean), filled_in(spread, std)

    def _array(self, values: NDArray[np.float64], plain: bool) -> Column:
        return as_dtype(values[:, :, 0] if plain else values, np.dtype(self.dtype))

    def _lists(
        self, values: NDArray[np.float64], lengths: NDArray[np.int64], plain: bool
    ) -> Column:
        return lists(values, lengths, plain, np.dtype(self.dtype))

    @property
    def shape(self) -> tuple[int, ...]:
        """Steps, channels."""
        return (self.steps, len(self.mean))

    @property
    def cell(self) -> tuple[int, ...]:
        """Shape of one series as the user gives it, at its longest."""
        return (self.steps,) if self.plain else self.shape

    @property
    def sizes(self) -> tuple[int, ...]:
        """Numbers have one level."""
        return (1,) * (self.steps * len(self.mean))

    @property
    def entries(self) -> tuple[str, ...]:
        """Return ``name[step]``, with the channel after it where there are several."""
        return _names(self.columns[0], self.steps, len(self.mean))

    @property
    def bounds(self) -> tuple[list[float], list[float]]:
        """Scaled training range of each channel, at every step."""
        return list(self.low) * self.steps, list(self.high) * self.steps


class Padded(NamedTuple):
    """Series side by side: ``values`` ``[n, T, C]``, NaN where there are none.

    ``lengths`` ``[n]`` are their own (-1: missing as a whole); ``plain`` where steps were numbers,
    without an axis of channels; ``dtype`` is that of the numbers.
    """

    values: NDArray[np.float64]
    lengths: NDArray[np.int64]
    plain: bool
    dtype: str


def padded(column: Column, name: str, channels: int = 1) -> Padded:
    """Bring series to one length; ``channels`` is how many there are where no row has a step.

    Raises :class:`InputError` for a column that holds no series.
    """
    if isinstance(column, np.ndarray):
        if column.ndim not in (2, 3) or column.dtype.kind not in "biuf":
            raise InputError(
                f"'{name}' has shape {column.shape}, which is no set of series; expected "
                f"(n, steps) or (n, steps, channels)"
            )
        wide = column[:, :, None] if column.ndim == 2 else column
        lengths = np.full(len(column), column.shape[1])
        return Padded(wide.astype(np.float64), lengths, column.ndim == 2, str(column.dtype))
    if pa.types.is_null(column.type):
        n = len(column)
        return Padded(np.empty((n, 0, channels)), np.full(n, -1), channels == 1, "float64")
    if not is_list(column.type):
        raise InputError(
            f"column '{name}' is to be series, but holds one value a row ({column.type}); give an "
            f"array (n, steps), or a list of numbers in each row"
        )
    numbers, lengths, nested = list_parts(column)
    if not len(numbers):
        numbers = np.empty((0, channels))
    steps, kept = max(0, int(lengths.max(initial=0))), np.maximum(lengths, 0)
    values = np.full((len(lengths), steps, numbers.shape[1]), np.nan)
    values[np.arange(steps) < kept[:, None]] = numbers
    return Padded(values, lengths, not nested, str(numbers.dtype))


def lists(
    values: NDArray[np.float64], lengths: NDArray[np.int64], plain: bool, dtype: np.dtype[Any]
) -> Column:
    """Lists of the first steps of ``values`` ``[n, T, C]``, each of its own length.

    >>> lists(np.arange(4.0).reshape(2, 2, 1), np.array([2, 1]), True, np.dtype(int)).to_pylist()
    [[0, 1], [2]]
    """
    channels = values.shape[2]
    kept = values[np.arange(values.shape[1]) < lengths[:, None]]
    inner: Any = pa.array(as_dtype(kept.reshape(-1), dtype), from_pandas=True)
    if not plain:
        inner = pa.ListArray.from_arrays(
            pa.array(np.arange(len(kept) + 1) * channels, pa.int32()), inner
        )
    ends = np.concatenate([[0], np.cumsum(lengths)])
    return pa.chunked_array([pa.ListArray.from_arrays(pa.array(ends, pa.int32()), inner)])


def levels(values: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and deviation of each row and channel, ``[n, 1, C]``; NaN where none can be said.

    A row without values has neither, a constant one no deviation.
    """
    seen = ~np.isnan(values)
    count = seen.sum(1, keepdims=True)
    known = np.maximum(count, 1)
    mean = np.where(seen, values, 0.0).sum(1, keepdims=True) / known
    centred = np.where(seen, values - mean, 0.0)
    std = np.sqrt(np.square(centred).sum(1, keepdims=True) / known)
    # Rounding leaves a constant row of large values a deviation that is not quite zero.
    size = np.where(seen, np.abs(values), 0.0).max(1, keepdims=True, initial=0.0)
    return np.where(count > 0, mean, np.nan), np.where(std > 1e-12 * size, std, np.nan)


def average(values: NDArray[np.float64], otherwise: float) -> NDArray[np.float64]:
    """Mean of each channel over rows ``[n, 1, C]``, NaN left out."""
    seen = ~np.isnan(values)
    total = np.where(seen, values, 0.0).sum((0, 1))
    return np.where(seen.any((0, 1)), total / np.maximum(seen.sum((0, 1)), 1), otherwise)


def filled_in(values: NDArray[np.float64], fill: NDArray[np.float64]) -> NDArray[np.float64]:
    """Put ``fill`` ``[C]`` where ``values`` ``[n, 1, C]`` is NaN."""
    return np.where(np.isnan(values), fill, values)


def _to_steps(values: NDArray[np.float64], steps: int) -> NDArray[np.float64]:
    """Cut ``[n, t, C]`` to so many steps, or follow it with missing ones."""
    n, width, channels = values.shape
    if width >= steps:
        return values[:, :steps]
    return np.concatenate([values, np.full((n, steps - width, channels), np.nan)], axis=1)


def _names(name: str, steps: int, channels: int) -> tuple[str, ...]:
    if channels == 1:
        return tuple(f"{name}[{t}]" for t in range(steps))
    return tuple(f"{name}[{t}, {c}]" for t in range(steps) for c in range(channels))
