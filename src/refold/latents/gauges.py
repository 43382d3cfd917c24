"""What a latent's statistics over held-out rows say, as figures for the history."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from refold.ops.usage import perplexity, usage

Gauge = Callable[[Tensor], dict[str, float]]

VARIES = 0.01  # variance of a unit's posterior mean above which it is active (Burda et al. 2015)
DENSEST = tuple(i / 2 for i in range(-10, 1))  # decimal logarithms between which shares are counted
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


def density(fired: Tensor) -> dict[str, float]:
    """Say in how many rows the entries of a sparse code fire, by sums ``[portions, D + 1]``.

    Each has the rows in which an entry fired, and all rows in a last column. ``l0`` is the mean
    number of active entries in a row, ``dead_share`` the share of entries that never fired, and
    ``density_-2.0`` the share of those that fired in a share of the rows whose decimal logarithm
    is from -2 to -1.5, and so on from -5 (or less) to 0.

    >>> found = density(torch.tensor([[0, 50, 100, 100]]))
    >>> found["l0"], found["dead_share"], found["density_-0.5"]
    (1.5, 0.3333333333333333, 0.6666666666666666)
    """
    sums = fired.double().sum(0)
    share = sums[:-1] / sums[-1]
    exponent = share[share > 0].log10().clamp(DENSEST[0], DENSEST[-1] - 1e-9)
    counts = torch.histc(exponent, len(DENSEST) - 1, DENSEST[0], DENSEST[-1])
    shares = {
        f"density_{low}": float(n / len(share))
        for low, n in zip(DENSEST[:-1], counts.tolist(), strict=True)
    }
    return {
        "l0": float(share.sum()),
        "dead_share": float((share == 0).double().mean()),
        **shares,
    }


def explained_variance(squares: Tensor) -> dict[str, float]:
    r"""Share of the variance that is rebuilt, by sums of squares ``[portions, 2 + 2V]``.

    .. math:: 1 - \frac{\sum (x - \hat x)^2}{\sum (x - \bar x)^2}

    about the mean of each of ``V`` numbers over the same rows, and not about zero. A row holds
    :math:`\sum (x - \hat x)^2`, :math:`\sum x^2`, each number's sum and in how many rows it was.

    >>> explained_variance(torch.tensor([[1.0, 52.0, 10.0, 2.0]]))
    {'explained': 0.5}
    """
    both, rest = squares.double().sum(0).split([2, squares.shape[1] - 2])
    sums, counts = rest.chunk(2)
    about = float(both[1] - (sums.square() / counts.clamp_min(1)).sum())
    return {"explained": 1.0 - float(both[0]) / about} if about > 0 else {}


gauges: dict[str, Gauge] = {
    "squares": explained_variance,
    "fired": density,
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
