"""Which rows are unusual, how sure that is, and which column is the cause."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from refold import inference
from refold.data.schema import Schema
from refold.model import Model
from refold.types import Batch

SHOWN = 2000  # held-out codes kept for the report


@dataclass(frozen=True)
class Calibration:
    """Scores of rows the model did not train on, and some of their codes.

    ``scores`` ``[m]`` ascending, in the sense of ``score_samples``; ``codes`` ``[<=2000, D]`` with
    ``code_scores`` beside them. ``held_out`` is False where there were too few rows to hold any
    out, so that the training rows had to serve.
    """

    scores: NDArray[np.float64]
    codes: NDArray[np.float32]
    code_scores: NDArray[np.float64]
    held_out: bool

    @classmethod
    @torch.inference_mode()
    def of(cls, model: Model, rows: Batch, schema: Schema, held_out: bool) -> Calibration:
        """Score and embed the rows."""
        scores: list[Tensor] = []
        codes: list[Tensor] = []
        for output, count in inference.outputs(model, rows, schema):
            scores.append(-output.score[:count].double().cpu())
            codes.append(output.code.z[:count].flatten(1).float().cpu())
        every = torch.cat(scores).numpy()
        spaced = slice(None, None, -(-len(every) // SHOWN))
        return cls(np.sort(every), torch.cat(codes).numpy()[spaced], every[spaced], held_out)

    def with_codes(self, model: Model, rows: Batch, schema: Schema) -> Calibration:
        """Return the same scores with the codes that ``model`` gives the rows."""
        codes = inference.embed(model, rows, schema).float().numpy()
        return replace(self, codes=codes[:: -(-len(rows) // SHOWN)])

    def p_values(self, scores: NDArray[np.float64]) -> NDArray[np.float64]:
        r"""Share of held-out rows, with the row itself, that are at least as unusual.

        .. math:: p = \frac{1 + \#\{i : s_i \le s\}}{1 + m}

        For a new row exchangeable with the held-out ones, :math:`P(p \le \alpha) \le \alpha`, were
        they used for nothing else. They also chose the best weights, which makes scores of theirs
        a little better than a new row's; where no row could be held out, nothing is promised.

        Source: Vovk, Gammerman & Shafer, Algorithmic Learning in a Random World, 2005.
        """
        rank = np.searchsorted(self.scores, scores, side="right")
        return (1 + rank) / (1 + len(self.scores))

    @torch.inference_mode()
    def judge(
        self, model: Model, rows: Batch, schema: Schema, alpha: float
    ) -> dict[str, NDArray[np.generic]]:
        """Return the columns ``score``, ``p_value``, ``is_anomaly`` and ``cause``."""
        names = np.array([e for k in model.outputs for e in schema.fields[k].entries], dtype=object)
        scores: list[Tensor] = []
        causes: list[Tensor] = []
        for output, count in inference.outputs(model, rows, schema):
            scores.append(-output.score[:count].double().cpu())
            causes.append(torch.cat(list(output.cells.values()), 1)[:count].argmax(1).cpu())
        score = torch.cat(scores).numpy()
        p_value = self.p_values(score)
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
        }

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], held_out: bool) -> Calibration:
        """Rebuild from :meth:`tensors`."""
        scores, codes, own = (tensors[k].numpy() for k in ("scores", "codes", "code_scores"))
        return cls(scores, codes, own, held_out)
