"""Principal components in closed form."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from refold.ops import products

WIDE_RANK = 128  # components of wider rows than that, where no number is asked for
EXACT_WIDTH = 4096  # above this many entries the covariance itself is too large to decompose
MANY = 256  # entries from which products may be in single precision
MOST = 50_000_000  # numbers that are held in double precision, or made of classes, at a time


@dataclass(frozen=True)
class Principal:
    """Principal components: ``mean`` ``[E]``, orthonormal ``axes`` ``[E, k]``, their variances.

    ``total`` is the variance of all entries together, so ``variance.sum() / total`` is kept.
    """

    mean: Tensor
    axes: Tensor
    variance: Tensor
    total: float

    def to(self, device: torch.device | str) -> Principal:
        """Copy to a device."""
        return Principal(
            self.mean.to(device), self.axes.to(device), self.variance.to(device), self.total
        )


def principal_components(
    x: Tensor, k: int | None = None, chunk: int = 8192, *, exact: bool = True
) -> Principal:
    r"""Leading eigenvectors of the covariance of ``x`` ``[n, E]``, accumulated in float64.

    .. math:: \Sigma = \tfrac1n \sum_i (x_i - \mu)(x_i - \mu)^\top = V \Lambda V^\top

    Where not ``exact``, products of some thousand rows at a time are in single precision from 256
    entries on where that is faster: variances then have an error of some 1e-8 of the largest.

    Above 4,096 entries a randomised range finder (Halko, Martinsson & Tropp 2011, four power
    iterations) replaces the exact decomposition, on rows spread over all: at most 20,000, and at
    most 50 million numbers.

    >>> x = torch.tensor([[-2.0, 0.0], [2.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    >>> principal_components(x, 1).variance
    tensor([2.], dtype=torch.float64)
    """
    n, width = x.shape
    if k is None:
        k = WIDE_RANK if width > EXACT_WIDTH else width
    k = min(k, n, width)
    mean = x.mean(0, dtype=torch.float64)
    if width > EXACT_WIDTH:
        rows = x[:: -(-n // max(k, min(20_000, MOST // width)))].double() - mean
        _, singular, axes = torch.svd_lowrank(rows, q=min(k + 8, *rows.shape), niter=4)
        total = float(rows.square().sum() / len(rows))
        return Principal(mean, axes[:, :k], singular[:k].square() / len(rows), total)
    covariance = torch.zeros(width, width, dtype=torch.float64, device=x.device)
    for start in range(0, n, chunk):
        centred = x[start : start + chunk].double() - mean
        single = centred.to(x.dtype).T
        if not exact and width >= MANY and products.pays(single, width):
            covariance += products.linear(single, single)
        else:
            covariance.addmm_(centred.T, centred)
    covariance /= n
    variance, axes = torch.linalg.eigh(covariance)
    variance = variance.flip(0).clamp_min(0)
    return Principal(mean, axes.flip(1)[:, :k], variance[:k], float(variance.sum()))
