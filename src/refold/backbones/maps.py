"""Feature maps: their sizes from stage to stage, and the convolutions between them and back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias, final

import torch.nn.functional as F
from torch import Tensor, nn

from refold.backbones.layers import Residual, Style, finished, initialise_last
from refold.backbones.stages import ConvStage, PaddingMode, padding_mode
from refold.errors import InputError

Side: TypeAlias = tuple[int, int]
PADS: dict[str, Callable[[tuple[int, int, int, int]], nn.Module]] = {
    "zeros": nn.ZeroPad2d,
    "reflect": nn.ReflectionPad2d,
    "replicate": nn.ReplicationPad2d,
    "circular": nn.CircularPad2d,
}


@dataclass(frozen=True)
class Step:
    """A convolution that takes ``inputs`` channels to ``outputs``, with all its sizes.

    ``before`` and ``after`` are the sides of the encoder's maps it stands between, ``pads`` what
    is added at the near and far ends, ``mode`` with what. ``skip`` says whether an identity runs
    beside it, ``last`` whether it gives the likelihood's parameters.
    """

    position: int
    inputs: int
    outputs: int
    before: Side
    after: Side
    kernel: int
    stride: int
    pads: tuple[int, int]
    mode: PaddingMode
    bias: bool
    style: Style
    skip: bool
    last: bool = False


@dataclass(frozen=True)
class Level:
    """A stage laid out: its convolutions, the ``side`` they end at, and that after pooling."""

    stage: ConvStage
    steps: tuple[Step, ...]
    side: Side
    pooled: Side


def laid_out(
    inputs: int, side: Side, stages: Sequence[tuple[ConvStage, Style]], mode: str
) -> tuple[Level, ...]:
    """Lay stages out on maps of ``inputs`` channels and sides ``side``.

    Raises :class:`InputError` that names the stage, where it does not fit the map it meets.

    >>> levels = laid_out(1, (28, 27), [(ConvStage(8, kernel=6, pool=2), Style())], "zeros")
    >>> levels[0].side, levels[0].pooled
    ((28, 27), (14, 14))
    """
    levels: list[Level] = []
    for position, (stage, style) in enumerate(stages, 1):
        levels.append(_level(position, inputs, side, stage, style, mode))
        inputs, side = stage.channels, levels[-1].pooled
    return tuple(levels)


def mirrored(
    levels: Sequence[Level], outputs: int, joined: bool, init: str = "auto"
) -> list[list[Step]]:
    """Return the convolutions of the way back by stage, from the innermost out.

    Each ends at the map its mirror began with, and is finished as that map was: the last, of
    ``outputs`` channels and drawn by ``init``, by nothing. ``joined``: each stage meets its
    encoder's map as well, beside its own, and takes twice the channels.
    """
    outward: list[list[Step]] = []
    style, bias, width, last = Style("identity", init=init), True, outputs, True
    for level in levels:
        back: list[Step] = []
        for i, step in enumerate(level.steps):
            meets = joined and i == len(level.steps) - 1
            inputs = step.outputs * (2 if meets else 1)
            skip = step.skip and not last and inputs == width
            ends = {"inputs": inputs, "outputs": width, "bias": bias, "style": style}
            back.append(replace(step, **ends, skip=skip, last=last))
            style, bias, width, last = step.style, step.bias, step.outputs, False
        outward.append(back[::-1])
    return outward[::-1]


def convolution(step: Step) -> list[nn.Module]:
    """Return the modules of a convolution of the encoder."""
    return _beside(step, _padded(step))


def up_transposed(step: Step) -> list[nn.Module]:
    r"""Return the transposed convolution that takes ``after`` back to ``before``, to the pixel.

    With the same weight, without bias and for zero padding, it is the adjoint of the encoder's:

    .. math:: \langle \operatorname{conv}_W(x), y \rangle
              = \langle x, \operatorname{conv}^\top_W(y) \rangle

    Source: Dumoulin & Visin, A guide to convolution arithmetic, 2016 (arXiv:1603.07285).
    """
    near, far = step.pads
    # Pixels that the strides left over at the far end, less what the padding had more of there.
    over = [(n + near + far - step.kernel) % step.stride - (far - near) for n in step.before]
    layer = nn.ConvTranspose2d(
        step.inputs,
        step.outputs,
        step.kernel,
        step.stride,
        near,
        output_padding=(max(0, over[0]), max(0, over[1])),
        bias=step.bias,
    )
    return _beside(step, _finished(layer, step, *([Crop(step.before)] if min(over) < 0 else [])))


def up_resampled(step: Step) -> list[nn.Module]:
    """Return nearest upsampling from ``after`` to ``before``, and a convolution that keeps that.

    Source: Odena et al., Deconvolution and Checkerboard Artifacts, 2016.
    """
    # The other way round than the encoder's, or an even kernel would move the picture.
    far, near = even_pads(step.kernel)
    same = replace(step, after=step.before, stride=1, pads=(near, far))
    _check_fit(same, "same")
    grow = [] if step.after == step.before else [Enlarge(step.before, step.stride)]
    return _beside(step, [*grow, *_padded(same)])


def even_pads(kernel: int) -> tuple[int, int]:
    """Return what is added at the near and far end so that a convolution keeps the size.

    >>> even_pads(3), even_pads(6)
    ((1, 1), (2, 3))
    """
    near = (kernel - 1) // 2
    return near, kernel - 1 - near


@final
class Enlarge(nn.Module):
    """Nearest upsampling of a map ``[B, C, h, w]`` to exactly ``side``.

    Each pixel becomes the window of ``factor`` pixels that it came from, cut at the far end; where
    that does not lead to the size, sizes are matched in proportion.

    >>> import torch
    >>> Enlarge((1, 3), 2)(torch.tensor([[[[1.0, 2.0]]]]))
    tensor([[[[1., 1., 2.]]]])
    """

    def __init__(self, side: Side, factor: int) -> None:
        super().__init__()
        self.side, self.factor = side, factor

    def forward(self, h: Tensor) -> Tensor:
        """Repeat pixels."""
        high, wide = self.side
        if any(-(-n // self.factor) != m for n, m in zip(self.side, h.shape[2:], strict=True)):
            return F.interpolate(h, self.side)
        h = F.interpolate(h, scale_factor=float(self.factor))
        return h if h.shape[2:] == self.side else h[..., :high, :wide]

    def extra_repr(self) -> str:
        """Return the size reached."""
        return f"{self.side[0]}, {self.side[1]}"


@final
class Crop(nn.Module):
    """Keep the first rows and columns of a map ``[B, C, H, W]``, without a copy."""

    def __init__(self, side: Side) -> None:
        super().__init__()
        self.side = side

    def forward(self, h: Tensor) -> Tensor:
        """Cut at the far ends."""
        return h[..., : self.side[0], : self.side[1]]

    def extra_repr(self) -> str:
        """Return the size that is left."""
        return f"{self.side[0]}, {self.side[1]}"


def _level(
    position: int, inputs: int, side: Side, stage: ConvStage, style: Style, mode: str
) -> Level:
    chosen = padding_mode(mode if stage.padding_mode is None else stage.padding_mode)
    own = stage.padding
    pads = even_pads(stage.kernel) if isinstance(own, str) else (own, own)
    steps: list[Step] = []
    for i in range(stage.repeat):
        stride = stage.stride if i == stage.repeat - 1 else 1
        high, wide = ((n + sum(pads) - stage.kernel) // stride + 1 for n in side)
        skip = stage.residual and inputs == stage.channels and side == (high, wide)
        step = Step(
            position, inputs, stage.channels, side, (high, wide), stage.kernel, stride, pads,
            chosen, stage.bias, style, skip,
        )  # fmt: skip
        _check_fit(step, own)
        steps.append(step)
        inputs, side = stage.channels, (high, wide)
    if stage.residual and not any(step.skip for step in steps):
        raise InputError(
            f"stage {position} is residual, but none of its convolutions keeps its shape "
            f"({_map(steps[0].inputs, steps[0].before)} to {_map(inputs, side)}), as an identity "
            f"skip needs; set repeat={max(2, stage.repeat)} with padding 'same' and stride 1"
        )
    high, wide = (-(-n // stage.pool) for n in side)
    return Level(stage, tuple(steps), side, (high, wide))


def _check_fit(step: Step, padding: str | int) -> None:
    """Raise where a kernel is larger than its padded input, or the padding than what it repeats."""
    least, far = min(step.before), step.pads[1]
    this = (
        f"stage {step.position} (kernel {step.kernel}, padding {padding}) does not fit its input "
        f"of {step.before[0]}x{step.before[1]}"
    )
    if least + sum(step.pads) < step.kernel:
        raise InputError(
            f"{this}; use a smaller kernel, padding 'same', or fewer strides and poolings before it"
        )
    needed = {"reflect": far + 1, "circular": far}.get(step.mode, 0)
    if least < needed:
        raise InputError(
            f"{this}: to pad {far} pixels, '{step.mode}' needs {needed} or more a side; use "
            f"padding_mode='zeros' or a smaller kernel"
        )


def _map(channels: int, side: Side) -> str:
    return f"{channels}x{side[0]}x{side[1]}"


def _padded(step: Step) -> list[nn.Module]:
    near, far = step.pads
    even = near == far  # then the convolution pads for itself, without a copy
    layer = nn.Conv2d(
        step.inputs,
        step.outputs,
        step.kernel,
        step.stride,
        near if even else 0,
        bias=step.bias,
        padding_mode=step.mode if even else "zeros",
    )
    pad = [] if even else [PADS[step.mode]((near, far, near, far))]
    return [*pad, *_finished(layer, step)]


def _finished(
    layer: nn.Conv2d | nn.ConvTranspose2d, step: Step, *around: nn.Module
) -> list[nn.Module]:
    if not step.last:
        return finished(layer, step.style, *around)
    initialise_last(layer, step.style.init)
    return [layer, *around]


def _beside(step: Step, modules: list[nn.Module]) -> list[nn.Module]:
    return [Residual(*modules)] if step.skip else modules
