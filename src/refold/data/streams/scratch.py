"""Files without a name, which go with the processes that have them open, whatever ends these."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from refold.errors import InputError
from refold.ops.meeting import Circle


@contextmanager
def keeping(folder: Path) -> Generator[None]:
    """Say in one sentence that a folder cannot keep what is written there."""
    try:
        yield
    except OSError as error:
        raise InputError(
            f"decoded rows cannot be kept in {folder} ({error.strerror}); name a folder with "
            f"room for them in REFOLD_CACHE"
        ) from error


def unnamed(near: Circle, folder: Path, count: int) -> list[Any]:
    """Open ``count`` new files without a name, the same in all processes of a machine.

    Where there are several, the files have one until all have opened them, still empty.
    """
    files: list[Any] = []

    def begun() -> Path | None:
        if near.count == 1 or not near.first:
            return None
        with keeping(folder):
            place = Path(tempfile.mkdtemp(dir=folder))
            for i in range(count):
                (place / str(i)).touch()
            return place

    def opened() -> None:
        with keeping(folder):
            for i in range(count):
                if place is None:
                    files.append(tempfile.TemporaryFile(dir=folder))  # noqa: SIM115
                else:
                    files.append((place / str(i)).open("r+b"))

    place = near.each(begun)[0]
    try:
        near.each(opened)
    finally:
        if place is not None and near.first:
            shutil.rmtree(place, ignore_errors=True)
    return files


def read_at(file: int, array: NDArray[Any], offset: int) -> None:
    """Fill an array from a place in a file."""
    if os.preadv(file, [array.data.cast("B")], offset) < array.nbytes:
        raise InputError("the cache of decoded rows was cut short; train again")


def write_at(file: int, array: NDArray[Any], offset: int) -> None:
    """Write an array to a place in a file."""
    left = array.data.cast("B")
    while len(left):
        done = os.pwrite(file, left, offset)
        left, offset = left[done:], offset + done
