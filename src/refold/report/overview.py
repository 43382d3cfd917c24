"""What the data is, how well each column comes back, and what was chosen."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from refold.fields import Field, Image, Series, Text
from refold.fields.base import kind_of, scalar
from refold.fields.category import Classes
from refold.recipe import RECIPES, recipes
from refold.report.evidence import Evidence, is_dictionary, role
from refold.report.text import cell, number, percent, shortened
from refold.uses.inspect import Fidelity, Quality, fidelity, tokens_right

COLUMNS = 200  # columns listed
WIDE = 512  # entries of a field up to which each is judged by itself


@dataclass(frozen=True)
class ColumnView:
    """A line of the table of columns; ``bar`` is the share that comes back, None where unknown."""

    name: str
    kind: str
    values: str
    missing: str
    back: str
    bar: float | None


@dataclass(frozen=True)
class Overview:
    """The columns that are learnt, those that are not, and how many are not listed."""

    columns: tuple[ColumnView, ...]
    more: int
    aside: tuple[tuple[str, str], ...]
    notes: tuple[str, ...]


def overview(evidence: Evidence) -> Overview:
    """Describe every column of the schema, with figures from the rows where there are any."""
    schema, data = evidence.ae.schema_, evidence.data
    judged = _fidelity(evidence)
    found: dict[str, ColumnView] = {}
    for name, own in schema.fields.items():
        back, spans = judged.get(name, []), values(own)
        for i, column in enumerate(own.columns):
            found[column] = ColumnView(
                column,
                _kind(own),
                spans[i],
                _missing(evidence, column, own),
                *(_back(back[i], own) if back else ("", None)),
            )
    known = [found[c] for c in schema.order if c in found]
    return Overview(
        tuple(known[:COLUMNS]),
        max(0, len(known) - COLUMNS),
        tuple((k, a.reason) for k, a in schema.aside.items()),
        tuple(dict.fromkeys((*evidence.ae.notes_, *(data.notes if data else ())))),
    )


def _kind(own: Field) -> str:
    shape = f", {' × '.join(map(str, own.shape))}" if own.block else ""
    return " · ".join(v for v in (kind_of(own) + shape, role(own)) if v)


def values(own: Field) -> list[str]:
    """Say what values each column of a field had in training."""
    if isinstance(own, Classes):
        between = " < " if kind_of(own) == "ordinal" else ", "
        return [_levels(levels, between) for levels in own.levels]
    if isinstance(own, Image):
        return [" to ".join(number(getattr(own, end)) for end in ("low", "high"))]
    if isinstance(own, Text):
        return [f"up to {own.steps} tokens, of {own.known:,} different ones"]
    if isinstance(own, Series) and own.scale == "window":
        return ["each at its own level and scale"]
    if isinstance(own, Series):
        ends = (np.array(own.mean) + np.array(own.std) * v for v in (own.low, own.high))
        low, high = (found for found in ends)
        return [f"{number(float(low.min()))} to {number(float(high.max()))}"]
    mean, std, bounds = getattr(own, "mean", ()), getattr(own, "std", ()), own.bounds
    if bounds is None or (own.block and not mean):
        shares = kind_of(own) == "distribution"
        return ["shares that sum to 1" if shares else ""] * len(own.columns)
    if not mean:
        ends = own.to_values(torch.tensor(bounds))
        return [" to ".join(cell(v) or "–" for v in scalar(ends[c]).to_pylist()) for c in ends]
    low, high = (np.array(std) * np.array(b) + np.array(mean) for b in bounds)
    if own.block:
        return [f"{number(float(low.min()))} to {number(float(high.max()))}"]
    ends = own.to_values(torch.tensor(bounds))
    return [
        _span(scalar(ends[c]).to_pylist(), f"{number(m)} ± {number(s)}", (a, b))
        for c, m, s, a, b in zip(own.columns, mean, std, low, high, strict=True)
    ]


def _levels(levels: tuple[Any, ...], between: str) -> str:
    shown = between.join(shortened(cell(v) or "–", 24) for v in levels[:4])
    return shown if len(levels) <= 4 else f"{shown} and {len(levels) - 4} more"


def _span(ends: list[Any], centre: str, numbers: tuple[float, float]) -> str:
    """Say a column's mean, deviation and range; of times, whose mean is no number, the range."""
    if isinstance(ends[0], int | float):
        least = 1e-9 * (numbers[1] - numbers[0])  # what rounding leaves of a zero
        low, high = (0.0 if abs(v) < least else v for v in numbers)
        return f"{centre}, {number(low)} to {number(high)}"
    return f"{cell(ends[0])} to {cell(ends[1])}"


def _missing(evidence: Evidence, name: str, own: Field) -> str:
    if evidence.data is None:
        return "some in training" if own.missing else "none in training"
    column = evidence.data.table.columns.get(name)
    if column is None:
        alone = own.block and len(evidence.ae.schema_.fields) == 1  # arrays have no names
        return "" if alone else "not in the data"
    if isinstance(column, np.ndarray):
        share = float(np.isnan(column).mean()) if column.dtype.kind == "f" else 0.0
        return percent(share) if share else "none"
    count = int(column.is_null(nan_is_null=True).to_numpy().sum())
    return f"{count:,} ({percent(count / len(column))})" if count else "none"


def _fidelity(evidence: Evidence) -> dict[str, list[Fidelity]]:
    if evidence.data is None:
        return {}
    schema = evidence.ae.schema_
    narrow = {
        k
        for k, f in schema.fields.items()
        if not (f.block or f.alone or f.given) and len(f.entries) <= WIDE
    }
    texts = [k for k, f in schema.fields.items() if f.alone and not f.given]
    if not narrow and not texts:
        return {}
    points, batch = evidence.found.points, evidence.data.batch
    found = fidelity(schema, batch, {k: points[k] for k in narrow})
    return found | {k: [tokens_right(batch, k, points[k])] for k in texts}


def _back(found: Fidelity, own: Field) -> tuple[str, float | None]:
    if math.isnan(found.kept):
        return "–", None
    bar = min(1.0, max(0.0, found.kept))
    if isinstance(own, Text):
        return f"{percent(found.kept)} of the tokens at their place", bar
    if isinstance(own, Classes):
        return f"{percent(found.kept)} right; always the commonest: {percent(found.guess)}", bar
    return f"{percent(found.kept)} of the variance", bar


@dataclass(frozen=True)
class Fact:
    """A figure and what it is, for the head of the page."""

    value: str
    label: str


def facts(evidence: Evidence) -> list[Fact]:
    """Figures everyone asks for first."""
    ae = evidence.ae
    seen, answers = (
        sum(len(f.entries) for f in ae.schema_.fields.values() if f.target == wanted)
        for wanted in (False, True)
    )
    weights = sum(p.numel() for p in ae.model_.parameters())
    code = "latents" if is_dictionary(ae) else "numbers of its code"
    return [
        Fact(f"{ae.n_rows_:,}", "rows it was fitted on"),
        Fact(f"{seen:,} → {ae.spec_.size:,}", f"entries of a row → {code}"),
        *([Fact(f"{answers:,}", "entries predicted as targets")] if answers else []),
        Fact(f"{weights:,}", "parameters"),
        Fact(duration(ae.run_.seconds), "of training"),
    ]


def shares_kept(quality: Quality) -> list[tuple[str, float]]:
    """Shares of the variance by name, for bars below the headline; the model's own is the last."""
    if quality.kept is None or quality.pca_kept is None or quality.filled:
        return []
    if quality.sparse is not None:
        return [("Variance explained", quality.kept)]
    return [("Kept by PCA", quality.pca_kept), ("Kept by this model", quality.kept)]


def duration(seconds: float) -> str:
    """Format a time.

    >>> duration(0.25), duration(75), duration(7300)
    ('0.25 s', '1 min 15 s', '2 h 1 min')
    """
    if seconds < 60:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def choices(evidence: Evidence) -> list[tuple[str, str]]:
    """Every choice by name, each with what it is."""
    ae = evidence.ae
    spec, described = ae.spec_, recipes() if ae.recipe_ in RECIPES else {}
    parts = {
        "recipe": f"{ae.recipe_}. {described.get(ae.recipe_, '')}".strip(),
        "latent": f"{spec.latent}, {spec.size:,} {'latents' if is_dictionary(ae) else 'numbers'}",
        "body": str(spec.fusion),
        "backbones": "; ".join(f"{k}: {v}" for k, v in spec.backbones.items()),
        "likelihoods": "; ".join(f"{k}: {v}" for k, v in spec.likelihoods.items()),
        "corruption": "none" if spec.corruption is None else str(spec.corruption),
        "penalties": "; ".join(map(str, spec.penalties)) or "none",
        "training": ae.plan_.sentence(),
        "precision": ae.run_.precision or "not known",
        "ended": ae.run_.stopped if ae.plan_.steps else "no steps were needed",
        "seed": str(ae.seed),
    }
    return [(k, shortened(v, 600)) for k, v in parts.items()]
