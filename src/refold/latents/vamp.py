"""A learnt prior: the posteriors of learnt inputs."""

from __future__ import annotations

import math
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
@register("vamp")
class Vamp(Variational):
    r"""A normal posterior against the mean posterior of learnt inputs (VampPrior).

    .. math:: p(z) = \frac1K \sum_k q(z \mid u_k)

    The ``components`` :math:`u_k` start as rows of training and are learnt with the model
    (:class:`refold.model.References`), which encodes them beside every batch of training; what
    became of them at the last judgement is kept, so that evaluation, sampling and a saved model
    need not encode them. In training the term is :math:`\beta\, (\log q(z \mid x) - \log p(z))` of
    the code drawn, in evaluation an upper bound of the divergence in closed form, see
    :func:`refold.ops.normal.mixture_divergence`. :math:`\beta` grows in over the share ``warmup``
    of the run.

    Source: Tomczak & Welling, VAE with a VampPrior, 2018 (arXiv:1705.07120).

    >>> latent = Vamp(2, components=3)
    >>> latent.meet(torch.zeros(3, 4))
    >>> latent.sample(5).shape
    torch.Size([5, 2])
    """

    def __init__(
        self, size: int, *, components: int = 500, beta: float = 1.0, warmup: float = 0.0
    ) -> None:
        super().__init__(size)
        if components < 1:
            raise InputError(f"the prior has {components} components; there must be 1 or more")
        self.components = self.references = components
        self.beta, self.warmup = self.check_beta(beta), check_warmup(warmup)
        self.known = nn.Buffer(torch.zeros(components, 2 * size))
        self._met: Tensor | None = None

    @property
    def width(self) -> int:
        """Mean and log-variance per code entry."""
        return 2 * self.size

    def meet(self, h: Tensor) -> None:
        """Keep the hidden states of the learnt inputs, for good where rows are judged."""
        self._met = h
        # Uses of a finished model leave what was saved with it as it is, to the last bit.
        if not torch.is_grad_enabled() and not torch.is_inference_mode_enabled():
            self.known.copy_(h)

    def forward(self, h: Tensor) -> Code:
        """Draw in training, take the mean in evaluation; charge the divergence from the prior."""
        mean, log_variance = normal.moments(h)
        # Once read it is let go, and the graph behind it.
        met, self._met = self._met, None
        if not self.training:
            kl = normal.mixture_divergence(mean, log_variance, *parts(self.known))
            return Code(mean, {"kl": per_row(kl) * self.beta}, stats={"mean": mean})
        z, log_q = self.draw(h, 1)
        prior = normal.mixture_log_density(z[0], *parts(self.known if met is None else met))
        kl = per_row(log_q[0] - prior)
        return Code(z[0], {"kl": kl * (self.beta * self.grown(self.warmup))}, stats={"mean": mean})

    def centre(self, h: Tensor) -> Tensor:
        """Mean of the posterior."""
        return normal.moments(h)[0]

    def draw(self, h: Tensor, n: int) -> tuple[Tensor, Tensor]:
        """Draw from the posterior."""
        z, log_q = normal.draw(*normal.moments(h), n)
        return z, log_q.sum(-1)

    def log_prior(self, z: Tensor) -> Tensor:
        """Log-density of the mean posterior of the learnt inputs, as last kept."""
        return normal.mixture_log_density(z, *parts(self.known))

    @torch.no_grad()
    def sample(self, n: int) -> Tensor:
        """Draw a learnt input for each, then from its posterior."""
        means, log_variances, _ = parts(self.known.cpu())
        at = torch.randint(self.components, (n,))
        return normal.draw(means[at], log_variances[at], 1)[0][0]


def parts(h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Means and log-variances ``[K, D]`` of hidden states, and equal log-weights ``[K]``."""
    mean, log_variance = normal.moments(h)
    return mean, log_variance, mean.new_full((len(h),), -math.log(len(h)))
