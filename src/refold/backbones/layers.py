"""What stands around a weight: activation, norm, dropout, the first draw, an identity skip."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn

from refold.errors import InputError, unknown

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": lambda: nn.ReLU(inplace=True),
    "leaky_relu": lambda: nn.LeakyReLU(0.01),
    "elu": nn.ELU,
    "selu": nn.SELU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "identity": nn.Identity,
}


def group_norm(width: int) -> nn.GroupNorm:
    """Group norm of at most eight groups, each of four channels or more where there are as many.

    >>> [group_norm(width).num_groups for width in (64, 24, 6)]
    [8, 2, 1]
    """
    # A group of one number would always be zero, of two only ever plus and minus one.
    return nn.GroupNorm(next(g for g in (8, 4, 2, 1) if g == 1 or width % (4 * g) == 0), width)


NORMS: dict[str, Callable[[int], nn.Module]] = {
    "none": lambda width: nn.Identity(),
    "batch": nn.BatchNorm1d,
    "layer": nn.LayerNorm,
    "group": group_norm,
}
MAP_NORMS: dict[str, Callable[[int], nn.Module]] = {
    "none": lambda width: nn.Identity(),
    "batch": nn.BatchNorm2d,
    "layer": lambda width: nn.GroupNorm(1, width),
    "group": group_norm,
}
INITS: tuple[str, ...] = ("auto", "xavier", "he", "orthogonal")


@dataclass(frozen=True)
class Style:
    """What follows the weights of a layer, and the rule by which they are drawn.

    Raises :class:`InputError` for a name that does not exist or a dropout outside [0, 1).
    """

    activation: str = "relu"
    norm: str = "none"
    dropout: float = 0.0
    init: str = "auto"

    def __post_init__(self) -> None:
        if self.activation not in (*ACTIVATIONS, "none"):
            raise unknown("activation", self.activation, ACTIVATIONS)
        if self.norm not in (*NORMS, "weight"):
            raise unknown("norm", self.norm, (*NORMS, "weight"))
        if self.init not in INITS:
            raise unknown("initialisation", self.init, INITS)
        if not 0 <= self.dropout < 1:
            raise InputError(f"dropout is {self.dropout}; it must be a share from 0 to below 1")


def finished(
    layer: nn.Linear | nn.Conv2d | nn.ConvTranspose2d, style: Style, *around: nn.Module
) -> list[nn.Module]:
    """Draw a layer's weights, and follow it by norm, activation and dropout where there are any.

    ``around`` are modules that belong directly behind the layer. The dropout of feature maps is
    of whole channels (Tompson et al. 2015, arXiv:1411.4280), since neighbours say the same.
    """
    dense = isinstance(layer, nn.Linear)
    width = layer.out_features if dense else layer.out_channels
    activation = "identity" if style.activation == "none" else style.activation
    initialise(layer, style.init, activation)
    modules: list[nn.Module] = [layer, *around]
    if style.norm == "weight":
        # One length per number that comes out; a transposed weight has those second.
        dim = 1 if isinstance(layer, nn.ConvTranspose2d) else 0
        modules[0] = nn.utils.parametrizations.weight_norm(layer, dim=dim)
    elif style.norm != "none":
        modules.append((NORMS if dense else MAP_NORMS)[style.norm](width))
    modules.append(ACTIVATIONS[activation]())
    if style.dropout:
        modules.append((nn.Dropout if dense else nn.Dropout2d)(style.dropout))
    return modules


@torch.no_grad()
def initialise(
    layer: nn.Linear | nn.Conv2d | nn.ConvTranspose2d, init: str, activation: str
) -> None:
    """Draw a layer's weights by the rule ``init`` for the activation that follows; bias zero.

    Source: Glorot & Bengio 2010; He et al. 2015 (arXiv:1502.01852); Saxe et al. 2013
    (arXiv:1312.6120); Klambauer et al. 2017 (arXiv:1706.02515) for SELU.
    """
    if init not in INITS:
        raise unknown("initialisation", init, INITS)
    weight: Tensor = layer.weight
    into, out = fans(layer)
    rectifier = activation in ("relu", "leaky_relu", "elu", "gelu", "silu")
    if init == "orthogonal":
        nn.init.orthogonal_(weight, gain=2**0.5 if rectifier else 1.0)
    elif init == "he" or (init == "auto" and rectifier):
        weight.normal_(0.0, math.sqrt(2.0) / math.sqrt(into))
    elif init == "auto" and activation == "selu":
        weight.normal_(0.0, 1.0 / math.sqrt(into))
    else:
        weight.normal_(0.0, math.sqrt(2.0 / (into + out)))
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


@torch.no_grad()
def initialise_last(layer: nn.Conv2d | nn.ConvTranspose2d, init: str) -> None:
    r"""Draw the weights of the layer that gives the parameters, small unless said otherwise.

    .. math:: W \sim U(-n^{-1/2}, n^{-1/2}), \qquad n = \text{fan in}
    """
    initialise(layer, init, "identity")
    if init == "auto":
        bound = fans(layer)[0] ** -0.5
        layer.weight.uniform_(-bound, bound)


def fans(layer: nn.Linear | nn.Conv2d | nn.ConvTranspose2d) -> tuple[float, float]:
    """How many numbers meet in one that comes out, on average, and in how many each takes part.

    A transposed convolution spreads its kernel over the stride, so that fewer numbers meet.

    >>> fans(nn.Conv2d(4, 8, 3)), fans(nn.ConvTranspose2d(8, 4, 3, stride=2))
    ((36, 72), (18.0, 36))
    """
    if isinstance(layer, nn.Linear):
        return layer.in_features, layer.out_features
    kernel = math.prod(layer.kernel_size)
    into, out = layer.in_channels * kernel, layer.out_channels * kernel
    return (into / math.prod(layer.stride) if isinstance(layer, nn.ConvTranspose2d) else into), out


@final
class Residual(nn.Module):
    r"""An identity skip around layers that keep the shape.

    .. math:: y = h + f(h)

    Source: He et al., Deep Residual Learning for Image Recognition, 2015 (arXiv:1512.03385).

    >>> Residual(nn.Linear(3, 3))(torch.zeros(2, 3)).shape
    torch.Size([2, 3])
    """

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, h: Tensor) -> Tensor:
        """Add what the layers give."""
        return h + self.layers(h)
