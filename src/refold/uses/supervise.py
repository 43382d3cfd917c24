"""Few labels: a classifier over a fitted encoder, frozen or tuned."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self, cast, final

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedKFold, train_test_split
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted
from torch import Tensor, nn

from refold import inference
from refold.data.schema import Schema
from refold.data.sources import read
from refold.errors import InputError
from refold.training.fit import Row, fit
from refold.training.plan import Plan
from refold.types import Batch, Code
from refold.uses.encoder import EncoderModule, encoder_module, refuse_unfitted
from refold.wording import counted

if TYPE_CHECKING:
    from refold.estimator import Autoencoder

GRID = (0.01, 0.1, 1.0, 10.0, 100.0)  # of C, where cross-validation chooses it
STEPS = 600  # of tuning, where no epochs are given
ENOUGH = 200  # labels from which a share is held out of tuning, to choose the best weights
HELD = 0.15


@final
class EncoderClassifier(ClassifierMixin, BaseEstimator):
    r"""A classifier over a fitted encoder, for few labels.

    Frozen (the default), codes are scaled and scikit-learn's logistic regression is fitted on them:

    .. math:: p(y = c \mid x) = \operatorname{softmax}_c(W z / s + b), \qquad
              \min_{W, b} \; C \sum_i -\log p(y_i \mid x_i) + \tfrac12 \lVert W \rVert^2

    :math:`s` is one number, the deviation of all codes, so that they keep their proportions.
    ``tune=True`` goes on from there: a copy of the encoder and the linear head are trained together
    by cross-entropy. The Autoencoder that was given never changes.

    Parameters
    ----------
    encoder : Autoencoder
        Fitted, on rows like these; it may have seen many more, without labels.
    tune : bool
        Train a copy of the encoder as well.
    C : float or None
        Inverse of the ridge on the head; None: one of 0.01 to 100, chosen by cross-validation.
    epochs, lr, batch_size : optional
        Of tuning. Not given: about 600 steps at 1e-3, in batches of 16 and more.
    dropout : float
        Share of the code's entries left out in each step of tuning.
    seed : int
        Everything random follows from it; torch's global generator is left as it was.

    Attributes
    ----------
    classes_, n_features_in_, C_, head_ (the logistic regression), module_ (after tuning: the tuned
    encoder and head, giving logits), history_ (of tuning, a row per evaluation)

    Raises :class:`InputError` for an encoder that is not fitted, and for labels that are missing,
    of another number than the rows, or all the same.

    Source: Kumar et al., Fine-Tuning can Distort Pretrained Features and Underperform
    Out-of-Distribution, 2022 (arXiv:2202.10054), for the head first and then everything.

    >>> import numpy as np, refold
    >>> X = np.random.default_rng(0).normal(size=(200, 6))
    >>> ae = refold.Autoencoder(3, epochs=1).fit(X)
    >>> y = np.where(ae.transform(X)[:, 0] > 0, "above", "below")
    >>> few = EncoderClassifier(ae).fit(X[:30], y[:30])
    >>> few.classes_.tolist(), bool(few.score(X, y) > 0.9)
    (['above', 'below'], True)
    """

    def __init__(
        self,
        encoder: Autoencoder,
        *,
        tune: bool = False,
        C: float | None = 1.0,
        epochs: int | None = None,
        lr: float | None = None,
        batch_size: int | None = None,
        dropout: float = 0.0,
        seed: int = 0,
    ) -> None:
        self.encoder = encoder
        self.tune = tune
        self.C = C
        self.epochs = epochs
        self.lr = lr
        self.batch_size = batch_size
        self.dropout = dropout
        self.seed = seed

    def fit(self, X: Any, y: Any = None) -> Self:
        """Learn from rows and their labels, of any type that can be sorted."""
        refuse_unfitted(self.encoder)
        self._check_options()
        codes = self.encoder.transform(X).astype(np.float64)
        labels = _labels(y, len(codes))
        classes, index = np.unique(labels, return_inverse=True)
        if len(classes) < 2:
            raise InputError(
                f"y has one class, {classes[0]!r}; a classifier needs rows of two or more"
            )
        self.classes_ = classes
        for name in ("n_features_in_", "feature_names_in_"):
            if hasattr(self.encoder, name):
                setattr(self, name, getattr(self.encoder, name))
        train, held = self._parted(index)
        known = codes[train]
        self.centre_ = known.mean(0)
        self.scale_ = float(np.sqrt(np.square(known - self.centre_).mean())) or 1.0
        self.head_ = self._head(self._scaled(known), index[train])
        self.C_ = float(self.head_.C)
        self.module_: Tuned | None = None
        self.history_: list[Row] = []
        if self.tune:
            with torch.random.fork_rng():
                torch.manual_seed(self.seed)
                self._tune(self._rows(X), index, train, held)
        return self

    def predict(self, X: Any) -> NDArray[Any]:
        """Return the likeliest label of each row, ``[n]``."""
        probability = self.predict_proba(X)
        return self.classes_[probability.argmax(1)]

    def predict_proba(self, X: Any) -> NDArray[np.float64]:
        """Probability of each class, ``[n, classes]`` in the order of ``classes_``."""
        check_is_fitted(self, "classes_")
        if self.module_ is None:
            return self.head_.predict_proba(self._scaled(self.encoder.transform(X)))
        return self.module_.probabilities(self._rows(X), self.encoder.schema_)

    def _scaled(self, codes: NDArray[Any]) -> NDArray[np.float64]:
        return (codes - self.centre_) / self.scale_

    def _head(self, codes: NDArray[np.float64], index: NDArray[np.int64]) -> LogisticRegression:
        """Fit the linear head; where ``C`` is to be chosen, by cross-validation."""
        head = LogisticRegression(C=1.0 if self.C is None else self.C, max_iter=5000)
        folds = min(5, int(np.bincount(index).min()))
        if self.C is None and folds > 1:
            parts = StratifiedKFold(folds, shuffle=True, random_state=self.seed)
            search = GridSearchCV(head, {"C": GRID}, cv=parts, scoring="neg_log_loss")
            return search.fit(codes, index).best_estimator_
        return head.fit(codes, index)

    def _rows(self, X: Any) -> Batch:
        """Rows as the encoder's own schema encodes them; what is odd in them was warned of."""
        given = np.asarray(X) if isinstance(X, list) else X
        return self.encoder.schema_.encode(read(given))[0]

    def _parted(self, index: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Positions to learn from, and to choose tuned weights by where labels are enough."""
        every = np.arange(len(index))
        counts = np.bincount(index)
        few = len(index) < ENOUGH or counts.min() < 4 or HELD * len(index) < len(counts)
        if not self.tune or few:
            return every, every[:0]
        train, held = train_test_split(
            every, test_size=HELD, stratify=index, random_state=self.seed
        )
        return np.sort(train), np.sort(held)

    def _tune(
        self,
        rows: Batch,
        index: NDArray[np.int64],
        train: NDArray[np.int64],
        held: NDArray[np.int64],
    ) -> None:
        """Train encoder and head from where the frozen fit ended."""
        module = Tuned(encoder_module(self.encoder), self, self.dropout)
        rows = rows.to(module.head.weight.device)
        target = torch.from_numpy(index).to(module.head.weight.device)
        labelled = Batch({**rows.x, module.label: target}, {**rows.observed, module.label: None})
        parts = [labelled.rows(torch.from_numpy(i).to(target.device)) for i in (train, held)]
        plan = Plan.choose(
            len(train),
            epochs=self.epochs if self.epochs is not None else self._epochs(len(train)),
            lr=1e-3 if self.lr is None else self.lr,
            batch_size=self.batch_size,
            patience=None if len(held) else 10**9,
        )
        chosen_on = parts[1] if len(held) else None
        run = fit(cast(Any, module), parts[0], chosen_on, plan, seed=self.seed)
        self.module_, self.history_ = module, run.history

    def _epochs(self, rows: int) -> int:
        batch = Plan.choose(rows, batch_size=self.batch_size).batch_size
        return max(3, round(STEPS / -(-rows // batch)))

    def _check_options(self) -> None:
        if self.C is not None and not 0 < self.C < float("inf"):
            raise InputError(f"C is {self.C}; it must be above 0 and finite, or None")
        if not 0 <= self.dropout < 1:
            raise InputError(f"dropout is {self.dropout}; give a share in [0, 1)")
        if self.lr is not None and not 0 < self.lr < float("inf"):
            raise InputError(f"lr is {self.lr}; it must be above 0 and finite")
        for name, least in (("epochs", 0), ("batch_size", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise InputError(f"{name} is {value}; it must be {least} or more")

    def __sklearn_clone__(self) -> EncoderClassifier:
        """Copy the options and keep the fitted encoder: a copy of it would know nothing."""
        return type(self)(**self.get_params(deep=False))

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        tags.input_tags.string = True
        tags.input_tags.categorical = True
        return tags


@dataclass(frozen=True)
class Judged:
    """What a pass of :class:`Tuned` costs, by name: a scalar and the factor to its mean."""

    costs: dict[str, tuple[Tensor, float]]
    code: Code | None = None  # no unit is counted as dead: they are the encoder's, not this loss's


@final
class Tuned(nn.Module):
    """An encoder and a linear head that are trained together: rows to logits ``[B, classes]``.

    It starts where the frozen classifier ended: with its centre, scale, weights and biases.
    """

    def __init__(self, encoder: EncoderModule, frozen: EncoderClassifier, dropout: float) -> None:
        super().__init__()
        weight, bias = frozen.head_.coef_, frozen.head_.intercept_
        if len(weight) == 1:  # of two classes, scikit-learn keeps the log-odds of the second
            weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
        self.encoder, self.dropout = encoder, nn.Dropout(dropout)
        encoder.latent.relaxed = False  # its constraint is no part of what is learnt here
        self.head = nn.Linear(weight.shape[1], weight.shape[0])
        self.centre = nn.Buffer(torch.from_numpy(frozen.centre_).float())
        self.scale = frozen.scale_
        with torch.no_grad():
            self.head.weight.copy_(torch.from_numpy(weight))
            self.head.bias.copy_(torch.from_numpy(bias))
        self.label = "label"
        while self.label in encoder.names:
            self.label += "_"
        self.to(next(encoder.parameters()).device)

    def train(self, mode: bool = True) -> Tuned:
        """Train with the codes that :meth:`probabilities` uses: the latent stays as in use."""
        super().train(mode)
        self.encoder.latent.eval()
        return self

    def logits(self, batch: Batch) -> Tensor:
        """Logits ``[B, classes]`` of a batch as the schema encodes it."""
        z = (self.encoder.code(batch) - self.centre) / self.scale
        return self.head(self.dropout(z))

    def forward(self, batch: Batch, target: Batch) -> Judged:
        """Cross-entropy of the labels of ``target``."""
        cost = F.cross_entropy(self.logits(batch), target.x[self.label])
        return Judged({"cross_entropy": (cost, 1.0)})

    def set_progress(self, share: float) -> None:
        """Do nothing: no part here has a warm-up."""

    def weights(self) -> dict[str, float]:
        """Return nothing: there is one cost."""
        return {}

    @torch.inference_mode()
    def probabilities(self, rows: Batch, schema: Schema) -> NDArray[np.float64]:
        """Probability of each class ``[n, classes]``, the same whatever rows come along."""
        self.eval()
        device = self.head.weight.device
        found = [
            self.logits(inference.guard(part, schema).to(device))[:count].double().softmax(1)
            for part, count in inference.portions(rows)
        ]
        return torch.cat(found).cpu().numpy()


def _absent(label: Any) -> bool:
    try:
        return label is None or bool(label != label)
    except TypeError:  # a missing value of pandas' own says neither yes nor no
        return True


def _labels(y: Any, rows: int) -> NDArray[Any]:
    """One label per row, none of them missing."""
    if y is None:
        raise InputError("y is missing: a classifier needs one label per row; give fit(X, y)")
    labels = np.asarray(y)
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1:
        raise InputError(f"y has shape {labels.shape}; expected one label per row, shape (n,)")
    if len(labels) != rows:
        raise InputError(
            f"y has {len(labels)} labels for {rows} rows; give one label per row, or leave rows "
            f"without a label out of X"
        )
    missing = np.array([_absent(v) for v in labels.tolist()])
    if missing.any():
        raise InputError(
            f"y is missing in {counted(int(missing.sum()), 'row')}, first in row "
            f"{int(missing.argmax())}; leave such rows out of X and y"
        )
    try:
        check_classification_targets(labels)
        np.unique(labels)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"y is {labels.dtype} with values such as {labels[0]!r}, which are no classes; give "
            f"text or whole numbers, all of one type"
        ) from error
    return labels
