"""The training loop: one function, read top to bottom."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Protocol, cast

import torch
from torch import Tensor, nn

from refold.data.corruptions import Corruption
from refold.data.feed import Feed, Memory, portions, shuffling
from refold.errors import InputError
from refold.fusion import Fusion
from refold.model import Model
from refold.ops.ranks import sharing, whole
from refold.training.balance import Balancer
from refold.training.checkpoint import Checkpoints, Kept, digest
from refold.training.checks import gradient_norms
from refold.training.evaluation import (
    Outcome,
    evaluate,
    portion_of,
    refuse_nan,
    relaxed,
    under_draws,
)
from refold.training.machine import fitting_threads, keeping_memory
from refold.training.plan import Plan
from refold.training.precision import ROWS, Caution
from refold.training.ranks import across, join, parted
from refold.training.revive import revive
from refold.training.standing import Run, Standing
from refold.training.steps import Eager, Step, choose
from refold.training.totals import Row, Totals
from refold.types import Batch
from refold.wording import counted

KEY = 48  # bits of the number of a step, above which a seed stands


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


@dataclass(frozen=True)
class Progress:
    """Where a run stands, for whoever watches."""

    step: int
    steps: int
    rows_per_second: float
    row: Row | None
    """The newest history row, right after an evaluation."""
    doing: str = ""
    """What has to be done before there are steps, where that is under way."""
    share: float = 0.0
    """And how much of it is done."""


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
    caution: Caution | None = None,
    balancer: Balancer | None = None,
    checkpoints: Checkpoints | None = None,
    parallel: str = "ddp",
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

    ``bfloat16`` rounds what matrix products meet; with ``caution`` only for as long as that makes
    no difference to held-out rows.

    ``checkpoints`` keep where the run stands, and say where it is to go on from. Processes that
    ``torchrun`` started share every batch; with ``parallel="fsdp"`` the parameters too.
    """
    feed = train if isinstance(train, Feed) else in_memory(model, train, inputs, plan, seed)
    device = feed.device
    ranks = join(device)
    alone = not ranks.several
    if not alone:
        if plan.labelled and isinstance(feed, Memory) and feed.joining:
            raise InputError(
                "labelled rows that join every batch cannot be shared by several processes; leave "
                "labelled out, or use one process"
            )
        ranks.begin(model)
    given = model
    if not alone and parallel == "fsdp":
        model = ranks.sharded(given)
    draw = torch.Generator(device).manual_seed(seed)
    trained = cast("Trainable", model)
    way = choose if alone else partial(Eager, ranks=ranks)
    low = bfloat16 or caution is not None
    engine: Step = way(model, plan, device, bfloat16=low, balancer=balancer)
    rates, tick, plateau = plan.rates(), plan.tick, plan.make_plateau()
    at = Standing(model, engine, ranks, draw, plateau, balancer, caution, rates[0])
    run, sizes = at.run, portions(len(feed), feed.size)
    # A corruption may mix the rows of a batch, so every process has all of them.
    own = None if alone or corruption is not None else ranks.own
    engine.set_rate(at.rate)
    grown = plan.steps * max((getattr(m, "warmup", 0.0) for m in model.modules()), default=0.0)
    by_batch = relaxed(model) or corruption is not None  # both may draw once for a whole batch
    portion = plan.batch_size if by_batch else portion_of(model)
    judged, judged_inputs = held_out, held_inputs
    if judged is None:
        judged, judged_inputs = feed.sample(), inputs
    if corruption is not None and corruption.hides:
        judged, judged_inputs = under_draws(judged, judged_inputs)

    def evaluated() -> bool:
        """Write a history row, keep the best weights; False when patience is over."""
        row: Row = {"step": float(at.step), "epoch": at.step / plan.steps_per_epoch, "lr": at.rate}
        fitted, at.totals = at.totals.means(ranks), Totals()
        row |= {f"train_{k}": v for k, v in fitted.items()}
        held, figures = evaluate(model, judged, corruption, seed, judged_inputs, portion)
        row |= {f"valid_{k}": v for k, v in held.items()} | figures
        ranks.let_go(model)
        weights = trained.weights()
        row |= {f"weight_{k}": w for k, w in weights.items() if len(weights) > 1}
        row |= {f"grad_{k}": v for k, v in gradient_norms(model).items()}
        row["seconds"] = at.seconds
        refuse_nan(row, model, judged)
        if caution is not None and caution.low:
            few = judged.rows(slice(0, ROWS))
            shown = None if judged_inputs is None else judged_inputs.rows(slice(0, ROWS))
            full = evaluate(model, few, corruption, seed, shown, portion)[0]["loss"]
            with torch.autocast(device.type, torch.bfloat16):
                low = evaluate(model, few, corruption, seed, shown, portion)[0]["loss"]
            engine.set_format(bfloat16=caution.look(at.step, full, low))
        figure = row["valid_loss"]
        if balancer is not None:
            figure = row["objective"] = balancer.judge(held)
        (figure,) = ranks.sums([figure if ranks.first else 0.0])  # so that all decide alike
        to_training(model)
        run.history.append(row)
        if not run.best or figure < at.anchor - plan.min_delta * abs(at.anchor):
            at.anchor, at.waited = figure, 0
        else:
            at.waited += at.step >= grown  # until then it learns by other costs than judged by
        if plan.last:
            run.best = row
        elif not run.best or figure < at.lowest:
            run.best, at.lowest = row, figure
            at.best = {k: whole(v.detach()).clone() for k, v in model.state_dict().items()}
        if at.step and isinstance(model, Model):
            revive(model, feed.sample(), engine.forget, shuffling(seed, at.step))
        if plateau is not None:
            plateau.step(figure)
            at.rate = plateau.optimizer.param_groups[0]["lr"]
            engine.set_rate(at.rate)
        notify(row)
        return plan.last or plan.patience is None or at.waited < plan.patience

    def begun() -> Kept | None:
        """Return where the run is to go on from; None where it begins."""
        if checkpoints is None:
            return None
        told = partial(digest, feed.sample(), held_out, inputs, held_inputs)
        return ranks.agreed(partial(checkpoints.begin, told))

    def keep(checkpoints: Checkpoints, wanted: Callable[[], bool]) -> None:
        """Have the first process write a checkpoint where it wants to."""
        if ranks.agreed(wanted):
            kept = at.kept()
            if ranks.first:
                checkpoints.write(kept)

    def notify(row: Row | None) -> None:
        if watch is not None and ranks.first:
            speed = at.step * plan.batch_size / max(1e-9, at.seconds)
            watch(Progress(at.step, plan.steps, speed, row))

    memory = keeping_memory(model, plan.batch_size) if device.type == "cpu" else nullcontext()
    try:
        folder = None if checkpoints is None else checkpoints.folder
        threads = fitting_threads(model, plan.batch_size)
        with memory, threads, ranks.listening(folder), across(model, ranks):
            kept = begun()
            if kept is None:
                trained.set_progress(0.0)
                evaluated()
            else:
                at.go_on(kept)
                to_training(model)
                trained.set_progress(at.step // tick * tick / plan.steps)
            try:
                for clean, batch in feed.batches(at.step, own):
                    if at.done or at.step >= plan.steps:
                        break
                    if corruption is not None:
                        batch = corruption(batch, draw)
                        clean = corruption.target(clean, batch)
                    if alone:
                        at.totals.add(engine.take(batch, clean), len(clean))
                    else:
                        size = sizes[at.step % len(sizes)]
                        share = ranks.share(size, (seed << KEY) + at.step)
                        if own is None:
                            batch, clean = parted(batch, share), parted(clean, share)
                        with sharing(share):
                            costs = engine.take(batch, clean)
                        at.totals.add(costs, share.count)
                    at.step += 1
                    if at.step % tick == 0:
                        trained.set_progress(at.step / plan.steps)
                        if plateau is None:
                            at.rate = rates[at.step // tick]
                            engine.set_rate(at.rate)
                        notify(None)
                    judging = at.step % plan.period == 0 or at.step == plan.steps
                    if judging and not evaluated():
                        waited = counted(plan.patience or 0, "evaluation")
                        run.stopped = f"no improvement in {waited}"
                        break
                    if checkpoints is not None and (judging or at.step % tick == 0):
                        keep(checkpoints, checkpoints.due)
                    if ranks.stopped(at.step):
                        raise KeyboardInterrupt
            except KeyboardInterrupt:
                run.stopped = "interrupted"
                if checkpoints is not None and run.history:
                    keep(checkpoints, lambda: True)
                if run.history and run.history[-1]["step"] < at.step:
                    evaluated()  # the steps since the last one may be the best
            else:
                at.done = True
                if checkpoints is not None:
                    keep(checkpoints, checkpoints.file.is_file)
    except KeyboardInterrupt:
        run.stopped = "interrupted"
    trained.set_progress(1.0)
    engine.close()
    for body in bodies(model):
        body.joined = 0
    best = at.best
    if model is not given:
        best = best or {k: whole(v.detach()) for k, v in model.state_dict().items()}
        model = given
        trained = cast("Trainable", model)
        trained.set_progress(1.0)
    if best:
        model.load_state_dict(best)
    if plan.steps == 0:
        run.stopped = "nothing was left to train"
    model.eval()
    run.seconds = at.seconds
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


def bodies(model: nn.Module) -> list[Fusion]:
    """Return the bodies inside a model: one, where it is not made for another use."""
    return [m for m in model.modules() if isinstance(m, Fusion)]
