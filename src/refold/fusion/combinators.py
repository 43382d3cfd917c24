"""How a ladder joins what comes from the side with what comes from above, unit by unit."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, cast, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from refold.errors import unknown

SLOPE = 0.1  # of the leaky rectifier, as in the source
UNITS = 4  # of its hidden layer


class Combinator(nn.Module, ABC):
    """Denoises ``z`` ``[B, C]``, told ``u`` ``[B, C]`` from above: each unit by itself."""

    @property
    @abstractmethod
    def bias(self) -> Tensor:
        """Return what is added last, ``[C]``: all that comes out before anything was learnt."""

    @abstractmethod
    def forward(self, z: Tensor, u: Tensor) -> Tensor:
        """Denoised ``[B, C]``."""


@final
class GaussianCombinator(Combinator):
    r"""The optimum where a unit is Gaussian given what is above: between ``z`` and its mean.

    .. math:: \hat z = (z - \mu(u))\, v(u) + \mu(u), \qquad
              \mu(u) = a_1 \sigma(a_2 u + a_3) + a_4 u + a_5, \qquad
              v(u) = a_6 \sigma(a_7 u + a_8) + a_9 u + a_{10}

    Each unit has ten parameters of its own; :math:`a_2` and :math:`a_7` begin at 1, the others at
    0, so that nothing comes out at first.

    Source: Rasmus et al. 2015 (arXiv:1507.02672), section 4.1.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.zeros(10, width))
        with torch.no_grad():
            self.a[[1, 6]] = 1.0

    @property
    def bias(self) -> Tensor:
        """The fifth parameter."""
        return self.a[4]

    def forward(self, z: Tensor, u: Tensor) -> Tensor:
        """Go from ``z`` towards the mean, as far as ``v`` says."""
        return cast("Tensor", _Gaussian.apply(z, u, self.a))


class _Gaussian(torch.autograd.Function):
    """The same as autograd's, in half of its passes over memory."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, u: Tensor, a: Tensor) -> Tensor:  # pyright: ignore
        ctx.save_for_backward(z, u, a)
        mean, kept = bent(u, a[:5])[1], bent(u, a[5:])[1]
        return torch.addcmul(mean, z - mean, kept)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # pyright: ignore
        z, u, a = ctx.saved_tensors
        rise, mean = bent(u, a[:5])
        fall, kept = bent(u, a[5:])
        through = g * kept
        first, one = unbent(g - through, u, rise, a[:5])
        second, other = unbent(g * (z - mean), u, fall, a[5:])
        return through, first + second, torch.cat([one, other])


def bent(u: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``s = sigmoid(a2 u + a3)`` and ``a1 s + a4 u + a5``."""
    s = torch.addcmul(a[2], u, a[1]).sigmoid()
    return s, torch.addcmul(a[4], s, a[0]).addcmul(u, a[3])


def unbent(g: Tensor, u: Tensor, s: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients to ``u`` ``[B, C]`` and to the five parameters ``[5, C]`` of what is bent."""
    slope = g * s * (1 - s)
    total = slope.sum(0)
    own = torch.stack(
        [(g * s).sum(0), a[0] * (slope * u).sum(0), a[0] * total, (g * u).sum(0), g.sum(0)]
    )
    return torch.addcmul(slope * (a[0] * a[1]), g, a[3]), own


@final
class MlpCombinator(Combinator):
    r"""A small network that all units of a layer share, and a bias for each.

    .. math:: \hat z = w^\top \operatorname{leaky}\bigl(W [u, z, u z] + c\bigr) + b

    The hidden layer has four leaky rectifiers.

    Source: Pezeshki et al. 2015 (arXiv:1511.06430), the "augmented MLP".
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = nn.Linear(3, UNITS)
        self.outer = nn.Linear(UNITS, 1, bias=False)
        self.b = nn.Parameter(torch.zeros(width))

    @property
    def bias(self) -> Tensor:
        """What each unit adds."""
        return self.b

    def forward(self, z: Tensor, u: Tensor) -> Tensor:
        """Run every unit through the network."""
        inner = self.inner(torch.stack([u, z, u * z], -1))
        return self.outer(F.leaky_relu(inner, SLOPE)).squeeze(-1).to(z.dtype) + self.b


COMBINATORS: dict[str, type[Combinator]] = {"gaussian": GaussianCombinator, "mlp": MlpCombinator}


def combinator(name: str, width: int) -> Combinator:
    """Make a combinator by name; raises :class:`InputError` for one that does not exist."""
    if name not in COMBINATORS:
        raise unknown("combinator", name, COMBINATORS)
    return COMBINATORS[name](width)
