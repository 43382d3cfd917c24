"""How a field is predicted and scored: one head per kind of value."""

from refold.likelihoods.base import Likelihood, Settling, likelihoods, register
from refold.likelihoods.bernoulli import Bernoulli
from refold.likelihoods.beta import Beta
from refold.likelihoods.categorical import Categorical, SegmentedCategorical
from refold.likelihoods.divergence import Divergence
from refold.likelihoods.logistic import DiscretisedLogisticMixture, LogisticMixture
from refold.likelihoods.negative_binomial import NegativeBinomial
from refold.likelihoods.numbers import AbsoluteError, Huber, SquaredError
from refold.likelihoods.ordinal import Ordinal
from refold.likelihoods.poisson import Poisson
from refold.likelihoods.scaled import Gaussian, Laplace, Student
from refold.likelihoods.structure import StructuralSimilarity

__all__ = [
    "AbsoluteError",
    "Bernoulli",
    "Beta",
    "Categorical",
    "DiscretisedLogisticMixture",
    "Divergence",
    "Gaussian",
    "Huber",
    "Laplace",
    "Likelihood",
    "LogisticMixture",
    "NegativeBinomial",
    "Ordinal",
    "Poisson",
    "SegmentedCategorical",
    "Settling",
    "SquaredError",
    "StructuralSimilarity",
    "Student",
    "likelihoods",
    "register",
]
