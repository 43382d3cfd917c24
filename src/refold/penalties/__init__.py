"""Costs that need the whole model, not only the code: one idea, one file."""

from refold.penalties.adversarial import Adversarial
from refold.penalties.base import Penalty, penalties, register
from refold.penalties.codes import Decorrelation
from refold.penalties.contractive import Contractive, jacobian_norms
from refold.penalties.contrastive import Contrastive
from refold.penalties.dictionary import AuxK, Gate, Matryoshka, Resample
from refold.penalties.mmd import MMD
from refold.penalties.perceptual import Perceptual
from refold.penalties.sparsity import ActivityKL, ActivityL1
from refold.penalties.weights import Orthogonality

__all__ = [
    "MMD",
    "ActivityKL",
    "ActivityL1",
    "Adversarial",
    "AuxK",
    "Contractive",
    "Contrastive",
    "Decorrelation",
    "Gate",
    "Matryoshka",
    "Orthogonality",
    "Penalty",
    "Perceptual",
    "Resample",
    "jacobian_norms",
    "penalties",
    "register",
]
