"""Evidence from where most rows lie."""

from __future__ import annotations

from typing import Any, final

import numpy as np
import sklearn.covariance
import torch
from torch import Tensor

from refold import inference
from refold.data.schema import Schema
from refold.detection.base import Evidence, observed, parted, register
from refold.detection.values import Values
from refold.model import Model, Output
from refold.types import Batch

CORE, ROUNDS = 0.7, 5  # share of the rows that the shape is learnt from, and how often it is again
MOST = 8192  # rows that it is learnt from
sklearn_covariance: Any = sklearn.covariance
"""scikit-learn's estimators, whose types are those of any array."""


@final
@register("mahalanobis")
class Mahalanobis(Evidence):
    r"""Distance from the centre of the rows, as far as their spread has it usual.

    .. math:: f(x) = \frac1{\bar f} \sqrt{(x - \mu)^\top \Sigma^{-1} (x - \mu)}

    in the values of the outputs, classes as indicators, missing entries at the mean. Mean and
    covariance are those of the seven tenths of the rows that lie nearest, found by taking them
    again and again, with Ledoit's and Wolf's shrinkage. An entry's share is the size of its term in
    the sum.

    Sources: Rousseeuw & Van Driessen, A Fast Algorithm for the Minimum Covariance Determinant
    Estimator, 1999, for the repeated choice; Ledoit & Wolf, A Well-Conditioned Estimator for
    Large-Dimensional Covariance Matrices, 2004.

    >>> import refold
    >>> x = torch.randn(200, 4, generator=torch.Generator().manual_seed(0)).numpy()
    >>> ae = refold.Autoencoder(2, recipe="pca", evidence=("mahalanobis",)).fit(x)
    >>> float(ae.score_samples(x * 5).mean()) < -4
    True
    """

    middle: Tensor
    inverse: Tensor
    unit: Tensor

    def __init__(self, *, when: str = "always") -> None:
        super().__init__(when)
        self.values = Values()

    def learn(self, model: Model, rows: Batch, schema: Schema) -> None:
        """Learn centre and covariance."""
        self.values.learn(model, rows)
        few = rows.rows(slice(None, None, -(-len(rows) // MOST)))
        x = np.concatenate(
            [
                self._filled(o)[:n].double().cpu().numpy()
                for o, n in inference.outputs(model, few, schema)
            ]
        )
        shape = sklearn_covariance.LedoitWolf().fit(x)
        for _ in range(ROUNDS):
            distance = shape.mahalanobis(x)
            shape = sklearn_covariance.LedoitWolf().fit(x[distance <= np.quantile(distance, CORE)])
        distance = shape.mahalanobis(x)
        device = model.fusion.last_bias().device
        self.keep(
            middle=torch.from_numpy(shape.location_).float().to(device),
            inverse=torch.from_numpy(shape.precision_).float().to(device),
            unit=torch.tensor(float(np.sqrt(distance).mean()), device=device).clamp_min(1e-6),
        )

    def figures(self, output: Output) -> Tensor:
        """Distance from the centre, ``[B, 1]``; 1 where nothing was observed."""
        figure = self._terms(output).sum(1, keepdim=True).clamp_min(0.0).sqrt() / self.unit
        there = observed(output)
        return figure if there is None else figure.masked_fill(~there.any(1, keepdim=True), 1.0)

    def shares(self, output: Output) -> Tensor:
        """Size of each entry's term."""
        return parted(self.values.by_entry(self._terms(output)).abs())

    def _terms(self, output: Output) -> Tensor:
        x, there = self.values(output)
        away = x - self.middle
        if there is not None:
            away = away.masked_fill(~there, 0.0)  # the centre is where what is missing may be
        return away * (away @ self.inverse)

    def _filled(self, output: Output) -> Tensor:
        x, there = self.values(output)
        return x if there is None else x.masked_fill(~there, 0.0)
