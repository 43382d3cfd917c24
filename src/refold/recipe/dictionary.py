"""Dictionaries of many directions, of which each row is a sum of few."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from refold.recipe.base import Recipe, recipe

TIMES = 8  # latents for each number of a row
LEAST = 64  # latents of rows of few numbers
BATCH = 1024  # rows of a batch, where there are sixteen batches
PEAK, AT, MOST = 1e-3, 2**14, 5e-3  # rate at so many latents, and the highest


def steady(rows: int, entries: int) -> Mapping[str, Any]:
    """Large batches, a rate by the size of the code, and nothing that pulls weights to zero."""
    batch = BATCH if rows >= 16 * BATCH else max(32, 2 ** ((rows // 16).bit_length() - 1))
    return {"batch_size": batch, "lr": rate, "optimizer": "adam"}


def rate(size: int) -> float:
    """Fall with the root of the number of latents, as Gao et al. found it best."""
    return min(MOST, PEAK * (AT / size) ** 0.5)


@recipe
def dictionary() -> Recipe:
    """Rows as sums of few directions from a large dictionary, 32 of each row (top-k).

    Gao et al., Scaling and Evaluating Sparse Autoencoders, 2024 (arXiv:2406.04093).
    """
    return Recipe(
        latent="topk(k=32, rectify=True)",
        fusion="dictionary",
        penalties=("auxk(weight=1.0)",),
        scales={"vector": "pooled"},
        hidden=(),
        times=TIMES,
        least=LEAST,
        training=steady,
    )
