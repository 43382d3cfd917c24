"""Codes of which few entries are active at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, final

import torch
from torch import Tensor

from refold.errors import InputError, unknown
from refold.latents.base import Latent, register
from refold.ops.sparsity import bernoulli_kl
from refold.ops.topk import keep, keep_top_k, top_mask
from refold.types import Code
from refold.warmup import check_warmup, ramp

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu": torch.relu, "identity": lambda h: h}
SHARE = 0.05  # of the rows, in which a unit is active where the user does not say


@torch.no_grad()
def fired(z: Tensor) -> Tensor:
    """Count the rows in which each entry of codes ``[*, D]`` is active, and all rows, ``[1, D+1]``.

    These are sums, and not a figure per row: of wide codes that would be as large as the codes.

    >>> fired(torch.tensor([[0.0, 2.0], [1.0, 1.0]]))
    tensor([[1, 2, 2]])
    """
    rows = z.flatten(0, -2)
    count = rows.nonzero(as_tuple=True)[1].bincount(minlength=rows.shape[1])
    return torch.cat([count, count.new_tensor([len(rows)])])[None]


@final
@register("topk")
class TopK(Latent):
    r"""Hard sparsity: the ``k`` largest entries of each code stay, the others are zero.

    .. math:: z_i = h_i \, [\, i \in \operatorname{top}_k(h) \,]

    ``k=None`` keeps a tenth of the code, at least one. ``absolute`` ranks by magnitude;
    ``rectify`` has what is negative among the largest be zero, as dictionaries want it (Gao et al.
    2024, arXiv:2406.04093). In evaluation ``alpha`` times as many stay, at most all: features for a
    classifier gain from some more than the decoder was trained with (the paper's :math:`\alpha`,
    about 3 there).

    Raises :class:`InputError` for a ``k`` that the code does not have, an ``alpha`` below 1, and
    ``absolute`` with ``rectify``.

    Source: Makhzani & Frey, k-Sparse Autoencoders, 2013 (arXiv:1312.5663).

    >>> import torch
    >>> TopK(4, k=1)(torch.tensor([[1.0, 5.0, 2.0, -9.0]])).z
    tensor([[0., 5., 0., 0.]])
    """

    rowwise: ClassVar[bool] = True

    def __init__(
        self,
        size: int,
        *,
        k: int | None = None,
        absolute: bool = False,
        rectify: bool = False,
        alpha: float = 1.0,
    ) -> None:
        super().__init__(size)
        if absolute and rectify:
            raise InputError(
                "top-k was given absolute and rectify: entries are ranked by magnitude, or those "
                "below zero do not count; give one of them"
            )
        k = max(1, round(0.1 * size)) if k is None else k
        if not 1 <= k <= size:
            raise InputError(f"top-k keeps k={k} of a code of {size}; k must lie in 1..{size}")
        if not 1 <= alpha < float("inf"):
            raise InputError(f"top-k's alpha is {alpha}; it must be a number from 1 on")
        self.k, self.absolute, self.rectify, self.alpha = k, absolute, rectify, alpha
        self.relaxed = alpha > 1

    @property
    def width(self) -> int:
        """One number per code entry."""
        return self.size

    def forward(self, h: Tensor) -> Code:
        """Keep the k largest, in evaluation alpha times as many."""
        k = self.k if self.training else min(self.size, round(self.alpha * self.k))
        z = keep_top_k(h, k, absolute=self.absolute)
        z = torch.relu(z) if self.rectify else z
        return Code(z) if self.training else Code(z, stats={"fired": fired(z)})

    def sample(self, n: int) -> Tensor:
        """Refuse: a sparse code has no prior."""
        raise self.no_prior()


@final
@register("lifetime")
class WinnerTakeAll(Latent):
    r"""Lifetime sparsity: in training, each unit stays active only in the rows that excite it most.

    .. math:: z_{bi} = f(h_{bi}) \, [\, b \in \operatorname{top}_k(h_{1i}, \dots, h_{Bi}) \,]

    Every unit wins somewhere in each batch, so none dies. ``k`` rows per unit, or the ``fraction``
    of the rows that are there (0.05 unless said, at least one row), so that a short last batch is
    as sparse as the others; a ``k`` above the number of rows keeps all. ``activation`` :math:`f` is
    ``"relu"`` or ``"identity"``. In evaluation the code is :math:`f(h)`, whatever rows come along.

    ``top`` adds a limit per row, in training and evaluation: first each row keeps its ``top``
    largest entries, then each unit the largest of what is left.

    ``maps`` reads the code as that many feature maps side by side, each of ``size / maps``
    positions: in training each map of a row keeps its largest position, then each map the rows
    whose winners are largest (after ``top``, where both are asked for).

    Raises :class:`InputError` for ``k`` and ``fraction`` together, or maps that do not fit.

    Source: Makhzani & Frey, Winner-Take-All Autoencoders, 2015 (arXiv:1409.2752).

    >>> import torch
    >>> latent, h = WinnerTakeAll(2, k=1), torch.tensor([[3.0, 1.0], [2.0, 4.0], [1.0, -5.0]])
    >>> latent(h).z
    tensor([[3., 0.],
            [0., 4.],
            [0., 0.]])
    >>> latent.eval()(h).z
    tensor([[3., 1.],
            [2., 4.],
            [1., 0.]])
    """

    def __init__(
        self,
        size: int,
        *,
        fraction: float | None = None,
        k: int | None = None,
        top: int | None = None,
        activation: str = "relu",
        maps: int | None = None,
    ) -> None:
        super().__init__(size)
        if k is not None and fraction is not None:
            raise InputError(
                f"lifetime sparsity was given k={k} rows and fraction={fraction} of the rows; give "
                f"one of them"
            )
        fraction = SHARE if k is None and fraction is None else fraction
        if fraction is not None and not 0 < fraction <= 1:
            raise InputError(f"fraction is {fraction}; it is a share of the rows, above 0, up to 1")
        if k is not None and k < 1:
            raise InputError(f"lifetime sparsity keeps k={k} rows per unit; k must be 1 or more")
        if top is not None and not 1 <= top <= size:
            raise InputError(f"top={top} entries of a code of {size}; top must lie in 1..{size}")
        if maps is not None and (maps < 1 or size % maps):
            raise InputError(
                f"a code of {size} cannot be parted into {maps} equal maps; give a number that "
                f"divides {size}"
            )
        self.fraction, self.k, self.top, self.maps = fraction, k, top, maps
        self.activation = _known(activation)
        self.relaxed = True

    @property
    def width(self) -> int:
        """One number per code entry."""
        return self.size

    def rows(self, present: int) -> int:
        """Rows in which a unit stays active, of those present in the batch."""
        if self.fraction is not None:
            return max(1, round(self.fraction * present))
        assert self.k is not None
        return self.k

    def forward(self, h: Tensor) -> Code:
        """Let each unit keep its best rows in training; apply the activation."""
        mask = None if self.top is None else top_mask(h, self.top)
        if self.training:
            rank = h.detach() if mask is None else h.detach().masked_fill(mask == 0, -torch.inf)
            # The winners are among those that the first choice left.
            mask = self._winners(rank.flatten(0, -2)).view_as(h)
        # An activation that never falls may follow the choice, which then meets no ties at zero.
        return Code(ACTIVATIONS[self.activation](h if mask is None else keep(h, mask)))

    def _winners(self, rank: Tensor) -> Tensor:
        """Mark ``[B, D]`` where each unit, or the winning position of each map, is at its best."""
        k = self.rows(len(rank))
        if self.maps is None:
            return top_mask(rank, k, axis=0)
        in_maps = rank.unflatten(1, (self.maps, -1))
        best_rows = top_mask(in_maps.amax(2), k, axis=0)
        return (top_mask(in_maps, 1) * best_rows[:, :, None]).flatten(1)

    def sample(self, n: int) -> Tensor:
        """Refuse: a sparse code has no prior."""
        raise self.no_prior()


@final
@register("l1")
class L1(Latent):
    r"""Soft sparsity: codes that cost their size.

    .. math:: z = \max(h, 0), \qquad \text{term}_b = \lambda \sum_i |z_{bi}|

    ``weight`` is :math:`\lambda`, in nats per unit of activation; ``activation="identity"`` leaves
    out the rectifier, :math:`z = h`. In training the cost grows in over the share ``warmup`` of the
    run; in evaluation it always counts in full, so that held-out losses of all epochs compare.

    >>> import torch
    >>> L1(2, weight=0.5)(torch.tensor([[3.0, -1.0]])).terms["l1"]
    tensor([1.5000])
    """

    rowwise: ClassVar[bool] = True

    def __init__(
        self,
        size: int,
        *,
        weight: float = 1e-3,
        warmup: float = 0.0,
        activation: str = "relu",
    ) -> None:
        super().__init__(size)
        if not weight >= 0:
            raise InputError(f"the L1 weight is {weight}; it must be 0 or more")
        self.weight, self.warmup = weight, check_warmup(warmup)
        self.activation = _known(activation)

    @property
    def width(self) -> int:
        """One number per code entry."""
        return self.size

    def forward(self, h: Tensor) -> Code:
        """Activate, and charge for what is active."""
        z = ACTIVATIONS[self.activation](h)
        share = ramp(self.progress, self.warmup) if self.training else 1.0
        return Code(z, terms={"l1": z.abs().flatten(1).sum(1) * (self.weight * share)})

    def sample(self, n: int) -> Tensor:
        """Refuse: a sparse code has no prior."""
        raise self.no_prior()


@final
@register("kl")
class KL(Latent):
    r"""Soft sparsity: units between 0 and 1 whose mean over the batch should be ``target``.

    .. math:: z = \frac{1}{1 + e^{-h}}, \qquad
              \text{cost} = \lambda \sum_i \mathrm{KL}(\rho \,\|\, \hat\rho_i), \quad
              \hat\rho_i = \frac{1}{B} \sum_b z_{bi}

    ``target`` is :math:`\rho`, in (0, 1). ``weight`` :math:`\lambda` is in nats per row for each
    nat of divergence of a unit: at 1, a code of 32 units that are all half active costs each row 16
    nats, about what half the squared error of 32 standardised entries costs without a model. The
    cost, named ``sparsity``, belongs to a batch, not to a row: it is no part of scores. In training
    it grows in over the share ``warmup`` of the run; in evaluation it always counts in full, so
    that held-out losses of all epochs compare.

    Source: Ng, Sparse Autoencoder, CS294A lecture notes, 2011.

    >>> import torch
    >>> code = KL(2, target=0.5)(torch.tensor([[0.0, 1.0], [0.0, -1.0]]))
    >>> code.z[0], code.aux["sparsity"].abs() < 1e-6
    (tensor([0.5000, 0.7311]), tensor(True))
    """

    def __init__(
        self, size: int, *, target: float = SHARE, weight: float = 1.0, warmup: float = 0.0
    ) -> None:
        super().__init__(size)
        if not 0 < target < 1:
            raise InputError(f"the target activity is {target}; it must lie between 0 and 1")
        if not weight >= 0:
            raise InputError(f"the KL weight is {weight}; it must be 0 or more")
        self.target, self.weight, self.warmup = target, weight, check_warmup(warmup)

    @property
    def width(self) -> int:
        """One number per code entry."""
        return self.size

    def forward(self, h: Tensor) -> Code:
        """Squash, and charge for units that are active too often or too seldom."""
        z = h.sigmoid()
        share = ramp(self.progress, self.warmup) if self.training else 1.0
        exact = torch.promote_types(z.dtype, torch.float32)
        divergence = bernoulli_kl(z.flatten(0, -2).mean(0, dtype=exact), self.target).sum()
        return Code(z, aux={"sparsity": divergence * (self.weight * share)})

    def sample(self, n: int) -> Tensor:
        """Refuse: a sparse code has no prior."""
        raise self.no_prior()


def _known(activation: str) -> str:
    if activation not in ACTIVATIONS:
        raise unknown("activation", activation, ACTIVATIONS)
    return activation
