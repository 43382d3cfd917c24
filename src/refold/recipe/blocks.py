"""Skips, attention and gates inside the usual layers."""

from __future__ import annotations

from refold.recipe.base import Recipe, recipe


@recipe
def residual() -> Recipe:
    """Dense layers with identity skips, deep and still easy to train.

    He et al., Deep Residual Learning for Image Recognition, 2015 (arXiv:1512.03385).
    """
    stage = {"width": 128, "repeat": 4, "norm": "layer", "residual": True}
    return Recipe(hidden=(stage,), linear=True)


@recipe
def attention() -> Recipe:
    """Convolutional stages for images, of which the last has every place look at all others.

    Zhang et al., Self-Attention Generative Adversarial Networks, 2018 (arXiv:1805.08318).
    """
    stages = "{'channels': 32, 'stride': 2}, {'channels': 64, 'stride': 2, 'attention': 4}"
    return Recipe(backbones={"image": f"conv(stages=({stages}))"}, hidden=(256,), only=("image",))


@recipe
def gated() -> Recipe:
    """Each field has layers of its own, and gates say in each row which of them is heard.

    Arevalo et al., Gated Multimodal Units for Information Fusion, 2017 (arXiv:1702.01992).
    """
    return Recipe(fusion="gated")
