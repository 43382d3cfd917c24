"""The likelihood of pictures as eyes compare them: by light, contrast and pattern."""

from __future__ import annotations

from typing import ClassVar, final

import torch
from torch import Tensor
from torch.distributions import Distribution, Normal

from refold.errors import InputError
from refold.likelihoods.base import observed_mean, register
from refold.likelihoods.numbers import FixedSpread, Location
from refold.ops.structure import SCALES, ssim_map


@final
@register("ssim")
class StructuralSimilarity(Location, FixedSpread):
    r"""Structural similarity around each pixel, mixed with half its squared error.

    .. math:: \ell_p = (1 - \alpha) \tfrac12 (x_p - \mu_p)^2
              + \alpha \, \tfrac12 \Bigl(1 - \sum_{j < m} w_j S_p^{(j)}\Bigr)

    :math:`S^{(j)}` is the map of structural similarity under a window of deviation
    :math:`1.5 \cdot 2^j` pixels, each channel on its own; images lie in [0, 1]. The window of the
    first scale is 11 pixels wide; where a window is wider than the image, it meets the image's
    mirror. ``mix`` :math:`\alpha` is in [0, 1]: at 0 the cost is that of ``mse``, at 1 similarity
    alone. ``scales`` m is 1 to 5, :math:`w_j` the weights of MS-SSIM, shared out anew. Unlike
    MS-SSIM, which takes a product, scales are averaged: a product has no slope where one scale
    disagrees entirely. An error nearby counts at a pixel too, so a cell's cost says where an image
    looks wrong, up to a window's width. A missing pixel is taken to be what was reconstructed.

    Raises :class:`InputError` for a field that is no image.

    Sources: Wang et al., Image Quality Assessment, 2004; Zhao, Gallo, Frosio & Kautz, Loss
    Functions for Image Restoration with Neural Networks, 2017 (arXiv:1511.08861) for the mixture,
    0.84, there with the absolute error, and for scales by wider windows in place of smaller images.

    >>> head, x = StructuralSimilarity((1,) * 16, (1, 4, 4)), torch.zeros(1, 1, 4, 4)
    >>> head.nll(torch.zeros(1, 16), x, None, 1.0), head.nll(torch.ones(1, 16), x, None, 1.0) > 7
    (tensor([0.]), tensor([True]))
    """

    contextual: ClassVar[bool] = True

    def __init__(
        self,
        sizes: tuple[int, ...],
        shape: tuple[int, ...] = (),
        *,
        mix: float = 0.84,
        scales: int = 1,
    ) -> None:
        super().__init__(sizes, shape)
        if len(shape) != 3:
            raise InputError(
                f"the likelihood 'ssim' compares images, of channels, height and width; this field "
                f"has the shape {shape}: use 'mse'"
            )
        if not 0 <= mix <= 1:
            raise InputError(f"mix is {mix}; it is the share of similarity, from 0 to 1")
        if not 1 <= scales <= len(SCALES):
            raise InputError(f"scales is {scales}; it must lie in 1..{len(SCALES)}")
        self.mix, self.scales = mix, scales

    def cells(self, params: Tensor, x: Tensor) -> Tensor:
        """Mixed cost of each pixel."""
        squared = (params - x.flatten(1)).square() * (0.5 * (1 - self.mix))
        if self.mix == 0:
            return squared
        image, rebuilt = x.reshape(-1, *self.shape), params.reshape(-1, *self.shape)
        weights, alike = SCALES[: self.scales], torch.zeros_like(rebuilt)
        for j, weight in enumerate(weights):
            similar = ssim_map(rebuilt, image, sigma=1.5 * 2**j)
            alike = alike + similar * (weight / sum(weights))
        return squared + (1 - alike.flatten(1)) * (0.5 * self.mix)

    def total(self, params: Tensor, x: Tensor) -> tuple[Tensor, float]:
        """Summed cost."""
        return self.cells(params, x).sum(), 1.0

    def distribution(self, params: Tensor) -> Distribution:
        """Return the normal of unit variance that the squared part is."""
        return Normal(params, torch.ones_like(params))

    def marginal(self, x: Tensor, observed: Tensor | None) -> Tensor:
        """Return the mean image: best for the squared part, and a start only."""
        return observed_mean(x.flatten(1), observed)
