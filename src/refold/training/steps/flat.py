"""All parameters as one vector, and the optimiser's step on it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, final

import torch
from torch import Tensor, nn

from refold.training.plan import Plan

ALIGNED = 16  # numbers; a parameter starts where a line of the processor's cache does
ELEMENTWISE = (
    "adadelta", "adagrad", "adam", "adamax", "adamw", "asgd", "nadam", "radam", "rmsprop", "rprop",
    "sgd",
)  # fmt: skip
"""Optimisers that treat each number by itself, so that it does not matter how they are grouped."""

SHARED = ("step", "mu_product", "eta", "mu")
"""What an optimiser remembers once for all numbers of a parameter."""


@final
class Flat:
    """Parameters that lie side by side, with gradients beside them in the same order.

    Each parameter stays the object it was and looks at its part of the vector; strides are kept.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], plan: Plan) -> None:
        self.parameters = tuple(parameters)
        first = self.parameters[0]
        starts = [0]
        for p in self.parameters:
            starts.append(starts[-1] + -(-p.numel() // ALIGNED) * ALIGNED)
        self.weights = nn.Parameter(first.new_zeros(starts[-1]))
        self.weights.grad = self.gradient = first.new_zeros(starts[-1])
        self.views = self._parts(self.weights.detach(), starts)
        self.gradients = self._parts(self.gradient, starts)
        self.starts = starts
        for p, view in zip(self.parameters, self.views, strict=True):
            view.copy_(p.detach())
            p.data = view
        self.optimizer = plan.make_optimizer([self.weights])
        self.group: dict[str, Any] = self.optimizer.param_groups[0]
        kernels: dict[str, Any] = {
            "adam": getattr(torch, "_fused_adam_", None),
            "adamw": getattr(torch, "_fused_adamw_", None),
        }
        self.fused = kernels.get(plan.optimizer.name) if self.group.get("fused") else None

    def _parts(self, whole: Tensor, starts: Sequence[int]) -> list[Tensor]:
        return [
            whole.as_strided(p.shape, p.stride(), start)
            for p, start in zip(self.parameters, starts, strict=False)
        ]

    def step(self) -> None:
        """Move the parameters by their gradients.

        After the first step the kernel of a fused Adam is called directly: the optimiser's own step
        asks again every time what it is to do, which takes as long as a small network's layers.
        """
        state: dict[str, Any] = self.optimizer.state.get(self.weights, {})
        if self.fused is None or not state or self.group["amsgrad"]:
            self.optimizer.step()
            return
        state["step"] += 1
        group = self.group
        beta1, beta2 = group["betas"]
        with torch.no_grad():
            self.fused(
                [self.weights], [self.gradient], [state["exp_avg"]], [state["exp_avg_sq"]],
                [], [state["step"]], lr=group["lr"], beta1=beta1, beta2=beta2,
                weight_decay=group["weight_decay"], eps=group["eps"], amsgrad=False,
                maximize=group["maximize"],
            )  # fmt: skip

    def set_rate(self, rate: float) -> None:
        """Set the learning rate."""
        self.group["lr"] = rate

    def show_gradients(self) -> None:
        """Let every parameter show its gradient."""
        for p, gradient in zip(self.parameters, self.gradients, strict=True):
            p.grad = gradient

    def state(self) -> dict[str, Tensor]:
        """Return what the optimiser remembers of each parameter, as if it had them one by one."""
        kept: dict[str, Any] = self.optimizer.state.get(self.weights, {})
        found: dict[str, Tensor] = {}
        for name, value in kept.items():
            whole = value if isinstance(value, Tensor) else torch.tensor(value)
            each = [whole] * len(self.parameters)
            if whole.shape == self.weights.shape:
                each = self._parts(whole, self.starts)
            found |= {f"0.{i}.{name}": part for i, part in enumerate(each)}
        return found

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Put it back."""
        whole: dict[str, Tensor] = {}
        for key, value in state.items():
            _, number, name = key.split(".", 2)
            if value.shape == self.parameters[int(number)].shape and name not in SHARED:
                own = whole.setdefault(name, torch.zeros_like(self.weights.detach()))
                self._parts(own, self.starts)[int(number)].copy_(value)
            else:
                whole[name] = value.clone()
        groups: Any = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": {0: whole}, "param_groups": groups})
        self.group = self.optimizer.param_groups[0]

    def forget(self, parameter: nn.Parameter, rows: Tensor) -> None:
        """Zero the moments of rows of a parameter."""
        at = next(i for i, p in enumerate(self.parameters) if p is parameter)
        for value in self.optimizer.state.get(self.weights, {}).values():
            if isinstance(value, Tensor) and value.shape == self.weights.shape:
                self._parts(value, self.starts)[at][rows] = 0

    def close(self) -> None:
        """Give every parameter memory of its own again, and no gradient."""
        for p in self.parameters:
            p.data = torch.empty_strided(p.shape, p.stride(), dtype=p.dtype, device=p.device).copy_(
                p.data
            )
            p.grad = None
