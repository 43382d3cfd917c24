"""How an estimator judges rows: scores, p-values, causes, drift."""

from __future__ import annotations

import os
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection
from copy import copy
from dataclasses import replace
from typing import Any, Self, TypeVar

import numpy as np
from numpy.typing import NDArray
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from refold import inference
from refold.data.containers import frame
from refold.data.schema import Schema
from refold.detection import Calibration, Detector, Drift, Reference, Rule, causes, judge
from refold.detection.detector import ENOUGH
from refold.detection.two_samples import chosen
from refold.errors import InputError, InputWarning
from refold.hints import fits
from refold.inference import Pending
from refold.model import Model
from refold.table import Table
from refold.types import Batch
from refold.uses.portions import Portions
from refold.wording import counted

J = TypeVar("J", bound="Judging")

DRIFTING = 400  # rows whose codes tell whether rows have changed
FEWEST = 10  # rows that others can be compared with
MOST_CAUSES = 1_000_000  # of a row; beyond, something was mistyped


class Judging(ABC):
    """What a fitted model and its detector say of rows: how unusual, how sure, and why."""

    model_: Model
    schema_: Schema
    detector_: Detector
    calibration_: Calibration
    reference_: Reference
    memory: int | str | None

    @abstractmethod
    def _read(self, X: Any) -> Table:
        """Rows as columns."""

    @abstractmethod
    def _encode(self, table: Table, absent: Collection[str] = ()) -> Batch:
        """Rows as tensors."""

    def _rows(self, X: Any, made: int = 0) -> Table | Portions:
        """Rows as columns, or in portions where those of files do not fit in memory.

        ``made`` are the bytes that will be made of a row.
        """
        if not isinstance(X, str | os.PathLike):
            return self._read(X)
        found = Portions.of(X, self.memory, made)
        return found if found.parted else self._read(found.rows)

    def _by_portions(
        self, table: Table, work: Callable[[Batch | Pending], Tensor], *, whole: bool = False
    ) -> Tensor:
        """Do ``work`` on rows as tensors; plain numbers of many rows are encoded on the way.

        What there is to remark on, or to refuse, is said of the ``whole`` table.
        """
        if whole or not Pending.suits(table, self.schema_, self.model_):
            return work(self._encode(table))
        rows = Pending(table, self.schema_)
        try:
            found = work(rows)
        except InputError:
            self._encode(table)
            raise
        if rows.remarked:
            self._encode(table)
        return found

    def score_samples(self, X: Any) -> NDArray[np.float64]:
        """How normal each row is, ``[n]``; higher is more normal.

        With evidence, as in ``recipe="anomaly"``, minus how unusual the row is: of -1 where it is
        as rows of training are, of -2 where it is twice as far from what is expected. Else minus
        its weighted cost, in nats with ``weights="equal"``; a target costs where its value is
        there.
        """
        check_is_fitted(self)
        given = self._rows(X)
        if isinstance(given, Portions):
            own = facing(self, given)
            return np.concatenate(list(given.each(own.score_samples)))
        found = self._by_portions(
            given,
            lambda rows: judge.scores(self.model_, self.detector_, rows, self.schema_),
            whole=bool(self.detector_.parts),
        )
        return -found.numpy()

    def score(self, X: Any, y: Any = None) -> float:
        """Mean of :meth:`score_samples`, so that a search can maximise it."""
        return float(self.score_samples(X).mean())

    def anomalies(
        self,
        X: Any,
        alpha: float | None = None,
        *,
        contamination: float | None = None,
        expected: float | None = None,
        fdr: float | None = None,
    ) -> Any:
        """Judge each row: ``score``, ``p_value``, ``is_anomaly`` and ``cause``, as a frame.

        ``p_value`` is the rank of the row's score among those of held-out rows (of a row of the
        fit, among those of the fit). Anomalies are rows with a p-value up to ``alpha`` (0.01 unless
        said, a false-positive rate), or the share ``contamination`` of the rows of ``X`` that is
        most unusual, or so few that ``expected`` false alarms are to be expected among them, or so
        many that on average at most a share ``fdr`` of them is none; see
        :class:`refold.detection.Rule`. A warning says when so few rows were held out that none can
        be flagged. ``cause`` is the column, entry or pixel with the largest share of the score;
        :meth:`explain` says more.
        """
        table = self._read(X)
        judged = self._judged(table, Rule(alpha, contamination, expected, fdr))
        return frame(judged, table.container)

    def judge(
        self,
        X: Any,
        alpha: float | None = None,
        *,
        contamination: float | None = None,
        expected: float | None = None,
        fdr: float | None = None,
    ) -> dict[str, NDArray[np.generic]]:
        """Columns of :meth:`anomalies` as plain arrays."""
        return self._judged(self._read(X), Rule(alpha, contamination, expected, fdr))

    def _judged(self, table: Table, rule: Rule) -> dict[str, NDArray[np.generic]]:
        """Judge rows, and say where too few are there to compare with."""
        check_is_fitted(self)
        rows = self._encode(table)
        found = judge.judge(
            self.model_, self.detector_, self.calibration_, rows, self.schema_, rule
        )
        lowest = float(found["p_value"].astype(np.float64).min())
        flagged = int(found["is_anomaly"].sum())
        sentence = judge.doubt(self.calibration_, rule, len(rows), lowest, flagged)
        if sentence is not None:
            warnings.warn(sentence, InputWarning, stacklevel=3)
        return found

    def explain(self, X: Any, top: int = 3) -> Any:
        """Say of each row what raised its score, as a frame of ``top`` causes a row.

        Columns: ``row`` (its position), ``cause`` (the column, entry or pixel; of a series the
        steps from the first to the last, ``name[40:52]``), the value ``seen`` there and the one
        ``expected`` given the rest of the row (means over steps), the ``share`` of the row's score
        and its ``p_value``, the share of held-out rows in which that entry adds as much (of several
        steps times their number; NaN for rows of the fit), for that entry by itself: among many
        entries some are unusual in any row. Causes of a row are in order, the first that of
        :meth:`anomalies`.

        >>> import numpy as np
        >>> X = np.random.default_rng(0).normal(size=(300, 1)) @ np.ones((1, 4))
        >>> X[0, 2] += 6
        >>> from refold import Autoencoder
        >>> ae = Autoencoder(recipe="anomaly", epochs=2).fit(X[1:])
        >>> str(ae.explain(X[:1], top=1)["cause"][0])
        'x2'
        """
        check_is_fitted(self)
        if not fits(top, int) or not 1 <= top <= MOST_CAUSES:
            raise InputError(f"asked for {top!r} causes; ask for a whole number, 1 or more")
        table = self._read(X)
        rows = self._encode(table)
        found = causes.explain(
            self.model_, self.detector_, self.calibration_, rows, self.schema_, top, table
        )
        return frame(found, table.container)

    def contributions(self, X: Any) -> dict[str, NDArray[np.float32]]:
        """What every entry adds to minus :meth:`score_samples`, by field ``{name: [n, *shape]}``.

        Of images this is a heat map, of series one number per step. With evidence, as in
        ``recipe="anomaly"``, they add up to the score; without, the costs of the code join them.
        """
        check_is_fitted(self)
        rows = self._encode(self._read(X))
        added = judge.contributions(self.model_, self.detector_, rows, self.schema_).numpy()
        names = judge.judged_fields(self.model_, self.detector_)
        ends = np.cumsum([rows.x[k][0].numel() for k in names])
        parts = np.split(added, ends[:-1], axis=1)
        return {k: p.reshape(rows.x[k].shape) for k, p in zip(names, parts, strict=True)}

    def drift(self, X: Any, alpha: float = 0.01) -> Drift | None:
        """Say how rows as a whole differ from those of the fit, or None where nothing is found.

        Where many rows are anomalies at once, it may be the data that changed: ``sentence`` names
        the columns that did, ``changes`` has all comparisons. Of rows like those of the fit at most
        a share ``alpha`` of batches is reported; see :class:`refold.detection.Reference`.

        >>> import numpy as np
        >>> X = np.random.default_rng(0).normal(size=(300, 3))
        >>> from refold import Autoencoder
        >>> Autoencoder(2, recipe="pca").fit(X).drift(X + [0, 5, 0]).sentence.split(":")[1][:16]
        " 'x1' is higher "
        """
        check_is_fitted(self)
        if not fits(alpha, float) or not 0 < alpha < 1:
            raise InputError(f"alpha is {alpha!r}; it must lie between 0 and 1")
        rows = self._encode(self._read(X))
        return drifted(self, rows, rows.rows(chosen(len(rows), DRIFTING)), alpha)

    def recalibrate(self, X: Any) -> Self:
        """Compare later rows with these, which are clean and were not learnt from.

        P-values, flags and the reports of drift are then those of the new rows; scores stay.
        Raises :class:`InputError` below ten rows, which nothing can be compared with.
        """
        check_is_fitted(self)
        rows = self._encode(self._read(X))
        if len(rows) < FEWEST:
            raise InputError(
                f"got {counted(len(rows), 'row')} to compare with; give {FEWEST} or more, 99 for "
                f"an alpha of 0.01"
            )
        known = int(judge.learnt(self.model_, self.detector_, rows, self.schema_).sum())
        if known:
            warnings.warn(
                f"{known} of the {len(rows)} rows were in the fit, so p-values of new rows will be "
                f"too small; recalibrate with rows that were not",
                InputWarning,
                stacklevel=2,
            )
        found = Calibration.of(self.model_, self.detector_, rows, self.schema_, held_out=True)
        self.calibration_ = replace(found, learnt=self.calibration_.learnt)
        self.reference_ = Reference.of(rows, self.schema_, rows)
        return self


def facing(judging: J, rows: Portions) -> J:
    """Return a model as it judges all these rows, whichever of them are at hand.

    Where rows of its fit recur, that depends on how many of all rows are of the fit.
    """
    recurred = judging.detector_.recurred
    if not rows.parted or recurred is None or not len(recurred):
        return judging
    some = rows.take(np.arange(0, len(rows), -(-len(rows) // ENOUGH)))
    found = judging.detector_.facing(judging.schema_.encode(some)[0])
    same = copy(judging)
    same.detector_ = Detector(found.parts, found.setting, found.known)
    return same


def drifted(judging: Judging, rows: Batch, few: Batch, alpha: float = 0.01) -> Drift | None:
    """Say how rows differ from those of the fit, with the codes of a ``few`` of them."""
    known, codes = judging.calibration_, None
    if known.held_out and len(known.codes):
        own = inference.embed(judging.model_, few, judging.schema_)
        codes = known.codes, own.float().numpy()
    return judging.reference_.compare(rows, judging.schema_, codes, alpha=alpha)
