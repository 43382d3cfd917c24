"""The likelihood of shares that sum to one."""

from __future__ import annotations

from typing import ClassVar, final

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import Distribution, OneHotCategorical

from refold.likelihoods.base import Likelihood, observed_mean, register


@final
@register("kl")
class Divergence(Likelihood):
    r"""Kullback-Leibler divergence of a distribution from the softmax of the decoder's outputs.

    .. math:: \operatorname{KL}(p \Vert q) = \sum_k p_k \log\frac{p_k}{q_k},
              \qquad q = \operatorname{softmax}(l), \quad 0 \log 0 = 0

    Targets :math:`p` ``[B, K]`` are non-negative and sum to one; ``params`` ``[B, K]`` are logits.
    The cell of a share is :math:`p_k \log(p_k / q_k) - p_k + q_k`: never negative, 0 where the two
    agree, and the cells of a row sum to its divergence, because :math:`p` and :math:`q` sum alike.
    It is the cross-entropy less the entropy of the target, so that 0 is reached by the right
    answer. The target's log is taken nowhere but at shares above 0.

    Source: Kullback & Leibler, On Information and Sufficiency, 1951.

    >>> p = torch.tensor([[0.5, 0.5, 0.0]])
    >>> cells = Divergence((1,) * 3).cells(torch.zeros(1, 3), p)
    >>> cells, cells.sum()
    (tensor([[0.0361, 0.0361, 0.3333]]), tensor(0.4055))
    """

    spreads: ClassVar[bool] = False

    @property
    def width(self) -> int:
        """One logit per share."""
        return self.entries

    def cells(self, params: Tensor, x: Tensor) -> Tensor:
        """Each share's part of the divergence."""
        p, log_q = x.flatten(1), params.log_softmax(1)
        return torch.xlogy(p, p) - p * log_q - p + log_q.exp()

    def total(self, params: Tensor, x: Tensor) -> tuple[Tensor, float]:
        """Summed divergence."""
        return F.kl_div(params.log_softmax(1), x.flatten(1), reduction="sum"), 1.0

    def distribution(self, params: Tensor) -> Distribution:
        """Return one draw of a class, whose probabilities are the shares."""
        return OneHotCategorical(logits=params, validate_args=False)

    def point(self, params: Tensor) -> Tensor:
        """Return the shares, which sum to one."""
        return params.softmax(1)

    def draw(self, params: Tensor) -> Tensor:
        """Return the point: how far shares stray is not part of the model."""
        return params.softmax(1)

    def expected(self, params: Tensor) -> Tensor:
        """Return the shares."""
        return params.softmax(1)

    def linear_view(self, x: Tensor) -> Tensor:
        """Shares are numbers already."""
        return x.flatten(1)

    def spread(self, observed: Tensor) -> Tensor:
        """One column per share: the mask itself."""
        return observed

    def marginal(self, x: Tensor, observed: Tensor | None) -> Tensor:
        """Return the log of the mean distribution, whose shares are kept above one in a million."""
        return observed_mean(x.flatten(1), observed).clamp_min(1e-6).log()
