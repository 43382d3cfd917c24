"""A cost in the eyes of another network."""

from __future__ import annotations

import copy
from typing import Any, cast, final

import torch
from torch import Tensor, nn

from refold.errors import InputError, unknown
from refold.penalties.base import Penalty, register
from refold.types import Batch, Code


@final
@register("perceptual")
class Perceptual(Penalty):
    r"""Reconstructions that should look like their targets to a network given.

    .. math:: \text{cost} = \lambda \sum_{f} \frac{1}{|L|} \sum_{l \in L}
              \operatorname{mean}\left( (\phi_l(\hat x_f) - \phi_l(x_f))^2 \right)

    ``network`` :math:`\phi` is any module that takes ``[B, *shape]`` as the field holds it (an
    image is ``[B, C, H, W]``, scaled to [0, 1]). A copy is kept, frozen and in evaluation mode, and
    is no part of the model's parameters and state. ``layers`` are names of modules inside, whose
    outputs are compared; None: the network's own output. ``fields`` are names of fields; None: the
    images, or where there are none all fields of numbers. A missing entry is taken to be what was
    reconstructed. ``weight`` :math:`\lambda` is in nats per row.

    Raises :class:`InputError` without a network, and for a layer or field that is not there.

    Source: Johnson, Alahi & Fei-Fei, Perceptual Losses for Real-Time Style Transfer and
    Super-Resolution, 2016 (arXiv:1603.08155).

    >>> Perceptual(network=nn.Linear(4, 2), weight=0.1).layers
    """

    def __init__(
        self,
        *,
        network: nn.Module | None = None,
        weight: float = 1.0,
        layers: tuple[str, ...] | None = None,
        fields: tuple[str, ...] | None = None,
    ) -> None:
        super().__init__()
        if network is None:
            raise InputError(
                "the perceptual penalty needs a network to look with; give one in Python: "
                "penalties=(Perceptual(network=...),)"
            )
        if not weight >= 0:
            raise InputError(f"the perceptual weight is {weight}; it must be 0 or more")
        inside = [name for name, _ in network.named_modules() if name]
        for name in layers or ():
            if name not in inside:
                raise unknown("layer of the perceptual network", name, inside)
        self.weight, self.layers, self.fields = weight, layers, fields
        # In a tuple, so that torch does not take it for a part of the model.
        self._held = (copy.deepcopy(network).eval().requires_grad_(False),)

    @property
    def network(self) -> nn.Module:
        """The frozen copy."""
        return self._held[0]

    def forward(
        self, model: nn.Module, batch: Batch, code: Code, params: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """Mean squared difference of what the network sees, summed over the fields."""
        heads, costs = cast(Any, model).likelihoods, list[Tensor]()
        if code.draws > 1:
            batch = batch.rows(torch.arange(len(batch), device=code.z.device).repeat(code.draws))
        for name in self.chosen(batch):
            x, seen = batch.x[name], batch.observed[name]
            rebuilt: Tensor = heads[name].point(params[name]).view_as(x)
            target = x if seen is None else torch.where(seen.view_as(x), x, rebuilt.detach())
            mine = self.features(rebuilt)
            with torch.no_grad():
                others = self.features(target)
            pairs = zip(mine, others, strict=True)
            costs.append(torch.stack([(a - b).square().mean() for a, b in pairs]).mean())
        return {"perceptual": torch.stack(costs).sum() * self.weight}

    def chosen(self, batch: Batch) -> list[str]:
        """Names of the fields that are compared."""
        if self.fields is not None:
            for name in self.fields:
                if name not in batch.x:
                    raise unknown("field", name, batch.x)
            return list(self.fields)
        numbers = [k for k, x in batch.x.items() if x.is_floating_point()]
        images = [k for k in numbers if batch.x[k].dim() == 4]
        if not numbers:
            raise InputError("the perceptual penalty needs a field of numbers; there is none")
        return images or numbers

    def features(self, x: Tensor) -> list[Tensor]:
        """Outputs of the named layers, or of the network, for ``x``."""
        network = self.network.to(x.device)
        if self.layers is None:
            return [network(x.clone())]  # cloned, because its first module may work in place
        seen: dict[str, Tensor] = {}

        def watch(name: str) -> Any:
            def keep(module: nn.Module, args: Any, output: Tensor) -> None:
                # Cloned, because an activation in place would overwrite what a layer gave.
                seen[name] = output.clone()

            return network.get_submodule(name).register_forward_hook(keep)

        hooks = [watch(name) for name in self.layers]
        try:
            network(x.clone())
        finally:
            for hook in hooks:
                hook.remove()
        return [seen[name] for name in self.layers]
