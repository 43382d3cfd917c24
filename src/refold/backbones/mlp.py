"""Dense layers: widths in, a stack out."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from refold.errors import unknown

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
NORMS: dict[str, Callable[[int], nn.Module]] = {
    "none": lambda width: nn.Identity(),
    "batch": nn.BatchNorm1d,
    "layer": nn.LayerNorm,
    "group": lambda width: nn.GroupNorm(next(g for g in (8, 4, 2, 1) if width % g == 0), width),
}
INITS: tuple[str, ...] = ("auto", "xavier", "he", "orthogonal")


class Mlp(nn.Sequential):
    """Linear layers of the given ``widths``, each followed by norm, activation and dropout.

    With ``final``, a last linear layer of that width stands alone after them.

    ``init="auto"`` draws He's weights for rectifiers (He et al. 2015), LeCun's for SELU, Glorot's
    otherwise (Glorot & Bengio 2010); ``norm="weight"`` normalises the weights themselves.

    >>> Mlp(784, (128, 64))(torch.zeros(2, 784)).shape
    torch.Size([2, 64])
    """

    def __init__(
        self,
        inputs: int,
        widths: Sequence[int],
        *,
        final: int | None = None,
        activation: str = "relu",
        norm: str = "none",
        dropout: float = 0.0,
        init: str = "auto",
    ) -> None:
        layers: list[nn.Module] = []
        self.outputs = inputs
        for width in widths:
            layers += stage(self.outputs, width, activation, norm, dropout, init)
            self.outputs = width
        if final is not None:
            last = nn.Linear(self.outputs, final)
            if init != "auto":  # torch's own draw is smaller, and starts closer to the bias
                initialise(last, init, "identity")
            layers.append(last)
            self.outputs = final
        super().__init__(*layers)

    @property
    def last(self) -> nn.Linear:
        """Return the layer that stands alone at the end."""
        layer = self[-1]
        assert isinstance(layer, nn.Linear)
        return layer


def stage(
    inputs: int, outputs: int, activation: str, norm: str, dropout: float, init: str
) -> list[nn.Module]:
    """Return the modules of one dense layer, without those that would do nothing."""
    if activation not in ACTIVATIONS:
        raise unknown("activation", activation, ACTIVATIONS)
    if norm not in (*NORMS, "weight"):
        raise unknown("norm", norm, (*NORMS, "weight"))
    linear = nn.Linear(inputs, outputs)
    initialise(linear, init, activation)
    layers: list[nn.Module] = [
        nn.utils.parametrizations.weight_norm(linear) if norm == "weight" else linear
    ]
    if norm not in ("none", "weight"):
        layers.append(NORMS[norm](outputs))
    layers.append(ACTIVATIONS[activation]())
    if dropout:
        layers.append(nn.Dropout(dropout))
    return layers


@torch.no_grad()
def initialise(
    layer: nn.Linear | nn.Conv2d | nn.ConvTranspose2d, init: str, activation: str
) -> None:
    """Draw a layer's weights by the rule ``init`` for the activation that follows; bias zero."""
    if init not in INITS:
        raise unknown("initialisation", init, INITS)
    weight: Tensor = layer.weight
    rectifier = activation in ("relu", "leaky_relu", "elu", "gelu", "silu")
    if init == "orthogonal":
        nn.init.orthogonal_(weight, gain=2**0.5 if rectifier else 1.0)
    elif init == "he" or (init == "auto" and rectifier):
        nn.init.kaiming_normal_(weight, nonlinearity="relu")
    elif init == "auto" and activation == "selu":
        nn.init.kaiming_normal_(weight, nonlinearity="linear")
    else:
        nn.init.xavier_normal_(weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
