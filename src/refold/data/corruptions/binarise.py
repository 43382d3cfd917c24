"""Pixels as coins: black or white, drawn anew in every batch."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from refold.data.corruptions.base import OnImages, register


@final
@register("binarise")
class Binarise(OnImages):
    r"""Draw each pixel of images as 0 or 1, with its own grey as the chance of 1.

    .. math:: \tilde x_i \sim \operatorname{Bernoulli}(x_i)

    What is drawn is the target too: no noise that should be taken away, but data with as many
    versions of each image as there are batches (dynamic binarisation), which a model does not learn
    by heart. Pixels outside [0, 1] are taken for the nearer end.

    Source: Salakhutdinov & Murray, On the Quantitative Analysis of Deep Belief Networks, 2008.

    >>> grey = torch.full((1, 1, 50, 50), 0.2)
    >>> drawn = Binarise().corrupt(grey, torch.Generator().manual_seed(0))
    >>> drawn.unique().tolist(), round(float(drawn.mean()), 1)
    ([0.0, 1.0], 0.2)
    """

    scored: str = "drawn"

    def field(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Toss a coin for each pixel."""
        return (torch.rand(x.shape, generator=generator, device=x.device) < x).to(x.dtype)
