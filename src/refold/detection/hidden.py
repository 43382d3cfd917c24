"""Evidence from entries that the model was not shown."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from refold import inference
from refold.data.schema import Schema
from refold.detection.base import Evidence, observed, parted, register, without
from refold.detection.errors import FLOOR, constant_costs, costs
from refold.model import Model, Output
from refold.types import Batch

QUARTERS = 4


@final
@register("hidden")
class Hidden(Evidence):
    r"""Error of every entry while none, a quarter, half, three quarters or all of a row is hidden.

    .. math:: f = \sqrt{\frac{1}{|O|} \sum_{e \in O} \frac15 \sum_{r}
                  \frac{\ell_{e, r}}{\bar \ell_{e, r}}}

    with the cost :math:`\ell_{e, r}` of entry ``e`` at rate ``r``, a mean over masks that hide
    every entry equally often, and its mean over the training rows. What a model has learnt to copy
    it cannot predict from what is left, so that rows which it was trained on, and knows well, still
    show what is odd about them; where all is hidden, the distance from what is most common counts.
    Of use where training hid entries, see :class:`refold.data.corruptions.Hide`. The masks, eleven,
    are the same for every row.

    Source: Du et al., ReMasker, 2023 (arXiv:2309.13793), for the training.

    >>> import refold
    >>> x = torch.randn(200, 4, generator=torch.Generator().manual_seed(0)).numpy()
    >>> hidden = refold.Autoencoder(2, corruption="hide", epochs=2, evidence=("hidden",)).fit(x)
    >>> float(hidden.score_samples(x * 5).mean()) < -3
    True
    """

    low: Tensor
    unit: Tensor
    keeps: Tensor

    def __init__(self, *, when: str = "always") -> None:
        super().__init__(when)

    def learn(self, model: Model, rows: Batch, schema: Schema) -> None:
        """Draw the masks, and learn each entry's mean cost and its least at every rate."""
        entries = sum(rows.x[k][0].numel() for k in model.rebuilt)
        device = model.fusion.last_bias().device
        order = torch.randperm(entries, generator=torch.Generator().manual_seed(entries))
        quarter = torch.empty(entries, dtype=torch.long)
        quarter[order] = torch.arange(entries) % QUARTERS
        own = torch.nn.functional.one_hot(quarter, QUARTERS).bool().t()
        halves = own[0::2] | own[1::2]
        whole = torch.ones(1, entries, dtype=torch.bool)
        self.keep(keeps=torch.cat([whole, ~own, halves, own, ~whole]).to(device))
        cells: list[Tensor] = []
        there: list[Tensor] = []
        for output, count in inference.outputs(model, rows, schema):
            cells.append(self._costs(output)[:count].double())
            seen = observed(output)
            there.append(torch.ones_like(cells[-1][:, 0]).bool() if seen is None else seen[:count])
        cost, known = torch.cat(cells), torch.cat(there).unsqueeze(1)
        low = torch.where(known, cost, torch.inf).amin(0).clamp_max(0.0)
        low = torch.where(low.isfinite(), low, 0.0)
        mean = torch.where(known, cost - low, 0.0).sum(0) / known.sum(0).clamp_min(1)
        floor = FLOOR * constant_costs(model, rows).double().to(device)
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
        amounts = ((self._costs(output) - self.low).clamp_min(0.0) / self.unit).mean(1)
        there = observed(output)
        return amounts if there is None else amounts.masked_fill(~there, 0.0)

    def _costs(self, output: Output) -> Tensor:
        """Cost of every entry at each of the five rates, ``[B, 5, E]``."""
        model = output.model
        found: list[Tensor] = []
        for keep in self.keeps:
            part = without(output.given, keep.expand(len(output.target), -1), model.rebuilt)
            found.append(costs(model(part, output.target)))
        rates = torch.stack(found, 1).split([1, QUARTERS, 2, QUARTERS, 1], 1)
        return torch.stack([r.mean(1) for r in rates], 1)
