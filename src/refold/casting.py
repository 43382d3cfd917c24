"""Values from one type to another: Arrow, NumPy, and back to the type a user gave.

Integers are rounded and kept in range, booleans split at one half, times rounded.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from refold.errors import InputError
from refold.table import Arrow, Block, compute, is_list


def as_arrow(values: Any) -> Arrow:
    """Return one column as a ``pa.ChunkedArray``; cells that are arrays become fixed-size lists.

    >>> as_arrow(np.array([[1, 2], [3, 4]])).to_pylist()
    [[1, 2], [3, 4]]
    """
    if isinstance(values, pa.ChunkedArray):
        return values
    if isinstance(values, np.ndarray) and values.ndim > 1:
        array = pa.array(values.reshape(-1))
        for size in reversed(values.shape[1:]):
            array = pa.FixedSizeListArray.from_arrays(array, size)
        return pa.chunked_array([array])
    array = values if isinstance(values, pa.Array) else pa.array(values, from_pandas=True)
    return pa.chunked_array([array])


def as_numpy(values: Any) -> Block:
    """Return one column as an array; missing numbers are NaN, missing text is None.

    Lists become an array of arrays, see :func:`list_cells`.
    """
    if isinstance(values, np.ndarray):
        return values
    column = as_arrow(values)
    if is_list(column.type):
        return list_cells(column)
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if column.null_count and pa.types.is_boolean(column.type):
        column = column.cast(pa.float64())
    return column.to_numpy()


def list_parts(column: Arrow) -> tuple[NDArray[Any], NDArray[np.int64], bool]:
    """Numbers of lists, one under the other, with the lengths of the lists, -1 where missing.

    The numbers are ``[total, C]``: lists of lists (the last value says whether they are) have ``C``
    to each, other lists one. A missing number is NaN.

    >>> list_parts(as_arrow([[1.0, None], None, [3.0]]))[:2]
    (array([[ 1.],
           [nan],
           [ 3.]]), array([ 2, -1,  1]))
    """
    chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
    array: Arrow = pa.concat_arrays(chunks) if chunks else pa.array([], column.type)
    lengths = compute.fill_null(compute.list_value_length(array).cast(pa.int64()), -1).to_numpy()
    inner = array.flatten()
    nested, channels = is_list(inner.type), 1
    if nested:
        inside = compute.unique(compute.list_value_length(inner)).to_pylist()
        channels = inside[0] if len(inside) == 1 and inside[0] is not None else 1
        inner = inner.flatten()
    if inner.null_count or pa.types.is_null(inner.type):
        inner = inner.cast(pa.float64())
    return inner.to_numpy(zero_copy_only=False).reshape(-1, channels), lengths, nested


def list_cells(column: Arrow) -> Block:
    """Lists as an array of arrays, ``[T]`` or where they are lists of lists ``[T, C]``.

    A missing list is None.

    >>> list_cells(as_arrow([[1, 2], None])).tolist()
    [array([1, 2]), None]
    """
    numbers, lengths, nested = list_parts(column)
    cells = np.empty(len(lengths), dtype=object)
    ends = np.cumsum(np.maximum(lengths, 0))
    for i, (end, length) in enumerate(zip(ends, lengths, strict=True)):
        if length >= 0:
            part = numbers[end - length : end]
            cells[i] = part.copy() if nested else part[:, 0].copy()
    return cells


def as_dtype(values: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Cast to an array type: integers are rounded and kept in range, booleans split at one half.

    Neither holds a missing value: an array with NaN stays as it is.

    >>> as_dtype(np.array([-3.2, 1.6, 999.0]), np.dtype(np.uint8)).tolist()
    [0, 2, 255]
    """
    if values.dtype == dtype or values.dtype.kind not in "biuf" or dtype.kind not in "biuf":
        return values
    if dtype.kind == "f":
        return values.astype(dtype)
    if values.dtype.kind == "f" and np.isnan(values).any():
        return values
    if dtype.kind == "b":
        return values > 0.5
    edge = np.iinfo(dtype)
    if values.dtype.kind in "iu":
        own = np.iinfo(values.dtype)
        return np.clip(values, max(edge.min, own.min), min(edge.max, own.max)).astype(dtype)
    # float64 cannot hold the last 64-bit integer; stay a little inside so that the cast is exact.
    top = float(edge.max) if edge.bits < 64 else float(np.nextafter(float(edge.max), 0.0))
    return np.clip(np.rint(values.astype(np.float64)), float(edge.min), top).astype(dtype)


def cast(values: Arrow, kind: Arrow) -> Arrow:
    """Cast a ``pa.ChunkedArray`` as :func:`as_dtype` does, nulls kept; unchanged if it cannot be.

    >>> cast(as_arrow([1.6, None]), pa.int8()).to_pylist()
    [2, None]
    >>> cast(as_arrow([1.6, None]), pa.date32()).to_pylist()
    [datetime.date(1970, 1, 3), None]
    """
    if values.type == kind:
        return values
    if pa.types.is_dictionary(values.type):
        return cast(values.cast(values.type.value_type), kind)
    number = pa.types.is_integer(values.type) or pa.types.is_floating(values.type)
    try:
        if number and pa.types.is_integer(kind):
            absent = values.is_null(nan_is_null=True)
            whole = compute.if_else(absent, pa.scalar(0, values.type), values).to_numpy()
            whole = as_dtype(whole, np.dtype(kind.to_pandas_dtype()))
            return pa.chunked_array([pa.array(whole, kind, mask=absent.to_numpy())])
        if pa.types.is_floating(values.type) and pa.types.is_boolean(kind):
            return compute.greater(values, 0.5)
        if pa.types.is_floating(values.type) and pa.types.is_temporal(kind):
            # Arrow takes a date or a time from whole numbers of its own width only.
            whole = cast(values, pa.int32() if kind.bit_width == 32 else pa.int64())
            return whole.cast(kind, safe=False)
        return values.cast(kind, safe=False)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        return values


def flatten(columns: Mapping[str, Any], keep: Collection[str] = ()) -> dict[str, Any]:
    """Expand each 2-D block into columns ``name0``, ``name1``, …, but for the names in ``keep``.

    Raises :class:`InputError` when two columns would get one name.

    >>> list(flatten({"x": np.zeros((5, 2)), "y": np.zeros(5)}))
    ['x0', 'x1', 'y']
    """
    flat: dict[str, Any] = {}
    for name, values in columns.items():
        wide = isinstance(values, np.ndarray) and values.ndim == 2 and name not in keep
        parts = (
            {f"{name}{i}": values[:, i] for i in range(values.shape[1])} if wide else {name: values}
        )
        if clash := flat.keys() & parts.keys():
            raise InputError(
                f"block '{name}' expands to a column '{min(clash)}', which exists; rename one"
            )
        flat |= parts
    return flat
