"""The likelihood of yes and no, and of intensities between 0 and 1."""

from __future__ import annotations

from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import Bernoulli as TorchBernoulli
from torch.distributions import Distribution

from refold.likelihoods.base import Likelihood, observed_mean, register


@final
@register("bernoulli")
class Bernoulli(Likelihood):
    r"""Binary cross-entropy on logits, stable for any logit.

    .. math:: -\log p(x \mid l) = \log(1 + e^{l}) - x\, l

    Targets between 0 and 1 (pixel intensities) are allowed; the cost is then the cross-entropy
    to a coin of that bias. What lies outside, which no coin gives, costs half its squared distance
    beside: alone, the cross-entropy would have no lower bound there.

    >>> Bernoulli((1,)).cells(torch.zeros(1, 1), torch.ones(1, 1))
    tensor([[0.6931]])
    """

    @property
    def width(self) -> int:
        """One logit per entry."""
        return self.entries

    def cells(self, params: Tensor, x: Tensor) -> Tensor:
        """Binary cross-entropy of each entry, and half the square of what lies outside."""
        flat = x.flatten(1)
        inside = flat.clamp(0.0, 1.0)
        outside = flat - inside
        cross = F.binary_cross_entropy_with_logits(params, inside, reduction="none")
        return torch.addcmul(cross, outside, outside, value=0.5)

    def total(self, params: Tensor, x: Tensor) -> tuple[Tensor, float]:
        """Sum the same over all entries."""
        flat = x.flatten(1)
        inside = flat.clamp(0.0, 1.0)
        cross = F.binary_cross_entropy_with_logits(params, inside, reduction="sum")
        return cross + F.mse_loss(flat, inside, reduction="sum") * 0.5, 1.0

    def distribution(self, params: Tensor) -> Distribution:
        """Return independent coins."""
        return TorchBernoulli(logits=params, validate_args=False)

    def point(self, params: Tensor) -> Tensor:
        """Probability of 1: the field decides whether it wants a class or an intensity."""
        return params.sigmoid()

    def draw(self, params: Tensor) -> Tensor:
        """Toss the coins."""
        return self.distribution(params).sample()

    def expected(self, params: Tensor) -> Tensor:
        """Probability of 1."""
        return params.sigmoid()

    def linear_view(self, x: Tensor) -> Tensor:
        """Zeros and ones are numbers already."""
        return x.flatten(1)

    def spread(self, observed: Tensor) -> Tensor:
        """One column per entry: the mask itself."""
        return observed

    def marginal(self, x: Tensor, observed: Tensor | None) -> Tensor:
        """Return the logit of the observed share of ones, kept within one in ten thousand."""
        return torch.logit(observed_mean(x.flatten(1), observed), eps=1e-4)
