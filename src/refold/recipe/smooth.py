"""Codes that stay where they are when the input moves a little, or is seen another way."""

from __future__ import annotations

from refold.recipe.base import Recipe, recipe


@recipe
def contractive() -> Recipe:
    """Codes that hardly move with small changes of the input (contractive).

    Rifai et al., Contractive Auto-Encoders: Explicit Invariance During Feature Extraction, 2011.
    """
    return Recipe(penalties=("contractive",))


@recipe
def contrastive() -> Recipe:
    """Rebuilds rows, and gives two corrupted views of a row codes that agree (contrastive).

    Chen et al., A Simple Framework for Contrastive Learning of Visual Representations, 2020.
    """
    return Recipe(penalties=("contrastive",))
