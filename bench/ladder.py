"""A ladder network on MNIST with 100 labels, beside the published error.

    python bench/ladder.py FOLDER [--task labels|step] [--recipe ladder] [--epochs 60] [--seeds 1]

FOLDER holds the four IDX files. ``labels``: 784-1000-500-250-250-250-10 with the noise and costs of
Rasmus et al. 2015 (arXiv:1507.02672), who report 1.06 +- 0.37 % test error after 150 epochs; the
100 labels are ten of each class, drawn by the seed. ``step``: the seconds of a training step beside
those of a bare loop of the same mathematics.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

import refold
from mnist import Labels, Mnist, error
from refold.assemble import Wishes, assemble
from refold.data.schema import Schema
from refold.data.sources import read
from refold.training.fit import Progress, fit
from refold.training.plan import Plan

WIDTHS = (1000, 500, 250, 250, 250)
COSTS = {
    "ladder": "ladder(noise=0.3, costs=(10.0, 0.1))",
    "gamma": "ladder(noise=0.3, costs=(0.0,), top=0.5)",
}
BATCH, KNOWN = 250, 100  # rows of a batch, and rows with a label that join them
INPUT = 1000.0  # weight of the squared error of an image, over its 784 pixels


def chosen(labels: Labels, each: int, seed: int) -> NDArray[np.int64]:
    """Positions of ``each`` rows of every class."""
    draw = np.random.default_rng(seed)
    return np.concatenate(
        [draw.choice(np.flatnonzero(labels == c), each, replace=False) for c in range(10)]
    )


def fitted(data: Mnist, seed: int, recipe: str, epochs: int, precision: str) -> refold.Autoencoder:
    """Train on all images, 100 of which have a label."""
    known = np.full(len(data.train_labels), None, dtype=object)
    at = chosen(data.train_labels, 10, seed)
    known[at] = data.train_labels[at]
    ae = refold.Autoencoder(
        recipe=recipe,
        hidden=WIDTHS,
        fusion=COSTS[recipe],
        fields={"image": "image(likelihood='mse')", "label": "categorical(target=True)"},
        # The label's cost is a mean over the rows that have one, as in the source.
        weights={"image": 2 * INPUT / 784, "label": (BATCH + KNOWN) / KNOWN},
        epochs=epochs,
        patience=epochs,
        batch_size=BATCH,
        labelled=KNOWN,
        validation=0.005,
        precision=precision,
        seed=seed,
    )
    began = time.process_time()

    def shown(progress: Progress) -> None:
        row = progress.row
        if row is not None:
            told = ", ".join(f"{k[6:]} {v:.4f}" for k, v in row.items() if k.startswith("train_"))
            print(f"epoch {row['epoch']:.0f}, {time.process_time() - began:.0f} CPU s: {told}",
                  flush=True)  # fmt: skip

    return ae.fit({"image": data.train, "label": known}, watch=shown)


def labels(data: Mnist, seed: int, recipe: str, epochs: int, precision: str) -> dict[str, float]:
    """Test error with 100 labels."""
    began = time.process_time()
    ae = fitted(data, seed, recipe, epochs, precision)
    seconds = time.process_time() - began
    found = ae.predict({"image": data.test}, "label")["label"]
    return {"test error %": error(data.test_labels, np.asarray(found)), "CPU seconds": seconds}


def step(data: Mnist, precision: str, steps: int = 20, repeats: int = 7) -> None:
    """Print the CPU seconds of a step, and the median ratio of a bare loop's to refold's."""
    known = np.full(2000, None, dtype=object)
    known[:KNOWN] = data.train_labels[:KNOWN]
    table = read({"image": data.train[:2000], "label": known})
    fields = {"image": "image(likelihood='mse')", "label": "categorical(target=True)"}
    schema = Schema.fit(table, np.arange(2000), fields)
    rows, _ = schema.encode(table)
    weights = {"image": 2 * INPUT / 784, "label": (BATCH + KNOWN) / KNOWN}
    wishes = Wishes("ladder", hidden=WIDTHS, fusion=COSTS["ladder"], weights=weights)
    plan = Plan.choose(2000, epochs=steps // 8, batch_size=BATCH, lr=2e-3, optimizer="adam")
    plan = replace(plan, labelled=KNOWN, period=plan.steps)
    half, held = precision == "bfloat16", rows.rows(slice(0, 64))
    ours, ratios = list[float](), list[float]()
    for _ in range(repeats):
        model = assemble(schema, rows, wishes).spec.build(schema)
        began = time.process_time()
        fit(model, rows, held, plan, bfloat16=half)
        between = time.process_time()
        bare(rows.x["image"].flatten(1), rows.x["label"][:KNOWN, 0], plan.steps, half)
        ours.append((between - began) / plan.steps)
        ratios.append((time.process_time() - between) / (between - began))
    print(f"{np.median(ours):.4f} CPU s a step of {BATCH + KNOWN} rows, ratio "
          f"{np.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})")  # fmt: skip


def bare(x: torch.Tensor, y: torch.Tensor, steps: int, half: bool) -> None:
    """Train the same ladder with the least a loop can do, its gradients by autograd."""
    widths = (784, *WIDTHS, 10)
    top = len(widths) - 1
    pairs = list(pairwise(widths))
    down = [torch.randn(o, i).div_(i**0.5).requires_grad_() for i, o in pairs]
    up = [torch.randn(i, o).div_(o**0.5).requires_grad_() for i, o in pairs]
    shift = [torch.zeros(o, requires_grad=True) for o in widths[1:]]
    scale = torch.ones(10, requires_grad=True)
    start = torch.tensor([0.0, 1, 0, 0, 0, 0, 1, 0, 0, 0])[:, None]
    joins = [start.repeat(1, w).requires_grad_() for w in widths]
    running = [torch.zeros(2, w) for w in (*widths[1:], *widths)]
    adam = torch.optim.Adam([*down, *up, *shift, scale, *joins], lr=2e-3, fused=True)

    def normed(h: torch.Tensor, place: int | None) -> tuple[torch.Tensor, ...]:
        var, mean = torch.var_mean(h, 0, correction=0)
        if place is not None:
            with torch.no_grad():
                running[place].lerp_(torch.stack([mean, var]), 0.1)
        std = (var + 1e-10).sqrt()
        return (h - mean) / std, mean, std

    for _ in range(steps):
        at = torch.cat([torch.randint(len(x), (BATCH,)), torch.randperm(KNOWN)])
        clean = x.index_select(0, at)
        noisy, loss = clean + 0.3 * torch.randn_like(clean), torch.zeros(())
        sides, targets = [noisy], [(clean, torch.zeros(()), torch.ones(()))]
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            for i in range(top):
                targets.append(normed(F.linear(clean, down[i]).float(), i))
                z = normed(F.linear(noisy, down[i]).float(), None)[0]
                sides.append(z + 0.3 * torch.randn_like(z))
                clean, noisy = F.relu(targets[-1][0] + shift[i]), sides[-1] + shift[i]
                noisy = noisy * scale if i == top - 1 else F.relu(noisy)
            loss = loss + F.cross_entropy(noisy[BATCH:], y)
            found = noisy.softmax(1)
            for i in range(top, -1, -1):
                u = normed(found if i == top else F.linear(found, up[i]).float(), top + i)[0]
                a = joins[i]
                mean = a[0] * torch.sigmoid(a[1] * u + a[2]) + a[3] * u + a[4]
                kept = a[5] * torch.sigmoid(a[6] * u + a[7]) + a[8] * u + a[9]
                found = (sides[i] - mean) * kept + mean
                target, mean, std = targets[i]
                price = (INPUT, 10.0)[i] if i < 2 else 0.1
                loss = loss + price * F.mse_loss((found - mean) / std, target)
        adam.zero_grad()
        loss.backward()
        adam.step()


def main() -> None:
    """Run one task for every seed and print its figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--task", choices=("labels", "step"), default="labels")
    parser.add_argument("--recipe", choices=tuple(COSTS), default="ladder")
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--seeds", type=int, default=1)
    given = parser.parse_args()
    data = Mnist.read(given.folder)
    if given.task == "step":
        step(data, given.precision)
        return
    for seed in range(given.seeds):
        figures = labels(data, seed, given.recipe, given.epochs, given.precision)
        print(f"seed {seed}:", ", ".join(f"{k} {v:.4g}" for k, v in figures.items()), flush=True)


if __name__ == "__main__":
    main()
