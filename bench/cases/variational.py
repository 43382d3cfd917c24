"""A variational autoencoder of pixels, as Pythae has it by default."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cases.learning import Bare, by_pythae, fitted, looped
from cases.rows import HELD, JUDGED, judged, pixels
from contest import Case, Found, Prepare, Run

COLUMNS, HIDDEN, CODE, BATCH = 784, 512, 20, 128
FIELD = {"x": "vector(scale='unit', likelihood='bernoulli')"}


def ours(rows: int, epochs: int, precision: str) -> Prepare:
    """Return all of ``fit``."""
    return fitted(
        lambda: pixels(rows + HELD),
        f"gaussian(size={CODE})",
        epochs,
        BATCH,
        precision,
        field="x",
        recipe="vae",
        hidden=(HIDDEN,),
        fields=FIELD,
    )


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


def by_hand() -> Bare:
    """Return the plain network."""
    net = Vae()
    return Bare(net, net, net.back)


def pythae(rows: int, epochs: int) -> Prepare:
    """Return Pythae's own model and trainer."""

    def prepare() -> Run:
        from pythae.models import VAE, VAEConfig

        x = pixels(rows)

        def run() -> Callable[[], Found]:
            config = VAEConfig(input_dim=(COLUMNS,), latent_dim=CODE, reconstruction_loss="bce")
            model = VAE(config)
            by_pythae(model, x, epochs, BATCH)

            def tell() -> Found:
                with torch.inference_mode():
                    code = model.encoder(torch.from_numpy(x[:JUDGED])).embedding
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
            {
                "bare loop": looped(lambda: pixels(rows), by_hand, epochs, BATCH),
                "Pythae": pythae(rows, epochs),
            },
            flops=2.0 * (3 * sizes - COLUMNS * HIDDEN) * rows * epochs,
        )
    ]
