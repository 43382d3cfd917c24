"""Encoded rows on disk or as they are decoded, brought into windows of memory."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias, final

import numpy as np
from numpy.typing import NDArray

from refold.data.feed import portions
from refold.data.schema import Schema
from refold.data.streams.ahead import ahead
from refold.data.streams.budget import in_words, released, releasing
from refold.data.streams.scratch import keeping, read_at, unnamed, write_at
from refold.data.streams.sources import Source
from refold.data.streams.telling import Told, unheeded
from refold.errors import InputError
from refold.ops.meeting import Circle, in_vain, neighbours
from refold.table import Table
from refold.types import Batch

Arrays: TypeAlias = dict[str, NDArray[Any]]
"""Rows as arrays ``[n, *]`` by name: ``x/field`` its numbers, ``gap/field`` what is missing."""

Filling: TypeAlias = Callable[[Arrays, NDArray[np.bool_] | None], Iterator[float]]
"""Brings the rows of a window that are wanted (None: all) into arrays, bit by bit, and gives the
share that is there."""

LEAST, MOST = 1 << 14, 1 << 20  # bytes of a block: reads of less cost as much, more mix less
SPREAD = (
    32  # blocks of a window for each row of a batch, so that few rows of a batch are neighbours
)
OPEN = 8  # groups too large for one portion that are decoded side by side


@dataclass(frozen=True)
class Layout:
    """What a row is made of, by name: type and shape."""

    cells: Mapping[str, tuple[np.dtype[Any], tuple[int, ...]]]

    @classmethod
    def of(cls, rows: Batch) -> Layout:
        """Return that of encoded rows; a field without gaps there may have none anywhere."""
        cells = {f"x/{k}": _cell(v.numpy()) for k, v in rows.x.items()}
        gaps = {f"gap/{k}": _cell(o.numpy()) for k, o in rows.observed.items() if o is not None}
        return cls(cells | gaps)

    def room(self, rows: int) -> Arrays:
        """Arrays for so many rows."""
        return {k: np.empty((rows, *shape), dtype) for k, (dtype, shape) in self.cells.items()}

    @property
    def row_bytes(self) -> int:
        """Bytes of a row."""
        return sum(d.itemsize * int(np.prod(shape)) for d, shape in self.cells.values())

    def arrays(self, rows: Batch) -> Arrays:
        """Rows as arrays. Raises :class:`InputError` for gaps in a field that had none."""
        found: Arrays = {f"x/{k}": v.contiguous().numpy() for k, v in rows.x.items()}
        for name, seen in rows.observed.items():
            key = f"gap/{name}"
            if key in self.cells:
                dtype, shape = self.cells[key]
                gap = np.zeros((len(rows), *shape), dtype) if seen is None else ~seen.numpy()
                found[key] = np.ascontiguousarray(gap)
            elif seen is not None and not bool(seen.all()):
                raise InputError(
                    f"'{name}' has gaps that were not there when the files were first read; leave "
                    f"the files as they are until training ends"
                )
        return found


def _cell(rows: NDArray[Any]) -> tuple[np.dtype[Any], tuple[int, ...]]:
    return rows.dtype, rows.shape[1:]


@dataclass
class Encoding:
    """The way from a group of a source to arrays, without the rows that are ``held`` out.

    ``held`` are sorted positions; ``portion`` is how many rows are decoded at a time.
    """

    source: Source
    schema: Schema
    layout: Layout
    held: NDArray[np.int64]
    portion: int
    notes: dict[str, None] = field(default_factory=dict[str, None])
    """What there was to remark on the values."""

    def __post_init__(self) -> None:
        self.starts = np.cumsum([0, *self.source.groups])

    def __len__(self) -> int:
        return len(self.source) - len(self.held)

    def rows(self, group: int) -> Iterator[tuple[int, Arrays]]:
        """Rows of a group, each portion with its place among all rows that are trained on."""
        begin = int(self.starts[group])
        for table in self.source.portions(group, self.portion):
            yield from self._encoded(begin, table, self.source.paths[group])
            begin += len(table)

    def between(self, low: int, high: int) -> Iterator[tuple[int, Arrays]]:
        """The same of portions that begin from row ``low`` to below row ``high`` of all."""
        for begin, table, path in self.source.between(low, high, self.portion):
            yield from self._encoded(begin, table, path)

    def _encoded(self, begin: int, table: Table, path: Path) -> Iterator[tuple[int, Arrays]]:
        end = begin + len(table)
        first, last = np.searchsorted(self.held, (begin, end))
        try:
            # A column that some files lack is there in others: that is no remark on all rows.
            rows, notes = self.schema.encode(table, self.schema.order)
        except InputError as error:
            said = f"rows {begin} to {end - 1} of all, in {path}: {error}"
            raise InputError(said) from error
        self.notes |= dict.fromkeys(notes)
        found = self.layout.arrays(rows)
        if last > first:
            kept = np.ones(len(table), bool)
            kept[self.held[first:last] - begin] = False
            found = {k: v[kept] for k, v in found.items()}
        if last - first < len(table):
            yield begin - int(first), found


class Store(ABC):
    """Encoded rows, each once in the order of an epoch, brought into windows of memory."""

    def __init__(self, encoding: Encoding) -> None:
        self.encoding = encoding

    @property
    def layout(self) -> Layout:
        """What a row is made of."""
        return self.encoding.layout

    def __len__(self) -> int:
        return len(self.encoding)

    @property
    @abstractmethod
    def sentence(self) -> str:
        """What is done with the rows, in words."""

    @property
    @abstractmethod
    def order(self) -> dict[str, int]:
        """What the order of an epoch follows from, beside the seed."""

    @abstractmethod
    def ready(self) -> None:
        """Do what has to be done once, before there are any windows."""

    @property
    @abstractmethod
    def foretold(self) -> bool:
        """Whether the system brings in what is read next, so that reading does not wait."""

    @abstractmethod
    def windows(self, seed: int, epoch: int, size: int, first: int) -> Iterator[Filling]:
        """Windows of ``size`` rows, from number ``first`` on; each is filled before the next."""

    @abstractmethod
    def close(self) -> None:
        """Let go of what lies on disk."""


@final
class Cached(Store):
    """Rows decoded once into files without a name, which go with the process whatever ends it.

    There is a file for each array of the layout, rows in the order of their source. An epoch reads
    blocks of some rows in random order.
    """

    def __init__(
        self,
        encoding: Encoding,
        folder: Path,
        batch_size: int,
        window: int,
        told: Told = unheeded,
    ) -> None:
        super().__init__(encoding)
        self.folder, self.window, self.told = folder, window, told
        size = encoding.layout.row_bytes
        blocks = window // (SPREAD * batch_size)
        self.block = max(1, -(-LEAST // size), min(blocks, MOST // size))
        self.files: dict[str, Any] = {}

    @property
    def foretold(self) -> bool:
        """Where the system can be told."""
        return hasattr(os, "posix_fadvise")

    @property
    def sentence(self) -> str:
        """How much lies where."""
        size = in_words(self.layout.row_bytes * len(self))
        return f"rows are decoded once, into {size} on disk in {self.folder}, and read from there"

    @property
    def order(self) -> dict[str, int]:
        """Rows of a window and of a block."""
        return {"window": self.window, "block": self.block}

    def windows(self, seed: int, epoch: int, size: int, first: int) -> Iterator[Filling]:
        """Blocks of rows, one random order of all of them cut into windows."""
        starts = np.arange(0, len(self), self.block)
        np.random.default_rng((seed, epoch)).shuffle(starts)
        counts = np.minimum(starts + self.block, len(self)) - starts
        ends = np.cumsum(counts)
        begin = sum(portions(len(self), size)[:first])
        for count in portions(len(self), size)[first:]:
            low, high = np.searchsorted(ends, (begin, begin + count - 1), side="right")
            there, many = starts[low : high + 1].copy(), counts[low : high + 1].copy()
            many[-1] -= ends[high] - begin - count  # what belongs to the next window
            before = begin - (ends[low] - counts[low])  # and to the one before
            there[0] += before
            many[0] -= before
            places = there.tolist(), many.tolist()
            if self.foretold:
                self._foretell(*places)
            yield partial(self._read, *places)
            begin += count

    def close(self) -> None:
        """Close the files, which removes them."""
        for file in self.files.values():
            file.close()
        self.files = {}

    def _foretell(self, starts: list[int], counts: list[int]) -> None:
        """Have the system bring blocks in while rows of others are in use."""
        for name, row in self.layout.room(1).items():
            file, size = self.files[name].fileno(), row.nbytes
            for start, count in zip(starts, counts, strict=True):
                os.posix_fadvise(file, start * size, count * size, os.POSIX_FADV_WILLNEED)

    def _read(
        self, starts: list[int], counts: list[int], room: Arrays, wanted: NDArray[np.bool_] | None
    ) -> Iterator[float]:
        at = into = 0
        whole = {} if wanted is None else self.layout.room(max(counts))
        for i, (start, count) in enumerate(zip(starts, counts, strict=True), 1):
            kept = None if wanted is None else wanted[at : at + count]
            many = count if kept is None else int(kept.sum())
            for name, array in room.items():
                part = array[into : into + count] if kept is None else whole[name][:count]
                read_at(self.files[name].fileno(), part, start * array[:1].nbytes)
                if kept is not None:
                    array[into : into + many] = part[kept]
            at, into = at + count, into + many
            yield i / len(starts)

    def ready(self) -> None:
        """Decode all rows, each to its place; processes of one machine do it together."""
        if self.files:
            return
        near = neighbours()
        try:
            files = unnamed(near, self.folder, len(self.layout.cells))
            self.files = dict(zip(self.layout.cells, files, strict=True))
            for notes in near.each(partial(self._write, near)):
                self.encoding.notes |= notes
        except BaseException:
            self.close()
            raise

    def _write(self, near: Circle) -> dict[str, None]:
        """Decode the rows of this process, and return what there was to remark on them."""
        whole = len(self.encoding.source)
        low, high = (whole * r // near.count for r in (near.number, near.number + 1))
        first, last = np.array([low, high]) - self.encoding.held.searchsorted((low, high))
        with keeping(self.folder), closing(ahead(self.encoding.between(low, high))) as decoded:
            for begin, rows in releasing(decoded):
                for name, array in rows.items():
                    write_at(self.files[name].fileno(), array, begin * array[:1].nbytes)
                in_vain()
                there = begin + len(next(iter(rows.values())))
                self.told("decoding rows", float((there - first) / max(1, last - first)))
        released()
        return self.encoding.notes


@final
class Decoded(Store):
    """Rows decoded anew in every epoch, where the disk has no room for them.

    Groups come in random order; those too large for one portion some at a time, side by side, as
    many as ``memory`` bytes have room for.
    """

    def __init__(self, encoding: Encoding, memory: float) -> None:
        super().__init__(encoding)
        most = int(memory // max(1, encoding.source.opening))
        largest = max(encoding.source.groups)
        self.open = 1 if largest <= encoding.portion else max(1, min(OPEN, most))

    @property
    def foretold(self) -> bool:
        """No: rows have to be decoded first."""
        return False

    @property
    def sentence(self) -> str:
        """Why it takes longer."""
        size = in_words(self.layout.row_bytes * len(self))
        return (
            f"rows are decoded again in every epoch: the disk has no room for {size} of decoded "
            f"rows; REFOLD_CACHE names a folder that has"
        )

    @property
    def order(self) -> dict[str, int]:
        """Rows that are decoded at a time, and from how many groups side by side."""
        return {"portion": self.encoding.portion, "open": self.open}

    def windows(self, seed: int, epoch: int, size: int, first: int) -> Iterator[Filling]:
        """Portions of groups as they come; what was there before ``first`` is decoded in vain."""
        order = np.random.default_rng((seed, epoch)).permutation(len(self.encoding.source.groups))
        found = releasing(self._side_by_side(order.tolist()))
        left: list[Arrays] = []

        def fill(
            count: int, room: Arrays | None, wanted: NDArray[np.bool_] | None
        ) -> Iterator[float]:
            at = into = 0
            while at < count:
                rows = left.pop() if left else next(found)
                there = len(next(iter(rows.values())))
                taken = min(there, count - at)
                kept = None if wanted is None else wanted[at : at + taken]
                many = taken if kept is None else int(kept.sum())
                for name, array in (room or {}).items():
                    part = rows[name][:taken]
                    array[into : into + many] = part if kept is None else part[kept]
                if taken < there:
                    left.append({k: v[taken:] for k, v in rows.items()})
                at, into = at + taken, into + many
                yield at / count

        for number, count in enumerate(portions(len(self), size)):
            if number < first:
                for _ in fill(count, None, None):
                    pass
            else:
                yield partial(fill, count)

    def ready(self) -> None:
        """Nothing is done ahead."""

    def close(self) -> None:
        """Nothing lies on disk."""

    def _side_by_side(self, order: list[int]) -> Iterator[Arrays]:
        waiting = iter(order)
        opened = [self.encoding.rows(g) for _, g in zip(range(self.open), waiting, strict=False)]
        while opened:
            group = opened.pop(0)
            found = next(group, None)
            if found is not None:
                opened.append(group)
                yield found[1]
            elif (following := next(waiting, None)) is not None:
                opened.append(self.encoding.rows(following))
