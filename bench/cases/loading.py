"""Models and rows read from files."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import torch

from cases.dense import Dense
from cases.rows import table
from contest import Case, Found, Prepare, Run

NET = Dense(784, (128, 64), 12, rows=2_000, epochs=1)
COLUMNS = 30


def model() -> Prepare:
    """Return a model folder, checksums and all, as an estimator."""

    def prepare() -> Run:
        import refold

        kept = tempfile.TemporaryDirectory()
        NET.learnt().save(Path(kept.name) / "model")

        def run() -> Callable[[], Found]:
            assert refold.load(Path(kept.name) / "model").spec_.size == NET.code
            return Found

        return run

    return prepare


def weights() -> Prepare:
    """Return the weights alone, by torch, into a network that is there."""

    def prepare() -> Run:
        kept = tempfile.TemporaryDirectory()
        torch.save(NET.network().state_dict(), Path(kept.name) / "weights.pt")

        def run() -> Callable[[], Found]:
            path = Path(kept.name) / "weights.pt"
            NET.network().load_state_dict(torch.load(path, weights_only=True))
            return Found

        return run

    return prepare


def parquet(rows: int, *, refold_reads: bool) -> Prepare:
    """Return a Parquet file as refold's columns, or as pyarrow's table."""

    def prepare() -> Run:
        import pyarrow as pa
        import pyarrow.parquet as pq

        from refold.data.sources import read

        kept = tempfile.TemporaryDirectory()
        columns = {f"c{i}": c for i, c in enumerate(table(rows, COLUMNS).T)}
        pq.write_table(pa.table(columns), Path(kept.name) / "rows.parquet")

        def run() -> Callable[[], Found]:
            path = Path(kept.name) / "rows.parquet"
            found = read(path) if refold_reads else pq.read_table(path)
            assert len(found) == rows
            return Found

        return run

    return prepare


def cases(quick: bool) -> list[Case]:
    """A model, and a million rows."""
    rows = 5_000 if quick else 1_000_000
    return [
        Case(
            "loading a model",
            "784-128-64-12-64-128-784: the folder with everything, and its weights alone by torch.",
            {"refold": model()},
            {"torch": weights()},
        ),
        Case(
            "loading rows",
            f"A Parquet file of {rows:,} rows of {COLUMNS} columns.",
            {"refold": parquet(rows, refold_reads=True)},
            {"pyarrow": parquet(rows, refold_reads=False)},
        ),
    ]
