"""Few labels: a linear classifier on codes learnt with and without views that should agree.

    python bench/contrastive.py FOLDER [--seeds 3]

FOLDER holds the four IDX files of MNIST. Encoders see 10,000 images and no label; a classifier then
sees the codes of 100 labelled images, ten of each digit, and is judged on the 10,000 test images.
A line per seed, then mean and spread (lowest to highest).
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import refold
from mnist import Figures, Mnist, error

IMAGES = 10_000
LABELS = 100
VIEWS = "chain(parts=('shift(pixels=3)', 'boxes(size=8)'))"
ENCODER: dict[str, Any] = {
    "latent": 64,
    "hidden": (256,),
    "fusion": "concat(linear=False)",
    "fields": {"image": "image(likelihood='bernoulli')"},
    "epochs": 15,
    "patience": 15,
    "batch_size": 250,
    "lr": 3e-3,
    "validation": 0.02,
}
WAYS: dict[str, tuple[str, ...]] = {
    "rebuilding alone": (),
    "NT-Xent": (f"contrastive(weight=30.0, corruption={VIEWS!r}, projection=(64,))",),
    "VICReg": (f"contrastive(kind='vicreg', weight=1.0, corruption={VIEWS!r}, projection=(128,))",),
}


def judged(data: Mnist, ae: refold.Autoencoder, few: Any) -> Figures:
    """Test errors of a linear classifier, of the nearest labelled code and of rebuilding."""
    codes, known = ae.transform(data.train[few]), data.train_labels[few]
    test = ae.transform(data.test)
    linear = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=1000))
    near = make_pipeline(StandardScaler(), KNeighborsClassifier(1, metric="cosine"))
    return {
        "linear error %": error(data.test_labels, linear.fit(codes, known).predict(test)),
        "1-NN error %": error(data.test_labels, near.fit(codes, known).predict(test)),
        "squared error": ae.squared_error(data.test),
    }


def run(data: Mnist, seed: int) -> Figures:
    """All ways on the same images and labels."""
    some, _ = train_test_split(
        np.arange(len(data.train)), train_size=IMAGES, stratify=data.train_labels, random_state=seed
    )
    few, _ = train_test_split(
        some, train_size=LABELS, stratify=data.train_labels[some], random_state=seed
    )
    found: Figures = {}
    for name, penalties in WAYS.items():
        began = time.perf_counter()
        ae = refold.Autoencoder(penalties=penalties, seed=seed, **ENCODER).fit(data.train[some])
        seconds = time.perf_counter() - began
        figures = {**judged(data, ae, few), "seconds": seconds}
        found |= {f"{name}: {k}": v for k, v in figures.items()}
        print(
            f"seed {seed}, {name}:",
            ", ".join(f"{k} {v:.4g}" for k, v in figures.items()),
            flush=True,
        )
    return found


def main() -> None:
    """Run every seed and print its figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    given = parser.parse_args()
    data = Mnist.read(given.folder)
    rows = [run(data, seed) for seed in range(given.seeds)]
    print(f"{given.seeds} seeds, torch {torch.__version__}, {torch.get_num_threads()} threads: "
          "mean (lowest to highest)")  # fmt: skip
    for name in rows[0]:
        values = [row[name] for row in rows]
        print(f"  {name}: {np.mean(values):.4g} ({min(values):.4g} to {max(values):.4g})")


if __name__ == "__main__":
    main()
