"""From a recipe, the user's wishes and the data to a spec, with a reason for every choice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch

from refold.backbones import backbones
from refold.data.corruptions import Corruption, corruptions, resolve
from refold.data.schema import Schema
from refold.errors import InputError, unknown
from refold.fields import Field, Image, Series, Text
from refold.fields.base import kind_of
from refold.fusion import Ensemble, fusions
from refold.hints import fits
from refold.latents import L1, Gaussian, Latent, Matched, Plain, WinnerTakeAll, latents
from refold.likelihoods import Likelihood, likelihoods
from refold.ops.pca import Principal, principal_components
from refold.parts import PartSpec
from refold.penalties import ActivityL1, Contractive, Penalty, penalties
from refold.recipe import Recipe, get
from refold.spec import ModelSpec, geometry
from refold.training.balance import balancers
from refold.training.start import WIDEST, balance, choose_size, design
from refold.types import Batch

Hidden: TypeAlias = tuple[int | Mapping[str, Any], ...]
CorruptionWish: TypeAlias = str | Corruption | Sequence[str | Corruption] | None
LARGEST = 1_000_000  # numbers in a code; beyond, something was mistyped
WEIGHTS = 50_000_000  # of a code as many times as wide as a row, where nobody says its size
TOKEN = 8  # numbers that a token of a text counts for
ENOUGH, WORK = 10_000, 5e9  # rows, and their products, that tell principal components
PLENTY = 200_000  # rows of which no more are needed, however narrow
LARGE = 2000  # pixels above which an image is convolved without being asked
APART = (Gaussian, L1, Plain, WinnerTakeAll, ActivityL1, Contractive)
"""Latents and penalties that treat a code in parts as they treat it as a whole."""
NATIVE_BACKBONE = {"categorical": "embed", "text": "embed"}  # others are flat


@dataclass(frozen=True)
class Wishes:
    """What the user said about the model; None where nothing."""

    recipe: str | None = None
    latent: int | str | Latent | None = None
    hidden: Hidden | None = None
    fusion: str | None = None
    corruption: CorruptionWish = None
    penalties: tuple[str | Penalty, ...] = ()
    weights: str | Mapping[str, float] = "balanced"
    pretrain: str | None = None


@dataclass(frozen=True)
class Assembly:
    """A spec, the principal components of its training rows, and why it is what it is.

    ``pretrain`` is how layers are trained before all of them are, by the user or the recipe.
    """

    recipe: str
    parts: Recipe
    spec: ModelSpec
    principal: Principal
    pretrain: str | None
    reasons: tuple[str, ...]


def assemble(schema: Schema, rows: Batch, wishes: Wishes) -> Assembly:
    """Decide every part and size; raises :class:`InputError` for what cannot be."""
    reasons: list[str] = []
    name = wishes.recipe or default_recipe(schema)
    recipe = get(name, [kind_of(schema.fields[k]) for k in folded(schema)])
    parts = recipe
    check_kinds(name, recipe, schema)
    if wishes.recipe is None:
        reasons.append(f"recipe '{name}': the default for this data")
    if recipe.targets and not schema.targets:
        reasons.append(f"recipe '{name}' is for labels, and no column is a target: it learns none")
    pretrain = wishes.pretrain or recipe.pretrain
    if pretrain is not None:
        recipe = replace(recipe, linear=False)  # the layers' start is what was trained before
    spines = {k: backbone(recipe, f) for k, f in schema.fields.items()}
    device = next(iter(rows.x.values())).device
    heads = {
        k: f.head(recipe.likelihoods.get(kind_of(f))).to(device) for k, f in schema.fields.items()
    }
    shown = folded(schema)
    texts = [k for k in shown if isinstance(schema.fields[k], Text)]
    # Where they may be the model itself, they are exact.
    linear = (
        () in (wishes.hidden, recipe.hidden)
        and all(s.name == "flat" for s in spines.values())
        and not (wishes.penalties or recipe.penalties or wishes.corruption or recipe.corruption)
    )
    seen = rows if linear else spread(rows, sum(heads[k].width for k in shown))
    principal = principal_components(
        design({k: heads[k] for k in shown if k not in texts}, seen), exact=linear
    )  # tokens are too many levels, and none says much by itself
    tokens = sum(len(schema.fields[k].sizes) for k in texts)
    entries = sum(len(schema.fields[k].sizes) for k in shown)
    heads = {k: h for k, h in heads.items() if not schema.fields[k].given}
    fusion = fusions.resolve(wishes.fusion or recipe.fusion)
    corruption = decide_corruption(wishes.corruption or recipe.corruption, schema)
    direct = None
    if fusion.name == "direct":
        direct = encoded_width(schema, heads, spines, corruption)
    body = dict(recipe.body(len(rows), entries) if recipe.body is not None else {})
    answer = coded_answer(schema, heads, spines)
    most = body.pop("size", body["hidden"][0]) if body else direct
    if recipe.answered and answer:
        most = heads[answer].width
    latent, size = decide_latent(wishes.latent, recipe, principal, entries, tokens, most, reasons)
    charged = decide_penalties(wishes.penalties, recipe, latent)
    if fusions[fusion.name] is Ensemble:
        check_apart(latent, charged, answer)
        size = size_of_members(fusion, size, wishes.latent, reasons)
    if answer and spines[answer].options.get("log"):
        latent, size = with_classes(latent, size, answer, heads[answer].width, wishes.latent)
        reasons.append(f"code of {size} numbers: the first are the shares of classes of '{answer}'")
    if answer and size < heads[answer].width:
        raise InputError(
            f"the code holds the answer of '{answer}', which takes {heads[answer].width} numbers, "
            f"but the latent size is {size}; give {heads[answer].width} or more, or leave it out"
        )
    if direct is None:
        hidden = wishes.hidden
        if hidden is None:
            width = len(principal.mean) + TOKEN * tokens
            hidden = body.get("hidden") or decide_hidden(recipe, width, reasons)
        decided = {
            **body,
            "hidden": hidden,
            "linear": recipe.linear and bool(hidden),
            "answers": answers_of(heads[answer]) if answer else 0,
        }
        known = fusions.options(fusion.name)
        own = {k: v for k, v in decided.items() if k in known}
        fusion = PartSpec(fusion.name, {**own, **fusion.options})
    spec = ModelSpec(
        latent=latent,
        size=size,
        fusion=fusion,
        backbones=spines,
        likelihoods={k: likelihoods.spec(h) for k, h in heads.items()},
        weights=decide_weights(wishes.weights, schema, heads, rows, recipe.worth),
        corruption=corruption,
        penalties=charged,
    )
    return Assembly(name, parts, spec, principal, pretrain, tuple(reasons))


def spread(rows: Batch, width: int) -> Batch:
    """Rows spread over all, as many as tell principal components of that ``width`` from another.

    Those of many, or of wide ones, would take longer than training.
    """
    enough = min(PLENTY, max(ENOUGH, int(WORK / width**2)))
    if len(rows) < 2 * enough:
        return rows
    # Drawn, and not every so manieth: rows in order of time may have a period.
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))
    return rows.rows(order[:enough].sort().values.to(next(iter(rows.x.values())).device))


def default_recipe(schema: Schema) -> str:
    """Step by step for text and ragged series, convolved where an image is large, else dense."""
    kinds = schema.fields.values()
    if any(isinstance(f, Text) or (isinstance(f, Series) and f.ragged) for f in kinds):
        return "recurrent"
    large = any(isinstance(f, Image) and len(f.sizes) > LARGE for f in schema.fields.values())
    return "conv" if large else "dense"


def backbone(recipe: Recipe, own: Field) -> PartSpec:
    """Return the field's own backbone, else the recipe's for its kind, else the kind's."""
    kind = kind_of(own)
    usual = recipe.backbones.get(kind, NATIVE_BACKBONE.get(kind, "flat"))
    return backbones.resolve(
        own.backbone or (recipe.targets.get(kind, usual) if own.target else usual)
    )


def with_roles(schema: Schema, recipe: str | None) -> Schema:
    """Have fields beside a target read and not written, where the recipe says so."""
    targets = [f.target for f in schema.fields.values()]
    if recipe is None or not get(recipe).given or not any(targets):
        return schema
    fields = {k: f if f.target else replace(f, given=True) for k, f in schema.fields.items()}
    return replace(schema, fields=fields)


def coded_answer(
    schema: Schema, heads: Mapping[str, Likelihood], spines: Mapping[str, PartSpec]
) -> str | None:
    """Return the target whose answer stands in the code, of which there may be one."""
    found = [k for k in heads if schema.fields[k].target and backbones[spines[k].name].coded]
    if len(found) > 1:
        raise InputError(
            f"the code can hold the answer of one target, but '{found[0]}' and '{found[1]}' both "
            f"have the backbone 'coded'; give one of them another backbone, such as 'flat'"
        )
    return found[0] if found else None


def answers_of(head: Likelihood) -> int:
    """Return how many numbers are the logits of one choice among several; 0 where they are not."""
    return head.width if head.sizes == (head.width,) and head.width > 1 else 0


def check_kinds(name: str, recipe: Recipe, schema: Schema) -> None:
    """Refuse a recipe for kinds of field of which the data has none."""
    kinds = [kind_of(f) for f in schema.fields.values()]
    if recipe.only and not set(recipe.only) & set(kinds):
        raise InputError(
            f"recipe '{name}' is for fields of kind {' or '.join(recipe.only)}, but the data has "
            f"{', '.join(dict.fromkeys(kinds))}; choose another recipe, see refold.recipes()"
        )


def folded(schema: Schema) -> list[str]:
    """Fields that the code is to hold: those seen and given back, or where none is, those seen."""
    rebuilt = [k for k, f in schema.fields.items() if not (f.target or f.given)]
    return rebuilt or [k for k, f in schema.fields.items() if not f.target]


def encoded_width(
    schema: Schema,
    heads: Mapping[str, Likelihood],
    spines: Mapping[str, PartSpec],
    corruption: PartSpec | None,
) -> int:
    """Return the numbers that the fields' encoders give together: a code without a body."""
    return sum(
        backbones.build(spines[k], geometry(f, heads.get(k), corruption)).encoded
        for k, f in schema.fields.items()
        if not f.target
    )


def decide_corruption(wish: CorruptionWish, schema: Schema) -> PartSpec | None:
    """Return the corruption; one that acts on images needs one."""
    if wish is None:
        return None
    spec = resolve(wish)
    images = any(isinstance(f, Image) for f in schema.fields.values())
    if corruptions.build(spec).images_only and not images:
        raise InputError(
            f"the corruption '{spec.name}' acts on images, and the data has none; give images as "
            f"an array (n, height, width), or choose another corruption"
        )
    return spec


def decide_latent(
    wish: int | str | Latent | None,
    recipe: Recipe,
    principal: Principal,
    entries: int,
    tokens: int,
    most: int | None,
    reasons: list[str],
) -> tuple[PartSpec, int]:
    """Return the latent and the size of the code; where nothing is squeezed ``most`` says it."""
    if isinstance(wish, Latent):
        return latents.spec(wish), wish.size
    usual = PartSpec.parse(recipe.latent)
    given = PartSpec.parse(wish) if isinstance(wish, str) else usual
    if given.name == usual.name:
        given = PartSpec(given.name, {**usual.options, **given.options})
    options = {k: v for k, v in given.options.items() if k != "size"}
    spec = latents.resolve(PartSpec(given.name, options))
    size = given.options.get("size") if isinstance(wish, str) else wish
    if size is not None:
        if not fits(size, int) or not 1 <= size <= LARGEST:
            raise InputError(
                f"the latent size is {size}; it must be a whole number from 1 to {LARGEST:,}"
            )
        return spec, int(size)
    if most is not None:
        why = "what the encoders give is the code"
        if recipe.answered:
            why = "the code is the answer"
        elif recipe.body is not None:
            why = "that of the layers"
        reasons.append(f"latent size {most}: {why}")
        return spec, most
    if recipe.times:
        most = WEIGHTS // (2 * entries)
        size = max(recipe.least, min(recipe.times * entries, most))
        why = f"{recipe.times} times the {entries} numbers of a row"
        if size < recipe.times * entries:
            why = f"as many as {WEIGHTS:,} weights allow for rows of {entries} numbers"
        reasons.append(f"latent size {size}: {why}")
        return spec, size
    needed, whys = 0, list[str]()
    if entries > tokens:
        needed = choose_size(principal, entries - tokens)
        kept = float(principal.variance[:needed].sum() / max(principal.total, 1e-300))
        whys = [f"{needed} principal components keep {kept:.0%} of the variance"]
    if tokens:
        more = min(WIDEST, 2 * tokens)
        needed, whys = needed + more, [*whys, f"{more} numbers for texts of {tokens} tokens"]
    size = max(32, needed * recipe.expand) if recipe.expand > 1 else needed
    why = ", and ".join(whys)
    times = f", times {recipe.expand} for a sparse code" if recipe.expand > 1 else ""
    reasons.append(f"latent size {size}: {why}{times}")
    return spec, size


def with_classes(
    latent: PartSpec, size: int, answer: str, classes: int, wish: int | str | Latent | None
) -> tuple[PartSpec, int]:
    """Have a latent hold the shares of an answer's classes, beside the entries that were chosen.

    A size that the user gave is that of the whole code.
    """
    chosen = wish is None or (isinstance(wish, str) and "size" not in PartSpec.parse(wish).options)
    if latents[latent.name] is not Matched:
        held = 0
    elif latent.options.get("prior") == "categorical":
        held = size = classes if chosen else size
    else:
        held = latent.options.get("classes") or classes
        latent = PartSpec(latent.name, {**latent.options, "classes": held})
        size = size + held if chosen else size
    if held != classes:
        raise InputError(
            f"'{answer}' has {classes} classes, whose shares must be the first entries of the "
            f"code; use latent='matched(classes={classes})', or the backbone 'coded' without log"
        )
    return latent, size


def check_apart(latent: PartSpec, charged: tuple[PartSpec, ...], answer: str | None) -> None:
    """Refuse what joins the codes of an ensemble's members, which learn apart."""
    options = latent.options
    joining = options.get("draws", 1) > 1 or options.get("top") or options.get("maps")
    given = {f"latent '{latent}'": not joining and latents[latent.name] in APART}
    given |= {f"penalty '{p.name}'": penalties[p.name] in APART for p in charged}
    given |= {} if answer is None else {f"answer of '{answer}' in the code": False}
    for name, apart in given.items():
        if not apart:
            raise InputError(
                f"members of an ensemble have codes of their own, and the {name} takes all as one; "
                f"use the latent 'plain', 'gaussian', 'l1' or 'lifetime' with the penalties 'l1' "
                f"or 'contractive', or the fusion 'concat'"
            )


def size_of_members(
    fusion: PartSpec, size: int, wish: int | str | Latent | None, reasons: list[str]
) -> int:
    """Return the size of the code of an ensemble: what was chosen is that of each member's."""
    given = not isinstance(wish, str) and wish is not None
    if given or (isinstance(wish, str) and "size" in PartSpec.parse(wish).options):
        return size
    members = {**fusions.options(fusion.name), **fusion.options}["members"]
    if members < 1:
        return size  # which the body refuses
    reasons.append(f"code of {members} times {size} numbers: each member has its own")
    return size * members


def decide_penalties(
    wish: tuple[str | Penalty, ...], recipe: Recipe, latent: PartSpec
) -> tuple[PartSpec, ...]:
    """Return the recipe's penalties, then the user's, which replace those of the same name.

    Those without which a latent learns nothing join the recipe's.
    """
    given = tuple(penalties.resolve(p) for p in wish)
    usual = tuple(penalties.resolve(p) for p in (*recipe.penalties, *latents[latent.name].needs))
    replaced = {p.name for p in given}
    found = (*(p for p in usual if p.name not in replaced), *given)
    if latents[latent.name] is Matched and not any(penalties[p.name].matching for p in found):
        able = " or ".join(f"penalties=('{p}',)" for p in penalties if penalties[p].matching)
        raise InputError(
            f"nothing pulls the codes of latent '{latent.name}' to its prior; add {able}"
        )
    return found


def decide_hidden(recipe: Recipe, width: int, reasons: list[str]) -> Hidden:
    """Return the body's stages: twice the data's width, a power of two in 64..512, then half."""
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
    worth: tuple[float, float] | None = None,
) -> dict[str, tuple[float, ...]]:
    """Return each output's weights, by a named rule, or as given by field or by column."""
    if isinstance(wish, str):
        rule = PartSpec.parse(wish).name
        if rule not in ("balanced", "equal", *balancers):
            raise unknown("weights", rule, ("balanced", "equal", *balancers))
        mode = "equal" if rule == "equal" else "balanced"
        return balance(heads, schema.fields, rows, mode, worth)
    wish = {str(name): value for name, value in wish.items()}
    columns = {c: k for k in heads for c in schema.fields[k].columns}
    for name, value in wish.items():
        if name not in heads and name not in columns:
            raise unknown("field in weights", name, {*heads, *columns})
        if not 0 <= value < float("inf"):
            raise InputError(f"the weight of '{name}' is {value}; give a number of 0 or more")
    weights: dict[str, tuple[float, ...]] = {}
    for k in heads:
        own = schema.fields[k]
        whole = float(wish.get(k, 1.0))
        part = [1.0 if c == k else float(wish.get(c, 1.0)) for c in own.columns]
        each = tuple(whole * share * own.weight for share in part)
        weights[k] = each if len(set(each)) > 1 else each[:1]
    return weights
