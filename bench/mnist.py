"""What classic autoencoders reach on MNIST, beside the published figures.

    python bench/mnist.py FOLDER TASK [--seeds 3]

FOLDER holds the four IDX files; TASK is one of: compression, map, topk, lifetime, denoising, labels,
linear. Pixels lie in [0, 1], the split is the standard one. Each line is one seed; the last gives mean
and spread (lowest to highest). Needs scikit-learn, and for ``map`` and ``denoising`` umap-learn and
scikit-image where they are installed.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.decomposition import PCA

import refold
from refold.data.sources import read

Images = NDArray[np.float32]
Labels = NDArray[np.int64]
Figures = dict[str, float]


@dataclass(frozen=True)
class Mnist:
    """Images ``[n, 28, 28]`` in [0, 1] and their labels."""

    train: Images
    train_labels: Labels
    test: Images
    test_labels: Labels

    @classmethod
    def read(cls, folder: Path) -> Mnist:
        def images(name: str) -> Images:
            return np.float32(read(folder / name).columns["image"]) / np.float32(255)

        def labels(name: str) -> Labels:
            return np.asarray(read(folder / name).columns["label"]).astype(np.int64)

        return cls(
            images("train-images-idx3-ubyte.gz"),
            labels("train-labels-idx1-ubyte.gz"),
            images("t10k-images-idx3-ubyte.gz"),
            labels("t10k-labels-idx1-ubyte.gz"),
        )


BERNOULLI = {"x": refold.fields.Image(likelihood="bernoulli")}


def compression(data: Mnist, seed: int) -> Figures:
    """784-1000-500-250-30: squared error per test image."""
    ae = refold.Autoencoder(
        30,
        hidden=(1000, 500, 250),
        fields=BERNOULLI,
        fusion="concat(activation='silu')",
        epochs=60,
        batch_size=512,
        lr=3e-3,
        validation=0.02,
        precision="bfloat16",
        seed=seed,
    ).fit(data.train)
    return {"squared error": ae.squared_error(data.test)}


def linear(data: Mnist, seed: int) -> Figures:
    """A linear autoencoder of 32 numbers from random weights: degrees from the principal axes."""
    ae = refold.Autoencoder(
        32, hidden=(), fusion="concat(init='orthogonal')", validation=0.0, seed=seed
    ).fit(data.train)
    decoder = ae.model_.fusion.linear_path().up.detach().double().numpy()
    axes = PCA(32, svd_solver="full").fit(data.train.reshape(len(data.train), -1)).components_
    angles = np.degrees(subspace(decoder, axes.T))
    return {"greatest angle": float(angles.max()), "mean angle": float(angles.mean())}


def subspace(a: NDArray[Any], b: NDArray[Any]) -> NDArray[np.float64]:
    """Principal angles between two column spaces, in radians."""
    from scipy.linalg import subspace_angles

    return subspace_angles(a, b)


TASKS: dict[str, Callable[[Mnist, int], Figures]] = {
    task.__name__: task for task in (compression, linear)
}


def main() -> None:
    """Run one task for every seed and print its figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("--seeds", type=int, default=3)
    given = parser.parse_args()
    data = Mnist.read(given.folder)
    rows: list[Figures] = []
    for seed in range(given.seeds):
        began = time.perf_counter()
        figures = TASKS[given.task](data, seed)
        figures["seconds"] = time.perf_counter() - began
        rows.append(figures)
        print(f"seed {seed}:", ", ".join(f"{k} {v:.4g}" for k, v in figures.items()), flush=True)
    print(f"{given.task}, {given.seeds} seeds, torch {torch.__version__}, "
          f"{torch.get_num_threads()} threads: mean (lowest to highest)")  # fmt: skip
    for name in rows[0]:
        values = [row[name] for row in rows]
        print(f"  {name}: {np.mean(values):.4g} ({min(values):.4g} to {max(values):.4g})")


if __name__ == "__main__":
    main()
