"""The likelihood of numbers between two ends."""

from __future__ import annotations

from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Beta as TorchBeta
from torch.distributions import Distribution

from refold.likelihoods.base import Likelihood, observed_mean, register

SQUEEZE = 1000.0  # rows of which the ends are squeezed: they become 0.0005 and 0.9995
LOOSEST, TIGHTEST = -3.0, 8.0  # range of the logarithm of the precision


@final
@register("beta")
class Beta(Likelihood):
    r"""A beta distribution of numbers in [0, 1], by mean and precision, exact in nats.

    .. math:: -\log p(y \mid \mu, \varphi) = \log\frac{\Gamma(\mu\varphi)\,
              \Gamma((1 - \mu)\varphi)}{\Gamma(\varphi)}
              - (\mu\varphi - 1) \log y - ((1 - \mu)\varphi - 1) \log(1 - y)

    ``params`` ``[B, E]`` are the logits of the mean, :math:`\mu = \sigma(\eta)`; the precision
    :math:`\varphi` is learnt, one per entry, its logarithm in [-3, 8]: the larger, the narrower.
    Targets ``[B, E]`` are squeezed off the ends, where the density may be infinite:
    :math:`y = (x (n - 1) + \tfrac12) / n` with ``n = 1000``, so 0 becomes 0.0005. What lies outside
    [0, 1] counts as the nearer end. Any logit has a finite cost and slope, because
    :math:`\Gamma(a) = \Gamma(1 + a) / a`.

    Sources: Ferrari & Cribari-Neto, Beta Regression for Modelling Rates and Proportions, 2004;
    Smithson & Verkuilen, A Better Lemon Squeezer?, 2006, for the squeezing.

    >>> head = Beta((1,))
    >>> cells = head.cells(torch.zeros(1, 1), torch.tensor([[0.1], [0.5], [0.9]]))
    >>> (cells[1] < cells[0]).item(), torch.allclose(cells[0], cells[2])
    (True, True)
    """

    def __init__(self, sizes: tuple[int, ...], shape: tuple[int, ...] = ()) -> None:
        super().__init__(sizes, shape)
        self.raw = nn.Parameter(torch.full((len(sizes),), 0.2))

    @property
    def width(self) -> int:
        """One logit per entry."""
        return self.entries

    @property
    def log_precision(self) -> Tensor:
        """Logarithm of the precision, ``[E]``; times ten, it keeps up with the means."""
        return (10.0 * self.raw).clamp(LOOSEST, TIGHTEST)

    def cells(self, params: Tensor, x: Tensor) -> Tensor:
        """Exact negative log density of each squeezed entry."""
        y, log_precision = squeezed(x.flatten(1)), self.log_precision
        precision = log_precision.exp()
        a, b = torch.sigmoid(params) * precision, torch.sigmoid(-params) * precision
        gammas = torch.lgamma(1 + a) + torch.lgamma(1 + b) - torch.lgamma(precision)
        # The logarithms of a and b, which take the place of poles: each is log-sigmoid and log φ.
        poles = F.logsigmoid(params) + F.logsigmoid(-params) + 2 * log_precision
        return gammas - poles - (a - 1) * y.log() - (b - 1) * (-y).log1p()

    def total(self, params: Tensor, x: Tensor) -> tuple[Tensor, float]:
        """Summed negative log density."""
        return self.cells(params, x).sum(), 1.0

    def distribution(self, params: Tensor) -> Distribution:
        """Return the beta distribution of the squeezed values."""
        precision, tiny = self.log_precision.exp(), torch.finfo(params.dtype).tiny
        a, b = torch.sigmoid(params) * precision, torch.sigmoid(-params) * precision
        return TorchBeta(a.clamp_min(tiny), b.clamp_min(tiny), validate_args=False)

    def point(self, params: Tensor) -> Tensor:
        """Return the mean, with the squeezing undone."""
        return released(torch.sigmoid(params))

    def draw(self, params: Tensor) -> Tensor:
        """Draw, with the squeezing undone."""
        return released(self.distribution(params).sample())

    def expected(self, params: Tensor) -> Tensor:
        """Return the mean, with the squeezing undone."""
        return released(torch.sigmoid(params))

    def linear_view(self, x: Tensor) -> Tensor:
        """Numbers are their own linear view."""
        return x.flatten(1)

    def spread(self, observed: Tensor) -> Tensor:
        """One column per entry: the mask itself."""
        return observed

    def marginal(self, x: Tensor, observed: Tensor | None) -> Tensor:
        """Return the logit of the mean: near the best constant, and a start only."""
        return torch.logit(observed_mean(squeezed(x.flatten(1)), observed), eps=1e-4)


def squeezed(x: Tensor) -> Tensor:
    """Take numbers in [0, 1] off its ends.

    >>> squeezed(torch.tensor([0.0, 0.5, 1.0]))
    tensor([5.0000e-04, 5.0000e-01, 9.9950e-01])
    """
    return (x.clamp(0.0, 1.0) * (SQUEEZE - 1) + 0.5) / SQUEEZE


def released(y: Tensor) -> Tensor:
    """Undo :func:`squeezed`, and stay in [0, 1]."""
    return ((y * SQUEEZE - 0.5) / (SQUEEZE - 1)).clamp(0.0, 1.0)
