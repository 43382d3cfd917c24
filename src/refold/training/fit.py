"""The training loop: one function, read top to bottom."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import lru_cache, partial

import torch
from torch import Tensor
from torch.optim import Optimizer

from refold.data.corruptions import Corruption
from refold.errors import InputError
from refold.model import Model
from refold.training.machine import fitting_threads, keep_freed_memory
from refold.training.plan import Plan
from refold.types import Batch

Row = dict[str, float]
VALIDATION_ROWS = 8192  # rows in one forward pass of the evaluation


@dataclass
class Run:
    """What training left behind: one history row per evaluation, and how it ended."""

    history: list[Row] = field(default_factory=list[Row])
    best: Row = field(default_factory=dict[str, float])
    stopped: str = "the budget was used"
    seconds: float = 0.0


@dataclass(frozen=True)
class Progress:
    """Where a run stands, for whoever watches."""

    step: int
    steps: int
    rows_per_second: float
    row: Row | None
    """The newest history row, right after an evaluation."""


Watch = Callable[[Progress], None]


def fit(
    model: Model,
    train: Batch,
    held_out: Batch | None,
    plan: Plan,
    *,
    corruption: Corruption | None = None,
    seed: int = 0,
    bfloat16: bool = False,
    watch: Watch | None = None,
) -> Run:
    """Train ``model`` in place, and leave it with the weights that did best on ``held_out``.

    An epoch is one seeded permutation of the rows, selected batch by batch on their device;
    losses stay there until an evaluation reads them. History has a row per evaluation, the first
    before any step: means over the rows of every term, in training and held out. Ctrl-C ends the
    run as an evaluation would. A loss that is no number ends it with an :class:`InputError`.
    """
    device = next(iter(train.x.values())).device
    draw = torch.Generator(device).manual_seed(seed)
    shuffle = torch.Generator().manual_seed(seed)
    optimizer = plan.make_optimizer(model)
    parameters = list(model.parameters())
    # Entering autocast costs as much as a small layer, even where it does nothing.
    autocast = torch.autocast(device.type, torch.bfloat16) if bfloat16 else nullcontext()
    rates, tick = plan.rates(), plan.tick
    seed_of = lru_cache(16)(partial(torch.tensor, device=device))
    plateau = plan.make_plateau(optimizer)
    run, began, step, waited = Run(), time.perf_counter(), 0, 0
    set_rate(optimizer, rates[0])
    best: dict[str, Tensor] = {}
    totals = Totals()
    judged = held_out if held_out is not None else train

    def evaluated() -> bool:
        """Write a history row, keep the best weights; False when patience is over."""
        nonlocal best, waited, totals
        row: Row = {"step": float(step), "epoch": step / plan.steps_per_epoch}
        row["lr"] = optimizer.param_groups[0]["lr"]
        fitted, totals = totals.means(), Totals()
        row |= {f"train_{k}": v for k, v in fitted.items()}
        held = evaluate(model, judged, corruption, seed)
        row |= {f"valid_{k}": v for k, v in held.items()}
        row["seconds"] = time.perf_counter() - began
        refuse_nan(row, model)
        model.train()
        run.history.append(row)
        least = run.best.get("valid_loss", float("inf"))
        clearly = not run.best or row["valid_loss"] < least - 1e-5 * abs(least)
        waited = 0 if clearly else waited + 1
        if row["valid_loss"] < least:
            run.best = row
            best = {k: v.detach().clone() for k, v in model.state_dict().items()}
        if plateau is not None:
            plateau.step(row["valid_loss"])
        notify(row)
        return plan.patience is None or waited < plan.patience

    def notify(row: Row | None) -> None:
        if watch is not None:
            rate = step * plan.batch_size / max(1e-9, time.perf_counter() - began)
            watch(Progress(step, plan.steps, rate, row))

    if device.type == "cpu":
        keep_freed_memory()
    try:
        with fitting_threads(model, plan.batch_size):
            evaluated()
            for clean in batches(train, plan.batch_size, shuffle):
                if step >= plan.steps:
                    break
                batch = clean if corruption is None else corruption(clean, draw)
                with autocast:
                    costs = model(batch, clean).costs
                for parameter in parameters:
                    parameter.grad = None
                # Each cost is a root with its factor as seed: no node scales them or adds them up.
                values, factors = zip(*costs.values(), strict=True)
                torch.autograd.backward(values, tuple(map(seed_of, factors)))
                totals.add(costs, len(clean))
                # Free the graph now: the next pass then finds its memory still in cache.
                del costs, values
                optimizer.step()
                step += 1
                if step % tick == 0:
                    if plateau is None:
                        set_rate(optimizer, rates[step // tick])
                    notify(None)
                if (step % plan.period == 0 or step == plan.steps) and not evaluated():
                    run.stopped = f"no improvement in {plan.patience} evaluations"
                    break
    except KeyboardInterrupt:
        run.stopped = "interrupted"
    if best:
        model.load_state_dict(best)
    if plan.steps == 0:
        run.stopped = "nothing was left to train"
    model.eval()
    run.seconds = time.perf_counter() - began
    return run


def batches(rows: Batch, size: int, shuffle: torch.Generator) -> Iterator[Batch]:
    """Batches for ever: each epoch is one permutation, selected by index on the rows' device."""
    device = next(iter(rows.x.values())).device
    while True:
        for index in torch.randperm(len(rows), generator=shuffle).to(device).split(size):
            yield rows.rows(index)


def set_rate(optimizer: Optimizer, rate: float) -> None:
    """Set the learning rate of every parameter group."""
    for group in optimizer.param_groups:
        group["lr"] = rate


class Totals:
    """Costs of every batch, left on the device until somebody reads them."""

    def __init__(self) -> None:
        self.values: dict[str, list[Tensor]] = {}
        self.factors: dict[str, list[float]] = {}
        self.rows = 0

    def add(self, costs: dict[str, tuple[Tensor, float]], rows: int) -> None:
        """Keep a batch's costs, without waiting for the device."""
        self.rows += rows
        for name, (value, factor) in costs.items():
            self.values.setdefault(name, []).append(value.detach())
            self.factors.setdefault(name, []).append(factor * rows)

    def means(self) -> Row:
        """Mean over the rows of each term, and of their sum as ``loss``; empty without rows."""
        means = {
            k: float(torch.stack(v).cpu().double() @ torch.tensor(self.factors[k]).double())
            / self.rows
            for k, v in self.values.items()
        }
        return {"loss": sum(means.values()), **means} if means else {}


@torch.no_grad()
def evaluate(model: Model, rows: Batch, corruption: Corruption | None, seed: int) -> Row:
    """Mean over the rows of the loss and of every term, with one fixed draw of the corruption."""
    model.eval()
    totals = Totals()
    device = next(iter(rows.x.values())).device
    draw = torch.Generator(device).manual_seed(seed + 1)
    for start in range(0, len(rows), VALIDATION_ROWS):
        clean = rows.rows(slice(start, start + VALIDATION_ROWS))
        output = model(clean if corruption is None else corruption(clean, draw), clean)
        totals.add(output.costs, len(clean))
    return totals.means()


def refuse_nan(row: Row, model: Model) -> None:
    """Raise for a loss that is no number, naming the terms that are not and the parameters."""
    wrong = [k for k, v in row.items() if v != v or abs(v) == float("inf")]
    if not wrong:
        return
    broken = [k for k, p in model.named_parameters() if not torch.isfinite(p).all()][:3]
    where = f" (parameters: {', '.join(broken)})" if broken else ""
    raise InputError(
        f"training left the range of numbers at step {row['step']:.0f}: {', '.join(wrong)}{where}; "
        f"use a smaller lr"
    )
