"""A learnt prior: a mixture of normals."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor, nn

from refold.errors import InputError
from refold.latents.base import Variational, register
from refold.ops import normal
from refold.ops.normal import per_row
from refold.types import Code
from refold.warmup import check_warmup


@final
@register("mixture")
class Mixture(Variational):
    r"""A normal posterior against a mixture of normals that is learnt with the model.

    .. math:: p(z) = \sum_k \pi_k\, \mathcal N(z \mid m_k, s_k^2)

    Groups of rows may then keep apart in the code, at no cost. In training the term is
    :math:`\beta\, (\log q(z \mid x) - \log p(z))` of the code drawn, in evaluation an upper bound
    of the divergence in closed form, see :func:`refold.ops.normal.mixture_divergence`.
    :math:`\beta` grows in over the share ``warmup`` of the run.

    Source: Dilokthanakul et al., Deep Unsupervised Clustering with Gaussian Mixture Variational
    Autoencoders, 2016 (arXiv:1611.02648), without the component as a code of its own.

    >>> latent = Mixture(2, components=3)
    >>> latent.sample(5).shape
    torch.Size([5, 2])
    """

    def __init__(
        self, size: int, *, components: int = 10, beta: float = 1.0, warmup: float = 0.0
    ) -> None:
        super().__init__(size)
        if components < 1:
            raise InputError(f"a mixture of {components} components; there must be 1 or more")
        self.components = components
        self.beta, self.warmup = self.check_beta(beta), check_warmup(warmup)
        self.logits = nn.Parameter(torch.zeros(components))
        self.means = nn.Parameter(torch.randn(components, size))
        self.log_variances = nn.Parameter(torch.zeros(components, size))

    @property
    def width(self) -> int:
        """Mean and log-variance per code entry."""
        return 2 * self.size

    @property
    def prior(self) -> tuple[Tensor, Tensor, Tensor]:
        """Means and log-variances ``[K, D]`` and log-weights ``[K]``."""
        bounded = self.log_variances.clamp(-normal.RANGE, normal.RANGE)
        return self.means, bounded, self.logits.log_softmax(0)

    def forward(self, h: Tensor) -> Code:
        """Draw in training, take the mean in evaluation; charge the divergence from the mixture."""
        mean, log_variance = normal.moments(h)
        if not self.training:
            kl = normal.mixture_divergence(mean, log_variance, *self.prior)
            return Code(mean, {"kl": per_row(kl) * self.beta}, stats={"mean": mean})
        z, log_q = self.draw(h, 1)
        kl = per_row(log_q[0] - self.log_prior(z[0]))
        return Code(z[0], {"kl": kl * (self.beta * self.grown(self.warmup))}, stats={"mean": mean})

    def centre(self, h: Tensor) -> Tensor:
        """Mean of the posterior."""
        return normal.moments(h)[0]

    def draw(self, h: Tensor, n: int) -> tuple[Tensor, Tensor]:
        """Draw from the posterior."""
        z, log_q = normal.draw(*normal.moments(h), n)
        return z, log_q.sum(-1)

    def log_prior(self, z: Tensor) -> Tensor:
        """Log-density of the mixture."""
        return normal.mixture_log_density(z, *self.prior)

    @torch.no_grad()
    def sample(self, n: int) -> Tensor:
        """Draw a component for each, then from it."""
        means, log_variances, log_weights = (t.cpu() for t in self.prior)
        at = log_weights.exp().multinomial(n, replacement=True)
        return normal.draw(means[at], log_variances[at], 1)[0][0]
