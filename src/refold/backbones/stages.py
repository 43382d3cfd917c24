"""Layers described: one stage of a network as plain values, and how a user may write it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from typing import Any, Literal, TypeAlias, TypeVar, get_args, get_type_hints

from refold.backbones.layers import Style
from refold.errors import InputError, unknown
from refold.hints import expectation, fits

PaddingMode: TypeAlias = Literal["zeros", "reflect", "replicate", "circular"]
PADDING_MODES: tuple[PaddingMode, ...] = get_args(PaddingMode)

WIDEST = 1_000_000  # of a dense layer; beyond, something was mistyped


@dataclass(frozen=True)
class DenseStage:
    """``repeat`` dense layers of one ``width``; what is None is as in the rest of the body.

    ``residual`` adds an identity skip around each layer that keeps its width.
    Raises :class:`InputError` for a value that cannot be.
    """

    width: int
    repeat: int = 1
    activation: str | None = None
    norm: str | None = None
    dropout: float | None = None
    bias: bool = True
    init: str | None = None
    residual: bool = False

    def __post_init__(self) -> None:
        check_types(self)
        at_least(self, 1, "width", "repeat")
        if self.width > WIDEST:
            raise InputError(f"width is {self.width:,}; it must be {WIDEST:,} or less")
        styled(self, Style())


@dataclass(frozen=True)
class ConvStage:
    """``repeat`` convolutions of ``channels`` each; what is None is as in the rest of the backbone.

    The last of them takes the ``stride``. ``padding="same"`` keeps the size (divided by the stride
    and rounded up) for even kernels too; a whole number pads every side. Then come self-attention
    with ``attention`` heads, where there are any, and max pooling by ``pool``. ``residual`` adds
    an identity skip around each convolution that keeps its shape.
    Raises :class:`InputError` for a value that cannot be.
    """

    channels: int
    repeat: int = 1
    kernel: int = 3
    stride: int = 1
    padding: str | int = "same"
    padding_mode: str | None = None
    pool: int = 1
    activation: str | None = None
    norm: str | None = None
    dropout: float | None = None
    bias: bool = True
    init: str | None = None
    residual: bool = False
    attention: int = 0

    def __post_init__(self) -> None:
        check_types(self)
        at_least(self, 1, "channels", "repeat", "kernel", "stride", "pool")
        at_least(self, 0, "attention")
        styled(self, Style())
        if self.padding_mode is not None:
            padding_mode(self.padding_mode)
        if isinstance(self.padding, str):
            if self.padding != "same":
                raise InputError(f"padding is '{self.padding}'; it must be 'same' or a number")
        elif not 0 <= self.padding < self.kernel:
            raise InputError(
                f"padding is {self.padding}; it must be 'same' or from 0 to {self.kernel - 1}, "
                f"below the kernel"
            )
        if self.attention and self.channels % self.attention:
            raise InputError(
                f"{self.channels} channels do not part into {self.attention} heads of attention; "
                f"choose a number of heads that divides them"
            )


Stage = TypeVar("Stage", DenseStage, ConvStage)
Dense: TypeAlias = int | Mapping[str, Any] | DenseStage
Convolved: TypeAlias = int | Mapping[str, Any] | ConvStage


def read(kind: type[Stage], given: Sequence[Any]) -> tuple[Stage, ...]:
    """Read a list of stages: widths (or channels), mappings of options, or stages themselves.

    Raises :class:`InputError` that names the stage, counted from 1.

    >>> read(DenseStage, (64, {"width": 32, "norm": "batch"}))[1].norm
    'batch'
    """
    return tuple(_read(kind, one, i) for i, one in enumerate(given, 1))


def plain(given: Sequence[Dense] | Sequence[Convolved]) -> tuple[int | dict[str, Any], ...]:
    """Write a list of stages as numbers and dictionaries, which JSON can hold.

    >>> plain((64, DenseStage(32, repeat=2)))
    (64, {'width': 32, 'repeat': 2})
    """
    return tuple(_plain(one) for one in given)


def styled(stage: DenseStage | ConvStage, default: Style) -> Style:
    """Return how a stage's layers are finished: its own wishes over the ``default``."""
    return Style(
        default.activation if stage.activation is None else stage.activation,
        default.norm if stage.norm is None else stage.norm,
        default.dropout if stage.dropout is None else stage.dropout,
        default.init if stage.init is None else stage.init,
    )


def padding_mode(name: str) -> PaddingMode:
    """Return a padding mode by name; an unknown name is an error that names the nearest."""
    for mode in PADDING_MODES:
        if mode == name:
            return mode
    raise unknown("padding mode", name, PADDING_MODES)


def check_types(stage: DenseStage | ConvStage) -> None:
    """Raise where an option is of another type than its annotation says."""
    hints = get_type_hints(type(stage))
    for option in fields(stage):
        value = getattr(stage, option.name)
        if not fits(value, hints[option.name]):
            raise InputError(
                f"{option.name} is {value!r}; it must be {expectation(hints[option.name])}"
            )


def at_least(stage: DenseStage | ConvStage, least: int, *names: str) -> None:
    """Raise where one of the named options is below ``least``."""
    for name in names:
        if getattr(stage, name) < least:
            raise InputError(f"{name} is {getattr(stage, name)}; it must be {least} or more")


def _read(kind: type[Stage], given: Any, position: int) -> Stage:
    try:
        if isinstance(given, kind):
            return given
        if fits(given, int):
            return kind(given)
        if isinstance(given, Mapping):
            return kind(**_options(kind, given))
        size = fields(kind)[0].name
        raise InputError(
            f"expected a whole number or options like {{'{size}': 64, 'repeat': 2}}, got {given!r}"
        )
    except InputError as error:
        raise InputError(f"stage {position}: {error}") from None


def _options(kind: type[Stage], given: Mapping[str, Any]) -> dict[str, Any]:
    known = {f.name: f.default is MISSING for f in fields(kind)}
    for name in given:
        if name not in known:
            raise unknown("option", str(name), known)
    for name, needed in known.items():
        if needed and name not in given:
            raise InputError(f"{name} is missing from {dict(given)}; say how many")
    return dict(given)


def _plain(given: Any) -> int | dict[str, Any]:
    if isinstance(given, DenseStage | ConvStage):
        values = {f.name: (getattr(given, f.name), f.default) for f in fields(given)}
        return {name: value for name, (value, default) in values.items() if value != default}
    return dict(given) if isinstance(given, Mapping) else int(given)
