"""What refold's training loop costs beside a bare hand-written loop of the same network.

    python bench/engine.py [--repeats 9]

Both train the same layers from the same weights with the same fused AdamW on the same batches; the
bare loop does nothing else. Runs are interleaved; the ratio is the median over pairs of the bare
loop's time by refold's, so 1 means that the engine is free and 0.95 that it adds five percent.
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import replace

import numpy as np
import torch
from torch import nn

from refold.assemble import Wishes, assemble
from refold.data.containers import container
from refold.data.schema import Schema
from refold.parts import PartSpec
from refold.spec import ModelSpec
from refold.table import Table
from refold.training.fit import fit
from refold.training.plan import Plan
from refold.types import Batch

CASES = {
    "30-64-8-64-30": (30, (64,), 8, 100_000, 2),
    "784-128-64-12-64-128-784": (784, (128, 64), 12, 60_000, 1),
}
BATCH = 256


def rows_of(width: int, n: int) -> tuple[Schema, Batch]:
    """Normal rows, as refold's own tensors."""
    x = np.random.default_rng(0).normal(size=(n, width))
    table = Table({"x": x}, container("numpy"))
    schema = Schema.fit(table, np.arange(n))
    return schema, schema.encode(table)[0]


def spec_of(schema: Schema, rows: Batch, hidden: tuple[int, ...], code: int) -> ModelSpec:
    """Dense layers alone: the bare network has no linear path beside them either."""
    spec = assemble(schema, rows, Wishes(recipe="dense", latent=code, hidden=hidden)).spec
    return replace(spec, fusion=PartSpec("concat", {"hidden": hidden}))


def bare(network: nn.Sequential, x: torch.Tensor, plan: Plan) -> float:
    """Train with the least a loop can do; return seconds."""
    optimizer = plan.make_optimizers(network)[0][0]
    began = time.perf_counter()
    step = 0
    while step < plan.steps:
        order = torch.randperm(len(x))
        for start in range(0, len(x), BATCH):
            batch = x.index_select(0, order[start : start + BATCH])
            loss = nn.functional.mse_loss(network(batch), batch)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            step += 1
    return time.perf_counter() - began


def network_of(width: int, hidden: tuple[int, ...], code: int) -> nn.Sequential:
    """The same layers as a plain sequence."""
    widths = [width, *hidden, code, *hidden[::-1], width]
    layers: list[nn.Module] = []
    for i in range(len(widths) - 1):
        layers.append(nn.Linear(widths[i], widths[i + 1]))
        if i + 1 not in (len(hidden) + 1, len(widths) - 1):  # neither the code nor the output
            layers.append(nn.ReLU())
    return nn.Sequential(*layers)


def measure(name: str, repeats: int) -> None:
    """Print the median ratio of one case, with its spread."""
    width, hidden, code, n, epochs = CASES[name]
    schema, rows = rows_of(width, n)
    held = rows.rows(slice(0, 1000))
    plan = Plan.choose(n, epochs=epochs, batch_size=BATCH)
    spec = spec_of(schema, rows, hidden, code)
    ratios: list[float] = []
    speeds: list[float] = []
    for _ in range(repeats):
        ours = spec.build(schema)
        began = time.perf_counter()
        fit(ours, rows, held, plan)
        refold_s = time.perf_counter() - began
        bare_s = bare(network_of(width, hidden, code), rows.x["x"], plan)
        ratios.append(bare_s / refold_s)
        speeds.append(n * epochs / refold_s)
    low, middle, high = min(ratios), statistics.median(ratios), max(ratios)
    print(f"{name:28} ratio {middle:.3f} ({low:.3f} to {high:.3f}), "
          f"{statistics.median(speeds):,.0f} rows/s")  # fmt: skip


def main() -> None:
    """Run every case."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=9)
    repeats = parser.parse_args().repeats
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, batch {BATCH}")
    for name in CASES:
        measure(name, repeats)


if __name__ == "__main__":
    main()
