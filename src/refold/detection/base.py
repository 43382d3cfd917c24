"""What a piece of evidence is: a reason to hold a row for unusual."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from refold.data.schema import Schema
from refold.model import Model, Output
from refold.parts import Registry
from refold.types import Batch


class Evidence(nn.Module, ABC):
    """One way to see that a row is unusual, and in which of its entries.

    Hyperparameters are keyword-only. What :meth:`learn` finds out from rows of training is kept as
    buffers (:meth:`keep`), so that it moves and is saved with the rest. Entries are those of the
    fields that the model rebuilds, side by side.
    """

    @abstractmethod
    def learn(self, model: Model, rows: Batch, schema: Schema, share: float | None) -> None:
        """Learn what is usual from rows of training.

        ``share`` is how many of them are believed to be anomalies (None: nothing is).
        """

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


def parted(amounts: Tensor) -> Tensor:
    """Divide amounts ``[B, E]`` of each row by their sum; equal shares where all are nothing.

    >>> parted(torch.tensor([[1.0, 3.0], [0.0, 0.0]]))
    tensor([[0.2500, 0.7500],
            [0.5000, 0.5000]])
    """
    total = amounts.sum(1, keepdim=True)
    return torch.where(total > 0, amounts / total, torch.full_like(amounts, 1 / amounts.shape[1]))
