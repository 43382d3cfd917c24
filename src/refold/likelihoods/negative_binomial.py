"""The likelihood of counts that stray further than Poisson's."""

from __future__ import annotations

import math
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Distribution, Gamma
from torch.distributions import NegativeBinomial as TorchNegativeBinomial

from refold.errors import InputError
from refold.likelihoods.base import Likelihood, observed_mean, register
from refold.likelihoods.poisson import bounded, counts, rest

LEAST, MOST = -16.0, 8.0  # range of the logarithm of the dispersion
SAMPLE = 20_000  # rows that are enough to judge a dispersion


@final
@register("negative_binomial")
class NegativeBinomial(Likelihood):
    r"""The negative binomial distribution of counts, by mean and dispersion, exact in nats.

    .. math:: -\log p(v \mid \eta, \alpha) = -\log \frac{\Gamma(v + r)}{\Gamma(r) \, v!}
              + r \log \frac{r + \mu}{r} + v \log \frac{r + \mu}{\mu}, \qquad
              \mu = e^\eta, \quad r = 1 / \alpha

    The mean is :math:`\mu`, the variance :math:`\mu + \alpha \mu^2`: a rate that is itself gamma
    distributed. ``dispersion="shared"`` learns one :math:`\alpha` per entry, the same in every row;
    with ``"predicted"`` the decoder gives one per row and entry. :math:`\log\alpha` lies in
    [-16, 8]: at its lower end counts up to a thousand cannot be told from Poisson's. ``params``
    ``[B, P]`` holds :math:`\eta` and, where it is predicted, :math:`\log\alpha` after it. Targets
    and rates beyond :math:`e^{20}` are as in :class:`Poisson`. The cost is summed as

    .. math:: r \, \varphi\Bigl(\log\frac{r + v}{r + \mu}\Bigr)
              + v \, \varphi\Bigl(\log\frac{\mu (r + v)}{v (r + \mu)}\Bigr)
              + \rho(v) + \rho(r) - \rho(r + v) + \log\frac{r + v}{r}

    with :math:`\varphi(u) = e^u - 1 - u` and :math:`\rho(v) = \log v! - v \log v + v`: large counts
    and small dispersions would lose their digits otherwise.

    Raises :class:`InputError` for another ``dispersion``.

    Sources: Lawless, Negative Binomial and Mixed Poisson Regression, 1987; Loader, Fast and
    Accurate Computation of Binomial Probabilities, 2000, for the sum.

    >>> head = NegativeBinomial((1,))
    >>> head.cells(torch.zeros(1, 1), torch.tensor([0.0, 1.0, 2.0]).log1p()[:, None]).exp()
    tensor([[2.],
            [4.],
            [8.]], grad_fn=<ExpBackward0>)
    """

    def __init__(
        self, sizes: tuple[int, ...], shape: tuple[int, ...] = (), *, dispersion: str = "shared"
    ) -> None:
        super().__init__(sizes, shape)
        if dispersion not in ("shared", "predicted"):
            raise InputError(f"dispersion is '{dispersion}'; expected 'shared' or 'predicted'")
        self.dispersion = dispersion
        if dispersion == "shared":
            self.raw = nn.Parameter(torch.zeros(len(sizes)))

    @property
    def width(self) -> int:
        """One log-rate per entry, and a log-dispersion where it is predicted."""
        return self.entries * (1 if self.dispersion == "shared" else 2)

    @property
    def log_dispersion(self) -> Tensor:
        """Shared logarithm of the dispersion, ``[E]``; times ten, it keeps up with the rates."""
        return (10.0 * self.raw).clamp(LEAST, MOST)

    def split(self, params: Tensor) -> tuple[Tensor, Tensor]:
        """Return the log-rate ``[B, E]`` and the log-dispersion (``[E]`` or ``[B, E]``)."""
        if self.dispersion == "shared":
            return bounded(params), self.log_dispersion
        log_rate, log_dispersion = params.chunk(2, dim=1)
        return bounded(log_rate), log_dispersion.clamp(LEAST, MOST)

    def cells(self, params: Tensor, x: Tensor) -> Tensor:
        """Exact negative log-probability of each count."""
        return cost(*self.split(params), counts(x.flatten(1)))

    def total(self, params: Tensor, x: Tensor) -> tuple[Tensor, float]:
        """Summed negative log-probability."""
        return self.cells(params, x).sum(), 1.0

    def distribution(self, params: Tensor) -> Distribution:
        """Return the distribution of the counts themselves, :math:`v`."""
        log_rate, log_dispersion = self.split(params)
        size = torch.exp(-log_dispersion).expand_as(log_rate)
        logits = log_rate + log_dispersion
        return TorchNegativeBinomial(size, logits=logits, validate_args=False)

    def point(self, params: Tensor) -> Tensor:
        r"""Mean in the scale of ``x``: :math:`\log(1 + e^\eta)`."""
        return F.softplus(self.split(params)[0])

    def draw(self, params: Tensor) -> Tensor:
        """Draw counts, in the scale of ``x``: a rate first, and then what it gives."""
        log_rate, log_dispersion = self.split(params)
        size = torch.exp(-log_dispersion).expand_as(log_rate)
        rate = Gamma(size, torch.exp(-log_dispersion - log_rate), validate_args=False).sample()
        return torch.poisson(rate).log1p()

    def expected(self, params: Tensor) -> Tensor:
        r"""Mean of :math:`\log(1 + v)`, by its integral over :math:`t = e^y`, to six digits.

        .. math:: \mathbb{E} \log(1 + v) = \int_0^\infty \frac{e^{-t}}{t}
                  \Bigl(1 - \bigl(1 + \alpha\mu (1 - e^{-t})\bigr)^{-1/\alpha}\Bigr) \, dt
        """
        log_rate, log_dispersion = self.split(params)
        product, mean = torch.exp(log_dispersion + log_rate), torch.zeros_like(log_rate)
        size, step = torch.exp(-log_dispersion), 0.5
        for i in range(-90, 10):
            t = math.exp(i * step)
            none = torch.exp(-size * torch.log1p(-product * math.expm1(-t)))
            mean = mean + (1 - none) * (step * math.exp(-t))
        return mean

    def linear_view(self, x: Tensor) -> Tensor:
        """Logarithms of counts are numbers already."""
        return x.flatten(1)

    def spread(self, observed: Tensor) -> Tensor:
        """One column per entry: the mask itself."""
        return observed

    def marginal(self, x: Tensor, observed: Tensor | None) -> Tensor:
        """Return the logarithm of the mean count, and of the dispersion where it is predicted."""
        log_mean = _log_mean(x, observed)
        if self.dispersion == "predicted":
            log_mean = torch.cat([log_mean, _best_dispersion(log_mean, x, observed)])
        return log_mean.to(x.dtype)

    @torch.no_grad()
    def settle(self, x: Tensor, observed: Tensor | None) -> None:
        """Set the shared dispersion to the likeliest of counts around a constant mean."""
        if self.dispersion == "shared":
            self.raw.copy_(_best_dispersion(_log_mean(x, observed), x, observed) / 10.0)


def cost(log_rate: Tensor, log_dispersion: Tensor, v: Tensor) -> Tensor:
    """Negative log-probability of counts ``v`` ``[B, E]``."""
    rate, r, some = torch.exp(log_rate), torch.exp(-log_dispersion), v.clamp_min(1.0)
    # The logarithm of (r + v) / (r + rate), by way of its distance from one where that is small.
    apart = (some - rate) / (r + rate)
    near = torch.log1p(apart.clamp_min(-0.5))
    u = torch.where(apart > -0.5, near, torch.log((r + some) / (r + rate)))
    w = log_rate - some.log() + u
    by_rates = r * (torch.expm1(u) - u) + some * (torch.expm1(w) - w)
    by_counts = rest(some) + rest(r) - rest(r + some) + torch.log1p(some / r)
    return torch.where(v > 0, by_rates + by_counts, r * torch.log1p(rate / r))


def _log_mean(x: Tensor, observed: Tensor | None) -> Tensor:
    """Logarithm of the mean count, which is kept above one in ten thousand, ``[E]``."""
    return observed_mean(counts(x.flatten(1).double()), observed).clamp_min(1e-4).log()


def _best_dispersion(log_mean: Tensor, x: Tensor, observed: Tensor | None) -> Tensor:
    """Logarithm of the dispersion of least cost around a mean ``[E]``, by golden section.

    The cost has one minimum, or falls towards Poisson's (Levin & Reeds 1977). It starts a little
    above the least, from where there is a way both up and down.
    """
    step = -(-len(x) // SAMPLE)
    v = counts(x[::step].flatten(1).double())
    seen = torch.ones_like(v) if observed is None else observed[::step].double()
    share = (math.sqrt(5) - 1) / 2
    low, high = torch.full_like(log_mean, LEAST + 2), torch.full_like(log_mean, MOST - 1)
    for _ in range(40):
        left, right = high - share * (high - low), low + share * (high - low)
        worse = ((cost(log_mean, left, v) - cost(log_mean, right, v)) * seen).sum(0) > 0
        low, high = torch.where(worse, left, low), torch.where(worse, high, right)
    return (low + high) / 2
