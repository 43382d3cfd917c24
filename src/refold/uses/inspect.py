"""Figures about a trained model: what it keeps, and what principal components would."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from refold import inference
from refold.backbones import Embed, Flat
from refold.data.schema import Schema
from refold.fields import Binary, Field, Text
from refold.fields.category import Classes
from refold.fusion import Dictionary as SparseDictionary
from refold.model import Model
from refold.ops.pca import Principal
from refold.training.start import projected
from refold.types import Batch

Mask: TypeAlias = NDArray[np.bool_]

MOST = 1 << 24  # numbers of rows and their reconstructions that are compared at a time
CACHED = 1 << 17  # numbers of which errors are squared at a time


@dataclass(frozen=True)
class Quality:
    """How well rows that were held out come back.

    ``kept`` is the share of the variance of all numbers and class indicators that survives,
    ``pca_kept`` the same of as many principal components; ``squared_error`` is per row, in the
    model's own scale (standard deviations; [0, 1] for pixels); all three are of the fields that are
    seen and rebuilt, texts left out, and None where there are none. ``rows`` says how many were
    judged. ``curve``, of a model whose code is ordered, holds ``(d, kept, pca_kept)`` for codes cut
    after ``d`` entries, see :func:`prefix_curve`. ``predicted`` holds ``(name, kept, guess)`` of
    every target, see :class:`Fidelity`; of a block it is of all its entries together. A target
    without a value in these rows, or with one and the same, is left out. Of a text, a target or
    rebuilt, it is of its tokens, each at its place. ``filled`` says how well hidden entries come
    back, where that is what a model was trained for. ``sparse`` of a dictionary is ``(l0, dead)``:
    how many latents are active in a row on average, and the share of those that are in none.
    """

    kept: float | None
    pca_kept: float | None
    squared_error: float | None
    rows: int
    curve: tuple[tuple[int, float, float], ...] = ()
    predicted: tuple[tuple[str, float, float], ...] = ()
    filled: str = ""
    sparse: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        # JSON has no tuples.
        points = tuple((int(d), float(kept), float(pca)) for d, kept, pca in self.curve)
        object.__setattr__(self, "curve", points)
        heads = tuple((str(name), float(kept), float(pca)) for name, kept, pca in self.predicted)
        object.__setattr__(self, "predicted", heads)
        if self.sparse is not None:
            object.__setattr__(self, "sparse", (float(self.sparse[0]), float(self.sparse[1])))

    def sentence(self, size: int) -> str:
        """Say it in words."""
        parts = [
            f"{name} {kept:.1%} right (the commonest: {guess:.1%})"
            if guess
            else f"{name} {kept:.1%} of the variance explained"
            for name, kept, guess in self.predicted
        ]
        parts = [self.filled, *parts] if self.filled else parts
        if self.sparse is not None:
            # There are more latents than numbers in a row: as many components would keep all.
            explain = "" if self.kept is None else f" explain {self.kept:.1%} of the variance"
            dead = "less than 1%" if 0 < self.sparse[1] < 0.01 else f"{self.sparse[1]:.0%}"
            parts.append(
                f"{self.sparse[0]:.1f} of {size:,} latents active a row{explain}; {dead} were "
                f"never active"
            )
        elif self.kept is not None and not self.filled:
            parts.append(
                f"PCA with {size} numbers keeps {self.pca_kept:.1%} of the variance; "
                f"this model keeps {self.kept:.1%}"
            )
        return "; ".join(parts)


@torch.inference_mode()
def quality(model: Model, rows: Batch, schema: Schema, principal: Principal) -> Quality:
    """Judge reconstructions of rows against principal components of the same number."""
    heads = predictions(model, rows, schema)
    if not measured(model, schema):
        return Quality(None, None, None, len(rows), predicted=heads)
    principal, sums = principal.to("cpu"), torch.zeros(3, dtype=torch.float64)
    for part in _parts(model, rows):
        views, predicted = expectations(model, part, schema, measured(model, schema))
        sums += _squares(views, predicted, principal, model.latent.size)
    lost, beside, total = sums.tolist()
    kept = _kept(lost, total), _kept(beside, total)
    return Quality(*kept, lost / len(rows), len(rows), predicted=heads)


def measured(model: Model, schema: Schema) -> tuple[str, ...]:
    """Return the rebuilt fields that principal components are compared on: all but texts."""
    return tuple(k for k in model.rebuilt if not isinstance(schema.fields[k], Text))


def predictions(model: Model, rows: Batch, schema: Schema) -> tuple[tuple[str, float, float], ...]:
    """``(name, kept, guess)`` of targets and texts: of each column, or of a block as a whole."""
    names = [
        k for k in model.outputs if k not in model.inputs or isinstance(schema.fields[k], Text)
    ]
    if not names:
        return ()
    points = examine(model, rows, schema).points
    found: list[tuple[str, float, float]] = []
    for k in names:
        own = schema.fields[k]
        if own.block:
            found.append((k, _explained(rows, k, points[k]), 0.0))
        elif isinstance(own, Text):
            judged = tokens_right(rows, k, points[k])
            found.append((f"tokens of {own.columns[0]}", judged.kept, judged.guess))
        else:
            judged = fidelity(schema, rows, {k: points[k]})[k]
            found += [(c, f.kept, f.guess) for c, f in zip(own.columns, judged, strict=True)]
    return tuple(head for head in found if head[1] == head[1])


def tokens_right(rows: Batch, name: str, point: Tensor) -> Fidelity:
    """Judge the tokens of a text together: share of those that come back at their place."""
    x, seen = rows.x[name], rows.observed[name]
    seen = torch.ones_like(x, dtype=torch.bool) if seen is None else seen
    return _classes(x[seen], point[seen])


def _explained(rows: Batch, name: str, point: Tensor) -> float:
    """Share of the variance of all entries of a block; NaN where nothing varies."""
    x, seen = rows.x[name].flatten(1).double(), rows.observed[name]
    seen = torch.ones_like(x, dtype=torch.bool) if seen is None else seen
    x = x.masked_fill(~seen, torch.nan)
    total = float((x - x.nanmean(0)).square().nansum())
    return 1.0 - float((x - point).square().nansum()) / total if total > 1e-12 else float("nan")


@torch.inference_mode()
def prefix_curve(
    model: Model, rows: Batch, schema: Schema, principal: Principal, most: int = 24
) -> tuple[tuple[int, float, float], ...]:
    """Variance kept by codes cut after ``d`` entries, the rest zero, beside ``d`` components'.

    ``(d, kept, pca_kept)`` for up to ``most`` values of ``d`` spread over 1..D, both ends among
    them. Decoders that see more than the code (:attr:`Model.skipping`) see it here too.
    """
    principal, size, names = principal.to("cpu"), model.latent.size, measured(model, schema)
    if not names:
        return ()
    lengths = sorted({round(v) for v in np.linspace(1, size, min(most, size))})
    sums = torch.zeros(len(lengths), 3, dtype=torch.float64)
    for part in _parts(model, rows):
        views, _ = expectations(model, part, schema, names)
        for i, d in enumerate(lengths):
            sums[i] += _squares(views, _predicted(model, part, schema, d), principal, d)
    return tuple(
        (d, _kept(lost, total), _kept(beside, total))
        for d, (lost, beside, total) in zip(lengths, sums.tolist(), strict=True)
    )


def _parts(model: Model, rows: Batch) -> Iterator[Batch]:
    """Rows in parts of some 16 million numbers: a wide table's would not fit in memory at once."""
    width = sum(model.likelihoods[k].width for k in model.rebuilt)
    size = max(1, MOST // width // inference.PORTION) * inference.PORTION
    for start in range(0, len(rows), size):
        yield rows.rows(slice(start, start + size))


def _squares(views: Tensor, predicted: Tensor, principal: Principal, size: int) -> Tensor:
    """Squared errors of a model, of ``size`` components and of the mean, each summed up."""
    rows, sums = max(1, CACHED // max(1, views.shape[1])), torch.zeros(3, dtype=torch.float64)
    for view, own in zip(views.split(rows), predicted.split(rows), strict=True):
        others = (own, projected(view, principal, size), principal.mean.float())
        sums += torch.stack([(view - other).double().square_().nansum() for other in others])
    return sums


def _kept(lost: float, total: float) -> float:
    r"""Share of the variance kept, :math:`1 - \sum (x-\hat x)^2 / \sum (x-\mu)^2`."""
    return 1.0 - lost / max(total, 1e-300)


def _predicted(model: Model, rows: Batch, schema: Schema, first: int) -> Tensor:
    """Return what the model expects ``[n, V]`` with the code's first entries alone."""
    model.eval()
    device, predicted = model.fusion.last_bias().device, list[Tensor]()
    for part, count in inference.portions(rows):
        code, skips = model.encode(inference.guard(part, schema).to(device))
        z = torch.where(torch.arange(model.latent.size, device=device) < first, code.z, 0.0)
        means = [
            model.likelihoods[k].expected(p)[:count].cpu()
            for k, p in model.decode(z, skips).items()
            if k in measured(model, schema)
        ]
        predicted.append(torch.cat(means, 1))
    return torch.cat(predicted)


@torch.inference_mode()
def squared_errors(model: Model, rows: Batch, schema: Schema) -> Tensor:
    """Squared error of each row ``[n]`` over all rebuilt entries, in the model's own scale."""
    errors: list[Tensor] = []
    for part in _parts(model, rows):
        views, predicted = expectations(model, part, schema)
        errors.append((views - predicted).double().square().nansum(1))
    return torch.cat(errors)


@torch.inference_mode()
def expectations(
    model: Model, rows: Batch, schema: Schema, names: tuple[str, ...] | None = None
) -> tuple[Tensor, Tensor]:
    """Rows of outputs as one matrix ``[n, V]``, and what the model expects there.

    ``names`` are the rebuilt fields unless given. NaN where missing.
    """
    names = model.rebuilt if names is None else names
    views: list[Tensor] = []
    predicted: list[Tensor] = []
    for output, count in inference.outputs(model, rows, schema):
        for name in names:
            head, params = model.likelihoods[name], output.params[name]
            seen = output.target.observed[name]
            view, mean = head.linear_view(output.target.x[name]).float(), head.expected(params)
            view = view if seen is None else view.masked_fill(~head.spread(seen), torch.nan)
            views.append(view[:count].cpu())
            predicted.append(mean[:count].cpu())
    return _side_by_side(views, len(names)), _side_by_side(predicted, len(names))


def _side_by_side(parts: list[Tensor], fields: int) -> Tensor:
    return torch.cat([torch.cat(parts[i::fields]) for i in range(fields)], 1)


@dataclass(frozen=True)
class Examined:
    """Rows beside their reconstructions, per field, in the model's own scale.

    ``points`` ``[n, E]`` are the best single values, ``cells`` ``[n, E]`` their weighted costs.
    """

    points: dict[str, torch.Tensor]
    cells: dict[str, torch.Tensor]


@torch.inference_mode()
def examine(model: Model, rows: Batch, schema: Schema) -> Examined:
    """Reconstruct rows and cost each of their entries."""
    points: list[dict[str, torch.Tensor]] = []
    cells: list[dict[str, torch.Tensor]] = []
    for output, count in inference.outputs(model, rows, schema):
        found = inference.points(model, output.params)
        points.append({k: v[:count] for k, v in found.items()})
        cells.append({k: v[:count].cpu() for k, v in output.cells.items()})
    return Examined(inference.joined(points), inference.joined(cells))


def differing(schema: Schema, rows: Batch, points: Mapping[str, torch.Tensor]) -> dict[str, Mask]:
    """Entries ``[n, E]`` that come back different; a missing entry has nothing to differ from.

    A number differs by more than its kind lets pass for alike (:attr:`Field.apart`): one standard
    deviation of its column in training, or a quarter of the range of a pixel or a share, or a
    factor of two between counts. A class, ordered or not, differs wherever it is another.
    """
    found: dict[str, Mask] = {}
    for name in points:
        own, x, point = schema.fields[name], rows.x[name].flatten(1), points[name]
        if isinstance(own, Classes):
            different = own.index(x) != own.index(point)
        else:
            different = (x - point).abs() > own.apart
        seen = rows.observed[name]
        found[name] = (different if seen is None else different & seen).numpy()
    return found


@dataclass(frozen=True)
class Fidelity:
    """How well one entry comes back.

    ``kept``: for numbers the share of their variance, for classes the share of right answers;
    ``guess``: what the best constant gets, 0 for numbers; ``rows``: how many had a value.
    """

    kept: float
    guess: float
    rows: int


NOTHING = Fidelity(float("nan"), float("nan"), 0)


def fidelity(
    schema: Schema, rows: Batch, points: Mapping[str, torch.Tensor]
) -> dict[str, list[Fidelity]]:
    """Judge every entry of the given fields by itself; NaN where no row, or a constant, is seen."""
    found: dict[str, list[Fidelity]] = {}
    for name, point in points.items():
        own, x, judge = schema.fields[name], rows.x[name].flatten(1), _numbers
        if isinstance(own, Classes):
            x, point, judge = own.index(x), own.index(point), _classes
        seen = rows.observed[name]
        found[name] = [
            judge(*((x[:, e], point[:, e]) if seen is None else _of(x, point, seen, e)))
            for e in range(point.shape[1])
        ]
    return found


def _of(x: Tensor, point: Tensor, seen: Tensor, entry: int) -> tuple[Tensor, Tensor]:
    """Values of an entry, and what comes back, in the rows that have one."""
    there = seen[:, entry]
    return x[there, entry], point[there, entry]


def _classes(x: Tensor, answer: Tensor) -> Fidelity:
    """Judge levels: share of right answers, beside that of the commonest level."""
    if len(x) == 0:
        return NOTHING
    commonest = int(x.unique(return_counts=True)[1].max())
    return Fidelity(float((answer == x).double().mean()), commonest / len(x), len(x))


def _numbers(x: Tensor, point: Tensor) -> Fidelity:
    """Judge numbers: the share of their variance."""
    if len(x) == 0:
        return NOTHING
    x, point = x.double(), point.double()
    total = float((x - x.mean()).square().sum())
    kept = 1.0 - float((x - point).square().sum()) / total if total > 1e-12 else float("nan")
    return Fidelity(kept, 0.0, len(x))


@dataclass(frozen=True)
class Activity:
    """How much each unit of a code is used.

    ``share`` ``[D]`` of the rows in which a unit is not zero, and its standard deviation ``std``.
    """

    share: NDArray[np.float64]
    std: NDArray[np.float64]

    @classmethod
    def of(cls, codes: NDArray[np.float32]) -> Activity:
        """Judge codes ``[n, D]``.

        >>> Activity.of(np.array([[0, 1], [2, 1]], dtype=np.float32)).share.tolist()
        [0.5, 1.0]
        """
        if len(codes) == 0:
            nothing = np.zeros(codes.shape[1])
            return cls(nothing, nothing)
        return cls((codes != 0).mean(0), codes.std(0, dtype=np.float64))


@dataclass(frozen=True)
class Dictionary:
    r"""What each unit of the code adds to the output, where a linear map leads there.

    .. math:: \hat x = \sum_d z_d \, a_d + \dots

    ``atoms`` ``[V, D]`` by field holds :math:`a_d` in its columns; ``labels`` names the ``V``
    numbers; ``whole`` is False where layers beside the linear map add to it.
    """

    atoms: dict[str, NDArray[np.float32]]
    labels: dict[str, tuple[str, ...]]
    whole: bool


@torch.no_grad()
def dictionary(model: Model, schema: Schema) -> Dictionary | None:
    """Read the decoder's dictionary off its weights; None where no linear map leads to a field."""
    path, body = model.fusion.linear_path(), model.fusion
    if isinstance(body, SparseDictionary):
        weight, alone = body.decoder.T, True
    elif path is not None:
        weight, alone = path.up, not path.beside
    else:
        return None
    up, at = weight.detach().float().cpu().numpy(), 0
    atoms: dict[str, NDArray[np.float32]] = {}
    labels: dict[str, tuple[str, ...]] = {}
    for name in model.outputs:
        spine = model.backbones[name]
        if spine.coded:
            continue
        block, at = up[at : at + spine.decoded], at + spine.decoded
        own = schema.fields[name]
        if isinstance(spine, Flat | Embed) and not isinstance(own, Text):
            labels[name] = entry_labels(own)
            if len(labels[name]) > len(block):  # one number decides between all ordered levels
                labels[name] = own.entries
            atoms[name] = block[: len(labels[name])]
    return Dictionary(atoms, labels, alone) if atoms else None


def entry_labels(own: Field) -> tuple[str, ...]:
    """Name each of the ``V`` numbers that a linear method sees of a field: a class by its level."""
    if isinstance(own, Text):
        return tuple(f"{entry} = {token}" for entry in own.entries for token in own.spelt)
    if not isinstance(own, Classes):
        return own.entries
    known = (levels or ("–",) for levels in own.levels)
    columns = list(zip(own.columns, known, strict=True))
    if isinstance(own, Binary):
        return tuple(f"{name} = {levels[-1]}" for name, levels in columns)
    return tuple(f"{name} = {level}" for name, levels in columns for level in levels)
