"""Evidence from what the model cannot rebuild."""

from __future__ import annotations

from abc import abstractmethod
from typing import final

import torch
from torch import Tensor

from refold import inference
from refold.data.schema import Schema
from refold.detection.base import Evidence, observed, parted, register
from refold.model import Model, Output
from refold.types import Batch

FLOOR = 1e-4  # of what the best constant costs: less is no error, and not to be divided by
NONE = 1e-9  # of the most that a constant costs: no more than rounding


class Costs(Evidence):
    """Evidence of what entries cost, each in units of its mean cost over the training rows."""

    low: Tensor
    unit: Tensor

    @abstractmethod
    def costs(self, output: Output) -> Tensor:
        """Cost of every rebuilt entry in ``R`` ways of looking at it, ``[B, R, E]``."""

    def learn_units(self, model: Model, rows: Batch, schema: Schema) -> None:
        """Learn each entry's mean cost and its least."""
        total, least, times = 0.0, 0.0, 0
        for output, count in inference.outputs(model, rows, schema):
            cost, seen = self.costs(output)[:count].double(), observed(output)
            there = torch.ones_like(cost[:, :1]) if seen is None else seen[:count].unsqueeze(1)
            known = torch.where(there > 0, cost, 0.0)
            total, times = total + known.sum(0), times + (there > 0).sum(0)
            least = known.amin(0).clamp_max(least)  # of nothing known, nothing
        low, count = torch.as_tensor(least), torch.as_tensor(times)
        mean = torch.as_tensor(total) / count.clamp_min(1) - torch.where(count > 0, low, 0.0)
        floor = FLOOR * constant_costs(model, rows).double().to(mean.device)
        self.keep(low=low.float(), unit=(mean + floor).clamp_min(1e-12).float())

    def figures(self, output: Output) -> Tensor:
        """Root of the mean over observed entries, ``[B, 1]``; 1 where nothing was observed."""
        amounts, there = self._amounts(output), observed(output)
        if there is None:
            return (amounts.sum(1, keepdim=True) / amounts.shape[1]).sqrt()
        count = there.sum(1, keepdim=True)
        figure = (amounts.sum(1, keepdim=True) / count.clamp_min(1)).sqrt()
        return torch.where(count > 0, figure, torch.ones_like(figure))

    def shares(self, output: Output) -> Tensor:
        """Each entry's part of the sum."""
        return parted(self._amounts(output))

    def _amounts(self, output: Output) -> Tensor:
        amounts = ((self.costs(output) - self.low).clamp_min(0.0) / self.unit).mean(1)
        there = observed(output)
        return amounts if there is None else amounts.masked_fill(~there, 0.0)


@final
@register("errors")
class Errors(Costs):
    r"""Error of every entry, in units of its error in training.

    .. math:: f = \sqrt{\frac{1}{|O|} \sum_{e \in O} \frac{\ell_e}{\bar \ell_e}}

    with the cost :math:`\ell_e` of entry ``e`` under its likelihood, its mean :math:`\bar \ell_e`
    over the training rows, and the entries :math:`O` that were observed. An entry that always comes
    back well is unusual where it once does not; one that is noise has to be far off. Costs that can
    be negative, as of learnt spreads, count from the least that training met.

    >>> import refold
    >>> x = torch.randn(200, 4, generator=torch.Generator().manual_seed(0)).numpy()
    >>> ae = refold.Autoencoder(2, recipe="pca", evidence=("errors",)).fit(x)
    >>> float(ae.score_samples(x * 5).mean()) < -3
    True
    """

    def __init__(self, *, when: str = "always") -> None:
        super().__init__(when)

    def learn(self, model: Model, rows: Batch, schema: Schema) -> None:
        """Learn each entry's mean cost."""
        self.learn_units(model, rows, schema)

    def costs(self, output: Output) -> Tensor:
        """Cost of every entry, ``[B, 1, E]``."""
        return costs(output).unsqueeze(1)


def costs(output: Output) -> Tensor:
    """Weighted cost of every rebuilt entry, ``[B, E]``."""
    cells = [output.cells[k] for k in output.model.rebuilt]
    return cells[0] if len(cells) == 1 else torch.cat(cells, 1)


def constant_costs(model: Model, rows: Batch) -> Tensor:
    """Mean distance of the cost of the best constant prediction from the least, ``[E]``.

    An entry that was always the same has none of its own, and is given the mean of the others.
    """
    found: list[Tensor] = []
    for name in model.rebuilt:
        head, x, seen = model.likelihoods[name], rows.x[name], rows.observed[name]
        device = model.fusion.last_bias().device
        x, seen = x.to(device), None if seen is None else seen.to(device)
        params = head.marginal(x, seen).to(x.device).expand(len(x), -1)
        cells = head.weighted(params, x, seen, model.weight(name))
        found.append((cells - cells.amin(0)).mean(0))
    worst = torch.cat(found)
    varied = worst > NONE * worst.max()
    usual = worst[varied].mean() if varied.any() else worst.new_ones(())
    return torch.where(varied, worst, usual)
