"""Squared norms of Jacobians, row by row: of any map, and of dense layers by what they are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

MATH = SDPBackend.MATH  # the fused kernels' gradient has no gradient


def frobenius(encode: Callable[..., Tensor], *xs: Tensor, samples: int | None = None) -> Tensor:
    r"""Squared Frobenius norm of the Jacobian of ``encode`` in every row, ``[B]``.

    .. math:: \lVert J_b \rVert_F^2 = \sum_{i, e} \left(\frac{\partial z_{bi}}
              {\partial x_{be}}\right)^2
              = \mathbb{E}_v \lVert v^\top J_b \rVert^2, \qquad v_i = \pm 1

    ``encode`` takes the ``xs``, each ``[B, *shape]`` of floating numbers, to ``[B, *]``, and its
    rows may not see each other. Exact with ``samples=None``, by all backward passes in one, whose
    memory grows with the size of the code; else the mean over that many draws of ``v`` from torch's
    global generator, which is unbiased and costs as many backward passes. Where gradients are on,
    the result has them, with respect to parameters and not to the ``xs``.

    Source: Rifai et al., Contractive Auto-Encoders, 2011; Hutchinson, 1990, for the estimate.

    >>> frobenius(lambda x: x**2, torch.tensor([[1.0, 2.0], [0.0, 3.0]]))
    tensor([20., 36.])
    """
    further = torch.is_grad_enabled()
    with torch.inference_mode(False), torch.set_grad_enabled(further), sdpa_kernel(MATH):
        # Cloned, because what was made in inference mode cannot be differentiated.
        inputs = [x.detach().clone() for x in xs]
        z, pull = cast(Any, torch.func.vjp(lambda *x: encode(*x).flatten(1), *inputs))
        directions = (
            identity(z) if samples is None else signs(z, samples, z.shape[1]).transpose(0, 1)
        )
        if samples == 1:
            found = [grad.unsqueeze(0) for grad in pull(directions[0])]
        else:
            found = cast(Any, torch.func.vmap(pull))(directions)
        total = torch.stack([grad.square().flatten(2).sum((0, 2)) for grad in found]).sum(0)
        return total if samples is None else total / samples


def dense_frobenius(
    weights: Sequence[Tensor],
    slopes: Sequence[Tensor],
    *,
    ends: Tensor | None = None,
    beside: Tensor | None = None,
    seen: Tensor | None = None,
    samples: int | None = None,
) -> Tensor:
    r"""Squared Frobenius norm ``[B]`` of the Jacobian of dense layers, from what they are made of.

    .. math:: J = S_L (W_L S_{L-1} W_{L-1} \cdots S_1 W_1 + A), \qquad
              S_l = \operatorname{diag}(s_l)

    ``weights`` are :math:`W_1, \dots, W_L` of two layers or more, each ``[out, in]``; ``slopes``
    the derivatives :math:`s_1, \dots, s_{L-1}` of what follows each but the last, ``[B, out]``.
    ``ends`` is :math:`s_L` (None: ones), ``beside`` the weight :math:`A` ``[D, E]`` of a linear
    path (None: there is none), and ``seen`` ``[B, E]`` says which inputs are there (None: all).
    ``samples`` asks for the estimate of :func:`frobenius`.

    Two layers without :math:`s_L` have a closed form, whose cost for a row grows with the width of
    the layer between them alone:

    .. math:: \lVert J \rVert_F^2 = s_1^\top (W_2^\top W_2 \odot W_1 W_1^\top) \, s_1

    Else rows of :math:`J` are taken as far as the first layer, whose Gram matrix
    :math:`W_1 W_1^\top` spares the product with :math:`W_1` where that costs more.

    >>> w, s = torch.tensor([[3.0, 4.0]]), torch.tensor([[0.5], [1.0]])
    >>> dense_frobenius([w, torch.tensor([[2.0]])], [s])
    tensor([ 25., 100.])
    """
    first, slope, last = weights[0], slopes[0], weights[-1]
    drawn = None if samples is None else signs(slope, samples, len(last))
    rows = started(last, ends, drawn)
    for weight, after in zip(weights[-2:0:-1], slopes[:0:-1], strict=True):
        rows = (rows * after.unsqueeze(1)) @ weight
    if beside is not None:
        # A linear path is as many more units of slope one, of which each meets one of the code.
        own = started(torch.eye(len(beside), dtype=rows.dtype, device=rows.device), ends, drawn)
        rows = torch.cat([rows, own.expand(*rows.shape[:-1], -1)], -1)
        first = torch.cat([first, beside])
        slope = torch.cat([slope, slope.new_ones(len(slope), len(beside))], 1)
    if rows.dim() == 2 and seen is None:
        return ((slope @ ((rows.T @ rows) * (first @ first.T))) * slope).sum(1)
    rows = rows * slope.unsqueeze(1)
    count, (width, inputs) = rows.shape[:-1].numel(), first.shape
    if seen is not None:
        total = ((rows @ first).square().sum(1) * seen.to(rows.dtype)).sum(1)
    elif width * (inputs + count) < count * inputs:
        total = (rows @ (first @ first.T) * rows).sum((1, 2))
    else:
        total = (rows @ first).square().sum((1, 2))
    return total if samples is None else total / samples


def layer_frobenius(weight: Tensor, slope: Tensor, *, seen: Tensor | None = None) -> Tensor:
    r"""Squared Frobenius norm ``[B]`` of the Jacobian of one layer, of slopes ``[B, D]``.

    .. math:: \lVert J \rVert_F^2 = \sum_j s_j^2 \sum_{e \text{ seen}} W_{je}^2

    Source: Rifai et al., Contractive Auto-Encoders, 2011.

    >>> layer_frobenius(torch.tensor([[3.0, 4.0]]), torch.tensor([[0.5], [1.0]]))
    tensor([ 6.2500, 25.0000])
    """
    squared = weight.square()
    if seen is None:
        return slope.square() @ squared.sum(1)
    return (slope.square() * (seen.to(weight.dtype) @ squared.T)).sum(1)


def started(weight: Tensor, ends: Tensor | None, drawn: Tensor | None) -> Tensor:
    """Rows of a last layer: scaled by slopes ``[B, D]``, and mixed by signs ``[B, S, D]``."""
    if drawn is not None:
        return (drawn if ends is None else drawn * ends.unsqueeze(1)) @ weight
    return weight if ends is None else ends.unsqueeze(2) * weight


def identity(z: Tensor) -> Tensor:
    """Every direction of a code ``[B, D]``, for every row: ``[D, B, D]``."""
    size = z.shape[1]
    return torch.eye(size, dtype=z.dtype, device=z.device).unsqueeze(1).expand(-1, len(z), -1)


def signs(like: Tensor, samples: int, size: int) -> Tensor:
    """Plus and minus one at random, ``[B, samples, size]``, from torch's global generator."""
    drawn = torch.randint(0, 2, (len(like), samples, size), device=like.device, dtype=torch.int8)
    return drawn.to(like.dtype) * 2.0 - 1.0
