"""Several corruptions, one after the other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch

from refold.data.corruptions.base import Corruption, corruptions, register
from refold.errors import InputError
from refold.parts import PartSpec
from refold.types import Batch


@final
@register("chain")
class Chain(Corruption):
    """Apply corruptions in order: ``parts`` are their names with options, or objects.

    An object is kept as the text that names it, so that a chain can be written to JSON.

    >>> blurred_and_noisy = Chain(parts=("blur(sigma=1)", "gaussian(std=0.1)"))
    >>> blurred_and_noisy.corrupt(torch.zeros(2, 1, 4, 4)).shape
    torch.Size([2, 1, 4, 4])
    """

    def __init__(self, *, parts: Sequence[str | Corruption] = ()) -> None:
        if not parts:
            raise InputError(
                "a chain of corruptions has no parts; name them in order, as in "
                "chain(parts=('blur(sigma=1)', 'gaussian(std=0.1)'))"
            )
        specs = [corruptions.resolve(part) for part in parts]
        self.parts = tuple(map(str, specs))
        self._links = [corruptions.build(spec) for spec in specs]
        self.images_only = any(link.images_only for link in self._links)
        self.hides = any(link.hides for link in self._links)
        self.scored = next((link.scored for link in self._links if link.scored != "all"), "all")

    def __call__(self, batch: Batch, generator: torch.Generator) -> Batch:
        """Apply each in turn."""
        for link in self._links:
            batch = link(batch, generator)
        return batch


def resolve(given: str | PartSpec | Corruption | Sequence[str | Corruption]) -> PartSpec:
    """Turn what a user says into a spec; several corruptions make a chain.

    >>> str(resolve(("blur", "gaussian(std=0.1)")))
    "chain(parts=('blur', 'gaussian(std=0.1)'))"
    """
    if isinstance(given, str | PartSpec | Corruption):
        return corruptions.resolve(given)
    return corruptions.spec(Chain(parts=tuple(given)))
