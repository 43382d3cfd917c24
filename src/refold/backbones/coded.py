"""Answers that stand in the code itself."""

from __future__ import annotations

from typing import ClassVar, final

from torch import Tensor

from refold.backbones.base import Backbone, Geometry, Pairs, Skips, register
from refold.errors import InputError


@final
@register("coded")
class Coded(Backbone):
    r"""The first entries of the code are the likelihood's parameters: for targets.

    .. math:: \text{params} = z_{1 \dots P} \quad \text{or} \quad \log z_{1 \dots P} \
              (\text{log=True})

    A classifier's logits can then be a part of the code, which a ladder has at its top, and with
    ``log`` the shares of classes can, of which an adversarial autoencoder's code holds one entry
    each. Raises :class:`InputError` for a field that is an input.

    >>> label = Geometry(shape=(1,), sizes=(3,), params=3, missing=False, reads=False)
    >>> import torch
    >>> Coded(label).decode(torch.tensor([[1.0, 2.0, 3.0, 4.0]]), ())
    tensor([[1., 2., 3.]])
    """

    coded: ClassVar[bool] = True

    def __init__(self, geometry: Geometry, *, log: bool = False) -> None:
        super().__init__(geometry)
        if geometry.reads:
            raise InputError(
                "the backbone 'coded' is for targets, whose answer is in the code; this field is "
                "also an input: add target=True, or use another backbone"
            )
        self.log = log

    @property
    def encoded(self) -> int:
        """Never asked: it encodes nothing."""
        raise AssertionError

    @property
    def decoded(self) -> int:
        """Entries of the code that it takes."""
        return self.geometry.params

    @property
    def pairs(self) -> Pairs:
        """No layers."""
        return ()

    @property
    def skipping(self) -> bool:
        """Nothing passes beside the code."""
        return False

    def encode(self, x: Tensor, visible: Tensor | None) -> tuple[Tensor, Skips]:
        """Never asked: it encodes nothing."""
        raise AssertionError

    def decode(self, h: Tensor, skips: Skips) -> Tensor:
        """Return the first entries of the code ``h`` ``[B, D]``."""
        answer = h[:, : self.geometry.params]
        return answer.clamp_min(1e-12).log() if self.log else answer

    def outer(self, x: Tensor, visible: Tensor | None, count: int) -> Tensor:
        """Never asked: there are no pairs."""
        raise AssertionError

    def start_at(self, params: Tensor) -> bool:
        """Nothing to start: the code is what the encoder makes it."""
        return True
