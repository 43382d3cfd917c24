"""Which rows are unusual, how sure that is, and which column is the cause."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from refold import inference
from refold.data.schema import Schema
from refold.model import Model, Output
from refold.types import Batch

SHOWN = 2000  # held-out codes kept for the report


@dataclass(frozen=True)
class Calibration:
    """Scores of rows the model did not train on, and some of their codes.

    ``scores`` ``[m]`` ascending, in the sense of ``score_samples``; ``codes`` ``[<=2000, D]`` with
    ``code_scores`` beside them. ``held_out`` is False where there were too few rows to hold any
    out, so that the training rows had to serve. ``bare`` are the scores without the targets, for
    rows that come without them; none where the model has no targets.
    """

    scores: NDArray[np.float64]
    codes: NDArray[np.float32]
    code_scores: NDArray[np.float64]
    held_out: bool
    bare: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))

    @classmethod
    @torch.inference_mode()
    def of(cls, model: Model, rows: Batch, schema: Schema, held_out: bool) -> Calibration:
        """Score and embed the rows."""
        scores: list[Tensor] = []
        bare: list[Tensor] = []
        codes: list[Tensor] = []
        for output, count in inference.outputs(model, rows, schema):
            scores.append(-output.score[:count].double().cpu())
            bare.append(scores[-1] + of_targets(output)[:count].double().cpu())
            codes.append(output.code.z[:count].flatten(1).float().cpu())
        every = torch.cat(scores).numpy()
        spaced = slice(None, None, -(-len(every) // SHOWN))
        without = np.sort(torch.cat(bare).numpy())[: len(every) if targets_of(model) else 0]
        shown = torch.cat(codes).numpy()[spaced], every[spaced]
        return cls(np.sort(every), *shown, held_out, without)

    def with_codes(self, model: Model, rows: Batch, schema: Schema) -> Calibration:
        """Return the same scores with the codes that ``model`` gives the rows."""
        codes = inference.embed(model, rows, schema).float().numpy()
        return replace(self, codes=codes[:: -(-len(rows) // SHOWN)])

    def p_values(
        self, scores: NDArray[np.float64], bare: NDArray[np.bool_] | None = None
    ) -> NDArray[np.float64]:
        r"""Share of held-out rows, with the row itself, that are at least as unusual.

        .. math:: p = \frac{1 + \#\{i : s_i \le s\}}{1 + m}

        For a new row exchangeable with the held-out ones, :math:`P(p \le \alpha) \le \alpha`, were
        they used for nothing else. They also chose the best weights, which makes scores of theirs
        a little better than a new row's; where no row could be held out, nothing is promised.
        Rows that are ``bare`` of targets are compared with held-out rows without theirs.

        Source: Vovk, Gammerman & Shafer, Algorithmic Learning in a Random World, 2005.
        """
        rank = np.searchsorted(self.scores, scores, side="right")
        if bare is not None and len(self.bare):
            rank = np.where(bare, np.searchsorted(self.bare, scores, side="right"), rank)
        return (1 + rank) / (1 + len(self.scores))

    @torch.inference_mode()
    def judge(
        self, model: Model, rows: Batch, schema: Schema, alpha: float
    ) -> dict[str, NDArray[np.generic]]:
        """Return the columns ``score``, ``p_value``, ``is_anomaly`` and ``cause``."""
        names = np.array([e for k in model.outputs for e in schema.fields[k].entries], dtype=object)
        scores: list[Tensor] = []
        causes: list[Tensor] = []
        bare: list[Tensor] = []
        for output, count in inference.outputs(model, rows, schema):
            scores.append(-output.score[:count].double().cpu())
            bare.append(no_targets(output)[:count].cpu())
            causes.append(torch.cat(list(output.cells.values()), 1)[:count].argmax(1).cpu())
        score = torch.cat(scores).numpy()
        p_value = self.p_values(score, torch.cat(bare).numpy())
        return {
            "score": score,
            "p_value": p_value,
            "is_anomaly": p_value <= alpha,
            "cause": names[torch.cat(causes).numpy()],
        }

    @property
    def smallest(self) -> float:
        """Smallest p-value that so many held-out rows can give."""
        return 1.0 / (1 + len(self.scores))

    def tensors(self) -> dict[str, Tensor]:
        """Return what is saved."""
        return {
            "scores": torch.from_numpy(self.scores),
            "codes": torch.from_numpy(self.codes),
            "code_scores": torch.from_numpy(self.code_scores),
            "bare": torch.from_numpy(self.bare),
        }

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], held_out: bool) -> Calibration:
        """Rebuild from :meth:`tensors`."""
        scores, codes, own = (tensors[k].numpy() for k in ("scores", "codes", "code_scores"))
        bare = tensors["bare"].numpy() if "bare" in tensors else scores[:0]
        return cls(scores, codes, own, held_out, bare)


def targets_of(model: Model) -> list[str]:
    """Fields that are predicted and never seen."""
    return [k for k in model.outputs if k not in model.inputs]


def of_targets(output: Output) -> Tensor:
    """Cost of the targets of each row, ``[B]``."""
    costs = [output.nll[k] for k in targets_of(output.model)]
    return torch.stack(costs).sum(0) if costs else torch.zeros_like(output.score)


def no_targets(output: Output) -> Tensor:
    """Whether a row has no value of any target, ``[B]``; False where the model has none."""
    seen = [output.target.observed[k] for k in targets_of(output.model)]
    if not seen or any(s is None for s in seen):
        return torch.zeros(len(output.score), dtype=torch.bool)
    return ~torch.cat([s for s in seen if s is not None], 1).any(1)
