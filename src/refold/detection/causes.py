"""Why a row is unusual: the entries that raised its score, and what was expected there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from refold import inference
from refold.data.schema import Schema
from refold.detection.calibration import Calibration
from refold.detection.detector import Detector
from refold.detection.judge import contributions, entries, judged_fields, learnt
from refold.fields import Field, Image, Series, Text
from refold.model import Model
from refold.table import Column, Table
from refold.types import Batch

NEARLY = 0.25  # of the peak's, down to which the steps beside it belong to one cause


@dataclass(frozen=True)
class Cause:
    """Entries that raised a row's score together, from ``start`` to before ``stop``.

    They are every ``stride``-th: the channels of a series lie side by side.
    """

    start: int
    stop: int
    stride: int = 1

    @property
    def at(self) -> slice:
        """Where they are among all entries."""
        return slice(self.start, self.stop, self.stride)


def explain(
    model: Model,
    detector: Detector,
    calibration: Calibration,
    rows: Batch,
    schema: Schema,
    top: int,
    table: Table,
) -> dict[str, NDArray[Any]]:
    """Return the columns ``row``, ``cause``, ``seen``, ``expected``, ``share`` and ``p_value``."""
    added = contributions(model, detector, rows, schema).numpy()
    fields = {k: schema.fields[k] for k in judged_fields(model, detector)}
    found = [leading(row, fields, top) for row in added]
    guess = _without(model, rows, schema, found, fields)
    seen, expected = Values(rows.x, fields, table, True), Values(guess, fields, table, False)
    known = [rows.observed[k] for k in fields]
    sizes = [rows.x[k][0].numel() for k in fields]
    there = np.concatenate(
        [
            np.ones((len(rows), e), dtype=np.bool_) if o is None else o.numpy()
            for o, e in zip(known, sizes, strict=True)
        ],
        axis=1,
    )
    p_values = calibration.entry_p_values(added)
    # Held-out rows were judged as new ones, rows of the fit by other evidence.
    p_values[learnt(model, detector, rows, schema).numpy()] = np.nan
    names = entries(model, detector, schema)
    total = added.sum(1)
    where, told, given, usual = list[int](), list[str](), list[Any](), list[Any]()
    shares, ps = list[float](), list[float]()
    for row, causes in enumerate(found):
        for cause in causes:
            at = cause.at
            where.append(row)
            told.append(_named(cause, names))
            given.append(seen.at(row, cause) if there[row, at].any() else None)
            usual.append(expected.at(row, cause))
            whole = total[row] if total[row] > 0 else np.nan  # costs may be below zero
            shares.append(float(added[row, at].sum() / whole))
            each = p_values[row, at]
            ps.append(float(np.minimum(1.0, each.min() * each.size)))  # the least, corrected
    return {
        "row": np.array(where, dtype=np.int64),
        "cause": np.array(told, dtype=object),
        "seen": _column(given),
        "expected": _column(usual),
        "share": np.array(shares),
        "p_value": np.array(ps),
    }


def leading(added: NDArray[np.floating], fields: dict[str, Field], top: int) -> list[Cause]:
    """Causes of one row ``[E]``, from the largest; steps of a series beside one another are one."""
    left, found = added.astype(np.float64), list[Cause]()
    for _ in range(min(top, len(left))):
        peak = int(left.argmax())
        if found and left[peak] <= 0:
            break
        cause = _around(peak, left, fields)
        found.append(cause)
        left[cause.at] = -1.0
    return found


def _around(peak: int, left: NDArray[np.float64], fields: dict[str, Field]) -> Cause:
    first = 0
    for own in fields.values():
        size = len(own.entries)
        if first <= peak < first + size:
            if not isinstance(own, Series):
                return Cause(peak, peak + 1)
            channels = own.shape[1]
            least, low, high = NEARLY * left[peak], peak, peak
            while low - channels >= first and left[low - channels] >= least:
                low -= channels
            while high + channels < first + size and left[high + channels] >= least:
                high += channels
            return Cause(low, high + 1, channels)
        first += size
    raise AssertionError("the peak lies beyond all entries")


def _named(cause: Cause, names: list[str]) -> str:
    first, last = names[cause.start], names[cause.stop - 1]
    if first == last:
        return first
    head, _, rest = first.partition("[")
    step, comma, channel = rest.rstrip("]").partition(",")
    end = last.partition("[")[2].rstrip("]").partition(",")[0]
    return f"{head}[{step}:{int(end) + 1}{comma}{channel}]"


@torch.inference_mode()
def _without(
    model: Model, rows: Batch, schema: Schema, found: list[list[Cause]], fields: dict[str, Field]
) -> dict[str, torch.Tensor]:
    """Return what the model expects of each row once it does not see the causes."""
    sizes = {k: rows.x[k][0].numel() for k in fields}
    keep = torch.ones(len(rows), sum(sizes.values()), dtype=torch.bool)
    for row, causes in enumerate(found):
        for cause in causes:
            keep[row, cause.at] = False
    x, observed = dict(rows.x), dict(rows.observed)
    for k, mine in zip(sizes, keep.split(list(sizes.values()), 1), strict=True):
        if k not in model.inputs:
            continue
        known = observed[k]
        observed[k] = mine if known is None else mine & known
        neutral = torch.zeros_like(x[k]) if x[k].is_floating_point() else torch.full_like(x[k], -1)
        x[k] = torch.where(mine.view_as(x[k]), x[k], neutral)
    parts = [
        {k: v[:count] for k, v in inference.points(model, o.params).items()}
        for o, count in inference.outputs(model, Batch(x, observed), schema)
    ]
    return inference.joined(parts)


class Values:
    """Entries of rows as the user writes them, looked up by row and position among all entries.

    They are those of the ``table`` itself where they are ``given``, else what ``x`` stands for.
    """

    def __init__(
        self,
        x: Mapping[str, torch.Tensor],
        fields: Mapping[str, Field],
        table: Table,
        given: bool,
    ) -> None:
        self._parts = [_written(x[k], own, table, given) for k, own in fields.items()]
        self._first = np.cumsum([0, *(p.shape[1] for p in self._parts)])

    def at(self, row: int, cause: Cause) -> Any:
        """Value of a cause: of several entries the mean."""
        field = int(np.searchsorted(self._first, cause.start, side="right")) - 1
        before = int(self._first[field])
        found = self._parts[field][row, cause.start - before : cause.stop - before : cause.stride]
        if len(found) == 1:
            return found[0].item() if isinstance(found[0], np.generic) else found[0]
        return float(np.nanmean(found.astype(np.float64)))


def _written(x: torch.Tensor, own: Field, table: Table, given: bool) -> NDArray[Any]:
    """Entries of a field as the user writes them, ``[n, E]``."""
    if isinstance(own, Series):  # at the level of the row, and of all steps whatever its length
        column = table.columns.get(own.columns[0])
        known = given and column is not None
        values = own.given_numbers(column) if known else own.numbers(x, column)
        return values.reshape(len(x), -1)
    if isinstance(own, Text):
        tokens = np.array([None, *own.spelt], dtype=object)
        return tokens[(x.flatten(1).long() + 1).clamp(0, len(own.spelt)).cpu().numpy()]
    # As they came: a class never seen has no tensor that could be turned back.
    columns = table.columns if given and not own.block else own.to_values(x)
    none = np.full(len(x), None)
    flat = [_plain(columns.get(c, none), own).reshape(len(x), -1) for c in own.columns]
    return np.concatenate(flat, 1)


def _plain(values: Column, own: Field) -> NDArray[Any]:
    if not isinstance(values, np.ndarray):
        return np.array([v.as_py() for v in values], dtype=object)
    return np.moveaxis(values, -1, 1) if isinstance(own, Image) and own.layout == "last" else values


def _column(values: list[Any]) -> NDArray[Any]:
    """Numbers as they are; with names of levels among them, all as text."""
    if all(isinstance(v, int | float | None) and not isinstance(v, bool) for v in values):
        return np.array([np.nan if v is None else float(v) for v in values])
    return np.array([None if v is None else _text(v) for v in values], dtype=object)


def _text(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
