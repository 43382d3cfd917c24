"""How few entries of a sparse code are active, in how many rows each is, and what that keeps."""

from __future__ import annotations

import numpy as np

from refold.errors import InputError
from refold.estimator import Autoencoder
from refold.report.charts import Axis, bars, line_chart
from refold.report.evidence import unit
from refold.report.figures import draw
from refold.report.figures.figure import Figure, Panel
from refold.report.figures.training import (
    BOTTOM,
    BOX,
    SIZE,
    best_row,
    judged_rows,
    phase_starts,
)
from refold.report.text import number, percent

DENSITY = "density_"  # share of the entries, by decimal logarithm of the share of their rows
RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
CURVES = (
    ("l0", "Active {}s of a row,", number),
    ("explained", "Variance explained,", percent),
    ("dead_share", "{}s never active,", percent),
)


def density(ae: Autoencoder) -> Figure:
    """Draw in what share of the rows each entry is active, and figures of sparsity over the steps.

    Entries of the code, the latents of a dictionary, are counted by the decimal logarithm of the
    share of held-out rows in which they were not zero, for the weights that were kept. Raises
    :class:`InputError` for a code whose entries are all active.
    """
    if not hasattr(ae, "history_"):
        raise InputError("the model is not fitted, so there is nothing to draw; call fit first")
    found = density_of(ae)
    if not found.panels:
        raise InputError(
            "nothing is known of how often entries of the code are active; fit with a sparse "
            "latent, such as recipe='dictionary'"
        )
    return found


def density_of(ae: Autoencoder) -> Figure:
    """Draw it from the history; without a sparse latent a figure without panels."""
    history, title = ae.history_, "Sparsity of the code"
    if not any("l0" in row for row in history):
        return Figure(title, ())
    best, word = history[best_row(history)], unit(ae)
    shares = {k: v for k, v in best.items() if k.startswith(DENSITY)}
    panels = [_bars(shares, best["dead_share"], word)]
    for name, caption, said in CURVES:
        found = [(r["step"], r[name]) for r in history if name in r]
        if len(found) > 1:
            curve = ("held", [s for s, _ in found], [v for _, v in found])
            chart = line_chart(
                name, [curve], box=BOX, mark=best["step"], phases=phase_starts(ae), floor=0.0
            )
            marks = draw.line_chart(chart, BOTTOM)
            caption, note = caption.format(word), f"{said(best[name])} in the weights kept"
            panels.append(Panel(marks, *SIZE, caption[:1].upper() + caption[1:], note))
    whose = judged_rows(ae).partition(",")[0].capitalize()
    note = (
        f"{whose}: the share of {word}s by the share of rows in which they are active, in the "
        f"weights that were kept; then means over the rows, by step."
    )
    return Figure(title, tuple(panels), note, (), tile=19, columns=2)


def _bars(shares: dict[str, float], silent: float, word: str) -> Panel:
    """Draw the share of units in each band of density as a bar."""
    left, high, right, low = BOX
    starts = [float(name.removeprefix(DENSITY)) for name in shares]
    x = Axis(starts[0], 0.0, left, right)
    y = Axis(0.0, max(max(shares.values()), 1e-9), low, high)
    marks = [draw.path(f"M{left:g} {t.at:g}H{right:g}", "grid") for t in y.ticks(4)]
    marks += [draw.text(left - 6, t.at + 4, t.label, anchor="end") for t in y.ticks(4)]
    edges = [x.at(v) for v in (*starts, 0.0)]
    heights = np.array([low - y.at(v) for v in shares.values()])
    marks.append(draw.path(bars(edges, heights, low), "bars"))
    for power in range(int(starts[0]), 1):
        label = "1" if power == 0 else "10" + str(power).translate(RAISED)
        marks.append(draw.text(x.at(power), low + 16, label, anchor="middle"))
    caption = f"{word.capitalize()}s by share of rows,"
    note = f"{percent(silent)} never active" if silent else "all were active"
    return Panel("".join(marks), *SIZE, caption, note, f"density of the {word}s")
