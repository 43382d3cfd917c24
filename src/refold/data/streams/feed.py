"""Batches of rows that are not all in memory."""

from __future__ import annotations

from collections.abc import Collection, Generator, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from itertools import count
from typing import final

import numpy as np
import torch
from numpy.typing import NDArray

from refold.data.feed import CHUNK, Feed, Own, parted, portions, spans
from refold.data.streams.ahead import ahead
from refold.data.streams.budget import released, returning
from refold.data.streams.store import Arrays, Filling, Store
from refold.types import Batch

ORDER = 611_953  # has the order in a window differ from that of the blocks
REMARKS = 5  # on values, that are kept
DEPTH = 8  # portions of some batches that are ready ahead of the step, where there is memory
QUEUE = 16  # share of the memory that they may take


@dataclass(frozen=True)
class Reading:
    """How a run reads its rows, so that another that goes on from it does the same.

    ``memory`` in bytes, None where all rows are read at once; whether they are ``cached``, decoded
    once; and by name all else that their ``order`` follows from, beside the seed.
    """

    memory: int | None = None
    cached: bool | None = None
    order: Mapping[str, int] = field(default_factory=dict[str, int])


@final
class Streamed(Feed):
    r"""Rows of a store, put in random order a window at a time.

    An epoch is cut into windows of ``window`` rows, and each is a permutation of its own. Rows of
    one batch of B therefore come from the K blocks of a window, where K is most of them; by
    :func:`refold.data.streams.mixing`, batches mix rows as well as :math:`1 / (1 + B / K)`. The
    next window comes in while batches of one leave, so there is memory for two. The loop reads it
    itself, a few blocks after each of some batches, where the system is told of them in time: on a
    processor a thread more among those that meet in every product costs more than it does.

    ``sample`` are rows in memory to judge a model by; ``reading`` says how all others are read. The
    encoder sees the fields ``seen`` alone, where they are named.
    """

    def __init__(
        self,
        store: Store,
        size: int,
        *,
        window: int,
        sample: Batch,
        reading: Reading,
        seen: Collection[str] | None = None,
        seed: int = 0,
    ) -> None:
        self.store, self.size, self.seed, self.reading = store, size, seed, reading
        self.window = max(1, min(window, len(store)) // size) * size
        self.rows, self.seen = sample, seen

    @property
    def device(self) -> torch.device:
        """Where the sample is, and every batch comes."""
        return next(iter(self.rows.x.values())).device

    def __len__(self) -> int:
        return len(self.store)

    def sample(self) -> Batch:
        """Rows of training that stay in memory."""
        return self.rows

    @property
    def notes(self) -> tuple[str, ...]:
        """What there was to remark on the values, the first few of it."""
        return tuple(self.store.encoding.notes)[:REMARKS]

    def close(self) -> None:
        """Let go of what lies on disk."""
        self.store.close()

    def batches(self, start: int = 0, own: Own | None = None) -> Iterator[tuple[Batch, Batch]]:
        """Batches, made ahead by a thread where that gains time; it ends with this loop."""
        released()  # what learning from the sample left
        with returning():
            self.store.ready()
        some = self._several * self.size * self.store.layout.row_bytes
        depth = max(1, min(DEPTH, (self.reading.memory or 0) // QUEUE // some))
        portioned = self._portions(start, own)
        if self.device.type != "cpu" or not self.store.foretold:
            portioned = ahead(portioned, depth)
        with returning(), closing(portioned):
            for arrays, sizes in portioned:
                rows = batch_of(arrays).to(self.device)
                for at in spans(sizes):
                    part = rows.rows(at)
                    yield part, part if self.seen is None else part.only(self.seen)

    def _portions(self, start: int, own: Own | None) -> Generator[tuple[Arrays, list[int]]]:
        """Some batches at a time as arrays, while the next window is brought in."""
        layout = self.store.layout
        several = self._several
        coming = self._windows(start, own)
        most = len(Window.of(np.arange(max(portions(len(self), self.window))), self.size, own))
        room, spare = layout.room(most), layout.room(most)
        window, skip, filling = next(coming)
        for _ in filling(room, window.wanted):
            pass
        while True:
            following = next(coming)
            there, filled = 0.0, following[2](spare, following[0].wanted)
            sizes = window.sizes
            begin = sum(sizes[:skip])
            for i in range(skip, len(sizes), several):
                here = sizes[i : i + several]
                picked = window.order[begin : begin + sum(here)]
                begin += len(picked)
                yield {k: v.take(picked, axis=0) for k, v in room.items()}, here
                while there < (i + several) / len(sizes):
                    there = next(filled, np.inf)
            for _ in filled:
                pass
            room, spare = spare, room
            window, skip, _ = following

    @property
    def _several(self) -> int:
        """Batches that are put together at a time."""
        return max(1, 4 * CHUNK // max(1, self.store.layout.row_bytes * self.size))

    def _windows(self, start: int, own: Own | None) -> Iterator[tuple[Window, int, Filling]]:
        """Windows in turn, batches to leave out of each, and how to fill it."""
        each = portions(len(self), self.window)
        epoch, done = divmod(start, len(portions(len(self), self.size)))
        first = min(done // (self.window // self.size), len(each) - 1)
        skip = done - first * (self.window // self.size)
        for e in count(epoch):
            fillings = self.store.windows(self.seed, e, self.window, first)
            for number, filling in enumerate(fillings, first):
                order = np.random.default_rng((ORDER, self.seed, e, number))
                yield Window.of(order.permutation(each[number]), self.size, own), skip, filling
                skip = 0
            first = 0


@dataclass(frozen=True)
class Window:
    """Where rows lie in memory in the ``order`` in which they leave it, in batches of ``sizes``.

    ``wanted`` says which rows of the window are there, where not all of them are.
    """

    order: NDArray[np.int64]
    sizes: list[int]
    wanted: NDArray[np.bool_] | None

    @classmethod
    def of(cls, order: NDArray[np.int64], size: int, own: Own | None) -> Window:
        """Keep of a window in an order those rows of each batch that are ``own``."""
        sizes = portions(len(order), size)
        if own is None:
            return cls(order, sizes, None)
        mine, sizes = parted(order, sizes, own)
        wanted = np.zeros(len(order), bool)
        wanted[mine] = True
        return cls((np.cumsum(wanted) - 1)[mine], sizes, wanted)

    def __len__(self) -> int:
        return len(self.order)


def batch_of(arrays: Arrays) -> Batch:
    """Rows as tensors, without a copy of the numbers."""
    x = {k[2:]: torch.from_numpy(v) for k, v in arrays.items() if k.startswith("x/")}
    gaps = {k[4:]: torch.from_numpy(~v) for k, v in arrays.items() if k.startswith("gap/")}
    return Batch(x, {k: gaps.get(k) for k in x})
