"""Keep the largest entries: of each row, of each feature over the rows, of each map."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def keep_top_k(h: Tensor, k: int, *, absolute: bool = False) -> Tensor:
    r"""Zero all but the k largest entries of the last axis.

    .. math:: z_i = h_i \, [\, i \in \operatorname{top}_k(h) \,]

    ``h`` is ``[*, D]``, the result too. Exactly k entries are kept, of equal ones the first (on a
    GPU, whichever its ``topk`` takes); the gradient flows through the kept entries alone, and the
    function can be differentiated twice. ``absolute`` ranks by magnitude and keeps the signed
    value. What is not finite becomes NaN where it is not kept, so that it cannot pass unseen.

    Source: Makhzani & Frey, k-Sparse Autoencoders, 2013 (arXiv:1312.5663).

    >>> keep_top_k(torch.tensor([[1.0, -3.0, 2.0]]), 2)
    tensor([[1., 0., 2.]])
    >>> keep_top_k(torch.tensor([[1.0, -3.0, 2.0]]), 2, absolute=True)
    tensor([[ 0., -3.,  2.]])
    """
    return keep(h, top_mask(h.abs() if absolute else h, k))


def keep_top_rows(h: Tensor, k: int) -> Tensor:
    r"""Zero all but the k largest entries of each feature over all rows: lifetime sparsity.

    .. math:: z_{bi} = h_{bi} \, [\, b \in \operatorname{top}_k(h_{1i}, \dots, h_{Bi}) \,]

    ``h`` is ``[*, D]``, the result too; every leading position counts as a row. Exactly k entries
    of a feature are kept, of equal ones the first; k at or above the number of rows keeps all. The
    gradient flows through the kept entries alone.

    Source: Makhzani & Frey, Winner-Take-All Autoencoders, 2015 (arXiv:1409.2752).

    >>> keep_top_rows(torch.tensor([[1.0, 6.0], [3.0, 4.0], [2.0, 5.0]]), 1)
    tensor([[0., 6.],
            [3., 0.],
            [0., 0.]])
    """
    rows = h.flatten(0, -2)
    return keep(rows, top_mask(rows, k, axis=0)).view_as(h)


def keep_spatial_winner(h: Tensor) -> Tensor:
    r"""Zero all but the largest position of each feature map: spatial sparsity.

    .. math:: z_{bcl} = h_{bcl} \, [\, l = \arg\max_{l'} h_{bcl'} \,]

    ``h`` is ``[*, C, L]``, maps by positions, the result too. Of equal positions the first wins.

    Source: Makhzani & Frey, Winner-Take-All Autoencoders, 2015 (arXiv:1409.2752), section 3.

    >>> keep_spatial_winner(torch.tensor([[[1.0, 2.0, 0.0], [5.0, 5.0, 4.0]]]))
    tensor([[[0., 2., 0.],
             [5., 0., 0.]]])
    """
    return keep_top_k(h, 1)


def keep(h: Tensor, mask: Tensor) -> Tensor:
    """Return ``h`` where the mask of zeros and ones is 1, and 0 elsewhere; shapes broadcast.

    A product, and not a choice: a choice by a scattered mask stalls a processor that predicts
    branches, up to ten times over. Adding to zero leaves no negative zeros.

    >>> keep(torch.tensor([-1.0, 2.0]), torch.tensor([0.0, 1.0]))
    tensor([0., 2.])
    """
    return torch.addcmul(h.new_zeros(()), h, mask)


@torch.no_grad()
def top_mask(rank: Tensor, k: int, *, axis: int = -1) -> Tensor:
    """Mark with 1, among zeros, the k largest entries along the first or the last axis.

    ``rank`` is ``[*, D]``, and so is the mask, of the same type. Of equal entries the first are
    marked (on a GPU, whichever its ``topk`` takes). Fewer than k entries: all are marked. Entries
    of minus infinity take no part.

    >>> top_mask(torch.tensor([[1.0, 3.0], [2.0, 0.0]]), 1, axis=0)
    tensor([[0., 1.],
            [1., 0.]])
    """
    if k >= rank.shape[axis]:
        return (rank > -torch.inf).to(rank.dtype)
    if not _is_plain(rank):
        largest = rank.topk(k, dim=axis, sorted=False).indices
        marked = torch.zeros_like(rank).scatter(axis, largest, 1.0)
        return torch.where(rank > -torch.inf, marked, 0.0)
    return torch.ops.refold.top_mask(rank.detach(), k, axis)


def exact_mask(
    rows: int, entries: int, count: int, generator: torch.Generator, device: torch.device
) -> Tensor:
    """Draw a boolean ``[rows, entries]`` with exactly ``count`` True in every row, uniformly.

    >>> exact_mask(4, 10, 3, torch.Generator().manual_seed(0), torch.device("cpu")).sum(1)
    tensor([3, 3, 3, 3])
    """
    drawn = torch.rand(rows, entries, generator=generator, device=device)
    if count == 0:
        return torch.zeros_like(drawn, dtype=torch.bool)
    return top_mask(drawn, count).bool()


def _is_plain(values: Tensor) -> bool:
    """Whether a tensor is memory of the processor, which NumPy can see."""
    traced = torch.compiler.is_compiling() or torch.jit.is_tracing()  # pyright: ignore[reportPrivateImportUsage]
    wrapped = torch._C._functorch.is_functorch_wrapped_tensor(values)  # pyright: ignore
    return values.device.type == "cpu" and not traced and not wrapped


def _on_processor(rank: Tensor, k: int, axis: int) -> Tensor:
    values = rank.float() if rank.itemsize < 4 else rank
    return torch.from_numpy(_top_mask(values.numpy(), k, axis)).to(rank.dtype)


# An operation of torch's own, so that whoever records what a model calls sees it.
LIBRARY = torch.library.Library("refold", "DEF")
LIBRARY.define("top_mask(Tensor rank, int k, int axis) -> Tensor")
LIBRARY.impl("top_mask", _on_processor, "CPU")


def _top_mask(values: NDArray[Any], k: int, axis: int) -> NDArray[Any]:
    """Compute :func:`top_mask` by a partition, which NumPy does six times as fast as torch."""
    if k == 1:
        least = values.max(axis, keepdims=True)
    else:
        lines = (values.T if axis == 0 else values).copy()  # the partition is in place
        cut = lines.shape[-1] - k
        lines.partition(cut, axis=-1)
        kth = np.ascontiguousarray(lines[..., cut])
        least = kth[None] if axis == 0 else kth[..., None]
    least = np.maximum(least, np.finfo(values.dtype).min)
    marked = values >= least
    if np.count_nonzero(marked) > k * least.size:
        above = values > least
        tied = marked & ~above
        room = k - above.sum(axis, keepdims=True)
        marked = above | (tied & (tied.cumsum(axis) <= room))
    return marked.astype(values.dtype)
