"""Rows to use a model on, a portion at a time where memory would not hold them all."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any, TypeVar, final

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from refold import inference
from refold.casting import cast
from refold.data.containers import PyArrow
from refold.data.sources import read
from refold.data.sources.files import unlike
from refold.data.sources.memory import arrow_table
from refold.data.streams import Stream, opened
from refold.data.streams.ahead import ahead
from refold.data.streams.budget import in_words, releasing, returning
from refold.data.streams.look import Pieces, joined, spread
from refold.data.streams.sources import ParquetFiles, Source, TextFiles
from refold.errors import InputError
from refold.table import Arrow, Column, Table, holds_lists

SHARE = 24  # of the memory, for a portion of rows and what is made of it
MOST = 8 * inference.LARGE  # rows of a portion
SAMPLE, FEWEST = 100_000, 2_048  # rows of a sample, at most and at least
COST = 24  # bytes that showing a sample takes for each byte of its rows

T = TypeVar("T")


@final
@dataclass(frozen=True)
class Portions:
    """Rows in order, all at once or ``size`` at a time from files; as often as asked for."""

    rows: Table | Stream
    size: int
    among: int
    """How many rows there seem to be to whoever uses a portion, see :func:`inference.among`."""

    @classmethod
    def of(cls, source: Any, memory: int | str | None = None, made: int = 0) -> Portions:
        """Read what can be read, in portions where :func:`refold.data.streams.opened` says so.

        ``made`` are the bytes that a use makes of a row, which take their part of the memory.
        """
        stream = None if isinstance(source, Table) else opened(source, memory)
        if stream is None:
            table = read(source)
            if isinstance(source, str | os.PathLike):
                table = as_arrow_table(table)
            return cls(table, max(1, len(table)), len(table))
        fitting = int(stream.memory / SHARE / (stream.source.row_bytes() + made))
        return cls(stream, *portioned(len(stream), fitting, torch.get_num_threads()))

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def parted(self) -> bool:
        """Whether rows are read in parts."""
        return isinstance(self.rows, Stream)

    @property
    def notes(self) -> tuple[str, ...]:
        """What there is to remark on before any row is used."""
        if isinstance(self.rows, Table):
            return self.rows.notes
        words = in_words(self.rows.memory)
        return (f"rows are read in parts of {self.size:,}, within {words} of memory",)

    def __iter__(self) -> Generator[Table]:
        if isinstance(self.rows, Table):
            yield self.rows
            return
        source, form = self.rows.source, Form.of(self.rows.source)
        pieces = (
            form.given(table)
            for group in range(len(source.groups))
            for table in source.portions(group, self.size)
        )
        with returning(), closing(ahead(regrouped(pieces, self.size))) as tables:
            yield from releasing(tables)

    def each(self, work: Callable[[Table], T]) -> Generator[T]:
        """Do ``work`` on every portion, with the results that all rows at once would have.

        To the last bit, but where memory holds fewer rows than are passed over together.
        """
        with closing(iter(self)) as tables:
            begin = 0
            for table in tables:
                try:
                    with inference.among(self.among):
                        found = work(table)
                except InputError as error:
                    if not self.parted:
                        raise
                    said = f"rows {begin} to {begin + len(table) - 1} of all: {error}"
                    raise InputError(said) from error
                begin += len(table)
                yield found

    def take(self, places: NDArray[np.int64]) -> Table:
        """Rows at ascending ``places``, in a pass over all."""
        picked = Picked(places)
        with closing(iter(self)) as tables:
            for table in tables:
                picked.add(table)
        return picked.table()

    def sample(self, seed: int) -> Table:
        """All rows, or of rows read in parts as many as fit, drawn evenly from everywhere."""
        if isinstance(self.rows, Table):
            return self.rows
        fitting = int(self.rows.memory / COST / self.rows.source.row_bytes())
        places = spread(len(self), min(SAMPLE, max(FEWEST, fitting)), seed)
        few = self.take(places)
        note = f"the rows are a sample of {len(few):,} of {len(self):,}, drawn from everywhere"
        return replace(few, notes=(note, *few.notes), places=places)


def portioned(count: int, fitting: int, threads: int) -> tuple[int, int]:
    """Rows of a portion of ``count``, of which so many fit, and among how many they are to seem.

    Portions are whole passes of a model. Where not even the rows of one fit, passes are those of
    fewer rows, whose results may differ by rounding.

    >>> portioned(10**6, 50_000, 2), portioned(10**6, 10_000, 2), portioned(10**6, 5000, 2)
    ((49152, 1000000), (8192, 16384), (4096, 16383))
    """
    many = inference.MANY * inference.LARGE
    full = inference.large(count, threads)
    fewer = fitting // inference.LARGE
    if count >= many and fitting >= full:
        return min(fitting, max(MOST, full)) // full * full, count
    if count >= many and fewer:
        return fewer * inference.LARGE, fewer * many
    return max(1, min(fitting, MOST) // inference.PORTION) * inference.PORTION, min(count, many - 1)


@final
class Picked:
    """Rows at ascending ``places``, picked out while all rows pass by in order."""

    def __init__(self, places: NDArray[np.int64]) -> None:
        self.places, self.passed, self.pieces = places, 0, Pieces()

    def add(self, table: Table) -> None:
        """Pick from the rows that come next."""
        ends = self.passed, self.passed + len(table)
        first, last = np.searchsorted(self.places, ends)
        self.pieces.add(table, self.places[first:last] - self.passed)
        self.passed = ends[1]

    def table(self) -> Table:
        """Rows picked so far."""
        return self.pieces.table()


@final
@dataclass(frozen=True)
class Form:
    """Columns of all files together, by name, with the types that hold what is in any of them.

    Blocks and lists are as they are. Without types, every file has the same.
    """

    types: Mapping[str, Arrow]

    @classmethod
    def of(cls, source: Source) -> Form:
        """Look at what files say of themselves; raises where their types have none in common."""
        if isinstance(source, TextFiles):
            return cls(source.types)
        said = source.kept if isinstance(source, ParquetFiles) else []
        schemas = [one.schema.to_arrow_schema().remove_metadata() for one in said]
        if all(schema.equals(schemas[0]) for schema in schemas):
            return cls({})
        empty = [
            arrow_table(s.names, [pa.chunked_array([], f.type) for f in s], PyArrow).columns
            for s in schemas
        ]
        scalars = [
            pa.schema(
                [
                    (name, c.type)
                    for name, c in columns.items()
                    if not isinstance(c, np.ndarray) and not holds_lists(c)
                ]
            )
            for columns in empty
        ]
        kinds: dict[str, Arrow] = {}
        for name in dict.fromkeys(name for schema in scalars for name in schema.names):
            own = [s.field(name) if name in s.names else None for s in scalars]
            try:
                whole = pa.unify_schemas(
                    [pa.schema([f]) for f in own if f is not None], promote_options="permissive"
                )
            except pa.ArrowException as error:
                found = [None if f is None else f.type for f in own]
                raise unlike(name, found, source.paths) from error
            kinds[name] = whole.field(0).type
        return cls(kinds)

    def given(self, table: Table) -> Table:
        """Return rows of one file in these types, missing where the file has no such column."""
        columns: dict[str, Column] = {
            name: cast(table.columns[name], kind)
            if name in table.columns
            else pa.chunked_array([pa.nulls(len(table), kind)])
            for name, kind in self.types.items()
        }
        return as_arrow_table(replace(table, columns={**columns, **dict(self._others(table))}))

    def _others(self, table: Table) -> Iterator[tuple[str, Column]]:
        return ((k, c) for k, c in table.columns.items() if k not in self.types)


def as_arrow_table(table: Table) -> Table:
    """Return a table that came from a file as Arrow has it: no type changes on the way."""
    return replace(table, container=PyArrow()) if table.container.kind == "pandas" else table


def regrouped(tables: Iterable[Table], size: int) -> Iterator[Table]:
    """The same rows in tables of ``size`` rows; the last may have less.

    >>> table = read({"x": [1, 2, 3, 4, 5]})
    >>> [t.columns["x"].to_pylist() for t in regrouped([table, table], 4)]
    [[1, 2, 3, 4], [5, 1, 2, 3], [4, 5]]
    """
    kept, count = list[Table](), 0
    for table in tables:
        begin = 0
        while begin < len(table):
            part = table.part(slice(begin, begin + size - count))
            begin, count = begin + len(part), count + len(part)
            kept.append(part)
            if count == size:
                yield joined(kept)
                kept, count = [], 0
    if kept:
        yield joined(kept)
