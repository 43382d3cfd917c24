"""One long series on a regular grid: when its rows were, and what its channels said."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from refold.casting import flatten
from refold.data.containers import Pandas
from refold.data.sources import read
from refold.errors import InputError
from refold.fields.numeric import numbers, refuse_infinite
from refold.table import Arrow, Column, Container, Table, compute
from refold.wording import counted

SECOND = 1_000_000_000  # nanoseconds, in which all times are held
SPARSE = 10  # slots of the grid for each row, beyond which the steps are no steps
SURE = 0.9  # share of texts that are times, from which a column is one of times
FORMATS = (
    "%Y-%m-%d %H:%M:%S", "%Y-%m-%dT%H:%M:%S", "%Y-%m-%d %H:%M", "%Y/%m/%d %H:%M:%S",
    "%Y/%m/%d %H:%M", "%Y/%m/%d", "%d.%m.%Y %H:%M:%S", "%d.%m.%Y %H:%M", "%d.%m.%Y",
    "%Y%m%dT%H%M%S",
)  # fmt: skip
TIMELIKE = re.compile(r"(?i)(^|[^a-z])(time|timestamp|datetime|date|ts|epoch|unix)([^a-z]|$)")


@dataclass(frozen=True)
class Grid:
    """Where steps lie: a step's length, and whether it is time (else rows are counted)."""

    step: int
    """Nanoseconds from one step to the next; 1 where rows are counted."""
    timed: bool
    zone: str | None = None
    """Time zone of the column of times, by whose clock days go."""

    def slots(self, times: NDArray[np.int64], start: int) -> NDArray[np.int64]:
        """Nearest step of each time, counted from ``start``."""
        return (2 * (times - start) + self.step) // (2 * self.step)


@dataclass(frozen=True)
class Timeline:
    """A series on its grid, and the way back to the rows as they were given.

    ``values`` ``[T, C]`` has NaN where nothing was observed; ``times`` ``[T]`` are the grid's, in
    nanoseconds since 1970, or counts. ``slots`` ``[n]`` is the step of every row given.
    """

    grid: Grid
    times: NDArray[np.int64]
    values: NDArray[np.float64]
    channels: tuple[str, ...]
    slots: NDArray[np.int64]
    name: str
    stamps: Column
    """The column of times as it was given, or the numbers of the rows."""
    container: Container
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.values)

    def first_rows(self, steps: NDArray[np.int64]) -> NDArray[np.int64]:
        """Rows at the given steps; at a step without one, the next row in time."""
        order = np.argsort(self.slots, kind="stable")
        at = np.searchsorted(self.slots[order], steps)
        return order[np.minimum(at, len(order) - 1)]


def timeline(
    series: Any,
    timestamp: str | None = None,
    grid: Grid | None = None,
    channels: tuple[str, ...] | None = None,
) -> Timeline:
    """Place the rows of a series on a regular grid.

    The column of times is ``timestamp``, or found: one of a time type, of texts that are times, or
    of numbers that rise under a name such as ``time``; without any, rows are counted. The usual
    step is the median difference, unless a ``grid`` is known; a row stands at the nearest step,
    rows of one step are averaged, and a step without a row is missing. ``channels`` are all other
    columns of numbers, unless known.

    Raises :class:`InputError` for a time that cannot be read, naming its row, times of which most
    are there twice, steps too uneven for a grid, channels that are absent, and infinite values.

    >>> found = timeline({"t": ["2024-01-01 00:00", "2024-01-01 00:20", "2024-01-01 00:10",
    ...                         "2024-01-01 00:40"], "v": [1.0, 3.0, 2.0, 5.0]})
    >>> found.values[:, 0]
    array([ 1.,  2.,  3., nan,  5.])
    >>> found.notes
    ('rows were out of order in time, and were sorted', '1 of 5 steps have no row, and are missing')
    """
    table = read_series(series)
    notes = list(table.notes)
    if len(table) == 0:
        raise InputError("the series has no rows; give at least one")
    name, stamps, times = _times(table, timestamp, notes)
    values, names = _channels(table, name, channels, notes)
    if np.isinf(values).any():
        refuse_infinite(values, names)
    if grid is not None and grid.timed != (times is not None):
        what = ("has no times", "had") if grid.timed else ("has times", "had none")
        raise InputError(
            f"the series {what[0]}, but the one fitted {what[1]}; give series of one kind, or "
            f"name the column with timestamp="
        )
    counted = times is None
    at = np.arange(len(values)) if times is None else times
    order, unique = np.argsort(at, kind="stable"), np.unique(at)
    if (np.diff(at) < 0).any():
        notes.append("rows were out of order in time, and were sorted")
    if len(unique) < max(2, len(at) / 2) and len(at) > 1:
        raise InputError(
            f"'{name}' has {len(unique)} times for {len(at)} rows; give one row a time: of several "
            f"series choose one, or give each a column of its own"
        )
    zone = getattr(getattr(stamps, "type", None), "tz", None)
    own = grid or Grid(1 if counted else _usual_step(unique, name), not counted, zone)
    slots = own.slots(at, int(unique[0]))
    count = int(slots[order[-1]]) + 1
    if count > SPARSE * len(at) + 1000:
        raise InputError(
            f"the times of '{name}' span {count:,} steps of {spoken(own.step)}, but there are "
            f"{len(at):,} rows; give a series of more even steps, or a part of it"
        )
    notes += _irregular(at, unique, own, slots, count, name)
    return Timeline(
        own, int(unique[0]) + own.step * np.arange(count), _placed(values, slots, count), names,
        slots, name, stamps, table.container, tuple(notes),
    )  # fmt: skip


def moment(value: Any, grid: Grid) -> int:
    """One time as nanoseconds since 1970, or the count that it is.

    Raises :class:`InputError` for what is no time.
    """
    if not grid.timed:
        if isinstance(value, bool) or not isinstance(value, int | np.integer):
            raise InputError(f"{value!r} is no number of a step; the series fitted had no times")
        return int(value)
    try:
        column: Arrow = pa.chunked_array([pa.array([value], from_pandas=True)])
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise InputError(f"{value!r} is no time; give a date and time") from error
    if pa.types.is_null(column.type):
        raise InputError("the time is missing; give a date and time")
    found, bad = _parsed(column)
    if found is None or bad is not None:
        raise InputError(f"{value!r} is no time; give one as '2024-01-31 12:00:00'")
    return int(found[0])


def spoken(nanoseconds: int) -> str:
    """Say a length of time.

    >>> spoken(1_800 * SECOND), spoken(90 * SECOND), spoken(86_400 * SECOND)
    ('30 min', '90 s', '1 d')
    """
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min"), (1, "s")):
        if nanoseconds >= size * SECOND and nanoseconds % (size * SECOND) == 0:
            return f"{nanoseconds // (size * SECOND)} {unit}"
    return f"{nanoseconds / SECOND:g} s"


# --- columns -----------------------------------------------------------------------------------


def read_series(series: Any) -> Table:
    """Read a series; one of a single dimension is one channel."""
    if hasattr(series, "to_frame"):
        series = series.to_frame(str(getattr(series, "name", None) or "value"))
    elif isinstance(series, np.ndarray | list | tuple) and np.ndim(series) == 1:
        series = np.asarray(series)[:, None]
    return read(series)


def _times(
    table: Table, timestamp: str | None, notes: list[str]
) -> tuple[str, Column, NDArray[np.int64] | None]:
    """Name of the column of times, the column, and its times; None where rows are counted."""
    columns = table.columns
    if timestamp is not None:
        if timestamp not in columns:
            raise InputError(
                f"there is no column '{timestamp}' to take times from; columns: "
                f"{', '.join(columns)}"
            )
        return timestamp, columns[timestamp], _required(columns[timestamp], timestamp)
    able = [k for k, c in columns.items() if _is_temporal(c)]
    texts = [k for k, c in columns.items() if not able and _holds_times(c)]
    rising = [
        k for k, c in columns.items() if not able and not texts and TIMELIKE.search(k) and _rises(c)
    ]
    found = [*able, *texts, *rising]
    if found:
        name = found[0]
        if len(found) > 1:
            notes.append(
                f"several columns hold times ({', '.join(found)}); '{name}' was taken, as no "
                f"timestamp= was given"
            )
        return name, columns[name], _required(columns[name], name)
    own = table.container
    if isinstance(own, Pandas) and getattr(getattr(own.index, "dtype", None), "kind", "") == "M":
        index: Arrow = pa.chunked_array([pa.array(own.index, from_pandas=True)])
        name = str(own.index.name or "time")
        return name, index, _required(index, name)
    notes.append("no column holds times, so steps are the rows, one after the other")
    return "step", pa.chunked_array([np.arange(len(table))]), None


def _channels(
    table: Table, name: str, known: tuple[str, ...] | None, notes: list[str]
) -> tuple[NDArray[np.float64], tuple[str, ...]]:
    columns: Mapping[str, Any] = flatten({k: c for k, c in table.columns.items() if k != name})
    if known is not None:
        absent = [k for k in known if k not in columns]
        if absent:
            raise InputError(
                f"the series has no channel {', '.join(absent)}, which the monitor was fitted on; "
                f"it has {', '.join(columns) or 'none'}"
            )
        return np.stack([_numeric(columns[k], k) for k in known], 1), known
    kept = {k: c for k, c in columns.items() if _is_number(c)}
    left = [k for k in columns if k not in kept]
    if left:
        notes.append(f"left out, as no channel of numbers: {', '.join(left)}")
    if not kept:
        raise InputError(
            "the series has no channel: no column of numbers beside the times; give one or more"
        )
    return np.stack([_numeric(c, k) for k, c in kept.items()], 1), tuple(kept)


def _numeric(column: Any, name: str) -> NDArray[np.float64]:
    if isinstance(column, np.ndarray):
        return column.astype(np.float64)
    return numbers(column, name)


def _is_number(column: Any) -> bool:
    if isinstance(column, np.ndarray):
        return column.ndim == 1 and column.dtype.kind in "biuf"
    kind, types = column.type, pa.types
    number = types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind)
    return number and column.null_count < len(column)


# --- times -------------------------------------------------------------------------------------


def _is_temporal(column: Column) -> bool:
    return not isinstance(column, np.ndarray) and (
        pa.types.is_timestamp(column.type) or pa.types.is_date(column.type)
    )


def _holds_times(column: Column) -> bool:
    if isinstance(column, np.ndarray) or not pa.types.is_string(column.type):
        return False
    known = column.drop_null()
    return len(known) > 0 and compute.mean(_as_times(known).is_valid()).as_py() >= SURE


def _rises(column: Column) -> bool:
    if isinstance(column, np.ndarray) or column.null_count or len(column) < 2:
        return False
    if not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)):
        return False
    return bool((np.diff(numbers(column, "")) > 0).all())


def _required(column: Column, name: str) -> NDArray[np.int64]:
    """Times of a column, every one of which must be readable."""
    if isinstance(column, np.ndarray):
        raise InputError(f"column '{name}' holds arrays, and no times; name a column of times")
    found, bad = _parsed(column)
    if found is None:
        raise InputError(
            f"column '{name}' of type {column.type} holds no times; name a column of times"
        )
    if bad is not None:
        raise InputError(
            f"row {bad} of '{name}' is {column[bad].as_py()!r}, which is no time; correct it or "
            f"leave the row out"
        )
    return found


def _parsed(column: Arrow) -> tuple[NDArray[np.int64] | None, int | None]:
    """Nanoseconds of a column of times, and the first row that holds none; None for no times."""
    kind, types = column.type, pa.types
    if types.is_string(kind) or types.is_large_string(kind):
        times = _as_times(column)
    elif types.is_timestamp(kind) or types.is_date(kind):
        times = (
            column.cast(pa.timestamp("us")).cast(pa.timestamp("ns"))
            if types.is_date(kind)
            else column
        )
    elif types.is_integer(kind) or types.is_floating(kind):
        values = numbers(column, "")
        bad = np.flatnonzero(~np.isfinite(values))
        scale = _unit(values[np.isfinite(values)])
        whole = np.rint(np.where(np.isfinite(values), values, 0.0) * scale)
        return whole.astype(np.int64), int(bad[0]) if len(bad) else None
    else:
        return None, None
    absent = np.flatnonzero(times.is_null().to_numpy())
    if len(absent):
        return np.zeros(len(column), np.int64), int(absent[0])
    unit = times.type.unit
    factor = {"s": SECOND, "ms": 1_000_000, "us": 1_000, "ns": 1}[unit]
    return times.cast(pa.int64()).to_numpy() * factor, None


def _unit(values: NDArray[np.float64]) -> int:
    """Nanoseconds of one: numbers as large as today's clocks in ms, µs or ns are such."""
    size = float(np.median(np.abs(values))) if len(values) else 0.0
    return (SECOND, 1_000_000, 1_000, 1)[int(np.searchsorted([1e11, 1e14, 1e17], size))]


def _as_times(column: Arrow) -> Arrow:
    """Texts as times in the first form that reads most of them; null where a text is none."""
    best: Arrow = None
    trimmed = compute.utf8_trim_whitespace(column)
    zoned = compute.match_substring_regex(trimmed, r"(Z|[+-]\d\d:?\d\d)$")
    if compute.any(zoned).as_py():
        try:
            return trimmed.cast(pa.timestamp("ns", "UTC"))
        except pa.ArrowInvalid:
            trimmed = compute.replace_substring_regex(trimmed, r"(Z|[+-]\d\d:?\d\d)$", "")
    try:
        return trimmed.cast(pa.timestamp("ns"))
    except pa.ArrowInvalid:
        pass
    # Fractions of a second are beyond strptime; they are shorter than any step that is read here.
    plain = compute.replace_substring_regex(trimmed, r"(:\d\d)\.\d+$", r"\1")
    for form in FORMATS:
        found = compute.strptime(plain, format=form, unit="s", error_is_null=True)
        if best is None or found.null_count < best.null_count:
            best = found
    return best


# --- the grid ----------------------------------------------------------------------------------


def _usual_step(unique: NDArray[np.int64], name: str) -> int:
    if len(unique) < 2:
        raise InputError(f"'{name}' has one time only, so there is no step; give more rows")
    return max(1, int(np.median(np.diff(unique))))


def _placed(
    values: NDArray[np.float64], slots: NDArray[np.int64], count: int
) -> NDArray[np.float64]:
    """Mean of the rows of each step, ``[count, C]``; NaN where there are none."""
    total, seen = np.zeros((count, values.shape[1])), np.zeros((count, values.shape[1]))
    np.add.at(total, slots, np.nan_to_num(values))
    np.add.at(seen, slots, ~np.isnan(values))
    return np.where(seen > 0, total / np.maximum(seen, 1), np.nan)


def _irregular(
    at: NDArray[np.int64],
    unique: NDArray[np.int64],
    own: Grid,
    slots: NDArray[np.int64],
    count: int,
    name: str,
) -> list[str]:
    """Say what had to be done to bring the rows to the grid."""
    if not own.timed:
        return []
    notes = list[str]()
    twice = len(at) - len(unique)
    if twice:
        again = f"{counted(twice, 'row')} with a time of '{name}' that was there before"
        notes.append(f"{again}; rows of one time were averaged")
    off = int(((unique - unique[0]) % own.step != 0).sum())
    if off:
        notes.append(
            f"{off} of {len(unique)} times are off the usual step of {spoken(own.step)}, and were "
            f"taken to the nearest"
        )
    gaps = count - len(np.unique(slots))
    if gaps:
        notes.append(f"{gaps} of {count} steps have no row, and are missing")
    return notes
