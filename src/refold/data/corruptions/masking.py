"""What is set to a constant: entries, pixels, boxes, patches."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor

from refold.data.corruptions.base import (
    OnImages,
    PerField,
    check_share,
    check_side,
    entries_of,
    fill,
    register,
)
from refold.errors import InputError, unknown
from refold.ops.images import box_mask, patch_mask, pixel_mask
from refold.ops.topk import exact_mask

PER = ("element", "pixel")


def check_per(per: str) -> None:
    """Raise for a unit that does not exist."""
    if per not in PER:
        raise unknown("unit in per", per, PER)


def check_value(value: float) -> None:
    """Raise for a constant that no model can take in."""
    if not math.isfinite(value):
        raise InputError(f"the value of masked entries is {value}; give a finite number")


def draw(x: Tensor, fraction: float, per: str, generator: torch.Generator) -> Tensor | None:
    """Draw an exact share of each row's entries or pixels; None where that is none of them."""
    units = x.shape[-2:].numel() if per == "pixel" else entries_of(x)
    count = round(fraction * units)
    if count == 0:
        return None
    if per == "pixel":
        return pixel_mask(x, count, generator)
    return exact_mask(len(x), units, count, generator, x.device).view_as(x)


@final
@register("masking")
class Masking(PerField):
    """Set an exact share of each row's entries to a constant, other entries in every row.

    ``fraction`` of each field's entries, rounded to the nearest whole number, become ``value``
    (0 is a standardised column's mean, black for pixels, the first of two levels); a class among
    several becomes missing. ``per="pixel"`` hides whole pixels of images, all channels alike, and
    leaves other fields.

    Source: Vincent et al., Extracting and Composing Robust Features with Denoising Autoencoders,
    2008.

    >>> Masking(fraction=0.3).corrupt(torch.ones(4, 10)).sum(1)
    tensor([7., 7., 7., 7.])
    """

    def __init__(self, *, fraction: float = 0.25, value: float = 0.0, per: str = "element") -> None:
        check_share(fraction, "the masked fraction")
        check_value(value)
        check_per(per)
        self.fraction, self.value, self.per = fraction, value, per
        self.images_only = per == "pixel"

    def field(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Mask the drawn entries."""
        mask = draw(x, self.fraction, self.per, generator)
        return x if mask is None else fill(x, mask, self.value)


@final
@register("boxes")
class Boxes(OnImages):
    """Remove boxes at random places of images; the model learns to fill them in.

    ``count`` boxes of ``size`` pixels (a side, or height and width; None: a third of each side of
    the image) become ``value``. A box lies wholly inside the image, and boxes may overlap.

    Source: Pathak et al., Context Encoders, 2016 (arXiv:1604.07379).

    >>> Boxes(size=(1, 3)).corrupt(torch.ones(2, 1, 4, 4)).sum((1, 2, 3))
    tensor([13., 13.])
    """

    def __init__(
        self, *, count: int = 1, size: int | tuple[int, int] | None = None, value: float = 0.0
    ) -> None:
        sides = size if isinstance(size, Sequence) else (1 if size is None else size,) * 2
        if len(sides) != 2 or min(sides) < 1:
            raise InputError(f"the size of boxes is {size}; give pixels, 1 or more: 8 or (8, 4)")
        if count < 1:
            raise InputError(f"the number of boxes is {count}; it must be 1 or more")
        check_value(value)
        self.count, self.size, self.value = count, size, value

    def field(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Remove the drawn boxes."""
        return fill(x, box_mask(x, self.count, self._sides(x), generator), self.value)

    def _sides(self, x: Tensor) -> tuple[int, int]:
        height, width = x.shape[-2:]
        if self.size is None:
            return max(1, round(height / 3)), max(1, round(width / 3))
        down, across = self.size if isinstance(self.size, Sequence) else (self.size,) * 2
        if down > height or across > width:
            raise InputError(
                f"boxes of {down}x{across} pixels do not fit images of {height}x{width}; give a "
                f"smaller size"
            )
        return down, across


@final
@register("patches")
class Patches(OnImages):
    """Remove an exact share of the patches of a grid laid over images.

    The grid's cells are ``size`` x ``size`` pixels, the last row and column smaller where the side
    is no multiple; ``fraction`` of the cells, rounded to the nearest whole number, become
    ``value``, other cells in every image.

    Source: He et al., Masked Autoencoders Are Scalable Vision Learners, 2021 (arXiv:2111.06377).

    >>> Patches(size=2, fraction=0.5).corrupt(torch.ones(3, 1, 4, 4)).sum((1, 2, 3))
    tensor([8., 8., 8.])
    """

    def __init__(self, *, size: int = 4, fraction: float = 0.5, value: float = 0.0) -> None:
        if size < 1:
            raise InputError(f"the size of patches is {size}; it must be 1 pixel or more")
        check_share(fraction, "the removed fraction of patches")
        check_value(value)
        self.size, self.fraction, self.value = size, fraction, value

    def field(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Remove the drawn patches."""
        check_side(self.size, x, "the size of patches")
        return fill(x, patch_mask(x, self.size, self.fraction, generator), self.value)
