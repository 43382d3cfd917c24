"""Convolutional encoder in stages, and the decoder that mirrors it exactly."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain, islice
from typing import Any, cast, final

import torch
from torch import Tensor, nn

from refold.backbones.attention import SelfAttention2d
from refold.backbones.base import (
    Backbone,
    Geometry,
    Pairs,
    Skips,
    register,
    there_and_back,
    with_mask,
)
from refold.backbones.layers import Style
from refold.backbones.maps import (
    Enlarge,
    Level,
    convolution,
    laid_out,
    mirrored,
    up_resampled,
    up_transposed,
)
from refold.backbones.stages import ConvStage, plain, read, styled
from refold.errors import InputError, unknown


@final
@register("conv")
class Conv(Backbone):
    r"""Stages of convolutions, as in VGG, and a decoder that undoes them one by one.

    ``stages`` lists the stages: numbers of channels, or the options of a :class:`ConvStage`, such
    as ``{"channels": 8, "kernel": 6, "repeat": 4, "pool": 2}``. All sizes follow from the image's.
    In place of ``stages``, ``channels`` (None: 32, 64, 128 for as many stages as leave at least
    three pixels a side) makes stages of ``repeat`` convolutions of ``kernel`` pixels that end in
    max pooling by 2 (``down="pool"``, always so with ``skips``) or in a stride of 2
    (``down="stride"``). ``activation``, ``norm``, ``dropout``, ``init`` and ``padding_mode`` hold
    for every stage that does not say otherwise.

    The decoder restores every size exactly, odd ones too. ``up="transpose"``: each convolution is
    met by a transposed one of the same weight shape, its adjoint where padding is zero, and pooling
    by nearest upsampling; ``up="upsample"``: pooling and strides are met by nearest upsampling,
    convolutions by convolutions; ``up="flat"``: there is no decoder here, so that the dense body
    gives the likelihood's parameters. An image that is only predicted has the decoder alone, for
    which the stages describe what it mirrors; one that is never rebuilt has the encoder alone.

    ``skips=True`` hands the map before each stage's pooling to the decoder, which meets it at the
    same scale, as in a U-Net: restoration is better, but a code alone cannot be unfolded.
    A missing pixel's mask enters as a channel per image channel. Raises :class:`InputError`.

    Source: Simonyan & Zisserman 2014 (arXiv:1409.1556); Masci et al. 2011; Odena et al. 2016 for
    upsampling; Ronneberger et al. 2015 (arXiv:1505.04597) for skips.

    >>> image = Geometry(shape=(1, 28, 28), sizes=(1,) * 784, params=784, missing=False)
    >>> spine = Conv(image, stages=({"channels": 8, "kernel": 6, "repeat": 4, "pool": 2}, 16))
    >>> spine.shapes
    ((8, 14, 14), (16, 14, 14))
    >>> h, skips = spine.encode(torch.zeros(5, 1, 28, 28), None)
    >>> h.shape, spine.decode(h, skips).shape
    (torch.Size([5, 3136]), torch.Size([5, 784]))
    """

    def __init__(
        self,
        geometry: Geometry,
        *,
        channels: tuple[int, ...] | None = None,
        stages: tuple[int | Mapping[str, Any] | ConvStage, ...] | None = None,
        repeat: int = 1,
        kernel: int = 3,
        down: str = "stride",
        up: str = "transpose",
        activation: str = "relu",
        norm: str = "none",
        dropout: float = 0.0,
        init: str = "auto",
        padding_mode: str = "zeros",
        skips: bool = False,
    ) -> None:
        super().__init__(geometry)
        if len(geometry.shape) != 3:
            raise InputError(
                f"convolutions need images, of channels, height and width; this field's rows have "
                f"the shape {geometry.shape}: use the backbone 'flat'"
            )
        if down not in ("pool", "stride"):
            raise unknown("way down", down, ("pool", "stride"))
        if up not in ("transpose", "upsample", "flat"):
            raise unknown("way up", up, ("transpose", "upsample", "flat"))
        if stages is not None and (channels, repeat, kernel, down) != (None, 1, 3, "stride"):
            raise InputError(
                "give stages or channels, repeat, kernel and down, not both: the latter are short "
                "for stages, which say these things one by one"
            )
        self.channels, self.repeat, self.kernel = channels, repeat, kernel
        self.down, self.up, self.activation, self.norm = down, up, activation, norm
        self.dropout, self.init, self.padding_mode = dropout, init, padding_mode
        self.skips = skips
        if stages is None:
            chosen = channels or default_channels(*geometry.shape[1:])
            self.described = shorthand(chosen, repeat, kernel, pool=skips or down == "pool")
        else:
            self.described = read(ConvStage, stages)
        self.stages = None if stages is None else plain(stages)
        self._check_described()
        style = Style(activation, norm, dropout, init)
        self._build([(stage, styled(stage, style)) for stage in self.described])

    @property
    def shapes(self) -> tuple[tuple[int, int, int], ...]:
        """Channels, height and width of the map after each stage."""
        return tuple((level.stage.channels, *level.pooled) for level in self._levels)

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each stage."""
        return tuple(stage.channels for stage in self.described)

    @property
    def encoded(self) -> int:
        """Numbers in the last feature map."""
        channels, height, width = self.shapes[-1]
        return channels * height * width

    @property
    def decoded(self) -> int:
        """Numbers in the last feature map, or the parameters where there is no decoder."""
        return self.geometry.params if self.up == "flat" else self.encoded

    @property
    def pairs(self) -> Pairs:
        """The stages, each with its mirror; none where the body is the decoder, or one way is."""
        if self.up == "flat" or not (self.geometry.reads and self.geometry.writes):
            return ()
        layers = iter(self.encoder)
        down = [nn.Sequential(*islice(layers, n)) for n in self._lengths]
        return tuple(zip(down, reversed(list(self.decoder)), strict=True))

    @property
    def skipping(self) -> bool:
        """Whether maps of the encoder go to the decoder."""
        return self.skips

    def encode(self, x: Tensor, visible: Tensor | None) -> tuple[Tensor, Skips]:
        """Convolve down to the last feature map, flattened."""
        x = self._shown(x, visible)
        if not self.skips:
            return self.encoder(x).flatten(1), ()
        kept: list[Tensor] = []
        for layer in self.encoder:
            if isinstance(layer, nn.MaxPool2d):
                kept.append(x)
            x = layer(x)
        return x.flatten(1), tuple(kept)

    def decode(self, h: Tensor, skips: Skips) -> Tensor:
        """Convolve up to the image's own size, flattened channels first.

        Raises :class:`InputError` where the encoder's maps are needed and not there.
        """
        if self.up == "flat":
            return h
        h = h.view(len(h), *self.shapes[-1])
        return (self._joined(h, skips) if self.skips else self.decoder(h)).flatten(1)

    def outer(self, x: Tensor, visible: Tensor | None, count: int) -> Tensor:
        """Down ``count`` stages and up again."""
        return there_and_back(self.pairs[:count], self._shown(x, visible)).flatten(1)

    @torch.no_grad()
    def start_at(self, params: Tensor) -> bool:
        """Start the last convolution's bias at each output channel's mean parameter."""
        if self.up == "flat":
            return False
        last = [m for m in self.decoder.modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)]
        assert last[-1].bias is not None
        last[-1].bias.copy_(params.view(len(last[-1].bias), -1).mean(1))
        return True

    def _shown(self, x: Tensor, visible: Tensor | None) -> Tensor:
        """Images, with a channel per image channel that says which pixels are there."""
        if not self.geometry.missing:
            return x
        return with_mask(x.flatten(1), visible, self.geometry).view(
            len(x), -1, *self.geometry.shape[1:]
        )

    def _joined(self, h: Tensor, skips: Skips) -> Tensor:
        if not skips:
            raise InputError(
                "this model's decoder needs the image itself beside the code (skips=True), so a "
                "code alone cannot be unfolded; use a backbone without skips"
            )
        maps = list(skips)
        for stage in self.decoder:
            for layer in cast(nn.Sequential, stage):
                h = torch.cat([h, maps.pop()], 1) if isinstance(layer, Join) else layer(h)
        return h

    def _check_described(self) -> None:
        if not self.described:
            raise InputError("stages is empty; name one or more, or leave it out")
        height, width = self.geometry.shape[1:]
        for position, stage in enumerate(self.described, 1):
            if stage.kernel > min(height, width):
                raise InputError(
                    f"stage {position} has kernels of {stage.kernel}x{stage.kernel}, and the "
                    f"images are {height}x{width}; use kernels of at most {min(height, width)}"
                )
        if not self.skips:
            return
        if not (self.geometry.reads and self.geometry.writes):
            raise InputError(
                "skips=True hands an image's own maps to its decoder, and this image is only an "
                "input or only an output; use skips=False"
            )
        if self.up == "flat":
            raise InputError(
                "skips=True needs a convolutional decoder to skip to, which up='flat' leaves out; "
                "use up='transpose' or up='upsample'"
            )
        for position, stage in enumerate(self.described, 1):
            if stage.pool == 1:
                raise InputError(
                    f"stage {position} has no pooling, and skips=True hands on the map before each "
                    f"stage's pooling; set pool=2 in it"
                )

    def _build(self, stages: list[tuple[ConvStage, Style]]) -> None:
        inputs, height, width = self.geometry.shape
        maps = inputs * (2 if self.geometry.missing else 1)
        self._levels = laid_out(maps, (height, width), stages, self.padding_mode)
        if self.geometry.reads:
            down = [_stage_down(level) for level in self._levels]
            self._lengths = tuple(map(len, down))
            self.encoder = nn.Sequential(*chain.from_iterable(down))
        if self.up == "flat" or not self.geometry.writes:
            return
        turn = up_transposed if self.up == "transpose" else up_resampled
        outputs = self.geometry.params // (height * width)
        back = mirrored(self._levels, outputs, self.skips, self.init)
        self.decoder = nn.Sequential(
            *(
                nn.Sequential(
                    *_back_to_side(level, self.skips), *(m for step in steps for m in turn(step))
                )
                for level, steps in zip(reversed(self._levels), back, strict=True)
            )
        )


@final
class Join(nn.Identity):
    """Marks where a decoder's map is joined by its encoder's."""


def default_channels(height: int, width: int) -> tuple[int, ...]:
    """Widths of at most three stages, as many as leave three pixels on the shorter side.

    >>> default_channels(28, 28), default_channels(8, 40)
    ((32, 64, 128), (32, 64))
    """
    stages = sum(min(height, width) > 2 ** (i + 1) + 1 for i in range(3))
    return (32, 64, 128)[: max(1, stages)]


def shorthand(
    channels: tuple[int, ...], repeat: int, kernel: int, *, pool: bool
) -> tuple[ConvStage, ...]:
    """Return stages that each halve the map, by pooling or by the stride of the last convolution.

    >>> shorthand((32, 64), 2, 3, pool=True)[1].pool
    2
    """
    half = {"pool": 2} if pool else {"stride": 2}
    options = {"repeat": repeat, "kernel": kernel, **half}
    return read(ConvStage, [{"channels": width, **options} for width in channels])


def _stage_down(level: Level) -> list[nn.Module]:
    modules = [m for step in level.steps for m in convolution(step)]
    modules += _attention(level.stage)
    if level.stage.pool > 1:
        modules.append(nn.MaxPool2d(level.stage.pool, ceil_mode=True))
    return modules


def _back_to_side(level: Level, skips: bool) -> list[nn.Module]:
    """Return what stands before a stage's convolutions on the way back."""
    grow = [Enlarge(level.side, level.stage.pool)] if level.pooled != level.side else []
    return [*grow, *_attention(level.stage), *([Join()] if skips else [])]


def _attention(stage: ConvStage) -> list[nn.Module]:
    return [SelfAttention2d(stage.channels, stage.attention)] if stage.attention else []
