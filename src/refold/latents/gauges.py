"""What a latent's statistics over held-out rows say, as figures for the history."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from refold.ops.usage import perplexity, usage

Gauge = Callable[[Tensor], dict[str, float]]

VARIES = 0.01  # variance of a unit's posterior mean above which it is active (Burda et al. 2015)
SHOWN = 64  # entries of a code that have a figure each


def active_units(mean: Tensor) -> dict[str, float]:
    """Count code entries whose posterior means ``[n, D]`` vary over the rows.

    Source: Burda, Grosse & Salakhutdinov, Importance Weighted Autoencoders, 2015
    (arXiv:1509.00519), section 5.2.

    >>> active_units(torch.tensor([[0.0, 1.0], [0.0, -1.0]]))
    {'active_units': 1.0}
    """
    return {"active_units": float((mean.double().var(0, correction=0) > VARIES).sum())}


def entry_divergence(kl: Tensor) -> dict[str, float]:
    """Mean divergence of each code entry from its prior, of ``[n, D]`` in nats; of 64 at most.

    >>> entry_divergence(torch.tensor([[0.5, 0.0], [1.5, 0.0]]))
    {'kl_0': 1.0, 'kl_1': 0.0}
    """
    means = kl.double().mean(0)
    return {f"kl_{i}": float(v) for i, v in enumerate(means)} if len(means) <= SHOWN else {}


def codebook(indices: Tensor) -> dict[str, float]:
    """Perplexity and used share of a book, by ``[n, G]`` indices and its size in a last column.

    >>> codebook(torch.tensor([[0, 1, 4], [0, 1, 4]]))
    {'perplexity': 2.0, 'usage': 0.5}
    """
    size, indices = int(indices[0, -1]), indices[:, :-1]
    return {"perplexity": perplexity(indices), "usage": usage(indices, size)}


def critic_accuracy(right: Tensor) -> dict[str, float]:
    """Share of codes and draws of the prior that critics told right, of shares by row ``[n]``.

    >>> critic_accuracy(torch.tensor([0.5, 1.0]))
    {'critic_accuracy': 0.75}
    """
    return {"critic_accuracy": float(right.double().mean())}


gauges: dict[str, Gauge] = {
    "mean": active_units,
    "entry_kl": entry_divergence,
    "indices": codebook,
    "critic": critic_accuracy,
}


def readings(stats: dict[str, list[Tensor]]) -> dict[str, float]:
    """Read every gauge on the statistics of all rows, given portion by portion."""
    found: dict[str, float] = {}
    for name, parts in stats.items():
        found |= gauges[name](torch.cat(parts))
    return found
