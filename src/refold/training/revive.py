"""Latents of a dictionary that no longer fire begin anew."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from refold.fusion import Dictionary
from refold.model import Model
from refold.penalties import Resample
from refold.types import Batch

SHARE = 0.2  # of the mean norm of living encoder rows that one begins with
SEEN = 8192  # rows to choose from, at most
LAST = 0.75  # share of the run after which no latent begins anew: it would not be done learning

Forget = Callable[[str, Tensor], None]


@torch.no_grad()
def revive(model: Model, rows: Batch, forget: Forget, generator: torch.Generator) -> Tensor:
    r"""Have dead latents begin at rows that the model rebuilds badly; return which, ``[m]``.

    .. math:: p_b \propto \ell_b^2, \qquad D_i = \frac{x_b - m}{\lVert x_b - m \rVert}, \qquad
              E_i = \tfrac15 \, \overline{\lVert E_\text{alive} \rVert} \, D_i, \qquad b_i = 0

    For a model with the penalty ``resample``, which counts who is dead; others are left alone, and
    none is given anew in the last quarter of the run. ``forget`` is told, by the name of a
    parameter, of which rows an optimiser is to forget what it knew. A latent that begins anew has
    been idle for no rows.

    Source: Bricken et al., Towards Monosemanticity, 2023, appendix on neuron resampling.
    """
    counts, body = next((p for p in model.penalties if isinstance(p, Resample)), None), model.fusion
    if counts is None or counts.progress > LAST or not isinstance(body, Dictionary):
        return torch.zeros(0, dtype=torch.int64)
    dead, sample = counts.dead, rows.rows(slice(0, None, -(-len(rows) // SEEN)))
    if not len(dead):
        return dead
    training = model.training
    output = model.eval()(sample)
    model.train(training)
    hidden = {k: model.backbones[k].encode(sample.x[k], sample.observed[k])[0] for k in body.inputs}
    drawn = torch.multinomial(
        output.score.detach().double().clamp_min(0).square().cpu() + 1e-300,
        len(dead), replacement=True, generator=generator,
    ).to(dead.device)  # fmt: skip
    start = F.normalize(body.offset(hidden)[drawn], dim=1)
    if body.masked:
        start[:, len(body.centre) :] = 0.0
        start = F.normalize(start, dim=1)
    alive = torch.ones(body.code, dtype=torch.bool, device=dead.device).index_fill_(0, dead, False)
    norms = body.encoder.norm(dim=1)
    size = SHARE * float(norms[alive].mean() if alive.any() else norms.mean())
    body.encoder[dead] = start * size
    body.encoder_bias[dead] = 0.0
    if body.centred:
        body.decoder[dead] = start[:, : len(body.centre)]
    for parameter in ("encoder", "encoder_bias", "decoder"):
        forget(f"fusion.{parameter}", dead)
    counts.idle[dead] = 0
    return dead
