"""Attention over the tokens of one field: the encoder meets only those that are there."""

from __future__ import annotations

from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from refold.backbones.base import Backbone, Geometry, Pairs, Skips, register, with_mask
from refold.backbones.layers import initialise
from refold.errors import InputError, unknown
from refold.ops.tokens import cut, places

POOLS = ("places", "mean", "token")


@final
class Block(nn.Module):
    r"""Multi-head attention and two layers, each behind a norm and beside an identity skip.

    .. math:: u = t + W_o \operatorname{concat}_h \operatorname{softmax}\!\big(
              q_h k_h^\top / \sqrt{d}\big)\, v_h, \qquad
              y = u + W_2 \operatorname{gelu}(W_1 \operatorname{norm}(u)), \qquad
              (q, k, v) = W_{qkv} \operatorname{norm}(t)

    ``[B, L, width]`` to the same shape. ``there`` ``[B, L]`` says which tokens are looked at.

    Source: Vaswani et al., Attention Is All You Need, 2017 (arXiv:1706.03762); Xiong et al., On
    Layer Normalization in the Transformer Architecture, 2020 (arXiv:2002.04745) for norms first.

    >>> Block(8, heads=2)(torch.zeros(3, 5, 8), None).shape
    torch.Size([3, 5, 8])
    """

    def __init__(self, width: int, heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.heads = heads
        self.before = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.between = nn.LayerNorm(width)
        self.grow = nn.Linear(width, 4 * width)
        self.shrink = nn.Linear(4 * width, width)
        self.dropout = nn.Dropout(dropout)
        for layer in (self.qkv, self.out, self.grow, self.shrink):
            initialise(layer, "xavier", "identity")

    def forward(self, tokens: Tensor, there: Tensor | None) -> Tensor:
        """Add to each token what it finds in those that are there, then what it makes of that."""
        batch, count, _ = tokens.shape
        qkv = self.qkv(self.before(tokens)).view(batch, count, 3, self.heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        mask = None if there is None else there[:, None, None, :]
        found = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        tokens = tokens + self.dropout(self.out(found.transpose(1, 2).flatten(2)))
        return tokens + self.dropout(self.shrink(F.gelu(self.grow(self.between(tokens)))))


@final
@register("transformer")
class Transformer(Backbone):
    r"""Attention over the visible tokens of a field, and over all of them on the way back.

    .. math:: t = f\big(\{E x_i + p_i\}_{i \in V}\big), \qquad
              h_i = \tfrac{L}{|V|} C t_i \;(i \in V), \; 0 \text{ else}, \qquad
              \text{params}_i = W g\big(\{D h'_i + p'_i\}_{i = 1 \dots L}\big)_i + b_i

    Tokens are squares of ``patch`` pixels of an image, runs of ``patch`` steps of a series (None:
    2, 4, 8 or 16, as many as leave seven tokens along the longer side), and single entries of all
    else: a cell of a table has a vector of its own that is multiplied by its value, a class a row
    of a table, which columns of equal levels share, as words of a text do.
    Where a side is no multiple of ``patch``, the last tokens are filled up with zeros, and what is
    said of those is dropped. Positions :math:`p` are learnt.

    A token is visible (in :math:`V`) where any of its entries is. In training the encoder is given
    visible tokens alone, so that its cost falls with what is hidden; rows with fewer than the most
    of a batch are filled up, and what fills them is not looked at. In evaluation every row takes
    all its tokens, hidden ones not looked at, which is the same but for rounding and rounds the
    same whatever rows come along. Squares and runs of which only a part is there have the mask of
    their entries appended.

    ``pool="places"`` gives ``spread`` numbers of each token, side by side (``width`` numbers with
    ``spread=0``): zeros where a token is not visible, the others larger, as dropout has them. The
    linear map that follows can weigh a place, which a mean must first learn to tell from others.
    ``"mean"`` gives the mean of the visible tokens, ``"token"`` the state of a token of its own,
    which is always there. Of a row of which nothing is there the first two are zero.

    The decoder sees the code and nothing else, unlike He et al., whose decoder sees the encoder's
    tokens: a code that is embedded, compressed or sampled must hold all that is rebuilt. Of
    :math:`h'` each token is given ``spread`` numbers of its own; with ``spread=0`` all are given
    the same ``width`` numbers. ``decoder_layers=0`` leaves the linear maps.
    Raises :class:`InputError`.

    Source: Dosovitskiy et al. 2020 (arXiv:2010.11929); He et al., Masked Autoencoders Are Scalable
    Vision Learners, 2021 (arXiv:2111.06377); Du et al., ReMasker, 2023 (arXiv:2309.13793) for
    tables; Gorishniy et al. 2021 (arXiv:2106.11959) for cells as tokens.

    >>> image = Geometry(shape=(1, 28, 28), sizes=(1,) * 784, params=784, missing=True)
    >>> spine = Transformer(image, width=32)
    >>> h, _ = spine.encode(torch.zeros(5, 1, 28, 28), torch.rand(5, 784) < 0.5)
    >>> h.shape, spine.decode(torch.zeros(5, spine.decoded), ()).shape
    (torch.Size([5, 784]), torch.Size([5, 784]))
    """

    tokens: Tensor
    pieces: Tensor
    offset: Tensor
    entry: Tensor

    def __init__(
        self,
        geometry: Geometry,
        *,
        patch: int | None = None,
        width: int = 64,
        layers: int = 2,
        heads: int = 4,
        decoder_layers: int = 1,
        spread: int = 16,
        pool: str = "places",
        dropout: float = 0.0,
    ) -> None:
        super().__init__(geometry)
        for name, value, least in (
            ("patch", 1 if patch is None else patch, 1),
            ("width", width, 1),
            ("layers", layers, 1),
            ("heads", heads, 1),
            ("decoder_layers", decoder_layers, 0),
            ("spread", spread, 0),
        ):
            if value < least:
                raise InputError(f"{name} is {value}; it must be {least} or more")
        if width % heads:
            raise InputError(
                f"a width of {width} does not part into {heads} heads of attention; choose a "
                f"number of heads that divides it"
            )
        if pool not in POOLS:
            raise unknown("pool", pool, POOLS)
        if not 0 <= dropout < 1:
            raise InputError(f"dropout is {dropout}; it must be a share from 0 to below 1")
        self.patch, self.width, self.layers, self.heads = patch, width, layers, heads
        self.decoder_layers, self.spread, self.pool = decoder_layers, spread, pool
        self.dropout = dropout
        self.register_buffer("tokens", cut(geometry.shape, patch), persistent=False)
        self.classes = max(geometry.sizes) > 1
        self.columns = len(geometry.shape) == 1 and not (self.classes and self._alike)
        if geometry.reads:
            self._build_encoder()
        if geometry.writes:
            self._build_decoder()

    @property
    def encoded(self) -> int:
        """Numbers of every token, or of one for all."""
        if self.pool == "places":
            return len(self.tokens) * (self.spread or self.width)
        return self.width

    @property
    def decoded(self) -> int:
        """Numbers of every token, or of one for all."""
        return len(self.tokens) * self.spread or self.width

    @property
    def pairs(self) -> Pairs:
        """None: the decoder does not mirror the encoder."""
        return ()

    @property
    def skipping(self) -> bool:
        """Nothing passes beside the code."""
        return False

    def encode(self, x: Tensor, visible: Tensor | None) -> tuple[Tensor, Skips]:
        """Run the visible tokens through the blocks, and pool them."""
        at, there = self._kept(self._seen(x, visible))
        place = self.place if at is None else _chosen(self.place, at)
        tokens = place + (self._classes(x, at) if self.classes else self._numbers(x, visible, at))
        if self.pool == "token":
            tokens = torch.cat([self.token.expand(len(x), 1, -1), tokens], 1)
            there = None if there is None else F.pad(there, (1, 0), value=True)
        looked = there
        if there is not None:  # attention needs one to look at; what it finds there is dropped
            first = torch.arange(there.shape[1], device=x.device) == 0
            looked = there | (first & ~there.any(1, keepdim=True))
        for block in self.encoder:
            tokens = block(tokens, looked)
        tokens = self.norm(tokens)
        if self.pool == "token":
            return tokens[:, 0], ()
        if self.pool == "places":
            return self._placed(self.leave(tokens), at, there), ()
        if there is None:
            return tokens.mean(1), ()
        share = there / there.sum(1, keepdim=True).clamp_min(1)
        return (tokens * share.to(tokens.dtype)[..., None]).sum(1), ()

    def decode(self, h: Tensor, skips: Skips) -> Tensor:
        """Give every token its numbers, let them look at each other, and read each."""
        tokens = h.view(len(h), len(self.tokens), -1) if self.spread else h[:, None]
        tokens = self.enter(tokens) + self.query
        for block in self.decoder:
            tokens = block(tokens, None)
        tokens = self.last(tokens)
        if not self.columns:
            return self._laid(F.linear(tokens, self.head)) + self.bias
        if self._logits:
            parts = self.head.split(self.geometry.sizes)
            return (
                torch.cat([F.linear(tokens[:, i], w) for i, w in enumerate(parts)], 1) + self.bias
            )
        own = self.head.view(len(self.tokens), -1, self.width)
        return self._laid(torch.einsum("blw,lkw->blk", tokens, own)) + self.bias

    def outer(self, x: Tensor, visible: Tensor | None, count: int) -> Tensor:
        """Never asked: there are no pairs."""
        raise AssertionError

    @torch.no_grad()
    def start_at(self, params: Tensor) -> bool:
        """Start the biases there."""
        self.bias.copy_(params)
        return True

    @property
    def _alike(self) -> bool:
        """Whether all entries have the same levels, as tokens of text do."""
        return len(set(self.geometry.sizes)) == 1

    @property
    def _logits(self) -> bool:
        """Whether the likelihood asks for one number per level."""
        return self.classes and self.geometry.params == sum(self.geometry.sizes)

    def _build_encoder(self) -> None:
        geometry, width = self.geometry, self.width
        entries, (count, size) = len(geometry.sizes), self.tokens.shape
        masked = geometry.missing and size > 1
        pieces = self.tokens
        if masked:  # values and their mask lie side by side, and behind both a zero
            pieces = torch.where(pieces == entries, 2 * entries, pieces)
            pieces = torch.cat([pieces, (pieces + entries).clamp_max(2 * entries)], 1)
        self.register_buffer("pieces", pieces, persistent=False)
        if self.classes:
            levels = torch.tensor(geometry.sizes)
            offset = torch.zeros_like(levels) if self._alike else levels.cumsum(0) - levels
            self.register_buffer("offset", offset, persistent=False)
            self.table = nn.Parameter(_drawn(int((offset + levels).max()), width))
        elif self.columns:
            self.value = nn.Parameter(_drawn(count, width))
        else:
            self.embed = nn.Linear(pieces.shape[1], width)
        self.place = nn.Parameter(_drawn(count, width))
        if self.pool == "token":
            self.token = nn.Parameter(_drawn(1, width))
        self.encoder = nn.ModuleList(
            Block(width, self.heads, self.dropout) for _ in range(self.layers)
        )
        self.norm = nn.LayerNorm(width)
        if self.pool == "places":
            self.leave = nn.Linear(width, self.spread or width)

    def _build_decoder(self) -> None:
        geometry, width, (count, size) = self.geometry, self.width, self.tokens.shape
        entries = len(geometry.sizes)
        if not self._logits and geometry.params % entries:
            raise InputError(
                f"this field's likelihood takes {geometry.params} numbers for {entries} entries, "
                f"which are not as many for each; use the backbone 'flat'"
            )
        self.register_buffer("entry", places(self.tokens, entries), persistent=False)
        self.enter = nn.Linear(self.spread or width, width)
        self.query = nn.Parameter(_drawn(count, width))
        self.decoder = nn.ModuleList(
            Block(width, self.heads, self.dropout) for _ in range(self.decoder_layers)
        )
        self.last = nn.LayerNorm(width)
        each = geometry.sizes[0] if self._logits else geometry.params // entries * size
        rows = geometry.params if self.columns else each
        # Small, so that training starts close to the constant that the bias gives.
        self.head = nn.Parameter(0.02 * torch.randn(rows, width))
        self.bias = nn.Parameter(torch.zeros(geometry.params))

    def _seen(self, x: Tensor, visible: Tensor | None) -> Tensor | None:
        """Which tokens are visible, ``[B, L]``; None: all of them are, in every batch."""
        if self.classes:  # a class that is new is not there either
            known = x.flatten(1) > -0.5
            return known if visible is None else known & visible
        if not self.geometry.missing:
            return None
        if visible is None:
            return torch.ones(len(x), len(self.tokens), dtype=torch.bool, device=x.device)
        if self.tokens.shape[1] == 1:
            return visible
        return _gathered(F.pad(visible, (0, 1)), self.tokens, None).any(2)

    def _kept(self, seen: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        """Which tokens enter, ``[B, n]`` (None: all), and which of those are looked at."""
        if seen is None or not self.training:
            return None, seen
        counts = seen.sum(1)
        least, most = (int(edge) for edge in counts.aminmax())
        if least == seen.shape[1]:
            return None, None
        order = seen.byte().sort(dim=1, descending=True, stable=True).indices
        at = order[:, : max(1, most)]
        if least == most > 0:
            return at, None
        return at, torch.arange(at.shape[1], device=seen.device) < counts[:, None]

    def _placed(self, tokens: Tensor, at: Tensor | None, there: Tensor | None) -> Tensor:
        """Tokens side by side, each at its place, those that are not there zero."""
        count = len(self.tokens)
        if there is not None:
            share = there * (count / there.sum(1, keepdim=True).clamp_min(1))
            tokens = tokens * share.to(tokens.dtype)[..., None]
        elif at is not None:
            tokens = tokens * (count / at.shape[1])
        if at is not None:
            every = tokens.new_zeros(len(tokens), count, tokens.shape[2])
            tokens = every.scatter(1, at[..., None].expand_as(tokens), tokens)
        return tokens.flatten(1)

    def _numbers(self, x: Tensor, visible: Tensor | None, at: Tensor | None) -> Tensor:
        """Embed numbers: patches by one map, cells each by a vector of its own."""
        flat = x.flatten(1)
        flat = flat if flat.is_floating_point() else flat.to(self.place.dtype)
        if self.columns:
            return _gathered(flat, self.tokens, at) * (
                self.value if at is None else _chosen(self.value, at)
            )
        if self.tokens.shape[1] > 1:
            flat = with_mask(flat, visible, self.geometry)
        return self.embed(_gathered(F.pad(flat, (0, 1)), self.pieces, at))

    def _classes(self, x: Tensor, at: Tensor | None) -> Tensor:
        """Look classes up; ordered ones come as ranks scaled to [0, 1]."""
        flat = x.flatten(1)
        if flat.is_floating_point():
            last = torch.tensor(self.geometry.sizes, device=x.device) - 1
            flat = (flat * last).round().long()
        rows = _gathered(flat.clamp_min(0) + self.offset, self.tokens, at)[..., 0]
        return _chosen(self.table, rows)

    def _laid(self, out: Tensor) -> Tensor:
        """Lay numbers of tokens ``[B, L, K * P]`` out as likelihoods read them, ``[B, K * E]``."""
        if self._logits:
            return out.flatten(1)
        size = self.tokens.shape[1]
        by_token = out.unflatten(2, (-1, size)).transpose(1, 2).flatten(2)
        return by_token.index_select(2, self.entry).flatten(1)


def _drawn(rows: int, width: int) -> Tensor:
    return torch.randn(rows, width) * 0.5


def _chosen(table: Tensor, at: Tensor) -> Tensor:
    """Rows ``[B, n, width]`` of a table."""
    return table.index_select(0, at.flatten()).view(*at.shape, -1)


def _gathered(flat: Tensor, pieces: Tensor, at: Tensor | None) -> Tensor:
    """Entries ``[B, n, P]`` of the tokens ``at``, of all where that is None."""
    if at is None:
        return flat.index_select(1, pieces.flatten()).view(len(flat), *pieces.shape)
    return flat.gather(1, _chosen(pieces, at).flatten(1)).view(*at.shape, -1)
