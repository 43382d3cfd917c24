"""A variational autoencoder of pixels, as Pythae has it by default."""

from __future__ import annotations

import tempfile
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cases.dense import RATE, products
from cases.rows import HELD, JUDGED, judged, pixels
from contest import Case, Found, Prepare, Run

COLUMNS, HIDDEN, CODE, BATCH = 784, 512, 20, 128
FIELD = {"x": "vector(scale='unit', likelihood='bernoulli')"}


def ours(rows: int, epochs: int, precision: str) -> Prepare:
    """Return all of ``fit``."""

    def prepare() -> Run:
        import refold

        x = pixels(rows + HELD)

        def run() -> Callable[[], Found]:
            ae = refold.Autoencoder(
                f"gaussian(size={CODE})",
                recipe="vae",
                hidden=(HIDDEN,),
                fields=FIELD,
                weights="equal",
                epochs=epochs,
                batch_size=BATCH,
                optimizer="adam",
                lr=RATE,
                schedule="constant",
                patience=epochs + 1,
                validation=HELD / len(x),
                precision=precision,
            ).fit({"x": x})
            seen = {"x": x[:JUDGED]}
            return lambda: judged(x, ae.reconstruct(seen)["x"], products(ae))

        return run

    return prepare


class Vae(nn.Module):
    """784-512-20-512-784, whose forward pass is the evidence bound of a batch."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Linear(COLUMNS, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 2 * CODE)
        )
        self.decoder = nn.Sequential(nn.Linear(CODE, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, COLUMNS))

    def forward(self, x: Tensor) -> Tensor:
        """Return nats a row."""
        mean, spread = self.encoder(x).chunk(2, 1)
        z = mean + torch.randn_like(mean) * (0.5 * spread).exp()
        nll = F.binary_cross_entropy_with_logits(self.decoder(z), x, reduction="sum")
        kl = 0.5 * (mean.square() + spread.exp() - spread - 1).sum()
        return (nll + kl) / len(x)

    def back(self, x: Tensor) -> Tensor:
        """Return what comes back of the mean code."""
        return self.decoder(self.encoder(x)[:, :CODE]).sigmoid()


def bare(rows: int, epochs: int) -> Prepare:
    """Return the plain loop."""

    def prepare() -> Run:
        x = pixels(rows)

        def run() -> Callable[[], Found]:
            net, seen = Vae(), torch.from_numpy(x)
            optimizer = torch.optim.Adam(net.parameters(), lr=RATE, fused=True)
            for _ in range(epochs):
                order = torch.randperm(len(seen))
                for start in range(0, len(seen), BATCH):
                    loss = net(seen.index_select(0, order[start : start + BATCH]))
                    optimizer.zero_grad(set_to_none=True)
                    loss.backward()
                    optimizer.step()

            def tell() -> Found:
                with torch.inference_mode():
                    return judged(x, net.back(seen[:JUDGED]))

            return tell

        return run

    return prepare


def pythae(rows: int, epochs: int) -> Prepare:
    """Return Pythae's own model and trainer."""

    def prepare() -> Run:
        from pythae.data.datasets import BaseDataset
        from pythae.models import VAE, VAEConfig
        from pythae.trainers import BaseTrainer, BaseTrainerConfig

        x = pixels(rows)

        def run() -> Callable[[], Found]:
            config = VAEConfig(input_dim=(COLUMNS,), latent_dim=CODE, reconstruction_loss="bce")
            model, seen = VAE(config), torch.from_numpy(x)
            with tempfile.TemporaryDirectory() as folder:
                training = BaseTrainerConfig(
                    output_dir=folder,
                    num_epochs=epochs,
                    per_device_train_batch_size=BATCH,
                    learning_rate=RATE,
                    optimizer_cls="Adam",
                    optimizer_params={"fused": True},
                    no_cuda=True,
                )
                BaseTrainer(
                    model, BaseDataset(seen, torch.zeros(len(x))), training_config=training
                ).train()

            def tell() -> Found:
                with torch.inference_mode():
                    code = model.encoder(seen[:JUDGED]).embedding
                    return judged(x, model.decoder(code)["reconstruction"])

            return tell

        return run

    return prepare


def cases(quick: bool) -> list[Case]:
    """One size."""
    rows, epochs = (512, 2) if quick else (20_000, 3)
    sizes = 2 * COLUMNS * HIDDEN + 3 * HIDDEN * CODE
    return [
        Case(
            "VAE",
            f"784-512-20-512-784, cross-entropy on pixels, {epochs} epochs of {rows:,} rows, "
            f"batches of {BATCH}.",
            {
                "refold float32": ours(rows, epochs, "float32"),
                "refold auto": ours(rows, epochs, "auto"),
            },
            {"bare loop": bare(rows, epochs), "Pythae": pythae(rows, epochs)},
            flops=2.0 * (3 * sizes - COLUMNS * HIDDEN) * rows * epochs,
        )
    ]
