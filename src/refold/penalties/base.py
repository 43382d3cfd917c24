"""What every penalty is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from torch import Tensor, nn

from refold.parts import Registry
from refold.types import Batch, Code


class Penalty(nn.Module, ABC):
    """A cost that needs the model itself or networks of its own; all arguments are keyword-only."""

    matching: ClassVar[bool] = False
    """Whether it pulls the distribution of codes to the latent's prior."""
    joint: ClassVar[bool] = False
    """Whether rows of a batch meet in it; it then takes those of all processes that share one, and
    draws the same in each of them."""
    progress: float = 1.0
    """Share of the training run that has passed; costs with a warm-up read it while training."""
    optimizer: str | None = None
    """Optimiser of the penalty's own networks, with options; None: the model's own."""
    lr: float | None = None
    """Learning rate of its networks, which follows the schedule; None: the model's."""

    def attach(self, model: nn.Module) -> None:
        """Build what needs the finished model's sizes; the base has nothing to build."""

    @abstractmethod
    def forward(
        self, model: nn.Module, batch: Batch, code: Code, params: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """Scalar costs of a batch by name; each is added to the objective and logged.

        ``batch`` is the clean target, ``params`` ``{field: [B, P]}`` what the decoder gave.
        """


penalties: Registry[Penalty] = Registry("penalty")
register = penalties.register
