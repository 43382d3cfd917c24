"""How well an order of rows is mixed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def mixing(order: NDArray[np.int64], sizes: Sequence[int]) -> float:
    r"""How well an epoch's batches mix the rows of a file: 1 as a permutation of all would.

    .. math:: \Big(\frac{1}{K}\sum_b \frac{(m_b - \mu)^2}{v_b}\Big)^{-1}, \qquad
              v_b = \frac{\sigma^2}{B_b} \frac{N - B_b}{N - 1}

    ``order`` ``[N]`` are the rows' places in the file, in the order of the epoch; :math:`m_b` is
    the mean place in batch b of the K, of :math:`B_b` rows, :math:`\mu` and :math:`\sigma^2` mean
    and variance of all places, and :math:`v_b` what the mean's is under a random permutation. A
    table in the order of time has a trend in every column: one over this figure is by how much the
    variance of that trend in the gradients is larger than it need be. File order gives about
    :math:`1 / B`. It is a draw itself, off by :math:`\sqrt{2 / K}` or so.

    Source: Kish, Survey Sampling, 1965, for the design effect, of which it is the inverse.

    >>> shuffled = np.random.default_rng(0).permutation(100_000)
    >>> round(mixing(shuffled, [100] * 1000), 1), round(mixing(np.sort(shuffled), [100] * 1000), 3)
    (1.0, 0.01)
    """
    n = len(order)
    places = order - order.mean()
    wide = np.array(sizes)
    means = np.add.reduceat(places, np.cumsum(wide) - wide) / wide
    expected = places.var() / wide * (n - wide) / (n - 1)
    return float(1 / np.mean(np.square(means) / expected))
