"""Images ``[B, C, H, W]``: blur, change of size, and masks of boxes, patches and pixels."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from refold.ops.topk import exact_mask

MODES = ("bilinear", "nearest", "bicubic")


def blur(x: Tensor, sigma: float) -> Tensor:
    r"""Gaussian blur, one axis after the other; ``[B, C, H, W]``, ``sigma`` in pixels.

    .. math:: w_k \propto e^{-k^2 / 2 \sigma^2}, \qquad |k| \le \lceil 3 \sigma \rceil

    The border is mirrored at the centre of its pixels (SciPy's ``mode="mirror"``); the kernel
    reaches no further than the image is long.

    >>> blur(torch.eye(3)[None, None], 1.0)[0, 0].diagonal().lt(1).all()
    tensor(True)
    """
    for axis in (2, 3):
        radius = min(math.ceil(3 * sigma), x.shape[axis] - 1)
        steps = torch.arange(-radius, radius + 1, device=x.device, dtype=x.dtype)
        kernel = torch.softmax(-0.5 * (steps / sigma).square(), 0)
        upright = axis == 2
        pad = (0, 0, radius, radius) if upright else (radius, radius, 0, 0)
        window = kernel.view(1, 1, -1, 1) if upright else kernel.view(1, 1, 1, -1)
        padded = F.pad(x, pad, mode="reflect").flatten(0, 1)[:, None]
        x = F.conv2d(padded, window).view_as(x)
    return x


def shrink(x: Tensor, factor: int) -> Tensor:
    """Average areas of about ``factor`` x ``factor`` pixels: ``[B, C, ceil(H / f), ceil(W / f)]``.

    Where the factor does not divide a side, neighbouring areas share pixels.

    >>> shrink(torch.arange(16.0).view(1, 1, 4, 4), 2)
    tensor([[[[ 2.5000,  4.5000],
              [10.5000, 12.5000]]]])
    """
    height, width = (-(-side // factor) for side in x.shape[-2:])
    return F.adaptive_avg_pool2d(x, (height, width))


def resize(x: Tensor, size: tuple[int, int], mode: str) -> Tensor:
    """Interpolate ``[B, C, h, w]`` to ``[B, C, *size]`` by one of :data:`MODES`.

    >>> resize(torch.tensor([[[[0.0, 1.0]]]]), (1, 4), "bilinear")
    tensor([[[[0.0000, 0.2500, 0.7500, 1.0000]]]])
    """
    corners = None if mode == "nearest" else False
    return F.interpolate(x, size, mode=mode, align_corners=corners)


def pixel_mask(x: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Draw ``count`` pixels of each image: boolean ``[B, 1, H, W]``.

    >>> pixel_mask(torch.zeros(2, 3, 4, 4), 5, torch.Generator().manual_seed(0)).sum((1, 2, 3))
    tensor([5, 5])
    """
    height, width = x.shape[-2:]
    mask = exact_mask(len(x), height * width, count, generator, x.device)
    return mask.view(-1, 1, height, width)


def box_mask(x: Tensor, count: int, size: tuple[int, int], generator: torch.Generator) -> Tensor:
    """Draw ``count`` boxes of ``size`` inside each image, which may overlap: ``[B, 1, H, W]``.

    >>> box_mask(torch.zeros(2, 3, 8, 8), 1, (2, 3), torch.Generator().manual_seed(0)).sum()
    tensor(12)
    """
    inside: list[Tensor] = []
    for side, length in zip(x.shape[-2:], size, strict=True):
        start = torch.randint(
            side - length + 1, (len(x), count, 1), generator=generator, device=x.device
        )
        at = torch.arange(side, device=x.device)
        inside.append((at >= start) & (at < start + length))
    rows, columns = inside
    return (rows[..., :, None] & columns[..., None, :]).any(1, keepdim=True)


def patch_mask(x: Tensor, size: int, fraction: float, generator: torch.Generator) -> Tensor:
    """Draw an exact share of the ``size`` x ``size`` patches of a grid: ``[B, 1, H, W]``.

    >>> patch_mask(torch.zeros(2, 1, 4, 4), 2, 0.25, torch.Generator().manual_seed(0)).sum()
    tensor(8)
    """
    height, width = x.shape[-2:]
    down, across = -(-height // size), -(-width // size)
    count = round(fraction * down * across)
    drawn = exact_mask(len(x), down * across, count, generator, x.device)
    grid = drawn.view(-1, 1, down, across)
    whole = grid.repeat_interleave(size, 2).repeat_interleave(size, 3)
    return whole[..., :height, :width]
