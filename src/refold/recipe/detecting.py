"""Finding rows that are unusual."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from refold.recipe.base import Recipe, recipe


def wide(rows: int, entries: int) -> Mapping[str, Any]:
    """A wide layer and a code that squeezes little: what is hidden keeps them from copying."""
    return {"hidden": (128,), "size": 32}


def brisk(rows: int, entries: int) -> Mapping[str, Any]:
    """Large steps, a few hundred to some thousand of them."""
    batch = 128 if rows >= 512 else max(16, rows // 4)
    steps = min(1500, max(250, 10 * rows // batch))
    return {
        "batch_size": batch,
        "epochs": max(1, round(steps / -(-rows // batch))),
        "lr": 5e-3,
        "optimizer": "adamw(weight_decay=0.01)",
    }


@recipe
def anomaly() -> Recipe:
    """Finds unusual rows by what cannot be rebuilt and by how far away other rows are.

    Du et al., ReMasker, 2023 (arXiv:2309.13793), for the training; Sugiyama & Borgwardt, Rapid
    Distance-Based Outlier Detection via Sampling, 2013, for the distances.
    """
    return Recipe(
        corruption="hide(rate=(0.0, 1.0), whole=0.5)",
        body=wide,
        training=brisk,
        held_out=100,
        evidence=(
            "errors(when=novelty)",
            "neighbours(when=novelty)",
            "hidden(when=outliers)",
            "neighbours(groups=(16, 64), when=outliers)",
            "mahalanobis(when=outliers)",
        ),
        last=True,
        suited={"image": pictures},
    )


def pictures() -> Recipe:
    """Rebuild images of which pieces were cut out, by a code too small for anything unusual."""
    return Recipe(
        corruption="boxes(count=3)",
        body=lambda rows, entries: {"hidden": (256,), "size": 16},
        training=lambda rows, entries: {"batch_size": 128, "epochs": max(40, 20000 // rows)},
        linear=True,
        held_out=100,
        evidence=("smoothed",),
        last=True,
    )
