"""Rows beside reconstructions: images as pictures, series as curves, the rest as cells."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from refold.data.schema import Schema
from refold.fields import Field, Image, Series, Text
from refold.fields.base import kind_of, scalar
from refold.fields.category import Classes
from refold.report.charts import LineChart, line_chart
from refold.report.evidence import Evidence, role
from refold.report.pictures import picture, signed
from refold.report.text import cell, number
from refold.table import Column
from refold.uses.inspect import differing

CELLS = 24  # cells of a row that are shown
LONG = 32  # entries above which a vector is a curve, not cells
CURVE = 400  # points of a curve
CHANNELS = 4  # channels of a series that are drawn
WORDS = {
    "numeric": "a number is off by more than one standard deviation of its column in training",
    "count": "a count is off by more than a factor of two",
    "bounded": "a number between two ends is off by more than a quarter of their distance",
    "distribution": "a share is off by more than a quarter of the whole",
}


@dataclass(frozen=True)
class CellView:
    """One cell: as given (None: missing), as it comes back, and whether the two differ.

    ``role`` is "target" for a cell that is predicted from others, "given" for one that is only
    seen, of which nothing comes ``back``.
    """

    name: str
    given: str | None
    back: str | None
    differs: bool
    role: str = ""


@dataclass(frozen=True)
class PictureView:
    """An image, its reconstruction and their difference, with the squared error in words.

    Of one that is only given, there is nothing but itself.
    """

    name: str
    given: str
    back: str | None
    difference: str
    error: str
    role: str = ""


@dataclass(frozen=True)
class RowView:
    """One row, with how unusual it is and what of it is shown.

    ``differing`` of ``judged`` cells come back different; ``total`` counts those only given too.
    """

    row: int
    score: str
    p_value: str
    is_anomaly: bool
    cells: tuple[CellView, ...]
    pictures: tuple[PictureView, ...]
    curves: tuple[LineChart, ...]
    differing: int
    judged: int
    total: int


@dataclass(frozen=True)
class _Portion:
    """Everything known about the rows to be shown."""

    rows: NDArray[np.int64]
    raw: Mapping[str, Column]
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
    part = _Portion(rows, data.raw(rows), batch.x, batch.observed, found.points, found.cells, marks)
    cells: dict[str, list[CellView]] = {}
    costs: dict[str, NDArray[np.float32]] = {}
    pictures: list[list[PictureView]] = []
    curves: list[list[LineChart]] = []
    for name, own in schema.fields.items():
        if isinstance(own, Image):
            pictures.append(_pictures(part, name, own))
        elif isinstance(own, Series):
            curves += _channels(part, name, own)
        elif isinstance(own, Text):
            cells[own.columns[0]] = _texts(part, name, own)
            costs[own.columns[0]] = _cost(part, name, own, slice(None))
        elif own.block and len(own.entries) > LONG:
            curves.append(_curves(part, name, own))
        else:
            found_cells = _block(part, name, own) if own.block else _scalars(part, name, own)
            cells |= found_cells
            costs |= {entry: _cost(part, name, own, i) for i, entry in enumerate(found_cells)}
    order = _ordered(schema.order, schema.fields, cells)
    return [
        RowView(
            data.number(row),
            number(float(data.score[row])),
            number(float(data.p_value[row])),
            bool(data.is_anomaly[row]),
            _costliest(order, cells, costs, i),
            tuple(p[i] for p in pictures),
            tuple(c[i] for c in curves),
            sum(cells[name][i].differs for name in order),
            sum(cells[name][i].role != "given" for name in order),
            len(order),
        )
        for i, row in enumerate(rows)
    ]


def differing_words(schema: Schema) -> str:
    """Say from when on a cell is marked as different.

    >>> from refold.fields import Binary, Numeric
    >>> differing_words(Schema({"a": Binary(), "b": Numeric()}, ("a", "b")))
    'a class is another, or a number is off by more than one standard deviation of its column in \
training'
    """
    found: dict[str, None] = {}
    for own in schema.fields.values():
        if isinstance(own, Image) or own.given:
            continue
        if isinstance(own, Classes):
            found["a class is another"] = None
        elif isinstance(own, Text):
            found["a text is another"] = None
        elif isinstance(own, Series):
            continue
        else:
            known = kind_of(own) if kind_of(own) in WORDS else "numeric"
            found[WORDS[known]] = None
    return ", or ".join(found)


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
    """All cells of a row, or targets and the costliest where they are many, in their order."""
    if len(order) > CELLS:
        cost = np.array([costs[name][row] for name in order])
        order = [order[i] for i in np.sort(np.argsort(-cost, kind="stable")[:CELLS])]
    return tuple(cells[name][row] for name in order)


def _cost(part: _Portion, name: str, own: Field, entry: int | slice) -> NDArray[np.float32]:
    """How much an entry deserves to be shown, by row: a target first, one only given last."""
    if own.target or name not in part.cost:
        return np.full(len(part.rows), np.inf if own.target else -1.0, dtype=np.float32)
    return part.cost[name][:, entry].reshape(len(part.rows), -1).sum(1).numpy()


def _scalars(part: _Portion, name: str, own: Field) -> dict[str, list[CellView]]:
    found = dict[str, list[CellView]]()
    back = {} if own.given else own.to_values(part.points[name])
    seen = part.observed[name]
    for j, column in enumerate(own.columns):
        known = column in part.raw
        given = scalar(part.raw[column]).to_pylist() if known else [None] * len(part.rows)
        if own.given:
            found[column] = [CellView(column, cell(a), None, False, role(own)) for a in given]
            continue
        differs = part.differs[name][:, j].copy()
        if isinstance(own, Classes) and seen is not None:
            # A class never seen in training counts as missing, but cannot come back either.
            differs |= ~seen[:, j].numpy() & np.array([v is not None for v in given])
        found[column] = [
            CellView(column, cell(a), cell(b) or "–", bool(d), role(own))
            for a, b, d in zip(given, scalar(back[column]).to_pylist(), differs, strict=True)
        ]
    return found


def _texts(part: _Portion, name: str, own: Text) -> list[CellView]:
    """Texts as given, and as they come back."""
    column, n = own.columns[0], len(part.rows)
    given = scalar(part.raw[column]).to_pylist() if column in part.raw else [None] * n
    if own.given:
        return [CellView(column, cell(a), None, False, role(own)) for a in given]
    back = scalar(own.to_values(part.points[name])[column]).to_pylist()
    return [
        CellView(column, cell(a), cell(b), a is not None and a != b, role(own))
        for a, b in zip(given, back, strict=True)
    ]


def _channels(part: _Portion, name: str, own: Series) -> list[list[LineChart]]:
    """Series as curves over their steps, a chart for each of the first channels."""
    column, n = own.columns[0], len(part.rows)
    raw = part.raw.get(column) if len(part.raw) > 1 else next(iter(part.raw.values()))
    given = np.full((n, *own.shape), np.nan) if raw is None else own.given_numbers(raw)
    ends = {"given": given}
    if not own.given:
        back = own.numbers(part.points[name], raw)
        # A series ends where the one given ends, unless nothing of that is known.
        last = np.where(~np.isnan(given).all(2), np.arange(own.steps), -1).max(1)
        inside = np.arange(own.steps) <= np.where(last < 0, own.steps, last)[:, None]
        ends["back"] = np.where(inside[:, :, None], back, np.nan)
    titles = channel_titles(own)
    return [
        [curve(titles[c], {k: v[i, :, c] for k, v in ends.items()}) for i in range(n)]
        for c in range(min(len(titles), CHANNELS))
    ]


def channel_titles(own: Series) -> list[str]:
    """Name each channel of a series, with its role."""
    count = own.shape[1]
    return [named(own) if count == 1 else f"{named(own)}[·, {c}]" for c in range(count)]


def _block(part: _Portion, name: str, own: Field) -> dict[str, list[CellView]]:
    given, back, seen = _values(part, name, own)
    return {
        entry: [
            CellView(
                entry,
                number(float(given[i, j])) if seen[i, j] else None,
                None if back is None else number(float(back[i, j])),
                back is not None and bool(part.differs[name][i, j]),
                role(own),
            )
            for i in range(len(part.rows))
        ]
        for j, entry in enumerate(own.entries)
    }


def _values(
    part: _Portion, name: str, own: Field
) -> tuple[NDArray[Any], NDArray[Any] | None, NDArray[np.bool_]]:
    """Values of a block and of its reconstruction ``[n, E]``, in the user's units."""
    n, column = len(part.rows), own.columns[0]
    given = own.to_values(part.x[name].flatten(1))[column].reshape(n, -1)
    back = None
    if not own.given:
        back = own.to_values(part.points[name])[column].reshape(n, -1)
    seen = part.observed[name]
    return given, back, np.ones(given.shape, bool) if seen is None else seen.numpy()


def _curves(part: _Portion, name: str, own: Field) -> list[LineChart]:
    given, back, seen = _values(part, name, own)
    ends = {"given": np.where(seen, given, np.nan)} | ({} if back is None else {"back": back})
    return [
        curve(named(own), {k: v[i].astype(float) for k, v in ends.items()})
        for i in range(len(given))
    ]


def curve(title: str, lines: Mapping[str, NDArray[np.float64]]) -> LineChart:
    """Lay out long vectors by the names of their lines."""
    long = max(len(v) for v in lines.values())
    step = -(-long // CURVE)
    places = list(range(0, long, step))
    drawn = [(name, places, v[::step].tolist()) for name, v in lines.items()]
    return line_chart(title, drawn, box=(44.0, 6.0, 396.0, 96.0))


def named(own: Field) -> str:
    """Return a block's name, with its role."""
    return " · ".join(v for v in (own.columns[0], role(own)) if v)


def _pictures(part: _Portion, name: str, own: Field) -> list[PictureView]:
    x, seen = part.x[name].numpy(), part.observed[name]
    masks = None if seen is None else seen.reshape(x.shape).numpy()
    images = [picture(x[i], None if masks is None else masks[i]) for i in range(len(x))]
    if own.given:
        return [PictureView(own.columns[0], image, None, "", "", role(own)) for image in images]
    back = part.points[name].reshape(x.shape).numpy()
    gap = x - back if masks is None else np.where(masks, x - back, 0.0)
    size = np.abs(gap).max(1)
    top = float(np.quantile(size, 0.999)) if size.size else 1.0
    return [
        PictureView(
            own.columns[0],
            images[i],
            picture(back[i]),
            signed(size[i], top),
            number(float(np.square(gap[i], dtype=np.float64).sum()))
            if masks is None or masks[i].any()
            else "–",
            role(own),
        )
        for i in range(len(x))
    ]
