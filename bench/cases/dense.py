"""Dense networks: a small table, rows as wide as a digit, and layers that fill the processor."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cases.rows import HELD, JUDGED, Rows, judged, table
from contest import FULL, HALF, Case, Found, Prepare, Run

RATE = 1e-3


@dataclass(frozen=True)
class Dense:
    """Layers ``columns``, ``hidden``, ``code`` and back, and how long they are trained."""

    columns: int
    hidden: tuple[int, ...]
    code: int
    rows: int
    epochs: int
    batch: int = 256

    @property
    def widths(self) -> list[int]:
        """All of them, from rows to rows."""
        return [self.columns, *self.hidden, self.code, *self.hidden[::-1], self.columns]

    @property
    def flops(self) -> float:
        """Two for each weight and row, three times but in the first layer, which is not left."""
        sizes = [a * b for a, b in pairwise(self.widths)]
        return 2.0 * (3 * sum(sizes) - sizes[0]) * self.rows * self.epochs

    def network(self) -> nn.Sequential:
        """Return the layers, with rectifiers between, but at the code."""
        return nn.Sequential(self.half(down=True), self.half(down=False))

    def half(self, *, down: bool) -> nn.Sequential:
        """The way to the code, or back."""
        widths = [self.columns, *self.hidden, self.code]
        layers: list[nn.Module] = []
        for a, b in pairwise(widths if down else widths[::-1]):
            layers += [nn.Linear(a, b), nn.ReLU()]
        return nn.Sequential(*layers[:-1])

    def data(self, more: int = 0) -> Rows:
        """Rows to learn from."""
        return table(self.rows + more, self.columns)


def ours(net: Dense, precision: str = "float32") -> Prepare:
    """Return all of ``fit`` from an array; the rows held out come on top."""

    def prepare() -> Run:
        import refold

        x = net.data(HELD)

        def run() -> Callable[[], Found]:
            ae = refold.Autoencoder(
                net.code,
                recipe="dense",
                hidden=net.hidden,
                fusion="concat(linear=False)",
                weights="equal",
                epochs=net.epochs,
                batch_size=net.batch,
                optimizer="adam",
                lr=RATE,
                schedule="constant",
                patience=net.epochs + 1,
                validation=HELD / len(x),
                precision=precision,
            ).fit(x)
            return lambda: judged(x, ae.reconstruct(x[:JUDGED]), products(ae))

        return run

    return prepare


def products(ae: Any) -> str:
    """Numbers that a fitted model was trained in, if only until they no longer sufficed."""
    said = [reason for reason in ae.reasons_ if HALF in reason]
    return HALF if said and not said[0].startswith(f"{HALF} until step 0,") else FULL


def seen(network: nn.Module, x: Rows) -> Found:
    """How well a network that takes and gives rows does."""
    network.eval()
    with torch.inference_mode():
        return judged(x, network(torch.from_numpy(x[:JUDGED])).numpy())


def bare(net: Dense, threads: int | None = None) -> Prepare:
    """Return the least that a loop can do: batches by index from memory, a fused optimiser."""

    def prepare() -> Run:
        x = net.data()
        if threads is not None:
            torch.set_num_threads(threads)

        def run() -> Callable[[], Found]:
            network = net.network()
            train(network, torch.from_numpy(x), net.epochs, net.batch)
            return lambda: seen(network, x)

        return run

    return prepare


def train(
    network: nn.Module,
    x: Tensor,
    epochs: int,
    batch: int,
    cost: Callable[[Tensor, Tensor], Tensor] = F.mse_loss,
) -> None:
    """Train on the cost of what the network gives and the rows themselves."""
    optimizer = torch.optim.Adam(network.parameters(), lr=RATE, fused=True)
    for _ in range(epochs):
        order = torch.randperm(len(x))
        for start in range(0, len(x), batch):
            rows = x.index_select(0, order[start : start + batch])
            loss = cost(network(rows), rows)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()


def lightning(net: Dense) -> Prepare:
    """Return Lightning's Trainer with its defaults, and torch's loader."""

    def prepare() -> Run:
        import lightning
        from torch.utils.data import DataLoader, TensorDataset

        class Module(lightning.LightningModule):
            def __init__(self) -> None:
                super().__init__()
                self.network = net.network()

            def training_step(self, batch: list[Tensor], _: int) -> Tensor:
                return F.mse_loss(self.network(batch[0]), batch[0])

            def configure_optimizers(self) -> torch.optim.Optimizer:
                return torch.optim.Adam(self.parameters(), lr=RATE, fused=True)

        x = net.data()

        def run() -> Callable[[], Found]:
            rows = TensorDataset(torch.from_numpy(x))
            loader = DataLoader(rows, batch_size=net.batch, shuffle=True)
            module = Module()
            with tempfile.TemporaryDirectory() as folder:
                trainer = lightning.Trainer(max_epochs=net.epochs, default_root_dir=folder)
                trainer.fit(module, loader)
            return lambda: seen(module.network, x)

        return run

    return prepare


def skorch(net: Dense) -> Prepare:
    """Return skorch's estimator; it learns from all rows, none are set apart."""

    def prepare() -> Run:
        from skorch import NeuralNetRegressor

        x = net.data()

        def run() -> Callable[[], Found]:
            estimator = NeuralNetRegressor(
                net.network(),
                max_epochs=net.epochs,
                batch_size=net.batch,
                optimizer=torch.optim.Adam,
                optimizer__fused=True,
                lr=RATE,
                train_split=None,
                iterator_train__shuffle=True,
            ).fit(x, x)
            return lambda: judged(x, estimator.predict(x[:JUDGED]))

        return run

    return prepare


def sklearn(net: Dense) -> Prepare:
    """Return scikit-learn's regressor of rows on themselves; its code is rectified as well."""

    def prepare() -> Run:
        import warnings

        from sklearn.exceptions import ConvergenceWarning
        from sklearn.neural_network import MLPRegressor

        warnings.simplefilter("ignore", ConvergenceWarning)
        x = net.data()

        def run() -> Callable[[], Found]:
            estimator = MLPRegressor(
                hidden_layer_sizes=(*net.hidden, net.code, *net.hidden[::-1]),
                batch_size=net.batch,
                max_iter=net.epochs,
                n_iter_no_change=net.epochs + 1,
                learning_rate_init=RATE,
                alpha=0.0,
            ).fit(x, x)
            return lambda: judged(x, estimator.predict(x[:JUDGED]))

        return run

    return prepare


def pythae(net: Dense) -> Prepare:
    """Return Pythae's trainer of its plain autoencoder with these layers."""

    def prepare() -> Run:
        from pythae.data.datasets import BaseDataset
        from pythae.models import AE, AEConfig
        from pythae.models.base.base_utils import ModelOutput
        from pythae.models.nn import BaseDecoder, BaseEncoder
        from pythae.trainers import BaseTrainer, BaseTrainerConfig

        class Encoder(BaseEncoder):
            def __init__(self) -> None:
                BaseEncoder.__init__(self)
                self.layers = net.half(down=True)

            def forward(self, x: Tensor) -> Any:
                return ModelOutput(embedding=self.layers(x))

        class Decoder(BaseDecoder):
            def __init__(self) -> None:
                BaseDecoder.__init__(self)
                self.layers = net.half(down=False)

            def forward(self, z: Tensor) -> Any:
                return ModelOutput(reconstruction=self.layers(z))

        x = net.data()

        def run() -> Callable[[], Found]:
            config = AEConfig(input_dim=(net.columns,), latent_dim=net.code)
            model = AE(config, Encoder(), Decoder())
            with tempfile.TemporaryDirectory() as folder:
                training = BaseTrainerConfig(
                    output_dir=folder,
                    num_epochs=net.epochs,
                    per_device_train_batch_size=net.batch,
                    learning_rate=RATE,
                    optimizer_cls="Adam",
                    optimizer_params={"fused": True},
                    no_cuda=True,
                )
                rows = torch.from_numpy(x)
                BaseTrainer(
                    model, BaseDataset(rows, torch.zeros(len(x))), training_config=training
                ).train()
            both = nn.Sequential(model.encoder.layers, model.decoder.layers)
            return lambda: seen(both, x)

        return run

    return prepare


def cases(quick: bool) -> list[Case]:
    """The three sizes."""
    small = Dense(30, (64,), 8, rows=100_000, epochs=10)
    digits = Dense(784, (128, 64), 12, rows=60_000, epochs=5)
    wide = Dense(784, (1024, 1024), 32, rows=10_000, epochs=3)
    if quick:
        small, digits, wide = (replace(n, rows=512, epochs=2) for n in (small, digits, wide))
    return [
        Case(
            "small table",
            f"30-64-8-64-30, {small.epochs} epochs of {small.rows:,} rows, batches of 256.",
            {"refold": ours(small)},
            {
                "bare loop": bare(small),
                "bare loop, one thread": bare(small, threads=1),
                "scikit-learn": sklearn(small),
                "Lightning": lightning(small),
                "skorch": skorch(small),
            },
            {
                ("refold", "bare loop"): 1.2,
                ("refold", "scikit-learn"): 1.0,
                ("refold", "Lightning"): 4.0,
            },
            small.flops,
        ),
        Case(
            "dense 784",
            f"784-128-64-12-64-128-784, {digits.epochs} epochs of {digits.rows:,} rows, batches "
            "of 256.",
            {"refold float32": ours(digits), "refold auto": ours(digits, "auto")},
            {
                "bare loop": bare(digits),
                "Pythae": pythae(digits),
                "Lightning": lightning(digits),
                "skorch": skorch(digits),
                "scikit-learn": sklearn(digits),
            },
            {
                ("refold float32", "bare loop"): 1.0,
                ("refold auto", "bare loop"): 1.3,
                ("refold float32", "Pythae"): 1.5,
                ("refold float32", "Lightning"): 1.7,
                ("refold float32", "skorch"): 1.6,
            },
            digits.flops,
        ),
        Case(
            "wide",
            f"784-1024-1024-32-1024-1024-784, {wide.epochs} epochs of {wide.rows:,} rows, batches "
            "of 256.",
            {"refold float32": ours(wide), "refold auto": ours(wide, "auto")},
            {"bare loop": bare(wide)},
            {("refold auto", "bare loop"): 1.8},
            wide.flops,
        ),
    ]
