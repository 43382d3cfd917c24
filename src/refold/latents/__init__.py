"""Bottlenecks: what a code must satisfy. One idea, one file."""

from refold.latents.base import Discrete, Latent, Variational, latents, register
from refold.latents.gauges import gauges, readings
from refold.latents.gaussian import Gaussian
from refold.latents.nested import Nested
from refold.latents.plain import Plain
from refold.latents.quantised import VQ, ResidualVQ
from refold.latents.scalar import FSQ
from refold.latents.sparse import KL, L1, TopK, WinnerTakeAll

__all__ = [
    "FSQ",
    "KL",
    "L1",
    "VQ",
    "Discrete",
    "Gaussian",
    "Latent",
    "Nested",
    "Plain",
    "ResidualVQ",
    "TopK",
    "Variational",
    "WinnerTakeAll",
    "gauges",
    "latents",
    "readings",
    "register",
]
