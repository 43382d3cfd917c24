"""From a recipe, the user's wishes and the data to a spec, with a reason for every choice."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from refold.backbones import backbones
from refold.data.corruptions import Corruption, corruptions
from refold.data.schema import Schema
from refold.errors import InputError, unknown
from refold.fields import Field, Image
from refold.fields.base import kind_of
from refold.fusion import fusions
from refold.hints import fits
from refold.latents import Latent, latents
from refold.likelihoods import Likelihood, likelihoods
from refold.ops.pca import Principal, principal_components
from refold.parts import PartSpec
from refold.penalties import Penalty, penalties
from refold.recipe import Recipe, get
from refold.spec import ModelSpec
from refold.training.start import balance, choose_size, design
from refold.types import Batch

LARGEST = 1_000_000  # numbers in a code; beyond, something was mistyped
LARGE = 2000  # pixels above which an image is convolved without being asked
NATIVE_BACKBONE = {"categorical": "embed"}  # others are flat


@dataclass(frozen=True)
class Wishes:
    """What the user said about the model; None where nothing."""

    recipe: str | None = None
    latent: int | str | Latent | None = None
    hidden: tuple[int, ...] | None = None
    fusion: str | None = None
    corruption: str | Corruption | None = None
    penalties: tuple[str | Penalty, ...] = ()
    weights: str | Mapping[str, float] = "balanced"


@dataclass(frozen=True)
class Assembly:
    """A spec, the principal components of its training rows, and why it is what it is."""

    recipe: str
    spec: ModelSpec
    principal: Principal
    reasons: tuple[str, ...]


def assemble(schema: Schema, rows: Batch, wishes: Wishes) -> Assembly:
    """Decide every part and size; raises :class:`InputError` for what cannot be."""
    reasons: list[str] = []
    name = wishes.recipe or default_recipe(schema)
    recipe = get(name)
    if wishes.recipe is None:
        reasons.append(f"recipe '{name}': the default for this data")
    device = next(iter(rows.x.values())).device
    heads = {
        k: f.head(recipe.likelihoods.get(kind_of(f))).to(device) for k, f in schema.fields.items()
    }
    principal = principal_components(design(heads, rows))
    entries = sum(len(f.sizes) for f in schema.fields.values())
    latent, size = decide_latent(wishes.latent, recipe, principal, entries, reasons)
    hidden = decide_hidden(wishes.hidden, recipe, len(principal.mean), reasons)
    corruption = wishes.corruption or recipe.corruption
    spec = ModelSpec(
        latent=latent,
        size=size,
        fusion=decide_fusion(wishes.fusion, recipe, hidden),
        backbones={k: backbone(recipe, f) for k, f in schema.fields.items()},
        likelihoods={k: likelihoods.spec(h) for k, h in heads.items()},
        weights=decide_weights(wishes.weights, schema, heads, rows),
        corruption=None if corruption is None else corruptions.resolve(corruption),
        penalties=tuple(penalties.resolve(p) for p in wishes.penalties),
    )
    return Assembly(name, spec, principal, tuple(reasons))


def default_recipe(schema: Schema) -> str:
    """Convolutions where an image is large, dense layers otherwise."""
    large = any(isinstance(f, Image) and len(f.sizes) > LARGE for f in schema.fields.values())
    return "conv" if large else "dense"


def backbone(recipe: Recipe, own: Field) -> PartSpec:
    """Return the field's own backbone, else the recipe's for its kind, else the kind's."""
    kind = kind_of(own)
    native = NATIVE_BACKBONE.get(kind, "flat")
    return backbones.resolve(own.backbone or recipe.backbones.get(kind, native))


def decide_fusion(wish: str | None, recipe: Recipe, hidden: tuple[int, ...]) -> PartSpec:
    """Return the body: the user's options over the widths and the path that were decided."""
    given = fusions.resolve(wish or "concat")
    decided = {"hidden": hidden, "linear": recipe.linear and bool(hidden)}
    return PartSpec(given.name, {**decided, **given.options})


def decide_latent(
    wish: int | str | Latent | None,
    recipe: Recipe,
    principal: Principal,
    entries: int,
    reasons: list[str],
) -> tuple[PartSpec, int]:
    """Return the latent and the size of the code."""
    if isinstance(wish, Latent):
        return latents.spec(wish), wish.size
    given = PartSpec.parse(wish if isinstance(wish, str) else recipe.latent)
    options = {k: v for k, v in given.options.items() if k != "size"}
    spec = latents.resolve(PartSpec(given.name, options))
    size = given.options.get("size") if isinstance(wish, str) else wish
    if size is not None:
        if not fits(size, int) or not 1 <= size <= LARGEST:
            raise InputError(
                f"the latent size is {size}; it must be a whole number from 1 to {LARGEST:,}"
            )
        return spec, int(size)
    needed = choose_size(principal, entries)
    kept = float(principal.variance[:needed].sum() / max(principal.total, 1e-300))
    size = max(32, needed * recipe.expand) if recipe.expand > 1 else needed
    why = f"{needed} principal components keep {kept:.0%} of the variance"
    times = f", times {recipe.expand} for a sparse code" if recipe.expand > 1 else ""
    reasons.append(f"latent size {size}: {why}{times}")
    return spec, size


def decide_hidden(
    wish: tuple[int, ...] | None, recipe: Recipe, width: int, reasons: list[str]
) -> tuple[int, ...]:
    """Return the body's widths: twice the data's, a power of two in 64..512, then half."""
    if wish is not None:
        if any(isinstance(w, bool) or w < 1 for w in wish):
            raise InputError(f"hidden widths are {wish}; each must be a whole number, 1 or more")
        return tuple(int(w) for w in wish)
    if recipe.hidden is not None:
        return recipe.hidden
    first = min(512, max(64, 2 ** (2 * width - 1).bit_length()))
    reasons.append(f"hidden layers {first}, {first // 2}: from the {width} numbers of a row")
    return first, first // 2


def decide_weights(
    wish: str | Mapping[str, float],
    schema: Schema,
    heads: Mapping[str, Likelihood],
    rows: Batch,
) -> dict[str, tuple[float, ...]]:
    """Return each field's weights, by a named rule or as given by field."""
    if isinstance(wish, str):
        if wish not in ("balanced", "equal"):
            raise unknown("weights", wish, ("balanced", "equal"))
        return balance(heads, schema.fields, rows, wish)
    for name in wish:
        if name not in schema.fields:
            raise unknown("field in weights", name, schema.fields)
    return {k: (float(wish.get(k, 1.0)) * f.weight,) for k, f in schema.fields.items()}
