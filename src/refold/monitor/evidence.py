"""How surprising figures of a step are, and scores that are to be expected where all is well."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from refold.errors import InputError
from refold.monitor.detector import Figures

KEPT = 100_000  # scores kept for comparison; more are thinned evenly
LOW, HIGH = 0.2, 0.7  # quantiles of peaks that anomalies, rarer than the rest, do not reach


@dataclass(frozen=True)
class Law:
    r"""Surprise of one kind of figure: minus the log of how often a peak is as high.

    .. math:: S(x) = -\log P(M \ge x) = \log\!\left(1 + (x / x_0)^{1 / \beta}\right)

    :math:`M` is the highest figure of a stretch of time, of which the log is taken to be logistic:
    :math:`x_0` is its median, :math:`\beta` the spread, both from lower quantiles. Figures that
    come as short spikes and figures that stay high for long are thus compared by how often they
    make a peak, and two figures larger than any known still differ.

    >>> law = Law.of(np.exp(np.linspace(-1.0, 1.0, 101)))
    >>> law.surprise(np.array([0.01, 1.0, 100.0])).round(2).tolist()
    [0.0, 0.67, 10.24]
    """

    middle: float
    spread: float

    @classmethod
    def of(cls, peaks: NDArray[np.float64]) -> Law:
        """Learn from the peaks of stretches."""
        low, high = np.log(np.maximum(np.quantile(peaks, [LOW, HIGH]), 1e-12))
        spread = max(float(high - low) / (_logit(HIGH) - _logit(LOW)), 0.1)
        return cls(float(high) - spread * _logit(HIGH), spread)

    def surprise(self, figures: NDArray[np.float64]) -> NDArray[np.float64]:
        """Surprise in nats; NaN stays NaN."""
        seen = ~np.isnan(figures)
        height = np.log(np.maximum(figures, 1e-12, where=seen, out=np.ones_like(figures)))
        found = np.logaddexp(0.0, (height - self.middle) / self.spread)
        return np.where(seen, found, np.nan)


@dataclass(frozen=True)
class Reference:
    r"""Scores of steps that no model had learnt, and how high their peaks are.

    A step's surprise is the sum of those of its shape and of its code, as in Fisher's method, and
    its score minus that. The highest surprise of a stretch as long as a window follows about a
    Gumbel law, :math:`P(M \le m) = \exp(-e^{-(m - \mu) / \beta})`, fitted to its lower quantiles,
    which anomalies in the series do not reach.

    Source: Fisher, Statistical Methods for Research Workers, 1932; Gumbel, Statistics of Extremes,
    1958.
    """

    shape: Law
    code: Law
    peak: float
    """Location of the law of peaks."""
    spread: float
    stretch: int
    scores: NDArray[np.float64]
    """Ascending, lower is more unusual."""

    @classmethod
    def of(cls, blocks: list[Figures], stretch: int) -> Reference:
        """Compare with blocks of time, each of steps that follow one another."""
        shape = Law.of(known_peaks([b.shape for b in blocks], stretch))
        code = Law.of(known_peaks([b.distance for b in blocks], stretch))
        bare = cls(shape, code, 0.0, 1.0, stretch, np.zeros(0))
        found = [bare.score(b) for b in blocks]
        low, high = np.quantile(known_peaks([-s for s in found], stretch), [LOW, HIGH])
        width = float(np.log(-np.log(LOW)) - np.log(-np.log(HIGH)))
        spread = max(float(high - low) / width, 0.5)
        peak = float(high) + spread * float(np.log(-np.log(HIGH)))
        return cls(shape, code, peak, spread, stretch, thinned(np.concatenate(found)))

    def score(self, figures: Figures) -> NDArray[np.float64]:
        """Score of every step; higher is more normal, 0 the most, NaN where nothing is known."""
        return -(self.shape.surprise(figures.shape) + self.code.surprise(figures.distance))

    def shares(self, figures: Figures) -> NDArray[np.float64]:
        """Part of each channel in the surprise ``[T, C]``; parts add up to minus the score.

        That of the shape is divided as the squared errors are, that of the code as the squared
        deviations from the calendar.
        """
        shape = self.shape.surprise(figures.shape)[:, None]
        code = self.code.surprise(figures.distance)[:, None]
        return shape * _parts(np.nan_to_num(figures.errors)) + code * _parts(figures.deviation)

    def p_values(self, scores: NDArray[np.float64]) -> NDArray[np.float64]:
        r"""Share of known steps, with the step itself, that are at least as unusual.

        .. math:: p = \frac{1 + \#\{i : s_i \le s\}}{1 + m}

        Of a step drawn at random from more of the same series, :math:`P(p \le \alpha) \le \alpha`
        holds about, because the known steps were held out. Neighbouring steps are not independent:
        small p-values come in runs, so that p-values of one hour say little together. How often
        an alarm is raised for nothing is what :meth:`limit` is for. Where the series has
        anomalies, the known steps have them too, and p-values are larger than they would be
        without.

        Source: Vovk, Gammerman & Shafer, Algorithmic Learning in a Random World, 2005.
        """
        rank = np.searchsorted(self.scores, scores, side="right")
        return np.where(np.isnan(scores), np.nan, (1 + rank) / (1 + len(self.scores)))

    def limit(self, rate: float) -> float:
        r"""Score that peaks of so many stretches a step reach, where all is well.

        .. math:: -\left(\mu - \beta \log(L \cdot \text{rate})\right)

        for stretches of :math:`L` steps.
        """
        return -(self.peak - self.spread * float(np.log(rate * self.stretch)))

    def quantile(self, alpha: float) -> float:
        """Highest score whose p-value is at most ``alpha``; minus infinity where none can be."""
        possible = np.arange(1, len(self.scores) + 2) / (1 + len(self.scores))
        least = int(np.searchsorted(possible, alpha, side="right")) - 1
        if least < 0:
            return -np.inf
        # p <= alpha means at most `least` known scores at or below.
        return float(np.nextafter(self.scores[least], -np.inf)) if least < len(self.scores) else 0.0


def thinned(figures: NDArray[np.float64]) -> NDArray[np.float64]:
    """Sort figures that are no NaN, at most 100,000 of them, evenly."""
    known = np.sort(figures[~np.isnan(figures)])
    if len(known) <= KEPT:
        return known
    return known[np.linspace(0, len(known) - 1, KEPT).round().astype(np.int64)]


def peaks(figures: NDArray[np.float64], stretch: int) -> NDArray[np.float64]:
    """Highest figure of every whole stretch of which half is known.

    >>> peaks(np.array([1.0, 3.0, np.nan, 2.0, np.nan, np.nan]), 2)
    array([3., 2.])
    """
    whole = figures[: len(figures) // stretch * stretch].reshape(-1, stretch)
    enough = (~np.isnan(whole)).mean(1) >= 0.5
    return np.nanmax(whole[enough], axis=1) if enough.any() else np.zeros(0)


def known_peaks(parts: list[NDArray[np.float64]], stretch: int) -> NDArray[np.float64]:
    """Peaks of all parts; an error where there is none."""
    found = np.concatenate([peaks(part, stretch) for part in parts])
    if not len(found):
        raise InputError(
            f"no stretch of {stretch} steps has values in half of them, so there is nothing to "
            f"compare with; give a series with fewer gaps"
        )
    return found


def _logit(share: float) -> float:
    return float(np.log(share / (1 - share)))


def _parts(figures: NDArray[np.float64]) -> NDArray[np.float64]:
    total = figures.sum(1, keepdims=True)
    even = 1.0 / figures.shape[1]
    return np.where(total > 0, figures / np.where(total > 0, total, 1.0), even)
