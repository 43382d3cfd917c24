"""Alarms on series with labelled anomalies, beside a control chart.

    python bench/nab.py FOLDER [--per-month 1 2 6] [--seed 0] [--files nyc_taxi.csv ...]

FOLDER holds series of the Numenta Anomaly Benchmark (``timestamp,value``) and ``nab_windows.json``,
the windows in which something happened. A monitor with its defaults learns a whole series, with
what happened in it, and raises alarms at each of the given rates of alarms to expect in a month in
which all is well: how many windows an alarm touches, how many alarms a month touch none, and what
share of the time outside of windows is spent in alarm. Labels judge, and nothing else.

The rival is a control chart: the deviation of a value from the exponentially weighted mean of those
before, in exponentially weighted deviations, over an hour, a quarter of a day and a day. It has no
law of its peaks, so for each rate its threshold is the one that raises as many alarms as the
monitor did; then the one with the fewest false alarms that finds the windows that the monitor
found. Of the three spans the best is shown, by the labels. A chart that spends more of its time in
alarm than the monitor and five hundredths is left out: one alarm without an end finds everything.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

import refold
from refold.monitor.alarms import runs

Spans = list[tuple[Any, Any]]


class Tally(NamedTuple):
    """Windows that an alarm touches, alarms that touch none, and time spent in alarm."""

    found: set[int]
    false: int
    alarms: int
    share: float

    def words(self, windows: Spans, months: float) -> str:
        """Say it, with false alarms a month."""
        return (
            f"{len(self.found)} of {len(windows)} windows, {self.false} false alarms "
            f"({self.false / months:.2f} a month), {100 * self.share:.1f} % of the other time"
        )


def tally(alarms: Spans, windows: Spans, times: pd.Series) -> Tally:
    """Compare intervals with the labelled windows."""
    touched = [
        {i for i, (start, end) in enumerate(windows) if a <= end and b >= start} for a, b in alarms
    ]
    outside = ~within(times, windows)
    share = float((within(times, alarms) & outside).sum() / max(1, outside.sum()))
    return Tally(set().union(*touched), sum(not t for t in touched), len(alarms), share)


def within(times: pd.Series, spans: Spans) -> NDArray[np.bool_]:
    """Whether each time lies in one of the intervals."""
    found = np.zeros(len(times), dtype=bool)
    for start, end in spans:
        found |= ((times >= start) & (times <= end)).to_numpy()
    return found


def chart(values: pd.Series, span: int) -> NDArray[np.float64]:
    """Minus the deviation from the weighted mean of what came before, in weighted deviations."""
    mean = values.ewm(span=span).mean().shift(1)
    gap = values - mean
    spread = np.sqrt((gap**2).ewm(span=span).mean().shift(1))
    least = 0.01 * float(values.std())
    return -np.nan_to_num(np.abs(gap) / np.maximum(spread, least))


def rivals(
    series: pd.DataFrame, windows: Spans, own: Tally, gap: int
) -> tuple[tuple[Tally, int] | None, tuple[Tally, int] | None]:
    """Return the best chart with as many alarms, and the best that finds the same windows."""
    times = series["timestamp"]
    same: list[tuple[Tally, int]] = []
    until: list[tuple[Tally, int]] = []
    for width in (1, 6, 24):
        span = max(2, round(pd.Timedelta(width, "h") / times.diff().median()))
        scores = chart(series["value"], span)
        found: list[Tally] = []
        for limit in np.unique(np.quantile(scores, np.geomspace(1 / len(scores), 0.2, 100))):
            alarms = [(times[r.first], times[r.last]) for r in runs(scores, float(limit), gap)]
            found.append(tally(alarms, windows, times))
        found = [t for t in found if t.share <= own.share + 0.05]
        if found:
            near = min(found, key=lambda t: (abs(t.alarms - own.alarms), -len(t.found)))
            same.append((near, span))
        until += [(t, span) for t in found if t.found >= own.found]
    best = max(same, key=lambda t: (len(t[0].found), -t[0].false), default=None)
    return best, min(until, key=lambda t: t[0].false, default=None)


def main() -> None:
    """Run every series and print its figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--per-month", type=float, nargs="+", default=[1.0, 2.0, 6.0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--files", nargs="+", default=None)
    given = parser.parse_args()
    labels = json.loads((given.folder / "nab_windows.json").read_text(encoding="utf-8"))
    for name in given.files or labels:
        windows = [(pd.Timestamp(a), pd.Timestamp(b)) for a, b in labels[name]]
        path = given.folder / name
        series = pd.read_csv(path, parse_dates=["timestamp"]).sort_values("timestamp")
        series = series.drop_duplicates("timestamp").reset_index(drop=True)
        extent = series["timestamp"].iloc[-1] - series["timestamp"].iloc[0]
        months = extent / pd.Timedelta("30D")
        started = time.perf_counter()
        monitor = refold.Monitor(seed=given.seed).fit(path)
        learnt = time.perf_counter()
        monitor.score_steps(path, causal=True)
        scored = time.perf_counter() - learnt
        print(
            f"{name}: {len(series):,} steps, {months:.1f} months, window {monitor.window_}, fit in "
            f"{learnt - started:.1f} s, {len(series) / scored:,.0f} steps/s scored"
        )
        for rate in given.per_month:
            frame = monitor.alarms(path, per_month=rate)
            alarms = list(zip(frame["start"], frame["end"], strict=True))
            own = tally(alarms, windows, series["timestamp"])
            print(f"  expecting {rate:g} a month: {own.words(windows, months)}")
            found = rivals(series, windows, own, monitor.window_ // 2)
            for what, one in zip(("as many alarms", "the same windows"), found, strict=True):
                if windows:
                    said = "none" if one is None else f"of {one[1]} steps: "
                    said += "" if one is None else one[0].words(windows, months)
                    print(f"    chart, {what}: {said}")


if __name__ == "__main__":
    main()
