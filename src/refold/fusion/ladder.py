"""A body that learns to undo noise in every one of its layers, helped by the layers above."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from refold.backbones.base import Pairs, Skips
from refold.backbones.layers import ACTIVATIONS
from refold.errors import InputError, unknown
from refold.fusion.base import Lateral, Leads, LinearPath, join, part, register
from refold.fusion.combinators import combinator
from refold.ops import ranks
from refold.ops.batch import standardised

EPS = 1e-10  # beside a variance, as in the source
MOMENTUM = 0.1  # share of a batch in the running statistics, once there were ten
UNSCALED = ("relu", "leaky_relu", "identity")  # activations behind which a scale is a layer's own


@final
@register("ladder")
class Ladder(Lateral):
    r"""Ladder network: a noisy and a clean way down, and a way up that denoises every layer.

    Down through widths ``hidden`` to the code, with Gaussian noise of deviation ``noise`` in every
    layer, the fields themselves included (:math:`\tilde h^{(0)} = x + \text{noise}`):

    .. math:: \tilde z^{(l)} = \operatorname{norm}\bigl(W^{(l)} \tilde h^{(l-1)}\bigr) +
              \text{noise}, \qquad \tilde h^{(l)} = \phi\bigl(\gamma^{(l)} \odot
              (\tilde z^{(l)} + \beta^{(l)})\bigr)

    and without noise for :math:`z^{(l)}, \mu^{(l)}, \sigma^{(l)}`, normalised by a batch of their
    own. Up, a combinator :math:`g` joins each noisy layer with what the one above makes of it:

    .. math:: u^{(l)} = \operatorname{norm}\bigl(V^{(l)} \hat z^{(l+1)}\bigr), \qquad
              \hat z^{(l)} = g(\tilde z^{(l)}, u^{(l)}), \qquad
              C^{(l)} = \frac{\lambda_l}{m_l} \Bigl\| z^{(l)} -
              \frac{\hat z^{(l)} - \mu^{(l)}}{\sigma^{(l)}} \Bigr\|^2

    with :math:`u` of the top made of the noisy code (its first ``answers`` entries as softmax).
    In training the code is the noisy one, so that a target read from it learns under noise; in
    evaluation there is no noise, statistics are running ones, and rows do not meet. The lowest
    :math:`\hat z^{(0)}` are the outputs, with the cost of their own likelihood and weight; without
    outputs the way up ends at the lowest layer that has a cost, such as the top (Γ-model).

    ``costs`` are :math:`\lambda_1, \lambda_2, \dots`, the last of them for all layers further up,
    and ``top`` that of the code where it differs. ``combinator`` is ``"gaussian"`` or ``"mlp"``.
    There is a scale :math:`\gamma` at the top, and where the activation is no rectifier. An output
    that is no input of the same width has only what comes from above. Rows that join every batch
    for their target (:attr:`joined`) are normalised by themselves and have no cost of their layers:
    learnt by heart, they would tell the others what is usual. Gradients reach the clean way
    too, as in the authors' code. Raises :class:`InputError` for a latent that takes other than
    one number an entry, and for decoding a code alone.

    Source: Rasmus et al. 2015 (arXiv:1507.02672); Pezeshki et al. 2015 (arXiv:1511.06430).

    >>> body = Ladder({"x": 8}, {"x": 8}, 3, 3, hidden=(6, 4))
    >>> h, beside = body.descend({"x": torch.randn(5, 8)}, {})
    >>> parts, costs = body.ascend(h, beside)
    >>> h.shape, parts["x"].shape, list(costs)
    (torch.Size([5, 3]), torch.Size([5, 8]), ['denoise1', 'denoise2', 'denoise3'])
    """

    relaxed: ClassVar[bool] = True
    count: Tensor

    def __init__(
        self,
        inputs: dict[str, int],
        outputs: dict[str, int],
        into: int,
        code: int,
        *,
        hidden: tuple[int, ...] = (),
        noise: float = 0.3,
        costs: tuple[float, ...] = (10.0, 0.1),
        top: float | None = None,
        combinator: str = "gaussian",
        activation: str = "relu",
        answers: int = 0,
    ) -> None:
        super().__init__(inputs, outputs, into, code)
        check(hidden, noise, costs, top, activation)
        if into != code:
            raise InputError(
                f"the top of a ladder is its code, and this latent takes {into} numbers for a code "
                f"of {code}; use the latent 'plain'"
            )
        self.hidden, self.noise, self.costs, self.top = hidden, noise, costs, top
        self.combinator, self.activation, self.answers = combinator, activation, answers
        widths = (sum(inputs.values()), *hidden, code)
        last = len(hidden) + 1
        kinds = (*(activation for _ in hidden), "identity")
        self.rungs = nn.ModuleList(
            Rung(widths[i], widths[i + 1], kinds[i], i + 1 == last or kinds[i] not in UNSCALED)
            for i in range(last)
        )
        each = [costs[min(i, len(costs) - 1)] for i in range(last)]
        self.prices = (0.0, *(each if top is None else [*each[:-1], top]))
        priced = [level for level, price in enumerate(self.prices) if price]
        self.floor = 0 if outputs else min(priced, default=last + 1)
        ups = (sum(outputs.values()), *widths[1:])
        self.steps = nn.ModuleList(
            Step(ups[i + 1] if i < last else None, ups[i], combinator)
            for i in range(last, self.floor - 1, -1)
        )
        self.register_buffer("count", torch.zeros(()))

    @property
    def leads(self) -> Leads:
        """The first layer of the way down, which meets all fields."""
        return ((tuple(self.inputs), self._rung(1).linear),)

    @property
    def pairs(self) -> Pairs:
        """None: the way up is not the way down mirrored."""
        return ()

    def outer(self, hidden: dict[str, Tensor], count: int) -> dict[str, Tensor]:
        """Never asked: there are no pairs."""
        raise AssertionError

    def linear_path(self) -> LinearPath | None:
        """None: every layer is normalised."""
        return None

    def last_bias(self) -> Tensor:
        """Return what the lowest combinator adds, without outputs nothing."""
        if not self.outputs:
            return self._rung(1).shift.new_zeros(0)
        return self._step(0).combinator.bias

    def encode(self, hidden: dict[str, Tensor], present: Mapping[str, Tensor]) -> Tensor:
        """Code, in training the noisy one."""
        return self.descend(hidden, present)[0]

    def decode(self, z: Tensor) -> dict[str, Tensor]:
        """Outputs of a code alone: there are none."""
        return self.ascend(z, ())[0]

    def descend(
        self, hidden: dict[str, Tensor], present: Mapping[str, Tensor]
    ) -> tuple[Tensor, Skips]:
        """Code, and of each layer what is noisy, clean, and the statistics of the clean."""
        x = join(hidden, self.inputs)
        sides = self._sides(hidden, x)
        ways = x.unsqueeze(0)
        if self.training:
            noise = self._noise(x)
            ways = torch.stack([x, x + noise])
            sides = self._sides(part(x + noise, self.inputs), x)
            if torch.is_grad_enabled():
                self.count += 1
        beside = [sides]
        for i in range(1, len(self.rungs) + 1):
            z, mean, std = self._rung(i).normalised(ways, self._share(), self._joined(len(x)))
            clean = z[0]
            if self.training:
                z = torch.stack([clean, z[1] + self._noise(clean)])
            beside += [z[-1], clean, mean, std]
            ways = self._rung(i).activated(z)
        return ways[-1], tuple(beside)

    def ascend(self, z: Tensor, beside: Skips) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Outputs, and the cost of every layer that has one, as ``denoise1`` from below."""
        if not beside:
            if self.outputs:
                raise InputError(
                    "a ladder cannot decode a code alone: its way up also takes every layer of the "
                    "way down; reconstruct rows instead"
                )
            return {}, {}
        costs: dict[str, Tensor] = {}
        joined = self._joined(len(z))
        rest = slice(0, len(z) - joined)
        below = torch.cat([z[:, : self.answers].softmax(1), z[:, self.answers :]], 1)
        for level in range(len(self.rungs), self.floor - 1, -1):
            if level == 0:
                below = self._step(0)(below, beside[0], self._share(), joined)
                continue
            noisy, clean, mean, std = beside[4 * level - 3 : 4 * level + 1]
            below = self._step(level)(below, noisy, self._share(), joined)
            if self.prices[level]:
                found = (below[rest] - mean) / std
                costs[f"denoise{level}"] = self.prices[level] * F.mse_loss(found, clean[rest])
        parts = part(below, self.outputs) if self.outputs else {}
        return parts, dict(sorted(costs.items()))

    def _noise(self, z: Tensor) -> Tensor:
        return torch.randn_like(z) * self.noise

    def _sides(self, hidden: dict[str, Tensor], x: Tensor) -> Tensor:
        """What the outputs have at their side: inputs of the same width, else nothing."""
        if self.outputs == self.inputs:
            return join(hidden, self.inputs)
        sides = [
            hidden[k] if self.inputs.get(k) == width else x.new_zeros(len(x), width)
            for k, width in self.outputs.items()
        ]
        return torch.cat(sides, 1) if sides else x[:, :0]

    def _share(self) -> Tensor | None:
        """Share of this batch in the running statistics; None where it is not to count."""
        if not (self.training and torch.is_grad_enabled()):
            return None
        return (1.0 / self.count).clamp_min(MOMENTUM)

    def _joined(self, rows: int) -> int:
        """Rows at the end that are normalised by themselves: those that joined for their target."""
        apart = self.training and torch.is_grad_enabled() and 1 < self.joined < rows - 1
        return self.joined if apart else 0

    def _rung(self, level: int) -> Rung:
        rung = self.rungs[level - 1]
        assert isinstance(rung, Rung)
        return rung

    def _step(self, level: int) -> Step:
        step = self.steps[len(self.rungs) - level]
        assert isinstance(step, Step)
        return step


@final
class Rung(nn.Module):
    """A layer of the way down: linear, normalised, shifted, perhaps scaled, and activated."""

    mean: Tensor
    var: Tensor

    def __init__(self, before: int, width: int, activation: str, scaled: bool) -> None:
        super().__init__()
        self.linear = drawn(before, width)
        self.shift = nn.Parameter(torch.zeros(width))
        self.scale = nn.Parameter(torch.ones(width)) if scaled else None
        self.act = ACTIVATIONS[activation]()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("var", torch.ones(width))

    def normalised(
        self, ways: Tensor, share: Tensor | None, joined: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Layers ``[ways, B, C]`` of ``[ways, B, C']``, mean and deviation ``[C]`` of the first.

        In training each way has its own batch; the first one's moves the running statistics.
        """
        h = self.linear(ways.flatten(0, 1)).to(self.shift.dtype).view(*ways.shape[:2], -1)
        if not self.training:
            std = (self.var + EPS).sqrt()
            return (h - self.mean) / std, self.mean, std
        z, mean, std = apart(h, joined)
        follow(self, mean[0, 0], std[0, 0], h.shape[1] - joined, share)
        return z, mean[0, 0], std[0, 0]

    def activated(self, z: Tensor) -> Tensor:
        """What the next layer takes."""
        h = z + self.shift
        return self.act(h if self.scale is None else h * self.scale)


@final
class Step(nn.Module):
    """A layer of the way up: linear (None: as it is), normalised, and joined with its side."""

    mean: Tensor
    var: Tensor

    def __init__(self, above: int | None, width: int, kind: str) -> None:
        super().__init__()
        self.linear = None if above is None else drawn(above, width)
        self.combinator = combinator(kind, width)
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("var", torch.ones(width))

    def forward(self, above: Tensor, side: Tensor, share: Tensor | None, joined: int) -> Tensor:
        """Denoised ``[B, C]``."""
        u = above if self.linear is None else self.linear(above)
        u = u.to(side.dtype)
        if self.training:
            u, mean, std = apart(u, joined)
            follow(self, mean[0], std[0], len(u) - joined, share)
        else:
            u = (u - self.mean) / (self.var + EPS).sqrt()
        return self.combinator(side, u)


def apart(h: Tensor, joined: int) -> tuple[Tensor, Tensor, Tensor]:
    """Standardise the last ``joined`` rows by themselves; mean and deviation of the others."""
    if not joined:
        return standardised(h, EPS)
    z, mean, std = standardised(h[..., :-joined, :], EPS)
    return torch.cat([z, standardised(h[..., -joined:, :], EPS)[0]], -2), mean, std


@torch.no_grad()
def follow(part: Rung | Step, mean: Tensor, std: Tensor, rows: int, share: Tensor | None) -> None:
    """Let running statistics follow those of a batch."""
    if share is not None:
        part.mean.lerp_(mean, share)
        every = ranks.rows(rows)
        part.var.lerp_(std.square() * (every / max(1, every - 1)), share)


def drawn(before: int, width: int) -> nn.Linear:
    """Return a linear map whose outputs have the variance of its inputs, without a bias."""
    linear = nn.Linear(before, width, bias=False)
    nn.init.normal_(linear.weight, std=before**-0.5)
    return linear


def check(
    hidden: tuple[int, ...],
    noise: float,
    costs: tuple[float, ...],
    top: float | None,
    activation: str,
) -> None:
    """Refuse what makes no ladder."""
    if any(width < 1 for width in hidden):
        raise InputError(f"hidden is {hidden}; widths of layers must be 1 or more")
    if not 0 <= noise < float("inf"):
        raise InputError(f"noise is {noise}; give a standard deviation of 0 or more")
    given = costs if top is None else (*costs, top)
    if not costs or not all(0 <= cost < float("inf") for cost in given):
        raise InputError(
            f"the costs of a ladder are {given}; give one number of 0 or more for each layer, the "
            f"last of which holds for all further up"
        )
    if activation not in ACTIVATIONS:
        raise unknown("activation", activation, ACTIVATIONS)
