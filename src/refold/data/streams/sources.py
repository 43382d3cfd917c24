"""Files that need not fit in memory: rows by groups, in any order, a portion at a time."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, final

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pa_parquet

from refold.data.containers import NumPy, default
from refold.data.sources.delimited import MISSING, Heading, decoded, heading, stripped
from refold.data.sources.files import DAMAGE, ending
from refold.data.sources.memory import arrow_table, named_block
from refold.data.sources.stored import Stored
from refold.data.streams.telling import Told, unheeded
from refold.errors import InputError
from refold.ops.meeting import in_vain, neighbours
from refold.table import Arrow, Table

GROUP = 8_000_000  # bytes of an array's rows that are read together
BLOCK = 4 << 20  # bytes of text that are parsed together
PAGES = 1 << 16  # bytes read at a time of a column of a row group too large for one portion
PAGE, UNPACKED = 1 << 20, 3  # bytes of a page of a column, and how often a page is in memory
FEW = 1024  # rows by which the size of all is estimated

read_metadata: Callable[[Path], Arrow] = pa_parquet.read_metadata

T = TypeVar("T")


class Source(ABC):
    """Rows in files. They are parted in groups, which can be read in any order."""

    _row_bytes: float | None = None

    @property
    @abstractmethod
    def groups(self) -> tuple[int, ...]:
        """How many rows each group has."""

    @property
    @abstractmethod
    def paths(self) -> tuple[Path, ...]:
        """The file of each group."""

    @abstractmethod
    def portions(self, group: int, rows: int) -> Iterator[Table]:
        """Rows of a group in order, at most so many at a time."""

    @property
    @abstractmethod
    def opening(self) -> int:
        """Bytes that reading a group takes, about, beside its portions."""

    def __len__(self) -> int:
        return sum(self.groups)

    def between(self, low: int, high: int, rows: int) -> Iterator[tuple[int, Table, Path]]:
        """Portions that begin from row ``low`` to below row ``high`` of all, with that and a file.

        Of a group that only begins or ends there no more is read than it takes.
        """
        end = 0
        for group, (many, path) in enumerate(zip(self.groups, self.paths, strict=True)):
            start, end = end, end + many
            if start >= high or end <= low:
                continue
            begin = start
            for table in self.portions(group, rows):
                if begin >= high:
                    break
                if begin >= low:
                    yield begin, table, path
                begin += len(table)

    def row_bytes(self) -> float:
        """Bytes of a row as it is read, or in single precision, estimated from the first rows."""
        if self._row_bytes is None:
            table = next(self.portions(0, FEW))
            found = sum(
                max(c.nbytes, 4 * c.size) if isinstance(c, np.ndarray) else int(c.nbytes)
                for c in table.columns.values()
            )
            self._row_bytes = found / max(1, len(table))
        return self._row_bytes


def careful(path: Path, read: Callable[[], T]) -> T:
    """Read, whatever goes wrong being one sentence that names the file."""
    try:
        return read()
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    except DAMAGE as error:
        reason = str(error).partition("\n")[0].rstrip(".") or type(error).__name__
        raise InputError(
            f"{path}: not a whole, readable {ending(path)} file ({reason}); check that it is "
            f"complete and what its name says"
        ) from error


@final
class ParquetFiles(Source):
    """Parquet files, by their row groups."""

    def __init__(self, files: Sequence[Path]) -> None:
        self.files = tuple(files)
        self.kept: list[Arrow] = [careful(f, partial(read_metadata, f)) for f in self.files]
        self.at = [
            (file, group)
            for file, kept in enumerate(self.kept)
            for group in range(kept.num_row_groups)
            if kept.row_group(group).num_rows
        ]

    @property
    def groups(self) -> tuple[int, ...]:
        """Rows of each row group."""
        return tuple(self.kept[f].row_group(g).num_rows for f, g in self.at)

    @property
    def paths(self) -> tuple[Path, ...]:
        """The file of each row group."""
        return tuple(self.files[f] for f, _ in self.at)

    @property
    def opening(self) -> int:
        """A page of each column, packed, unpacked and decoded; of the largest row group."""
        kept = [self.kept[f].row_group(g) for f, g in self.at]
        return max(UNPACKED * min(k.total_byte_size, PAGE * k.num_columns) for k in kept)

    def portions(self, group: int, rows: int) -> Iterator[Table]:
        """Decode a row group, bit by bit where it is larger than a portion."""
        file, own = self.at[group]
        kept, path = self.kept[file], self.files[file]
        whole = kept.row_group(own).num_rows <= rows
        opened = careful(
            path,
            lambda: pa_parquet.ParquetFile(
                path, metadata=kept, pre_buffer=False, buffer_size=0 if whole else PAGES
            ),
        )
        with opened:
            found = opened.iter_batches(batch_size=rows, row_groups=[own])
            while (batch := careful(path, lambda: next(found, None))) is not None:
                yield arrow_table(batch.schema.names, batch.columns, default)


@final
class ArrayFiles(Source):
    """Arrays of one shape of rows in ``.npy`` or safetensors files, by some megabytes."""

    def __init__(self, stored: Sequence[Stored]) -> None:
        for other in stored:
            if other.shape[1:] != stored[0].shape[1:]:
                raise InputError(
                    f"{other.path}: rows have shape {other.shape[1:]}, those of {stored[0].path} "
                    f"{stored[0].shape[1:]}; give files of one shape"
                )
        self.stored = tuple(stored)
        self.name, sample = named_block(stored[0].rows(0, min(1, stored[0].shape[0])))
        self.dtype = sample.dtype
        size = max(1, int(np.prod(sample.shape[1:])) * sample.dtype.itemsize)
        step = max(1, GROUP // size)
        self.at = [
            (own, begin, min(begin + step, own.shape[0]))
            for own in self.stored
            for begin in range(0, own.shape[0], step)
        ]

    @property
    def groups(self) -> tuple[int, ...]:
        """Rows of each range."""
        return tuple(end - begin for _, begin, end in self.at)

    @property
    def paths(self) -> tuple[Path, ...]:
        """The file of each range."""
        return tuple(own.path for own, *_ in self.at)

    @property
    def opening(self) -> int:
        """Nothing: rows are read as they are."""
        return 0

    def portions(self, group: int, rows: int) -> Iterator[Table]:
        """Read a range."""
        own, first, last = self.at[group]
        for begin in range(first, last, rows):
            end = min(begin + rows, last)
            block = careful(own.path, lambda b=begin, e=end: own.rows(b, e))
            yield Table({self.name: block}, NumPy(self.name, self.dtype))


@final
class TextFiles(Source):
    """Delimited text, each file a group. Types are those of a file's first block, or wider.

    Counting the rows takes a pass through all files, in which types are widened: whole numbers to
    numbers, anything to text.
    """

    def __init__(self, files: Sequence[Path], told: Told = unheeded) -> None:
        self.files = tuple(files)
        self.types: dict[str, Any] = {}
        for file in self.files:
            careful(file, lambda f=file: self._begun(f))
        near = neighbours()
        found = near.each(lambda: self._counted(near.number, near.count, told))
        self.types = {n: widest([types[n] for _, types in found]) for n in self.types}
        counts = {i: many for each, _ in found for i, many in each.items()}
        self.counts = [counts[i] for i in range(len(self.files))]

    @property
    def groups(self) -> tuple[int, ...]:
        """Rows of each file."""
        return tuple(self.counts)

    @property
    def paths(self) -> tuple[Path, ...]:
        """The files."""
        return self.files

    @property
    def opening(self) -> int:
        """Some blocks of text."""
        return UNPACKED * BLOCK

    def portions(self, group: int, rows: int) -> Iterator[Table]:
        """Parse a file, block by block."""
        path = self.files[group]
        reader = careful(path, lambda: self._open(path))
        while (batch := careful(path, lambda: next(reader, None))) is not None:
            for begin in range(0, len(batch), rows):
                part = batch.slice(begin, rows)
                columns = [stripped(c) if pa.types.is_string(c.type) else c for c in part.columns]
                yield arrow_table(part.schema.names, columns, default)

    def _heading(self, path: Path) -> Heading:
        with path.open("rb") as file:
            line = file.readline()
        return heading(decoded(line), "\t" if ending(path) == ".tsv" else None)

    def _open(self, path: Path) -> Any:
        top = self._heading(path)
        return pa_csv.open_csv(
            path,
            pa_csv.ReadOptions(
                block_size=BLOCK, column_names=top.names, skip_rows=0 if top.headless else 1
            ),
            pa_csv.ParseOptions(delimiter=top.delimiter, newlines_in_values=True),
            pa_csv.ConvertOptions(
                null_values=MISSING,
                strings_can_be_null=True,
                column_types={n: t for n, t in self.types.items() if n in top.names},
            ),
        )

    def _begun(self, path: Path) -> None:
        """Take note of the types of a file's first block."""
        reader = self._widening(path, lambda: self._open(path))
        for column in reader.schema:
            # Of what the first block does not show, a number is the first guess.
            kind = pa.float64() if pa.types.is_null(column.type) else column.type
            self.types.setdefault(column.name, kind)

    def _counted(
        self, number: int, count: int, told: Told
    ) -> tuple[dict[int, int], dict[str, Any]]:
        """Count the rows of one process's share of the files; return the types they need, too."""
        found: dict[int, int] = {}
        mine = range(number, len(self.files), count)
        for done, i in enumerate(mine, 1):
            path = self.files[i]

            def rows(path: Path = path) -> int:
                return sum(len(batch) for batch in self._open(path))

            found[i] = careful(path, lambda p=path, r=rows: self._widening(p, r))
            in_vain()
            told("counting rows", done / len(mine))
        return found, self.types

    def _widening(self, path: Path, read: Callable[[], T]) -> T:
        """Read, widening the type of any column that holds what is not of it."""
        while True:
            try:
                return read()
            except pa.ArrowInvalid as error:
                name = self._misread(str(error), self._heading(path).names)
                if name is None:
                    raise
                whole = pa.types.is_integer(self.types[name])
                self.types[name] = pa.float64() if whole else pa.string()

    def _misread(self, message: str, names: Sequence[str]) -> str | None:
        """Name of the column whose cells are not of its type; None where that is not the reason."""
        place = message.partition("In CSV column #")[2].partition(":")[0]
        name = names[int(place)] if place.isdigit() else None
        return None if name is None or self.types.get(name) in (None, pa.string()) else name


def widest(types: Sequence[Arrow]) -> Arrow:
    """Return that of some types of a column which holds what all of them hold."""
    return next((t for t in (pa.string(), pa.float64()) if t in types), types[0])
