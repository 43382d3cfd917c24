"""What every backbone is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from refold.parts import Registry


@dataclass(frozen=True)
class Geometry:
    """Sizes of a field, as the assembler gives them to its backbone.

    ``shape`` of one row of ``x``; ``sizes`` the levels of each entry; ``params`` the numbers the
    field's likelihood needs; ``missing`` whether entries can be absent.
    """

    shape: tuple[int, ...]
    sizes: tuple[int, ...]
    params: int
    missing: bool


class Backbone(nn.Module, ABC):
    """Two maps: a field to its hidden state, and a hidden state to the likelihood's parameters."""

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

    @abstractmethod
    def encode(self, x: Tensor, visible: Tensor | None) -> Tensor:
        """Hidden state ``[B, C]`` of ``x`` ``[B, *shape]``; ``visible`` ``[B, E]``, None: all."""

    @abstractmethod
    def decode(self, h: Tensor) -> Tensor:
        """Likelihood parameters ``[B, P]`` of a hidden state."""

    @abstractmethod
    def start_at(self, params: Tensor) -> bool:
        """Start the decoder at constant ``params`` ``[P]``; False where the caller must do it."""


backbones: Registry[Backbone] = Registry("backbone")
register = backbones.register


def with_mask(h: Tensor, visible: Tensor | None, geometry: Geometry) -> Tensor:
    """Append to ``h`` ``[B, C]`` one number per entry that says whether it is there."""
    if not geometry.missing:
        return h
    seen = h.new_ones(len(h), len(geometry.sizes)) if visible is None else visible.to(h.dtype)
    return torch.cat([h, seen], dim=1)
