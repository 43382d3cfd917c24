"""The likelihood of counts."""

from __future__ import annotations

import math
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import Distribution
from torch.distributions import Poisson as TorchPoisson

from refold.likelihoods.base import Likelihood, observed_mean, register

BOUND = 20.0  # log-rate beyond which the rate grows in proportion to it
FEW = 16.0  # counts below which Stirling's series is not yet exact


@final
@register("poisson")
class Poisson(Likelihood):
    r"""Poisson's distribution of counts, on the logarithm of the rate, exact in nats.

    .. math:: -\log p(v \mid \eta) = e^\eta - v \eta + \log v!

    ``params`` holds :math:`\eta` ``[B, E]``; targets are :math:`x = \log(1 + v)` ``[B, E]``, of
    which :math:`v = e^x - 1` is taken to the nearest whole number, 0 at least. In single precision
    that is exact for counts up to about a million, and good to seven digits beyond. Beyond
    :math:`\eta = 20`, a rate of half a billion, the rate goes on in proportion,
    :math:`e^{20} (\eta - 19)`, so that no output is infinite or without a slope. The cost is summed
    as :math:`v (e^u - 1 - u) + (\log v! - v \log v + v)` with :math:`u = \eta - \log v`: large
    counts would lose their digits otherwise.

    Source: Nelder & Wedderburn, Generalized Linear Models, 1972.

    >>> Poisson((1,)).cells(torch.zeros(1, 1), torch.tensor([0.0, 1.0, 2.0]).log1p()[:, None])
    tensor([[1.0000],
            [1.0000],
            [1.6931]])
    """

    @property
    def width(self) -> int:
        """One log-rate per entry."""
        return self.entries

    def cells(self, params: Tensor, x: Tensor) -> Tensor:
        """Exact negative log-probability of each count."""
        log_rate, v = bounded(params), counts(x.flatten(1))
        some = v.clamp_min(1.0)
        u = log_rate - some.log()
        return torch.where(v > 0, some * (torch.expm1(u) - u) + rest(some), torch.exp(log_rate))

    def total(self, params: Tensor, x: Tensor) -> tuple[Tensor, float]:
        """Summed negative log-probability."""
        return self.cells(params, x).sum(), 1.0

    def distribution(self, params: Tensor) -> Distribution:
        """Return the distribution of the counts themselves, :math:`v`."""
        return TorchPoisson(torch.exp(bounded(params)), validate_args=False)

    def point(self, params: Tensor) -> Tensor:
        r"""Mean rate in the scale of ``x``: :math:`\log(1 + e^\eta)`."""
        return F.softplus(bounded(params))

    def draw(self, params: Tensor) -> Tensor:
        """Draw counts, in the scale of ``x``."""
        return torch.poisson(torch.exp(bounded(params))).log1p()

    def expected(self, params: Tensor) -> Tensor:
        r"""Mean of :math:`\log(1 + v)` to second order: within 0.03 of it for every rate.

        .. math:: \log(1 + \lambda) - \frac{\lambda}{2 (1 + \lambda)^2}
        """
        log_rate = bounded(params)
        share = torch.sigmoid(log_rate)
        return F.softplus(log_rate) - share * (1 - share) * 0.5

    def linear_view(self, x: Tensor) -> Tensor:
        """Logarithms of counts are numbers already."""
        return x.flatten(1)

    def spread(self, observed: Tensor) -> Tensor:
        """One column per entry: the mask itself."""
        return observed

    def marginal(self, x: Tensor, observed: Tensor | None) -> Tensor:
        """Return the logarithm of the mean count, which is kept above one in ten thousand."""
        mean = observed_mean(counts(x.flatten(1).double()), observed)
        return mean.clamp_min(1e-4).log().to(x.dtype)


def bounded(log_rate: Tensor) -> Tensor:
    """Logarithm of the rate that an output stands for: itself up to 20."""
    return log_rate.clamp_max(BOUND) + torch.relu(log_rate - BOUND).log1p()


def counts(x: Tensor) -> Tensor:
    """Whole numbers of which ``x`` is the logarithm of one more."""
    return torch.expm1(x).round().clamp_min(0.0)


def rest(v: Tensor) -> Tensor:
    r"""What is left of a count's cost at its best rate, :math:`\log v! - v \log v + v`, v ≥ 1."""
    few = torch.lgamma(v.clamp_max(FEW) + 1) - torch.xlogy(v, v) + v
    inverse = 1 / v.clamp_min(FEW)
    square = inverse * inverse
    series = inverse * (1 / 12 - square * (1 / 360 - square * (1 / 1260)))
    many = 0.5 * (v.log() + math.log(2 * math.pi)) + series
    return torch.where(v < FEW, few, many)
