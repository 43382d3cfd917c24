"""The variational bottleneck."""

from __future__ import annotations

from typing import ClassVar, final

import torch
from torch import Tensor

from refold.errors import InputError
from refold.latents.base import Latent, register
from refold.types import Code


@final
@register("gaussian")
class Gaussian(Latent):
    r"""A normal posterior with diagonal covariance against a standard normal prior.

    .. math:: z = \mu + \sigma \odot \epsilon, \qquad
              \text{term}_b = \tfrac{\beta}{2} \sum_i \left(\mu_i^2 + \sigma_i^2
              - \log \sigma_i^2 - 1\right)

    The term is :math:`\beta` times the KL divergence of posterior from prior, in nats. In
    evaluation the code is the posterior mean, so embeddings and scores are deterministic.

    Sources: Kingma & Welling 2013 (arXiv:1312.6114); Higgins et al. 2017 for ``beta``.

    >>> latent = Gaussian(1).eval()
    >>> latent(torch.tensor([[2.0, 0.0]])).terms["kl"]
    tensor([2.])
    """

    generative: ClassVar[bool] = True

    def __init__(self, size: int, *, beta: float = 1.0) -> None:
        super().__init__(size)
        if not beta >= 0:
            raise InputError(f"beta is {beta}; it must be 0 or more")
        self.beta = beta

    @property
    def width(self) -> int:
        """Mean and log-variance per code entry."""
        return 2 * self.size

    def forward(self, h: Tensor) -> Code:
        """Sample in training, take the mean in evaluation; charge the divergence from the prior."""
        mean, log_variance = h.chunk(2, dim=-1)
        log_variance = log_variance.clamp(-12.0, 12.0)
        kl = 0.5 * (mean.square() + log_variance.exp() - log_variance - 1.0)
        z = mean
        if self.training:
            z = mean + torch.randn_like(mean) * (0.5 * log_variance).exp()
        return Code(z, terms={"kl": kl.flatten(1).sum(1) * self.beta})

    def sample(self, n: int) -> Tensor:
        """Draw from the standard normal."""
        return torch.randn(n, self.size)
