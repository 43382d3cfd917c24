"""Encoder and decoder of one field, and the dense stack they share."""

from refold.backbones.attention import SelfAttention2d
from refold.backbones.base import Backbone, backbones, register
from refold.backbones.conv import Conv
from refold.backbones.dense import Dense
from refold.backbones.flat import Embed, Flat
from refold.backbones.layers import ACTIVATIONS, NORMS, Residual, initialise
from refold.backbones.mlp import Mlp
from refold.backbones.stages import ConvStage, DenseStage
from refold.backbones.tied import tie, ties, untie

__all__ = [
    "ACTIVATIONS",
    "NORMS",
    "Backbone",
    "Conv",
    "ConvStage",
    "Dense",
    "DenseStage",
    "Embed",
    "Flat",
    "Mlp",
    "Residual",
    "SelfAttention2d",
    "backbones",
    "initialise",
    "register",
    "tie",
    "ties",
    "untie",
]
