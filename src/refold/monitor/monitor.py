"""The face of series: fit on one, score its steps, raise alarms, watch it as it comes."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Self, final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from refold.data.containers import frame
from refold.errors import InputError, InputWarning, unknown
from refold.estimator import MOST, Autoencoder
from refold.hints import fits
from refold.monitor import keeping
from refold.monitor.alarms import runs
from refold.monitor.calendar import chosen_profile, chosen_window, dominant_period
from refold.monitor.detector import Detector, Figures, Own, chosen_stride, nothing
from refold.monitor.evidence import Reference
from refold.monitor.stream import Stream
from refold.monitor.timeline import SECOND, Timeline, read_series, timeline
from refold.table import Column

FOLDS = 4  # models that each leave a quarter of the time out, for scores of steps not learnt
LEAST = 8  # windows' lengths that a series must have
MANY = 30  # windows side by side from which on figures of a series are to be relied on
MONTH = 30 * 86_400 * SECOND
RATE = 6.0  # alarms a month to expect where all is well


@final
class Monitor:
    """Learns one long series, and says which steps are unusual and when to raise an alarm.

    From each step the calendar is taken off where it foretells the series (medians by time of day,
    of week, or of the dominant period), and an autoencoder learns windows of what remains. A step
    is unusual by its error in the windows that cover it, and by how far the codes of these lie
    from those of training; both are compared with steps that were held out, in blocks of time, from
    models made for that, and their surprises are added.

    Parameters
    ----------
    window : int, optional
        Steps of a window. Not given: the dominant period, else a day or an hour, else 64.
    stride : int, optional
        Steps from one window to the next. Not given: a sixteenth of a window, more for very long
        series.
    timestamp : str, optional
        Column of times. Not given: it is found, and without any, rows are counted as steps.
    contamination : float
        Largest share of windows that may be unusual: as many are left out of training. 0 says that
        the series is clean.
    options
        Options of :class:`refold.Autoencoder`: ``latent``, ``recipe``, ``seed`` and so on.

    Attributes
    ----------
    ae_, channels_, window_, stride_, reasons_, notes_

    Examples
    --------
    >>> r = np.random.default_rng(0)
    >>> t = np.arange(2_400)
    >>> load = np.sin(2 * np.pi * t / 24) + 0.1 * r.normal(size=2_400)
    >>> load[1_500:1_512] = 0.0
    >>> monitor = Monitor(epochs=5).fit(load)
    >>> monitor.window_
    24
    >>> worst = monitor.alarms(load).sort_values("score").iloc[0]
    >>> bool(worst["start"] < 1_512 and worst["end"] >= 1_500)
    True
    """

    def __init__(
        self,
        window: int | None = None,
        *,
        stride: int | None = None,
        timestamp: str | None = None,
        contamination: float = 0.05,
        **options: Any,
    ) -> None:
        self.window = window
        self.stride = stride
        self.timestamp = timestamp
        self.contamination = contamination
        self.options = options

    # ------------------------------------------------------------------ learning

    def fit(self, series: Any) -> Self:
        """Learn from a series: a CSV or any other file, frame, table, dict or array.

        Times out of order are sorted, rows of one time averaged, and steps without a row missing;
        ``notes_`` say so, ``reasons_`` what was chosen and why.

        Raises :class:`InputError` for a series shorter than eight windows, and as
        :func:`refold.monitor.timeline.timeline` does.
        """
        self._check_options()
        line = timeline(series, self.timestamp)
        window, period, reasons = self._sizes(line)
        stride = self.stride or chosen_stride(len(line), window)
        if stride > window:
            raise InputError(
                f"stride is {stride}, more than a window of {window}, so that steps would be left "
                f"out; give {window} or less"
            )
        folds = _folds(len(line), window)
        longest, why = chosen_profile(line.times, line.values, line.grid, period, folds)
        learn = partial(
            Detector.learn, line.times, line.values, window=window, stride=stride, period=longest,
            grid=line.grid, contamination=self.contamination, options=self.options,
        )  # fmt: skip
        merged, causal = nothing(line.values), nothing(line.values)
        blocks = [_blocks(folds == fold) for fold in range(FOLDS)]
        for fold in range(FOLDS):
            detector = learn(train=folds != fold)
            for block in blocks[fold]:
                # Windows reach beyond the block, as they do where a series goes on.
                around = slice(max(0, block.start - window), block.stop + window)
                inside = slice(block.start - around.start, block.stop - around.start)
                at = line.times[around], line.values[around]
                merged.put(block, detector.merged(*at, stride).rows(inside))
                causal.put(block, detector.causal(*at).rows(inside))
        self.detector_ = learn(train=np.ones(len(line), dtype=bool))
        every = [block for some in blocks for block in some]
        self.merged_ = Reference.of([merged.rows(block) for block in every], window)
        self.causal_ = Reference.of([causal.rows(block) for block in every], window)
        self.own_ = Own(line.times, line.values, merged)
        self.grid_, self.channels_ = line.grid, line.channels
        self.window_, self.stride_ = window, stride
        self.name_ = line.name
        left_out = (
            f"the {100 * self.contamination:g} % of windows that a linear model finds the most "
            f"unusual were left out of training"
            if self.contamination
            else "all windows were learnt from, as contamination=0 says that they are clean"
        )
        self.reasons_ = (*reasons, why, left_out)
        count = len(line) // window
        few = (
            f"{count} windows side by side are few: p-values and counts of alarms are rough, and "
            f"rather too low"
        )
        self.notes_ = (*line.notes, few) if count < MANY else line.notes
        return self

    def recalibrate(self, series: Any) -> Self:
        """Compare from now on with the steps of another series, one that is clean and new.

        Nothing is learnt again. Raises :class:`InputError` for a series shorter than eight windows.
        """
        line = self._line(series)
        if len(line) < LEAST * self.window_:
            raise self._short(len(line), self.window_)
        at = line.times, line.values
        merged = Reference.of([self.detector_.merged(*at, self.stride_)], self.window_)
        causal = Reference.of([self.detector_.causal(*at)], self.window_)
        self.merged_, self.causal_ = merged, causal
        return self

    # ------------------------------------------------------------------ judging

    def score_steps(self, series: Any, alpha: float = 0.01, *, causal: bool = False) -> Any:
        """Judge each step: time, ``score``, ``p_value``, ``is_anomaly``, ``cause``, ``expected``.

        A frame with a row for each row given, in its order. ``score`` is minus the surprise in
        nats, so higher is more normal; ``p_value`` its rank among steps held out (see
        :meth:`refold.monitor.evidence.Reference.p_values` for what it promises); a step is an
        anomaly where it is at most ``alpha``. ``cause`` is the channel with the largest part in
        the surprise, ``expected`` (``expected_name`` where there are several channels) what the
        model would have had there. With ``causal``, only what came before a step and the step
        itself is looked at, as a stream does, and the first ``window_ - 1`` steps have no score.

        The very series that was learnt is judged by the models that had not seen the steps, but
        for ``causal``.
        """
        line = self._line(series)
        return frame(self.judge_steps(line, alpha, causal=causal), line.container)

    def judge_steps(
        self, series: Any, alpha: float = 0.01, *, causal: bool = False
    ) -> dict[str, Column]:
        """Columns of :meth:`score_steps`."""
        _check_share(alpha, "alpha")
        line = self._line(series)
        figures, reference = self._figures(line, causal)
        score = reference.score(figures)
        blank = int(np.isnan(score[line.slots]).sum())
        if 2 * blank > len(line.slots) and not causal:
            warnings.warn(
                f"{blank} of {len(line.slots)} rows have no score, as too few of the steps beside "
                f"them have a row; give a series in steps as short as those learnt",
                InputWarning,
                stacklevel=2,
            )
        p_value = reference.p_values(score)
        worst = reference.shares(figures).argmax(1)
        rows = line.slots
        found: dict[str, Column] = {
            line.name: line.stamps,
            "score": score[rows],
            "p_value": p_value[rows],
            "is_anomaly": (p_value <= alpha)[rows],
            "cause": np.array(self.channels_, dtype=object)[worst][rows],
        }
        for name, values in zip(self._expected_names(), figures.expected.T, strict=True):
            found[name] = values[rows]
        return found

    def alarms(
        self,
        series: Any,
        *,
        per_month: float | None = None,
        expected: float | None = None,
        alpha: float | None = None,
        causal: bool = False,
    ) -> Any:
        """Intervals in which steps are unusual: a frame with a row an alarm, in order of time.

        ``start``, ``end`` and ``peak``, the most unusual step, are times as they were given;
        ``score``, ``p_value`` and ``cause`` are those of the peak, ``steps`` how many the interval
        has. Alarms at most half a window apart are one. Every window that holds something unusual
        is unusual, so an interval can reach beyond it on both sides, by up to a window.

        How many there are is said in one of three ways: ``per_month``, alarms to expect in 30 days
        in which all is well (6 unless given, where there are times); ``expected``, alarms to expect
        for nothing in a series as long as this one (1 unless given, where steps are counted);
        ``alpha``, the p-value up to which a step is unusual.
        """
        line = self._line(series)
        found = self.judge_alarms(
            line, per_month=per_month, expected=expected, alpha=alpha, causal=causal
        )
        return frame(found, line.container)

    def judge_alarms(
        self,
        series: Any,
        *,
        per_month: float | None = None,
        expected: float | None = None,
        alpha: float | None = None,
        causal: bool = False,
    ) -> dict[str, Column]:
        """Columns of :meth:`alarms`."""
        line = self._line(series)
        figures, reference = self._figures(line, causal)
        score = reference.score(figures)
        limit = self.limit(
            per_month=per_month, expected=expected, alpha=alpha, causal=causal, steps=len(line)
        )
        found = runs(score, limit, self.window_ // 2)
        first, last, peak = (np.array([r[i] for r in found], dtype=np.int64) for i in range(3))
        worst = reference.shares(figures.rows(peak)).argmax(1) if len(peak) else peak
        stamps: Any = line.stamps
        columns = [stamps.take(pa.array(line.first_rows(at))) for at in (first, last, peak)]
        return {
            "start": columns[0],
            "end": columns[1],
            "peak": columns[2],
            "score": score[peak],
            "p_value": reference.p_values(score[peak]),
            "steps": last - first + 1,
            "cause": np.array(self.channels_, dtype=object)[worst],
        }

    def limit(
        self,
        *,
        per_month: float | None = None,
        expected: float | None = None,
        alpha: float | None = None,
        causal: bool = False,
        steps: int | None = None,
    ) -> float:
        """Score at or below which a step raises an alarm, see :meth:`alarms`.

        ``steps`` is the length of the series for ``expected``.
        """
        self._check_fitted()
        given = {"per_month": per_month, "expected": expected, "alpha": alpha}
        named = [k for k, v in given.items() if v is not None]
        if len(named) > 1:
            raise InputError(f"{' and '.join(named)} were given; give one, they say the same")
        reference = self.causal_ if causal else self.merged_
        if alpha is not None:
            _check_share(alpha, "alpha")
            return reference.quantile(alpha)
        if expected is None and (per_month is not None or self.grid_.timed):
            if not self.grid_.timed:
                raise InputError(
                    "per_month was given, but the series fitted had no times; give expected= or "
                    "alpha="
                )
            rate = RATE if per_month is None else per_month
            _check_positive(rate, "per_month")
            return reference.limit(rate * self.grid_.step / MONTH)
        count = 1.0 if expected is None else expected
        _check_positive(count, "expected")
        if steps is None:
            raise InputError("expected= is of a whole series; give steps=, or alpha=")
        return reference.limit(count / steps)

    def stream(self, *, per_month: float | None = None, alpha: float | None = None) -> Stream:
        """Return an object that judges steps one by one as they come, in constant memory.

        Its scores are those of ``score_steps(..., causal=True)`` on the same rows. A step is an
        anomaly by ``alpha``, 0.01 unless one of the two is given.
        """
        self._check_fitted()
        if per_month is None and alpha is None:
            alpha = 0.01
        limit = self.limit(per_month=per_month, alpha=alpha, causal=True)
        return Stream(self.detector_, self.causal_, self.grid_, self.channels_, limit)

    # ------------------------------------------------------------------ keeping

    def save(self, path: str | Path) -> None:
        """Write a folder with the model and what it is compared with; no pickle."""
        self._check_fitted()
        keeping.save(path, self._state(), self.detector_, self.merged_, self.causal_, self.own_)

    @classmethod
    def load(cls, path: str | Path) -> Monitor:
        """Read a folder that :meth:`save` wrote; each refusal is one sentence."""
        state, detector, merged, causal, owned = keeping.load(path)
        given: Mapping[str, Any] = state["params"]
        own = cls(given["window"], **{k: v for k, v in given.items() if k != "window"})
        own.detector_, own.merged_, own.causal_ = detector, merged, causal
        own.own_, own.grid_ = owned, keeping.grid(state)
        own.window_, own.stride_ = detector.window, state["stride"]
        own.channels_, own.name_ = tuple(state["channels"]), state["name"]
        own.reasons_, own.notes_ = tuple(state["reasons"]), tuple(state["notes"])
        return own

    @property
    def ae_(self) -> Autoencoder:
        """The autoencoder of windows."""
        self._check_fitted()
        return self.detector_.ae

    # ------------------------------------------------------------------ inside

    def _state(self) -> dict[str, Any]:
        return {
            "params": {
                "window": self.window,
                "stride": self.stride,
                "timestamp": self.timestamp,
                "contamination": self.contamination,
                **self.options,
            },
            "step": self.grid_.step,
            "timed": self.grid_.timed,
            "zone": self.grid_.zone,
            "stride": self.stride_,
            "channels": list(self.channels_),
            "name": self.name_,
            "reasons": list(self.reasons_),
            "notes": list(self.notes_),
        }

    def _sizes(self, line: Timeline) -> tuple[int, int | None, list[str]]:
        """Window, dominant period, and reasons."""
        period = dominant_period(line.values)
        if self.window is not None:
            if len(line) < LEAST * self.window:
                raise self._short(len(line), self.window)
            return self.window, period, []
        if len(line) < 64:
            raise InputError(
                f"the series has {len(line)} steps; give 64 or more, so that there is something to "
                f"learn and something to compare with"
            )
        window, why = chosen_window(len(line), line.grid, period)
        return window, period, [why]

    def _figures(self, line: Timeline, causal: bool) -> tuple[Figures, Reference]:
        if causal:
            return self.detector_.causal(line.times, line.values), self.causal_
        if self.own_.holds(line.times, line.values):
            return self.own_.figures, self.merged_
        return self.detector_.merged(line.times, line.values, self.stride_), self.merged_

    def _line(self, series: Any) -> Timeline:
        self._check_fitted()
        if isinstance(series, Timeline):
            return series
        table = read_series(series)
        known = self.name_ if self.grid_.timed and self.name_ in table.columns else None
        return timeline(table, self.timestamp or known, self.grid_, self.channels_)

    def _expected_names(self) -> list[str]:
        if len(self.channels_) == 1:
            return ["expected"]
        return [f"expected_{name}" for name in self.channels_]

    def _short(self, steps: int, window: int) -> InputError:
        return InputError(
            f"the series has {steps} steps, fewer than {LEAST} windows of {window}; give a longer "
            f"series, or a shorter window"
        )

    def _check_fitted(self) -> None:
        if not hasattr(self, "detector_"):
            raise InputError("this monitor has learnt no series yet; call fit(series) first")

    def _check_options(self) -> None:
        for name in ("window", "stride"):
            value, least = getattr(self, name), 2 if name == "window" else 1
            if value is not None and not (fits(value, int) and least <= value <= MOST):
                raise InputError(f"{name} is {value!r}; give a whole number, {least} or more")
        if not (fits(self.contamination, float) and 0 <= self.contamination < 0.5):
            raise InputError(f"contamination is {self.contamination!r}; give a share in [0, 0.5)")
        known = Autoencoder().get_params()
        for name in self.options:
            if name not in known:
                own = ("window", "stride", "timestamp", "contamination")
                raise unknown("option of Monitor", name, (*own, *known))
        if "fields" in self.options:
            raise InputError("fields was given, but a monitor makes its own field of windows")


def _folds(steps: int, window: int) -> NDArray[np.int64]:
    """Fold of every step: blocks of time, each of two windows or more, in turn."""
    count = FOLDS
    while count < 4 * FOLDS and steps // (2 * count) >= 4 * window:
        count *= 2
    return np.arange(steps) * count // steps % FOLDS


def _blocks(chosen: NDArray[np.bool_]) -> list[slice]:
    """Runs of the chosen steps."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], chosen, [False]]).astype(np.int8)))
    return [slice(int(a), int(b)) for a, b in edges.reshape(-1, 2)]


def _check_share(value: Any, name: str) -> None:
    if not (fits(value, float) and 0 < value < 1):
        raise InputError(f"{name} is {value!r}; it must lie between 0 and 1")


def _check_positive(value: Any, name: str) -> None:
    if not (fits(value, float) and 0 < value < float("inf")):
        raise InputError(f"{name} is {value!r}; it must be above 0 and finite")
