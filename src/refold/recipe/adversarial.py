"""Codes that a critic cannot tell from draws of a prior."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from refold.recipe.base import Recipe, recipe


def joined(rows: int, entries: int) -> Mapping[str, Any]:
    """Known targets in every batch, and a rate that critics bear."""
    return {"labelled": 100, "lr": 1e-3}


@recipe
def adversarial() -> Recipe:
    """Plain codes that a critic cannot tell from a prior, so new rows can be sampled.

    Makhzani et al., Adversarial Autoencoders, 2015 (arXiv:1511.05644).
    """
    return Recipe(latent="matched", penalties=("adversarial(updates=simultaneous)",))


@recipe
def semisupervised() -> Recipe:
    """Learns from few labels: classes are a part of the code, matched to a prior like the rest.

    The target is a column of classes; one of two levels has to be declared categorical.

    Makhzani et al., Adversarial Autoencoders, 2015 (arXiv:1511.05644), section 4.
    """
    return Recipe(
        latent="matched",
        targets={"categorical": "coded(log=True)"},
        penalties=("adversarial(weight=0.3, updates=simultaneous)",),
        corruption="gaussian(std=0.3)",
        worth=(4.0, 5.0),
        training=joined,
    )
