"""Codes made of entries of learnt books: vector quantisation."""

from __future__ import annotations

from abc import ABC
from typing import final

import torch
from torch import Tensor

from refold.errors import InputError
from refold.latents.base import Latent, register
from refold.types import Code

SMOOTHING = 1e-5  # added to every count, as in the paper's Laplace smoothing
SHORT = 4  # entries of a vector where the user does not say, at most


class Quantised(Latent, ABC):
    """Vectors cut from the code, each replaced by entries of books: of each, what is left over.

    ``books`` ``[levels, codes, dim]`` move as exponential averages of the vectors they stand for.
    """

    books: Tensor
    counts: Tensor
    sums: Tensor

    def __init__(
        self,
        size: int,
        levels: int,
        codes: int,
        dim: int | None,
        maps: int | None,
        commitment: float,
        decay: float,
        restart: float,
    ) -> None:
        super().__init__(size)
        if codes < 2:
            raise InputError(f"a book of {codes} codes says nothing; give 2 or more")
        if not commitment >= 0:
            raise InputError(f"the commitment is {commitment}; it must be 0 or more")
        if not 0 <= decay < 1:
            raise InputError(f"the decay of the book is {decay}; give a share from 0 to below 1")
        if not 0 <= restart < 1:
            raise InputError(f"restart is {restart}; give a share of even use, from 0 to below 1")
        self.codes, self.dim, self.maps = codes, dim, maps
        self.commitment, self.decay, self.restart = commitment, decay, restart
        self.length = vector_length(size, dim, maps)
        book = torch.randn(levels, codes, self.length)
        self.register_buffer("books", book)
        self.register_buffer("counts", torch.ones(levels, codes))
        self.register_buffer("sums", book.clone())

    @property
    def width(self) -> int:
        """One number per code entry."""
        return self.size

    @torch.no_grad()
    def begin(self, h: Tensor, rows: int) -> None:
        """Start the books at vectors of training rows, drawn at random, and at what those leave."""
        rest = self.vectors(h).flatten(0, -2).to(self.books.dtype)
        for level in range(len(self.books)):
            self._place(level, torch.arange(self.codes, device=h.device), rest, 1.0)
            rest = rest - self.books[level][self._nearest(rest, level)]

    def forward(self, h: Tensor) -> Code:
        """Replace vectors by entries; their gradient passes straight through to ``h``."""
        vectors = self.vectors(h)
        with torch.no_grad(), torch.autocast(h.device.type, enabled=False):
            rest = vectors.to(self.books.dtype).flatten(0, -2)
            found, chosen = torch.zeros_like(rest), list[Tensor]()
            for level in range(len(self.books)):
                index = self._nearest(rest, level)
                entry = self.books[level][index]
                if self.training:
                    self._move(level, rest, index)
                found, rest = found + entry, rest - entry
                chosen.append(index)
            found = found.view(vectors.shape)
        committed = (vectors - found).square().flatten(1).sum(1) * self.commitment
        z = h + (self.flat(found) - h).detach()
        offsets = torch.arange(len(self.books), device=h.device) * self.codes
        places = (torch.stack(chosen, 1) + offsets).view(len(h), -1)
        size = places.new_full((len(h), 1), self.codes * len(self.books))
        stats = {"indices": torch.cat([places, size], 1)}
        return Code(z, terms={"commitment": committed}, stats=stats)

    def sample(self, n: int) -> Tensor:
        """Refuse: nothing makes the codes follow a known distribution."""
        raise self.no_prior()

    @torch.no_grad()
    def lookup(self, indices: Tensor) -> Tensor:
        """Codes ``[B, D]`` of entries, numbered through all books, ``[B, G * levels]``."""
        entries = self.books.flatten(0, 1)
        check_indices(indices, self.size // self.length * len(self.books), len(entries))
        return self.flat(entries[indices].unflatten(1, (-1, len(self.books))).sum(2))

    def vectors(self, h: Tensor) -> Tensor:
        """Cut ``[*, D]`` into vectors ``[*, G, dim]``: runs of entries, or positions of maps."""
        if self.maps is not None:
            return h.unflatten(-1, (self.maps, -1)).transpose(-1, -2)
        return h.unflatten(-1, (-1, self.length))

    def flat(self, vectors: Tensor) -> Tensor:
        """Put vectors ``[*, G, dim]`` back into ``[*, D]``."""
        return (vectors.transpose(-1, -2) if self.maps is not None else vectors).flatten(-2)

    def _nearest(self, vectors: Tensor, level: int) -> Tensor:
        """Index ``[N]`` of the nearest entry to each of ``[N, dim]``."""
        book = self.books[level]
        return torch.addmm(book.square().sum(1) * 0.5, vectors, book.T, alpha=-1.0).argmin(1)

    def _move(self, level: int, vectors: Tensor, index: Tensor) -> None:
        """Let entries follow the mean of their vectors; those hardly used begin anew."""
        counts, sums = self.counts[level], self.sums[level]
        counts.lerp_(torch.bincount(index, minlength=self.codes).to(counts.dtype), 1 - self.decay)
        sums.lerp_(torch.zeros_like(sums).index_add_(0, index, vectors), 1 - self.decay)
        total = counts.sum()
        smooth = (counts + SMOOTHING) / (total + self.codes * SMOOTHING) * total
        self.books[level] = sums / smooth[:, None]
        if self.restart:
            even = total / self.codes
            self._place(level, (counts < self.restart * even).nonzero()[:, 0], vectors, even)

    def _place(self, level: int, entries: Tensor, vectors: Tensor, count: Tensor | float) -> None:
        """Put entries at vectors drawn at random, different ones as far as there are as many."""
        order = torch.randperm(len(vectors), device=vectors.device)[: len(entries)]
        drawn = vectors[order.repeat(-(-len(entries) // max(1, len(order))))[: len(entries)]]
        self.books[level, entries] = drawn
        self.counts[level, entries] = count
        self.sums[level, entries] = drawn * count


@final
@register("vq")
class VQ(Quantised):
    r"""Vector quantisation: each vector of the code is the nearest entry of one learnt book.

    .. math:: z_g = e_{i_g}, \quad i_g = \operatorname{argmin}_i \lVert h_g - e_i \rVert, \qquad
              \text{term} = \beta \sum_g \lVert h_g - \operatorname{sg}(e_{i_g}) \rVert^2

    The code is cut into vectors of ``dim`` entries (None: as many as divide it, 4 at most); with
    ``maps`` it is read as that many feature maps side by side, of which every position is a vector.
    Gradients pass straight through: :math:`\partial z / \partial h = I`. The book has ``codes``
    entries, which start at vectors of training rows and follow exponential averages with ``decay``
    :math:`\gamma` of the vectors :math:`h` that chose them,

    .. math:: N_i \leftarrow \gamma N_i + (1 - \gamma) n_i, \quad
              m_i \leftarrow \gamma m_i + (1 - \gamma) \sum_{g : i_g = i} h_g, \quad
              e_i = m_i / N_i

    An entry whose :math:`N_i` falls below the share ``restart`` of even use begins anew at a vector
    of the batch, drawn at random; 0: never. ``commitment`` is :math:`\beta`. The history shows the
    perplexity of the book and the share of it in use, over the held-out rows.
    Raises :class:`InputError` for lengths that do not divide the code.

    Source: van den Oord, Vinyals & Kavukcuoglu, Neural Discrete Representation Learning, 2017
    (arXiv:1711.00937), with the averages of its appendix A; Dhariwal et al., Jukebox, 2020
    (arXiv:2005.00341) for beginning anew.

    >>> latent = VQ(4, codes=2, dim=2).eval()
    >>> _ = latent.books.copy_(torch.tensor([[[0.0, 0.0], [1.0, 1.0]]]))
    >>> latent(torch.tensor([[0.1, 0.2, 0.9, 0.8]])).z
    tensor([[0., 0., 1., 1.]])
    >>> latent.lookup(torch.tensor([[1, 0]]))
    tensor([[1., 1., 0., 0.]])
    """

    def __init__(
        self,
        size: int,
        *,
        codes: int = 512,
        dim: int | None = None,
        maps: int | None = None,
        commitment: float = 0.25,
        decay: float = 0.99,
        restart: float = 0.1,
    ) -> None:
        super().__init__(size, 1, codes, dim, maps, commitment, decay, restart)


@final
@register("residual_vq")
class ResidualVQ(Quantised):
    r"""Residual quantisation: what one book leaves over of a vector, the next one is for.

    .. math:: r_0 = h_g, \quad e_l = \text{nearest to } r_{l-1} \text{ in book } l, \quad
              r_l = r_{l-1} - e_l, \qquad z_g = \sum_{l=1}^{L} e_l

    ``levels`` :math:`L` books of ``codes`` entries each tell :math:`K^L` vectors apart. All else is
    as in :class:`VQ`; the figures in the history are over all books, of :math:`L K` entries.

    Source: Zeghidour et al., SoundStream, 2021 (arXiv:2107.03312).

    >>> latent = ResidualVQ(1, levels=2, codes=2).eval()
    >>> _ = latent.books.copy_(torch.tensor([[[0.0], [1.0]], [[-0.1], [0.1]]]))
    >>> latent(torch.tensor([[0.8]])).z
    tensor([[0.9000]])
    """

    def __init__(
        self,
        size: int,
        *,
        levels: int = 4,
        codes: int = 64,
        dim: int | None = None,
        maps: int | None = None,
        commitment: float = 0.25,
        decay: float = 0.99,
        restart: float = 0.1,
    ) -> None:
        if levels < 1:
            raise InputError(f"levels is {levels}; it must be 1 or more")
        super().__init__(size, levels, codes, dim, maps, commitment, decay, restart)
        self.levels = levels


def vector_length(size: int, dim: int | None, maps: int | None) -> int:
    """Entries of one vector of a code of ``size``.

    >>> vector_length(6, None, None), vector_length(784, None, 16)
    (3, 16)
    """
    if dim is not None and maps is not None:
        raise InputError(
            f"dim={dim} and maps={maps} were given; give one: vectors are runs of dim entries, or "
            f"positions of maps"
        )
    length = dim if dim is not None else maps
    if length is None:
        return max(d for d in range(1, SHORT + 1) if size % d == 0)
    if length < 1 or size % length:
        raise InputError(
            f"a code of {size} cannot be cut into vectors of {length}; give a number that divides "
            f"it"
        )
    return length


def check_indices(indices: Tensor, count: int, codes: int) -> None:
    """Raise where numbers of entries are not ``count`` a row, from 0 to below ``codes``."""
    if indices.dim() != 2 or indices.shape[1] != count:
        raise InputError(
            f"indices have shape {tuple(indices.shape)}; expected (n, {count}), as transform gives "
            f"them with indices=True"
        )
    if indices.numel() and not 0 <= int(indices.min()) <= int(indices.max()) < codes:
        raise InputError(
            f"indices run from {int(indices.min())} to {int(indices.max())}; they must lie from 0 "
            f"to {codes - 1}"
        )
