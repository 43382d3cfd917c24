"""One layer of sigmoids whose Jacobian costs its squared norm, which has a closed form."""

from __future__ import annotations

from torch import Tensor, nn

from cases.learning import Bare, fitted, looped
from cases.rows import HELD, table
from contest import Case, Prepare

COLUMNS, CODE, BATCH, WEIGHT = 784, 64, 256, 0.1


def ours(rows: int, epochs: int, precision: str) -> Prepare:
    """Return all of ``fit``."""
    return fitted(
        lambda: table(rows + HELD, COLUMNS),
        f"kl(size={CODE}, weight=0.0)",
        epochs,
        BATCH,
        precision,
        recipe="dense",
        hidden=(),
        penalties=(f"contractive(weight={WEIGHT}, method=closed)",),
    )


def by_hand() -> Bare:
    """Return two layers; the norm is the squared slopes times the squared weights."""
    down, up = nn.Linear(COLUMNS, CODE), nn.Linear(CODE, COLUMNS)

    def cost(batch: Tensor) -> Tensor:
        z = down(batch).sigmoid()
        slopes = (z * (1 - z)).square()
        norms = slopes @ down.weight.square().sum(1)
        errors = 0.5 * (up(z) - batch).square().sum(1)
        return (errors + WEIGHT * norms).mean()

    return Bare(nn.ModuleList([down, up]), cost, lambda x: up(down(x).sigmoid()))


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
            {"bare loop": looped(lambda: table(rows, COLUMNS), by_hand, epochs, BATCH)},
            flops=2.0 * (3 * 2 - 1) * COLUMNS * CODE * rows * epochs,
        )
    ]
