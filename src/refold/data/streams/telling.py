"""How far a pass over all rows has come, for whoever watches."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

Told: TypeAlias = Callable[[str, float], None]
"""Is told what is under way, and the share of it that is done."""


def unheeded(doing: str, share: float) -> None:
    """Tell nobody."""
