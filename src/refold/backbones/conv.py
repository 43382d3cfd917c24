"""Convolutional encoder in stages, and the decoder that mirrors it exactly."""

from __future__ import annotations

from itertools import pairwise
from typing import final

import torch
from torch import Tensor, nn

from refold.backbones.base import Backbone, Geometry, register, with_mask
from refold.backbones.mlp import ACTIVATIONS, initialise
from refold.errors import InputError, unknown


@final
@register("conv")
class Conv(Backbone):
    """Stages of convolutions that halve the image, as in VGG; the decoder doubles it again.

    Each stage has ``repeat`` convolutions of ``kernel`` pixels and ends in max pooling by 2
    (``down="pool"``) or in a convolution of stride 2 (``down="stride"``). ``channels`` names the
    stages' widths (None: 32, 64, 128 for as many stages as leave at least three pixels a side).
    Odd sides are rounded up on the way down and restored exactly on the way up, where a stage is
    a transposed convolution of stride 2 (``up="transpose"``) or nearest upsampling and a
    convolution (``up="upsample"``). A missing pixel's mask enters as a channel per image channel.

    Source: Simonyan & Zisserman 2014 (arXiv:1409.1556); Odena et al. 2016 for upsampling.
    """

    def __init__(
        self,
        geometry: Geometry,
        *,
        channels: tuple[int, ...] | None = None,
        repeat: int = 1,
        kernel: int = 3,
        down: str = "stride",
        up: str = "transpose",
        activation: str = "relu",
        norm: str = "none",
    ) -> None:
        super().__init__(geometry)
        if down not in ("pool", "stride"):
            raise unknown("way down", down, ("pool", "stride"))
        if up not in ("transpose", "upsample"):
            raise unknown("way up", up, ("transpose", "upsample"))
        if norm not in ("none", "batch", "group"):
            raise unknown("norm of a convolution", norm, ("none", "batch", "group"))
        if activation not in ACTIVATIONS:
            raise unknown("activation", activation, ACTIVATIONS)
        if kernel % 2 == 0 or kernel < 1:
            raise InputError(f"the kernel is {kernel} pixels; it must be odd to keep the centre")
        self.channels, self.repeat, self.kernel = channels, repeat, kernel
        self.down, self.up, self.activation, self.norm = down, up, activation, norm
        inputs, height, width = geometry.shape
        self.widths = channels or default_channels(height, width)
        self.sides = halvings(height, width, len(self.widths))
        maps = [inputs * (2 if geometry.missing else 1), *self.widths]
        self.encoder = nn.Sequential(
            *(layer for a, b in pairwise(maps) for layer in self._stage_down(a, b))
        )
        outputs = geometry.params // (height * width)
        self.decoder = nn.ModuleList(self._stages_up([outputs, *self.widths]))

    @property
    def encoded(self) -> int:
        """Numbers in the last feature map."""
        height, width = self.sides[-1]
        return self.widths[-1] * height * width

    @property
    def decoded(self) -> int:
        """Numbers in the last feature map."""
        return self.encoded

    def encode(self, x: Tensor, visible: Tensor | None) -> Tensor:
        """Convolve down to the last feature map, flattened."""
        if self.geometry.missing:
            x = with_mask(x.flatten(1), visible, self.geometry)
            x = x.view(len(x), -1, *self.geometry.shape[1:])
        return self.encoder(x).flatten(1)

    def decode(self, h: Tensor) -> Tensor:
        """Convolve up to the image's own size, flattened channels first."""
        h = h.view(len(h), self.widths[-1], *self.sides[-1])
        for stage, side in zip(self.decoder, reversed(self.sides[:-1]), strict=True):
            h = stage(h)[..., : side[0], : side[1]]
        return h.flatten(1)

    @torch.no_grad()
    def start_at(self, params: Tensor) -> bool:
        """Start the last convolution's bias at each output channel's mean parameter."""
        last = [m for m in self.decoder.modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)]
        assert last[-1].bias is not None
        last[-1].bias.copy_(params.view(len(last[-1].bias), -1).mean(1))
        return True

    def _block(self, inputs: int, outputs: int, stride: int = 1) -> list[nn.Module]:
        layer = nn.Conv2d(inputs, outputs, self.kernel, stride, self.kernel // 2)
        initialise(layer, "auto", self.activation)
        return [layer, *self._after(outputs)]

    def _after(self, channels: int) -> list[nn.Module]:
        norms = {"batch": nn.BatchNorm2d(channels), "group": nn.GroupNorm(1, channels)}
        norm: list[nn.Module] = [norms[self.norm]] if self.norm in norms else []
        return [*norm, ACTIVATIONS[self.activation]()]

    def _stage_down(self, inputs: int, outputs: int) -> list[nn.Module]:
        layers: list[nn.Module] = []
        for i in range(self.repeat):
            strided = self.down == "stride" and i == self.repeat - 1
            layers += self._block(inputs if i == 0 else outputs, outputs, 2 if strided else 1)
        if self.down == "pool":
            layers.append(nn.MaxPool2d(2, ceil_mode=True))
        return layers

    def _stages_up(self, maps: list[int]) -> list[nn.Module]:
        stages: list[nn.Module] = []
        for depth in range(len(maps) - 1, 0, -1):
            inputs, outputs = maps[depth], maps[depth - 1]
            layers = [m for _ in range(self.repeat - 1) for m in self._block(inputs, inputs)]
            layers += self._double(inputs, outputs)
            if depth > 1:
                layers += self._after(outputs)
            stages.append(nn.Sequential(*layers))
        return stages

    def _double(self, inputs: int, outputs: int) -> list[nn.Module]:
        if self.up == "upsample":
            layer = nn.Conv2d(inputs, outputs, self.kernel, padding=self.kernel // 2)
            initialise(layer, "auto", self.activation)
            return [nn.Upsample(scale_factor=2.0, mode="nearest"), layer]
        # Output is one larger than twice the input less the stride's overlap, cut to size after.
        layer = nn.ConvTranspose2d(
            inputs, outputs, self.kernel, 2, self.kernel // 2, output_padding=1
        )
        initialise(layer, "auto", self.activation)
        return [layer]


def default_channels(height: int, width: int) -> tuple[int, ...]:
    """Widths of at most three stages, as many as leave three pixels on the shorter side."""
    stages = sum(min(height, width) > 2 ** (i + 1) + 1 for i in range(3))
    return (32, 64, 128)[: max(1, stages)]


def halvings(height: int, width: int, stages: int) -> list[tuple[int, int]]:
    """Side lengths before each stage and after the last, rounded up at every halving.

    >>> halvings(28, 27, 3)
    [(28, 27), (14, 14), (7, 7), (4, 4)]
    """
    sides = [(height, width)]
    for _ in range(stages):
        sides.append(((sides[-1][0] + 1) // 2, (sides[-1][1] + 1) // 2))
    return sides
