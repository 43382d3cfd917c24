"""Softmax over segments of one row: many categorical columns side by side.

Two ways lead to the same numbers. :func:`segment_logsumexp` and :func:`segment_log_softmax` are
plain operations over the whole row, for segments in any order. What is computed in every training
step takes segments by their ``sizes``, in order, and works through them block by block: a wide
segment where it lies, narrow ones together in a padded block. A block fits into a processor's
cache, so a pass over it costs no trip to memory, which is what a step of a wide table waits for.
Rows of few logits are in cache anyway, and the plain operations are fewer: they take the first way.
Wide segments of one size, as the tokens of a text, are a tensor of their own and torch's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

NARROW = 32  # levels up to which a column is better copied into a block of many
SPARE = 64  # padded places per row that cost as much as a block of their own
FEW = 128  # logits of a row up to which a processor is faster without blocks


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
    shifted = (logits - peak.index_select(1, segment)).exp()
    return logits.new_zeros(shape).scatter_add(1, where, shifted).log() + peak


def segment_log_softmax(logits: Tensor, segment: Tensor, segments: int) -> Tensor:
    """Normalise each segment of ``logits`` ``[B, S]`` to log-probabilities ``[B, S]``.

    >>> segment_log_softmax(torch.zeros(1, 3), torch.tensor([0, 0, 1]), 2).exp()
    tensor([[0.5000, 0.5000, 1.0000]])
    """
    total = segment_logsumexp(logits, segment, segments)
    return logits - total.index_select(1, segment)


def segment_cross_entropy(logits: Tensor, classes: Tensor, sizes: tuple[int, ...]) -> Tensor:
    r"""Cross-entropy of the class of each segment, with a gradient made in one pass.

    .. math:: y_{bk} = \log \sum_j e^{l_{bkj}} - l_{bkx_{bk}}, \qquad
              \frac{\partial y_{bk}}{\partial l_{bkj}} = \frac{e^{l_{bkj}}}{\sum_i e^{l_{bki}}}
              - [j = x_{bk}]

    ``logits`` ``[B, S]`` with ``S = sum(sizes)``; ``classes`` ``[B, K]`` from 0; result
    ``[B, K]``, in single precision where the logits have less.

    >>> segment_cross_entropy(torch.zeros(1, 5), torch.tensor([[1, 0]]), (2, 3)).exp().round()
    tensor([[2., 3.]])
    """
    if logits.dtype in (torch.bfloat16, torch.float16):
        logits = logits.float()
    if logits.device.type == "cpu" and logits.shape[1] <= FEW:
        layout = layout_of(sizes, logits.device)
        total = segment_logsumexp(logits, layout.segment, len(sizes))
        return total - logits.gather(1, classes + layout.offset)
    if alike(sizes):
        logits = logits.reshape(-1, sizes[0])
        return F.cross_entropy(logits, classes.reshape(-1), reduction="none").view_as(classes)
    return cast("Tensor", _CrossEntropy.apply(logits, classes, sizes))


def segment_softmax(logits: Tensor, sizes: tuple[int, ...]) -> Tensor:
    """Probabilities ``[B, S]`` of each segment of ``logits`` ``[B, S]``.

    >>> segment_softmax(torch.zeros(1, 3), (2, 1))
    tensor([[0.5000, 0.5000, 1.0000]])
    """
    if alike(sizes):
        return logits.unflatten(1, (len(sizes), sizes[0])).softmax(2).flatten(1)
    layout = layout_of(sizes, logits.device)
    if torch.is_grad_enabled() and logits.requires_grad:
        return segment_log_softmax(logits, layout.segment, len(sizes)).exp()
    blocks, _, totals = layout.exponentials(logits)
    return layout.scaled(blocks, totals.reciprocal())


def segment_argmax(logits: Tensor, sizes: tuple[int, ...]) -> Tensor:
    """Position within its segment of the largest of ``logits`` ``[B, S]``, the first of equals.

    >>> segment_argmax(torch.tensor([[0.0, 2.0, 5.0, 1.0, 5.0]]), (2, 3))
    tensor([[1, 0]])
    """
    if alike(sizes):
        return logits.unflatten(1, (len(sizes), sizes[0])).argmax(2)
    layout = layout_of(sizes, logits.device)
    best = torch.cat([block.argmax(1) for block in layout.blocks(logits)], 1)
    best = best.index_select(1, layout.place)
    return best.masked_fill_(best >= layout.sizes, 0)  # padding repeats the first


def alike(sizes: tuple[int, ...]) -> bool:
    """Whether segments are of one size, and several, and too wide to be better side by side.

    >>> alike((1000,) * 64), alike((3, 3)), alike((40, 50))
    (True, False, False)
    """
    return len(sizes) > 1 and sizes[0] > NARROW and sizes.count(sizes[0]) == len(sizes)


@dataclass(frozen=True, eq=False)
class Group:
    """Narrow segments copied side by side into a block ``[B, W, K]``, the widest first.

    The first logit of a segment stands in place of what it lacks; ``padding`` ``[W - full, K]``
    says which of those from the ``full``-th on are such.
    """

    padding: Tensor
    full: int
    count: int


@dataclass(frozen=True, eq=False)
class Layout:
    """The blocks in which segments of given sizes are worked through, wide ones first.

    ``place`` ``[K]`` is each segment's place among the blocks', ``column`` ``[K]`` the segment of
    each place. The groups side by side, of the given ``lengths``, hold the logits at ``index`` of a
    row; those of narrow segments are at ``narrow`` in a row and at ``back`` in the groups.
    """

    sizes: Tensor
    offset: Tensor
    segment: Tensor
    wide: tuple[tuple[int, int], ...]
    groups: tuple[Group, ...]
    lengths: list[int]
    index: Tensor
    place: Tensor
    column: Tensor
    narrow: Tensor
    back: Tensor

    def blocks(self, logits: Tensor) -> Iterator[Tensor]:
        """Give each block of ``logits``, ``[B, W, K]``."""
        for start, size in self.wide:
            yield logits.narrow(1, start, size).unsqueeze(2)
        if not self.groups:
            return
        # One for all groups: it first copies the whole of logits that are a part of wider rows.
        together = logits.index_select(1, self.index)
        for group, part in zip(self.groups, together.split(self.lengths, 1), strict=True):
            yield part.unflatten(1, (-1, group.count))

    def exponentials(self, logits: Tensor) -> tuple[list[Tensor], Tensor, Tensor]:
        """Blocks of ``e^(l - peak)``, and ``[B, K]`` by place: their peaks and their sums."""
        blocks, peaks, totals = list[Tensor](), list[Tensor](), list[Tensor]()
        for i, block in enumerate(self.blocks(logits)):
            peak = block.amax(1, keepdim=True)
            raised = (block - peak).exp_()
            if i >= len(self.wide):
                group = self.groups[i - len(self.wide)]
                if len(group.padding):
                    raised[:, group.full :].masked_fill_(group.padding, 0.0)
            blocks.append(raised)
            peaks.append(peak)
            totals.append(raised.sum(1))
        return blocks, torch.cat(peaks, 2).squeeze(1), torch.cat(totals, 1)

    def scaled(self, blocks: Sequence[Tensor], factor: Tensor) -> Tensor:
        """Blocks times ``factor`` ``[B, K]`` by place, put back into rows ``[B, S]``."""
        wide = len(self.wide)
        grouped: list[Tensor] = []
        at = wide
        for group, block in zip(self.groups, blocks[wide:], strict=True):
            grouped.append((block * factor[:, None, at : at + group.count]).flatten(1))
            at += group.count
        together = grouped[0] if len(grouped) == 1 else torch.cat(grouped, 1) if grouped else None
        if together is not None:
            together = together.index_select(1, self.back)
            if not wide:
                return together
        rows = factor.new_empty(len(factor), len(self.segment))
        for i, ((start, size), block) in enumerate(zip(self.wide, blocks[:wide], strict=True)):
            torch.mul(
                block, factor[:, None, i : i + 1], out=rows.narrow(1, start, size).unsqueeze(2)
            )
        return rows if together is None else rows.index_copy_(1, self.narrow, together)


@lru_cache(64)
def layout_of(sizes: tuple[int, ...], device: torch.device) -> Layout:
    """Choose the blocks for segments of these sizes.

    On a processor a wide column is read where it lies; elsewhere a launch costs more than a copy.
    """
    widest = NARROW if device.type == "cpu" else max(sizes)
    starts = [sum(sizes[:k]) for k in range(len(sizes))]
    alone = [k for k, size in enumerate(sizes) if size > widest]
    ordered = sorted((k for k, size in enumerate(sizes) if size <= widest), key=lambda k: -sizes[k])
    members: list[list[int]] = []
    for i, k in enumerate(ordered):
        spared = (sizes[members[-1][0]] - sizes[k]) * (len(ordered) - i) if members else 0
        if not members or (spared > SPARE and 2 * sizes[k] <= sizes[members[-1][0]]):
            members.append([])
        members[-1].append(k)
    # A layout first asked for in inference must serve training too.
    with torch.inference_mode(False), torch.device(device):
        counts = torch.tensor(sizes)
        column = torch.tensor([*alone, *ordered])
        groups: list[Group] = []
        index: list[int] = []
        lengths: list[int] = []
        at: dict[int, int] = {}  # where each logit of a narrow segment is among the groups'
        for group in members:
            width, full = sizes[group[0]], sizes[group[-1]]
            for j in range(width):
                for k in group:
                    if j < sizes[k]:
                        at[starts[k] + j] = len(index)
                    index.append(starts[k] + (j if j < sizes[k] else 0))
            lengths.append(width * len(group))
            levels = torch.arange(full, width)[:, None]
            padding = levels >= counts[torch.tensor(group)]
            groups.append(Group(padding, full, len(group)))
        narrow = sorted(at)
        return Layout(
            sizes=counts,
            offset=counts.cumsum(0) - counts,
            segment=torch.repeat_interleave(torch.arange(len(sizes)), counts),
            wide=tuple((starts[k], sizes[k]) for k in alone),
            groups=tuple(groups),
            lengths=lengths,
            index=torch.tensor(index),
            place=column.argsort(),
            column=column,
            narrow=torch.tensor(narrow),
            back=torch.tensor([at[i] for i in narrow]),
        )


class _CrossEntropy(Function):
    """See :func:`segment_cross_entropy`; the exponentials of the way there serve the way back."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, classes: Tensor, sizes: tuple[int, ...]) -> Tensor:
        layout = layout_of(sizes, logits.device)
        chosen = classes + layout.offset
        blocks, peaks, totals = layout.exponentials(logits)
        ctx.layout = layout
        ctx.save_for_backward(logits, chosen, totals, *blocks)
        total = (totals.log() + peaks).index_select(1, layout.place)
        return total - logits.gather(1, chosen)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None]:
        (slope,) = grad_outputs
        logits, chosen, totals, *blocks = ctx.saved_tensors
        layout: Layout = ctx.layout
        if torch.is_grad_enabled():  # this gradient will itself be differentiated
            share = segment_log_softmax(logits, layout.segment, totals.shape[1]).exp()
            whole = share * slope.index_select(1, layout.segment)
            return whole.scatter_add(1, chosen, -slope), None, None
        rows = layout.scaled(blocks, slope.index_select(1, layout.column) / totals)
        return rows.scatter_add_(1, chosen, -slope), None, None
