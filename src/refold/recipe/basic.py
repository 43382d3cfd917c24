"""Dense and convolutional autoencoders without a constraint but the size of the code."""

from __future__ import annotations

from refold.recipe.base import Recipe, recipe


@recipe
def pca() -> Recipe:
    """Linear: ends in the principal subspace, solved in closed form.

    Baldi & Hornik, Neural networks and principal component analysis, 1989.
    """
    return Recipe(hidden=())


@recipe
def dense() -> Recipe:
    """Dense layers that start as PCA and learn what PCA misses.

    Hinton & Salakhutdinov, Reducing the Dimensionality of Data with Neural Networks, 2006.
    """
    return Recipe(linear=True)


@recipe
def conv() -> Recipe:
    """Convolutional stages for images.

    Masci et al., Stacked Convolutional Auto-Encoders, 2011.
    """
    return Recipe(backbones={"image": "conv"}, hidden=(256,))


@recipe
def stacked() -> Recipe:
    """Dense layers trained one pair at a time from the outside, then all together.

    Bengio et al., Greedy Layer-Wise Training of Deep Networks, 2007.
    """
    return Recipe(pretrain="layerwise")
