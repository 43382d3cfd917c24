"""Columns → a file, some rows after others: a writer for each format."""

from __future__ import annotations

import json
import shutil
import tempfile
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias, final

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pa_parquet

from refold.data.containers import as_arrow, as_numpy, flatten
from refold.errors import InputError
from refold.table import Arrow, Block, Column, compute, holds_lists

Columns: TypeAlias = Mapping[str, Column]

COPIED = 1 << 16  # rows copied at a time where an array turns out to need another type
ELSE = "give more memory, so that all are read at once"


class Writer(ABC):
    """A file that rows are written to, some after others. It is whole once it is closed.

    ``add`` raises :class:`InputError` where the format cannot hold the columns, or later rows are
    not of the form of the first.
    """

    @abstractmethod
    def add(self, columns: Columns) -> None:
        """Write rows after those that are there."""

    @abstractmethod
    def close(self) -> None:
        """Write what is still to be written, and let go of the file."""


# --- tables ------------------------------------------------------------------------------------


@final
class Rows(Writer):
    """A table in the types of its first rows.

    ``table`` makes one of columns; ``begin`` opens the file, given that table's schema.
    """

    def __init__(
        self, path: Path, table: Callable[[Columns], Arrow], begin: Callable[[Path, Arrow], Any]
    ) -> None:
        self.path, self.table, self.begin = path, table, begin
        self.schema: Any = None
        self.file: Any = None

    def add(self, columns: Columns) -> None:
        """Write rows, cast where that loses nothing but the type."""
        table = self.table(columns)
        if self.file is None:
            self.schema, self.file = table.schema, self.begin(self.path, table.schema)
        if not table.schema.equals(self.schema):
            table = self._alike(table)
        self.file.write_table(table)

    def close(self) -> None:
        """Write what comes after the rows."""
        if self.file is not None:
            self.file.close()

    def _alike(self, table: Arrow) -> Arrow:
        refuse_others(table.column_names, self.schema.names)
        return pa.table([self._in_type(table[f.name], f) for f in self.schema], schema=self.schema)

    def _in_type(self, column: Arrow, own: Any) -> Arrow:
        """Return a column in the type of the first rows, which has to hold each of its values."""
        try:
            found = column.cast(own.type)
            same = without_nans(found.cast(column.type)).equals(without_nans(column))
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            found, same = column, False
        if not same:
            raise InputError(
                f"'{own.name}' is of type {own.type} in the first rows, which does not hold "
                f"{column.type} of later ones; {ELSE}"
            )
        return found


def without_nans(column: Arrow) -> Arrow:
    """Return a column with nothing in place of NaN, which JSON has not and nothing equals."""
    if not pa.types.is_floating(column.type):
        return column
    return compute.if_else(compute.is_nan(column), None, column)


def refuse_others(names: list[str], first: list[str]) -> None:
    """Raise where later rows have other columns than the first, or in another order."""
    if names != first:
        raise InputError(
            f"later rows have other columns than the first: {', '.join(names)} instead of "
            f"{', '.join(first)}; {ELSE}"
        )


def scalars(columns: Columns) -> Arrow:
    """Return a flat table: vectors expanded, dictionaries decoded, images refused."""
    for name, values in columns.items():
        if isinstance(values, np.ndarray) and values.ndim > 2:
            raise InputError(
                f"'{name}' holds images, or series of several channels, which no table cell can; "
                f"write .npy, .npz or a folder"
            )
    table = pa.table({name: as_arrow(v) for name, v in flatten(columns).items()})
    for i, kind in enumerate(table.schema.types):
        if pa.types.is_dictionary(kind):
            table = table.set_column(i, table.field(i).name, table[i].cast(kind.value_type))
    return table


def without_lists(columns: Columns) -> Arrow:
    """Return a flat table for delimited text."""
    refuse_lists(columns, "delimited text")
    return scalars(columns)


def without_nan(columns: Columns) -> Arrow:
    """Return a flat table for JSON, which has no NaN."""
    table = scalars(columns)
    for i, kind in enumerate(table.schema.types):
        if pa.types.is_floating(kind):
            table = table.set_column(i, table.field(i).name, without_nans(table[i]))
    return table


def refuse_lists(columns: Columns, what: str) -> None:
    """Raise where a column holds series of different lengths: only formats with lists take them."""
    for name, values in columns.items():
        if holds_lists(values):
            raise InputError(
                f"'{name}' holds series of different lengths, which {what} cannot; write .parquet, "
                f".feather or .jsonl"
            )


def delimited(path: Path, schema: Arrow, delimiter: str = ",") -> Any:
    """Begin delimited text."""
    return pa_csv.CSVWriter(path, schema, write_options=pa_csv.WriteOptions(delimiter=delimiter))


def feather(path: Path, schema: Arrow) -> Any:
    """Begin a file of Arrow's own, packed as Feather is."""
    return pa.ipc.new_file(str(path), schema, options=pa.ipc.IpcWriteOptions(compression="lz4"))


@final
class JsonLines:
    """One object per row; there is no infinity in JSON."""

    def __init__(self, path: Path, schema: Arrow) -> None:
        self.file = path.open("w", encoding="utf-8")

    def write_table(self, table: Arrow) -> None:
        """Write a line for every row."""
        for batch in table.to_batches(max_chunksize=10_000):
            for row in batch.to_pylist():
                text = json.dumps(row, ensure_ascii=False, allow_nan=False, default=str)
                self.file.write(text + "\n")

    def close(self) -> None:
        """Let go of the file."""
        self.file.close()


# --- texts and arrays --------------------------------------------------------------------------


@final
class Lines(Writer):
    """A line for every text, line breaks inside it as spaces, and an empty one if missing."""

    def __init__(self, path: Path) -> None:
        self.file = path.open("w", encoding="utf-8")

    def add(self, columns: Columns) -> None:
        """Write texts."""
        if len(columns) != 1:
            raise InputError(f".txt holds one column of text, not {', '.join(columns)}; write .csv")
        name, values = next(iter(columns.items()))
        if isinstance(values, np.ndarray) or not pa.types.is_string(values.type):
            raise InputError(f"'{name}' holds no text, which .txt is for; write .csv")
        for text in values.to_pylist():
            self.file.write(" ".join((text or "").splitlines()) + "\n")

    def close(self) -> None:
        """Let go of the file."""
        self.file.close()


@final
class Array(Writer):
    """One block, or scalar numbers side by side, ``[n, d]``, as ``.npy``.

    The header has room for any number of rows, and is written again once they are counted.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.file = path, path.open("w+b")
        self.rows, self.names = 0, list[str]()
        self.first = np.empty(0)
        """A row less than one, which has the shape and the type of all."""

    def add(self, columns: Columns) -> None:
        """Write rows; those that are there change their type where it does not hold the new."""
        array = side_by_side(columns)
        if not self.rows:
            self.names, self.first = list(columns), array[:0]
            self._head()
        refuse_others(list(columns), self.names)
        if array.shape[1:] != self.first.shape[1:]:
            raise InputError(
                f"later rows have shape {array.shape[1:]}, the first {self.first.shape[1:]}; {ELSE}"
            )
        if array.dtype != self.first.dtype:
            self._widen(np.result_type(array, self.first))
        array.astype(self.first.dtype, "C", copy=False).tofile(self.file)
        self.rows += len(array)

    def close(self) -> None:
        """Write how many rows there are."""
        try:
            self._head()
        finally:
            self.file.close()

    def _head(self) -> None:
        """Write the header: what comes after it stays where it is."""
        self.file.seek(0)
        told = np.lib.format.header_data_from_array_1_0(self.first)
        told["shape"] = (self.rows, *self.first.shape[1:])
        np.lib.format.write_array_header_1_0(self.file, told)

    def _widen(self, dtype: np.dtype[Any]) -> None:
        """Write all rows again, in another type."""
        narrow, cells = self.first.dtype, int(np.prod(self.first.shape[1:]))
        with tempfile.TemporaryFile(dir=self.path.parent) as kept:
            self._head()
            shutil.copyfileobj(self.file, kept)
            kept.seek(0)
            self.first = self.first.astype(dtype)
            self._head()
            self.file.truncate()
            for begin in range(0, self.rows, COPIED):
                count = cells * min(COPIED, self.rows - begin)
                np.fromfile(kept, narrow, count).astype(dtype).tofile(self.file)


def side_by_side(columns: Columns) -> Block:
    """Return one block, or scalar numbers as its columns."""
    refuse_lists(columns, "an array")
    arrays = {name: as_numpy(values) for name, values in columns.items()}
    if len(arrays) == 1:
        return without_objects(next(iter(arrays.values())))
    for name, values in arrays.items():
        if values.ndim > 1 or values.dtype.kind not in "biuf":
            raise InputError(
                f".npy holds one array, and '{name}' is no column of numbers to stack with the "
                f"others; write .npz"
            )
    return np.column_stack(list(arrays.values()))


def without_objects(values: Block) -> Block:
    """Text as an array of text, missing text as the empty one."""
    if values.dtype.kind != "O":
        return values
    return np.array(["" if v is None else str(v) for v in values], dtype=np.str_)


@final
class Archive(Writer):
    """Each column as an array of its own, one after the other, so that all rows come at once.

    Not by ``np.savez``, which has no column named 'file'.
    """

    def __init__(self, path: Path) -> None:
        self.file = zipfile.ZipFile(path, "w", allowZip64=True)

    def add(self, columns: Columns) -> None:
        """Write all rows."""
        assert not self.file.namelist(), "rows come after others"
        refuse_lists(columns, "an array")
        for name, values in columns.items():
            with self.file.open(f"{name}.npy", "w", force_zip64=True) as file:
                array: Any = without_objects(as_numpy(values))
                np.lib.format.write_array(file, array, allow_pickle=False)

    def close(self) -> None:
        """Write the archive's index."""
        self.file.close()


WRITERS: dict[str, Callable[[Path], Writer]] = {
    ".csv": lambda path: Rows(path, without_lists, delimited),
    ".tsv": lambda path: Rows(path, without_lists, partial(delimited, delimiter="\t")),
    ".parquet": lambda path: Rows(path, scalars, pa_parquet.ParquetWriter),
    ".feather": lambda path: Rows(path, scalars, feather),
    ".jsonl": lambda path: Rows(path, without_nan, JsonLines),
    ".npy": Array,
    ".npz": Archive,
    ".txt": Lines,
}
AT_ONCE = (".npz",)  # formats in which no rows come after others
