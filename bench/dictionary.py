"""What a step of training a sparse dictionary costs, beside plain loops and SAELens and sparsify.

    python bench/dictionary.py [--sizes 4096 16384 32768] [--repeats 9] [--peers FOLDER]
    python bench/dictionary.py --threads 1 --cpu ...     where others use the machine too

Dictionaries of 512 numbers in batches of 1,024 rows, 32 latents active in each, on rows that are
sparse sums of directions. All take turns in one process, each with an untimed step before the timed
ones; a ratio is the median over the turns of the other's time by refold's, so above 1 means that
refold is faster. Everybody trains by Adam, and as follows:

- ``refold``: unit directions, gradients projected; ``refold, fp32``: without rounded candidates.
- ``dense``: a bare loop by autograd with a fused Adam; nothing is projected, clipped or logged.
- ``SAELens``: its top-k dictionary and its trainer's own step with its defaults, which clip
  gradients and count what fired (its ``use_sparse_activations`` fails under torch 2.13).
- ``sparsify``: its coder without Triton, with its trainer's projection and unit directions, and the
  optimiser that it builds when asked for Adam; ``sparsify, fused`` is with torch's fused one.

The peers are imported from ``--peers``, where ``pip install --target`` has put them; those that
are not there are left out and named.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from refold.backbones import Flat
from refold.backbones.base import Geometry
from refold.fusion import Dictionary
from refold.latents import TopK
from refold.likelihoods import SquaredError
from refold.model import Model
from refold.training.machine import keeping_memory
from refold.training.plan import Plan
from refold.training.steps.dictionary import DictionaryStep
from refold.types import Batch

WIDTH, BATCH, ACTIVE, RATE = 512, 1024, 32, 2e-4
TIMED = 2  # steps in a turn, after one that brings memory back

Take = Callable[[Tensor], object]
Clock = Callable[[], float]


def rows(batches: int) -> list[Tensor]:
    """Sparse sums of 4,096 unit directions, of heavy-tailed sizes, with a little noise."""
    draw = torch.Generator().manual_seed(0)
    directions = nn.functional.normalize(torch.randn(4096, WIDTH, generator=draw), dim=1)
    made: list[Tensor] = []
    for _ in range(batches):
        at = torch.randint(4096, (BATCH, ACTIVE), generator=draw)
        size = torch.rand(BATCH, ACTIVE, generator=draw).log().neg()
        x = nn.functional.embedding_bag(at, directions, mode="sum", per_sample_weights=size)
        made.append(x + 0.05 * torch.randn(BATCH, WIDTH, generator=draw))
    return made


def model_of(size: int) -> Model:
    """A dictionary of one vector as refold has it."""
    geometry = Geometry((WIDTH,), (1,) * WIDTH, WIDTH, missing=False)
    widths = {"x": WIDTH}
    body, latent = Dictionary(widths, widths, size, size), TopK(size, k=ACTIVE, rectify=True)
    likelihood = SquaredError((1,) * WIDTH)
    return Model({"x": Flat(geometry)}, body, latent, {"x": likelihood}).train()


def refold(size: int, *, rounded: bool = True) -> Take:
    """Take the step of refold."""
    model = model_of(size)
    plan = Plan.choose(BATCH * 100, batch_size=BATCH, optimizer="adam", lr=RATE)
    step = DictionaryStep(model, plan, torch.device("cpu"))
    if not rounded:
        step.rounded = None

    def take(x: Tensor) -> object:
        batch = Batch({"x": x}, {"x": None})
        return step.take(batch, batch)

    return take


def dense(size: int) -> Take:
    """What one would write by hand."""
    encoder = nn.Parameter(torch.randn(size, WIDTH) / WIDTH**0.5)
    decoder = nn.Parameter(encoder.detach().clone())
    bias, centre = nn.Parameter(torch.zeros(size)), nn.Parameter(torch.zeros(WIDTH))
    optimizer = torch.optim.Adam([encoder, decoder, bias, centre], lr=RATE, fused=True)

    def take(x: Tensor) -> object:
        h = nn.functional.linear(x - centre, encoder, bias)
        values, at = h.topk(ACTIVE, dim=1, sorted=False)
        z = torch.zeros_like(h).scatter(1, at, values.relu())
        loss = (torch.addmm(centre, z, decoder) - x).square().sum(1).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return take


def saelens(size: int) -> Take:
    """SAELens' trainer, a step at a time."""
    import sae_lens
    from sae_lens.config import SAETrainerConfig
    from sae_lens.training.sae_trainer import SAETrainer

    config = sae_lens.TopKTrainingSAEConfig(d_in=WIDTH, d_sae=size, k=ACTIVE)
    sae = sae_lens.TopKTrainingSAE(config)
    course = SAETrainerConfig(
        total_training_samples=BATCH * 1_000_000,
        train_batch_size_samples=BATCH,
        lr=RATE,
        lr_end=RATE,
    )
    trainer: Any = SAETrainer(course, sae, iter(()))
    return trainer.step


def sparsify(size: int, *, fused: bool | None = None) -> Take:
    """Take a step of sparsify, its coder and what its trainer does around it."""
    from sparsify import SparseCoder, SparseCoderConfig

    config: Any = SparseCoderConfig(num_latents=size, k=ACTIVE)
    coder: Any = SparseCoder(WIDTH, config, dtype=torch.float32)
    optimizer = torch.optim.Adam(coder.parameters(), lr=RATE, fused=fused)
    silent = torch.zeros(size, dtype=torch.long)

    def take(x: Tensor) -> object:
        coder.set_decoder_norm_to_unit_norm()
        out = coder(x)
        fired = torch.zeros(size, dtype=torch.bool)
        fired[out.latent_indices.flatten()] = True
        out.fvu.backward()
        coder.remove_gradient_parallel_to_decoder_directions()
        optimizer.step()
        optimizer.zero_grad()
        silent.add_(len(x))[fired] = 0
        return out.fvu.detach()

    return take


CONTESTANTS: dict[str, Callable[[int], Take]] = {
    "refold": refold,
    "refold, fp32": lambda size: refold(size, rounded=False),
    "dense": dense,
    "SAELens": saelens,
    "sparsify": sparsify,
    "sparsify, fused": lambda size: sparsify(size, fused=True),
}


def turn(take: Take, data: list[Tensor], clock: Clock, ours: Model | None) -> float:
    """Milliseconds of a step, in the habit of memory that each has: ``fit`` keeps freed memory."""

    def steps() -> float:
        take(data[0])
        began = clock()
        for x in data[1 : 1 + TIMED]:
            take(x)
        return (clock() - began) / TIMED * 1e3

    if ours is None:
        return steps()
    with keeping_memory(ours, BATCH):
        return steps()


def measure(size: int, repeats: int, names: list[str], clock: Clock) -> None:
    """Print milliseconds and ratios of one size."""
    data, kept = rows(1 + TIMED), model_of(size)
    takes: dict[str, Take] = {}
    for name in names:
        try:
            takes[name] = CONTESTANTS[name](size)
        except ImportError as error:
            print(f"  {name}: left out ({error})")
    for take in takes.values():
        take(data[0])
    spent: dict[str, list[float]] = {name: [] for name in takes}
    for _ in range(repeats):
        for name, take in takes.items():
            spent[name].append(turn(take, data, clock, kept if name.startswith("refold") else None))
    print(f"{WIDTH} -> {size:,}, k {ACTIVE}, batch {BATCH}; load {os.getloadavg()[0]:.1f}")
    for name, each in spent.items():
        line = f"  {name:18} {statistics.median(each):7.0f} ms (best {min(each):.0f})"
        for ours in ("refold", "refold, fp32"):
            if ours in spent and not name.startswith("refold"):
                ratios = [other / own for other, own in zip(each, spent[ours], strict=True)]
                line += f"   {statistics.median(ratios):5.1f} x {ours} "
                line += f"({min(ratios):.1f} to {max(ratios):.1f})"
        print(line, flush=True)


def main() -> None:
    """Run every size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[4096, 16384, 32768])
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cpu", action="store_true", help="count the processor's time")
    parser.add_argument("--peers", type=Path)
    parser.add_argument("--only", nargs="+", default=list(CONTESTANTS))
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    if given.peers:
        sys.path.append(str(given.peers))
    clock = time.process_time if given.cpu else time.perf_counter
    kind = "processor" if given.cpu else "wall"
    print(f"torch {torch.__version__}, threads: {given.threads}, {kind} time")
    for size in given.sizes:
        measure(size, given.repeats, given.only, clock)


if __name__ == "__main__":
    main()
