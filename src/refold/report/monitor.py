"""The page of a watched series: its channels over time, how unusual they are, and the alarms."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from refold.data.sinks import check_writable
from refold.errors import InputError
from refold.monitor import Monitor
from refold.monitor.timeline import spoken
from refold.report.figures.alarms import CLOSER, alarms_of, closer_of
from refold.report.overview import Fact
from refold.report.page import environment, publish
from refold.report.watched import Watched

MOST = 200  # alarms in the table


def write(
    monitor: Monitor,
    path: str | os.PathLike[str],
    series: Any,
    *,
    title: str | None = None,
    per_month: float | None = None,
    expected: float | None = None,
    alpha: float | None = None,
    causal: bool = False,
) -> Path:
    """Write one self-contained HTML page about a series and its alarms, and return its path.

    How many alarms there are is said as in :meth:`refold.Monitor.alarms`. A page holds the lowest
    and highest value of every pixel, whatever the length of the series.

    Raises :class:`InputError` where the series does not suit the monitor or the page cannot be
    written there, and :class:`MissingExtraError` where jinja2 is not installed.

    >>> import refold
    >>> monitor = refold.Monitor().fit("load.csv")  # doctest: +SKIP
    >>> write(monitor, "load.html", "load.csv")  # doctest: +SKIP
    PosixPath('load.html')
    """
    target = Path(path)
    if target.suffix.lower() not in (".html", ".htm") or target.is_dir():
        raise InputError(f"cannot write {target}: a report is one HTML file; name it report.html")
    check_writable(target)
    pages = environment()
    watched = Watched.of(
        monitor, series, per_month=per_month, expected=expected, alpha=alpha, causal=causal
    )
    named = title or (Path(series).name if isinstance(series, str | os.PathLike) else "A series")
    shown = {**contents(watched), "title": named}
    return publish(pages, "monitor.html.jinja", path, ("theme.js",), shown)


def contents(watched: Watched) -> dict[str, Any]:
    """Everything the template shows, by name."""
    monitor, line = watched.monitor, watched.line
    closer = closer_of(watched)
    return {
        "watched": watched,
        "facts": _facts(watched),
        "drawn": alarms_of(watched).html(),
        "closer": closer.html() if closer.panels else "",
        "closest": min(CLOSER, len(watched.alarms)),
        "most": MOST,
        "several": len(line.channels) > 1,
        "reasons": monitor.reasons_,
        "notes": line.notes,
    }


def _facts(watched: Watched) -> list[Fact]:
    monitor, line = watched.monitor, watched.line
    step = f" of {spoken(line.grid.step)}" if line.grid.timed else ""
    channels = len(line.channels)
    return [
        Fact(f"{len(watched.alarms):,}", "alarm" if len(watched.alarms) == 1 else "alarms"),
        Fact(f"{len(line):,}", f"steps{step}"),
        Fact(f"{channels:,}", "channel" if channels == 1 else "channels"),
        Fact(f"{monitor.window_:,}", "steps of a window"),
    ]
