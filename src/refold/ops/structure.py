"""Structural similarity of images: do light, contrast and pattern agree around each pixel."""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from refold.errors import InputError

SCALES = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
"""Weights of the scales of MS-SSIM, from the finest (Wang, Simoncelli & Bovik 2003, table 1)."""
TRUNCATE = 3.5  # deviations at which the window ends
K1, K2 = 0.01, 0.03  # what keeps flat and dark places from dividing by zero, as in the paper


def ssim_map(x: Tensor, y: Tensor, *, sigma: float = 1.5, data_range: float = 1.0) -> Tensor:
    r"""Structural similarity around each pixel, 1 where two images agree.

    .. math:: S = \frac{(2 \mu_x \mu_y + c_1)(2 \sigma_{xy} + c_2)}
                       {(\mu_x^2 + \mu_y^2 + c_1)(\sigma_x^2 + \sigma_y^2 + c_2)}, \qquad
              c_1 = (0.01 R)^2, \; c_2 = (0.03 R)^2

    ``x`` and ``y`` are ``[*, H, W]``, the map too; it lies in [-1, 1]. Means and (co)variances are
    taken under a Gaussian window of ``sigma`` pixels that ends at 3.5 ``sigma``; beyond its border
    an image is its own mirror, as often as the window needs, so that any size will do.
    ``data_range`` :math:`R` is the distance from the darkest to the brightest value.
    Differentiable in both.

    Source: Wang, Bovik, Sheikh & Simoncelli, Image Quality Assessment, 2004.

    >>> x = torch.rand(1, 8, 8)
    >>> torch.allclose(ssim_map(x, x), torch.ones(1, 8, 8)), bool((ssim_map(x, 1 - x) < 1).all())
    (True, True)
    """
    light, contrast = similarity(x, y, sigma=sigma, data_range=data_range)
    return light * contrast


def ms_ssim(
    x: Tensor, y: Tensor, *, sigma: float = 1.5, data_range: float = 1.0, scales: int | None = None
) -> Tensor:
    r"""Structural similarity over several scales, one number per image.

    .. math:: M = \bar S_m^{w_m} \prod_{j < m} \bar C_j^{w_j}

    :math:`C_j` is the part of similarity that tells contrast and pattern, at the image halved j
    times by 2 by 2 means; a bar is a mean over pixels, negative ones counting as 0. ``x`` and ``y``
    are ``[*, H, W]``, the result ``[*]``, in [0, 1]. ``scales`` m is at most 5; None: as many as
    leave a window's width of pixels, at least one. Fewer than five share the whole weight. At the
    borders images are mirrored, as in :func:`ssim_map`.

    Raises :class:`InputError` for more scales than an image can be halved.

    Source: Wang, Simoncelli & Bovik, Multiscale Structural Similarity, 2003.

    >>> x = torch.rand(3, 32, 32)
    >>> ms_ssim(x, x)
    tensor([1., 1., 1.])
    """
    lead, side, window = x.shape[:-2], min(x.shape[-2:]), 2 * radius(sigma) + 1
    fitting = [j for j in range(len(SCALES)) if side >> j >= window]
    count = max(1, len(fitting)) if scales is None else scales
    most = min(len(SCALES), side.bit_length())
    if not 1 <= count <= most:
        raise InputError(f"scales is {scales}; images {side} pixels wide or high allow 1..{most}")
    x, y = (image.reshape(-1, 1, *image.shape[-2:]) for image in (x, y))
    total, product = sum(SCALES[:count]), x.new_ones(1)
    for j, weight in enumerate(SCALES[:count]):
        light, contrast = similarity(x, y, sigma=sigma, data_range=data_range)
        last = j == count - 1
        mean = (light * contrast if last else contrast).mean((-2, -1))
        # A power below one has no finite slope at zero.
        product = product * mean.clamp_min(1e-6) ** (weight / total)
        if not last:
            x, y = F.avg_pool2d(x, 2), F.avg_pool2d(y, 2)
    return product.reshape(lead)


def similarity(
    x: Tensor, y: Tensor, *, sigma: float = 1.5, data_range: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Return the two factors of :func:`ssim_map`: of light, and of contrast and pattern."""
    height, width = x.shape[-2:]
    kind = torch.promote_types(torch.promote_types(x.dtype, y.dtype), torch.float32)
    x, y = x.to(kind), y.to(kind)
    rows = blur_matrix(height, sigma, kind, x.device)
    columns = blur_matrix(width, sigma, kind, x.device).T
    # Variances are differences of nearly equal numbers, which half precision cannot hold.
    with torch.autocast(x.device.type, enabled=False):
        # The target is blurred alone, as it asks for no gradient; squares as the sum they enter as.
        mean_y = rows @ (y @ columns)
        mixed = torch.stack([x, x * x + y * y, x * y])
        mean_x, squares, product = (rows @ (mixed @ columns)).unbind()
    c1, c2 = (K1 * data_range) ** 2, (K2 * data_range) ** 2
    both, crossed = mean_x * mean_x + mean_y * mean_y, mean_x * mean_y
    light = (2 * crossed + c1) / (both + c1)
    contrast = (2 * (product - crossed) + c2) / (squares - both + c2)
    return light, contrast


def radius(sigma: float) -> int:
    """Pixels from the middle of the window to its end.

    >>> radius(1.5)
    5
    """
    return int(TRUNCATE * sigma + 0.5)


@lru_cache(64)
@torch.inference_mode(mode=False)  # what is kept must serve training too
def blur_matrix(n: int, sigma: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Matrix ``[n, n]`` that blurs a line of n pixels, mirrored at its ends with the edge repeated.

    As a product with a matrix, a blur costs the same for any ``sigma`` and is defined for windows
    wider than the line.

    >>> blur_matrix(3, 1.5, torch.float32, torch.device("cpu")).sum(1).allclose(torch.ones(3))
    True
    """
    reach = torch.arange(-radius(sigma), radius(sigma) + 1)
    window = torch.exp(-0.5 * (reach.double() / sigma) ** 2)
    at = (torch.arange(n)[:, None] + reach) % (2 * n)
    at = torch.minimum(at, 2 * n - 1 - at)
    matrix = torch.zeros(n, n, dtype=torch.float64)
    matrix.scatter_add_(1, at, (window / window.sum()).expand(n, -1))
    return matrix.to(device=device, dtype=dtype)
