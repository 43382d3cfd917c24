"""Codes that a network cannot tell from draws of the prior."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, cast, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from refold.backbones.mlp import Mlp
from refold.errors import InputError, unknown
from refold.latents import Latent, latents
from refold.latents.matched import Matched
from refold.latents.priors import Labelled, Prior, priors
from refold.ops.ranks import together
from refold.penalties.base import Penalty, register
from refold.types import Batch, Code

UPDATES = ("alternating", "simultaneous")
STATISTICS = ("none", "std", "discrimination")
KERNELS, NUMBERS = 16, 4  # of minibatch discrimination, and numbers that each compares
COMPARED = 1024  # codes, and draws, that tell the mismatch in evaluation


@dataclass(frozen=True)
class Part:
    """Entries of the code with critics of their own; ``prior`` is None where the latent draws."""

    entries: slice
    prior: Prior | None
    labelled: bool


@final
@register("adversarial")
class Adversarial(Penalty):
    r"""A critic learns to tell codes from draws of the prior, and the encoder to deceive it.

    .. math:: \text{critic}_t = \frac1B \sum_b \operatorname{softplus}(-t(p_b))
              + \operatorname{softplus}(t(z_b)), \qquad
              \text{cost} = \frac{\lambda}{B} \sum_b \operatorname{softplus}(-t(z_b))

    :math:`p_b` are draws of the latent's prior, :math:`t` gives a logit. The critic's cost does not
    reach the encoder, and the encoder's leaves the critic as it is, so one backward pass serves
    both. ``weight`` :math:`\lambda` is in nats per row. The critic has ``hidden`` layers, an
    ``optimizer`` of its own and the learning rate ``lr`` (None: the model's); in
    ``updates="alternating"`` critic and encoder learn from each other in turn, step by step, in
    ``"simultaneous"`` both in every step. Where a latent's code has shares of classes, these and
    the rest have a critic each.

    Against collapse: ``noise`` is the deviation of noise on all that a critic sees, which ends with
    the training (Sønderby et al. 2016, arXiv:1610.04490); ``critics`` is how many there are, whose
    costs are averaged (Durugkar et al. 2016, arXiv:1611.01673);
    ``batch_statistics`` lets a critic see how rows of its batch differ, by the mean deviation of
    its last hidden layer (``"std"``: Karras et al. 2017, arXiv:1710.10196) or by likeness of each
    row to the others (``"discrimination"``: Salimans et al. 2016, arXiv:1606.03498, here as means,
    so that the size of the batch has no say); ``spectral`` holds the norm of its layers at one
    (Miyato et al. 2018, arXiv:1802.05957).

    ``labels`` names a field of classes: the critic then sees the label beside the code, with one
    more class for rows that have none, and a labelled row's draw is of its class's part of the
    prior: component or segment i for class i.

    In evaluation nothing competes, and what the two made of each other says nothing of the codes:
    the cost is then :math:`\lambda` times the energy distance of codes and draws, by which weights
    of different steps compare. The history's ``critic_accuracy`` is the share of held-out codes and
    draws that it told right, 0.5 where it cannot.

    Raises :class:`InputError` for a latent without a prior, and labels by which it has no parts.

    Source: Makhzani et al., Adversarial Autoencoders, 2015 (arXiv:1511.05644).

    >>> Adversarial(weight=5.0, critics=2).optimizer
    'adam(betas=(0.5, 0.999))'
    """

    matching: ClassVar[bool] = True
    joint: ClassVar[bool] = True

    def __init__(
        self,
        *,
        weight: float = 1.0,
        hidden: tuple[int, ...] = (256, 256),
        lr: float | None = None,
        optimizer: str = "adam(betas=(0.5, 0.999))",
        updates: str = "alternating",
        noise: float = 0.0,
        critics: int = 1,
        batch_statistics: str = "none",
        spectral: bool = False,
        labels: str | None = None,
    ) -> None:
        super().__init__()
        for name, value in (("weight", weight), ("noise", noise)):
            if not value >= 0:
                raise InputError(f"the adversarial {name} is {value}; it must be 0 or more")
        if lr is not None and not lr > 0:
            raise InputError(f"the critic's lr is {lr}; it must be above 0")
        if updates not in UPDATES:
            raise unknown("way of updates", updates, UPDATES)
        if batch_statistics not in STATISTICS:
            raise unknown("batch statistics", batch_statistics, STATISTICS)
        if critics < 1:
            raise InputError(f"there are {critics} critics; give 1 or more")
        self.weight, self.hidden, self.lr, self.optimizer = weight, tuple(hidden), lr, optimizer
        self.updates, self.noise, self.critics = updates, noise, critics
        self.batch_statistics, self.spectral, self.labels = batch_statistics, spectral, labels
        self.parts: tuple[Part, ...] = ()
        self.classes = 0
        self._turn = 0
        self._last = torch.zeros(())

    def attach(self, model: nn.Module) -> None:
        """Build a critic for each part of the code."""
        latent: Latent = cast(Any, model).latent
        if not latent.generative:
            raise InputError(
                f"codes of the latent '{latents.spec(latent).name}' have no prior that the "
                f"adversarial penalty could match them to; use latent='matched'"
            )
        if self.labels is not None:
            self.classes = classes_of(model, self.labels)
        self.parts = self._parted(latent)
        self.networks = nn.ModuleList(
            nn.ModuleList(self._critic(part) for _ in range(self.critics)) for part in self.parts
        )

    def _parted(self, latent: Latent) -> tuple[Part, ...]:
        whole = ((slice(0, latent.size), None),)
        parted = latent.parts if isinstance(latent, Matched) else whole
        if self.labels is None:
            return tuple(Part(at, law, False) for at, law in parted)
        law = parted[-1][1]
        if not isinstance(law, Labelled):
            able = ", ".join(name for name in priors if issubclass(priors[name], Labelled))
            raise InputError(
                f"labels='{self.labels}' needs a prior with a part for each class; use "
                f"latent='matched(prior=...)' with one of: {able}"
            )
        law.check(self.classes)
        return tuple(Part(at, own, own is law) for at, own in parted)

    def _critic(self, part: Part) -> Critic:
        inputs = part.entries.stop - part.entries.start
        inputs += self.classes + 1 if part.labelled else 0
        return Critic(inputs, self.hidden, self.batch_statistics, self.spectral)

    def forward(
        self, model: nn.Module, batch: Batch, code: Code, params: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """Costs of the critics and of the encoder; in evaluation the distance from the prior."""
        latent: Latent = cast(Any, model).latent
        z = together(code.z.flatten(0, -2))
        labels = None if self.labels is None else together(known(batch, self.labels, code.draws))
        codes, draws = self._shown(z, labels), self._drawn(latent, z, labels)
        if not self.training:
            code.stats["critic"] = self._right(codes, draws)
            apart = [energy_distance(*pair) for pair in zip(codes, draws, strict=True)]
            return {"adversarial": torch.stack(apart).sum() * self.weight}
        turn, self._turn = self._turn % 2, self._turn + 1
        both = self.updates == "simultaneous"
        costs: dict[str, Tensor] = {}
        if both or turn == 0:
            real, told = self._logits(draws), self._logits([c.detach() for c in codes])
            costs["adversarial_critic"] = softplus(-real) + softplus(told)
            self._last = costs["adversarial_critic"].detach()
            deceived = softplus(-told.detach())
        else:
            # What it cost in its last turn, so that means over steps are of all steps.
            costs["adversarial_critic"] = self._last
            deceived = self._last
        if both or turn == 1:
            with frozen(self.networks):
                deceived = softplus(-self._logits(codes))
        costs["adversarial"] = deceived * self.weight
        return costs

    def remembered(self) -> dict[str, Any]:
        """Return whose turn it is, and what the critics cost in theirs."""
        return {"turn": self._turn, "last": float(self._last)}

    def remember(self, values: Mapping[str, Any]) -> None:
        """Put it back."""
        self._turn = values["turn"]
        self._last = next(self.networks.parameters()).new_tensor(values["last"])

    def _shown(self, z: Tensor, labels: Tensor | None) -> list[Tensor]:
        """Return what critics see of codes ``[n, D]``: their part, and labels beside it."""
        return [self._told(z[:, part.entries], part, labels) for part in self.parts]

    @torch.no_grad()
    def _drawn(self, latent: Latent, z: Tensor, labels: Tensor | None) -> list[Tensor]:
        """Draw from the prior what critics see, as many as there are codes ``z``."""
        draws: list[Tensor] = []
        for part in self.parts:
            own = latent.sample(len(z)) if part.prior is None else part.prior.draw(len(z))
            if part.labelled and labels is not None:
                assert isinstance(part.prior, Labelled)
                at = labels.cpu()
                theirs = part.prior.given(at.clamp_min(0), self.classes)
                own = torch.where(at[:, None] < 0, own, theirs)
            draws.append(self._told(own.to(z), part, labels))
        return draws

    def _told(self, shown: Tensor, part: Part, labels: Tensor | None) -> Tensor:
        if labels is None or not part.labelled:
            return shown
        hot = F.one_hot(labels.where(labels >= 0, self.classes), self.classes + 1)
        return torch.cat([shown, hot.to(shown)], dim=1)

    def _logits(self, shown: Sequence[Tensor]) -> Tensor:
        """Logit of each critic for each row, ``[parts, critics, n]``; noise on what it sees."""
        deviation = self.noise * (1.0 - self.progress) if self.training else 0.0
        found: list[Tensor] = []
        for x, theirs in zip(shown, self.networks, strict=True):
            for critic in cast(nn.ModuleList, theirs):
                seen = x + deviation * torch.randn_like(x) if deviation else x
                found.append(critic(seen))
        return torch.stack(found).view(len(self.parts), self.critics, -1)

    def _right(self, codes: list[Tensor], draws: list[Tensor]) -> Tensor:
        """Share of each row's codes and draws that were told right, ``[n]``."""
        right = (self._logits(codes) < 0).float() + (self._logits(draws) > 0).float()
        return right.flatten(0, 1).mean(0) / 2


def softplus(logits: Tensor) -> Tensor:
    """Sum over parts of the mean over critics and rows of softplus, in single precision or more."""
    wide = logits if logits.dtype == torch.float64 else logits.float()
    return F.softplus(wide).mean((1, 2)).sum()


@contextmanager
def frozen(module: nn.Module) -> Generator[None]:
    """Leave a module's parameters out of the graph that is built within."""
    learning = [p for p in module.parameters() if p.requires_grad]
    for parameter in learning:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in learning:
            parameter.requires_grad_(True)


def classes_of(model: nn.Module, name: str) -> int:
    """Count the classes of a field that holds one column of them."""
    spines = cast(Any, model).backbones
    if name not in spines:
        raise unknown("field of labels", name, spines)
    sizes: tuple[int, ...] = spines[name].geometry.sizes
    if len(sizes) != 1 or sizes[0] < 2:
        raise InputError(
            f"labels='{name}' is no column of classes by itself; declare it categorical, as "
            f"fields={{'{name}': 'categorical'}}"
        )
    return sizes[0]


def known(batch: Batch, name: str, draws: int) -> Tensor:
    """Class of each row ``[B]``, below 0 where it has none; repeated for several draws."""
    seen = batch.observed[name]
    labels = batch.x[name][:, 0]
    labels = labels if seen is None else labels.masked_fill(~seen[:, 0], -1)
    return labels if draws == 1 else labels.repeat(draws)


def energy_distance(x: Tensor, y: Tensor) -> Tensor:
    r"""Energy distance of two samples ``[n, D]`` and ``[m, D]``, without bias.

    .. math:: 2\, \mathbb E \lVert X - Y \rVert - \mathbb E \lVert X - X' \rVert
              - \mathbb E \lVert Y - Y' \rVert

    Zero for one distribution, above it for two; an estimate may fall below. The first 1,024 rows of
    each are compared.

    Source: Székely & Rizzo, Energy statistics: A class of statistics based on distances, 2013.

    >>> energy_distance(torch.zeros(3, 1), torch.ones(3, 1))
    tensor(2.)
    """
    wide = x.dtype if x.dtype == torch.float64 else torch.float32
    x, y = x[:COMPARED].to(wide), y[:COMPARED].to(wide)
    within = [distances(a, a).sum() / max(1, len(a) * (len(a) - 1)) for a in (x, y)]
    return 2 * distances(x, y).mean() - within[0] - within[1]


def distances(x: Tensor, y: Tensor) -> Tensor:
    """Euclidean distances ``[n, m]``, exactly zero from a row to itself."""
    return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")


@final
class Critic(nn.Module):
    """Dense layers to one logit ``[n]`` per row of ``[n, inputs]``, which may look at its batch.

    >>> Critic(3, (8,), "std", spectral=True)(torch.zeros(5, 3)).shape
    torch.Size([5])
    """

    def __init__(
        self, inputs: int, hidden: tuple[int, ...], batch_statistics: str, spectral: bool
    ) -> None:
        super().__init__()
        self.body = Mlp(inputs, hidden)
        width = self.body.outputs
        self.beside: nn.Module | None = None
        if batch_statistics == "std":
            self.beside = Deviation()
            width += 1
        elif batch_statistics == "discrimination":
            self.beside = Discrimination(width)
            width += KERNELS
        self.last = nn.Linear(width, 1)
        if spectral:
            for layer in [m for m in self.modules() if isinstance(m, nn.Linear)]:
                spectral_norm(layer)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        h = self.body(x)
        if self.beside is not None:
            h = torch.cat([h, self.beside(h)], dim=1)
        return self.last(h).squeeze(1)


@final
class Deviation(nn.Module):
    """Mean over features of their deviation over the batch, one number for all rows: ``[n, 1]``.

    >>> Deviation()(torch.tensor([[0.0, 0.0], [2.0, 4.0]]))
    tensor([[1.5000],
            [1.5000]])
    """

    def forward(self, h: Tensor) -> Tensor:
        """Return the deviation."""
        variance = h.var(0, correction=0)
        return (variance + 1e-8).sqrt().mean().expand(len(h), 1)


@final
class Discrimination(nn.Module):
    r"""Likeness of each row to the others of its batch, by 16 kernels of 4 numbers: ``[n, 16]``.

    .. math:: o_{bk} = \frac1B \sum_{b'} e^{-\lVert M_{bk} - M_{b'k} \rVert_1}, \qquad M = h T

    >>> Discrimination(3)(torch.ones(5, 3)).unique()
    tensor([1.], grad_fn=<Unique2Backward0>)
    """

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.tensor = nn.Linear(inputs, KERNELS * NUMBERS, bias=False)

    def forward(self, h: Tensor) -> Tensor:
        """Compare every row with every other."""
        m = self.tensor(h).view(len(h), KERNELS, NUMBERS).transpose(0, 1)
        apart = torch.cdist(m, m, p=1.0)
        return (-apart).exp().mean(2).T
