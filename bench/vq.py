"""How much of a book of codes is used, with and without entries that begin anew.

    python bench/vq.py FOLDER [--rows 20000] [--epochs 10] [--seeds 3]

FOLDER holds the four IDX files of MNIST. Codes are 7x7 positions of 16 maps, each an entry of one
book of 512; perplexity and use are over the 10,000 test images. A line per seed and setting.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch

import refold
from mnist import Mnist
from refold.ops.usage import perplexity, usage

CODES = 512


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seeds", type=int, default=3)
    asked = parser.parse_args()
    data = Mnist.read(asked.folder)
    for restart in (0.1, 0.0):
        found = []
        for seed in range(asked.seeds):
            began = time.process_time()
            ae = refold.Autoencoder(
                f"vq(maps=16, size=784, codes={CODES}, restart={restart})",
                recipe="vqvae",
                epochs=asked.epochs,
                seed=seed,
            ).fit(data.train[: asked.rows])
            numbers = torch.from_numpy(ae.transform(data.test, indices=True))
            varied, used = perplexity(numbers), usage(numbers, CODES)
            error = float(np.mean((ae.reconstruct(data.test) - data.test) ** 2))
            found.append((varied, used, error))
            print(
                f"restart {restart:<4} seed {seed}  perplexity {varied:6.1f} "
                f"({varied / CODES:.0%} of the book)  in use {used:.0%}  squared error a pixel "
                f"{error:.5f}  {time.process_time() - began:.0f} CPU-s",
                flush=True,
            )
        mean = np.mean(found, 0)
        print(f"restart {restart:<4} mean    perplexity {mean[0]:6.1f}  error {mean[2]:.5f}")


if __name__ == "__main__":
    main()
