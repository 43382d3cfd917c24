"""A series as a monitor sees it: values and scores on the grid, and alarms as intervals of it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refold.monitor import Monitor
from refold.monitor.monitor import RATE
from refold.monitor.timeline import Timeline, read_series, timeline
from refold.report.text import cell, number, percent


@dataclass(frozen=True)
class Alarm:
    """Steps from ``first`` to ``last``, the most unusual at ``peak``, and the same in words."""

    first: int
    last: int
    peak: int
    start: str
    end: str
    worst: str
    steps: int
    score: float
    p_value: float
    cause: str


@dataclass(frozen=True)
class Watched:
    """Values and what was expected ``[T, C]``, scores ``[T]``, and the score that alarms reach.

    What is not known is NaN. ``rule`` says in words how often an alarm is raised for nothing.
    """

    monitor: Monitor
    line: Timeline
    expected: NDArray[np.float64]
    score: NDArray[np.float64]
    limit: float
    alarms: tuple[Alarm, ...]
    rule: str

    @classmethod
    def of(
        cls,
        monitor: Monitor,
        series: Any,
        *,
        per_month: float | None = None,
        expected: float | None = None,
        alpha: float | None = None,
        causal: bool = False,
    ) -> Watched:
        """Judge a series; options are those of :meth:`refold.Monitor.alarms`."""
        line = _placed(monitor, series)
        how: dict[str, Any] = {"per_month": per_month, "expected": expected, "alpha": alpha}
        how["causal"] = causal
        limit = monitor.limit(**how, steps=len(line))
        raised: dict[str, Any] = monitor.judge_alarms(line, **how)
        judged: dict[str, Any] = monitor.judge_steps(line, causal=causal)
        wanted = [k for k in judged if k == "expected" or k.startswith("expected_")]
        values = np.stack([_at_steps(line, judged[k]) for k in wanted], 1)
        stamps: Any = line.stamps
        where = dict(zip(stamps.to_pylist(), line.slots.tolist(), strict=True))
        alarms = list[Alarm]()
        for i in range(len(raised["score"])):
            start, end, peak = (raised[k][i].as_py() for k in ("start", "end", "peak"))
            alarms.append(
                Alarm(
                    where[start], where[end], where[peak],
                    _stamp(start), _stamp(end), _stamp(peak), int(raised["steps"][i]),
                    float(raised["score"][i]), float(raised["p_value"][i]), str(raised["cause"][i]),
                )
            )  # fmt: skip
        rule = _rule(monitor, per_month, expected, alpha)
        score = _at_steps(line, judged["score"])
        return cls(monitor, line, values, score, limit, tuple(alarms), rule)

    def span(self) -> str:
        """Say from when to when the series goes.

        >>> series = {"v": np.sin(np.arange(600) / 4)}
        >>> Watched.of(Monitor(16, epochs=1, seed=0).fit(series), series).span()
        'step 0 to 599'
        """
        stamps: Any = self.line.stamps
        ends = self.line.first_rows(np.array([0, len(self.line) - 1])).tolist()
        step = "" if self.line.grid.timed else "step "
        return step + " to ".join(_stamp(stamps[i].as_py()) for i in ends)


def _placed(monitor: Monitor, series: Any) -> Timeline:
    """Read the series as the monitor does, on its grid."""
    assert monitor.ae_ is not None  # refuses in plain words what has learnt nothing
    table = read_series(series)
    known = monitor.name_ if monitor.grid_.timed and monitor.name_ in table.columns else None
    return timeline(table, monitor.timestamp or known, monitor.grid_, monitor.channels_)


def _at_steps(line: Timeline, values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Bring figures of the rows given to the steps of the grid."""
    found = np.full(len(line), np.nan)
    found[line.slots] = values
    return found


def _stamp(value: Any) -> str:
    return (cell(value) or "–") if isinstance(value, datetime) else str(value)


def _rule(
    monitor: Monitor, per_month: float | None, expected: float | None, alpha: float | None
) -> str:
    if alpha is not None:
        return f"steps with a p-value up to {number(alpha)} raise an alarm: {percent(alpha)} of all"
    if expected is None and monitor.grid_.timed:
        rate = RATE if per_month is None else per_month
        told = f"{number(rate)} {'alarm' if rate == 1 else 'alarms'}"
        return f"the limit is set for {told} in 30 days in which all is well"
    count = 1.0 if expected is None else expected
    told = f"{number(count)} {'alarm' if count == 1 else 'alarms'}"
    return f"the limit is set for {told} in a series as long as this one in which all is well"
