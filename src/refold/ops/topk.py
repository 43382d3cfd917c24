"""Keep the k largest entries of the last axis."""

from __future__ import annotations

import torch
from torch import Tensor


def keep_top_k(h: Tensor, k: int, *, absolute: bool = False) -> Tensor:
    r"""Zero all but the k largest entries of the last axis.

    .. math:: z_i = h_i \, [\, i \in \operatorname{top}_k(h) \,]

    ``h`` is ``[*, D]``, the result too. Exactly k entries are kept, ties broken by the library's
    ``topk``; the gradient flows through the kept entries alone, and the function can be
    differentiated twice. ``absolute`` ranks by magnitude and keeps the signed value.

    Source: Makhzani & Frey, k-Sparse Autoencoders, 2013 (arXiv:1312.5663).

    >>> keep_top_k(torch.tensor([[1.0, -3.0, 2.0]]), 2)
    tensor([[1., 0., 2.]])
    >>> keep_top_k(torch.tensor([[1.0, -3.0, 2.0]]), 2, absolute=True)
    tensor([[ 0., -3.,  2.]])
    """
    rank = h.detach().abs() if absolute else h.detach()
    largest = rank.topk(k, dim=-1, sorted=False).indices
    kept = torch.zeros_like(rank, dtype=torch.bool).scatter_(-1, largest, True)
    return torch.where(kept, h, 0.0)


def exact_mask(
    rows: int, entries: int, count: int, generator: torch.Generator, device: torch.device
) -> Tensor:
    """Draw a boolean ``[rows, entries]`` with exactly ``count`` True in every row, uniformly.

    >>> exact_mask(4, 10, 3, torch.Generator().manual_seed(0), torch.device("cpu")).sum(1)
    tensor([3, 3, 3, 3])
    """
    drawn = torch.rand(rows, entries, generator=generator, device=device)
    mask = torch.zeros(rows, entries, dtype=torch.bool, device=device)
    return mask.scatter_(1, drawn.topk(count, dim=1, sorted=False).indices, True)
