"""From rows and wishes to a trained, judged and calibrated model: what ``fit`` does, in order."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from refold import inference
from refold.assemble import Assembly, Wishes, assemble, folded, with_roles
from refold.backbones.tied import ties
from refold.data.corruptions import corruptions
from refold.data.schema import Override, Schema
from refold.data.streams import Stream, Told, unheeded
from refold.detection import Calibration, Detector, Evidence, Reference, evidences, ordinary
from refold.errors import InputError, unknown
from refold.fusion import Dictionary, Fusion
from refold.hints import fits
from refold.latents import Variational
from refold.model import Model
from refold.parts import PartSpec
from refold.recipe import Recipe, get
from refold.spec import ModelSpec
from refold.table import Table
from refold.training.balance import begin
from refold.training.checkpoint import Checkpoints
from refold.training.doubts import doubts
from refold.training.fit import Progress, Run, Watch, fit
from refold.training.machine import fast_bfloat16
from refold.training.plan import Plan
from refold.training.precision import Precision
from refold.training.pretrain import LAYERWISE, fit_layerwise, freeze, start_from
from refold.training.start import (
    can_start_pca,
    solved_by_pca,
    start_centred,
    start_constant,
    start_latent,
    start_pca,
)
from refold.types import Batch
from refold.uses.inspect import Quality, prefix_curve, quality
from refold.uses.local import Local

ORDERED = 64  # sizes of prefixes that are judged, spread over all where there are more
TENTH = 0.1  # share of rows that are not learnt from, where some are said to be anomalies
SPLIT = 7_265_666  # has the draw of held-out rows differ from others of the same seed
QUARTER = 0.25  # share of a sample that is held out at most
SMALLEST = 20  # rows below which none are held out
PLAIN = {"optimizer": "adamw", "min_delta": 1e-5}  # what the estimator says where the user does not


@dataclass(frozen=True)
class Course:
    """How to learn: what the user said of the model, of its start and of its training.

    ``start`` is a shallower model to take layers from, and its schema; ``tied`` may be
    ``"pretrain"`` or the pairs to tie; ``evidence`` is the recipe's where the user named none;
    ``contamination`` is the share of rows believed to be anomalies; ``plan`` holds the arguments of
    :meth:`Plan.choose`.
    """

    wishes: Wishes = field(default_factory=Wishes)
    fields: Mapping[str, Override] | None = None
    tied: bool | str | Sequence[int] = False
    start: tuple[Model, Schema] | None = None
    freeze: tuple[str, ...] = ()
    validation: float = 0.1
    seed: int = 0
    precision: str = "auto"
    parallel: str = "ddp"
    evidence: Sequence[str | Evidence] | None = None
    contamination: float | str | None = None
    plan: Mapping[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True)
class Learnt:
    """A trained model, and all that was found out on the way.

    ``members`` are further models of the same parts, which help to fill gaps; ``doubts`` are those
    of the reasons that speak against the model.
    """

    schema: Schema
    spec: ModelSpec
    recipe: str
    model: Model
    plan: Plan
    run: Run
    quality: Quality
    calibration: Calibration
    detector: Detector
    reference: Reference
    local: Local | None
    members: tuple[Model, ...]
    reasons: tuple[str, ...]
    notes: tuple[str, ...]
    doubts: tuple[str, ...]


@dataclass(frozen=True)
class Rows:
    """Rows of the table as tensors, and as the encoder shall see them where that differs."""

    targets: Batch
    inputs: Batch | None

    def part(self, index: NDArray[np.int64], device: torch.device) -> Rows:
        """Rows by position, on a device."""
        at = torch.from_numpy(index)
        inputs = None if self.inputs is None else self.inputs.rows(at).to(device)
        return Rows(self.targets.rows(at).to(device), inputs)

    def seeing(self, names: Sequence[str]) -> Rows:
        """The same rows, of which the encoder shall see the named fields alone."""
        return Rows(self.targets, (self.inputs or self.targets).only(names))


@dataclass(frozen=True)
class Material:
    """The rows at hand: a whole table, or a sample of a stream and what tells of the rest.

    Positions of rows of the table that are trained on and held out; ``rows`` are how many there are
    to train on in all, and ``held`` the places of those held out of a stream.
    """

    table: Table
    schema: Schema
    train_at: NDArray[np.int64]
    held_at: NDArray[np.int64]
    rows: int
    held: NDArray[np.int64]

    @classmethod
    def of(cls, rows: Table | Stream, course: Course, told: Told) -> Material:
        """Part the rows, and fit the schema."""
        named, share = course.wishes.recipe, held_share(course, len(rows))
        scales = {} if named is None else get(named).scales
        if isinstance(rows, Table):
            train_at, held_at = split(len(rows), share, course.seed)
            schema = Schema.fit(rows, train_at, course.fields, scales)
            return cls(rows, with_roles(schema, named), train_at, held_at, len(train_at), held_at)
        found = rows.look(course.seed, course.fields, told)
        few = len(found.places)
        train_at, held_at = split(few, min(share * len(rows) / few, QUARTER), course.seed)
        schema = with_roles(found.schema(train_at, course.fields, scales), named)
        held = found.places[held_at]
        train_at = np.concatenate([train_at, found.gaps])
        return cls(found.table, schema, train_at, held_at, len(rows) - len(held), held)


def learn(
    source: Table | Stream,
    shown: Table | None,
    course: Course,
    device: torch.device,
    watch: Watch | None,
    checkpoints: Checkpoints | None = None,
) -> Learnt:
    """Learn from the rows of ``source``; ``shown`` holds them as the encoder shall see them.

    Of a stream, a sample of rows does for all but the training itself.
    """
    stream = source if isinstance(source, Stream) else None
    if stream is not None and course.contamination:
        raise InputError(
            f"contamination={course.contamination} compares all rows with each other, and these "
            f"are read in parts; leave it out, or give more memory"
        )
    told = telling(watch)
    hand = Material.of(source, course, told)
    table, schema, train_at, held_at = hand.table, hand.schema, hand.train_at, hand.held_at
    rows = hand.rows
    targets, notes = schema.encode(table)
    every = Rows(targets, None if shown is None else seen(shown, schema))
    train = every.part(train_at, device)
    held = every.part(held_at, device) if len(held_at) else None
    check_outputs(schema, train.targets)
    chosen = assemble(schema, train.targets, _wishes(course))
    loop = _loop(chosen, course)
    model = begun(chosen, schema, train.targets, course, device)
    reasons = [*chosen.reasons, *unlike(model.fusion)]
    if course.contamination:
        share = TENTH if isinstance(course.contamination, str) else course.contamination
        own = targets.rows(torch.from_numpy(train_at))
        kept = ordinary(model, own, schema, share)
        reasons.append(
            f"{len(train_at) - len(kept)} of {len(train_at)} rows are not learnt from, those "
            f"farthest from groups of others: contamination={course.contamination}"
        )
        train_at = train_at[kept.numpy()]
        train, rows = every.part(train_at, device), len(train_at)
    usual = usual_training(chosen.parts, rows, schema, chosen.spec.size)
    given = {k: v for k, v in course.plan.items() if v is not None and v != PLAIN.get(k)}
    precision = course.precision
    if usual.pop("precision", "") == "bfloat16" and precision == "auto" and fast_bfloat16(device):
        precision = f"bfloat16: recipe '{chosen.recipe}'"
    wanted = {k: v for k, v in usual.items() if k in course.plan}
    plan = Plan.choose(rows, **{**course.plan, **wanted, **given}, last=chosen.parts.last)
    if course.plan.get("labelled") and not schema.targets:
        reasons.append("labelled has no effect: no column is a target")
    solved = stream is None and _is_solved(chosen, model, every, course)
    if solved:
        plan = plan.without_steps()
        reasons.append("no training steps: the principal components are the optimum")
    if model.latent.relaxed and not isinstance(model.latent, Variational):
        reasons.append("codes are freer in use than in training: reconstructions differ from those")
    noise = chosen.spec.corruption
    if noise is not None and len(model.inputs) < len(schema.fields):
        every = every.seeing(model.inputs)  # a corruption has no business with what is predicted
        train = train.seeing(model.inputs)
        held = None if held is None else held.seeing(model.inputs)
    feed = None
    if stream is not None:
        reasons += [stream.reason, *unheard(chosen.parts, usual, plan)]
        usual, plan = {**usual, "members": 1}, replace(plan, labelled=0)
        seen_alone = None if train.inputs is None else model.inputs
        feed = stream.feed(
            schema, train.targets, hand.held, plan.batch_size,
            seed=course.seed, seen=seen_alone, told=told,
        )  # fmt: skip
        if checkpoints is not None:
            checkpoints.reading = feed.reading
        reasons.append(feed.store.sentence)

    def train_on(
        model: Model,
        train: Rows,
        held: Rows | None,
        seed: int,
        watch: Watch | None,
        said: list[str],
    ) -> Run:
        balancer = begin(course.wishes.weights, model, schema.fields, train.targets, said)
        format_ = Precision.of(precision, model, plan, device, plain=loop is fit)
        caution = format_.caution
        run = loop(
            model,
            train.targets if feed is None else feed,
            None if held is None else held.targets,
            plan,
            inputs=train.inputs,
            held_inputs=None if held is None else held.inputs,
            corruption=None if noise is None else corruptions.build(noise),
            seed=seed,
            bfloat16=format_.bfloat16,
            **({} if caution is None else {"caution": caution}),
            balancer=balancer,
            checkpoints=checkpoints,
            parallel=course.parallel,
            watch=watch,
        )
        if balancer is not None:
            balancer.rest()
        run.precision = format_.sentence()
        if format_.said:
            said.append(run.precision)
        return run

    try:
        run = train_on(model, train, held, course.seed, watch, reasons)
    finally:
        if feed is not None:
            feed.close()
            notes += feed.notes
    members: list[Model] = []
    for seed in range(course.seed + 1, course.seed + usual.get("members", 1)):
        if run.stopped == "interrupted":
            break
        # Each with rows of its own held out, so that together they learn from nearly all.
        torch.manual_seed(seed)
        here, there = split(len(table), len(held_at) / len(table), seed)
        other = begun(chosen, schema, every.part(here, device).targets, course, device)
        apart = every.part(there, device) if len(there) else None
        train_on(other, every.part(here, device), apart, seed, None, [])
        members.append(other)
    if members:
        reasons.append(f"{len(members) + 1} models fill gaps together, with other rows held out")
    if checkpoints is not None and (sentence := checkpoints.sentence()):
        reasons.append(sentence)
    judged = targets.rows(torch.from_numpy(train_at if held is None else held_at))
    figures = quality(model, judged, schema, chosen.principal)
    if model.latent.ordered or solved:
        curve = prefix_curve(model, judged, schema, chosen.principal, ORDERED)
        figures = replace(figures, curve=curve)
    if isinstance(model.fusion, Dictionary) and "l0" in run.best:
        figures = replace(figures, sparse=(run.best["l0"], run.best["dead_share"]))
    fitted = targets if stream is None else None  # a part of the rows is not known again
    named = chosen.parts.evidence if course.evidence is None else course.evidence
    own = train.targets.to("cpu")
    detector = Detector.learn(
        [evidences.resolve(e) for e in named],
        model,
        own,
        schema,
        setting=setting_of(course.contamination),
        fitted=fitted,
    )
    if detector.setting is None and detector.known is None:
        reasons.append("so many rows are not known again: those of the fit are judged as new ones")
    calibration = Calibration.of(model, detector, judged, schema, held is not None, fitted=fitted)
    reference = Reference.of(targets, schema, None if held is None else judged)
    local = None
    if chosen.parts.local and held is not None and stream is None:
        local = Local.of(model, own, judged, schema)
        figures = figures if local is None else replace(figures, filled=local.sentence())
    if solved and not detector.parts:
        # Held-out rows have served to judge; the closed form then takes them in as well.
        whole = targets.to(device)
        start_pca(model, whole, assemble(schema, whole, _wishes(course)).principal)
        calibration = calibration.with_codes(model, judged, schema)
    doubted = doubts(model, run, len(judged))
    return Learnt(
        schema,
        replace(chosen.spec, ties=ties(model)),
        chosen.recipe,
        model,
        plan,
        run,
        figures,
        calibration,
        detector,
        reference,
        local,
        tuple(members),
        (*reasons, *doubted),
        (*table.notes, *notes),
        tuple(doubted),
    )


def telling(watch: Watch | None) -> Told:
    """Return what tells a watcher of passes over the rows."""
    if watch is None:
        return unheeded
    return lambda doing, share: watch(Progress(0, 0, 0.0, None, doing, share))


def setting_of(contamination: float | str | None) -> str | None:
    """Return how all rows are judged; None leaves it to whether a row was in the fit."""
    return None if contamination is None else "outliers" if contamination else "novelty"


def unlike(body: Fusion) -> list[str]:
    """Say where a dictionary cannot read rows as it gives them back."""
    if not isinstance(body, Dictionary):
        return []
    if body.masked:
        return ["gaps stay at the dictionary's centre; steps take longer than with complete rows"]
    if not body.centred:
        return ["no centre is taken off what is read, which is not what is given back"]
    return []


def unheard(recipe: Recipe, usual: Mapping[str, Any], plan: Plan) -> list[str]:
    """Say what is left out because rows come in parts, and a sample has to do for all of them."""
    said = ["a sample of the rows tells scales, starts the weights and judges; all are trained on"]
    if recipe.local:
        said.append("gaps are not filled from rows nearby, which would have to be in memory")
    if usual.get("members", 1) > 1:
        said.append("one model fills gaps, not several with other rows held out")
    if plan.labelled:
        said.append("labelled has no effect: rows with a target come as often as all others")
    return said


def usual_training(recipe: Recipe, rows: int, schema: Schema, size: int) -> dict[str, Any]:
    """Return how a recipe trains where the user does not say; empty where it is as usual."""
    training = recipe.training
    entries = sum(len(schema.fields[k].sizes) for k in folded(schema))
    found = {} if training is None else dict(training(rows, entries))
    return {k: v(size) if callable(v) else v for k, v in found.items()}


def held_share(course: Course, rows: int) -> float:
    """Return the share of rows to hold out: the user's, or more where a recipe has to judge."""
    if course.validation == 0 or course.wishes.recipe is None:
        return course.validation
    return max(course.validation, min(0.2, get(course.wishes.recipe).held_out / rows))


def split(n: int, share: float, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Seeded positions of training rows and of held-out rows; none below 20 rows.

    The draw is none that a user makes with the same seed: rows chosen that way, to be the few with
    labels, would all be held out.
    """
    order = np.random.default_rng((SPLIT, seed)).permutation(n)
    held = 0 if n < SMALLEST else min(round(share * n), n - 2)
    return np.sort(order[held:]), np.sort(order[:held])


def seen(shown: Table, schema: Schema) -> Batch:
    """Encode rows as inputs: kept near the training range, as they will be in use."""
    return inference.guard(schema.encode(shown)[0], schema)


def check_outputs(schema: Schema, train: Batch) -> None:
    """Refuse an output of which no training row has a value."""
    for name, own in schema.fields.items():
        seen = train.observed[name]
        if own.given or seen is None or bool(seen.any(0).all()):
            continue
        entry = own.entries[int(seen.any(0).logical_not().int().argmax())]
        raise InputError(
            f"'{entry}' has no value in any of the {len(train)} training rows, so there is nothing "
            f"to learn it from; give rows that have one, or leave it out"
        )


def begun(
    chosen: Assembly, schema: Schema, train: Batch, course: Course, device: torch.device
) -> Model:
    """Build the model with the weights it starts from, its ties and its frozen layers."""
    model = chosen.spec.build(schema).to(device)
    start_constant(model, train)
    start_centred(model, train)
    if can_start_pca(model) and _starts_by_itself(chosen) and not course.tied:
        start_pca(model, train, chosen.principal)
    if course.start is not None:
        other, known = course.start
        check_columns(schema, known)
        start_from(model, other)
    start_latent(model, train)
    if course.tied:
        model.tie(None if isinstance(course.tied, bool | str) else tuple(course.tied))
    freeze(model, course.freeze)
    if not any(p.requires_grad for p in model.parameters()):
        raise InputError("every parameter is frozen, so nothing can be learnt; freeze fewer")
    return model


def check_columns(schema: Schema, known: Schema) -> None:
    """Refuse layers that were learnt for other columns, or for the same in another order."""
    mine, theirs = ([f.columns for f in s.fields.values()] for s in (schema, known))
    if mine != theirs:
        raise InputError(
            f"cannot start from that model: it was fitted on the columns {_listed(theirs)}, and "
            f"these are {_listed(mine)}; give the same columns in the same order"
        )


def _listed(columns: list[tuple[str, ...]]) -> str:
    return ", ".join(name for field in columns for name in field)


def _wishes(course: Course) -> Wishes:
    """Return the wishes; layers that are taken over need no path for a start of their own."""
    return course.wishes if course.start is None else replace(course.wishes, pretrain="start")


def _starts_by_itself(chosen: Assembly) -> bool:
    """Whether the user left the first weights to refold."""
    return chosen.spec.fusion.options.get("init", "auto") == "auto"


def _is_solved(chosen: Assembly, model: Model, every: Rows, course: Course) -> bool:
    """Whether the principal components, from which the model starts, are its optimum."""
    return (
        solved_by_pca(model, every.targets)
        and _starts_by_itself(chosen)
        and chosen.spec.corruption is None
        and every.inputs is None
        and course.plan.get("epochs") is None
        and not (course.tied or course.start or course.freeze or chosen.pretrain)
    )


def _loop(chosen: Assembly, course: Course) -> Callable[..., Run]:
    """Return the plain loop, or the layer-wise one that the user or the recipe names."""
    if chosen.pretrain is None or course.start is not None:
        if course.tied == "pretrain":
            raise InputError(
                "tied='pretrain' ties layers while they are trained one by one; add "
                "pretrain='layerwise', or use tied=True"
            )
        return fit
    given = PartSpec.parse(chosen.pretrain)
    if given.name != LAYERWISE:
        raise unknown("way to pretrain", given.name, (LAYERWISE,))
    for option in given.options:
        if option != "share":
            raise unknown(f"option of pretrain '{LAYERWISE}'", option, ("share",))
    share = given.options.get("share", 0.5)
    if not fits(share, float) or not 0 < share < 1:
        raise InputError(f"pretrain's share is {share}; give a number between 0 and 1")
    return partial(fit_layerwise, share=share, loosen=course.tied == "pretrain")
