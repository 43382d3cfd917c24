"""What the decoder makes of codes: each unit alone, and each unit moved through its range."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from refold import inference
from refold.errors import InputError
from refold.model import Model
from refold.uses.inspect import Activity

SPARSE = 0.9  # share of activations that are not zero, below which silence is the usual state
LOW, HIGH = 0.02, 0.98  # quantiles of a unit that a traversal runs between

Codes = NDArray[np.floating]


@dataclass(frozen=True)
class Effects:
    """What each unit adds to the output by itself.

    ``base`` ``[D]`` is the code they are added to: zero where units are mostly silent, the mean
    code otherwise. ``values`` ``[D]`` are the units' typical activations, ``added`` ``{field:
    [V, D]}`` what the output then is, less what it is at ``base``: numbers in the model's own
    scale, classes as probabilities.
    """

    base: Codes
    values: Codes
    added: dict[str, Codes]


def effects(model: Model, codes: Codes) -> Effects:
    r"""Decode each unit alone at its typical activation.

    .. math:: a_d = g(b + (v_d - b_d) e_d) - g(b)

    Where a tenth of all activations or more are zero, :math:`b` is the zero code and :math:`v_d`
    the mean size of a unit's activations, with the sign of their sum; otherwise :math:`b` is the
    mean code and :math:`v_d` one standard deviation above it. ``codes`` is ``[n, D]``. Raises
    :class:`InputError` where the decoder needs more than the code.
    """
    refuse_skips(model)
    activity = Activity.of(np.asarray(codes, dtype=np.float32))
    if sparse(codes):
        base, size = np.zeros(codes.shape[1]), np.abs(codes)
        count = np.maximum((codes != 0).sum(0), 1)
        values = np.sign(codes.sum(0)) * size.sum(0) / count
    else:
        base = codes.mean(0, dtype=np.float64)
        values = base + activity.std
    moved = np.concatenate([base[None], base + np.diag(values - base)])
    return Effects(base, values, {k: (v[1:] - v[0]).T for k, v in expected(model, moved).items()})


def sparse(codes: Codes) -> bool:
    """Whether units are silent in many rows, so that the zero code is where they start from."""
    return bool(len(codes)) and float((codes != 0).mean()) < SPARSE


def span(codes: Codes, own: Codes, steps: int) -> Codes:
    """Values ``[D, steps]`` each unit takes in a traversal of the code ``own`` ``[D]``.

    They run from the unit's low quantile to its high one over ``codes`` ``[n, D]``, with the row's
    own value exactly in the middle; those of a mostly silent unit, over all its activations and
    zero.

    >>> span(np.array([[1.0], [2.0]]), np.array([1.5]), 3).round(2).tolist()
    [[1.02, 1.5, 1.98]]
    """
    if steps < 3 or steps % 2 == 0:
        raise InputError(f"steps is {steps}; give an odd number, 3 or more: the middle is the row")
    found = np.empty((codes.shape[1], steps))
    for d in range(codes.shape[1]):
        values = codes[:, d]
        active = values[values != 0]
        low, high = np.quantile(values, (LOW, HIGH))
        if 0 < len(active) < SPARSE * len(values):
            low, high = np.quantile(np.append(active, 0.0), (0.0, 1.0))
        low, high, half = min(low, own[d]), max(high, own[d]), steps // 2
        found[d] = [*np.linspace(low, own[d], half + 1), *np.linspace(own[d], high, half + 1)[1:]]
    return found


def traverse(model: Model, own: Codes, values: Codes, units: NDArray[np.int64]) -> Codes:
    """Codes ``[units, steps, D]``: the code ``own`` ``[D]`` with one unit at each of its values."""
    refuse_skips(model)
    codes = np.repeat(own[None, None], len(units), 0).repeat(values.shape[1], 1).astype(np.float64)
    for i, d in enumerate(units):
        codes[i, :, d] = values[d]
    return codes


@torch.inference_mode()
def expected(model: Model, codes: Codes) -> dict[str, Codes]:
    """Mean of each field's numbers and class indicators ``{field: [n, V]}``, given codes."""
    parts = [
        {k: model.likelihoods[k].expected(p).cpu() for k, p in params.items()}
        for params in inference.decode(model, _tensor(codes))
    ]
    return {k: v.float().numpy() for k, v in inference.joined(parts).items()}


@torch.inference_mode()
def points(model: Model, codes: Codes) -> dict[str, Tensor]:
    """Best single values ``{field: [n, E]}``, given codes ``[n, D]``."""
    parts = [inference.points(model, p) for p in inference.decode(model, _tensor(codes))]
    return inference.joined(parts)


def refuse_skips(model: Model) -> None:
    """Raise :class:`InputError` where a decoder sees more than the code."""
    if model.skipping:
        raise InputError(
            f"the decoder of {', '.join(model.skipping)} also sees the encoder's feature maps, so "
            f"a code alone cannot be decoded; use a backbone without skips"
        )


def _tensor(codes: Codes) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(codes, dtype=np.float32))
