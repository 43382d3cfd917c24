"""Score, p-value, flag and cause of every row."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from refold import inference
from refold.data.schema import Schema
from refold.detection.calibration import Calibration, no_targets
from refold.detection.detector import Detector
from refold.detection.discoveries import benjamini_hochberg
from refold.errors import InputError
from refold.hints import fits
from refold.model import Model, Output
from refold.types import Batch
from refold.wording import counted


@dataclass(frozen=True)
class Rule:
    """Which rows to call anomalies; one of four, and ``alpha`` of 0.01 where none is given.

    ``alpha``: rows with a p-value up to this, so at most such a share of normal rows.
    ``contamination``: so large a share of the rows at hand, the most unusual of them. ``expected``:
    as few as leave so many false alarms to be expected among the rows at hand, were all of them
    normal. ``fdr``: as :func:`benjamini_hochberg` has it, where on average at most such a share of
    the flagged rows is normal.
    """

    alpha: float | None = None
    contamination: float | None = None
    expected: float | None = None
    fdr: float | None = None

    def __post_init__(self) -> None:
        given = {k: v for k, v in vars(self).items() if v is not None}
        if len(given) > 1:
            raise InputError(
                f"{' and '.join(given)} were given; give one, since each says by itself which rows "
                f"are anomalies"
            )
        for name, value in given.items():
            if not fits(value, float):
                raise InputError(f"{name} is {value!r}; give a number")
            if name == "expected" and not 0 < value < float("inf"):
                raise InputError(f"expected is {value} false alarms; give a number above 0")
            if name != "expected" and not 0 < value < 1:
                raise InputError(f"{name} is {value}; it must lie between 0 and 1")

    @property
    def words(self) -> str:
        """How rows are flagged, as the end of a sentence.

        >>> Rule().words
        'at alpha 0.01'
        """
        if self.contamination is not None:
            return f"as the most unusual share {self.contamination:g}"
        if self.expected is not None:
            return f"with {self.expected:g} false alarms to be expected"
        if self.fdr is not None:
            return f"of which on average a share of {self.fdr:g} at most is none"
        return f"at alpha {self.level(1):g}"

    def level(self, rows: int) -> float:
        """Return the p-value up to which a row of so many can be flagged."""
        if self.expected is not None:
            return min(1.0, self.expected / max(rows, 1))
        if self.fdr is not None:
            return self.fdr
        if self.contamination is not None:
            return 1.0
        return 0.01 if self.alpha is None else self.alpha

    def flags(self, score: NDArray[np.float64], p_value: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Return which rows are anomalies ``[n]``.

        >>> p = np.array([0.001, 0.02, 0.5, 0.9])
        >>> Rule(alpha=0.05).flags(p, p).tolist(), Rule(expected=0.01).flags(p, p).tolist()
        ([True, True, False, False], [True, False, False, False])
        """
        if self.fdr is not None:
            return benjamini_hochberg(p_value, self.fdr)
        if self.contamination is None:
            return p_value <= self.level(len(p_value))
        flagged = np.zeros(len(score), dtype=np.bool_)
        order = np.lexsort((score, p_value))  # scores of two settings are of two scales
        flagged[order[: round(self.contamination * len(score))]] = True
        return flagged


def doubt(
    calibration: Calibration, rule: Rule, rows: int, lowest: float, flagged: int
) -> str | None:
    """Say why none of so many rows could be an anomaly, where that is so.

    ``lowest`` is their smallest p-value, ``flagged`` how many of them are anomalies.
    """
    least, compared, level = calibration.smallest, len(calibration.scores), rule.level(rows)
    given = f"{counted(compared, 'row')} to compare with can give p-values from {least:.2g}"
    if lowest < least:  # rows of the fit are compared with one another
        if rule.fdr is None or flagged:
            return None
        return (
            "p-values of rows of the fit are their ranks, of which none can be a discovery among "
            "the others; use contamination=, or give new rows"
        )
    if least > level:
        return (
            f"no row can be an anomaly at alpha {level:.2g}: {given}; use a larger alpha or fit on "
            f"more rows"
        )
    if rule.fdr is not None and least > level / rows and not flagged:
        needed = int(np.ceil(least * rows / level))
        return (
            f"fewer than {needed} rows cannot be discoveries at fdr {level:g} among {rows}: "
            f"{given}; recalibrate with more rows"
        )
    return None


@torch.inference_mode()
def scores(
    model: Model, detector: Detector, rows: Batch | inference.Pending, schema: Schema
) -> Tensor:
    """How unusual each row is, ``[n]`` in double precision; with evidence, of rows at hand."""
    if isinstance(rows, Batch):
        detector = detector.facing(rows)

    def work(output: Output, count: int) -> Tensor:
        return detector.score(output)[:count].double().cpu()

    return inference.each(work, model, rows, schema, detector)


@torch.inference_mode()
def learnt(model: Model, detector: Detector, rows: Batch, schema: Schema) -> Tensor:
    """Which rows were in the fit ``[n]``, as far as the detector knows them again."""
    detector, passes = detector.facing(rows), inference.outputs(model, rows, schema)
    return torch.cat([detector.learnt(o)[:n].cpu() for o, n in passes])


@torch.inference_mode()
def contributions(
    model: Model, detector: Detector, rows: Batch, schema: Schema, setting: str | None = None
) -> Tensor:
    """What each entry adds to the score, ``[n, E]``, in the detector's setting or another."""
    detector, passes = detector.facing(rows), inference.outputs(model, rows, schema)
    return torch.cat([detector.contributions(o, setting)[:n].cpu() for o, n in passes])


@torch.inference_mode()
def judge(
    model: Model,
    detector: Detector,
    calibration: Calibration,
    rows: Batch,
    schema: Schema,
    rule: Rule,
) -> dict[str, NDArray[np.generic]]:
    """Return the columns ``score``, ``p_value``, ``is_anomaly`` and ``cause``."""
    names = np.array(entries(model, detector, schema), dtype=object)
    detector = detector.facing(rows)
    found: list[Tensor] = []
    causes: list[Tensor] = []
    bare: list[Tensor] = []
    learnt: list[Tensor] = []
    for output, count in inference.outputs(model, rows, schema):
        found.append(-detector.score(output)[:count].double().cpu())
        bare.append(no_targets(output)[:count].cpu())
        learnt.append(detector.learnt(output)[:count].cpu())
        causes.append(detector.contributions(output)[:count].argmax(1).cpu())
    score = torch.cat(found).numpy()
    p_value = calibration.p_values(score, torch.cat(bare).numpy(), torch.cat(learnt).numpy())
    return {
        "score": score,
        "p_value": p_value,
        "is_anomaly": rule.flags(score, p_value),
        "cause": names[torch.cat(causes).numpy()],
    }


def judged_fields(model: Model, detector: Detector) -> tuple[str, ...]:
    """Fields whose entries have a part in the score, in order."""
    return model.rebuilt if detector.parts else model.outputs


def entries(model: Model, detector: Detector, schema: Schema) -> list[str]:
    """Names of the entries that have a part in the score: columns, entries of arrays, pixels."""
    return [e for k in judged_fields(model, detector) for e in schema.fields[k].entries]
