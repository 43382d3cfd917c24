"""Strided convolutions on images of 28 pixels a side."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from cases.dense import RATE, products, train
from cases.rows import HELD, JUDGED, judged, pixels
from contest import Case, Found, Prepare, Run

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

    def prepare() -> Run:
        import refold

        x = pixels(rows + HELD).reshape(-1, SIDE, SIDE)

        def run() -> Callable[[], Found]:
            ae = refold.Autoencoder(
                CODE,
                recipe="conv",
                hidden=(),
                fields=FIELD,
                weights="equal",
                epochs=epochs,
                batch_size=BATCH,
                optimizer="adam",
                lr=RATE,
                schedule="constant",
                patience=epochs + 1,
                validation=HELD / len(x),
                precision=precision,
            ).fit(x)
            return lambda: judged(x, ae.reconstruct(x[:JUDGED]), products(ae))

        return run

    return prepare


def bare(rows: int, epochs: int) -> Prepare:
    """Return the plain loop."""

    def prepare() -> Run:
        x = pixels(rows)

        def run() -> Callable[[], Found]:
            net = network()
            train(net, torch.from_numpy(x), epochs, BATCH, F.mse_loss)

            def tell() -> Found:
                with torch.inference_mode():
                    return judged(x, net(torch.from_numpy(x[:JUDGED])))

            return tell

        return run

    return prepare


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
            {"bare loop": bare(rows, epochs)},
            flops=flops(rows, epochs),
        )
    ]
