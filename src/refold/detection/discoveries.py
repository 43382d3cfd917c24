"""Which of many rows to call anomalies, so that few of those called are none."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.stats
from numpy.typing import ArrayLike, NDArray

from refold.errors import InputError

stats: Any = scipy.stats
"""SciPy's functions, whose types are those of any array."""


def benjamini_hochberg(p_values: ArrayLike, q: float = 0.1) -> NDArray[np.bool_]:
    r"""Which of ``n`` rows are discoveries ``[n]``, of which on average at most a share q is none.

    .. math:: \{i : p_i \le p_{(k)}\}, \qquad k = \max\{i : p_{(i)} \le q\, i / n\}

    Where :math:`n_0` rows are like those of training, the expected share of them among the
    discoveries (the false discovery rate) is at most :math:`q\, n_0 / n`. That holds for p-values
    that share their calibration rows, ``anomalies(...)["p_value"]``, because those depend on one
    another in a way that does no harm. Of :math:`m` calibration rows the smallest p-value is
    :math:`1 / (1 + m)`; where it is above :math:`q / n`, one anomaly alone cannot be discovered.

    Raises :class:`InputError` for ``q`` outside (0, 1), for p-values outside [0, 1] or NaN, and for
    other than one axis of them.

    Sources: Benjamini & Hochberg, Controlling the False Discovery Rate, 1995; Bates et al.,
    Testing for Outliers with Conformal p-values, 2023 (arXiv:2104.08279).

    >>> benjamini_hochberg([0.001, 0.3, 0.04, 0.9], q=0.1).tolist()
    [True, False, True, False]
    """
    if not 0 < q < 1:
        raise InputError(f"q is {q}, the share of false discoveries; give one between 0 and 1")
    p = np.asarray(p_values, dtype=np.float64)
    if p.ndim != 1:
        raise InputError(f"p-values have shape {p.shape}; give one for each row, as in (n,)")
    wrong = ~((p >= 0) & (p <= 1))
    if wrong.any():
        row = int(wrong.argmax())
        raise InputError(f"the p-value of row {row} is {p[row]}; expected numbers from 0 to 1")
    if not len(p):
        return np.zeros(0, dtype=np.bool_)
    # A p-value that lies on its line exactly counts, however the division by its rank was rounded.
    return stats.false_discovery_control(p, method="bh") <= q * (1 + 1e-12)
