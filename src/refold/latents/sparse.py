"""Codes of which few entries are active at a time."""

from __future__ import annotations

from typing import final

from torch import Tensor

from refold.errors import InputError
from refold.latents.base import Latent, register
from refold.ops.topk import keep_top_k
from refold.types import Code


@final
@register("topk")
class TopK(Latent):
    r"""Hard sparsity: the ``k`` largest entries of each code stay, the others are zero.

    .. math:: z_i = h_i \, [\, i \in \operatorname{top}_k(h) \,]

    ``k=None`` keeps a tenth of the code, at least one. ``absolute`` ranks by magnitude.

    Source: Makhzani & Frey, k-Sparse Autoencoders, 2013 (arXiv:1312.5663).

    >>> import torch
    >>> TopK(4, k=1)(torch.tensor([[1.0, 5.0, 2.0, -9.0]])).z
    tensor([[0., 5., 0., 0.]])
    """

    def __init__(self, size: int, *, k: int | None = None, absolute: bool = False) -> None:
        super().__init__(size)
        k = max(1, round(0.1 * size)) if k is None else k
        if not 1 <= k <= size:
            raise InputError(f"top-k keeps k={k} of a code of {size}; k must lie in 1..{size}")
        self.k, self.absolute = k, absolute

    @property
    def width(self) -> int:
        """One number per code entry."""
        return self.size

    def forward(self, h: Tensor) -> Code:
        """Keep the k largest."""
        return Code(keep_top_k(h, self.k, absolute=self.absolute))

    def sample(self, n: int) -> Tensor:
        """Refuse: a sparse code has no prior."""
        raise self.no_prior()


@final
@register("l1")
class L1(Latent):
    r"""Soft sparsity: rectified codes that cost their size.

    .. math:: z = \max(h, 0), \qquad \text{term}_b = \lambda \sum_i z_{bi}

    ``weight`` is :math:`\lambda`, in nats per unit of activation.

    >>> import torch
    >>> L1(2, weight=0.5)(torch.tensor([[3.0, -1.0]])).terms["l1"]
    tensor([1.5000])
    """

    def __init__(self, size: int, *, weight: float = 1e-3) -> None:
        super().__init__(size)
        if not weight >= 0:
            raise InputError(f"the L1 weight is {weight}; it must be 0 or more")
        self.weight = weight

    @property
    def width(self) -> int:
        """One number per code entry."""
        return self.size

    def forward(self, h: Tensor) -> Code:
        """Rectify, and charge for what is active."""
        z = h.relu()
        return Code(z, terms={"l1": z.flatten(1).sum(1) * self.weight})

    def sample(self, n: int) -> Tensor:
        """Refuse: a sparse code has no prior."""
        raise self.no_prior()
