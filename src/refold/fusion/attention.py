"""Fields as tokens that a learnt query attends to."""

from __future__ import annotations

from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from refold.backbones.layers import Style
from refold.errors import InputError
from refold.fusion.base import register
from refold.fusion.towers import Stages, Towers, feature_width


@final
@register("attention")
class Attention(Towers):
    r"""Multi-head self-attention over the fields' features and a learnt token, read at the token.

    .. math:: h = W \bigl[\operatorname{softmax}_{k \in P \cup \{0\}}\bigl(q_i^\top K_i t_k /
              \sqrt{d}\bigr) V_i t_k\bigr]_{i = 1 \dots \text{heads}} + b, \qquad q_i = Q_i t_0

    :math:`t_0` is the learnt token, which is always there; :math:`t_k` are the features of the
    fields that are there: dense layers of widths ``hidden`` of their own and a linear map to
    ``width`` numbers (None: the last of ``hidden``, or what the latent takes, and as many more as
    part into the heads), of which each head sees :math:`d`. Only the token's row of the attention
    is computed, for no other is read. Raises :class:`InputError` where ``width`` does not part into
    ``heads``.

    Source: Vaswani et al. 2017 (arXiv:1706.03762); Devlin et al. 2018 (arXiv:1810.04805) for the
    token; Lee et al., Set Transformer, 2018 (arXiv:1810.00825) for pooling by a learnt query.

    >>> body = Attention({"a": 3, "b": 2}, {"a": 3}, 2, 2, hidden=(8,), heads=2)
    >>> body.encode({"a": torch.ones(4, 3), "b": torch.ones(4, 2)}, {}).shape
    torch.Size([4, 2])
    """

    def __init__(
        self,
        inputs: dict[str, int],
        outputs: dict[str, int],
        into: int,
        code: int,
        *,
        heads: int = 4,
        width: int | None = None,
        hidden: Stages = (),
        mirror: Stages | None = None,
        activation: str = "relu",
        norm: str = "none",
        dropout: float = 0.0,
        init: str = "auto",
    ) -> None:
        if heads < 1:
            raise InputError(f"heads is {heads}; it must be 1 or more")
        size = feature_width(width, hidden, into)
        if width is None:
            size = -(-size // heads) * heads
        elif width % heads:
            raise InputError(
                f"a width of {width} does not part into {heads} heads of attention; choose a "
                f"number of heads that divides it"
            )
        style = Style(activation, norm, dropout, init)
        super().__init__(inputs, outputs, into, code, size, hidden, mirror, style)
        self.heads, self.width = heads, width
        self.token = nn.Parameter(torch.randn(size) / size**0.5)
        self.query = nn.Linear(size, size)
        self.keys_and_values = nn.Linear(size, 2 * size)
        self.last = nn.Linear(size, into)

    def fuse(self, features: Tensor, seen: Tensor | None) -> Tensor:
        """Attend from the token to itself and to what is there."""
        rows = len(features)
        tokens = torch.cat([self.token.expand(rows, 1, -1), features], 1)
        keys, values = self.keys_and_values(tokens).chunk(2, 2)
        query = self.query(self.token).expand(rows, 1, -1)
        mask = None if seen is None else F.pad(seen, (1, 0), value=True)[:, None, None]
        heard = F.scaled_dot_product_attention(
            self._parted(query), self._parted(keys), self._parted(values), mask
        )
        return self.last(heard.flatten(1))

    def _parted(self, h: Tensor) -> Tensor:
        """``[B, L, C]`` to ``[B, heads, L, d]``."""
        return h.unflatten(2, (self.heads, -1)).transpose(1, 2)
