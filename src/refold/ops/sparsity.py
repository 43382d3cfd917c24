"""How far the activity of units is from the share at which they should be active."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from refold.errors import InputError


def bernoulli_kl(mean: Tensor, target: float, *, eps: float = 1e-3) -> Tensor:
    r"""Divergence of a coin of bias ``target`` from coins of bias ``mean``, finite everywhere.

    .. math:: \mathrm{KL}(\rho \,\|\, \hat\rho) = \rho \log\frac{\rho}{\hat\rho}
              + (1 - \rho) \log\frac{1 - \rho}{1 - \hat\rho}

    ``mean`` holds mean activations :math:`\hat\rho` of any shape and any real value, ``target`` is
    :math:`\rho` in (0, 1); the result, of the shape of ``mean``, is in nats. It is exact between
    ``eps`` and 1 - ``eps``, and beyond them its own tangent: value and slope are continuous, a unit
    that is never active (0), always active (1) or negative costs a finite amount, and its gradient
    points back into (0, 1). The plain formula gives infinity or NaN there, and one cut off at
    ``eps`` no gradient, so that a dead unit would stay dead. Where ``target`` is nearer to 0 or 1
    than twice ``eps``, half its distance takes the place of ``eps`` on that side. Computed in
    single precision at least.

    Raises :class:`InputError` for a target outside (0, 1).

    Source: Ng, Sparse Autoencoder, CS294A lecture notes, 2011.

    >>> bernoulli_kl(torch.tensor([0.05, 0.5, 0.0]), 0.05).abs().round(decimals=4)
    tensor([0.0000, 0.4946, 0.1969])
    """
    if not 0 < target < 1:
        raise InputError(
            f"the target activity is {target}; it is a share of the time and must lie between 0 "
            f"and 1, such as 0.05"
        )
    mean = mean.to(torch.promote_types(mean.dtype, torch.float32))
    inside = mean.clamp(min(eps, 0.5 * target), 1 - min(eps, 0.5 * (1 - target)))
    entropy = target * math.log(target) + (1 - target) * math.log1p(-target)
    exact = entropy - target * inside.log() - (1 - target) * (-inside).log1p()
    slope = (1 - target) / (1 - inside) - target / inside
    return exact + slope * (mean - inside)
