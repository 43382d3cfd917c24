"""Whether dictionaries find the features that activations were made of.

    python bench/dictionary_truth.py [--recipes topk batch_topk matryoshka] [--seeds 0 1 2] [--peer]
    python bench/dictionary_truth.py --folders

Activations with known features: each row is a sum of unit directions in general position, more than
it has numbers. A feature fires with a probability that falls as a power of its rank, features fire
together (a copula of a few common factors), magnitudes are lognormal, and there is a mean that is
no feature and a little noise. Of refold's recipe and, with ``--peer``, of SAELens' TopK on the same
rows in the same number of steps, where it is installed: the mean cosine of each feature with the
latent that one-to-one matching gives it (MCC), the mean F1 of latents as detectors of the feature
they are nearest to (as SAELens' own evaluation has it) and of features as detected by their matched
latent, and the variance explained in rows that nobody saw.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from scipy.stats import norm

import refold

WIDTH, FEATURES, ACTIVE = 256, 1024, 16
ROWS, HELD, EPOCHS, BATCH = 200_000, 10_000, 10, 1024
FACTORS, COMMON = 8, 0.3  # common causes of firing, and their share of the variance behind it
WAYS: dict[str, dict[str, Any]] = {
    "topk": {"latent": f"topk(size={FEATURES}, k={ACTIVE})"},
    "batch_topk": {"latent": f"batch_topk(size={FEATURES}, k={ACTIVE})"},
    "matryoshka": {
        "latent": f"batch_topk(size={FEATURES}, k={ACTIVE})",
        "penalties": ("matryoshka",),
    },
    "jumprelu": {"latent": f"jumprelu(size={FEATURES}, l0={ACTIVE}.0)"},
    "gated": {"latent": f"gated(size={FEATURES})"},
}


@dataclass(frozen=True)
class Truth:
    """Rows ``[n, d]``, the directions ``[F, d]`` they are made of, and which fired ``[n, F]``."""

    rows: NDArray[np.float32]
    directions: NDArray[np.float32]
    fired: NDArray[np.bool_]


def drawn(n: int, seed: int) -> Truth:
    """Draw rows."""
    g = np.random.default_rng(seed)
    directions = g.normal(size=(FEATURES, WIDTH))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    probability = (np.arange(FEATURES) + 10.0) ** -0.8
    probability = (probability * ACTIVE / probability.sum()).clip(max=0.5)
    bound = norm.isf(probability)
    loads = g.normal(size=(FACTORS, FEATURES))
    loads *= np.sqrt(COMMON) / np.linalg.norm(loads, axis=0)
    centre = g.normal(size=WIDTH)
    rows, fired = np.empty((n, WIDTH), np.float32), np.empty((n, FEATURES), np.bool_)
    for start in range(0, n, 10_000):
        at = slice(start, min(n, start + 10_000))
        count = at.stop - at.start
        behind = g.normal(size=(count, FACTORS)) @ loads
        behind += np.sqrt(1 - COMMON) * g.normal(size=(count, FEATURES))
        fired[at] = behind > bound
        size = fired[at] * g.lognormal(0.0, 0.6, (count, FEATURES))
        noise = 0.02 * g.normal(size=(count, WIDTH))
        rows[at] = size @ directions + centre + noise
    return Truth(rows, directions.astype(np.float32), fired)


def figures(
    decoder: NDArray[Any], active: NDArray[np.bool_], rebuilt: NDArray[Any], held: Truth
) -> dict[str, float]:
    """Compare a dictionary ``[n, d]`` and what fired ``[rows, n]`` with the truth."""
    found = decoder / np.linalg.norm(decoder, axis=1, keepdims=True).clip(1e-9)
    cosine = np.abs(held.directions @ found.T)
    features, latents = linear_sum_assignment(-cosine)
    nearest = cosine.argmax(0)
    both = held.fired.T.astype(np.float32) @ active.astype(np.float32)
    counts = held.fired.sum(0)[:, None] + active.sum(0)[None]
    f1 = 2 * both / counts.clip(1)
    residual = np.square(rebuilt - held.rows).sum()
    return {
        "mcc": float(cosine[features, latents].mean()),
        "f1": float(f1[nearest, np.arange(len(nearest))].mean()),
        "f1_matched": float(f1[features, latents].mean()),
        "explained": 1 - float(residual / np.square(held.rows - held.rows.mean(0)).sum()),
        "l0": float(active.sum(1).mean()),
        "silent": float((~active.any(0)).mean()),
    }


def ours(way: str, train: Truth, held: Truth, seed: int, **options: Any) -> dict[str, float]:
    """Fit refold's recipe."""
    ae = refold.Autoencoder(
        recipe="dictionary", epochs=EPOCHS, batch_size=BATCH, validation=0.01, seed=seed,
        **WAYS[way], **options,
    ).fit(train.rows)  # fmt: skip
    decoder: Any = ae.model_.fusion.decoder
    rebuilt = np.concatenate([ae.reconstruct(x) for x in np.array_split(held.rows, 4)])
    return figures(decoder.detach().numpy(), ae.transform(held.rows) > 0, rebuilt, held)


def theirs(
    train: Truth, held: Truth, seed: int, lr: float, centred: bool = False
) -> dict[str, float]:
    """Fit SAELens' TopK as its own toy trainer does; ``centred`` takes the mean off before."""
    if centred:
        mean = train.rows.mean(0)
        train, held = (replace(t, rows=t.rows - mean) for t in (train, held))
    from sae_lens import TopKTrainingSAE, TopKTrainingSAEConfig
    from sae_lens.config import LoggingConfig, SAETrainerConfig
    from sae_lens.training.sae_trainer import SAETrainer

    torch.manual_seed(seed)
    rows, shuffle = torch.from_numpy(train.rows), torch.Generator().manual_seed(seed)

    def batches() -> Iterator[torch.Tensor]:
        while True:
            order = torch.randperm(len(rows), generator=shuffle)
            for at in order[: len(rows) // BATCH * BATCH].split(BATCH):
                yield rows[at]

    sae = TopKTrainingSAE(TopKTrainingSAEConfig(d_in=WIDTH, d_sae=FEATURES, k=ACTIVE))
    config = SAETrainerConfig(
        n_checkpoints=0, checkpoint_path=None, save_final_checkpoint=False,
        total_training_samples=EPOCHS * len(rows), device="cpu", autocast=False,
        lr=lr, lr_end=lr / 10, lr_scheduler_name="constant", lr_warm_up_steps=0,
        adam_beta1=0.9, adam_beta2=0.999, lr_decay_steps=0, n_restart_cycles=1,
        train_batch_size_samples=BATCH, dead_feature_window=1000, feature_sampling_window=2000,
        logger=LoggingConfig(log_to_wandb=False), n_batches_for_norm_estimate=100,
    )  # fmt: skip
    SAETrainer(cfg=config, sae=sae, data_provider=batches()).fit()
    x = torch.from_numpy(held.rows)
    with torch.no_grad():
        codes = sae.encode(x)
        codes = codes.to_dense() if codes.is_sparse else codes
        rebuilt = sae.decode(codes)
    return figures(sae.W_dec.detach().numpy(), codes.numpy() > 0, rebuilt.numpy(), held)


def check_folders(folder: Path) -> None:
    """Compare what SAELens computes from a folder with what refold does, both ways."""
    from sae_lens import SAE

    rows = drawn(4096, 0).rows
    for way, options in WAYS.items():
        ae = refold.Autoencoder(recipe="dictionary", epochs=1, **options).fit(rows)
        peer = SAE.load_from_disk(refold.saelens.write(ae, folder / way))
        x = rows[:512]
        with torch.no_grad():
            codes = peer.encode(torch.from_numpy(x)).numpy()
            back = peer.decode(torch.from_numpy(codes)).numpy()
        peer.save_model(folder / f"{way}-theirs")
        again = refold.saelens.read(folder / f"{way}-theirs")
        factor = ae.schema_.fields["x"].std[0]
        gaps = (
            np.abs(codes - factor * ae.transform(x)).max() / codes.max(),
            np.abs(back - ae.reconstruct(x)).max() / np.abs(x).max(),
            np.abs(codes - again.transform(x)).max() / codes.max(),
            np.abs(back - again.reconstruct(x)).max() / np.abs(x).max(),
        )
        print(f"{way:12} greatest gap, of the largest value: {max(gaps):.1e}", flush=True)


def main() -> None:
    """Print a line for each way and seed."""
    asked = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    asked.add_argument("--recipes", nargs="*", default=["topk", "batch_topk", "matryoshka"])
    asked.add_argument("--seeds", nargs="*", type=int, default=[0])
    asked.add_argument("--peer", action="store_true")
    asked.add_argument("--lr", type=float, help="of refold's; else the recipe's own")
    asked.add_argument("--peer-lr", type=float, nargs="*", default=[3e-4])
    asked.add_argument("--folders", action="store_true", help="only whether folders agree")
    given = asked.parse_args()
    if given.folders:
        with tempfile.TemporaryDirectory() as folder:
            check_folders(Path(folder))
        return
    options = {} if given.lr is None else {"lr": given.lr}
    for seed in given.seeds:
        every = drawn(ROWS + HELD, seed)
        train, held = (
            Truth(every.rows[at], every.directions, every.fired[at])
            for at in (slice(ROWS), slice(ROWS, None))
        )
        runs = {
            f"refold {w}": partial(ours, w, train, held, seed, **options) for w in given.recipes
        }
        for lr in given.peer_lr if given.peer else ():
            for centred in (False, True):
                name = f"SAELens topk, lr {lr:g}{', centred' if centred else ''}"
                runs[name] = partial(theirs, train, held, seed, lr, centred)
        for name, run in runs.items():
            began = time.perf_counter()
            found = run()
            shown = "  ".join(f"{k} {v:.3f}" for k, v in found.items())
            print(
                f"seed {seed}  {name:34} {shown}  {time.perf_counter() - began:.0f} s", flush=True
            )


if __name__ == "__main__":
    main()
