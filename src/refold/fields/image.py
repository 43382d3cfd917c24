"""Pictures of one size, grey or in colour."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Self, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from refold.casting import as_dtype
from refold.errors import InputError
from refold.fields.base import Encoded, Field, learnt, register
from refold.fields.numeric import refuse_infinite
from refold.fields.vector import block
from refold.table import Column

SMALLEST = 4  # pixels a side


@final
@register("image")
@dataclass(frozen=True, kw_only=True)
class Image(Field):
    """Images ``[n, H, W]``, ``[n, H, W, C]`` or ``[n, C, H, W]``, scaled to [0, 1].

    8-bit values are divided by 255; other numbers are mapped from their training range where they
    leave [0, 1]. Channels are 1, 3 or 4, and the layout is recognised by where they stand. Inside,
    an image is ``[B, C, H, W]``. ``size``, where given, is the height and width that are expected.

    Raises :class:`InputError` for images of another size, and for what is no set of images.

    >>> str(Image((28, 28)))
    'image(size=(28, 28))'
    """

    block: ClassVar[bool] = True
    native: ClassVar[str] = "mse"
    allowed: ClassVar[tuple[str, ...]] = (
        *("mse", "l1", "huber", "gaussian", "laplace", "student", "bernoulli", "ssim"),
        "logistic_mixture",
    )
    shades: ClassVar[tuple[str, ...]] = allowed
    apart: ClassVar[float] = 0.25
    size: tuple[int, int] | None = field(default=None, kw_only=False)
    height: int = learnt(0)
    width: int = learnt(0)
    channels: int = learnt(1)
    layout: str = learnt("grey")
    low: float = learnt(0.0)
    high: float = learnt(1.0)
    fill: float = learnt(0.5)
    dtype: str = learnt("float64")

    def __post_init__(self) -> None:
        if self.size is not None:
            object.__setattr__(self, "size", pair(self.size))

    def fit(self, columns: Mapping[str, Column]) -> Self:
        """Learn size, layout and range."""
        values = block(columns, self.columns[0])
        height, width, channels, layout = geometry(values.shape, self.columns[0])
        if self.size is not None and self.size != (height, width):
            raise InputError(
                f"'{self.columns[0]}' was declared with images of {self.size[0]}x{self.size[1]}, "
                f"but they are {height}x{width}; resize them, or declare size=({height}, {width})"
            )
        low, high = pixel_range(values)
        missing = values.dtype.kind == "f" and bool(np.isnan(values).any())
        return replace(
            self,
            height=height,
            width=width,
            channels=channels,
            layout=layout,
            low=low,
            high=high,
            dtype=str(values.dtype),
            fill=(float(np.nanmean(values)) - low) / (high - low) if missing else 0.5,
            missing=missing,
        )

    def to_tensor(self, columns: Mapping[str, Column]) -> Encoded:
        """Scale to [0, 1], channels first; a missing pixel becomes the mean."""
        values = block(columns, self.columns[0])
        expected = self.cell
        if values.shape[1:] != expected:
            raise InputError(
                f"images of '{self.columns[0]}' have shape {values.shape[1:]}, but {expected} in "
                f"training; resize them"
            )
        if values.dtype.kind == "f":
            refuse_infinite(values.reshape(len(values), -1), self.entries)
        notes = self._other_unit(values)
        x = values.astype(np.float32)
        if (self.low, self.high) != (0.0, 1.0):
            x = (x - np.float32(self.low)) * np.float32(1.0 / (self.high - self.low))
        x = {"grey": x[:, None], "last": np.moveaxis(x, -1, 1), "first": x}[self.layout]
        x = np.ascontiguousarray(x)
        absent = np.isnan(x)
        if not absent.any():
            return Encoded(torch.from_numpy(x), None, notes)
        observed = torch.from_numpy(~absent).flatten(1)
        return Encoded(
            torch.from_numpy(np.where(absent, np.float32(self.fill), x)), observed, notes
        )

    def _other_unit(self, values: NDArray[Any]) -> list[str]:
        """Say that pixels are in another unit than in training, where their range cannot be."""
        if not values.size or np.isnan(values).all():
            return []
        low, high, span = float(np.nanmin(values)), float(np.nanmax(values)), self.high - self.low
        beyond = high > self.high + span or low < self.low - span
        shrunk = span > 2.0 and values.dtype.kind == "f" and 0.0 < high <= 1.0
        if not beyond and not shrunk:
            return []
        return [
            f"images of '{self.columns[0]}' hold values from {low:g} to {high:g}, where training "
            f"had {self.low:g} to {self.high:g}: they look like another unit; scale them alike"
        ]

    def to_values(self, point: Tensor) -> dict[str, Column]:
        """Return to the user's range, layout and type."""
        x = point.double().cpu().numpy().reshape(-1, *self.shape)
        x = x * (self.high - self.low) + self.low
        x = {"grey": x[:, 0], "last": np.moveaxis(x, 1, -1), "first": x}[self.layout]
        return {self.columns[0]: as_dtype(np.ascontiguousarray(x), np.dtype(self.dtype))}

    @property
    def shape(self) -> tuple[int, ...]:
        """Channels, height, width."""
        return (self.channels, self.height, self.width)

    @property
    def cell(self) -> tuple[int, ...]:
        """Shape of one image as the user gives it."""
        size = (self.height, self.width)
        return {"grey": size, "last": (*size, self.channels), "first": (self.channels, *size)}[
            self.layout
        ]

    @property
    def sizes(self) -> tuple[int, ...]:
        """Numbers have one level."""
        return (1,) * (self.channels * self.height * self.width)

    @property
    def entries(self) -> tuple[str, ...]:
        """Return ``name[row, column]``, with the channel first where there are several."""
        name = self.columns[0]
        grid = [(i, j) for i in range(self.height) for j in range(self.width)]
        if self.channels == 1:
            return tuple(f"{name}[{i}, {j}]" for i, j in grid)
        return tuple(f"{name}[{c}, {i}, {j}]" for c in range(self.channels) for i, j in grid)

    @property
    def bounds(self) -> tuple[list[float], list[float]]:
        """Pixels lie in [0, 1]."""
        n = len(self.sizes)
        return [0.0] * n, [1.0] * n


def pair(size: Sequence[int]) -> tuple[int, int]:
    """Height and width as a user gives them."""
    if len(size) != 2:
        raise InputError(f"the size of images is {size}; give height and width, as in (28, 28)")
    return size[0], size[1]


def geometry(shape: tuple[int, ...], name: str) -> tuple[int, int, int, str]:
    """Height, width, channels and layout of images of the given array shape."""
    if len(shape) == 3:
        height, width, channels, layout = shape[1], shape[2], 1, "grey"
    elif len(shape) == 4 and shape[3] in (1, 3, 4):
        height, width, channels, layout = shape[1], shape[2], shape[3], "last"
    elif len(shape) == 4 and shape[1] in (1, 3, 4):
        height, width, channels, layout = shape[2], shape[3], shape[1], "first"
    else:
        raise InputError(
            f"'{name}' has shape {shape}, which is no set of images; expected (n, height, width) "
            f"or (n, height, width, channels) with 1, 3 or 4 channels"
        )
    if min(height, width) < SMALLEST:
        raise InputError(
            f"images of '{name}' are {height}x{width}; every side needs at least {SMALLEST} pixels"
        )
    return height, width, channels, layout


def pixel_range(values: NDArray[Any]) -> tuple[float, float]:
    """Return the values that map to 0 and 1."""
    if values.dtype == np.uint8:
        return 0.0, 255.0
    if values.dtype.kind == "b":
        return 0.0, 1.0
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    if low >= 0.0 and high <= 1.0 and values.dtype.kind == "f":
        return 0.0, 1.0
    return (low, high) if high > low else (low, low + 1.0)
