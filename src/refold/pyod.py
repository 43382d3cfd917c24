"""PyOD's manners: a detector that can stand where one of PyOD's does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Self, final, overload

import numpy as np
import scipy.special
import scipy.stats
from numpy.typing import NDArray
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted, check_random_state

from refold.data.schema import Override
from refold.errors import InputError, unknown
from refold.estimator import Autoencoder
from refold.hints import fits
from refold.latents import Latent

MOST = 0.49  # share of rows that the autoencoder can do without
METHODS = ("linear", "unify")
Scores = NDArray[np.float64]
Labels = NDArray[np.int64]


@final
class Detector(BaseEstimator):
    r"""An autoencoder as PyOD's code expects a detector: scores rise with what is unusual.

    :math:`s(x) = -` ``score_samples(x)``. With :math:`s_i` those of the ``n`` training rows, a row
    is an outlier where it lies above their quantile of ``1 - contamination``:

    .. math:: t = \operatorname{quantile}_{1 - c}(s_1, \dots, s_n), \qquad y(x) = [s(x) > t]

    PyOD itself is not needed. Frames are taken as they are, with classes, dates and gaps. The
    p-values and causes that PyOD has no place for are at ``autoencoder_.anomalies(X)``, and
    ``autoencoder_.save(path)`` keeps the model without pickle.

    Parameters
    ----------
    contamination : float
        Share of the training rows that are outliers, above 0 and at most 0.5.
    recipe, latent, fields, epochs, device
        As :class:`refold.Autoencoder` takes them.
    random_state : int, RandomState or None
        Everything random follows from it; None draws anew for every fit.
    options : dict, optional
        Further arguments of :class:`refold.Autoencoder` by name.

    Attributes
    ----------
    decision_scores_ ``[n]``, threshold_, labels_ ``[n]`` (1 for an outlier), autoencoder_,
    n_features_in_

    Raises :class:`InputError` in ``fit`` for a contamination that is no such share.

    Source: Zhao et al., PyOD: A Python Toolbox for Scalable Outlier Detection, 2019
    (arXiv:1901.01588), for the manners.

    >>> import numpy as np
    >>> X = np.random.default_rng(0).normal(size=(200, 1)) @ np.ones((1, 6))
    >>> X[:4, 0] += 5
    >>> found = Detector(0.02, recipe="pca", latent=1).fit(X)
    >>> np.flatnonzero(found.labels_).tolist(), found.predict(X[3:6]).tolist()
    ([0, 1, 2, 3], [1, 0, 0])
    """

    def __init__(
        self,
        contamination: float = 0.1,
        *,
        recipe: str | None = "anomaly",
        latent: int | str | Latent | None = None,
        fields: Mapping[str, Override] | None = None,
        epochs: int | None = None,
        device: str = "auto",
        random_state: int | np.random.RandomState | None = 0,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        self.contamination = contamination
        self.recipe = recipe
        self.latent = latent
        self.fields = fields
        self.epochs = epochs
        self.device = device
        self.random_state = random_state
        self.options = options

    def fit(self, X: Any, y: Any = None) -> Self:
        """Learn from rows and score them; ``y`` is ignored."""
        share = self.contamination
        if not fits(share, float) or not 0 < share <= 0.5:
            raise InputError(
                f"contamination is {share!r}; give the share of outliers, above 0 and at most 0.5"
            )
        own = Autoencoder(**self._arguments()).fit(X)
        self.autoencoder_ = own
        self.n_features_in_ = own.n_features_in_
        if hasattr(own, "feature_names_in_"):
            self.feature_names_in_ = own.feature_names_in_
        elif hasattr(self, "feature_names_in_"):
            del self.feature_names_in_
        self.decision_scores_ = -own.score_samples(X)
        self.threshold_ = float(np.percentile(self.decision_scores_, 100 * (1 - share)))
        self.labels_ = self._labels(self.decision_scores_)
        return self

    def fit_predict(self, X: Any, y: Any = None) -> Labels:
        """Learn from rows and say which of them are outliers, ``[n]``."""
        return self.fit(X).labels_

    def decision_function(self, X: Any) -> Scores:
        """How unusual each row is, ``[n]``; higher is more."""
        check_is_fitted(self)
        return -self.autoencoder_.score_samples(X)

    @overload
    def predict(self, X: Any, return_confidence: Literal[False] = False) -> Labels: ...
    @overload
    def predict(self, X: Any, return_confidence: Literal[True]) -> tuple[Labels, Scores]: ...
    def predict(self, X: Any, return_confidence: bool = False) -> Labels | tuple[Labels, Scores]:
        """Say which rows are outliers ``[n]``: 1, others 0; on request with the confidence."""
        scores = self.decision_function(X)
        labels = self._labels(scores)
        return (labels, self._confidence(scores)) if return_confidence else labels

    @overload
    def predict_proba(
        self, X: Any, method: str = "linear", return_confidence: Literal[False] = False
    ) -> Scores: ...
    @overload
    def predict_proba(
        self, X: Any, method: str = "linear", *, return_confidence: Literal[True]
    ) -> tuple[Scores, Scores]: ...
    def predict_proba(
        self, X: Any, method: str = "linear", return_confidence: bool = False
    ) -> Scores | tuple[Scores, Scores]:
        r"""Scores between 0 and 1 for being normal and for being an outlier, ``[n, 2]``.

        ``linear`` is the place between the smallest and the largest training score, ``unify``
        a normal's error function of the standardised score, both kept in [0, 1]:

        .. math:: \frac{s - \min_i s_i}{\max_i s_i - \min_i s_i}, \qquad
                  \operatorname{erf}\frac{s - \bar s}{\sigma_s \sqrt 2}

        They are no calibrated probabilities.

        Source: Kriegel et al., Interpreting and Unifying Outlier Scores, 2011.
        """
        if method not in METHODS:
            raise unknown("method", str(method), METHODS)
        scores, known = self.decision_function(X), self.decision_scores_
        if method == "linear":
            share = (scores - known.min()) / (np.ptp(known) or 1.0)
        else:
            share = scipy.special.erf((scores - known.mean()) / ((known.std() or 1.0) * 2**0.5))
        outlier = np.clip(share, 0.0, 1.0)
        found = np.stack([1.0 - outlier, outlier], axis=1)
        return (found, self._confidence(scores)) if return_confidence else found

    def predict_confidence(self, X: Any) -> Scores:
        r"""How often, ``[n]``, other training rows of the kind would give the same label.

        With :math:`k` of ``n`` training scores at most that of the row, :math:`c` the
        contamination and :math:`B` binomial,

        .. math:: P(y = 1) = P\big(B > n - \lfloor n c \rfloor\big), \qquad
                  B \sim \mathrm{Bin}\Big(n, \frac{1 + k}{2 + n}\Big)

        Source: Perini et al., Quantifying the Confidence of Anomaly Detectors in Their
        Example-Wise Predictions, 2020.
        """
        return self._confidence(self.decision_function(X))

    def _arguments(self) -> dict[str, Any]:
        """Arguments of the autoencoder; one that is given by name twice is an error."""
        seed = self.random_state
        if not fits(seed, int):
            seed = int(check_random_state(seed).randint(2**31 - 1))
        own = {
            "contamination": min(self.contamination, MOST),
            "recipe": self.recipe,
            "latent": self.latent,
            "fields": self.fields,
            "epochs": self.epochs,
            "device": self.device,
            "seed": seed,
        }
        options = dict(self.options or {})
        known = Autoencoder().get_params()
        for name in options:
            if name in own:
                its = "random_state" if name == "seed" else name
                raise InputError(f"options hold {name!r}; give it as {its}=... instead")
            if name not in known:
                raise unknown("option of Autoencoder", str(name), known)
        return own | options

    def _labels(self, scores: Scores) -> Labels:
        return (scores > self.threshold_).astype(np.int64)

    def _confidence(self, scores: Scores) -> Scores:
        n = len(self.decision_scores_)
        below = np.searchsorted(np.sort(self.decision_scores_), scores, side="right")
        stats: Any = scipy.stats  # whose distributions have no types
        outlier = stats.binom.sf(n - int(n * self.contamination), n, (1 + below) / (2 + n))
        return np.where(self._labels(scores) == 1, outlier, 1.0 - outlier)

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "labels_")

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.estimator_type = "outlier_detector"
        tags.input_tags.allow_nan = True
        tags.input_tags.string = True
        tags.input_tags.categorical = True
        return tags
