"""Sequences, read and written step by step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from refold.recipe.base import Recipe, recipe


def by_steps(rows: int, entries: int) -> Mapping[str, Any]:
    """A rate a little above the usual one."""
    return {"lr": 3e-3}


@recipe
def recurrent() -> Recipe:
    """Sequences read step by step into a code, and written out of it last step first.

    Srivastava, Mansimov & Salakhutdinov, Unsupervised Learning of Video Representations using
    LSTMs, 2015 (arXiv:1502.04681); Cho et al., Learning Phrase Representations, 2014.
    """
    return Recipe(
        backbones={
            "series": "recurrent(order=reversed)",
            "text": "recurrent(width=128, bidirectional=True, order=reversed)",
        },
        hidden=(),
        training=by_steps,
        only=("series", "text"),
    )
