"""What takes one step of training."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

from torch import Tensor

from refold.types import Batch, Costs


class Step(ABC):
    """Moves the parameters of a model once per batch; every way to do it gives the same model."""

    @abstractmethod
    def take(self, batch: Batch, clean: Batch) -> Costs:
        """Learn from a (corrupted) batch and its clean target; return the costs to be logged.

        They may be overwritten by the next step.
        """

    @abstractmethod
    def set_rate(self, rate: float) -> None:
        """Set the model's learning rate; those of a penalty's own networks keep their ratio."""

    @abstractmethod
    def set_format(self, *, bfloat16: bool) -> None:
        """Say whether matrix products round what they meet to bfloat16."""

    @abstractmethod
    def state(self) -> dict[str, Tensor]:
        """Return all that the optimisers remember, by name, to be put back by :meth:`restore`."""

    @abstractmethod
    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Put back what :meth:`state` gave."""

    @abstractmethod
    def forget(self, name: str, rows: Tensor) -> None:
        """Forget what the optimiser remembers of rows of the model's parameter of that name."""

    @abstractmethod
    def close(self) -> None:
        """Leave the model as an ordinary module, without gradients."""
