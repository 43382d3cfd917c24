"""Images that lost sharpness or moved: the target has not, and the model learns to undo it."""

from __future__ import annotations

import math
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor

from refold.data.corruptions.base import OnImages, check_side, register
from refold.data.corruptions.masking import check_value
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


@final
@register("shift")
class Shift(OnImages):
    """Move every image by up to ``pixels`` along each axis, each by as many as it likes.

    Both distances are drawn uniformly from the whole numbers between ``-pixels`` and ``pixels``;
    what moves in from beyond the border is ``value``. All channels move together; which pixels
    were observed stays as it is.

    >>> x = torch.zeros(200, 1, 5, 5)
    >>> x[:, 0, 2, 2] = 1.0
    >>> moved = Shift(pixels=1).corrupt(x)
    >>> bool((moved[..., 1:4, 1:4].sum((1, 2, 3)) == 1).all()), int((moved.mean(0) > 0).sum())
    (True, 9)
    """

    def __init__(self, *, pixels: int = 2, value: float = 0.0) -> None:
        if pixels < 1:
            raise InputError(f"the shift is {pixels}; it must be 1 pixel or more")
        check_value(value)
        self.pixels, self.value = pixels, value

    def field(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Look up each pixel where it was."""
        check_side(self.pixels, x, "the shift")
        rows, channels, height, width = x.shape
        most, device = self.pixels, x.device
        moved = torch.randint(0, 2 * most + 1, (2, rows, 1), generator=generator, device=device)
        down = (moved[0] + torch.arange(height, device=device)).view(rows, 1, height, 1)
        across = (moved[1] + torch.arange(width, device=device)).view(rows, 1, 1, width)
        each = torch.arange(rows, device=device).view(rows, 1, 1, 1)
        channel = torch.arange(channels, device=device).view(1, channels, 1, 1)
        return F.pad(x, (most,) * 4, value=self.value)[each, channel, down, across]
