"""Several pieces of evidence, weighed into one score that parts into its entries again."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import final

import torch
from torch import Tensor, nn

from refold import inference
from refold.data.schema import Schema
from refold.detection.base import Evidence, evidences
from refold.model import Model, Output
from refold.parts import PartSpec
from refold.types import Batch

FAINT = 1e-3  # what is added to each figure, so that one of zero does not decide alone
TENTH = 0.1  # rows that evidence of outliers does without, where no share is known
MOST = 1_000_000  # rows of a fit that are known again
FEWEST = 20  # rows by which it is told whether they are those of the fit
ENOUGH = 10_000  # rows that tell what is usual
PORTION = 1 << 16  # rows whose fingerprints are taken at once
NOVELTY, OUTLIERS = "novelty", "outliers"


@final
class Detector(nn.Module):
    r"""How unusual a row is: the geometric mean of the figures of all evidence.

    .. math:: S = \exp\Big(\frac1K \sum_{k=1}^K \log (f_k + \epsilon)\Big)

    Every figure is 1 where a row is as usual as one of training, so none has to be weighed against
    the others, which without labels nobody could: twice as far from its neighbours says as much
    as twice the error. With no evidence named, the score is the model's own cost of a row.

    There are two settings. New rows are compared with rows that are believed to be clean: near one
    of them, they are normal (``"novelty"``). Among the rows of a fit anomalies may keep each other
    company, and the model knows them all, so they are judged by other evidence (``"outliers"``).
    ``setting`` None leaves it to the row: one that was in the fit, value for value, is judged as
    an outlier, any other as a novelty. :attr:`known` holds the fingerprints of rows that were there
    once; what :attr:`recurred` in the fit recurs in new rows too, and is judged as they are unless
    most rows at hand are those of the fit (:meth:`facing`).

    Shares of entries are those of the pieces of evidence, each with as many votes as figures, and
    add up to the score.
    """

    known: Tensor | None
    recurred: Tensor | None

    def __init__(
        self,
        evidence: Sequence[Evidence] = (),
        setting: str | None = NOVELTY,
        known: Tensor | None = None,
        recurred: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.evidence = nn.ModuleList(evidence)
        self.parts, self.setting = tuple(evidence), setting
        self.register_buffer("known", known)
        self.register_buffer("recurred", recurred)

    @classmethod
    @torch.inference_mode()
    def learn(
        cls,
        specs: Sequence[PartSpec],
        model: Model,
        rows: Batch,
        schema: Schema,
        *,
        setting: str | None = NOVELTY,
        fitted: Batch | None = None,
    ) -> Detector:
        """Learn what is usual from rows of training; ``fitted`` are those that are known again."""
        rows = spaced(rows)
        parts = [evidences.build(spec) for spec in specs]
        heard = [p for p in parts if setting is None or p.when in ("always", setting)] or parts
        clean: Batch | None = None
        for part in heard:
            if part.when == OUTLIERS and setting is None:
                clean = rows.rows(ordinary(model, rows, schema, TENTH)) if clean is None else clean
            part.learn(model, rows if clean is None or part.when != OUTLIERS else clean, schema)
        split = setting is None and any(p.when != "always" for p in heard)
        if not split:
            return cls(heard, setting or NOVELTY)
        if fitted is None or len(fitted) > MOST:
            return cls(heard, None)
        prints, times = fingerprints(fitted).unique(return_counts=True)
        made = cls(heard, None, prints[times == 1], prints[times > 1])
        return made.to(model.fusion.last_bias().device)

    @property
    def specs(self) -> tuple[PartSpec, ...]:
        """What the evidence is, by name."""
        return tuple(map(evidences.spec, self.parts))

    def tensors(self) -> dict[str, Tensor]:
        """Return what is saved."""
        return {f"detector.{k}": v.cpu().contiguous() for k, v in self.state_dict().items()}

    @classmethod
    def from_tensors(
        cls, tensors: Mapping[str, Tensor], specs: Sequence[str], setting: str | None
    ) -> Detector:
        """Rebuild from :meth:`tensors`, the names of the evidence and the setting."""
        made = cls([evidences.build(PartSpec.parse(s)) for s in specs], setting)
        for name, tensor in tensors.items():
            if name.startswith("detector."):
                place, _, leaf = name.removeprefix("detector.").rpartition(".")
                made.get_submodule(place).register_buffer(leaf, tensor)
        return made

    @torch.inference_mode()
    def facing(self, rows: Batch) -> Detector:
        """Return the detector as it judges these rows: knowing all of the fit, if most are that."""
        if self.known is None or self.recurred is None or not len(self.recurred):
            return self
        every = torch.cat([self.known, self.recurred]).unique()
        few = fingerprints(spaced(rows)).to(every.device)
        if len(few) < FEWEST or torch.isin(few, every).double().mean() < 0.5:
            return self
        return Detector(self.parts, None, every)

    def score(self, output: Output, setting: str | None = None) -> Tensor:
        """How unusual each row is, ``[B]``; ``setting`` overrules the detector's own."""
        if not self.parts:
            return output.score
        return self._by_setting(output, setting, lambda s: self._figures(output, s)[1].flatten())

    def contributions(self, output: Output, setting: str | None = None) -> Tensor:
        """What each entry adds to the score, ``[B, E]`` over the outputs' entries."""
        if not self.parts:
            return torch.cat(list(output.cells.values()), 1)

        def parted(setting: str) -> Tensor:
            counts, score = self._figures(output, setting)
            shares = [p.shares(output) * n for p, n in counts.items()]
            return score * torch.stack(shares).sum(0) / sum(counts.values())

        return self._by_setting(output, setting, parted)

    def learnt(self, output: Output) -> Tensor:
        """Which rows were in the fit ``[B]``; none where that makes no difference."""
        if self.setting is not None or self.known is None or not len(self.known):
            return torch.zeros(len(output.target), dtype=torch.bool)
        own = fingerprints(output.target)
        at = torch.searchsorted(self.known, own).clamp_max(len(self.known) - 1)
        return self.known[at] == own

    def _by_setting(
        self, output: Output, setting: str | None, found: Callable[[str], Tensor]
    ) -> Tensor:
        setting = setting or self.setting
        if setting is not None:
            return found(setting)
        learnt = self.learnt(output)
        if not learnt.any():
            return found(NOVELTY)
        if learnt.all():
            return found(OUTLIERS)
        novel, outlying = found(NOVELTY), found(OUTLIERS)
        return torch.where(learnt.view(-1, *(1,) * (novel.dim() - 1)), outlying, novel)

    def _figures(self, output: Output, setting: str) -> tuple[dict[Evidence, int], Tensor]:
        """How many figures each piece of evidence has, and the score ``[B, 1]``."""
        heard = [p for p in self.parts if p.when in ("always", setting)] or list(self.parts)
        figures = {p: p.figures(output) for p in heard}
        joined = torch.cat(list(figures.values()), 1)
        counts = {p: f.shape[1] for p, f in figures.items()}
        return counts, (joined + FAINT).log().mean(1, keepdim=True).exp()


@torch.inference_mode()
def ordinary(model: Model, rows: Batch, schema: Schema, share: float) -> Tensor:
    """Positions of rows that are not among the ``share`` of the most unusual ones.

    Those are left out that lie farthest from the nearest of groups of four others: in so few rows,
    anomalies are rare even where a tenth of all rows are, all alike.
    """
    spec = PartSpec("neighbours", {"groups": (4,)})
    detector = Detector.learn([spec], model, rows, schema)
    scores = [detector.score(o)[:n] for o, n in inference.outputs(model, rows, schema)]
    order = torch.cat(scores).argsort()
    return order[: max(2, len(rows) - round(share * len(rows)))].sort().values.cpu()


def spaced(rows: Batch) -> Batch:
    """Rows spread over all of them, as many as tell what is usual."""
    return rows.rows(slice(None, None, -(-len(rows) // ENOUGH)))


def fingerprints(rows: Batch) -> Tensor:
    """A number per row ``[n]`` by which the same values, and the same gaps, are known again.

    Values count up to a thousandth of their field's unit: a file, or single precision, may round.
    """
    if len(rows) > PORTION:  # whole numbers of all rows at once would take several times their room
        parts = [slice(i, i + PORTION) for i in range(0, len(rows), PORTION)]
        return torch.cat([fingerprints(rows.rows(part)) for part in parts])
    total = torch.zeros(len(rows), dtype=torch.int64, device=next(iter(rows.x.values())).device)
    draw = torch.Generator().manual_seed(0)
    for name, x in rows.x.items():
        flat = x.flatten(1)
        bits = (flat * 1024).round().long() if flat.is_floating_point() else flat.long()
        seen = rows.observed[name]
        if seen is not None:
            bits = torch.where(seen, bits, torch.full_like(bits, 1 << 40))
        keys = torch.randint(1 << 62, (flat.shape[1],), generator=draw) | 1
        total += (bits * keys.to(bits.device)).sum(1)
    return total
