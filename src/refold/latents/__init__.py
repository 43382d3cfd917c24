"""Bottlenecks: what a code must satisfy. One idea, one file."""

from refold.latents.base import Discrete, Latent, Variational, latents, register
from refold.latents.dictionary import BatchTopK, Gated, JumpReLU
from refold.latents.flow import Flow
from refold.latents.gauges import gauges, readings
from refold.latents.gaussian import Gaussian
from refold.latents.matched import Matched
from refold.latents.mixture import Mixture
from refold.latents.nested import Nested
from refold.latents.plain import Plain
from refold.latents.quantised import VQ, ResidualVQ
from refold.latents.scalar import FSQ
from refold.latents.sparse import KL, L1, TopK, WinnerTakeAll
from refold.latents.total_correlation import TotalCorrelation
from refold.latents.vamp import Vamp

__all__ = [
    "FSQ",
    "KL",
    "L1",
    "VQ",
    "BatchTopK",
    "Discrete",
    "Flow",
    "Gated",
    "Gaussian",
    "JumpReLU",
    "Latent",
    "Matched",
    "Mixture",
    "Nested",
    "Plain",
    "ResidualVQ",
    "TopK",
    "TotalCorrelation",
    "Vamp",
    "Variational",
    "WinnerTakeAll",
    "gauges",
    "latents",
    "readings",
    "register",
]
