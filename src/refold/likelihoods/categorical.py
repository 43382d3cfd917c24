"""The likelihood of many categorical columns at once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor
from torch.distributions import Distribution, constraints

from refold.likelihoods.base import Likelihood, register
from refold.ops.segments import segment_argmax, segment_cross_entropy, segment_softmax

UNSEEN = -2
RARE = math.log(1000.0)


@final
class SegmentedCategorical(Distribution):
    """Independent categoricals of different sizes whose logits lie side by side.

    ``logits`` ``[B, S]`` with ``S = sum(sizes)``; values ``[B, K]`` of class indices.

    >>> SegmentedCategorical(torch.zeros(2, 5), (2, 3)).log_prob(torch.zeros(2, 2)).exp()
    tensor([[0.5000, 0.3333],
            [0.5000, 0.3333]])
    """

    def __init__(self, logits: Tensor, sizes: tuple[int, ...]) -> None:
        self.logits, self.sizes = logits, sizes
        super().__init__(logits.shape[:1], torch.Size([len(sizes)]), validate_args=False)

    @property
    def arg_constraints(self) -> dict[str, constraints.Constraint]:
        """Any logits are valid."""
        return {}

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-probability of each column's class, ``[B, K]``."""
        return -segment_cross_entropy(self.logits, value.long(), self.sizes)

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draw a class for each column, by the Gumbel-max trick; ``sample_shape`` leads."""
        shape = (*sample_shape, *self.logits.shape)
        uniform = torch.rand(shape, device=self.logits.device).clamp_(1e-20, 1 - 1e-7)
        noisy = self.logits - (-uniform.log()).log()
        drawn = segment_argmax(noisy.flatten(0, -2), self.sizes)
        return drawn.view(*shape[:-1], len(self.sizes))

    @property
    def mode(self) -> Tensor:
        """Most probable class of each column, ``[B, K]``."""
        return segment_argmax(self.logits, self.sizes)


@final
@register("categorical")
class Categorical(Likelihood):
    r"""Cross-entropy on logits, one softmax per column, all columns in one pass.

    .. math:: -\log p(x \mid l) = \log \sum_j e^{l_{kj}} - l_{k x_k}

    Targets are class indices ``[B, K]``; a missing class is -1 and must not be observed. A class
    never seen in training is -2: it costs what the least likely level does, at least log 1000.

    >>> cells = Categorical((2, 4)).cells(torch.zeros(1, 6), torch.zeros(1, 2, dtype=torch.long))
    >>> cells.exp().round()
    tensor([[2., 4.]])
    """

    segment: Tensor
    offset: Tensor

    def __init__(self, sizes: tuple[int, ...], shape: tuple[int, ...] = ()) -> None:
        super().__init__(sizes, shape)
        counts = torch.tensor(sizes)
        self.register_buffer(
            "segment", torch.repeat_interleave(torch.arange(len(sizes)), counts), persistent=False
        )
        self.register_buffer("offset", counts.cumsum(0) - counts, persistent=False)

    @property
    def width(self) -> int:
        """One logit per level of each column."""
        return sum(self.sizes)

    def cells(self, params: Tensor, x: Tensor) -> Tensor:
        """Cross-entropy of each column."""
        classes = x.clamp_min(0)
        cells = segment_cross_entropy(params, classes, self.sizes)
        if not self.training and bool((x == UNSEEN).any()):
            # Its class is the least likely one, and no likelier than one in a thousand.
            least = segment_argmax(-params, self.sizes)
            rarest = segment_cross_entropy(params, least, self.sizes).clamp_min(RARE)
            cells = torch.where(x == UNSEEN, rarest, cells)
        return cells

    def total(self, params: Tensor, x: Tensor) -> tuple[Tensor, float]:
        """Summed cross-entropy."""
        return self.cells(params, x).sum(), 1.0

    def distribution(self, params: Tensor) -> Distribution:
        """Return the segmented categorical."""
        return SegmentedCategorical(params, self.sizes)

    def point(self, params: Tensor) -> Tensor:
        """Most probable class of each column."""
        return SegmentedCategorical(params, self.sizes).mode

    def draw(self, params: Tensor) -> Tensor:
        """Draw a class for each column."""
        return SegmentedCategorical(params, self.sizes).sample()

    def expected(self, params: Tensor) -> Tensor:
        """Probability of each level, ``[B, S]``."""
        return segment_softmax(params, self.sizes)

    def linear_view(self, x: Tensor) -> Tensor:
        """One indicator per level, ``[B, S]``; a missing class is all zeros."""
        hot = torch.zeros(len(x), self.width, device=x.device)
        return hot.scatter_(1, x.clamp_min(0) + self.offset, (x >= 0).float())

    def spread(self, observed: Tensor) -> Tensor:
        """Repeat each column's mask over its levels."""
        return observed.index_select(1, self.segment)

    def marginal(self, x: Tensor, observed: Tensor | None) -> Tensor:
        """Return log-frequencies, with half a count for each level."""
        known = (x + self.offset)[x >= 0]
        return (torch.bincount(known, minlength=self.width) + 0.5).log()
