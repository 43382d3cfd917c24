"""What every corruption is, the registry, and what the parts share."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from refold.errors import InputError
from refold.parts import Registry
from refold.types import Batch


class Corruption(ABC):
    """A random map from a clean batch to a corrupted one, on the batch's own device.

    Which entries were observed stays as it is, unless values move between rows: an entry that is
    missing stays missing whatever is done to it, and a corrupted one still claims to be a value,
    because the model is to find out by itself what is wrong. A corruption that hides entries does
    the opposite: it leaves values alone and says that they are not there.
    """

    images_only: bool = False
    """Whether it needs an image; fields of other kinds then pass through unchanged."""
    hides: bool = False
    """Whether it says of entries that they are missing, so that an encoder must be told which."""
    scored: str = "all"
    """What is scored in training: all entries, or only those it hid, or only those it left; or
    ``"drawn"``, what it made of them in place of the clean rows."""

    @abstractmethod
    def __call__(self, batch: Batch, generator: torch.Generator) -> Batch:
        """Corrupt a batch; equal generator states give equal draws. The input is not changed."""

    def target(self, clean: Batch, corrupted: Batch) -> Batch:
        """Return what is scored: the clean batch, or as :attr:`scored` says a part of it."""
        if self.scored == "all":
            return clean
        if self.scored == "drawn":
            return Batch({**clean.x, **corrupted.x}, clean.observed)
        observed: dict[str, Tensor | None] = {}
        for name, seen in clean.observed.items():
            visible = corrupted.observed.get(name)
            if name not in corrupted.x:  # predicted and never seen: all of it counts
                observed[name] = seen
            elif self.scored == "visible":
                observed[name] = visible
            elif visible is None:
                observed[name] = torch.zeros_like(clean.x[name].flatten(1), dtype=torch.bool)
            else:
                observed[name] = ~visible if seen is None else seen & ~visible
        return Batch(clean.x, observed, clean.observed)

    def corrupt(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Corrupt one tensor ``[B, *shape]``, outside of any model; ``x`` is not changed.

        An image is ``[B, C, H, W]``. Without a generator, torch's own decides.

        >>> Boxes = corruptions["boxes"]
        >>> Boxes(size=2).corrupt(torch.ones(5, 1, 4, 4)).sum((1, 2, 3))
        tensor([12., 12., 12., 12., 12.])
        """
        if generator is None:
            seed = int(torch.randint(2**62, ()))
            generator = torch.Generator(x.device).manual_seed(seed)
        return self(Batch({"x": x}, {"x": None}), generator).x["x"]


corruptions: Registry[Corruption] = Registry("corruption")
register = corruptions.register


class PerField(Corruption):
    """A corruption that treats each field by itself and moves nothing between rows."""

    @abstractmethod
    def field(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Corrupt one field ``[B, *shape]`` of at least one row, without changing ``x``."""

    def __call__(self, batch: Batch, generator: torch.Generator) -> Batch:
        """Corrupt each field; those that are no images pass where only images are meant."""
        if self.images_only and not any(map(is_image, batch.x.values())):
            raise no_image(self, batch)
        return Batch(
            {
                k: self.field(x, generator)
                if len(x) and (not self.images_only or is_image(x))
                else x
                for k, x in batch.x.items()
            },
            batch.observed,
        )


class OnImages(PerField):
    """A corruption of images alone: its :meth:`field` is given ``[B, C, H, W]``."""

    images_only: bool = True


def is_image(x: Tensor) -> bool:
    """Whether a field is images: floating numbers ``[B, C, H, W]``."""
    return x.ndim == 4 and x.is_floating_point()


def no_image(part: Corruption, batch: Batch) -> InputError:
    """Build the error for data without an image; it names the parts that do without."""
    fields = ", ".join(
        f"{k} {tuple(x.shape)} of {str(x.dtype).removeprefix('torch.')}" for k, x in batch.x.items()
    )
    others = ", ".join(n for n in corruptions if not corruptions[n].images_only)
    return InputError(
        f"the corruption '{written(part)}' needs images, floating numbers of shape (rows, "
        f"channels, height, width), but the data has {fields}; corrupt it with one of: {others}"
    )


def written(part: Corruption) -> str:
    """Write a corruption with its options; one that is not registered by its class."""
    known = any(corruptions[n] is type(part) for n in corruptions)
    return str(corruptions.spec(part)) if known else type(part).__name__


def check_share(value: float, what: str) -> None:
    """Raise unless a share lies in [0, 1]."""
    if not 0 <= value <= 1:
        raise InputError(f"{what} is {value}; it must lie between 0 and 1")


def check_side(given: int, x: Tensor, what: str) -> None:
    """Raise where a length of ``given`` pixels does not fit images ``[B, C, H, W]``."""
    height, width = x.shape[-2:]
    if given > min(height, width):
        raise InputError(
            f"{what} is {given}, but the images are {height}x{width} pixels; give at most "
            f"{min(height, width)}"
        )


def entries_of(x: Tensor) -> int:
    """Entries in a row, also where there is no row."""
    return x.shape[1:].numel()


def fill(x: Tensor, mask: Tensor, value: float) -> Tensor:
    """Set masked entries to ``value``; a class among several becomes missing (-1)."""
    return x.masked_fill(mask, value if x.is_floating_point() else -1)
