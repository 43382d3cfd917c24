"""Named compositions of parts. A recipe is a short function that names parts, and its reference."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from refold.errors import unknown


@dataclass(frozen=True)
class Recipe:
    """What a recipe decides; everything else is chosen from the data or by the user.

    ``backbones`` and ``likelihoods`` are by kind of field; ``expand`` multiplies the chosen code
    size, for codes that are wide because they are sparse; ``linear`` adds the path on which the
    principal components start; ``hidden=()`` makes the body linear.
    """

    latent: str = "plain"
    backbones: Mapping[str, str] = field(default_factory=dict[str, str])
    likelihoods: Mapping[str, str] = field(default_factory=dict[str, str])
    corruption: str | None = None
    hidden: tuple[int, ...] | None = None
    linear: bool = False
    expand: int = 1


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
def vae() -> Recipe:
    """Variational: codes follow a normal distribution, so new rows can be sampled.

    Kingma & Welling, Auto-Encoding Variational Bayes, 2013.
    """
    return Recipe(
        latent="gaussian",
        likelihoods={"image": "bernoulli", "numeric": "gaussian", "vector": "gaussian"},
    )
