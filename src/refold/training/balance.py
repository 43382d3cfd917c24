r"""Rules that move the weights of the outputs while a model is trained.

Weights that stay (:func:`refold.training.start.balance`) belong to the model and to its scores. A
rule here begins from balanced ones and multiplies each output's cost by a *share*, in training
only, so that losses of two epochs compare and a score means the same before and after.

Throughout, :math:`L_k` is the cost of output :math:`k` per row at the weights that stay,
:math:`n_k` its units (columns, or arrays) and :math:`a_k` the weight that the user gave the field,
which multiplies :math:`L_k` and which no rule takes back.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from refold.errors import InputError, unknown
from refold.fields import Field
from refold.likelihoods import likelihoods
from refold.model import Model
from refold.ops import ranks
from refold.parts import PartSpec, Registry
from refold.training.start import SAMPLE
from refold.types import Batch, Code, Costs

DENSITIES = ("beta", "gaussian", "laplace", "student")
"""Likelihoods whose cost is the negative log of a density, which may be above 1."""


@dataclass(frozen=True)
class Task:
    """What a rule knows of an output: its units, the user's weight, and where its cost begins.

    ``start`` is the cost of the best constant prediction; ``density`` says that costs may be
    negative.
    """

    units: int = 1
    weight: float = 1.0
    start: float = 1.0
    density: bool = False


class Balancer(ABC):
    """Called in every training step after the forward pass; moves shares for the steps to come.

    ``shares`` is the model's own dictionary, changed in place. The tasks are of the outputs that
    are balanced. Reading a cost waits for the device, so shares move every ``every`` steps.
    """

    def __init__(self, shares: dict[str, float], tasks: Mapping[str, Task], every: int) -> None:
        if every < 1:
            raise InputError(f"every is {every}; it is a number of steps, 1 or more")
        self.shares, self.tasks, self.every = shares, dict(tasks), every
        self.steps = 0

    def __call__(self, costs: Costs, code: Code | None) -> Costs:
        """Take note of a step; return its costs without the shares, as the log shows them."""
        plain = {k: (v, factor / self.shares.get(k, 1.0)) for k, (v, factor) in costs.items()}
        self.steps += 1
        self.look({k: plain[k] for k in self.tasks if k in plain}, code)
        return plain

    @abstractmethod
    def look(self, costs: Costs, code: Code | None) -> None:
        """See the costs of the outputs that this step had, and the code they were made from."""

    def judge(self, means: Mapping[str, float]) -> float:
        """Return what the weights to keep are chosen by, from held-out means without shares."""
        return means["loss"]

    @property
    def due(self) -> bool:
        """Whether shares move in this step."""
        return self.steps % self.every == 0

    def remembered(self) -> dict[str, Any]:
        """Return all that is kept from step to step, as plain values."""
        return {"steps": self.steps, "shares": dict(self.shares), "own": self.kept()}

    def remember(self, values: Mapping[str, Any]) -> None:
        """Put back what :meth:`remembered` gave."""
        self.steps = values["steps"]
        self.shares.update(values["shares"])
        self.keep(values["own"])

    def kept(self) -> dict[str, Any]:
        """Return what the rule itself keeps; the base keeps nothing."""
        return {}

    def keep(self, own: Mapping[str, Any]) -> None:
        """Put back what :meth:`kept` gave."""
        assert not own

    def rest(self) -> None:
        """Set every share to 1 again: beyond training the weights that stay are the weights."""
        self.shares.update(dict.fromkeys(self.shares, 1.0))


balancers: Registry[Balancer] = Registry("weights")
register = balancers.register
WAYS = ("balanced", "equal")  # rules for weights that stay; those in ``balancers`` move


@final
@register("uncertainty")
class Uncertainty(Balancer):
    r"""Weights by the noise of each output: what is hard to predict counts less.

    Each output's likelihood gets one variance :math:`e^{s_k}` for all its units,

    .. math:: \sum_k e^{-s_k} L_k + \tfrac12 a_k n_k s_k
              \quad\Rightarrow\quad e^{-s_k} = \frac{a_k n_k}{2 L_k},

    and at the optimum every unit costs half a nat, times its weight. What is left is a sum of
    logarithms. With :math:`q_k = L_k / a_k n_k`, the cost per unit, and :math:`N = \sum a_k n_k`,

    .. math:: \bar q = \prod_k q_k^{a_k n_k / N}, \qquad
              \text{share}_k = \bar q / q_k = \frac{\partial (N \bar q)}{\partial L_k}

    so that the objective is :math:`N` times the geometric mean of the cost per unit, where for
    weights that stay it is the arithmetic mean. That does not move as shares do, so :meth:`judge`
    has it for held-out rows, and the weights to keep are chosen by it.

    *Closed form.* For given :math:`L_k` the best :math:`s_k` is known, so it is computed rather
    than learnt by gradient: one more learning rate would only decide how late it comes, and it
    would come later the farther a cost is from 1. :math:`L_k` is a running mean over some
    ``memory`` steps.

    *Scale.* Shares are the :math:`e^{-s_k}` times one factor, by which the objective is a mean of
    costs again and, where they are alike, the plain sum. Without it outputs would cost half a nat
    per unit at all times, and costs of the code, such as a divergence from a prior, would count
    less and less as outputs are learnt. The learning rate keeps its meaning too.

    *Bounds.* A cost can fall to zero, and its share would grow without end. A cost per unit below
    ``least`` of their arithmetic mean counts as that much.

    A cost that may be negative has no such optimum: raises :class:`InputError` for an output with
    a density for likelihood (one that learns its scale has done the same already), and for a
    negative cost.

    Sources: Kendall, Gal & Cipolla, Multi-Task Learning Using Uncertainty to Weigh Losses, 2018
    (arXiv:1705.07115), eq. 7; for classes it is their approximation, eq. 10. The closed form for
    one output is Rybkin, Daniilidis & Levine, Simple and Effective VAE Training with Calibrated
    Decoders, 2021 (arXiv:2006.13202).

    >>> shares = {"a": 1.0, "b": 1.0}
    >>> rule = Uncertainty(shares, {"a": Task(), "b": Task()}, every=1)
    >>> seen = rule({"a": (torch.tensor(1.0), 1.0), "b": (torch.tensor(3.0), 1.0)}, None)
    >>> {k: round(s, 3) for k, s in shares.items()}
    {'a': 1.732, 'b': 0.577}
    """

    def __init__(
        self,
        shares: dict[str, float],
        tasks: Mapping[str, Task],
        *,
        memory: int = 100,
        least: float = 0.05,
        every: int = 10,
    ) -> None:
        super().__init__(shares, tasks, every)
        if memory < 1:
            raise InputError(f"memory is {memory}; it is a number of steps, 1 or more")
        if not 0 < least < 1:
            raise InputError(f"least is {least}; it is a share of the mean, between 0 and 1")
        for name, task in tasks.items():
            if task.density:
                raise _undefined("uncertainty", name, "")
        self.memory, self.least = memory, least
        self._recent: dict[str, list[tuple[Tensor, float]]] = {}
        self._means: dict[str, tuple[float, float]] = {}

    def look(self, costs: Costs, code: Code | None) -> None:
        """Keep the step's costs on their device, and every so often read them."""
        for name, (value, factor) in costs.items():
            self._recent.setdefault(name, []).append((value.detach(), factor * ranks.weight()))
        if not self.due:
            return
        read = ranks.total(
            torch.stack(
                [torch.stack([v * f for v, f in kept]).mean() for kept in self._recent.values()]
            )
        ).tolist()
        for (name, kept), value in zip(self._recent.items(), read, strict=True):
            if value < 0:
                raise _undefined("uncertainty", name, f" ({value:.3g})")
            fades = math.exp(-len(kept) / self.memory)
            total, weight = self._means.get(name, (0.0, 0.0))
            self._means[name] = (fades * total + (1 - fades) * value, fades * weight + 1 - fades)
        means = {k: self._means[k][0] / self._means[k][1] for k in self._recent}
        self._recent = {}
        self.shares.update(self.optimum(means))

    def kept(self) -> dict[str, Any]:
        """Return the costs since shares last moved, and the running means."""
        recent = {k: [(float(v), f) for v, f in kept] for k, kept in self._recent.items()}
        return {"recent": recent, "means": self._means}

    def keep(self, own: Mapping[str, Any]) -> None:
        """Put them back."""
        self._recent = {k: [(torch.tensor(v), f) for v, f in c] for k, c in own["recent"].items()}
        self._means = {k: (total, weight) for k, (total, weight) in own["means"].items()}

    def judge(self, means: Mapping[str, float]) -> float:
        """Return units times the geometric mean of the cost per unit, and all other terms."""
        fields = {k: means[k] for k in self.tasks if k in means}
        mean, _, units = self._mean(fields)
        return means["loss"] + (0.0 if mean is None else mean * units - sum(fields.values()))

    def optimum(self, costs: Mapping[str, float]) -> dict[str, float]:
        """Return the shares for given costs; none where costs are no numbers or all zero."""
        mean, each, _ = self._mean(costs)
        return {} if mean is None else {k: mean / q for k, q in each.items()}

    def _mean(self, costs: Mapping[str, float]) -> tuple[float | None, dict[str, float], float]:
        """Geometric mean of the cost per unit, the cost per unit of each, and the units."""
        own = {k: self.tasks[k].units * self.tasks[k].weight for k in costs}
        units = sum(own.values())
        mean = sum(costs.values()) / units
        if not 0 < mean < math.inf:
            return None, {}, units
        each = {k: max(c / own[k], mean * self.least) for k, c in costs.items()}
        return math.exp(sum(own[k] * math.log(q) for k, q in each.items()) / units), each, units


@final
@register("gradnorm")
class GradNorm(Balancer):
    r"""Weights by which every output's pull on the code is alike, and who learns late pulls harder.

    .. math:: G_k = \lVert w_k \nabla_z L_k \rVert, \qquad
              r_k = \frac{L_k / L_k(0)}{\frac1K \sum_j L_j / L_j(0)}, \qquad
              \ell(w) = \sum_k \Bigl| G_k - \frac{a_k}{\bar a} \bar G r_k^\alpha \Bigr|

    with the last term of each bar held fixed. ``alpha`` is how hard a late one pulls; at 0 all pull
    alike. Adam at rate ``lr`` moves :math:`\log w_k` against :math:`\partial \ell / \partial \log
    w_k = \pm G_k`, after which shares :math:`w` are scaled to sum to their number :math:`K`.

    Where this differs from the source: gradients are those of the code ``[B, D]``, which every
    decoder shares, not of the last shared layer's weights, which are a product with them (Sener &
    Koltun 2018, arXiv:1810.04650, on why that serves). :math:`L_k(0)` is the cost of the best
    constant prediction, the theoretical start that the source allows, so that neither the first
    batch nor a start from principal components decides it. The logarithm keeps shares positive, and
    a move is as large for a small share as for a large one. None falls below ``least``: one that
    nothing can predict would in the end take all. An output counts once, however many columns it
    has.

    Each move takes one backward pass through each decoder, so there is one every ``every`` steps.
    A code that gets no gradient, and a phase of training without a code, move nothing. Raises
    :class:`InputError` for an output whose cost may be negative, unless ``alpha`` is 0.

    Source: Chen, Badrinarayanan, Lee & Rabinovich, GradNorm: Gradient Normalization for Adaptive
    Loss Balancing in Deep Multitask Networks, 2018 (arXiv:1711.02257), algorithm 1.

    >>> z, shares = torch.ones(2, 1, requires_grad=True), {"a": 1.0, "b": 1.0}
    >>> rule = GradNorm(shares, {"a": Task(), "b": Task()}, alpha=0.0, every=1)
    >>> seen = rule({"a": (z.sum(), 1.0), "b": (9 * z.sum(), 1.0)}, Code(z))
    >>> {k: round(w, 4) for k, w in shares.items()}
    {'a': 1.025, 'b': 0.975}
    """

    def __init__(
        self,
        shares: dict[str, float],
        tasks: Mapping[str, Task],
        *,
        alpha: float = 1.5,
        lr: float = 0.025,
        least: float = 0.05,
        every: int = 10,
    ) -> None:
        super().__init__(shares, tasks, every)
        if not 0 <= alpha < math.inf:
            raise InputError(f"alpha is {alpha}; it is a power, 0 or more")
        if not 0 < lr < math.inf:
            raise InputError(f"the lr of gradnorm is {lr}; it must be above 0")
        if not 0 < least < 1:
            raise InputError(f"least is {least}; it is the smallest share, between 0 and 1")
        for name, task in tasks.items():
            if task.density and alpha > 0:
                raise _undefined("gradnorm", name, "")
        self.alpha, self.lr, self.least = alpha, lr, least
        self._logs = torch.zeros(len(tasks), dtype=torch.float64)
        self._adam = torch.optim.Adam([self._logs], lr=lr)
        own = torch.tensor([t.weight for t in tasks.values()], dtype=torch.float64)
        self._own = own / own.mean()
        self._starts = torch.tensor([t.start for t in tasks.values()], dtype=torch.float64)

    def look(self, costs: Costs, code: Code | None) -> None:
        """Measure every output's pull on the code, and move the shares."""
        if not self.due or code is None or not code.z.requires_grad:
            return
        pulls = [_pull(costs[k], code.z) for k in self.tasks]
        values = [costs[k][0].detach() * costs[k][1] for k in self.tasks]
        read = torch.stack([*pulls, *values]).double() * ranks.weight()
        slopes, losses = read.chunk(2)
        if ranks.current() is not None:
            slopes, losses = ranks.total(slopes.square()).sqrt(), ranks.total(losses)
        read = torch.cat([slopes, losses]).cpu()
        slopes, losses = read.chunk(2)
        if not read.isfinite().all():
            return  # the next evaluation says which cost it was
        for name, loss in zip(self.tasks, losses.tolist(), strict=True):
            if loss < 0 and self.alpha > 0:
                raise _undefined("gradnorm", name, f" ({loss:.3g})")
        self._adam.zero_grad()
        self._logs.grad = self.gradient(slopes, losses)
        self._adam.step()
        self._logs.copy_(self._scaled(self._logs.exp()).log())
        self.shares.update(zip(self.tasks, self._logs.exp().tolist(), strict=True))

    def kept(self) -> dict[str, Any]:
        """Return the logarithms of the shares, and what their optimiser remembers."""
        adam = self._adam.state.get(self._logs, {})
        return {"logs": self._logs.tolist(), "adam": {k: v.tolist() for k, v in adam.items()}}

    def keep(self, own: Mapping[str, Any]) -> None:
        """Put them back."""
        self._logs.copy_(torch.tensor(own["logs"], dtype=torch.float64))
        for name, value in own["adam"].items():
            step = name == "step"
            kept = torch.tensor(value, dtype=torch.float32 if step else torch.float64)
            self._adam.state[self._logs][name] = kept

    def gradient(self, slopes: Tensor, losses: Tensor) -> Tensor:
        r"""Return :math:`\partial \ell / \partial \log w`, ``[K]``, of norms and costs ``[K]``."""
        norms = self._logs.exp() * slopes
        wanted = self._own * norms.mean()
        if self.alpha > 0:
            left = torch.where(self._starts > 0, losses / self._starts, 1.0)
            mean = left.mean()
            wanted = wanted * (left / mean if mean > 0 else torch.ones_like(left)) ** self.alpha
        return (norms - wanted).sign() * norms

    def _scaled(self, shares: Tensor) -> Tensor:
        """Shares that sum to their number, with none below the least."""
        count = len(shares)
        above = (shares * (count / shares.sum()) - self.least).clamp_min(0)
        return self.least + above * (count * (1 - self.least) / above.sum())


def tasks_of(model: Model, fields: Mapping[str, Field], rows: Batch) -> dict[str, Task]:
    """What the rules have to know of a model's outputs, from at most 20,000 training rows."""
    sample = rows.rows(slice(None, None, -(-len(rows) // SAMPLE)))
    return {
        name: Task(
            len(fields[name].units),
            fields[name].weight,
            _start(model, name, sample),
            likelihoods.spec(head).name in DENSITIES,
        )
        for name, head in model.likelihoods.items()
    }


def begin(
    weights: object,
    model: Model,
    fields: Mapping[str, Field],
    rows: Batch,
    reasons: list[str],
) -> Balancer | None:
    """Build the rule that ``weights`` names; None for weights that stay, and for one output.

    Raises :class:`InputError` for options the rule does not know, and for an output that it cannot
    weigh.
    """
    if not isinstance(weights, str):
        return None
    given = PartSpec.parse(weights)
    if given.name in WAYS:
        for option in given.options:
            raise unknown(f"option of weights '{given.name}'", option, ())
        return None
    balancers.check(given)
    if getattr(model.latent, "draws", 1) > 1:
        raise InputError(
            f"weights='{given.name}' moves the weights of costs of their own, and several draws of "
            f"a code have one cost, the bound; use weights='balanced' or 'equal', or draws=1"
        )
    if len(model.outputs) == 1:
        reasons.append(f"weights '{given.name}' have nothing to balance: there is one output")
        return None
    return balancers.build(given, model.shares, tasks_of(model, fields, rows))


@torch.no_grad()
def _start(model: Model, name: str, rows: Batch) -> float:
    """Cost of the best constant prediction of an output, per row and weighted."""
    head, x, observed = model.likelihoods[name], rows.x[name], rows.observed[name]
    params = head.marginal(x, observed).expand(len(x), -1)
    value, factor = head.cost(params, x, observed, model.weight(name))
    return float(value) * factor


def _pull(cost: tuple[Tensor, float], z: Tensor) -> Tensor:
    """Norm of the gradient of a cost with respect to the code; a scalar."""
    value, factor = cost
    slope = None
    if value.requires_grad:
        (slope,) = torch.autograd.grad(value, z, retain_graph=True, allow_unused=True)
    if slope is None:
        return torch.zeros((), device=z.device)
    exact = torch.promote_types(slope.dtype, torch.float32)
    return torch.linalg.vector_norm(slope, dtype=exact) * factor


def _undefined(rule: str, name: str, value: str) -> InputError:
    other = ", or weights='gradnorm(alpha=0)'" if rule == "gradnorm" else ""
    return InputError(
        f"weights='{rule}' compares costs that are never negative, and that of '{name}' may be"
        f"{value}: its likelihood is a density; use weights='balanced' or 'equal'{other}"
    )
