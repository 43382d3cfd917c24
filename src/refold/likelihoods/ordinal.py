"""The likelihood of many ordered columns at once."""

from __future__ import annotations

from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Categorical as TorchCategorical
from torch.distributions import Distribution

from refold.likelihoods.base import Likelihood, register
from refold.likelihoods.categorical import RARE

LEAST = 1e-6  # distance of two cut points: a level between them never has probability zero


@final
@register("ordinal")
class Ordinal(Likelihood):
    r"""Cumulative logits with proportional odds: one output per column, cut into levels.

    .. math:: P(y \le j \mid \eta) = \sigma(\theta_j - \eta), \qquad
              P(y = j) = \sigma(\theta_j - \eta) - \sigma(\theta_{j-1} - \eta)

    ``params`` ``[B, K]`` hold :math:`\eta`: the larger, the higher the level. The cut points
    :math:`\theta_0 < \theta_1 < \dots` are learnt, one fewer than levels, the same in every row:
    the first is free, the others follow by positive steps. Targets ``[B, K]`` are the level's rank
    scaled to [0, 1]. A probability's logarithm is taken as :math:`\log\sigma(a) + \log\sigma(-b) +
    \log(1 - e^{b - a})` for the edges :math:`a > b` of its level, which is exact where the
    difference of the two would be rounded to zero; :math:`b - a` is a step between two cut points
    and does not depend on :math:`\eta`. A level never seen in training is below 0: it costs what
    the least likely level does, at least log 1000. A column of one level costs nothing.

    Source: McCullagh, Regression Models for Ordinal Data, 1980.

    >>> head = Ordinal((3,))
    >>> head.expected(torch.tensor([[0.0], [3.0]]))
    tensor([[0.3333, 0.3333, 0.3333],
            [0.0243, 0.0663, 0.9094]], grad_fn=<IndexSelectBackward0>)
    """

    last: Tensor
    inner: Tensor
    within: Tensor
    segment: Tensor

    def __init__(self, sizes: tuple[int, ...], shape: tuple[int, ...] = ()) -> None:
        super().__init__(sizes, shape)
        levels = torch.tensor(sizes)
        rank = torch.arange(max(sizes))
        valid = rank < levels[:, None]
        places = torch.arange(len(sizes))
        self.register_buffer("last", levels - 1, persistent=False)
        # Cut points [K, most - 1] that are below the last level of their column.
        self.register_buffer("inner", rank[:-1] < levels[:, None] - 1, persistent=False)
        self.register_buffer("within", valid.flatten().nonzero()[:, 0], persistent=False)
        self.register_buffer("segment", places.repeat_interleave(levels), persistent=False)
        self.first = nn.Parameter(torch.zeros(len(sizes)))
        self.steps = nn.Parameter(torch.zeros(len(sizes), max(0, max(sizes) - 2)))
        self.cut(valid.double())

    @property
    def width(self) -> int:
        """One output per column."""
        return self.entries

    @property
    def cuts(self) -> Tensor:
        """Cut points ``[K, most - 1]``, infinite beyond the last of a column."""
        rising = self.first[:, None] + self._gaps().cumsum(1)
        cuts = torch.cat([self.first[:, None], rising], 1)[:, : self.inner.shape[1]]
        return cuts.masked_fill(~self.inner, torch.inf)

    def cells(self, params: Tensor, x: Tensor) -> Tensor:
        """Cost of each column's level."""
        flat = x.flatten(1)
        lower, upper, between = self._edges()
        at = self._ranks(flat) + torch.arange(self.entries, device=x.device) * lower.shape[1]
        cost = -_log_between(
            params, lower.flatten()[at], upper.flatten()[at], between.flatten()[at]
        )
        new = flat < -0.5
        if not self.training and bool(new.any()):
            least = self._log_probs(params).flatten(1).index_select(1, self.within)
            rarest = torch.stack([-p.amin(1) for p in least.split(self.sizes, 1)], 1)
            cost = torch.where(new, rarest.clamp_min(RARE), cost)
        return cost

    def total(self, params: Tensor, x: Tensor) -> tuple[Tensor, float]:
        """Summed cost."""
        return self.cells(params, x).sum(), 1.0

    def distribution(self, params: Tensor) -> Distribution:
        """Return the distribution of the ranks themselves, counted from 0."""
        return TorchCategorical(logits=self._log_probs(params), validate_args=False)

    def point(self, params: Tensor) -> Tensor:
        """Most probable level of each column, as its scaled rank."""
        return self._scaled(self._log_probs(params).argmax(2), params)

    def draw(self, params: Tensor) -> Tensor:
        """Draw a level for each column."""
        return self._scaled(self.distribution(params).sample(), params)

    def expected(self, params: Tensor) -> Tensor:
        """Probability of each level, ``[B, S]``."""
        return self._log_probs(params).exp().flatten(1).index_select(1, self.within)

    def linear_view(self, x: Tensor) -> Tensor:
        """One indicator per level, ``[B, S]``; an unseen level is all zeros."""
        flat = x.flatten(1)
        hot = F.one_hot(self._ranks(flat), max(self.sizes)) * (flat >= -0.5)[..., None]
        return hot.flatten(1).index_select(1, self.within).float()

    def spread(self, observed: Tensor) -> Tensor:
        """Repeat each column's mask over its levels."""
        return observed.index_select(1, self.segment)

    def marginal(self, x: Tensor, observed: Tensor | None) -> Tensor:
        """Return 0: how common levels are is said by the cut points, see :meth:`settle`."""
        return torch.zeros(self.entries, device=x.device)

    def settle(self, x: Tensor, observed: Tensor | None) -> None:
        """Set the cut points to the observed shares, with half a count for each level."""
        ranks = self._ranks(x.flatten(1))
        seen = torch.ones_like(ranks, dtype=torch.bool) if observed is None else observed
        counts = torch.zeros(self.entries, max(self.sizes), dtype=torch.float64, device=x.device)
        counts.T.scatter_add_(0, ranks, seen.double())
        self.cut(counts + 0.5)

    @torch.no_grad()
    def cut(self, counts: Tensor) -> None:
        r"""Set the cut points so that :math:`\eta = 0` gives the shares of ``[K, most]`` counts."""
        beyond = torch.arange(counts.shape[1], device=self.last.device) > self.last[:, None]
        counts = counts.masked_fill(beyond, 0.0)
        below = counts.cumsum(1) / counts.sum(1, keepdim=True)
        cuts = torch.logit(below[:, :-1], eps=1e-9)
        if cuts.shape[1] == 0:
            return
        self.first.copy_(torch.where(self.inner[:, 0], cuts[:, 0], 0.0))
        gaps = (cuts.diff(dim=1) - LEAST).clamp_min(LEAST)
        raw = gaps + torch.log(-torch.expm1(-gaps))  # the inverse of softplus
        self.steps.copy_(torch.where(self.inner[:, 1:], raw, 0.0))

    def _gaps(self) -> Tensor:
        """Steps between neighbouring cut points, ``[K, most - 2]``."""
        return F.softplus(self.steps) + LEAST

    def _edges(self) -> tuple[Tensor, Tensor, Tensor]:
        r"""Lower and upper edge of each level, and :math:`\log(1 - e^{b - a})`, ``[K, most]``."""
        cuts = self.cuts
        end = torch.full_like(self.first[:, None], torch.inf)
        lower, upper = torch.cat([-end, cuts], 1), torch.cat([cuts, end], 1)
        between = torch.log(-torch.expm1(-self._gaps())).masked_fill(~self.inner[:, 1:], 0.0)
        none = torch.zeros_like(end)
        return lower, upper, torch.cat([none, between, none], 1)[:, : lower.shape[1]]

    def _log_probs(self, params: Tensor) -> Tensor:
        """Log-probability of each level, ``[B, K, most]``; minus infinity beyond the last."""
        return _log_between(params[..., None], *self._edges())

    def _ranks(self, x: Tensor) -> Tensor:
        """Ranks of scaled targets ``[B, K]``."""
        return torch.minimum((x * self.last).round().long().clamp_min(0), self.last)

    def _scaled(self, ranks: Tensor, params: Tensor) -> Tensor:
        return ranks.to(params.dtype) / self.last.clamp_min(1)


def _log_between(eta: Tensor, lower: Tensor, upper: Tensor, between: Tensor) -> Tensor:
    r"""Return :math:`\log(\sigma(a - \eta) - \sigma(b - \eta))` for edges :math:`a > b`."""
    return F.logsigmoid(upper - eta) + F.logsigmoid(eta - lower) + between
