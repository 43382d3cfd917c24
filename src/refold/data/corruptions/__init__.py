"""Corruptions: the input differs from the target, and the clean batch stays the target.

Each part is named in the estimator and on the command line (``corruption="boxes(size=8)"``), is a
callable from batch to batch, and corrupts a tensor of the user's own (:meth:`Corruption.corrupt`).
"""

from refold.data.corruptions.base import Corruption, corruptions, register
from refold.data.corruptions.binarise import Binarise
from refold.data.corruptions.chain import Chain, resolve
from refold.data.corruptions.hiding import Hide, Mask
from refold.data.corruptions.images import Blur, Downscale, Shift
from refold.data.corruptions.masking import Boxes, Masking, Patches
from refold.data.corruptions.noise import GaussianNoise, SaltAndPepper
from refold.data.corruptions.tables import Columns, Swap

__all__ = [
    "Binarise",
    "Blur",
    "Boxes",
    "Chain",
    "Columns",
    "Corruption",
    "Downscale",
    "GaussianNoise",
    "Hide",
    "Mask",
    "Masking",
    "Patches",
    "SaltAndPepper",
    "Shift",
    "Swap",
    "corruptions",
    "register",
    "resolve",
]
