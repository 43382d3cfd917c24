"""Habits of the machine under a training step: freed memory, and threads that wait."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Generator
from contextlib import contextmanager

import torch
from torch import nn

TRIM, MAP = -1, -3  # glibc's M_TRIM_THRESHOLD and M_MMAP_THRESHOLD
KEPT, MAPPED = 256 << 20, 32 << 20  # bytes; glibc takes no larger second one
ENOUGH = 5e7  # floating-point operations of a step that are worth a second thread


def keep_freed_memory() -> None:
    """Let the process keep up to 256 MiB of freed memory instead of returning it after every step.

    A step frees all it allocated. glibc would hand large blocks back to the system and fault every
    page in again in the next step, which cost some 7 % of a 784-128-64-12 network's training. Other
    C libraries are left alone.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(TRIM, KEPT)
        mallopt(MAP, MAPPED)


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
