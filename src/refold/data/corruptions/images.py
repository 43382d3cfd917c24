"""Images that lost sharpness: the target keeps it, and the model learns to give it back."""

from __future__ import annotations

import math
from typing import final

import torch
from torch import Tensor

from refold.data.corruptions.base import OnImages, check_side, register
from refold.errors import InputError, unknown
from refold.ops.images import MODES, blur, resize, shrink


@final
@register("blur")
class Blur(OnImages):
    """Blur images with a Gaussian of ``sigma`` pixels; nothing about it is random.

    The border is mirrored, and the kernel ends at three sigma or at the size of the image. A
    missing pixel counts as the value it is filled with.

    >>> point = torch.zeros(1, 1, 5, 5)
    >>> point[0, 0, 2, 2] = 1.0
    >>> Blur(sigma=0.7).corrupt(point)[0, 0, 2]
    tensor([0.0110, 0.1171, 0.3247, 0.1171, 0.0110])
    """

    def __init__(self, *, sigma: float = 1.0) -> None:
        if not 0 < sigma < math.inf:
            raise InputError(f"the blur's sigma is {sigma}; it must be above 0 pixels, and finite")
        self.sigma = sigma

    def field(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Blur both axes."""
        return blur(x, self.sigma)


@final
@register("downscale")
class Downscale(OnImages):
    """Shrink images by averaging areas, and enlarge them to their size again: super-resolution.

    Each side becomes ``factor`` times smaller, rounded up, and is interpolated back by ``mode``:
    ``bilinear``, ``nearest`` or ``bicubic`` (which may leave the range of the pixels a little).
    The model's input thus has the size of its target, as in SRCNN; images that are small to begin
    with are enlarged by :func:`refold.uses.restore.enlarge`. Nothing about it is random.

    Source: Dong et al., Image Super-Resolution Using Deep Convolutional Networks, 2014
    (arXiv:1501.00092).

    >>> Downscale(factor=2, mode="nearest").corrupt(torch.tensor([[[[0.0, 1.0], [2.0, 5.0]]]]))
    tensor([[[[2., 2.],
              [2., 2.]]]])
    """

    def __init__(self, *, factor: int = 2, mode: str = "bilinear") -> None:
        if factor < 2:
            raise InputError(f"the factor of downscale is {factor}; it must be 2 or more")
        if mode not in MODES:
            raise unknown("mode of downscale", mode, MODES)
        self.factor, self.mode = factor, mode

    def field(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Shrink, then enlarge."""
        check_side(self.factor, x, "the factor of downscale")
        height, width = x.shape[-2:]
        return resize(shrink(x, self.factor), (height, width), self.mode)
