"""Codes of large dictionaries: few entries of many are active, and not the same number in all rows.

All but :class:`~refold.latents.TopK`, whose ``rectify`` is for dictionaries as well, which keeps as
many in each row.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar, final

import torch
from torch import Tensor, nn

from refold.errors import InputError
from refold.latents.base import Latent, register
from refold.latents.sparse import fired
from refold.ops.topk import keep
from refold.types import Code
from refold.warmup import check_warmup, ramp

USUAL = 32  # entries of a wide code that are active where the user does not say
RATE = 0.05  # by which the running threshold follows that of a batch, a quantile of many entries
GROUP = 16  # entries of which only the largest is looked at first
LEAST = 1e-3  # share of the entries' deviation below which no threshold starts


class Selective(Latent, ABC):
    """A latent of rectified entries that keeps few of them, and some more or fewer in each row."""

    aim: float | None = None
    """How many entries of a row are to be active on average; None where nothing says it."""

    @property
    def width(self) -> int:
        """One number per code entry."""
        return self.size

    def forward(self, h: Tensor) -> Code:
        """Choose; where it is not trained, say how many rows each entry was active in."""
        code = self.choose(h)
        if not self.training:
            code.stats["fired"] = fired(code.z)
        return code

    @abstractmethod
    def choose(self, h: Tensor) -> Code:
        """Code of a hidden state ``[*, D]``."""

    def sample(self, n: int) -> Tensor:
        """Refuse: a sparse code has no prior."""
        raise self.no_prior()


@final
@register("batch_topk")
class BatchTopK(Selective):
    r"""The largest entries of a whole batch stay, ``k`` a row on average.

    .. math:: z_{bi} = h_{bi} \, [\, h_{bi} \ge t \,] \, [\, h_{bi} > 0 \,], \qquad
              t = \text{the } (B k)\text{-th largest entry of } h

    A row that takes more entries to say has more of them than one that takes few. In evaluation
    :math:`t` is a running mean of the batches', so that rows do not depend on each other, and rows
    have about ``k`` entries. ``k=None`` keeps a tenth of the code, from 1 to 32.

    Source: Bussmann, Leask & Nanda, BatchTopK Sparse Autoencoders, 2024 (arXiv:2412.06410).

    >>> import torch
    >>> BatchTopK(2, k=1)(torch.tensor([[5.0, 4.0], [1.0, 2.0]])).z
    tensor([[5., 4.],
            [0., 0.]])
    """

    threshold: Tensor

    def __init__(self, size: int, *, k: int | None = None) -> None:
        super().__init__(size)
        self.aim = self.k = active(size, k, "batch top-k keeps k")
        self.register_buffer("threshold", torch.zeros(()))

    def begin(self, h: Tensor, rows: int) -> None:
        """Start the running threshold where ``k`` entries a row are above it."""
        self.threshold.copy_(largest(h, self.k * len(h)).clamp_min(0.0))

    def choose(self, h: Tensor) -> Code:
        """Keep what is above the batch's threshold, or the running one."""
        if not self.training:
            return Code(keep(h, (h > self.threshold).to(h.dtype)))
        with torch.no_grad():
            least = largest(h, self.k * (h.numel() // self.size))
            mask = ((h >= least) & (h > 0)).to(h.dtype)
            self.threshold.lerp_(least.clamp_min(0.0).to(self.threshold.dtype), RATE)
        return Code(keep(h, mask))


@final
@register("jumprelu")
class JumpReLU(Selective):
    r"""Each entry has a threshold of its own, which is learnt; ``l0`` of them are to be active.

    .. math:: z_i = h_i \, [\, h_i > \theta_i \,], \qquad
              \text{cost} = \lambda \tfrac12 e \left( \frac{1}{B \ell} \sum_{bi}
              [\, h_{bi} > \theta_i \,] - 1 \right)^2

    Thresholds hear of the cost and of the reconstruction by way of a kernel of width
    ``bandwidth`` :math:`\varepsilon` around them,
    :math:`\partial z_i / \partial \theta_i = -\tfrac{\theta_i}{\varepsilon} K`, and
    :math:`\partial [h_i > \theta_i] / \partial \theta_i = -\tfrac{1}{\varepsilon} K` with
    :math:`K = [\, |h_i - \theta_i| < \varepsilon / 2 \,]`; they are kept above zero as
    :math:`\theta = e^{\vartheta}`. ``l0`` :math:`\ell` is the number of active entries a row
    that costs nothing (None: a tenth of the code, from 1 to 32), ``weight`` :math:`\lambda` is in
    units of the energy of a code, :math:`e = E \lVert z \rVert^2` at the start, so that it suits
    rows of any scale. The thresholds start where ``l0`` entries a row pass. The cost, named
    ``l0``, is of a batch and no part of scores; in training it grows in over the share ``warmup``
    of the run.

    Source: Rajamanoharan et al., Jumping Ahead: Improving Reconstruction Fidelity with JumpReLU
    Sparse Autoencoders, 2024 (arXiv:2407.14435); the target is its appendix's.

    >>> import torch
    >>> latent = JumpReLU(2, l0=1)
    >>> latent.begin(torch.tensor([[5.0, 1.0], [1.0, 4.0]]), 2)
    >>> latent(torch.tensor([[5.0, 1.0], [6.0, 0.1]])).z.detach()
    tensor([[5., 0.],
            [6., 0.]])
    """

    energy: Tensor

    def __init__(
        self,
        size: int,
        *,
        l0: float | None = None,
        weight: float = 1.0,
        bandwidth: float = 0.05,
        warmup: float = 0.0,
    ) -> None:
        super().__init__(size)
        if not weight >= 0:
            raise InputError(f"the weight of l0 is {weight}; it must be 0 or more")
        if not 0 < bandwidth < float("inf"):
            raise InputError(f"jumprelu's bandwidth is {bandwidth}; it must be above 0")
        self.aim = self.l0 = active(size, l0, "jumprelu aims at l0")
        self.weight, self.bandwidth, self.warmup = weight, bandwidth, check_warmup(warmup)
        self.log_threshold = nn.Parameter(torch.full((size,), bandwidth).log())
        self.register_buffer("energy", torch.ones(()))

    @property
    def threshold(self) -> Tensor:
        """Threshold of each entry, ``[D]``."""
        return self.log_threshold.exp()

    @torch.no_grad()
    def begin(self, h: Tensor, rows: int) -> None:
        """Start all thresholds where ``l0`` entries a row are above them."""
        least = LEAST * float(h.std().nan_to_num()) or LEAST
        level = largest(h, max(1, round(self.l0 * len(h)))).clamp_min(least)
        self.log_threshold.fill_(float(level.log()))
        energy = (h * (h >= level)).square().sum() / len(h)
        self.energy.copy_(energy.clamp_min(least**2))

    def choose(self, h: Tensor) -> Code:
        """Keep what is above its threshold, and charge for more or fewer than the target."""
        z, active = Jump.apply(h, self.threshold, self.bandwidth)
        share = ramp(self.progress, self.warmup) if self.training else 1.0
        excess = active * (self.size / self.l0) - 1.0
        return Code(z, aux={"l0": excess.square() * (0.5 * self.weight * share * self.energy)})


class Jump(torch.autograd.Function):
    """Entries above their thresholds, and the share of all entries that are, a scalar."""

    @staticmethod
    def forward(h: Tensor, threshold: Tensor, bandwidth: float) -> tuple[Tensor, Tensor]:
        """Keep what is above."""
        above = (h > threshold).to(h.dtype)
        return keep(h, above), above.mean()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        """Keep what the kernel is made of."""
        h, threshold, ctx.bandwidth = inputs
        ctx.save_for_backward(h, threshold)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, Tensor, None]:
        """Pass on to entries that are kept, and to thresholds that an entry is near."""
        (h, threshold), (of_z, of_share) = ctx.saved_tensors, grads
        near = ((h - threshold).abs() < 0.5 * ctx.bandwidth).to(h.dtype)
        moved = threshold * of_z + of_share / h.numel()
        falling = -(near * moved).flatten(0, -2).sum(0) / ctx.bandwidth
        return keep(of_z, (h > threshold).to(h.dtype)), falling, None


@final
@register("gated")
class Gated(Selective):
    r"""Whether an entry is active and how large it is are two questions with shared weights.

    .. math:: z = [\, h > 0 \,] \odot \max(e^{r} \odot h + m, 0), \qquad
              \text{term}_b = \lambda \sum_i \max(h_{bi}, 0)

    The cost of size, ``weight`` :math:`\lambda` in nats per unit, is of the gate alone, so that
    values are not shrunk by it; ``scale`` :math:`r` and ``bias`` :math:`m` are learnt. What the
    gate learns comes from the penalty ``gate``, which has the gate rebuild rows by itself, and
    which is added where nobody names it. In training the cost grows in over the share ``warmup``
    of the run; in evaluation it always counts in full.

    Source: Rajamanoharan et al., Improving Dictionary Learning with Gated Sparse Autoencoders, 2024
    (arXiv:2404.16014); :math:`m` is their :math:`b_\text{mag} - e^{r} b_\text{gate}`.

    >>> import torch
    >>> Gated(2)(torch.tensor([[2.0, -1.0]])).z.detach()
    tensor([[2., 0.]])
    """

    needs: ClassVar[tuple[str, ...]] = ("gate",)
    rowwise: ClassVar[bool] = True

    def __init__(self, size: int, *, weight: float = 0.5, warmup: float = 0.0) -> None:
        super().__init__(size)
        if not weight >= 0:
            raise InputError(f"the weight of the gate is {weight}; it must be 0 or more")
        self.weight, self.warmup = weight, check_warmup(warmup)
        self.scale = nn.Parameter(torch.zeros(size))
        self.bias = nn.Parameter(torch.zeros(size))

    def choose(self, h: Tensor) -> Code:
        """Measure what the gate lets pass, and charge for the gate."""
        gate = torch.relu(h)
        share = ramp(self.progress, self.warmup) if self.training else 1.0
        z = torch.relu(h * self.scale.exp() + self.bias) * (h > 0)
        size = gate.flatten(1).sum(1) * (self.weight * share)
        return Code(z, terms={"l1": size}, beside={"gate": gate})


@torch.no_grad()
def largest(h: Tensor, count: int) -> Tensor:
    """The ``count``-th largest of all entries, a scalar; minus infinity where there are fewer.

    Most entries are only looked at in groups: the largest are among the groups of largest maximum.

    >>> largest(torch.tensor([[1.0, 4.0], [3.0, 2.0]]), 2)
    tensor(3.)
    """
    values = h.detach().flatten()
    if count > len(values):
        return values.new_tensor(-torch.inf)
    if len(values) % GROUP == 0 and count < len(values) // GROUP:
        groups = values.view(-1, GROUP)
        maxima = groups.amax(1)
        values = groups[maxima >= nth(maxima, count)].flatten()
    return nth(values, count)


def nth(values: Tensor, count: int) -> Tensor:
    """The ``count``-th largest of values ``[n]``, a scalar."""
    return values.kthvalue(len(values) - count + 1).values


def active(size: int, wish: float | None, said: str) -> Any:
    """Return how many entries of a code are to be active; raise for what cannot be."""
    wish = max(1, min(USUAL, round(0.1 * size))) if wish is None else wish
    if not 1 <= wish <= size:
        raise InputError(f"{said}={wish} of a code of {size}; it must lie in 1..{size}")
    return wish
