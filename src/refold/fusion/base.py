"""What every fusion is: the body between the fields and the code."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, TypeAlias

import torch
from torch import Tensor, nn

from refold.backbones.base import Pairs, Skips
from refold.parts import Registry

Leads: TypeAlias = tuple[tuple[tuple[str, ...], nn.Linear], ...]
"""First linear layers of an encoder, each with the fields whose hidden states it meets in order."""


@dataclass(frozen=True)
class LinearPath:
    """Weights ``[into, inputs]`` and ``[outputs, code]`` of a linear way through the body.

    ``beside`` are the last weights of the layers that add to it: zero, they leave it alone.
    """

    down: Tensor
    up: Tensor
    down_bias: Tensor
    up_bias: Tensor
    beside: tuple[Tensor, ...]


class Fusion(nn.Module, ABC):
    """Maps hidden states of the fields to one, and one hidden state to those of the fields.

    ``inputs`` are the widths by name of the fields that the encoder sees, ``outputs`` of those that
    the decoder gives; a field may be either or both. ``into`` is the width the latent asks for,
    ``code`` the size of the code.
    """

    relaxed: ClassVar[bool] = False
    """Whether evaluation leaves out noise of training; the loop judges held-out rows with it."""
    constrained: ClassVar[bool] = False
    """Whether a step must leave weights in a set of their own; :meth:`constrain` returns there."""
    joined: int = 0
    """How many rows at the end of each batch of training joined it for their known target."""
    members: int = 1
    """How many bodies this one is made of, that learn apart: each decodes rows of its own."""

    def __init__(
        self, inputs: dict[str, int], outputs: dict[str, int], into: int, code: int
    ) -> None:
        super().__init__()
        self.inputs, self.outputs, self.into, self.code = inputs, outputs, into, code

    @abstractmethod
    def encode(self, hidden: dict[str, Tensor], present: Mapping[str, Tensor]) -> Tensor:
        """``{field: [B, C]}`` to the latent's input ``[B, into]``.

        ``present`` ``{field: [B]}`` says in which rows anything of a field was observed; a field
        that it does not name is there in every row.
        """

    @abstractmethod
    def decode(self, z: Tensor) -> dict[str, Tensor]:
        """Code ``[B, D]`` to ``{field: [B, C]}``; of several members, one batch after the other."""

    def begin(self, hidden: dict[str, Tensor]) -> None:
        """Start from the hidden states ``{field: [n, C]}`` of a sample of the rows of training.

        The base has nothing to start.
        """

    def project(self) -> None:
        """Leave of gradients what moves along the constraint; the base has none."""

    def constrain(self) -> None:
        """Return to the constraint after a step; the base has none."""

    @abstractmethod
    def linear_path(self) -> LinearPath | None:
        """Return the linear way from inputs to code to outputs, where there is one."""

    @abstractmethod
    def last_bias(self) -> Tensor:
        """Return what is added last, ``[sum(outputs)]`` in the fields' order, to start from."""

    @property
    @abstractmethod
    def leads(self) -> Leads:
        """Return the encoder's first linear layers, each with the fields it meets side by side."""

    @property
    @abstractmethod
    def pairs(self) -> Pairs:
        """Return layers on the way down with those that undo them on the way up, outermost first.

        Empty where there are no layers or the two ways do not mirror each other.
        """

    @abstractmethod
    def outer(self, hidden: dict[str, Tensor], count: int) -> dict[str, Tensor]:
        """``{field: [B, C]}`` to the same by way of the ``count`` outermost pairs, without code."""


class Lateral(Fusion, ABC):
    """A body whose way up also takes from its way down, beside the code; it may have costs."""

    @abstractmethod
    def descend(
        self, hidden: dict[str, Tensor], present: Mapping[str, Tensor]
    ) -> tuple[Tensor, Skips]:
        """Latent's input ``[B, into]``, and what the way up takes beside the code."""

    @abstractmethod
    def ascend(self, z: Tensor, beside: Skips) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """``{field: [B, C]}`` of a code and what is beside it, and scalar costs by name."""


fusions: Registry[Fusion] = Registry("fusion")
register = fusions.register


def join(hidden: Mapping[str, Tensor], widths: Mapping[str, int]) -> Tensor:
    """Put the fields' hidden states ``{field: [B, C]}`` side by side; one alone stays as it is."""
    if len(hidden) == 1:
        return next(iter(hidden.values()))
    return torch.cat([hidden[k] for k in widths], 1)


def part(joined: Tensor, widths: Mapping[str, int]) -> dict[str, Tensor]:
    """Give each field its ``widths`` of what stands side by side."""
    if len(widths) == 1:
        return {next(iter(widths)): joined}
    parts = joined.split(list(widths.values()), 1)
    return dict(zip(widths, parts, strict=True))
