"""Corruptions: the input differs from the target, and the clean batch stays the target."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import final

import torch
from torch import Tensor

from refold.errors import InputError
from refold.ops.topk import exact_mask
from refold.parts import Registry
from refold.types import Batch


class Corruption(ABC):
    """A random map from a clean batch to a corrupted one, on the batch's own device."""

    @abstractmethod
    def __call__(self, batch: Batch, generator: torch.Generator) -> Batch:
        """Corrupt a batch; equal generator states give equal draws. The input is not changed."""


corruptions: Registry[Corruption] = Registry("corruption")
register = corruptions.register


@final
@register("gaussian")
class GaussianNoise(Corruption):
    r"""Add independent normal noise to every number: :math:`\tilde x = x + \mu + \sigma\epsilon`.

    ``std`` and ``mean`` are in the field's own scale: standard deviations for columns and
    vectors, the range [0, 1] for pixels. Two levels are a number too; several stay as they are.

    >>> batch = Batch({"x": torch.zeros(1000, 1)}, {"x": None})
    >>> noisy = GaussianNoise(std=0.5)(batch, torch.Generator().manual_seed(0))
    >>> round(float(noisy.x["x"].std()), 1)
    0.5
    """

    def __init__(self, *, std: float = 0.3, mean: float = 0.0) -> None:
        if not std >= 0:
            raise InputError(f"the noise's std is {std}; it must be 0 or more")
        self.std, self.mean = std, mean

    def __call__(self, batch: Batch, generator: torch.Generator) -> Batch:
        """Add the noise."""
        return Batch({k: self._noisy(x, generator) for k, x in batch.x.items()}, batch.observed)

    def _noisy(self, x: Tensor, generator: torch.Generator) -> Tensor:
        if not x.is_floating_point():
            return x
        noise = torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)
        return (
            x.add(noise, alpha=self.std) + self.mean if self.mean else x.add(noise, alpha=self.std)
        )


@final
@register("masking")
class Masking(Corruption):
    """Set an exact share of each row's entries to a constant, other entries in every row.

    ``fraction`` of each field's entries, rounded to the nearest whole number, become ``value``
    (0 is a standardised column's mean, black for pixels, the first of two levels); a class among
    several becomes missing.

    Source: Vincent et al., Extracting and Composing Robust Features with Denoising Autoencoders,
    2008.

    >>> batch = Batch({"x": torch.ones(4, 10)}, {"x": None})
    >>> Masking(fraction=0.3)(batch, torch.Generator().manual_seed(0)).x["x"].sum(1)
    tensor([7., 7., 7., 7.])
    """

    def __init__(self, *, fraction: float = 0.25, value: float = 0.0) -> None:
        if not 0 <= fraction <= 1:
            raise InputError(f"the masked fraction is {fraction}; it must lie between 0 and 1")
        self.fraction, self.value = fraction, value

    def __call__(self, batch: Batch, generator: torch.Generator) -> Batch:
        """Mask each field."""
        return Batch({k: self._masked(x, generator) for k, x in batch.x.items()}, batch.observed)

    def _masked(self, x: Tensor, generator: torch.Generator) -> Tensor:
        entries = x[0].numel()
        count = round(self.fraction * entries)
        if len(x) == 0 or count == 0:
            return x
        mask = exact_mask(len(x), entries, count, generator, x.device).view_as(x)
        return x.masked_fill(mask, self.value if x.is_floating_point() else -1)
