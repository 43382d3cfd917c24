"""A watched series: what was seen and expected, how unusual it was, and the alarms."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from refold.monitor import Monitor
from refold.report.charts import Axis
from refold.report.figures import draw
from refold.report.figures.figure import Figure, Panel
from refold.report.text import number
from refold.report.timeaxis import TimeAxis, curve, envelope
from refold.report.watched import Alarm, Watched

CHANNELS = 8  # channels that are drawn
CLOSER = 12  # alarms drawn by themselves
LEFT, TOP = 52.0, 18.0  # of the inside of a chart
WIDE, HIGH = 1000.0, 150.0
NEAR, LOW = 400.0, 110.0  # of a chart of one alarm
NUMBERED = 16.0  # from one number of an alarm to the next
LINES = (("line given thin", "as given"), ("line back", "as expected"))
MARKS = (("bar span", "an alarm"), ("peak", "its most unusual step"))


def alarms(monitor: Monitor, series: Any, **how: Any) -> Figure:
    """Draw a series over time with what was expected, its scores below, and alarms as intervals.

    ``how`` are the options of :meth:`refold.Monitor.alarms`. Of a long series each pixel shows the
    lowest and the highest value, so that no peak is lost. Beyond eight channels those are drawn
    that most alarms are about.

    >>> t = np.arange(1_200)
    >>> load = np.sin(t / 4) + 0.1 * np.random.default_rng(0).normal(size=1_200)
    >>> load[700:720] = 3
    >>> figure = alarms(Monitor(24, epochs=2, seed=0).fit(load), load)
    >>> [panel.caption for panel in figure.panels]
    ['x0', 'How unusual']
    """
    return alarms_of(Watched.of(monitor, series, **how))


def alarms_of(watched: Watched) -> Figure:
    """Draw a panel for each channel, and one of the scores."""
    channels, line = watched.line.channels, watched.line
    panels = [
        _values(watched, c, slice(0, len(line)), (WIDE, HIGH), numbered=i == 0)
        for i, c in enumerate(drawn_channels(watched))
    ]
    panels.append(_scores(watched))
    left = len(channels) - len(panels) + 1
    note = "" if left <= 0 else f"Of {len(channels)} channels the {CHANNELS} with most alarms."
    keys = (*LINES, *(MARKS if watched.alarms else ()))
    return Figure("Alarms", tuple(panels), note, keys, tile=40, most=68, columns=1)


def closer_of(watched: Watched) -> Figure:
    """Draw the most unusual alarms by themselves, each in the channel that caused it."""
    order = np.argsort([a.score for a in watched.alarms], kind="stable")[:CLOSER]
    panels = list[Panel]()
    for i in np.sort(order).tolist():
        alarm = watched.alarms[i]
        around = max(watched.monitor.window_, (alarm.last - alarm.first) // 2)
        steps = slice(max(0, alarm.first - around), min(len(watched.line), alarm.last + around + 1))
        channel = watched.line.channels.index(alarm.cause)
        panel = _values(watched, channel, steps, (NEAR, LOW), numbered=False)
        caption = f"{i + 1}. {alarm.start}"
        several = len(watched.line.channels) > 1
        note = f"{alarm.cause + ', ' if several else ''}score {number(alarm.score, 3)}"
        panels.append(
            Panel(panel.marks, panel.width, panel.height, caption, note, f"alarm {i + 1}")
        )
    return Figure(
        "Alarms, one by one", tuple(panels), "", (*LINES, *MARKS), tile=19, most=32, columns=2
    )


def drawn_channels(watched: Watched) -> list[int]:
    """Return the channels to draw, in their order: of many those that most alarms are about."""
    names = watched.line.channels
    counts = [sum(a.cause == name for a in watched.alarms) for name in names]
    return sorted(sorted(range(len(names)), key=lambda c: -counts[c])[:CHANNELS])


def _values(
    watched: Watched, channel: int, steps: slice, size: tuple[float, float], *, numbered: bool
) -> Panel:
    """Draw one channel over some steps."""
    name = watched.line.channels[channel]
    seen, expected = watched.line.values[steps, channel], watched.expected[steps, channel]
    x = _across(watched, steps, size)
    known = np.concatenate([seen, expected])
    known = known[~np.isnan(known)]
    y = Axis.over([float(known.min()), float(known.max())] if len(known) else [], size[1], TOP)
    marks = _alarms(watched, x, steps, size[1], numbered=numbered)
    marks += _grid(x, y, size)
    # Where a pixel holds many steps lines are areas, and what was seen must not be covered.
    for kind, values in (("back", expected), ("given thin", seen)):
        marks.append(draw.path(_curve(values, x, y, steps, watched), f"line {kind}"))
    return Panel("".join(marks), size[0], size[1] + 20, name, label=f"{name} over time")


def _scores(watched: Watched) -> Panel:
    """Draw minus the score of every step, and the limit."""
    size, steps = (WIDE, HIGH), slice(0, len(watched.line))
    surprise = -watched.score
    known = surprise[~np.isnan(surprise)]
    limit = -watched.limit
    tops = [
        0.0,
        float(known.max()) if len(known) else 0.0,
        *([limit] if np.isfinite(limit) else []),
    ]
    x, y = _across(watched, steps, size), Axis.over(tops, HIGH, TOP)
    marks = _alarms(watched, x, steps, HIGH, numbered=False) + _grid(x, y, size)
    marks.append(draw.path(_curve(surprise, x, y, steps, watched), "line score"))
    if np.isfinite(limit):
        at = y.at(limit)
        marks.append(draw.path(f"M{LEFT:g} {at:g}H{WIDE - 8:g}", "limit"))
    note = "minus the score of each step, in nats; alarms lie above the line"
    return Panel("".join(marks), WIDE, HIGH + 20, "How unusual", note, "scores over time")


def _across(watched: Watched, steps: slice, size: tuple[float, float]) -> TimeAxis:
    times = watched.line.times[steps]
    timed = watched.line.grid.timed
    return TimeAxis(int(times[0]), int(times[-1]), LEFT, size[0] - 8, timed)


def _grid(x: TimeAxis, y: Axis, size: tuple[float, float]) -> list[str]:
    marks = list[str]()
    for tick in y.ticks(4):
        marks.append(draw.path(f"M{LEFT:g} {tick.at:g}H{size[0] - 8:g}", "grid"))
        marks.append(draw.text(LEFT - 6, tick.at + 4, tick.label, anchor="end"))
    for tick in x.ticks(int(size[0] / 110)):
        if tick.at <= size[0] - 30:
            marks.append(draw.text(tick.at, size[1] + 16, tick.label, anchor="middle"))
    return marks


def _curve(
    values: NDArray[np.float64], x: TimeAxis, y: Axis, steps: slice, watched: Watched
) -> str:
    places, low, high = envelope(values, round(x.end - x.start))
    times = watched.line.times[steps][0] + places * watched.line.grid.step
    across = x.start + (times - x.low) / max(1, x.high - x.low) * (x.end - x.start)
    return curve(across, *(y.start + (v - y.low) / (y.high - y.low) * (y.end - y.start)
                           for v in (low, high)))  # fmt: skip


def _alarms(
    watched: Watched, x: TimeAxis, steps: slice, bottom: float, *, numbered: bool
) -> list[str]:
    """Shade the alarms, and mark their peaks above the chart."""
    marks, last = list[str](), -NUMBERED
    half = watched.line.grid.step / 2
    for i, alarm in enumerate(watched.alarms):
        if alarm.last < steps.start or alarm.first >= steps.stop:
            continue
        marks.append(_span(watched, alarm, x, half, bottom))
        if steps.start <= alarm.peak < steps.stop:
            at = x.at(float(watched.line.times[alarm.peak]))
            marks.append(draw.path(f"M{at:g} {TOP:g}l-4-6h8z", "peak"))
            if numbered and at - last >= NUMBERED:
                marks.append(draw.text(at, TOP - 8, str(i + 1), anchor="middle", kind="ink"))
                last = at
    return marks


def _span(watched: Watched, alarm: Alarm, x: TimeAxis, half: float, bottom: float) -> str:
    times = watched.line.times
    low = max(x.start, x.at(float(times[alarm.first]) - half))
    high = min(x.end, x.at(float(times[alarm.last]) + half))
    wide = round(max(2.0, high - low), 1)
    return draw.rect(low, TOP, wide, bottom - TOP, "span")
