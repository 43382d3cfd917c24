"""How likely rows are: log p(x) by importance sampling."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from refold import inference
from refold.data.schema import Schema
from refold.errors import InputError
from refold.latents import Variational, latents
from refold.likelihoods import Bernoulli, Likelihood, likelihoods
from refold.likelihoods.beta import SQUEEZE
from refold.model import Model
from refold.types import Batch

CODES = 1 << 13  # codes that are decoded together, at most
NUMBERS = 1 << 23  # and numbers that decoders give for them
ROWS = 64  # rows whose codes are drawn together

# What a cost in nats lacks of minus a log-density, for each observed entry.
CONSTANTS: Mapping[str, float] = {
    "bernoulli": 0.0,
    "beta": math.log(SQUEEZE / (SQUEEZE - 1.0)),
    "categorical": 0.0,
    "gaussian": 0.0,
    "l1": math.log(2.0),
    "laplace": 0.0,
    "logistic_mixture": 0.0,
    "mse": 0.5 * math.log(2.0 * math.pi),
    "negative_binomial": 0.0,
    "ordinal": 0.0,
    "poisson": 0.0,
    "student": 0.0,
}


@torch.inference_mode()
def log_likelihood(model: Model, rows: Batch, schema: Schema, samples: int) -> Tensor:
    r"""Log-density of rows ``[n]`` in nats, by codes drawn from their posteriors.

    .. math:: \log p(x) \approx \log \frac1S \sum_s \frac{p(x \mid z_s)\, p(z_s)}{q(z_s \mid x)},
              \qquad z_s \sim q(z \mid x)

    On average at most :math:`\log p(x)`, and the nearer the more samples. It is of all outputs as
    far as they are observed, each in its field's own scale, without the objective's weights.
    Draws come from torch's global generator. Raises :class:`InputError` where the code has no
    posterior, or an output no density.

    Source: Burda, Grosse & Salakhutdinov 2015 (arXiv:1509.00519).
    """
    latent = model.latent
    if not isinstance(latent, Variational):
        able = ", ".join(k for k in latents if issubclass(latents[k], Variational))
        raise InputError(
            f"the likelihood of rows is not known to a model with the latent "
            f"'{latents.spec(latent).name}', whose codes follow no posterior; fit with one of "
            f"these latents: {able} (--recipe vae)"
        )
    constants = {k: constant(k, model.likelihoods[k], rows) for k in model.outputs}
    model.eval()
    device = model.fusion.last_bias().device
    width = sum(head.width for head in model.likelihoods.values())
    most = max(1, min(CODES, NUMBERS // width))
    found: list[Tensor] = []
    for start in range(0, len(rows), ROWS):
        part = rows.rows(slice(start, start + ROWS))
        target = part.to(device)
        h, beside = model.hidden(inference.guard(part, schema).to(device))
        few = max(1, most // len(part))
        total = torch.full((len(part),), -torch.inf, dtype=torch.float64, device=device)
        many, cached = Batch({}, {}), 0
        for done in range(0, samples, few):
            n = min(few, samples - done)
            z, log_q = latent.draw(h, n)
            if n != cached:
                again = torch.arange(len(part), device=device).repeat(n)
                many, cached = target.rows(again), n
            params = model.decode(z.flatten(0, 1), beside.repeated(n))
            log_p = -sum_of_costs(model, params, many, constants).view(n, -1)
            weights = log_p.double() + (latent.log_prior(z) - log_q).double()
            total = torch.logaddexp(total, torch.logsumexp(weights, 0))
        found.append((total - math.log(samples)).cpu())
    return torch.cat(found)


def sum_of_costs(
    model: Model, params: dict[str, Tensor], target: Batch, constants: Mapping[str, float]
) -> Tensor:
    """Minus the log-density of rows ``[B]`` given their codes, of what is observed of them."""
    costs: list[Tensor] = []
    for name, given in params.items():
        head, seen = model.likelihoods[name], target.observed[name]
        count = head.entries if seen is None else seen.sum(1)
        costs.append(head.nll(given, target.x[name], seen, 1.0) + constants[name] * count)
    return torch.stack(costs).sum(0)


def constant(name: str, head: Likelihood, rows: Batch) -> float:
    """Return what each cell of a field lacks; refuse costs that are of no density."""
    kind = likelihoods.spec(head).name
    if kind not in CONSTANTS:
        raise InputError(
            f"the likelihood '{kind}' of '{name}' is a cost and no density, so rows have no "
            f"log-likelihood; fit with one of: {', '.join(CONSTANTS)}"
        )
    if isinstance(head, Bernoulli):
        x, seen = rows.x[name].flatten(1), rows.observed[name]
        between = (x != 0) & (x != 1)
        between = between if seen is None else between & seen
        if bool(between.any()):
            value = float(x[between][0])
            raise InputError(
                f"'{name}' holds {value:.3g}, which a coin cannot show, so rows have no "
                f"log-likelihood under 'bernoulli'; give zeros and ones, or fit with a density of "
                f"numbers: gaussian, laplace or student"
            )
    return CONSTANTS[kind]
