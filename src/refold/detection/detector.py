"""Several pieces of evidence, weighed into one score that parts into its entries again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import final

import torch
from torch import Tensor, nn

from refold.data.schema import Schema
from refold.detection.base import Evidence, evidences
from refold.model import Model, Output
from refold.parts import PartSpec
from refold.types import Batch

FAINT = 1e-3  # what is added to each figure, so that one of zero does not decide alone


@final
class Detector(nn.Module):
    r"""How unusual a row is: the geometric mean of the figures of all evidence.

    .. math:: S = \exp\Big(\frac1K \sum_{k=1}^K \log (f_k + \epsilon)\Big)

    Every figure is 1 where a row is as usual as one of training, so none has to be weighed against
    the others, which without labels nobody could: twice as far from its neighbours says as much
    as twice the error. With no evidence named, the score is the model's own cost of a row.

    Shares of entries are those of the pieces of evidence, each with as many votes as figures, and
    add up to the score.
    """

    def __init__(self, evidence: Sequence[Evidence] = ()) -> None:
        super().__init__()
        self.evidence = nn.ModuleList(evidence)
        self.parts = tuple(evidence)

    @classmethod
    @torch.inference_mode()
    def learn(
        cls,
        specs: Sequence[PartSpec],
        model: Model,
        rows: Batch,
        schema: Schema,
        share: float | None,
    ) -> Detector:
        """Learn what is usual from rows of training, of which a share may be anomalies."""
        parts = [evidences.build(spec) for spec in specs]
        for part in parts:
            part.learn(model, rows, schema, share)
        return cls(parts)

    @property
    def specs(self) -> tuple[PartSpec, ...]:
        """What the evidence is, by name."""
        return tuple(map(evidences.spec, self.parts))

    def tensors(self) -> dict[str, Tensor]:
        """Return what is saved."""
        return {
            f"evidence{i}.{k}": v.cpu().contiguous()
            for i, part in enumerate(self.parts)
            for k, v in part.named_buffers()
        }

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], specs: Sequence[str]) -> Detector:
        """Rebuild from :meth:`tensors` and the names of the evidence."""
        parts: list[Evidence] = []
        for i, spec in enumerate(specs):
            own = f"evidence{i}."
            parts.append(evidences.build(PartSpec.parse(spec)))
            parts[-1].keep(
                **{k.removeprefix(own): v for k, v in tensors.items() if k.startswith(own)}
            )
        return cls(parts)

    def score(self, output: Output) -> Tensor:
        """How unusual each row is, ``[B]``."""
        if not self.parts:
            return output.score
        figures = torch.cat([part.figures(output) for part in self.parts], 1)
        return (figures + FAINT).log().mean(1).exp()

    def contributions(self, output: Output) -> Tensor:
        """What each entry adds to the score, ``[B, E]`` over the outputs' entries."""
        if not self.parts:
            return torch.cat(list(output.cells.values()), 1)
        figures = [part.figures(output) for part in self.parts]
        votes = [f.shape[1] / sum(g.shape[1] for g in figures) for f in figures]
        shares = [part.shares(output) * v for part, v in zip(self.parts, votes, strict=True)]
        score = (torch.cat(figures, 1) + FAINT).log().mean(1, keepdim=True).exp()
        return score * torch.stack(shares).sum(0)
