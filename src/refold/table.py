"""Rows as named columns, and the way back to the container they came in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute
from numpy.typing import NDArray

Block: TypeAlias = NDArray[Any]
"""A column whose cells are arrays: ``[n, d]`` vectors, ``[n, H, W]`` or ``[n, H, W, C]`` images."""

Arrow: TypeAlias = Any
"""A ``pa.Array``, ``pa.ChunkedArray`` or ``pa.DataType``: pyarrow ships no types to check."""

compute: Any = pyarrow.compute
"""pyarrow's functions are made when it is imported, where no type checker sees them."""

Column: TypeAlias = "Arrow | Block"
"""One value per row: ``pa.ChunkedArray`` for scalars and for lists of numbers of different lengths,
NumPy for blocks."""


def is_list(kind: Arrow) -> bool:
    """Whether an Arrow type is one of lists."""
    types = pa.types
    return types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)


def holds_lists(column: Any) -> bool:
    """Whether the cells of a column are lists, of numbers and of different lengths."""
    return not isinstance(column, np.ndarray) and is_list(column.type)


class Container(Protocol):
    """The user's own kind of container: builds another of its kind from columns."""

    @property
    def kind(self) -> str:
        """Name of the container, as :func:`refold.data.containers.container` takes it."""
        ...

    def rebuild(self, columns: Mapping[str, Column]) -> Any:
        """Put columns into a container of this kind."""
        ...


@dataclass(frozen=True)
class Table:
    """Named columns of one length, the container they came in, and remarks on the reading."""

    columns: Mapping[str, Column]
    container: Container
    notes: tuple[str, ...] = ()
    aside: tuple[str, ...] = ()
    """Columns stored beside the data as labels: set aside unless the user asks for them."""
    levels: Mapping[str, tuple[Any, ...]] = field(default_factory=dict[str, tuple[Any, ...]])
    """Levels of the columns whose type gives them an order, from the lowest to the highest."""
    texts: tuple[str, ...] = ()
    """Columns that are running text, whatever their values look like."""
    places: NDArray[np.int64] | None = None
    """Where each row stands among those that it was drawn from; None where all are here."""

    def __len__(self) -> int:
        return len(next(iter(self.columns.values()))) if self.columns else 0

    def renamed(self, name: str) -> Table:
        """Return the table of one column with another name for it."""
        (column,) = self.columns.values()
        return replace(self, columns={name: column})

    def part(self, at: slice) -> Table:
        """Rows that lie side by side; nothing is copied."""
        begin, end, _ = at.indices(len(self))
        columns = {
            k: c[begin:end] if isinstance(c, np.ndarray) else c.slice(begin, end - begin)
            for k, c in self.columns.items()
        }
        return replace(self, columns=columns)

    def take(self, rows: NDArray[np.int64]) -> dict[str, Column]:
        """Columns of the given rows, in the given order."""
        return {
            k: c.take(pa.array(rows)) if isinstance(c, pa.ChunkedArray) else c[rows]
            for k, c in self.columns.items()
        }
