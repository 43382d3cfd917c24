"""Steps judged as they come, with no more in memory than a window."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, final

import numpy as np
from numpy.typing import NDArray

from refold.errors import InputError
from refold.monitor.detector import Detector
from refold.monitor.evidence import Reference
from refold.monitor.timeline import Grid, moment


class Step(NamedTuple):
    """A step that was judged: ``score`` and ``p_value`` are NaN until a window is full."""

    time: Any
    score: float
    p_value: float
    is_anomaly: bool
    cause: str
    expected: dict[str, float]


@final
class Stream:
    """Judges each step by the window that ends with it; see :meth:`refold.Monitor.stream`.

    Kept are one window of values and the time of the last step; what was pushed before is gone.
    """

    def __init__(
        self,
        detector: Detector,
        reference: Reference,
        grid: Grid,
        channels: tuple[str, ...],
        limit: float,
    ) -> None:
        self.limit = limit
        self.channels = channels
        self._detector, self._reference, self._grid = detector, reference, grid
        self._ring = np.full((detector.window, len(channels)), np.nan)
        self._start: int | None = None  # time of the first step
        self._last = 0  # time that was pushed last
        self._slot = 0
        self._rows = np.zeros(len(channels), dtype=np.int64)  # rows averaged in the last step

    def push(self, timestamp: Any, values: Any) -> Step:
        """Judge the next step, by it and those before.

        ``values`` are one number, a sequence in the order of ``channels``, or a dict by their
        names; None and NaN are missing. Steps that were left out are missing; a row nearest to
        the same step as the last one is averaged with it.

        Raises :class:`InputError` for a time that is not after the last, for infinite values, and
        for another number of them; the stream stays as it was.
        """
        time = moment(timestamp, self._grid)
        row = self._row(values)
        if self._start is None:
            self._start, slot = time, 0
            ahead = 1
        else:
            if time <= self._last:
                what = "was pushed already" if time == self._last else "is before the last one"
                raise InputError(
                    f"{timestamp} {what}; a stream needs rising times, so sort the rows, or score "
                    f"them as a whole with score_steps"
                )
            slot = int(self._grid.slots(np.array([time]), self._start)[0])
            ahead = slot - self._slot
        if ahead:
            keep = max(0, len(self._ring) - ahead)
            self._ring[:keep] = self._ring[len(self._ring) - keep :].copy()
            self._ring[keep:] = np.nan
            self._ring[-1], self._rows = row, (~np.isnan(row)).astype(np.int64)
        else:
            self._ring[-1] = _averaged(self._ring[-1], row, self._rows)
            self._rows += ~np.isnan(row)
        self._last, self._slot = time, slot
        return self._judged(timestamp)

    def _judged(self, timestamp: Any) -> Step:
        # Before its first window is full a stream knows as little as the whole series does.
        known = min(len(self._ring), self._slot + 1)
        times = self._begin + self._grid.step * np.arange(self._slot - known + 1, self._slot + 1)
        figures = self._detector.causal(times, self._ring[-known:]).rows(slice(-1, None))
        score = self._reference.score(figures)
        return Step(
            timestamp,
            float(score[0]),
            float(self._reference.p_values(score)[0]),
            bool(score[0] <= self.limit),
            self.channels[int(self._reference.shares(figures)[0].argmax())],
            dict(zip(self.channels, figures.expected[0].tolist(), strict=True)),
        )

    @property
    def _begin(self) -> int:
        assert self._start is not None
        return self._start

    def _row(self, values: Any) -> NDArray[np.float64]:
        count = len(self.channels)
        if isinstance(values, Mapping):
            known: Mapping[str, Any] = values
            absent = [k for k in self.channels if k not in known]
            if absent:
                raise InputError(f"the step has no value of {', '.join(absent)}; give None where "
                                 f"it is missing")  # fmt: skip
            values = [known[k] for k in self.channels]
        given: Sequence[Any] = [values] if np.ndim(values) == 0 else values
        try:
            row = np.array([np.nan if v is None else float(v) for v in given])
        except (TypeError, ValueError) as error:
            raise InputError(f"{values!r} are no numbers; give {count} of them") from error
        if len(row) != count:
            raise InputError(f"the step has {len(row)} values, but {count} were expected: "
                             f"{', '.join(self.channels)}")  # fmt: skip
        if np.isinf(row).any():
            name = self.channels[int(np.isinf(row).argmax())]
            raise InputError(f"'{name}' is infinite; give a finite number, or None where missing")
        return row


def _averaged(
    mean: NDArray[np.float64], row: NDArray[np.float64], rows: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Mean of a step's rows with one more; what is missing does not count."""
    both = (rows * mean + row) / (rows + 1)
    return np.where(np.isnan(mean), row, np.where(np.isnan(row), mean, both))
