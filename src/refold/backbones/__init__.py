"""Encoder and decoder of one field, and the dense stack they share."""

from refold.backbones.base import Backbone, backbones, register
from refold.backbones.conv import Conv
from refold.backbones.flat import Embed, Flat
from refold.backbones.mlp import ACTIVATIONS, NORMS, Mlp, initialise

__all__ = [
    "ACTIVATIONS",
    "NORMS",
    "Backbone",
    "Conv",
    "Embed",
    "Flat",
    "Mlp",
    "backbones",
    "initialise",
    "register",
]
