"""What a wide table of numbers and classes costs: refold, a bare loop, and a head per column.

    python bench/mixed.py [--hidden 128] [--batch 256] [--steps 20] [--repeats 5] [--device cuda]

200 columns of numbers and 200 of classes (2 to 1,000 levels, log-uniform), and one network from the
same weights: numbers and embeddings of 8 to a dense layer, a code of 32, and back to 200 means and
a logit per level. All train on the same batches with fused AdamW:

packed   the bare loop over one packed tensor: one table, one output layer, and either a
         cross-entropy per slice of the output or refold's own function, whichever is faster
refold   ``training.fit.fit`` on the model that a spec describes
columns  an embedding, an output layer and a cost for every column

Runs are interleaved. A ratio is the median over runs of another loop's time by refold's: 0.8 means
that refold takes a quarter more. First it is checked that all have the same loss. refold's time
includes two evaluations; what a fit settles of the machine's memory, but for mapped blocks, serves
the other loops too. It takes some three minutes on one core.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import cast

import numpy as np
import pyarrow as pa
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from refold.data.containers import container
from refold.data.schema import Schema
from refold.model import Model
from refold.ops.segments import segment_cross_entropy
from refold.parts import PartSpec
from refold.spec import ModelSpec
from refold.table import Column, Table
from refold.training.fit import fit
from refold.training.plan import Plan
from refold.types import Batch

ROWS, NUMBERS, CLASSES, CODE, WIDTH = 100_000, 200, 200, 32, 8
LR = 2e-3
Loss = Callable[[Tensor, Tensor], Tensor]


def table_of(rows: int) -> tuple[Schema, Batch, tuple[int, ...]]:
    """Random rows as refold's own tensors, and the number of levels of each column of classes."""
    draw = np.random.default_rng(0)
    spread = np.exp(draw.uniform(np.log(2), np.log(1001), CLASSES))
    sizes = tuple(int(n) for n in spread)
    few = np.arange(2000)  # enough to meet every level
    values = {f"n{k:03}": draw.normal(size=len(few)) for k in range(NUMBERS)}
    values |= {f"c{k:03}": few % n for k, n in enumerate(sizes)}
    columns: dict[str, Column] = {k: pa.chunked_array([v]) for k, v in values.items()}
    fields = dict.fromkeys((f"c{k:03}" for k in range(CLASSES)), "categorical")
    schema = Schema.fit(Table(columns, container("numpy")), few, fields)
    numbers = draw.normal(size=(rows, NUMBERS)).astype(np.float32)
    classes = draw.integers(0, sizes, size=(rows, CLASSES))
    names = {len(f.sizes) == sum(f.sizes): k for k, f in schema.fields.items()}
    x = {names[True]: torch.from_numpy(numbers), names[False]: torch.from_numpy(classes)}
    return schema, Batch(x, dict.fromkeys(x)), sizes


def spec_of(schema: Schema, hidden: int) -> ModelSpec:
    """Dense layers alone, each column's cost counting once."""
    numbers, classes = schema.fields
    return ModelSpec(
        latent=PartSpec("plain"),
        size=CODE,
        fusion=PartSpec("concat", {"hidden": (hidden,)}),
        backbones={numbers: PartSpec("flat"), classes: PartSpec("embed", {"width": WIDTH})},
        likelihoods={numbers: PartSpec("mse"), classes: PartSpec("categorical")},
        weights={numbers: (1.0,), classes: (1.0,)},
    )


class Packed(nn.Module):
    """One table, one dense body, one output layer."""

    def __init__(self, sizes: tuple[int, ...], hidden: int) -> None:
        super().__init__()
        self.sizes = sizes
        starts = torch.tensor(sizes).cumsum(0) - torch.tensor(sizes)
        self.offset: Tensor
        self.register_buffer("offset", starts)
        self.table = nn.Parameter(torch.empty(sum(sizes), WIDTH))
        inputs = NUMBERS + CLASSES * WIDTH
        self.down = nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, CODE))
        self.up = nn.Sequential(nn.Linear(CODE, hidden), nn.ReLU())
        self.last = nn.Linear(hidden, NUMBERS + sum(sizes))

    def outputs(self, numbers: Tensor, classes: Tensor) -> Tensor:
        """``[B, numbers + levels]``."""
        at = (classes + self.offset).flatten()
        embedded = self.table.index_select(0, at).view(len(numbers), -1)
        return self.last(self.up(self.down(torch.cat([numbers, embedded], 1))))

    def sliced(self, numbers: Tensor, classes: Tensor) -> Tensor:
        """Mean cost per row, with a cross-entropy per slice of the output."""
        mean, *logits = self.outputs(numbers, classes).split([NUMBERS, *self.sizes], 1)
        costs = [F.mse_loss(mean, numbers, reduction="sum") * 0.5]
        costs += [
            F.cross_entropy(part, column, reduction="sum")
            for part, column in zip(logits, classes.unbind(1), strict=True)
        ]
        return torch.stack(costs).sum() / len(numbers)

    def together(self, numbers: Tensor, classes: Tensor) -> Tensor:
        """Mean cost per row, with refold's function for all columns."""
        mean, logits = self.outputs(numbers, classes).split([NUMBERS, sum(self.sizes)], 1)
        cost = F.mse_loss(mean, numbers, reduction="sum") * 0.5
        return (cost + segment_cross_entropy(logits, classes, self.sizes).sum()) / len(numbers)


class Columns(nn.Module):
    """The same network with layers of its own for every column."""

    def __init__(self, packed: Packed) -> None:
        super().__init__()
        self.tables = nn.ModuleList(
            nn.Embedding.from_pretrained(part, freeze=False)
            for part in packed.table.detach().clone().split(packed.sizes)
        )
        hidden = packed.last.in_features
        self.down, self.up = copy.deepcopy(packed.down), copy.deepcopy(packed.up)
        self.numbers = nn.ModuleList(nn.Linear(hidden, 1) for _ in range(NUMBERS))
        self.classes = nn.ModuleList(nn.Linear(hidden, n) for n in packed.sizes)
        widths = [1] * NUMBERS + list(packed.sizes)
        weights, biases = packed.last.weight.split(widths), packed.last.bias.split(widths)
        heads = cast("list[nn.Linear]", [*self.numbers, *self.classes])
        with torch.no_grad():
            for head, weight, bias in zip(heads, weights, biases, strict=True):
                head.weight.copy_(weight)
                head.bias.copy_(bias)

    def forward(self, numbers: Tensor, classes: Tensor) -> Tensor:
        """Mean cost per row."""
        columns = list(zip(self.tables, classes.unbind(1), strict=True))
        embedded = [table(column) for table, column in columns]
        h = self.up(self.down(torch.cat([numbers, *embedded], 1)))
        costs = [
            F.mse_loss(head(h)[:, 0], column) * 0.5
            for head, column in zip(self.numbers, numbers.unbind(1), strict=True)
        ]
        costs += [
            F.cross_entropy(head(h), column)
            for head, column in zip(self.classes, classes.unbind(1), strict=True)
        ]
        return torch.stack(costs).sum()


def packed_from(model: Model, sizes: tuple[int, ...], hidden: int) -> Packed:
    """Return the bare network with refold's weights; it needs no rows for missing classes."""
    network = Packed(sizes, hidden)
    given = [p.detach() for p in model.parameters()]
    ends = torch.tensor([n + 1 for n in sizes]).cumsum(0)
    known = torch.ones(int(ends[-1]), dtype=torch.bool)
    known[ends - torch.tensor(sizes) - 1] = False
    given[0] = given[0].cpu()[known]
    with torch.no_grad():
        for mine, theirs in zip(network.parameters(), given, strict=True):
            mine.copy_(theirs)
    return network


def bare(network: nn.Module, loss: Loss, rows: Batch, plan: Plan) -> float:
    """Train with the least a loop can do; return seconds."""
    numbers, classes = rows.x.values()
    optimizer = plan.make_optimizers(network)[0][0]
    finish(numbers.device)
    began = time.perf_counter()
    for index in batches(rows, plan):
        cost = loss(numbers.index_select(0, index), classes.index_select(0, index))
        optimizer.zero_grad(set_to_none=True)
        cost.backward()
        del cost
        optimizer.step()
    finish(numbers.device)
    return time.perf_counter() - began


def batches(rows: Batch, plan: Plan) -> Iterator[Tensor]:
    """Positions of the first batches of a permutation."""
    device = next(iter(rows.x.values())).device
    order = torch.randperm(len(rows)).to(device)
    yield from order.split(plan.batch_size)[: plan.steps]


def finish(device: torch.device) -> None:
    """Wait for what was launched."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def measure(hidden: int, batch: int, steps: int, repeats: int, device: str) -> None:
    """Print every loop's speed, and the ratios with their range."""
    schema, rows, sizes = table_of(ROWS)
    ours = spec_of(schema, hidden).build(schema)
    packed = packed_from(ours, sizes, hidden)
    columns = Columns(packed).to(device)
    ours, packed, rows = ours.to(device), packed.to(device), rows.to(device)
    # Held-out rows are a tenth of the rows of all steps, as in a fit; they are judged twice.
    held = rows.rows(slice(0, max(1, steps * batch // 20)))
    plan = replace(Plan.choose(ROWS, batch_size=batch, lr=LR), steps=steps, period=steps)
    check(ours, packed, columns, rows.rows(slice(0, batch)))
    print(f"{CLASSES} columns of {sum(sizes):,} levels, hidden {hidden}, batch {batch}")

    def refold() -> float:
        finish(torch.device(device))
        began = time.perf_counter()
        fit(ours, rows, held, plan)
        finish(torch.device(device))
        return time.perf_counter() - began

    loops: dict[str, Callable[[], float]] = {
        "sliced": lambda: bare(packed, packed.sliced, rows, plan),
        "together": lambda: bare(packed, packed.together, rows, plan),
        "refold": refold,
        "columns": lambda: bare(columns, columns, rows, plan),
    }
    seconds: dict[str, list[float]] = {name: [] for name in loops}
    for repeat in range(repeats + 1):  # the first warms up
        for name, loop in loops.items():
            took = loop()
            if repeat:
                seconds[name].append(took)
    for name, took in seconds.items():
        print(f"{name:10} {steps * batch / statistics.median(took):10,.0f} rows/s")
    best = min(("sliced", "together"), key=lambda name: statistics.median(seconds[name]))
    for name in (best, "columns"):
        ratios = [a / b for a, b in zip(seconds[name], seconds["refold"], strict=True)]
        low, middle, high = min(ratios), statistics.median(ratios), max(ratios)
        print(f"{name} / refold: {middle:.2f} ({low:.2f} to {high:.2f})")


def check(ours: Model, packed: Packed, columns: Columns, some: Batch) -> None:
    """Refuse to compare networks that differ."""
    numbers, classes = some.x.values()
    with torch.no_grad():
        losses = [ours(some).loss, packed.sliced(numbers, classes)]
        losses += [packed.together(numbers, classes), columns(numbers, classes)]
    if not torch.allclose(torch.stack(losses), losses[0], rtol=1e-5):
        raise AssertionError(f"the losses differ: {losses}")


def main() -> None:
    """Read the options and measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {given.device}")
    measure(given.hidden, given.batch, given.steps, given.repeats, given.device)


if __name__ == "__main__":
    main()
