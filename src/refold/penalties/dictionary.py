"""Costs of dictionaries: of latents that never fire, of prefixes, and of a gate by itself."""

from __future__ import annotations

from typing import Any, cast, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from refold.backbones.flat import Layerless
from refold.errors import InputError
from refold.fusion import Dictionary
from refold.fusion.base import part
from refold.ops import ranks
from refold.penalties.base import Penalty, penalties, register
from refold.types import Batch, Code

PATIENCE = 100  # times a latent could have fired, did all fire alike, before it counts as dead
PARTS = (16, 8, 4, 2)  # by which a code is divided where no prefixes are named


class Idle(Penalty):
    """A penalty that counts, for each latent, the rows of training since it last fired.

    ``idle`` ``[n]`` are these rows; a latent is dead that was silent in more than ``after`` of them
    (None: so many that it would have fired a hundred times, did all fire alike).
    """

    idle: Tensor
    enough: Tensor
    after: int | None

    def attach(self, model: nn.Module) -> None:
        """Count idle rows from the first on."""
        body = dictionary_of(model, penalties.spec(self).name)
        self.register_buffer("idle", torch.zeros(body.code, dtype=torch.int64))
        self.register_buffer("enough", torch.zeros((), dtype=torch.float64))

    @torch.no_grad()
    def note(self, counts: Tensor, rows: int) -> Tensor:
        """Take note of how many of ``rows`` rows each latent fired in; return the dead, ``[m]``."""
        counts, rows = ranks.total(counts), ranks.rows(rows)
        self.idle.add_(rows).masked_fill_(counts > 0, 0)
        after = self.after
        if after is None:
            after = PATIENCE * rows * len(counts) / max(1.0, float(counts.sum()))
        self.enough.fill_(after)
        return self.dead

    @property
    def dead(self) -> Tensor:
        """Latents that are dead, ``[m]``, in rising order."""
        return (self.idle > self.enough).nonzero().flatten()

    def judged(self, model: nn.Module, batch: Batch, code: Code, params: dict[str, Tensor]) -> None:
        """Leave sums of squares of what is rebuilt and what is not, for the history."""
        code.stats["squares"] = squares(model, batch, params)

    def heard(self, code: Code) -> Tensor:
        """Take note of a batch's codes; return the dead."""
        z = code.z.detach().flatten(0, -2)
        return self.note(z.nonzero(as_tuple=True)[1].bincount(minlength=z.shape[1]), len(z))


@final
@register("auxk")
class AuxK(Idle):
    r"""Latents that no longer fire learn from what the others leave over.

    .. math:: \text{cost} = \alpha \, \ell\bigl(x, \; \hat x + z' D\bigr), \qquad
              z' = \max(\operatorname{top}_k(h_\text{dead}), 0)

    :math:`\ell` is the fields' own cost and :math:`\hat x` is held still: with squared error, half
    that of rebuilding :math:`x - \hat x` from the ``k`` strongest dead latents (None: half as many
    as a row has numbers). A latent is dead that was silent in ``after`` rows of training (None: so
    many that it would have fired a hundred times, did all fire alike). Only rows of the dead
    latents are read, so the cost is free where none is dead. ``weight`` is :math:`\alpha`. It is a
    cost of training alone.

    Raises :class:`InputError` for a body that is no dictionary, or fields with layers of their own.

    Source: Gao et al., Scaling and Evaluating Sparse Autoencoders, 2024 (arXiv:2406.04093),
    section A.2.

    >>> AuxK(k=256).weight
    0.03125
    """

    def __init__(
        self, *, k: int | None = None, weight: float = 1 / 32, after: int | None = None
    ) -> None:
        super().__init__()
        if not weight >= 0:
            raise InputError(f"the weight of auxk is {weight}; it must be 0 or more")
        if k is not None and k < 1:
            raise InputError(f"k of auxk is {k}; it must be 1 or more")
        self.k, self.weight, self.after = k, weight, check_after(after)

    def forward(
        self, model: nn.Module, batch: Batch, code: Code, params: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """Cost of what the dead latents do not rebuild; nothing in evaluation."""
        if not self.training:
            self.judged(model, batch, code, params)
            return {}
        dead = self.heard(code)
        if not len(dead):
            return {"auxk": code.z.new_zeros(())}
        held = cast(Any, model)
        whole = batch.whole()
        hidden = {
            k: held.backbones[k].encode(whole.x[k], whole.observed[k])[0] for k in held.inputs
        }
        body = dictionary_of(model, "auxk")
        added = self.rebuilt(body, body.offset(hidden), dead)
        moved = {k: params[k].detach() + v for k, v in part(added, body.outputs).items()}
        return {"auxk": total(model, moved, batch) * self.weight}

    def rebuilt(self, body: Dictionary, seen: Tensor, dead: Tensor) -> Tensor:
        """What the strongest of the latents ``dead`` make of rows ``[B, inputs]``."""
        h = F.linear(seen, body.encoder[dead], body.encoder_bias[dead])
        most = self.k or max(1, body.decoder.shape[1] // 2)
        if most < len(dead):
            values, at = h.topk(most, dim=1, sorted=False)
            h = torch.zeros_like(h).scatter(1, at, values)
        return torch.relu(h) @ body.decoder[dead]


@final
@register("resample")
class Resample(Idle):
    r"""Latents that no longer fire begin anew, at rows that the model rebuilds badly.

    It costs nothing. At evaluations in the first three quarters of the run each dead latent is
    given a row drawn by its squared cost, :math:`p_b \propto \ell_b^2`, see
    :func:`refold.training.revive.revive`. A latent is dead that was silent in ``after`` rows of
    training (None: so many that it would have fired a hundred times, did all fire alike).

    Raises :class:`InputError` for a body that is no dictionary, or fields with layers of their own.

    Source: Bricken et al., Towards Monosemanticity, 2023, appendix on neuron resampling.

    >>> Resample(after=50_000).after
    50000
    """

    def __init__(self, *, after: int | None = None) -> None:
        super().__init__()
        self.after = check_after(after)

    def forward(
        self, model: nn.Module, batch: Batch, code: Code, params: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """Count, and cost nothing."""
        if self.training:
            self.heard(code)
        else:
            self.judged(model, batch, code, params)
        return {}


@final
@register("matryoshka")
class Matryoshka(Penalty):
    r"""Prefixes of the code rebuild rows by themselves, so that the first latents are general.

    .. math:: \text{cost} = \lambda \sum_{s \in S} \ell\Bigl(x, \; \sum_{i \le s} z_i D_i + m\Bigr)

    ``sizes`` :math:`S` are those of the prefixes (None: a sixteenth of the code, an eighth, a
    quarter and half of it); the whole code is the model's own objective. ``weight``
    :math:`\lambda` is that of each. Latents that stand early learn what many rows have, and those
    behind them what it is made of, in place of swallowing it.

    Raises :class:`InputError` for a body that is no dictionary, or fields with layers of their own,
    and for sizes that do not rise within the code.

    Source: Bussmann et al., Learning Multi-Level Features with Matryoshka Sparse Autoencoders, 2025
    (arXiv:2503.17547).

    >>> Matryoshka(sizes=(256, 1024)).sizes
    (256, 1024)
    """

    def __init__(self, *, sizes: tuple[int, ...] | None = None, weight: float = 1.0) -> None:
        super().__init__()
        if not weight >= 0:
            raise InputError(f"the weight of matryoshka is {weight}; it must be 0 or more")
        if sizes is not None and (not sizes or list(sizes) != sorted({*sizes}) or sizes[0] < 1):
            raise InputError(f"the prefixes' sizes are {sizes}; give sizes from 1 on that rise")
        self.sizes, self.weight = sizes, weight

    def attach(self, model: nn.Module) -> None:
        """Refuse prefixes that are no part of the code."""
        size = dictionary_of(model, "matryoshka").code
        if self.sizes is not None and self.sizes[-1] >= size:
            raise InputError(
                f"a prefix of {self.sizes[-1]} is not shorter than the code of {size}; give "
                f"sizes below {size}"
            )

    def forward(
        self, model: nn.Module, batch: Batch, code: Code, params: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """Sum of what each prefix does not rebuild."""
        body = dictionary_of(model, "matryoshka")
        sizes = self.sizes or tuple(sorted({max(1, body.code // n) for n in PARTS} - {body.code}))
        rebuilt, start, costs = body.centre, 0, list[Tensor]()
        for end in sizes:
            rebuilt = rebuilt + code.z[:, start:end] @ body.decoder[start:end]
            costs.append(total(model, part(rebuilt, body.outputs), batch))
            start = end
        return {"matryoshka": torch.stack(costs or [code.z.new_zeros(())]).sum() * self.weight}


@final
@register("gate")
class Gate(Penalty):
    r"""The gate of a gated latent rebuilds rows by itself, with directions that are held still.

    .. math:: \text{cost} = \lambda \, \ell\bigl(x, \; \max(h, 0) \, \bar D + \bar m\bigr)

    A gate is open or not, which has no gradient; this gives it one. ``weight`` is :math:`\lambda`.
    The latent ``gated`` brings it with it.

    Raises :class:`InputError` for a body that is no dictionary, a latent without a gate, or fields
    with layers of their own.

    Source: Rajamanoharan et al., Improving Dictionary Learning with Gated Sparse Autoencoders, 2024
    (arXiv:2404.16014), section 3.2.

    >>> Gate().weight
    1.0
    """

    def __init__(self, *, weight: float = 1.0) -> None:
        super().__init__()
        if not weight >= 0:
            raise InputError(f"the weight of the gate is {weight}; it must be 0 or more")
        self.weight = weight

    def attach(self, model: nn.Module) -> None:
        """Refuse models that have nothing to open."""
        dictionary_of(model, "gate")
        if "gate" not in cast(Any, model).latent.needs:
            raise InputError("the penalty 'gate' is for the latent 'gated'; leave it out")

    def forward(
        self, model: nn.Module, batch: Batch, code: Code, params: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """Cost of what the gate does not rebuild."""
        body = dictionary_of(model, "gate")
        rebuilt = torch.addmm(body.centre.detach(), code.beside["gate"], body.decoder.detach())
        return {"gate": total(model, part(rebuilt, body.outputs), batch) * self.weight}


def check_after(after: int | None) -> int | None:
    """Return after how many rows a silent latent is dead; raise for fewer than one."""
    if after is not None and after < 1:
        raise InputError(f"a latent is to be dead after {after} silent rows; give 1 or more")
    return after


def dictionary_of(model: nn.Module, name: str) -> Dictionary:
    """Return a model's body, where it is a dictionary that gives the fields their parameters."""
    held = cast(Any, model)
    layered = [k for k in held.outputs if not isinstance(held.backbones[k], Layerless)]
    body, found = held.fusion, ""
    if not isinstance(body, Dictionary):
        found = "another body"
    elif layered:
        found = f"layers of its own in '{layered[0]}'"
    elif body.into != body.code:
        found = "a latent that takes more than one number an entry"
    if found:
        raise InputError(
            f"the penalty '{name}' is for dictionaries, and the model has {found}; use "
            f"recipe='dictionary' as it is, or leave the penalty out"
        )
    return body


def total(model: nn.Module, params: dict[str, Tensor], target: Batch) -> Tensor:
    """Mean over the rows of the fields' costs under ``params``, a scalar."""
    costs = cast(Any, model).field_costs(params, target).values()
    return torch.stack([value * factor for value, factor in costs]).sum()


@torch.no_grad()
def squares(model: nn.Module, batch: Batch, params: dict[str, Tensor]) -> Tensor:
    r"""Sums over the rows of a batch that tell how much of the variance is explained, ``[1, *]``.

    First :math:`\sum (x - \hat x)^2` and :math:`\sum x^2`, then for each number of a row
    :math:`\sum x`, then for each in how many rows it is there. Classes count as indicators.
    """
    held, lost, whole = cast(Any, model), list[Tensor](), list[Tensor]()
    sums, counts = list[Tensor](), list[Tensor]()
    for name in held.rebuilt:
        head = held.likelihoods[name]
        x = head.linear_view(batch.x[name]).double()
        seen = batch.observed[name]
        there = torch.ones_like(x) if seen is None else head.spread(seen).double()
        x, rebuilt = x * there, head.expected(params[name]).double() * there
        lost.append((x - rebuilt).square().sum())
        whole.append(x.square().sum())
        sums.append(x.sum(0))
        counts.append(there.sum(0))
    both = torch.stack([torch.stack(lost).sum(), torch.stack(whole).sum()])
    return torch.cat([both, *sums, *counts])[None]
