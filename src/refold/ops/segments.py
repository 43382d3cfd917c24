"""Softmax over segments of one row: many categorical columns side by side, without a loop."""

from __future__ import annotations

import torch
from torch import Tensor


def segment_logsumexp(logits: Tensor, segment: Tensor, segments: int) -> Tensor:
    r"""Log of the summed exponentials of each segment, stable for any logits.

    .. math:: y_{bk} = \log \sum_{i : s_i = k} e^{l_{bi}}

    ``logits`` ``[B, S]``; ``segment`` ``[S]`` the segment of each position; result ``[B, K]``.

    >>> segment_logsumexp(torch.zeros(1, 5), torch.tensor([0, 0, 1, 1, 1]), 2).exp().round()
    tensor([[2., 3.]])
    """
    where = segment.expand_as(logits)
    shape = (len(logits), segments)
    with torch.no_grad():
        peak = logits.new_full(shape, -torch.inf).scatter_reduce(1, where, logits, "amax")
    shifted = (logits - peak.gather(1, where)).exp()
    return logits.new_zeros(shape).scatter_add(1, where, shifted).log() + peak


def segment_log_softmax(logits: Tensor, segment: Tensor, segments: int) -> Tensor:
    """Normalise each segment of ``logits`` ``[B, S]`` to log-probabilities ``[B, S]``.

    >>> segment_log_softmax(torch.zeros(1, 3), torch.tensor([0, 0, 1]), 2).exp()
    tensor([[0.5000, 0.5000, 1.0000]])
    """
    total = segment_logsumexp(logits, segment, segments)
    return logits - total.index_select(1, segment)
