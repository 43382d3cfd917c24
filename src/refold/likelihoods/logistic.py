"""The likelihood of values on a grid, such as 8-bit pixels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import Distribution, constraints

from refold.errors import InputError
from refold.likelihoods.base import Likelihood, register

WIDEST = 3.0  # logarithm of the largest scale, beyond which all that is left are the two ends
SAMPLE = 1024  # rows that are enough to judge quantiles


@final
class DiscretisedLogisticMixture(Distribution):
    r"""Mixtures of logistic distributions, rounded to ``levels`` values from 0 to 1.

    .. math:: P(x_j) = \sum_k \pi_k \Bigl(\sigma\Bigl(\frac{x_j + h/2 - \mu_k}{s_k}\Bigr)
              - \sigma\Bigl(\frac{x_j - h/2 - \mu_k}{s_k}\Bigr)\Bigr), \qquad
              x_j = j h, \quad h = \frac{1}{\text{levels} - 1}

    The first term is 1 at the highest level and the second 0 at the lowest, so that the levels'
    probabilities sum to 1. ``logits``, ``means`` and ``log_scales`` are ``[B, K, E]``; values
    ``[B, E]`` are taken to the nearest level.

    >>> sure = torch.zeros(1, 1, 1)
    >>> mixture = DiscretisedLogisticMixture(sure, sure + 0.5, sure - 2.0, levels=3)
    >>> mixture.log_prob(torch.tensor([[0.0], [0.5], [1.0]])).exp()
    tensor([[0.1362],
            [0.7276],
            [0.1362]])
    """

    def __init__(self, logits: Tensor, means: Tensor, log_scales: Tensor, *, levels: int) -> None:
        self.logits, self.means, self.log_scales = logits, means, log_scales
        self.levels = levels
        super().__init__(logits.shape[:1], logits.shape[2:], validate_args=False)

    @property
    def arg_constraints(self) -> dict[str, constraints.Constraint]:
        """Any numbers are valid."""
        return {}

    def log_prob(self, value: Tensor) -> Tensor:
        r"""Log-probability of each value's level, ``[B, E]``.

        Of components, by :math:`\sigma(b) - \sigma(a) = \sigma(b) \, \sigma(-a) (1 - e^{a - b})`,
        which loses no digits.
        """
        half = 0.5 / (self.levels - 1)
        level = (value.clamp(0.0, 1.0) * (self.levels - 1)).round().unsqueeze(1)
        distance, narrow = level * (2 * half) - self.means, torch.exp(-self.log_scales)
        low, high = level == 0, level == self.levels - 1
        below = F.logsigmoid((distance + half) * narrow).masked_fill(high, 0.0)
        above = F.logsigmoid((half - distance) * narrow).masked_fill(low, 0.0)
        within = torch.log(-torch.expm1(-2 * half * narrow)).masked_fill(low | high, 0.0)
        return torch.logsumexp(F.log_softmax(self.logits, 1) + below + above + within, 1)

    @property
    def mean(self) -> Tensor:
        r"""Mean ``[B, E]``, within a seventh of a level; a fortieth but for scales below half.

        .. math:: \sum_k \pi_k \int_0^1 \sigma\Bigl(\frac{\mu_k - t}{s_k}\Bigr) dt

        It is the mean before rounding, with what lies outside of [0, 1] at its nearer end.
        """
        scale, above = torch.exp(self.log_scales), self.means - 1
        ends = F.softplus(-self.means.abs() / scale) - F.softplus(-above.abs() / scale)
        return (F.softmax(self.logits, 1) * (self.means.clamp(0.0, 1.0) + scale * ends)).sum(1)

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draw levels; ``sample_shape`` leads."""
        shape = (*sample_shape, *self.logits.shape)
        noise = torch.rand((2, *shape), device=self.logits.device, dtype=self.logits.dtype)
        noise = noise.clamp_(1e-20, 1 - 1e-7)
        chosen = (self.logits - (-noise[0].log()).log()).argmax(-2, keepdim=True)
        drawn = self.means + torch.exp(self.log_scales) * torch.logit(noise[1])
        drawn = drawn.gather(-2, chosen).squeeze(-2).clamp(0.0, 1.0)
        return (drawn * (self.levels - 1)).round() / (self.levels - 1)


@final
@register("logistic_mixture")
class LogisticMixture(Likelihood):
    r"""A mixture of logistic distributions over a grid in [0, 1], exact in nats per entry.

    .. math:: -\log p(x \mid \pi, \mu, s) = -\log \sum_k \pi_k \Bigl(
              \sigma\Bigl(\frac{x + h/2 - \mu_k}{s_k}\Bigr)
              - \sigma\Bigl(\frac{x - h/2 - \mu_k}{s_k}\Bigr)\Bigr)

    ``levels`` is the number of values that an entry can have, 256 for 8-bit images, and
    :math:`h = 1 / (\text{levels} - 1)` the distance between two; all that lies beyond the lowest
    and the highest belongs to them, so that probabilities of all levels sum to 1. ``components`` K
    is how many distributions are mixed. ``params`` ``[B, 3 K E]`` holds blocks of ``E``: the K
    weights as logits, the K means, and the K logarithms of the scales, which are kept from a
    seventh of a level to 20. Targets ``[B, E]`` are taken to the nearest level. Entries are
    independent given the parameters, channels of a pixel too: there is no autoregression as in
    PixelCNN++. Raises :class:`InputError` for fewer than 2 levels or 1 component.

    Source: Salimans, Karpathy, Chen & Kingma, PixelCNN++, 2017 (arXiv:1701.05517).

    >>> head = LogisticMixture((1,), components=1)
    >>> cells = head.cells(torch.tensor([[0.0, 0.5, -3.0]]), torch.arange(256)[:, None] / 255)
    >>> torch.exp(-cells).sum()
    tensor(1.0000)
    """

    def __init__(
        self,
        sizes: tuple[int, ...],
        shape: tuple[int, ...] = (),
        *,
        components: int = 5,
        levels: int = 256,
    ) -> None:
        super().__init__(sizes, shape)
        if components < 1:
            raise InputError(f"components is {components}; mix one or more")
        if levels < 2:
            raise InputError(f"levels is {levels}; a grid from 0 to 1 has two or more")
        self.components, self.levels = components, levels

    @property
    def width(self) -> int:
        """Weight, mean and scale of each component, per entry."""
        return 3 * self.components * self.entries

    @property
    def narrowest(self) -> float:
        """Logarithm of the smallest scale: a seventh of a level."""
        return -math.log(self.levels - 1) - 2.0

    def cells(self, params: Tensor, x: Tensor) -> Tensor:
        """Exact negative log-probability of each entry's level."""
        return -self.distribution(params).log_prob(x.flatten(1))

    def total(self, params: Tensor, x: Tensor) -> tuple[Tensor, float]:
        """Summed negative log-probability."""
        return self.cells(params, x).sum(), 1.0

    def distribution(self, params: Tensor) -> DiscretisedLogisticMixture:
        """Return the mixture, over the grid."""
        parts = params.view(len(params), 3, self.components, self.entries)
        logits, means, log_scales = parts.unbind(1)
        log_scales = log_scales.clamp(self.narrowest, WIDEST)
        return DiscretisedLogisticMixture(logits, means, log_scales, levels=self.levels)

    def point(self, params: Tensor) -> Tensor:
        """Return the mean."""
        return self.distribution(params).mean

    def draw(self, params: Tensor) -> Tensor:
        """Draw levels."""
        return self.distribution(params).sample()

    def expected(self, params: Tensor) -> Tensor:
        """Return the mean."""
        return self.distribution(params).mean

    def linear_view(self, x: Tensor) -> Tensor:
        """Numbers are their own linear view."""
        return x.flatten(1)

    def spread(self, observed: Tensor) -> Tensor:
        """One column per entry: the mask itself."""
        return observed

    def marginal(self, x: Tensor, observed: Tensor | None) -> Tensor:
        r"""Return components that share the observed values between them: a start only.

        Each stands for as many rows, those between two quantiles: its mean is the quantile in the
        middle, its scale a quarter of the distance, a quarter of a level at least. Where all of its
        rows are at an end, it stands so far beyond that it says so.
        """
        step = -(-len(x) // SAMPLE)
        flat = x[::step].flatten(1)
        seen = None if observed is None else observed[::step]
        ranked = flat.masked_fill(~seen, torch.inf) if seen is not None else flat
        ranked = ranked.sort(0).values
        last = (torch.full_like(flat[0], len(flat)) if seen is None else seen.sum(0)) - 1
        at = torch.arange(2 * self.components + 1, device=x.device) / (2 * self.components)
        quantiles = ranked.gather(0, (at[:, None] * last.clamp_min(0)).round().long())
        quantiles = torch.where(last >= 0, quantiles, 0.5).clamp(0.0, 1.0)
        scales = (quantiles[2::2] - quantiles[:-2:2]).clamp_min(1.0 / (self.levels - 1)) / 4
        beyond = (quantiles[2::2] == 0) * -4.0 + (quantiles[:-2:2] == 1) * 4.0
        means = quantiles[1::2] + beyond * scales
        return torch.cat([torch.zeros_like(means), means, scales.log()]).flatten()
