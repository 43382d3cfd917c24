"""What a training step costs, family by family, beside a bare hand-written loop.

    OMP_NUM_THREADS=1 python bench/family.py [--only vae sparse] [--repeats 7]

For each family a plain PyTorch module of the same sizes and the same mathematics: the one objective
spelt out, no fields, masks, logs or guards (so refold's bounds of log-variances, its figures of the
code and the like count against it). Both have the same fused optimiser and batches drawn from one
permutation. Before anything is timed, the two must agree: weights are copied over, the same draws
made, and the loss and the gradient of every parameter compared, or where draws are made otherwise
the mean loss over several. Figures are processor time of a step, medians of interleaved runs;
refold's include what its loop does between evaluations, not the evaluations. The ratio is the bare
step by refold's: at 0.9 refold takes a ninth longer.

Recipes that differ from one here in an option alone are not repeated: ``beta_vae`` and ``infovae``
(``vae``, ``wae``), ``inpainting`` and ``superresolution`` (``unet``), ``attention`` (``conv``,
``transformer``), ``gamma`` (``ladder``). ``bench/sparse.py`` times ``stacked``.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

import bare
from bare import KNOWN, Bare
from refold.assemble import Assembly, Wishes, assemble
from refold.data.corruptions import corruptions
from refold.data.schema import Schema
from refold.data.sources import read
from refold.model import Model
from refold.training.fit import Progress, fit
from refold.training.plan import Plan
from refold.training.start import start_latent
from refold.types import Batch

ROWS, SECONDS = 4096, 0.4  # rows of the data, and what a run should take
AIM = 0.9


@dataclass(frozen=True)
class Case:
    """A recipe with its sizes, the bare network of the same mathematics, and the data for both."""

    net: type[Bare]
    wishes: Wishes
    data: str = "pixels"
    batch: int = 256
    drawn: bool = True
    """Whether both make the same draws, so that gradients can be compared."""


def case(net: type[Bare], recipe: str, *, hidden: Any = (256, 128), **options: Any) -> Case:
    """Describe a case; options that :class:`Case` does not know are wishes."""
    own = {k: options.pop(k) for k in ("data", "batch", "drawn") if k in options}
    return Case(net, Wishes(recipe, hidden=hidden, **{"latent": 32, **options}), **own)


CASES: dict[str, Case] = {
    "pca": case(bare.Dense, "pca", hidden=()),
    "dense": case(bare.Dense, "dense"),
    "dense, a table": case(bare.Dense, "dense", data="table", hidden=(64,), latent=8),
    "residual": case(bare.Residual, "residual", hidden=None),
    "denoising": case(bare.Denoising, "denoising"),
    "sparse": case(bare.TopK, "sparse", latent="topk(size=256)"),
    "wta": case(bare.Lifetime, "wta", hidden=(), latent="lifetime(size=512)"),
    "nested": case(bare.Nested, "nested"),
    "conv": case(bare.Conv, "conv", hidden=(256,), batch=64),
    "unet": case(bare.Unet, "unet", hidden=(256,), batch=32),
    "vae": case(bare.Vae, "vae"),
    "iwae": case(bare.Iwae, "iwae", latent="gaussian(size=32, draws=10)", batch=64),
    "tcvae": case(bare.TotalCorrelation, "tcvae", latent=10, batch=128),
    "wae": case(bare.Wae, "wae"),
    "vampprior": case(bare.Vamp, "vampprior"),
    "mixture": case(bare.Mixture, "mixture"),
    "flow": case(bare.Flow, "flow", latent=16),
    "vqvae": case(bare.VqVae, "vqvae", hidden=None, latent=None, batch=32),
    "residual_vq": case(bare.ResidualVq, "residual_vq"),
    "fsq": case(bare.Fsq, "fsq"),
    "contractive": case(bare.Contractive, "contractive", hidden=(256,)),
    "contractive, estimated": case(bare.Hutchinson, "contractive"),
    "contrastive": case(bare.Contrastive, "contrastive", drawn=False),
    "adversarial": case(bare.Adversarial, "adversarial"),
    "semisupervised": case(bare.SemiSupervised, "semisupervised", data="labelled", latent=None),
    "ladder": case(bare.Ladder, "ladder", data="labelled", hidden=(256, 128), latent=None),
    "recurrent": case(bare.Recurrent, "recurrent", hidden=(), data="series", batch=128),
    "transformer": case(bare.Transformer, "transformer", hidden=(), batch=64),
    "masked": case(bare.Masked, "masked", hidden=(), batch=64),
    "imputation": case(bare.Imputation, "imputation", hidden=None, latent=None, data="table"),
}


def rows_of(kind: str) -> tuple[Schema, Batch]:
    """Rows of random numbers as refold's tensors: pixels, with labels or without, or a table."""
    draw = np.random.default_rng(0)
    fields: dict[str, str] = {}
    data: dict[str, Any]
    if kind == "table":
        data = {"x": draw.normal(size=(ROWS, 64))}
    elif kind == "series":
        data, fields = {"x": draw.normal(size=(ROWS, 30, 3))}, {"x": "series"}
    else:
        data = {"image": draw.random((ROWS, 28, 28), dtype=np.float32)}
    if kind == "labelled":
        label = np.full(ROWS, None, dtype=object)
        label[:KNOWN] = np.arange(KNOWN) % 10
        data["label"] = label
        fields = {"image": "image(likelihood='mse')", "label": "categorical(target=True)"}
    table = read(data)
    schema = Schema.fit(table, np.arange(ROWS), fields)
    return schema, schema.encode(table)[0]


def seeing(rows: Batch, net: Bare) -> tuple[Tensor, ...]:
    """The fields as the bare network takes them: vectors, unless it begins with something else."""
    whole = isinstance(net, bare.Conv | bare.VqVae | bare.Recurrent)
    return tuple(x if whole else x.flatten(1) for x in rows.x.values())


@torch.no_grad()
def adopt(net: Bare, model: Model) -> None:
    """Give the bare network refold's weights, parameter by parameter."""
    for mine, theirs in zip(net.parameters(), model.parameters(), strict=True):
        mine.copy_(theirs.view_as(mine))


def agree(own: Case, built: Assembly, model: Model, net: Bare, rows: Batch) -> None:
    """Fail unless both have the same loss and gradients on a batch."""
    known = KNOWN if own.data == "labelled" else 0
    at = torch.cat([torch.arange(known, known + own.batch), torch.arange(known)])
    clean, seen = rows.rows(at), seeing(rows.rows(at), net)
    noise = built.spec.corruption
    model.train()
    before = copy.deepcopy(model.state_dict())
    losses: list[tuple[float, float]] = []
    for seed in range(1 if own.drawn else 10):
        adopt(net, model)
        draw = torch.Generator().manual_seed(seed)
        batch, target = clean.only(model.inputs), clean
        if noise is not None:
            corruption = corruptions.build(noise)
            batch = corruption(batch, draw)
            target = corruption.target(target, batch)
        torch.set_rng_state(draw.get_state())
        ours = model(batch, target).loss
        torch.manual_seed(seed)
        theirs = net(*seen)
        losses.append((ours.item(), theirs.item()))
        if own.drawn:
            for total, module in ((ours, model), (theirs, net)):
                module.zero_grad()
                total.backward()
    pairs = torch.tensor(losses).mean(0)
    torch.testing.assert_close(pairs[1], pairs[0], rtol=1e-5 if own.drawn else 3e-3, atol=1e-5)
    if own.drawn:
        for (name, p), q in zip(model.named_parameters(), net.parameters(), strict=True):
            a, b = (torch.zeros_like(t) if t.grad is None else t.grad for t in (p, q))
            apart = (a - b.view_as(a)).abs().max() / (a.abs().max() + 1e-6)
            assert apart < 1e-3, f"gradients of {name} differ by {apart:.2g} of the largest"
    model.load_state_dict(before)


def stepped(net: Bare, rows: Batch, plan: Plan, options: dict[str, Any]) -> float:
    """Train with the least a loop can do; return processor seconds a step."""
    seen = seeing(rows, net)
    optimizers = net.optimizers(options)
    step, began = -2, 0.0  # two steps to warm up
    while True:
        order = torch.randperm(len(rows))
        for start in range(0, len(rows), plan.batch_size):
            at = order[start : start + plan.batch_size]
            if plan.labelled:
                at = torch.cat([at, torch.randperm(KNOWN)])
            if step == 0:
                began = time.process_time()
            loss = net(*[x.index_select(0, at) for x in seen])
            for each in optimizers:
                each.zero_grad(set_to_none=True)
            loss.backward()
            for each in optimizers:
                each.step()
            step += 1
            if step == plan.steps:
                return (time.process_time() - began) / step


def fitted(built: Assembly, model: Model, rows: Batch, plan: Plan) -> float:
    """Train with refold; return processor seconds a step, from the first tick to the last."""
    times: list[float] = []

    def watch(progress: Progress) -> None:
        times.append(time.process_time())

    noise = built.spec.corruption
    part = len(model.inputs) < len(rows.x) and noise is not None
    held = rows.rows(slice(0, 64))
    fit(
        model,
        rows,
        held,
        plan,
        inputs=rows.only(model.inputs) if part else None,
        held_inputs=held.only(model.inputs) if part else None,
        corruption=None if noise is None else corruptions.build(noise),
        watch=watch,
    )
    # The last two are after the last step, and after the evaluation that follows.
    return (times[-2] - times[1]) / (plan.steps - plan.tick)


def measure(name: str, own: Case, repeats: int) -> float:
    """Print one case's figures; return the median ratio."""
    schema, rows = rows_of(own.data)
    torch.manual_seed(0)
    built = assemble(schema, rows, own.wishes)

    def fresh() -> tuple[Model, Bare]:
        model = built.spec.build(schema)
        start_latent(model, rows)
        return model, own.net(model)

    model, net = fresh()
    agree(own, built, model, net, rows)
    options = {"lr": 1e-3, "weight_decay": 1e-4}
    plan = Plan.choose(ROWS, batch_size=own.batch, lr=1e-3)
    plan = replace(
        plan, steps=5, period=10**9, patience=None, labelled=KNOWN * (own.data == "labelled")
    )
    once = stepped(net, rows, plan, options)
    steps = max(10, round(SECONDS / once))
    plan = replace(plan, steps=steps if steps <= 100 else min(400, steps // 100 * 100))
    ours, plain = list[float](), list[float]()
    for i in range(repeats):
        model, net = fresh()
        turns: list[Callable[[], None]] = [
            lambda model=model: ours.append(fitted(built, model, rows, plan)),
            lambda net=net: plain.append(stepped(net, rows, plan, options)),
        ]
        for turn in turns if i % 2 else turns[::-1]:
            turn()
    ratios = [b / o for b, o in zip(plain, ours, strict=True)]
    middle = statistics.median(ratios)
    print(f"{name:24} {1e3 * statistics.median(ours):8.2f} {1e3 * statistics.median(plain):8.2f}   "
          f"{middle:.3f} ({min(ratios):.3f} to {max(ratios):.3f})", flush=True)  # fmt: skip
    return middle


def main() -> None:
    """Run every case."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--repeats", type=int, default=7)
    given = parser.parse_args()
    torch.set_num_threads(1)
    print(
        f"torch {torch.__version__}, one thread; milliseconds a step: refold, bare; bare / refold"
    )
    found = {name: measure(name, CASES[name], given.repeats) for name in given.only}
    below = [f"{name} {ratio:.3f}" for name, ratio in found.items() if ratio < AIM]
    print(f"below {AIM}: {', '.join(below) or 'none'}")


if __name__ == "__main__":
    main()
