"""Heartbeats: how well an autoencoder of normal beats tells the abnormal ones.

    python bench/ecg.py FOLDER [--seeds 3] [--share 0.65] [--backbone recurrent(width=32)]

FOLDER holds ``ECG5000_TRAIN.txt``: a label, of which 1 is normal, and 140 values a beat. A seeded
share of the normal beats is learnt from, a tenth of it held out, in codes of 8 numbers; the other
normal beats and all abnormal ones are judged by their squared error. Beside it the same figure of
two rivals that the alignment of these beats makes strong: the distance from the mean beat, and the
squared error of as many principal components. A line per seed, then mean and spread (lowest to
highest). Squared errors are shares of the variance in training.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from sklearn.metrics import roc_auc_score

import refold

Beats = NDArray[np.float64]
Figures = dict[str, float]
CODE = 8


def parted(folder: Path, share: float, seed: int) -> tuple[Beats, Beats, NDArray[np.bool_]]:
    """Return normal beats to learn from, other beats, and which of these are abnormal."""
    given = np.loadtxt(folder / "ECG5000_TRAIN.txt")
    normal = given[:, 0] == 1
    order = np.random.default_rng(seed).permutation(np.flatnonzero(normal))
    count = round(share * len(order))
    others = np.concatenate([order[count:], np.flatnonzero(~normal)])
    return given[order[:count], 1:], given[others, 1:], ~normal[others]


def figures_of(folder: Path, share: float, backbone: str | None, seed: int) -> Figures:
    """Train on one seed's normal beats, and judge the others."""
    train, others, abnormal = parted(folder, share, seed)
    own = "series" if backbone is None else f"series(backbone={backbone!r})"
    wall, processor = time.perf_counter(), time.process_time()
    ae = refold.Autoencoder(CODE, recipe="recurrent", fields={"x": own}, seed=seed)
    ae.fit({"x": train})
    wall, processor = time.perf_counter() - wall, time.process_time() - processor
    errors = squares(others - ae.reconstruct({"x": others})["x"])
    pca = PCA(CODE, svd_solver="full").fit(train)
    linear = squares(others - pca.inverse_transform(pca.transform(others)))
    return {
        "AUROC": float(roc_auc_score(abnormal, errors)),
        "AUROC of the mean beat": float(roc_auc_score(abnormal, squares(others - train.mean(0)))),
        "AUROC of PCA": float(roc_auc_score(abnormal, linear)),
        "error of normal beats": float(errors[~abnormal].mean() / train.var()),
        "error of abnormal beats": float(errors[abnormal].mean() / train.var()),
        "seconds": wall,
        "processor seconds": processor,
    }


def squares(gaps: Beats) -> Beats:
    """Mean square of each beat."""
    return np.square(gaps).mean(1)


def main() -> None:
    """Run every seed and print its figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--share", type=float, default=0.65)
    parser.add_argument("--backbone", default=None)
    given = parser.parse_args()
    rows: list[Figures] = []
    for seed in range(given.seeds):
        rows.append(figures_of(given.folder, given.share, given.backbone, seed))
        print(f"seed {seed}:", ", ".join(f"{k} {v:.4g}" for k, v in rows[-1].items()), flush=True)
    print(f"{given.seeds} seeds, torch {torch.__version__}, {torch.get_num_threads()} threads: "
          f"mean (lowest to highest)")  # fmt: skip
    for name in rows[0]:
        values = [row[name] for row in rows]
        print(f"  {name}: {np.mean(values):.4g} ({min(values):.4g} to {max(values):.4g})")


if __name__ == "__main__":
    main()
