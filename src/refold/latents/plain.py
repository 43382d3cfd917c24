"""The bottleneck that is nothing but narrow."""

from __future__ import annotations

from typing import ClassVar, final

from torch import Tensor

from refold.latents.base import Latent, register
from refold.types import Code


@final
@register("plain")
class Plain(Latent):
    """The hidden state is the code: ``z = h``.

    >>> import torch
    >>> Plain(3)(torch.ones(2, 3)).z.shape
    torch.Size([2, 3])
    """

    rowwise: ClassVar[bool] = True

    @property
    def width(self) -> int:
        """One number per code entry."""
        return self.size

    def forward(self, h: Tensor) -> Code:
        """Pass the hidden state on."""
        return Code(h)

    def sample(self, n: int) -> Tensor:
        """Refuse: a plain code has no prior."""
        raise self.no_prior()
