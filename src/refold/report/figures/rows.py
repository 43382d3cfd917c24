"""Rows beside their reconstructions."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from refold.errors import InputError
from refold.estimator import Autoencoder
from refold.fields import Field, Series, Text
from refold.fields.category import Classes
from refold.report.evidence import Evidence
from refold.report.figures import draw
from refold.report.figures.figure import Figure, Panel
from refold.report.rows import PictureView, RowView, row_views
from refold.types import Batch
from refold.uses.inspect import Examined

PAIRS = 12
CELLS = 16  # entries of a row that are drawn
REACH = 3.0  # standard deviations to either side
SIDE = 96.0


def pairs(ae: Autoencoder, X: Any, *, rows: Any = None) -> Figure:
    """Draw rows of ``X`` beside their reconstructions, 12 of them drawn with the model's seed.

    Images: input, output, and their absolute difference. Series and long vectors: two curves.
    Text: in words. Other fields: a line an entry, from the value given (open) to the value that
    comes back (full), in standard deviations; classes in words. Targets go from the true value to
    the predicted one; what is only given stands as it is. ``rows`` chooses rows by position.

    >>> import numpy as np, refold
    >>> X = np.random.default_rng(0).normal(size=(60, 5))
    >>> ae = refold.Autoencoder(2, recipe="pca").fit(X)
    >>> [p.caption for p in pairs(ae, X, rows=[3, 0]).panels]
    ['Row 3', 'Row 0']
    """
    evidence = Evidence.of(ae, X)
    data = evidence.given()
    if rows is None:
        chosen = np.sort(np.random.default_rng(ae.seed).permutation(data.rows)[:PAIRS])
    else:
        chosen = np.asarray(rows, dtype=np.int64).reshape(-1)
        wrong = chosen[(chosen < 0) | (chosen >= len(data.table))]
        if len(wrong):
            raise InputError(
                f"there is no row {wrong[0]}; the data has rows 0 to {len(data.table) - 1}"
            )
    return pairs_of(evidence, chosen)


def pairs_of(evidence: Evidence, rows: NDArray[np.int64]) -> Figure:
    """Draw the rows at positions of the data."""
    views = row_views(evidence, rows)
    batch, found = evidence.examined(rows)
    panels: list[Panel] = []
    for i, view in enumerate(views):
        panels += [_trio(view, p) for p in view.pictures]
        for chart in view.curves:
            marks = draw.line_chart(chart, 96)
            panels.append(Panel(marks, 400, 116, f"Row {view.row}", _note(view)))
        if view.cells:
            panels.append(_cells(evidence, view, i, batch, found))
    notes, keys = list[str](), list[tuple[str, str]]()
    if any(v.pictures for v in views):
        notes.append("Each trio: the input, its reconstruction, and how far apart they are.")
    if any(v.curves for v in views):
        keys += [("line given", "as given"), ("line back", "as it comes back")]
    if any(v.cells for v in views):
        notes.append("From the value given (open) to the one that comes back (full), in standard "
                     "deviations around the mean, or over the whole range of counts and shares; no "
                     "circle where it was missing.")  # fmt: skip
    return Figure(
        "Inputs beside reconstructions", tuple(panels), " ".join(notes), tuple(keys),
        tile=19 if not any(v.pictures for v in views) else 15, most=26, columns=3,
    )  # fmt: skip


def _note(view: RowView) -> str:
    return f"score {view.score}, p {view.p_value}"


def _trio(view: RowView, p: PictureView) -> Panel:
    if p.back is None:
        marks = draw.rect(0, 0, SIDE, SIDE, "ground")
        marks += draw.image(p.given, 0, 0, SIDE, SIDE, f"given, row {view.row}")
        return Panel(marks, 3 * SIDE + 12, SIDE, f"Row {view.row}", "only given")
    marks = "".join(
        draw.rect(x, 0, SIDE, SIDE, "ground") + draw.image(uri, x, 0, SIDE, SIDE, name)
        for x, uri, name in (
            (0, p.given, f"input, row {view.row}"),
            (SIDE + 6, p.back, "reconstruction"),
            (2 * (SIDE + 6), p.difference, "absolute difference"),
        )
    )
    note = f"{p.role}, squared error {p.error}".removeprefix(", ")
    return Panel(marks, 3 * SIDE + 12, SIDE, f"Row {view.row}", note)


def _reach(own: Field) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Middle of each entry's line, and half of what it spans, in the field's own scale."""
    count = len(own.entries)
    if hasattr(own, "std") or own.bounds is None:
        return np.zeros(count), np.full(count, REACH)
    low, high = (np.array(b) for b in own.bounds)
    half = (high - low) / 2
    return (high + low) / 2, np.where(half > 0, half, 1.0)


def _cells(evidence: Evidence, view: RowView, i: int, batch: Batch, found: Examined) -> Panel:
    """Draw a row's entries: numbers as a line from given to returned, classes in words."""
    at: dict[str, tuple[float, float] | None] = {}
    for name, own in evidence.ae.schema_.fields.items():
        if isinstance(own, Series):
            continue
        if isinstance(own, Classes | Text) or own.given:
            at |= dict.fromkeys(own.columns if isinstance(own, Text) else own.entries)
            continue
        seen, x = batch.observed[name], batch.x[name].flatten(1)
        centre, reach = _reach(own)
        for e, entry in enumerate(own.entries):
            there = seen is None or bool(seen[i, e])
            given = float(x[i, e]) if there else float("nan")
            back = float(found.points[name][i, e])
            at[entry] = (given - centre[e]) / reach[e], (back - centre[e]) / reach[e]
    wide, left, right = 320.0, 118.0, 312.0
    middle, marks = (left + right) / 2, list[str]()
    shown = view.cells[:CELLS]
    for k, cell in enumerate(shown):
        y = 20 * k + 10
        name = f"{cell.name} · {cell.role}" if cell.role else cell.name
        marks.append(draw.text(0, y + 4, draw.fitted(name, left - 10)))
        ends = at.get(cell.name)
        if ends is None:
            given = cell.given if cell.given is not None else "missing"
            same = cell.back is None or given == cell.back
            words = given if same else f"{given} → {cell.back}"
            marks.append(
                draw.text(
                    middle, y + 4, draw.fitted(words, right - left), anchor="middle", kind="ink"
                )
            )
            continue
        marks.append(draw.path(f"M{left:g} {y}H{right:g}M{middle:g} {y - 6}V{y + 6}", "grid"))
        a, b = (middle + max(-1.0, min(1.0, v)) * (right - left) / 2 for v in ends)
        kind = "back" if cell.differs else "given"
        if ends[0] == ends[0]:
            marks.append(draw.path(f"M{a:.1f} {y}H{b:.1f}", f"line {kind}"))
            marks.append(f'<circle class="axis" cx="{a:.1f}" cy="{y}" r="4"/>')
        marks.append(f'<circle class="dot {kind}" cx="{b:.1f}" cy="{y}" r="3"/>')
    return Panel("".join(marks), wide, 20 * len(shown), f"Row {view.row}", _note(view))
