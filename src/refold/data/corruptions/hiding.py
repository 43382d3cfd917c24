"""What is hidden: the encoder is told that it is not there, as it is of missing values."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from refold.data.corruptions.base import Corruption, check_share, entries_of, register
from refold.errors import InputError, unknown
from refold.ops.tokens import cut, places
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


@final
@register("mask")
class Mask(Corruption):
    r"""Hide an exact share of a row's tokens, each row its own, as a masked autoencoder does.

    .. math:: |\{i : \text{token } i \text{ of row } b \text{ hidden}\}|
              = \operatorname{round}(\text{fraction} \cdot L_b)

    Tokens are those of the backbone ``transformer``: squares of ``patch`` pixels of an image with
    all their channels, runs of ``patch`` steps of a series (None: 2, 4, 8 or 16, as many as leave
    seven tokens along the longer side), tokens of a text, cells of a table; :math:`L_b` counts
    those of which the row has anything. An image or a series loses the share by itself; cells of
    all other fields are drawn together, so that a column alone in its field is not always hidden.
    At least one token is hidden and one left (one alone is hidden with probability ``fraction``).
    What is hidden counts as missing for the encoder, keeps its value and is scored, by default
    alone: :class:`Hide` says more.

    Source: He et al., Masked Autoencoders Are Scalable Vision Learners, 2021 (arXiv:2111.06377);
    Du et al., ReMasker, 2023 (arXiv:2309.13793).

    >>> batch = Batch({"x": torch.ones(2, 1, 28, 28)}, {"x": None})
    >>> hidden = Mask(fraction=0.75, patch=4)(batch, torch.Generator().manual_seed(0))
    >>> (~hidden.observed["x"]).sum(1) / 16
    tensor([37., 37.])
    """

    hides: bool = True

    def __init__(
        self, *, fraction: float = 0.75, patch: int | None = None, score: str = "hidden"
    ) -> None:
        if not 0 < fraction < 1:
            raise InputError(
                f"the hidden fraction of tokens is {fraction}; it must lie between 0 and 1, and be "
                f"neither"
            )
        if patch is not None and patch < 1:
            raise InputError(f"patch is {patch}; it must be 1 or more")
        if score not in SCORES:
            raise unknown("score", score, SCORES)
        self.fraction, self.patch, self.score = fraction, patch, score
        self.scored = score

    def __call__(self, batch: Batch, generator: torch.Generator) -> Batch:
        """Hide the drawn tokens; values stay as they are."""
        hidden: dict[str, Tensor] = {}
        known = {k: _known(batch, k) for k, x in batch.x.items() if x.ndim == 2}
        if known:
            drawn = self._drawn(torch.cat(list(known.values()), 1), generator)
            widths = [seen.shape[1] for seen in known.values()]
            hidden.update(zip(known, drawn.split(widths, 1), strict=True))
        for name, x in batch.x.items():
            if name not in known:
                tokens = cut(tuple(x.shape[1:]), self.patch).to(x.device)
                owner = places(tokens, entries_of(x)) // tokens.shape[1]
                seen = _known(batch, name)
                there = seen.new_zeros(len(x), len(tokens)).index_add(1, owner, seen)
                hidden[name] = self._drawn(there, generator).index_select(1, owner)
        observed: dict[str, Tensor | None] = {}
        for name, seen in batch.observed.items():
            observed[name] = ~hidden[name] if seen is None else seen & ~hidden[name]
        return Batch(batch.x, observed)

    def _drawn(self, there: Tensor, generator: torch.Generator) -> Tensor:
        """Return which tokens are hidden, of those that are ``there`` ``[B, L]``."""
        most = there.shape[1]
        count = [min(max(round(self.fraction * n), 1), n - 1) for n in range(most + 1)]
        have = there.sum(1, keepdim=True)
        chance = torch.rand(there.shape, generator=generator, device=there.device)
        chance = chance.masked_fill(~there, 2.0)  # behind all others
        hidden = chance.argsort(1).argsort(1) < torch.tensor(count, device=there.device)[have]
        return hidden | ((have == 1) & (chance < self.fraction))


def _known(batch: Batch, name: str) -> Tensor:
    """Which entries of a field are there, ``[B, E]``."""
    seen, x = batch.observed[name], batch.x[name]
    return torch.ones_like(x.flatten(1), dtype=torch.bool) if seen is None else seen
