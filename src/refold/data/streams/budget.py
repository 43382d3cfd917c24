"""How much memory rows may take: what the user says, or what the machine has."""

from __future__ import annotations

import ctypes
import re
import sys
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import pyarrow as pa

from refold.errors import InputError

UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
LEAST = 32_000_000  # bytes below which there is no room for a batch beside the rows to draw from
OFTEN = 4  # portions of rows after which freed memory is handed back
HALF = 0.5  # share of the memory that is free, for rows where the user says nothing

T = TypeVar("T")


def bytes_of(memory: int | str) -> int:
    """Read a size in bytes, or in words; KB, MB, GB and TB are powers of 1,000, KiB of 1,024.

    Raises :class:`InputError` for what is none, and for less than 32 MB.

    >>> bytes_of("2GB"), bytes_of("1.5 GiB"), bytes_of(64_000_000)
    (2000000000, 1610612736, 64000000)
    """
    text = str(memory).strip().lower()
    read = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b?", text)
    if read is None or isinstance(memory, bool):
        raise InputError(f"memory is {memory!r}; give bytes, or a size such as '500MB' or '2GB'")
    number, unit, binary = read.groups()
    factor = 1024 ** "kmgt".index(unit) * 1024 if binary and unit else UNITS[unit]
    size = int(float(number) * factor)
    if size < LEAST:
        raise InputError(f"memory is {memory!r}, which is too little; give at least '32MB'")
    return size


def in_words(size: float) -> str:
    """Write a number of bytes.

    >>> in_words(2_000_000_000), in_words(64_500_000)
    ('2.0 GB', '64.5 MB')
    """
    for name, factor in (("TB", 1e12), ("GB", 1e9)):
        if size >= factor:
            return f"{size / factor:.1f} {name}"
    return f"{size / 1e6:.1f} MB"


def available() -> int | None:
    """Bytes that a program may still take, within the limit of its container; None: unknown."""
    found: list[int] = []
    told = Path("/proc/meminfo")
    if told.is_file():
        lines = dict(line.split(":", 1) for line in told.read_text().splitlines())
        if "MemAvailable" in lines:
            found.append(1024 * int(lines["MemAvailable"].split()[0]))
    group = Path("/sys/fs/cgroup")
    if (group / "memory.max").is_file() and (group / "memory.current").is_file():
        limit = (group / "memory.max").read_text().strip()
        if limit.isdigit():
            found.append(int(limit) - int((group / "memory.current").read_text()))
    return max(LEAST, min(found)) if found else None


@contextmanager
def returning() -> Generator[None]:
    """Have Arrow give freed memory back, and afterwards the C library what it has kept of it.

    Arrow's own pools keep what threads that have ended had freed: three times as much was seen to
    stay as there was in use.
    """
    before = pa.default_memory_pool()
    pa.set_memory_pool(pa.system_memory_pool())
    try:
        yield
    finally:
        pa.set_memory_pool(before)
        released()


def releasing(items: Iterator[T]) -> Iterator[T]:
    """Give items that are large one by one, with freed memory handed back from time to time."""
    for number, item in enumerate(items, 1):
        yield item
        if number % OFTEN == 0:
            released()


def released() -> None:
    """Hand freed memory back to the system, which the C library otherwise keeps."""
    libc = ctypes.CDLL(None) if sys.platform.startswith("linux") else None
    if libc is not None and hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)
