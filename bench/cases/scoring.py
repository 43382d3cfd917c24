"""A million rows scored, and embedded, by a dense model."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from cases.dense import Dense
from cases.rows import Rows, table
from contest import Case, Found, Prepare, Run

NET = Dense(30, (64,), 8, rows=5_000, epochs=1)
BATCH = 256


def ours(rows: int, *, scored: bool) -> Prepare:
    """Return refold's scores, or codes."""

    def prepare() -> Run:
        ae, x = NET.learnt(), table(rows, NET.columns)

        def run() -> Callable[[], Found]:
            found = ae.score_samples(x) if scored else ae.transform(x)
            assert len(found) == rows
            return Found

        return run

    return prepare


def looped(rows: int, *, scored: bool) -> Prepare:
    """Return a loop over batches that standardises, folds, and for scores unfolds and compares."""

    def prepare() -> Run:
        net, x = NET.network(), table(rows, NET.columns)
        learnt = table(NET.rows, NET.columns)
        mean, std = torch.from_numpy(learnt.mean(0)), torch.from_numpy(learnt.std(0))
        net.eval()

        @torch.no_grad()
        def run() -> Callable[[], Found]:
            found: list[Rows] = []
            for start in range(0, rows, BATCH):
                batch = (torch.from_numpy(x[start : start + BATCH]) - mean) / std
                code = net[0](batch)
                if scored:
                    errors = (net[1](code) - batch).square().sum(1)
                found.append((errors if scored else code).numpy())
            assert len(np.concatenate(found)) == rows
            return Found

        return run

    return prepare


def flops(rows: int, *, scored: bool) -> float:
    """Two for each weight and row."""
    once = 2.0 * (NET.columns * 64 + 64 * NET.code) * rows
    return 2 * once if scored else once


def cases(quick: bool) -> list[Case]:
    """Scores and codes."""
    rows = 5_000 if quick else 1_000_000
    return [
        Case(
            name,
            f"{rows:,} rows of 30 columns, 30-64-8-64-30; the loop has batches of {BATCH}, without "
            "gradients.",
            {"refold": ours(rows, scored=scored)},
            {"loop over batches": looped(rows, scored=scored)},
            {("refold", "loop over batches"): 3.0} if scored else {},
            flops(rows, scored=scored),
        )
        for name, scored in (("scoring", True), ("embedding", False))
    ]
