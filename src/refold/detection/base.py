"""What a piece of evidence is: a reason to hold a row for unusual."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from refold.data.schema import Schema
from refold.errors import unknown
from refold.model import Model, Output
from refold.parts import Registry
from refold.types import Batch

WHEN = ("always", "novelty", "outliers")


class Evidence(nn.Module, ABC):
    """One way to see that a row is unusual, and in which of its entries.

    Hyperparameters are keyword-only. ``when`` says in which setting it is heard: ``"novelty"``,
    where new rows are compared with rows that are believed to be clean, ``"outliers"``, where those
    that are looked for are among the rows that were learnt from, or ``"always"``. What
    :meth:`learn` finds out from rows of training is kept as buffers (:meth:`keep`), so that it
    moves and is saved with the rest. Entries are those of the fields that the model rebuilds, side
    by side.
    """

    def __init__(self, when: str) -> None:
        super().__init__()
        if when not in WHEN:
            raise unknown("setting", when, WHEN)
        self.when = when

    @abstractmethod
    def learn(self, model: Model, rows: Batch, schema: Schema) -> None:
        """Learn what is usual from rows of training."""

    @abstractmethod
    def figures(self, output: Output) -> Tensor:
        """How unusual each row is, ``[B, K]`` figures of 0 or more, of which one is usual."""

    @abstractmethod
    def shares(self, output: Output) -> Tensor:
        """Share of each entry in that, ``[B, E]``, which add up to one in every row."""

    def keep(self, **tensors: Tensor) -> None:
        """Keep tensors as buffers."""
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor)


evidences: Registry[Evidence] = Registry("evidence")
register = evidences.register


def observed(output: Output) -> Tensor | None:
    """Which entries of the rebuilt fields were observed, ``[B, E]``; None where all were."""
    names, seen = output.model.rebuilt, output.target.observed
    if all(seen[k] is None for k in names):
        return None
    sizes = {k: output.target.x[k].flatten(1) for k in names}
    there = {k: seen[k] for k in names}
    return torch.cat(
        [torch.ones_like(sizes[k], dtype=torch.bool) if o is None else o for k, o in there.items()],
        1,
    )


def without(batch: Batch, keep: Tensor, names: Sequence[str]) -> Batch:
    """The same rows, of which the entries of the named fields are seen that ``keep`` ``[B, E]``."""
    x, known = dict(batch.x), dict(batch.observed)
    sizes = [x[k][0].numel() for k in names]
    for k, mine in zip(names, keep.split(sizes, 1), strict=True):
        seen = known[k]
        known[k] = mine if seen is None else mine & seen
        neutral = torch.zeros_like(x[k]) if x[k].is_floating_point() else torch.full_like(x[k], -1)
        x[k] = torch.where(mine.view_as(x[k]), x[k], neutral)
    return Batch(x, known)


def parted(amounts: Tensor) -> Tensor:
    """Divide amounts ``[B, E]`` of each row by their sum; equal shares where all are nothing.

    >>> parted(torch.tensor([[1.0, 3.0], [0.0, 0.0]]))
    tensor([[0.2500, 0.7500],
            [0.5000, 0.5000]])
    """
    total = amounts.sum(1, keepdim=True)
    return torch.where(total > 0, amounts / total, torch.full_like(amounts, 1 / amounts.shape[1]))
