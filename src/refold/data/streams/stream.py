"""Rows of files that are larger than the memory they may take."""

from __future__ import annotations

import glob
import math
import os
import shutil
import sys
import tempfile
import zlib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refold.data.schema import Override, Schema
from refold.data.sources.files import ending, matching
from refold.data.sources.stored import Stored, stored_npy, stored_safetensors
from refold.data.streams.budget import HALF, available, bytes_of, in_words, returning
from refold.data.streams.feed import Reading, Streamed
from refold.data.streams.look import Look, look
from refold.data.streams.sources import (
    ArrayFiles,
    ParquetFiles,
    Source,
    TextFiles,
    careful,
)
from refold.data.streams.store import Cached, Decoded, Encoding, Layout, Store
from refold.data.streams.telling import Told, unheeded
from refold.errors import InputError
from refold.ops.meeting import everyone, neighbours, others_ending
from refold.table import Table
from refold.types import Batch

STREAMED = (".parquet", ".npy", ".safetensors", ".csv", ".tsv")
CACHE = "REFOLD_CACHE"  # variable of the environment that names a folder for decoded rows
PEAK = 4  # bytes that reading and fitting take for each byte of a table
SAMPLE, FEWEST = 100_000, 2_048  # rows of a sample, at most and at least
COST = 12  # bytes that fitting a schema takes for each byte of its sample
ROOM = 0.8  # share of the free disk that decoded rows may take
PORTION, LOOK, WINDOW = 64, 5, 6  # shares of the memory: a portion, the sample's fit, a window
# Bytes that learning takes in any case: measured, by the smallest sample of tables of 30 to 3,000
# columns and of arrays; for each byte of a row of it, and for each column.
FLOOR, LEARNT, COLUMN = 16_000_000, 14, 32
BEGINNING = 1 << 20  # bytes by which it is judged how much larger a file is unpacked
GIVEN = "given"
SMALLEST, LARGEST = 512, 50_000  # rows of a portion


@dataclass(frozen=True)
class Stream:
    """Rows in files and the memory they may take; ``reason`` says why they are streamed.

    The processes of one machine have the ``memory`` together. ``cached`` says whether rows are
    decoded once, where that was decided before; None leaves it to the disk.
    """

    source: Source
    memory: int
    reason: str
    cached: bool | None = None

    def __len__(self) -> int:
        return len(self.source)

    @property
    def first(self) -> Table:
        """A few rows, with their columns and container."""
        return next(self.source.portions(0, 1))

    @property
    def sample(self) -> int:
        """Rows that stand for all of them."""
        most = self.memory / LOOK / (COST * self.source.row_bytes())
        return int(min(len(self), SAMPLE, max(FEWEST, most)))

    def portion(self, processes: int = 1) -> int:
        """Rows that are decoded at a time, where several processes do."""
        fitting = self.memory / PORTION / self.source.row_bytes() / processes
        return int(max(SMALLEST, min(LARGEST, fitting)))

    def look(
        self, seed: int, overrides: Mapping[str, Override] | None, told: Told = unheeded
    ) -> Look:
        """Pass over all rows once, for a sample and what the whole alone can tell.

        Raises :class:`InputError` where not even the smallest sample could be learnt from.
        """
        many = neighbours().count
        columns, each = len(self.first.columns), self.source.row_bytes()
        least = math.ceil(many * (FLOOR + FEWEST * (LEARNT * each + COLUMN * columns)) / 1e6)
        if self.memory < least * 1e6:
            where = f" in {many} processes" if many > 1 else ""
            raise InputError(
                f"memory is {in_words(self.memory)}, and learning from rows of {columns:,} columns"
                f"{where} takes {least} MB at least; give memory='{least}MB'"
            )
        with returning(), others_ending(lambda: "start anew"):
            portion = self.portion(many)
            return look(self.source, self.sample, portion, seed, overrides, told=told)

    def feed(
        self,
        schema: Schema,
        sample: Batch,
        held: NDArray[np.int64],
        batch_size: int,
        *,
        seed: int,
        seen: Collection[str] | None = None,
        told: Told = unheeded,
    ) -> Streamed:
        """Return batches of all rows but those ``held`` out, by their places among all.

        ``sample`` are some of these rows, encoded: any field of which a cell is missing anywhere
        lacks one there.
        """
        layout = Layout.of(sample.to("cpu"))
        held, folder = np.sort(held), cache_folder()
        rows = len(self) - len(held)
        window = min(rows, max(batch_size, self.memory // WINDOW // layout.row_bytes))
        cached = self.cached
        if cached is None:
            with others_ending(lambda: "start anew"):
                cached = all(everyone().gathered(has_room(folder, layout.row_bytes * rows)))
        portion = self.portion(neighbours().count if cached else 1)
        encoding = Encoding(self.source, schema, layout, held, portion)
        store: Store
        if cached:
            store = Cached(encoding, folder, batch_size, window, told)
        else:
            store = Decoded(encoding, self.memory // LOOK)
        reading = Reading(self.memory, cached, {"sample": self.sample, **store.order})
        return Streamed(
            store, batch_size, window=window, sample=sample, seen=seen, seed=seed, reading=reading
        )


def opened(
    source: Any,
    memory: int | str | None,
    *,
    before: Callable[[], Reading | None] | None = None,
    told: Told = unheeded,
) -> Stream | None:
    """Return files as a stream where their rows would take more than ``memory``; else None.

    None stands for half of what is free, or for what a run that goes on had ``before``. Of several
    processes the first one decides; those of one machine have the memory together. Data in memory
    is no stream, whatever its size. Raises :class:`InputError` for a ``memory`` that is no size,
    and for files that need more than was given and cannot be read in parts.
    """
    given = None if memory is None else bytes_of(memory)
    if isinstance(source, Stream):
        return source
    if not isinstance(source, np.memmap | str | os.PathLike):
        return None
    with others_ending(lambda: "start anew"):
        room = everyone().agreed(partial(Room.of, given, before))
        if isinstance(source, np.memmap):
            place = mapped(source)
            found = None if place is None else ArrayFiles([place])
        else:
            found = in_parts(Path(source), room, told)
        if found is None or not len(found):
            return None
        many = neighbours().count
    need = PEAK * found.row_bytes() * len(found) * many
    if need <= room.size and not room.in_parts:
        return None
    said = f"memory is {in_words(room.size)}, {room.whose}"
    together = f" in each of {many} processes" if many > 1 else ""
    reason = (
        f"rows are read in parts: learning from all at once takes about {in_words(need / many)}"
        f"{together}, and {said}"
    )
    if found.opening > room.size / 2:
        reason += (
            f"; decoding a row group takes about {in_words(found.opening)} by itself, so files "
            f"with smaller ones would need less"
        )
    return Stream(found, room.size, reason, room.cached)


@dataclass(frozen=True)
class Room:
    """Memory that rows may take in bytes, and ``whose`` word that is.

    ``in_parts`` says whether rows are read in parts in any case, ``cached`` whether they are then
    decoded once, as in a run that goes on; None where that is open.
    """

    size: int
    whose: str
    in_parts: bool = False
    cached: bool | None = None

    @classmethod
    def of(cls, given: int | None, before: Callable[[], Reading | None] | None) -> Room:
        """Take what is given, or what a run had before, or half of what is free."""
        kept = None if before is None else before()
        cached = None if kept is None else kept.cached
        if given is not None:
            return cls(given, GIVEN, cached=cached)
        if kept is None:
            return cls(half_of_free(), "half of what is free")
        if kept.memory is None:
            return cls(sys.maxsize, "as before")
        return cls(kept.memory, "as before", True, cached)


def in_parts(path: Path, room: Room, told: Told = unheeded) -> Source | None:
    """Files as a source that is read in parts; None where that cannot be, or nothing is there."""
    if path.is_file():
        files = [path]
    elif glob.has_magic(str(path)):
        files = matching(path)
    else:
        return None
    endings = {ending(f) for f in files}
    packed = [f for f in files if f.suffix.lower() == ".gz"]
    if len(endings) > 1 or not endings <= set(STREAMED) or packed:
        size = sum(unpacked(f) for f in files)
        if room.whose == GIVEN and PEAK * size > room.size:
            raise InputError(
                f"{path}: all at once, {in_words(size)} take about {in_words(PEAK * size)}, more "
                f"than the {in_words(room.size)} given, and these files cannot be read in parts; "
                f"give files of one of these formats, not packed: {' '.join(STREAMED)}"
            )
        return None
    (kind,) = endings
    if kind == ".parquet":
        return ParquetFiles(files)
    if kind == ".npy":
        try:
            return ArrayFiles([careful(f, lambda f=f: stored_npy(f)) for f in files])
        except InputError:
            if PEAK * sum(f.stat().st_size for f in files) > room.size:
                raise
            return None  # read at once it may be of use, or is refused there
    if kind == ".safetensors":
        return ArrayFiles([careful(f, lambda f=f: stored_safetensors(f)) for f in files])
    size = sum(f.stat().st_size for f in files)
    large = room.in_parts or PEAK * size * neighbours().count > room.size
    return TextFiles(files, told) if large else None  # to count rows costs a pass


def half_of_free() -> int:
    """Half of the memory that is free."""
    free = available()
    return sys.maxsize if free is None else int(HALF * free)


def unpacked(file: Path) -> int:
    """Bytes of a file, unpacked where it is gzip: as its beginning is, and no less than it says.

    What gzip says at the end is the size of the last of its members, below 4 GB.
    """
    size = file.stat().st_size
    with file.open("rb") as packed:
        beginning, reader = packed.read(BEGINNING), zlib.decompressobj(zlib.MAX_WBITS | 16)
        if not beginning.startswith(b"\x1f\x8b"):
            return size
        try:
            ratio = len(reader.decompress(beginning)) / (len(beginning) - len(reader.unused_data))
        except zlib.error:
            return size  # reading it will say so
        packed.seek(max(0, size - 4))
        return max(int(ratio * size), int.from_bytes(packed.read(4), "little"))


def mapped(array: np.memmap[Any, Any]) -> Stored | None:
    """Where a memory-mapped array lies in its file; None for a part of one."""
    whole = isinstance(array.base, type(array._mmap))  # pyright: ignore[reportAttributeAccessIssue]
    if not whole or not array.flags.c_contiguous or array.filename is None or array.ndim < 2:
        return None
    return Stored(Path(array.filename), array.offset, array.dtype, array.shape)


def cache_folder() -> Path:
    """Where decoded rows are kept: what the environment names, or a place for large files."""
    if named := os.environ.get(CACHE):
        if not Path(named).is_dir():
            raise InputError(f"{CACHE} is '{named}', which is no folder; make it, or name another")
        return Path(named)
    roomy = Path("/var/tmp")  # where /tmp may itself be memory
    return roomy if os.access(roomy, os.W_OK) else Path(tempfile.gettempdir())


def has_room(folder: Path, size: int) -> bool:
    """Whether a folder can take so many bytes and have some left."""
    return size <= ROOM * shutil.disk_usage(folder).free
