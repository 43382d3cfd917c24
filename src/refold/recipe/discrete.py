"""Codes made of whole numbers."""

from __future__ import annotations

from refold.recipe.base import Recipe, recipe


@recipe
def vqvae() -> Recipe:
    """Feature maps of images as entries of a learnt book (vector quantisation).

    van den Oord, Vinyals & Kavukcuoglu, Neural Discrete Representation Learning, 2017.
    """
    return Recipe(
        latent="vq(maps=16)",
        backbones={"image": "conv(channels=(32, 16), kernel=5, repeat=2)"},
        fusion="direct",
        only=("image",),
    )


@recipe
def residual_vq() -> Recipe:
    """Codes as sums of entries of learnt books, each for what the ones before it left over.

    Zeghidour et al., SoundStream: An End-to-End Neural Audio Codec, 2021.
    """
    return Recipe(latent="residual_vq")


@recipe
def fsq() -> Recipe:
    """Codes of which every entry has one of a few levels (finite scalar quantisation).

    Mentzer et al., Finite Scalar Quantization: VQ-VAE Made Simple, 2023.
    """
    return Recipe(latent="fsq", expand=2)
