"""Habits of the machine under a training step: freed memory, and threads that wait."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

TRIM, MAP, MAPS = -1, -3, -4  # glibc's M_TRIM_THRESHOLD, M_MMAP_THRESHOLD and M_MMAP_MAX
KEPT, MAPPED = 256 << 20, 32 << 20  # bytes; glibc takes no larger second one
MOST_MAPS = 65536  # blocks mapped on their own, where nothing else is said
ENOUGH = 5e7  # floating-point operations of a step that are worth a second thread


@contextmanager
def keeping_memory(model: nn.Module, batch_size: int) -> Generator[None]:
    """Let the process keep freed memory instead of returning it after every step.

    A step frees all it allocated. glibc would hand large blocks back to the system and fault every
    page in again in the next step, which cost some 7 % of a 784-128-64-12 network's training: up
    to 256 MiB now stay. It maps blocks above 32 MiB one by one, such as the tensors of 41 MB of a
    table with 40,000 levels, which cost a quarter of its training: where a step has such blocks,
    nothing is mapped or handed back within the context, and afterwards all that is free but 256 MiB
    goes back at once. (Small networks lose a few percent by that.) Other C libraries are left
    alone.
    """
    libc = ctypes.CDLL(None) if sys.platform.startswith("linux") else None
    if libc is None or not hasattr(libc, "mallopt") or not hasattr(libc, "malloc_trim"):
        yield
        return
    libc.mallopt(TRIM, KEPT)
    libc.mallopt(MAP, MAPPED)
    widest = max((p.shape[0] for p in model.parameters() if p.ndim > 1), default=0)
    if 4 * batch_size * widest < MAPPED:
        yield
        return
    libc.mallopt(TRIM, -1)
    libc.mallopt(MAPS, 0)
    try:
        yield
    finally:
        libc.mallopt(TRIM, KEPT)
        libc.mallopt(MAPS, MOST_MAPS)
        libc.malloc_trim(KEPT)


@contextmanager
def fitting_threads(model: nn.Module, batch_size: int) -> Generator[None]:
    """Use one thread while a step is too small to share, and what was set before otherwise.

    Threads meet at every layer. On a small network that gains nothing, and where other processes
    keep the cores busy each meeting waits for a turn on the processor: a fit of seconds was seen to
    take minutes. A step is counted as six operations per parameter and row (forward, and twice
    that backward); convolutions use a parameter many times and keep their threads.
    """
    before = torch.get_num_threads()
    operations = 6 * batch_size * sum(p.numel() for p in model.parameters())
    shared = any(isinstance(m, nn.Conv2d | nn.ConvTranspose2d) for m in model.modules())
    if operations < ENOUGH and not shared:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def fast_bfloat16(device: torch.device) -> bool:
    """Whether a device multiplies matrices of bfloat16 faster than those of single precision."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    known: Any = getattr(torch.cpu, "get_capabilities", dict[str, bool])()
    return bool(known.get("amx_bf16") or known.get("avx512_bf16"))
