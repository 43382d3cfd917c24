"""The training loop: one function, read top to bottom."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Protocol, cast

import torch
from torch import Tensor, nn

from refold.data.corruptions import Corruption
from refold.data.feed import Feed, Memory
from refold.errors import InputError
from refold.fusion import Fusion
from refold.latents import Latent, readings
from refold.likelihoods import Likelihood
from refold.training.balance import Balancer
from refold.training.checks import first_broken_layer, gradient_norms
from refold.training.machine import fitting_threads, keeping_memory
from refold.training.plan import Plan
from refold.training.steps import choose
from refold.types import Batch, Code, Costs

Row = dict[str, float]
ROOM = 256  # costs of steps kept side by side at first
DRAWS = 1024  # rows that tell of a model under a corruption that hides
VALIDATION_ROWS = 8192  # rows in one forward pass of the evaluation
VALIDATION_NUMBERS = 1 << 24  # and numbers, where the outputs are wider than 2,048


class Outcome(Protocol):
    """What a forward pass gives the loop: costs, and the code if there is one."""

    code: Code | None

    @property
    def costs(self) -> Costs:
        """Every cost by name."""
        ...


class Trainable(Protocol):
    """What the loop can train: a module from a batch and its clean target to an outcome."""

    def __call__(self, batch: Batch, target: Batch) -> Outcome:
        """Run a (corrupted) batch against its clean target."""
        ...

    def set_progress(self, share: float) -> None:
        """Take note of the share of the run that has passed."""
        ...

    def weights(self) -> dict[str, float]:
        """Return by output what its cost is multiplied by in training; empty where none has any."""
        ...


@dataclass
class Run:
    """What training left behind: one history row per evaluation, and how it ended.

    ``phases`` names the parts of a run that had several; a row's ``phase`` counts them from 0.
    """

    history: list[Row] = field(default_factory=list[Row])
    phases: tuple[str, ...] = ()
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
    model: nn.Module,
    train: Batch | Feed,
    held_out: Batch | None,
    plan: Plan,
    *,
    inputs: Batch | None = None,
    held_inputs: Batch | None = None,
    corruption: Corruption | None = None,
    seed: int = 0,
    bfloat16: bool = False,
    balancer: Balancer | None = None,
    watch: Watch | None = None,
) -> Run:
    """Train ``model`` in place, and leave it with the weights that did best on ``held_out``.

    A plan that keeps the ``last`` weights takes all steps, and held-out rows have a say in nothing.

    An epoch is one seeded permutation of the rows, selected batch by batch on their device;
    losses stay there until an evaluation reads them. ``inputs`` and ``held_inputs`` are what the
    model sees in place of the rows themselves, which stay the target. History has a row per
    evaluation, the first before any step: means over the rows of every term, in training and held
    out, the norm of each layer's gradient in the last step, how many units of the code were zero in
    every held-out row, and the weight of each output where there are several. Ctrl-C ends the run
    as an evaluation would. A loss that is no number ends it with an :class:`InputError` that names
    the term and the layer.

    A ``balancer`` moves shares of the outputs' costs between steps. Means in the history are of the
    costs without these shares, the weight is the one in force, with its share, and ``objective`` is
    the figure of the balancer's by which the best weights are chosen in place of the held-out loss.
    """
    feed = train if isinstance(train, Feed) else in_memory(model, train, inputs, plan, seed)
    device = feed.device
    draw = torch.Generator(device).manual_seed(seed)
    trained = cast("Trainable", model)
    engine = choose(model, plan, device, bfloat16=bfloat16, balancer=balancer)
    rates, tick = plan.rates(), plan.tick
    plateau, rate = plan.make_plateau(), rates[0]
    run, began, step, waited = Run(), time.perf_counter(), 0, 0
    engine.set_rate(rate)
    best: dict[str, Tensor] = {}
    anchor = 0.0  # the loss from which patience counts: small improvements add up
    lowest = 0.0  # that of the best weights
    totals = Totals()
    grown = plan.steps * max((getattr(m, "warmup", 0.0) for m in model.modules()), default=0.0)
    by_batch = relaxed(model) or corruption is not None  # both may draw once for a whole batch
    portion = plan.batch_size if by_batch else portion_of(model)
    judged, judged_inputs = held_out, held_inputs
    if judged is None:
        judged, judged_inputs = feed.sample(), inputs
    if corruption is not None and corruption.hides and len(judged) < DRAWS:
        # What is hidden in a few rows is luck, so each is judged under several draws.
        again = torch.arange(-(-DRAWS // len(judged)) * len(judged), device=device) % len(judged)
        judged = judged.rows(again)
        judged_inputs = None if judged_inputs is None else judged_inputs.rows(again)

    def evaluated() -> bool:
        """Write a history row, keep the best weights; False when patience is over."""
        nonlocal anchor, best, lowest, rate, waited, totals
        row: Row = {"step": float(step), "epoch": step / plan.steps_per_epoch}
        row["lr"] = rate
        fitted, totals = totals.means(), Totals()
        row |= {f"train_{k}": v for k, v in fitted.items()}
        held, figures = evaluate(model, judged, corruption, seed, judged_inputs, portion)
        row |= {f"valid_{k}": v for k, v in held.items()} | figures
        weights = trained.weights()
        row |= {f"weight_{k}": w for k, w in weights.items() if len(weights) > 1}
        row |= {f"grad_{k}": v for k, v in gradient_norms(model).items()}
        row["seconds"] = time.perf_counter() - began
        refuse_nan(row, model, judged)
        figure = row["valid_loss"]
        if balancer is not None:
            figure = row["objective"] = balancer.judge(held)
        to_training(model)
        run.history.append(row)
        if not run.best or figure < anchor - plan.min_delta * abs(anchor):
            anchor, waited = figure, 0
        else:
            waited += step >= grown  # until then it learns by other costs than it is judged by
        if plan.last:
            run.best = row
        elif not run.best or figure < lowest:
            run.best, lowest = row, figure
            best = {k: v.detach().clone() for k, v in model.state_dict().items()}
        if plateau is not None:
            plateau.step(figure)
            rate = plateau.optimizer.param_groups[0]["lr"]
            engine.set_rate(rate)
        notify(row)
        return plan.last or plan.patience is None or waited < plan.patience

    def notify(row: Row | None) -> None:
        if watch is not None:
            speed = step * plan.batch_size / max(1e-9, time.perf_counter() - began)
            watch(Progress(step, plan.steps, speed, row))

    memory = keeping_memory(model, plan.batch_size) if device.type == "cpu" else nullcontext()
    try:
        with memory, fitting_threads(model, plan.batch_size):
            trained.set_progress(0.0)
            evaluated()
            for clean, batch in feed.batches():
                if step >= plan.steps:
                    break
                if corruption is not None:
                    batch = corruption(batch, draw)
                    clean = corruption.target(clean, batch)
                totals.add(engine.take(batch, clean), len(clean))
                step += 1
                if step % tick == 0:
                    trained.set_progress(step / plan.steps)
                    if plateau is None:
                        rate = rates[step // tick]
                        engine.set_rate(rate)
                    notify(None)
                if (step % plan.period == 0 or step == plan.steps) and not evaluated():
                    run.stopped = f"no improvement in {plan.patience} evaluations"
                    break
    except KeyboardInterrupt:
        run.stopped = "interrupted"
    trained.set_progress(1.0)
    engine.close()
    for body in bodies(model):
        body.joined = 0
    if best:
        model.load_state_dict(best)
    if plan.steps == 0:
        run.stopped = "nothing was left to train"
    model.eval()
    run.seconds = time.perf_counter() - began
    return run


def in_memory(model: nn.Module, rows: Batch, inputs: Batch | None, plan: Plan, seed: int) -> Memory:
    """Feed rows that are in memory, with those of a known target in every batch where asked for."""
    anchors = labelled(model, rows) if plan.labelled else None
    joining = 0 if anchors is None else min(plan.labelled, len(anchors))
    for body in bodies(model):
        body.joined = joining
    return Memory(rows, plan.batch_size, inputs=inputs, anchors=anchors, joining=joining, seed=seed)


def labelled(model: nn.Module, rows: Batch) -> Tensor | None:
    """Positions of the rows of which any target is known; None where all are, or none is."""
    fed: tuple[str, ...] = getattr(model, "inputs", ())
    targets = [k for k in rows.x if k not in fed and rows.observed[k] is not None]
    known = [cast(Tensor, rows.observed[k]).any(1) for k in targets]
    if not known:
        return None
    found = torch.stack(known).any(0).nonzero().flatten()
    return found if len(found) else None


def to_training(model: nn.Module) -> None:
    """Turn training behaviour on, but for norms and dropout that belong to frozen layers.

    The statistics of a frozen layer's norm are part of what is frozen.
    """
    model.train()
    if all(p.requires_grad for p in model.parameters()):
        return
    for stack in model.modules():
        still = False
        for layer in stack.children():
            own = list(layer.parameters())
            still = not any(p.requires_grad for p in own) if own else still
            if still and isinstance(stack, nn.Sequential):
                layer.eval()


class Totals:
    """Costs of every batch, left on the device until somebody reads them.

    They are copied side by side: a scalar that outlived its step would lie between the step's large
    tensors, and the heap would grow, page by page, for want of a free block as large as the last.
    """

    def __init__(self) -> None:
        self.values: dict[str, Tensor] = {}
        self.factors: dict[str, list[float]] = {}
        self.rows = 0

    def add(self, costs: Costs, rows: int) -> None:
        """Keep a batch's costs, without waiting for the device."""
        self.rows += rows
        for name, (value, factor) in costs.items():
            factors = self.factors.setdefault(name, [])
            if not factors:
                self.values[name] = value.new_empty(ROOM)
            elif len(factors) == len(self.values[name]):
                full = self.values[name]
                self.values[name] = torch.cat([full, torch.empty_like(full)])
            self.values[name].select(0, len(factors)).copy_(value.detach())
            factors.append(factor * rows)

    def means(self) -> Row:
        """Mean over the rows of each term, and of their sum as ``loss``; empty without rows."""
        means = {
            k: float(self.values[k][: len(v)].cpu().double() @ torch.tensor(v).double()) / self.rows
            for k, v in self.factors.items()
        }
        return {"loss": sum(means.values()), **means} if means else {}


@torch.no_grad()
def evaluate(
    model: nn.Module,
    rows: Batch,
    corruption: Corruption | None,
    seed: int,
    inputs: Batch | None = None,
    portion: int = VALIDATION_ROWS,
) -> tuple[Row, Row]:
    """Mean over the rows of the loss and of every term, and figures of the code.

    There is one fixed draw of the corruption. A latent that is relaxed in evaluation is constrained
    here as in training, over ``portion`` rows at a time and with one fixed draw too. ``dead_units``
    counts the entries of the code that are zero in every row; gauges read what the latent says of
    each row.
    """
    model.eval()
    growing = [(m, m.progress) for m in model.modules() if isinstance(m, Latent)]
    for part in relaxed(model):
        part.train()
    for latent, _ in growing:
        latent.progress = 1.0  # costs that grow in count in full
    totals = Totals()
    device = next(iter(rows.x.values())).device
    draw = torch.Generator(device).manual_seed(seed + 1)
    alive: Tensor | None = None
    stats: dict[str, list[Tensor]] = {}
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed + 1)
        for start in range(0, len(rows), portion):
            at = slice(start, start + portion)
            clean = rows.rows(at)
            batch = clean if inputs is None else inputs.rows(at)
            if corruption is not None:
                batch = corruption(batch, draw)
                clean = corruption.target(clean, batch)
            output: Outcome = model(batch, clean)
            totals.add(output.costs, len(clean))
            if output.code is not None:
                active = (output.code.z != 0).any(0)
                alive = active if alive is None else alive | active
                for name, value in output.code.stats.items():
                    stats.setdefault(name, []).append(value.detach())
    for latent, progress in growing:
        latent.progress = progress
    means = totals.means()
    if alive is None:
        return means, {}
    return means, {"dead_units": float((~alive).sum()), **readings(stats)}


def portion_of(model: nn.Module) -> int:
    """Rows in one forward pass of the evaluation of a model with outputs that wide."""
    width = sum(m.width for m in model.modules() if isinstance(m, Likelihood))
    return max(1, min(VALIDATION_ROWS, VALIDATION_NUMBERS // max(1, width)))


def relaxed(model: nn.Module) -> list[nn.Module]:
    """Return the latents and bodies whose constraint holds in training only."""
    return [m for m in model.modules() if isinstance(m, Latent | Fusion) and m.relaxed]


def bodies(model: nn.Module) -> list[Fusion]:
    """Return the bodies inside a model: one, where it is not made for another use."""
    return [m for m in model.modules() if isinstance(m, Fusion)]


def refuse_nan(row: Row, model: nn.Module, rows: Batch) -> None:
    """Raise for a loss that is no number, naming the field or term and the layer to blame."""
    wrong = [
        k for k, v in row.items()
        if k.startswith(("train_", "valid_")) and (v != v or abs(v) == float("inf"))
    ]  # fmt: skip
    if not wrong:
        return
    terms = dict.fromkeys(k.partition("_")[2] for k in wrong)
    terms.pop("loss", None)
    layer = first_broken_layer(model, rows.rows(slice(0, portion_of(model))))
    where = "" if layer is None else f" (first in layer {layer})"
    raise InputError(
        f"training left the range of numbers at step {row['step']:.0f}, in the cost of "
        f"{' and '.join(repr(t) for t in terms) or 'a batch'}{where}; use a smaller lr"
    )
