"""Likelihoods of real numbers whose spread is learnt: normal, Laplace, and Student's t."""

from __future__ import annotations

import math
from typing import final

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Normal, StudentT
from torch.distributions import Laplace as TorchLaplace

from refold.errors import InputError
from refold.likelihoods.base import Likelihood, observed_mean, register
from refold.likelihoods.numbers import Location, observed_median

WIDEST = 10.0  # logarithm of the largest scale, in units of the field's own
FREEDOM = 100.0  # degrees of freedom beyond which Student's t is a normal


class LearntScale(Likelihood):
    r"""A likelihood with a scale: one per entry for all rows, or one the decoder gives per row.

    Its logarithm lies in ``[floor, 10]``, so that a column that repeats a value cannot drive the
    density to infinity; ``floor`` is in units of the field's own scale.
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
        if not floor < WIDEST:
            raise InputError(f"floor is {floor}, the logarithm of a scale; it must be below 10")
        self.variance, self.floor = variance, floor
        if variance == "shared":
            self.raw = nn.Parameter(torch.zeros(len(sizes)))

    @property
    def width(self) -> int:
        """One output per entry, two where the scale is predicted."""
        return self.entries * (1 if self.variance == "shared" else 2)

    @property
    def log_scale(self) -> Tensor:
        """Shared logarithm of the scale, ``[E]``.

        Adam moves any parameter by about its rate; times ten, scales keep up with locations.
        """
        return (10.0 * self.raw).clamp(self.floor, WIDEST)

    def split(self, params: Tensor) -> tuple[Tensor, Tensor]:
        """Return the location ``[B, E]`` and the log scale (``[E]`` or ``[B, E]``)."""
        if self.variance == "shared":
            return params, self.log_scale
        location, log_scale = params.chunk(2, dim=1)
        return location, log_scale.clamp(self.floor, WIDEST)

    def beside(self, location: Tensor, scale: Tensor) -> Tensor:
        """Parameters ``[P]`` of a location, and of a scale where it is predicted."""
        if self.variance == "shared":
            return location
        return torch.cat([location, scale.clamp_min(1e-4).log()])

    def total(self, params: Tensor, x: Tensor) -> tuple[Tensor, float]:
        """Summed negative log density."""
        return self.cells(params, x).sum(), 1.0

    def draw(self, params: Tensor) -> Tensor:
        """Draw from the distribution."""
        return self.distribution(params).sample()


@final
@register("gaussian")
class Gaussian(Location, LearntScale):
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

    def cells(self, params: Tensor, x: Tensor) -> Tensor:
        """Exact negative log density of each entry."""
        mean, log_scale = self.split(params)
        standard = (x.flatten(1) - mean) * torch.exp(-log_scale)
        return standard.square() * 0.5 + (log_scale + 0.5 * math.log(2 * math.pi))

    def distribution(self, params: Tensor) -> Distribution:
        """Return the normal."""
        mean, log_scale = self.split(params)
        return Normal(mean, torch.exp(log_scale).expand_as(mean))

    def marginal(self, x: Tensor, observed: Tensor | None) -> Tensor:
        """Return the mean, and the log standard deviation where it is predicted."""
        flat = x.flatten(1)
        mean = observed_mean(flat, observed)
        return self.beside(mean, observed_mean((flat - mean).square(), observed).sqrt())


@final
@register("laplace")
class Laplace(Location, LearntScale):
    r"""A Laplace distribution whose scale is learnt, exact in nats: tails heavier than a normal's.

    .. math:: -\log p(x \mid \mu, b) = \log 2b + \frac{|x - \mu|}{b}

    The location :math:`\mu` is a median, so that a few wild values hardly move it. ``variance``
    and ``floor`` are as in :class:`Gaussian`, for :math:`b` in place of :math:`\sigma`. With the
    scale fixed at 1 it is :class:`AbsoluteError`, but for a constant.

    Raises :class:`InputError` for another ``variance``.

    >>> Laplace((1,)).cells(torch.tensor([[1.0]]), torch.tensor([[3.0]]))
    tensor([[2.6931]], grad_fn=<AddBackward0>)
    """

    def cells(self, params: Tensor, x: Tensor) -> Tensor:
        """Exact negative log density of each entry."""
        median, log_scale = self.split(params)
        standard = (x.flatten(1) - median).abs() * torch.exp(-log_scale)
        return standard + (log_scale + math.log(2.0))

    def distribution(self, params: Tensor) -> Distribution:
        """Return the Laplace distribution."""
        median, log_scale = self.split(params)
        return TorchLaplace(median, torch.exp(log_scale).expand_as(median))

    def marginal(self, x: Tensor, observed: Tensor | None) -> Tensor:
        """Return the median, and the log mean distance from it where the scale is predicted."""
        flat = x.flatten(1)
        median = observed_median(flat, observed)
        return self.beside(median, observed_mean((flat - median).abs(), observed))


@final
@register("student")
class Student(Location, LearntScale):
    r"""Student's t with a learnt scale, exact in nats: wild values are foreseen, and cost little.

    .. math:: -\log p(x \mid \mu, s, \nu) = \log\frac{\Gamma(\nu / 2) \sqrt{\nu\pi}\, s}
              {\Gamma((\nu + 1) / 2)}
              + \frac{\nu + 1}{2} \log\Bigl(1 + \frac{(x - \mu)^2}{\nu s^2}\Bigr)

    ``df`` :math:`\nu` is the degrees of freedom, above 0: 1 is Cauchy's distribution, 100 nearly a
    normal. None learns one per entry, between 1 and 100, from 10 on. The location is the median,
    and the mean where :math:`\nu > 1`. ``variance`` and ``floor`` are as in :class:`Gaussian`,
    for :math:`s` in place of :math:`\sigma`.

    Raises :class:`InputError` for a ``df`` that is not above 0.

    Source: Lange, Little & Taylor, Robust Statistical Modeling Using the t Distribution, 1989.

    >>> Student((1,), df=1.0).cells(torch.zeros(1, 1), torch.tensor([[0.0]])).exp()
    tensor([[3.1416]], grad_fn=<ExpBackward0>)
    """

    def __init__(
        self,
        sizes: tuple[int, ...],
        shape: tuple[int, ...] = (),
        *,
        df: float | None = None,
        variance: str = "shared",
        floor: float = -4.0,
    ) -> None:
        super().__init__(sizes, shape, variance=variance, floor=floor)
        if df is not None and not 0 < df < math.inf:
            raise InputError(f"student's df is {df}; degrees of freedom are a number above 0")
        self.df = df
        if df is None:
            self.raw_df = nn.Parameter(torch.zeros(len(sizes)))

    @property
    def freedom(self) -> Tensor:
        """Degrees of freedom, ``[E]`` where they are learnt, else a scalar."""
        if self.df is None:
            return torch.exp(math.log(FREEDOM) * torch.sigmoid(10.0 * self.raw_df))
        return torch.tensor(self.df, dtype=torch.float64)

    def cells(self, params: Tensor, x: Tensor) -> Tensor:
        """Exact negative log density of each entry."""
        location, log_scale = self.split(params)
        df = self.freedom
        constant = torch.lgamma(df / 2) - torch.lgamma((df + 1) / 2) + 0.5 * (df * math.pi).log()
        standard = (x.flatten(1) - location) * torch.exp(-log_scale)
        tail = torch.log1p(standard.square() / df) * ((df + 1) / 2)
        return tail + (log_scale + constant)

    def distribution(self, params: Tensor) -> Distribution:
        """Return Student's t."""
        location, log_scale = self.split(params)
        df = self.freedom.to(params).expand_as(location)
        return StudentT(df, location, torch.exp(log_scale).expand_as(location))

    def marginal(self, x: Tensor, observed: Tensor | None) -> Tensor:
        """Return the median, and the log scale where it is predicted: a start only.

        The scale is what it would be of a Laplace distribution: robust, and near enough.
        """
        flat = x.flatten(1)
        median = observed_median(flat, observed)
        return self.beside(median, observed_mean((flat - median).abs(), observed))
