"""Encoder and decoder of one field, and the dense stack they share."""

from refold.backbones.attention import SelfAttention2d
from refold.backbones.base import Backbone, backbones, register
from refold.backbones.coded import Coded
from refold.backbones.conv import Conv
from refold.backbones.dense import Dense
from refold.backbones.flat import Embed, Flat
from refold.backbones.layers import ACTIVATIONS, NORMS, Residual, initialise
from refold.backbones.mlp import Mlp
from refold.backbones.recurrent import Recurrent
from refold.backbones.stages import ConvStage, DenseStage
from refold.backbones.tied import tie, ties, untie
from refold.backbones.transformer import Transformer

__all__ = [
    "ACTIVATIONS",
    "NORMS",
    "Backbone",
    "Coded",
    "Conv",
    "ConvStage",
    "Dense",
    "DenseStage",
    "Embed",
    "Flat",
    "Mlp",
    "Recurrent",
    "Residual",
    "SelfAttention2d",
    "Transformer",
    "backbones",
    "initialise",
    "register",
    "tie",
    "ties",
    "untie",
]
