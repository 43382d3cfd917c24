"""How the units of a code are used: activity, histograms, correlations, codes as pictures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from refold.estimator import Autoencoder
from refold.fields import Image
from refold.report.charts import Axis, bars, histogram
from refold.report.evidence import Evidence, unit
from refold.report.explorer import UNITS, liveliest
from refold.report.figures import draw
from refold.report.figures.figure import Figure, Panel
from refold.report.pictures import picture, signed_strip
from refold.report.text import number, percent
from refold.types import Batch
from refold.uses import inspect
from refold.uses.inspect import Activity
from refold.wording import counted

ROWS = 100  # rows of an activity map
CODES = 12  # rows whose codes are drawn
LOW = 0.2  # share of the rows below which all are drawn as parts of the largest
EVEN = 0.5  # share of zeros from which a histogram leaves them out
FULL = 0.995  # quantile of magnitudes that has the full colour
WIDE = 640.0


def histograms(ae: Autoencoder, X: Any = None) -> Figure:
    """Draw a histogram of each unit over the rows of ``X``, or over those saved with the model.

    Units that are silent in every row are left out; zeros of mostly silent ones too.
    """
    return histograms_of(Evidence.of(ae, X))


def histograms_of(evidence: Evidence) -> Figure:
    """Draw histograms of the liveliest units."""
    codes, panels = evidence.codes, list[Panel]()
    activity = Activity.of(codes)
    for d in liveliest(codes, UNITS):
        if activity.share[d] == 0:
            continue
        values, share = codes[:, d], float(activity.share[d])
        chart = histogram(values[values != 0] if share < EVEN else values)
        note = f"sd {number(float(activity.std[d]), 3)}"
        note += f", in {percent(share)}" if share < 1 else ""
        marks, name = draw.histogram(chart), f"latent{d}"
        high = chart.height + 16
        panels.append(Panel(marks, chart.width, high, name, note, f"histogram of {name}"))
    size, word = codes.shape[1], unit(evidence.ae)
    few = size > UNITS
    note = f"The {UNITS} of {size:,} {word}s that vary most. " if few else ""
    note = f"{note}Over {evidence.whose()}."
    if (activity.share < 1).any():
        note += (
            f" The percentage is of rows in which a {word} is not zero; where it is less than "
            "half, the zeros are left out of the histogram."
        )
    return Figure(f"Histograms of the {word}s", tuple(panels), note, most=20)


def profiles_of(evidence: Evidence) -> Figure:
    """Draw the deviation of every unit, sorted, and the share of rows in which it is active."""
    activity, word = Activity.of(evidence.codes), unit(evidence.ae)
    panels = [_profile(activity.std, f"Standard deviation of each {word},")]
    if (activity.share < 0.999).any():
        top = _top(activity.share)
        panels.append(_profile(activity.share, "Share of rows in which it is not zero,", top))
    return Figure(f"Use of the {word}s", tuple(panels), tile=19, columns=2)


def _top(share: NDArray[np.float64]) -> float | None:
    """Return 1 as the height of shares of rows, or None where all would be too low to see."""
    return None if float(share.max()) < LOW else 1.0


def _profile(values: NDArray[np.float64], title: str, top: float | None = None) -> Panel:
    ordered = np.sort(values)[::-1]
    highest = top or float(ordered[0]) or 1.0
    x = Axis(0, len(ordered), 0, 400)
    edges = [x.at(i) for i in range(len(ordered) + 1)]
    marks = (
        draw.path("M0 80H400", "axis")
        + draw.path(bars(edges, ordered / highest * 80, 80), "bars")
        + draw.text(0, 95, number(float(ordered[0])))
        + draw.text(400, 95, number(float(ordered[-1])), anchor="end")
    )
    return Panel(marks, 400, 100, title, "largest first")


def remarks(codes: NDArray[np.float32], word: str = "unit") -> list[str]:
    """Say what stands out about the use of the units, and call them by a ``word``."""
    activity, size, found = Activity.of(codes), codes.shape[1], list[str]()
    if len(codes) < 2:
        return ["a single row: nothing varies"]
    dead, still = int((activity.share == 0).sum()), int((activity.std <= 1e-6).sum())
    if dead:
        found.append(f"{dead:,} of {size:,} {word}s are zero in every row and not drawn")
    if still > dead:
        found.append(f"{still - dead:,} of {size:,} {word}s are constant")
    if not still:
        found.append(f"every {word} varies" if size > 1 else f"the one {word} varies")
    mean = float(activity.share.sum())
    if mean < 0.999 * size:
        found.append(f"{number(mean)} of {size:,} {word}s are active in a row on average")
    return found


def activity(ae: Autoencoder, X: Any = None) -> Figure:
    """Draw the codes of up to 100 rows as a map, a line a row and a column a unit.

    Orange is above zero, blue below, and the strip beneath is the share of rows in which a unit is
    not zero. Without ``X``, rows saved with the model.
    """
    return activity_of(Evidence.of(ae, X))


def activity_of(evidence: Evidence) -> Figure:
    """Draw the map of codes."""
    codes = evidence.codes[:ROWS]
    n, size = codes.shape
    top = float(np.quantile(np.abs(codes), FULL)) or float(np.abs(codes).max()) or 1.0
    left, high = 44.0, float(min(240, max(60, 4 * n)))
    share, word = Activity.of(evidence.codes).share, unit(evidence.ae)
    highest = _top(share) or float(share.max()) or 1.0
    marks = [
        draw.rect(left, 0, WIDE - left, high, "ground"),
        draw.image(signed_strip(codes, top), left, 0, WIDE - left, high, "codes of rows"),
        draw.text(left - 6, 10, f"row {evidence.numbers[0]}", anchor="end"),
        draw.text(left - 6, high, f"{evidence.numbers[n - 1]}", anchor="end") if n > 1 else "",
        draw.text(left - 6, high + 29, "use", anchor="end"),
        draw.path(f"M{left:g} {high + 32:g}H{WIDE:g}", "axis"),
    ]
    x = Axis(0, size, left, WIDE)
    edges = [x.at(i) for i in range(size + 1)]
    marks.append(draw.path(bars(edges, share / highest * 24, high + 32), "bars"))
    marks += _unit_ticks(x, size, high + 47)
    note = (
        f"{counted(n, 'row')} of {size:,} {word}s: orange above zero, blue below, full colour at "
        f"{number(top, 3)}. Below, the share of {evidence.whose()} in which a {word} is not zero"
        f"{'' if highest == 1 else f', at most {percent(highest)}'}."
    )
    panel = Panel("".join(marks), WIDE, high + 52, label="map of codes")
    return Figure("Activity of the code", (panel,), note, tile=19, most=44, columns=1)


def _unit_ticks(x: Axis, size: int, y: float) -> list[str]:
    """Name the units below a map, as many as have room."""
    every = max(1, -(-size // 10))
    return [
        draw.text(x.at(d + 0.5), y, f"latent{d}" if d == 0 else str(d), anchor="middle")
        for d in range(0, size, every)
    ]


@dataclass(frozen=True)
class Pairs:
    """Correlations ``r`` ``[U, U]`` of the ``units`` ``[U]`` that vary, and the strongest pair."""

    units: NDArray[np.int64]
    r: NDArray[np.float64]
    strongest: tuple[int, int, float] | None


def correlated(codes: NDArray[np.float32], most: int = UNITS) -> Pairs:
    """Correlate the liveliest units that vary.

    >>> found = correlated(np.array([[0, 1, 5], [1, -1, 5], [2, -3, 5]], dtype=np.float32))
    >>> found.units.tolist(), found.strongest
    ([0, 1], (0, 1, -1.0))
    """
    units = liveliest(codes, most)
    units = units[Activity.of(codes).std[units] > 1e-6]
    r = np.atleast_2d(np.corrcoef(codes[:, units].astype(np.float64).T)) if len(units) else None
    if r is None or len(units) < 2:
        return Pairs(units, np.ones((len(units), len(units))), None)
    off = np.triu(np.abs(r), 1)
    i, j = (int(v) for v in np.unravel_index(int(off.argmax()), off.shape))
    return Pairs(units, r, (int(units[i]), int(units[j]), round(float(r[i, j]), 6)))


def correlation(ae: Autoencoder, X: Any = None) -> Figure:
    """Draw the correlations between units, over the rows of ``X`` or those saved with the model."""
    return correlation_of(Evidence.of(ae, X))


def correlation_of(evidence: Evidence) -> Figure:
    """Draw the correlations of units."""
    found, word = correlated(evidence.codes), unit(evidence.ae)
    side, left = 300.0, 52.0
    count = len(found.units)
    x = Axis(0, max(count, 1), left, left + side)
    every = max(1, -(-count // 10))
    marks = [
        draw.rect(left, 0, side, side, "ground"),
        draw.image(signed_strip(found.r, 1.0), left, 0, side, side, "correlations")
        if count
        else "",
    ]
    for i in range(0, count, every):
        name = f"latent{found.units[i]}" if i == 0 else str(found.units[i])
        at = x.at(i + 0.5) - left
        marks.append(draw.text(left - 6, at + 4, name, anchor="end"))
        marks.append(draw.text(left + at, side + 15, name, anchor="middle"))
    note = (
        f"Orange: {word}s rise together, blue: one falls as the other rises. Over "
        f"{evidence.whose()}."
    )
    if found.strongest is not None:
        i, j, r = found.strongest
        note += f" Strongest: latent{i} and latent{j}, {number(r, 3)}."
    panel = Panel("".join(marks), left + side, side + 20, label=f"correlations between {word}s")
    return Figure(f"Correlation of the {word}s", (panel,), note, tile=19, most=24, columns=1)


def codes(ae: Autoencoder, X: Any) -> Figure:
    """Draw rows as input, code and output side by side, the code as a small picture.

    Inputs are what the encoder sees, outputs what is rebuilt, or where nothing is, the targets.
    A code is a strip of its units, or a square of them where they are many; fields that are no
    images are strips of their numbers in standard deviations. The first 12 rows at hand are shown.
    """
    return codes_of(Evidence.of(ae, X))


def codes_of(evidence: Evidence) -> Figure:
    """Draw codes beside inputs and outputs."""
    data, schema = evidence.given(), evidence.ae.schema_
    shown = data.rows[:CODES]
    batch, found = evidence.examined(shown)
    model = evidence.ae.model_
    outputs = model.rebuilt or model.outputs
    pictured = [
        next((k for k in names if isinstance(schema.fields[k], Image)), None)
        for names in (model.inputs, outputs)
    ]
    if pictured[0] is None:
        shown_in = [signed_strip(_square(v), 2.5) for v in _views(evidence, batch)]
    else:
        shown_in = [picture(x) for x in batch.x[pictured[0]].numpy()]
    if pictured[1] is None:
        back = inspect.expectations(model, batch, schema, outputs)[1].numpy()
        shown_out = [signed_strip(_square(v), 2.5) for v in back]
    else:
        back = found.points[pictured[1]].reshape(-1, *schema.fields[pictured[1]].shape)
        shown_out = [picture(x) for x in back.numpy()]
    top = float(np.quantile(np.abs(evidence.codes), FULL)) or 1.0
    panels: list[Panel] = []
    for i, row in enumerate(shown):
        code = signed_strip(_square(evidence.codes[i]), top)
        names = ("input", "code", "output")
        boxes = zip((shown_in[i], code, shown_out[i]), names, (0, 84, 168), strict=True)
        marks = "".join(
            draw.rect(x, 0, 76, 76, "ground") + draw.image(uri, x, 0, 76, 76, name)
            for uri, name, x in boxes
        )
        panels.append(Panel(marks, 244, 76, f"Row {data.number(row)}"))
    kinds = {
        (False, False): "",
        (True, False): " Inputs: their numbers, orange above the mean, blue below.",
        (False, True): " Outputs: their numbers, orange above the mean, blue below.",
        (True, True): " Inputs and outputs: their numbers, orange above the mean, blue below.",
    }
    kind = kinds[pictured[0] is None, pictured[1] is None]
    out = "output" if model.rebuilt else "predicted targets"
    note = f"Input, code and {out}; orange is above zero, blue below.{kind}"
    return Figure("Codes of rows", tuple(panels), note, tile=15, most=18, columns=3)


def _views(evidence: Evidence, batch: Batch) -> NDArray[np.float32]:
    """Return everything the encoder sees as numbers ``[n, V]``, NaN where missing."""
    schema, model, parts = evidence.ae.schema_, evidence.ae.model_, list[torch.Tensor]()
    for k in model.inputs:
        head = model.likelihoods[k] if k in model.likelihoods else schema.fields[k].head()
        view, seen = head.linear_view(batch.x[k]).float().cpu(), batch.observed[k]
        parts.append(view if seen is None else view.masked_fill(~head.spread(seen), torch.nan))
    return torch.cat(parts, 1).numpy()


def _square(values: NDArray[Any]) -> NDArray[np.float64]:
    """Lay numbers out as a square, line by line, with nothing in what is left over."""
    side = int(np.ceil(np.sqrt(len(values))))
    lines = -(-len(values) // side)
    filled = np.zeros(side * lines)
    filled[: len(values)] = np.nan_to_num(values)
    return filled.reshape(lines, side)
