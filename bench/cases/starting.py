"""How long it takes until something happens: a command, an import, a first model."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

from contest import Case, Found, Prepare, Run

REFOLD = """
import numpy, refold
x = numpy.random.default_rng(0).normal(size=(500, 8))
refold.Autoencoder(2, recipe="dense", hidden=(16,), epochs=3, batch_size=32).fit(x)
"""
TORCH = """
import numpy, torch
from torch import nn
x = torch.from_numpy(numpy.random.default_rng(0).normal(size=(500, 8))).float()
net = nn.Sequential(
    nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2), nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 8))
optimizer = torch.optim.Adam(net.parameters(), fused=True)
for _ in range(3):
    for rows in x[torch.randperm(500)].split(32):
        optimizer.zero_grad()
        nn.functional.mse_loss(net(rows), rows).backward()
        optimizer.step()
"""
LIGHTNING = """
import lightning, numpy, tempfile, torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

class Module(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2),
            nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 8))

    def training_step(self, batch, _):
        return nn.functional.mse_loss(self.net(batch[0]), batch[0])

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), fused=True)

x = torch.from_numpy(numpy.random.default_rng(0).normal(size=(500, 8))).float()
with tempfile.TemporaryDirectory() as folder:
    trainer = lightning.Trainer(max_epochs=3, default_root_dir=folder)
    trainer.fit(Module(), DataLoader(TensorDataset(x), batch_size=32, shuffle=True))
"""


def process(*arguments: str) -> Prepare:
    """Return a run of Python with these arguments, from the start of the process to its end."""

    def prepare() -> Run:
        def run() -> Callable[[], Found]:
            command = [sys.executable, *arguments]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise RuntimeError(done.stderr.strip().splitlines()[-1])
            return Found

        return run

    return prepare


def cases(quick: bool) -> list[Case]:
    """A command, imports, and first models; all are as quick as they can be."""
    modules = ("torch", "lightning", "pythae.models", "sae_lens")
    return [
        Case(
            "start of a command",
            "A process from its start to its end.",
            {
                "refold --help": process("-m", "refold", "--help"),
                "import refold": process("-c", "import refold"),
            },
            {"import torch": process("-c", "import torch")},
            unit="process",
            inside=False,
        ),
        Case(
            "imports",
            "A process from its start to its end.",
            {"refold.Autoencoder": process("-c", "import refold; refold.Autoencoder")},
            {f"import {module}": process("-c", f"import {module}") for module in modules},
            unit="process",
            inside=False,
        ),
        Case(
            "first model",
            "Imports and three epochs of 500 rows, 8-16-2-16-8, batches of 32.",
            {"refold": process("-c", REFOLD)},
            {"bare loop": process("-c", TORCH), "Lightning": process("-c", LIGHTNING)},
            unit="process",
            inside=False,
        ),
    ]
