"""How a field is predicted and scored: one head per kind of value."""

from refold.likelihoods.base import Likelihood, likelihoods, register
from refold.likelihoods.bernoulli import Bernoulli
from refold.likelihoods.categorical import Categorical, SegmentedCategorical
from refold.likelihoods.numbers import Gaussian, Huber, Laplace, SquaredError
from refold.likelihoods.structure import StructuralSimilarity

__all__ = [
    "Bernoulli",
    "Categorical",
    "Gaussian",
    "Huber",
    "Laplace",
    "Likelihood",
    "SegmentedCategorical",
    "SquaredError",
    "StructuralSimilarity",
    "likelihoods",
    "register",
]
