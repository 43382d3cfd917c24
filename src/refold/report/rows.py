"""Rows beside reconstructions: images as pictures, long vectors as curves, the rest as cells."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from refold.fields import Field, Image
from refold.fields.base import scalar
from refold.fields.category import Classes
from refold.report.charts import LineChart, line_chart
from refold.report.evidence import Data, Evidence
from refold.report.pictures import picture, signed
from refold.report.text import cell, number
from refold.uses.inspect import differing

CELLS = 24  # cells of a row that are shown
LONG = 32  # entries above which a vector is a curve, not cells
CURVE = 400  # points of a curve


@dataclass(frozen=True)
class CellView:
    """One cell: as given (None: missing), as it comes back, and whether the two differ."""

    name: str
    given: str | None
    back: str
    differs: bool


@dataclass(frozen=True)
class PictureView:
    """An image, its reconstruction and their difference, with the squared error in words."""

    name: str
    given: str
    back: str
    difference: str
    error: str


@dataclass(frozen=True)
class RowView:
    """One row, with how unusual it is and what of it is shown."""

    row: int
    score: str
    p_value: str
    is_anomaly: bool
    cause: str
    cells: tuple[CellView, ...]
    pictures: tuple[PictureView, ...]
    curves: tuple[LineChart, ...]
    differing: int
    total: int


@dataclass(frozen=True)
class _Portion:
    """Everything known about the rows to be shown."""

    data: Data
    rows: NDArray[np.int64]
    x: Mapping[str, torch.Tensor]
    observed: Mapping[str, torch.Tensor | None]
    points: Mapping[str, torch.Tensor]
    cost: Mapping[str, torch.Tensor]
    differs: Mapping[str, NDArray[np.bool_]]


def row_views(evidence: Evidence, rows: NDArray[np.int64]) -> list[RowView]:
    """Show the rows at the given positions of the data."""
    assert evidence.data is not None
    data, schema = evidence.data, evidence.ae.schema_
    batch, found = evidence.examined(rows)
    marks = differing(schema, batch, found.points)
    part = _Portion(data, rows, batch.x, batch.observed, found.points, found.cells, marks)
    cells: dict[str, list[CellView]] = {}
    costs: dict[str, NDArray[np.float32]] = {}
    pictures: list[list[PictureView]] = []
    curves: list[list[LineChart]] = []
    for name, own in schema.fields.items():
        if isinstance(own, Image):
            pictures.append(_pictures(part, name, own))
        elif own.block and len(own.entries) > LONG:
            curves.append(_curves(part, name, own))
        else:
            found_cells = _block(part, name, own) if own.block else _scalars(part, name, own)
            cells |= found_cells
            cost = part.cost[name].numpy()
            costs |= {entry: cost[:, i] for i, entry in enumerate(found_cells)}
    order = _ordered(schema.order, schema.fields, cells)
    return [
        RowView(
            int(row),
            number(float(data.score[row])),
            number(float(data.p_value[row])),
            bool(data.is_anomaly[row]),
            str(data.cause[row]),
            _costliest(order, cells, costs, i),
            tuple(p[i] for p in pictures),
            tuple(c[i] for c in curves),
            sum(cells[name][i].differs for name in order),
            len(order),
        )
        for i, row in enumerate(rows)
    ]


def _ordered(
    columns: tuple[str, ...], fields: Mapping[str, Field], cells: Mapping[str, Any]
) -> list[str]:
    blocks = {f.columns[0]: f.entries for f in fields.values() if f.block}
    names = [e for c in columns for e in blocks.get(c, (c,))]
    return [n for n in names if n in cells]


def _costliest(
    order: list[str],
    cells: Mapping[str, list[CellView]],
    costs: Mapping[str, NDArray[np.float32]],
    row: int,
) -> tuple[CellView, ...]:
    """All cells of a row, or the costliest where they are many, in the columns' order."""
    if len(order) > CELLS:
        cost = np.array([costs[name][row] for name in order])
        order = [order[i] for i in np.sort(np.argsort(-cost, kind="stable")[:CELLS])]
    return tuple(cells[name][row] for name in order)


def _scalars(part: _Portion, name: str, own: Field) -> dict[str, list[CellView]]:
    raw, back = part.data.raw(part.rows), own.to_values(part.points[name])
    seen, found = part.observed[name], dict[str, list[CellView]]()
    for j, column in enumerate(own.columns):
        given = scalar(raw[column]).to_pylist() if column in raw else [None] * len(part.rows)
        differs = part.differs[name][:, j].copy()
        if isinstance(own, Classes) and seen is not None:
            # A class never seen in training counts as missing, but cannot come back either.
            differs |= ~seen[:, j].numpy() & np.array([v is not None for v in given])
        found[column] = [
            CellView(column, cell(a), cell(b) or "–", bool(d))
            for a, b, d in zip(given, scalar(back[column]).to_pylist(), differs, strict=True)
        ]
    return found


def _block(part: _Portion, name: str, own: Field) -> dict[str, list[CellView]]:
    given, back, seen = _values(part, name, own)
    return {
        entry: [
            CellView(
                entry,
                number(float(given[i, j])) if seen[i, j] else None,
                number(float(back[i, j])),
                bool(part.differs[name][i, j]),
            )
            for i in range(len(part.rows))
        ]
        for j, entry in enumerate(own.entries)
    }


def _values(
    part: _Portion, name: str, own: Field
) -> tuple[NDArray[Any], NDArray[Any], NDArray[np.bool_]]:
    """Values of a block and of its reconstruction ``[n, E]``, in the user's units."""
    n, column = len(part.rows), own.columns[0]
    given = own.to_values(part.x[name].flatten(1))[column].reshape(n, -1)
    back = own.to_values(part.points[name])[column].reshape(n, -1)
    seen = part.observed[name]
    return given, back, np.ones(given.shape, bool) if seen is None else seen.numpy()


def _curves(part: _Portion, name: str, own: Field) -> list[LineChart]:
    given, back, seen = _values(part, name, own)
    given = np.where(seen, given, np.nan)
    step = -(-given.shape[1] // CURVE)
    places = list(range(0, given.shape[1], step))
    box = (44.0, 6.0, 396.0, 96.0)
    return [
        line_chart(
            own.columns[0],
            [("given", places, a[::step].tolist()), ("back", places, b[::step].tolist())],
            box=box,
        )
        for a, b in zip(given.astype(float), back.astype(float), strict=True)
    ]


def _pictures(part: _Portion, name: str, own: Field) -> list[PictureView]:
    x = part.x[name].numpy()
    back = part.points[name].reshape(x.shape).numpy()
    seen = part.observed[name]
    masks = None if seen is None else seen.reshape(x.shape).numpy()
    gap = x - back if masks is None else np.where(masks, x - back, 0.0)
    size = np.abs(gap).max(1)
    top = float(np.quantile(size, 0.999)) if size.size else 1.0
    return [
        PictureView(
            own.columns[0],
            picture(x[i], None if masks is None else masks[i]),
            picture(back[i]),
            signed(size[i], top),
            number(float(np.square(gap[i], dtype=np.float64).sum())),
        )
        for i in range(len(x))
    ]
