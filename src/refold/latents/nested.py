"""Codes whose entries stand in the order of their importance."""

from __future__ import annotations

from typing import ClassVar, final

import torch
from torch import Tensor

from refold.errors import InputError, unknown
from refold.latents.base import Latent, register
from refold.ops.topk import keep
from refold.types import Code

DISTRIBUTIONS = ("uniform", "geometric")


@final
@register("nested")
class Nested(Latent):
    r"""Nested dropout: in training each row keeps only the first ``b`` entries, ``b`` drawn anew.

    .. math:: z_i = h_i \, [\, i \le b \,], \qquad
              P(b) \propto 1 \text{ (uniform)} \quad \text{or} \quad
              P(b) \propto (1 - r)^{b - 1} \text{ (geometric)}, \qquad b = 1, \dots, D

    Earlier entries must do without later ones, so they learn what matters most, and any prefix of
    the code is the code of a smaller model: cut it, and set the rest to zero. Linear models find
    the principal components, one per entry and in order. ``rate`` :math:`r` is the chance that the
    code ends at an entry which it reaches; None: 2 / (size + 1), which without the end of the code
    would keep half of it on average. In evaluation the code is ``h``.

    Source: Rippel, Gelbart & Adams, Learning Ordered Representations with Nested Dropout, 2014
    (arXiv:1402.0915).

    >>> Nested(3).eval()(torch.ones(1, 3)).z
    tensor([[1., 1., 1.]])
    >>> Nested(3, distribution="geometric", rate=0.5).chances
    tensor([0.5714, 0.2857, 0.1429])
    """

    ordered: ClassVar[bool] = True
    chances: Tensor

    def __init__(
        self, size: int, *, distribution: str = "uniform", rate: float | None = None
    ) -> None:
        super().__init__(size)
        if distribution not in DISTRIBUTIONS:
            raise unknown("distribution", distribution, DISTRIBUTIONS)
        if distribution == "uniform" and rate is not None:
            raise InputError(
                f"rate={rate} belongs to distribution='geometric'; leave it out, or ask for that"
            )
        if rate is not None and not 0 < rate < 1:
            raise InputError(f"rate is {rate}; it is a chance, between 0 and 1")
        self.distribution, self.rate = distribution, rate
        self.relaxed = True
        stop = 2.0 / (size + 1) if rate is None else rate
        decay = 1.0 if distribution == "uniform" else 1.0 - stop
        chances = decay ** torch.arange(size, dtype=torch.float64)
        chances = (chances / chances.sum()).float()
        self.register_buffer("chances", chances, persistent=False)

    @property
    def width(self) -> int:
        """One number per code entry."""
        return self.size

    def forward(self, h: Tensor) -> Code:
        """Cut every row at its own place in training."""
        if not self.training:
            return Code(h)
        # The last bound may round to just below 1, where nothing may fall.
        bounds = self.chances.cumsum(0)[:-1]
        drawn = torch.rand(h.shape[:-1], device=h.device, dtype=bounds.dtype)
        last = torch.bucketize(drawn, bounds, right=True)
        places = torch.arange(self.size, device=h.device)
        return Code(keep(h, (places <= last[..., None]).to(h.dtype)))

    def sample(self, n: int) -> Tensor:
        """Refuse: nothing makes the codes follow a known distribution."""
        raise self.no_prior()
