"""Costs of the steps between two evaluations, and what they come to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from refold.training.ranks import Ranks
from refold.types import Costs

Row = dict[str, float]
ROOM = 256  # costs of steps kept side by side at first


class Totals:
    """Costs of every batch, left on the device until somebody reads them.

    They are copied side by side: a scalar that outlived its step would lie between the step's large
    tensors, and the heap would grow, page by page, for want of a free block as large as the last.
    """

    def __init__(self) -> None:
        self.values: dict[str, Tensor] = {}
        self.factors: dict[str, list[float]] = {}
        self.rows = 0

    def add(self, costs: Costs, rows: int) -> None:
        """Keep a batch's costs, without waiting for the device."""
        self.rows += rows
        for name, (value, factor) in costs.items():
            factors = self.factors.setdefault(name, [])
            if not factors:
                self.values[name] = value.new_empty(ROOM)
            elif len(factors) == len(self.values[name]):
                full = self.values[name]
                self.values[name] = torch.cat([full, torch.empty_like(full)])
            self.values[name].select(0, len(factors)).copy_(value.detach())
            factors.append(factor * rows)

    def remembered(self) -> dict[str, Any]:
        """Return what is plain of it; the costs themselves are its ``values``."""
        return {"factors": self.factors, "rows": self.rows}

    def remember(self, plain: Mapping[str, Any], values: Mapping[str, Tensor]) -> None:
        """Put back what :meth:`remembered` gave, and the values."""
        self.values, self.rows = dict(values), plain["rows"]
        self.factors = {k: list(v) for k, v in plain["factors"].items()}

    def clear(self) -> None:
        """Have what was added count for nothing."""
        self.rows, self.factors = 0, {k: [0.0] * len(v) for k, v in self.factors.items()}

    def means(self, ranks: Ranks | None = None) -> Row:
        """Mean over the rows of each term, and of their sum as ``loss``; empty without rows.

        The rows are those of all ``ranks``.
        """
        if not self.factors:
            return {}
        sums = [
            float(self.values[k][: len(v)].cpu().double() @ torch.tensor(v).double())
            for k, v in self.factors.items()
        ]
        *sums, rows = (*sums, self.rows) if ranks is None else ranks.sums([*sums, float(self.rows)])
        means = {k: value / rows for k, value in zip(self.factors, sums, strict=True)}
        return {"loss": sum(means.values()), **means}


def merged(parts: Sequence[Totals]) -> Totals:
    """Join what several processes have of the same steps."""
    if len(parts) == 1:
        return parts[0]
    whole = Totals()
    whole.rows = sum(part.rows for part in parts)
    for name in parts[0].factors:
        taken = [part.values[name][: len(part.factors[name])].cpu() for part in parts]
        whole.values[name] = torch.cat(taken)
        whole.factors[name] = [factor for part in parts for factor in part.factors[name]]
    return whole
