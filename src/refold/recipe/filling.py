"""Learning to fill gaps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from refold.recipe.base import Recipe, recipe

MANY, FEW = 2000, 8  # rows and entries from which wide layers do not learn them by heart


def unsqueezed(rows: int, entries: int) -> Mapping[str, Any]:
    """Residual layers of one width, by the data they can learn from, and back in one."""
    many = rows >= MANY and entries >= FEW
    width, dropout = (512, 0.0) if many else (256, 0.1 if rows > 500 else 0.3)
    return {
        "hidden": (width, {"width": width, "repeat": 4 if many else 2, "residual": True}),
        "mirror": (),
        "activation": "silu",
        "norm": "layer",
        "dropout": dropout,
    }


def patient(rows: int, entries: int) -> Mapping[str, Any]:
    """Large batches and many passes, all of them taken."""
    many = rows >= MANY and entries >= FEW
    batch = 256 if many else 128 if rows > 500 else 64
    steps = 3600 if many else min(1200, max(400, round(3.5 * rows)))
    return {
        "batch_size": batch,
        "epochs": max(1, round(steps / -(-rows // batch))),
        "lr": 3e-3 if many else 2e-3,
        "optimizer": f"adamw(weight_decay={0.01 if rows > 500 else 0.05})",
        "patience": 1000,
        "precision": "bfloat16" if many else "float32",
        "members": 1 if rows >= MANY else 2 if rows > 500 else 4,
    }


@recipe
def imputation() -> Recipe:
    """Learns to fill gaps: entries are hidden at random and rebuilt from the others.

    Du et al., ReMasker: Imputing Tabular Data with Masked Autoencoding, 2023 (arXiv:2309.13793),
    for the training; Cressie, Statistics for Spatial Data, 1993, for what rows nearby add.
    """
    return Recipe(
        corruption="hide(rate=(0.0, 0.5), score=hidden)",
        body=unsqueezed,
        training=patient,
        held_out=50,
        local=True,
    )
