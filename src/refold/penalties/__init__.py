"""Costs that need the whole model, not only the code: one idea, one file."""

from refold.penalties.base import Penalty, penalties, register

__all__ = ["Penalty", "penalties", "register"]
