"""Where a run stands between two steps, so that it can be kept and taken up."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from refold.training.balance import Balancer
from refold.training.checkpoint import (
    Kept,
    Remembering,
    generators,
    memories,
    put_back,
    remember,
    set_generators,
    tensors_of,
)
from refold.training.precision import Caution
from refold.training.ranks import Ranks
from refold.training.steps import Step
from refold.training.totals import Row, Totals, merged


@dataclass
class Run:
    """What training left behind: one history row per evaluation, and how it ended.

    ``phases`` names the parts of a run that had several; a row's ``phase`` counts them from 0.
    ``precision`` says which number format its matrix products had, and why.
    """

    history: list[Row] = field(default_factory=list[Row])
    phases: tuple[str, ...] = ()
    best: Row = field(default_factory=dict[str, float])
    stopped: str = "the budget was used"
    seconds: float = 0.0
    precision: str = ""


@dataclass
class Standing:
    """All that the next step of a run depends on, but the rows, which follow from its number.

    Those who learn and draw on the way, and what the loop counts and chooses by.
    """

    model: nn.Module
    engine: Step
    ranks: Ranks
    draw: torch.Generator
    plateau: ReduceLROnPlateau | None
    balancer: Balancer | None
    caution: Caution | None
    rate: float
    run: Run = field(default_factory=Run)
    totals: Totals = field(default_factory=Totals)
    best: dict[str, Tensor] = field(default_factory=dict[str, Tensor])
    began: float = field(default_factory=time.perf_counter)
    step: int = 0
    waited: int = 0
    done: bool = False
    anchor: float = 0.0
    """The loss from which patience counts: small improvements add up."""
    lowest: float = 0.0
    """That of the best weights."""

    @property
    def seconds(self) -> float:
        """How long the run has taken."""
        return time.perf_counter() - self.began

    def kept(self) -> Kept:
        """Return it as plain values and tensors; all processes must ask."""
        run, totals = self.run, merged(self.ranks.gathered(self.totals))
        values: dict[str, Any] = {
            "step": self.step, "rate": self.rate, "anchor": self.anchor, "lowest": self.lowest,
            "waited": self.waited, "history": run.history, "best": run.history.index(run.best),
            "done": self.done, "stopped": run.stopped, "seconds": self.seconds,
            "plateau": None if self.plateau is None else self.plateau.state_dict(),
            "balancer": None if self.balancer is None else self.balancer.remembered(),
            "caution": None if self.caution is None else vars(self.caution),
            "step_by": self.engine.remembered() if isinstance(self.engine, Remembering) else None,
            "modules": memories(self.model), "totals": totals.remembered(),
        }  # fmt: skip
        parts = {
            "model": tensors_of(self.model), "best": self.best, "engine": self.engine.state(),
            "totals": totals.values, "random": generators(self.draw),
        }  # fmt: skip
        return Kept(values, {f"{p}/{k}": v for p, each in parts.items() for k, v in each.items()})

    def go_on(self, kept: Kept) -> None:
        """Take the run up where :meth:`kept` had it."""
        known, device, run = kept.values, self.draw.device, self.run
        self.step, self.rate, self.waited = known["step"], known["rate"], known["waited"]
        self.anchor, self.lowest, self.done = known["anchor"], known["lowest"], known["done"]
        run.history = known["history"]
        run.stopped = known["stopped"] if self.done else run.stopped
        run.best, self.began = run.history[known["best"]], self.began - known["seconds"]
        put_back(self.model, kept.part("model"))
        self.best = {k: v.to(device) for k, v in kept.part("best").items()}
        self.engine.restore({k: v.to(device) for k, v in kept.part("engine").items()})
        values = {k: v.to(device) for k, v in kept.part("totals").items()}
        self.totals.remember(known["totals"], values)
        if not self.ranks.first:
            self.totals.clear()  # the first process has them for all
        if self.plateau is not None:
            self.plateau.load_state_dict(known["plateau"])
            self.plateau.optimizer.param_groups[0]["lr"] = self.rate
        if self.balancer is not None:
            self.balancer.remember(known["balancer"])
        if self.caution is not None:
            vars(self.caution).update(known["caution"] or {"low": False})
            self.engine.set_format(bfloat16=self.caution.low)
        remember(self.model, known["modules"])
        if isinstance(self.engine, Remembering) and known["step_by"] is not None:
            self.engine.remember(known["step_by"])
        self.engine.set_rate(self.rate)
        set_generators(self.draw, kept.part("random"))
