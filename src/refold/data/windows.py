"""One long series as windows, and errors of windows as errors of its steps."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from refold.errors import InputError


def windows(values: Any, length: int, stride: int = 1) -> NDArray[Any]:
    """Windows ``[n, length, C]`` of one long series ``[steps]`` or ``[steps, C]``, in order.

    Window ``i`` starts at step ``i * stride``; steps after the last whole window are left out. The
    series is an array, or a pandas or polars series or frame of numbers. The windows are a
    read-only view of it where its memory can be shared. Learn them as series, with
    ``fields={"x": "series"}``; :func:`per_step` brings what is found of windows back to steps.

    Raises :class:`InputError` for what is no series of numbers, and one shorter than a window.

    >>> windows([1, 2, 3, 4, 5], length=3, stride=2)[:, :, 0]
    array([[1, 2, 3],
           [3, 4, 5]])
    """
    series = np.asarray(values)
    if series.ndim not in (1, 2) or series.dtype.kind not in "biuf":
        raise InputError(
            f"windows are made of one long series of numbers, (steps,) or (steps, channels), but "
            f"this is an array {series.shape} of {series.dtype}; give one series"
        )
    _check(length, "length")
    _check(stride, "stride")
    series = series[:, None] if series.ndim == 1 else series
    if len(series) < length:
        raise InputError(
            f"the series has {len(series)} steps, fewer than a window of {length}; give a shorter "
            f"window"
        )
    view = np.lib.stride_tricks.sliding_window_view(series, length, axis=0)
    return np.moveaxis(view[::stride], 1, 2)


def per_step(errors: ArrayLike, stride: int, steps: int) -> NDArray[np.float64]:
    r"""Mean error of every step over the windows that cover it.

    .. math:: e_t = \frac{1}{|W_t|} \sum_{i \in W_t} e_{i, t - i s}, \qquad
              W_t = \{i : 0 \le t - i s < L\}

    ``errors`` ``[n, L]`` or ``[n, L, C]`` are of the steps of windows as :func:`windows` makes them
    with the same ``stride`` :math:`s` of a series of so many ``steps``; result ``[steps]`` or
    ``[steps, C]``. A NaN is no error of its window; a step without any, as one that no window
    covers, is NaN.

    Raises :class:`InputError` for another shape, and for windows that reach beyond the series.

    >>> per_step([[1.0, 3.0], [5.0, 7.0]], stride=1, steps=4)
    array([ 1.,  4.,  7., nan])
    """
    found = np.asarray(errors, dtype=np.float64)
    if found.ndim not in (2, 3):
        raise InputError(
            f"errors have shape {found.shape}; expected (windows, length) or (windows, length, "
            f"channels)"
        )
    _check(stride, "stride")
    _check(steps, "steps")
    n, length = found.shape[:2]
    reach = (n - 1) * stride + length if n else 0
    if reach > steps:
        raise InputError(
            f"{n} windows of {length} steps, {stride} apart, reach {reach} steps, but the series "
            f"has {steps}; give the stride and the steps that the windows were made with"
        )
    total = np.zeros((steps, *found.shape[2:]))
    count = np.zeros_like(total)
    seen = ~np.isnan(found)
    for j in range(length if n else 0):
        at = slice(j, j + (n - 1) * stride + 1, stride)
        total[at] += np.where(seen[:, j], found[:, j], 0.0)
        count[at] += seen[:, j]
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _check(value: Any, what: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise InputError(f"{what} is {value!r}; give a whole number, 1 or more")
