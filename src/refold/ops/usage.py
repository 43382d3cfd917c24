"""How evenly the entries of a book of codes are used."""

from __future__ import annotations

from torch import Tensor


def counts(indices: Tensor) -> Tensor:
    """How often each entry occurs that does, in float64: books may be too large to go through."""
    return indices.flatten().unique(return_counts=True)[1].double()


def perplexity(indices: Tensor) -> float:
    r"""Number of equally used entries that would be as varied: :math:`\exp(-\sum_i p_i \log p_i)`.

    >>> import torch
    >>> perplexity(torch.tensor([0, 1, 1, 0]))
    2.0
    """
    used = counts(indices)
    share = used / used.sum()
    return round(float((-(share * share.log()).sum()).exp()), 12)


def usage(indices: Tensor, size: int) -> float:
    """Share of the ``size`` entries that occur at all.

    >>> import torch
    >>> usage(torch.tensor([0, 1, 1, 0]), 8)
    0.25
    """
    return len(counts(indices)) / size
