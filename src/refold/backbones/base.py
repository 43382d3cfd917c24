"""What every backbone is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, TypeAlias

import torch
from torch import Tensor, nn

from refold.parts import Registry

Skips: TypeAlias = tuple[Tensor, ...]
"""Feature maps that a decoder takes from its encoder, from the outermost in; mostly none."""

Pairs: TypeAlias = tuple[tuple[nn.Module, nn.Module], ...]
"""Layers of an encoder, each with those of the decoder that undo it, from the outermost in."""


@dataclass(frozen=True)
class Geometry:
    """Sizes of a field, as the assembler gives them to its backbone.

    ``shape`` of one row of ``x``; ``sizes`` the levels of each entry; ``params`` the numbers the
    field's likelihood needs; ``missing`` whether entries can be absent. A field that is only
    predicted is not read, one that is never rebuilt is not written: layers for that way are not
    needed.
    """

    shape: tuple[int, ...]
    sizes: tuple[int, ...]
    params: int
    missing: bool
    reads: bool = True
    writes: bool = True


class Backbone(nn.Module, ABC):
    """Two maps: a field to its hidden state, and a hidden state to the likelihood's parameters."""

    coded: ClassVar[bool] = False
    """Whether :meth:`decode` takes the code itself, past the body: for answers in the code."""

    def __init__(self, geometry: Geometry) -> None:
        super().__init__()
        self.geometry = geometry

    @property
    @abstractmethod
    def encoded(self) -> int:
        """Width of the hidden state that :meth:`encode` gives."""

    @property
    @abstractmethod
    def decoded(self) -> int:
        """Width of the hidden state that :meth:`decode` takes."""

    @property
    @abstractmethod
    def pairs(self) -> Pairs:
        """Return layers of the encoder with those of the decoder that undo them, outermost first.

        Empty where there are no layers or the two do not mirror each other.
        """

    @property
    @abstractmethod
    def skipping(self) -> bool:
        """Whether the decoder needs the encoder's feature maps beside the hidden state."""

    @abstractmethod
    def encode(self, x: Tensor, visible: Tensor | None) -> tuple[Tensor, Skips]:
        """Hidden state ``[B, C]`` of ``x`` ``[B, *shape]``, and the feature maps kept beside it.

        ``visible`` ``[B, E]`` says what is there; None: everything.
        """

    @abstractmethod
    def decode(self, h: Tensor, skips: Skips) -> Tensor:
        """Likelihood parameters ``[B, P]`` of a hidden state and the maps beside it."""

    @abstractmethod
    def outer(self, x: Tensor, visible: Tensor | None, count: int) -> Tensor:
        """Likelihood parameters ``[B, P]`` by way of the ``count`` outermost pairs alone."""

    @abstractmethod
    def start_at(self, params: Tensor) -> bool:
        """Start the decoder at constant ``params`` ``[P]``; False where the caller must do it."""


backbones: Registry[Backbone] = Registry("backbone")
register = backbones.register


def blocks(stack: nn.Sequential) -> list[nn.Sequential]:
    """Cut a stack before every module that has a weight, so that each block is a layer and its end.

    >>> stack = nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 1))
    >>> [len(block) for block in blocks(stack)]
    [2, 1]
    """
    weighted = [any(isinstance(m, nn.Linear) for m in module.modules()) for module in stack]
    starts = [i for i, leads in enumerate(weighted) if leads]
    ends = [*starts[1:], len(stack)]
    return [nn.Sequential(*list(stack)[a:b]) for a, b in zip(starts, ends, strict=True)]


def there_and_back(pairs: Pairs, h: Tensor) -> Tensor:
    """Run ``h`` through the first halves of pairs in order, and through the second halves back."""
    for down, _ in pairs:
        h = down(h)
    for _, up in reversed(pairs):
        h = up(h)
    return h


def with_mask(h: Tensor, visible: Tensor | None, geometry: Geometry) -> Tensor:
    """Append to ``h`` ``[B, E]`` one number per entry that says whether it is there.

    What is not there is zero, whatever ``h`` holds in its place.
    """
    if not geometry.missing:
        return h
    if visible is None:
        return torch.cat([h, h.new_ones(len(h), len(geometry.sizes))], dim=1)
    seen = visible.to(h.dtype)
    return torch.cat([h * seen, seen], dim=1)
