"""Noise on numbers: normal, and salt and pepper."""

from __future__ import annotations

import math
from typing import final

import torch
from torch import Tensor

from refold.data.corruptions.base import PerField, check_share, is_image, register
from refold.data.corruptions.masking import check_per, draw
from refold.errors import InputError


@final
@register("gaussian")
class GaussianNoise(PerField):
    r"""Add independent normal noise to every number: :math:`\tilde x = x + \mu + \sigma\epsilon`.

    ``std`` (0.3 where nothing is said), or ``variance`` instead, and ``mean`` are in the field's
    own scale: standard deviations for columns and vectors, the range [0, 1] for pixels. Two levels
    are a number too; several stay as they are. ``clip=True`` then keeps pixels of images in
    [0, 1], ``clip=(low, high)`` in that range; numbers that are no pixels are never clipped,
    because their scale has no ends.

    Source: Vincent et al., Stacked Denoising Autoencoders, 2010.

    >>> noisy = GaussianNoise(std=0.5).corrupt(torch.zeros(1000, 9))
    >>> round(float(noisy.std()), 1)
    0.5
    """

    def __init__(
        self,
        *,
        std: float | None = None,
        mean: float = 0.0,
        variance: float | None = None,
        clip: bool | tuple[float, float] = False,
    ) -> None:
        if std is not None and variance is not None:
            raise InputError(
                f"the noise is given by std={std} and by variance={variance}; give one of them"
            )
        if std is None and variance is None:
            std = 0.3
        for name, value in (("std", std), ("variance", variance)):
            if value is not None and not 0 <= value < math.inf:
                raise InputError(f"the noise's {name} is {value}; it must be 0 or more, and finite")
        if not math.isfinite(mean):
            raise InputError(f"the noise's mean is {mean}; it must be finite")
        self.std, self.mean, self.variance, self.clip = std, mean, variance, clip
        self._std = math.sqrt(variance) if std is None and variance is not None else std or 0.0
        self._limits = limits(clip)

    def field(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Add the noise."""
        if not x.is_floating_point():
            return x
        noise = torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)
        noisy = x.add(noise, alpha=self._std)
        if self.mean:
            noisy = noisy + self.mean
        return noisy.clamp(*self._limits) if self._limits and is_image(x) else noisy


def limits(clip: bool | tuple[float, float]) -> tuple[float, float] | None:
    """Read what ``clip`` says: the ends of the range, or None."""
    if isinstance(clip, bool):
        return (0.0, 1.0) if clip else None
    if len(clip) != 2 or not clip[0] < clip[1]:
        raise InputError(f"clip is {clip}; give True, or two numbers as (low, high)")
    return clip[0], clip[1]


@final
@register("salt_and_pepper")
class SaltAndPepper(PerField):
    """Set an exact share of each row's numbers to one of two extremes, at random.

    ``fraction`` of each field's entries, rounded to the nearest whole number, are hit: each
    becomes ``high`` (salt) with probability ``salt``, else ``low`` (pepper). The extremes suit
    pixels and columns of two levels; standardised columns have theirs further out (``low=-3,
    high=3``). ``per="pixel"`` hits whole pixels of images, all channels alike, and leaves other
    fields. A class among several stays as it is.

    >>> noise = SaltAndPepper(fraction=0.5, salt=1.0)
    >>> noise.corrupt(torch.full((2, 1, 4, 4), 0.5)).sum((1, 2, 3))
    tensor([12., 12.])
    """

    def __init__(
        self,
        *,
        fraction: float = 0.1,
        salt: float = 0.5,
        low: float = 0.0,
        high: float = 1.0,
        per: str = "element",
    ) -> None:
        check_share(fraction, "the fraction of salt and pepper")
        check_share(salt, "the share of salt")
        if not (math.isfinite(low) and math.isfinite(high)):
            raise InputError(f"the extremes are {low} and {high}; give finite numbers")
        check_per(per)
        self.fraction, self.salt, self.low, self.high, self.per = fraction, salt, low, high, per
        self.images_only = per == "pixel"

    def field(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Hit the drawn entries."""
        if not x.is_floating_point():
            return x
        hit = draw(x, self.fraction, self.per, generator)
        if hit is None:
            return x
        salt = torch.rand(hit.shape, generator=generator, device=x.device) < self.salt
        return x.masked_fill(hit & salt, self.high).masked_fill(hit & ~salt, self.low)
