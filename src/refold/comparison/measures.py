"""Measures that models of any recipe share: what comes back, who stays near, what a label needs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression, RidgeCV
from sklearn.neighbors import NearestNeighbors
from torch import Tensor

from refold.data.schema import Override, Schema, judge
from refold.errors import InputError
from refold.fields import Field
from refold.fields.category import Classes
from refold.model import Model
from refold.table import Column
from refold.training.start import design
from refold.types import Batch
from refold.uses.inspect import examine

NEAR = 10  # neighbours of a row
SHOWN = 2000  # rows whose neighbours are looked for
PROBED = 10_000  # rows that a probe learns from
NUMBERS = 50_000_000  # of rows as encoded, in one matrix
RIDGES = tuple(10.0**e for e in range(-3, 4))

Codes = NDArray[np.floating]


def unexplained(model: Model, schema: Schema, train: Batch, test: Batch) -> dict[str, float]:
    r"""Share of each column that does not come back, ``{column: share}``: 0 is all of it.

    .. math:: \frac{\operatorname{mean}_{test} (x - \hat x)^2}{\operatorname{var}_{train}(x)}
              \quad\text{of numbers}, \qquad
              1 - \operatorname{mean}_{test} [x = \hat x] \quad\text{of classes}

    :math:`\hat x` is the best single value, whatever the likelihood. A block (a vector, an image)
    is one column: its errors and variances are summed over its entries. NaN where no test row has
    a value, or no two training rows differ.
    """
    points = examine(model, test, schema).points
    found: dict[str, float] = {}
    for name in model.rebuilt:
        own, point = schema.fields[name], points[name]
        if isinstance(own, Classes):
            x, missed = _seen(test, name), own.index(test.x[name].flatten(1)) != own.index(point)
            shares = missed.float().masked_fill(x.isnan(), torch.nan).nanmean(0)
        else:
            errors = (_seen(test, name) - point).square().nanmean(0).double()
            spread = _variance(_seen(train, name))
            known = ~errors.isnan() & (spread > 1e-12)
            errors, spread = errors.where(known, 0), spread.where(known, 0)
            if own.block:
                errors, spread = errors.sum(0, keepdim=True), spread.sum(0, keepdim=True)
            shares = errors / spread
        found |= dict(zip(own.columns, shares.tolist(), strict=True))
    return {c: found[c] for c in schema.order if c in found}


def _seen(rows: Batch, name: str) -> Tensor:
    """Entries of a field ``[n, E]`` as numbers, NaN where missing."""
    x, seen = rows.x[name].flatten(1).float(), rows.observed[name]
    return x if seen is None else x.masked_fill(~seen, torch.nan)


def _variance(x: Tensor) -> Tensor:
    return (x - x.nanmean(0)).square().nanmean(0).double().nan_to_num(0.0)


def views(schema: Schema, rows: Batch) -> Codes:
    """Rows as the encoder is fed them, one matrix ``[m, V]``: classes as indicators.

    The first 2,000 rows, or fewer of very wide ones. It is the same for every recipe.
    """
    heads = {k: own.head() for k, own in schema.fields.items() if not own.target}
    wide = sum(h.linear_view(rows.x[k][:1]).shape[1] for k, h in heads.items())
    some = rows.only(tuple(heads)).rows(slice(0, max(1, min(SHOWN, NUMBERS // wide))))
    return design(heads, some).numpy()


def neighbours_kept(inputs: Codes, codes: Codes, k: int = NEAR) -> float:
    r"""Share of each row's ``k`` nearest rows that are among the ``k`` nearest by code.

    .. math:: \frac1{nk} \sum_i \lvert N_k(x_i) \cap N_k(z_i) \rvert

    ``inputs`` ``[n, V]`` and ``codes`` ``[n, D]``; Euclidean distances. A code that knows nothing
    keeps :math:`k / (n - 1)` of them. Of few rows, at most half the others are near; NaN below 3.

    >>> x = np.arange(12.0)[:, None]
    >>> neighbours_kept(x, -2 * x, 3), neighbours_kept(x, x % 4, 3) < 1
    (1.0, True)
    """
    k = min(k, (len(inputs) - 1) // 2)
    if k < 1:
        return float("nan")
    near = [
        NearestNeighbors(n_neighbors=k).fit(x).kneighbors(return_distance=False)
        for x in (inputs, codes)
    ]
    return float((near[0][:, :, None] == near[1][:, None, :]).any(2).mean())


@dataclass(frozen=True, eq=False)
class Labels:
    """A column to be told from codes: a class or a number per row, NaN where it is missing.

    ``column`` holds the values as they came.
    """

    name: str
    column: Column
    values: NDArray[np.float64]
    classes: bool

    @classmethod
    def of(cls, name: str, column: Column, kind: Override = None) -> Labels:
        """Judge a column as a schema would; :class:`InputError` for one that says nothing."""
        if isinstance(column, np.ndarray):
            raise InputError(
                f"label '{name}' holds arrays; name a column of classes or of single numbers"
            )
        own = judge(name, column, kind, label=False)
        if not isinstance(own, Field):
            raise InputError(
                f"label '{name}' cannot be told from codes: it is {own.reason}; name another column"
            )
        columns = {name: column}
        own = dataclasses.replace(own, columns=(name,)).fit(columns)
        x, seen, _ = own.to_tensor(columns)
        values = (own.index(x) if isinstance(own, Classes) else x)[:, 0].double()
        values = values if seen is None else values.masked_fill(~seen[:, 0], torch.nan)
        return cls(name, column, values.numpy(), isinstance(own, Classes))

    def guess(self, test: NDArray[np.int64]) -> float:
        """Return what the best constant gets: the commonest class's share, 0 of numbers."""
        known = self.values[test][~np.isnan(self.values[test])]
        if not self.classes or len(known) == 0:
            return 0.0
        return float(np.unique(known, return_counts=True)[1].max() / len(known))

    def probe(
        self, codes: Mapping[str, Codes], train: NDArray[np.int64], test: NDArray[np.int64]
    ) -> float:
        r"""Tell the label of ``test`` rows by a linear map of codes, learnt on ``train`` rows.

        Classes: share of right answers of a logistic regression, on codes divided by one number.
        Numbers: :math:`R^2` of a ridge regression. ``codes`` are of the rows at the positions
        ``train`` and ``test``, under these names. NaN where there is nothing to tell apart.

        Source: Alain & Bengio, Understanding intermediate layers using linear classifier probes,
        2016 (arXiv:1610.01644).
        """
        parts = {"train": self.values[train], "test": self.values[test]}
        known = {k: ~np.isnan(v) for k, v in parts.items()}
        y, asked = (parts[k][known[k]] for k in ("train", "test"))
        z, new = (codes[k][known[k]].astype(np.float64) for k in ("train", "test"))
        if len(np.unique(y)) < 2 or len(asked) < (1 if self.classes else 2):
            return float("nan")
        y, z = y[:PROBED], z[:PROBED]
        centre = z.mean(0)
        scale = float(np.sqrt(np.square(z - centre).mean())) or 1.0
        head = LogisticRegression(max_iter=2000) if self.classes else RidgeCV(RIDGES)
        return float(head.fit((z - centre) / scale, y).score((new - centre) / scale, asked))
