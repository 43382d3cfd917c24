"""What variational autoencoders reach, and how fast they train.

    python bench/vae.py FOLDER TASK [--seeds 1] [--epochs N]

FOLDER holds the four IDX files of MNIST; TASK is one of: vae, iwae, tc, pythae. ``tc`` makes its
own images, ``pythae`` its own rows and needs pythae. Likelihoods are in nats per row.
"""

from __future__ import annotations

import argparse
import importlib
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import refold
from mnist import Images, Mnist, flat
from refold.assemble import Wishes, assemble
from refold.data.containers import container
from refold.data.schema import Schema
from refold.table import Table
from refold.training.fit import fit
from refold.training.plan import Plan

Figures = dict[str, float]
UNIT = {"x": "vector(scale='unit', likelihood='bernoulli')"}


def binary(images: Images, seed: int = 0) -> Images:
    """Black or white, once and for all: each pixel against a threshold drawn for it."""
    thresholds = np.random.default_rng(seed).random(images.shape, dtype=np.float32)
    return (images > thresholds).astype(np.float32)


def vae(data: Mnist, seed: int, epochs: int = 300) -> Figures:
    """784-400-40 on digits binarised once, by seeded thresholds: log-likelihood by 200 draws."""
    began = time.process_time()
    ae = refold.Autoencoder(
        "gaussian(size=40)",
        recipe="vae",
        hidden=(400,),
        fusion="concat(activation='silu')",
        optimizer="adamw(weight_decay=0.1)",
        epochs=epochs,
        batch_size=200,
        lr=3e-3,
        validation=0.02,
        patience=epochs,
        seed=seed,
        precision="bfloat16",
        verbose=1,
    ).fit(binary(data.train))
    trained = time.process_time()
    test = binary(data.test, 1)
    return {
        "log-likelihood, 200 draws": float(ae.log_likelihood(test, 200).mean()),
        "evidence bound": float(ae.log_likelihood(test, 1).mean()),
        "active units": ae.run_.best["active_units"],
        "best epoch": ae.run_.best["epoch"],
        "CPU seconds of training": trained - began,
        "CPU seconds of judging": time.process_time() - trained,
    }


def iwae(data: Mnist, seed: int, epochs: int = 60) -> Figures:
    """784-200-200-50, binarised anew in every batch: one draw of each code, and fifty."""
    test, found = binary(data.test, 1), Figures()
    for name, draws in (("VAE", 1), ("IWAE-50", 50)):
        began = time.process_time()
        ae = refold.Autoencoder(
            f"gaussian(size=50, draws={draws})",
            recipe="vae",
            hidden=(200, 200),
            fusion="concat(activation='silu')",
            corruption="binarise",
            epochs=epochs,
            batch_size=100,
            lr=2e-3,
            validation=0.01,
            patience=epochs,
            precision="bfloat16",
            seed=seed,
            verbose=1,
        ).fit(data.train)
        found |= {
            f"{name}: CPU seconds of training": time.process_time() - began,
            f"{name}: evidence bound": float(ae.log_likelihood(test, 1).mean()),
            f"{name}: bound of 50 draws": float(ae.log_likelihood(test, 50).mean()),
            f"{name}: log-likelihood, 200 draws": float(ae.log_likelihood(test, 200).mean()),
            f"{name}: log-likelihood, 5000 draws, 1000 rows": float(
                ae.log_likelihood(test[:1000]).mean()
            ),
            f"{name}: active units": ae.run_.best["active_units"],
        }
        print(f"{name}:", found, flush=True)
    return found


def sprites() -> tuple[Images, NDArray[np.int64]]:
    """Draw shapes ``[n, 16, 16]`` on a black ground, and their factors ``[n, 5]``.

    Every combination of shape (square, ellipse, triangle), 4 scales, 12 turns, and 12 places each
    way: 20,736 images.
    """
    levels = (3, 4, 12, 12, 12)
    factors = np.stack(np.meshgrid(*map(np.arange, levels), indexing="ij"), -1).reshape(-1, 5)
    grid = (np.arange(16) + 0.5) / 16
    y, x = np.meshgrid(grid, grid, indexing="ij")
    images = np.zeros((len(factors), 16, 16), dtype=np.float32)
    for image, (shape, size, turn, left, top) in zip(images, factors, strict=True):
        radius, angle = 0.14 + 0.03 * size, 2 * np.pi * turn / 12
        u, v = x - 0.3 - 0.4 * left / 11, y - 0.3 - 0.4 * top / 11
        a = (np.cos(angle) * u + np.sin(angle) * v) / radius
        b = (np.cos(angle) * v - np.sin(angle) * u) / radius
        inside = (
            np.maximum(abs(a), abs(b)) < 0.8,
            a**2 + (b / 0.5) ** 2 < 1,
            (b > -0.5) & (b + 1.73 * abs(a) < 1),
        )
        image[:] = inside[shape]
    return images, factors


def gap(codes: NDArray[np.float32], factors: NDArray[np.int64], bins: int = 20) -> float:
    """Mutual information gap: by how much the unit that knows most of a factor leads the next.

    In shares of the factor's entropy, mean over the factors; codes are read in ``bins`` equal bins.

    Source: Chen et al. 2018 (arXiv:1802.04942).
    """
    leads: list[float] = []
    for factor in factors.T:
        shares = np.bincount(factor) / len(factor)
        entropy = -float((shares * np.log(shares)).sum())
        known: list[float] = []
        for unit in codes.T:
            edges = np.linspace(unit.min(), unit.max(), bins + 1)[1:-1]
            joint = np.histogram2d(
                np.digitize(unit, edges), factor, bins=(range(bins + 1), range(len(shares) + 1))
            )[0] / len(factor)  # fmt: skip
            both = joint[joint > 0]
            sides = joint.sum(1, keepdims=True) * joint.sum(0, keepdims=True)
            known.append(float((both * np.log(both / sides[joint > 0])).sum()))
        first, second = sorted(known)[-1:-3:-1]
        leads.append((first - second) / entropy)
    return float(np.mean(leads))


def tc(data: Mnist, seed: int, epochs: int = 60) -> Figures:
    """Sprites of five known factors: the plain bound, a larger beta, and total correlation."""
    images, factors = sprites()
    found = Figures()
    for name, latent in (
        ("plain", "gaussian(size=10)"),
        ("beta 2.5", "gaussian(size=10, beta=2.5)"),
        ("total correlation", "total_correlation(size=10, beta=6.0)"),
    ):
        began = time.process_time()
        ae = refold.Autoencoder(
            latent,
            recipe="vae",
            hidden=(256, 128),
            epochs=epochs,
            batch_size=256,
            lr=2e-3,
            validation=0.02,
            patience=epochs,
            seed=seed,
        ).fit(images)
        found[f"{name}: information gap"] = gap(ae.transform(images), factors)
        found[f"{name}: reconstruction"] = ae.run_.best["valid_image"]
        found[f"{name}: active units"] = ae.run_.best["active_units"]
        found[f"{name}: CPU seconds"] = time.process_time() - began
        print(name, {k: v for k, v in found.items() if k.startswith(name)}, flush=True)
    return found


def pythae(data: Mnist, seed: int, epochs: int = 2, repeats: int = 7) -> Figures:
    """784-512-20-512-784, batches of 128: CPU time of Pythae's trainer and of refold's, in turn."""
    peers: Any = importlib.import_module("pythae.models")
    trainers: Any = importlib.import_module("pythae.trainers")
    x = flat(data.train)[:20_000]
    held = flat(data.train)[-1000:]
    schema = Schema.fit(Table({"x": x}, container("numpy")), np.arange(len(x)), UNIT)
    rows, judged = (schema.encode(Table({"x": v}, container("numpy")))[0] for v in (x, held))
    wishes = Wishes(recipe="vae", latent=20, hidden=(512,))
    spec = assemble(schema, rows, wishes).spec
    plan = Plan.choose(len(x), epochs=epochs, batch_size=128, lr=1e-3)
    ours: list[float] = []
    theirs: list[float] = []
    for _ in range(repeats):
        model = spec.build(schema)
        began = time.process_time()
        fit(model, rows, judged, plan)
        ours.append(time.process_time() - began)
        config = peers.VAEConfig(input_dim=(784,), latent_dim=20, reconstruction_loss="bce")
        with tempfile.TemporaryDirectory() as folder:
            training = trainers.BaseTrainerConfig(
                output_dir=folder,
                num_epochs=epochs,
                per_device_train_batch_size=128,
                per_device_eval_batch_size=1000,
                learning_rate=1e-3,
                no_cuda=True,
            )
            sets = (trainer_data(v) for v in (x, held))
            trainer = trainers.BaseTrainer(peers.VAE(config), *sets, training)
            began = time.process_time()
            trainer.train()
            theirs.append(time.process_time() - began)
    ratios = [b / a for a, b in zip(ours, theirs, strict=True)]
    return {
        "ratio": statistics.median(ratios),
        "lowest": min(ratios),
        "highest": max(ratios),
        "rows a CPU second": epochs * len(x) / statistics.median(ours),
    }


def trainer_data(x: NDArray[np.float32]) -> Any:
    """Rows as Pythae's own data set."""
    sets: Any = importlib.import_module("pythae.data.datasets")
    return sets.BaseDataset(torch.from_numpy(x), torch.zeros(len(x)))


TASKS: dict[str, Callable[..., Figures]] = {t.__name__: t for t in (vae, iwae, tc, pythae)}


def main() -> None:
    """Run one task for every seed and print its figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--epochs", type=int)  # in place of the task's own
    given = parser.parse_args()
    data = Mnist.read(given.folder)
    print(f"{given.task}, torch {torch.__version__}, {torch.get_num_threads()} threads", flush=True)
    options = {} if given.epochs is None else {"epochs": given.epochs}
    rows: list[Figures] = []
    for seed in range(given.seeds):
        figures = TASKS[given.task](data, seed, **options)
        rows.append(figures)
        print(f"seed {seed}:", ", ".join(f"{k} {v:.5g}" for k, v in figures.items()), flush=True)
    for name in rows[0] if len(rows) > 1 else ():
        values = [row[name] for row in rows]
        print(f"  {name}: {np.mean(values):.5g} ({min(values):.5g} to {max(values):.5g})")


if __name__ == "__main__":
    main()
