"""Evidence from how far away rows of training are."""

from __future__ import annotations

from itertools import pairwise
from typing import final

import torch
from torch import Tensor

from refold import inference
from refold.data.schema import Schema
from refold.detection.base import Evidence, observed, parted, register
from refold.detection.values import Values
from refold.errors import InputError, unknown
from refold.model import Model, Output
from refold.types import Batch

SPACES = ("values", "code")
SAME = 1e-5  # squared distance, over the squared length, up to which a row is the reference itself
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
    ``groups`` are the sizes. A reference at no distance is taken for the row itself, and one of
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

    points: Tensor
    lengths: Tensor
    row: Tensor
    compared: Tensor
    unit: Tensor

    def __init__(
        self,
        *,
        references: int = 1024,
        groups: tuple[int, ...] = (64, 256, 1024),
        space: str = "values",
        when: str = "always",
    ) -> None:
        super().__init__(when)
        sizes = (*groups, references)
        if not groups or any(m < 1 or n % m for m, n in pairwise(sizes)):
            raise InputError(
                f"neighbours has references={references} and groups={groups}; give sizes of which "
                f"each divides the next, and the last the references, as in (16, 64, 256)"
            )
        if space not in SPACES:
            raise unknown("space of neighbours", space, SPACES)
        self.references, self.groups, self.space = references, groups, space
        self.values = Values()

    def learn(self, model: Model, rows: Batch, schema: Schema) -> None:
        """Draw the references, and learn scales and usual distances."""
        self.keep(unit=torch.ones(len(self.groups)))
        self.values.learn(model, rows)
        draw = torch.Generator().manual_seed(len(rows))
        times = -(-self.references // len(rows))
        order = torch.cat([torch.randperm(len(rows), generator=draw) for _ in range(times)])
        drawn, place = order[: self.references].unique(return_inverse=True)
        views: list[Tensor] = []
        codes: list[Tensor] = []
        for output, count in inference.outputs(model, rows.rows(drawn), schema):
            view, there = self.values(output)
            if there is not None:  # what a reference lacks is what the model expects there
                view = torch.where(there, view, self.values.expected(output))
            views.append(view[:count])
            codes.append(output.code.z[:count].flatten(1))
        points = torch.cat(views if self.space == "values" else codes)[place]
        seen = torch.cat(views)[place[: min(COMPARED, len(rows))]]  # each row once
        row = place.to(points.device)
        self.keep(points=points, lengths=points.square().sum(1), row=row, compared=seen)
        self.to(points.device)
        few = rows.rows(slice(None, None, -(-len(rows) // MOST)))
        found = [self.figures(o)[:count] for o, count in inference.outputs(model, few, schema)]
        self.keep(unit=torch.cat(found).double().mean(0).clamp_min(1e-6).float())

    def figures(self, output: Output) -> Tensor:
        """Mean distance to the nearest of each group, ``[B, K]`` for ``K`` sizes of groups."""
        squares, length, stretch = self._squares(output)
        found: list[Tensor] = []
        before = 1
        for m in self.groups:
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
        view, there = self.values(output)
        found: list[Tensor] = []
        for i, part in enumerate(view.split(max(1, ROOM // self.compared.numel()))):
            apart = self.values.by_entry((part.unsqueeze(1) - self.compared).square())
            if there is not None:
                seen = observed(output)
                assert seen is not None
                apart = apart.masked_fill(~seen.split(len(part))[i].unsqueeze(1), 0.0)
            wild = min(WILD, apart.shape[2] // 2)
            rest = apart.sum(2) - apart.topk(wild, 2).values.sum(2)
            near = rest.topk(min(NEAR, len(self.compared)), 1, largest=False).indices
            found.append(apart.take_along_dim(near.unsqueeze(2), 1).mean(1))
        return parted(torch.cat(found))

    def _squares(self, output: Output) -> tuple[Tensor, Tensor, Tensor | None]:
        """Squared distances ``[B, R]`` less the row's squared length ``[B, 1]``, which follows.

        And by what distances are stretched where entries are missing, infinite where all are.
        """
        stretch: Tensor | None = None
        if self.space == "code":
            x = output.code.z.flatten(1)
            squares = torch.addmm(self.lengths, x, self.points.t(), alpha=-2.0)
        else:
            x, there = self.values(output)
            if there is None:
                squares = torch.addmm(self.lengths, x, self.points.t(), alpha=-2.0)
            else:
                x = x.masked_fill(~there, 0.0)
                squares = there.to(x.dtype) @ self.points.square().t()
                squares = torch.addmm(squares, x, self.points.t(), alpha=-2.0)
                seen = observed(output)
                assert seen is not None
                stretch = (seen.shape[1] / seen.sum(1, keepdim=True)).sqrt()
        length = x.square().sum(1, keepdim=True)
        itself = (squares.amin(1, keepdim=True) + length <= 2 * SAME * length).flatten().nonzero()
        if len(itself):
            at = itself.flatten()
            mine = squares[at]
            row = self.row[mine.argmin(1)]
            squares[at] = mine.masked_fill(self.row == row.unsqueeze(1), torch.inf)
        return squares, length, stretch


def grouped(squares: Tensor, m: int) -> Tensor:
    """Least of each group of ``m`` columns that lie equally far apart, ``[B, R]`` to ``[B, R/m]``.

    >>> grouped(torch.tensor([[1.0, 9.0, 3.0, 2.0]]), 2)
    tensor([[1., 2.]])
    """
    return squares if m == 1 else squares.unflatten(1, (m, -1)).amin(1)
