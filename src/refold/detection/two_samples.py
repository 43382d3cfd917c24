"""Two samples: how far apart they are, and how often chance alone gives as much."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import scipy.stats
import torch
from numpy.typing import NDArray
from torch import Tensor

FEW = 30  # values below which nothing can be told
MANY = 500  # values of either side from which the chi-squared distribution holds far out
EXPECTED = 5.0  # rows of a level expected on either side, below which it is pooled with others
CODES = 400  # codes of either side, all distances of which are taken
SEED = 7_141_902  # of what is drawn; the same every time

stats: Any = scipy.stats
"""SciPy's tests, whose results a type checker sees as tuples without names."""

Values = NDArray[np.float64]
Counts = NDArray[np.int64]


def chosen(n: int, most: int) -> Tensor:
    """Positions of ``most`` of ``n`` rows, or of all, drawn the same way every time, ascending.

    >>> chosen(4, 10)
    tensor([0, 1, 2, 3])
    """
    if n <= most:
        return torch.arange(n)
    drawn = np.random.default_rng(SEED).choice(n, most, replace=False)
    return torch.from_numpy(np.sort(drawn))


def apart(then: NDArray[Any], now: NDArray[Any], *, alpha: float = 0.005) -> tuple[float, float]:
    r"""Distance of two samples of codes ``[m, D]`` and ``[n, D]``, 0 to 1, and its p-value.

    .. math:: \sqrt{\frac{2 E|X - Y| - E|X - X'| - E|Y - Y'|}{2 E|X - Y|}}

    which is 0 for one distribution and 1 for two points apart: by how much a way from one sample
    to the other is longer than one within. Two normals a quarter of their deviation apart are at
    0.12. At most 400 codes of either are taken. The p-value comes from exchanging codes at random,
    so often that it can be below ``alpha``. Fewer than 30 codes tell nothing: 0 and 1.

    Source: Székely & Rizzo, Energy Statistics, 2013 (doi:10.1016/j.jspi.2013.03.018).

    >>> rng = np.random.default_rng(0)
    >>> apart(rng.normal(size=(200, 2)), rng.normal(size=(200, 2)) + 1)[1] < 0.005
    True
    """
    if min(len(then), len(now)) < FEW:
        return 0.0, 1.0
    few = [torch.from_numpy(z)[chosen(len(z), CODES)].flatten(1).double() for z in (then, now)]
    (m, n), both = map(len, few), torch.cat(few)
    both = (both - both.mean(0)).float()
    way = torch.cdist(both, both)
    # Distances are taken once; a round of exchange is a column of one matrix product.
    rounds = math.ceil(1.0 / alpha)
    first = np.tile(np.arange(m + n) < m, (rounds, 1))
    first = np.random.default_rng(SEED).permuted(first, axis=1)
    mine = torch.cat([(torch.arange(m + n) < m)[None], torch.from_numpy(first)]).float().T
    total = way.sum(1)
    to_mine = way @ mine
    within = (mine * to_mine).sum(0).double()
    across = ((1.0 - mine) * to_mine).sum(0).double()
    others = total.double().sum() - within - 2.0 * across
    between = 2.0 * across / (m * n)
    energy = between - within / (m * (m - 1)) - others / (n * (n - 1))
    chance = (1 + int((energy[1:] >= energy[0]).sum())) / (1 + rounds)
    ratio = float(energy[0] / between[0].clamp_min(1e-300))
    return math.sqrt(max(ratio, 0.0)), chance


def numbers_apart(then: Values, now: Values) -> tuple[float, float]:
    r"""Largest distance of two distribution functions, and its p-value.

    .. math:: \sup_v | F(v) - G(v) |

    Source: Smirnov, Table for Estimating the Goodness of Fit of Empirical Distributions, 1948.

    >>> numbers_apart(np.arange(60.0), np.arange(60.0) + 30)[0]
    0.5
    """
    found = stats.ks_2samp(then, now, method="asymp")
    return float(found.statistic), float(found.pvalue)


def levels_apart(then: Counts, now: Counts) -> tuple[float, float]:
    r"""Total variation of two samples of levels, counted ``[L]``, and its p-value.

    .. math:: \tfrac12 \sum_l \left| \frac{a_l}{\sum a} - \frac{b_l}{\sum b} \right|

    Of 500 values and more on either side by :math:`\chi^2`; of fewer, where that goes wrong far
    out, by Fisher's exact test of each level, the smallest p-value times the number of levels. The
    last count is of values never seen, see :func:`comparable`.

    >>> levels_apart(np.array([300, 300, 0]), np.array([200, 400, 0]))[0].__round__(3)
    0.167
    """
    table, sizes = comparable(then, now)
    if table.shape[1] < 2:
        return 0.0, 1.0
    if min(sizes) >= MANY:
        p = float(stats.chi2_contingency(table).pvalue)
    else:
        p = min(1.0, float(exact(table[0], table[1], *sizes).min()) * table.shape[1])
    return float(np.abs(table[0] / sizes[0] - table[1] / sizes[1]).sum()) / 2, p


def comparable(then: Counts, now: Counts) -> tuple[Counts, tuple[int, int]]:
    """Levels that can be compared, ``[2, L]``, and the number of values of either side.

    Levels too rare to be tested make one together, with values never seen: levels that training
    happened to miss are then no drift, as long as they are as many as its own rare ones.
    """
    count = np.stack([then, now])
    sizes = int(then.sum()), int(now.sum())
    least = EXPECTED * sum(sizes) / min(sizes)
    enough = count.sum(0) >= least
    enough[-1] = False  # the last are values never seen
    rest = count[:, ~enough].sum(1, keepdims=True)
    table = np.concatenate([count[:, enough], rest], 1)
    return table[:, table.sum(0) >= least], sizes


def counts(values: Values, levels: int) -> Counts:
    """Rows of each level, and last of values never seen, which are numbers below 0."""
    index = np.where(values < 0, levels, values).astype(np.int64)
    return np.bincount(index, minlength=levels + 1)


def exact(then: Counts, now: Counts, m: int, n: int) -> NDArray[np.float64]:
    """Fisher's exact p-values, twice the smaller tail, of counts among ``m`` and ``n`` rows."""
    low = stats.hypergeom.cdf(now, m + n, then + now, n)
    high = stats.hypergeom.sf(now - 1, m + n, then + now, n)
    return np.minimum(1.0, 2.0 * np.minimum(low, high))


def adjusted(p_values: Values) -> Values:
    r"""P-values of many tests, each of which may be held against the level of all.

    .. math:: p'_{(i)} = \min_{k \ge i} \min\Big(1, \frac{n}{k} p_{(k)} \sum_{j=1}^n \frac1j\Big)

    Of :math:`n` tests, however they depend on one another, the expected share of false reports is
    at most the level; where nothing differs, so is the probability of any.

    Source: Benjamini & Yekutieli, The Control of the False Discovery Rate in Multiple Testing
    under Dependency, 2001.

    >>> adjusted(np.array([0.01, 0.5])).round(3).tolist()
    [0.03, 0.75]
    """
    return stats.false_discovery_control(p_values, method="by")
