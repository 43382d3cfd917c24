"""The step of a sparse dictionary: work for the entries that are active, and for no others."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from types import SimpleNamespace
from typing import Any, final

import torch
from torch import Tensor, nn

from refold.backbones.flat import Flat
from refold.fusion import Dictionary
from refold.latents import BatchTopK, TopK
from refold.latents.dictionary import RATE
from refold.likelihoods import SquaredError
from refold.model import Model
from refold.ops.dictionary import (
    GROUP,
    Pairs,
    at_least,
    bags,
    dots,
    ends,
    group_maxima,
    kth_largest,
    linear,
    perhaps,
    positive_maxima,
    round_rows,
    rounding_error,
    surely,
    top_of_all,
    top_of_rows,
)
from refold.penalties import AuxK
from refold.penalties.dictionary import total
from refold.training.machine import fast_bfloat16
from refold.training.plan import Plan
from refold.training.steps.base import Step
from refold.training.steps.eager import Eager
from refold.types import Batch, Costs

SLICE = 1024  # latents whose gradients are made, used and forgotten while they are in cache
MANY = 6  # candidates for each active entry, beyond which all entries are computed exactly
WIDE = 8192  # latents from which rounded products pay


def suits(model: nn.Module, plan: Plan, device: torch.device) -> bool:
    """Whether a model is a dictionary of one field that this step knows all parts of."""
    if device.type != "cpu" or not isinstance(model, Model):
        return False
    if not isinstance(model.fusion, Dictionary):
        return False
    body, latent = model.fusion, model.latent
    if not isinstance(latent, TopK | BatchTopK) or (
        isinstance(latent, TopK) and not latent.rectify
    ):
        return False
    if body.code % GROUP or latent.k >= body.code // GROUP:
        return False
    one = model.inputs == model.outputs and len(model.inputs) == 1 and "auxk" not in model.inputs
    if not one or not body.centred or body.masked or model.references is not None:
        return False
    (name,) = model.inputs
    plain = (
        isinstance(model.backbones[name], Flat)
        and isinstance(model.likelihoods[name], SquaredError)
        and isinstance(model.weight(name), float)
    )
    if not plain or any(not isinstance(p, AuxK) for p in model.penalties):
        return False
    if len(model.penalties) > 1 or any(p.optimizer or p.lr for p in model.penalties):
        return False
    own = {body.encoder, body.encoder_bias, body.decoder, body.centre}
    if {*model.parameters()} != own or not all(p.requires_grad for p in own):
        return False
    if any(p.dtype not in (torch.float32, torch.float64) for p in own):
        return False
    ((optimizer, _),) = plan.make_optimizers(model)
    group = optimizer.param_groups[0]
    ours = plan.optimizer.name in ("adam", "adamw") and group["fused"]
    return ours and not group["amsgrad"] and not isinstance(group["lr"], Tensor)


@dataclass(slots=True)
class Beside:
    """Gradients of the ``dead`` latents, in rising order, from what the others leave over."""

    dead: Tensor
    of_encoder: Tensor
    of_bias: Tensor
    of_decoder: Tensor

    def add(
        self,
        first: int,
        decoder: Tensor,
        of_encoder: Tensor,
        of_bias: Tensor,
        of_decoder: Tensor,
        along: Tensor,
    ) -> None:
        """Add those of the latents from ``first`` on, and what of them is along directions."""
        bounds = self.dead.new_tensor([first, first + len(of_bias)])
        mine = slice(*torch.searchsorted(self.dead, bounds).tolist())
        own = self.dead[mine] - first
        of_encoder[own] += self.of_encoder[mine]
        of_bias[own] += self.of_bias[mine]
        of_decoder[own] += self.of_decoder[mine]
        along[own] += (self.of_decoder[mine] * decoder[own]).sum(1)


@final
class DictionaryStep(Step):
    r"""The step of :class:`Eager`, equal but for rounding, without the zeros of the code.

    .. math:: \partial_{D_i} = \sum_b z_{bi} g_b, \quad
              \partial_{h_{bi}} = \langle g_b, D_i \rangle [z_{bi} > 0], \quad
              \partial_{E_i} = \sum_b \partial_{h_{bi}} (x_b - m), \quad
              g = \partial_{\hat x}

    Of a code of :math:`n` entries only the product with the encoder is of full size; all other sums
    are over the active entries, sorted by latent. Gradients and Adam take some latents at a time,
    so that gradients never leave the cache, and the whole of them is nowhere. Moments are those of
    an ordinary optimiser, so either step can go on where the other stood.

    Where the processor is fast at bfloat16, a product in it says which entries may be among the
    largest: a bound of its rounding error leaves none out. These are computed exactly, and the
    choice among them is that of the exact product.

    Batches of which not everything is there are left to :class:`Eager`.
    """

    def __init__(self, model: Model, plan: Plan, device: torch.device) -> None:
        body = model.fusion
        assert isinstance(body, Dictionary)
        self.model, self.body = model, body
        (self.name,) = model.outputs
        self.plain = Eager(model, plan, device)
        self.auxk = next((p for p in model.penalties if isinstance(p, AuxK)), None)
        self.rounded: Tensor | None = None
        if body.encoder.dtype == torch.float32 and body.code >= WIDE and fast_bfloat16(device):
            self.rounded = torch.empty_like(body.encoder, dtype=torch.bfloat16)
        assert isinstance(model.latent, TopK | BatchTopK)
        self.k = model.latent.k
        self.version = -1
        self.spread: list[Tensor] = []

    @torch.no_grad()
    def take(self, batch: Batch, clean: Batch) -> Costs:
        """Take the step."""
        seen = batch.observed[self.name] is not None or clean.observed[self.name] is not None
        if seen or clean.known is not None:
            with torch.enable_grad():
                costs = self.plain.take(batch, clean)
            self.plain.close()
            return costs
        body = self.body
        x = body.offset({self.name: batch.x[self.name].flatten(1)})
        active = self.choose(x)
        target = clean.x[self.name].flatten(1)
        rebuilt = bags(body.decoder, active.at, active.values, active.starts).add_(body.centre)
        costs = self.model.field_costs({self.name: rebuilt}, clean)
        slope = (rebuilt - target).mul_(2.0 * costs[self.name][1])
        count = active.at.bincount(minlength=body.code)
        beside = None
        if self.auxk is not None:
            costs["auxk"], beside = self._dead(self.auxk, count, clean, rebuilt)
        self._learn(x, active, count, slope, beside)
        return costs

    def choose(self, x: Tensor) -> Pairs:
        """Active entries of the codes of rows as seen from the centre ``[B, d]``."""
        latent = self.model.latent
        rows, at, values = self._candidates(x)
        if isinstance(latent, TopK):
            return top_of_rows(rows, at, values, latent.k, len(x))
        assert isinstance(latent, BatchTopK)
        active, least = top_of_all(rows, at, values, latent.k * len(x), len(x))
        latent.threshold.lerp_(least.to(latent.threshold.dtype), RATE)
        return active

    def _candidates(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Rows, latents and exact values of all entries that may be among the largest."""
        body = self.body
        if self.rounded is not None:
            self._follow(self.rounded)
            low, bias = x.bfloat16(), body.encoder_bias.bfloat16()
            reach, wrong = torch.stack(self.spread).amax(0)
            bias_error = (body.encoder_bias - bias).abs().amax()
            error = rounding_error(x, low, reach, wrong, bias_error)
            h = linear(low, self.rounded, bias)
            maxima = positive_maxima(h)
            least = perhaps(self._level(maxima, error), error)
            if bool((least <= 0).any()):  # some rows have too few entries above zero
                maxima = group_maxima(h)
            rows, at, _ = at_least(h, maxima, least)
            if len(rows) <= MANY * self.k * len(x):
                exact = torch.empty(len(at), dtype=x.dtype)
                own, order = at.sort()  # so that the encoder is read once, and in order
                exact[order] = dots(body.encoder, own, x, rows[order])
                return rows, at, exact.add_(body.encoder_bias[at])
        h = linear(x, body.encoder, body.encoder_bias)
        maxima = group_maxima(h)
        least = self._level(maxima, None).clamp_min(torch.finfo(h.dtype).tiny)
        return at_least(h, maxima, least)

    def _level(self, maxima: Tensor, error: Tensor | None) -> Tensor:
        """What the least active entry of each row surely reaches, ``[B]``.

        As many groups as there are active entries have a largest entry that reaches it.
        """
        if isinstance(self.model.latent, TopK):
            level = kth_largest(maxima, self.k)
            return level if error is None else surely(level, error)
        if error is not None:
            maxima = surely(maxima, error[:, None])
        return kth_largest(maxima.view(1, -1), self.k * len(maxima)).expand(len(maxima))

    def _follow(self, rounded: Tensor) -> None:
        """Round the encoder again where something other than this step has changed it."""
        if self.version != self.body.encoder._version:  # pyright: ignore[reportPrivateUsage]
            slices = zip(self.body.encoder.split(SLICE), rounded.split(SLICE), strict=True)
            self.spread = [round_rows(exact, own) for exact, own in slices]
            self.version = self.body.encoder._version  # pyright: ignore[reportPrivateUsage]

    def _dead(
        self, auxk: AuxK, count: Tensor, clean: Batch, rebuilt: Tensor
    ) -> tuple[tuple[Tensor, float], Beside | None]:
        """Cost of the dead latents, and its gradients."""
        dead = auxk.note(count, len(clean))
        if not len(dead):
            return (rebuilt.new_zeros(()), 1.0), None
        body = self.body
        own = [
            p.detach()[dead].requires_grad_()
            for p in (body.encoder, body.encoder_bias, body.decoder)
        ]
        few: Any = SimpleNamespace(encoder=own[0], encoder_bias=own[1], decoder=own[2])
        seen = body.offset({self.name: clean.x[self.name].flatten(1)})
        with torch.enable_grad():
            moved = rebuilt + auxk.rebuilt(few, seen, torch.arange(len(dead)))
            cost = total(self.model, {self.name: moved}, clean) * auxk.weight
        return (cost.detach(), 1.0), Beside(dead, *torch.autograd.grad(cost, own))

    def _learn(
        self, x: Tensor, active: Pairs, count: Tensor, slope: Tensor, beside: Beside | None
    ) -> None:
        """Move all parameters, some latents at a time."""
        body = self.body
        at, order = active.at.sort(stable=True)
        rows, values = active.rows[order], active.values[order]
        starts = ends(count)
        centre = slope.sum(0)
        moves = {p: self._mover(p) for p in (body.encoder, body.encoder_bias, body.decoder)}
        marks = [*starts[:-1:SLICE].tolist(), len(at)]
        for number, (begin, end) in enumerate(pairwise(marks)):
            first, last = number * SLICE, min((number + 1) * SLICE, body.code)
            here = slice(first, last)
            row, z, own = rows[begin:end], values[begin:end], at[begin:end] - first
            bounds = starts[first : last + 1] - begin
            encoder, decoder = body.encoder[here], body.decoder[here]
            back = dots(decoder, own, slope, row)
            of_decoder = bags(slope, row, z, bounds)
            of_encoder = bags(x, row, back, bounds)
            of_bias = back.new_zeros(last - first).index_add_(0, own, back)
            # Of a direction's gradient, what is along it: it is made of what came back.
            along = back.new_zeros(last - first).index_add_(0, own, back * z)
            if beside is not None:
                beside.add(first, decoder, of_encoder, of_bias, of_decoder, along)
            of_decoder.addcmul_(decoder, along[:, None], value=-1)
            centre.addmv_(encoder.T, of_bias, alpha=-1)
            # The gradients of these latents are complete here, and no parameter has moved.
            moves[body.encoder](here, of_encoder)
            moves[body.encoder_bias](here, of_bias)
            moves[body.decoder](here, of_decoder)
            decoder.div_(torch.linalg.vector_norm(decoder, dim=1, keepdim=True).clamp_min_(1e-12))
            if self.rounded is not None:
                self.spread[number] = round_rows(encoder, self.rounded[here])
        self._mover(body.centre)(slice(None), centre)
        self.version = body.encoder._version  # pyright: ignore[reportPrivateUsage]

    def _mover(self, parameter: nn.Parameter) -> Callable[[slice, Tensor], None]:
        """Begin the optimiser's step of a parameter; what is returned takes it for some rows."""
        optimizer = self.plain.optimizers[0][0]
        group, state = optimizer.param_groups[0], optimizer.state[parameter]
        if not state:  # as the optimiser itself begins
            state["step"] = torch.zeros((), dtype=torch.float32)
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
        state["step"] += 1
        decoupled = group["decoupled_weight_decay"]
        fused = torch._fused_adamw_ if decoupled else torch._fused_adam_  # pyright: ignore
        first, second = state["exp_avg"], state["exp_avg_sq"]
        beta1, beta2 = group["betas"]

        def move(here: slice, gradient: Tensor) -> None:
            fused(
                [parameter[here]], [gradient], [first[here]], [second[here]], [], [state["step"]],
                lr=group["lr"], beta1=beta1, beta2=beta2, weight_decay=group["weight_decay"],
                eps=group["eps"], amsgrad=False, maximize=group["maximize"],
            )  # fmt: skip

        return move

    def set_rate(self, rate: float) -> None:
        """Set the rate."""
        self.plain.set_rate(rate)

    def set_format(self, *, bfloat16: bool) -> None:
        """Change nothing: what is gained by rounding is gained without changing a choice."""

    def state(self) -> dict[str, Tensor]:
        """Return the moments, as :class:`Eager` has them."""
        return self.plain.state()

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Put them back."""
        self.plain.restore(state)

    def forget(self, name: str, rows: Tensor) -> None:
        """Zero the moments of rows of one parameter."""
        self.plain.forget(name, rows)

    def close(self) -> None:
        """Drop every gradient."""
        self.plain.close()
