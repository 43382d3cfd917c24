"""The kinds of container users bring, and how columns are put back into them.

pandas, polars and torch are imported only once the user's own object, or a saved model, names them.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, final

import numpy as np
import pyarrow as pa

from refold.casting import as_arrow, as_dtype, as_numpy, cast, flatten, list_cells
from refold.errors import InputError, unknown
from refold.table import Arrow, Block, Column, Container, is_list

# --- containers --------------------------------------------------------------------------------


@final
@dataclass(frozen=True, eq=False)
class Pandas:
    """A ``pandas.DataFrame``: labels, types, categories, and the index where rows correspond."""

    kind: str = field(default="pandas", init=False)
    template: Any = None
    index: Any = None
    missing: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """What a missing cell is in each column of Python objects: None, NaN or NA."""
    plain: frozenset[str] = frozenset()
    """Columns whose cells are Python's own lists."""

    @classmethod
    def of(cls, frame: Any) -> Pandas:
        """Remember a frame's labels, types and index, but none of its cells."""
        objects = [
            c for i, c in enumerate(frame.columns) if frame.dtypes.iloc[i] == np.dtype(object)
        ]
        absent = {str(c): frame[c][frame[c].isna()] for c in objects}
        missing = {name: cells.iloc[0] for name, cells in absent.items() if len(cells)}
        plain = frozenset(str(c) for c in objects if holds_lists(frame[c]))
        return cls(frame.iloc[:0].copy(), frame.index, missing, plain)

    def rebuild(self, columns: Mapping[str, Any]) -> Any:
        """Build a frame; integers and booleans with missing cells become nullable."""
        pd = _package("pandas")
        template = pd.DataFrame() if self.template is None else self.template
        labels = {str(c): c for c in template.columns}
        flat = in_order(flatten(columns, keep=labels), labels)
        cells: dict[int, Any] = {}
        for i, (name, values) in enumerate(flat.items()):
            dtype = template[labels[name]].dtype if name in labels else None
            column = as_arrow(values)
            cells[i] = (
                pd.Series(nested_cells(column, name in self.plain, self.missing.get(name)))
                if is_list(column.type) and (dtype is None or dtype == np.dtype(object))
                else _pandas_column(column, dtype, self.missing.get(name))
            )
        frame = pd.DataFrame(cells)
        if self.index is not None and len(self.index) == len(frame):
            frame.index = self.index
        frame.columns = (
            template.columns
            if list(flat) == list(labels) and labels
            else pd.Index([labels.get(n, n) for n in flat])
        )
        return frame


@final
@dataclass(frozen=True, eq=False)
class Polars:
    """A ``polars.DataFrame`` and its schema."""

    kind: str = field(default="polars", init=False)
    template: Any = None

    @classmethod
    def of(cls, frame: Any) -> Polars:
        """Remember a frame's schema, but none of its cells."""
        return cls(frame.clear())

    def rebuild(self, columns: Mapping[str, Any]) -> Any:
        """Build a frame, each known column in its own type."""
        pl = _package("polars")
        schema: dict[str, Any] = {} if self.template is None else dict(self.template.schema)
        flat = in_order(flatten(columns, keep=schema), schema)
        return pl.DataFrame(
            [_polars_column(n, as_arrow(v), schema.get(n)) for n, v in flat.items()]
        )


@final
@dataclass(frozen=True, eq=False)
class PyArrow:
    """A ``pyarrow.Table`` or ``RecordBatch`` and its schema."""

    kind: str = field(default="pyarrow", init=False)
    schema: Any = None
    batch: bool = False

    @classmethod
    def of(cls, table: Any) -> PyArrow:
        """Remember a table's schema."""
        return cls(table.schema, isinstance(table, pa.RecordBatch))

    def rebuild(self, columns: Mapping[str, Any]) -> Any:
        """Build a table (or batch), each known column in its own type."""
        schema = pa.schema([]) if self.schema is None else self.schema
        names = schema.names
        flat = {n: as_arrow(v) for n, v in in_order(flatten(columns, keep=names), names).items()}
        cells = {n: cast(v, schema.field(n).type) if n in names else v for n, v in flat.items()}
        table = pa.table(cells)
        if table.schema.equals(schema):
            table = table.replace_schema_metadata(schema.metadata)
        if not self.batch:
            return table
        return pa.record_batch([c.combine_chunks() for c in table.columns], schema=table.schema)


@final
@dataclass(frozen=True)
class NumPy:
    """An array: one block or scalar column, in its own type."""

    kind: str = field(default="numpy", init=False)
    name: str | None = None
    dtype: np.dtype[Any] | None = None

    def rebuild(self, columns: Mapping[str, Any]) -> Any:
        """Return the one column as an array; several stand side by side, ``[n, d]``.

        Where they cannot (an image and a number), they are a dict of arrays.
        """
        arrays = {n: self._own(n, as_numpy(v)) for n, v in columns.items()}
        if len(arrays) == 1:
            return next(iter(arrays.values()))
        if any(a.ndim > 2 for a in arrays.values()):
            return arrays
        return np.column_stack(list(arrays.values())) if arrays else np.empty((0, 0))

    def _own(self, name: str, values: Block) -> Block:
        if name != self.name or self.dtype is None:
            return values
        if self.dtype.kind == "U" and values.dtype.kind == "O" and None not in values:
            return values.astype(np.str_)
        return as_dtype(values, self.dtype)


@final
@dataclass(frozen=True)
class Tensor:
    """A ``torch.Tensor`` on the CPU: one block or scalar column, in its own type."""

    kind: str = field(default="tensor", init=False)
    name: str | None = None
    dtype: Any = None

    def rebuild(self, columns: Mapping[str, Any]) -> Any:
        """Return the one column as a tensor; several as :class:`NumPy` does; text as an array."""
        torch = _package("torch")
        own = self.dtype if list(columns) == [self.name] else None
        dtype = None
        if own is not None and not own.is_floating_point:
            dtype = torch.empty(0, dtype=own).numpy().dtype
        arrays = NumPy(self.name, dtype).rebuild(columns)
        if isinstance(arrays, dict):
            return {n: Tensor().rebuild({n: a}) for n, a in arrays.items()}
        if arrays.dtype.kind not in "biuf":
            return arrays
        tensor = torch.from_numpy(np.array(arrays))  # a copy: Arrow's memory is read-only
        return tensor.to(own) if own is not None and own.is_floating_point else tensor


@final
@dataclass(frozen=True)
class Cells:
    """One field of a dict that is no array: a list, a series, an Arrow array."""

    kind: str = field(default="cells", init=False)
    whole: Container
    unwrap: Callable[[Any], Any]

    def rebuild(self, columns: Mapping[str, Any]) -> Any:
        """Build the container that holds the column, and take the column out."""
        return self.unwrap(self.whole.rebuild(columns))


@final
@dataclass(frozen=True)
class Dict:
    """A dict by field name, each value in its own kind; arrays where there is no template."""

    kind: str = field(default="dict", init=False)
    parts: Mapping[str, Container] = field(default_factory=dict[str, Container])

    def rebuild(self, columns: Mapping[str, Any]) -> Any:
        """Build a dict, each known value in its own kind."""
        return {
            name: self.parts.get(name, NumPy()).rebuild({name: values})
            for name, values in in_order(columns, self.parts).items()
        }


def as_given(name: str, rows: Any) -> Container:
    """Return the container of rows that hold lists or arrays, themselves in a list or an array."""
    plain, objects = holds_lists(rows), isinstance(rows, np.ndarray)

    def unwrap(cells: Block) -> Any:
        found = np.empty(len(cells), dtype=object)
        for i, cell in enumerate(cells):
            found[i] = cell.tolist() if plain and cell is not None else cell
        return found if objects else list(found)

    return Cells(NumPy(name), unwrap)


def holds_lists(rows: Any) -> bool:
    """Whether the first cell that is a list or an array is Python's own list."""
    cell = next((c for c in rows if isinstance(c, list | tuple) or np.ndim(c) > 0), None)
    return isinstance(cell, list | tuple)


def nested_cells(column: Arrow, plain: bool, missing: Any) -> Block:
    """Cells of a column of lists as arrays, or as ``plain`` lists, with what stands for missing."""
    cells = list_cells(column)
    found = np.empty(len(cells), dtype=object)
    for i, c in enumerate(cells):
        found[i] = missing if c is None else c.tolist() if plain else c
    return found


KINDS: dict[str, Callable[[], Container]] = {
    "pandas": Pandas,
    "polars": Polars,
    "pyarrow": PyArrow,
    "numpy": NumPy,
    "tensor": Tensor,
    "dict": Dict,
    "cells": lambda: as_given("", []),
}


def container(kind: str) -> Container:
    """Make a container without a template, as after loading a model.

    Raises :class:`InputError` for an unknown kind.

    >>> container("numpy").rebuild({"x": as_arrow([1.0, 2.0])})
    array([1., 2.])
    """
    if kind not in KINDS:
        raise unknown("container", kind, KINDS)
    return KINDS[kind]()


def default() -> Container:
    """Return the container for tables that came in none: pandas where installed, else pyarrow."""
    return Pandas() if importlib.util.find_spec("pandas") else PyArrow()


def frame(columns: Mapping[str, Column], like: Container) -> Any:
    """Build a data frame of results, of the library the user's data came from.

    Rows of a pandas frame keep its index. For arrays and files it is a pandas frame where pandas
    is installed, else a ``pyarrow.Table``.
    """
    match like:
        case Polars():
            return Polars().rebuild(columns)
        case PyArrow():
            return PyArrow().rebuild(columns)
        case Pandas():
            return Pandas(index=like.index).rebuild(columns)
        case _:
            return default().rebuild(columns)


def in_order(columns: Mapping[str, Any], template: Collection[str]) -> dict[str, Any]:
    """Sort columns as the template has them, those that it does not know last."""
    known = [name for name in template if name in columns]
    return {name: columns[name] for name in [*known, *(n for n in columns if n not in template)]}


# --- the libraries' own types ------------------------------------------------------------------


def _package(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise InputError(
            f"the data came from {name}, which is not installed; install it"
        ) from error


def _pandas_column(column: Arrow, dtype: Any, missing: Any = None) -> Any:
    """Cells of one column, in the pandas type the template has for it (None: pandas' choice)."""
    pd = _package("pandas")
    if isinstance(dtype, pd.CategoricalDtype):
        return _pandas_category(column, dtype)
    kind = _pandas_arrow_type(dtype)
    column = column if kind is None else cast(column, kind)
    extension = pd.api.extensions.ExtensionDtype
    holed = column.null_count and not isinstance(dtype, extension)
    if holed and (pa.types.is_integer(column.type) or pa.types.is_boolean(column.type)):
        name = str(column.type).replace("uint", "UInt").replace("int", "Int")
        dtype = pd.api.types.pandas_dtype(name.replace("bool", "boolean"))
    if dtype == np.dtype(object):
        cells = column.to_pandas().astype(object)
        return cells.where(cells.notna(), missing)
    try:
        if isinstance(dtype, extension) and kind is not None:
            return pd.Series(dtype.__from_arrow__(column))
        return column.to_pandas() if dtype is None else column.to_pandas().astype(dtype)
    except (TypeError, ValueError, NotImplementedError):
        return column.to_pandas()


def _pandas_category(column: Arrow, dtype: Any) -> Any:
    """Cells as categories of the template; a value that is none of them becomes one, at the end."""
    pd = _package("pandas")
    encoded = pa.chunked_array([column.combine_chunks()]).dictionary_encode().combine_chunks()
    levels = pd.Index(encoded.dictionary.to_pylist(), dtype=object)
    new = [v for v in levels if v is not None and v not in dtype.categories]
    known = dtype.categories.append(pd.Index(new)) if new else dtype.categories
    place = np.append(known.get_indexer(levels), -1)
    codes = place[encoded.indices.fill_null(len(levels)).to_numpy()]
    wide = pd.CategoricalDtype(known, dtype.ordered)
    return pd.Series(pd.Categorical.from_codes(codes, dtype=wide))


def _pandas_arrow_type(dtype: Any) -> Arrow:
    """Arrow type of a pandas type, None where there is no single one."""
    pd = _package("pandas")
    if isinstance(dtype, pd.ArrowDtype):
        return dtype.pyarrow_dtype
    if isinstance(dtype, pd.StringDtype):
        return pa.large_string()
    if isinstance(dtype, pd.DatetimeTZDtype):
        return pa.timestamp(dtype.unit, str(dtype.tz))
    plain = dtype if isinstance(dtype, np.dtype) else getattr(dtype, "numpy_dtype", None)
    known = isinstance(plain, np.dtype) and plain.kind in "biufmM"
    return pa.from_numpy_dtype(plain) if known else None


def _polars_column(name: str, column: Arrow, dtype: Any) -> Any:
    """Cells of one column, in the polars type the template has for it (None: polars' choice)."""
    pl = _package("polars")
    if dtype is None:
        return pl.Series(name, column)
    series = pl.Series(name, cast(column, _value_type(pl.Series(name, [], dtype).to_arrow().type)))
    try:
        return series.cast(dtype)
    except pl.exceptions.PolarsError:
        if not isinstance(dtype, pl.Enum):
            return series
    levels = dtype.categories.to_list()
    new = [v for v in series.unique(maintain_order=True).drop_nulls() if v not in levels]
    return series.cast(pl.Enum([*levels, *new]))


def _value_type(kind: Arrow) -> Arrow:
    return kind.value_type if pa.types.is_dictionary(kind) else kind
