"""Rows to learn from, the same for every contestant, and how well they come back."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from contest import Found

Rows = NDArray[np.float32]

HELD = 1000  # further rows that refold holds out; the others get none, and no fewer to learn from
JUDGED = 10_000  # rows by which what was learnt is compared


def table(n: int, columns: int, inside: int = 6) -> Rows:
    """A smooth map of ``inside`` numbers to standardised columns, with noise of a tenth."""
    fixed = np.random.default_rng(0)
    into = fixed.normal(size=(inside, 40)).astype(np.float32) / np.float32(inside**0.5)
    out = fixed.normal(size=(40, columns)).astype(np.float32)
    draw = np.random.default_rng(1)
    x = np.tanh(draw.standard_normal((n, inside), np.float32) @ into) @ out
    x = (x - x.mean(0)) / x.std(0)
    return x + np.float32(0.1) * draw.standard_normal(x.shape, np.float32)


def pixels(n: int, inside: int = 6) -> Rows:
    """The same map to 784 numbers between 0 and 1."""
    return 1 / (1 + np.exp(-2 * table(n, 784, inside)))


def judged(x: Rows, found: object, products: str = "float32") -> Found:
    """Mean squared error of an entry over the first rows, of which ``found`` is what came back."""
    back = np.asarray(found)[:JUDGED].reshape(-1, x[0].size)
    return Found(float(np.square(back - x[: len(back)].reshape(back.shape)).mean()), products)
