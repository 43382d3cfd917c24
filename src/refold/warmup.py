"""Costs that grow in over the first part of training, so that a model first learns to rebuild."""

from __future__ import annotations

from refold.errors import InputError


def ramp(progress: float, warmup: float) -> float:
    r"""Return the share of a cost that counts at a point of training.

    .. math:: r = \min(1, p / w)

    ``progress`` :math:`p` is the share of the run that has passed, ``warmup`` :math:`w` the share
    over which the cost grows; 0 is at once.

    >>> ramp(0.05, 0.1), ramp(0.5, 0.1), ramp(0.0, 0.0)
    (0.5, 1.0, 1.0)
    """
    return 1.0 if progress >= warmup else progress / warmup


def check_warmup(warmup: float) -> float:
    """Return a share of training in [0, 1]; raise :class:`InputError` for any other number."""
    if not 0 <= warmup <= 1:
        raise InputError(f"warmup is {warmup}; it is a share of the training, from 0 to 1")
    return warmup
