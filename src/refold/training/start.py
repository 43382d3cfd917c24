"""Before the first step: what weighs how much, how wide the code is, and where weights begin."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor

from refold.backbones import Flat
from refold.fields import Field
from refold.latents import Nested, Plain
from refold.likelihoods import Bernoulli, Beta, Likelihood, Settling
from refold.likelihoods.base import observed_mean
from refold.likelihoods.numbers import Location, SquaredError
from refold.model import Model
from refold.ops.pca import MOST, Principal, principal_components
from refold.types import Batch

KEEP = 0.9  # share of the variance that a chosen code size lets PCA keep
WIDEST = 64  # largest code chosen without being asked
SAMPLE = 20_000  # rows that are enough to judge a spectrum
TILE = 512  # rows whose squares are summed at a time
ENOUGH = 1024  # rows that are enough to judge a mean


def design(heads: Mapping[str, Likelihood], rows: Batch) -> Tensor:
    """All fields as one matrix ``[n, V]``: numbers as they are, classes as indicators.

    A missing number holds what the encoder is fed in its place, a missing class its column's
    frequencies. Where indicators would make more than 50 million numbers, rows spread over all
    stand for them.
    """
    given = sum(rows.x[name][0].numel() for name in heads)
    width = sum(head.linear_view(rows.x[name][:1]).shape[1] for name, head in heads.items())
    if width > given and len(rows) * width > MOST:
        rows = rows.rows(slice(None, None, -(-len(rows) * width // MOST)))
    views: list[Tensor] = []
    for name, head in heads.items():
        view, seen = head.linear_view(rows.x[name]).float(), rows.observed[name]
        if seen is not None and not isinstance(head, Location):
            seen = head.spread(seen)
            mean = torch.where(seen, view, 0).sum(0) / seen.sum(0).clamp_min(1)
            view = torch.where(seen, view, mean)
        views.append(view)
    if not views:
        return torch.zeros(len(rows), 0)
    return torch.cat(views, 1) if len(views) > 1 else views[0]


def choose_size(principal: Principal, entries: int) -> int:
    """Fewest components that keep 90 % of the variance, at most 64 and half the entries."""
    share = principal.variance.cumsum(0) / max(principal.total, 1e-300)
    enough = int((share < KEEP).sum()) + 1
    return max(1, min(enough, WIDEST, -(-entries // 2)))


def balance(
    heads: Mapping[str, Likelihood],
    fields: Mapping[str, Field],
    rows: Batch,
    mode: str,
    worth: tuple[float, float] | None = None,
) -> dict[str, tuple[float, ...]]:
    r"""Weights of each field's entries.

    ``"balanced"``: every unit (a column, a vector, an image) starts at an equal share of the
    objective, where the start is the best constant prediction; the total stays what it was.

    .. math:: w_u = \frac{\bar b}{\max(b_u, \bar b / 20)}, \qquad b_u = \text{cost of predicting a
              constant}, \quad \bar b = \text{mean}_u\, b_u

    ``"equal"``: 1 each. A field's own ``weight`` multiplies either. ``worth`` gives what the units
    of all rebuilt fields and those of all targets cost together at the balanced start, in nats.
    """
    apart = {k: len(fields[k].units) == head.entries for k, head in heads.items()}
    alone = sum(heads[k].entries if apart[k] else 1 for k in heads) == 1
    if mode == "equal" or (alone and worth is None):
        return {k: (fields[k].weight,) for k in heads}
    costs: dict[str, Tensor] = {}
    for name, head in heads.items():
        cells = baseline(head, rows.x[name], rows.observed[name])
        costs[name] = cells if apart[name] else cells.sum().reshape(1)
    weights: dict[str, tuple[float, ...]] = {}
    for name, cost in costs.items():
        target = fields[name].target
        alike = [c for k, c in costs.items() if worth is None or fields[k].target == target]
        mean = torch.cat(alike).mean().clamp_min(1e-12)
        share = mean / cost.clamp_min(mean / 20)
        if worth is not None:
            share *= (worth[1] if target else worth[0]) / (mean * sum(map(len, alike)))
        if float(share.max() / share.min()) < 1.001:
            share = share.mean().reshape(1)
        weights[name] = tuple((share * fields[name].weight).tolist())
    if worth is None and len(weights) == 1 and len(next(iter(weights.values()))) == 1:
        return {k: (fields[k].weight,) for k in weights}
    return weights


@torch.no_grad()
def baseline(head: Likelihood, x: Tensor, observed: Tensor | None) -> Tensor:
    """Mean cost ``[E]`` per observed entry of predicting a constant, on at most 20,000 rows.

    Not per row: weights are part of the score, where an entry that is rarely there would make every
    row that has it look unusual.
    """
    step = -(-len(x) // SAMPLE)
    x, observed = x[::step], None if observed is None else observed[::step]
    if isinstance(head, Settling):
        head.settle(x, observed)
    if isinstance(head, Beta):
        # Of a density that learns its own spread, half a nat, as a normal's: its scale is its own.
        cells = torch.full((len(x), head.entries), 0.5, dtype=torch.float64, device=x.device)
        cells = cells if observed is None else cells.masked_fill(~observed, 0.0)
    elif isinstance(head, Location) and not head.contextual:
        # Densities of numbers have no zero; half the variance is their cost in any unit.
        marginal = head.marginal(x, observed)[: head.entries]
        return half_variance(x.flatten(1), marginal, observed)
    elif isinstance(head, Bernoulli) and bool((x >= 0).all() & (x <= 1).all()):
        # Affine in the value, so that the mean costs what the values cost on average.
        mean = observed_mean(x.flatten(1), observed)[None]
        return head.cells(head.marginal(x, observed)[None], mean)[0].double()
    else:
        params, costs = head.marginal(x, observed), list[Tensor]()
        size = max(1, MOST // len(params))
        for start in range(0, len(x), size):
            at = slice(start, start + size)
            part, there = x[at], None if observed is None else observed[at]
            costs.append(head.weighted(params.expand(len(part), -1), part, there, 1.0).double())
        cells = torch.cat(costs)
    seen = len(x) if observed is None else observed.sum(0).clamp_min(1)
    return cells.sum(0) / seen


def half_variance(x: Tensor, centre: Tensor, observed: Tensor | None) -> Tensor:
    """Half the mean squared distance ``[E]`` of what was observed to a centre."""
    total = torch.zeros(x.shape[1], dtype=torch.float64, device=x.device)
    for start in range(0, len(x), TILE):
        part = x[start : start + TILE] - centre
        if observed is not None:
            part = part.masked_fill(~observed[start : start + TILE], 0.0)
        total += part.square_().sum(0, dtype=torch.float64)
    return 0.5 * total / (len(x) if observed is None else observed.sum(0).clamp_min(1))


@torch.no_grad()
def start_constant(model: Model, rows: Batch) -> None:
    """Start every decoder's bias at the best constant prediction of its field."""
    bias, at = model.fusion.last_bias(), 0
    for name in model.outputs:
        spine = model.backbones[name]
        head = model.likelihoods[name]
        if isinstance(head, Settling):
            head.settle(rows.x[name], rows.observed[name])
        params = head.marginal(rows.x[name], rows.observed[name]).float()
        if not spine.start_at(params):
            bias[at : at + spine.decoded] = params
        at += 0 if spine.coded else spine.decoded


@torch.no_grad()
def start_centred(model: Model, rows: Batch) -> None:
    r"""Let the body's first layer meet centred numbers: :math:`b \leftarrow b - W \bar c`.

    A linear path beside the layers does so too. Pixels are all positive; a unit whose weights sum
    to less than nothing would answer every image with a negative number, and behind a rectifier or
    among the largest k never be heard of.
    """
    sample = rows.rows(slice(None, None, max(1, len(rows) // ENOUGH)))
    hidden = {
        k: model.backbones[k].encode(sample.x[k], sample.observed[k])[0] for k in model.inputs
    }
    model.fusion.begin(hidden)
    mean = torch.zeros(0)
    for names, lead in model.fusion.leads:
        mean = torch.cat([hidden[k] for k in names], 1).mean(0)
        bias = cast("Tensor | None", lead.bias)
        if bias is not None:  # there is none where a norm follows
            bias -= lead.weight @ mean
    path = model.fusion.linear_path()
    if path is not None and path.beside:
        path.down_bias.sub_(path.down @ mean)
        # From noise, a decoder's first lesson would be that active units do harm, and they die.
        path.up.zero_()
        path.beside[-1].zero_()


@torch.no_grad()
def start_latent(model: Model, rows: Batch) -> None:
    """Let a latent start from the hidden states of some rows of training."""
    if model.references is not None:
        model.references.start(rows)
    sample = rows.rows(slice(None, None, max(1, len(rows) // ENOUGH)))
    kept = [(buffer, buffer.clone()) for buffer in model.buffers()]
    h = model.hidden(sample)[0]
    for buffer, before in kept:  # statistics of norms are of training alone, or of frozen layers
        buffer.copy_(before)
    model.latent.begin(h, len(rows))


def can_start_pca(model: Model) -> bool:
    """Whether a linear path leads from numbers to the code and from the code to their means."""
    return (
        model.fusion.linear_path() is not None
        and isinstance(model.latent, Plain | Nested)
        and all(isinstance(model.backbones[k], Flat) for k in model.inputs)
        and not any(model.backbones[k].coded for k in model.outputs)
        and all(_is_mean(model.likelihoods[k]) for k in model.rebuilt)
        and bool(model.rebuilt)
    )


def _is_mean(head: Likelihood) -> bool:
    return isinstance(head, Location) and head.width == head.entries


def solved_by_pca(model: Model, rows: Batch) -> bool:
    """Whether that start is the optimum: nothing but linear maps, squared error, complete rows."""
    path = model.fusion.linear_path()
    return (
        can_start_pca(model)
        and isinstance(model.latent, Plain)
        and path is not None
        and not path.beside
        and not model.penalties
        and set(model.rebuilt) == set(model.backbones)
        and all(isinstance(h, SquaredError) for h in model.likelihoods.values())
        and all(seen is None for seen in rows.observed.values())
    )


@torch.no_grad()
def start_pca(model: Model, rows: Batch, principal: Principal) -> None:
    r"""Set the linear path to the principal components, and the layers beside it to nothing.

    .. math:: z = V^\top (x - \mu) / s, \qquad \hat x = \mu + s V z

    :math:`s` is the deviation of the first component, so that layers beside the path meet numbers
    of order one, and 1 where there are none; either way codes keep the data's own proportions.
    Where entries have weights :math:`w`, the components are those of :math:`\sqrt{w} \odot x`.
    """
    path = model.fusion.linear_path()
    assert path is not None
    root = _entry_weights(model).sqrt()
    if float(root.max()) > float(root.min()):
        heads = {k: model.likelihoods[k] for k in model.rebuilt}
        principal = principal_components(design(heads, rows) * root.float())
    else:
        root = torch.ones_like(root)
    k = min(model.latent.size, principal.axes.shape[1])
    axes = principal.axes[:, :k]
    axes = axes * axes.gather(0, axes.abs().argmax(0, keepdim=True)).sign()
    scale = float(principal.variance[0].clamp_min(1e-12).sqrt()) if path.beside else 1.0
    for weight in path.beside:
        weight.zero_()
    columns = _places(model, model.inputs, [model.backbones[k].encoded for k in model.inputs])
    outputs = _places(model, model.outputs, [model.backbones[k].decoded for k in model.outputs])
    path.down[:k].zero_()
    path.down[:k, columns] = (axes * root[:, None] / scale).T.float()
    path.up.zero_()
    path.up[outputs, :k] = (axes / root[:, None] * scale).float()
    # Where an encoder is told of gaps, a gap is zero: the mean is taken away where a value is.
    offset = -(axes / scale * principal.mean[:, None])
    told, masks = _masks(model)
    path.down[:k, masks] = offset[told].T.float()
    path.down_bias[:k] = offset[~told].sum(0).float()
    path.up_bias[outputs] = (principal.mean / root).float()


def _entry_weights(model: Model) -> Tensor:
    """Weight of every rebuilt entry, ``[E]`` over all such fields."""
    device = model.fusion.last_bias().device
    weights = [
        torch.as_tensor(model.weight(k), device=device).expand(model.backbones[k].decoded)
        for k in model.rebuilt
    ]
    return torch.cat(weights).double().clamp_min(1e-12)


def _masks(model: Model) -> tuple[Tensor, Tensor]:
    """Which rebuilt entries have a mask among the body's inputs, and where it is."""
    told, masks, at = list[Tensor](), list[Tensor](), 0
    for name in model.inputs:
        geometry = model.backbones[name].geometry
        if name in model.rebuilt:
            count = len(geometry.sizes)
            told.append(torch.full((count,), geometry.missing))
            if geometry.missing:
                masks.append(torch.arange(at + count, at + 2 * count))
        at += model.backbones[name].encoded
    return torch.cat(told), torch.cat(masks) if masks else torch.zeros(0, dtype=torch.long)


def _places(model: Model, names: Sequence[str], widths: Sequence[int]) -> Tensor:
    """Positions of the rebuilt fields' numbers among all fields' states side by side.

    A state may also hold a mask, which follows the numbers.
    """
    at, positions = 0, list[Tensor]()
    for name, width in zip(names, widths, strict=True):
        if name in model.rebuilt:
            positions.append(torch.arange(at, at + len(model.backbones[name].geometry.sizes)))
        at += width
    return torch.cat(positions)


@torch.no_grad()
def projected(view: Tensor, principal: Principal, size: int) -> Tensor:
    """Project ``view`` ``[n, V]`` on ``size`` components; what is missing is the mean."""
    mean, axes = principal.mean.float(), principal.axes[:, :size].float()
    filled = torch.where(view.isnan(), mean, view)
    return (filled - mean) @ axes @ axes.T + mean
