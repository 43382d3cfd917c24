"""What every likelihood is: decoder outputs in, a distribution and its cost out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from refold.parts import Registry


class Likelihood(nn.Module, ABC):
    """The distribution of one field given the decoder's outputs.

    ``params`` is ``[B, P]`` with ``P = self.width``; targets are ``[B, *shape]`` and are read
    flat, as ``[B, E]``. ``sizes`` holds the number of levels of each entry for classes, and a one
    per entry for numbers; ``shape`` is that of one target, for those who need to know neighbours.
    """

    contextual: ClassVar[bool] = False
    """Whether an entry's cost depends on other entries, so that missing ones must be filled in."""
    spreads: ClassVar[bool] = True
    """Whether it says how far values stray, so that :meth:`draw` gives more than the point."""

    def __init__(self, sizes: tuple[int, ...], shape: tuple[int, ...] = ()) -> None:
        super().__init__()
        self.sizes, self.shape = sizes, shape

    @property
    def entries(self) -> int:
        """Number of entries ``E``."""
        return len(self.sizes)

    @property
    @abstractmethod
    def width(self) -> int:
        """Decoder outputs per row, ``P``."""

    @abstractmethod
    def cells(self, params: Tensor, x: Tensor) -> Tensor:
        """Negative log-likelihood of each entry, ``[B, E]``, in nats."""

    @abstractmethod
    def total(self, params: Tensor, x: Tensor) -> tuple[Tensor, float]:
        """Return a scalar made in one pass, and the factor that makes it the sum of the cells."""

    @abstractmethod
    def distribution(self, params: Tensor) -> Distribution:
        """Return the torch distribution over the flat entries."""

    @abstractmethod
    def point(self, params: Tensor) -> Tensor:
        """Best single value of each entry ``[B, E]``: a mean for numbers, a mode for classes."""

    @abstractmethod
    def draw(self, params: Tensor) -> Tensor:
        """Draw values ``[B, E]`` where the spread is part of the model, else the point."""

    @abstractmethod
    def expected(self, params: Tensor) -> Tensor:
        """Mean of :meth:`linear_view` under the distribution, ``[B, V]``."""

    @abstractmethod
    def linear_view(self, x: Tensor) -> Tensor:
        """Targets as numbers a linear method can use, ``[B, V]``: classes become indicators."""

    @abstractmethod
    def spread(self, observed: Tensor) -> Tensor:
        """Repeat a mask over entries ``[B, E]`` to the columns of :meth:`linear_view`."""

    @abstractmethod
    def marginal(self, x: Tensor, observed: Tensor | None) -> Tensor:
        """Parameters ``[P]`` of the best constant prediction: where a decoder's bias starts."""

    def nll(
        self, params: Tensor, x: Tensor, observed: Tensor | None, weight: Tensor | float
    ) -> Tensor:
        """Weighted negative log-likelihood per row, ``[B]``; missing entries cost nothing."""
        return self.weighted(params, x, observed, weight).sum(1)

    def weighted(
        self, params: Tensor, x: Tensor, observed: Tensor | None, weight: Tensor | float
    ) -> Tensor:
        """Weighted :meth:`cells`, ``[B, E]``, zero where not observed."""
        if self.contextual and observed is not None:
            x = torch.where(observed, x.flatten(1), self.point(params).detach()).view_as(x)
        cells = self.cells(params, x)
        cells = cells if observed is None else cells.masked_fill(~observed, 0.0)
        return cells if isinstance(weight, float) and weight == 1.0 else cells * weight

    def cost(
        self, params: Tensor, x: Tensor, observed: Tensor | None, weight: Tensor | float
    ) -> tuple[Tensor, float]:
        """Return a scalar, and the factor that makes it the mean of :meth:`nll` over the rows.

        The factor is kept apart because it can enter the backward pass as its seed, for nothing.
        """
        if observed is None and isinstance(weight, float):
            total, factor = self.total(params, x)
            return total, factor * weight / x.shape[0]
        return self.weighted(params, x, observed, weight).sum(), 1.0 / x.shape[0]


@runtime_checkable
class Settling(Protocol):
    """A likelihood with parameters of its own that start from the data, as a bias does."""

    def settle(self, x: Tensor, observed: Tensor | None) -> None:
        """Set them so that, with :meth:`Likelihood.marginal`, they are the best constant."""
        ...


likelihoods: Registry[Likelihood] = Registry("likelihood")
register = likelihoods.register


def observed_mean(x: Tensor, observed: Tensor | None) -> Tensor:
    """Mean of each column over its observed rows, zero where a column has none."""
    if observed is None:
        return x.mean(0)
    return torch.where(observed, x, 0).sum(0) / observed.sum(0).clamp_min(1)
