"""Files → columns, each format by its ending, and the rows of several files as one table."""

from __future__ import annotations

import csv
import glob
import gzip
import re
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.feather as pa_feather
import pyarrow.json as pa_json
import pyarrow.parquet as pa_parquet

from refold.casting import as_arrow
from refold.data.containers import NumPy, default
from refold.data.sources.delimited import consistent_delimiter, decoded, parse
from refold.data.sources.memory import array_table, arrow_table, field_table, joined, named_block
from refold.data.sources.stored import stored_safetensors
from refold.errors import InputError
from refold.table import Arrow, Column, Table, holds_lists

# Beyond what one expects: a damaged array header asks for more memory than there is, or is read as
# Python and is none.
DAMAGE = (
    OSError,
    EOFError,
    ValueError,
    RuntimeError,
    MemoryError,
    SyntaxError,
    tokenize.TokenError,
    csv.Error,
    zlib.error,
    zipfile.BadZipFile,
    pa.ArrowException,
)
IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp")


def read_file(path: Path) -> Table:
    """Read one file as its ending says, or by its content where the ending is unknown."""
    table = guarded(path, READERS.get(ending(path), _read_unknown))
    if len(table) == 0:
        raise InputError(f"{path}: there are column names but no rows; give at least one row")
    return table


def guarded(path: Path, reader: Callable[[Path], Table]) -> Table:
    """Read a path, whatever goes wrong being one sentence that names it."""
    try:
        if path.is_file() and path.stat().st_size == 0:
            raise InputError("the file is empty; expected data")
        table = reader(path)
        if not table.columns:
            raise InputError("; ".join(["no column can be used", *table.notes]))
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    except PermissionError as error:
        raise InputError(f"{path}: permission denied; make it readable") from error
    except DAMAGE as error:
        reason = str(error).partition("\n")[0].rstrip(".") or type(error).__name__
        if "pickle" in reason:
            reason = "it holds Python objects, and pickle is never loaded"
        raise InputError(
            f"{path}: not a whole, readable {ending(path) or 'data'} file ({reason}); check that "
            f"it is complete and what its name says"
        ) from error
    return table


def ending(path: Path) -> str:
    """Return the ending that says the format: the last one, or the one before .gz.

    >>> ending(Path("a/t10k-images-idx3-ubyte.gz")), ending(Path("b.csv.gz"))
    ('.idx', '.csv')
    """
    name = path.name.lower().removesuffix(".gz")
    suffix = Path(name).suffix
    return ".idx" if suffix not in READERS and re.search(r"idx\d", name) else suffix


def _bytes(path: Path) -> bytes:
    """Return a file's content, unpacked if it is gzip."""
    data = path.read_bytes()
    data = gzip.decompress(data) if data.startswith(b"\x1f\x8b") else data
    if not data.strip():
        raise InputError("the file is empty; expected data")
    return data


def _read_unknown(path: Path) -> Table:
    """Read a file of unknown ending as CSV if its content looks like that."""
    data = _bytes(path)
    delimiter = consistent_delimiter(data)
    if delimiter is None:
        raise InputError(
            f"unknown ending '{path.suffix}'; known are {' '.join(READERS)}, a folder of images "
            f"({' '.join(IMAGES)}), and patterns of these"
        )
    table = parse(data, delimiter)
    return replace(table, notes=(f"{path.name} was read as text with '{delimiter}' between cells",
                                 *table.notes))  # fmt: skip


def _read_text(path: Path) -> Table:
    """Read lines of text, a row each, those that are blank left out."""
    lines = [line for line in decoded(_bytes(path)).splitlines() if line.strip()]
    column = pa.chunked_array([pa.array(lines, pa.string())])
    return Table({"text": column}, default(), texts=("text",))


def _read_csv(path: Path) -> Table:
    return parse(_bytes(path), None)


def _read_tsv(path: Path) -> Table:
    return parse(_bytes(path), "\t")


def _read_jsonl(path: Path) -> Table:
    table = pa_json.read_json(pa.BufferReader(_bytes(path)))
    return arrow_table(table.column_names, table.columns, default)


def _read_parquet(path: Path) -> Table:
    table = pa_parquet.ParquetFile(path).read()
    return arrow_table(table.column_names, table.columns, default)


def _read_feather(path: Path) -> Table:
    try:
        table = pa_feather.read_table(str(path))
    except pa.ArrowInvalid:  # .arrow is also the ending of Arrow streams
        table = pa.ipc.open_stream(pa.BufferReader(path.read_bytes())).read_all()
    return arrow_table(table.column_names, table.columns, default)


def _read_npy(path: Path) -> Table:
    with path.open("rb") as file:
        name, block = named_block(np.lib.format.read_array(file, allow_pickle=False))
    return Table({name: block}, NumPy(name, block.dtype))


def _read_safetensors(path: Path) -> Table:
    stored = stored_safetensors(path)
    name, block = named_block(stored.rows(0, stored.shape[0]))
    return Table({name: block}, NumPy(name, block.dtype))


def _read_npz(path: Path) -> Table:
    """Read arrays of one length; where one is named X, x or data, the others are its labels."""
    if not zipfile.is_zipfile(path):
        raise InputError("this is no .npz archive, or a truncated one; save it again")
    with np.load(path, allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in archive.files}
    notes = [f"'{n}' is a single value and was set aside" for n, a in arrays.items() if a.ndim == 0]
    arrays = {n: a for n, a in arrays.items() if a.ndim}
    key = next((k for k in ("X", "x", "data") if k in arrays), None)
    if key is not None:
        named_block(arrays[key])
        rows = len(arrays[key])
        notes += [f"'{n}' has {len(a)} entries, '{key}' {rows} rows; it was set aside"
                  for n, a in arrays.items() if len(a) != rows]  # fmt: skip
        arrays = {n: a for n, a in arrays.items() if len(a) == rows}
    table = joined({n: field_table(n, a) for n, a in arrays.items()}, len(arrays))
    labels = tuple(n for n in table.columns if key is not None and n != key)
    return replace(table, notes=(*notes, *table.notes), aside=labels)


IDX_TYPES = {8: ">u1", 9: ">i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}


def _read_idx(path: Path) -> Table:
    """Read the array format of MNIST: two zeros, type, dimensions, sizes, values."""
    data = _bytes(path)
    if len(data) < 4 or data[:2] != b"\0\0" or data[2] not in IDX_TYPES:
        raise InputError("this is no IDX file: it does not start with an IDX magic number")
    start = 4 + 4 * data[3]
    shape = tuple(int(n) for n in np.frombuffer(data[4:start].ljust(start - 4, b"\0"), ">u4"))
    dtype = np.dtype(IDX_TYPES[data[2]])
    expected = start + dtype.itemsize * int(np.prod(shape, dtype=object))
    if len(data) != expected:
        raise InputError(
            f"the file is truncated or damaged: {len(data)} bytes, where an array of shape "
            f"{shape} takes {expected}; get it again"
        )
    array = np.frombuffer(data, dtype, offset=start).reshape(shape).astype(dtype.newbyteorder("="))
    if array.ndim == 1:
        return array_table("label", array, NumPy("label", array.dtype))
    name, block = named_block(array)
    return Table({name: block}, NumPy(name, block.dtype))


READERS: dict[str, Callable[[Path], Table]] = {
    ".csv": _read_csv,
    ".tsv": _read_tsv,
    ".parquet": _read_parquet,
    ".feather": _read_feather,
    ".arrow": _read_feather,
    ".jsonl": _read_jsonl,
    ".ndjson": _read_jsonl,
    ".npy": _read_npy,
    ".npz": _read_npz,
    ".safetensors": _read_safetensors,
    ".idx": _read_idx,
    ".txt": _read_text,
}


def matching(pattern: Path) -> list[Path]:
    """Return the files that a pattern matches, sorted."""
    paths = [Path(p) for p in sorted(glob.glob(str(pattern), recursive=True))]  # noqa: PTH207
    files = [p for p in paths if p.is_file()]
    if not files:
        raise InputError(f"{pattern}: no file matches; check the pattern")
    return files


def concatenated(tables: Sequence[Table], files: Sequence[Path]) -> Table:
    """Join the rows of several files; a column that a file lacks is missing there, but no block."""
    names = list(dict.fromkeys(name for t in tables for name in t.columns))
    blocks = {n for t in tables for n, c in t.columns.items() if isinstance(c, np.ndarray)}
    blocks -= {n for t in tables for n, c in t.columns.items() if holds_lists(c)}
    columns: dict[str, Column] = {}
    for name in names:
        present = [t.columns.get(name) for t in tables]
        columns[name] = (
            _joined_blocks(name, present, files)
            if name in blocks
            else _joined_scalars(name, present, tables, files)
        )
    notes = tuple(dict.fromkeys(note for t in tables for note in t.notes))
    aside = tuple(dict.fromkeys(name for t in tables for name in t.aside))
    texts = tuple(dict.fromkeys(name for t in tables for name in t.texts))
    return Table(columns, tables[0].container, notes, aside, texts=texts)


def _as_lists(column: Column) -> Column:
    """Return a block among lists as lists; anything else as it is."""
    if not isinstance(column, np.ndarray):
        return column
    array = as_arrow(column)
    return array.cast(pa.list_(array.type.value_type))


def _joined_blocks(name: str, present: list[Column | None], files: Sequence[Path]) -> Column:
    shapes = [c.shape[1:] if isinstance(c, np.ndarray) else None for c in present]
    for file, shape in zip(files, shapes, strict=True):
        if shape != shapes[0] or shape is None:
            raise InputError(
                f"{file}: rows of '{name}' have shape {shape}, those of {files[0]} {shapes[0]}; "
                f"give files of one shape"
            )
    return np.concatenate([np.asarray(c) for c in present])


def _joined_scalars(
    name: str, present: list[Column | None], tables: Sequence[Table], files: Sequence[Path]
) -> Column:
    parts = [
        pa.table({name: pa.nulls(len(t)) if c is None else _as_lists(c)})
        for c, t in zip(present, tables, strict=True)
    ]
    try:
        return pa.concat_tables(parts, promote_options="permissive").column(0)
    except pa.ArrowException as error:
        kinds = [
            None if column is None else part.column(0).type
            for column, part in zip(present, parts, strict=True)
        ]
        raise unlike(name, kinds, files) from error


def unlike(name: str, kinds: Sequence[Arrow | None], files: Sequence[Path]) -> InputError:
    """Say which types a column has, and in which files first; None where a file lacks it."""
    first: dict[str, Path] = {}
    for kind, file in zip(kinds, files, strict=True):
        if kind is not None:
            first.setdefault(str(kind), file)
    each = " and ".join(f"{kind} in {file}" for kind, file in first.items())
    return InputError(
        f"column '{name}' has different types in different files: {each}; give it one"
    )
