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

from cases.learning import RATE, Bare, by_pythae, fitted, looped
from cases.rows import HELD, JUDGED, Rows, judged, table
from contest import Case, Found, Prepare, Run


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

    def learnt(self) -> Any:
        """Return refold's model of these layers, for cases where it may have learnt little."""
        import refold

        return refold.Autoencoder(
            self.code, recipe="dense", hidden=self.hidden, fusion="concat(linear=False)", epochs=1
        ).fit(self.data())


def ours(net: Dense, precision: str = "float32") -> Prepare:
    """Return all of ``fit``; the rows held out come on top."""
    return fitted(
        lambda: net.data(HELD),
        net.code,
        net.epochs,
        net.batch,
        precision,
        recipe="dense",
        hidden=net.hidden,
        fusion="concat(linear=False)",
    )


def bare(net: Dense, threads: int | None = None) -> Prepare:
    """Return the plain loop."""
    return looped(
        net.data, lambda: Bare.squared(net.network()), net.epochs, net.batch, threads=threads
    )


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
            return lambda: Bare.squared(module.network).told(x)

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
        from pythae.models import AE, AEConfig
        from pythae.models.base.base_utils import ModelOutput
        from pythae.models.nn import BaseDecoder, BaseEncoder

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
            by_pythae(model, x, net.epochs, net.batch)
            both = nn.Sequential(model.encoder.layers, model.decoder.layers)
            return lambda: Bare.squared(both).told(x)

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
