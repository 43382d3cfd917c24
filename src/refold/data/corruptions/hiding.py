"""What is hidden: the encoder is told that it is not there, as it is of missing values."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from refold.data.corruptions.base import Corruption, check_share, entries_of, register
from refold.errors import InputError, unknown
from refold.types import Batch

SCORES = ("all", "hidden", "visible")


@final
@register("hide")
class Hide(Corruption):
    r"""Hide entries and whole fields at random, so that a model learns to fill gaps.

    .. math:: r_b \sim U(\text{low}, \text{high}), \qquad P(\text{entry of row } b \text{ hidden}) =
              r_b

    ``rate`` is the pair ``(low, high)`` or one number: each row has its own share of hidden
    entries, so that one model knows rows with few gaps and rows with many. ``fields`` is the
    probability that a field is hidden as a whole; one of a row is always spared that. A share
    ``whole`` of the rows loses nothing. What is hidden counts as missing for the encoder, keeps its
    value, and stays a target; ``score="hidden"`` scores it alone, and not what could be copied,
    ``"visible"`` what is left, which for a variational model is the bound of what it sees. (Under
    ``"all"`` its decoder also answers for what no code can know, as noise; that is of use where
    fields tell nearly all of each other.)

    Sources: Yoon et al., GAIN, 2018, and Du et al., ReMasker, 2023 (arXiv:2309.13793) for entries;
    Wu & Goodman, Multimodal Generative Models for Scalable Weakly-Supervised Learning, 2018, for
    fields.

    >>> batch = Batch({"x": torch.ones(4, 1000)}, {"x": None})
    >>> hidden = Hide(rate=0.3)(batch, torch.Generator().manual_seed(0))
    >>> hidden.observed["x"].float().mean().round(decimals=1)
    tensor(0.7000)
    """

    hides: bool = True

    def __init__(
        self,
        *,
        rate: float | tuple[float, float] = (0.0, 1.0),
        fields: float = 0.0,
        whole: float = 0.0,
        score: str = "all",
    ) -> None:
        edges = (rate, rate) if isinstance(rate, int | float) else rate
        if len(edges) != 2 or not 0 <= edges[0] <= edges[1] <= 1:
            raise InputError(
                f"rate is {rate}; give the share of hidden entries, from 0 to 1, or the smallest "
                f"and the largest share of a row, as in (0, 0.5)"
            )
        check_share(fields, "the probability of hidden fields")
        check_share(whole, "the share of rows left whole")
        if fields == edges[1] == 0:
            raise InputError("rate and fields are both 0, so nothing is hidden; set one of them")
        if score not in SCORES:
            raise unknown("score", score, SCORES)
        self.rate, self.fields, self.whole, self.score = rate, fields, whole, score
        self.scored = score
        self._low, self._high = edges

    def __call__(self, batch: Batch, generator: torch.Generator) -> Batch:
        """Hide the drawn entries; values stay as they are."""
        device = next(iter(batch.x.values())).device
        rows, sizes = len(batch), {k: entries_of(x) for k, x in batch.x.items()}

        def draw(columns: int) -> Tensor:
            return torch.rand(rows, columns, generator=generator, device=device)

        rates = self._low + (self._high - self._low) * draw(1)
        hidden = draw(sum(sizes.values())) < rates
        if self.fields:
            gone = draw(len(sizes)) < self.fields
            # The one that stays is drawn too, or the last field would never be hidden.
            stays = draw(len(sizes)).argmax(1, keepdim=True)
            gone.scatter_(1, stays, gone.all(1, keepdim=True).logical_not() & gone.gather(1, stays))
            counts = torch.tensor(list(sizes.values()), device=device)
            hidden |= gone.repeat_interleave(counts, 1)
        hidden &= draw(1) >= self.whole
        observed: dict[str, Tensor | None] = {}
        for (name, seen), mine in zip(
            batch.observed.items(), hidden.split(list(sizes.values()), 1), strict=True
        ):
            observed[name] = ~mine if seen is None else seen & ~mine
        return Batch(batch.x, observed)
