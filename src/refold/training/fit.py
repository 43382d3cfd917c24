"""The training loop: one function, read top to bottom."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from refold.data.corruptions import Corruption
from refold.data.feed import Feed, Memory, shuffling
from refold.errors import InputError
from refold.fusion import Fusion
from refold.latents import Latent, readings
from refold.likelihoods import Likelihood
from refold.model import Model
from refold.ops.ranks import sharing, whole
from refold.training.balance import Balancer
from refold.training.checkpoint import (
    Checkpoints,
    Kept,
    Remembering,
    digest,
    generators,
    memories,
    put_back,
    remember,
    set_generators,
    tensors_of,
)
from refold.training.checks import first_broken_layer, gradient_norms
from refold.training.machine import fitting_threads, keeping_memory
from refold.training.plan import Plan
from refold.training.precision import ROWS, Caution
from refold.training.ranks import across, join, parted
from refold.training.revive import revive
from refold.training.steps import Eager, Step, choose
from refold.training.totals import Row, Totals, merged
from refold.types import Batch, Code, Costs

KEY = 48  # bits of the number of a step, above which a seed stands
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
    rates, tick = plan.rates(), plan.tick
    plateau, rate = plan.make_plateau(), rates[0]
    run, began, step, waited = Run(), time.perf_counter(), 0, 0
    engine.set_rate(rate)
    best: dict[str, Tensor] = {}
    anchor = 0.0  # the loss from which patience counts: small improvements add up
    lowest = 0.0  # that of the best weights
    totals, done = Totals(), False
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
        fitted, totals = totals.means(ranks), Totals()
        row |= {f"train_{k}": v for k, v in fitted.items()}
        held, figures = evaluate(model, judged, corruption, seed, judged_inputs, portion)
        row |= {f"valid_{k}": v for k, v in held.items()} | figures
        ranks.let_go(model)
        weights = trained.weights()
        row |= {f"weight_{k}": w for k, w in weights.items() if len(weights) > 1}
        row |= {f"grad_{k}": v for k, v in gradient_norms(model).items()}
        row["seconds"] = time.perf_counter() - began
        refuse_nan(row, model, judged)
        if caution is not None and caution.low:
            few = judged.rows(slice(0, ROWS))
            shown = None if judged_inputs is None else judged_inputs.rows(slice(0, ROWS))
            full = evaluate(model, few, corruption, seed, shown, portion)[0]["loss"]
            with torch.autocast(device.type, torch.bfloat16):
                low = evaluate(model, few, corruption, seed, shown, portion)[0]["loss"]
            engine.set_format(bfloat16=caution.look(step, full, low))
        figure = row["valid_loss"]
        if balancer is not None:
            figure = row["objective"] = balancer.judge(held)
        (figure,) = ranks.sums([figure if ranks.first else 0.0])  # so that all decide alike
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
            best = {k: whole(v.detach()).clone() for k, v in model.state_dict().items()}
        if step and isinstance(model, Model):
            revive(model, feed.sample(), engine.forget, shuffling(seed, step))
        if plateau is not None:
            plateau.step(figure)
            rate = plateau.optimizer.param_groups[0]["lr"]
            engine.set_rate(rate)
        notify(row)
        return plan.last or plan.patience is None or waited < plan.patience

    def stand() -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Return where the run stands, as plain values and tensors."""
        every = merged(ranks.gathered(totals))
        values: dict[str, Any] = {
            "step": step, "rate": rate, "anchor": anchor, "lowest": lowest, "waited": waited,
            "history": run.history, "best": run.history.index(run.best), "done": done,
            "stopped": run.stopped, "seconds": time.perf_counter() - began,
            "plateau": None if plateau is None else plateau.state_dict(),
            "balancer": None if balancer is None else balancer.remembered(),
            "caution": None if caution is None else vars(caution),
            "step_by": engine.remembered() if isinstance(engine, Remembering) else None,
            "modules": memories(model), "totals": every.remembered(),
        }  # fmt: skip
        parts = {
            "model": tensors_of(model), "best": best, "engine": engine.state(),
            "totals": every.values, "random": generators(draw),
        }  # fmt: skip
        return values, {f"{p}/{k}": v for p, each in parts.items() for k, v in each.items()}

    def go_on(kept: Kept) -> None:
        """Take the run up where it stood."""
        nonlocal anchor, began, best, done, lowest, rate, step, waited
        known = kept.values
        step, rate, anchor = known["step"], known["rate"], known["anchor"]
        lowest, waited, done = known["lowest"], known["waited"], known["done"]
        run.history, run.stopped = known["history"], known["stopped"]
        run.best, began = run.history[known["best"]], began - known["seconds"]
        put_back(model, kept.part("model"))
        best = {k: v.to(device) for k, v in kept.part("best").items()}
        engine.restore({k: v.to(device) for k, v in kept.part("engine").items()})
        totals.remember(known["totals"], {k: v.to(device) for k, v in kept.part("totals").items()})
        if not ranks.first:
            totals.clear()  # the first process has them for all
        if plateau is not None:
            plateau.load_state_dict(known["plateau"])
            plateau.optimizer.param_groups[0]["lr"] = rate
        if balancer is not None:
            balancer.remember(known["balancer"])
        if caution is not None:
            vars(caution).update(known["caution"] or {"low": False})
            engine.set_format(bfloat16=caution.low)
        remember(model, known["modules"])
        if isinstance(engine, Remembering) and known["step_by"] is not None:
            engine.remember(known["step_by"])
        engine.set_rate(rate)
        to_training(model)
        trained.set_progress(step // tick * tick / plan.steps)
        set_generators(draw, kept.part("random"))

    def begun() -> Kept | None:
        """Return where the run is to go on from; None where it begins."""
        if checkpoints is None:
            return None
        told = partial(digest, feed.sample(), held_out, inputs, held_inputs)
        return ranks.agreed(partial(checkpoints.begin, told))

    def keep(checkpoints: Checkpoints, wanted: Callable[[], bool]) -> None:
        """Have the first process write a checkpoint where it wants to."""
        if ranks.agreed(wanted):
            values, tensors = stand()
            if ranks.first:
                checkpoints.write(values, tensors)

    def notify(row: Row | None) -> None:
        if watch is not None and ranks.first:
            speed = step * plan.batch_size / max(1e-9, time.perf_counter() - began)
            watch(Progress(step, plan.steps, speed, row))

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
                go_on(kept)
            try:
                for clean, batch in feed.batches(step):
                    if done or step >= plan.steps:
                        break
                    if corruption is not None:
                        batch = corruption(batch, draw)
                        clean = corruption.target(clean, batch)
                    if alone:
                        totals.add(engine.take(batch, clean), len(clean))
                    else:
                        share = ranks.share(len(clean), (seed << KEY) + step)
                        with sharing(share):
                            costs = engine.take(parted(batch, share), parted(clean, share))
                        totals.add(costs, share.count)
                    step += 1
                    if step % tick == 0:
                        trained.set_progress(step / plan.steps)
                        if plateau is None:
                            rate = rates[step // tick]
                            engine.set_rate(rate)
                        notify(None)
                    judging = step % plan.period == 0 or step == plan.steps
                    if judging and not evaluated():
                        run.stopped = f"no improvement in {plan.patience} evaluations"
                        break
                    if checkpoints is not None and (judging or step % tick == 0):
                        keep(checkpoints, checkpoints.due)
                    if ranks.stopped(step):
                        raise KeyboardInterrupt
            except KeyboardInterrupt:
                run.stopped = "interrupted"
                if checkpoints is not None and run.history:
                    keep(checkpoints, lambda: True)
                if run.history and run.history[-1]["step"] < step:
                    evaluated()  # the steps since the last one may be the best
            else:
                done = True
                if checkpoints is not None:
                    keep(checkpoints, checkpoints.file.is_file)
    except KeyboardInterrupt:
        run.stopped = "interrupted"
    trained.set_progress(1.0)
    engine.close()
    for body in bodies(model):
        body.joined = 0
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
    """Rows in one forward pass of the evaluation of a model with outputs or a code that wide."""
    width = sum(m.width for m in model.modules() if isinstance(m, Likelihood | Latent))
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
