"""The body between the fields and the code: fields joined, folded, unfolded and parted again."""

from refold.fusion.attention import Attention
from refold.fusion.base import Fusion, Lateral, Leads, LinearPath, fusions, join, part, register
from refold.fusion.dense import Concat
from refold.fusion.dictionary import Dictionary
from refold.fusion.direct import Direct
from refold.fusion.ensemble import Ensemble
from refold.fusion.experts import MixtureOfExperts, MixtureOfProducts, ProductOfExperts
from refold.fusion.gated import Gated
from refold.fusion.ladder import Ladder
from refold.fusion.towers import Mean, Sum, Towers

__all__ = [
    "Attention",
    "Concat",
    "Dictionary",
    "Direct",
    "Ensemble",
    "Fusion",
    "Gated",
    "Ladder",
    "Lateral",
    "Leads",
    "LinearPath",
    "Mean",
    "MixtureOfExperts",
    "MixtureOfProducts",
    "ProductOfExperts",
    "Sum",
    "Towers",
    "fusions",
    "join",
    "part",
    "register",
]
