"""Ways from one code to another, and the rows whose codes are nearest."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from sklearn.neighbors import NearestNeighbors

from refold.errors import InputError, unknown
from refold.hints import fits

KINDS = ("linear", "spherical")
SAME, OPPOSITE = 1e-6, np.pi - 1e-6  # angles, in radians, up to and from which there is no arc

Codes = NDArray[np.floating]


def between(a: Codes, b: Codes, steps: int, kind: str = "linear") -> NDArray[np.float64]:
    """Codes ``[steps, D]`` from ``a`` ``[D]`` to ``b`` ``[D]``, both of them among these.

    See :func:`linear` and :func:`spherical`. Raises :class:`InputError` for an unknown kind, fewer
    than two steps, and codes with no arc between them.

    >>> between(np.array([1.0, 0.0]), np.array([0.0, 1.0]), 3).tolist()
    [[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]]
    """
    if kind not in KINDS:
        raise unknown("kind of interpolation", kind, KINDS)
    if not fits(steps, int) or steps < 2:
        raise InputError(f"steps is {steps!r}; give a whole number, 2 or more: both ends count")
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    found = (linear if kind == "linear" else spherical)(a, b, np.linspace(0.0, 1.0, steps))
    found[0], found[-1] = a, b  # whatever rounding says
    return found


def linear(a: Codes, b: Codes, t: NDArray[np.float64]) -> NDArray[np.float64]:
    r"""Codes ``[T, D]`` on the straight line, at shares ``t`` ``[T]`` of it.

    .. math:: z(t) = (1 - t)\, a + t\, b
    """
    return (1.0 - t)[:, None] * a + t[:, None] * b


def spherical(a: Codes, b: Codes, t: NDArray[np.float64]) -> NDArray[np.float64]:
    r"""Codes ``[T, D]`` on the arc around the origin, at shares ``t`` ``[T]`` of its angle.

    .. math:: z(t) = \ell(t) \left( \frac{\sin((1 - t)\theta)}{\sin\theta} \frac{a}{\lVert a \rVert}
              + \frac{\sin(t\theta)}{\sin\theta} \frac{b}{\lVert b \rVert} \right), \qquad
              \ell(t) = (1 - t) \lVert a \rVert + t \lVert b \rVert

    The angle grows evenly, and codes stay as far from the origin as a normal prior has them, where
    a straight line passes through the unlikely middle. Of codes in one direction the arc is the
    straight line. Raises :class:`InputError` for opposite codes and for the origin, from which
    there are many arcs or none.

    Source: White, Sampling Generative Networks, 2016 (arXiv:1609.04468), for codes of one length.

    >>> spherical(np.array([2.0, 0.0]), np.array([0.0, 2.0]), np.array([0.5])).round(3).tolist()
    [[1.414, 1.414]]
    """
    long_a, long_b = float(np.linalg.norm(a)), float(np.linalg.norm(b))
    if min(long_a, long_b) == 0:
        raise InputError(
            "a code is zero, so it has no direction for an arc to start in; use kind='linear'"
        )
    u, v = a / long_a, b / long_b
    # The arc cosine of a product loses half the digits of small angles.
    angle = 2.0 * float(np.arctan2(np.linalg.norm(u - v), np.linalg.norm(u + v)))
    if angle > OPPOSITE:
        raise InputError(
            "the codes lie in opposite directions, so no arc between them is shorter than another; "
            "use kind='linear'"
        )
    if angle < SAME:
        return linear(a, b, t)
    length = (1.0 - t) * long_a + t * long_b
    one, other = (length * np.sin(s * angle) / np.sin(angle) for s in (1.0 - t, t))
    return one[:, None] * u + other[:, None] * v


def nearest(codes: Codes, own: Codes, n: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Positions ``[n]`` of the codes ``[m, D]`` nearest to ``own`` ``[D]``, and their distances.

    >>> nearest(np.array([[3.0], [0.0], [1.0]]), np.array([0.9]), 2)[0].tolist()
    [2, 1]
    """
    if not fits(n, int) or not 1 <= n <= len(codes):
        raise InputError(f"asked for {n!r} neighbours among {len(codes)} rows; give 1 to all")
    found = NearestNeighbors(n_neighbors=n).fit(np.asarray(codes, dtype=np.float64))
    distances, positions = found.kneighbors(np.asarray(own, dtype=np.float64)[None])
    return positions[0].astype(np.int64), distances[0]
