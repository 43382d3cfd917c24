"""What rows nearby know that the network does not: its errors there, carried over to a gap."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Self

import torch
from torch import Tensor

from refold import inference
from refold.data.schema import Schema
from refold.fields import Distribution
from refold.model import Model
from refold.types import Batch

REFERENCES = 10_000  # rows kept to look among
PASSES = 300_000  # rows times entries, each hidden in turn, beyond which fewer rows are kept
WIDEST = 256  # entries and indicators of a row beyond which rows nearby say little
FEWEST = 100  # rows below which none is near
ENOUGH = 20  # held-out rows that tell how far to trust an entry's neighbours
NEAR = 40
NUGGET = 0.1
QUERIES = 256
CONSTANT = 1e-3  # share of the mean variance below which an entry counts as constant


@dataclass(frozen=True)
class Local:
    r"""Local kriging of the residuals that a network leaves in its predictions of hidden entries.

    A row is a point :math:`f`: its numbers and class indicators, what is missing filled by the
    network. The error :math:`e_r` that the network made at an entry of reference row :math:`r`
    when that entry was hidden is carried over from the ``NEAR`` references nearest to a row,

    .. math:: \hat e = \beta\, k^\top (K + \nu I)^{-1} e, \qquad
              k_r = e^{-\lVert f - f_r \rVert / \ell}, \quad
              K_{rs} = e^{-\lVert f_r - f_s \rVert / \ell}

    :math:`\ell` is the mean distance of the nearest, :math:`\nu` the ``NUGGET``, and
    :math:`\beta` in [0, 1] was fitted, entry by entry, on rows that the network was not trained on:
    the regression of their errors on what is carried over, less one standard error.
    Where an entry is hidden, its own prediction stands for it in :math:`f` and :math:`f_r`. Other
    gaps of a reference are filled with the entry in sight, which makes it look nearer than it is;
    :math:`\beta` and the spread are judged on rows filled without it, as a real gap is.

    ``rows`` ``[R, V]`` are the references, filled; ``residuals`` ``[R, V]`` their errors, NaN where
    nothing was observed; ``strength`` ``[V]`` is :math:`\beta`. ``spread`` ``[V]`` is the standard
    deviation of what is left of the errors in rows held out, with their gaps as they are, and
    ``right`` ``[V]`` the share of their classes that come back right, NaN for numbers.

    Sources: Cressie, Statistics for Spatial Data, 1993, for kriging; Gramacy & Apley, Local
    Gaussian Process Approximation for Large Computer Experiments, 2015, for doing it nearby.
    """

    rows: Tensor
    residuals: Tensor
    strength: Tensor
    spread: Tensor
    right: Tensor

    @classmethod
    @torch.inference_mode()
    def of(cls, model: Model, rows: Batch, held_out: Batch, schema: Schema) -> Self | None:
        """Learn from the rows of training, and how far to trust them from those held out.

        Those held out are references too from then on. None where rows nearby are of no use.
        """
        sizes = [size for k in model.rebuilt for size in schema.fields[k].sizes]
        if not 1 < sum(sizes) <= WIDEST:
            return None
        count = min(REFERENCES, max(FEWEST, PASSES // len(sizes)))
        points, errors = judged(model, spaced(rows, count), schema)
        strength, spread = torch.zeros(sum(sizes)), torch.zeros(sum(sizes))
        right = torch.full((sum(sizes),), torch.nan)
        known = cls(points, errors, strength, spread, right)
        few = spaced(held_out, count // 5)
        points, errors = judged(model, few, schema)
        for name, entry, columns in entries_of(model, schema):
            at = (~errors[:, columns[0]].isnan()).nonzero().flatten()
            if len(at) == 0:
                continue
            missed = errors[at][:, columns]
            spread[columns] = missed.square().mean(0).nan_to_num().sqrt()
            if len(columns) > 1:
                guess = points[at][:, columns] - missed
                right[columns] = (guess.argmax(1) == (guess + missed).argmax(1)).float().mean()
            if len(at) < ENOUGH or len(rows) < FEWEST:
                continue
            # As for a real gap, nothing in the row may have been filled with the entry in sight.
            alone = hide(few.rows(at), name, entry)
            there, _ = filled(model, alone, views_of(model, alone, schema))
            found = known.carried(there, columns)
            gain = (found * missed).sum(1)
            sure = gain.mean() - gain.std() / len(at) ** 0.5
            trust = (sure / found.square().sum(1).mean().clamp_min(1e-12)).clamp(0.0, 1.0)
            if len(columns) > 1 and not more_right(there[:, columns], found * trust, missed):
                continue
            strength[columns] = trust
            spread[columns] = (missed - found * trust).square().mean(0).sqrt()
        both = torch.cat([known.rows, points]), torch.cat([known.residuals, errors])
        return cls(*both, strength, spread, right)

    def sentence(self) -> str:
        """Say in words how well entries of rows held out come back when they are hidden."""
        numbers = self.right.isnan() & (self.spread > 0)
        variance = self.rows.var(0)
        numbers &= variance > CONSTANT * variance.mean()
        kept = (1.0 - self.spread.square() / variance)[numbers]
        said = [f"numbers with {float(kept.mean()):.1%} of their variance"] if len(kept) else []
        classes = self.right[~self.right.isnan()]
        said += [f"classes {float(classes.mean()):.1%} right"] if len(classes) else []
        return f"Hidden entries come back: {', '.join(said) or 'too few to say'}"

    @torch.inference_mode()
    def corrected(
        self,
        model: Model,
        rows: Batch,
        schema: Schema,
        views: dict[str, Tensor],
        only: tuple[str, int] | None = None,
    ) -> dict[str, Tensor]:
        """Add to what the model expects, ``views`` ``{field: [n, V]}``, what rows nearby know.

        Only where entries are missing (or the one entry ``only`` is); the others stay as they are.
        """
        points, seen = filled(model, rows, views)
        better = torch.cat([views[k] for k in model.rebuilt], 1)
        for name, entry, columns in entries_of(model, schema):
            if only not in (None, (name, entry)):
                continue
            at = (~seen[:, columns[0]]).nonzero().flatten()
            if len(at) == 0 or float(self.strength[columns[0]]) == 0:
                continue
            change = self.carried(points[at], columns) * self.strength[columns]
            better[at[:, None], columns] += change
        widths = [views[k].shape[1] for k in model.rebuilt]
        return {**views, **dict(zip(model.rebuilt, better.split(widths, 1), strict=True))}

    def carried(self, points: Tensor, columns: Tensor) -> Tensor:
        """Errors ``[n, C]`` of one entry's columns, for rows whose own values are predictions."""
        known = (~self.residuals[:, columns[0]].isnan()).nonzero().flatten()
        errors = self.residuals[known][:, columns]
        references = self.rows[known]
        references[:, columns] -= errors  # the prediction in place of the value
        found: list[Tensor] = []
        for part in points.split(QUERIES):
            far, near = torch.cdist(part, references).topk(min(NEAR, len(known)), largest=False)
            scale = far.mean(1).clamp_min(1e-6)[:, None, None]
            there = references[near]
            kernel = torch.exp(-torch.cdist(there, there) / scale)
            kernel.diagonal(dim1=1, dim2=2).add_(NUGGET)
            weights = torch.linalg.solve(kernel, torch.exp(-far.unsqueeze(2) / scale))
            found.append((errors[near] * weights).sum(1))
        return torch.cat(found)

    def tensors(self) -> dict[str, Tensor]:
        """Return what is saved."""
        return {f"local_{f.name}": getattr(self, f.name) for f in fields(self)}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Self | None:
        """Rebuild from :meth:`tensors`; None where there is nothing."""
        if "local_rows" not in tensors:
            return None
        return cls(*(tensors[f"local_{f.name}"] for f in fields(cls)))


def more_right(shares: Tensor, change: Tensor, missed: Tensor) -> bool:
    """Whether more levels are right once a change is added to the shares of each, ``[n, C]``."""
    true = (shares + missed).argmax(1)
    before = (shares.argmax(1) == true).sum()
    return bool(((shares + change).argmax(1) == true).sum() > before)


def spaced(rows: Batch, count: int) -> Batch:
    """At most ``count`` of the rows, evenly spaced."""
    return rows.rows(slice(None, None, -(-len(rows) // count)))


def judged(model: Model, rows: Batch, schema: Schema) -> tuple[Tensor, Tensor]:
    """Rows filled ``[n, V]``, and the error at each entry when it alone is hidden besides."""
    points, seen = filled(model, rows, views_of(model, rows, schema))
    errors = torch.full_like(points, torch.nan)
    for name, entry, columns in entries_of(model, schema):
        at = seen[:, columns[0]].nonzero().flatten()
        hidden = hide(rows.rows(at), name, entry)
        found = views_of(model, hidden, schema)
        guess = torch.cat([found[k] for k in model.rebuilt], 1)[:, columns]
        errors[at[:, None], columns] = points[at][:, columns] - guess
    return points, errors


def hide(rows: Batch, name: str, entry: int) -> Batch:
    """Say of one entry that it is missing in every row."""
    x, seen = rows.x[name].flatten(1), rows.observed[name]
    mask = torch.ones_like(x, dtype=torch.bool) if seen is None else seen.clone()
    mask[:, entry] = False
    return Batch(rows.x, {**rows.observed, name: mask})


def views_of(model: Model, rows: Batch, schema: Schema) -> dict[str, Tensor]:
    """What the model expects of every output ``{field: [n, V]}``, see ``Likelihood.expected``."""
    parts = [
        {k: model.likelihoods[k].expected(p)[:count].cpu() for k, p in output.params.items()}
        for output, count in inference.outputs(model, rows, schema)
    ]
    return inference.joined(parts)


def filled(model: Model, rows: Batch, expected: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Rows ``[n, V]`` with what is ``expected`` where they are missing, and where they are not."""
    device = model.fusion.last_bias().device
    views: list[Tensor] = []
    masks: list[Tensor] = []
    for k in model.rebuilt:
        head, seen = model.likelihoods[k], rows.observed[k]
        views.append(head.linear_view(rows.x[k].to(device)).float().cpu())
        everything = torch.ones(1, 1, dtype=torch.bool).expand_as(views[-1])
        masks.append(everything if seen is None else head.spread(seen.to(device)).cpu())
    known = torch.cat(masks, 1)
    guesses = torch.cat([expected[k] for k in model.rebuilt], 1)
    return torch.where(known, torch.cat(views, 1), guesses), known


def entries_of(model: Model, schema: Schema) -> Iterator[tuple[str, int, Tensor]]:
    """Field and position of every entry that is seen and rebuilt, and its columns of the view.

    A number is one column of the linear view, a class one for each of its levels. Distributions
    are left out: their shares are missing all together, and only together can they be moved.
    """
    at = 0
    for name in model.rebuilt:
        own = schema.fields[name]
        for entry, size in enumerate(own.sizes):
            if not isinstance(own, Distribution):
                yield name, entry, torch.arange(at, at + size)
            at += size
