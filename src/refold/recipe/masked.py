"""Attention over tokens, with all of them seen or most of them hidden."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from refold.recipe.base import Recipe, recipe

TOKENS: dict[str, str] = dict.fromkeys(
    ("image", "series", "text", "numeric", "vector", "categorical"), "transformer"
)


def gentle(rows: int, entries: int) -> Mapping[str, Any]:
    """A rate that attention bears, and decay that keeps few rows from being learnt by heart."""
    return {"lr": 2e-3, "optimizer": "adamw(weight_decay=0.05)"}


@recipe
def transformer() -> Recipe:
    """Attention over patches, steps, words or cells, folded into one code.

    Vaswani et al., Attention Is All You Need, 2017 (arXiv:1706.03762); Dosovitskiy et al., An Image
    is Worth 16x16 Words, 2020 (arXiv:2010.11929).
    """
    return Recipe(backbones=TOKENS, hidden=(), training=gentle)


@recipe
def masked() -> Recipe:
    """Sees a quarter of the patches, steps, words or cells, and predicts the others.

    He et al., Masked Autoencoders Are Scalable Vision Learners, 2021 (arXiv:2111.06377); Du et al.,
    ReMasker, 2023 (arXiv:2309.13793).
    """
    return Recipe(backbones=TOKENS, corruption="mask", hidden=(), training=gentle)
