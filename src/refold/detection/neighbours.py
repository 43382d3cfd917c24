"""Evidence from how far away rows of training are."""

from __future__ import annotations

from itertools import pairwise
from typing import final

import torch
from torch import Tensor

from refold import inference
from refold.data.schema import Schema
from refold.detection.base import Evidence, observed, parted, register
from refold.errors import InputError, unknown
from refold.model import Model, Output
from refold.types import Batch

SPACES = ("values", "code")
CLEAN, UNKNOWN, TAINTED = (64, 256, 1024), (32, 128, 512), (16, 64)
SAME = 1e-5  # squared distance, over the squared length, up to which a row is the reference itself
LEAST = 1e-3  # variance of an entry from which on it is not stretched further
MOST = 8192  # rows that tell what distance is usual
COMPARED, NEAR, WILD = 256, 5, 3  # references, those taken, entries left out, to tell what differs
ROOM = 1 << 21  # numbers compared at once


@final
@register("neighbours")
class Neighbours(Evidence):
    r"""Distance to the nearest of groups of reference rows, for groups of several sizes.

    .. math:: f_m(x) = \frac{1}{T_m} \sum_{t=1}^{T_m} \min_{r \in G_{m,t}} d(x, r) \Big/ \bar f_m,
              \qquad d(x, r)^2 = \sum_e \frac{(x_e - r_e)^2}{s_e^2}

    ``references`` rows of training, drawn once, are parted into groups of ``m``, and the distances
    to each group's nearest are averaged; :math:`\bar f_m` is the mean over the training rows.
    Large groups know fine structure, and take an anomaly among them for normal that a training
    row resembles; in groups of a few rows such rows are rare, and only what is common is near.
    ``groups`` are the sizes; not given, they follow from what is believed of the training rows: 64,
    256 and 1,024 where they are clean, 16 and 64 where a share of them are anomalies, 32, 128 and
    512 where nothing is said. A reference at no distance is taken for the row itself, and one of
    them left out.

    ``space="values"`` compares rows as the model's outputs, each entry in units of its standard
    deviation, classes as indicators, missing entries left out; ``"code"`` compares codes.

    Sources: Sugiyama & Borgwardt, Rapid Distance-Based Outlier Detection via Sampling, 2013, for
    few references; Ting et al., Defying the gravity of learning curve: nearest neighbour anomaly
    detectors, 2017, for ensembles of them.

    >>> import refold
    >>> x = torch.randn(200, 4, generator=torch.Generator().manual_seed(0)).numpy()
    >>> ae = refold.Autoencoder(2, recipe="pca", evidence=("neighbours",)).fit(x)
    >>> float(ae.score_samples(x * 5).mean()) < -2
    True
    """

    centre: Tensor
    scale: Tensor
    entry: Tensor
    values: Tensor
    points: Tensor
    lengths: Tensor
    row: Tensor
    steps: Tensor
    unit: Tensor

    def __init__(
        self,
        *,
        references: int = 1024,
        groups: tuple[int, ...] | None = None,
        space: str = "values",
    ) -> None:
        super().__init__()
        sizes = groups or ()
        if references < 1 or any(m < 1 or n % m for m, n in pairwise((*sizes, references))):
            raise InputError(
                f"neighbours has references={references} and groups={groups}; give sizes of which "
                f"each divides the next, and the last the references, as in (16, 64, 256)"
            )
        if space not in SPACES:
            raise unknown("space of neighbours", space, SPACES)
        self.references, self.groups, self.space = references, groups, space

    @property
    def sizes(self) -> tuple[int, ...]:
        """Rows in a group, from the smallest."""
        return tuple(self.steps.tolist())

    def learn(self, model: Model, rows: Batch, schema: Schema, share: float | None) -> None:
        """Draw the references, and learn scales and usual distances."""
        usual = CLEAN if share == 0 else UNKNOWN if share is None else TAINTED
        fitting = tuple(m for m in usual if self.references % m == 0)
        sizes = self.groups or fitting or (self.references,)
        self.keep(steps=torch.tensor(sizes), unit=torch.ones(len(sizes)))
        self._learn_scale(model, rows)
        draw = torch.Generator().manual_seed(len(rows))
        times = -(-self.references // len(rows))
        order = torch.cat([torch.randperm(len(rows), generator=draw) for _ in range(times)])
        drawn, place = order[: self.references].unique(return_inverse=True)
        views: list[Tensor] = []
        codes: list[Tensor] = []
        for output, count in inference.outputs(model, rows.rows(drawn), schema):
            view, there = self._view(output)
            if there is not None:  # what a reference lacks is what the model expects there
                view = torch.where(there, view, self._scaled(_expected(output)))
            views.append(view[:count])
            codes.append(output.code.z[:count].flatten(1))
        values, row = torch.cat(views)[place], place.to(views[0].device)
        points = values if self.space == "values" else torch.cat(codes)[place]
        self.keep(points=points, lengths=points.square().sum(1), row=row)
        if self.space == "code":
            self.keep(values=values)  # what the references look like, to tell what differs
        self.to(points.device)
        few = rows.rows(slice(None, None, -(-len(rows) // MOST)))
        found = [self.figures(o)[:count] for o, count in inference.outputs(model, few, schema)]
        self.keep(unit=torch.cat(found).double().mean(0).clamp_min(1e-6).float())

    def figures(self, output: Output) -> Tensor:
        """Mean distance to the nearest of each group, ``[B, K]`` for ``K`` sizes of groups."""
        squares, length, stretch = self._squares(output)
        found: list[Tensor] = []
        before = 1
        for m in self.sizes:
            squares = grouped(squares, m // before)
            before = m
            distance = (squares + length).clamp_min_(0.0).sqrt_()
            there = distance.isfinite()  # a group may hold nothing but the row itself
            found.append(distance.masked_fill_(~there, 0.0).sum(1) / there.sum(1).clamp_min(1))
        figures = torch.stack(found, 1) / self.unit
        if stretch is None:
            return figures
        return torch.where(stretch.isfinite(), figures * stretch, torch.ones_like(figures))

    def shares(self, output: Output) -> Tensor:
        """Each entry's part of the squared distance to the rows that are nearest in most entries.

        Those are nearest once the three entries that differ most are left out: what one wild value
        is far from is no comparison for the others.
        """
        view, there = self._view(output)
        values = (self.points if self.space == "values" else self.values)[:COMPARED]
        found: list[Tensor] = []
        for i, part in enumerate(view.split(max(1, ROOM // values.numel()))):
            apart = self._by_entry((part.unsqueeze(1) - values).square())
            if there is not None:
                seen = observed(output)
                assert seen is not None
                apart = apart.masked_fill(~seen.split(len(part))[i].unsqueeze(1), 0.0)
            wild = min(WILD, apart.shape[2] // 2)
            rest = apart.sum(2) - apart.topk(wild, 2).values.sum(2)
            near = rest.topk(min(NEAR, len(values)), 1, largest=False).indices
            found.append(apart.take_along_dim(near.unsqueeze(2), 1).mean(1))
        return parted(torch.cat(found))

    def _by_entry(self, apart: Tensor) -> Tensor:
        """Sum over the numbers of each entry, ``[..., V]`` to ``[..., E]``."""
        entries = int(self.entry[-1]) + 1
        if entries == apart.shape[-1]:
            return apart
        total = apart.new_zeros(*apart.shape[:-1], entries)
        return total.index_add_(apart.dim() - 1, self.entry, apart)

    def _squares(self, output: Output) -> tuple[Tensor, Tensor, Tensor | None]:
        """Squared distances ``[B, R]`` less the row's squared length ``[B, 1]``, which follows.

        And by what distances are stretched where entries are missing, infinite where all are.
        """
        stretch: Tensor | None = None
        if self.space == "code":
            x = output.code.z.flatten(1)
            squares = torch.addmm(self.lengths, x, self.points.t(), alpha=-2.0)
        else:
            x, there = self._view(output)
            if there is None:
                squares = torch.addmm(self.lengths, x, self.points.t(), alpha=-2.0)
            else:
                x = x.masked_fill(~there, 0.0)
                squares = there.to(x.dtype) @ self.points.square().t()
                squares = torch.addmm(squares, x, self.points.t(), alpha=-2.0)
                stretch = (x.shape[1] / there.sum(1, keepdim=True)).sqrt()
        length = x.square().sum(1, keepdim=True)
        itself = (squares.amin(1, keepdim=True) + length <= 2 * SAME * length).flatten().nonzero()
        if len(itself):
            at = itself.flatten()
            mine = squares[at]
            row = self.row[mine.argmin(1)]
            squares[at] = mine.masked_fill(self.row == row.unsqueeze(1), torch.inf)
        return squares, length, stretch

    def _learn_scale(self, model: Model, rows: Batch) -> None:
        """Learn each entry's standard deviation, and which numbers of a row belong to it."""
        means: list[Tensor] = []
        scales: list[Tensor] = []
        entry: list[Tensor] = []
        for name in model.rebuilt:
            head, x, seen = model.likelihoods[name], rows.x[name], rows.observed[name]
            device = model.fusion.last_bias().device
            view = head.linear_view(x.to(device)).double()
            if seen is not None:
                view = view.masked_fill(~head.spread(seen.to(device)), torch.nan)
            entries = x[0].numel()
            at = head.spread(torch.arange(entries, device=device).unsqueeze(0)).flatten()
            mean = view.nanmean(0).nan_to_num()
            variance = (view - mean).square().nanmean(0).nan_to_num()
            whole = variance.new_zeros(entries).index_add_(0, at, variance)
            whole = torch.where(whole > 0, whole.clamp_min(LEAST), 1.0)
            means.append(mean)
            scales.append(whole.rsqrt()[at])
            entry.append(at + (int(entry[-1][-1]) + 1 if entry else 0))
        self.keep(centre=torch.cat(means).float(), scale=torch.cat(scales).float())
        self.keep(entry=torch.cat(entry))

    def _scaled(self, view: Tensor) -> Tensor:
        return (view - self.centre) * self.scale

    def _view(self, output: Output) -> tuple[Tensor, Tensor | None]:
        """Rows as numbers in units of deviations ``[B, V]``, and which of them were observed."""
        model, target = output.model, output.target
        views = [model.likelihoods[k].linear_view(target.x[k]).float() for k in model.rebuilt]
        view = self._scaled(views[0] if len(views) == 1 else torch.cat(views, 1))
        there = observed(output)
        return view, None if there is None else there.index_select(1, self.entry)


def grouped(squares: Tensor, m: int) -> Tensor:
    """Least of each group of ``m`` columns that lie equally far apart, ``[B, R]`` to ``[B, R/m]``.

    >>> grouped(torch.tensor([[1.0, 9.0, 3.0, 2.0]]), 2)
    tensor([[1., 2.]])
    """
    return squares if m == 1 else squares.unflatten(1, (m, -1)).amin(1)


def _expected(output: Output) -> Tensor:
    """What the model expects of every number of a row, ``[B, V]``."""
    model = output.model
    return torch.cat([model.likelihoods[k].expected(output.params[k]) for k in model.rebuilt], 1)
