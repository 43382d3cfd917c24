"""Evidence from pictures: what is missing or too much, and not where an edge runs."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from refold import inference
from refold.data.schema import Schema
from refold.detection.base import Evidence, observed, parted, register
from refold.errors import InputError
from refold.model import Model, Output
from refold.ops.images import blur
from refold.types import Batch

SIDE = 28  # pixels of a side to one of blur
FLAT = 1e-3  # squared contrast of a picture that shows nothing


@final
@register("smoothed")
class Smoothed(Evidence):
    r"""Blurred error of a picture, over the contrast of what was expected.

    .. math:: f = \frac1{\bar f} \sum_p (G * (\hat x - x))_p^2 \Big/
                  \Big(\sum_p (G * \hat x - \overline{G * \hat x})_p^2 + \epsilon\Big)^{1/2}

    with a Gaussian :math:`G` of ``sigma`` pixels (None: a twenty-eighth of the shorter side) and
    the mean :math:`\bar f` over the training rows. Edges that run a little differently are how
    pictures of one thing differ, and leave errors of either sign side by side, which the blur takes
    out; a stroke that is missing or too much stays. Errors grow with contrast, so it divides.

    Raises :class:`InputError` where the model rebuilds no images.

    >>> import refold
    >>> x = torch.rand(100, 8, 8, generator=torch.Generator().manual_seed(0)).numpy()
    >>> ae = refold.Autoencoder(4, epochs=2, evidence=("smoothed",)).fit(x)
    >>> bool(ae.score_samples(1 - x.round()).mean() < ae.score_samples(x).mean())
    True
    """

    unit: Tensor

    def __init__(self, *, sigma: float | None = None, when: str = "always") -> None:
        super().__init__(when)
        if sigma is not None and not 0 < sigma < float("inf"):
            raise InputError(f"the blur's sigma is {sigma}; it must be above 0 pixels, and finite")
        self.sigma = sigma

    def learn(self, model: Model, rows: Batch, schema: Schema) -> None:
        """Learn the mean figure."""
        if not any(rows.x[k].dim() == 4 for k in model.rebuilt):
            raise InputError(
                "the evidence 'smoothed' is of images, and the model rebuilds none; use 'errors'"
            )
        self.keep(unit=torch.ones((), device=model.fusion.last_bias().device))
        found = [self.figures(o)[:count] for o, count in inference.outputs(model, rows, schema)]
        self.keep(unit=torch.cat(found).double().mean().clamp_min(1e-12).float())

    def figures(self, output: Output) -> Tensor:
        """Squared blurred error over contrast, summed, ``[B, 1]``; 1 of rows of gaps alone."""
        figure = self._amounts(output).sum(1, keepdim=True) / self.unit
        there = observed(output)
        return figure if there is None else figure.masked_fill(~there.any(1, keepdim=True), 1.0)

    def shares(self, output: Output) -> Tensor:
        """Each pixel's part of the sum."""
        return parted(self._amounts(output))

    def _amounts(self, output: Output) -> Tensor:
        """Squared blurred error of every rebuilt entry over contrast, 0 for what is no pixel."""
        found: list[Tensor] = []
        for name in output.model.rebuilt:
            x, seen = output.target.x[name], output.target.observed[name]
            if x.dim() != 4:
                found.append(torch.zeros_like(x.flatten(1), dtype=torch.float32))
                continue
            sigma = min(x.shape[2:]) / SIDE if self.sigma is None else self.sigma
            guess = output.model.likelihoods[name].point(output.params[name]).view_as(x)
            error = guess - x
            if seen is not None:
                error = error.masked_fill(~seen.view_as(x), 0.0)
            blurred = blur(guess, sigma)
            contrast = (blurred - blurred.mean((1, 2, 3), keepdim=True)).square().sum((1, 2, 3))
            amounts = blur(error, sigma).square().flatten(1)
            found.append(amounts / (contrast + FLAT).sqrt().unsqueeze(1))
        return torch.cat(found, 1)
