"""Which of the processes that ``torchrun`` started this one is, as the environment says."""

from __future__ import annotations

import os


def count() -> int:
    """Processes of this run, 1 where it was started alone."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def number() -> int:
    """Return the number of this process among them; 0 is the one that writes and speaks."""
    return int(os.environ.get("RANK", "0")) if count() > 1 else 0


def local() -> int:
    """Return its number among those on this machine: that of the accelerator it uses."""
    return int(os.environ.get("LOCAL_RANK", "0")) if count() > 1 else 0
