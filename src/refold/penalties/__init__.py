"""Costs that need the whole model, not only the code: one idea, one file."""

from refold.penalties.base import Penalty, penalties, register
from refold.penalties.codes import Decorrelation
from refold.penalties.perceptual import Perceptual
from refold.penalties.sparsity import ActivityKL, ActivityL1
from refold.penalties.weights import Orthogonality

__all__ = [
    "ActivityKL",
    "ActivityL1",
    "Decorrelation",
    "Orthogonality",
    "Penalty",
    "Perceptual",
    "penalties",
    "register",
]
