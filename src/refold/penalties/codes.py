"""Costs of the code as a whole, over the rows of a batch."""

from __future__ import annotations

from typing import ClassVar, final

from torch import Tensor, nn

from refold.errors import InputError
from refold.ops.ranks import together
from refold.penalties.base import Penalty, register
from refold.types import Batch, Code
from refold.warmup import check_warmup, ramp

FLOOR = 1e-6  # of the mean variance: a unit that varies less counts as constant
TINY = 1e-12  # variance of a code that does not vary at all


@final
@register("decorrelation")
class Decorrelation(Penalty):
    r"""Code entries that should not repeat each other: correlations over the batch cost.

    .. math:: \text{cost} = \frac{\lambda}{D (D - 1)} \sum_{i \ne j} r_{ij}^2, \qquad
              r_{ij} = \frac{\operatorname{cov}(z_i, z_j)}{\sigma_i \sigma_j}

    Between 0 and ``weight`` :math:`\lambda` (in nats per row), whatever the scale of the code,
    which could escape a cost of covariances by shrinking. Units that are constant cost nothing and
    have finite gradients. Independent entries still cost about :math:`\lambda / B` in a batch of B
    rows, where chance correlates them. In training the cost grows in over the share ``warmup`` of
    the run; in evaluation it always counts in full, so that held-out losses of all epochs compare.

    Source: Cogswell et al., Reducing Overfitting in Deep Networks by Decorrelating Representations,
    2016 (arXiv:1511.06068), there with covariances.

    >>> import torch
    >>> correlation_cost(torch.tensor([[0.0, 0.0], [1.0, 2.0], [5.0, 10.0]])).round(decimals=4)
    tensor(1.)
    """

    joint: ClassVar[bool] = True

    def __init__(self, *, weight: float = 1.0, warmup: float = 0.0) -> None:
        super().__init__()
        if not weight >= 0:
            raise InputError(f"the decorrelation weight is {weight}; it must be 0 or more")
        self.weight, self.warmup = weight, check_warmup(warmup)

    def forward(
        self, model: nn.Module, batch: Batch, code: Code, params: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """Mean squared correlation of two entries."""
        share = ramp(self.progress, self.warmup) if self.training else 1.0
        cost = correlation_cost(together(code.z.flatten(0, -2)))
        return {"decorrelation": cost * (self.weight * share)}


def correlation_cost(z: Tensor) -> Tensor:
    """Mean squared correlation between two columns of ``z`` ``[B, D]``; 0 for a single column.

    >>> import torch
    >>> correlation_cost(torch.ones(4, 3))
    tensor(0.)
    """
    rows, size = z.shape
    centred = z - z.mean(0)
    variance = centred.square().mean(0)
    standard = centred * (variance + FLOOR * variance.mean() + TINY).rsqrt()
    correlation = standard.T @ standard / rows
    crossed = correlation.square().sum() - correlation.diagonal().square().sum()
    return crossed / max(1, size * (size - 1))
