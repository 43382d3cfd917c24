"""Codes of which each entry is rounded to a few levels."""

from __future__ import annotations

import math
from typing import ClassVar, final

import torch
from torch import Tensor

from refold.errors import InputError
from refold.latents.base import Latent, register
from refold.latents.quantised import check_indices
from refold.types import Code

SLACK = 1e-3  # by which the outermost levels are within reach


@final
@register("fsq")
class FSQ(Latent):
    r"""Finite scalar quantisation: entries are bounded and rounded, so the book needs no learning.

    .. math:: b(h) = \tfrac{(L - 1)(1 + \epsilon)}{2} \tanh(h + s) - o, \qquad
              z = \operatorname{round}(b(h)) / \lfloor L / 2 \rfloor

    :math:`L` are the ``levels`` of an entry, 2 or more, which hold in turn: the code is cut into
    vectors of as many entries as ``levels`` names, with :math:`\prod L` possible values each. For
    even :math:`L` the offset :math:`o` is one half, otherwise zero; the shift :math:`s` makes
    :math:`b(0) = 0`. Gradients pass straight through the rounding. With ``maps`` the code is read
    as feature maps side by side, one for each of ``levels``, of which every position is a vector.
    Raises :class:`InputError` for levels whose number does not divide the code.

    Source: Mentzer et al., Finite Scalar Quantization: VQ-VAE Made Simple, 2023
    (arXiv:2309.15505).

    >>> FSQ(3, levels=(3,))(torch.tensor([[-9.0, 0.1, 9.0]])).z
    tensor([[-1.,  0.,  1.]])
    >>> FSQ(2, levels=(3, 4)).lookup(torch.tensor([[2]]))
    tensor([[ 1., -1.]])
    """

    rowwise: ClassVar[bool] = True
    reach: Tensor
    offset: Tensor
    shift: Tensor
    scale: Tensor
    places: Tensor

    def __init__(self, size: int, *, levels: tuple[int, ...] = (8,), maps: bool = False) -> None:
        super().__init__(size)
        if not levels or min(levels) < 2:
            raise InputError(f"the levels are {levels}; give one number or more, each 2 or more")
        if size % len(levels):
            raise InputError(
                f"a code of {size} cannot be cut into vectors of {len(levels)}, as many as levels "
                f"names; give a latent size that is a multiple of it"
            )
        if math.prod(levels) > 2**31:
            raise InputError(
                f"{len(levels)} levels make {math.prod(levels):,} codes, too many to number; give "
                f"fewer"
            )
        self.levels, self.maps = tuple(levels), maps
        level = torch.tensor(levels, dtype=torch.float64)
        half = (level - 1) * (1 + SLACK) / 2
        offset = torch.where(level % 2 == 0, 0.5, 0.0).double()
        products = torch.cat([torch.ones(1), level[:-1].cumprod(0)])
        self._keep("reach", half)
        self._keep("offset", offset)
        self._keep("shift", torch.atanh(offset / half))
        self._keep("scale", level.div(2, rounding_mode="floor"))
        self.register_buffer("places", products.long(), persistent=False)

    def _keep(self, name: str, values: Tensor) -> None:
        self.register_buffer(name, values.to(torch.get_default_dtype()), persistent=False)

    @property
    def width(self) -> int:
        """One number per code entry."""
        return self.size

    @property
    def codes(self) -> int:
        """How many values a vector can have."""
        return math.prod(self.levels)

    def forward(self, h: Tensor) -> Code:
        """Bound and round."""
        bounded = torch.tanh(self.vectors(h) + self.shift) * self.reach - self.offset
        rounded = bounded + (bounded.round() - bounded).detach()
        z = self.flat(rounded / self.scale)
        digits = (rounded.detach() + self.scale).round().long()
        numbers = (digits * self.places).sum(-1).flatten(1)
        size = numbers.new_full((len(h), 1), self.codes)
        return Code(z, stats={"indices": torch.cat([numbers, size], 1)})

    def sample(self, n: int) -> Tensor:
        """Refuse: nothing makes the codes follow a known distribution."""
        raise self.no_prior()

    def lookup(self, indices: Tensor) -> Tensor:
        """Codes ``[B, D]`` of numbers ``[B, G]``, in which a vector's first entry counts least."""
        check_indices(indices, self.size // len(self.levels), self.codes)
        digits = torch.stack(
            [indices // place % n for place, n in zip(self.places, self.levels, strict=True)], 2
        )
        return self.flat((digits - self.scale) / self.scale)

    def vectors(self, h: Tensor) -> Tensor:
        """Cut ``[*, D]`` into vectors ``[*, G, len(levels)]``."""
        if self.maps:
            return h.unflatten(-1, (len(self.levels), -1)).transpose(-1, -2)
        return h.unflatten(-1, (-1, len(self.levels)))

    def flat(self, vectors: Tensor) -> Tensor:
        """Put vectors back into ``[*, D]``."""
        return (vectors.transpose(-1, -2) if self.maps else vectors).flatten(-2)
