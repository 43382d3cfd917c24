"""The variational bottleneck."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from refold.errors import InputError
from refold.latents.base import Variational, register
from refold.ops import normal
from refold.types import Code
from refold.warmup import check_warmup


@final
@register("gaussian")
class Gaussian(Variational):
    r"""A normal posterior with diagonal covariance against a standard normal prior.

    .. math:: z = \mu + \sigma \odot \epsilon, \qquad
              \text{term}_b = \tfrac{\beta}{2} \sum_i \left(\mu_i^2 + \sigma_i^2
              - \log \sigma_i^2 - 1\right)

    The term is :math:`\beta` times the KL divergence of posterior from prior, in nats. In
    evaluation the code is the posterior mean, so embeddings and scores are deterministic.

    In training :math:`\beta` grows in over the share ``warmup`` of the run. ``free_bits``
    :math:`\lambda` (in nats per entry) lets each entry's mean divergence over a batch be that much
    for nothing: a cost of the batch, named ``free_bits``, makes up what is missing to it,

    .. math:: \frac1B \sum_b \mathrm{KL}_{bi} + \max\Bigl(0,\, \lambda - \frac1B \sum_b
              \mathrm{KL}_{bi}\Bigr) = \max\Bigl(\lambda,\, \frac1B \sum_b \mathrm{KL}_{bi}\Bigr),

    so that the terms stay the rows' own and scores never see it. ``monte_carlo`` estimates the
    divergence by the code drawn, :math:`\log q(z \mid x) - \log p(z)`. ``draws=k`` of each row's
    code make the objective the importance-weighted bound (:attr:`refold.model.Output.score`), whose
    divergence is of each draw.

    Raises :class:`InputError` for free bits with several draws, whose bound has no divergence.

    Sources: Kingma & Welling 2013 (arXiv:1312.6114); Higgins et al. 2017 for ``beta``; Bowman et
    al. 2016 (arXiv:1511.06349) for ``warmup``; Kingma et al. 2016 (arXiv:1606.04934), appendix C.8,
    for ``free_bits``; Burda et al. 2015 (arXiv:1509.00519) for ``draws``.

    >>> latent = Gaussian(1).eval()
    >>> latent(torch.tensor([[2.0, 0.0]])).terms["kl"]
    tensor([2.])
    >>> latent = Gaussian(1, draws=5)
    >>> latent(torch.tensor([[2.0, 0.0]])).z.shape
    torch.Size([5, 1])
    """

    def __init__(
        self,
        size: int,
        *,
        beta: float = 1.0,
        warmup: float = 0.0,
        free_bits: float = 0.0,
        draws: int = 1,
        monte_carlo: bool = False,
    ) -> None:
        super().__init__(size)
        if not 0 <= free_bits < float("inf"):
            raise InputError(f"free_bits is {free_bits}; it is nats per entry, 0 or more")
        if draws < 1:
            raise InputError(f"the latent takes {draws} draws of a code; it must be 1 or more")
        if free_bits and draws > 1:
            raise InputError(
                f"free_bits={free_bits} and draws={draws}: the importance-weighted bound has no "
                f"divergence that could be free; leave one of them out"
            )
        self.beta, self.warmup = self.check_beta(beta), check_warmup(warmup)
        self.free_bits, self.draws, self.monte_carlo = free_bits, draws, monte_carlo

    @property
    def width(self) -> int:
        """Mean and log-variance per code entry."""
        return 2 * self.size

    def forward(self, h: Tensor) -> Code:
        """Sample in training, take the mean in evaluation; charge the divergence from the prior."""
        mean, log_variance = normal.moments(h)
        exact = normal.divergence(mean, log_variance)
        stats = {"mean": mean, "entry_kl": exact.flatten(1)}
        if not self.training:
            return Code(mean, {"kl": exact.flatten(1).sum(1) * self.beta}, stats=stats)
        factor = self.beta * self.grown(self.warmup)
        noise = torch.randn(
            self.draws * len(mean), *mean.shape[1:], dtype=mean.dtype, device=mean.device
        )
        if self.draws > 1:
            again = (self.draws, *(1,) * (mean.dim() - 1))
            mean, log_variance = mean.repeat(again), log_variance.repeat(again)
        z = mean + noise * (0.5 * log_variance).exp()
        kl = exact
        if self.monte_carlo or self.draws > 1:
            kl = 0.5 * (z.square() - noise.square() - log_variance)
        kl = kl.flatten(1)
        code = Code(z, {"kl": kl.sum(1) * factor}, stats=stats, draws=self.draws)
        if self.free_bits:
            lacking = (self.free_bits - kl.mean(0)).clamp_min(0.0).sum()
            code.aux["free_bits"] = lacking * factor
        return code

    def centre(self, h: Tensor) -> Tensor:
        """Mean of the posterior."""
        return normal.moments(h)[0]

    def draw(self, h: Tensor, n: int) -> tuple[Tensor, Tensor]:
        """Draw from the posterior."""
        z, log_q = normal.draw(*normal.moments(h), n)
        return z, log_q.sum(-1)

    def log_prior(self, z: Tensor) -> Tensor:
        """Log-density of the standard normal."""
        return normal.log_density(z).sum(-1)

    def sample(self, n: int) -> Tensor:
        """Draw from the standard normal."""
        return torch.randn(n, self.size)
