"""One pass over all rows: a sample of them, and rows that tell what the sample does not."""

from __future__ import annotations

from collections.abc import Mapping
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
from refold.fields import fields
from refold.fields.category import Classes
from refold.parts import PartSpec
from refold.table import Arrow, Column, Table, compute, holds_lists

DECLARED = 100_000  # levels that are looked for in a column declared to be of classes
JOINED = 64  # pieces of a sample that are kept apart
SAMPLE = 350_377  # has the sample differ from other draws of the same seed
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
) -> Look:
    """Pass over all rows, a portion at a time, and keep about ``size`` of them."""
    places = spread(len(source), size, seed)
    sample, telling = Pieces(), Pieces()
    told: list[int] = []  # places of the rows in the latter
    reasons: list[tuple[int, str, Any]] = []  # why they are there: number, column, level
    known: dict[str, Known] = {}
    forms: set[frozenset[str]] = set()
    begin = 0
    tables = (t for g in range(len(source.groups)) for t in source.portions(g, portion))
    with closing(ahead(tables)) as read:
        for table in releasing(read):
            first, last = np.searchsorted(places, (begin, begin + len(table)))
            sample.add(table, places[first:last] - begin)
            found: list[tuple[int, str, Any]] = []
            if (names := frozenset(table.columns)) not in forms:
                forms.add(names)  # where a column is not in all files, its gaps are there
                found.append((0, "", None))
            for name, column in table.columns.items():
                if name not in known:
                    known[name] = Known(limit(column, (overrides or {}).get(name)))
                found += [(row, name, level) for row, level in known[name].news(column, begin)]
            rows = sorted({row for row, *_ in found})
            number = {row: len(told) + i for i, row in enumerate(rows)}
            reasons += [(number[row], name, level) for row, name, level in found]
            telling.add(table, np.array(rows, np.int64))
            told += [begin + row for row in rows]
            begin += len(table)
    few = sample.table()
    unheard = {n: k.unheard(few.columns.get(n)) for n, k in known.items()}
    unheard[""] = {None} if len(forms) > 1 else set()
    own = set(places.tolist())
    kept = {i: v for i, name, v in reasons if v in unheard[name] and told[i] not in own}
    gaps = {i for i, name, v in reasons if v is None and None in unheard[name] and i in kept}
    at = sorted(kept)
    whole = few
    if at:
        also = telling.table()
        whole = joined([few, replace(also, columns=also.take(np.array(at)))])
    missing = np.array([len(places) + n for n, i in enumerate(at) if i in gaps], np.int64)
    counting = tuple(n for n, k in known.items() if k.counts and begin >= LONG)
    return Look(begin, whole, places, missing, counting)


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

    def add(self, table: Table, rows: NDArray[np.int64]) -> None:
        """Keep some rows of a table."""
        if len(rows) or not self.parts:
            self.parts.append(replace(table, columns=table.take(rows)))
        if len(self.parts) > JOINED:
            self.parts = [joined(self.parts)]

    def table(self) -> Table:
        """All rows kept."""
        return joined(self.parts)


def joined(parts: list[Table]) -> Table:
    """Rows of several tables as one, in memory of its own."""
    places = [Path(f"part {i} of the rows") for i in range(len(parts))]
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
