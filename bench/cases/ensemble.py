"""Eight small models as one, beside eight fits in turn."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from cases.rows import judged, table
from contest import Case, Found, Prepare, Run

MEMBERS, COLUMNS, HIDDEN, CODE = 8, 30, 64, 8


def fits(rows: int, epochs: int, *, together: bool) -> Prepare:
    """Return one fit of all members, or one after the other; batches are chosen by refold."""

    def prepare() -> Run:
        import refold

        x = table(rows, COLUMNS)
        body = f"ensemble(members={MEMBERS})" if together else "concat(linear=False)"
        size = MEMBERS * CODE if together else CODE

        def run() -> Callable[[], Found]:
            models = [
                refold.Autoencoder(
                    size, recipe="dense", hidden=(HIDDEN,), fusion=body, epochs=epochs,
                    patience=epochs + 1, seed=seed,
                ).fit(x)
                for seed in range(1 if together else MEMBERS)
            ]  # fmt: skip
            return lambda: judged(x, np.mean([m.reconstruct(x) for m in models], axis=0))

        return run

    return prepare


def cases(quick: bool) -> list[Case]:
    """A thousand rows, where calls cost most, and ten thousand, where products do."""
    epochs = 2 if quick else 5
    return [
        Case(
            f"ensemble of 8, {rows:,} rows",
            f"Eight times 30-64-8-64-30, {epochs} epochs; the error is that of their mean.",
            {"refold as one": fits(200 if quick else rows, epochs, together=True)},
            {"eight fits in turn": fits(200 if quick else rows, epochs, together=False)},
            {("refold as one", "eight fits in turn"): 4.0},
        )
        for rows in (1_000, 10_000)
    ]
