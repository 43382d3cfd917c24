"""Anything → columns: data in memory, files, folders of images, patterns of these.

Missing is null in a scalar column and NaN in a block. Nothing of a file is executed: no pickle.
"""

from __future__ import annotations

import codecs
import csv
import glob
import gzip
import io
import os
import re
import sys
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.feather as pa_feather
import pyarrow.json as pa_json
import pyarrow.parquet as pa_parquet
from numpy.typing import NDArray

from refold.data.containers import Cells, Dict, NumPy, Pandas, Polars, PyArrow, Tensor, default
from refold.errors import InputError
from refold.table import Arrow, Column, Container, Table, compute


def read(source: Any) -> Table:
    """Read data frames, arrays, dicts of these by field name, or a path, into named columns.

    A 2-D array is one block column ``x``, a 3-D or 4-D array one block column ``image``. A path
    is a file, a pattern of files (``data/*.parquet``) or a folder of images. Types that no field
    can hold are set aside with a note. Raises :class:`InputError` for what cannot be read, and
    ``TypeError`` for a sparse matrix.

    >>> table = read({"age": [39, None], "city": ["Bern", "Graz"]})
    >>> table.columns["age"].to_pylist()
    [39, None]
    """
    if isinstance(source, Table):
        return source
    if isinstance(source, str | os.PathLike):
        return _read_path(Path(source))
    table = _read_memory(source)
    if not table.columns:
        raise InputError("; ".join(["the data has no column that can be used", *table.notes]))
    return table


# --- in memory ---------------------------------------------------------------------------------


def _read_memory(source: Any) -> Table:
    _refuse_sparse(source)
    if _is(source, "pandas", "DataFrame"):
        return _pandas(source)
    if _is(source, "polars", "LazyFrame"):
        source = source.collect()
    if _is(source, "polars", "DataFrame"):
        return _polars(source)
    if isinstance(source, pa.Table | pa.RecordBatch):
        return _frame(source.column_names, source.columns, PyArrow.of(source))
    if isinstance(source, Mapping):
        return _mapping({str(k): _field(str(k), v) for k, v in source.items()}, len(source))
    if _is_series(source):
        raise _one_dimensional("a series")
    if _is(source, "torch", "Tensor"):
        name, block = _block(_tensor_values(source))
        return Table({name: block}, Tensor(name, source.dtype))
    if hasattr(source, "__arrow_c_stream__"):
        return _read_memory(pa.table(source))
    if isinstance(source, list | tuple) or hasattr(source, "__array__"):
        name, block = _block(_as_array(source, "the rows"))
        return Table({name: block}, NumPy(name, block.dtype))
    raise InputError(
        f"cannot read a {type(source).__name__}; give a data frame, an array, a dict of columns, "
        f"or a path"
    )


def _is(value: Any, package: str, *names: str) -> bool:
    """Whether a value is of a library's class, without importing that library."""
    module: Any = sys.modules.get(package)
    return module is not None and isinstance(value, tuple(getattr(module, n) for n in names))


def _is_series(value: Any) -> bool:
    arrow = isinstance(value, pa.Array | pa.ChunkedArray)
    return arrow or _is(value, "pandas", "Series", "Index") or _is(value, "polars", "Series")


def _refuse_sparse(value: Any) -> None:
    if type(value).__module__.startswith("scipy.sparse"):
        raise TypeError(
            "A sparse matrix was passed, but dense data is required. Use '.toarray()' to convert "
            "to a dense numpy array."
        )


def _one_dimensional(what: str) -> InputError:
    return InputError(
        f"expected a table or a 2-D array, got {what} of one dimension. Reshape your data with "
        f"reshape(-1, 1) if it is one column, reshape(1, -1) if it is one row; or give a dict of "
        f"columns by name"
    )


def _tensor_values(tensor: Any) -> NDArray[Any]:
    dense = tensor.detach().cpu()
    return (dense.float() if str(dense.dtype) == "torch.bfloat16" else dense).numpy()


def _as_array(values: Any, what: str) -> NDArray[Any]:
    try:
        array = np.asarray(values)
    except ValueError as error:
        raise InputError(f"{what} have different lengths; make them one length") from error
    if np.ma.isMaskedArray(values):
        array = np.ma.filled(values.astype(np.float64), np.nan)
    return array


def _block(array: NDArray[Any]) -> tuple[str, NDArray[Any]]:
    """Check that an array is a block of real numbers, and name it."""
    if array.dtype.kind == "c":
        raise InputError(f"Complex data not supported: got {array.dtype}, expected real numbers")
    if array.ndim < 2:
        raise _one_dimensional("an array" if array.ndim else "a single value")
    if array.ndim > 4:
        raise InputError(
            f"got an array of {array.ndim} dimensions, {array.shape}; expected (n, d), "
            f"(n, height, width) or (n, height, width, channels)"
        )
    if array.dtype.kind == "O":
        try:  # a cell that is no number at all stays NumPy's own TypeError, as in scikit-learn
            array = array.astype(np.float64)
        except ValueError as error:
            raise _not_numbers(array) from error
    if array.dtype.kind not in "biuf":
        raise _not_numbers(array)
    return ("x" if array.ndim == 2 else "image"), array


def _not_numbers(array: NDArray[Any]) -> InputError:
    return InputError(
        f"an array of numbers was expected, got one of type {array.dtype}; give text and dates as "
        f"a data frame or a dict of columns"
    )


def _pandas(frame: Any) -> Table:
    names, arrays, notes = [str(c) for c in frame.columns], list[Arrow](), list[str]()
    for i, name in enumerate(names):
        series = frame.iloc[:, i]
        if _is(series.dtype, "pandas", "SparseDtype"):
            series = series.sparse.to_dense()
        array, remark = _scalars(name, series)
        arrays.append(array)
        notes += remark
    return _frame(names, arrays, lambda: Pandas.of(frame), notes)


def _polars(frame: Any) -> Table:
    objects = [n for n, t in frame.schema.items() if str(t) == "Object"]
    notes = [
        f"column '{n}' holds Python objects, which have no type; it was set aside" for n in objects
    ]
    kept = frame.drop(objects)
    return _frame(kept.columns, kept.to_arrow().columns, Polars.of(kept), notes)


def _mapping(tables: Mapping[str, Table], count: int) -> Table:
    """Join fields that were read each on its own."""
    if len(tables) < count:
        raise InputError("two fields have the same name once written as text; rename one")
    columns = {name: c for t in tables.values() for name, c in t.columns.items()}
    lengths = {name: len(c) for name, c in columns.items()}
    if len(set(lengths.values())) > 1:
        listed = ", ".join(f"'{name}' {n}" for name, n in lengths.items())
        raise InputError(f"fields have different lengths: {listed}; give one value per row in each")
    parts = {name: t.container for name, t in tables.items()}
    return Table(columns, Dict(parts), tuple(n for t in tables.values() for n in t.notes))


def _field(name: str, values: Any) -> Table:
    """Read one value of a dict, as a table of one column."""
    _refuse_sparse(values)
    if _is(values, "pandas", "Series", "Index"):
        whole = _pandas(values.to_frame(name=name))
        return replace(whole, container=Cells(whole.container, lambda f: f.iloc[:, 0]))
    if _is(values, "polars", "Series"):
        whole = _polars(values.to_frame(name))
        return replace(whole, container=Cells(whole.container, lambda f: f.to_series(0)))
    if isinstance(values, pa.Array | pa.ChunkedArray):
        whole = _read_memory(pa.table({name: values}))
        return replace(whole, container=Cells(whole.container, lambda t: t.column(0)))
    if isinstance(values, list | tuple):
        nested = bool(values) and isinstance(values[0], list | tuple | np.ndarray)
        values = _as_array(values, f"the rows of '{name}'") if nested else values
        return _array_field(name, values, Cells(NumPy(name), lambda a: a.tolist()))
    if _is(values, "torch", "Tensor"):
        return _array_field(name, _tensor_values(values), Tensor(name, values.dtype))
    if isinstance(values, np.ndarray):
        array = _as_array(values, f"'{name}'")
        return _array_field(name, array, NumPy(name, array.dtype))
    raise InputError(
        f"field '{name}' is a {type(values).__name__}; expected an array, a list or a series with "
        f"one value per row"
    )


def _array_field(name: str, values: Any, container: Container) -> Table:
    if isinstance(values, np.ndarray) and values.ndim != 1:
        return Table({name: _block(values)[1]}, container)
    array, notes = _scalars(name, values)
    return _frame([name], [array], container, notes)


def _scalars(name: str, values: Any) -> tuple[Arrow, list[str]]:
    """Return cells as an Arrow array, and a note where mixed types had to be read as text."""
    if getattr(getattr(values, "dtype", None), "kind", "") == "c":
        raise InputError(f"Complex data not supported: '{name}' is complex, expected real numbers")
    try:
        return pa.array(values, from_pandas=True), []
    except (pa.ArrowException, OverflowError):
        cells = [None if _is_missing(v) else str(v) for v in values]
        return pa.array(cells, pa.string()), [
            f"column '{name}' mixes types and was read as text; give it one type"
        ]


def _is_missing(cell: Any) -> bool:
    return (
        cell is None or (isinstance(cell, float) and cell != cell) or (str(cell) in ("<NA>", "NaT"))
    )


# --- Arrow -------------------------------------------------------------------------------------


def _frame(
    names: Sequence[str],
    arrays: Iterable[Arrow],
    container: Container | Callable[[], Container],
    notes: Sequence[str] = (),
) -> Table:
    """Keep the columns that a field can hold; the others are set aside with a note."""
    _refuse_duplicates(names)
    columns: dict[str, Column] = {}
    remarks = list(notes)
    for name, array in zip(names, arrays, strict=True):
        chunked = array if isinstance(array, pa.ChunkedArray) else pa.chunked_array([array])
        column = _usable(chunked)
        if column is None:
            remarks.append(
                f"column '{name}' has type {chunked.type}, which is not supported; it was set aside"
            )
        else:
            columns[name] = column
    return Table(columns, container() if callable(container) else container, tuple(remarks))


def _refuse_duplicates(names: Sequence[str]) -> None:
    if len(set(names)) < len(names):
        twice = next(n for i, n in enumerate(names) if n in names[:i])
        raise InputError(f"two columns are named '{twice}'; rename one")


def _usable(column: Arrow) -> Column | None:
    """Bring a column to a type that fields know; None where there is none."""
    kind, types = column.type, pa.types
    if types.is_dictionary(kind):
        return _usable(column.cast(kind.value_type))
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        return _lists(column)
    if types.is_decimal(kind):
        return column.cast(pa.float64())
    if types.is_float16(kind):
        return _usable(column.cast(pa.float32()))
    if types.is_floating(kind):
        # Only the cells that are NaN cost: most columns have none, and are not copied.
        return (
            compute.if_else(compute.is_nan(column), None, column)
            if compute.any(compute.is_nan(column)).as_py()
            else (column)
        )
    if types.is_large_string(kind) or str(kind) == "string_view":
        return column.cast(pa.string())
    simple = types.is_integer(kind) or types.is_boolean(kind) or types.is_null(kind)
    return column if simple or types.is_string(kind) or types.is_temporal(kind) else None


def _lists(column: Arrow) -> NDArray[Any] | None:
    """Return lists of numbers, all of one length, as a block; None where they are not."""
    shape: list[int] = []
    array = pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)
    while pa.types.is_nested(array.type) and not pa.types.is_struct(array.type):
        lengths = compute.unique(compute.list_value_length(array))
        if array.null_count or len(lengths) != 1:
            return None
        shape.append(lengths[0].as_py())
        array = array.flatten()
    number = pa.types.is_integer(array.type) or pa.types.is_floating(array.type)
    if not (number or pa.types.is_boolean(array.type)):
        return None
    if array.null_count:
        array = array.cast(pa.float64())
    return array.to_numpy(zero_copy_only=False).reshape(len(column), *shape)


# --- paths -------------------------------------------------------------------------------------

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


def _read_path(path: Path) -> Table:
    try:
        there = path.exists()
    except OSError as error:  # a name too long, a parent that may not be entered
        raise InputError(f"{path}: {error.strerror}; check the path") from error
    if not there and glob.has_magic(str(path)):
        return _read_pattern(path)
    if not there:
        raise InputError(f"{path}: no such file or folder; check the path")
    if path.is_dir():
        if _ending(path) in READERS:
            raise InputError(f"{path}: this is a folder, not a file; give the file in it")
        return _guarded(path, _read_folder)
    if _ending(path) in IMAGES:
        return _guarded(path, lambda p: _images([p]))
    return _read_file(path)


def _read_pattern(pattern: Path) -> Table:
    """Read all files that match, in sorted order, as one table."""
    files = [Path(p) for p in sorted(glob.glob(str(pattern), recursive=True))]  # noqa: PTH207
    files = [p for p in files if p.is_file()]
    if not files:
        raise InputError(f"{pattern}: no file matches; check the pattern")
    if all(_ending(p) in IMAGES for p in files):
        return _guarded(pattern, lambda _: _images(files))
    return _concatenated([_read_file(p) for p in files], files)


def _read_file(path: Path) -> Table:
    table = _guarded(path, READERS.get(_ending(path), _read_unknown))
    if len(table) == 0:
        raise InputError(f"{path}: there are column names but no rows; give at least one row")
    return table


def _guarded(path: Path, reader: Callable[[Path], Table]) -> Table:
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
            f"{path}: not a whole, readable {_ending(path) or 'data'} file ({reason}); check that "
            f"it is complete and what its name says"
        ) from error
    return table


def _ending(path: Path) -> str:
    """Return the ending that says the format: the last one, or the one before .gz.

    >>> _ending(Path("a/t10k-images-idx3-ubyte.gz")), _ending(Path("b.csv.gz"))
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
    delimiter = _consistent_delimiter(data)
    if delimiter is None:
        raise InputError(
            f"unknown ending '{path.suffix}'; known are {' '.join(READERS)}, a folder of images "
            f"({' '.join(IMAGES)}), and patterns of these"
        )
    table = _delimited(data, delimiter)
    return replace(table, notes=(f"{path.name} was read as text with '{delimiter}' between cells",
                                 *table.notes))  # fmt: skip


def _read_text(path: Path) -> Table:
    raise InputError("text is not supported yet and comes in a later version; give a table")


def _read_csv(path: Path) -> Table:
    return _delimited(_bytes(path), None)


def _read_tsv(path: Path) -> Table:
    return _delimited(_bytes(path), "\t")


def _read_jsonl(path: Path) -> Table:
    table = pa_json.read_json(pa.BufferReader(_bytes(path)))
    return _frame(table.column_names, table.columns, default)


def _read_parquet(path: Path) -> Table:
    table = pa_parquet.ParquetFile(path).read()
    return _frame(table.column_names, table.columns, default)


def _read_feather(path: Path) -> Table:
    try:
        table = pa_feather.read_table(str(path))
    except pa.ArrowInvalid:  # .arrow is also the ending of Arrow streams
        table = pa.ipc.open_stream(pa.BufferReader(path.read_bytes())).read_all()
    return _frame(table.column_names, table.columns, default)


def _read_npy(path: Path) -> Table:
    with path.open("rb") as file:
        name, block = _block(np.lib.format.read_array(file, allow_pickle=False))
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
        _block(arrays[key])
        rows = len(arrays[key])
        notes += [f"'{n}' has {len(a)} entries, '{key}' {rows} rows; it was set aside"
                  for n, a in arrays.items() if len(a) != rows]  # fmt: skip
        arrays = {n: a for n, a in arrays.items() if len(a) == rows}
    table = _mapping({n: _field(n, a) for n, a in arrays.items()}, len(arrays))
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
        return _array_field("label", array, NumPy("label", array.dtype))
    name, block = _block(array)
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
    ".idx": _read_idx,
    ".txt": _read_text,
}


def _concatenated(tables: Sequence[Table], files: Sequence[Path]) -> Table:
    """Join the rows of several files; a scalar column that a file lacks is missing there."""
    names = list(dict.fromkeys(name for t in tables for name in t.columns))
    blocks = {n for t in tables for n, c in t.columns.items() if isinstance(c, np.ndarray)}
    columns: dict[str, Column] = {}
    for name in names:
        present = [t.columns.get(name) for t in tables]
        columns[name] = (
            _joined_blocks(name, present, files)
            if name in blocks
            else _joined_scalars(name, present, tables)
        )
    notes = tuple(dict.fromkeys(note for t in tables for note in t.notes))
    aside = tuple(dict.fromkeys(name for t in tables for name in t.aside))
    return Table(columns, tables[0].container, notes, aside)


def _joined_blocks(name: str, present: list[Column | None], files: Sequence[Path]) -> Column:
    shapes = [c.shape[1:] if isinstance(c, np.ndarray) else None for c in present]
    for file, shape in zip(files, shapes, strict=True):
        if shape != shapes[0] or shape is None:
            raise InputError(
                f"{file}: rows of '{name}' have shape {shape}, those of {files[0]} {shapes[0]}; "
                f"give files of one shape"
            )
    return np.concatenate([np.asarray(c) for c in present])


def _joined_scalars(name: str, present: list[Column | None], tables: Sequence[Table]) -> Column:
    parts = [
        pa.table({name: pa.nulls(len(t)) if c is None else c})
        for c, t in zip(present, tables, strict=True)
    ]
    try:
        return pa.concat_tables(parts, promote_options="permissive").column(0)
    except pa.ArrowException as error:
        kinds = ", ".join(dict.fromkeys(str(p.column(0).type) for p in parts))
        raise InputError(
            f"column '{name}' has different types in different files ({kinds}); give it one"
        ) from error


# --- delimited text ----------------------------------------------------------------------------

MISSING = ("", "?", "NA", "N/A", "NaN", "nan", "null", "NULL", "None", "#N/A")
DELIMITERS = ",;\t|"
GUESSES = (
    pa.int64(), pa.float64(), pa.bool_(), pa.date32(), pa.timestamp("s"), pa.timestamp("ns"),
)  # fmt: skip


def _delimited(data: bytes, delimiter: str | None) -> Table:
    """Parse delimited text, cells and names stripped of white space around them."""
    data = data.removeprefix(codecs.BOM_UTF8)
    text = _decoded(data)
    delimiter = delimiter or _header_delimiter(text.lstrip("\r\n").partition("\n")[0])
    cells = [c.strip() for c in next(row for row in _rows(text, delimiter) if row)]
    headless = all(_is_number(c) for c in cells)
    names = [f"c{i}" if headless or not c else c for i, c in enumerate(cells)]
    notes = [f"the first line holds numbers only, so columns were named c0 to c{len(cells) - 1}"]
    if not headless:
        notes = [f"column {i + 1} has no name and was named c{i}"
                 for i, c in enumerate(cells) if not c]  # fmt: skip
    _refuse_duplicates(names)
    table = _parsed(data, text, delimiter, headless, len(cells))
    return _frame(names, [_retyped(c) for c in table.columns], default, notes)


def _decoded(data: bytes) -> str:
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise InputError(
            f"this is not UTF-8 text (byte {error.start} cannot be read); save it as UTF-8"
        ) from error
    if "\0" in text:
        raise InputError("this is binary data, not text; give delimited text")
    return text


def _rows(text: str, delimiter: str) -> Any:
    return csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True)


def _header_delimiter(line: str) -> str:
    """Return the comma, or where the header has none, what it has most of."""
    return "," if "," in line else max(DELIMITERS, key=line.count)


def _consistent_delimiter(data: bytes) -> str | None:
    """Return the delimiter that splits the first lines into equally many cells, if one does."""
    head = data[: 1 << 16]
    if len(data) > len(head):
        head = head[: head.rfind(b"\n") + 1]
    try:
        text = head.decode()
    except UnicodeDecodeError:
        return None
    if "\0" in text or text.lstrip()[:1] in tuple("{[<"):
        return None
    for delimiter in DELIMITERS:
        widths = {len(row) for row in _rows(text, delimiter) if row}
        if len(widths) == 1 and widths != {1} and text.count("\n") > 1:
            return delimiter
    return None


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _parsed(data: bytes, text: str, delimiter: str, headless: bool, width: int) -> Arrow:
    quoted = b'"' in data
    if quoted:  # Arrow knows a quote only right after the delimiter: mend `a, "b"`
        mark = re.escape(delimiter.encode())
        data = re.sub(rb"(?m)(^|" + mark + rb')[ ]+"(?!")', rb'\1"', data)
    try:
        return pa_csv.read_csv(
            pa.BufferReader(data.lstrip(b"\r\n")),
            pa_csv.ReadOptions(autogenerate_column_names=headless, block_size=1 << 24),
            # A blank line is a missing cell where there is one column, and nothing elsewhere.
            pa_csv.ParseOptions(
                delimiter=delimiter, newlines_in_values=quoted, ignore_empty_lines=width > 1
            ),
            pa_csv.ConvertOptions(null_values=MISSING, strings_can_be_null=True),
        )
    except pa.ArrowInvalid as error:
        raise _ragged(text, delimiter, width) or InputError(
            f"this is no delimited text ({str(error).partition(chr(10))[0]}); check it"
        ) from error


def _ragged(text: str, delimiter: str, width: int) -> InputError | None:
    rows = _rows(text, delimiter)
    try:
        for row in rows:
            if row and len(row) != width:
                return InputError(
                    f"line {rows.line_num} has {len(row)} cells, but the first line has {width}; "
                    f"give every line as many"
                )
    except csv.Error:
        return None
    return None


def _retyped(column: Arrow) -> Arrow:
    """Trim text, and infer its type again if that changed it: ` 39` becomes 39, ` ?` missing."""
    if not pa.types.is_string(column.type):
        return column
    trimmed = compute.utf8_trim_whitespace(column)
    trimmed = compute.if_else(compute.is_in(trimmed, value_set=pa.array(MISSING)), None, trimmed)
    if trimmed.equals(column):
        return column
    first = trimmed.drop_null().slice(0, 1)  # a whole column that cannot be cast fails slowly
    for kind in GUESSES:
        try:
            first.cast(kind)
            return trimmed.cast(kind)
        except pa.ArrowInvalid:
            continue
    return trimmed


# --- images ------------------------------------------------------------------------------------


def _read_folder(folder: Path) -> Table:
    """Read every image below a folder, in sorted order."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and not p.name.startswith("."))
    images = [p for p in files if p.suffix.lower() in IMAGES]
    if not images:
        other = next((p for p in files if _ending(p) in READERS), None)
        hint = f"; to read other files name them, such as '{other}'" if other else ""
        raise InputError(f"the folder holds no images ({' '.join(IMAGES)}){hint}")
    table = _images(images)
    if others := len(files) - len(images):
        return replace(table, notes=(*table.notes, f"{others} files are no images; ignored"))
    return table


def _images(files: Sequence[Path]) -> Table:
    """Read images of one size: grey if all are, else RGB."""
    with ThreadPoolExecutor() as pool:
        images = list(pool.map(_image, files))
    for file, image in zip(files, images, strict=True):
        if image.shape[:2] != images[0].shape[:2]:
            (h0, w0), (h, w) = images[0].shape[:2], image.shape[:2]
            raise InputError(
                f"images differ in size: '{files[0]}' is {w0}x{h0} pixels, '{file}' {w}x{h}; "
                f"resize them to one size"
            )
        if image.dtype != images[0].dtype:
            raise InputError(
                f"images differ in depth: '{files[0]}' is {images[0].dtype}, '{file}' "
                f"{image.dtype}; convert them to 8 bits"
            )
    if any(i.ndim == 3 for i in images):
        images = [i if i.ndim == 3 else np.repeat(i[..., None], 3, axis=2) for i in images]
    block = np.stack(images)
    return Table({"image": block}, NumPy("image", block.dtype))


def _image(file: Path) -> NDArray[Any]:
    """Return grey levels ``[H, W]`` or colours ``[H, W, 3]``, upright, without palette or alpha."""
    from PIL import Image, ImageOps

    try:
        with Image.open(file) as opened:
            image = ImageOps.exif_transpose(opened)
            if image.mode in ("1", "L", "LA", "La"):
                return np.asarray(image.convert("L"))
            if image.mode.startswith("I;16"):
                return np.asarray(image).astype(np.uint16)
            return np.asarray(image.convert("RGB"))
    except PermissionError:
        raise InputError(f"image '{file}': permission denied; make it readable") from None
    except (*DAMAGE, Image.DecompressionBombError) as error:
        raise InputError(f"image '{file}' is corrupt or no image; repair or remove it") from error
