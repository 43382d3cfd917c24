"""One pass over all rows: a sample of them, and rows that tell what the sample does not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from refold.data.schema import CODED, MANY, Aside, Override, Schema
from refold.data.sources.files import concatenated
from refold.data.streams.ahead import ahead
from refold.data.streams.budget import releasing
from refold.data.streams.sources import Source
from refold.data.streams.telling import Told, unheeded
from refold.fields import fields
from refold.fields.category import Classes
from refold.ops.meeting import in_vain, neighbours
from refold.parts import PartSpec
from refold.table import Arrow, Column, Table, compute, holds_lists

DECLARED = 100_000  # levels that are looked for in a column declared to be of classes
JOINED = 64  # pieces of a sample that are kept apart
SAMPLE = 350_377  # has the sample differ from other draws of the same seed
NOWHERE = Path("rows")  # where it makes no difference which file they are from
LONG = 20  # rows from which a column of consecutive numbers counts them


@dataclass(frozen=True)
class Look:
    """What a pass over ``rows`` rows has found: a ``table`` of some of them.

    The first rows of the table are a sample, from everywhere in the files, and ``places`` ``[n]``
    are theirs among all rows. Those after them are the first with a level that is not in the
    sample, so that a schema fitted on the table knows the levels of all rows; those at ``gaps`` are
    the first with a gap in a column, that the fit has to know of too. The columns ``counting`` hold
    row numbers.
    """

    rows: int
    table: Table
    places: NDArray[np.int64]
    gaps: NDArray[np.int64]
    counting: tuple[str, ...]

    def schema(
        self,
        train_at: NDArray[np.int64],
        overrides: Mapping[str, Override] | None,
        scales: Mapping[str, str] | None,
    ) -> Schema:
        """Fit a schema, with scales from the rows of the table at ``train_at`` and from gaps."""
        given = {str(k): v for k, v in (overrides or {}).items()}
        aside = [c for c in self.counting if c not in given]
        rows = np.concatenate([train_at, self.gaps])
        schema = Schema.fit(self.table, rows, {**given, **dict.fromkeys(aside, "ignore")}, scales)
        numbered = {c: replace(schema.aside[c], reason="a row number") for c in aside}
        named: dict[str, Aside] = {**schema.aside, **numbered}
        return replace(schema, aside=named)


def look(
    source: Source,
    size: int,
    portion: int,
    seed: int,
    overrides: Mapping[str, Override] | None = None,
    *,
    told: Told = unheeded,
) -> Look:
    """Pass over all rows, a portion at a time, and keep about ``size`` of them.

    Processes of one machine pass over a share each, and find together what one would find.
    """
    near, places = neighbours(), spread(len(source), size, seed)
    low, high = (len(source) * r // near.count for r in (near.number, near.number + 1))
    parts = near.each(lambda: glance(source, places, portion, (low, high), overrides, told))
    sample, telling = Pieces(), Pieces()
    reasons: list[Reason] = []
    known: dict[str, Known] = {}
    forms: dict[frozenset[str], int] = {}
    for part in parts:
        for name, other in part.known.items():
            if name not in known:
                known[name] = Known(other.limit)
        reasons += [r for r in part.reasons if r.name and known[r.name].learns(r.level)]
        for name, other in part.known.items():
            known[name].follow(other)
        reasons += [Reason(at, "", None) for form, at in part.forms.items() if form not in forms]
        forms = {**part.forms, **forms}
        sample.join(part.sample)
        telling.join(part.telling)
    few = sample.table()
    unheard = {n: k.unheard(few.columns.get(n)) for n, k in known.items()}
    unheard[""] = {None} if len(forms) > 1 else set()
    own = set(places.tolist())
    kept = [r for r in reasons if r.level in unheard[r.name] and r.place not in own]
    at = sorted({r.place for r in kept})
    whole = few
    if at:
        also, there = telling.table(), np.concatenate([part.told for part in parts])
        whole = joined([few, replace(also, columns=also.take(np.searchsorted(there, at)))])
    absent = {r.place for r in kept if r.level is None}
    missing = np.array([len(places) + n for n, i in enumerate(at) if i in absent], np.int64)
    counting = tuple(n for n, k in known.items() if k.counts and len(source) >= LONG)
    return Look(len(source), whole, places, missing, counting)


@dataclass(frozen=True)
class Reason:
    """Why the row at a ``place`` is kept: the first with a ``level`` of the column ``name``.

    The level None is a gap; of a set of columns that was not met before the name is empty.
    """

    place: int
    name: str
    level: Any


@dataclass
class Glance:
    """What one process has found in its rows: a sample, and rows that tell of levels and gaps.

    ``told`` are the places of the latter, ``forms`` where each set of columns was met first.
    """

    sample: Pieces
    telling: Pieces
    told: NDArray[np.int64]
    reasons: list[Reason]
    known: dict[str, Known]
    forms: dict[frozenset[str], int]


def glance(
    source: Source,
    places: NDArray[np.int64],
    portion: int,
    share: tuple[int, int],
    overrides: Mapping[str, Override] | None,
    told: Told,
) -> Glance:
    """Pass over the portions that begin in a ``share`` of the rows."""
    found = Glance(Pieces(), Pieces(), np.zeros(0, np.int64), [], {}, {})
    low, high = share
    with closing(ahead(source.between(low, high, portion))) as read:
        for begin, table, path in releasing(read):
            first, last = np.searchsorted(places, (begin, begin + len(table)))
            if last > first or not begin:
                found.sample.add(table, places[first:last] - begin, path)
            reasons: list[Reason] = []
            if (names := frozenset(table.columns)) not in found.forms:
                found.forms[names] = begin  # where a column is not in all files, its gaps are there
                reasons.append(Reason(begin, "", None))
            for name, column in table.columns.items():
                if name not in found.known:
                    found.known[name] = Known(limit(column, (overrides or {}).get(name)))
                news = found.known[name].news(column, begin)
                reasons += [Reason(begin + row, name, level) for row, level in news]
            rows = np.array(sorted({r.place for r in reasons}), np.int64)
            if len(rows):
                found.telling.add(table, rows - begin, path)
                found.told = np.concatenate([found.told, rows])
            found.reasons += [r for r in reasons if r.name]
            in_vain()
            told("looking at all rows", (begin + len(table) - low) / max(1, high - low))
    return found


def spread(rows: int, size: int, seed: int) -> NDArray[np.int64]:
    """Sorted places of ``size`` of the rows, one drawn from each of as many equal stretches.

    >>> spread(10, 5, 0), spread(3, 5, 0)
    (array([0, 3, 4, 7, 8]), array([0, 1, 2]))
    """
    if size >= rows:
        return np.arange(rows)
    edges = np.arange(size + 1) * rows // size
    return np.random.default_rng((SAMPLE, seed)).integers(edges[:-1], edges[1:])


def limit(column: Column, override: Override) -> int:
    """How many levels of a column are looked for; 0 where none are."""
    if isinstance(column, np.ndarray) or holds_lists(column):
        return 0
    word = PartSpec.parse(override).name if isinstance(override, str) else ""
    kind = fields[word] if word in fields else type(override)
    if issubclass(kind, Classes):
        return DECLARED
    text = pa.types.is_string(column.type) or pa.types.is_large_string(column.type)
    return MANY if text else CODED


@dataclass
class Known:
    """What is known of a column so far: levels, at most one more than the ``limit``; and gaps.

    ``counts`` says whether each value was one more than that of the row before; ``first`` is the
    first value.
    """

    limit: int
    levels: set[Any] = field(default_factory=set[Any])
    gaps: bool = False
    counts: bool = True
    first: int | None = None

    def news(self, column: Column, begin: int) -> list[tuple[int, Any]]:
        """Rows of a piece with a level that is new, or with the first gap, whose level is None."""
        found: list[tuple[int, Any]] = []
        if not self.gaps and (row := _first_gap(column)) is not None:
            self.gaps = True
            found.append((row, None))
        if isinstance(column, np.ndarray) or holds_lists(column):
            self.counts = False
            return found
        self.counts = self.counts and self._go_on(column, begin)
        if len(self.levels) <= self.limit:
            new = [v for v in column.unique().drop_null().to_pylist() if v not in self.levels]
            new = new[: self.limit + 1 - len(self.levels)]
            self.levels |= set(new)
            found += [(compute.index(column, pa.scalar(v, column.type)).as_py(), v) for v in new]
        return found

    def learns(self, level: Any) -> bool:
        """Whether a level that was found in later rows is new here; None is a gap."""
        if level is None:
            return not self.gaps
        if len(self.levels) > self.limit or level in self.levels:
            return False
        self.levels.add(level)
        return True

    def follow(self, later: Known) -> None:
        """Take note of what later rows have, but for their levels."""
        self.gaps = self.gaps or later.gaps
        self.counts = self.counts and later.counts and self.first in (None, later.first)
        self.first = later.first if self.first is None else self.first

    def unheard(self, sample: Column | None) -> set[Any]:
        """Levels that a sample of the column does not have, None among them for a gap.

        None of them where the sample has more than are looked for.
        """
        if sample is None:
            return {*self.levels, None}
        gap = {None} if self.gaps and _first_gap(sample) is None else set[Any]()
        if isinstance(sample, np.ndarray) or not self.levels:
            return gap
        if compute.count_distinct(sample).as_py() > self.limit:
            return gap
        return gap | (self.levels - set(sample.unique().to_pylist()))

    def _go_on(self, column: Arrow, begin: int) -> bool:
        """Whether a column of whole numbers counts on from where it was."""
        number = pa.types.is_integer(column.type) or pa.types.is_floating(column.type)
        if not number or column.null_count or not len(column):
            return False
        start = column[0].as_py()
        self.first = start - begin if self.first is None else self.first
        if start - begin != self.first or column[-1].as_py() - start != len(column) - 1:
            return False
        return bool((np.diff(column.to_numpy()) == 1).all())


@dataclass
class Pieces:
    """Rows from many tables, made one table from time to time: small pieces cost much."""

    parts: list[Table] = field(default_factory=list[Table])
    paths: list[Path] = field(default_factory=list[Path])
    """The files in which they begin, for a message."""

    def add(self, table: Table, rows: NDArray[np.int64], path: Path = NOWHERE) -> None:
        """Keep some rows of a table."""
        if len(rows) or not self.parts:
            self.parts.append(replace(table, columns=table.take(rows)))
            self.paths.append(path)
        if len(self.parts) > JOINED:
            self.parts, self.paths = [self.table()], self.paths[:1]

    def join(self, others: Pieces) -> None:
        """Have the rows of others come after these."""
        self.parts += others.parts
        self.paths += others.paths

    def table(self) -> Table:
        """All rows kept."""
        return joined(self.parts, self.paths)


def joined(parts: list[Table], paths: Sequence[Path] = ()) -> Table:
    """Rows of several tables as one, in memory of its own."""
    places = paths or [Path(f"part {i} of the rows") for i in range(len(parts))]
    whole = parts[0] if len(parts) == 1 else concatenated(parts, places)
    own = {
        k: c if isinstance(c, np.ndarray) else pa.chunked_array([c.combine_chunks()], c.type)
        for k, c in whole.columns.items()
    }
    levels = {k: v for k, v in parts[0].levels.items() if all(p.levels.get(k) == v for p in parts)}
    return replace(whole, columns=own, levels=levels)


def _first_gap(column: Column) -> int | None:
    """Return the first row with something missing, or None."""
    if not isinstance(column, np.ndarray):
        if not column.null_count:
            return None
        return compute.index(compute.is_null(column), pa.scalar(True)).as_py()
    if column.dtype.kind != "f":
        return None
    absent = np.isnan(column).reshape(len(column), -1).any(1)
    return int(absent.argmax()) if absent.any() else None
