"""Likelihoods of real numbers whose spread is not learnt: squared, absolute and Huber error."""

from __future__ import annotations

from typing import ClassVar, final

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import Distribution, Normal
from torch.distributions import Laplace as TorchLaplace

from refold.errors import InputError
from refold.likelihoods.base import Likelihood, observed_mean, register


class Location(Likelihood):
    """A likelihood of numbers whose first ``E`` parameters are where the value is expected."""

    def point(self, params: Tensor) -> Tensor:
        """Return the location itself."""
        return params[:, : self.entries]

    def expected(self, params: Tensor) -> Tensor:
        """Return the location itself."""
        return params[:, : self.entries]

    def linear_view(self, x: Tensor) -> Tensor:
        """Numbers are their own linear view."""
        return x.flatten(1)

    def spread(self, observed: Tensor) -> Tensor:
        """One column per entry: the mask itself."""
        return observed


class FixedSpread(Likelihood):
    """A likelihood of one output per entry: where a value is, and not how far it strays."""

    spreads: ClassVar[bool] = False

    @property
    def width(self) -> int:
        """One output per entry."""
        return self.entries

    def draw(self, params: Tensor) -> Tensor:
        """Return the point: the spread is not learnt."""
        return self.point(params)


def observed_median(x: Tensor, observed: Tensor | None) -> Tensor:
    """Median of each column over its observed rows, zero where a column has none."""
    seen = x if observed is None else x.masked_fill(~observed, torch.nan)
    return seen.nanmedian(0).values.nan_to_num(0.0)


@final
@register("mse")
class SquaredError(Location, FixedSpread):
    r"""Half the squared error: a normal of unit variance, without its constant.

    .. math:: -\log p(x \mid \mu) = \tfrac12 (x - \mu)^2 + \text{const}

    >>> SquaredError((1,)).cells(torch.tensor([[1.0]]), torch.tensor([[3.0]]))
    tensor([[2.]])
    """

    def cells(self, params: Tensor, x: Tensor) -> Tensor:
        """Half the squared error of each entry."""
        return (params - x.flatten(1)).square() * 0.5

    def total(self, params: Tensor, x: Tensor) -> tuple[Tensor, float]:
        """Half the summed squared error."""
        return F.mse_loss(params, x.flatten(1), reduction="sum"), 0.5

    def distribution(self, params: Tensor) -> Distribution:
        """Return a normal of unit variance."""
        return Normal(params, torch.ones_like(params))

    def marginal(self, x: Tensor, observed: Tensor | None) -> Tensor:
        """Return the mean."""
        return observed_mean(x.flatten(1), observed)


@final
@register("l1")
class AbsoluteError(Location, FixedSpread):
    r"""Absolute error: a Laplace distribution of unit scale, without its constant.

    .. math:: -\log p(x \mid \mu) = |x - \mu| + \text{const}

    >>> AbsoluteError((1,)).cells(torch.tensor([[1.0]]), torch.tensor([[3.0]]))
    tensor([[2.]])
    """

    def cells(self, params: Tensor, x: Tensor) -> Tensor:
        """Absolute error of each entry."""
        return (params - x.flatten(1)).abs()

    def total(self, params: Tensor, x: Tensor) -> tuple[Tensor, float]:
        """Summed absolute error."""
        return F.l1_loss(params, x.flatten(1), reduction="sum"), 1.0

    def distribution(self, params: Tensor) -> Distribution:
        """Return a Laplace distribution of unit scale."""
        return TorchLaplace(params, torch.ones_like(params))

    def marginal(self, x: Tensor, observed: Tensor | None) -> Tensor:
        """Return the median."""
        return observed_median(x.flatten(1), observed)


@final
@register("huber")
class Huber(Location, FixedSpread):
    r"""Huber's error: squared near zero, absolute beyond ``delta`` (in standard deviations).

    .. math:: \ell(r) = \tfrac12 r^2 \text{ if } |r| \le \delta, \quad
              \delta (|r| - \tfrac12 \delta) \text{ otherwise}

    Source: Huber, Robust Estimation of a Location Parameter, 1964.

    >>> Huber((1,), delta=1.0).cells(torch.tensor([[0.0]]), torch.tensor([[3.0]]))
    tensor([[2.5000]])
    """

    def __init__(
        self, sizes: tuple[int, ...], shape: tuple[int, ...] = (), *, delta: float = 1.0
    ) -> None:
        super().__init__(sizes, shape)
        if not delta > 0:
            raise InputError(f"huber's delta is {delta}; it must be above 0")
        self.delta = delta

    def cells(self, params: Tensor, x: Tensor) -> Tensor:
        """Huber's error of each entry."""
        return F.huber_loss(params, x.flatten(1), reduction="none", delta=self.delta)

    def total(self, params: Tensor, x: Tensor) -> tuple[Tensor, float]:
        """Summed Huber error."""
        return F.huber_loss(params, x.flatten(1), reduction="sum", delta=self.delta), 1.0

    def distribution(self, params: Tensor) -> Distribution:
        """Return the normal that Huber's error is near its centre."""
        return Normal(params, torch.ones_like(params))

    def marginal(self, x: Tensor, observed: Tensor | None) -> Tensor:
        """Return the mean: within ``delta`` of the best constant, and a start only."""
        return observed_mean(x.flatten(1), observed)
