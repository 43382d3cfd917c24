"""Fields cut into tokens: what is hidden together, and what attention looks at."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

FEWEST = 7  # tokens along the longer side that a patch chosen by size leaves


def patch_of(shape: tuple[int, ...]) -> int:
    """Side of the tokens of an image or a series where none is given: 2, 4, 8 or 16.

    >>> [patch_of((1, side, side)) for side in (8, 28, 64, 224)]
    [2, 4, 8, 16]
    """
    longest = max(shape[1:]) if len(shape) == 3 else shape[0]
    return next((p for p in (16, 8, 4) if longest >= FEWEST * p), 2)


def cut(shape: tuple[int, ...], patch: int | None = None) -> Tensor:
    """Return the entries of each token, ``[L, P]``, of a field whose rows have ``shape``.

    An image ``(C, H, W)`` is cut into squares of ``patch`` pixels with all their channels, a series
    ``(T, C)`` into runs of ``patch`` steps (None: as :func:`patch_of` says); every other entry (a
    cell of a table, a token of text) is a token of its own. Where a side is no multiple, the last
    tokens hold fewer entries and are filled up with the number of entries, which is no entry.

    >>> cut((1, 2, 3), 2)
    tensor([[0, 1, 3, 4],
            [2, 6, 5, 6]])
    >>> cut((3,), 2).tolist()
    [[0], [1], [2]]
    """
    entries = torch.Size(shape).numel()
    every = torch.arange(entries)
    if len(shape) == 2:
        steps, channels = shape
        every = every.view(steps, channels).T.reshape(channels, steps, 1)
    elif len(shape) == 3:
        every = every.view(shape)
    else:
        return every[:, None]
    side = patch_of(shape) if patch is None else patch
    height, width = (min(side, length) for length in every.shape[1:])
    filled = F.pad(every, (0, -every.shape[2] % width, 0, -every.shape[1] % height), value=entries)
    squares = filled.unflatten(2, (-1, width)).unflatten(1, (-1, height))
    return squares.permute(1, 3, 0, 2, 4).flatten(2).flatten(0, 1)


def places(tokens: Tensor, entries: int) -> Tensor:
    """Return where each entry stands in the flattened ``tokens`` ``[L, P]`` of :func:`cut`.

    >>> places(cut((1, 2, 3), 2), 6)
    tensor([0, 1, 4, 2, 3, 6])
    """
    found = torch.empty(entries + 1, dtype=torch.long, device=tokens.device)
    found[tokens.flatten()] = torch.arange(tokens.numel(), device=tokens.device)
    return found[:entries]
