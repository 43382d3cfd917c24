"""Ways to take a step of training, all to the same end; the fastest that suits a model is taken."""

from __future__ import annotations

import torch
from torch import nn

from refold.model import Model
from refold.training.balance import Balancer
from refold.training.plan import Plan
from refold.training.steps import dictionary
from refold.training.steps.base import Step
from refold.training.steps.eager import Eager
from refold.training.steps.replay import Replay, suits

__all__ = ["Eager", "Replay", "Step", "choose"]

FEW = 50  # steps, below which recording one takes longer than it saves


def choose(
    model: nn.Module,
    plan: Plan,
    device: torch.device,
    *,
    bfloat16: bool = False,
    balancer: Balancer | None = None,
) -> Step:
    """Return the fastest way to take this model's steps."""
    if balancer is None and dictionary.suits(model, plan, device):
        assert isinstance(model, Model)
        return dictionary.DictionaryStep(model, plan, device)
    if balancer is None and plan.steps >= FEW and suits(model, plan, device):
        return Replay(model, plan, device, bfloat16=bfloat16)
    return Eager(model, plan, device, bfloat16=bfloat16, balancer=balancer)
