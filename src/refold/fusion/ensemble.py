"""Several dense bodies that learn apart, in batched products of matrices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast, final

import torch
from torch import Tensor, nn

from refold.backbones.base import Pairs
from refold.backbones.dense import said_of
from refold.backbones.layers import Residual
from refold.backbones.mlp import Mlp, mirrored
from refold.backbones.stages import DenseStage, plain, read
from refold.errors import InputError
from refold.fusion.base import Fusion, Leads, LinearPath, join, part, register


@final
@register("ensemble")
class Ensemble(Fusion):
    r"""``members`` dense bodies, each with weights and a code of its own, that learn apart.

    Every member :math:`m` meets all fields side by side, and goes through dense layers of widths
    ``hidden`` to its own ``code / members`` numbers and back. Of these it uses the first
    :math:`w_m`, drawn once from the range of shares ``widths`` (one number: that share for all);
    the others are zero. Codes stand side by side:

    .. math:: z = [z_1, \dots, z_M], \qquad
              z_m = f_m(c) \odot [\, i \le w_m \,], \qquad c'_m = g_m(z_m)

    :meth:`decode` gives the rows of all members, first those of the first. In training each has a
    cost of its own and the objective is their mean, so that no member learns another's errors; in
    evaluation the model averages what they give. A member's gradient is thus the ``members``-th
    part of that of a model alone, which is the same to Adam and its kin; plain ``sgd`` takes a rate
    ``members`` times as large.

    All layers of a depth are one batched product. Members start from weights of their own, drawn as
    :class:`Concat` draws them; what belongs to a field, such as the vectors of its classes or a
    spread that its likelihood learns, is there once for all. An entry of ``hidden`` is a width, or
    the options of a :class:`DenseStage` but for ``norm``. Raises :class:`InputError` for a code
    that does not part into members.

    Source: Chen, Sathe, Aggarwal & Turaga, Outlier Detection with Autoencoder Ensembles, 2017.

    >>> body = Ensemble({"x": 9}, {"x": 9}, 8, 8, hidden=(6,), members=4, widths=0.5)
    >>> z = body.encode({"x": torch.randn(5, 9)}, {})
    >>> z.shape, (z != 0).all(0).int().tolist(), body.decode(z)["x"].shape
    (torch.Size([5, 8]), [1, 0, 1, 0, 1, 0, 1, 0], torch.Size([20, 9]))
    """

    used: Tensor

    def __init__(
        self,
        inputs: dict[str, int],
        outputs: dict[str, int],
        into: int,
        code: int,
        *,
        hidden: tuple[int | Mapping[str, Any] | DenseStage, ...] = (),
        members: int = 8,
        widths: tuple[float, ...] | float = 1.0,
        activation: str = "relu",
        dropout: float = 0.0,
        init: str = "auto",
    ) -> None:
        super().__init__(inputs, outputs, into, code)
        check(members, into, code)
        self.members, self.widths, self.activation = members, widths, activation
        self.dropout, self.init = dropout, init
        kind: dict[str, Any] = {"activation": activation, "dropout": dropout, "init": init}
        own, width_in, width_out = code // members, sum(inputs.values()), sum(outputs.values())
        with said_of("hidden"):
            refuse_norms(read(DenseStage, hidden))
            downs = [Mlp(width_in, hidden, final=into // members, **kind) for _ in range(members)]
            back = mirrored(downs[0].layers)
            ups = [Mlp(own, back, final=width_out, **kind) for _ in range(members)]
        self.hidden = plain(hidden)
        self.down, self.up = nn.Sequential(*together(downs)), nn.Sequential(*together(ups))
        self._last.settle()
        used = drawn(members, own, *ends(widths))
        self.register_buffer("used", used.flatten().repeat(into // code))
        self.narrowed = ends(widths) != (1, 1)

    @property
    def leads(self) -> Leads:
        """The first layers of all members, side by side."""
        first = next(m for m in self.down.modules() if isinstance(m, SideBySide))
        return ((tuple(self.inputs), first.linear),)

    @property
    def pairs(self) -> Pairs:
        """None: a layer holds the weights of all members."""
        return ()

    def outer(self, hidden: dict[str, Tensor], count: int) -> dict[str, Tensor]:
        """Never asked: there are no pairs."""
        raise AssertionError

    def encode(self, hidden: dict[str, Tensor], present: Mapping[str, Tensor]) -> Tensor:
        """Join, fold by every member, and put what they give side by side.

        Where a latent takes several numbers an entry, the first ones of all members come first.
        """
        h = self.down(join(hidden, self.inputs).t())
        h = h.unflatten(1, (self.into // self.code, -1)).permute(3, 1, 0, 2).flatten(1)
        return h * self.used if self.narrowed else h

    def decode(self, z: Tensor) -> dict[str, Tensor]:
        """Unfold by every member, ``[members * B, C]``, and part."""
        z = z * self.used[: self.code] if self.narrowed else z
        each = self.up(z.unflatten(1, (self.members, -1)).permute(1, 2, 0))
        return part(each.mT.flatten(0, 1), self.outputs)

    def linear_path(self) -> LinearPath | None:
        """Return None: members that all began at the principal components would stay alike."""
        return None

    def last_bias(self) -> Tensor:
        """Return what all members add last: a constant, beside biases of their own."""
        assert self._last.start is not None
        return self._last.start

    @property
    def _last(self) -> SideBySide:
        layer = self.up[-1]
        assert isinstance(layer, SideBySide)
        return layer


@final
class SideBySide(nn.Module):
    """Linear layers of all members: ``[M, I, B]``, or ``[I, B]`` that all meet, to ``[M, O, B]``.

    Their weights and biases stand one below the other in one :attr:`linear` layer.
    """

    start: Tensor | None

    def __init__(self, given: Sequence[nn.Linear]) -> None:
        super().__init__()
        self.members, one = len(given), given[0]
        biased = cast("Tensor | None", one.bias) is not None
        self.linear = nn.Linear(one.in_features, self.members * one.out_features, bias=biased)
        with torch.no_grad():
            for own, *parts in zip(
                self.linear.parameters(), *(layer.parameters() for layer in given), strict=True
            ):
                own.copy_(torch.cat(parts))
        self.register_buffer("start", None)

    def settle(self) -> None:
        """Begin with no biases but a constant that all share, and that is not trained."""
        nn.init.zeros_(self.linear.bias)
        self.start = self.linear.bias.new_zeros(len(self.linear.bias) // self.members)

    def forward(self, h: Tensor) -> Tensor:
        """Multiply all at once; with weights first, no product has to be turned in memory."""
        h = h.expand(self.members, *h.shape) if h.dim() == 2 else h
        weight = self.linear.weight.unflatten(0, (self.members, -1))
        bias = cast("Tensor | None", self.linear.bias)
        if bias is None:
            return torch.bmm(weight, h)
        bias = bias.unflatten(0, (self.members, -1, 1))
        return torch.baddbmm(bias if self.start is None else bias + self.start[:, None], weight, h)


def together(stacks: Sequence[nn.Sequential]) -> list[nn.Module]:
    """Put the linear layers of equal stacks side by side; what has no weights is there once."""
    modules: list[nn.Module] = []
    for same in zip(*stacks, strict=True):
        if isinstance(same[0], nn.Linear):
            modules.append(SideBySide(same))
        elif isinstance(same[0], Residual):
            modules.append(Residual(*together([m.layers for m in same])))
        else:
            modules.append(same[0])
    return modules


def drawn(members: int, own: int, low: float, high: float) -> Tensor:
    """Ones for the numbers that each member uses of its own, ``[M, D / M]``, zeros for the rest.

    How many is drawn evenly from those between the two shares of them, both included.
    """
    least, most = max(1, round(low * own)), max(1, round(high * own))
    width = torch.randint(least, most + 1, (members, 1))
    return (torch.arange(own) < width).to(torch.get_default_dtype())


def ends(widths: tuple[float, ...] | float) -> tuple[float, float]:
    """Least and greatest share of its code that a member uses."""
    both = tuple(widths) if isinstance(widths, tuple | list) else (widths, widths)
    if len(both) != 2 or not 0 < both[0] <= both[1] <= 1:
        raise InputError(
            f"widths is {widths}; give the least and the greatest share of its code that a member "
            f"uses, such as (0.25, 1.0), or one share above 0 and up to 1 for all"
        )
    return both


def check(members: int, into: int, code: int) -> None:
    """Refuse what makes no ensemble."""
    if members < 1:
        raise InputError(f"members is {members}; an ensemble has 1 or more")
    if code % members:
        under = code // members * members
        near = f"{under} or {under + members}" if under else f"{members}"
        raise InputError(
            f"the code has {code} numbers, which do not part evenly among {members} members; set "
            f"the latent's size to {near}, or leave it out"
        )
    if into % code:
        raise InputError(
            f"members of an ensemble have codes of their own, and this latent takes {into} numbers "
            f"for a code of {code}; use the latent 'plain'"
        )


def refuse_norms(stages: Sequence[DenseStage]) -> None:
    """Refuse layers that are normalised."""
    for position, stage in enumerate(stages, 1):
        if stage.norm not in (None, "none"):
            raise InputError(
                f"stage {position}: norm is '{stage.norm}', and layers of an ensemble have no norm;"
                f" leave it out, or use the fusion 'concat'"
            )
