"""What sparse and layer-wise training cost beside plain loops of the same networks.

    python bench/sparse.py [--repeats 9]

A 784-64-784 network with the 16 largest of each row and a quarter of the rows of each unit, in
batches of 512: refold's ``fit`` against (a) a bare loop with the same vectorised operations, and
(b) a loop over samples and units as tutorials write it, fed by a data set that gives one sample at
a time. Then 784-128-64-32-2 layer by layer against bare loops of the same phases. Runs are
interleaved; a ratio is the median over repeats of the other's time by refold's, so above 1 means
that refold is faster.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from engine import rows_of
from refold.assemble import Wishes, assemble
from refold.data.schema import Schema
from refold.model import Model
from refold.ops.topk import keep_top_k, keep_top_rows
from refold.training.fit import fit
from refold.training.plan import Plan
from refold.training.pretrain import fit_layerwise
from refold.types import Batch

ROWS, BATCH, TOP, SHARE = 20_000, 512, 16, 0.25
WIDTHS = (784, 128, 64, 32, 2)


class Vectorised(nn.Module):
    """The two constraints as refold's own operations."""

    def forward(self, h: Tensor) -> Tensor:
        """Constrain ``h`` ``[B, D]``."""
        h = keep_top_k(h, TOP)
        return keep_top_rows(h, max(1, round(SHARE * len(h)))) if self.training else h


class Looped(nn.Module):
    """The two constraints sample by sample and unit by unit."""

    def forward(self, h: Tensor) -> Tensor:
        """Constrain ``h`` ``[B, D]``."""
        mask = torch.zeros_like(h)
        for i in range(len(h)):
            mask[i, h[i].topk(TOP).indices] = 1.0
        h = h * mask
        if not self.training:
            return h
        mask = torch.zeros_like(h)
        for j in range(h.shape[1]):
            mask[h[:, j].topk(max(1, round(SHARE * len(h)))).indices, j] = 1.0
        return h * mask


class Samples(Dataset[tuple[Tensor, Tensor]]):
    """One sample at a time, as input and target."""

    def __init__(self, x: Tensor) -> None:
        self.x = x

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.x[index], self.x[index]


def network(middle: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Linear(784, 64), middle, nn.Linear(64, 784))


def in_memory(net: nn.Module, x: Tensor, plan: Plan) -> None:
    """Train on batches selected by index, with the least a loop can do."""
    optimizer = plan.make_optimizers(net)[0][0]
    steps = 0
    while steps < plan.steps:
        for index in torch.randperm(len(x)).split(BATCH):
            batch = x.index_select(0, index)
            loss = nn.functional.mse_loss(net(batch), batch)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            steps += 1
            if steps == plan.steps:
                break


def by_sample(net: nn.Module, x: Tensor, plan: Plan) -> None:
    """Train on a data set of single samples, with torch's own loader and optimiser."""
    optimizer = torch.optim.Adam(net.parameters(), lr=plan.lr)
    for _ in range(plan.steps // plan.steps_per_epoch):
        for batch, target in DataLoader(Samples(x), BATCH, shuffle=True):
            loss = nn.functional.mse_loss(net(batch), target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


def seconds(job: Callable[[], object]) -> float:
    began = time.perf_counter()
    job()
    return time.perf_counter() - began


def report(name: str, ratios: list[float]) -> None:
    low, middle, high = min(ratios), statistics.median(ratios), max(ratios)
    print(f"{name:58} {middle:.3f} ({low:.3f} to {high:.3f})", flush=True)


def model_of(schema: Schema, rows: Batch, **wishes: object) -> Model:
    return assemble(schema, rows, Wishes(**wishes)).spec.build(schema)  # pyright: ignore


def sparse(schema: Schema, rows: Batch, repeats: int) -> None:
    """Sparse steps against both loops."""
    held, x = rows.rows(slice(0, 500)), rows.x["x"]
    latent = f"lifetime(size=64, fraction={SHARE}, top={TOP}, activation='identity')"
    plan = Plan.choose(len(rows), epochs=5, batch_size=BATCH)
    vectorised: list[float] = []
    looped: list[float] = []
    for _ in range(repeats):
        model = model_of(schema, rows, recipe="wta", latent=latent)
        ours = seconds(lambda: fit(model, rows, held, plan))  # noqa: B023
        bare = seconds(lambda: in_memory(network(Vectorised()), x, plan))
        slow = seconds(lambda: by_sample(network(Looped()), x, plan))
        vectorised.append(bare / ours)
        looped.append(slow / ours)
    report("784-64, top-16, lifetime 25 %: bare loop / refold", vectorised)
    report("784-64, top-16, lifetime 25 %: loop over samples / refold", looped)


def layerwise(schema: Schema, rows: Batch, repeats: int) -> None:
    """Layer-wise training against bare loops of its phases' steps."""
    held, x = rows.rows(slice(0, 500)), rows.x["x"]
    plan = Plan.choose(len(rows), epochs=24, batch_size=BATCH)
    each = round(0.5 * plan.steps / (len(WIDTHS) - 1))
    ratios: list[float] = []
    for _ in range(repeats):
        model = model_of(schema, rows, recipe="stacked", latent=2, hidden=WIDTHS[1:-1])
        ours = seconds(lambda: fit_layerwise(model, rows, held, plan))  # noqa: B023
        bare = seconds(lambda: by_phases(x, plan, each))
        ratios.append(bare / ours)
    report("784-128-64-32-2 layer by layer: bare phases / refold", ratios)


def by_phases(x: Tensor, plan: Plan, each: int) -> None:
    """The same phases by hand: the outer layers frozen, the inner ones not there yet."""
    down = [nn.Linear(a, b) for a, b in pairwise(WIDTHS)]
    up = [nn.Linear(b, a) for a, b in pairwise(WIDTHS)]
    count = len(down)
    for depth in [*range(1, count + 1), 0]:
        inner = depth or count
        layers: list[nn.Module] = []
        for i in range(inner):
            layers += [down[i], nn.ReLU()] if i < count - 1 else [down[i]]
        for i in reversed(range(inner)):
            layers += [up[i], nn.ReLU()] if i else [up[i]]
        for i in range(count):
            learns = i == depth - 1 or not depth
            for layer in (down[i], up[i]):
                layer.requires_grad_(learns)
        steps = each if depth else plan.steps - count * each
        in_memory(nn.Sequential(*layers), x, replace(plan, steps=steps))


def main() -> None:
    """Run every case."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=9)
    repeats = parser.parse_args().repeats
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, batch {BATCH}")
    schema, rows = rows_of(784, ROWS)
    sparse(schema, rows, repeats)
    layerwise(schema, rows, repeats)


if __name__ == "__main__":
    main()
