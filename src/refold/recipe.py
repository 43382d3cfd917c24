"""Named compositions of parts. A recipe is a short function that names parts, and its reference."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from refold.errors import unknown


@dataclass(frozen=True)
class Recipe:
    """What a recipe decides; everything else is chosen from the data or by the user.

    ``backbones`` and ``likelihoods`` are by kind of field; ``expand`` multiplies the chosen code
    size, for codes that are wide because they are sparse; ``linear`` adds the path on which the
    principal components start; ``hidden=()`` makes the body linear. ``fusion`` names a body other
    than the dense one, ``pretrain`` how layers are trained before all of them are, and ``only`` the
    kinds of field the recipe is for (none: all). ``body`` gives options of the body by the number
    of rows and entries, the code then as wide as its first layer, and ``training`` arguments of the
    estimator that the user left out (and ``members``, how many models answer together where gaps
    are filled); ``held_out`` is how many rows it takes to judge, where a fifth
    of all are as many. ``local`` has gaps filled with what rows nearby know besides the network.
    """

    latent: str = "plain"
    backbones: Mapping[str, str] = field(default_factory=dict[str, str])
    likelihoods: Mapping[str, str] = field(default_factory=dict[str, str])
    corruption: str | None = None
    hidden: tuple[int, ...] | None = None
    linear: bool = False
    expand: int = 1
    fusion: str = "concat"
    pretrain: str | None = None
    only: tuple[str, ...] = ()
    body: Callable[[int, int], Mapping[str, Any]] | None = None
    training: Callable[[int, int], Mapping[str, Any]] | None = None
    held_out: int = 0
    local: bool = False


RECIPES: dict[str, Callable[[], Recipe]] = {}


def recipe(build: Callable[[], Recipe]) -> Callable[[], Recipe]:
    """Register a recipe under its function's name."""
    RECIPES[build.__name__] = build
    return build


def get(name: str) -> Recipe:
    """Look a recipe up; an unknown name is an error that names the nearest."""
    if name not in RECIPES:
        raise unknown("recipe", name, RECIPES)
    return RECIPES[name]()


def recipes() -> dict[str, str]:
    """Names of all recipes, with one line on each.

    >>> recipes()["pca"]
    'Linear: ends in the principal subspace, solved in closed form.'
    """
    return {name: (build.__doc__ or "").splitlines()[0] for name, build in RECIPES.items()}


MANY, FEW = 2000, 8  # rows and entries from which wide layers do not learn them by heart
UNET = {"image": "conv(skips=True)"}


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
def sparse() -> Recipe:
    """A wide code of which a tenth is active in each row (top-k).

    Makhzani & Frey, k-Sparse Autoencoders, 2013.
    """
    return Recipe(latent="topk", expand=8)


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


@recipe
def stacked() -> Recipe:
    """Dense layers trained one pair at a time from the outside, then all together.

    Bengio et al., Greedy Layer-Wise Training of Deep Networks, 2007.
    """
    return Recipe(pretrain="layerwise")


@recipe
def nested() -> Recipe:
    """A code in order of importance: any number of its first entries is a code of its own.

    Rippel, Gelbart & Adams, Learning Ordered Representations with Nested Dropout, 2014.
    """
    return Recipe(latent="nested", linear=True)


@recipe
def wta() -> Recipe:
    """A wide code of which each unit is active in few rows only (winner-take-all).

    Makhzani & Frey, Winner-Take-All Autoencoders, 2014.
    """
    return Recipe(latent="lifetime", hidden=(), expand=16)


@recipe
def conv_wta() -> Recipe:
    """Feature maps as the code, each with one winner an image and few images in a batch.

    Makhzani & Frey, Winner-Take-All Autoencoders, 2014.
    """
    return Recipe(
        latent="lifetime(maps=32)",
        backbones={"image": "conv(channels=(32, 32), kernel=5)"},
        fusion="direct",
        only=("image",),
    )


@recipe
def vae() -> Recipe:
    """Variational: codes follow a normal distribution, so new rows can be sampled.

    Kingma & Welling, Auto-Encoding Variational Bayes, 2013.
    """
    return Recipe(
        latent="gaussian",
        likelihoods={"image": "bernoulli", "numeric": "gaussian", "vector": "gaussian"},
    )


def unsqueezed(rows: int, entries: int) -> Mapping[str, Any]:
    """Residual layers of one width, by the data they can learn from, and back in one."""
    many = rows >= MANY and entries >= FEW
    width, dropout = (512, 0.0) if many else (256, 0.1 if rows > 500 else 0.3)
    return {
        "hidden": (width, {"width": width, "repeat": 4 if many else 2, "residual": True}),
        "mirror": (),
        "activation": "silu",
        "norm": "layer",
        "dropout": dropout,
    }


def patient(rows: int, entries: int) -> Mapping[str, Any]:
    """Large batches and many passes, all of them taken."""
    many = rows >= MANY and entries >= FEW
    batch = 256 if many else 128 if rows > 500 else 64
    steps = 3600 if many else min(1200, max(400, round(3.5 * rows)))
    return {
        "batch_size": batch,
        "epochs": max(1, round(steps / -(-rows // batch))),
        "lr": 3e-3 if many else 2e-3,
        "optimizer": f"adamw(weight_decay={0.01 if rows > 500 else 0.05})",
        "patience": 1000,
        "precision": "bfloat16" if many else "float32",
        "members": 1 if rows >= MANY else 2 if rows > 500 else 4,
    }


@recipe
def imputation() -> Recipe:
    """Learns to fill gaps: entries are hidden at random and rebuilt from the others.

    Du et al., ReMasker: Imputing Tabular Data with Masked Autoencoding, 2023 (arXiv:2309.13793),
    for the training; Cressie, Statistics for Spatial Data, 1993, for what rows nearby add.
    """
    return Recipe(
        corruption="hide(rate=(0.0, 0.5), score=hidden)",
        body=unsqueezed,
        training=patient,
        held_out=50,
        local=True,
    )
