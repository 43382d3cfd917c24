"""Costs of the weights themselves."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import TypeAlias, final

import torch
from torch import Tensor, nn

from refold.errors import InputError
from refold.penalties.base import Penalty, register
from refold.types import Batch, Code

Layer: TypeAlias = nn.Linear | nn.Conv2d
ENCODER = ("fusion.down.*", "fusion.towers.*", "fusion.last")


@final
@register("orthogonality")
class Orthogonality(Penalty):
    r"""Layers whose units should look at different things: rows at right angles, of length one.

    .. math:: \text{cost} = \frac{\lambda}{|L|} \sum_{l \in L} \frac{1}{n_l^2}
              \lVert W_l W_l^\top - I \rVert_F^2

    :math:`n_l` is the smaller side of :math:`W_l`, which is transposed where it has more rows than
    columns, since more rows than that cannot all be at right angles; a convolution's kernel is read
    as one row per output channel. ``layers`` are patterns of names in ``model.named_modules()``,
    unless said the dense layers on the encoder's side of the body. ``weight`` :math:`\lambda` is
    in nats per row.

    Raises :class:`InputError` where no layer has such a name.

    Source: Bansal, Chen & Wang, Can We Gain More from Orthogonality Regularizations, 2018
    (arXiv:1810.09102), soft orthogonality, here a mean over the entries.

    >>> identity_cost(torch.eye(2, 3)), identity_cost(2 * torch.eye(2))
    (tensor(0.), tensor(4.5000))
    """

    def __init__(self, *, weight: float = 1.0, layers: tuple[str, ...] = ENCODER) -> None:
        super().__init__()
        if not weight >= 0:
            raise InputError(f"the orthogonality weight is {weight}; it must be 0 or more")
        self.weight, self.layers = weight, layers

    def forward(
        self, model: nn.Module, batch: Batch, code: Code, params: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """Mean cost of the chosen layers."""
        chosen = [identity_cost(layer.weight.flatten(1)) for layer in self.chosen(model)]
        return {"orthogonality": torch.stack(chosen).mean() * self.weight}

    def chosen(self, model: nn.Module) -> list[Layer]:
        """Layers of a model that are charged."""
        found = {k: m for k, m in model.named_modules() if isinstance(m, Layer)}
        names = [k for k in found if any(fnmatchcase(k, pattern) for pattern in self.layers)]
        if not names:
            raise InputError(
                f"no layer is named like {' or '.join(map(repr, self.layers))}; layers with "
                f"weights are: {', '.join(found)}"
            )
        return [found[k] for k in names]


def identity_cost(weight: Tensor) -> Tensor:
    """Mean squared entry of ``W W^T - I`` over the smaller side of ``W`` ``[n, m]``.

    >>> identity_cost(torch.tensor([[1.0], [1.0]]))
    tensor(1.)
    """
    wide = weight if weight.shape[0] <= weight.shape[1] else weight.T
    identity = torch.eye(len(wide), dtype=wide.dtype, device=wide.device)
    return (wide @ wide.T - identity).square().mean()
