"""What is missing in the rows at hand, and what the model puts there."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from refold.fields import Field, Image, Series
from refold.fields.base import scalar
from refold.report.charts import LineChart
from refold.report.evidence import Evidence, role
from refold.report.pictures import picture
from refold.report.rows import CELLS, CHANNELS, LONG, channel_titles, curve, named
from refold.report.text import cell, number
from refold.table import Column
from refold.uses import complete

SHOWN = 6  # rows that are shown filled


@final
class Columns:
    """Columns as they are, for rows that go nowhere else."""

    kind = "columns"

    def rebuild(self, columns: Mapping[str, Column]) -> dict[str, Column]:
        """Return the columns themselves."""
        return dict(columns)


@dataclass(frozen=True)
class GapView:
    """How much of a column is missing."""

    name: str
    share: float
    role: str


@dataclass(frozen=True)
class Gaps:
    """Every column learnt, and the positions of the rows with a gap that the model can fill."""

    columns: tuple[GapView, ...]
    rows: NDArray[np.int64]


def gaps_of(evidence: Evidence) -> Gaps:
    """Count what is missing in all rows of the data; targets it does not hold are not missing."""
    data, schema = evidence.given(), evidence.ae.schema_
    found: dict[str, GapView] = {}
    lacking = np.zeros(len(data.table), dtype=bool)
    for name, own in schema.fields.items():
        seen = data.everything.observed[name]
        gaps = None if seen is None else ~seen.numpy()
        if isinstance(own, Series) and own.columns[0] in data.table.columns:
            gaps = own.gaps(data.table.columns[own.columns[0]])  # the end of a series is no gap
        for j, column in enumerate(own.columns):
            if own.target and column not in data.table.columns:
                continue
            part = None if gaps is None else gaps if own.block else gaps[:, j : j + 1]
            share = 0.0 if part is None else float(part.mean())
            found[column] = GapView(column, share, role(own))
            if part is not None and column in data.table.columns and not own.given:
                lacking |= part.any(1)
    return Gaps(tuple(found[c] for c in schema.order if c in found), np.flatnonzero(lacking))


@dataclass(frozen=True)
class FilledCell:
    """A cell: its value (None: a gap that stays), and whether the model put it there."""

    name: str
    value: str | None
    filled: bool
    role: str = ""


@dataclass(frozen=True)
class FilledPicture:
    """An image with its gaps, and filled."""

    name: str
    given: str
    full: str


@dataclass(frozen=True)
class FilledRow:
    """A row with its gaps filled; ``filled`` of its ``total`` cells were gaps."""

    row: int
    cells: tuple[FilledCell, ...]
    pictures: tuple[FilledPicture, ...]
    curves: tuple[LineChart, ...]
    filled: int
    total: int


def filled_rows(evidence: Evidence) -> list[FilledRow]:
    """Fill a few rows with gaps, drawn with the model's seed; none where none can be filled."""
    data, ae = evidence.given(), evidence.ae
    lacking = gaps_of(evidence).rows
    if len(lacking) == 0:
        return []
    rows = np.sort(np.random.default_rng(ae.seed).permutation(lacking)[:SHOWN])
    given = data.raw(rows)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the page says itself which gaps stay
        full = ae.impute(replace(data.table, columns=_typed(evidence, given), container=Columns()))
    cells: dict[str, list[FilledCell]] = {}
    pictures: list[list[FilledPicture]] = []
    curves: list[list[LineChart]] = []
    for own in ae.schema_.fields.values():
        if not own.block:
            for c in own.columns:
                if c in given:
                    cells[c] = _scalars(c, own, given, full)
        elif isinstance(own, Series):
            if own.columns[0] in given:
                curves += _channels(own, given[own.columns[0]], full[own.columns[0]])
        elif own.columns[0] in given:
            ends = [np.asarray(v[own.columns[0]]) for v in (given, full)]
            if isinstance(own, Image):
                pictures.append(_pictures(own, *ends))
            elif len(own.entries) > LONG:
                curves.append(_curves(own, *ends))
            else:
                cells |= _block(own, *ends)
    blocks = {f.columns[0]: f.entries for f in ae.schema_.fields.values() if f.block}
    order = [e for c in ae.schema_.order for e in blocks.get(c, (c,)) if e in cells]
    return [
        FilledRow(
            data.number(row),
            _gaps_first([cells[name][i] for name in order]),
            tuple(p[i] for p in pictures),
            tuple(c[i] for c in curves),
            sum(cells[name][i].filled for name in order),
            len(order),
        )
        for i, row in enumerate(rows)
    ]


def _typed(evidence: Evidence, given: Mapping[str, Column]) -> dict[str, Column]:
    """Give a column without a single value, which has no type, that of training."""
    typed = dict(given)
    for name, own in evidence.ae.schema_.fields.items():
        empty = [c for c in own.columns if c in given and not own.block]
        empty = [c for c in empty if pa.types.is_null(scalar(given[c]).type)]
        if empty and not own.given:
            known = own.to_values(evidence.found.points[name][:1])
            typed |= {c: scalar(given[c]).cast(scalar(known[c]).type) for c in empty}
    return typed


def _gaps_first(cells: list[FilledCell]) -> tuple[FilledCell, ...]:
    """All cells, or where they are many those that were gaps and then others, in their order."""
    if len(cells) <= CELLS:
        return tuple(cells)
    told = [not (c.filled or c.value is None) for c in cells]
    chosen = np.sort(np.argsort(told, kind="stable")[:CELLS])
    return tuple(cells[i] for i in chosen)


def _scalars(
    column: str, own: Field, given: Mapping[str, Column], full: Mapping[str, Column]
) -> list[FilledCell]:
    gaps = complete.missing(given[column])
    values = [cell(v) for v in scalar(full[column]).to_pylist()]
    return [
        FilledCell(column, v, bool(gap) and v is not None, role(own))
        for v, gap in zip(values, gaps, strict=True)
    ]


def _block(own: Field, given: NDArray[Any], full: NDArray[Any]) -> dict[str, list[FilledCell]]:
    gaps, values = (v.reshape(len(v), -1) for v in (complete.missing(given), full))
    return {
        entry: [
            FilledCell(
                entry,
                None if np.isnan(values[i, j]) else number(float(values[i, j])),
                bool(gaps[i, j]) and not np.isnan(values[i, j]),
                role(own),
            )
            for i in range(len(values))
        ]
        for j, entry in enumerate(own.entries)
    }


def _channels(own: Series, given: Column, full: Column) -> list[list[LineChart]]:
    """Series with their gaps and what fills them, a chart for each of the first channels."""
    before, after = own.given_numbers(given), own.given_numbers(full)
    filled = np.where(own.gaps(given).reshape(before.shape), after, np.nan)
    titles = channel_titles(own)
    return [
        [
            curve(titles[c], {"given": before[i, :, c], "back": filled[i, :, c]})
            for i in range(len(before))
        ]
        for c in range(min(before.shape[2], CHANNELS))
    ]


def _curves(own: Field, given: NDArray[Any], full: NDArray[Any]) -> list[LineChart]:
    gaps = complete.missing(given).reshape(len(given), -1)
    return [
        curve(named(own), {"given": np.where(gap, np.nan, f), "back": np.where(gap, f, np.nan)})
        for gap, f in zip(gaps, full.reshape(len(full), -1).astype(float), strict=True)
    ]


def _pictures(own: Image, given: NDArray[Any], full: NDArray[Any]) -> list[FilledPicture]:
    ends = [own.to_tensor({own.columns[0]: v}) for v in (given, full)]
    seen = ends[0].observed
    masks = None if seen is None else seen.reshape(ends[0].x.shape).numpy()
    before, after = (e.x.numpy() for e in ends)
    return [
        FilledPicture(
            own.columns[0], picture(x, None if masks is None else masks[i]), picture(after[i])
        )
        for i, x in enumerate(before)
    ]
