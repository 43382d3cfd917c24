"""The wiring: fields to code and back, and the objective as a sum of named terms."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, reduce
from typing import final

import torch
from torch import Tensor, nn

from refold.backbones import Backbone
from refold.backbones.base import Skips
from refold.backbones.tied import matching, tie_pairs
from refold.errors import InputError
from refold.fusion import Fusion, Lateral
from refold.latents import Latent
from refold.likelihoods import Likelihood
from refold.penalties import Penalty
from refold.types import Batch, Code


@dataclass(slots=True)
class Beside:
    """What decoders take from encoders beside the code: by field, and the body's own."""

    fields: dict[str, Skips]
    body: Skips = ()

    def repeated(self, times: int) -> Beside:
        """The same for codes of which each row has several draws."""
        fields = {
            k: tuple(s.repeat(times, *(1,) * (s.dim() - 1)) for s in skips)
            for k, skips in self.fields.items()
        }
        return Beside(fields, self.body)


@final
class Model(nn.Module):
    """Backbones, fusion, latent and likelihoods, wired; no flag for any one family.

    ``inputs`` are the fields that the encoder sees, ``outputs`` those that the decoder gives; most
    are both. Each output's negative log-likelihood is multiplied by its weight (:meth:`weigh`), and
    in training also by its share, which a rule of balance may move. ``references`` are learnt
    inputs, which a latent whose prior is made of encoded rows has encoded beside every batch.
    """

    def __init__(
        self,
        backbones: dict[str, Backbone],
        fusion: Fusion,
        latent: Latent,
        likelihoods: dict[str, Likelihood],
        penalties: tuple[Penalty, ...] = (),
        references: References | None = None,
    ) -> None:
        super().__init__()
        self.inputs = tuple(k for k, b in backbones.items() if b.geometry.reads)
        self.outputs = tuple(k for k, b in backbones.items() if b.geometry.writes)
        # Module names may not hold dots, and field names are the user's own.
        self._backbones = nn.ModuleList(backbones.values())
        self._likelihoods = nn.ModuleList(likelihoods[k] for k in self.outputs)
        self.fusion = fusion
        self.latent = latent
        self.backbones = dict(backbones)
        self.likelihoods = {k: likelihoods[k] for k in self.outputs}
        self._penalties = nn.ModuleList(penalties)
        self.penalties = penalties
        self._scalars = dict.fromkeys(self.outputs, 1.0)
        self.shares = dict.fromkeys(self.outputs, 1.0)
        self.references = references
        self.members = fusion.members
        self._coded = tuple(k for k in self.outputs if backbones[k].coded)
        for penalty in penalties:
            penalty.attach(self)

    @property
    def rebuilt(self) -> tuple[str, ...]:
        """Fields that are both seen and given back."""
        return tuple(k for k in self.inputs if k in self.likelihoods)

    def weigh(self, weights: dict[str, tuple[float, ...]]) -> None:
        """Set each output's weights: one number, or one per entry."""
        for i, name in enumerate(self.outputs):
            given = weights[name]
            if len(given) == 1:
                self._scalars[name] = given[0]
            else:
                del self._scalars[name]
                device = self.fusion.last_bias().device
                self.register_buffer(
                    f"weight{i}", torch.tensor(given, device=device), persistent=False
                )

    def weight(self, name: str) -> Tensor | float:
        """Weight of a field: a number, or ``[E]``."""
        if name in self._scalars:
            return self._scalars[name]
        return self.get_buffer(f"weight{self.outputs.index(name)}")

    def weights(self) -> dict[str, float]:
        """Return what each output's cost is multiplied by in training, as mean over entries."""
        return {
            k: float(torch.as_tensor(self.weight(k)).mean()) * s for k, s in self.shares.items()
        }

    def set_progress(self, share: float) -> None:
        """Tell every part with a warm-up which share of the training run has passed."""
        for part in (self.latent, *self.penalties):
            part.progress = share

    @property
    def skipping(self) -> tuple[str, ...]:
        """Fields whose decoder sees more than the code, so that the code alone is not enough."""
        lateral = isinstance(self.fusion, Lateral)
        return tuple(
            k
            for k, b in self.backbones.items()
            if b.skipping or (lateral and k in self.outputs and not b.coded)
        )

    def encode(self, batch: Batch) -> tuple[Code, Beside]:
        """Code of a batch, and what decoders take from beside the code."""
        h, beside = self.hidden(batch)
        code = self.latent(h)
        return code, beside if code.draws == 1 else beside.repeated(code.draws)

    def hidden(self, batch: Batch) -> tuple[Tensor, Beside]:
        """Hidden state ``[B, width]`` that the latent takes, and what goes beside the code.

        Learnt inputs are encoded where the latent is in training; else it kept what they were.
        """
        backbones = {k: self.backbones[k] for k in self.inputs}
        if self.references is None or not self.latent.training:
            return gather(backbones, self.fusion, self.latent, batch)
        rows = len(batch)
        batch = self.references.beside(batch)
        h, beside = gather(backbones, self.fusion, self.latent, batch)
        self.latent.meet(h[rows:])
        fields = {k: tuple(s[:rows] for s in skips) for k, skips in beside.fields.items()}
        return h[:rows], Beside(fields)

    def decode(self, z: Tensor, beside: Beside | None = None) -> dict[str, Tensor]:
        """Likelihood parameters ``{field: [B, P]}`` of codes ``[B, D]``."""
        return self.unfold(z, beside)[0]

    def unfold(
        self, z: Tensor, beside: Beside | None = None
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Likelihood parameters ``{field: [B, P]}`` of codes, and the body's own costs by name.

        Members of a body learn apart, so in training each gives parameters, ``[members * B, P]``;
        in evaluation theirs are averaged.
        """
        members = self.members
        if beside is not None and members > 1:
            beside = beside.repeated(members)
        own: dict[str, Tensor] = {}
        if isinstance(self.fusion, Lateral):
            hidden, own = self.fusion.ascend(z, () if beside is None else beside.body)
        else:
            hidden = self.fusion.decode(z)
        hidden |= dict.fromkeys(self._coded, z)
        skips: dict[str, Skips] = {} if beside is None else beside.fields
        spines = self.backbones
        params = {k: spines[k].decode(hidden[k], skips.get(k, ())) for k in self.outputs}
        if members > 1 and not self.training:
            params = {k: p.unflatten(0, (members, -1)).mean(0) for k, p in params.items()}
        return params, own

    def field_costs(
        self, params: dict[str, Tensor], target: Batch
    ) -> dict[str, tuple[Tensor, float]]:
        """Weighted cost of each field: a scalar, and the factor that makes it its mean per row."""
        target = repeated(target, params) if self.members > 1 else target
        costs = {
            k: self.likelihoods[k].cost(p, target.x[k], target.observed[k], self.weight(k))
            for k, p in params.items()
        }
        if not self.training:
            return costs
        return {k: (value, factor * self.shares[k]) for k, (value, factor) in costs.items()}

    def mirrored(self) -> list[tuple[str, str]]:
        """Names of layers of the encoder and of those of the decoder that mirror them, by module.

        They are in the order of the fields, then the body, each from the outermost pair inwards.
        """
        names = {m: name for name, m in self.named_modules()}
        pairs = [pair for b in (*self.backbones.values(), self.fusion) for pair in b.pairs]
        return [
            (names[down.get_submodule(mine)], names[up.get_submodule(other)])
            for down, up in pairs
            for mine, other in matching(down, up)
        ]

    def tie(self, pairs: Sequence[int] | None = None) -> None:
        """Let layers of the decoder use the weights of those of the encoder they mirror.

        ``pairs`` counts :meth:`mirrored` ones from 0; None ties all. Raises :class:`InputError`,
        and changes nothing, where two are not of mirrored sizes.
        """
        found = self.mirrored()
        if not found:
            raise InputError(
                "there is nothing to tie: the decoder's layers do not mirror the encoder's"
            )
        for i in pairs or ():
            if not 0 <= i < len(found):
                raise InputError(f"there is no pair {i} to tie; pairs count to {len(found) - 1}")
        tie_pairs(self, found if pairs is None else [found[i] for i in pairs])

    def forward(self, batch: Batch, target: Batch | None = None) -> Output:
        """Run a (corrupted) batch against its clean ``target``, by default itself."""
        code, beside = self.encode(batch)
        params, own = self.unfold(code.z, beside)
        code.aux |= own
        return Output(self, batch if target is None else target, code, params, batch)


def fold(backbones: Mapping[str, Backbone], fusion: Fusion, latent: Latent, batch: Batch) -> Code:
    """Code of a batch by way of the given fields' backbones."""
    return latent(gather(backbones, fusion, latent, batch)[0])


def gather(
    backbones: Mapping[str, Backbone], fusion: Fusion, latent: Latent, batch: Batch
) -> tuple[Tensor, Beside]:
    """Hidden state for the latent by way of the given fields' backbones, and what is beside it."""
    hidden: dict[str, Tensor] = {}
    beside = Beside({})
    present: dict[str, Tensor] = {}
    for name, backbone in backbones.items():
        seen = batch.observed[name]
        hidden[name], beside.fields[name] = backbone.encode(batch.x[name], seen)
        if seen is not None:
            present[name] = seen.any(1)
    if isinstance(fusion, Lateral):
        h, beside.body = fusion.descend(hidden, present)
    else:
        h = fusion.encode(hidden, present)
    if latent.generative and len(present) == len(backbones):
        # Of a row in which nothing is known, the prior is all that can be said.
        h = h * torch.stack(list(present.values())).any(0).to(h.dtype).unsqueeze(1)
    return h, beside


@final
class References(nn.Module):
    """Learnt rows of inputs, ``count`` of them, encoded beside every batch.

    ``shapes`` are those of the fields' rows. Raises :class:`InputError` for classes, which have no
    gradient to be learnt by.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], count: int) -> None:
        super().__init__()
        self.names = tuple(shapes)
        self.rows = nn.ParameterList(torch.zeros(count, *shape) for shape in shapes.values())

    @torch.no_grad()
    def start(self, rows: Batch, generator: torch.Generator | None = None) -> None:
        """Start at rows of training, drawn at random."""
        drawn = torch.randint(len(rows), (len(self.rows[0]),), generator=generator)
        for name, own in zip(self.names, self.rows, strict=True):
            own.copy_(rows.x[name][drawn.to(own.device)])

    def beside(self, batch: Batch) -> Batch:
        """Rows of the batch, then the learnt ones, in which everything is there."""
        x, observed = dict(batch.x), dict(batch.observed)
        for name, own in zip(self.names, self.rows, strict=True):
            x[name] = torch.cat([batch.x[name], own.to(batch.x[name].dtype)])
            seen = batch.observed[name]
            if seen is not None:
                observed[name] = torch.cat([seen, seen.new_ones(len(own), seen.shape[1])])
        return Batch(x, observed)


@dataclass(eq=False)
class Output:
    r"""What a pass gives; each figure is computed when it is asked for.

    ``score = Σ weight·nll + Σ terms`` per row and ``loss = mean(score) + Σ aux``: training and
    scoring are one computation. Where a row's code was drawn several times, its score is minus
    the importance-weighted bound, :math:`-\log \tfrac1k \sum_k e^{-\text{score}_k}` (Burda et
    al. 2015, arXiv:1509.00519), and the only cost of the rows; cells and nll are of single draws.
    Where the body has several members, score and costs are means over theirs: costs of the code,
    which holds the codes of all, are divided by their number.
    """

    model: Model
    target: Batch
    code: Code
    params: dict[str, Tensor]
    given: Batch
    """The rows as the encoder saw them."""

    @cached_property
    def cells(self) -> dict[str, Tensor]:
        """Weighted cost of each entry ``{field: [B, E]}``; missing entries cost nothing."""
        m, t = self.model, repeated(self.target, self.params)
        return {
            k: m.likelihoods[k].weighted(p, t.x[k], t.observed[k], m.weight(k))
            for k, p in self.params.items()
        }

    @cached_property
    def nll(self) -> dict[str, Tensor]:
        """Weighted cost of each field per row, ``{field: [B]}``."""
        return {k: c.sum(1) for k, c in self.cells.items()}

    @cached_property
    def score(self) -> Tensor:
        """Cost per row ``[B]``: the higher, the more unusual."""
        draws, members = self.code.draws, self.model.members
        costs = list(self.nll.values())
        if members > 1:
            costs = [nll.view(-1, len(self.target) * draws).mean(0) for nll in costs]
        each = reduce(torch.add, [*costs, *(term / members for term in self.code.terms.values())])
        if draws == 1:
            return each
        return math.log(draws) - torch.logsumexp(-each.view(draws, -1), 0)

    @property
    def costs(self) -> dict[str, tuple[Tensor, float]]:
        """Every cost by name: a scalar, and the factor that makes it its mean over the batch."""
        m, t = self.model, self.target
        share = 1.0 / m.members
        if self.code.draws > 1:
            costs = {"bound": (self.score.sum(), 1.0 / len(t))}
        else:
            costs = m.field_costs(self.params, t)
            for name, rows in self.code.terms.items():
                costs[_free(name, costs)] = rows.sum(), share / rows.shape[0]
        for name, value in self.code.aux.items():
            costs[_free(name, costs)] = value, share
        for penalty in m.penalties:
            for name, value in penalty(m, t, self.code, self.params).items():
                costs[_free(name, costs)] = value, share
        return costs

    @property
    def terms(self) -> dict[str, Tensor]:
        """Mean over the batch of every cost, by name: scalars."""
        return {k: value * factor for k, (value, factor) in self.costs.items()}

    @property
    def loss(self) -> Tensor:
        """Return the objective, a scalar: the sum of :attr:`terms`."""
        return reduce(torch.add, self.terms.values())


def repeated(target: Batch, params: Mapping[str, Tensor]) -> Batch:
    """Repeat a target as often as it was decoded: for several draws, or by several members."""
    times = len(next(iter(params.values()), ())) // max(1, len(target))
    if times <= 1:
        return target
    device = next(iter(params.values())).device
    return target.rows(torch.arange(len(target), device=device).repeat(times))


def _free(name: str, taken: dict[str, tuple[Tensor, float]]) -> str:
    """Return a name that no other cost has: fields are named by the user, who may say 'kl'."""
    return name if name not in taken else _free(f"{name}_term", taken)
