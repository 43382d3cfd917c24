"""Views of one row that should agree in the code, while those of others may not."""

from __future__ import annotations

from typing import Any, ClassVar, cast, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from refold.backbones.mlp import Mlp
from refold.data.corruptions import corruptions, resolve
from refold.errors import InputError, unknown
from refold.ops.ranks import rank, together
from refold.penalties.base import Penalty, register
from refold.types import Batch, Code
from refold.warmup import check_warmup, ramp

KINDS = ("ntxent", "vicreg")
FLOOR = 1e-4  # of a variance, below its root


@final
@register("contrastive")
class Contrastive(Penalty):
    r"""Two views of each row agree in the latent: both are corrupted anew and encoded.

    .. math:: \text{cost} = \lambda \, \ell\bigl(g(z'), g(z'')\bigr)

    :math:`\ell` is :func:`ntxent` at the ``temperature``, where the views of other rows in the
    batch are to differ, or :func:`vicreg` with weights ``invariance``, ``variance`` and
    ``covariance``, where numbers of the code are to vary and to be uncorrelated.
    ``corruption`` makes the views; ``chain(parts=('shift', 'boxes'))`` is several.
    ``projection`` are the widths of dense layers :math:`g` that belong to the penalty and stand
    between code and cost, of which the last is linear; None compares the codes themselves.
    ``weight`` :math:`\lambda` is in nats per row. In training the cost grows in over the share
    ``warmup`` of the run; in evaluation it always counts in full.

    Raises :class:`InputError` for options that do not exist, and for a corruption that hides where
    the encoder is not told what is there.

    Sources: Chen et al., A Simple Framework for Contrastive Learning of Visual Representations,
    2020 (arXiv:2002.05709); Bardes, Ponce & LeCun, VICReg, 2021 (arXiv:2105.04906).

    >>> Contrastive(kind="vicreg", corruption="swap(fraction=0.3)").projection
    """

    joint: ClassVar[bool] = True
    head: nn.Module

    def __init__(
        self,
        *,
        kind: str = "ntxent",
        corruption: str = "masking(fraction=0.25)",
        weight: float = 1.0,
        projection: tuple[int, ...] | None = None,
        temperature: float = 0.5,
        invariance: float = 25.0,
        variance: float = 25.0,
        covariance: float = 1.0,
        warmup: float = 0.0,
    ) -> None:
        super().__init__()
        if kind not in KINDS:
            raise unknown("kind of contrastive penalty", kind, KINDS)
        if not temperature > 0:
            raise InputError(f"the temperature is {temperature}; it must be above 0")
        for name, value in (
            ("contrastive weight", weight),
            ("weight of the invariance", invariance),
            ("weight of the variance", variance),
            ("weight of the covariance", covariance),
        ):
            if not value >= 0:
                raise InputError(f"the {name} is {value}; it must be 0 or more")
        if projection is not None and (not projection or min(projection) < 1):
            raise InputError(
                f"projection is {projection}; give one width or more, each 1 or more, or None"
            )
        self.kind, self.corruption, self.weight = kind, corruption, weight
        self.projection, self.temperature = projection, temperature
        self.invariance, self.variance, self.covariance = invariance, variance, covariance
        self.warmup = check_warmup(warmup)
        self._corruption = corruptions.build(resolve(corruption))
        self.head = nn.Identity()

    def attach(self, model: nn.Module) -> None:
        """Build the projection for the model's code; check that its encoder can see the views."""
        held = cast(Any, model)
        told = all(held.backbones[k].geometry.missing for k in held.inputs)
        if self._corruption.hides and not told:
            raise InputError(
                f"the views of the contrastive penalty are made by '{self.corruption}', which says "
                "of entries that they are missing, and this model's encoder is not told what is "
                "there; give the model a corruption that hides too, or views by 'masking'"
            )
        if self.projection is not None:
            *hidden, final = self.projection
            self.head = Mlp(held.latent.size, hidden, final=final)

    def forward(
        self, model: nn.Module, batch: Batch, code: Code, params: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """Cost of two new views."""
        share = ramp(self.progress, self.warmup) if self.training else 1.0
        a, b = (together(self.view(model, batch)) for _ in range(2))
        if self.kind == "ntxent":
            cost = ntxent(a, b, self.temperature)
        else:
            cost = vicreg(
                a,
                b,
                invariance=self.invariance,
                variance=self.variance,
                covariance=self.covariance,
            )
        return {"contrastive": cost * (self.weight * share)}

    def view(self, model: nn.Module, batch: Batch) -> Tensor:
        """Projected codes ``[B, P]`` of the inputs, corrupted by torch's global generator."""
        held = cast(Any, model)
        device = next(iter(batch.x.values())).device
        draw = torch.Generator(device).manual_seed(int(torch.randint(2**62, ())) + rank())
        z: Tensor = held.encode(self._corruption(batch.whole().only(held.inputs), draw))[0].z
        return self.head(z[: len(batch)].flatten(1))  # of several draws of a code the first


def ntxent(a: Tensor, b: Tensor, temperature: float = 0.5) -> Tensor:
    r"""Normalised temperature-scaled cross-entropy of two views ``[B, P]``, a scalar in nats.

    .. math:: \ell = \frac{1}{2B} \sum_{i=1}^{2B} -\log \frac{\exp(s_{i,j(i)} / \tau)}
              {\sum_{k \ne i} \exp(s_{ik} / \tau)}, \qquad
              s_{ik} = \frac{u_i^\top u_k}{\lVert u_i \rVert \lVert u_k \rVert}

    :math:`u` are the 2 B views of both kinds, :math:`j(i)` is the other view of the same row, and
    :math:`\tau` the ``temperature``. A row alone costs nothing.

    Source: Chen et al. 2020 (arXiv:2002.05709).

    >>> ntxent(torch.eye(2), torch.eye(2), 1.0)
    tensor(0.5514)
    """
    u = F.normalize(torch.cat([a, b]), dim=1)
    likeness = u @ u.T / temperature
    likeness = likeness.masked_fill(
        torch.eye(len(u), dtype=torch.bool, device=u.device), -torch.inf
    )
    other = torch.arange(len(u), device=u.device).roll(len(a))
    return F.cross_entropy(likeness, other)


def vicreg(
    a: Tensor,
    b: Tensor,
    *,
    invariance: float = 25.0,
    variance: float = 25.0,
    covariance: float = 1.0,
) -> Tensor:
    r"""Variance-invariance-covariance cost of two views ``[B, P]``, a scalar.

    .. math:: \ell = \lambda \frac{1}{B} \sum_i \lVert a_i - b_i \rVert^2
              + \mu \, (v(a) + v(b)) + \nu \, (c(a) + c(b))

    .. math:: v(a) = \frac{1}{P} \sum_j \max\Bigl(0, 1 - \sqrt{C_{jj} + \epsilon}\Bigr), \qquad
              c(a) = \frac{1}{P} \sum_{i \ne j} C_{ij}^2

    :math:`C` is the covariance over the batch, with B - 1 below, :math:`\epsilon` is 1e-4, and
    :math:`\lambda, \mu, \nu` are ``invariance``, ``variance`` and ``covariance``. As in the paper;
    its authors' code divides the first sum by P and the second by two.

    Source: Bardes, Ponce & LeCun 2021 (arXiv:2105.04906).

    >>> vicreg(torch.tensor([[-1.0], [1.0]]), torch.tensor([[-1.0], [1.0]]))
    tensor(0.)
    """
    alike = (a - b).square().sum(1).mean()
    spread, crossed = zip(spread_costs(a), spread_costs(b), strict=True)
    return invariance * alike + variance * sum(spread) + covariance * sum(crossed)


def spread_costs(a: Tensor) -> tuple[Tensor, Tensor]:
    """Hinge on the deviations, and squares of the covariances, of ``[B, P]``."""
    rows, size = a.shape
    centred = a - a.mean(0)
    covariance = centred.T @ centred / max(1, rows - 1)
    own = covariance.diagonal()
    hinge = F.relu(1.0 - (own + FLOOR).sqrt()).mean()
    return hinge, (covariance.square().sum() - own.square().sum()) / size
