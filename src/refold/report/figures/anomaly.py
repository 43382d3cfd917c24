"""How unusual rows are: their scores beside those of rows held out, and their p-values."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from refold.detection.calibration import targets_of
from refold.errors import InputError
from refold.estimator import Autoencoder
from refold.report.charts import LOG_SPAN, Axis, Tick, bars
from refold.report.evidence import ALPHA, Evidence
from refold.report.figures import draw
from refold.report.figures.figure import Figure, Panel
from refold.report.text import number, percent
from refold.wording import counted

BINS = 48
WIDE, HIGH, LEFT = 520.0, 170.0, 40.0  # of the histogram, and where its bars begin
SIDE = 250.0  # of a plot of p-values
FAINT = 0.02  # of the held-out rows, that may be so usual that the chart need not reach them
REACH = 1.2  # of the way from the least score to the limit, that is drawn beyond the limit
TICKS = 400  # rows beyond the limit that have a tick each
FEWEST = 10  # rows of which the p-values are worth a plot
SHARE = 0.95  # of the band
NEW = "New rows"
EXACT = 10_000  # rows up to which the band is counted out

Scores = NDArray[np.float64]


def scores(ae: Autoencoder, X: Any = None, *, alpha: float = ALPHA) -> Figure:
    """Draw how unusual held-out rows are, and those of ``X`` beside them, up to which it is usual.

    Bars are shares of the held-out rows, the line those of ``X``; the limit is the score from which
    a row is an anomaly at ``alpha``. Scores are drawn with their sign turned, so that unusual rows
    lie to the right, on a logarithmic scale where they are all above zero and spread far. Raises
    :class:`InputError` where no scores were kept to compare with.

    >>> import numpy as np, refold
    >>> X = np.random.default_rng(0).normal(size=(300, 4))
    >>> ae = refold.Autoencoder(2, epochs=2).fit(X)
    >>> X[0] = 30
    >>> scores(ae, X, alpha=0.05).panels[0].label
    'scores of 30 held-out rows and of 300 rows given'
    """
    if not 0 < alpha < 1:
        raise InputError(f"alpha is {alpha}; it must lie between 0 and 1")
    _refuse_uncalibrated(ae)
    return scores_of(_of(ae, X), alpha)


def p_values(ae: Autoencoder, X: Any) -> Figure:
    r"""Draw the share of the rows of ``X`` with a p-value up to alpha, against alpha.

    Of rows like those of training the curve lies along the diagonal. The band holds 95 % of what
    chance gives at each alpha with ``m`` held-out rows and ``n`` new ones, which is beta-binomial:

    .. math:: n \hat F(\alpha) \sim \mathrm{BetaBin}(n, k, m + 1 - k), \qquad
              k = \lfloor \alpha (m + 1) \rfloor

    Rows of the fit are left out where they are judged apart, by their rank among themselves.

    Raises :class:`InputError` where no scores were kept to compare with, or below ten new rows.

    >>> import numpy as np, refold
    >>> X = np.random.default_rng(0).normal(size=(300, 4))
    >>> ae = refold.Autoencoder(2, epochs=2).fit(X[:200])
    >>> [p.caption for p in p_values(ae, X[200:]).panels]
    ['All levels', 'Small levels']
    """
    _refuse_uncalibrated(ae)
    found = p_values_of(Evidence.of(ae, X))
    if not found.panels:
        raise InputError(f"too few new rows to draw their p-values; give {FEWEST} or more")
    return found


@dataclass(frozen=True)
class Compared:
    """Rows of one kind, ``given`` ``[n]``, beside those they are compared with, ``others`` ``[m]``.

    Both are scores with their sign turned; from ``limit`` on a row is an anomaly. ``p_value`` is
    that of the rows given, ``whose`` names the others.
    """

    caption: str
    whose: str
    others: Scores
    given: Scores
    p_value: Scores
    limit: float


def compared(evidence: Evidence, alpha: float) -> list[Compared]:
    """Part the rows by what they are compared with: new ones, and those that were in the fit."""
    kept, data = evidence.ae.calibration_, evidence.data
    score = np.zeros(0) if data is None else data.score
    p_value = np.zeros(0) if data is None else data.p_value
    learnt = np.zeros(0, dtype=np.bool_) if data is None else data.learnt
    new = replace(kept, scores=kept.bare) if _bare(evidence) else kept
    found = list[Compared]()
    if np.isfinite(new.scores).any() and not (len(score) and learnt.all()):
        whose = counted(len(new.scores), "held-out row" if kept.held_out else "training row")
        mine = -score[~learnt], p_value[~learnt]
        known = -new.scores[np.isfinite(new.scores)]
        found.append(Compared(NEW, whose, known, *mine, -new.threshold(alpha)))
    if learnt.any():
        whose, mine = f"{len(kept.learnt):,} rows of the fit", (-score[learnt], p_value[learnt])
        # The rank of a row among them counts the row itself.
        limit = -replace(kept, scores=kept.learnt[1:]).threshold(alpha)
        found.append(Compared("Rows of the fit", whose, -kept.learnt, *mine, limit))
    return found


def _bare(evidence: Evidence) -> bool:
    """Whether the rows come without targets, and held-out rows are known without theirs."""
    kept, data = evidence.ae.calibration_, evidence.data
    if data is None or not len(kept.bare):
        return False
    seen = [data.everything.observed[k] for k in targets_of(evidence.ae.model_)]
    return not any(known is None or bool(known.any()) for known in seen)


# ---------------------------------------------------------------- scores


def scores_of(evidence: Evidence, alpha: float = ALPHA) -> Figure:
    """Draw a histogram for each kind of row; without scores to compare with, none."""
    found, bare = compared(evidence, alpha), not evidence.ae.detector_.parts
    axes = [spread(g.others, g.given, g.limit) for g in found]
    panels = tuple(
        _histogram(g, *axis, percent(alpha), named=len(found) > 1)
        for g, axis in zip(found, axes, strict=True)
    )
    log = any(log for _, log in axes)
    note = (
        f"Across: {'the score with its sign turned' if log else 'minus the score'}"
        f"{', in nats' if bare else ''}{', on a logarithmic scale' if log else ''}, the most usual "
        f"rows left; up: the share of the rows."
    )
    several = len(found) > 1
    keys = [("bar bars", "rows compared with" if several else "".join(g.whose for g in found))]
    if any(len(g.given) for g in found):
        count = sum(len(g.given) for g in found)
        keys.append(("line back", "rows given" if several else f"{counted(count, 'row')} given"))
    if any((g.given >= g.limit).any() for g in found):
        keys.append(("tick", "one of these that is an anomaly"))
    return Figure("How unusual rows are", panels, note, tuple(keys), tile=26, most=40, columns=1)


def spread(held: Scores, given: Scores, limit: float) -> tuple[Axis, bool]:
    """Axis of scores, and whether it is logarithmic; what lies far from the rest is cut off."""
    every = np.concatenate([held, given[np.isfinite(given)]])
    ends = float(every.min()), float(every.max())
    log = ends[0] > 0 and ends[1] / ends[0] > LOG_SPAN
    there, back = (np.log, np.exp) if log else (np.asarray, np.asarray)
    edge = max(limit if np.isfinite(limit) else ends[0], float(np.quantile(held, 0.99)))
    first, last = (float(there(v)) for v in (np.quantile(held, FAINT), edge))
    low = max(ends[0], float(back(first - (last - first) / 2)))
    high = min(ends[1], float(back(last + REACH * (last - first))))
    if high <= low:
        low, high = low - (abs(low) or 1.0) / 2, high + (abs(high) or 1.0) / 2
        log = False
    return Axis(low, max(high, edge), LEFT, WIDE - 8, log), log


def _histogram(one: Compared, axis: Axis, log: bool, level: str, *, named: bool) -> Panel:
    """Draw bars of the others, a line of the rows given, and the limit."""
    held, given, limit = one.others, one.given, one.limit
    ends = np.geomspace(axis.low, axis.high, BINS + 1) if log else np.linspace(
        axis.low, axis.high, BINS + 1
    )  # fmt: skip
    parts = [np.histogram(np.clip(v, axis.low, axis.high), ends)[0] for v in (held, given)]
    share = [p / max(1, len(v)) for p, v in zip(parts, (held, given), strict=True)]
    top = float(max(s.max() for s in share))
    y, marks = Axis(0.0, top, HIGH, 14.0), list[str]()
    for tick in y.ticks(3):
        value = top * (HIGH - tick.at) / (HIGH - 14.0)
        marks.append(draw.path(f"M{LEFT:g} {tick.at:g}H{WIDE - 8:g}", "grid"))
        marks.append(draw.text(LEFT - 6, tick.at + 4, percent(round(value, 4)), anchor="end"))
    at = [axis.at(float(e)) for e in ends]
    marks.append(draw.path(bars(at, share[0] / top * (HIGH - 14.0), HIGH), "bars"))
    if len(given):
        tops = [y.at(float(s)) for s in share[1]]
        steps = "".join(f"H{a:g}V{h:g}H{b:g}" for a, b, h in zip(at, at[1:], tops, strict=False))
        marks.append(draw.path(f"M{at[0]:g} {HIGH:g}{steps}V{HIGH:g}", "line back"))
    marks.append(draw.path(f"M{LEFT:g} {HIGH:g}H{WIDE - 8:g}", "axis"))
    if np.isfinite(limit):
        x = axis.at(limit)
        marks.append(draw.path(f"M{x:g} 2V{HIGH + 8:g}", "limit"))
        marks.append(_told(x, f"right of this line: anomalies at {level}"))
        found = np.sort(given[given >= limit])[::-1][:TICKS]
        places = dict.fromkeys(axis.at(min(float(v), axis.high)) for v in found)
        ticks = "".join(f"M{x:g} {HIGH + 2:g}v7" for x in places)
        marks += [draw.path(ticks, "tick")] if ticks else []
    else:
        words = f"no limit at {level}: there are too few rows to compare with"
        marks.append(draw.text(WIDE - 8, 11, words, anchor="end", kind="ink"))
    marks += [draw.text(t.at, HIGH + 24, t.label, anchor="middle") for t in _inside(axis)]
    label = f"scores of {one.whose}" + (f" and of {len(given):,} rows given" if len(given) else "")
    caption = one.caption if named else ""
    return Panel("".join(marks), WIDE, HIGH + 30, caption, _noted(one, axis, named), label)


def _noted(one: Compared, axis: Axis, named: bool) -> str:
    """Say what is compared, where there are several charts, and what lies beyond this one."""
    every = np.concatenate([one.others, one.given])
    beyond = int(((every > axis.high) | (every < axis.low)).sum())
    words = [f"{len(one.given):,} beside {one.whose}"] if named else []
    if beyond:
        low, high = (number(float(v), 3) for v in (every.min(), every.max()))
        words.append(f"{beyond:,} beyond the chart, in its outer bars (all: {low} to {high})")
    return "; ".join(words)


def _inside(axis: Axis) -> list[Tick]:
    """Ticks whose labels do not reach beyond the chart."""
    return [t for t in axis.ticks(6) if t.at <= WIDE - 8]


def _told(x: float, words: str) -> str:
    """Write words beside a line, on the side that has room."""
    if x + 6 + len(words) * draw.LETTER <= WIDE:
        return draw.text(x + 6, 11, words, kind="ink")
    return draw.text(x - 6, 11, words, anchor="end", kind="ink")


# ---------------------------------------------------------------- p-values


def p_values_of(evidence: Evidence) -> Figure:
    """Draw two plots, of all levels and of small ones; without enough rows none."""
    title = "P-values"
    found = [g for g in compared(evidence, ALPHA) if g.caption == NEW and len(g.given) >= FEWEST]
    if not found:
        return Figure(title, ())
    (new,) = found
    m, n = len(new.others), len(new.given)
    ranks = levels(m)
    alpha = ranks / (m + 1)
    share = np.searchsorted(np.sort(new.p_value), alpha * (1 + 1e-9), side="right") / n
    low, high = band(ranks, m, n)
    least = 1 / (m + 1)
    panels = [_plot("All levels", alpha, share, low, high, (0.0, 1.0), log=False)]
    if m >= LOG_SPAN:
        panels.append(_plot("Small levels", alpha, share, low, high, (least, 1.0), log=True))
    note = (
        f"Across: a level alpha; up: the share of the {n:,} new rows with a p-value up to it, "
        f"which at that level would be anomalies. If these rows were like those of training, the "
        f"curve would lie on the diagonal; at each level it would lie within the band in 95% of "
        f"cases, as only {m:,} rows are there to compare with."
    )
    keys = (("line back", "the rows given"), ("bar band", "what chance alone gives"),
            ("kept", "as many as expected"))  # fmt: skip
    return Figure(title, tuple(panels), note, keys, tile=15, most=21, columns=2)


def levels(m: int) -> NDArray[np.int64]:
    """Ranks among ``m`` held-out rows at which the curve is drawn, denser where they are small."""
    spaced = np.concatenate([np.geomspace(1, m + 1, 60), np.linspace(1, m + 1, 40)])
    return np.unique(np.rint(spaced).astype(np.int64))


def band(ranks: NDArray[np.int64], m: int, n: int) -> tuple[Scores, Scores]:
    """Shares of ``n`` rows between which 95 % lie at each of the ranks, by chance alone.

    Beyond 10,000 rows the law of counts is taken to be the beta law of its mean and variance.

    >>> low, high = band(np.array([10, 101]), 100, 500)
    >>> low.tolist(), high.tolist()
    ([0.044, 1.0], [0.17, 1.0])
    """
    ends = (1 - SHARE) / 2, (1 + SHARE) / 2
    found = np.ones((2, len(ranks)))
    for i, k in enumerate(ranks.tolist()):
        if k > m:
            continue
        if n <= EXACT:
            below = stats.betabinom.pmf(np.arange(n + 1), n, k, m + 1 - k).cumsum()
            found[:, i] = np.searchsorted(below, ends) / n
        else:
            total = (m + 2) * n / (m + 1 + n) - 1
            mean = k / (m + 1)
            found[:, i] = stats.beta.ppf(ends, mean * total, (1 - mean) * total)
    return found[0], found[1]


def _plot(
    caption: str, alpha: Scores, share: Scores, low: Scores, high: Scores,
    ends: tuple[float, float], *, log: bool,
) -> Panel:  # fmt: skip
    x = Axis(*ends, 40.0, SIDE - 6, log)
    y = Axis(*ends, SIDE - 40, 6.0, log)
    start = [] if log else [0.0]

    def points(values: Scores) -> list[str]:
        every = zip([*start, *alpha], [*start, *values], strict=True)
        return [f"{x.at(float(a)):g} {y.at(max(float(v), ends[0])):g}" for a, v in every]

    marks = [draw.rect(40, 6, SIDE - 46, SIDE - 46, "ground")]
    around = [*points(high), *points(low)[::-1]]
    marks.append(draw.path("M" + "L".join(around) + "Z", "band"))
    for t in x.ticks(4):
        marks.append(draw.text(t.at, SIDE - 24, t.label, anchor="middle"))
    for t in y.ticks(4):
        marks.append(draw.path(f"M40 {t.at:g}H{SIDE - 6:g}", "grid"))
        marks.append(draw.text(34, t.at + 4, t.label, anchor="end"))
    marks.append(draw.path(f"M40 {SIDE - 40:g}L{SIDE - 6:g} 6", "kept"))
    marks.append(draw.path("M" + "L".join(points(share)), "line back"))
    marks.append(draw.text(SIDE - 6, SIDE - 8, "alpha", anchor="end"))
    note = "both axes logarithmic" if log else ""
    return Panel("".join(marks), SIDE, SIDE - 4, caption, note, f"{caption.lower()}: p-values")


def _of(ae: Autoencoder, X: Any) -> Evidence:
    return Evidence.saved(ae) if X is None else Evidence.of(ae, X)


def _refuse_uncalibrated(ae: Autoencoder) -> None:
    known = getattr(ae, "calibration_", None)
    if known is not None and not len(known.scores):
        raise InputError(
            "the model has no scores of held-out rows to compare with; call recalibrate with rows "
            "that are clean"
        )
