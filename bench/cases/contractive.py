"""One layer of sigmoids whose Jacobian costs its squared norm, which has a closed form."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from cases.dense import RATE, products
from cases.rows import HELD, JUDGED, judged, table
from contest import Case, Found, Prepare, Run

COLUMNS, CODE, BATCH, WEIGHT = 784, 64, 256, 0.1


def ours(rows: int, epochs: int, precision: str) -> Prepare:
    """Return all of ``fit``."""

    def prepare() -> Run:
        import refold

        x = table(rows + HELD, COLUMNS)

        def run() -> Callable[[], Found]:
            ae = refold.Autoencoder(
                f"kl(size={CODE}, weight=0.0)",
                recipe="dense",
                hidden=(),
                penalties=(f"contractive(weight={WEIGHT}, method=closed)",),
                weights="equal",
                epochs=epochs,
                batch_size=BATCH,
                optimizer="adam",
                lr=RATE,
                schedule="constant",
                patience=epochs + 1,
                validation=HELD / len(x),
                precision=precision,
            ).fit(x)
            return lambda: judged(x, ae.reconstruct(x[:JUDGED]), products(ae))

        return run

    return prepare


def bare(rows: int, epochs: int) -> Prepare:
    """Return the plain loop: the norm is the squared slopes times the squared weights."""

    def prepare() -> Run:
        x = table(rows, COLUMNS)

        def run() -> Callable[[], Found]:
            seen = torch.from_numpy(x)
            down, up = nn.Linear(COLUMNS, CODE), nn.Linear(CODE, COLUMNS)
            both = [*down.parameters(), *up.parameters()]
            optimizer = torch.optim.Adam(both, lr=RATE, fused=True)
            for _ in range(epochs):
                order = torch.randperm(len(seen))
                for start in range(0, len(seen), BATCH):
                    batch = seen.index_select(0, order[start : start + BATCH])
                    z = down(batch).sigmoid()
                    slopes = (z * (1 - z)).square()
                    norms = slopes @ down.weight.square().sum(1)
                    errors = 0.5 * (up(z) - batch).square().sum(1)
                    loss = (errors + WEIGHT * norms).mean()
                    optimizer.zero_grad(set_to_none=True)
                    loss.backward()
                    optimizer.step()

            def tell() -> Found:
                with torch.inference_mode():
                    return judged(x, up(down(seen[:JUDGED]).sigmoid()))

            return tell

        return run

    return prepare


def cases(quick: bool) -> list[Case]:
    """One size."""
    rows, epochs = (512, 2) if quick else (30_000, 5)
    return [
        Case(
            "contractive 64",
            f"784-64-784, sigmoids, the Jacobian's norm in closed form, {epochs} epochs of "
            f"{rows:,} rows, batches of {BATCH}.",
            {
                "refold float32": ours(rows, epochs, "float32"),
                "refold auto": ours(rows, epochs, "auto"),
            },
            {"bare loop": bare(rows, epochs)},
            flops=2.0 * (3 * 2 - 1) * COLUMNS * CODE * rows * epochs,
        )
    ]
