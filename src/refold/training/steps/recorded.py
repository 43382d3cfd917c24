"""A step that was recorded, and what a step leaves behind."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from refold.recording.recording import close
from refold.types import Costs

NEVER, RECORDED, TRUSTED = "never", "recorded", "trusted"  # stages of a recording
FIRST, THEN = 64, 8  # uses until a recording is compared again, and how many times as many then


@dataclass
class Recorded:
    """A step for batches of one shape: where its rows go, what runs it, where its costs are."""

    inputs: list[Tensor]
    run: Callable[[], None]
    costs: Costs
    trusted: bool | None = None
    """Whether it agreed with a plain step on other rows; None: not compared yet."""
    used: int = 0
    again: int = FIRST
    """The use, counted from when it was trusted, at which it is compared again."""

    def use(self) -> bool:
        """Count a use; whether it is time to compare again."""
        self.used += 1
        if self.used < self.again:
            return False
        self.again *= THEN
        return True


def stage_of(recorded: Recorded | None) -> str:
    """Name how far the recording of a step has come."""
    return NEVER if recorded is None else TRUSTED if recorded.trusted else RECORDED


@dataclass
class State:
    """What a step leaves beside parameters: tensors, and torch's own random numbers."""

    tensors: list[Tensor]
    random: Tensor

    @classmethod
    def of(cls, tensors: Iterable[Tensor]) -> Self:
        """Copy it."""
        return cls([t.detach().clone() for t in tensors], torch.get_rng_state())

    def restore(self, places: Sequence[Tensor]) -> None:
        """Put it back where its first tensors were."""
        with torch.no_grad():
            for place, value in zip(places, self.tensors, strict=False):
                place.copy_(value)
        torch.set_rng_state(self.random)

    def close(self, other: State) -> bool:
        """Whether another has the same tensors, but for rounding."""
        return all(map(close, self.tensors, other.tensors))
