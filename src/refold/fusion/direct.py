"""No layers between the fields and the code."""

from __future__ import annotations

from collections.abc import Mapping
from typing import final

import torch
from torch import Tensor

from refold.backbones.base import Pairs
from refold.errors import InputError
from refold.fusion.base import Fusion, Leads, LinearPath, join, part, register


@final
@register("direct")
class Direct(Fusion):
    r"""No layers: the fields' hidden states side by side are the code, and the code is theirs.

    .. math:: h = c, \qquad c' = z + b

    For codes that are feature maps, such as spatial winner-take-all, and for training stages one
    by one. :math:`b` is not trained and zero for fields whose decoder has a bias of its own; for
    others it is the constant that training starts from.
    Raises :class:`InputError` where the code has another size than the hidden states.

    >>> body = Direct({"x": 6}, {"x": 6}, 6, 6)
    >>> body.encode({"x": torch.ones(2, 6)}, {}).shape, body.decode(torch.ones(2, 6))["x"].shape
    (torch.Size([2, 6]), torch.Size([2, 6]))
    """

    bias: Tensor

    def __init__(
        self, inputs: dict[str, int], outputs: dict[str, int], into: int, code: int
    ) -> None:
        super().__init__(inputs, outputs, into, code)
        width_in, width_out = sum(inputs.values()), sum(outputs.values())
        if into != width_in or code != width_out:
            raise InputError(
                f"the fusion 'direct' has no layers to change sizes: the fields' encoders give "
                f"{width_in} numbers where the latent takes {into}, and their decoders take "
                f"{width_out} where the code has {code}; set the latent's size to {width_out}, or "
                f"use the fusion 'concat'"
            )
        self.register_buffer("bias", torch.zeros(width_out))

    @property
    def leads(self) -> Leads:
        """No layers."""
        return ()

    @property
    def pairs(self) -> Pairs:
        """No layers."""
        return ()

    def outer(self, hidden: dict[str, Tensor], count: int) -> dict[str, Tensor]:
        """Never asked: there are no pairs."""
        raise AssertionError

    def encode(self, hidden: dict[str, Tensor], present: Mapping[str, Tensor]) -> Tensor:
        """Join."""
        return join(hidden, self.inputs)

    def decode(self, z: Tensor) -> dict[str, Tensor]:
        """Part."""
        return part(z + self.bias, self.outputs)

    def linear_path(self) -> LinearPath | None:
        """Return None: there is nothing to set."""
        return None

    def last_bias(self) -> Tensor:
        """Return the constant that is added to the code."""
        return self.bias
