"""Codes with a prior, from which new rows are drawn."""

from __future__ import annotations

from refold.recipe.base import Recipe, recipe


@recipe
def vae() -> Recipe:
    """Variational: codes follow a normal distribution, so new rows can be sampled.

    Kingma & Welling, Auto-Encoding Variational Bayes, 2013.
    """
    return Recipe(
        latent="gaussian",
        likelihoods={"image": "bernoulli", "numeric": "gaussian", "vector": "gaussian"},
    )
