"""Geometry as SVG: the marks all figures are made of. Colours are classes of ``figures.css``."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from refold.report.charts import Histogram, LineChart
from refold.report.text import shortened

LETTER = 6.3  # width of an average character of a label


def text(x: float, y: float, words: str, *, anchor: str = "start", kind: str = "") -> str:
    """Write words at a place; ``anchor`` says which part of them stands there."""
    end = f' text-anchor="{anchor}"' if anchor != "start" else ""
    style = f' class="{kind}"' if kind else ""
    return f'<text x="{x:g}" y="{y:g}"{end}{style}>{escape(words)}</text>'


def heading(x: float, y: float, caption: str, note: str) -> str:
    """Write a caption and a softer note after it, wherever the caption ends."""
    strong = f'<tspan class="strong">{escape(caption)}</tspan>'
    soft = f'<tspan dx="5">{escape(note)}</tspan>' if note else ""
    return f'<text x="{x:g}" y="{y:g}">{strong}{soft}</text>'


def fitted(words: str, width: float) -> str:
    """Cut words to what fits a width."""
    return shortened(words, max(3, int(width / LETTER)))


def path(d: str, kind: str) -> str:
    """Draw a path."""
    return f'<path class="{kind}" d="{d}"/>'


def rect(x: float, y: float, width: float, height: float, kind: str) -> str:
    """Draw a rectangle."""
    return f'<rect class="{kind}" x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}"/>'


def image(uri: str, x: float, y: float, width: float, height: float, label: str = "") -> str:
    """Place a picture, stretched to a rectangle, with sharp pixels."""
    name = f' aria-label="{escape(label)}"' if label else ""
    return (
        f'<image href="{uri}" x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" '
        f'preserveAspectRatio="none" style="image-rendering:pixelated"{name}/>'
    )


def line_chart(chart: LineChart, bottom: float) -> str:
    """Draw curves with their grid; numbers of the horizontal axis stand below ``bottom``."""
    high = chart.y.start - chart.y.end
    parts = [rect(a, chart.y.end, max(2.0, b - a), high, "span") for a, b in chart.spans]
    for tick in chart.y.ticks(4):
        parts.append(path(f"M{chart.x.start:g} {tick.at:g}H{chart.x.end:g}", "grid"))
        parts.append(text(chart.x.start - 6, tick.at + 4, tick.label, anchor="end"))
    parts += [text(t.at, bottom + 16, t.label, anchor="middle") for t in chart.x.ticks(5)]
    for at, name in chart.phases:
        parts.append(path(f"M{at:g} {chart.y.end:g}V{chart.y.start:g}", "phase"))
        parts.append(text(at + 3, chart.y.end - 1, name))
    if chart.mark is not None:
        parts.append(path(f"M{chart.mark:g} {chart.y.end:g}V{chart.y.start:g}", "kept"))
    for line in chart.lines:
        if line.path:
            parts.append(path(line.path, f"line {line.name}"))
        parts += [
            f'<circle class="dot {line.name}" cx="{x:g}" cy="{y:g}" r="2.5"/>' for x, y in line.dots
        ]
    return "".join(parts)


def histogram(chart: Histogram) -> str:
    """Draw bars on an axis, with the range below and a line at zero."""
    zero = "" if chart.zero is None else path(f"M{chart.zero:g} 0V{chart.height:g}", "grid")
    return (
        path(f"M0 {chart.height:g}H{chart.width:g}", "axis")
        + zero
        + path(chart.path, "bars")
        + text(0, chart.height + 13, chart.low)
        + text(chart.width, chart.height + 13, chart.high, anchor="end")
    )


def two_way(
    rows: Sequence[tuple[str, str, float]], width: float, *, line: float = 18, label: float = 0.42
) -> str:
    """Draw ``(name, figure, share)`` lines: bars to the right of the middle, or left if negative.

    ``share`` in [-1, 1] is the length; ``label`` is the part of the width that names take.
    """
    left, right = width * label, width - 56
    middle, parts = (left + right) / 2, list[str]()
    for i, (name, figure, share) in enumerate(rows):
        y, long = i * line, abs(share) * (right - left) / 2
        parts.append(text(0, y + 12, fitted(name, left - 6)))
        parts.append(path(f"M{middle:g} {y:g}V{y + line:g}", "grid"))
        start = middle if share >= 0 else middle - long
        kind = "plus" if share >= 0 else "minus"
        parts.append(rect(round(start, 1), y + 3, round(long, 1), line - 6, kind))
        parts.append(text(width, y + 12, figure, anchor="end", kind="ink"))
    return "".join(parts)
