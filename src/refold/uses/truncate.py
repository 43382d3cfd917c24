"""A smaller model from one whose codes are in order of importance."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from torch import Tensor

from refold.data.schema import Schema
from refold.errors import InputError
from refold.model import Model
from refold.spec import ModelSpec
from refold.uses.inspect import Quality

FACTOR, DIRECTION = "parametrizations.weight.original0", "parametrizations.weight.original1"


def truncated(model: Model, spec: ModelSpec, schema: Schema, size: int) -> Model:
    """Build the model whose code is the first ``size`` entries; weights of the others are cut off.

    It decodes a code as ``model`` decodes the same followed by zeros.
    """
    smaller = replace(spec, size=size).build(schema)
    cut = _cut(model.state_dict(), smaller.state_dict())
    smaller.load_state_dict(cut)
    return smaller.to(model.fusion.last_bias().device).eval()


def _cut(whole: Mapping[str, Tensor], shapes: Mapping[str, Tensor]) -> dict[str, Tensor]:
    if whole.keys() != shapes.keys():
        raise InputError(
            "this model cannot be truncated: with a smaller code some of its layers would be of "
            "another kind (a residual one keeps its width); fit a smaller model instead"
        )
    cut = {k: whole[k][tuple(map(slice, v.shape))] for k, v in shapes.items()}
    for name, value in cut.items():
        # A normalised weight is a factor times a direction; a shorter direction has another norm.
        if name.endswith(DIRECTION) and value.shape != whole[name].shape:
            over = tuple(range(1, value.ndim))
            share = value.norm(dim=over, keepdim=True) / whole[name].norm(dim=over, keepdim=True)
            factor = name.removesuffix(DIRECTION) + FACTOR
            cut[factor] = cut[factor] * share
    return cut


def truncated_quality(quality: Quality, size: int) -> Quality:
    """Read what the first ``size`` entries keep off the curve over all of them."""
    assert quality.kept is not None
    assert quality.squared_error is not None
    d, kept, pca = (np.array(column, dtype=float) for column in zip(*quality.curve, strict=True))
    now = float(np.interp(size, d, kept))
    lost = (1.0 - now) / max(1e-12, 1.0 - quality.kept)
    return replace(
        quality,
        kept=now,
        pca_kept=float(np.interp(size, d, pca)),
        squared_error=quality.squared_error * lost,
        curve=tuple(point for point in quality.curve if point[0] <= size),
    )
