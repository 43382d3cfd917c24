"""Unusual rows: learnt from and scored, as PyOD's autoencoder does it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from cases.learning import RATE, plan
from cases.rows import HELD, Rows, table
from contest import Case, Found, Prepare, Run

COLUMNS, WIDTHS, BATCH = 30, (64, 32), 32
UNUSUAL = 50  # one row in so many has three of its columns from others


def planted(n: int) -> tuple[Rows, NDArray[np.bool_]]:
    """Rows, and which of them are unusual."""
    x, odd = table(n, COLUMNS), np.arange(n) % UNUSUAL == 0
    x[odd, :3] = np.random.default_rng(2).permuted(x[odd, :3], axis=0)
    return x, odd


def told(scores: NDArray[np.float64], odd: NDArray[np.bool_]) -> float:
    """How well scores tell unusual rows: the area under the curve."""
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(odd, scores))


def ours(rows: int, epochs: int) -> Prepare:
    """Return refold's fit and scores; the rows held out come on top."""

    def prepare() -> Run:
        import refold

        x, odd = planted(rows + HELD)

        def run() -> Callable[[], Found]:
            ae = refold.Autoencoder(
                WIDTHS[1],
                recipe="dense",
                hidden=WIDTHS[:1],
                fusion="concat(linear=False)",
                **plan(len(x), epochs, BATCH),
            ).fit(x)
            scores = -ae.score_samples(x[:rows])
            return lambda: Found(told(scores, odd[:rows]))

        return run

    return prepare


def pyod(rows: int, epochs: int) -> Prepare:
    """Return PyOD's autoencoder, without the norms and dropout that it has by default."""

    def prepare() -> Run:
        from pyod.models.auto_encoder import AutoEncoder

        x, odd = planted(rows)

        def run() -> Callable[[], Found]:
            detector = AutoEncoder(
                hidden_neuron_list=list(WIDTHS), batch_norm=False, dropout_rate=0.0,
                epoch_num=epochs, batch_size=BATCH, lr=RATE, verbose=0,
            ).fit(x)  # fmt: skip
            scores = detector.decision_scores_  # of the rows it was fitted on: fit has them
            return lambda: Found(told(scores, odd))

        return run

    return prepare


def cases(quick: bool) -> list[Case]:
    """One size."""
    rows, epochs = (500, 1) if quick else (10_000, 10)
    return [
        Case(
            "anomalies",
            f"30-64-32-64-30, {epochs} epochs of {rows:,} rows, batches of {BATCH}, and their "
            "scores; PyOD without its norms and dropout.",
            {"refold": ours(rows, epochs)},
            {"PyOD AutoEncoder": pyod(rows, epochs)},
            {("refold", "PyOD AutoEncoder"): 2.0},
            error="AUROC",
        )
    ]
