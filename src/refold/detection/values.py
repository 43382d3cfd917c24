"""Rows as numbers that distances can be taken of."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor, nn

from refold.detection.base import observed
from refold.model import Model, Output
from refold.types import Batch

LEAST = 1e-3  # variance of an entry from which on it is not stretched further


@final
class Values(nn.Module):
    """Rebuilt fields side by side ``[B, V]``, each entry in units of its standard deviation.

    Classes are indicators, and the deviation is that of all levels of a column together. An entry
    that never varied keeps its field's own unit.
    """

    centre: Tensor
    scale: Tensor
    entry: Tensor

    def learn(self, model: Model, rows: Batch) -> None:
        """Learn each entry's deviation, and which numbers of a row belong to it."""
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
        self.register_buffer("centre", torch.cat(means).float())
        self.register_buffer("scale", torch.cat(scales).float())
        self.register_buffer("entry", torch.cat(entry))

    def forward(self, output: Output) -> tuple[Tensor, Tensor | None]:
        """Numbers of the rows ``[B, V]``, and which of them were observed (None: all)."""
        model, target = output.model, output.target
        views = [model.likelihoods[k].linear_view(target.x[k]).float() for k in model.rebuilt]
        there = observed(output)
        return self.scaled(views), None if there is None else there.index_select(1, self.entry)

    def expected(self, output: Output) -> Tensor:
        """What the model expects of them, ``[B, V]``."""
        model = output.model
        return self.scaled([model.likelihoods[k].expected(output.params[k]) for k in model.rebuilt])

    def scaled(self, views: list[Tensor]) -> Tensor:
        """Join views of fields, in units of deviations."""
        view = views[0] if len(views) == 1 else torch.cat(views, 1)
        return (view - self.centre) * self.scale

    def by_entry(self, amounts: Tensor) -> Tensor:
        """Sum over the numbers of each entry, ``[..., V]`` to ``[..., E]``."""
        entries = int(self.entry[-1]) + 1
        if entries == amounts.shape[-1]:
            return amounts
        total = amounts.new_zeros(*amounts.shape[:-1], entries)
        return total.index_add_(amounts.dim() - 1, self.entry, amounts)
