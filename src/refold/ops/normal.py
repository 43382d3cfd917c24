"""Normal distributions with diagonal covariance, and mixtures of them, by mean and log-variance."""

from __future__ import annotations

import math

import torch
from torch import Tensor

RANGE = 12.0  # log-variances lie between its negative and itself
LOG_TAU = math.log(2.0 * math.pi)


def moments(h: Tensor) -> tuple[Tensor, Tensor]:
    """Means and log-variances ``[*, D]`` of ``[*, 2 D]``, the latter kept within bounds.

    Half precision becomes single: divergences are sums of differences of nearly equal numbers.

    >>> mean, log_variance = moments(torch.tensor([[1.0, 99.0]]))
    >>> mean.tolist(), log_variance.tolist()
    ([[1.0]], [[12.0]])
    """
    mean, log_variance = h.to(torch.promote_types(h.dtype, torch.float32)).chunk(2, dim=-1)
    return mean, log_variance.clamp(-RANGE, RANGE)


def divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    r"""KL divergence of each entry from the standard normal, ``[*, D]``, in nats.

    .. math:: \mathrm{KL}_i = \tfrac12 (\mu_i^2 + \sigma_i^2 - \log\sigma_i^2 - 1)

    >>> divergence(torch.tensor([2.0]), torch.tensor([0.0]))
    tensor([2.])
    """
    return 0.5 * (mean.square() + log_variance.exp() - log_variance - 1.0)


def log_density(
    z: Tensor, mean: Tensor | float = 0.0, log_variance: Tensor | None = None
) -> Tensor:
    """Log-density of each entry of ``z`` ``[*, D]``, in nats; a standard normal's unless said.

    >>> log_density(torch.zeros(1))
    tensor([-0.9189])
    """
    if log_variance is None:
        return -0.5 * ((z - mean).square() + LOG_TAU)
    return -0.5 * ((z - mean).square() * (-log_variance).exp() + log_variance + LOG_TAU)


def draw(mean: Tensor, log_variance: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """Draw ``n`` times, ``[n, *, D]``, and give each entry's log-density too."""
    noise = torch.randn(n, *mean.shape, dtype=mean.dtype, device=mean.device)
    drawn = mean + noise * (0.5 * log_variance).exp()
    return drawn, -0.5 * (noise.square() + log_variance + LOG_TAU)


def mixture_log_density(
    z: Tensor, means: Tensor, log_variances: Tensor, log_weights: Tensor
) -> Tensor:
    r"""Log-density ``[*]`` of ``z`` ``[*, D]`` under a mixture of ``K`` normals.

    .. math:: \log \sum_k \pi_k\, \mathcal N(z \mid m_k, s_k^2)

    ``means`` and ``log_variances`` are ``[K, D]``, ``log_weights`` ``[K]``. Squares are expanded,
    which makes matrix products of them, in double precision, where that loses nothing.

    >>> one = torch.zeros(1, 2)
    >>> mixture_log_density(one, one, one, torch.zeros(1))
    tensor([-1.8379])
    """
    wide, m, v = z.double(), means.double(), log_variances.double()
    precision = (-v).exp()
    scaled = m * precision
    constant = log_weights.double() - 0.5 * (m * scaled + v + LOG_TAU).sum(1)
    # One product for squares and values, so that the one large result is made in one pass.
    powers = torch.cat([wide.square(), wide], -1)
    each = torch.addmm(
        constant, powers.reshape(-1, 2 * z.shape[-1]), torch.cat([-0.5 * precision, scaled], -1).T
    )
    return torch.logsumexp(each, -1).view(z.shape[:-1]).to(z.dtype)


def mixture_divergence(
    mean: Tensor, log_variance: Tensor, means: Tensor, log_variances: Tensor, log_weights: Tensor
) -> Tensor:
    r"""Upper bound ``[*]`` of the divergence of normals ``[*, D]`` from a mixture, in nats.

    .. math:: \mathrm{KL}\Bigl(q \,\Big\|\, \sum_k \pi_k p_k\Bigr)
              \le -\log \sum_k \pi_k\, e^{-\mathrm{KL}(q \| p_k)}

    Exact for one component, and where components are far apart.

    Source: Hershey & Olsen, Approximating the Kullback Leibler Divergence between Gaussian Mixture
    Models, 2007.

    >>> one = torch.ones(1, 2)
    >>> mixture_divergence(one, 0 * one, 0 * one, 0 * one, torch.zeros(1))
    tensor([1.])
    """
    wide, own, m, v = (t.double() for t in (mean, log_variance, means, log_variances))
    precision = (-v).exp()
    constant = (m.square() * precision + v - 1.0).sum(1)
    squares = (wide.square() + own.exp()) @ precision.T - 2.0 * (wide @ (m * precision).T)
    each = 0.5 * (squares + constant - own.sum(-1, keepdim=True))
    return -torch.logsumexp(log_weights.double() - each, -1).to(mean.dtype)


def per_row(cost: Tensor) -> Tensor:
    """Sum a cost ``[B, ...]`` over all axes but the first."""
    return cost if cost.dim() == 1 else cost.flatten(1).sum(1)
