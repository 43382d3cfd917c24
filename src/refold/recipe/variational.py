"""Codes with a prior, from which new rows are drawn."""

from __future__ import annotations

from refold.recipe.base import Recipe, recipe

DENSITIES = {"image": "bernoulli", "numeric": "gaussian", "vector": "gaussian"}


@recipe
def vae() -> Recipe:
    """Variational: codes follow a normal distribution, so new rows can be sampled.

    Kingma & Welling, Auto-Encoding Variational Bayes, 2013 (arXiv:1312.6114).
    """
    return Recipe(latent="gaussian(warmup=0.3)", likelihoods=DENSITIES)


@recipe
def beta_vae() -> Recipe:
    """Variational with a fourfold divergence: fewer units in use, each with more of a meaning.

    Higgins et al., beta-VAE, 2017.
    """
    return Recipe(latent="gaussian(beta=4.0, warmup=0.3)", likelihoods=DENSITIES)


@recipe
def iwae() -> Recipe:
    """Variational by a tighter bound of the likelihood: many draws of each code, weighed.

    Burda, Grosse & Salakhutdinov, Importance Weighted Autoencoders, 2015 (arXiv:1509.00519).
    """
    return Recipe(latent="gaussian(draws=20)", likelihoods=DENSITIES)


@recipe
def tcvae() -> Recipe:
    """Variational with units that should be independent: total correlation costs sixfold.

    Chen et al., Isolating Sources of Disentanglement in VAEs, 2018 (arXiv:1802.04942).
    """
    return Recipe(latent="total_correlation", likelihoods=DENSITIES)


@recipe
def infovae() -> Recipe:
    """Variational with little divergence, whose codes as a whole should match the prior.

    Zhao, Song & Ermon, InfoVAE, 2017 (arXiv:1706.02262).
    """
    return Recipe(latent="gaussian(beta=0.1)", likelihoods=DENSITIES, penalties=("mmd",))


@recipe
def wae() -> Recipe:
    """Plain codes, pulled to a normal distribution as a whole, so new rows can be sampled.

    Tolstikhin et al., Wasserstein Auto-Encoders, 2018 (arXiv:1711.01558).
    """
    return Recipe(latent="matched", penalties=("mmd",))


@recipe
def vampprior() -> Recipe:
    """Variational with a prior made of the codes of learnt inputs; for numbers and images.

    Tomczak & Welling, VAE with a VampPrior, 2018 (arXiv:1705.07120).
    """
    return Recipe(latent="vamp(warmup=0.3)", likelihoods=DENSITIES)


@recipe
def mixture() -> Recipe:
    """Variational with a learnt mixture of normals as prior: groups of rows may keep apart.

    Dilokthanakul et al., Deep Unsupervised Clustering with GM-VAEs, 2016 (arXiv:1611.02648).
    """
    return Recipe(latent="mixture(warmup=0.3)", likelihoods=DENSITIES)


@recipe
def flow() -> Recipe:
    """Variational with a normalising-flow posterior, closer to the true one (needs zuko).

    Kingma et al., Improving Variational Inference with Inverse Autoregressive Flow, 2016
    (arXiv:1606.04934).
    """
    return Recipe(latent="flow(warmup=0.3)", likelihoods=DENSITIES)
