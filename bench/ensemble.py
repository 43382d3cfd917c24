"""What an ensemble in batched products takes beside as many fits in turn, and what its mean gains.

    python bench/ensemble.py time [--repeats 9]
    python bench/ensemble.py error [--seeds 3]

Rows of 30 columns: a smooth map of six numbers, with noise. ``time`` fits one ensemble of eight
members, and eight models one after the other: dense layers of 64 and a code of 8 for each, 5
epochs, the same defaults, on 1,000 rows (batches of 16) and 10,000 (of 128). Runs are interleaved;
the ratio is the median over pairs of the eight fits' time by the ensemble's, of all that ``fit``
does and of its training loop alone. ``error`` has 10,000 rows, 30 epochs and codes of 8 and of 24,
and squared errors of 10,000 new rows, in deviations of their columns and per entry: of one model,
of the members of an ensemble that use a quarter of their codes to all of it, and of the mean of
what they give.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import refold

MEMBERS, HIDDEN, COLUMNS = 8, (64,), 30
SIZES, CODES = (1_000, 10_000), (8, 24)


def rows_of(seed: int, n: int = SIZES[-1]) -> NDArray[np.float64]:
    """Rows of the same map, with noise of a tenth."""
    fixed = np.random.default_rng(0)
    into, out = fixed.normal(size=(6, 40)) / 2, fixed.normal(size=(40, COLUMNS)) / 6
    draw = np.random.default_rng(seed)
    x = np.tanh(draw.normal(size=(n, 6)) @ into) @ out
    return x + 0.1 * draw.normal(size=x.shape)


def alone(seed: int, epochs: int, code: int = CODES[0]) -> refold.Autoencoder:
    """One model, without the path that principal components start on."""
    return refold.Autoencoder(
        code, recipe="dense", hidden=HIDDEN, epochs=epochs, seed=seed, fusion="concat(linear=False)"
    )


def together(seed: int, epochs: int, widths: str, code: int = CODES[0]) -> refold.Autoencoder:
    """All members in one."""
    body = f"ensemble(members={MEMBERS}, widths={widths})"
    return refold.Autoencoder(
        MEMBERS * code, recipe="dense", hidden=HIDDEN, epochs=epochs, seed=seed, fusion=body
    )


def timed(models: list[refold.Autoencoder], x: NDArray[np.float64]) -> tuple[float, float]:
    """Seconds of fitting all, and of their training loops."""
    began = time.perf_counter()
    for model in models:
        model.fit(x)
    return time.perf_counter() - began, sum(m.history_[-1]["seconds"] for m in models)


def compare(repeats: int) -> None:
    """Print the ratios of times, with their spread."""
    for n in SIZES:
        x = rows_of(1, n)
        timed([together(0, 1, "1.0"), alone(0, 1)], x)
        ratios: list[tuple[float, float]] = []
        seconds: list[tuple[float, float]] = []
        for _ in range(repeats):
            one = timed([together(0, 5, "1.0")], x)
            eight = timed([alone(seed, 5) for seed in range(MEMBERS)], x)
            ratios.append((eight[0] / one[0], eight[1] / one[1]))
            seconds.append((one[0], eight[0]))
        told = [
            f"{what} {statistics.median(r):.2f} times as fast ({min(r):.2f} to {max(r):.2f})"
            for what, r in zip(("fit", "loop"), zip(*ratios, strict=True), strict=True)
        ]
        took = " and ".join(f"{statistics.median(s):.2f} s" for s in zip(*seconds, strict=True))
        print(f"{n:6,} rows: {', '.join(told)}; {took}, {torch.get_num_threads()} threads")


@torch.inference_mode()
def errors(ae: refold.Autoencoder, x: NDArray[np.float64]) -> list[float]:
    """Squared error per entry of the mean of all members, then of each."""
    model: Any = ae.model_
    rows = ae.schema_.encode(refold.data.sources.read(x))[0]
    z = model.encode(rows)[0].z
    each = model.fusion.decode(z)["x"].unflatten(0, (model.fusion.members, -1))
    found = [each.mean(0), *(each if len(each) > 1 else [])]
    return [float((own - rows.x["x"]).square().mean()) for own in found]


def judge(seeds: int) -> None:
    """Print the errors of one model, of members, and of their mean."""
    names = ("one model", "members", "the best of them", "their mean", "mean of eight that use all")
    for code in CODES:
        found: list[list[float]] = []
        for seed in range(seeds):
            x, new = rows_of(2 * seed + 1), rows_of(2 * seed + 2)
            one = errors(alone(seed, 30, code).fit(x), new)[0]
            mean, *members = errors(together(seed, 30, "(0.25, 1.0)", code).fit(x), new)
            whole, *_ = errors(together(seed, 30, "1.0", code).fit(x), new)
            found.append([one, statistics.mean(members), min(members), mean, whole])
        for name, values in zip(names, zip(*found, strict=True), strict=True):
            print(f"code of {code:2}, {name}: {statistics.mean(values):.4f} "
                  f"({min(values):.4f} to {max(values):.4f})", flush=True)  # fmt: skip


def main() -> None:
    """Run the part that was asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=("time", "error"))
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--seeds", type=int, default=3)
    given = parser.parse_args()
    if given.part == "time":
        compare(given.repeats)
    else:
        judge(given.seeds)


if __name__ == "__main__":
    main()
