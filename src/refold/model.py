"""The wiring: fields to code and back, and the objective as a sum of named terms."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, reduce
from typing import final

import torch
from torch import Tensor, nn

from refold.backbones import Backbone
from refold.fusion import Fusion
from refold.latents import Latent
from refold.likelihoods import Likelihood
from refold.penalties import Penalty
from refold.types import Batch, Code


@final
class Model(nn.Module):
    """Backbones, fusion, latent and likelihoods, wired; no flag for any one family.

    Each field's negative log-likelihood is multiplied by its weight (:meth:`weigh`).
    """

    def __init__(
        self,
        backbones: dict[str, Backbone],
        fusion: Fusion,
        latent: Latent,
        likelihoods: dict[str, Likelihood],
        penalties: tuple[Penalty, ...] = (),
    ) -> None:
        super().__init__()
        self.names = tuple(backbones)
        # Module names may not hold dots, and field names are the user's own.
        self._backbones = nn.ModuleList(backbones.values())
        self._likelihoods = nn.ModuleList(likelihoods[k] for k in self.names)
        self.fusion = fusion
        self.latent = latent
        self.backbones = dict(backbones)
        self.likelihoods = {k: likelihoods[k] for k in self.names}
        self._penalties = nn.ModuleList(penalties)
        self.penalties = penalties
        self._scalars = dict.fromkeys(self.names, 1.0)

    def weigh(self, weights: dict[str, tuple[float, ...]]) -> None:
        """Set each field's weights: one number, or one per entry."""
        for i, name in enumerate(self.names):
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
        return self.get_buffer(f"weight{self.names.index(name)}")

    def encode(self, batch: Batch) -> Code:
        """Code of a batch."""
        hidden = {k: b.encode(batch.x[k], batch.observed[k]) for k, b in self.backbones.items()}
        return self.latent(self.fusion.encode(hidden))

    def decode(self, z: Tensor) -> dict[str, Tensor]:
        """Likelihood parameters ``{field: [B, P]}`` of codes ``[B, D]``."""
        hidden = self.fusion.decode(z)
        return {k: b.decode(hidden[k]) for k, b in self.backbones.items()}

    def forward(self, batch: Batch, target: Batch | None = None) -> Output:
        """Run a (corrupted) batch against its clean ``target``, by default itself."""
        code = self.encode(batch)
        return Output(self, batch if target is None else target, code, self.decode(code.z))


@dataclass(eq=False)
class Output:
    """What a pass gives; each figure is computed when it is asked for.

    ``score = Σ weight·nll + Σ terms`` per row and ``loss = mean(score) + Σ aux``: training and
    scoring are one computation.
    """

    model: Model
    target: Batch
    code: Code
    params: dict[str, Tensor]

    @cached_property
    def cells(self) -> dict[str, Tensor]:
        """Weighted cost of each entry ``{field: [B, E]}``; missing entries cost nothing."""
        m, t = self.model, self.target
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
        return torch.stack([*self.nll.values(), *self.code.terms.values()]).sum(0)

    @property
    def costs(self) -> dict[str, tuple[Tensor, float]]:
        """Every cost by name: a scalar, and the factor that makes it its mean over the batch."""
        m, t = self.model, self.target
        costs = {
            k: m.likelihoods[k].cost(p, t.x[k], t.observed[k], m.weight(k))
            for k, p in self.params.items()
        }
        for name, rows in self.code.terms.items():
            costs[_free(name, costs)] = rows.sum(), 1.0 / rows.shape[0]
        for name, value in self.code.aux.items():
            costs[_free(name, costs)] = value, 1.0
        for penalty in m.penalties:
            for name, value in penalty(m, t, self.code).items():
                costs[_free(name, costs)] = value, 1.0
        return costs

    @property
    def terms(self) -> dict[str, Tensor]:
        """Mean over the batch of every cost, by name: scalars."""
        return {k: value * factor for k, (value, factor) in self.costs.items()}

    @property
    def loss(self) -> Tensor:
        """Return the objective, a scalar: the sum of :attr:`terms`."""
        return reduce(torch.add, self.terms.values())


def _free(name: str, taken: dict[str, tuple[Tensor, float]]) -> str:
    """Return a name that no other cost has: fields are named by the user, who may say 'kl'."""
    return name if name not in taken else _free(f"{name}_term", taken)
