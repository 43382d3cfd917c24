"""Positions of a feature map that look at each other."""

from __future__ import annotations

from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from refold.backbones.layers import group_norm
from refold.errors import InputError


@final
class SelfAttention2d(nn.Module):
    r"""Multi-head attention over all positions of a map, added to it through a gate that is shut.

    .. math:: y = x + \gamma\, W_o \operatorname{concat}_h
              \operatorname{softmax}\!\big(q_h k_h^\top / \sqrt{d}\big)\, v_h, \qquad
              (q, k, v) = W_{qkv} \operatorname{norm}(x)

    ``[B, C, H, W]`` to the same shape; :math:`\gamma` starts at zero, so the block starts as the
    identity. Raises :class:`InputError` where the heads do not divide the channels.

    Source: Zhang et al., Self-Attention GANs, 2018 (arXiv:1805.08318); Wang et al., Non-local
    Neural Networks, 2017 (arXiv:1711.07971).

    >>> x = torch.randn(2, 8, 5, 3)
    >>> torch.equal(SelfAttention2d(8, heads=2)(x), x)
    True
    """

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        if heads < 1 or channels % heads:
            raise InputError(
                f"{channels} channels do not part into {heads} heads of attention; choose a "
                f"number of heads that divides them"
            )
        self.heads = heads
        self.norm = group_norm(channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.out = nn.Linear(channels, channels)
        self.gamma = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        """Add to each position what it finds in all."""
        batch, channels, height, width = x.shape
        tokens = self.norm(x).flatten(2).transpose(1, 2)
        qkv = self.qkv(tokens).view(batch, height * width, 3, self.heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        found = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        found = self.out(found).transpose(1, 2).view(batch, channels, height, width)
        return x + self.gamma * found
