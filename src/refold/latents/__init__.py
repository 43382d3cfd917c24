"""Bottlenecks: what a code must satisfy. One idea, one file."""

from refold.latents.base import Latent, latents, register
from refold.latents.gaussian import Gaussian
from refold.latents.nested import Nested
from refold.latents.plain import Plain
from refold.latents.sparse import KL, L1, TopK, WinnerTakeAll

__all__ = [
    "KL",
    "L1",
    "Gaussian",
    "Latent",
    "Nested",
    "Plain",
    "TopK",
    "WinnerTakeAll",
    "latents",
    "register",
]
