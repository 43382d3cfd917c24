"""Codes that should look like draws from the prior: maximum mean discrepancy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, cast, final

import torch
from torch import Tensor, nn

from refold.errors import InputError, unknown
from refold.latents import Latent
from refold.ops.ranks import together
from refold.penalties.base import Penalty, register
from refold.types import Batch, Code
from refold.warmup import check_warmup, ramp

COMPARED = 2048  # codes of a portion that are compared in evaluation, pair by pair
KERNELS = ("imq", "rbf")


@final
@register("mmd")
class MMD(Penalty):
    r"""The squared maximum mean discrepancy between a batch's codes and draws from the prior.

    .. math:: \text{cost} = \lambda \Bigl( \frac{1}{n (n-1)} \sum_{i \ne j} k(z_i, z_j)
              + \frac{1}{n (n-1)} \sum_{i \ne j} k(p_i, p_j)
              - \frac{2}{n^2} \sum_{i, j} k(z_i, p_j) \Bigr)

    The estimate has no bias, so it may be below 0. ``kernel`` is a sum over ``scales`` :math:`s` of
    inverse multiquadratics, :math:`C / (C + \lVert a - b \rVert^2)`, or of Gaussians
    (``"rbf"``), :math:`\exp(-\lVert a - b \rVert^2 / C)`, both with :math:`C = 2 D s`, the mean
    squared distance of two draws of a standard normal at :math:`s = 1`. ``weight`` :math:`\lambda`
    is in nats per row. In training the cost grows in over the share ``warmup`` of the run; in
    evaluation it always counts in full.

    Beside a plain code with a prior (the latent ``matched``) it makes a Wasserstein autoencoder,
    beside a variational one with a small ``beta`` an InfoVAE. Raises :class:`InputError` where the
    latent has no prior.

    Sources: Tolstikhin et al., Wasserstein Auto-Encoders, 2018 (arXiv:1711.01558); Zhao, Song &
    Ermon, InfoVAE, 2017 (arXiv:1706.02262); Gretton et al., A Kernel Two-Sample Test, 2012.

    >>> torch.manual_seed(0).initial_seed()
    0
    >>> near, far = torch.randn(2, 500, 3), torch.randn(500, 3) + 2
    >>> [round(float(discrepancy(near[0], b)), 1) for b in (near[1], far)]
    [0.0, 0.5]
    """

    matching: ClassVar[bool] = True
    joint: ClassVar[bool] = True

    def __init__(
        self,
        *,
        weight: float = 10.0,
        kernel: str = "imq",
        scales: Sequence[float] = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0),
        warmup: float = 0.0,
    ) -> None:
        super().__init__()
        if not 0 <= weight < float("inf"):
            raise InputError(f"the weight of mmd is {weight}; it must be 0 or more")
        if kernel not in KERNELS:
            raise unknown("kernel", kernel, KERNELS)
        if not scales or not min(scales) > 0:
            raise InputError(f"the scales of mmd are {scales}; give numbers above 0")
        self.weight, self.kernel, self.scales = weight, kernel, tuple(scales)
        self.warmup = check_warmup(warmup)

    def attach(self, model: nn.Module) -> None:
        """Refuse a code without a prior."""
        latent = cast(Latent, model.latent)
        if not latent.generative:
            raise InputError(
                "mmd compares codes with draws from a prior, and this latent has none; use a "
                "latent that has, such as 'matched' or 'gaussian'"
            )

    def forward(
        self, model: nn.Module, batch: Batch, code: Code, params: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """Compare the codes with as many draws."""
        z = together(code.z.flatten(1).float())
        z = z if self.training else z[:COMPARED]
        if len(z) < 2:  # one code has no distance to others
            return {"mmd": z.sum() * 0.0}
        drawn = cast(Latent, model.latent).sample(len(z)).to(z)
        share = ramp(self.progress, self.warmup) if self.training else 1.0
        cost = discrepancy(z, drawn, self.kernel, self.scales)
        return {"mmd": cost * (self.weight * share)}


def discrepancy(
    a: Tensor, b: Tensor, kernel: str = "imq", scales: Sequence[float] = (1.0,)
) -> Tensor:
    """Squared discrepancy of the distributions behind ``a`` ``[n, D]`` and ``b`` ``[m, D]``.

    >>> a = torch.tensor([[0.0], [0.0]])
    >>> discrepancy(a, a, "rbf")
    tensor(0.)
    """
    # Draws have no gradient, so that of their own pairs, a third of all, is not computed.
    within, beside = (
        likeness(x, x, kernel, scales).fill_diagonal_(0.0).sum() / (len(x) * (len(x) - 1))
        for x in (a, b)
    )
    return within + beside - 2.0 * likeness(a, b, kernel, scales).mean()


def likeness(a: Tensor, b: Tensor, kernel: str, scales: Sequence[float]) -> Tensor:
    """Sum over ``scales`` of the kernel of each pair, ``[n, m]``.

    >>> likeness(torch.zeros(1, 1), torch.zeros(2, 1), "imq", (0.5, 1.0))
    tensor([[2., 2.]])
    """
    lengths = [x.square().sum(1) for x in (a, b)]
    square = (lengths[0][:, None] + lengths[1] - 2.0 * (a @ b.T)).clamp_min(0.0)
    total = torch.zeros((), dtype=square.dtype, device=square.device)
    for scale in scales:
        c = 2.0 * a.shape[1] * scale
        total = total + (c / (c + square) if kernel == "imq" else (-square / c).exp())
    return total
