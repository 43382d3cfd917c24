"""Training rows, batch after batch: in memory, or as they come from somewhere larger."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from itertools import chain, count, islice
from typing import TypeAlias, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from refold.types import Batch

CHUNK = 1 << 18  # numbers that are put in order at a time: a megabyte, which stays in cache

Own: TypeAlias = Callable[[int], slice]
"""Which rows of a batch of so many this process has."""


class Feed(ABC):
    """Gives batches of training rows for ever; an epoch is each row once, in an order of its own.

    The order of an epoch follows from the seed and the epoch's number alone, so that a run can be
    taken up at any step. Batches have ``size`` rows, but for the last ones of an epoch.
    """

    size: int

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Where the batches are."""

    @abstractmethod
    def __len__(self) -> int:
        """Rows of an epoch."""

    @abstractmethod
    def sample(self) -> Batch:
        """Rows to judge the model by where none are held out."""

    @abstractmethod
    def batches(self, start: int = 0, own: Own | None = None) -> Iterator[tuple[Batch, Batch]]:
        """Batches from step ``start`` on: the clean rows, and the same as the encoder sees them.

        Of each the rows that are this process's ``own``; None: all of them.
        """


@final
class Memory(Feed):
    """Rows in memory, each epoch one permutation of them.

    ``inputs`` are the rows as the encoder sees them, where that differs. ``joining`` of the rows at
    positions ``anchors`` join every batch, those too one permutation after another in an epoch.
    Rows are put in order some batches at a time, which costs less than picking every batch.
    """

    def __init__(
        self,
        rows: Batch,
        size: int,
        *,
        inputs: Batch | None = None,
        anchors: Tensor | None = None,
        joining: int = 0,
        seed: int = 0,
    ) -> None:
        self.rows, self.size, self.inputs, self.seed = rows, size, inputs, seed
        self.anchors, self.joining = anchors, joining

    @property
    def device(self) -> torch.device:
        """Where the rows are."""
        return next(iter(self.rows.x.values())).device

    def __len__(self) -> int:
        return len(self.rows)

    def sample(self) -> Batch:
        """All rows."""
        return self.rows

    def batches(self, start: int = 0, own: Own | None = None) -> Iterator[tuple[Batch, Batch]]:
        """Batches of whole permutations, one after the other."""
        epoch, first = divmod(start, len(portions(len(self.rows), self.size)))
        return chain.from_iterable(
            islice(self.epoch(e, own), first if e == epoch else 0, None) for e in count(epoch)
        )

    def epoch(self, number: int, own: Own | None = None) -> Iterator[tuple[Batch, Batch]]:
        """Batches of one epoch."""
        shuffle = shuffling(self.seed, number)
        order = torch.randperm(len(self.rows), generator=shuffle).to(self.device)
        sizes = portions(len(order), self.size)
        if self.anchors is not None:
            assert own is None, "rows that join a batch are not shared"
            also = endless(self.anchors, min(self.joining, len(self.anchors)), shuffle)
            for index in order.split(sizes):
                yield self._at(torch.cat([index, next(also)]))
            return
        numbers = sum(v[:1].numel() for v in self.rows.x.values()) * self.size
        several = max(1, CHUNK // max(1, numbers))
        for i in range(0, len(sizes), several):
            here = sizes[i : i + several]
            begin = i * self.size
            picked = order[begin : begin + sum(here)]
            if own is not None:
                places, here = parted(np.arange(len(picked)), here, own)
                picked = picked[torch.from_numpy(places)]
            clean, seen = self._at(picked)
            for at in spans(here):
                part = clean.rows(at)
                yield part, part if seen is clean else seen.rows(at)

    def _at(self, index: Tensor) -> tuple[Batch, Batch]:
        clean = self.rows.rows(index)
        return clean, clean if self.inputs is None else self.inputs.rows(index)


def portions(rows: int, size: int) -> list[int]:
    """Sizes of the batches of an epoch.

    A row alone has no spread, which batch norm needs; it joins the batch before it.

    >>> portions(10, 4), portions(9, 4)
    ([4, 4, 2], [4, 5])
    """
    sizes = [size] * (rows // size) + [rows % size] * (rows % size > 0)
    if len(sizes) > 1 and sizes[-1] == 1:
        sizes[-2:] = [size + 1]
    return sizes


def parted(
    order: NDArray[np.int64], sizes: list[int], own: Own
) -> tuple[NDArray[np.int64], list[int]]:
    """Of neighbouring batches in an order those places that are ``own``, and how many of each.

    >>> parted(np.arange(7), [4, 3], lambda rows: slice(rows // 2, rows))
    (array([2, 3, 5, 6]), [2, 2])
    """
    parts = [order[at][own(n)] for at, n in zip(spans(sizes), sizes, strict=True)]
    return np.concatenate(parts), [len(p) for p in parts]


def spans(sizes: list[int]) -> Iterator[slice]:
    """Slices of neighbours of the given sizes."""
    begin = 0
    for size in sizes:
        yield slice(begin, begin + size)
        begin += size


def shuffling(seed: int, epoch: int) -> torch.Generator:
    """Return the generator that orders an epoch."""
    (state,) = np.random.SeedSequence((seed, epoch)).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state >> np.uint64(1)))


def endless(positions: Tensor, size: int, shuffle: torch.Generator) -> Iterator[Tensor]:
    """Portions of ``size`` of the positions for ever, whole permutations without the rest."""
    while True:
        order = positions[torch.randperm(len(positions), generator=shuffle).to(positions.device)]
        yield from order[: len(order) // size * size].split(size)
