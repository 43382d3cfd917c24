"""Dense layers: widths or stages in, a stack out, and its mirror."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import nn

from refold.backbones.layers import Residual, Style, finished, initialise
from refold.backbones.stages import Dense, DenseStage, read, styled
from refold.errors import InputError


class Mlp(nn.Sequential):
    """Linear layers of the given ``widths``, each followed by norm, activation and dropout.

    An entry of ``widths`` is a width, or a stage with options of its own: a mapping or a
    :class:`DenseStage`. With ``final``, a last linear layer of that width stands alone after them.

    ``init="auto"`` draws He's weights for rectifiers (He et al. 2015), LeCun's for SELU, Glorot's
    otherwise (Glorot & Bengio 2010); ``norm="weight"`` normalises the weights themselves.

    Raises :class:`InputError` that names the stage.

    >>> import torch
    >>> Mlp(784, (128, 64))(torch.zeros(2, 784)).shape
    torch.Size([2, 64])
    >>> len(Mlp(784, (128, {"width": 64, "repeat": 3, "residual": True})).layers)
    4
    """

    def __init__(
        self,
        inputs: int,
        widths: Sequence[Dense],
        *,
        final: int | None = None,
        activation: str = "relu",
        norm: str = "none",
        dropout: float = 0.0,
        init: str = "auto",
    ) -> None:
        default = Style(activation, norm, dropout, init)
        modules: list[nn.Module] = []
        self.layers = expanded(inputs, read(DenseStage, widths))
        self.outputs = inputs
        for layer in self.layers:
            linear = nn.Linear(self.outputs, layer.width, bias=layer.bias)
            built = finished(linear, styled(layer, default))
            modules += [Residual(*built)] if layer.residual else built
            self.outputs = layer.width
        if final is not None:
            last = nn.Linear(self.outputs, final)
            if init != "auto":  # torch's own draw is smaller, and starts closer to the bias
                initialise(last, init, "identity")
            modules.append(last)
            self.outputs = final
        super().__init__(*modules)

    @property
    def last(self) -> nn.Linear:
        """Return the layer that stands alone at the end."""
        layer = self[-1]
        assert isinstance(layer, nn.Linear)
        return layer


def expanded(inputs: int, stages: Sequence[DenseStage]) -> tuple[DenseStage, ...]:
    """Return one stage per layer; ``residual`` then says whether that layer has a skip.

    >>> [layer.residual for layer in expanded(5, [DenseStage(8, repeat=2, residual=True)])]
    [False, True]
    """
    layers: list[DenseStage] = []
    for position, stage in enumerate(stages, 1):
        keeps = [stage.width == (inputs if i == 0 else stage.width) for i in range(stage.repeat)]
        if stage.residual and not any(keeps):
            raise InputError(
                f"stage {position} is residual, but its one layer goes from {inputs} to "
                f"{stage.width} numbers and an identity skip needs equal widths; set repeat=2"
            )
        layers += [replace(stage, repeat=1, residual=stage.residual and keep) for keep in keeps]
        inputs = stage.width
    return tuple(layers)


def mirrored(layers: Sequence[DenseStage]) -> tuple[DenseStage, ...]:
    """Return the layers that lead back from the code through the same widths.

    What follows the weights (activation, norm, dropout) belongs to a width, so each width keeps
    its own; a skip belongs to the map between two widths, so it moves with the map.

    >>> there = expanded(5, [DenseStage(4), DenseStage(4, residual=True), DenseStage(3)])
    >>> [(layer.width, layer.residual) for layer in mirrored(there)]
    [(3, False), (4, False), (4, True)]
    """
    skips = [*(layer.residual for layer in layers[1:]), False]
    return tuple(replace(layer, residual=skips[i]) for i, layer in enumerate(layers))[::-1]
