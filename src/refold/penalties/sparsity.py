"""Soft sparsity of any latent's code, beside whatever constraint it has of its own."""

from __future__ import annotations

from typing import ClassVar, final

import torch
from torch import Tensor, nn

from refold.errors import InputError
from refold.ops.ranks import together
from refold.ops.sparsity import bernoulli_kl
from refold.penalties.base import Penalty, register
from refold.types import Batch, Code
from refold.warmup import check_warmup, ramp


@final
@register("l1")
class ActivityL1(Penalty):
    r"""Active entries cost their size, whatever latent gave them.

    .. math:: \text{cost} = \frac{\lambda}{B} \sum_b \sum_i |z_{bi}|

    ``weight`` :math:`\lambda` is in nats per unit of activation. In training the cost grows in over
    the share ``warmup`` of the run; in evaluation it always counts in full. Unlike the latent
    ``"l1"``, it rectifies nothing and is no part of scores.

    >>> penalty = ActivityL1(weight=0.5)
    >>> code = Code(torch.tensor([[3.0, -1.0], [0.0, 0.0]]))
    >>> penalty(penalty, Batch({}, {}), code, {})
    {'l1': tensor(1.)}
    """

    def __init__(self, *, weight: float = 1e-3, warmup: float = 0.0) -> None:
        super().__init__()
        if not weight >= 0:
            raise InputError(f"the L1 weight is {weight}; it must be 0 or more")
        self.weight, self.warmup = weight, check_warmup(warmup)

    def forward(
        self, model: nn.Module, batch: Batch, code: Code, params: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """Mean over the rows of the sum of absolute values."""
        share = ramp(self.progress, self.warmup) if self.training else 1.0
        return {"l1": code.z.abs().flatten(1).sum(1).mean() * (self.weight * share)}


@final
@register("kl")
class ActivityKL(Penalty):
    r"""Units whose mean over the batch is not ``target`` cost, whatever latent gave them.

    .. math:: \text{cost} = \lambda \sum_i \mathrm{KL}(\rho \,\|\, \hat\rho_i), \qquad
              \hat\rho_i = \frac{1}{B} \sum_b z_{bi}

    Meant for codes in (0, 1), as a sigmoid gives them (the latent ``"kl"`` has one of its own);
    means outside, of negative codes or of dead units, cost as :func:`bernoulli_kl` continues the
    divergence: finite, with a slope that leads back. ``target`` is :math:`\rho`, ``weight``
    :math:`\lambda` in nats per row. In training the cost grows in over the share ``warmup`` of the
    run; in evaluation it always counts in full.

    Source: Ng, Sparse Autoencoder, CS294A lecture notes, 2011.

    >>> penalty = ActivityKL(target=0.5)
    >>> penalty(penalty, Batch({}, {}), Code(torch.tensor([[0.2], [0.8]])), {})
    {'kl': tensor(0.)}
    """

    joint: ClassVar[bool] = True

    def __init__(self, *, target: float = 0.05, weight: float = 1.0, warmup: float = 0.0) -> None:
        super().__init__()
        if not 0 < target < 1:
            raise InputError(f"the target activity is {target}; it must lie between 0 and 1")
        if not weight >= 0:
            raise InputError(f"the KL weight is {weight}; it must be 0 or more")
        self.target, self.weight, self.warmup = target, weight, check_warmup(warmup)

    def forward(
        self, model: nn.Module, batch: Batch, code: Code, params: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """Sum of the units' divergences."""
        share = ramp(self.progress, self.warmup) if self.training else 1.0
        exact = torch.promote_types(code.z.dtype, torch.float32)
        mean = together(code.z.flatten(0, -2)).mean(0, dtype=exact)
        return {"kl": bernoulli_kl(mean, self.target).sum() * (self.weight * share)}
