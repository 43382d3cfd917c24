"""Strided convolutions on images of 28 pixels a side."""

from __future__ import annotations

from torch import nn

from cases.learning import Bare, fitted, looped
from cases.rows import HELD, pixels
from contest import Case, Prepare

BATCH, CODE, CHANNELS = 128, 16, (32, 64)
SIDE = 28
FIELD = {"image": f"image(backbone='conv(channels={CHANNELS})', likelihood='mse')"}


def network() -> nn.Sequential:
    """Return 28 to 14 to 7 pixels a side, one linear layer to the code, and back."""
    a, b = CHANNELS
    kernel = {"kernel_size": 3, "stride": 2, "padding": 1}
    there = [nn.Conv2d(1, a, **kernel), nn.ReLU(), nn.Conv2d(a, b, **kernel), nn.ReLU()]
    back = [
        nn.ConvTranspose2d(b, a, **kernel, output_padding=1), nn.ReLU(),
        nn.ConvTranspose2d(a, 1, **kernel, output_padding=1),
    ]  # fmt: skip
    return nn.Sequential(
        nn.Unflatten(1, (1, SIDE, SIDE)), *there, nn.Flatten(), nn.Linear(b * 49, CODE),
        nn.Linear(CODE, b * 49), nn.Unflatten(1, (b, 7, 7)), *back, nn.Flatten(),
    )  # fmt: skip


def ours(rows: int, epochs: int, precision: str) -> Prepare:
    """Return all of ``fit``."""
    return fitted(
        lambda: pixels(rows + HELD).reshape(-1, SIDE, SIDE),
        CODE,
        epochs,
        BATCH,
        precision,
        recipe="conv",
        hidden=(),
        fields=FIELD,
    )


def flops(rows: int, epochs: int) -> float:
    """Two for each weight, place and row, three times but in the first layer, which is not left."""
    a, b = CHANNELS
    outer, inner, dense = 9 * a * 14 * 14, 9 * a * b * 7 * 7, b * 49 * CODE
    return 2.0 * (3 * 2 * (outer + inner + dense) - outer) * rows * epochs


def cases(quick: bool) -> list[Case]:
    """One size."""
    rows, epochs = (256, 1) if quick else (10_000, 2)
    return [
        Case(
            "convolutional",
            f"28 x 28 pixels, two strided convolutions of 32 and 64 channels, a code of {CODE} and "
            f"back, {epochs} epochs of {rows:,} images, batches of {BATCH}.",
            {
                "refold float32": ours(rows, epochs, "float32"),
                "refold auto": ours(rows, epochs, "auto"),
            },
            {
                "bare loop": looped(
                    lambda: pixels(rows), lambda: Bare.squared(network()), epochs, BATCH
                )
            },
            flops=flops(rows, epochs),
        )
    ]
