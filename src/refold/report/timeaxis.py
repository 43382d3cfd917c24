"""Long series in few pixels: what is lowest and highest in each, and round times below them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from refold.report.charts import Tick, round_values
from refold.report.text import number

UNITS = (
    ("s", (1, 2, 5, 10, 30)), ("m", (1, 2, 5, 10, 30)), ("h", (1, 2, 3, 6, 12)),
    ("D", (1, 2, 7, 14)), ("M", (1, 2, 3, 6)), ("Y", (1, 2, 5, 10, 20, 50, 100)),
)  # fmt: skip


def envelope(
    values: NDArray[np.float64], columns: int
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Lowest and highest of each of so many columns, after the position of their middles.

    NaN where nothing of a column is known. With fewer values than columns each is its own.

    >>> [part.tolist() for part in envelope(np.array([1.0, 5.0, 2.0, 3.0, np.nan, 0.0]), 3)]
    [[0.5, 2.5, 4.5], [1.0, 2.0, 0.0], [5.0, 3.0, 0.0]]
    """
    count = len(values)
    if count <= columns:
        return np.arange(count, dtype=np.float64), values, values
    edges = np.linspace(0, count, columns + 1).astype(np.int64)
    known = ~np.isnan(values)
    low = np.minimum.reduceat(np.where(known, values, np.inf), edges[:-1])
    high = np.maximum.reduceat(np.where(known, values, -np.inf), edges[:-1])
    gone = np.isinf(low) | np.isinf(high)
    low[gone], high[gone] = np.nan, np.nan
    return (edges[:-1] + edges[1:] - 1) / 2, low, high


def curve(x: NDArray[np.float64], low: NDArray[np.float64], high: NDArray[np.float64]) -> str:
    """SVG path through places, from the lowest to the highest of each; gaps where one is NaN."""
    parts, drawn, up = list[str](), False, True
    for place, least, most in zip(x.tolist(), low.tolist(), high.tolist(), strict=True):
        if least != least:
            drawn = False
            continue
        ends = [least] if least == most else [least, most] if up else [most, least]
        parts += [f"{'L' if drawn or i else 'M'}{place:.1f} {v:.1f}" for i, v in enumerate(ends)]
        drawn, up = True, not up
    return "".join(parts)


@dataclass(frozen=True)
class TimeAxis:
    """Times of a grid, nanoseconds since 1970 or counts, mapped to a range of the chart."""

    low: int
    high: int
    start: float
    end: float
    timed: bool

    def at(self, time: float) -> float:
        """Position of a time, to a tenth."""
        share = (time - self.low) / max(1, self.high - self.low)
        return round(self.start + share * (self.end - self.start), 1)

    def ticks(self, most: int = 8) -> list[Tick]:
        """Round times inside the range.

        >>> day = 86_400 * 10**9
        >>> [t.label for t in TimeAxis(0, 3 * day, 0, 300, True).ticks(4)]
        ['1970-01-01', '01-02', '01-03', '01-04']
        """
        if not self.timed:
            places = round_values(float(self.low), float(self.high), most)
            return [Tick(self.at(v), number(v)) for v in places]
        for unit, steps in UNITS:
            # Counted in the unit itself, months and years are as long as they are.
            ends = np.array([self.low, self.high]).astype("datetime64[ns]")
            first, last = ends.astype(f"datetime64[{unit}]").astype(np.int64).tolist()
            for step in steps:
                count = last // step - (first - 1) // step
                if count <= most:
                    rounds = np.arange(-(-first // step) * step, last + 1, step)
                    return self._labelled(rounds.astype(f"datetime64[{unit}]"), unit)
        return []

    def _labelled(self, times: NDArray[np.datetime64], unit: str) -> list[Tick]:
        at = times.astype("datetime64[ns]").astype(np.int64)
        ticks, before = list[Tick](), ""
        for time, place in zip(times, at.tolist(), strict=True):
            if place < self.low:
                continue
            ticks.append(Tick(self.at(place), label := _label(time, unit, before)))
            before = str(time) if label else before
        return ticks


def _label(time: np.datetime64, unit: str, before: str) -> str:
    """Write a time as short as the one before it allows."""
    whole = str(time)
    if unit in ("Y", "M"):
        return whole
    if unit == "D":
        return whole[5:] if whole[:4] == before[:4] else whole
    date, _, clock = whole.partition("T")
    short = clock if unit == "s" else clock[:2] + ":00" if unit == "h" else clock
    return short if date == before[:10] else f"{date if not before else date[5:]} {short}"
