"""A masked autoencoder on MNIST: what its codes know of labels, and what hiding saves.

    python bench/masked.py FOLDER [probe|cost] [--rows 30000] [--epochs 10] [--seed 0]

FOLDER holds the four IDX files. ``probe`` trains with three quarters of the 4x4 patches hidden, on
the first ROWS training images and no label; then a logistic regression on standardised codes of
whole images is fitted with 1,000 labels, with 10,000 and with all 60,000, beside the same encoder
untrained and the pixels themselves: same images, same labels, each with the best of three
strengths of regularisation, chosen on a fifth of the labelled images. ``cost`` measures the
encoder forward and back on 256 images, three quarters hidden against none, in turns.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

import refold
from mnist import Images, Labels, Mnist, flat
from refold.backbones import Transformer
from refold.backbones.base import Geometry
from refold.data.corruptions import Mask
from refold.types import Batch

CODE = 128
LABELLED = (1000, 10_000, 60_000)
STRENGTHS = (1e-3, 1e-2, 1e-1)
SPINE = "transformer(decoder_layers=0)"  # attention on the way back costs most of a step
FIELD = {"image": f"image(likelihood='bernoulli', backbone='{SPINE}')"}


def fitted(data: Mnist, rows: int, epochs: int, seed: int) -> refold.Autoencoder:
    return refold.Autoencoder(
        CODE,
        recipe="masked",
        fields=FIELD,
        epochs=epochs,
        batch_size=64,
        lr=1e-3,
        validation=0.02,
        seed=seed,
    ).fit(data.train[:rows])


def classifier(x: Images, y: Labels, strength: float) -> LogisticRegression:
    return LogisticRegression(C=strength, max_iter=100, tol=1e-3).fit(x, y)


def accuracy(train: Images, test: Images, data: Mnist, count: int) -> float:
    """Percent of test images that a logistic regression on ``count`` labelled rows gets right."""
    scale = StandardScaler().fit(train[:count])
    x, y = np.float32(scale.transform(train[:count])), data.train_labels[:count]
    # The strength is chosen on at most 10,000, which settles it.
    some = min(count, 10_000)
    cut = some * 4 // 5
    best = max(
        STRENGTHS, key=lambda c: classifier(x[:cut], y[:cut], c).score(x[cut:some], y[cut:some])
    )
    found = classifier(x, y, best).score(np.float32(scale.transform(test)), data.test_labels)
    return 100 * float(found)


def probe(data: Mnist, rows: int, epochs: int, seed: int) -> None:
    began = time.process_time()
    trained = fitted(data, rows, epochs, seed)
    print(f"trained on {rows} images, {epochs} epochs: {time.process_time() - began:.0f} CPU s")
    untrained = fitted(data, rows, 0, seed)
    shown = {
        "codes, masked autoencoder": [trained.transform(x) for x in (data.train, data.test)],
        "codes, untrained": [untrained.transform(x) for x in (data.train, data.test)],
        "pixels": [flat(data.train), flat(data.test)],
    }
    for count in LABELLED:
        for name, (train, test) in shown.items():
            found = accuracy(train, test, data, count)
            print(f"  {count} labels, {name}: {found:.2f} % right", flush=True)


def cost(rows: int = 256, turns: int = 15) -> None:
    """Median time of the encoder, forward and back, with 75 % hidden and with nothing hidden."""
    spine = Transformer(Geometry((1, 28, 28), (1,) * 784, 784, True))
    x = torch.rand(rows, 1, 28, 28)
    batch = Batch({"x": x}, {"x": None})
    seen = Mask(fraction=0.75, patch=4)(batch, torch.Generator().manual_seed(0)).observed["x"]

    def step(visible: torch.Tensor | None) -> float:
        began = time.perf_counter()
        spine.encode(x, visible)[0].square().sum().backward()
        return time.perf_counter() - began

    for visible in (None, seen):
        step(visible)
    pairs = [(step(None), step(seen)) for _ in range(turns)]
    whole, hidden = (statistics.median(times) for times in zip(*pairs, strict=True))
    ratio = statistics.median(b / a for a, b in pairs)
    print(f"encoder, {rows} images, forward and back: {1e3 * whole:.0f} ms, with 75 % hidden "
          f"{1e3 * hidden:.0f} ms; median ratio {ratio:.2f}")  # fmt: skip


def main() -> None:
    """Run one part or both."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("part", nargs="?", choices=("probe", "cost"))
    parser.add_argument("--rows", type=int, default=30_000)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    if given.part != "probe":
        cost()
    if given.part != "cost":
        probe(Mnist.read(given.folder), given.rows, given.epochs, given.seed)


if __name__ == "__main__":
    main()
