"""What is not known from what is: targets predicted, gaps filled, rows drawn given some columns."""

from __future__ import annotations

from collections.abc import Collection, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from refold import inference
from refold.casting import as_dtype, cast, list_parts
from refold.data.schema import Schema
from refold.errors import InputError, unknown
from refold.fields import Binary, Distribution, Field, Numeric, Ordinal, Series, Vector
from refold.fields.base import scalar
from refold.fields.category import Classes
from refold.latents import Variational
from refold.model import Model
from refold.ops.segments import segment_argmax
from refold.table import Column, Table, compute, is_list
from refold.types import Batch
from refold.uses.local import WIDEST, Local, entries_of, views_of

FLAG = "_imputed"


@torch.inference_mode()
def predicted(
    model: Model, rows: Batch, schema: Schema, columns: Collection[str]
) -> dict[str, Column]:
    """Best single value of the named columns."""
    found = schema.values(inference.joined(_points(model, rows, schema, columns)))
    return {c: v for c, v in found.items() if c in columns}


@torch.inference_mode()
def probabilities(
    model: Model, rows: Batch, schema: Schema, columns: Collection[str]
) -> dict[str, Column]:
    """Probability of each level of the named columns, ``{"column=level": [n]}``.

    Raises :class:`InputError` for a column that has no levels.
    """
    for column in columns:
        kind = schema.fields[schema.field_of(column)]
        if not isinstance(kind, Classes | Distribution):
            raise InputError(
                f"column '{column}' holds numbers, which have no probabilities; name columns of "
                f"classes, or leave proba out"
            )
    names = _fields(schema, columns)
    parts: dict[str, list[Tensor]] = {k: [] for k in names}
    for output, count in inference.outputs(model, rows, schema):
        for k in names:
            mean = model.likelihoods[k].expected(output.params[k])[:count].double().cpu()
            coins = isinstance(schema.fields[k], Binary)
            parts[k].append(torch.stack([1 - mean, mean], 2).flatten(1) if coins else mean)
    found: dict[str, Column] = {}
    for k in names:
        own, shares = schema.fields[k], torch.cat(parts[k]).numpy()
        labels = _labels(own)
        found |= {n: shares[:, i] for i, (c, n) in enumerate(labels) if c in columns}
    return found


def _labels(own: Field) -> list[tuple[str, str]]:
    """Column and name of each probability that a field's likelihood gives."""
    if not isinstance(own, Classes):
        return [(own.columns[0], entry) for entry in own.entries]
    width = 2 if isinstance(own, Binary) else 1  # a column of one level has two coin sides
    named: list[tuple[str, str]] = []
    for column, levels in zip(own.columns, own.levels, strict=True):
        sides = [*levels, *(None,) * (width - len(levels))]
        named += [(column, f"{column}={level}") for level in sides]
    return named


@torch.inference_mode()
def likeliest(
    models: Sequence[Model], table: Table, rows: Batch, schema: Schema, local: Local | None
) -> dict[str, Column]:
    """Best single values of every column of ``table`` with a gap.

    What several ``models`` expect is averaged; ``local`` knows what to add to it.
    """
    columns, model = _open(table, schema), models[0]
    if not columns:
        return {}
    points = inference.joined(_points(model, rows, schema, columns))
    if local is not None or len(models) > 1:
        before, after = expected(models, rows, schema, local)
        points = {k: moved(schema.fields[k], p, before[k], after[k]) for k, p in points.items()}
    return schema.values(points, table)


@torch.inference_mode()
def possible(
    models: Sequence[Model], table: Table, rows: Batch, schema: Schema, local: Local | None
) -> dict[str, Column]:
    """One draw of what the models hold possible for every column of ``table`` with a gap.

    A code with a prior is drawn, and values given it. Else entries are drawn one after the other,
    in a random order, each given those before it: classes from their probabilities, numbers as far
    from the best value as ``local`` saw them stray in rows held out. Without ``local`` all are
    drawn at once, as far as the likelihood of the field says.
    """
    columns, model = _open(table, schema), models[0]
    if not columns:
        return {}
    if local is None or model.latent.generative:
        refuse_pointlike(model, schema, columns)
        return schema.values(drawn(model, rows, schema, 1), table)
    refuse_pointlike(model, schema, [c for c in columns if c in schema.targets])
    known = Batch(
        {k: x.clone() for k, x in rows.x.items()},
        {k: None if o is None else o.clone() for k, o in rows.observed.items()},
    )
    entries = list(entries_of(model, schema))
    for i in torch.randperm(len(entries)).tolist():
        name, entry, place = entries[i]
        seen = known.observed[name]
        at = torch.zeros(0) if seen is None else (~seen[:, entry]).nonzero().flatten()
        if seen is None or len(at) == 0:
            continue
        _, after = expected(models, known.rows(at), schema, local, (name, entry))
        view = torch.cat([after[k] for k in model.rebuilt], 1)[:, place]
        value = drawn_value(schema.fields[name], view, local.spread[place])
        known.x[name][at, entry] = value.to(known.x[name].dtype)
        seen[at, entry] = True
    points = {k: known.x[k].flatten(1) for k in model.rebuilt}
    others = [k for k in _fields(schema, columns) if k not in points]
    if others:
        found = drawn(model, known, schema, 1)
        points |= {k: found[k] for k in others}
    return schema.values(points, table)


def drawn_value(own: Field, view: Tensor, spread: Tensor) -> Tensor:
    """Draw one entry of ``x`` ``[n]`` from what is expected of it, ``view`` ``[n, C]``."""
    if view.shape[1] > 1:
        level = view.clamp_min(1e-9).multinomial(1)[:, 0]
        return level / max(1, view.shape[1] - 1) if isinstance(own, Ordinal) else level
    if isinstance(own, Binary):
        return torch.rand(len(view)) < view[:, 0]
    return view[:, 0] + spread * torch.randn(len(view))


def expected(
    models: Sequence[Model],
    rows: Batch,
    schema: Schema,
    local: Local | None,
    only: tuple[str, int] | None = None,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What the first model expects, and what all of them do with what rows nearby know.

    The latter of all missing entries, or of the one entry ``only``.
    """
    before = views_of(models[0], rows, schema)
    every = [before, *(views_of(m, rows, schema) for m in models[1:])]
    after = {k: torch.stack([v[k] for v in every]).mean(0) for k in before}
    if local is not None:
        after = local.corrected(models[0], rows, schema, after, only)
    return before, after


def moved(own: Field, points: Tensor, before: Tensor, after: Tensor) -> Tensor:
    """Best single values once a model expects ``after`` in place of ``before``, ``[n, V]`` each."""
    if max(own.sizes) == 1:
        return points + (after - before)
    level = segment_argmax(after, own.sizes)
    top = (torch.tensor(own.sizes) - 1).clamp_min(1)
    return level / top if isinstance(own, Ordinal) else level


def filled(
    table: Table, schema: Schema, values: Mapping[str, Column], *, flags: bool
) -> dict[str, Column]:
    """Columns of ``table`` with ``values`` in their gaps; observed cells are those of the table.

    With ``flags``, a column of booleans for every column that had a gap follows them all.
    """
    whole, marks = dict(table.columns), dict[str, Column]()
    for name, column in table.columns.items():
        gaps = missing(column)
        if not gaps.any():
            continue
        if name in values:
            own = schema.fields[schema.field_of(name)]
            whole[name] = fill(column, _like_training(values[name], own, name), own)
        elif name in schema.aside and schema.aside[name].value is not None:
            constant = pa.scalar(schema.aside[name].value)
            whole[name] = compute.coalesce(column, constant.cast(scalar(column).type))
        marks[name + FLAG] = pa.chunked_array([gaps]) if gaps.ndim == 1 else gaps
    taken = [name for name in marks if name in whole]
    if flags and taken:
        raise InputError(
            f"the data has a column '{taken[0]}', which is the name of a flag; rename it, or leave "
            f"flags out"
        )
    return {**whole, **marks} if flags else whole


def unfilled(table: Table, schema: Schema) -> list[str]:
    """Columns of a table whose gaps stay, because no model of them was learnt."""
    learnt = {c for f in schema.fields.values() if not f.given for c in f.columns}
    known = {c for c, a in schema.aside.items() if a.value is not None}
    return [
        c
        for c, column in table.columns.items()
        if c not in learnt | known and missing(column).any()
    ]


def untold(model: Model, rows: Batch) -> list[str]:
    """Fields with gaps of which the model was never told any in training."""
    found: list[str] = []
    for k in model.inputs:
        seen, geometry = rows.observed[k], model.backbones[k].geometry
        classes = max(geometry.sizes) > 1  # have a level of their own for what is missing
        if seen is not None and not geometry.missing and not classes and not bool(seen.all()):
            found.append(k)
    return found


def refuse_pointlike(model: Model, schema: Schema, columns: Collection[str]) -> None:
    """Refuse to draw values where neither the code is drawn nor what it gives.

    A code that a penalty pulled to a prior as a whole is one value for each row all the same.
    """
    if isinstance(model.latent, Variational):
        return
    other = (
        "fit with recipe='vae'" if model.latent.generative else
        f"fit with recipe='imputation', some rows held out, on rows of at most {WIDEST} numbers "
        f"and levels"
    )  # fmt: skip
    for k in _fields(schema, columns):
        if not model.likelihoods[k].spreads:
            raise InputError(
                f"values of '{k}' cannot be drawn: its likelihood has no spread of its own; give "
                f"its field a likelihood that has (gaussian, laplace or student), or {other}"
            )
        if schema.fields[k].smooth:
            raise InputError(
                f"values of '{k}' cannot be drawn: they are given by their mean, and the code of a "
                f"row is always the same; fit with recipe='vae'"
            )


def refuse_pointlike_beside(given: Table, model: Model, schema: Schema) -> None:
    """Refuse to draw what ``given`` leaves open, as :func:`refuse_pointlike` does."""
    learnt = [c for f in schema.fields.values() if not f.given for c in f.columns]
    whole = {c for c, column in given.columns.items() if not missing(column).any()}
    refuse_pointlike(model, schema, [c for c in learnt if c not in whole])


@torch.inference_mode()
def drawn(model: Model, rows: Batch, schema: Schema, n: int) -> dict[str, Tensor]:
    """Draw ``n`` rows for each row: its code from the posterior, each output given that code.

    Of a row in which nothing is known, the code is drawn from the prior.
    """
    rows = rows.rows(torch.arange(len(rows)).repeat_interleave(n))
    with drawing(model):
        parts = [
            {k: v[:count] for k, v in inference.draws(model, o.params, schema).items()}
            for o, count in inference.outputs(model, rows, schema)
        ]
    found = inference.joined(parts)
    blank = unknown_rows(model, rows)
    if model.latent.generative and not model.skipping and len(blank):
        z = model.latent.sample(len(blank))
        new = [inference.draws(model, p, schema) for p in inference.decode(model, z)]
        for name, values in inference.joined(new).items():
            found[name][blank] = values
    return found


def unknown_rows(model: Model, rows: Batch) -> Tensor:
    """Positions of the rows in which no input is known."""
    seen = [rows.observed[k] for k in model.inputs]
    known = [torch.ones(len(rows), dtype=torch.bool) if s is None else s.any(1) for s in seen]
    return (~torch.stack(known).any(0)).nonzero().flatten()


@contextmanager
def drawing(model: Model) -> Generator[None]:
    """Let codes be drawn from their posterior, as in training, with all layers as in use."""
    parts: Sequence[Any] = (model.latent, model.fusion) if model.latent.generative else ()
    model.eval()
    for part in parts:
        part.training = True  # not of the layers inside: dropout stays off
    try:
        yield
    finally:
        model.eval()


def without(table: Table, columns: Collection[str]) -> Table:
    """Return the table without the named columns."""
    return replace(table, columns={k: c for k, c in table.columns.items() if k not in columns})


def keep_given(
    drawn: Mapping[str, Column], given: Table, n: int, schema: Schema
) -> dict[str, Column]:
    """Put the values that were given, each ``n`` times, in place of what was drawn for them."""
    kept = given.take(np.repeat(np.arange(len(given)), n))
    result = dict(drawn)
    for name, column in kept.items():
        if name not in drawn:
            result[name] = column
        elif isinstance(own := schema.fields[schema.field_of(name)], Series):
            result[name] = own.filled(column, drawn[name])
        elif isinstance(column, np.ndarray):
            known = as_dtype(column, np.asarray(drawn[name]).dtype)
            result[name] = fill(known, drawn[name], schema.fields[schema.field_of(name)])
        else:
            own = scalar(drawn[name])
            result[name] = compute.coalesce(cast(column, own.type), own)
    return result


def refuse_unknown(given: Table, schema: Schema) -> None:
    """Refuse columns that cannot condition anything: unknown, ignored, or never seen by design."""
    seen = [c for f in schema.fields.values() if not f.target for c in f.columns]
    for name in given.columns:
        if name not in seen:
            if name in (*schema.targets, *schema.aside):
                why = "a target" if name in schema.targets else "set aside"
                raise InputError(
                    f"column '{name}' is {why}, which the model does not see, so nothing can be "
                    f"drawn given it; give one of: {', '.join(seen)}"
                )
            raise unknown("column", name, seen)


def missing(column: Column) -> Any:
    """Boolean array of the cells, or of the entries of cells, that are missing.

    A list is missing where one of its numbers is.
    """
    if isinstance(column, np.ndarray):
        floating = column.dtype.kind == "f"
        return np.isnan(column) if floating else np.zeros(column.shape, dtype=bool)
    if is_list(column.type):
        numbers, lengths, _ = list_parts(column)
        holed, ends = np.isnan(numbers).any(1), np.cumsum(np.maximum(lengths, 0))
        within = np.concatenate([[0], np.cumsum(holed)])
        return (lengths < 0) | (within[ends] > within[ends - np.maximum(lengths, 0)])
    return column.is_null(nan_is_null=True).to_numpy()


def gaps(table: Table) -> int:
    """Count the missing cells, or entries of cells, of a table."""
    return sum(int(missing(column).sum()) for column in table.columns.values())


def fill(column: Column, values: Column, own: Field) -> Column:
    """Return the column with ``values`` where it is missing, in its own type."""
    if isinstance(own, Series):
        return own.filled(column, values)
    if isinstance(column, np.ndarray):
        gaps = missing(column)
        if isinstance(own, Distribution):
            values = _shares_left(column, np.asarray(values), gaps, own.normalise)
        return np.where(gaps, as_dtype(np.asarray(values), column.dtype), column)
    if scalar(column).null_count == len(column):  # without any value its type is no one's wish
        return values
    return compute.coalesce(column, cast(values, scalar(column).type))


def _shares_left(column: Any, values: Any, gaps: Any, free: bool) -> Any:
    """Scale the predicted shares of missing entries to what the observed ones leave of one.

    Where rows have a ``free`` sum, the observed entries say what it is; a row without any is
    filled with shares.
    """
    seen = np.where(gaps, 0.0, column).sum(1, keepdims=True)
    guessed = np.where(gaps, values, 0.0)
    total = guessed.sum(1, keepdims=True)
    if free:
        return guessed * np.where(seen > 0, seen / np.clip(1.0 - total, 1e-6, None), 1.0)
    return guessed * np.clip(1.0 - seen, 0.0, None) / np.where(total > 0, total, 1.0)


def _like_training(values: Column, own: Field, name: str) -> Column:
    """Round the values of a column of floats that held only whole numbers in training."""
    if isinstance(own, Vector):
        return np.rint(values) if own.whole and isinstance(values, np.ndarray) else values
    if not isinstance(own, Numeric) or not own.whole or isinstance(values, np.ndarray):
        return values
    whole = own.whole[own.columns.index(name)] and pa.types.is_floating(values.type)
    return compute.round(values) if whole else values


def _open(table: Table, schema: Schema) -> list[str]:
    """Columns of the table with a gap that an output of the model can fill."""
    learnt = [c for f in schema.fields.values() if not f.given for c in f.columns]
    return [c for c in learnt if c in table.columns and missing(table.columns[c]).any()]


def _fields(schema: Schema, columns: Collection[str]) -> list[str]:
    return [k for k, f in schema.fields.items() if any(c in columns for c in f.columns)]


def _points(
    model: Model, rows: Batch, schema: Schema, columns: Collection[str]
) -> list[dict[str, Tensor]]:
    names = _fields(schema, columns)
    return [
        {k: model.likelihoods[k].point(output.params[k])[:count].cpu() for k in names}
        for output, count in inference.outputs(model, rows, schema)
    ]
