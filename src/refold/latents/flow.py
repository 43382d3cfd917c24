"""Normalising flows: posteriors and priors that are not normal."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from functools import partial
from typing import Any, final

import torch
from torch import Tensor, nn

from refold.errors import InputError, missing_extra, unknown
from refold.latents.base import Variational, register
from refold.ops import normal
from refold.ops.normal import per_row
from refold.types import Code
from refold.warmup import check_warmup

PLACES = ("posterior", "prior", "both")
KINDS = ("affine", "spline")
POINTS = 8  # fixed draws, and as many mirror images, by which evaluation judges a divergence
QUIET = 0.1  # of the usual first weights of a transform's last layer: flows begin near the identity


@final
@register("flow")
class Flow(Variational):
    r"""A code whose posterior, prior, or both are normal distributions seen through a flow.

    .. math:: z = f(\mu + \sigma \odot \epsilon;\, c), \qquad
              \log q(z \mid x) = \log \mathcal N(f^{-1}(z) \mid \mu, \sigma^2)
              - \log \lvert\det \partial f\rvert

    ``where="posterior"``: the encoder gives :math:`\mu, \log\sigma^2` and a context :math:`c` as
    wide as the code; the flow runs in the direction in which all entries are computed at once
    (inverse autoregressive). ``where="prior"``: :math:`\log p(z)` of a masked autoregressive flow,
    whose density takes one pass and whose samples take one for each entry. Each of ``transforms``
    is ``"affine"`` or a monotonic rational-quadratic ``"spline"`` with ``bins`` pieces, and has
    layers of ``hidden`` units.

    In training the term is :math:`\beta\, (\log q(z \mid x) - \log p(z))` of the code drawn;
    :math:`\beta` grows in over the share ``warmup`` of the run. In evaluation the code is the
    image :math:`f(\mu; c)` of the base's centre, which need not be the posterior's mean, and the
    term is that difference over sixteen fixed draws, the same for every row and every time: with
    flows that do nothing, the divergence of two normals exactly.

    Needs zuko (``pip install 'refold[flows]'``).

    Sources: Kingma et al. 2016 (arXiv:1606.04934) for posteriors, Papamakarios et al. 2017
    (arXiv:1705.07057) for priors, Durkan et al. 2019 (arXiv:1906.04032) for splines.

    >>> latent = Flow(2, where="both")
    >>> latent(torch.zeros(5, 6)).z.shape, latent.sample(4).shape
    (torch.Size([5, 2]), torch.Size([4, 2]))
    """

    def __init__(
        self,
        size: int,
        *,
        where: str = "posterior",
        kind: str = "affine",
        transforms: int = 3,
        hidden: Sequence[int] = (64,),
        bins: int = 8,
        beta: float = 1.0,
        warmup: float = 0.0,
    ) -> None:
        super().__init__(size)
        if where not in PLACES:
            raise unknown("place of a flow", where, PLACES)
        if transforms < 1:
            raise InputError(f"a flow of {transforms} transforms; there must be 1 or more")
        if not hidden or min(hidden) < 1:
            raise InputError(f"the flow's hidden layers are {hidden}; give widths of 1 or more")
        if bins < 2:
            raise InputError(f"a spline of {bins} bins; there must be 2 or more")
        self.where, self.kind, self.transforms = where, kind, transforms
        self.hidden, self.bins = tuple(hidden), bins
        self.beta, self.warmup = self.check_beta(beta), check_warmup(warmup)
        context = size if where in ("posterior", "both") else 0
        self.posterior = self._steps(context) if context else nn.ModuleList()
        self.prior = self._steps(0) if where in ("prior", "both") else nn.ModuleList()
        self.points = nn.Buffer(fixed_points(size), persistent=False)

    def _steps(self, context: int) -> nn.ModuleList:
        """Transforms one after the other, each taking the entries in the other order."""
        forward = list(range(self.size))
        steps: list[nn.Module] = []
        for i in range(self.transforms):
            order = forward[::-1] if i % 2 else forward
            step = transform(self.kind, self.size, context, order, self.hidden, self.bins)
            with torch.no_grad():
                for weight in list(step.parameters())[-2:]:
                    weight.mul_(QUIET)
            steps.append(step)
        return nn.ModuleList(steps)

    @property
    def width(self) -> int:
        """Mean and log-variance per code entry, and for a posterior's flow a context."""
        return (3 if len(self.posterior) else 2) * self.size

    def forward(self, h: Tensor) -> Code:
        """Draw in training, take the image of the mean in evaluation; charge the divergence."""
        if not self.training:
            mean, log_variance = normal.moments(h[..., : 2 * self.size])
            points = self.points.to(mean.dtype).view(-1, *(1,) * (mean.dim() - 1), self.size)
            base = mean + points * (0.5 * log_variance).exp()
            z, log_q = self._push(h, base, normal.log_density(base, mean, log_variance))
            kl = per_row((log_q - self.log_prior(z)).mean(0))
            z = self.centre(h)
            return Code(z, {"kl": kl * self.beta}, stats={"mean": z})
        drawn, log_q = self.draw(h, 1)
        kl = per_row(log_q[0] - self.log_prior(drawn[0]))
        code = Code(drawn[0], {"kl": kl * (self.beta * self.grown(self.warmup))})
        if not torch.is_grad_enabled():  # a step of training has no use for another pass
            code.stats["mean"] = self.centre(h)
        return code

    def _push(self, h: Tensor, base: Tensor, log_base: Tensor) -> tuple[Tensor, Tensor]:
        """Send draws ``[n, *, D]`` of the base through the posterior's flow, with log-densities."""
        context = h[..., 2 * self.size :].to(base.dtype)
        log_q = log_base.sum(-1)
        with torch.autocast(base.device.type, enabled=False):
            for step in self.posterior:
                base, volume = step(context).call_and_ladj(base)
                log_q = log_q - volume
        return base, log_q

    def centre(self, h: Tensor) -> Tensor:
        """Image of the base's mean."""
        mean, _ = normal.moments(h[..., : 2 * self.size])
        return self._push(h, mean[None], torch.zeros_like(mean[None]))[0][0]

    def draw(self, h: Tensor, n: int) -> tuple[Tensor, Tensor]:
        """Draw from the base, and send it through the flow."""
        return self._push(h, *normal.draw(*normal.moments(h[..., : 2 * self.size]), n))

    def log_prior(self, z: Tensor) -> Tensor:
        """Log-density of the prior: a standard normal, or one seen through a flow."""
        volume = torch.zeros_like(z[..., 0])
        with torch.autocast(z.device.type, enabled=False):
            for step in self.prior:
                z, grown = step(None).call_and_ladj(z)
                volume = volume + grown
        return normal.log_density(z).sum(-1) + volume

    @torch.no_grad()
    def sample(self, n: int) -> Tensor:
        """Draw from the base, and go back through the prior's flow."""
        z = torch.randn(n, self.size)
        z = z.to(next(self.prior.parameters(), z))
        for step in reversed(self.prior):
            z = step(None).inv(z)
        return z.cpu()


def transform(
    kind: str, size: int, context: int, order: Sequence[int], hidden: Sequence[int], bins: int
) -> nn.Module:
    """Build one autoregressive transform of zuko's."""
    if kind not in KINDS:
        raise unknown("kind of flow", kind, KINDS)
    try:
        flows: Any = importlib.import_module("zuko.flows.autoregressive")
        maps: Any = importlib.import_module("zuko.transforms")
    except ImportError as error:
        raise missing_extra("zuko", "flows", "the latent 'flow'") from error
    shapes = [(bins,), (bins,), (bins - 1,)] if kind == "spline" else [(), ()]
    slope = 1e-3  # scales and slopes stay within a factor of a thousand
    return flows.MaskedAutoregressiveTransform(
        size,
        context,
        order=order,
        univariate=partial(
            maps.MonotonicRQSTransform if kind == "spline" else maps.MonotonicAffineTransform,
            slope=slope,
        ),
        shapes=shapes,
        hidden_features=tuple(hidden),
    )


def fixed_points(size: int) -> Tensor:
    """Draws ``[2 · 8, D]`` of a standard normal in mirror pairs, of unit variance in each entry."""
    drawn = torch.randn(
        POINTS, size, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )
    drawn = drawn / drawn.square().mean(0).sqrt()
    return torch.cat([drawn, -drawn])
