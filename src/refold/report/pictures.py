"""Tensors as pictures inside the page: PNG data URIs."""

from __future__ import annotations

import base64
import io
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow

LARGEST = 112  # pixels a side in the page
PHOTO = 4000  # characters from which a picture in colour may lose what nobody sees
PALETTE = 1500  # pixels from which a signed picture has a palette
MANY, SMALL = 500, 20  # rows from which pictures in the sheet are smaller, and their side
STRIP = 40  # pixels a side of one picture among several in a row
THUMB = 32  # pixels a side in the sheet of all rows
POSITIVE, NEGATIVE = (222, 110, 20), (30, 126, 200)  # an orange and a blue for any background

Pixels = NDArray[np.floating]


def data_uri(pixels: NDArray[np.uint8], side: int = LARGEST) -> str:
    """Encode ``[H, W]``, ``[H, W, 3]`` or ``[H, W, 4]`` bytes, shrunk to at most ``side``."""
    picture = Pillow.fromarray(pixels)
    if max(picture.size) > side:
        picture.thumbnail((side, side), Pillow.Resampling.LANCZOS)
    return smallest(picture)


def smallest(picture: Pillow.Image) -> str:
    """Encode without loss, or a photograph, for which that is large, as JPEG."""
    exact = encoded(picture, "PNG")
    if picture.mode != "RGB" or len(exact) < PHOTO:
        return exact
    return min(exact, encoded(picture, "JPEG"), key=len)


def encoded(picture: Pillow.Image, kind: str) -> str:
    """Encode a picture as a data URI."""
    out = io.BytesIO()
    picture.save(out, kind, optimize=True)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(out.getvalue()).decode()}"


def picture(x: Pixels, seen: NDArray[np.bool_] | None = None) -> str:
    """Picture of ``x`` ``[C, H, W]`` in [0, 1]; pixels not ``seen`` are transparent."""
    pixels = to_bytes(x)
    if seen is None or seen.all():
        return data_uri(pixels)
    colour = np.repeat(pixels[..., None], 3, 2) if pixels.ndim == 2 else pixels[..., :3]
    alpha = np.where(seen.reshape(x.shape).all(0), 255, 0).astype(np.uint8)
    return data_uri(np.dstack([colour, alpha]))


def to_bytes(x: Pixels) -> NDArray[np.uint8]:
    """``[C, H, W]`` in [0, 1] to bytes, channels last; one channel has no axis."""
    scaled = np.rint(np.clip(np.nan_to_num(x), 0, 1) * 255).astype(np.uint8)
    return scaled[0] if len(scaled) == 1 else np.ascontiguousarray(np.moveaxis(scaled, 0, -1))


def signed(x: Pixels, top: float) -> str:
    """Picture of ``x`` ``[H, W]``: orange above zero, blue below, clear at zero, full at top."""
    if x.size < PALETTE:
        return data_uri(_signed_pixels(x, top))
    steps = np.linspace(-1, 1, 255)
    level = np.rint((np.clip(x / (top or 1.0), -1, 1) + 1) * 127).astype(np.uint8)
    colours = _signed_pixels(steps[None], 1.0)[0]
    whole = Pillow.fromarray(level).convert("P")
    whole.putpalette(colours[:, :3].tobytes())
    whole.info["transparency"] = colours[:, 3].tobytes()
    return encoded(whole, "PNG")


def _signed_pixels(x: Pixels, top: float) -> NDArray[np.uint8]:
    strength = np.clip(np.abs(x) / (top or 1.0), 0, 1)
    colour = np.where((x >= 0)[..., None], POSITIVE, NEGATIVE)
    alpha = np.rint(strength * 255)[..., None]
    return np.concatenate([colour, alpha], 2).astype(np.uint8)


def signed_strip(x: NDArray[np.floating], top: float) -> str:
    """Picture of numbers ``[n]``, or of rows of them ``[m, n]``, one pixel each."""
    return data_uri(_signed_pixels(np.atleast_2d(x), top), 4096)


def strip(x: Pixels) -> str:
    """Pictures ``[n, C, H, W]`` in [0, 1] side by side in one, with a clear line between them."""
    small = [Pillow.fromarray(to_bytes(row[:3])) for row in x]
    for picture in small:
        if max(picture.size) > STRIP:
            picture.thumbnail((STRIP, STRIP), Pillow.Resampling.LANCZOS)
    width, height = small[0].size
    photo = x.shape[1] > 1 and width * height * len(small) > PALETTE
    gap = 0 if photo else max(1, width // 14)  # photographs have no clear colour
    size = (len(small) * width + (len(small) - 1) * gap, height)
    mode = "RGB" if photo else "RGBA" if x.shape[1] > 1 else "LA"
    whole = Pillow.new(mode, size)
    for i, picture in enumerate(small):
        whole.paste(picture.convert(mode), (i * (width + gap), 0))
    return smallest(whole)


@dataclass(frozen=True)
class Sheet:
    """Small pictures of many rows in one, ``columns`` to a line, ``width`` by ``height`` each."""

    uri: str
    columns: int
    width: int
    height: int


def sheet(x: Pixels) -> Sheet:
    """Lay out pictures ``[n, C, H, W]`` in [0, 1] as one."""
    n, channels, height, width = x.shape
    scale = min(1.0, (THUMB if n < MANY else SMALL) / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    columns = math.ceil(math.sqrt(n))
    whole = Pillow.new(
        "L" if channels == 1 else "RGB", (columns * size[0], -(-n // columns) * size[1])
    )
    for i, row in enumerate(x):
        small = Pillow.fromarray(to_bytes(row[:3]))
        small = small if small.size == size else small.resize(size, Pillow.Resampling.LANCZOS)
        whole.paste(small, (i % columns * size[0], i // columns * size[1]))
    if channels == 1 and n >= MANY:
        whole = whole.quantize(16)
    return Sheet(encoded(whole, "PNG" if channels == 1 else "JPEG"), columns, *size)
