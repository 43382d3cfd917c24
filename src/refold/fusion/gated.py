"""Fields that decide, number by number, which of them is heard."""

from __future__ import annotations

from collections.abc import Mapping
from typing import final

import torch
from torch import Tensor, nn

from refold.backbones.layers import Style
from refold.fusion.base import register
from refold.fusion.towers import Stages, Towers, feature_width, shown


@final
@register("gated")
class Gated(Towers):
    r"""Gated multimodal units: a weighted mean of the fields' features, weighted by all of them.

    .. math:: f_k = \tanh(W_k t_k), \qquad
              g_k = \operatorname{softmax}_{k \in P} \Bigl(\sum_{j \in P} G_{kj} t_j\Bigr), \qquad
              h = W \sum_{k \in P} g_k \odot f_k + b

    :math:`t_k` are the field's own dense layers of widths ``hidden``, :math:`P` the fields that are
    there, and every one of the ``width`` features (None: the last of ``hidden``, or what the latent
    takes) has gates of its own. Of two fields they are the paper's :math:`z` and :math:`1 - z` with
    :math:`z = \sigma(W_z [t_1, t_2])`; for more fields the paper's gates need not sum to one.

    Source: Arevalo et al., Gated Multimodal Units for Information Fusion, 2017 (arXiv:1702.01992).

    >>> body = Gated({"a": 3, "b": 2}, {"a": 3}, 2, 2, hidden=(8,))
    >>> body.gates({"a": torch.ones(4, 3), "b": torch.ones(4, 2)}, {}).shape
    torch.Size([4, 2, 8])
    """

    def __init__(
        self,
        inputs: dict[str, int],
        outputs: dict[str, int],
        into: int,
        code: int,
        *,
        width: int | None = None,
        hidden: Stages = (),
        mirror: Stages | None = None,
        activation: str = "relu",
        norm: str = "none",
        dropout: float = 0.0,
        init: str = "auto",
    ) -> None:
        style = Style(activation, norm, dropout, init)
        channels = feature_width(width, hidden, into)
        # A field's layers end in its features and in its part of the scores of every gate.
        ends = (1 + len(inputs)) * channels
        super().__init__(inputs, outputs, into, code, ends, hidden, mirror, style)
        self.width = width
        self.last = nn.Linear(channels, into)

    def gates(self, hidden: dict[str, Tensor], present: Mapping[str, Tensor]) -> Tensor:
        """Weights ``[B, K, width]`` of the inputs' features, which sum to one over the inputs.

        An absent field's are zero, and all are where nothing is there.
        """
        return self._gates(*self.features(hidden, present))

    def fuse(self, features: Tensor, seen: Tensor | None) -> Tensor:
        """Weigh the features by their gates."""
        own = features[:, :, : self.last.in_features]
        return self.last((self._gates(features, seen) * own.tanh()).sum(1))

    def _gates(self, features: Tensor, seen: Tensor | None) -> Tensor:
        fields, channels = len(self.inputs), self.last.in_features
        scores = shown(features[:, :, channels:], seen).sum(1).unflatten(1, (fields, channels))
        if seen is None:
            return scores.softmax(1)
        lowest = torch.finfo(scores.dtype).min
        return shown(scores.masked_fill(~seen.unsqueeze(2), lowest).softmax(1), seen)
