"""Anomaly detection on public tables, beside PyOD's detectors in the same run.

    python bench/anomaly.py tables FOLDER [--seeds 3] [--only 6_cardio ...]
    python bench/anomaly.py calibration FOLDER [--seeds 3]
    python bench/anomaly.py causes FOLDER
    python bench/anomaly.py speed
    python bench/anomaly.py digits MNIST-FOLDER [--only 3 8]

FOLDER holds ADBench's tables as npz with ``X`` and ``y`` (1: an anomaly); of more than 10,000 rows
a seeded subsample is taken. ``tables`` has two protocols, refold with its defaults and PyOD's
detectors (``pip install pyod``) with theirs, on the same rows, PyOD's standardised by the training
rows: novelty (N) learns from a random half of the normal rows and scores the rest and all
anomalies, outliers (O) learns from all rows and scores them; refold also with contamination=0.1 in
the second. Means over seeds, then over all tables, over those whose results led the choice of
refold's defaults (every other one of their list), and over the rest. ``calibration`` counts how
many normal rows that were not learnt from are flagged. ``causes`` has three cells of such rows
moved by five standard deviations, or past the ends of the column, and counts rows in which they are
the first three causes. ``speed`` scores 100,000 new rows of 30 columns. ``digits`` learns one
digit, and tells the nine others from it.
"""

from __future__ import annotations

import argparse
import gzip
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import binom
from sklearn.metrics import average_precision_score, roc_auc_score

import refold

Rows = NDArray[np.float64]
Scored = tuple[float, float, float]
"""AUROC, average precision, and seconds to fit and to score."""

CHOSEN_ON = ("14_glass", "23_mammography", "28_pendigits", "30_satellite", "40_vowels", "4_breastw")
MOST = 10_000
LEVELS = (0.01, 0.05, 0.1)


def table(path: Path, seed: int) -> tuple[Rows, NDArray[np.int64]]:
    """Rows and labels of a table, at most 10,000 of them."""
    with np.load(path) as found:
        x, y = found["X"].astype(np.float64), found["y"].astype(np.int64)
    if len(x) > MOST:
        at = np.random.default_rng(seed).permutation(len(x))[:MOST]
        x, y = x[at], y[at]
    return x, y


def parted(
    x: Rows, y: NDArray[np.int64], protocol: str, seed: int
) -> tuple[Rows, Rows, NDArray[np.int64]]:
    """Rows to learn from, rows to score, and the labels of these."""
    if protocol == "O":
        return x, x, y
    normal = np.random.default_rng(seed).permutation(np.flatnonzero(y == 0))
    learnt = normal[: len(normal) // 2]
    others = np.setdiff1d(np.arange(len(x)), learnt)
    return x[learnt], x[others], y[others]


def ours(contamination: float | None, seed: int) -> Callable[[Rows, Rows], NDArray[np.float64]]:
    """Return how refold scores rows: the higher, the more unusual."""

    def run(train: Rows, test: Rows) -> NDArray[np.float64]:
        ae = refold.Autoencoder(recipe="anomaly", contamination=contamination, seed=seed)
        return -ae.fit(train).score_samples(test)

    return run


def theirs(kind: type[Any], seed: int) -> Callable[[Rows, Rows], NDArray[np.float64]]:
    """Return how one of PyOD's detectors scores rows, standardised by those it learns from."""

    def run(train: Rows, test: Rows) -> NDArray[np.float64]:
        mean, std = train.mean(0), train.std(0)
        std = np.where(std > 1e-9 * np.maximum(1, np.abs(mean)), std, 1.0)
        seeded = (
            {"random_state": seed} if kind.__name__ in ("AutoEncoder", "VAE", "IForest") else {}
        )
        found = kind(**seeded).fit((train - mean) / std)
        same = len(train) == len(test) and np.array_equal(train, test)
        scores = found.decision_scores_ if same else found.decision_function((test - mean) / std)
        return np.nan_to_num(np.asarray(scores))  # PyOD's PCA divides by variances of zero

    return run


def detectors(protocol: str, seed: int) -> dict[str, Callable[[Rows, Rows], NDArray[np.float64]]]:
    """All that are compared, by name."""
    from pyod.models.auto_encoder import AutoEncoder
    from pyod.models.ecod import ECOD
    from pyod.models.iforest import IForest
    from pyod.models.knn import KNN
    from pyod.models.lof import LOF
    from pyod.models.pca import PCA
    from pyod.models.vae import VAE

    told = {} if protocol == "N" else {"refold, contamination=0.1": ours(0.1, seed)}
    return {
        "refold": ours(None, seed),
        **told,
        **{k.__name__: theirs(k, seed) for k in (KNN, LOF, IForest, ECOD, PCA, AutoEncoder, VAE)},
    }


def compare(folder: Path, seeds: int, only: list[str]) -> None:
    """Print the means of all detectors, and of the ratio of refold's time to PyOD's AutoEncoder."""
    names = [p.stem for p in sorted(folder.glob("*.npz")) if not only or p.stem in only]
    for protocol in "NO":
        results: dict[str, dict[str, Scored]] = {}
        for name in names:
            runs: dict[str, list[Scored]] = {}
            for seed in range(seeds):
                train, test, y = parted(*table(folder / f"{name}.npz", seed), protocol, seed)
                for who, score in detectors(protocol, seed).items():
                    begun = time.perf_counter()
                    found = score(train, test)
                    seconds = time.perf_counter() - begun
                    runs.setdefault(who, []).append(
                        (
                            float(roc_auc_score(y, found)),
                            float(average_precision_score(y, found)),
                            seconds,
                        )
                    )
            for who, each in runs.items():
                auroc, precision, seconds = np.mean(each, axis=0)
                results.setdefault(who, {})[name] = (auroc, precision, seconds)
            mine, peer = results["refold"][name], results["AutoEncoder"][name]
            told = [f"{who} {r[name][0]:.3f}/{r[name][1]:.3f}" for who, r in results.items()]
            took = f"{mine[2]:.2f} s, {mine[2] / peer[2]:.2f} of AutoEncoder's"
            print(f"{protocol} {name:15} {'  '.join(told)}  {took}", flush=True)
        parts = {
            "all": names,
            "chosen on": [n for n in names if n in CHOSEN_ON],
            "others": [n for n in names if n not in CHOSEN_ON],
        }
        for who, found in results.items():
            means = [
                f"{part} " + "/".join(f"{v:.3f}" for v in np.mean([found[n] for n in own], 0)[:2])
                for part, own in parts.items()
                if own
            ]
            seconds = np.median([s for _, _, s in found.values()])
            print(f"{protocol} {who:28} {'  '.join(means)}  median {seconds:.2f} s")
        ratios = [results["refold"][n][2] / results["AutoEncoder"][n][2] for n in names]
        print(f"{protocol} time of refold by that of AutoEncoder: median {np.median(ratios):.2f}, "
              f"from {min(ratios):.2f} to {max(ratios):.2f}")  # fmt: skip


def calibrate(folder: Path, seeds: int) -> None:
    """Print the share of fresh normal rows that are flagged at each level, and whether it is fair.

    Of ``n`` rows judged by ``m`` held-out ones as many are flagged as a beta-binomial has it; the
    bound is its 99.9 % quantile.
    """
    from scipy.stats import betabinom

    for path in sorted(folder.glob("*.npz")):
        shares: dict[float, list[float]] = {a: [] for a in LEVELS}
        within = True
        for seed in range(seeds):
            train, test, y = parted(*table(path, seed), "N", seed)
            ae = refold.Autoencoder(recipe="anomaly", seed=seed).fit(train)
            p = np.asarray(ae.judge(test[y == 0])["p_value"], dtype=np.float64)
            m = len(ae.calibration_.scores)
            for alpha in LEVELS:
                flagged = int((p <= alpha).sum())
                k = int(np.floor(alpha * (m + 1) + 1e-9))
                most = betabinom(len(p), k, m + 1 - k).ppf(0.999) if k else 0
                within &= flagged <= max(most, binom(len(p), alpha).ppf(0.999) if k else 0)
                shares[alpha].append(flagged / len(p))
        told = "  ".join(f"{a:g}: {np.mean(v):.4f}" for a, v in shares.items())
        print(f"{path.stem:15} {told}  {'within' if within else 'OUTSIDE'} error", flush=True)


def corrupted(rows: Rows, train: Rows, kind: str, seed: int) -> tuple[Rows, NDArray[np.int64]]:
    """Rows with three cells moved, and which."""
    draw = np.random.default_rng(seed)
    std, low, high = train.std(0), train.min(0), train.max(0)
    cells = np.stack([draw.permutation(rows.shape[1])[:3] for _ in rows])
    found = rows.copy()
    for i, own in enumerate(cells):
        for j in own:
            sign = draw.choice([-1.0, 1.0])
            end = high[j] if sign > 0 else low[j]
            moved = found[i, j] + sign * 5 * std[j]
            found[i, j] = moved if kind == "shift" else end + sign * 0.5 * (high[j] - low[j])
    return found, cells


def explain(folder: Path) -> None:
    """Print the share of rows of which the three moved cells are the first three causes."""
    means: dict[str, list[float]] = {}
    for path in sorted(folder.glob("*.npz")):
        train, test, y = parted(*table(path, 0), "N", 0)
        kept = train.std(0) > 1e-9
        train, test = train[:, kept], test[y == 0][:200, kept]
        if kept.sum() < 6:
            continue
        ae = refold.Autoencoder(recipe="anomaly").fit(train)
        said: list[str] = []
        for kind in ("shift", "range"):
            rows, cells = corrupted(test, train, kind, 0)
            causes = np.asarray(ae.explain(rows, top=3)["cause"]).reshape(-1, 3)
            hit = [
                {f"x{j}" for j in own} == set(named)
                for own, named in zip(cells, causes, strict=True)
            ]
            means.setdefault(kind, []).append(float(np.mean(hit)))
            said.append(f"{kind} {np.mean(hit):.3f}")
        print(f"{path.stem:15} {train.shape[1]:2} columns  {'  '.join(said)}", flush=True)
    for kind, values in means.items():
        print(f"{kind}: mean {np.mean(values):.3f}, least {min(values):.3f}")


def rate(repeats: int) -> None:
    """Print how many rows of 30 columns are scored in a second."""
    mix = np.random.default_rng(0).normal(size=(30, 30))
    rows = np.random.default_rng(1).normal(size=(100_000, 30)) @ mix
    ae = refold.Autoencoder(recipe="anomaly").fit(
        np.random.default_rng(2).normal(size=(10_000, 30)) @ mix
    )
    for kind, given in (("float64", rows), ("float32", rows.astype(np.float32))):
        ae.score_samples(given)
        seconds: list[float] = []
        for _ in range(repeats):
            begun = time.perf_counter()
            ae.score_samples(given)
            seconds.append(time.perf_counter() - begun)
        best, middle = len(rows) / min(seconds), len(rows) / float(np.median(seconds))
        print(
            f"{kind}: {middle:,.0f} rows/s, at best {best:,.0f}, {torch.get_num_threads()} threads"
        )


def digits(folder: Path, only: list[str]) -> None:
    """Print how well one digit's model tells the nine others, on the test images."""

    def idx(name: str) -> NDArray[np.uint8]:
        raw = gzip.decompress((folder / name).read_bytes())
        shape = [int.from_bytes(raw[4 + 4 * i : 8 + 4 * i], "big") for i in range(raw[3])]
        return np.frombuffer(raw, np.uint8, offset=4 + 4 * raw[3]).reshape(shape)

    x, y = idx("train-images-idx3-ubyte.gz"), idx("train-labels-idx1-ubyte.gz")
    test, truth = idx("t10k-images-idx3-ubyte.gz"), idx("t10k-labels-idx1-ubyte.gz")
    found: list[float] = []
    for digit in range(10):
        if only and str(digit) not in only:
            continue
        begun = time.perf_counter()
        ae = refold.Autoencoder(recipe="anomaly").fit(x[y == digit])
        seconds = time.perf_counter() - begun
        found.append(float(roc_auc_score(truth != digit, -ae.score_samples(test))))
        print(f"{digit}: AUROC {found[-1]:.4f}, {seconds:.1f} s", flush=True)
    print(f"mean AUROC {np.mean(found):.4f}")


def main() -> None:
    """Run the part that was asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=("tables", "calibration", "causes", "speed", "digits"))
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=11)
    parser.add_argument("--only", nargs="*", default=[])
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    if given.part == "speed":
        return rate(given.repeats)
    if given.folder is None:
        parser.error(f"{given.part} needs a folder")
    if given.part == "tables":
        return compare(given.folder, given.seeds, given.only)
    if given.part == "calibration":
        return calibrate(given.folder, given.seeds)
    if given.part == "causes":
        return explain(given.folder)
    return digits(given.folder, given.only)


if __name__ == "__main__":
    main()
