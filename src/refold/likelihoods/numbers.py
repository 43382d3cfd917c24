"""Likelihoods of real numbers: squared, absolute and Huber error, and a learnt-variance normal."""

from __future__ import annotations

import math
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor, nn
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


@final
@register("mse")
class SquaredError(Location):
    r"""Half the squared error: a normal of unit variance, without its constant.

    .. math:: -\log p(x \mid \mu) = \tfrac12 (x - \mu)^2 + \text{const}

    >>> SquaredError((1,)).cells(torch.tensor([[1.0]]), torch.tensor([[3.0]]))
    tensor([[2.]])
    """

    @property
    def width(self) -> int:
        """One output per entry."""
        return self.entries

    def cells(self, params: Tensor, x: Tensor) -> Tensor:
        """Half the squared error of each entry."""
        return (params - x.flatten(1)).square() * 0.5

    def total(self, params: Tensor, x: Tensor) -> tuple[Tensor, float]:
        """Half the summed squared error."""
        return F.mse_loss(params, x.flatten(1), reduction="sum"), 0.5

    def distribution(self, params: Tensor) -> Distribution:
        """Return a normal of unit variance."""
        return Normal(params, torch.ones_like(params))

    def draw(self, params: Tensor) -> Tensor:
        """Return the point: the spread is not learnt."""
        return params

    def marginal(self, x: Tensor, observed: Tensor | None) -> Tensor:
        """Return the mean."""
        return observed_mean(x.flatten(1), observed)


@final
@register("l1")
class Laplace(Location):
    r"""Absolute error: a Laplace distribution of unit scale, without its constant.

    .. math:: -\log p(x \mid \mu) = |x - \mu| + \text{const}

    >>> Laplace((1,)).cells(torch.tensor([[1.0]]), torch.tensor([[3.0]]))
    tensor([[2.]])
    """

    @property
    def width(self) -> int:
        """One output per entry."""
        return self.entries

    def cells(self, params: Tensor, x: Tensor) -> Tensor:
        """Absolute error of each entry."""
        return (params - x.flatten(1)).abs()

    def total(self, params: Tensor, x: Tensor) -> tuple[Tensor, float]:
        """Summed absolute error."""
        return F.l1_loss(params, x.flatten(1), reduction="sum"), 1.0

    def distribution(self, params: Tensor) -> Distribution:
        """Return a Laplace distribution of unit scale."""
        return TorchLaplace(params, torch.ones_like(params))

    def draw(self, params: Tensor) -> Tensor:
        """Return the point: the spread is not learnt."""
        return params

    def marginal(self, x: Tensor, observed: Tensor | None) -> Tensor:
        """Return the median."""
        flat = x.flatten(1)
        seen = flat if observed is None else flat.masked_fill(~observed, torch.nan)
        return seen.nanmedian(0).values.nan_to_num(0.0)


@final
@register("huber")
class Huber(Location):
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

    @property
    def width(self) -> int:
        """One output per entry."""
        return self.entries

    def cells(self, params: Tensor, x: Tensor) -> Tensor:
        """Huber's error of each entry."""
        return F.huber_loss(params, x.flatten(1), reduction="none", delta=self.delta)

    def total(self, params: Tensor, x: Tensor) -> tuple[Tensor, float]:
        """Summed Huber error."""
        return F.huber_loss(params, x.flatten(1), reduction="sum", delta=self.delta), 1.0

    def distribution(self, params: Tensor) -> Distribution:
        """Return the normal that Huber's error is near its centre."""
        return Normal(params, torch.ones_like(params))

    def draw(self, params: Tensor) -> Tensor:
        """Return the point: the spread is not learnt."""
        return params

    def marginal(self, x: Tensor, observed: Tensor | None) -> Tensor:
        """Return the mean: within ``delta`` of the best constant, and a start only."""
        return observed_mean(x.flatten(1), observed)


@final
@register("gaussian")
class Gaussian(Location):
    r"""A normal whose variance is learnt, exact in nats.

    .. math:: -\log p(x \mid \mu, \sigma) = \tfrac12 \log 2\pi + \log\sigma
              + \frac{(x - \mu)^2}{2\sigma^2}

    ``variance="shared"`` learns one :math:`\sigma` per entry, the same in every row (Rybkin et al.
    2021, arXiv:2006.13202); ``"predicted"`` lets the decoder give one per row and entry (Nix &
    Weigend 1994). :math:`\log\sigma` lies in ``[floor, 10]``, so that a column that repeats a
    value cannot drive the density to infinity; ``floor`` is in units of the field's own scale.

    >>> Gaussian((1,)).cells(torch.zeros(1, 1), torch.zeros(1, 1))
    tensor([[0.9189]], grad_fn=<AddBackward0>)
    """

    def __init__(
        self,
        sizes: tuple[int, ...],
        shape: tuple[int, ...] = (),
        *,
        variance: str = "shared",
        floor: float = -4.0,
    ) -> None:
        super().__init__(sizes, shape)
        if variance not in ("shared", "predicted"):
            raise InputError(f"variance is '{variance}'; expected 'shared' or 'predicted'")
        self.variance, self.floor = variance, floor
        if variance == "shared":
            self.raw = nn.Parameter(torch.zeros(len(sizes)))

    @property
    def width(self) -> int:
        """One output per entry, two where the variance is predicted."""
        return self.entries * (1 if self.variance == "shared" else 2)

    @property
    def log_scale(self) -> Tensor:
        """Shared log standard deviation, ``[E]``.

        Adam moves any parameter by about its rate; times ten, deviations keep up with means.
        """
        return (10.0 * self.raw).clamp(self.floor, 10.0)

    def split(self, params: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean ``[B, E]`` and log standard deviation (``[E]`` or ``[B, E]``)."""
        if self.variance == "shared":
            return params, self.log_scale
        mean, log_scale = params.chunk(2, dim=1)
        return mean, log_scale.clamp(self.floor, 10.0)

    def cells(self, params: Tensor, x: Tensor) -> Tensor:
        """Exact negative log density of each entry."""
        mean, log_scale = self.split(params)
        standard = (x.flatten(1) - mean) * torch.exp(-log_scale)
        return standard.square() * 0.5 + (log_scale + 0.5 * math.log(2 * math.pi))

    def total(self, params: Tensor, x: Tensor) -> tuple[Tensor, float]:
        """Summed negative log density."""
        return self.cells(params, x).sum(), 1.0

    def distribution(self, params: Tensor) -> Distribution:
        """Return the normal."""
        mean, log_scale = self.split(params)
        return Normal(mean, torch.exp(log_scale).expand_as(mean))

    def draw(self, params: Tensor) -> Tensor:
        """Draw from the normal."""
        return self.distribution(params).sample()

    def marginal(self, x: Tensor, observed: Tensor | None) -> Tensor:
        """Return the mean, and the log standard deviation where it is predicted."""
        flat = x.flatten(1)
        mean = observed_mean(flat, observed)
        if self.variance == "shared":
            return mean
        spread = observed_mean((flat - mean).square(), observed).clamp_min(1e-8)
        return torch.cat([mean, 0.5 * spread.log()])
