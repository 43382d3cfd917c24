"""How targets are predicted: classes, numbers and distributions, true beside predicted."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from refold.errors import InputError
from refold.estimator import Autoencoder
from refold.fields import Field, Image, Series, Text
from refold.fields.base import kind_of, scalar
from refold.fields.category import Classes
from refold.report.charts import Axis, Tick, round_values
from refold.report.evidence import Evidence
from refold.report.figures import draw
from refold.report.figures.figure import Figure, Panel
from refold.report.figures.points import dots
from refold.report.text import cell, number, percent, shortened

LEVELS = 12  # levels of a class that have a line of their own
SMALL, LARGE, CELL = 360.0, 640.0, 62.0  # widths of a matrix, and of a cell
NARROW = 4  # lines that a small matrix has room for
DOTS = 1500  # entries of a block that are drawn
SHARES = 24  # shares that have bars
TINY = 1e-12


@dataclass(frozen=True)
class Seen:
    """A target's values ``x`` ``[n, E]`` in the model's scale, what is predicted, which are known.

    ``label`` is its column, ``entries`` those of its entries that are meant.
    """

    own: Field
    label: str
    entries: tuple[int, ...]
    x: torch.Tensor
    point: torch.Tensor
    known: NDArray[np.bool_]


def confusion(ae: Autoencoder, X: Any) -> Figure:
    """Draw which class is taken for which: rows are the true levels, columns the predicted ones.

    A matrix for each target of classes that ``X`` holds: counts, and their share of the true level.
    Beyond 12 levels the rarest are one. Raises :class:`InputError` where there is no such target.

    >>> import numpy as np, refold
    >>> x = np.random.default_rng(0).normal(size=(200, 3))
    >>> rows = {"x": x, "side": np.where(x[:, 0] > 0, "right", "left")}
    >>> ae = refold.Autoencoder(2, fields={"side": "target"}, epochs=2).fit(rows)
    >>> [p.caption for p in confusion(ae, rows).panels]
    ['side']
    """
    return _some(confusion_of(Evidence.of(ae, X)), "classes")


def confusion_of(evidence: Evidence) -> Figure:
    """Draw a matrix per target of classes; without any a figure without panels."""
    found = [(t, _counted(t)) for t in _targets(evidence) if isinstance(t.own, Classes)]
    wide = LARGE if any(len(m.levels) > NARROW for _, m in found) else SMALL
    panels = tuple(_matrix(t.label, m, wide) for t, m in found)
    note = (
        "Rows: the true level; columns: the predicted one. Each cell has its number of rows and "
        f"their share of the true level; right answers are blue, wrong ones orange. "
        f"{_whose(evidence)}"
    )
    large = wide == LARGE
    return Figure(
        "Predicted classes", panels, note, tile=40 if large else 19, most=42 if large else 23,
        columns=1 if large else 2,
    )  # fmt: skip


def parity(ae: Autoencoder, X: Any) -> Figure:
    """Draw true against predicted values of each numeric target that ``X`` holds.

    On the diagonal a prediction is exact. R² is the share of the variance that is explained, of
    values as :meth:`~refold.Autoencoder.predict` gives them; that of counts, which are drawn on a
    logarithmic scale, is on that scale too. Raises :class:`InputError` where there is no such
    target.

    >>> import numpy as np, refold
    >>> x = np.random.default_rng(0).normal(size=(200, 3))
    >>> rows = {"x": x, "price": x @ [3.0, 1.0, 0.0]}
    >>> ae = refold.Autoencoder(3, fields={"price": "target"}, epochs=5).fit(rows)
    >>> figure = parity(ae, rows)
    >>> figure.panels[0].caption, figure.panels[0].note[:3]
    ('price', 'R² ')
    """
    return _some(parity_of(Evidence.of(ae, X)), "numbers")


def parity_of(evidence: Evidence) -> Figure:
    """Draw a plot per numeric target; without any a figure without panels."""
    panels = [_plot(t, evidence.ae.seed) for t in _targets(evidence) if _numeric(t.own)]
    note = (
        "Across: the true value; up: the predicted one. On the line a prediction is exact. R² is "
        f"the share of the variance that is explained. {_whose(evidence)}"
    )
    return Figure("Predicted numbers", tuple(panels), note, tile=17, most=22, columns=3)


def shares(ae: Autoencoder, X: Any) -> Figure:
    """Draw mean true shares beside mean predicted ones, of each target that is a distribution.

    The divergence (Kullback and Leibler's, in nats) is the mean over rows, beside that of always
    predicting the mean: 0 is exact. Raises :class:`InputError` where there is no such target.

    >>> import numpy as np, refold
    >>> x = np.random.default_rng(0).normal(size=(200, 3))
    >>> rows = {"x": x, "p": np.exp(x) / np.exp(x).sum(1, keepdims=True)}
    >>> ae = refold.Autoencoder(3, fields={"p": "distribution(target=True)"}, epochs=2).fit(rows)
    >>> [p.caption for p in shares(ae, rows).panels]
    ['p']
    """
    return _some(shares_of(Evidence.of(ae, X)), "distributions")


def shares_of(evidence: Evidence) -> Figure:
    """Draw bars per target that is a distribution; without any a figure without panels."""
    panels = [_bars(t) for t in _targets(evidence) if kind_of(t.own) == "distribution"]
    keys = (("bar minus", "true, mean over the rows"), ("bar plus", "predicted"))
    note = (
        "Divergence says how far the predicted shares of a row are from the true ones, in nats: 0 "
        f"is exact. {_whose(evidence)}"
    )
    return Figure("Predicted shares", tuple(panels), note, keys, tile=19, most=32, columns=2)


def _targets(evidence: Evidence) -> Iterator[Seen]:
    """Every target of which the shown rows have values."""
    data = evidence.given()
    for name, own in evidence.ae.schema_.fields.items():
        known = data.seen(name).numpy() if own.target else np.zeros((1, 1), dtype=bool)
        if not known.any():
            continue
        x, point = data.batch.x[name].flatten(1), evidence.found.points[name]
        if own.block:
            yield Seen(own, own.columns[0], tuple(range(x.shape[1])), x, point, known)
            continue
        for j, column in enumerate(own.columns):
            if known[:, j].any():
                yield Seen(own, column, (j,), x, point, known)


def _numeric(own: Field) -> bool:
    pictured = isinstance(own, Classes | Image | Series | Text)
    return not (pictured or kind_of(own) == "distribution")


def _some(found: Figure, what: str) -> Figure:
    if not found.panels:
        raise InputError(
            f"there are no {what} to predict here: no target of this model is one that the rows "
            f"hold; fit with fields={{'column': 'target'}}, and give rows with that column"
        )
    return found


def _whose(evidence: Evidence) -> str:
    whose = evidence.whose()
    return f"Over {whose}, which the model may have been trained on."


# --- classes -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Matrix:
    """Counts ``[L, L]`` by true and predicted level; ``rest``: the last level is all others."""

    levels: tuple[str, ...]
    counts: NDArray[np.int64]
    rest: bool
    right: float
    guess: float


def _counted(t: Seen) -> _Matrix:
    """Count pairs of true and predicted levels."""
    assert isinstance(t.own, Classes)
    (j,) = t.entries
    rows = t.known[:, j]
    true, found = (t.own.index(v)[:, j].numpy()[rows] for v in (t.x, t.point))
    count = max(1, len(t.own.levels[j]))
    often = np.bincount(true[true >= 0], minlength=count)
    chosen = np.arange(count)
    if count > LEVELS:
        chosen = np.sort(np.argsort(-often, kind="stable")[: LEVELS - 1])
    rest = count > LEVELS or bool((true < 0).any())
    place = np.full(count + 1, len(chosen))  # the last is for levels never seen in training
    place[chosen] = np.arange(len(chosen))
    size = len(chosen) + rest
    pairs = place[np.where(true < 0, count, true)] * size + place[found]
    names = [shortened(cell(v) or "–", 24) for v in t.own.levels[j]] or ["–"]
    levels = [names[i] for i in chosen]
    if rest:
        levels.append(f"others ({count - len(chosen)})" if count > LEVELS else "never seen")
    return _Matrix(
        tuple(levels),
        np.bincount(pairs, minlength=size * size).reshape(size, size),
        rest,
        float((true == found).mean()),
        float(np.unique(true, return_counts=True)[1].max() / len(true)),
    )


def _matrix(label: str, m: _Matrix, wide: float) -> Panel:
    size, high = len(m.levels), 34.0
    left = 106.0
    across = min(CELL, (wide - left) / size)
    longest = max(map(len, m.levels))
    slanted = longest * draw.LETTER > across - 4
    top = 36.0 + (0.7 * draw.LETTER * min(longest, 16) if slanted else 0.0)
    marks = [draw.text(left, 11, "predicted →"), draw.text(0, top - 8, "↓ true")]
    for j, name in enumerate(m.levels):
        x, y, words = left + (j + 0.5) * across, top - 8, shortened(name, 16)
        if slanted:
            marks.append(
                f'<g transform="translate({x:g} {y:g}) rotate(-45)">'
                f"{draw.text(0, 0, words, kind='ink')}</g>"
            )
        else:
            marks.append(draw.text(x, y, words, anchor="middle", kind="ink"))
    for i, name in enumerate(m.levels):
        y, total = top + i * high, int(m.counts[i].sum())
        marks.append(draw.text(0, y + 15, draw.fitted(name, left - 8), kind="ink"))
        marks.append(draw.text(0, y + 28, f"{total:,} {'row' if total == 1 else 'rows'}"))
        for j in range(size):
            count = int(m.counts[i, j])
            share = count / total if total else 0.0
            right = i == j and not (m.rest and i == size - 1)
            x = left + j * across
            kind = "minus" if right else "plus"
            marks.append(draw.rect(x, y, across - 2, high - 2, "ground"))
            marks.append(
                f'<rect class="{kind}" x="{x:g}" y="{y:g}" width="{across - 2:g}" '
                f'height="{high - 2:g}" fill-opacity="{share * 0.55:.2f}"/>'
            )
            middle = x + across / 2 - 1
            if count:
                marks.append(draw.text(middle, y + 14, f"{count:,}", anchor="middle", kind="ink"))
                marks.append(draw.text(middle, y + 27, percent(share), anchor="middle", kind="ink"))
    note = f"{percent(m.right)} right; always the commonest: {percent(m.guess)}"
    name = f"true and predicted levels of {label}"
    return Panel("".join(marks), wide, top + size * high, shortened(label), note, name)


# --- numbers -------------------------------------------------------------------------------------


def _plot(t: Seen, seed: int) -> Panel:
    """Draw one target's values: true ones across, predicted ones up."""
    given, found = _as_predicted(t)
    rows = t.known[:, t.entries]
    true, back = given[rows], found[rows]
    centred = given - np.nanmean(np.where(rows, given, np.nan), 0)
    total = float(np.square(centred[rows]).sum())
    r2 = 1 - float(np.square(true - back).sum()) / total if total > TINY else float("nan")
    if len(true) > DOTS:
        chosen = np.random.default_rng(seed).permutation(len(true))[:DOTS]
        true, back = true[chosen], back[chosen]
    low, high = (float(f(np.concatenate([true, back]))) for f in (np.min, np.max))
    ticks = _ticks(t, low, high)
    left = max(52.0, 10 + draw.LETTER * max((len(words) for _, words in ticks), default=0))
    side, bottom = 320.0, 326.0 - left
    margin = (high - low) * 0.03 or 1.0
    x = Axis(low - margin, high + margin, left, side - 6)
    y = Axis(low - margin, high + margin, bottom, 6)
    marks = list[str]()
    for at, words in ticks:
        marks.append(draw.path(f"M{x.at(at):g} 6V{bottom:g}", "grid"))
        marks.append(draw.path(f"M{left:g} {y.at(at):g}H{side - 6:g}", "grid"))
        marks.append(draw.text(x.at(at), bottom + 15, words, anchor="middle"))
        marks.append(draw.text(left - 6, y.at(at) + 4, words, anchor="end"))
    marks.append(draw.path(f"M{x.start:g} {y.start:g}L{x.end:g} {y.end:g}", "axis"))
    xy = np.array([[x.at(a), y.at(b)] for a, b in zip(true.tolist(), back.tolist(), strict=True)])
    marks.append(dots(xy, "point s0"))
    marks.append(draw.text(side - 6, bottom + 32, "true →", anchor="end"))
    marks.append(draw.text(0, bottom + 32, "↑ predicted"))
    note = f"R² {number(r2, 3)}" + (" on a log scale" if kind_of(t.own) == "count" else "")
    label = f"true and predicted values of {t.label}"
    return Panel("".join(marks), side, bottom + 36, shortened(t.label), note, label)


def _as_predicted(t: Seen) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Values ``[n, entries]`` and predictions as the user gets them.

    Columns are in the model's scale, blocks, whose entries share one plot, in the user's units.
    """
    back = t.own.to_values(t.point)
    if t.own.block:
        given = t.own.to_values(t.x)
        ends = [np.asarray(v[t.label], np.float64).reshape(len(t.x), -1) for v in (given, back)]
        return ends[0], ends[1]
    (j,) = t.entries
    found = t.own.to_tensor(back).x
    return t.x[:, [j]].double().numpy(), found[:, [j]].double().numpy()


def _ticks(t: Seen, low: float, high: float) -> list[tuple[float, str]]:
    """Places on an axis, and what stands there in the user's units."""
    if t.own.block:
        return [(v, number(v)) for v in round_values(low, high, 5)]
    (j,) = t.entries
    ends = torch.linspace(low, high, 3)[:, None].expand(-1, len(t.own.columns))
    values = scalar(t.own.to_values(ends)[t.label])
    if pa.types.is_temporal(values.type):
        texts = [(cell(v) or "–")[:10] for v in values.to_pylist()]
        return list(zip(ends[:, j].tolist(), texts, strict=True))[::2]
    first, *_, last = map(float, values.to_pylist())
    if kind_of(t.own) == "count":
        steps = [0.0, *(s * 10.0**e for e in range(9) for s in (1, 2, 5))]
        chosen = [v for v in steps if first <= v <= last] or [first]
        chosen = chosen[:: -(-len(chosen) // 6)]
    else:
        chosen = round_values(first, last, 5)
    places = t.own.to_tensor({c: pa.chunked_array([chosen]) for c in t.own.columns}).x[:, j]
    found = [Tick(p, number(v)) for p, v in zip(places.tolist(), chosen, strict=True)]
    return [(p.at, p.label) for p in found if low - TINY <= p.at <= high + TINY]


# --- distributions -------------------------------------------------------------------------------


def _bars(t: Seen) -> Panel:
    """Draw mean shares, true above predicted."""
    rows = t.known.all(1)
    true, back = (v[torch.from_numpy(rows)].double().numpy() for v in (t.x, t.point))
    mean, found = true.mean(0), back.mean(0)
    order = np.sort(np.argsort(-np.maximum(mean, found), kind="stable")[:SHARES])
    top = float(max(mean[order].max(), found[order].max())) or 1.0
    left, right, line, marks = 110.0, 336.0, 27.0, list[str]()
    for i, e in enumerate(order):
        y = i * line
        marks.append(draw.text(0, y + 15, draw.fitted(t.own.entries[e], left - 8), kind="ink"))
        for k, (kind, share) in enumerate((("minus", mean[e]), ("plus", found[e]))):
            long = round(float(share) / top * (right - left), 1)
            marks.append(draw.rect(left, y + 2 + 11 * k, long, 9, kind))
            marks.append(draw.text(400, y + 11 + 11 * k, percent(float(share)), anchor="end"))
    words = f"divergence {number(_divergence(true, back), 3)}"
    words += f"; always the mean: {number(_divergence(true, mean[None]), 3)}"
    if len(order) < len(mean):
        words += f"; the {len(order)} largest of {len(mean)} shares"
    name = f"true and predicted shares of {t.label}"
    return Panel("".join(marks), 400, line * len(order), shortened(t.label), words, name)


def _divergence(true: NDArray[np.float64], found: NDArray[np.float64]) -> float:
    """Mean over rows of Kullback and Leibler's divergence, in nats."""
    ratio = np.log(np.maximum(true, TINY)) - np.log(np.maximum(found, TINY))
    return float((true * ratio).sum(1).mean())
