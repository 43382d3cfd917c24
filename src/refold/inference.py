"""Forward passes over many rows: no autograd, portions of fixed size, inputs kept in range."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from refold.data.schema import Schema
from refold.model import Model, Output
from refold.types import Batch

PORTION = 1024
SMALL = 64
LARGE, MANY = 4096, 4  # rows of a portion where many are, and how many portions that takes


def guard(rows: Batch, schema: Schema) -> Batch:
    """Keep inputs near the training range, so that one wild number cannot spoil a whole row.

    The clean rows stay the target: what lies outside is scored in full.
    """
    x = dict(rows.x)
    for name, own in schema.fields.items():
        if own.bounds is not None:
            low, high = (torch.tensor(b).view(own.shape) for b in own.bounds)
            x[name] = torch.clamp(x[name], low - own.margin, high + own.margin)
    return Batch(x, rows.observed)


def portions(rows: Batch, most: int = PORTION) -> Iterator[tuple[Batch, int]]:
    """Portions of one size, the last filled up with its own last row, and the rows that count.

    A matrix product may round differently for another number of rows; a fixed number makes the
    result of a row the same whatever rows come with it.
    """
    n = len(rows)
    size = SMALL if n <= SMALL else most
    for start in range(0, n, size):
        count = min(size, n - start)
        part = rows.rows(slice(start, start + count))
        if count < size:
            part = part.rows(torch.arange(size).clamp_max(count - 1))
        yield part, count


@torch.inference_mode()
def outputs(model: Model, rows: Batch, schema: Schema) -> Iterator[tuple[Output, int]]:
    """Outputs of all rows, portion by portion, each with the number of rows that count.

    What an output computes when asked runs in the caller's mode: call within inference mode.
    """
    if model.training:
        model.eval()
    device = model.fusion.last_bias().device
    for part, count in portions(rows):
        target = part.to(device)
        yield model(guard(part, schema).to(device), target), count


@torch.inference_mode()
def each(
    work: Callable[[Output, int], Tensor], model: Model, rows: Batch, schema: Schema
) -> list[Tensor]:
    """Do ``work`` on the outputs of all rows, portion by portion, in order.

    Many portions are shared between the processor's threads, each of which does whole portions by
    itself: threads that met at every small product would wait for each other most of the time.
    """
    model.eval()
    device = model.fusion.last_bias().device
    threads = torch.get_num_threads()

    def done(part: tuple[Batch, int]) -> Tensor:
        with torch.inference_mode():
            target = part[0].to(device)
            return work(model(guard(part[0], schema).to(device), target), part[1])

    if len(rows) < MANY * LARGE:
        return [done(part) for part in portions(rows)]
    if device.type != "cpu" or threads == 1:
        return [done(part) for part in portions(rows, LARGE)]
    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            return list(pool.map(done, portions(rows, LARGE)))
    finally:
        torch.set_num_threads(threads)  # what the workers set, later threads would inherit


@torch.inference_mode()
def embed(model: Model, rows: Batch, schema: Schema) -> Tensor:
    """Codes of all rows, ``[n, D]``, tokens flattened."""
    model.eval()
    device = model.fusion.last_bias().device
    codes = [
        model.encode(guard(part, schema).to(device))[0].z[:count].flatten(1).cpu()
        for part, count in portions(rows)
    ]
    return torch.cat(codes)


@torch.inference_mode()
def indices(model: Model, rows: Batch, schema: Schema) -> Tensor:
    """Numbers ``[n, G]`` of the entries of books that codes are made of, of a discrete latent."""
    model.eval()
    device = model.fusion.last_bias().device
    found = [
        model.encode(guard(part, schema).to(device))[0].stats["indices"][:count, :-1].cpu()
        for part, count in portions(rows)
    ]
    return torch.cat(found)


@torch.inference_mode()
def decode(model: Model, z: Tensor) -> Iterator[dict[str, Tensor]]:
    """Likelihood parameters of codes ``[n, D]``, portion by portion."""
    model.eval()
    device = model.fusion.last_bias().device
    for part, count in portions(Batch({"z": z}, {"z": None})):
        params = model.decode(part.x["z"].to(device))
        yield {k: p[:count] for k, p in params.items()}


def points(model: Model, params: dict[str, Tensor]) -> dict[str, Tensor]:
    """Best single value of each entry, by field."""
    return {k: model.likelihoods[k].point(p).cpu() for k, p in params.items()}


def draws(model: Model, params: dict[str, Tensor], schema: Schema) -> dict[str, Tensor]:
    """Values of sampled codes: drawn where the spread was learnt, the mean for pictures."""
    return {
        k: (head.point(params[k]) if schema.fields[k].smooth else head.draw(params[k])).cpu()
        for k, head in model.likelihoods.items()
    }


def joined(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Concatenate portions, field by field."""
    return {k: torch.cat([p[k] for p in parts]) for k in parts[0]}
