"""Objects in memory → columns: data frames, arrays, tensors, Arrow, dicts of these by field name.

A library is asked for its types only where the user's program has imported it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from refold.casting import list_parts
from refold.data.containers import Cells, Dict, NumPy, Pandas, Polars, PyArrow, Tensor, as_given
from refold.errors import InputError
from refold.table import Arrow, Column, Container, Table, compute, is_list


def read_memory(source: Any) -> Table:
    """Read an object of a data library, an array, or a dict of columns."""
    _refuse_sparse(source)
    if _is(source, "pandas", "DataFrame"):
        return _pandas(source)
    if _is(source, "polars", "LazyFrame"):
        source = source.collect()
    if _is(source, "polars", "DataFrame"):
        return _polars(source)
    if isinstance(source, pa.Table | pa.RecordBatch):
        return arrow_table(source.column_names, source.columns, PyArrow.of(source))
    if isinstance(source, Mapping):
        return joined({str(k): field_table(str(k), v) for k, v in source.items()}, len(source))
    if _is_series(source):
        raise _one_dimensional("a series")
    if _is(source, "torch", "Tensor"):
        name, block = named_block(_tensor_values(source))
        return Table({name: block}, Tensor(name, source.dtype))
    if hasattr(source, "__arrow_c_stream__"):
        return read_memory(pa.table(source))
    if is_ragged(source):
        array, notes = _scalars("x", source)
        return arrow_table(["x"], [array], as_given("x", source), notes)
    if isinstance(source, list | tuple) or hasattr(source, "__array__"):
        name, block = named_block(_as_array(source, "the rows"))
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


def named_block(array: NDArray[Any]) -> tuple[str, NDArray[Any]]:
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
    return arrow_table(names, arrays, lambda: Pandas.of(frame), notes)


def _polars(frame: Any) -> Table:
    objects = [n for n, t in frame.schema.items() if str(t) == "Object"]
    notes = [
        f"column '{n}' holds Python objects, which have no type; it was set aside" for n in objects
    ]
    kept = frame.drop(objects)
    return arrow_table(kept.columns, kept.to_arrow().columns, Polars.of(kept), notes)


def joined(tables: Mapping[str, Table], count: int) -> Table:
    """Join fields that were read each on its own."""
    if len(tables) < count:
        raise InputError("two fields have the same name once written as text; rename one")
    columns = {name: c for t in tables.values() for name, c in t.columns.items()}
    lengths = {name: len(c) for name, c in columns.items()}
    if len(set(lengths.values())) > 1:
        listed = ", ".join(f"'{name}' {n}" for name, n in lengths.items())
        raise InputError(f"fields have different lengths: {listed}; give one value per row in each")
    parts = {name: t.container for name, t in tables.items()}
    levels = {name: order for t in tables.values() for name, order in t.levels.items()}
    notes = tuple(n for t in tables.values() for n in t.notes)
    return Table(columns, Dict(parts), notes, levels=levels)


def field_table(name: str, values: Any) -> Table:
    """Read one value of a dict, as a table of one column."""
    _refuse_sparse(values)
    pandas: Any = sys.modules.get("pandas")
    if pandas is not None and isinstance(values, pandas.api.extensions.ExtensionArray):
        values = pandas.Series(values)
    if _is(values, "pandas", "Series", "Index"):
        whole = _pandas(values.to_frame(name=name))
        return replace(whole, container=Cells(whole.container, lambda f: f.iloc[:, 0]))
    if _is(values, "polars", "Series"):
        whole = _polars(values.to_frame(name))
        return replace(whole, container=Cells(whole.container, lambda f: f.to_series(0)))
    if isinstance(values, pa.Array | pa.ChunkedArray):
        whole = read_memory(pa.table({name: values}))
        return replace(whole, container=Cells(whole.container, lambda t: t.column(0)))
    if isinstance(values, list | tuple):
        if any(_is_cell(v) for v in values):
            if not _rectangular(values):
                array, notes = _scalars(name, values)
                return arrow_table([name], [array], as_given(name, values), notes)
            values = np.asarray(values)
        return array_table(name, values, Cells(NumPy(name), lambda a: a.tolist()))
    if _is(values, "torch", "Tensor"):
        return array_table(name, _tensor_values(values), Tensor(name, values.dtype))
    if isinstance(values, np.ndarray):
        if is_ragged(values):
            array, notes = _scalars(name, values)
            return arrow_table([name], [array], as_given(name, values), notes)
        array = _as_array(values, f"'{name}'")
        return array_table(name, array, NumPy(name, array.dtype))
    raise InputError(
        f"field '{name}' is a {type(values).__name__}; expected an array, a list or a series with "
        f"one value per row"
    )


def array_table(name: str, values: Any, container: Container) -> Table:
    """Read an array or a list as one column, block or scalar, of the given name."""
    if isinstance(values, np.ndarray) and values.ndim != 1:
        return Table({name: named_block(values)[1]}, container)
    array, notes = _scalars(name, values)
    return arrow_table([name], [array], container, notes)


def _scalars(name: str, values: Any) -> tuple[Arrow, list[str]]:
    """Return cells as an Arrow array, and a note where mixed types had to be read as text."""
    if getattr(getattr(values, "dtype", None), "kind", "") == "c":
        raise InputError(f"Complex data not supported: '{name}' is complex, expected real numbers")
    try:
        return pa.array(values, from_pandas=True), []
    except (pa.ArrowException, OverflowError):
        if any(_is_cell(v) for v in values):
            return series_array(name, values), []
        cells = [None if _is_missing(v) else str(v) for v in values]
        return pa.array(cells, pa.string()), [
            f"column '{name}' mixes types and was read as text; give it one type"
        ]


def is_ragged(values: Any) -> bool:
    """Whether rows are series in arrays of their own, a list or an array of objects of them.

    Lists of plain lists are not: a row of a table that lacks a cell looks like that.
    """
    holds_objects = isinstance(values, np.ndarray) and values.dtype == object and values.ndim == 1
    if not (holds_objects or isinstance(values, list | tuple)):
        return False
    arrays = any(_is_cell(v) and not isinstance(v, list | tuple) for v in values)
    return arrays and (holds_objects or not _rectangular(values))


def _is_cell(value: Any) -> bool:
    """Whether a cell holds several values: a list, an array, a tensor, a series."""
    return isinstance(value, list | tuple) or getattr(value, "ndim", 0) > 0


def _rectangular(rows: Iterable[Any]) -> bool:
    """Whether all rows are there, and of one shape."""
    try:
        return len({np.shape(row) for row in rows}) == 1
    except ValueError:
        return False


def series_array(name: str, rows: Iterable[Any]) -> Arrow:
    """Return series in arrays ``[T_i]`` or ``[T_i, C]`` as Arrow lists; a missing row is null.

    Raises :class:`InputError` that names the first row that is none.
    """
    cells: list[NDArray[Any] | None] = []
    for i, row in enumerate(rows):
        try:
            cell = np.asarray(row) if _is_cell(row) else None
        except (ValueError, TypeError) as error:
            raise _no_series(name, i, "steps of different lengths") from error
        if cell is not None and (cell.ndim > 2 or cell.dtype.kind not in "biufO"):
            raise _no_series(name, i, f"an array {cell.shape} of {cell.dtype}")
        if cell is None and not _is_missing(row):
            raise _no_series(name, i, f"{row!r}")
        cells.append(cell)
    known = [c for c in cells if c is not None and len(c)]
    shapes = {c.shape[1:] for c in known}
    if len(shapes) > 1:
        raise InputError(
            f"series '{name}' have different channels: {', '.join(map(str, sorted(shapes)))}; give "
            f"(steps,) or (steps, channels), with as many channels in every row"
        )
    lengths = [-1 if c is None else len(c) for c in cells]
    offsets = np.concatenate([[0], np.cumsum(np.maximum(lengths, 0))])
    try:
        flat = np.concatenate(known).astype(np.result_type(*known)) if known else np.empty(0)
        inner = pa.array(flat.reshape(-1), from_pandas=True)
    except (pa.ArrowException, ValueError, TypeError) as error:
        raise _no_series(name, 0, "what are no numbers") from error
    if flat.ndim == 2:
        inner = pa.FixedSizeListArray.from_arrays(inner, flat.shape[-1])
    array = pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), inner)
    return compute.if_else(pa.array([n >= 0 for n in lengths]), array, None)


def _no_series(name: str, row: int, what: str) -> InputError:
    return InputError(
        f"row {row} of '{name}' holds {what}, which is no series; give an array (steps,) or "
        f"(steps, channels) of numbers in every row"
    )


def _is_missing(cell: Any) -> bool:
    return (
        cell is None or (isinstance(cell, float) and cell != cell) or (str(cell) in ("<NA>", "NaT"))
    )


# --- Arrow -------------------------------------------------------------------------------------


def arrow_table(
    names: Sequence[str],
    arrays: Iterable[Arrow],
    container: Container | Callable[[], Container],
    notes: Sequence[str] = (),
) -> Table:
    """Keep the columns that a field can hold; the others are set aside with a note."""
    refuse_duplicates(names)
    columns: dict[str, Column] = {}
    levels: dict[str, tuple[Any, ...]] = {}
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
            if order := _order(chunked):
                levels[name] = order
    own = container() if callable(container) else container
    return Table(columns, own, tuple(remarks), levels=levels)


def refuse_duplicates(names: Sequence[str]) -> None:
    """Raise where two columns have one name."""
    if len(set(names)) < len(names):
        twice = next(n for i, n in enumerate(names) if n in names[:i])
        raise InputError(f"two columns are named '{twice}'; rename one")


def _order(column: Arrow) -> tuple[Any, ...]:
    """Levels of an ordered dictionary, from the lowest; none of other columns.

    Chunks with dictionaries of their own have no order together.
    """
    if not (pa.types.is_dictionary(column.type) and column.type.ordered and column.num_chunks):
        return ()
    first = column.chunk(0).dictionary
    if not all(chunk.dictionary.equals(first) for chunk in column.chunks):
        return ()
    levels = _usable(pa.chunked_array([first.drop_null()]))
    return () if levels is None or isinstance(levels, np.ndarray) else tuple(levels.to_pylist())


def _usable(column: Arrow) -> Column | None:
    """Bring a column to a type that fields know; None where there is none."""
    kind, types = column.type, pa.types
    if types.is_dictionary(kind):
        return _usable(column.cast(kind.value_type))
    if is_list(kind):
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


def _lists(column: Arrow) -> Column | None:
    """Return lists of numbers, all of one length, as a block; other lists as they are.

    A missing list among such of one length is a row of NaN. None where there is no such field:
    cells of other types, or lists of lists that differ in length.
    """
    shape: list[int] = []
    array = pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)
    while is_list(array.type):
        lengths = compute.unique(compute.list_value_length(array).drop_null())
        if not shape and (array.null_count or len(lengths) != 1):
            return _ragged(column, array, lengths)
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


def _ragged(column: Arrow, array: Arrow, lengths: Arrow) -> Column | None:
    """Return lists of different lengths; those of one length with rows missing as a block."""
    inner = array.flatten()
    if is_list(inner.type):
        inside = compute.unique(compute.list_value_length(inner))
        if inner.null_count or len(inside) > 1 or is_list(inner.type.value_type):
            return None
        inner = inner.flatten()
    types, kind = pa.types, inner.type
    if not (types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind)):
        return column if types.is_null(kind) and len(lengths) else None
    if len(lengths) != 1 or not lengths[0].as_py():
        return column
    numbers, found, nested = list_parts(array)
    block = np.full((len(found), lengths[0].as_py(), numbers.shape[1]), np.nan)
    block[found >= 0] = numbers.reshape(-1, *block.shape[1:])
    return block if nested else block[:, :, 0]
