"""A step recorded once and replayed: the same kernels, with nothing between them."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, final

import torch
from torch import Tensor, nn

from refold.errors import InputWarning
from refold.fusion import Lateral
from refold.model import Model
from refold.recording.program import program
from refold.recording.recording import closed
from refold.recording.tape import NotReplayable, Ref, Tape, record
from refold.training.plan import Plan
from refold.training.steps.base import Step
from refold.training.steps.eager import Eager, forget_gradients
from refold.training.steps.flat import ELEMENTWISE, Flat
from refold.training.steps.recorded import NEVER, TRUSTED, Recorded, State, stage_of
from refold.types import Batch, Costs
from refold.warmup import ramp

OFTEN = 20  # steps with the same costs, from which a recording of them pays
COMMON = 20  # batches of a further shape, from which a recording of one pays
CHANGED = (
    "a part of the model does something else than when its steps were recorded, so up to {} steps "
    "may have been taken without what has changed; the others are taken plainly; keep what a part "
    "remembers in tensors, and fit again"
)
BUSY = (nn.Conv1d, nn.Conv2d, nn.ConvTranspose2d, nn.RNNBase)
WORTH = 2e10  # floating-point operations of a step; where there are more, what is saved is nothing


@final
class Replay(Step):
    """Records what a step calls below autograd, and from then on calls just that.

    Nothing looks up layers, builds a graph or allocates, and parameters, gradients and moments are
    one vector each: of a network of a few thousand parameters that takes away half of a step's
    time. Costs and gradients are those of :class:`Eager`, because the kernels are the same. A batch
    of another shape is recorded too, once it has come often; a recording is compared with a plain
    step on the next such batch before it is used, and where they differ, because something outside
    of torch had a say, it never is. What is in use is compared again at its 64th use, its 512th and
    so on, and at the last step of the plan; where it no longer is what the model does, that is
    said, and the rest is taken plainly. A model that cannot be recorded is trained by
    :class:`Eager`, and so is one from the first batch on that leaves a parameter without a
    gradient: an optimiser of many parameters does not move that one, not even by its moments.
    """

    def __init__(
        self, model: nn.Module, plan: Plan, device: torch.device, *, bfloat16: bool = False
    ) -> None:
        forget_gradients(model)
        self.model, self.plan = model, plan
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.eager = Eager(model, plan, device, bfloat16=bfloat16)
        self.rate = plan.lr
        self.flat: Flat | None = None
        self.kept: Mapping[str, Tensor] = {}
        self.recorded: dict[tuple[Any, ...], Recorded | None] = {}
        self.growing: list[Any] = [m for m in model.modules() if getattr(m, "warmup", 0.0) > 0]
        self.grown: list[float] = []
        self.given_up, self.taken = False, 0
        self.before: dict[str, str] = {}  # by batches' shapes: how far a run taken up had come
        self.met: dict[tuple[Any, ...], int] = {}  # how many batches of a shape there were
        self.met_before: dict[str, int] = {}

    def take(self, batch: Batch, clean: Batch) -> Costs:
        """Replay on this batch, or record it."""
        if self.given_up:
            return self.eager.take(batch, clean)
        self.taken += 1
        rows = tensors(clean) if batch is clean else tensors(clean) + tensors(batch)
        # What is the same tensor twice is so in every batch of a key: it is one to the tape.
        same = [next(i for i, other in enumerate(rows) if other is t) for t in rows]
        key = (*(None if t is None else (t.shape, t.dtype) for t in rows), *same)
        there = [t for t in rows if t is not None]
        found = self._known(key)
        if self.before:
            found = self._caught_up(batch, clean, there, key)
        if key not in self.met:
            self.met[key] = self.met_before.pop(repr(key), 0)
        self.met[key] += 1
        if found is None:
            seldom = self.flat is not None and (self._seldom() or self.met[key] < COMMON)
            plainly = key in self.recorded or seldom
            costs = (
                self._plainly(batch, clean) if plainly else self._record(batch, clean, there, key)
            )
        elif found.trusted is None or found.use() or self.taken == self.plan.steps:
            costs = self._compared(found, batch, clean, there, key)
        else:
            for own, given in zip(found.inputs, there, strict=True):
                own.copy_(given)
            with torch.inference_mode():
                found.run()
            costs = found.costs
        if found is not None and found.trusted is False:
            self.recorded[key] = None
        if self.flat is not None:
            self.flat.step()
        return costs

    def _known(self, key: tuple[Any, ...]) -> Recorded | None:
        """Return what was recorded; costs that have grown since are recorded anew."""
        grown = [ramp(m.progress, m.warmup) for m in self.growing]
        if grown != self.grown:
            self.grown = grown
            self._forget_recordings()
        return self.recorded.get(key)

    def _forget_recordings(self) -> None:
        """Keep of what was recorded that some cannot be."""
        self.recorded = {k: None for k, r in self.recorded.items() if r is None}
        self.before = {k: stage for k, stage in self.before.items() if stage == NEVER}

    def _caught_up(
        self, batch: Batch, clean: Batch, rows: Sequence[Tensor], key: tuple[Any, ...]
    ) -> Recorded | None:
        """Record what had been when the run was cut off: a program rounds as it does, each time."""
        stage = self.before.pop(repr(key), None)
        if stage == NEVER:
            self.recorded[key] = None
            if self.flat is None:
                self._flatten()
        elif stage is not None:
            state = self._state()
            self._record(batch, clean, rows, key)
            state.restore(self._places())
            found = self.recorded.get(key)
            if stage == TRUSTED and found is not None:
                found.trusted = True  # as it was: other rows might round to something else
        return self.recorded.get(key)

    def _seldom(self) -> bool:
        """Whether costs will have grown again before a recording of them has paid."""
        return any(share < 1 for share in self.grown) and self.plan.tick < OFTEN

    def _record(
        self, batch: Batch, clean: Batch, rows: Sequence[Tensor], key: tuple[Any, ...]
    ) -> Costs:
        """Take gradients with a tape; a model of which not all can be had is left to others."""
        shown: Costs = {}
        before = self._state()

        def work() -> list[Tensor | None]:
            costs, gradients = self._pass(batch, clean)
            shown.update(costs)
            return [*gradients, *(v for v, _ in costs.values())]

        try:
            tape, results = record(work)
            if any(r is None for r in results):
                raise NotReplayable("a parameter without a gradient")
        except NotReplayable:
            before.restore(self._places())
            self.recorded[key] = None
            if self.flat is not None:
                return self._plainly(batch, clean)
            self._give_up()
            return self.eager.take(batch, clean)
        if self.flat is None:
            self._flatten()
        self.recorded[key] = self._built(tape, results, shown, rows)
        assert self.flat is not None
        for own, result in zip(self.flat.gradients, results, strict=False):
            assert result is not None
            own.copy_(tape.tensors[result.number])
        return {k: (v.detach(), f) for k, (v, f) in shown.items()}

    def _give_up(self) -> None:
        """Leave this and all further steps to the plain way, with what is remembered."""
        kept = self.kept if self.flat is None else self.flat.state()
        if self.flat is not None:
            self.flat.close()
            self.flat, self.recorded = None, {}
        if kept:
            self.eager.restore({k: v.clone() for k, v in kept.items()})  # a number may be shared
        self.eager.set_rate(self.rate)
        self.given_up = True

    def _pass(self, batch: Batch, clean: Batch) -> tuple[Costs, list[Tensor | None]]:
        """Costs, and the gradient of every parameter, by autograd."""
        with self.eager.autocast:
            costs: Costs = self.model(batch, clean).costs
        reached = [cost for cost in costs.values() if cost[0].requires_grad]
        values, factors = zip(*reached, strict=True)
        seeds = tuple(map(self.eager.seed_of, factors))
        gradients = torch.autograd.grad(values, self.parameters, seeds, allow_unused=True)
        return costs, list(gradients)

    def _plainly(self, batch: Batch, clean: Batch) -> Costs:
        """Take gradients by autograd, into the place where the step expects them.

        Where a parameter has none, all of the step is taken, and no further one here.
        """
        assert self.flat is not None
        costs, gradients = self._pass(batch, clean)
        if any(gradient is None for gradient in gradients):
            self._give_up()
            for p, gradient in zip(self.parameters, gradients, strict=True):
                p.grad = gradient
            self.eager.move()
        else:
            for own, gradient in zip(self.flat.gradients, gradients, strict=True):
                assert gradient is not None
                own.copy_(gradient)
        return {k: (v.detach(), f) for k, (v, f) in costs.items()}

    def _flatten(self) -> None:
        """Put the parameters side by side, and what an optimiser remembered of them."""
        self.flat = Flat(self.parameters, self.plan)
        if self.kept:
            self.flat.restore(self.kept)
        self.flat.set_rate(self.rate)
        self.flat.show_gradients()

    def _built(
        self, tape: Tape, results: Sequence[Ref | None], costs: Costs, rows: Sequence[Tensor]
    ) -> Recorded | None:
        """Turn a tape into a program on the flat parameters."""
        assert self.flat is not None
        if len({tape.ref(t).number for t in rows}) < len(set(map(id, rows))):
            return None  # two lie in one place, which those of the next batch may not
        inputs = [torch.empty_like(t) for t in rows]
        places = {tape.ref(t).number: own for t, own in zip(rows, inputs, strict=True)}
        places |= {
            tape.ref(p).number: view
            for p, view in zip(self.parameters, self.flat.views, strict=True)
        }
        targets = [*self.flat.gradients, *(None for _ in costs)]
        try:
            run, found = program(tape, places, results, targets)
        except NotReplayable:
            return None
        kept = zip(costs.items(), found[len(found) - len(costs) :], strict=True)
        return Recorded(inputs, run, {name: (value, f) for (name, (_, f)), value in kept})

    def _compared(
        self,
        found: Recorded,
        batch: Batch,
        clean: Batch,
        rows: Sequence[Tensor],
        key: tuple[Any, ...],
    ) -> Costs:
        """Take gradients by autograd and then by the program, and see whether they agree.

        Where a recording that is in use does not, one that is made now tells whether the step has
        changed: it rounds as the first does. If not, all is as if nothing had been compared.
        """
        before = self._state()
        costs = self._plainly(batch, clean)
        if self.given_up:
            return costs
        plain = self._state(costs)
        mine = self._replayed(found, rows, before)
        agree = mine is not None and plain.close(mine)
        if found.trusted and mine is not None:
            if not agree:
                before.restore(self._places())
                self._record(batch, clean, rows, key)
                anew = self.recorded.get(key)
                made = None if anew is None else self._replayed(anew, rows, before)
                agree = made is not None and made.close(mine)
            if agree:
                self.recorded[key] = found
                mine.restore(self._places())
                return found.costs
            warnings.warn(CHANGED.format(found.used), InputWarning, stacklevel=2)
            self.recorded = dict.fromkeys(self.recorded)
        found.trusted = found.trusted is None and agree
        plain.restore(self._places())
        return costs

    def _replayed(self, found: Recorded, rows: Sequence[Tensor], before: State) -> State | None:
        """Run a recording from a state; return what it leaves, or None where it cannot be run."""
        before.restore(self._places())
        for own, given in zip(found.inputs, rows, strict=True):
            own.copy_(given)
        try:
            with torch.inference_mode():
                found.run()
        except RuntimeError:  # a kernel that does something else where no gradient is asked for
            return None
        return self._state(found.costs)

    def _places(self) -> list[Tensor]:
        """Where a step leaves something beside its costs."""
        gradients = () if self.flat is None else self.flat.gradients
        return [*self.model.buffers(), *gradients]

    def _state(self, costs: Costs | None = None) -> State:
        """Copy what a step changes, and its costs."""
        return State.of([*self._places(), *(v for v, _ in (costs or {}).values())])

    def set_format(self, *, bfloat16: bool) -> None:
        """Round or not from now on: what was recorded serves no more where that changes."""
        if bfloat16 != isinstance(self.eager.autocast, torch.autocast):
            self._forget_recordings()
        self.eager.set_format(bfloat16=bfloat16)

    def set_rate(self, rate: float) -> None:
        """Set the learning rate."""
        self.rate = rate
        self.eager.set_rate(rate)
        if self.flat is not None:
            self.flat.set_rate(rate)

    def state(self) -> dict[str, Tensor]:
        """Return what the optimiser remembers, parameter by parameter as :class:`Eager` does."""
        return self.eager.state() if self.flat is None else self.flat.state()

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Put it back, here or once the parameters lie side by side."""
        self.kept = state
        self.eager.restore(state)
        if self.flat is not None:
            self.flat.restore(state)

    def remembered(self) -> dict[str, Any]:
        """Return how far recording has come: which steps round as a program does."""
        stages = {repr(k): stage_of(r) for k, r in self.recorded.items()}
        met = self.met_before | {repr(k): n for k, n in self.met.items()}
        counted = {"given_up": self.given_up, "taken": self.taken, "met": met}
        return {**counted, "grown": self.grown, "stages": self.before | stages}

    def remember(self, values: Mapping[str, Any]) -> None:
        """Have each step be taken as it would have been."""
        self.given_up, self.taken = values["given_up"], values["taken"]
        self.met, self.met_before = {}, dict(values["met"])
        self.grown = list(values["grown"])
        self.before = dict(values["stages"])

    def forget(self, name: str, rows: Tensor) -> None:
        """Zero the moments of rows of one parameter."""
        if self.flat is None:
            self.eager.forget(name, rows)
        else:
            self.flat.forget(self.model.get_parameter(name), rows)

    def close(self) -> None:
        """Give parameters memory of their own again."""
        if self.flat is not None:
            self.flat.close()
        forget_gradients(self.model)


def suits(model: nn.Module, plan: Plan, device: torch.device) -> bool:
    """Whether a model's step is small, and the same from the first to the last.

    Bodies that count their steps change what is called, and parts from outside of refold may;
    a penalty with networks of its own has another optimiser; convolutions and cells do too much for
    the rest to matter; parameters with gaps between their numbers cannot lie side by side.
    """
    if not isinstance(model, Model) or device.type != "cpu":
        return False
    busy = any(isinstance(m, BUSY) for m in model.modules())
    apart = any(True for penalty in model.penalties for _ in penalty.parameters())
    operations = 6 * plan.batch_size * sum(p.numel() for p in model.parameters())
    counting = isinstance(model.fusion, Lateral) or model.fusion.constrained
    simple = plan.optimizer.name in ELEMENTWISE and operations < WORTH
    dense = all(p.untyped_storage().nbytes() == p.numel() * p.itemsize for p in model.parameters())
    return simple and dense and closed(model) and not (busy or apart or counting)


def tensors(batch: Batch) -> list[Tensor | None]:
    """Every tensor of a batch, in one order."""
    known = batch.known or {}
    return [*batch.x.values(), *batch.observed.values(), *known.values()]
