"""Dictionaries of many sparse entries, learnt from activations: steps of training."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from contest import Case, Found, Prepare, Run

COLUMNS, ACTIVE, BATCH, RATE = 512, 32, 1024, 1e-4


def activations(n: int) -> Tensor:
    """Sums of a few of 4,096 unit directions, with heavy-tailed weights, and some noise."""
    draw = np.random.default_rng(0)
    directions = draw.standard_normal((4096, COLUMNS)).astype(np.float32)
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    x = np.float32(0.05) * draw.standard_normal((n, COLUMNS), np.float32)
    for _ in range(ACTIVE // 2):
        size = draw.exponential(1.0, (n, 1)).astype(np.float32)
        x += size * directions[draw.integers(0, len(directions), n)]
    return torch.from_numpy(x)


class Dense(nn.Module):
    """The textbook's step: the largest entries scattered into zeros, and two full products."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.encoder = nn.Linear(COLUMNS, size)
        self.decoder = nn.Linear(size, COLUMNS)
        with torch.no_grad():
            self.encoder.bias.zero_()
            self.decoder.bias.zero_()
            self.decoder.weight.copy_(F.normalize(self.encoder.weight, dim=1).T)

    def forward(self, x: Tensor) -> Tensor:
        """Return what comes back."""
        values, at = self.encoder(x - self.decoder.bias).relu().topk(ACTIVE, dim=1, sorted=False)
        code = x.new_zeros(len(x), self.encoder.out_features).scatter(1, at, values)
        return self.decoder(code)


def ours(size: int, steps: int) -> Prepare:
    """Return the steps that ``recipe="dictionary"`` takes in ``fit``, on rows scaled as there."""

    def prepare() -> Run:
        from refold.assemble import Wishes, assemble
        from refold.data.containers import container
        from refold.data.schema import Schema
        from refold.table import Table
        from refold.training.machine import keeping_memory
        from refold.training.plan import Plan
        from refold.training.steps import choose

        x = activations(BATCH * steps)
        given = Table({"x": x.numpy()}, container("numpy"))
        schema = Schema.fit(given, np.arange(len(x)), {"x": "vector(scale='pooled')"})
        rows = schema.encode(given)[0]
        wishes = Wishes(recipe="dictionary", latent=f"topk(size={size}, k={ACTIVE}, rectify=True)")
        model = assemble(schema, rows, wishes).spec.build(schema).train()
        plan = Plan.choose(len(x), batch_size=BATCH, lr=RATE, optimizer="adam")
        step = choose(model, plan, torch.device("cpu"))
        batches = [rows.rows(slice(at, at + BATCH)) for at in range(0, len(x), BATCH)]

        def run() -> Callable[[], Found]:
            with keeping_memory(model, BATCH):
                for batch in batches:
                    step.take(batch, batch)

            @torch.no_grad()
            def tell() -> Found:
                back = schema.decode(dict(model(batches[-1], batches[-1]).params))["x"]
                return Found(float(np.square(back - x[-BATCH:].numpy()).sum(1).mean()))

            return tell

        return run

    return prepare


def looped(size: int, steps: int) -> Prepare:
    """Return the dense loop; decoder columns are kept at norm one, as the others' rows are."""

    def prepare() -> Run:
        x = activations(BATCH * steps)
        net = Dense(size)
        optimizer = torch.optim.Adam(net.parameters(), lr=RATE, fused=True)

        def run() -> Callable[[], Found]:
            for batch in x.split(BATCH):
                loss = (net(batch) - batch).square().sum(1).mean()
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                with torch.no_grad():
                    net.decoder.weight.div_(net.decoder.weight.norm(dim=0))
            return lambda: Found(loss.item())

        return run

    return prepare


def saelens(size: int, steps: int, *, sparse: bool) -> Prepare:
    """Return steps of SAELens' own trainer: clipped gradients, counts of what fired.

    With its defaults, and with ``sparse`` activations, the fastest setting of it that was found.
    """

    def prepare() -> Run:
        from sae_lens import TopKTrainingSAE, TopKTrainingSAEConfig
        from sae_lens.config import LoggingConfig, SAETrainerConfig
        from sae_lens.training.sae_trainer import SAETrainer

        x = activations(BATCH * steps)
        sae = TopKTrainingSAE(
            TopKTrainingSAEConfig(
                d_in=COLUMNS,
                d_sae=size,
                k=ACTIVE,
                device="cpu",
                use_sparse_activations=sparse,
                rescale_acts_by_decoder_norm=not sparse,  # has no gradient for sparse ones
            )
        )

        def endless() -> Iterator[Tensor]:
            while True:
                yield from x.split(BATCH)

        trainer = SAETrainer(
            SAETrainerConfig(
                total_training_samples=BATCH * 1_000_000,
                train_batch_size_samples=BATCH,
                lr=RATE,
                lr_end=RATE,
                logger=LoggingConfig(log_to_wandb=False),
            ),
            sae,
            endless(),
        )

        def run() -> Callable[[], Found]:
            for batch in x.split(BATCH):
                output = trainer.step(batch)
                trainer.n_training_steps += 1
            return lambda: Found(output.losses["mse_loss"].item())

        return run

    return prepare


def sparsify(size: int, steps: int) -> Prepare:
    """Return steps as in the loop of sparsify's trainer, which wants a language model around it.

    Decoder rows brought to norm one, the gradient's part along them taken out, Adam, counts of what
    fired.
    """

    def prepare() -> Run:
        from sparsify import SparseCoder, SparseCoderConfig

        x = activations(BATCH * steps)
        coder = SparseCoder(COLUMNS, SparseCoderConfig(num_latents=size, k=ACTIVE))
        optimizer = torch.optim.Adam(coder.parameters(), lr=RATE)
        fired = torch.zeros(size, dtype=torch.bool)
        since = torch.zeros(size, dtype=torch.long)

        def run() -> Callable[[], Found]:
            for batch in x.split(BATCH):
                coder.set_decoder_norm_to_unit_norm()
                output = coder(batch)
                fired[output.latent_indices.flatten()] = True
                output.fvu.backward()
                coder.remove_gradient_parallel_to_decoder_directions()
                optimizer.step()
                optimizer.zero_grad()
                since.add_(len(batch))
                since[fired] = 0
                fired.zero_()
            error = (output.sae_out.detach() - batch).square().sum(1).mean()
            return lambda: Found(float(error))

        return run

    return prepare


AIMS = {16_384: (8.0, 3.0, 4.0), 32_768: (12.0, 4.0, None)}  # SAELens, sparsify, dense


def cases(quick: bool) -> list[Case]:
    """Three sizes, of which so many steps are a run."""
    sizes = {4_096: 20, 16_384: 8, 32_768: 6}
    return [dictionary(size, steps, quick) for size, steps in sizes.items()]


def dictionary(named: int, steps: int, quick: bool) -> Case:
    """One size; the models go on learning from run to run."""
    size, steps = (1_024, 2) if quick else (named, steps)
    others = {
        "SAELens": saelens(size, steps, sparse=False),
        "SAELens sparse": saelens(size, steps, sparse=True),
        "sparsify": sparsify(size, steps),
        "dense loop": looped(size, steps),
    }
    aims = zip(("SAELens", "sparsify", "dense loop"), AIMS.get(named, (None,) * 3), strict=True)
    return Case(
        f"dictionary {named:,}",
        f"{COLUMNS} numbers to {size:,}, the {ACTIVE} largest, batches of {BATCH:,}; a step. The "
        "share of the peak counts the product of the encoder alone.",
        {"refold": ours(size, steps)},
        others,
        {("refold", name): aim for name, aim in aims if aim is not None},
        2.0 * BATCH * COLUMNS * size * steps,
        units=steps,
        unit="step",
        error="squared error of a row",
    )
