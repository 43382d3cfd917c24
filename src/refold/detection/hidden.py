"""Evidence from entries that the model was not shown."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from refold.data.schema import Schema
from refold.detection.base import register, without
from refold.detection.errors import Costs, costs
from refold.model import Model, Output
from refold.types import Batch

QUARTERS = 4


@final
@register("hidden")
class Hidden(Costs):
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

    keeps: Tensor

    def __init__(self, *, when: str = "always") -> None:
        super().__init__(when)

    def learn(self, model: Model, rows: Batch, schema: Schema) -> None:
        """Draw the masks, and learn each entry's mean cost at every rate."""
        entries = sum(rows.x[k][0].numel() for k in model.rebuilt)
        device = model.fusion.last_bias().device
        order = torch.randperm(entries, generator=torch.Generator().manual_seed(entries))
        quarter = torch.empty(entries, dtype=torch.long)
        quarter[order] = torch.arange(entries) % QUARTERS
        own = torch.nn.functional.one_hot(quarter, QUARTERS).bool().t()
        halves = own[0::2] | own[1::2]
        whole = torch.ones(1, entries, dtype=torch.bool)
        self.keep(keeps=torch.cat([whole, ~own, halves, own, ~whole]).to(device))
        self.learn_units(model, rows, schema)

    def costs(self, output: Output) -> Tensor:
        """Cost of every entry at each of the five rates, ``[B, 5, E]``."""
        model = output.model
        found: list[Tensor] = []
        for keep in self.keeps:
            part = without(output.given, keep.expand(len(output.target), -1), model.rebuilt)
            found.append(costs(model(part, output.target)))
        rates = torch.stack(found, 1).split([1, QUARTERS, 2, QUARTERS, 1], 1)
        return torch.stack([r.mean(1) for r in rates], 1)
