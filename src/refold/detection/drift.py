"""Whether new rows as a whole differ from those of training, and in what."""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from refold.data.schema import Schema
from refold.detection.two_samples import (
    FEW,
    Counts,
    Values,
    adjusted,
    apart,
    chosen,
    counts,
    exact,
    levels_apart,
    numbers_apart,
)
from refold.fields import Bounded, Count, Field, Image, Numeric, Series, Text, Vector
from refold.fields.base import scalar
from refold.fields.category import Classes
from refold.fields.text import UNK
from refold.types import Batch

SAMPLE = 2000  # rows of either side that are compared
FLOOR = 0.1  # share of the rows that must have changed, however sure it is that some have
GAPS = 0.05  # the same of what is missing, where a smaller change spoils rows already
WIDE = 256  # entries of a field that are compared one by one
MOVED = 0.1  # deviations of the median, or share of the middle half, that are worth a word
SHOWN = 3  # changes that the sentence names

ENDING = "alarms may speak of the data, not of single rows"

Matrix = NDArray[np.float32]


@final
@dataclass(frozen=True)
class Change:
    """One column, entry or statistic of a block, then (in training) and now.

    ``effect`` is the share of the rows, 0 to 1, by which its observed values differ (of numbers the
    largest distance of the distribution functions, of classes the total variation), ``p_value`` how
    often chance alone gives that, corrected for all that was compared. ``missing`` is the share of
    rows without a value, then and now, with its own ``missing_p_value``; of a block its first
    statistic alone tells it. ``words`` say what has changed; there are none where nothing has.
    """

    name: str
    effect: float
    p_value: float
    missing: tuple[float, float]
    missing_p_value: float
    words: tuple[str, ...] = ()

    @property
    def drifted(self) -> bool:
        """Whether it has changed, by more than chance gives and by enough to matter."""
        return bool(self.words)

    @property
    def size(self) -> float:
        """Share of the rows that differ, in their values or by what is missing."""
        return max(self.effect, abs(self.missing[1] - self.missing[0]))


@final
@dataclass(frozen=True)
class Drift:
    """How new rows as a whole differ from those of training.

    ``changes`` holds everything that was compared, in the order of the schema; ``code`` is the
    distance of the codes from those of training, see :func:`apart`, and ``code_p_value`` how often
    chance gives as much; ``code_drifted`` says whether that counts.
    """

    changes: tuple[Change, ...]
    code: float
    code_p_value: float
    code_drifted: bool

    @property
    def drifted(self) -> tuple[Change, ...]:
        """What has changed, the largest share of the rows first."""
        return tuple(sorted((c for c in self.changes if c.drifted), key=lambda c: -c.size))

    @property
    def sentence(self) -> str:
        """What people are told."""
        found = self.drifted
        said = [f"{c.name} {' and '.join(c.words)}" for c in found[:SHOWN]]
        if len(found) > SHOWN:
            more = len(found) - SHOWN
            said.append(f"{more} more {'differs' if more == 1 else 'differ'}")
        if not found:
            said = ["no column alone, but columns together: their codes lie elsewhere"]
        return f"the new rows differ from training as a whole: {', '.join(said)}; {ENDING}"


@final
@dataclass(frozen=True)
class Reference:
    r"""Rows that new ones are compared with: up to 2,000 of a fit, as few numbers as do.

    ``samples`` holds ``[m, S]`` per field, NaN where missing: the entries of a field, or where it
    is a picture, a series, a text or has more than 256 entries, a handful of statistics of each
    row. Numbers are compared by the test of Kolmogorov and Smirnov, classes by :math:`\chi^2` (of
    few rows, by Fisher's exact test of each level), shares that are missing by Fisher's, codes by
    their energy distance. Half of the level goes to the codes, half to everything else, corrected
    after Benjamini and Yekutieli, whatever depends on what: for rows drawn independently like
    those of the reference, :math:`P(\text{a report}) \le \alpha`. What is significant is reported
    only where it concerns a tenth of the rows (of what is missing, a twentieth).

    Rows that follow one another in time are not drawn independently; their drift is reported
    sooner.

    Sources: Benjamini & Yekutieli, The Control of the False Discovery Rate in Multiple Testing
    under Dependency, 2001; Rabanser et al., Failing Loudly, 2019 (arXiv:1810.11953), for tests of
    columns and of codes.

    >>> import pyarrow as pa
    >>> from refold.data.sources import read
    >>> rng = np.random.default_rng(0)
    >>> then = read({"age": rng.normal(38, 9, 400), "sex": rng.choice(["f", "m"], 400)})
    >>> now = read({"age": rng.normal(51, 9, 300), "sex": rng.choice(["f", "m"], 300)})
    >>> schema = Schema.fit(then, np.arange(400))
    >>> reference = Reference.of(schema.encode(then)[0], schema)
    >>> reference.compare(schema.encode(then)[0], schema) is None
    True
    >>> drift = reference.compare(schema.encode(now)[0], schema)
    >>> [change.words for change in drift.drifted]
    [('is higher (median 50.7, was 37.5)',)]
    """

    samples: Mapping[str, Matrix]

    @classmethod
    def of(cls, rows: Batch, schema: Schema, held_out: Batch | None = None) -> Reference:
        """Keep what is needed of all rows of a fit, and of those held out.

        Scales learnt from few rows of many entries suit those better than any other, so statistics
        of blocks are those of rows held out; without 30 of them blocks are not compared.
        """
        held = rows.rows(slice(0)) if held_out is None else held_out
        return cls(_summaries(rows, schema, True) | _summaries(held, schema, False))

    def compare(
        self,
        rows: Batch,
        schema: Schema,
        codes: tuple[NDArray[Any], NDArray[Any]] | None = None,
        *,
        alpha: float = 0.01,
    ) -> Drift | None:
        """How the ``rows`` differ from these; None where they do not, or are too few to tell.

        ``codes`` are those of rows held out of training and of new rows, ``[m, D]`` and ``[n, D]``.
        ``alpha`` is the share of false reports on rows that are like those of training.
        """
        assert 0 < alpha < 1, alpha
        if len(rows) < FEW or not self.samples:  # none in models saved before there were any
            return None
        now = _summaries(rows, schema, True) | _summaries(rows, schema, False)
        pairs = [
            Pair(own, k, title, self.samples[name][:, k], now[name][:, k])
            for name, own in schema.fields.items()
            for k, title in enumerate(_names(own))
        ]
        found = [pair.compared() for pair in pairs]
        p = np.array([p for c in found for p in (c.p_value, c.missing_p_value)])
        corrected = adjusted(p).reshape(-1, 2)
        changes = tuple(
            pair.judged(replace(c, p_value=values, missing_p_value=gaps), alpha / 2)
            for pair, c, (values, gaps) in zip(pairs, found, corrected.tolist(), strict=True)
        )
        distance, chance = (0.0, 1.0) if codes is None else apart(*codes, alpha=alpha / 2)
        elsewhere = chance <= alpha / 2 and distance >= FLOOR
        if not elsewhere and not any(c.drifted for c in changes):
            return None
        return Drift(changes, distance, chance, elsewhere)

    def tensors(self) -> dict[str, Tensor]:
        """Return what is saved."""
        return {f"drift_{name}": torch.from_numpy(s) for name, s in self.samples.items()}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Reference | None:
        """Rebuild from :meth:`tensors`; None where there is nothing."""
        own = {k: v.numpy() for k, v in tensors.items() if k.startswith("drift_")}
        return cls({k.removeprefix("drift_"): v for k, v in own.items()}) if own else None


# ---------------------------------------------------------------- what is kept of a field


def _by_entry(own: Field) -> bool:
    return not isinstance(own, Image | Series | Text) and len(own.sizes) <= WIDE


def _summaries(rows: Batch, schema: Schema, entries: bool) -> dict[str, Matrix]:
    """What is kept of some of the rows ``[m, S]``, of the fields compared by entry or of others."""
    few = rows.rows(chosen(len(rows), SAMPLE))
    return {
        name: _summary(own, few.x[name].cpu(), few.observed[name])
        for name, own in schema.fields.items()
        if _by_entry(own) == entries
    }


def _summary(own: Field, x: Tensor, observed: Tensor | None) -> Matrix:
    values = (own.index(x) if isinstance(own, Classes) else x).flatten(1).double()
    seen = torch.ones_like(values, dtype=torch.bool) if observed is None else observed.cpu()
    values = values.masked_fill(~seen, torch.nan)
    if _by_entry(own):
        return values.float().numpy()
    count = seen.sum(1)
    part = (count / values.shape[1]).masked_fill(count == 0, torch.nan)
    if isinstance(own, Text | Classes):
        # The numbers of tokens are names, of which no mean can be taken.
        rare = (values == UNK if isinstance(own, Text) else values < 0).sum(1) / count
        return torch.stack([part, rare], 1).float().numpy()
    mean = values.nanmean(1)
    spread = (values - mean[:, None]).square().nanmean(1).sqrt()
    low = values.nan_to_num(torch.inf).amin(1).masked_fill(count == 0, torch.nan)
    high = values.nan_to_num(-torch.inf).amax(1).masked_fill(count == 0, torch.nan)
    return torch.stack([part, mean, spread, low, high], 1).float().numpy()


def _names(own: Field) -> list[str]:
    """Names of what :func:`_summary` gives, as the sentence shows them."""
    if _by_entry(own):
        return [f"'{entry}'" for entry in own.entries]
    block = f"'{own.columns[0]}'" if len(own.columns) == 1 else f"{len(own.columns)} columns"
    if isinstance(own, Text):
        return [f"the length of {block}", f"the share of unknown tokens in {block}"]
    if isinstance(own, Classes):
        return [f"the observed part of {block}", f"the share of new values in {block}"]
    what = ("observed part", "mean", "spread", "lowest value", "highest value")
    return [f"the {w} of {block}" for w in what]


# ---------------------------------------------------------------- how two samples differ


@final
@dataclass(frozen=True)
class Pair:
    """One entry or statistic of a field, ``[m]`` then and ``[n]`` now, NaN where missing."""

    own: Field
    k: int
    name: str
    then: Matrix
    now: Matrix

    @property
    def observed(self) -> tuple[Values, Values]:
        """What there is of both."""
        then, now = (v[~np.isnan(v)].astype(np.float64) for v in (self.then, self.now))
        return then, now

    def compared(self) -> Change:
        """Compare values, and what is missing; p-values are not corrected yet."""
        then, now = self.observed
        missing, gaps = (0.0, 0.0), 1.0
        if len(self.then) < FEW:
            return Change(self.name, 0.0, 1.0, missing, gaps)
        # Rows to be judged may come without targets; a block that is missing lacks all statistics.
        if not self.own.target and (self.k == 0 or _by_entry(self.own)):
            m, n = len(self.then), len(self.now)
            absent = np.array([m - len(then)]), np.array([n - len(now)])
            missing = 1.0 - len(then) / m, 1.0 - len(now) / n
            gaps = float(exact(*absent, m, n)[0]) if any(missing) else 1.0
        if min(len(then), len(now)) < FEW:
            return Change(self.name, 0.0, 1.0, missing, gaps)
        found = levels_apart(*self.counts) if self.is_class else numbers_apart(then, now)
        return Change(self.name, *found, missing, gaps)

    def judged(self, change: Change, alpha: float) -> Change:
        """Say in words what is significant and large enough."""
        words: list[str] = []
        if change.p_value <= alpha and change.effect >= FLOOR:
            words.append(self._replaced() if self.is_class else self._moved())
        then, now = change.missing
        if change.missing_p_value <= alpha and abs(now - then) >= GAPS:
            words.append(f"is missing in {_share(now)} (was {_share(then)})")
        return replace(change, words=tuple(words))

    @property
    def is_class(self) -> bool:
        """Whether values are numbers of levels."""
        return isinstance(self.own, Classes) and _by_entry(self.own)

    @property
    def levels(self) -> tuple[Any, ...]:
        """Levels of a class."""
        assert isinstance(self.own, Classes)
        return self.own.levels[self.k]

    @property
    def counts(self) -> tuple[Counts, Counts]:
        """Rows of each level, and last of values never seen, then and now."""
        then, now = (counts(v, len(self.levels)) for v in self.observed)
        return then, now

    def _replaced(self) -> str:
        """Name the level whose share has changed most, where that is much."""
        then, now = (c / c.sum() for c in self.counts)
        top = int(np.abs(now - then).argmax())
        if abs(now[top] - then[top]) < FLOOR / 2:
            return "has its levels in other shares"
        new = top == len(self.levels)
        level = "values never seen in training" if new else f"'{self.levels[top]}'"
        word = "more" if now[top] > then[top] else "less"
        return f"has {word} {level} ({_share(now[top])}, was {_share(then[top])})"

    def _moved(self) -> str:
        """Say how numbers have moved: up or down, together or apart."""
        then, now = self.observed
        middle = float(np.median(then)), float(np.median(now))
        way = "higher" if middle[1] > middle[0] else "lower"
        if then.std() == 0:
            return "is no longer the same in every row"
        shift = abs(middle[1] - middle[0]) / float(then.std())
        before, after = (float(np.subtract(*np.quantile(v, (0.75, 0.25)))) for v in (then, now))
        ratio = after / before if min(before, after) > 0 else 1.0
        if max(shift, abs(math.log(ratio))) < MOVED:
            return "is distributed differently"
        if shift < abs(math.log(ratio)):
            return f"is {'wider' if ratio > 1 else 'narrower'} ({max(ratio, 1 / ratio):.2g} times)"
        shown = _in_units(self.own, self.k, middle)
        if shown is None or shown[0] == shown[1]:
            return f"is {way} (by {shift:.2g} deviations)"
        return f"is {way} (median {shown[1]}, was {shown[0]})"


# ---------------------------------------------------------------- words


def _in_units(own: Field, k: int, values: tuple[float, float]) -> tuple[str, str] | None:
    """Two values of an entry in the user's own units, where its kind has them."""
    if not (isinstance(own, Numeric | Count | Bounded | Vector) and _by_entry(own)):
        return None
    point = torch.zeros(2, len(own.sizes))
    point[:, k] = torch.tensor(values)
    if not isinstance(own, Bounded):
        # Values come back as they are, and not kept in the range of training.
        own = replace(own, low=(-torch.inf,) * len(own.low), high=(torch.inf,) * len(own.high))
    found = own.to_values(point)
    if own.block:
        then, now = np.asarray(found[own.columns[0]])[:, k].tolist()
    else:
        try:
            then, now = scalar(found[own.columns[k]]).to_pylist()
        except (OverflowError, ValueError):  # times so far out that they are none
            return None
    return _written(then, now), _written(now, then)


def _written(value: Any, other: Any) -> str:
    if isinstance(value, dt.datetime):
        return value.isoformat(" ", "minutes")
    if not isinstance(value, float):
        return str(value)
    if abs(value) < 1e-5 * abs(other):
        return "0"  # but for rounding in single precision
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


def _share(value: float) -> str:
    return f"{value:.0%}" if value == 0 or value >= 0.1 else f"{value:.1%}"
