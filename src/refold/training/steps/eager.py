"""A step by torch's own record of what was computed: any model, any optimiser."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from functools import lru_cache, partial
from typing import Any, cast, final

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from refold.fusion import Fusion
from refold.ops.ranks import like, weight, whole
from refold.training.balance import Balancer
from refold.training.plan import Plan
from refold.training.ranks import Ranks
from refold.training.steps.base import Step
from refold.types import Batch, Costs


@final
class Eager(Step):
    """Forward, backward, and every optimiser's step.

    Each cost is a root of the backward pass with its factor as seed, so no node scales them or adds
    them up. A ``balancer`` moves shares of the outputs' costs; what is returned is without them.
    Where processes share batches, ``ranks`` add up their gradients.
    """

    def __init__(
        self,
        model: nn.Module,
        plan: Plan,
        device: torch.device,
        *,
        bfloat16: bool = False,
        balancer: Balancer | None = None,
        ranks: Ranks | None = None,
    ) -> None:
        forget_gradients(model)
        self.model, self.balancer, self.ranks, self.device = model, balancer, ranks, device
        self.optimizers: list[tuple[Optimizer, float]] = plan.make_optimizers(model)
        if ranks is not None and ranks.shards:  # of which not every fused kernel knows
            for group in (g for optimizer, _ in self.optimizers for g in optimizer.param_groups):
                group |= {"fused": False} if "fused" in group else {}
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.constrained = [m for m in model.modules() if isinstance(m, Fusion) and m.constrained]
        self.set_format(bfloat16=bfloat16)
        self.seed_of = lru_cache(16)(partial(torch.tensor, device=device))

    def take(self, batch: Batch, clean: Batch) -> Costs:
        """Take the step."""
        with self.autocast:
            outcome = self.model(batch, clean)
            costs: Costs = outcome.costs
        shown = costs if self.balancer is None else self.balancer(costs, outcome.code)
        del outcome
        for parameter in self.parameters:
            parameter.grad = None
        # One that nothing here can change (its layers are frozen) only counts.
        reached = [cost for cost in costs.values() if cost[0].requires_grad]
        values, factors = zip(*reached, strict=True)
        if self.ranks is not None:
            factors = tuple(factor * weight() for factor in factors)
        torch.autograd.backward(values, tuple(map(self.seed_of, factors)))
        # Free the graph now: the next pass then finds its memory still in cache.
        shown = {k: (v.detach(), factor) for k, (v, factor) in shown.items()}
        del costs, reached, values
        if self.ranks is not None:
            self.ranks.add_gradients(self.parameters)
        self.move()
        return shown

    def move(self) -> None:
        """Have every optimiser move its parameters by their gradients."""
        for body in self.constrained:
            body.project()
        for each, _ in self.optimizers:
            each.step()
        for body in self.constrained:
            body.constrain()

    def set_format(self, *, bfloat16: bool) -> None:
        """Enter autocast or not; it costs as much as a small layer even where it does nothing."""
        low = torch.autocast(self.device.type, torch.bfloat16)
        self.autocast = low if bfloat16 else nullcontext()

    def set_rate(self, rate: float) -> None:
        """Set the rate of every parameter group, in the optimisers' ratios to ``rate``."""
        for optimizer, ratio in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate * ratio

    def state(self) -> dict[str, Tensor]:
        """Return each optimiser's tensors, by its number, the parameter's and their name."""
        return {
            f"{i}.{j}.{name}": whole(value) if isinstance(value, Tensor) else torch.tensor(value)
            for i, (optimizer, _) in enumerate(self.optimizers)
            for j, kept in optimizer.state_dict()["state"].items()
            for name, value in kept.items()
            if value is not None
        }

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Put them back."""
        for i, (optimizer, _) in enumerate(self.optimizers):
            kept: dict[int, dict[str, Tensor]] = {}
            order = [p for group in optimizer.param_groups for p in group["params"]]
            for key, value in state.items():
                mine, number, name = key.split(".", 2)
                if int(mine) == i:
                    own = order[int(number)]
                    kept.setdefault(int(number), {})[name] = like(value, own)
            groups: Any = optimizer.state_dict()["param_groups"]
            optimizer.load_state_dict({"state": kept, "param_groups": groups})

    def forget(self, name: str, rows: Tensor) -> None:
        """Zero the moments of rows of one parameter."""
        parameter = self.model.get_parameter(name)
        for optimizer, _ in self.optimizers:
            for value in cast("dict[str, Any]", optimizer.state.get(parameter, {})).values():
                if isinstance(value, Tensor) and value.shape == parameter.shape:
                    value[rows] = 0

    def close(self) -> None:
        """Drop every gradient."""
        forget_gradients(self.model)


def forget_gradients(model: nn.Module) -> None:
    """Drop every gradient, those of layers that do not learn here too: norms would show them."""
    for parameter in model.parameters():
        parameter.grad = None
