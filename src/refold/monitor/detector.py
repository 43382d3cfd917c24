"""Windows of a series, the autoencoder that learns them, and what is unusual about its steps."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from refold import inference
from refold.data.containers import container
from refold.data.windows import per_step, windows
from refold.errors import InputError, InputWarning
from refold.estimator import Autoencoder
from refold.monitor.calendar import Profile
from refold.monitor.timeline import Grid
from refold.table import Table

RECIPE = "dense"
FIRST = "pca"  # the quick model that finds the windows to leave out
FEWEST = 16  # windows to learn from
MOST = 4_096  # windows to learn from, beyond which more overlap than they add
OVERLAP = 16  # windows that cover a step, as far as the window has so many steps
CHUNK = 4_096  # windows encoded at once
APART = 5  # windows side by side for each entry of the code
EPOCHS = 20
FLOOR = 1e-6  # share of the largest variance of codes that each direction has at least


class Figures(NamedTuple):
    """What is unusual about every step, one being usual in training.

    ``errors`` ``[T, C]`` are squared, by channel; ``distance`` ``[T]`` is that of the code of the
    windows; both NaN where nothing can be said. ``expected`` ``[T, C]`` is in units of the series,
    ``deviation`` ``[T, C]`` the squared distance from the calendar.
    """

    errors: NDArray[np.float64]
    distance: NDArray[np.float64]
    expected: NDArray[np.float64]
    deviation: NDArray[np.float64]

    def rows(self, chosen: Any) -> Figures:
        """Return those of some steps."""
        return Figures(*(part[chosen] for part in self))

    def put(self, chosen: Any, others: Figures) -> None:
        """Set those of some steps."""
        for mine, theirs in zip(self, others, strict=True):
            mine[chosen] = theirs

    @property
    def shape(self) -> NDArray[np.float64]:
        """Mean squared error of the channels of each step that were observed, ``[T]``."""
        seen = ~np.isnan(self.errors)
        total = np.where(seen, self.errors, 0.0).sum(1)
        return np.where(seen.any(1), total / np.maximum(seen.sum(1), 1), np.nan)


@dataclass(frozen=True)
class Own:
    """Figures of the very series that was learnt, by models that had not seen the steps."""

    times: NDArray[np.int64]
    values: NDArray[np.float64]
    figures: Figures

    def holds(self, times: NDArray[np.int64], values: NDArray[np.float64]) -> bool:
        """Whether a series is the one that was learnt."""
        same = np.array_equal(times, self.times)
        return same and np.array_equal(values, self.values, equal_nan=True)


@dataclass(frozen=True)
class Detector:
    r"""A model of windows, after the calendar was taken off, and the units of its errors.

    .. math:: e_{tc} = \frac{(y_{tc} - \hat y_{tc})^2}{s_c^2}, \qquad
              d = \frac{1}{D} (z - \mu)^\top \Sigma^{-1} (z - \mu)

    :math:`y` are deviations from the calendar's medians, :math:`s_c^2` the mean squared error of a
    channel in training, :math:`\mu` and :math:`\Sigma` mean and covariance of the training codes.
    """

    ae: Autoencoder
    profile: Profile
    window: int
    unit: NDArray[np.float64]
    """Mean squared error of each channel in training, ``[C]``."""
    centre: NDArray[np.float64]
    whitening: NDArray[np.float64]
    """``[D, D]``: codes from the centre, times it, have unit covariance."""

    @classmethod
    def learn(
        cls,
        times: NDArray[np.int64],
        values: NDArray[np.float64],
        train: NDArray[np.bool_],
        *,
        window: int,
        stride: int,
        period: int,
        grid: Grid,
        contamination: float,
        options: Mapping[str, Any],
    ) -> Detector:
        """Learn the steps in ``train`` ``[T]``: windows that lie within.

        Of these the share ``contamination`` that a linear model finds the most unusual is left out.
        """
        profile = Profile.of(times[train], values[train], period, grid.step, grid.zone)
        y = profile.standardised(times, values)
        every = windows(y, window, stride)
        whole = windows(train.astype(np.float64), window, stride)[:, :, 0].all(1)
        seen = (~np.isnan(every)).mean((1, 2)) >= 0.5
        rows = np.ascontiguousarray(every[whole & seen])
        if len(rows) < FEWEST:
            raise InputError(
                f"{len(rows)} windows of {window} steps can be learnt from, after those with gaps "
                f"in half of their steps and those held out; {FEWEST} are needed: give a longer "
                f"series, or a shorter window"
            )
        quick = {k: v for k, v in options.items() if k in ("seed", "device")} | {"recipe": FIRST}
        first = _fitted(rows, quick)
        # Windows that overlap say little more than those side by side: a code with an entry for
        # every few of these would learn them by heart.
        most = max(1, int(train.sum()) // window // APART)
        size, kept = min(first.spec_.size, most), rows
        for _ in range(2 if contamination else 0):
            if len(kept) < len(rows) or first.spec_.size > size:
                first = _fitted(kept, {**quick, "latent": size})
            judge = cls._of(first, profile, window, kept)
            errors, codes = judge.examined(rows)
            unusual = _ranks(_mean(errors**2 / judge.unit)) + _ranks(judge.distances(codes))
            kept = rows[unusual <= np.quantile(unusual, 1 - contamination)]
        given = {k: v for k, v in options.items() if v is not None}
        own = {"recipe": RECIPE, "latent": size, "epochs": EPOCHS, **given}
        return cls._of(_fitted(kept, own), profile, window, kept)

    @classmethod
    def _of(
        cls, ae: Autoencoder, profile: Profile, window: int, rows: NDArray[np.float64]
    ) -> Detector:
        """Learn the units of errors and codes from the rows of training."""
        channels = rows.shape[2]
        bare = cls(ae, profile, window, np.ones(channels), np.zeros(0), np.zeros((0, 0)))
        errors, codes = bare.examined(rows)
        squares = np.nanmean((errors**2).reshape(-1, channels), axis=0)
        centre = codes.mean(0)
        variance, axes = np.linalg.eigh(np.cov(codes.T).reshape(len(centre), -1))
        variance = np.maximum(variance, max(FLOOR * float(variance.max()), 1e-12))
        # A window rebuilt without any error would make every other infinitely unusual.
        return cls(
            ae, profile, window, np.maximum(np.nan_to_num(squares), FLOOR), centre,
            axes / np.sqrt(variance),
        )  # fmt: skip

    def merged(self, times: NDArray[np.int64], values: NDArray[np.float64], stride: int) -> Figures:
        """Means over all windows that cover a step; of a block shorter than one, nothing."""
        steps, channels = values.shape
        y = self.profile.standardised(times, values)
        # Missing steps are put behind, so that the last window ends where the series does or after.
        reach = max(0, -(-(steps - self.window) // stride)) * stride + self.window
        filled = np.concatenate([y, np.full((reach - steps, channels), np.nan)])
        every = windows(filled, self.window, stride)
        parts = [self.examined(part) for part in _chunks(every)]
        errors = np.concatenate([e for e, _ in parts])
        distance = np.concatenate([self.distances(z) for _, z in parts])
        thin = (~np.isnan(every)).mean((1, 2)) < 0.5
        errors[thin], distance[thin] = np.nan, np.nan
        far = np.repeat(distance[:, None], self.window, 1)
        back = per_step(errors, stride, reach)[:steps]  # values less what was rebuilt of them
        square = per_step(errors**2, stride, reach)[:steps]
        return self._figures(times, values, y, square, back, per_step(far, stride, reach)[:steps])

    def causal(self, times: NDArray[np.int64], values: NDArray[np.float64]) -> Figures:
        """Figures of the window that ends at each step; NaN before the first is full."""
        steps, channels = values.shape
        y = self.profile.standardised(times, values)
        gap, distance = np.full((steps, channels), np.nan), np.full(steps, np.nan)
        if steps >= self.window:
            at = self.window - 1
            for part in _chunks(windows(y, self.window)):
                ends = slice(at, at + len(part))
                errors, codes = self.examined(part)
                enough = (~np.isnan(part)).mean((1, 2)) >= 0.5
                gap[ends] = np.where(enough[:, None], errors[:, -1], np.nan)
                distance[ends] = np.where(enough, self.distances(codes), np.nan)
                at += len(part)
        return self._figures(times, values, y, gap**2, gap, distance)

    def _figures(
        self,
        times: NDArray[np.int64],
        values: NDArray[np.float64],
        y: NDArray[np.float64],
        square: NDArray[np.float64],
        gap: NDArray[np.float64],
        distance: NDArray[np.float64],
    ) -> Figures:
        absent = np.isnan(values)
        rebuilt = values - gap * self.profile.scale
        expected = np.where(np.isnan(rebuilt), self.profile.expected(times), rebuilt)
        return Figures(
            np.where(absent, np.nan, square / self.unit),
            np.where(absent.all(1), np.nan, distance),
            expected,
            np.where(absent, 0.0, np.nan_to_num(y) ** 2),
        )

    @torch.inference_mode()
    def examined(
        self, rows: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Values less what comes back, ``[n, W, C]``, NaN where missing; and codes ``[n, D]``."""
        ae = self.ae
        table = Table({"x": np.ascontiguousarray(rows)}, container("dict"))
        batch, _ = ae.schema_.encode(table)
        points: list[torch.Tensor] = []
        codes: list[torch.Tensor] = []
        for output, count in inference.outputs(ae.model_, batch, ae.schema_):
            points.append(inference.points(ae.model_, output.params)["x"][:count])
            codes.append(output.code.z[:count].flatten(1).cpu())
        own = ae.schema_.fields["x"]
        back = own.to_values(torch.cat(points))["x"]
        return rows - np.asarray(back, dtype=np.float64), torch.cat(codes).double().numpy()

    def distances(self, codes: NDArray[np.float64]) -> NDArray[np.float64]:
        """Squared distance of codes from those of training, one on average there, ``[n]``."""
        return np.square((codes - self.centre) @ self.whitening).mean(1)


def nothing(values: NDArray[np.float64]) -> Figures:
    """Figures of steps ``[T, C]`` of which nothing is known yet."""
    steps, channels = values.shape
    wide = (np.full((steps, channels), np.nan) for _ in range(3))
    errors, expected, deviation = wide
    return Figures(errors, np.full(steps, np.nan), expected, deviation)


def chosen_stride(steps: int, window: int) -> int:
    """Steps from one window to the next, in training and where windows are merged."""
    return max(1, window // OVERLAP, min(window // 2, steps // MOST))


def _fitted(rows: NDArray[np.float64], options: Mapping[str, Any]) -> Autoencoder:
    own: dict[str, Any] = {**options, "fields": {"x": "series"}}
    with warnings.catch_warnings():
        # A code that says the same of every window is right where nothing but noise is left.
        warnings.simplefilter("ignore", InputWarning)
        return Autoencoder(**own).fit({"x": rows})


def _chunks(rows: NDArray[np.float64]) -> Iterator[NDArray[np.float64]]:
    for start in range(0, len(rows), CHUNK):
        yield rows[start : start + CHUNK]


def _mean(errors: NDArray[np.float64]) -> NDArray[np.float64]:
    seen = ~np.isnan(errors)
    return np.where(seen, errors, 0.0).sum((1, 2)) / np.maximum(seen.sum((1, 2)), 1)


def _ranks(figures: NDArray[np.float64]) -> NDArray[np.float64]:
    """Surprise of each among all, in nats."""
    order = figures.argsort().argsort()
    return -np.log1p(-(order + 0.5) / len(figures))
