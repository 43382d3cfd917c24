"""Bottlenecks: what a code must satisfy. One idea, one file."""

from refold.latents.base import Latent, latents, register
from refold.latents.gaussian import Gaussian
from refold.latents.plain import Plain
from refold.latents.sparse import L1, TopK

__all__ = ["L1", "Gaussian", "Latent", "Plain", "TopK", "latents", "register"]
