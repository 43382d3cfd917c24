"""How long, how fast and in what portions to train, chosen from the data where not given."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer, lr_scheduler

from refold.errors import InputError, unknown
from refold.parts import PartSpec
from refold.penalties import Penalty
from refold.wording import counted

# These need a closure, sparse gradients or matrices alone, which no model here gives them.
UNUSABLE = ("lbfgs", "sparseadam", "muon")
OPTIMIZERS: dict[str, type[Optimizer]] = {
    name.lower(): kind
    for name, kind in vars(torch.optim).items()
    if isinstance(kind, type) and issubclass(kind, Optimizer) and kind is not Optimizer
    if name.lower() not in UNUSABLE
}
FUSED = ("adam", "adamw", "sgd", "adagrad")

Schedule = Callable[[Optimizer, int], lr_scheduler.LRScheduler]


def _warm_cosine(optimizer: Optimizer, steps: int) -> lr_scheduler.LRScheduler:
    warm = max(1, steps // 20)
    return lr_scheduler.SequentialLR(
        optimizer,
        [
            lr_scheduler.LinearLR(optimizer, 0.1, 1.0, warm),
            lr_scheduler.CosineAnnealingLR(optimizer, max(1, steps - warm)),
        ],
        [warm],
    )


def _peak(optimizer: Optimizer) -> list[float]:
    return [float(group["lr"]) for group in optimizer.param_groups]


SCHEDULES: dict[str, Schedule] = {
    "cosine": _warm_cosine,
    "constant": lambda o, steps: lr_scheduler.ConstantLR(o, 1.0),
    "linear": lambda o, steps: lr_scheduler.LinearLR(o, 1.0, 0.0, steps),
    "step": lambda o, steps: lr_scheduler.StepLR(o, max(1, steps // 3), 0.1),
    "exponential": lambda o, steps: lr_scheduler.ExponentialLR(o, 0.01 ** (1 / steps)),
    "onecycle": lambda o, steps: lr_scheduler.OneCycleLR(
        o, _peak(o), total_steps=steps + 1, cycle_momentum=False
    ),
    "cyclic": lambda o, steps: lr_scheduler.CyclicLR(
        o, [p / 10 for p in _peak(o)], _peak(o), max(1, steps // 16), cycle_momentum=False
    ),
    "plateau": lambda o, steps: lr_scheduler.ConstantLR(o, 1.0),
}


@dataclass(frozen=True)
class Plan:
    """Lengths and rates of one training run.

    ``steps`` in total; an evaluation every ``period`` steps; ``patience`` evaluations without an
    improvement end the run (None: never). An improvement is one by more than the share
    ``min_delta`` of the loss.
    """

    batch_size: int
    steps: int
    period: int
    steps_per_epoch: int
    lr: float
    optimizer: PartSpec
    schedule: str
    patience: int | None
    min_delta: float = 1e-5
    labelled: int = 0
    """Rows with a target, of which few are known, that join every batch."""
    last: bool = False
    """Whether the weights of the last step are kept, and not those that did best on held-out rows:
    these then choose nothing, and score as any new rows would."""
    solved: bool = False
    """Whether the closed form is the optimum, so that there are no steps to take."""

    @classmethod
    def choose(
        cls,
        rows: int,
        *,
        epochs: int | None = None,
        batch_size: int | None = None,
        lr: float | None = None,
        optimizer: str = "adamw",
        schedule: str | None = None,
        patience: int | None = None,
        min_delta: float = 1e-5,
        labelled: int | None = None,
        last: bool = False,
    ) -> Plan:
        """Fill in what was not given for ``rows`` training rows.

        A batch is about a fiftieth of the rows, a power of two between 16 and 256. The budget is
        10,000 steps at 60,000 rows and grows with the fourth root of the rows, so that a small
        table is seen often and a large one at least three times.
        """
        batch = batch_size or min(
            256, max(16, 2 ** ((rows // 50).bit_length() - 1)) if rows else 16
        )
        # A last row alone joins the batch before it.
        per_epoch = max(1, rows // batch if rows % batch == 1 else -(-rows // batch))
        budget = int(10_000 * (rows / 60_000) ** 0.25)
        count = max(3, round(budget / per_epoch)) if epochs is None else epochs
        steps = count * per_epoch
        # Whole epochs between evaluations, at most some sixty of them in a run, or a dozen where
        # they decide nothing.
        period = per_epoch * max(1, round(count / (12 if last else 60)))
        evaluations = -(-steps // period) if period else 0
        given = PartSpec.parse(optimizer)
        if given.name not in OPTIMIZERS:
            raise unknown("optimizer", given.name, OPTIMIZERS)
        if schedule is not None and schedule not in SCHEDULES:
            raise unknown("schedule", schedule, SCHEDULES)
        return cls(
            batch, steps, period, per_epoch, 2e-3 if lr is None else lr, given,
            schedule or "cosine",
            patience if patience is not None else max(5, evaluations // 4),
            min_delta, labelled or 0, last,
        )  # fmt: skip

    def without_steps(self) -> Plan:
        """Return the plan of a model that is solved in closed form."""
        return dataclasses.replace(self, steps=0, solved=True)

    def sentence(self) -> str:
        """Say it in words."""
        if self.steps == 0:
            return "solved in closed form"
        return (
            f"up to {counted(self.steps / self.steps_per_epoch, 'epoch')} of batches of "
            f"{self.batch_size}, {self.optimizer.name} at {self.lr:g}, {self.schedule} schedule"
        )

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {**dataclasses.asdict(self), "optimizer": str(self.optimizer)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Plan:
        """Rebuild from :meth:`to_json`."""
        given: dict[str, Any] = {**values, "optimizer": PartSpec.parse(values["optimizer"])}
        return cls(**given)

    def make_optimizers(self, model: nn.Module) -> list[tuple[Optimizer, float]]:
        """Build the optimisers, each with the ratio of its learning rate to the plan's.

        The first is the model's; penalties with networks that learn by a rule or rate of their own
        follow.
        """
        own = [p for p in model.modules() if isinstance(p, Penalty) and (p.optimizer or p.lr)]
        apart = {id(w) for p in own for w in p.parameters()}
        main = [w for w in model.parameters() if w.requires_grad and id(w) not in apart]
        made = [(self._optimizer(self.optimizer, main, self.lr), 1.0)] if main else []
        for penalty in own:
            weights = [w for w in penalty.parameters() if w.requires_grad]
            spec = PartSpec.parse(penalty.optimizer) if penalty.optimizer else self.optimizer
            rate = penalty.lr or self.lr
            if weights:
                made.append((self._optimizer(spec, weights, rate), rate / self.lr))
        return made

    def make_optimizer(self, parameters: list[nn.Parameter]) -> Optimizer:
        """Build the model's optimiser for other parameters that stand for its own."""
        return self._optimizer(self.optimizer, parameters, self.lr)

    def _optimizer(self, spec: PartSpec, parameters: list[nn.Parameter], lr: float) -> Optimizer:
        """Build one optimiser, fused where torch has a fused kernel for it."""
        if spec.name not in OPTIMIZERS:
            raise unknown("optimizer", spec.name, OPTIMIZERS)
        options: dict[str, Any] = {"lr": lr, **spec.options}
        known = list(inspect.signature(OPTIMIZERS[spec.name]).parameters)[2:]
        for option in spec.options:
            if option not in known:
                raise unknown(f"option of optimizer '{spec.name}'", option, known)
        if spec.name in FUSED:
            options.setdefault("fused", True)
        if spec.name == "adamw":
            options.setdefault("weight_decay", 1e-4)
        try:
            return OPTIMIZERS[spec.name](parameters, **options)
        except (TypeError, ValueError) as error:
            raise InputError(f"the optimizer '{spec}' cannot be made: {error}") from error

    def make_plateau(self) -> lr_scheduler.ReduceLROnPlateau | None:
        """Build what lowers the rate on a plateau, well before patience ends; None: not asked.

        The rate is that of the stand-in optimiser it holds.
        """
        if self.schedule != "plateau":
            return None
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=self.lr)
        waits = 5 if self.patience is None else max(1, self.patience // 3)
        return lr_scheduler.ReduceLROnPlateau(
            optimizer, patience=waits, threshold=0.0, threshold_mode="abs"
        )

    @property
    def tick(self) -> int:
        """Steps between two changes of the learning rate: it has about a hundred in a run."""
        return max(1, self.steps // 100)

    def rates(self) -> list[float]:
        """Learning rate of every tick, read off torch's own schedule for a stand-in optimiser.

        A list costs nothing in the loop, where a scheduler would wrap the optimiser's step.
        """
        ticks = self.steps // self.tick
        stand_in = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=self.lr)
        schedule = SCHEDULES[self.schedule](stand_in, max(1, ticks))
        rates = [float(stand_in.param_groups[0]["lr"])]
        for _ in range(ticks):
            stand_in.step()
            schedule.step()
            rates.append(float(stand_in.param_groups[0]["lr"]))
        return rates
