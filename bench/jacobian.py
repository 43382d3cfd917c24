"""What the norm of an encoder's Jacobian costs, and what a model gains by keeping it small.

    python bench/jacobian.py speed [--repeats 9]
    python bench/jacobian.py mnist FOLDER [--seeds 3]

``speed`` times forward and backward of the contractive penalty, in a batch of 128 and on one or two
threads (``OMP_NUM_THREADS``), beside a loop of one backward pass for each number of the code, which
is the same mathematics; runs are interleaved and the ratio is the median over pairs, on one thread
of processor time, which others at work do not count in, else of the clock's. ``mnist``
trains with and without the penalty; FOLDER holds the four IDX files.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

import refold
from engine import rows_of
from mnist import Figures, Mnist, error, flat
from refold.assemble import Wishes, assemble
from refold.data.containers import container
from refold.data.schema import Schema
from refold.data.sources import read
from refold.inference import portions
from refold.model import Model
from refold.parts import PartSpec
from refold.penalties.contractive import evaluating, jacobian_norms
from refold.table import Table
from refold.types import Batch

BATCH = 128
CODE = 64


def dense(width: int, *hidden: int, **body: Any) -> tuple[Model, Batch]:
    """A dense encoder of ``width`` numbers to a code of 64, and a batch."""
    schema, rows = rows_of(width, BATCH)
    fusion = str(PartSpec("concat", {"linear": False, **body}))
    wishes = Wishes(recipe="dense", latent=CODE, hidden=hidden, fusion=fusion)
    return assemble(schema, rows, wishes).spec.build(schema), rows


def conv() -> tuple[Model, Batch]:
    """A convolutional encoder of images of 28 pixels a side to a code of 64, and a batch."""
    x = np.random.default_rng(0).random((BATCH, 28, 28))
    table = Table({"x": x}, container("numpy"))
    schema = Schema.fit(table, np.arange(BATCH), {"x": "image(backbone='conv(channels=(8, 16))')"})
    rows = schema.encode(table)[0]
    wishes = Wishes(recipe="conv", latent=CODE, hidden=())
    return assemble(schema, rows, wishes).spec.build(schema), rows


CASES: dict[str, Callable[[], tuple[Model, Batch]]] = {
    "784-64, one layer": lambda: dense(784),
    "784-256-64": lambda: dense(784, 256),
    "784-256-64, linear path": lambda: dense(784, 256, linear=True),
    "784-256-64, silu": lambda: dense(784, 256, activation="silu"),
    "784-512-256-64": lambda: dense(784, 512, 256),
    "30-64-64": lambda: dense(30, 64),
    "30-64-64-64": lambda: dense(30, 64, 64),
    "conv 8-16, 28x28 to 64": conv,
}


def looped(model: Model, rows: Batch) -> Tensor:
    """One backward pass for each number of the code."""
    (name,) = rows.x
    x = rows.x[name].clone().requires_grad_()
    with evaluating(model), sdpa_kernel(SDPBackend.MATH):
        z = model.encode(Batch({name: x}, rows.observed))[0].z
        total = z.new_zeros(len(z))
        for i in range(z.shape[1]):
            (grad,) = torch.autograd.grad(z[:, i].sum(), x, create_graph=True)
            total = total + grad.square().flatten(1).sum(1)
    return total


def timed(norms: Callable[[], Tensor], model: Model, times: int = 1) -> float:
    """Seconds of the penalty and its gradient, the mean of several times."""
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    began = clock()
    for _ in range(times):
        model.zero_grad(set_to_none=True)
        norms().mean().backward()
    return (clock() - began) / times


def speed(repeats: int) -> None:
    """Print each case's median ratios, with the loop's own median time."""
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, batch {BATCH}")
    for name, build in CASES.items():
        torch.manual_seed(0)
        model, rows = build()
        model.train()
        ways: dict[str, Callable[[], Tensor]] = {
            "exact": lambda m=model, r=rows: jacobian_norms(m, r),
            "hutchinson": lambda m=model, r=rows: jacobian_norms(m, r, method="hutchinson"),
        }
        torch.testing.assert_close(ways["exact"](), looped(model, rows), rtol=1e-3, atol=0)
        ratios: dict[str, list[float]] = {k: [] for k in ways}
        seconds: list[float] = []
        for _ in range(repeats):
            seconds.append(timed(lambda m=model, r=rows: looped(m, r), model))
            for k, way in ways.items():
                times = 20 if seconds[-1] > 20 * timed(way, model) else 1
                ratios[k].append(seconds[-1] / timed(way, model, times))
        said = ", ".join(
            f"{k} {statistics.median(v):.1f} times as fast ({min(v):.1f} to {max(v):.1f})"
            for k, v in ratios.items()
        )
        print(f"{name:26} {said}; loop {1e3 * statistics.median(seconds):.1f} ms", flush=True)


ROWS = 10_000
NOISES = (0.1, 0.2, 0.4)  # deviations added to pixels in [0, 1]
WEIGHTS = (0.0, 0.02)
NEIGHBOURS = 5


def mnist(data: Mnist, seed: int, weight: float) -> Figures:
    """784-256-64 with tied weights, with the penalty at a weight and, at 0, without it."""
    rows = np.random.default_rng(seed).permutation(len(data.train))[:ROWS]
    train, labels, test = flat(data.train)[rows], data.train_labels[rows], flat(data.test)
    ae = refold.Autoencoder(
        CODE,
        hidden=(256,),
        fields={"x": "vector(scale='centred')"},
        fusion="concat(linear=False, activation='silu')",
        tied=True,
        penalties=(f"contractive(weight={weight})",) if weight else (),
        epochs=8,
        patience=8,
        batch_size=250,
        lr=3e-3,
        validation=0.05,
        seed=seed,
    ).fit(train)
    clean = ae.transform(test)
    spread = float(clean.var(0).sum())
    batch = ae.schema_.encode(read(test))[0]
    with torch.no_grad():
        norms = [float(jacobian_norms(ae.model_, b)[:n].sum()) for b, n in portions(batch)]
    found = {"squared error": ae.squared_error(test), "squared norm": sum(norms) / len(test)}
    found["squared norm / variance"] = found["squared norm"] / spread
    near = KNeighborsClassifier(NEIGHBOURS).fit(ae.transform(train), labels)
    line = LogisticRegression(max_iter=300).fit(ae.transform(train), labels)
    draw = np.random.default_rng(seed)
    for deviation in (0.0, *NOISES):
        noisy = test + deviation * draw.standard_normal(test.shape, np.float32)
        codes = ae.transform(noisy)
        moved = float(np.square(codes - clean).sum(1).mean())
        found[f"noise {deviation}: moved / variance"] = moved / spread
        found[f"noise {deviation}: {NEIGHBOURS}-NN error %"] = error(
            data.test_labels, near.predict(codes)
        )
        found[f"noise {deviation}: linear error %"] = error(data.test_labels, line.predict(codes))
    return found


def main() -> None:
    """Run one of the two."""
    parser = argparse.ArgumentParser(description=__doc__)
    tasks = parser.add_subparsers(dest="task", required=True)
    tasks.add_parser("speed").add_argument("--repeats", type=int, default=9)
    trained = tasks.add_parser("mnist")
    trained.add_argument("folder", type=Path)
    trained.add_argument("--seeds", type=int, default=3)
    trained.add_argument("--weights", type=float, nargs="+", default=WEIGHTS)
    given = parser.parse_args()
    if given.task == "speed":
        speed(given.repeats)
        return
    data = Mnist.read(given.folder)
    for weight in given.weights:
        rows: list[Figures] = []
        for seed in range(given.seeds):
            began = time.perf_counter()
            rows.append(mnist(data, seed, weight))
            rows[-1]["seconds"] = time.perf_counter() - began
        print(f"weight {weight}, {given.seeds} seeds: mean (lowest to highest)")
        for name in rows[0]:
            values = [row[name] for row in rows]
            print(f"  {name}: {np.mean(values):.4g} ({min(values):.4g} to {max(values):.4g})")


if __name__ == "__main__":
    main()
