"""Named compositions of parts. A recipe is a short function that names parts, and its reference."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from refold.errors import unknown


@dataclass(frozen=True)
class Recipe:
    """What a recipe decides; everything else is chosen from the data or by the user.

    ``backbones`` and ``likelihoods`` are by kind of field, ``targets`` the backbones of fields that
    are predicted, by kind; ``penalties`` give way to a user's of the same name. ``answered`` makes
    the code as wide as the answer that such a backbone reads from it, and ``given`` has fields
    beside a target read and not written. ``worth`` is what the best constant costs under balanced
    weights, of all fields that are rebuilt and of all targets, in nats (None: each unit as much).
    ``expand`` multiplies the chosen code size, for codes that are wide because they are sparse;
    ``times`` has the code be so many times the entries of a row, and ``least`` or more; ``scales``
    says by kind of field how numbers are scaled where the user leaves it open; ``linear`` adds the
    path on which the principal components start; ``hidden=()`` makes the body linear. ``fusion``
    names a body other than the dense one, ``pretrain`` how layers are trained before all of them
    are, and ``only`` the kinds of field the recipe is for (none: all). ``body`` gives options of
    the body by the number of rows and entries, the code then of its ``size``, or as wide as its
    first layer, and ``training`` arguments of the estimator that the user left out, each a value or
    a function of the size of the code (and ``members``, how many models answer together where gaps
    are filled); ``held_out`` is how many rows it takes to judge, where a fifth of all are as many.
    ``local`` has gaps filled with what rows nearby know besides the network. ``evidence`` says how
    rows are found unusual, where that is more than their cost; ``last`` keeps the weights of the
    last step (:attr:`Plan.last`). ``suited`` holds other compositions by kind of field, for rows
    that have no other.
    """

    latent: str = "plain"
    backbones: Mapping[str, str] = field(default_factory=dict[str, str])
    targets: Mapping[str, str] = field(default_factory=dict[str, str])
    answered: bool = False
    given: bool = False
    worth: tuple[float, float] | None = None
    likelihoods: Mapping[str, str] = field(default_factory=dict[str, str])
    corruption: str | None = None
    penalties: tuple[str, ...] = ()
    hidden: tuple[int | Mapping[str, Any], ...] | None = None
    linear: bool = False
    expand: int = 1
    times: int = 0
    least: int = 1
    scales: Mapping[str, str] = field(default_factory=dict[str, str])
    fusion: str = "concat"
    pretrain: str | None = None
    only: tuple[str, ...] = ()
    body: Callable[[int, int], Mapping[str, Any]] | None = None
    training: Callable[[int, int], Mapping[str, Any]] | None = None
    held_out: int = 0
    local: bool = False
    evidence: tuple[str, ...] = ()
    last: bool = False
    suited: Mapping[str, Callable[[], Recipe]] = field(default_factory=dict)


RECIPES: dict[str, Callable[[], Recipe]] = {}


def recipe(build: Callable[[], Recipe]) -> Callable[[], Recipe]:
    """Register a recipe under its function's name."""
    RECIPES[build.__name__] = build
    return build


def get(name: str, kinds: Collection[str] = ()) -> Recipe:
    """Look a recipe up, for rows of the given kinds; an unknown name names the nearest."""
    if name not in RECIPES:
        raise unknown("recipe", name, RECIPES)
    found = RECIPES[name]()
    return next((found.suited[k]() for k in found.suited if set(kinds) == {k}), found)


def recipes() -> dict[str, str]:
    """Names of all recipes, with one line on each.

    >>> recipes()["pca"]
    'Linear: ends in the principal subspace, solved in closed form.'
    """
    return {name: (build.__doc__ or "").splitlines()[0] for name, build in RECIPES.items()}
