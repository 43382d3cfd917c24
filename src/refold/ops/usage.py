"""How evenly the entries of a book of codes are used."""

from __future__ import annotations

from torch import Tensor


def counts(indices: Tensor, size: int) -> Tensor:
    """How often each of ``size`` entries occurs among ``indices``, in float64."""
    return indices.flatten().long().bincount(minlength=size).double()


def perplexity(indices: Tensor, size: int) -> float:
    r"""Number of equally used entries that would be as varied: :math:`\exp(-\sum_i p_i \log p_i)`.

    >>> import torch
    >>> perplexity(torch.tensor([0, 1, 1, 0]), 8)
    2.0
    """
    used = counts(indices, size)
    share = used[used > 0] / used.sum()
    return round(float((-(share * share.log()).sum()).exp()), 12)


def usage(indices: Tensor, size: int) -> float:
    """Share of the ``size`` entries that occur at all.

    >>> import torch
    >>> usage(torch.tensor([0, 1, 1, 0]), 8)
    0.25
    """
    return float((counts(indices, size) > 0).sum()) / size
