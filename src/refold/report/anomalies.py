"""The most unusual rows with what makes them so, and how the rows differ as a whole."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from refold.data.schema import Schema
from refold.detection.causes import Cause, explain, leading
from refold.detection.detector import NOVELTY, OUTLIERS
from refold.detection.judge import contributions, judged_fields
from refold.detection.two_samples import FEW
from refold.errors import InputWarning
from refold.fields import Field, Image, Series, Text
from refold.fields.category import Classes
from refold.report.charts import LineChart, shaded
from refold.report.evidence import Data, Evidence
from refold.report.pictures import signed
from refold.report.rows import CHANNELS, LONG, PictureView, RowView, row_views
from refold.report.text import cell, number, percent
from refold.table import Table
from refold.wording import counted

CAUSES = 3  # of a row
CHANGES = 20  # lines of the table of drift


@dataclass(frozen=True)
class CauseView:
    """What raised a row's score: the value seen (None: missing), the one expected given the rest.

    ``share`` of the score, in [0, 1], is None where costs below zero leave no shares; ``p_value``
    is empty where the model kept nothing to compare single entries with.
    """

    name: str
    seen: str | None
    expected: str
    share: float | None
    p_value: str


@dataclass(frozen=True)
class Anomaly:
    """One unusual row: what is shown of it, and its causes, the first the largest.

    In ``view`` the difference of a picture is the heat map of what its pixels add to the score,
    whose part of it ``parts`` says in words where there is more than the picture; in curves the
    causes are shaded.
    """

    view: RowView
    causes: tuple[CauseView, ...]
    parts: tuple[str, ...]


@dataclass(frozen=True)
class DriftView:
    """The sentence about the rows as a whole, and ``(what, words, share, p)`` of each change."""

    sentence: str
    changes: tuple[tuple[str, str, str, str], ...]
    more: int


# ---------------------------------------------------------------- rows


def anomalies(evidence: Evidence, rows: NDArray[np.int64]) -> list[Anomaly]:
    """Show the rows at the given positions of the data, with what made them unusual."""
    ae = evidence.ae
    views = row_views(evidence, rows)
    fields = {k: ae.schema_.fields[k] for k in judged_fields(ae.model_, ae.detector_)}
    if not fields:
        return [Anomaly(view, (), ()) for view in views]
    batch, _ = evidence.examined(rows)
    added = contributions(ae.model_, ae.detector_, batch, ae.schema_).numpy().astype(np.float64)
    told = _explained(evidence, rows, added.shape[1])
    shown = list[Anomaly]()
    for i, view in enumerate(views):
        found = leading(added[i], fields, CAUSES)
        placed = dict(_placed(found, fields))
        view = replace(
            view,
            curves=_shaded(view.curves, ae.schema_, placed),
            pictures=_heated(view.pictures, fields, ae.schema_, added[i]),
        )
        owners = [_own(cause, fields) for cause in found]
        causes = [
            _written(cause, own)
            for cause, own in zip(told[i], owners, strict=True)
            if not isinstance(own, Image)
        ]
        shown.append(Anomaly(view, tuple(causes), _parts(fields, ae.schema_, added[i])))
    return shown


def _explained(evidence: Evidence, rows: NDArray[np.int64], width: int) -> list[list[CauseView]]:
    """Causes of each row, in words."""
    ae, data = evidence.ae, evidence.given()
    batch, _ = evidence.examined(rows)
    kept = ae.calibration_
    known = len(kept.parts) > 0
    if not known:
        kept = replace(kept, parts=np.zeros((0, width), np.float32))
    table = _whole(data, rows, ae.schema_)
    found = explain(ae.model_, ae.detector_, kept, batch, ae.schema_, CAUSES, table)
    views: list[list[CauseView]] = [[] for _ in rows]
    for i, row in enumerate(found["row"].tolist()):
        share, p = float(found["share"][i]), float(found["p_value"][i])
        views[row].append(
            CauseView(
                str(found["cause"][i]),
                cell(found["seen"][i]),
                cell(found["expected"][i]) or "–",
                share if 0 <= share <= 1 else None,
                number(p, 2) if known else "",
            )
        )
    return views


def _written(cause: CauseView, own: Field) -> CauseView:
    """Write numbers as the rest of the page does, beside names of levels too, and tokens quoted."""
    if isinstance(own, Classes):
        return cause
    how = repr if isinstance(own, Text) else _shorter
    seen = None if cause.seen is None else how(cause.seen)
    return replace(cause, seen=seen, expected=how(cause.expected))


def _shorter(text: str) -> str:
    try:
        return number(float(text))
    except ValueError:  # a time, or a number that is written already
        return text


def _whole(data: Data, rows: NDArray[np.int64], schema: Schema) -> Table:
    """Rows with every column of the model, empty where the data has none."""
    columns = data.raw(rows)
    for name in schema.order:
        columns.setdefault(name, pa.chunked_array([pa.nulls(len(rows))]))
    return replace(data.table, columns=columns)


def _own(cause: Cause, fields: Mapping[str, Field]) -> Field:
    first = 0
    for own in fields.values():
        first += len(own.entries)
        if cause.start < first:
            return own
    raise AssertionError("the cause lies beyond all entries")


def _placed(
    found: list[Cause], fields: Mapping[str, Field]
) -> Iterator[tuple[tuple[str, int], list[tuple[float, float]]]]:
    """Causes that lie on a curve, as ``(column, channel)`` and intervals of steps."""
    first = 0
    for own in fields.values():
        size = len(own.entries)
        channels = own.shape[1] if isinstance(own, Series) else 1
        inside = [c for c in found if first <= c.start < first + size]
        for channel in range(channels if own.block and not isinstance(own, Image) else 0):
            mine = [c for c in inside if (c.start - first) % channels == channel]
            yield (
                (own.columns[0], channel),
                [
                    ((c.start - first) // channels - 0.5, (c.stop - 1 - first) // channels + 0.5)
                    for c in mine
                ],
            )
        first += size


def _shaded(
    curves: tuple[LineChart, ...],
    schema: Schema,
    placed: Mapping[tuple[str, int], list[tuple[float, float]]],
) -> tuple[LineChart, ...]:
    """Shade the causes in the curves, which are in the order of the fields and their channels."""
    order: list[tuple[str, int]] = []
    for own in schema.fields.values():
        if isinstance(own, Series):
            order += [(own.columns[0], c) for c in range(min(own.shape[1], CHANNELS))]
        elif own.block and not isinstance(own, Image) and len(own.entries) > LONG:
            order.append((own.columns[0], 0))
    return tuple(
        shaded(chart, placed.get(where, [])) for chart, where in zip(curves, order, strict=True)
    )


def _heated(
    pictures: tuple[PictureView, ...],
    fields: Mapping[str, Field],
    schema: Schema,
    added: NDArray[np.float64],
) -> tuple[PictureView, ...]:
    """Show what each pixel adds to the score in place of how far it is off."""
    heat = dict[str, str]()
    for name, part in _split(fields, added):
        own = schema.fields[name]
        if isinstance(own, Image):
            cost = part.reshape(own.shape).sum(0)
            cost = cost - min(0.0, float(cost.min()))
            heat[own.columns[0]] = signed(cost, float(cost.max()))
    return tuple(replace(p, difference=heat.get(p.name, p.difference)) for p in pictures)


def _parts(
    fields: Mapping[str, Field], schema: Schema, added: NDArray[np.float64]
) -> tuple[str, ...]:
    """Say which part of the score is that of each picture, where there is something beside it."""
    total = float(added.sum())
    if len(fields) < 2 or float(added.min()) < 0 or total <= 0:
        return ()
    return tuple(
        f"{schema.fields[name].columns[0]}: {percent(float(part.sum()) / total)} of the score"
        for name, part in _split(fields, added)
        if isinstance(schema.fields[name], Image)
    )


def _split(
    fields: Mapping[str, Field], added: NDArray[np.float64]
) -> Iterator[tuple[str, NDArray[np.float64]]]:
    ends = np.cumsum([len(own.entries) for own in fields.values()])
    yield from zip(fields, np.split(added, ends[:-1]), strict=True)


# ---------------------------------------------------------------- all rows


def verdict(evidence: Evidence, alpha: float) -> str:
    """Say how many rows are anomalies, and how many would be if all were normal.

    >>> import refold
    >>> X = np.random.default_rng(0).normal(size=(400, 2))
    >>> ae = refold.Autoencoder(1, recipe="pca").fit(X[:300])
    >>> verdict(Evidence.of(ae, X[300:]), 0.1)[-26:]
    'up to 10 would be expected'
    """
    data, calibration = evidence.given(), evidence.ae.calibration_
    least, learnt = calibration.smallest, int(data.learnt.sum())
    if least > alpha and not learnt:
        return (
            f"no row can be called an anomaly at {percent(alpha)}: with "
            f"{counted(len(calibration.scores), 'row')} to compare with, the smallest p-value is "
            f"{number(least, 2)}"
        )
    count, every = int(data.is_anomaly.sum()), len(data.is_anomaly)
    expected = alpha * every
    usual = "less than one" if expected < 1 else f"up to {number(math.ceil(expected))}"
    told = (
        f"{count:,} of {every:,} rows {'is an anomaly' if count == 1 else 'are anomalies'} at "
        f"{percent(alpha)}; among as many rows like those of training, {usual} would be expected"
    )
    if not learnt:
        return told
    whose = f"{learnt:,} of them were" if learnt < every else "All of them were"
    return f"{told}. {whose} in the fit, and are compared with one another"


def pieces(evidence: Evidence) -> list[tuple[str, str, str]]:
    """Name each piece of evidence of a score, with the rows it judges and what it is.

    >>> import refold
    >>> X = np.random.default_rng(0).normal(size=(100, 2))
    >>> ae = refold.Autoencoder(1, recipe="pca", evidence=("errors",)).fit(X)
    >>> pieces(Evidence.of(ae, X))
    [('errors', '', 'Error of every entry, in units of its error in training')]
    """
    detector, data = evidence.ae.detector_, evidence.data
    here = {NOVELTY} if detector.setting is None else {str(detector.setting)}
    if detector.setting is None and data is not None and data.learnt.any():
        here = {OUTLIERS} if data.learnt.all() else {NOVELTY, OUTLIERS}
    whose = {NOVELTY: "new rows", OUTLIERS: "rows of the fit"}
    found = list[tuple[str, str, str]]()
    for spec, part in zip(detector.specs, detector.parts, strict=True):
        if part.when == "always" or part.when in here:
            words = " ".join(str(type(part).__doc__).partition(".\n")[0].split())
            rows = whose.get(part.when, "") if len(here) > 1 else ""
            found.append((spec.name, rows, words))
    return found


def drift_of(evidence: Evidence) -> DriftView | None:
    """Compare the rows as a whole with those of training; None where that cannot be done."""
    ae, data = evidence.ae, evidence.data
    if data is None or getattr(ae, "reference_", None) is None:
        return None
    if len(data.everything) < FEW:
        few = f"{len(data.everything)} rows are too few to compare them as a whole with training"
        return DriftView(f"{few}; {FEW} are needed", (), 0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", InputWarning)  # the page has said what the data lacks
        found = ae.drift(data.table)
    if found is None:
        return DriftView("no difference from training is seen in these rows as a whole", (), 0)
    lines = [
        (
            c.name.strip("'"),
            " and ".join(c.words),
            percent(c.size),
            _least(c.p_value, c.missing_p_value),
        )
        for c in found.drifted
    ]
    if found.code_drifted:
        lines.append(("the codes", "lie elsewhere", "", number(found.code_p_value, 2)))
    return DriftView(found.sentence, tuple(lines[:CHANGES]), max(0, len(lines) - CHANGES))


def _least(*p_values: float) -> str:
    least = min(p_values)
    return number(least, 2) if least >= 1e-6 else "< 1e−6"
