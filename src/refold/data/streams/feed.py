"""Batches of rows that are not all in memory."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import closing
from itertools import count
from typing import final

import numpy as np
import torch

from refold.data.feed import CHUNK, Feed, portions, spans
from refold.data.streams.ahead import ahead
from refold.data.streams.budget import returning
from refold.data.streams.store import Arrays, Filling, Store
from refold.types import Batch

ORDER = 611_953  # has the order in a window differ from that of the blocks
REMARKS = 5  # on values, that are kept
DEPTH = 8  # portions of some batches that are ready ahead of the step


@final
class Streamed(Feed):
    r"""Rows of a store, put in random order a window at a time.

    An epoch is cut into windows of ``window`` rows, and each is a permutation of its own. Rows of
    one batch of B therefore come from the K blocks of a window, where K is most of them; by
    :func:`refold.data.streams.mixing`, batches mix rows as well as :math:`1 / (1 + B / K)`. A
    thread brings the next window in while batches of one leave, so there is memory for two.

    ``sample`` are rows in memory to judge a model by. The encoder sees the fields ``seen`` alone,
    where they are named.
    """

    def __init__(
        self,
        store: Store,
        size: int,
        *,
        window: int,
        sample: Batch,
        seen: Collection[str] | None = None,
        seed: int = 0,
    ) -> None:
        self.store, self.size, self.seed = store, size, seed
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

    def batches(self, start: int = 0) -> Iterator[tuple[Batch, Batch]]:
        """Batches made ahead by a thread, which ends with this loop."""
        with returning(), closing(ahead(self._portions(start), DEPTH)) as portioned:
            for arrays, sizes in portioned:
                rows = batch_of(arrays).to(self.device)
                for at in spans(sizes):
                    part = rows.rows(at)
                    yield part, part if self.seen is None else part.only(self.seen)

    def _portions(self, start: int) -> Iterator[tuple[Arrays, list[int]]]:
        """Some batches at a time as arrays, while the next window is brought in."""
        layout = self.store.layout
        several = max(1, 4 * CHUNK // max(1, layout.row_bytes * self.size))
        coming = self._windows(start)
        room, spare = layout.room(self._most()), layout.room(self._most())
        own, skip, filling = next(coming)
        for _ in filling(room):
            pass
        while True:
            following = next(coming)
            there, filled = 0.0, following[2](spare)
            epoch, number, rows = own
            order = np.random.default_rng((ORDER, self.seed, epoch, number)).permutation(rows)
            sizes = portions(rows, self.size)
            for i in range(skip, len(sizes), several):
                here = sizes[i : i + several]
                begin = i * self.size
                picked = order[begin : begin + sum(here)]
                yield {k: v.take(picked, axis=0) for k, v in room.items()}, here
                while there < (i + several) / len(sizes):
                    there = next(filled, np.inf)
            for _ in filled:
                pass
            room, spare = spare, room
            own, skip, _ = following

    def _windows(self, start: int) -> Iterator[tuple[tuple[int, int, int], int, Filling]]:
        """Epoch, number and rows of each window, batches of it to leave out, and how to fill it."""
        each = portions(len(self), self.window)
        epoch, done = divmod(start, len(portions(len(self), self.size)))
        first = min(done // (self.window // self.size), len(each) - 1)
        skip = done - first * (self.window // self.size)
        for e in count(epoch):
            fillings = self.store.windows(self.seed, e, self.window, first)
            for number, filling in enumerate(fillings, first):
                yield (e, number, each[number]), skip, filling
                skip = 0
            first = 0

    def _most(self) -> int:
        return max(portions(len(self), self.window))


def batch_of(arrays: Arrays) -> Batch:
    """Rows as tensors, without a copy of the numbers."""
    x = {k[2:]: torch.from_numpy(v) for k, v in arrays.items() if k.startswith("x/")}
    gaps = {k[4:]: torch.from_numpy(~v) for k, v in arrays.items() if k.startswith("gap/")}
    return Batch(x, {k: gaps.get(k) for k in x})
