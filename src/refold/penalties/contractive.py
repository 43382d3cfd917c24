"""Codes that hardly move when the input does: a cost of the encoder's Jacobian."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from typing import Any, TypeAlias, cast, final

import torch
from torch import Tensor, nn

from refold.backbones import Backbone, Embed, Flat
from refold.errors import InputError, unknown
from refold.fusion import Concat, join
from refold.latents import KL, L1, Gaussian, Nested, Plain, TopK, WinnerTakeAll
from refold.ops.jacobian import dense_frobenius, frobenius, layer_frobenius
from refold.penalties.base import Penalty, register
from refold.types import Batch, Code
from refold.warmup import check_warmup, ramp

METHODS = ("auto", "closed", "exact", "hutchinson")
# In evaluation these give every number of the code from at most one of the hidden state.
ENTRYWISE = (Gaussian, KL, L1, Nested, Plain, TopK, WinnerTakeAll)
IDENTITY = (Gaussian, Nested, Plain)  # of which these give the first ones as they are
STRAIGHT = (nn.ReLU, nn.LeakyReLU, nn.Identity, nn.Dropout)  # slopes do not move with the input
CURVED = (nn.ELU, nn.SELU, nn.GELU, nn.SiLU, nn.Tanh, nn.Sigmoid, nn.BatchNorm1d)

Layers: TypeAlias = list[tuple[nn.Linear, list[nn.Module]]]


@final
@register("contractive")
class Contractive(Penalty):
    r"""Codes that should not move with the input: the encoder's Jacobian costs its squared norm.

    .. math:: \text{cost} = \frac{\lambda}{B} \sum_b \left\lVert \frac{\partial z_b}{\partial x_b}
              \right\rVert_F^2

    :math:`z` is the code as it is used: the pass is in evaluation mode, so a Gaussian's mean, norms
    by their running statistics, no dropout. :math:`x` are the clean inputs that are numbers, in the
    scale in which the encoder meets them, or those named by ``fields``; classes have no derivative,
    and a missing entry has no say. ``weight`` :math:`\lambda` is in nats per row and unit of the
    squared norm. In training the cost grows in over the share ``warmup`` of the run; in evaluation
    it always counts in full.

    ``method="closed"`` is the sum over units of squared slopes times squared weights, where one
    linear layer leads to the code. ``"exact"`` takes deeper encoders, dense ones by their layers
    (:func:`dense_frobenius`) and all others by a backward pass for each number of the code, all in
    one (:func:`frobenius`). ``"hutchinson"`` is an unbiased estimate from ``samples`` backward
    passes, whatever the size of the code. ``"auto"`` is exact where that costs no more than a pass
    or two (at most two dense layers, nothing missing, and a code that is neither sparse nor
    squashed, or one layer whatever the code) and estimates elsewhere.

    A code can also escape by shrinking, which the decoder undoes; tied weights prevent it, as in
    the paper, or weight decay. Raises :class:`InputError` where there is nothing to differentiate,
    and for ``"closed"`` where the encoder is not one layer.

    Source: Rifai et al., Contractive Auto-Encoders: Explicit Invariance During Feature Extraction,
    2011; Hutchinson, A stochastic estimator of the trace, 1990.

    >>> Contractive(weight=0.1, method="hutchinson").samples
    1
    """

    def __init__(
        self,
        *,
        weight: float = 0.1,
        method: str = "auto",
        samples: int = 1,
        fields: tuple[str, ...] | None = None,
        warmup: float = 0.0,
    ) -> None:
        super().__init__()
        if not weight >= 0:
            raise InputError(f"the contractive weight is {weight}; it must be 0 or more")
        if method not in METHODS:
            raise unknown("method of the contractive penalty", method, METHODS)
        if samples < 1:
            raise InputError(f"samples is {samples}; it must be 1 or more")
        self.weight, self.method, self.samples = weight, method, samples
        self.fields, self.warmup = fields, check_warmup(warmup)

    def forward(
        self, model: nn.Module, batch: Batch, code: Code, params: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """Mean squared norm of the rows' Jacobians."""
        share = ramp(self.progress, self.warmup) if self.training else 1.0
        norms = jacobian_norms(
            model, batch, method=self.method, samples=self.samples, fields=self.fields
        )
        return {"contractive": norms.mean() * (self.weight * share)}


def jacobian_norms(
    model: nn.Module,
    batch: Batch,
    *,
    method: str = "exact",
    samples: int = 1,
    fields: tuple[str, ...] | None = None,
) -> Tensor:
    """Squared norm ``[B]`` of the Jacobian of a model's code, as :class:`Contractive` means it.

    ``batch`` is rows as the model's schema encodes them, and the options are those of the penalty.
    Where gradients are on, the result has them, with respect to parameters.
    """
    seen_by = cast(Any, model)
    batch = batch.whole().only(seen_by.inputs)
    names = chosen(batch, seen_by.inputs, fields)
    layers = dense_layers(seen_by)
    single = layers is not None and len(layers) == 1
    if method == "closed" and not single:
        raise InputError(
            "the contractive penalty's closed form is for one dense layer from the numbers to the "
            "code, and this encoder is another; use method='exact', or hidden=()"
        )
    cheap = single or (
        layers is not None
        and len(layers) == 2
        and isinstance(seen_by.latent, IDENTITY)
        and all(batch.observed[k] is None for k in names)
    )
    drawn = samples if method == "hutchinson" or (method == "auto" and not cheap) else None
    with evaluating(model):
        if layers is not None and not (single and drawn):
            return by_layers(seen_by, batch, names, layers, drawn)
        return frobenius(
            lambda *x: seen_by.encode(replaced(batch, names, x))[0].z,
            *(batch.x[k] for k in names),
            samples=drawn,
        )


def chosen(batch: Batch, inputs: tuple[str, ...], fields: tuple[str, ...] | None) -> list[str]:
    """Names of the ``inputs`` by which the code is differentiated, in their order."""
    numbers = [k for k in inputs if batch.x[k].is_floating_point()]
    for name in fields or ():
        if name not in numbers:
            raise unknown("input of numbers", name, numbers)
    if not numbers:
        raise InputError(
            "the contractive penalty differentiates by inputs that are numbers, and these are all "
            f"classes: {', '.join(inputs)}; leave it out"
        )
    return [k for k in numbers if fields is None or k in fields]


def replaced(batch: Batch, names: list[str], values: tuple[Tensor, ...]) -> Batch:
    """Put other values in the place of the named fields', where entries are there."""
    x = dict(batch.x)
    for name, value in zip(names, values, strict=True):
        seen = batch.observed[name]
        x[name] = value if seen is None else torch.where(seen.view_as(value), value, x[name])
    return Batch(x, batch.observed)


@contextmanager
def evaluating(model: nn.Module) -> Generator[None]:
    """Have every module behave as in evaluation, and put back what was otherwise."""
    trained = [m for m in model.modules() if m.training]
    for module in trained:
        module.training = False
    try:
        yield
    finally:
        for module in trained:
            module.training = True


def dense_layers(model: Any) -> Layers | None:
    """Linear layers from the numbers to the code, each with what follows it; None for others."""
    flat = all(isinstance(model.backbones[k], Flat | Embed) for k in model.inputs)
    if not flat or not isinstance(model.fusion, Concat) or not isinstance(model.latent, ENTRYWISE):
        return None
    layers: Layers = []
    for module in model.fusion.down:
        if isinstance(module, nn.Linear):
            layers.append((module, []))
        elif isinstance(module, STRAIGHT + CURVED):
            layers[-1][1].append(module)
        else:
            return None
    return layers


def by_layers(
    model: Any, batch: Batch, names: list[str], layers: Layers, samples: int | None
) -> Tensor:
    """Squared norms ``[B]`` from the weights and slopes of dense layers."""
    body: Concat = model.fusion
    weights = [layer.weight for layer, _ in layers]
    beside = body.linear_down.weight if body.linear and body.layered else None
    followed = [m for _, after in layers for m in after]
    further = torch.is_grad_enabled()
    # Where no slope moves with the input, the pass has no part in the gradient.
    moving = further and any(isinstance(m, (*CURVED, KL)) for m in [*followed, model.latent])
    slopes: list[Tensor] = []
    with torch.inference_mode(False), torch.set_grad_enabled(moving):
        spines = {k: model.backbones[k] for k in model.inputs}
        hidden = {k: b.encode(batch.x[k], batch.observed[k])[0] for k, b in spines.items()}
        joined = h = join(hidden, body.inputs)
        for layer, after in layers[:-1]:
            h, slope = sloped(nn.Sequential(*after), layer(h))
            slopes.append(slope)
        if isinstance(model.latent, IDENTITY):
            ends = None
        else:
            h = layers[-1][0](h)
            if beside is not None:
                h = h + body.linear_down(joined)
            ends = sloped(lambda h: model.latent(h).z, h)[1]
    with torch.inference_mode(False), torch.set_grad_enabled(further):
        rows = slice(model.latent.size if ends is None else None)
        weights[-1] = weights[-1][rows]
        at = columns(spines, names)
        weights[0] = weights[0][:, at]
        beside = None if beside is None else beside[rows][:, at]
        seen = together(batch, names)
        if not slopes:
            weight = weights[0] if beside is None else weights[0] + beside
            ends = joined.new_ones(len(joined), len(weight)) if ends is None else ends
            return layer_frobenius(weight, ends, seen=seen)
        return dense_frobenius(
            weights, slopes, ends=ends, beside=beside, seen=seen, samples=samples
        )


def sloped(function: Callable[[Tensor], Tensor], a: Tensor) -> tuple[Tensor, Tensor]:
    """Values and derivatives of an entrywise map at ``a``, with gradients where they are on."""
    further = torch.is_grad_enabled()
    with torch.enable_grad():
        at = a if a.requires_grad else a.detach().requires_grad_()
        value = function(at.clone())  # cloned, because a rectifier works in place
        (slope,) = torch.autograd.grad(value.sum(), at, create_graph=further)
    return (value, slope) if further else (value.detach(), slope)


def columns(spines: Mapping[str, Backbone], names: list[str]) -> list[int] | slice:
    """Columns of what the body meets that are numbers of the named fields, in turn."""
    found: list[int] = []
    start = 0
    for name, spine in spines.items():
        if name in names:
            found += range(start, start + len(spine.geometry.sizes))
        start += spine.encoded
    return slice(None) if len(found) == start else found


def together(batch: Batch, names: list[str]) -> Tensor | None:
    """Which entries of the named fields are there, side by side; None: all."""
    seen = [batch.observed[k] for k in names]
    if all(s is None for s in seen):
        return None
    whole = [batch.x[k].flatten(1) for k in names]
    return torch.cat(
        [torch.ones_like(x, dtype=torch.bool) if s is None else s
         for x, s in zip(whole, seen, strict=True)], 1,
    )  # fmt: skip
