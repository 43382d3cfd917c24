"""How sure it is that a row is unusual: its score among those of rows held out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from refold import inference
from refold.data.schema import Schema
from refold.detection.detector import NOVELTY, OUTLIERS, Detector, spaced
from refold.model import Model, Output
from refold.types import Batch

SHOWN, KEPT = 2000, 1 << 23  # held-out codes kept for the report, and numbers in them at most
PARTS = 500  # held-out rows whose entries are kept, to tell how unusual one is
NUMBERS = 1 << 20  # and of how many numbers


@dataclass(frozen=True)
class Calibration:
    """Scores of rows the model did not train on, and some of their codes.

    ``scores`` ``[m]`` ascending, in the sense of ``score_samples``; ``codes`` ``[<=2000, D]`` with
    ``code_scores`` beside them; ``parts`` ``[<=500, E]`` what each entry added to the score, each
    column ascending. ``held_out`` is False where there were too few rows to hold any out, so that
    the training rows had to serve. ``bare`` are the scores without the targets, for rows that come
    without them; none where the model has no targets, or none that its detector looks at.
    ``learnt`` are the scores of rows of the fit, up to 10,000, ascending, where the detector judges
    these apart.
    """

    scores: NDArray[np.float64]
    codes: NDArray[np.float32]
    code_scores: NDArray[np.float64]
    parts: NDArray[np.float32]
    held_out: bool
    bare: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    learnt: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))

    @classmethod
    @torch.inference_mode()
    def of(
        cls,
        model: Model,
        detector: Detector,
        rows: Batch,
        schema: Schema,
        held_out: bool,
        fitted: Batch | None = None,
    ) -> Calibration:
        """Score and embed the rows; ``fitted`` are all rows of the fit, those held out among them.

        Rows held out are judged as new ones are, whatever the detector has seen of them.
        """
        scores: list[Tensor] = []
        bare: list[Tensor] = []
        codes: list[Tensor] = []
        parts: list[Tensor] = []
        setting, every_few, begin = detector.setting or NOVELTY, step_of(model, len(rows)), 0
        for output, count in inference.outputs(model, rows, schema):
            scores.append(-detector.score(output, setting)[:count].double().cpu())
            bare.append(scores[-1] + of_targets(output)[:count].double().cpu())
            codes.append(output.code.z[-begin % every_few : count : every_few].flatten(1).float())
            begin += count
        every = torch.cat(scores).numpy()
        targets = targets_of(model) if not detector.parts else []
        without = np.sort(torch.cat(bare).numpy())[: len(every) if targets else 0]
        shown = rows.rows(slice(None, None, -(-len(rows) // PARTS)))
        for output, count in inference.outputs(model, shown, schema):
            parts.append(detector.contributions(output, setting)[:count].float().cpu())
        added = torch.cat(parts)
        added = added[: max(1, NUMBERS // added.shape[1])].sort(0).values.numpy()
        some = torch.cat(codes).cpu().numpy(), every[::every_few]
        learnt: list[Tensor] = []
        if fitted is not None and detector.setting is None:
            passes = inference.outputs(model, spaced(fitted), schema)
            learnt = [-detector.score(o, OUTLIERS)[:n].double().cpu() for o, n in passes]
        own = torch.cat(learnt).sort().values.numpy() if learnt else np.zeros(0)
        return cls(np.sort(every), *some, added, held_out, without, own)

    def with_codes(self, model: Model, rows: Batch, schema: Schema) -> Calibration:
        """Return the same scores with the codes that ``model`` gives the rows."""
        codes = inference.embed(model, rows, schema).float().numpy()
        return replace(self, codes=codes[:: step_of(model, len(rows))])

    def p_values(
        self,
        scores: NDArray[np.float64],
        bare: NDArray[np.bool_] | None = None,
        learnt: NDArray[np.bool_] | None = None,
    ) -> NDArray[np.float64]:
        r"""Share of held-out rows, with the row itself, that are at least as unusual.

        .. math:: p = \frac{1 + \#\{i : s_i \le s\}}{1 + m}

        For a new row exchangeable with the held-out ones, :math:`P(p \le \alpha) \le \alpha`, where
        they were used for nothing else, as in ``recipe="anomaly"`` and after ``recalibrate``. In
        other recipes they also choose the best weights, which makes scores of theirs a little
        better than a new row's; where no row could be held out, nothing is promised.
        Rows that are ``bare`` of targets are compared with held-out rows without theirs. Rows that
        were ``learnt`` from have their rank among the rows of the fit, of which at most a share
        :math:`\alpha` has :math:`p \le \alpha`.

        Source: Vovk, Gammerman & Shafer, Algorithmic Learning in a Random World, 2005.
        """
        rank = np.searchsorted(self.scores, scores, side="right")
        if bare is not None and len(self.bare):
            rank = np.where(bare, np.searchsorted(self.bare, scores, side="right"), rank)
        found = (1 + rank) / (1 + len(self.scores))
        if learnt is not None and len(self.learnt):
            own = np.searchsorted(self.learnt, scores, side="right")
            found = np.where(learnt, np.maximum(own, 1) / len(self.learnt), found)
        return found

    def entry_p_values(self, added: NDArray[np.floating]) -> NDArray[np.float64]:
        """Share of held-out rows, with the row itself, where an entry adds as much, ``[n, E]``.

        NaN where the model was saved without what entries add.
        """
        if self.parts.shape[1] != added.shape[1]:
            return np.full(added.shape, np.nan)
        if not len(self.parts):
            return np.ones(added.shape)
        rank = np.stack(
            [
                np.searchsorted(mine, own, side="left")
                for mine, own in zip(self.parts.T, added.T, strict=True)
            ],
            axis=1,
        )
        return (1 + len(self.parts) - rank) / (1 + len(self.parts))

    def threshold(self, alpha: float) -> float:
        r"""Score up to which a row is an anomaly at ``alpha``; minus infinity where none can be.

        .. math:: t = s_{(k)}^-, \qquad k = \lfloor \alpha (1 + m) \rfloor

        the greatest number below the ``k``-th smallest of the ``m`` held-out scores.
        """
        possible = np.arange(1, len(self.scores) + 2) / (1 + len(self.scores))
        k = int(np.searchsorted(possible, alpha, side="right"))
        if k < 1:
            return float("-inf")
        if k > len(self.scores):
            return float("inf")
        return float(np.nextafter(self.scores[k - 1], -np.inf))

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
            "parts": torch.from_numpy(self.parts),
            "learnt": torch.from_numpy(self.learnt),
        }

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], held_out: bool) -> Calibration:
        """Rebuild from :meth:`tensors`."""
        scores, codes, own = (tensors[k].numpy() for k in ("scores", "codes", "code_scores"))
        bare = tensors["bare"].numpy() if "bare" in tensors else scores[:0]
        parts = tensors["parts"].numpy() if "parts" in tensors else np.zeros((0, 1), np.float32)
        learnt = tensors["learnt"].numpy() if "learnt" in tensors else scores[:0]
        return cls(scores, codes, own, parts, held_out, bare, learnt)


def targets_of(model: Model) -> list[str]:
    """Fields that are predicted and never seen."""
    return [k for k in model.outputs if k not in model.inputs]


def step_of(model: Model, rows: int) -> int:
    """Return every which row's code is kept."""
    return -(-rows // max(1, min(SHOWN, KEPT // model.latent.size)))


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
