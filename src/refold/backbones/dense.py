"""Dense layers of a field's own."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import Any, final

import torch
from torch import Tensor, nn

from refold.backbones.base import (
    Backbone,
    Geometry,
    Pairs,
    Skips,
    blocks,
    register,
    there_and_back,
    with_mask,
)
from refold.backbones.flat import Embed
from refold.backbones.layers import ACTIVATIONS, Style
from refold.backbones.mlp import Mlp, expanded, mirrored
from refold.backbones.stages import DenseStage, plain, read, styled
from refold.errors import InputError


@final
@register("dense")
class Dense(Backbone):
    r"""Dense layers of widths ``hidden`` for this field alone, and the same in reverse.

    .. math:: c = f(x), \qquad \text{params} = W g(a(c')) + b

    An entry of ``hidden`` is a width, or the options of a :class:`DenseStage`. The way back is the
    same layers in reverse, or ``mirror`` in the order given: the body gives :math:`c'`, as many
    numbers as the first of them has, which meet its activation :math:`a`, and a linear map ends in
    the likelihood's parameters. ``mirror=()`` leaves the way back to the body. Where the field has
    classes, each becomes a vector of ``embed`` numbers first; where entries can be missing, the
    mask of what is there follows the numbers. Raises :class:`InputError`.

    >>> pixels = Geometry(shape=(1, 28, 28), sizes=(1,) * 784, params=784, missing=False)
    >>> spine = Dense(pixels, hidden=(128, 32))
    >>> h, _ = spine.encode(torch.zeros(5, 1, 28, 28), None)
    >>> h.shape, spine.decode(h, ()).shape
    (torch.Size([5, 32]), torch.Size([5, 784]))
    """

    def __init__(
        self,
        geometry: Geometry,
        *,
        hidden: tuple[int | Mapping[str, Any] | DenseStage, ...] = (64,),
        mirror: tuple[int | Mapping[str, Any] | DenseStage, ...] | None = None,
        embed: int = 8,
        activation: str = "relu",
        norm: str = "none",
        dropout: float = 0.0,
        init: str = "auto",
    ) -> None:
        super().__init__(geometry)
        if not hidden:
            raise InputError(
                "hidden is empty; name one width or more, or use the backbone 'flat' ('embed' for "
                "classes), which has no layers"
            )
        if embed < 1:
            raise InputError(f"embed is {embed}; it must be 1 or more")
        self.embed, self.activation, self.norm = embed, activation, norm
        self.dropout, self.init = dropout, init
        self.classes = Embed(geometry, width=embed) if max(geometry.sizes) > 1 else None
        kind: dict[str, Any] = {
            "activation": activation,
            "norm": norm,
            "dropout": dropout,
            "init": init,
        }
        with said_of("hidden"):
            there = expanded(self._inputs, read(DenseStage, hidden))
            if geometry.reads:
                self.encoder = Mlp(self._inputs, hidden, **kind)
        if mirror is None:
            back = mirrored(there)
        else:
            with said_of("mirror"):
                stages = read(DenseStage, mirror)
                back = expanded(stages[0].width, stages) if stages else ()
        self._there, self._back = there, back
        if back and geometry.writes:
            style = styled(back[0], Style(activation, norm, dropout, init))
            self.enter = _apart(style.activation)
            with said_of("hidden" if mirror is None else "mirror"):
                self.decoder = Mlp(back[0].width, back[1:], final=geometry.params, **kind)
        # Plain values only now that they were read, so that what cannot be read is said as given.
        self.hidden = plain(hidden)
        self.mirror = None if mirror is None else plain(mirror)

    @property
    def encoded(self) -> int:
        """Width of the last layer."""
        return self._there[-1].width

    @property
    def decoded(self) -> int:
        """Width that the way back begins with, or the parameters where there is none."""
        return self._back[0].width if self._back else self.geometry.params

    @property
    def pairs(self) -> Pairs:
        """The layers there and back.

        None where classes are looked up, where ``mirror`` leads back through other widths, or where
        there is but one way.
        """
        there, back = ([layer.width for layer in half] for half in (self._there, self._back))
        both = self.geometry.reads and self.geometry.writes
        if self.classes is not None or not both or there != back[::-1]:
            return ()
        return tuple(zip(blocks(self.encoder), reversed(blocks(self.decoder)), strict=True))

    @property
    def skipping(self) -> bool:
        """Nothing passes beside the code."""
        return False

    def encode(self, x: Tensor, visible: Tensor | None) -> tuple[Tensor, Skips]:
        """Flatten, or look classes up, and run the layers."""
        return self.encoder(self._shown(x, visible)), ()

    def decode(self, h: Tensor, skips: Skips) -> Tensor:
        """Run the layers of the way back, where there are any."""
        return self.decoder(self.enter(h)) if self._back else h

    def outer(self, x: Tensor, visible: Tensor | None, count: int) -> Tensor:
        """Down ``count`` layers and up again."""
        return there_and_back(self.pairs[:count], self._shown(x, visible))

    @torch.no_grad()
    def start_at(self, params: Tensor) -> bool:
        """Start the last layer's bias there; False where the body gives the parameters."""
        if not self._back:
            return False
        self.decoder.last.bias.copy_(params)
        return True

    @property
    def _inputs(self) -> int:
        """Numbers that the first layer meets."""
        if self.classes is not None:
            return self.classes.encoded
        return len(self.geometry.sizes) * (2 if self.geometry.missing else 1)

    def _shown(self, x: Tensor, visible: Tensor | None) -> Tensor:
        """Numbers and their mask, or vectors of classes."""
        if self.classes is not None:
            return self.classes.encode(x, visible)[0]
        numbers = x if x.is_floating_point() else x.to(torch.get_default_dtype())
        return with_mask(numbers.flatten(1), visible, self.geometry)


@contextmanager
def said_of(option: str) -> Generator[None]:
    """Name the option that a wrong stage was found in."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{option}, {error}" if "stage" in str(error) else str(error)) from error


def _apart(activation: str) -> nn.Module:
    """Return an activation that leaves its input as it is: the body's output is others' too."""
    if activation == "relu":
        return nn.ReLU()
    return ACTIVATIONS["identity" if activation == "none" else activation]()
