"""The history of training: a chart per term, and the numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from refold.report.charts import LineChart, line_chart
from refold.report.text import number
from refold.training.fit import Row

TRAIN, HELD = "train_", "valid_"


@dataclass(frozen=True)
class Losses:
    """Charts by term, the total first; the table of all numbers; the evaluation that was kept."""

    charts: tuple[LineChart, ...]
    names: tuple[str, ...]
    table: tuple[tuple[str, ...], ...]
    best: int


def losses(history: Sequence[Row]) -> Losses:
    """Lay out a history; one row (no steps) has a table and no charts."""
    names = tuple(sorted(dict.fromkeys(k for row in history for k in row), key=_place))
    rows = tuple(tuple(number(row.get(k)) for k in names) for row in history)
    held = [row.get(f"{HELD}loss", float("inf")) for row in history]
    best = held.index(min(held)) if held else 0
    terms = dict.fromkeys(
        k.removeprefix(p) for k in names for p in (TRAIN, HELD) if k.startswith(p)
    )
    parts = [t for t in terms if t != "loss"]
    shown = ["loss", *parts] if len(parts) > 1 else ["loss"]
    charts = tuple(_chart(term, history, best) for term in shown) if len(history) > 1 else ()
    return Losses(charts, names, rows, best)


def _place(name: str) -> int:
    """Order of columns: where, training, held out, time."""
    return 1 if name.startswith(TRAIN) else 2 if name.startswith(HELD) else 3 * (name == "seconds")


def _chart(term: str, history: Sequence[Row], best: int) -> LineChart:
    curves: list[tuple[str, list[float], list[float]]] = []
    for name, prefix in (("train", TRAIN), ("held", HELD)):
        found = [(r["epoch"], r[prefix + term]) for r in history if prefix + term in r]
        if found:
            curves.append((name, [e for e, _ in found], [v for _, v in found]))
    return line_chart(term, curves, log=True, mark=history[best]["epoch"])
