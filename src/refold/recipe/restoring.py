"""Learning to undo what was done to the input."""

from __future__ import annotations

from refold.recipe.base import Recipe, recipe

UNET = {"image": "conv(skips=True)"}


@recipe
def denoising() -> Recipe:
    """Learns to restore rows to which noise was added.

    Vincent et al., Extracting and Composing Robust Features with Denoising Autoencoders, 2008.
    """
    return Recipe(corruption="gaussian(std=0.3)", linear=True)


@recipe
def inpainting() -> Recipe:
    """Learns to fill boxes cut out of images, with a U-Net.

    Pathak et al., Context Encoders, 2016; Ronneberger et al., U-Net, 2015.
    """
    return Recipe(corruption="boxes(count=2)", backbones=UNET, hidden=(256,), only=("image",))


@recipe
def superresolution() -> Recipe:
    """Learns to sharpen images that were shrunk and enlarged again, with a U-Net.

    Dong et al., Image Super-Resolution Using Deep Convolutional Networks, 2014.
    """
    return Recipe(corruption="downscale(factor=2)", backbones=UNET, hidden=(256,), only=("image",))


@recipe
def unet() -> Recipe:
    """Learns to remove noise from images, with a U-Net.

    Ronneberger et al., U-Net, 2015; Vincent et al., 2008 for the noise.
    """
    return Recipe(corruption="gaussian(std=0.3)", backbones=UNET, hidden=(256,), only=("image",))
