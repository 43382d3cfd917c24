"""Every field an expert that gives a normal distribution of the code; products and mixtures."""

from __future__ import annotations

from itertools import product as choices
from typing import final

import torch
from torch import Tensor

from refold.backbones.layers import Style
from refold.errors import InputError
from refold.fusion.base import register
from refold.fusion.towers import Stages, Towers

MOST = 6  # fields of a mixture over subsets, of which there are then 63
RANGE = 12.0  # log-variances lie between its negative and itself, as the Gaussian latent's do


@final
@register("poe")
class ProductOfExperts(Towers):
    r"""The product of the fields' normal distributions and of the standard normal prior.

    .. math:: q(z \mid x) \propto \mathcal{N}(z; 0, 1) \prod_{k \in P}
              \mathcal{N}(z; \mu_k, \sigma_k^2): \qquad
              \sigma^{-2} = 1 + \sum_{k \in P} \sigma_k^{-2}, \quad
              \mu = \sigma^2 \sum_{k \in P} \sigma_k^{-2} \mu_k

    A field's own dense layers of widths ``hidden`` end in :math:`\mu_k, \log \sigma_k^2`, of which
    the latter is kept within [-12, 12]. Any subset :math:`P` of the fields gives a code, the empty
    one the prior itself. An expert that never met its field alone need not say much there: hide
    fields in training, so that every one learns to speak for itself.

    ``[B, into]`` is :math:`(\mu, \log \sigma^2)`. Raises :class:`InputError` where the latent is
    not Gaussian.

    Source: Wu & Goodman, Multimodal Generative Models for Scalable Weakly-Supervised Learning, 2018
    (arXiv:1802.05335), without their sum of bounds over subsets of the fields.

    >>> body = ProductOfExperts({"a": 3, "b": 2}, {"a": 3}, 4, 2)
    >>> nothing = torch.zeros(1, dtype=torch.bool)
    >>> h = body.encode(
    ...     {"a": torch.ones(1, 3), "b": torch.ones(1, 2)}, {"a": nothing, "b": nothing}
    ... )
    >>> bool((h == 0).all())
    True
    """

    def __init__(
        self,
        inputs: dict[str, int],
        outputs: dict[str, int],
        into: int,
        code: int,
        *,
        hidden: Stages = (),
        mirror: Stages | None = None,
        activation: str = "relu",
        norm: str = "none",
        dropout: float = 0.0,
        init: str = "auto",
    ) -> None:
        check_gaussian("poe", into, code)
        style = Style(activation, norm, dropout, init)
        super().__init__(inputs, outputs, into, code, into, hidden, mirror, style)

    def fuse(self, features: Tensor, seen: Tensor | None) -> Tensor:
        """Multiply what is there and the prior."""
        return product(*experts(features), seen)


@final
@register("moe")
class MixtureOfExperts(Towers):
    r"""The mixture of the present fields' normal distributions, with equal weights.

    .. math:: q(z \mid x) = \frac{1}{|P|} \sum_{k \in P} \mathcal{N}(z; \mu_k, \sigma_k^2)

    In training each row takes the expert of one present field, drawn uniformly from torch's global
    generator. In evaluation it takes the mixture's own mean and variance:

    .. math:: \mu = \tfrac{1}{|P|} \sum_k \mu_k, \qquad
              \sigma^2 = \tfrac{1}{|P|} \sum_k \bigl(\sigma_k^2 + (\mu_k - \mu)^2\bigr)

    The latent charges the divergence of what it is given. In training this is an unbiased draw of
    the experts' mean divergence from the prior, which is no less than that of the mixture, because
    the divergence is convex; with it the objective is a bound on the evidence. In evaluation it is
    the divergence of the normal distribution with the mixture's moments, which is no more than that
    of the mixture, because no other with these moments has as much entropy. Where nothing is there,
    the prior is given. Every expert learns to rebuild all fields from its own alone; where experts
    disagree, the mean of the mixture is a code between theirs that training never met.

    ``[B, into]`` is a mean and a log-variance, kept within [-12, 12] for each expert. Raises
    :class:`InputError` where the latent is not Gaussian.

    Source: Shi et al., Variational Mixture-of-Experts Autoencoders for Multi-Modal Deep Generative
    Models, 2019 (arXiv:1911.03393), who take a sample of every expert in place of one at random,
    and weigh them by importance.

    >>> body = MixtureOfExperts({"a": 3, "b": 2}, {"a": 3}, 4, 2)
    >>> body.encode({"a": torch.ones(5, 3), "b": torch.ones(5, 2)}, {}).shape
    torch.Size([5, 4])
    """

    def __init__(
        self,
        inputs: dict[str, int],
        outputs: dict[str, int],
        into: int,
        code: int,
        *,
        hidden: Stages = (),
        mirror: Stages | None = None,
        activation: str = "relu",
        norm: str = "none",
        dropout: float = 0.0,
        init: str = "auto",
    ) -> None:
        check_gaussian("moe", into, code)
        style = Style(activation, norm, dropout, init)
        super().__init__(inputs, outputs, into, code, into, hidden, mirror, style)

    def fuse(self, features: Tensor, seen: Tensor | None) -> Tensor:
        """Draw one expert, or take the mixture's moments."""
        mean, log_variance = experts(features)
        there = all_of(features) if seen is None else seen
        if not self.training:
            return moments(mean, log_variance.exp(), there)
        chosen = draw(there).view(-1, 1, 1).expand(-1, 1, self.code)
        both = [h.gather(1, chosen).squeeze(1) for h in (mean, log_variance)]
        return torch.cat(both, 1) * there.any(1, keepdim=True).to(mean.dtype)


@final
@register("mopoe")
class MixtureOfProducts(Towers):
    r"""The mixture, with equal weights, of products of experts over all subsets of present fields.

    .. math:: q(z \mid x) = \frac{1}{2^{|P|} - 1} \sum_{\emptyset \ne S \subseteq P} q_S(z), \qquad
              q_S(z) \propto \mathcal{N}(z; 0, 1) \prod_{k \in S} \mathcal{N}(z; \mu_k, \sigma_k^2)

    It holds :class:`ProductOfExperts` (the subset of all) and learns, like
    :class:`MixtureOfExperts`, to do without any field. In training each row takes one subset's
    product, drawn uniformly from torch's global generator; in evaluation the mixture's own mean and
    variance. The divergence charged is related to the mixture's as in :class:`MixtureOfExperts`.

    The prior is an expert in every product, as in ``poe``, so that no product is wider than the
    prior and the empty subset, which counts only where nothing is there, is the prior itself. (The
    paper's products are of fields alone; its authors' code has the prior in that of all fields.)
    Raises :class:`InputError` where the latent is not Gaussian, or for more than six inputs.

    Source: Sutter, Daunhawer & Vogt, Generalized Multimodal ELBO, 2021 (arXiv:2105.02470).

    >>> body = MixtureOfProducts({"a": 3, "b": 2}, {"a": 3}, 4, 2)
    >>> body.subsets.tolist()
    [[False, True], [True, False], [True, True]]
    """

    subsets: Tensor

    def __init__(
        self,
        inputs: dict[str, int],
        outputs: dict[str, int],
        into: int,
        code: int,
        *,
        hidden: Stages = (),
        mirror: Stages | None = None,
        activation: str = "relu",
        norm: str = "none",
        dropout: float = 0.0,
        init: str = "auto",
    ) -> None:
        check_gaussian("mopoe", into, code)
        if len(inputs) > MOST:
            raise InputError(
                f"the fusion 'mopoe' goes through every subset of the inputs, and {len(inputs)} "
                f"have {2 ** len(inputs) - 1:,}; it takes at most {MOST} inputs: use the fusion "
                f"'poe', or pack columns into fewer fields"
            )
        style = Style(activation, norm, dropout, init)
        super().__init__(inputs, outputs, into, code, into, hidden, mirror, style)
        members = list(choices([False, True], repeat=len(inputs)))[1:]
        self.register_buffer("subsets", torch.tensor(members), persistent=False)

    def fuse(self, features: Tensor, seen: Tensor | None) -> Tensor:
        """Draw one subset's product, or take the mixture's moments."""
        mean, log_variance = experts(features)
        there = all_of(features) if seen is None else seen
        # [B, S]: subsets that lack none of their fields.
        whole = (there.unsqueeze(1) | ~self.subsets).all(2)
        if self.training:
            return product(mean, log_variance, there & self.subsets[draw(whole)])
        precision = (-log_variance).exp()
        member = self.subsets.to(precision.dtype)
        variance = 1.0 / (1.0 + member @ precision)
        return moments(variance * (member @ (precision * mean)), variance, whole)


def experts(features: Tensor) -> tuple[Tensor, Tensor]:
    """``[B, K, 2 D]`` to means and log-variances ``[B, K, D]``, the latter within bounds."""
    mean, log_variance = features.chunk(2, 2)
    return mean, log_variance.clamp(-RANGE, RANGE)


def product(mean: Tensor, log_variance: Tensor, seen: Tensor | None) -> Tensor:
    """Mean and log-variance ``[B, 2 D]`` of the product of the prior and of what is there."""
    precision = (-log_variance).exp()
    if seen is not None:
        precision = precision * seen.unsqueeze(2).to(precision.dtype)
    total = precision.sum(1)
    return torch.cat([(precision * mean).sum(1) / (1.0 + total), -total.log1p()], 1)


def moments(mean: Tensor, variance: Tensor, seen: Tensor) -> Tensor:
    """Mean and log-variance ``[B, 2 D]`` of a mixture of ``[B, C, D]`` by ``seen`` ``[B, C]``.

    Its parts have equal weights; where there is none, it is the standard normal.
    """
    weight = seen.to(mean.dtype)
    weight = (weight / weight.sum(1, keepdim=True).clamp_min(1.0)).unsqueeze(2)
    middle = (weight * mean).sum(1)
    spread = (weight * (variance + (mean - middle.unsqueeze(1)).square())).sum(1)
    spread = torch.where(seen.any(1, keepdim=True), spread, 1.0)
    return torch.cat([middle, spread.log()], 1)


def draw(seen: Tensor) -> Tensor:
    """Position ``[B]`` of one of those that are there ``[B, C]``, each as likely; 0 without any."""
    return torch.rand(seen.shape, device=seen.device).masked_fill(~seen, -1.0).argmax(1)


def all_of(features: Tensor) -> Tensor:
    """Say of ``[B, K, C]`` that every field is there: ``[B, K]``."""
    return torch.ones(features.shape[:2], dtype=torch.bool, device=features.device)


def check_gaussian(name: str, into: int, code: int) -> None:
    """Raise where the latent does not take a mean and a log-variance for every number it gives."""
    if into != 2 * code:
        raise InputError(
            f"the fusion '{name}' gives a mean and a log-variance for each number of the code, "
            f"{2 * code} for {code}, where the latent takes {into}; use the latent 'gaussian', as "
            f"the recipe 'vae' does, or the fusion 'concat'"
        )
