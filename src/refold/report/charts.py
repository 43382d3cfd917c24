"""Geometry of small charts: the templates draw it as SVG, in the page's own colours."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from refold.report.text import number

LOG_SPAN = 20.0  # ratio of the largest to the smallest value from which an axis is logarithmic


@dataclass(frozen=True)
class Tick:
    """A position on the chart and what it says."""

    at: float
    label: str


@dataclass(frozen=True)
class Axis:
    """A range of values mapped to a range of the chart."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    @classmethod
    def over(cls, values: Sequence[float], start: float, end: float, *, log: bool = False) -> Axis:
        """Fit to finite values; a single one stands in the middle."""
        finite = [v for v in values if math.isfinite(v)] or [0.0]
        low, high = min(finite), max(finite)
        log = log and low > 0 and high / low > LOG_SPAN
        if high <= low:
            margin = abs(low) * 0.5 or 1.0
            low, high = low - margin, high + margin
        return cls(low, high, start, end, log)

    def at(self, value: float) -> float:
        """Position of a value, to a tenth."""
        if self.log:
            share = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return round(self.start + share * (self.end - self.start), 1)

    def ticks(self, most: int = 5) -> list[Tick]:
        """Round values inside the range."""
        values = self._powers(most) if self.log else round_values(self.low, self.high, most)
        return [Tick(self.at(v), number(v)) for v in values]

    def _powers(self, most: int) -> list[float]:
        first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
        every, values = max(1, math.ceil((last - first) / most)), list[float]()
        for steps in ((1, 2, 5), (1, 3), (1,)) if every == 1 else ((1,),):
            values = [s * 10.0**e for e in range(first, last + 1, every) for s in steps]
            values = [v for v in values if self.low <= v <= self.high]
            if len(values) <= most + 2:
                break
        return values


def round_values(low: float, high: float, most: int = 5) -> list[float]:
    """Multiples of 1, 2, 2.5 or 5 times a power of ten between ``low`` and ``high``.

    >>> round_values(0.0, 0.93)
    [0.0, 0.2, 0.4, 0.6, 0.8]
    """
    raw = (high - low) / most
    if not (raw > 0 and math.isfinite(raw)):
        return [low]
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(f * power for f in (1, 2, 2.5, 5, 10) if f * power >= raw * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [float(f"{i * step:.12g}") for i in range(first, last + 1)]


@dataclass(frozen=True)
class Line:
    """One curve: its name, its path, and its only point where it has but one."""

    name: str
    path: str
    dots: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class LineChart:
    """Curves over a common axis, ready to draw.

    ``mark`` is a vertical line, ``phases`` are vertical lines with a name each, ``spans`` intervals
    that are shaded.
    """

    title: str
    x: Axis
    y: Axis
    lines: tuple[Line, ...]
    mark: float | None = None
    phases: tuple[tuple[float, str], ...] = ()
    spans: tuple[tuple[float, float], ...] = ()


def shaded(chart: LineChart, intervals: Sequence[tuple[float, float]]) -> LineChart:
    """Shade intervals of the horizontal axis, as far as they lie on it."""
    x = chart.x
    inside = [(max(x.low, a), min(x.high, b)) for a, b in intervals if b > x.low and a < x.high]
    return replace(chart, spans=tuple((x.at(a), x.at(b)) for a, b in inside))


def line_chart(
    title: str,
    curves: Sequence[tuple[str, Sequence[float], Sequence[float]]],
    *,
    box: tuple[float, float, float, float] = (52, 8, 392, 168),
    log: bool = False,
    mark: float | None = None,
    phases: Sequence[tuple[float, str]] = (),
    floor: float | None = None,
) -> LineChart:
    """Lay out ``(name, xs, ys)`` curves in the box ``(left, top, right, bottom)``.

    ``floor`` is a value that the vertical axis reaches down to in any case.
    """
    left, top, right, bottom = box
    x = Axis.over([v for _, xs, _ in curves for v in xs], left, right)
    heights = [v for _, _, ys in curves for v in ys] + ([] if floor is None else [floor])
    y = Axis.over(heights, bottom, top, log=log)
    lines: list[Line] = []
    for name, xs, ys in curves:
        points = [(x.at(a), y.at(b)) for a, b in zip(xs, ys, strict=True) if math.isfinite(b)]
        path = "M" + "L".join(f"{a:g} {b:g}" for a, b in points) if len(points) > 1 else ""
        lines.append(Line(name, path, tuple(points) if len(points) <= 12 else ()))
    named = tuple((max(left, x.at(at)), name) for at, name in phases)
    return LineChart(title, x, y, tuple(lines), None if mark is None else x.at(mark), named)


@dataclass(frozen=True)
class Histogram:
    """Bars of counts, ready to draw: a path, the range, and where zero lies (None: outside)."""

    path: str
    low: str
    high: str
    zero: float | None
    width: float
    height: float


def histogram(
    values: NDArray[np.floating], *, bins: int = 24, width: float = 160, height: float = 56
) -> Histogram:
    """Count values in equal bins and scale the bars to the chart; nothing finite, no bars."""
    finite = np.asarray(values, dtype=np.float64)
    finite = finite[np.isfinite(finite)]
    if len(finite) == 0:
        return Histogram("", "–", "–", None, width, height)
    x = Axis.over([float(finite.min()), float(finite.max())], 0, width)
    counts, edges = np.histogram(finite, bins, (x.low, x.high))
    return Histogram(
        bars([x.at(float(e)) for e in edges], counts / counts.max() * height, height),
        number(x.low, 3),
        number(x.high, 3),
        x.at(0.0) if x.low < 0 < x.high else None,
        width,
        height,
    )


def bars(edges: Sequence[float], heights: NDArray[np.floating], floor: float) -> str:
    """SVG path of bars that stand on ``floor`` between consecutive edges."""
    parts = [
        f"M{a:g} {floor:g}V{floor - h:.1f}H{max(a + 0.5, b - 0.7):g}V{floor:g}Z"
        for a, b, h in zip(edges, edges[1:], heights.tolist(), strict=False)
        if h > 0
    ]
    return "".join(parts)
