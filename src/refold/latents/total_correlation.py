"""Variational codes whose entries should be independent of each other."""

from __future__ import annotations

import math
from typing import final

import torch
from torch import Tensor, nn

from refold.errors import InputError
from refold.latents.base import Variational, register
from refold.ops import normal
from refold.types import Code


@final
@register("total_correlation")
class TotalCorrelation(Variational):
    r"""A normal posterior, whose divergence from the standard normal is weighed in three parts.

    .. math:: \mathbb{E}_x \mathrm{KL}(q(z \mid x) \,\|\, p(z)) =
              \underbrace{\mathbb{E} \log \tfrac{q(z \mid x)}{q(z)}}_{\alpha\text{: index-code}} +
              \underbrace{\mathbb{E} \log \tfrac{q(z)}{\prod_i q(z_i)}}_{\beta\text{: total
              correlation}} +
              \underbrace{\mathbb{E} \textstyle\sum_i \log \tfrac{q(z_i)}{p(z_i)}}_{\gamma}

    The first is the mutual information of row and code, the second what entries know of each other;
    with ``alpha``, ``beta`` and ``gamma`` of 1 it is the evidence bound. :math:`q(z)` is that of
    all ``N`` training rows, estimated from a batch of ``B`` by stratified sampling: the row a code
    was drawn for weighs :math:`1/N`, the others :math:`(N-1)/N` together, each as much. That is
    exact where the batch is the whole set. The parts belong to a batch: costs ``index_code``,
    ``total_correlation`` and ``dimension_kl``. In evaluation a row costs its divergence, once.

    Source: Chen et al., Isolating Sources of Disentanglement in Variational Autoencoders, 2018
    (arXiv:1802.04942), there with weights of minibatch stratified sampling that are exact on
    average.

    >>> import torch
    >>> TotalCorrelation(1).eval()(torch.tensor([[2.0, 0.0]])).terms["kl"]
    tensor([2.])
    """

    def __init__(
        self, size: int, *, beta: float = 6.0, alpha: float = 1.0, gamma: float = 1.0
    ) -> None:
        super().__init__(size)
        for name, value in (("alpha", alpha), ("gamma", gamma)):
            if not 0 <= value < float("inf"):
                raise InputError(f"{name} is {value}; it must be 0 or more")
        self.beta, self.alpha, self.gamma = self.check_beta(beta), alpha, gamma
        self.rows = nn.Buffer(torch.zeros((), dtype=torch.long))

    @property
    def width(self) -> int:
        """Mean and log-variance per code entry."""
        return 2 * self.size

    def begin(self, h: Tensor, rows: int) -> None:
        """Take note of how many rows there are."""
        self.rows.fill_(rows)

    def forward(self, h: Tensor) -> Code:
        """Sample and charge the three parts in training; take the mean, and its divergence."""
        mean, log_variance = normal.moments(h)
        kl = normal.divergence(mean, log_variance).flatten(1)
        stats = {"mean": mean, "entry_kl": kl}
        if not self.training:
            return Code(mean, {"kl": kl.sum(1)}, stats=stats)
        drawn, log_q = normal.draw(mean, log_variance, 1)
        whole = log_q[0].flatten(1).sum(1)
        z, middle, spread = (t.flatten(1) for t in (drawn[0], mean, log_variance))
        marginal, entries = aggregate(z, middle, spread, self.rows)
        independent = entries.sum(1)
        prior = normal.log_density(z).sum(1)
        aux = {
            "index_code": (whole - marginal).mean() * self.alpha,
            "total_correlation": (marginal - independent).mean() * self.beta,
            "dimension_kl": (independent - prior).mean() * self.gamma,
        }
        return Code(drawn[0], aux=aux, stats=stats)

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


def aggregate(
    z: Tensor, mean: Tensor, log_variance: Tensor, rows: Tensor | int
) -> tuple[Tensor, Tensor]:
    r"""Estimate the aggregate posterior's log-density at each row's code, whole and by entry.

    .. math:: q(z_b) \approx \tfrac1N q(z_b \mid x_b) + \tfrac{N-1}{N (B-1)} \sum_{j \ne b}
              q(z_b \mid x_j)

    ``[B]`` and ``[B, D]`` of ``z``, ``mean`` and ``log_variance`` ``[B, D]``; ``rows`` is
    :math:`N`, taken to be at least :math:`B`.

    >>> import torch
    >>> aggregate(torch.zeros(2, 1), torch.zeros(2, 1), torch.zeros(2, 1), 9)[0]
    tensor([-0.9189, -0.9189])
    """
    count = len(z)
    total = torch.as_tensor(rows, device=z.device).clamp_min(count).to(z.dtype)
    pairs = normal.log_density(z[:, None], mean, log_variance)  # [B, B, D]
    others = torch.log1p(-1.0 / total) - math.log(max(1, count - 1))
    own = -total.log() if count > 1 else torch.zeros_like(total)
    weights = torch.where(torch.eye(count, dtype=torch.bool, device=z.device), own, others)
    whole = torch.logsumexp(pairs.sum(2) + weights, 1)
    return whole, torch.logsumexp(pairs + weights[:, :, None], 1)
