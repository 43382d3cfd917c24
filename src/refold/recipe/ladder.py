"""Layers that denoise themselves, for learning from few labels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from refold.recipe.base import Recipe, recipe

ANSWERS = {"binary": "coded", "categorical": "coded"}


def joined(rows: int, entries: int) -> Mapping[str, Any]:
    """Known targets in every batch, and a rate that falls."""
    return {"labelled": 100, "lr": 2e-3, "optimizer": "adam"}


@recipe
def ladder() -> Recipe:
    """Learns from few labels: noise in every layer, which a decoder undoes layer by layer.

    Rasmus et al., Semi-Supervised Learning with Ladder Networks, 2015 (arXiv:1507.02672).
    """
    return Recipe(
        fusion="ladder", targets=ANSWERS, answered=True, worth=(60.0, 6.0), training=joined
    )


@recipe
def gamma() -> Recipe:
    """Learns from few labels: noise in every layer, undone at the top alone (Γ-model).

    Rasmus et al., Semi-Supervised Learning with Ladder Networks, 2015 (arXiv:1507.02672).
    """
    return Recipe(
        fusion="ladder(costs=(0.0,), top=0.5)",
        targets=ANSWERS,
        answered=True,
        given=True,
        worth=(60.0, 6.0),
        training=joined,
    )
