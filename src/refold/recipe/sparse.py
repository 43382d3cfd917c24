"""Codes of which few entries speak, or the first ones most."""

from __future__ import annotations

from refold.recipe.base import Recipe, recipe


@recipe
def sparse() -> Recipe:
    """A wide code of which a tenth is active in each row (top-k).

    Makhzani & Frey, k-Sparse Autoencoders, 2013.
    """
    return Recipe(latent="topk", expand=8)


@recipe
def nested() -> Recipe:
    """A code in order of importance: any number of its first entries is a code of its own.

    Rippel, Gelbart & Adams, Learning Ordered Representations with Nested Dropout, 2014.
    """
    return Recipe(latent="nested", linear=True)


@recipe
def wta() -> Recipe:
    """A wide code of which each unit is active in few rows only (winner-take-all).

    Makhzani & Frey, Winner-Take-All Autoencoders, 2014.
    """
    return Recipe(latent="lifetime", hidden=(), expand=16)


@recipe
def conv_wta() -> Recipe:
    """Feature maps as the code, each with one winner an image and few images in a batch.

    Makhzani & Frey, Winner-Take-All Autoencoders, 2014.
    """
    return Recipe(
        latent="lifetime(maps=32)",
        backbones={"image": "conv(channels=(32, 32), kernel=5)"},
        fusion="direct",
        only=("image",),
    )
