"""Rows of files that are larger than the memory they may take."""

from __future__ import annotations

import glob
import os
import shutil
import sys
import tempfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refold.data.schema import Override, Schema
from refold.data.sources.files import ending, matching
from refold.data.sources.stored import Stored, stored_npy, stored_safetensors
from refold.data.streams.budget import HALF, available, bytes_of, in_words, returning
from refold.data.streams.feed import Streamed
from refold.data.streams.look import Look, look
from refold.data.streams.sources import (
    ArrayFiles,
    ParquetFiles,
    Source,
    TextFiles,
    careful,
)
from refold.data.streams.store import Cached, Decoded, Encoding, Layout, Store
from refold.errors import InputError
from refold.table import Table
from refold.types import Batch

STREAMED = (".parquet", ".npy", ".safetensors", ".csv", ".tsv")
CACHE = "REFOLD_CACHE"  # variable of the environment that names a folder for decoded rows
PEAK = 4  # bytes that reading and fitting take for each byte of a table
SAMPLE, FEWEST = 100_000, 2_048  # rows of a sample, at most and at least
COST = 12  # bytes that fitting a schema takes for each byte of its sample
ROOM = 0.8  # share of the free disk that decoded rows may take
PORTION, LOOK, WINDOW = 64, 5, 6  # shares of the memory: a portion, the sample's fit, a window
SMALLEST, LARGEST = 2_048, 50_000  # rows of a portion


@dataclass(frozen=True)
class Stream:
    """Rows in files and the memory they may take; ``reason`` says why they are streamed."""

    source: Source
    memory: int
    reason: str

    def __len__(self) -> int:
        return len(self.source)

    @property
    def first(self) -> Table:
        """A few rows, with their columns and container."""
        return next(self.source.portions(0, 1))

    @property
    def portion(self) -> int:
        """Rows that are decoded at a time."""
        fitting = self.memory / PORTION / self.source.row_bytes()
        return int(max(SMALLEST, min(LARGEST, fitting)))

    def look(self, seed: int, overrides: Mapping[str, Override] | None) -> Look:
        """Pass over all rows once, for a sample and what the whole alone can tell."""
        most = self.memory / LOOK / (COST * self.source.row_bytes())
        size = int(min(SAMPLE, max(FEWEST, most)))
        with returning():
            return look(self.source, size, self.portion, seed, overrides)

    def feed(
        self,
        schema: Schema,
        sample: Batch,
        held: NDArray[np.int64],
        batch_size: int,
        *,
        seed: int,
        seen: Collection[str] | None = None,
    ) -> Streamed:
        """Return batches of all rows but those ``held`` out, by their places among all.

        ``sample`` are some of these rows, encoded: any field of which a cell is missing anywhere
        lacks one there.
        """
        layout = Layout.of(sample.to("cpu"))
        window = max(batch_size, self.memory // WINDOW // layout.row_bytes)
        encoding = Encoding(self.source, schema, layout, np.sort(held), self.portion)
        folder = cache_folder()
        store: Store
        if has_room(folder, layout.row_bytes * len(encoding)):
            store = Cached(encoding, folder, batch_size, window)
        else:
            store = Decoded(encoding, self.memory // LOOK)
        return Streamed(store, batch_size, window=window, sample=sample, seen=seen, seed=seed)


def opened(source: Any, memory: int | str | None) -> Stream | None:
    """Return files as a stream where their rows would take more than ``memory``; else None.

    None stands for half of what is free. Data in memory is no stream, whatever its size. Raises
    :class:`InputError` for a ``memory`` that is no size, and for files that need more than was
    given and cannot be read in parts.
    """
    given = None if memory is None else bytes_of(memory)
    if isinstance(source, Stream):
        return source
    if isinstance(source, np.memmap):
        place = mapped(source)
        found = None if place is None else ArrayFiles([place])
    elif isinstance(source, str | os.PathLike):
        found = in_parts(Path(source), given)
    else:
        found = None
    if found is None or not len(found):
        return None
    room = given if given is not None else half_of_free()
    need = PEAK * found.row_bytes() * len(found)
    if need <= room:
        return None
    whose = "given" if given is not None else "half of what is free"
    reason = (
        f"rows are read in parts: learning from all at once takes about {in_words(need)}, and "
        f"memory is {in_words(room)}, {whose}"
    )
    if found.opening > room / 2:
        reason += (
            f"; decoding a row group takes about {in_words(found.opening)} by itself, so files "
            f"with smaller ones would need less"
        )
    return Stream(found, room, reason)


def in_parts(path: Path, memory: int | None) -> Source | None:
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
        size = sum(f.stat().st_size for f in files)
        if memory is not None and PEAK * size > memory:
            raise InputError(
                f"{path}: learning from {in_words(size)} needs more memory than the "
                f"{in_words(memory)} given, and these files cannot be read in parts; give files of "
                f"one of these formats, not packed: {' '.join(STREAMED)}"
            )
        return None
    (kind,) = endings
    if kind == ".parquet":
        return ParquetFiles(files)
    if kind == ".npy":
        try:
            return ArrayFiles([careful(f, lambda f=f: stored_npy(f)) for f in files])
        except InputError:
            room = memory if memory is not None else half_of_free()
            if PEAK * sum(f.stat().st_size for f in files) > room:
                raise
            return None  # read at once it may be of use, or is refused there
    if kind == ".safetensors":
        return ArrayFiles([careful(f, lambda f=f: stored_safetensors(f)) for f in files])
    size = sum(f.stat().st_size for f in files)
    room = memory if memory is not None else half_of_free()
    return TextFiles(files) if PEAK * size > room else None  # to count rows costs a pass


def half_of_free() -> int:
    """Half of the memory that is free, in round figures: a run that goes on shall find the same."""
    free = available()
    return sys.maxsize if free is None else 1 << (int(HALF * free).bit_length() - 1)


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
