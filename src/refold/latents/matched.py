"""The bottleneck whose codes a penalty pulls to a prior."""

from __future__ import annotations

from typing import ClassVar, final

import torch
from torch import Tensor

from refold.errors import InputError
from refold.latents.base import Latent, register
from refold.latents.priors import Categorical, Prior, prior
from refold.types import Code


@final
@register("matched")
class Matched(Latent):
    r"""A deterministic code that a penalty pulls to the distribution ``prior``.

    .. math:: z = (\operatorname{softmax}(h_{1 \dots K}),\; h_{K + 1 \dots D})

    With ``classes`` :math:`K` the first entries are shares of classes, whose prior is that each
    class is as likely and a row is of one alone, independent of the rest, which has ``prior``. All
    of the code is a softmax under ``prior="categorical"``. The latent itself charges nothing: a
    penalty such as ``adversarial`` has to match the codes of all rows to the prior. Raises
    :class:`InputError` for more classes than entries, and for a prior that does not suit the size.

    Source: Makhzani et al., Adversarial Autoencoders, 2015 (arXiv:1511.05644).

    >>> Matched(3, classes=2)(torch.zeros(1, 3)).z
    tensor([[0.5000, 0.5000, 0.0000]])
    >>> Matched(2, prior="mixture(components=5)").sample(4).shape
    torch.Size([4, 2])
    """

    generative: ClassVar[bool] = True
    rowwise: ClassVar[bool] = True

    def __init__(self, size: int, *, prior: str = "normal", classes: int = 0) -> None:
        super().__init__(size)
        if classes < 0 or classes == 1:
            raise InputError(f"classes is {classes}; give 2 or more, or 0 for none")
        if classes > size:
            raise InputError(
                f"a code of {size} entries cannot hold the shares of {classes} classes; give a "
                f"latent size of {classes} or more"
            )
        self.prior, self.classes = prior, classes
        self.parts = _parts(size, prior, classes)

    @property
    def width(self) -> int:
        """One number per code entry."""
        return self.size

    def forward(self, h: Tensor) -> Code:
        """Make shares of what stands for classes, and pass the rest on."""
        if not any(isinstance(law, Categorical) for _, law in self.parts):
            return Code(h)
        each = [
            h[..., at].softmax(-1) if isinstance(law, Categorical) else h[..., at]
            for at, law in self.parts
        ]
        return Code(torch.cat(each, dim=-1) if len(each) > 1 else each[0])

    def sample(self, n: int) -> Tensor:
        """Draw from the prior."""
        return torch.cat([law.draw(n) for _, law in self.parts], dim=1)


def _parts(size: int, rest: str, classes: int) -> tuple[tuple[slice, Prior], ...]:
    """Entries that have a prior of their own, and that prior."""
    parts: list[tuple[slice, Prior]] = []
    if classes:
        parts.append((slice(0, classes), Categorical(classes)))
    if classes < size or not classes:
        parts.append((slice(classes, size), prior(rest, size - classes)))
    return tuple(parts)
