r"""Rows of one batch that several processes share, as if they were in one place.

In a step that processes share, each has some rows of the batch and a copy of every parameter, and
goes backward from its own costs times its share of the rows. What is summed over processes here has
the gradient of the sum over processes of these, so that the parameters' gradients, summed too, are
those of the whole batch: of means over rows, and of figures of the batch that every process works
out for itself from the rows of all,

.. math:: \nabla L = \sum_r \frac{n_r}{N} \nabla L_r .

A process that has no row of a short batch runs a row of another's, which counts for nothing. Where
nothing is shared, all of this does nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

CPU = torch.device("cpu")
SHARDS = "torch.distributed.tensor"  # takes a second to load


@dataclass(slots=True)
class Share:
    """What process ``rank`` has of a batch of which process r has ``counts[r]`` rows, in order.

    ``key`` is a number of the step; draws of this process alone follow from it.

    >>> Share(1, (2, 2, 1), 0).rows, Share(1, (2, 2, 1), 0).weight
    (slice(2, 4, None), 0.4)
    """

    rank: int
    counts: tuple[int, ...]
    key: int
    device: torch.device = CPU
    draws: int = 0

    @property
    def count(self) -> int:
        """Rows of this process that count."""
        return self.counts[self.rank]

    @property
    def whole(self) -> int:
        """Rows of all processes."""
        return sum(self.counts)

    @property
    def weight(self) -> float:
        """Share of the rows."""
        return self.count / self.whole

    @property
    def rows(self) -> slice:
        """Where this process's rows are in the batch; the first one where it has none."""
        start = sum(self.counts[: self.rank]) if self.count else 0
        return slice(start, start + max(1, self.count))


_share: Share | None = None


def current() -> Share | None:
    """Return what this process has of the batch; None where it has all of it."""
    return _share


@contextmanager
def sharing(share: Share | None) -> Generator[None]:
    """Share a batch with the other processes within the context; None: with nobody."""
    global _share
    before, _share = _share, share
    try:
        yield
    finally:
        _share = before


def weight() -> float:
    """Share of the batch's rows that are here."""
    return 1.0 if _share is None else _share.weight


def rows(here: int) -> int:
    """Rows of all processes, where so many are here; several for each of the batch all count."""
    return here if _share is None else _share.whole * here // max(1, _share.count)


def rank() -> int:
    """Number of this process among those that share a batch."""
    return 0 if _share is None else _share.rank


def total(x: Tensor) -> Tensor:
    """Sum over processes, with its gradient; ``x`` is of the same shape in all.

    >>> total(torch.ones(2))
    tensor([1., 1.])
    """
    if _share is None:
        return x
    return _summed(x if _share.count else x * 0)


def together(x: Tensor) -> Tensor:
    """Rows of all processes, ``[N, *]`` of ``[n, *]``, with their gradient.

    Where ``x`` has several rows for each of the batch, those of a process stay together.

    >>> together(torch.ones(2, 1)).shape
    torch.Size([2, 1])
    """
    if _share is None:
        return x
    each = len(x) // max(1, _share.count)
    start = sum(_share.counts[: _share.rank])
    before, after = start, _share.whole - start - _share.count
    own = x[: _share.count * each]
    padding = [x.new_zeros(n * each, *x.shape[1:]) for n in (before, after)]
    return _summed(torch.cat([padding[0], own, padding[1]]))


def own(x: Tensor, each: int = 1) -> Tensor:
    """Take this process's of all rows ``[each * N, *]``, of which every ``N`` are a batch.

    >>> own(torch.arange(3))
    tensor([0, 1, 2])
    """
    if _share is None:
        return x
    if each == 1:
        return x[_share.rows]
    return x.unflatten(0, (each, -1))[:, _share.rows].flatten(0, 1)


@contextmanager
def apart() -> Generator[None]:
    """Draw within what other processes do not, and leave torch's generators as they were.

    All else that is drawn in a shared step is drawn alike by all processes, for the rows of all.
    """
    if _share is None:
        yield
        return
    _share.draws += 1
    key = np.random.SeedSequence((_share.key, _share.rank, _share.draws))
    with torch.random.fork_rng([_share.device] if _share.device.type == "cuda" else []):
        torch.manual_seed(int(key.generate_state(1, np.uint64)[0] >> np.uint64(1)))
        yield


def whole(x: Tensor) -> Tensor:
    """Return a tensor that processes hold in shards as one; all of them must ask.

    >>> whole(torch.ones(1))
    tensor([1.])
    """
    return cast(Any, x).full_tensor() if in_shards(x) else x


def like(x: Tensor, other: Tensor) -> Tensor:
    """Cut a tensor into shards as ``other`` is cut, where it is.

    >>> like(torch.ones(1), torch.zeros(1))
    tensor([1.])
    """
    if not in_shards(other) or x.shape != other.shape:
        return x
    cut, model = sys.modules[SHARDS].distribute_tensor, cast(Any, other)
    return cut(x, model.device_mesh, model.placements)


def in_shards(x: Tensor) -> bool:
    """Whether a tensor is held in shards; none is where the module of such was never loaded."""
    return SHARDS in sys.modules and isinstance(x, sys.modules[SHARDS].DTensor)


def _summed(x: Tensor) -> Tensor:
    return cast(Tensor, _Summed.apply(x)) if x.requires_grad else _sum(x)


def _sum(x: Tensor) -> Tensor:
    x = x.detach().clone(memory_format=torch.contiguous_format)
    dist.all_reduce(x)
    return x


class _Summed(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return _sum(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Tensor:
        return _sum(grads[0])
