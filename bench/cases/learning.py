"""How contestants learn: refold by one call, a loop by hand, and Pythae by its trainer."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cases.rows import HELD, JUDGED, Rows, judged
from contest import FULL, HALF, Found, Prepare, Run

RATE = 1e-3


def plan(rows: int, epochs: int, batch: int) -> dict[str, Any]:
    """Arguments by which refold takes the others' steps, of ``rows`` that count those held out."""
    return {
        "epochs": epochs,
        "batch_size": batch,
        "optimizer": "adam",
        "lr": RATE,
        "schedule": "constant",
        "patience": epochs + 1,
        "validation": HELD / rows,
    }


def fitted(
    data: Callable[[], Rows],
    latent: int | str,
    epochs: int,
    batch: int,
    precision: str,
    *,
    field: str | None = None,
    **model: Any,
) -> Prepare:
    """Return all of ``fit`` from an array, or from a field of that name."""

    def prepare() -> Run:
        import refold

        x = data()

        def run() -> Callable[[], Found]:
            ae = refold.Autoencoder(
                latent, weights="equal", precision=precision, **plan(len(x), epochs, batch), **model
            ).fit(x if field is None else {field: x})

            def tell() -> Found:
                seen = x[:JUDGED]
                back: Any = ae.reconstruct(seen if field is None else {field: seen})
                return judged(x, back if field is None else back[field], products(ae))

            return tell

        return run

    return prepare


def products(ae: Any) -> str:
    """Numbers that a fitted model was trained in, if only until they no longer sufficed."""
    said = [reason for reason in ae.reasons_ if HALF in reason]
    return HALF if said and not said[0].startswith(f"{HALF} until step 0,") else FULL


@dataclass(frozen=True)
class Bare:
    """A network by hand: what a batch costs, and what comes back of rows."""

    network: nn.Module
    cost: Callable[[Tensor], Tensor]
    back: Callable[[Tensor], Tensor]

    @classmethod
    def squared(cls, network: nn.Module) -> Bare:
        """A network that gives rows back, and the mean of its squared errors."""
        return cls(network, lambda rows: F.mse_loss(network(rows), rows), network)

    def train(self, x: Tensor, epochs: int, batch: int) -> None:
        """The least that a loop can do: batches by index from memory, a fused optimiser."""
        optimizer = torch.optim.Adam(self.network.parameters(), lr=RATE, fused=True)
        for _ in range(epochs):
            order = torch.randperm(len(x))
            for start in range(0, len(x), batch):
                loss = self.cost(x.index_select(0, order[start : start + batch]))
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()

    def told(self, x: Rows) -> Found:
        """How well it does."""
        self.network.eval()
        with torch.inference_mode():
            return judged(x, self.back(torch.from_numpy(x[:JUDGED])))


def looped(
    data: Callable[[], Rows],
    made: Callable[[], Bare],
    epochs: int,
    batch: int,
    *,
    threads: int | None = None,
) -> Prepare:
    """Return the plain loop, which makes its network in every run."""

    def prepare() -> Run:
        x = data()
        if threads is not None:
            torch.set_num_threads(threads)

        def run() -> Callable[[], Found]:
            bare = made()
            bare.train(torch.from_numpy(x), epochs, batch)
            return lambda: bare.told(x)

        return run

    return prepare


def by_pythae(model: Any, x: Rows, epochs: int, batch: int) -> None:
    """Train a model of Pythae's by its own trainer."""
    from pythae.data.datasets import BaseDataset
    from pythae.trainers import BaseTrainer, BaseTrainerConfig

    with tempfile.TemporaryDirectory() as folder:
        training = BaseTrainerConfig(
            output_dir=folder,
            num_epochs=epochs,
            per_device_train_batch_size=batch,
            learning_rate=RATE,
            optimizer_cls="Adam",
            optimizer_params={"fused": True},
            no_cuda=True,
        )
        rows = BaseDataset(torch.from_numpy(x), torch.zeros(len(x)))
        BaseTrainer(model, rows, training_config=training).train()
