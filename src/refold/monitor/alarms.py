"""Alarms: runs of unusual steps as intervals."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Run(NamedTuple):
    """Steps from ``first`` to ``last``, both unusual; ``peak`` is the most unusual."""

    first: int
    last: int
    peak: int


def runs(scores: NDArray[np.float64], limit: float, gap: int) -> list[Run]:
    """Runs of steps whose score is at most ``limit``; those at most ``gap`` steps apart are one.

    A NaN is not unusual.

    >>> runs(np.array([0.0, -5, -9, 0, -6, 0, 0, 0, -7]), limit=-5, gap=2)
    [Run(first=1, last=4, peak=2), Run(first=8, last=8, peak=8)]
    """
    at = np.flatnonzero(scores <= limit)
    if not len(at):
        return []
    parts = np.split(at, np.flatnonzero(np.diff(at) > gap) + 1)
    return [Run(int(p[0]), int(p[-1]), int(p[scores[p].argmin()])) for p in parts]
