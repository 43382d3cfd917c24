"""What a series does at this time of its day, of its week or of its period."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from refold.monitor.timeline import SECOND, Grid, spoken
from refold.table import compute

DAY, WEEK = 86_400 * SECOND, 604_800 * SECOND
REPEATS = 4  # periods that must be there for one to be learnt
GAIN = 0.9  # error that a longer period may leave of a shorter one's, to be worth its numbers
LONGEST = 512  # steps of a period that is looked for, and of a window that is chosen
STRONG = 0.3  # autocorrelation from which a period is one
WITHOUT = 64  # steps of a window where nothing suggests another


@dataclass(frozen=True)
class Profile:
    r"""Median of each channel at every phase of a period, and what is usual about it.

    .. math:: m_{\phi c} = \operatorname{median}\{v_{tc} : \phi(t) = \phi\}, \qquad
              \phi(t) = \lfloor (t \bmod P) / \Delta \rfloor

    ``medians`` are ``[P/Δ, C]``, ``scale`` ``[C]`` the deviation from them, robustly: 1.4826 times
    the median size, so that what is rare counts for little.
    """

    period: int
    """Nanoseconds, or steps where they are counted; 0 for a level alone."""
    step: int
    medians: NDArray[np.float64]
    scale: NDArray[np.float64]
    zone: str | None = None
    """Time zone by whose clock days and weeks go; None: that of the times themselves."""

    @classmethod
    def of(
        cls,
        times: NDArray[np.int64],
        values: NDArray[np.float64],
        period: int,
        step: int,
        zone: str | None = None,
    ) -> Profile:
        """Learn the medians; a phase that was never seen has the median of all."""
        bare = cls(period, step, np.zeros((0, 0)), np.zeros(0), zone)
        phase = bare.phases(times)
        level = _nanmedian(values)
        medians = np.tile(np.where(np.isnan(level), 0.0, level), (bare.size, 1))
        order = np.argsort(phase, kind="stable")
        edges = np.flatnonzero(np.diff(phase[order])) + 1
        for rows in np.split(order, edges):
            found = _nanmedian(values[rows])
            medians[phase[rows[0]]] = np.where(np.isnan(found), medians[phase[rows[0]]], found)
        left = values - medians[phase]
        scale = 1.4826 * _nanmedian(np.abs(left))
        # More than half of the values may be the same, as of a counter of rare events.
        seen = ~np.isnan(left)
        wide = np.sqrt(np.where(seen, left, 0.0).__pow__(2).sum(0) / np.maximum(seen.sum(0), 1))
        scale = np.where(scale > 1e-9 * np.abs(medians).max(0), scale, wide)
        return cls(period, step, medians, np.where(scale > 0, scale, 1.0), zone)

    @property
    def size(self) -> int:
        """Number of phases."""
        return -(-self.period // self.step) if self.period else 1

    def phases(self, times: NDArray[np.int64]) -> NDArray[np.int64]:
        """Phase of each time."""
        if not self.period:
            return np.zeros_like(times)
        wall = times
        if self.zone is not None and self.period % DAY == 0:
            there = pa.array(times, pa.timestamp("ns", self.zone))
            wall = compute.local_timestamp(there).cast(pa.int64()).to_numpy()
        return (wall % self.period) // self.step

    def expected(self, times: NDArray[np.int64]) -> NDArray[np.float64]:
        """Medians at the given times, ``[T, C]``."""
        return self.medians[self.phases(times)]

    def standardised(
        self, times: NDArray[np.int64], values: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Deviations from the medians, in their usual size."""
        return (values - self.expected(times)) / self.scale


def dominant_period(values: NDArray[np.float64]) -> int | None:
    """Steps after which a series ``[T, C]`` first is much like itself; None where it never is.

    The first lag, up to a quarter of the series and 512 steps, at which the mean autocorrelation of
    the channels has a peak of 0.3 or more, and of two thirds of the highest peak.

    >>> t = np.arange(600)
    >>> dominant_period(np.sin(2 * np.pi * t / 24)[:, None])
    24
    """
    reach = min(LONGEST, len(values) // REPEATS)
    if reach < 4:
        return None
    seen = ~np.isnan(values)
    centred = np.where(seen, values - _nanmedian(values), 0.0)
    # One wild value would otherwise be the whole of the correlation.
    limit = 4.0 * 1.4826 * np.median(np.abs(centred), axis=0)
    limit = np.where(limit > 0, limit, np.inf)
    centred = np.where(seen, np.clip(centred, -limit, limit), 0.0)
    size = 1 << int(2 * len(values) - 1).bit_length()
    power = np.abs(np.fft.rfft(centred, size, axis=0)) ** 2
    found = np.fft.irfft(power, size, axis=0)[: reach + 2]
    found = found / np.where(found[:1] > 0, found[:1], 1.0)
    curve = found.mean(1) * len(values) / (len(values) - np.arange(len(found)))
    inner = curve[1:-1]
    peaks = 1 + np.flatnonzero((inner > curve[:-2]) & (inner >= curve[2:]) & (inner > STRONG))
    # Up to the first fall below zero a slow series is merely like its neighbours.
    below = np.flatnonzero(curve < max(0.0, STRONG - 0.2))
    peaks = peaks[peaks > below[0]] if len(below) else peaks[:0]
    if not len(peaks):
        return None
    return int(peaks[curve[peaks] >= 2 / 3 * curve[peaks].max()][0])


def chosen_window(steps: int, grid: Grid, period: int | None) -> tuple[int, str]:
    """Steps of a window, and why."""
    most = max(2, steps // 8)
    day, hour = DAY // grid.step, 3600 * SECOND // grid.step
    if period is not None and period >= 8:
        window, why = period, "the series is most like itself so many steps on"
    elif grid.timed and 16 <= day <= LONGEST:
        window, why = day, "a day"
    elif grid.timed and 16 <= hour <= LONGEST:
        window, why = hour, "an hour"
    else:
        window, why = WITHOUT, "no period stands out"
    if window > most:
        window, why = most, "an eighth of the series, which is short"
    return window, f"windows of {window} steps: {why}"


def chosen_profile(
    times: NDArray[np.int64],
    values: NDArray[np.float64],
    grid: Grid,
    period: int | None,
    folds: NDArray[np.int64],
) -> tuple[int, str]:
    """Period that foretells blocks of time held out better than shorter ones, and why."""
    known: list[int] = []
    if period is not None:
        known.append(period * grid.step)
    if grid.timed:
        known += [p for p in (DAY, WEEK) if p >= 4 * grid.step]
    span = len(times) * grid.step
    able = sorted({p for p in known if span >= REPEATS * p})
    best, kept = 0, _held_out_error(times, values, 0, grid, folds)
    level = kept
    for candidate in able:
        error = _held_out_error(times, values, candidate, grid, folds)
        if error < GAIN * kept:
            best, kept = candidate, error
    if not best:
        return 0, "no time of day, of week or of a period foretells the series: one level does"
    what = {DAY: "time of day", WEEK: "time of week"}.get(best) if grid.timed else None
    length = spoken(best) if grid.timed else f"{best} steps"
    what = what or f"place in a period of {length}"
    share = round(100 * kept / level)
    return best, f"expected by {what}: on time held out that leaves {share} % of the deviations"


def _held_out_error(
    times: NDArray[np.int64],
    values: NDArray[np.float64],
    period: int,
    grid: Grid,
    folds: NDArray[np.int64],
) -> float:
    """Mean absolute deviation of blocks from the medians of the others, in the level's scale."""
    scale = Profile.of(times, values, 0, grid.step).scale
    errors: list[float] = []
    for fold in _present(folds):
        out = folds == fold
        own = Profile.of(times[~out], values[~out], period, grid.step, grid.zone)
        gaps = np.abs(values[out] - own.expected(times[out])) / scale
        errors.append(float(np.nanmean(gaps)) if not np.isnan(gaps).all() else 0.0)
    return float(np.mean(errors))


def _present(folds: NDArray[np.int64]) -> Sequence[int]:
    return [int(f) for f in np.unique(folds)]


def _nanmedian(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Median of each column, NaN left out; NaN where a column has nothing."""
    some = ~np.isnan(values).all(0)
    found = np.full(values.shape[1], np.nan)
    if some.any():
        found[some] = np.nanmedian(values[:, some], axis=0)
    return found
