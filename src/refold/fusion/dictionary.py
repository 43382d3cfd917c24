"""A dictionary of directions, of which each row is a sum of few."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from refold.backbones.base import Pairs
from refold.fusion.base import Fusion, Leads, LinearPath, join, part, register

ROUNDS = 100  # of Weiszfeld's iteration, which ends long before where rows are no straight line
CLOSE = 1e-6  # share of the rows' spread by which the last round may still move


@final
@register("dictionary")
class Dictionary(Fusion):
    r"""Rows as sums of directions of unit norm, one per entry of the code, around a centre.

    .. math:: h = E (c - m) + b, \qquad c' = z^\top D + m, \qquad \lVert D_i \rVert = 1

    ``encoder`` :math:`E` ``[n, inputs]``, ``encoder_bias`` :math:`b` ``[n]``, ``decoder`` :math:`D`
    ``[n, outputs]`` and ``centre`` :math:`m` ``[outputs]`` hold one row per latent, so that those
    of few latents can be gathered. Directions start at random and the encoder equal to them; the
    centre starts at the geometric median of rows. Steps are taken along the unit sphere:
    :meth:`project` before the optimiser's, :meth:`constrain` after it.

    Where the numbers of the one field can be missing, a mask :math:`o` follows them, and what is
    not there stays at the centre: :math:`h = E \, [(c - m) \odot o, \; o] + b`. The encoder starts
    with zeros for the mask. Where the fields that are read are otherwise not as wide as those that
    are given back (classes, targets), there is nothing to take off on the way in:
    :math:`h = E c + b`, and the encoder starts with directions of its own.

    Source: Bricken et al., Towards Monosemanticity, 2023; Gao et al., Scaling and Evaluating Sparse
    Autoencoders, 2024 (arXiv:2406.04093), for the start.

    >>> body = Dictionary({"x": 8}, {"x": 8}, 32, 32)
    >>> body.decoder.norm(dim=1).allclose(torch.ones(32)), torch.equal(body.encoder, body.decoder)
    (True, True)
    """

    constrained: ClassVar[bool] = True

    def __init__(
        self, inputs: dict[str, int], outputs: dict[str, int], into: int, code: int
    ) -> None:
        super().__init__(inputs, outputs, into, code)
        width_in, width_out = sum(inputs.values()), sum(outputs.values())
        self.masked = len(inputs) == 1 and inputs == {k: 2 * v for k, v in outputs.items()}
        self.centred = self.masked or inputs == outputs
        self.decoder = nn.Parameter(F.normalize(torch.randn(code, width_out), dim=1))
        alike = self.centred and into == code
        start = self.decoder if alike else F.normalize(torch.randn(into, width_in), dim=1)
        if alike and self.masked:
            start = torch.cat([start, torch.zeros_like(start)], 1)
        self.encoder = nn.Parameter(start.detach().clone())
        self.encoder_bias = nn.Parameter(torch.zeros(into))
        self.centre = nn.Parameter(torch.zeros(width_out))

    @property
    def leads(self) -> Leads:
        """None that could be centred: the centre is a parameter of its own."""
        return ()

    @property
    def pairs(self) -> Pairs:
        """No layers that could be trained one by one."""
        return ()

    def outer(self, hidden: dict[str, Tensor], count: int) -> dict[str, Tensor]:
        """Never asked: there are no pairs."""
        raise AssertionError

    @torch.no_grad()
    def begin(self, hidden: dict[str, Tensor]) -> None:
        """Start the centre at the geometric median of a sample of rows, a gap being the mean."""
        if self.centred:
            rows = join(hidden, self.inputs)[:, : len(self.centre)]
            self.centre.copy_(geometric_median(rows))

    def encode(self, hidden: dict[str, Tensor], present: Mapping[str, Tensor]) -> Tensor:
        """Measure along the encoder's directions."""
        return F.linear(self.offset(hidden), self.encoder, self.encoder_bias)

    def offset(self, hidden: dict[str, Tensor]) -> Tensor:
        """Hidden states side by side ``[B, inputs]``, as seen from the centre."""
        joined = join(hidden, self.inputs)
        if not self.masked:
            return joined - self.centre if self.centred else joined
        values, mask = joined.chunk(2, 1)
        return torch.cat([values - self.centre * mask, mask], 1)

    def decode(self, z: Tensor) -> dict[str, Tensor]:
        """Add up directions; where no gradient is asked for, only those that are active are read.

        So the sum of a row is the same to the last bit, whatever rows come along.
        """
        if torch.is_grad_enabled():
            return part(torch.addmm(self.centre, z, self.decoder), self.outputs)
        rows, latents = z.nonzero(as_tuple=True)
        starts = rows.bincount(minlength=len(z)).cumsum(0).roll(1)
        starts[:1] = 0
        weights = z[rows, latents].to(self.decoder.dtype)
        summed = F.embedding_bag(
            latents, self.decoder, starts, mode="sum", per_sample_weights=weights
        )
        return part(summed + self.centre, self.outputs)

    def linear_path(self) -> LinearPath | None:
        """Return None: few directions at a time are no principal components."""
        return None

    def last_bias(self) -> Tensor:
        """Return the centre."""
        return self.centre

    @torch.no_grad()
    def project(self) -> None:
        """Take from the gradient of each direction what would only change its length."""
        grad = self.decoder.grad
        if grad is not None:
            grad.sub_(self.decoder * (grad * self.decoder).sum(1, keepdim=True))

    @torch.no_grad()
    def constrain(self) -> None:
        """Bring directions back to unit norm."""
        F.normalize(self.decoder, dim=1, out=self.decoder)


@torch.no_grad()
def geometric_median(rows: Tensor) -> Tensor:
    r"""Point ``[d]`` of least summed distance to rows ``[n, d]``, by Weiszfeld's iteration.

    .. math:: m = \arg\min_m \sum_b \lVert x_b - m \rVert, \qquad
              m \leftarrow \frac{\sum_b x_b / \lVert x_b - m \rVert}
                                {\sum_b 1 / \lVert x_b - m \rVert}

    Few rows far away hardly move it. A row that it meets keeps a finite weight.

    Source: Weiszfeld, Sur le point pour lequel la somme des distances de n points donnés est
    minimum, 1937.

    >>> geometric_median(torch.tensor([[0.0], [1.0], [100.0]])).round(decimals=3)
    tensor([1.])
    """
    exact = rows.double()
    found = exact.mean(0)
    spread = float((exact - found).norm(dim=1).mean())
    for _ in range(ROUNDS):
        weight = (exact - found).norm(dim=1).clamp_min(max(CLOSE * spread, 1e-300)).reciprocal()
        before, found = found, weight @ exact / weight.sum()
        if float((found - before).norm()) <= CLOSE * spread:
            break
    return found.to(rows.dtype)
