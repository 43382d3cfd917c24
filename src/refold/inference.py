"""Forward passes over many rows: no autograd, portions of fixed size, inputs kept in range."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import final

import torch
from torch import Tensor, nn

from refold.data.schema import Schema
from refold.fields import Numeric, Vector
from refold.model import Model, Output
from refold.recording.recording import Recording, closed
from refold.table import Table
from refold.types import Batch

PORTION = 1024
SMALL = 64
WIDE = 8192  # numbers of a code from which portions stay small
LARGE, MANY = 8192, 2  # rows of a portion for each thread where many are, and how many that takes

_all: ContextVar[int] = ContextVar("rows of which those at hand are some", default=0)


@contextmanager
def among(count: int) -> Generator[None]:
    """Pass over rows as if they were among so many: in portions of the size these would have.

    Some of many rows then get what they get when all are passed over at once, to the last bit.
    """
    before = _all.set(count)
    try:
        yield
    finally:
        _all.reset(before)


def among_all(rows: int) -> int:
    """How many rows there are in all, where so many are at hand."""
    return max(rows, _all.get())


def large(count: int, threads: int) -> int:
    """Rows of a portion of ``count``, which are many: enough for each thread, never all of them.

    >>> large(16_384, 4), large(100_000, 4)
    (8192, 32768)
    """
    return LARGE * max(1, min(threads, count // (MANY * LARGE)))


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


def portions(rows: Batch) -> Iterator[tuple[Batch, int]]:
    """Portions of one size, the last filled up with its own last row, and the rows that count.

    A matrix product may round differently for another number of rows; a fixed number makes the
    result of a row the same whatever rows come with it.
    """
    n = len(rows)
    size = SMALL if among_all(n) <= SMALL else PORTION
    for start in range(0, n, size):
        yield filled(rows.rows(slice(start, start + size)), size)


def filled(part: Batch, size: int) -> tuple[Batch, int]:
    """Fill rows up to ``size`` with the last of them; return how many count, too."""
    count = len(part)
    if count < size:
        part = part.rows(torch.arange(size).clamp_max(count - 1))
    return part, count


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


@final
class Pending:
    """Rows of a table that are encoded when they are asked for, so that they are never all there.

    ``remarked`` says whether any had something to remark on.
    """

    def __init__(self, table: Table, schema: Schema) -> None:
        self.table, self.schema, self.remarked = table, schema, False

    @classmethod
    def suits(cls, table: Table, schema: Schema, model: Model) -> bool:
        """Whether there are many rows, of plain numbers, which are the same in any portion."""
        plain = all(isinstance(f, Numeric | Vector) for f in schema.fields.values())
        here = model.fusion.last_bias().device.type == "cpu" and model.latent.size <= WIDE
        return plain and here and len(table) >= MANY * LARGE

    def __len__(self) -> int:
        return len(self.table)

    def rows(self, at: slice) -> Batch:
        """Encode some."""
        part, notes = self.schema.encode(self.table.part(at))
        self.remarked |= bool(notes)
        return part


@torch.inference_mode()
def each(
    work: Callable[[Output, int], Tensor],
    model: Model,
    rows: Batch | Pending,
    schema: Schema,
    *judges: nn.Module,
) -> Tensor:
    """Do ``work``, by these judges, on all rows' outputs, by portions, and join what it gives.

    Portions of many rows have so many for each thread that threads, which meet in every product,
    hardly wait for each other. What a portion calls is recorded and called again for the others,
    where all parts are known to keep nothing in Python from one to the next.
    """
    model.eval()
    device = model.fusion.last_bias().device
    return shared(
        lambda part, count: work(model(guard(part, schema).to(device), part.to(device)), count),
        rows,
        model,
        *judges,
    )


def shared(
    work: Callable[[Batch, int], Tensor], rows: Batch | Pending, model: Model, *judges: nn.Module
) -> Tensor:
    """Join what ``work`` gives for portions, which are large where rows are many.

    Portions of wide codes are no larger than where rows are few.
    """
    device, width = model.fusion.last_bias().device, model.latent.size
    count = among_all(len(rows))
    if isinstance(rows, Batch) and (count < MANY * LARGE or width > WIDE):
        return torch.cat([work(part, n) for part, n in portions(rows)])
    on_cpu = device.type == "cpu"
    recorded = on_cpu and all(map(closed, (model, *judges)))
    size = large(count, torch.get_num_threads() if on_cpu else 1)
    known: dict[tuple[str, ...], Recording] = {}
    result: Tensor | None = None
    for at in range(0, len(rows), size):
        part, n = filled(rows.rows(slice(at, at + size)), size)
        if recorded:
            seen = tuple(k for k, there in part.observed.items() if there is not None)
            if seen not in known:
                known[seen] = Recording(lambda v, like=part: work(like.with_tensors(v), size))
            value = known[seen](part.tensors())[:n]
        else:
            value = work(part, n)
        if result is None:
            result = value.new_empty(len(rows), *value.shape[1:])
        result[at : at + n] = value
    assert result is not None
    return result


@torch.inference_mode()
def embed(model: Model, rows: Batch | Pending, schema: Schema) -> Tensor:
    """Codes of all rows, ``[n, D]``, tokens flattened."""
    model.eval()
    device = model.fusion.last_bias().device
    return shared(
        lambda part, count: model.encode(guard(part, schema).to(device))[0].z[:count].flatten(1),
        rows,
        model,
    ).cpu()


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
