"""Evidence from how far away rows of training are."""

from __future__ import annotations

from itertools import groupby, pairwise
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
COMPARED, NEAR, WILD = 256, 5, 3  # references, those taken, entries left out, to tell what differs
AT_ONCE = 512  # rows whose distances to all references stay in cache


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
        references: int = 768,
        groups: tuple[int, ...] = (64, 256, 768),
        space: str = "values",
        when: str = "always",
    ) -> None:
        super().__init__(when)
        sizes = (*groups, references)
        if not groups or min(sizes) < 1 or any(n % m for m, n in pairwise(sizes)):
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
        found = [self.figures(o)[:count] for o, count in inference.outputs(model, rows, schema)]
        self.keep(unit=torch.cat(found).double().mean(0).clamp_min(1e-6).float())

    def figures(self, output: Output) -> Tensor:
        """Mean distance to the nearest of each group, ``[B, K]`` for ``K`` sizes of groups."""
        stretch: Tensor | None = None
        x, there = output.code.z.flatten(1), None
        if self.space == "values":
            x, there = self.values(output)
        if there is not None:
            x = x.masked_fill(~there, 0.0)
            seen = observed(output)
            assert seen is not None
            stretch = (seen.shape[1] / seen.sum(1, keepdim=True)).sqrt()
        length = x.square().sum(1, keepdim=True)
        squares = self._nearest(x, there, length)
        found: list[Tensor] = []
        before = self.groups[0]
        for m in self.groups:
            squares = grouped(squares, m // before)
            before = m
            distance = (squares + length).clamp_min(0.0).sqrt_()
            alone = distance.isinf()  # a group may hold nothing but the row itself
            count = distance.shape[1] - alone.sum(1)
            found.append(distance.masked_fill_(alone, 0.0).sum(1) / count.clamp_min_(1))
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
        known = there if there is None else there.to(view.dtype)
        found: list[Tensor] = []
        for start in range(0, len(view), AT_ONCE):
            part = view[start : start + AT_ONCE]
            own = None if known is None else known[start : start + AT_ONCE]
            near = self._nearest_in_most(part, own)
            apart = (part.unsqueeze(1) - self.compared[near]).square().mean(1)
            found.append(self.values.by_entry(apart if own is None else apart * own))
        return parted(torch.cat(found))

    def _nearest_in_most(self, view: Tensor, known: Tensor | None) -> Tensor:
        """References ``[B, 5]`` that are nearest without the entries in which they differ most.

        The largest differences are kept entry by entry: to sort all of them would cost ten times
        as much.
        """
        columns, number = self.compared.t().contiguous(), self.values.entry.tolist()
        total = view.new_zeros(len(view), columns.shape[1])
        largest = [total] * min(WILD, (number[-1] + 1) // 2)
        for _, mine in groupby(range(len(number)), number.__getitem__):
            apart = torch.zeros_like(total)
            for c in mine:
                difference = (view[:, c, None] - columns[c]).square_()
                apart += difference if known is None else difference * known[:, c, None]
            total = total + apart
            for i, most in enumerate(largest):
                largest[i], apart = torch.maximum(most, apart), torch.minimum(most, apart)
        rest = total - torch.stack(largest).sum(0) if largest else total
        return rest.topk(min(NEAR, columns.shape[1]), 1, largest=False).indices

    def _nearest(self, x: Tensor, there: Tensor | None, length: Tensor) -> Tensor:
        """Least squared distance to each of the smallest groups, less the row's squared length.

        A few rows at a time, so that what is reduced is still in cache. A row that is a reference
        itself is compared with all others.
        """
        m = self.groups[0]
        found = x.new_empty(len(x), self.references // m)
        room = x.new_empty(min(len(x), AT_ONCE), self.references)
        for start in range(0, len(x), AT_ONCE):
            at = slice(start, start + AT_ONCE)
            squares = self._squares(x[at], None if there is None else there[at], room)
            found[at] = grouped(squares, m)
            itself = found[at].amin(1, keepdim=True) + length[at] <= 2 * SAME * length[at]
            if itself.any():
                row = self.row[squares.argmin(1, keepdim=True)]
                squares.masked_fill_(itself & (self.row == row), torch.inf)
                found[at] = grouped(squares, m)
        return found

    def _squares(self, x: Tensor, there: Tensor | None, room: Tensor) -> Tensor:
        """Squared distances ``[B, R]`` less the row's squared length, over what was observed."""
        room = room[: len(x)]
        squares = torch.addmm(self.lengths, x, self.points.t(), alpha=-2.0, out=room)
        if there is not None:
            # Taken off what is complete, so that a row without gaps is the same beside others.
            squares.sub_((~there).to(x.dtype) @ self.points.square().t())
        return squares


def grouped(squares: Tensor, m: int) -> Tensor:
    """Least of each group of ``m`` columns beside one another, ``[B, R]`` to ``[B, R/m]``.

    >>> grouped(torch.tensor([[1.0, 9.0, 3.0, 2.0]]), 2)
    tensor([[1., 2.]])
    """
    return squares if m == 1 else squares.unflatten(1, (-1, m)).amin(2)
