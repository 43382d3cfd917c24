"""Dense layers over all fields side by side."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, final

from torch import Tensor, nn

from refold.backbones.base import Pairs, blocks, there_and_back
from refold.backbones.dense import said_of
from refold.backbones.mlp import Mlp, mirrored
from refold.backbones.stages import DenseStage, plain
from refold.fusion.base import Fusion, Leads, LinearPath, join, part, register


@final
@register("concat")
class Concat(Fusion):
    r"""Hidden states side by side, through dense layers of widths ``hidden`` and back.

    An entry of ``hidden`` is a width, or the options of a :class:`DenseStage`, such as
    ``{"width": 64, "repeat": 2, "norm": "batch", "residual": True}``; what it does not say is as
    in the rest of the body. The way back is the same layers in reverse, or ``mirror`` in the order
    given.

    .. math:: h = W f(c) + b + \underbrace{A c}_{\text{linear}}, \qquad
              c' = W' g(z) + b' + \underbrace{A' z}_{\text{linear}}

    ``linear=True`` adds the two linear maps beside the layers: a path for the principal
    components, which the layers then only have to improve on. Without ``hidden`` the body is
    linear and needs no second path.

    >>> body = Concat({"x": 784}, {"x": 784}, 3, 3, hidden=(128, 64, 12))
    >>> [m.out_features for half in (body.down, body.up) for m in half if isinstance(m, nn.Linear)]
    [128, 64, 12, 3, 12, 64, 128, 784]
    """

    def __init__(
        self,
        inputs: dict[str, int],
        outputs: dict[str, int],
        into: int,
        code: int,
        *,
        hidden: tuple[int | Mapping[str, Any] | DenseStage, ...] = (),
        mirror: tuple[int | Mapping[str, Any] | DenseStage, ...] | None = None,
        linear: bool = False,
        activation: str = "relu",
        norm: str = "none",
        dropout: float = 0.0,
        init: str = "auto",
    ) -> None:
        super().__init__(inputs, outputs, into, code)
        self.linear, self.activation = linear, activation
        self.layered = bool(hidden or mirror)
        self.norm, self.dropout, self.init = norm, dropout, init
        kind: dict[str, Any] = {
            "activation": activation,
            "norm": norm,
            "dropout": dropout,
            "init": init,
        }
        width_in, width_out = sum(inputs.values()), sum(outputs.values())
        with said_of("hidden"):
            self.down = Mlp(width_in, hidden, final=into, **kind)
        back = mirrored(self.down.layers) if mirror is None else mirror
        with said_of("hidden" if mirror is None else "mirror"):
            self.up = Mlp(code, back, final=width_out, **kind)
        # Plain values only now that they were read, so that what cannot be read is said as given.
        self.hidden = plain(hidden)
        self.mirror = None if mirror is None else plain(mirror)
        if linear and self.layered:
            self.linear_down = nn.Linear(width_in, into, bias=False)
            self.linear_up = nn.Linear(code, width_out, bias=False)

    @property
    def leads(self) -> Leads:
        """The first layer of the way down, which meets all fields."""
        first = next(m for m in self.down.modules() if isinstance(m, nn.Linear))
        return ((tuple(self.inputs), first),)

    @property
    def pairs(self) -> Pairs:
        """The layers down and those up.

        None where ``mirror`` leads back through other widths, or to other fields.
        """
        if list(self.inputs) != list(self.outputs):
            return ()
        there, back = ([layer.width for layer in half.layers] for half in (self.down, self.up))
        if there != back[::-1]:
            return ()
        return tuple(zip(blocks(self.down), reversed(blocks(self.up)), strict=True))

    def outer(self, hidden: dict[str, Tensor], count: int) -> dict[str, Tensor]:
        """Join, run through the outer layers, and part."""
        return part(there_and_back(self.pairs[:count], join(hidden, self.inputs)), self.outputs)

    def encode(self, hidden: dict[str, Tensor], present: Mapping[str, Tensor]) -> Tensor:
        """Join and fold."""
        joined = join(hidden, self.inputs)
        h = self.down(joined)
        return h + self.linear_down(joined) if self.linear and self.layered else h

    def decode(self, z: Tensor) -> dict[str, Tensor]:
        """Unfold and part."""
        joined = self.up(z)
        if self.linear and self.layered:
            joined = joined + self.linear_up(z)
        return part(joined, self.outputs)

    def linear_path(self) -> LinearPath | None:
        """Return the path beside the layers, or the layers themselves where they are linear."""
        weights = (self.down.last.weight, self.up.last.weight)
        biases = (self.down.last.bias, self.up.last.bias)
        if not self.layered:
            return LinearPath(*weights, *biases, beside=())
        if not self.linear:
            return None
        return LinearPath(self.linear_down.weight, self.linear_up.weight, *biases, beside=weights)

    def last_bias(self) -> Tensor:
        """Return the bias that meets the fields."""
        return self.up.last.bias
