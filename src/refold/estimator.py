"""The scikit-learn face: fit, transform, reconstruct, score, sample, save."""

from __future__ import annotations

import warnings
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self, get_type_hints

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils.validation import (
    check_is_fitted,
    validate_data,
)

from refold import archive, inference, modelfile
from refold.assemble import Wishes, assemble
from refold.data.containers import container, frame
from refold.data.corruptions import Corruption, corruptions
from refold.data.schema import Override, Schema
from refold.data.sources import read
from refold.errors import InputError, unknown
from refold.hints import expectation, fits
from refold.latents import Latent
from refold.penalties import Penalty
from refold.table import Table
from refold.training.fit import Progress, Watch, fit
from refold.training.plan import Plan
from refold.training.start import can_start_pca, solved_by_pca, start_constant, start_pca
from refold.types import Batch
from refold.uses.anomaly import Calibration
from refold.uses.inspect import quality, squared_errors

MOST = 1_000_000_000  # epochs, rows of a batch, evaluations: beyond, something was mistyped
SMALLEST = 20  # rows below which none are held out


class InputWarning(UserWarning):
    """The input had to be handled: values never seen, columns absent."""


class Autoencoder(TransformerMixin, BaseEstimator):
    """Learns to fold rows into a small code and to unfold it again.

    Parameters
    ----------
    latent : int, str or Latent, optional
        Size of the code, a latent by name (``"topk(size=64, k=8)"``), or a latent object. Not
        given: as many numbers as principal components keep 90 % of the variance.
    recipe : str, optional
        A named composition, see :func:`refold.recipes`. Not given: ``"conv"`` for large images,
        else ``"dense"``.
    hidden : tuple of int, optional
        Widths of the dense layers, mirrored in the decoder; ``()`` is linear.
    fields : dict, optional
        Kind of a column by name (``{"zip": "categorical", "id": "ignore"}``), or a field object.
    fusion : str, optional
        Options of the dense body: ``"concat(activation='gelu', norm='layer', dropout=0.1)"``, and
        ``mirror=(64, 256)`` for a decoder of other widths.
    corruption : str or Corruption, optional
        Noise on the input in training: ``"gaussian(std=0.3)"``, ``"masking(fraction=0.25)"``.
    penalties : sequence, optional
        Further costs, by name or object.
    weights : "balanced", "equal" or dict
        Share of each field in the objective: each column equal at the start, each by its own
        cost, or numbers by field name.
    epochs, batch_size, lr, patience : optional
        Chosen from the number of rows where not given; an epoch is one pass over the rows.
    optimizer : str
        Any optimiser of torch, in lower case, with options: ``"sgd(momentum=0.9)"``.
    schedule : str, optional
        ``cosine`` (with warm-up, the default), ``constant``, ``linear``, ``step``,
        ``exponential``, ``onecycle``, ``cyclic`` or ``plateau``.
    validation : float
        Share of the rows held out to choose the best weights and to calibrate scores; below 20
        rows none are.
    precision : "auto", "float32" or "bfloat16"
        Number format of training; "auto" is single precision.
    device : str
        ``"auto"`` takes an accelerator where there is one.
    seed : int
        Everything random follows from it; torch's global generator is left as it was.
    verbose : int
        1 prints a line per evaluation.

    Attributes
    ----------
    model_, schema_, spec_, plan_, history_, quality_, calibration_, reasons_, notes_

    Examples
    --------
    >>> import numpy as np
    >>> X = np.random.default_rng(0).normal(size=(200, 3)) @ np.ones((3, 8))
    >>> ae = Autoencoder(latent=2, epochs=2).fit(X)
    >>> ae.transform(X).shape, ae.reconstruct(X).shape
    ((200, 2), (200, 8))
    """

    def __init__(
        self,
        latent: int | str | Latent | None = None,
        *,
        recipe: str | None = None,
        hidden: Sequence[int] | None = None,
        fields: Mapping[str, Override] | None = None,
        fusion: str | None = None,
        corruption: str | Corruption | None = None,
        penalties: Sequence[str | Penalty] = (),
        weights: str | Mapping[str, float] = "balanced",
        epochs: int | None = None,
        batch_size: int | None = None,
        optimizer: str = "adamw",
        lr: float | None = None,
        schedule: str | None = None,
        validation: float = 0.1,
        patience: int | None = None,
        precision: str = "auto",
        device: str = "auto",
        seed: int = 0,
        verbose: int = 0,
    ) -> None:
        self.latent = latent
        self.recipe = recipe
        self.hidden = hidden
        self.fields = fields
        self.fusion = fusion
        self.corruption = corruption
        self.penalties = penalties
        self.weights = weights
        self.epochs = epochs
        self.batch_size = batch_size
        self.optimizer = optimizer
        self.lr = lr
        self.schedule = schedule
        self.validation = validation
        self.patience = patience
        self.precision = precision
        self.device = device
        self.seed = seed
        self.verbose = verbose

    # ------------------------------------------------------------------ learning

    def fit(self, X: Any, y: Any = None, *, watch: Watch | None = None) -> Self:
        """Learn from rows; ``y`` is ignored. ``watch`` is called with the progress."""
        self._check_options()
        table = self._read(X, fresh=True)
        if len(table) < 2:
            raise InputError(
                f"got {len(table)} sample (n_samples = {len(table)}): a minimum of 2 rows is "
                f"required to learn from; give more rows"
            )
        device = self._device()
        with seeded(self.seed):
            self._learn(table, device, watch)
        return self

    def _learn(self, table: Table, device: torch.device, watch: Watch | None) -> None:
        train_rows, held_rows = split(len(table), self.validation, self.seed)
        self.schema_ = Schema.fit(table, train_rows, self.fields)
        everything, notes = self.schema_.encode(table)
        train = everything.rows(torch.from_numpy(train_rows)).to(device)
        held = everything.rows(torch.from_numpy(held_rows)) if len(held_rows) else None
        plan = Plan.choose(
            len(train),
            epochs=self.epochs,
            batch_size=self.batch_size,
            lr=self.lr,
            optimizer=self.optimizer,
            schedule=self.schedule,
            patience=self.patience,
        )
        chosen = assemble(self.schema_, train, self._wishes())
        self.spec_, self.recipe_ = chosen.spec, chosen.recipe
        self.model_ = self.spec_.build(self.schema_).to(device)
        start_constant(self.model_, train)
        reasons = list(chosen.reasons)
        noise = self.spec_.corruption
        solved = solved_by_pca(self.model_, everything) and noise is None and self.epochs is None
        if can_start_pca(self.model_):
            start_pca(self.model_, train, chosen.principal)
        if solved:
            plan = plan.without_steps()
            reasons.append("no training steps: the principal components are the optimum")
        self.plan_ = plan
        self.run_ = fit(
            self.model_,
            train,
            None if held is None else held.to(device),
            plan,
            corruption=None if noise is None else corruptions.build(noise),
            seed=self.seed,
            bfloat16=self.precision == "bfloat16",
            watch=watch if watch is not None else self._print if self.verbose else None,
        )
        self.history_ = self.run_.history
        judged = everything.rows(torch.from_numpy(train_rows)) if held is None else held
        self.quality_ = quality(self.model_, judged, self.schema_, chosen.principal)
        self.calibration_ = Calibration.of(self.model_, judged, self.schema_, held is not None)
        if solved:
            # Held-out rows have served to judge; the closed form then takes them in as well.
            again = assemble(self.schema_, everything.to(device), self._wishes())
            start_pca(self.model_, everything.to(device), again.principal)
            self.calibration_ = self.calibration_.with_codes(self.model_, judged, self.schema_)
        self.reasons_, self.notes_ = tuple(reasons), (*table.notes, *notes)
        self.n_rows_ = len(table)
        if self.run_.stopped == "interrupted":
            warnings.warn("training was interrupted: the best model so far is kept", stacklevel=4)

    # ------------------------------------------------------------------ using

    def transform(self, X: Any) -> NDArray[np.float32]:
        """Codes of rows, ``[n, d]`` in single precision; deterministic."""
        check_is_fitted(self)
        rows = self._encode(self._read(X))
        return inference.embed(self.model_, rows, self.schema_).float().numpy()

    @torch.inference_mode()
    def inverse_transform(self, X: Any) -> Any:
        """Rows of codes, in the container, columns and types of the training data."""
        check_is_fitted(self)
        z = torch.as_tensor(np.asarray(X, dtype=np.float32))
        if z.ndim != 2 or z.shape[1] != self.spec_.size:
            raise InputError(
                f"codes have shape {tuple(z.shape)}; expected (n, {self.spec_.size}), as transform "
                f"gives them"
            )
        parts = [inference.points(self.model_, p) for p in inference.decode(self.model_, z)]
        return self._container().rebuild(self.schema_.decode(inference.joined(parts)))

    @torch.inference_mode()
    def reconstruct(self, X: Any) -> Any:
        """Rows as the model sees them, every cell, missing ones too; like ``X`` in all else."""
        check_is_fitted(self)
        table = self._read(X)
        parts = [
            {k: v[:count] for k, v in inference.points(self.model_, o.params).items()}
            for o, count in inference.outputs(self.model_, self._encode(table), self.schema_)
        ]
        return table.container.rebuild(self.schema_.decode(inference.joined(parts), table))

    @torch.inference_mode()
    def score_samples(self, X: Any) -> NDArray[np.float64]:
        """How normal each row is, ``[n]``: minus its cost in nats; higher is more normal."""
        check_is_fitted(self)
        scores = [
            o.score[:count].double().cpu()
            for o, count in inference.outputs(
                self.model_, self._encode(self._read(X)), self.schema_
            )
        ]
        return -torch.cat(scores).numpy()

    def score(self, X: Any, y: Any = None) -> float:
        """Mean of :meth:`score_samples`, so that a search can maximise it."""
        return float(self.score_samples(X).mean())

    def anomalies(self, X: Any, alpha: float = 0.01) -> Any:
        """Judge each row: ``score``, ``p_value``, ``is_anomaly`` and ``cause``, as a frame.

        ``p_value`` is the rank of the row's score among those of held-out rows; a row is an
        anomaly where it is at most ``alpha``; a warning says when so few rows were held out that
        none can be. ``cause`` is the column, entry or pixel with the largest share of the score.
        """
        table = self._read(X)
        return frame(self.judge(table, alpha), table.container)

    def judge(self, X: Any, alpha: float = 0.01) -> dict[str, NDArray[np.generic]]:
        """Columns of :meth:`anomalies` as plain arrays."""
        check_is_fitted(self)
        if not 0 < alpha < 1:
            raise InputError(f"alpha is {alpha}; it must lie between 0 and 1")
        least, compared = self.calibration_.smallest, len(self.calibration_.scores)
        if least > alpha:
            warnings.warn(
                f"no row can be an anomaly at alpha {alpha:g}: {compared} rows to compare with "
                f"give p-values from {least:.2g}; use a larger alpha or fit on more rows",
                InputWarning,
                stacklevel=2,
            )
        rows = self._encode(self._read(X))
        return self.calibration_.judge(self.model_, rows, self.schema_, alpha)

    def squared_error(self, X: Any) -> float:
        """Mean over rows of the squared reconstruction error, in the model's own scale.

        Standard deviations for columns and vectors, [0, 1] for pixels; classes as indicators.
        """
        check_is_fitted(self)
        rows = self._encode(self._read(X))
        return float(squared_errors(self.model_, rows, self.schema_).mean())

    def sample(self, n: int = 1, seed: int | None = None) -> Any:
        """Draw ``n`` new rows, in the container, columns and types of the training data.

        The same ``seed`` (None: the estimator's) gives the same rows. Raises an error that names
        the latents that can, where the model's cannot.
        """
        check_is_fitted(self)
        if n < 1:
            raise InputError(f"asked for {n} samples; ask for 1 or more")
        with seeded(self.seed if seed is None else seed):
            z = self.model_.latent.sample(n)
            parts = [
                inference.draws(self.model_, p, self.schema_)
                for p in inference.decode(self.model_, z)
            ]
        return self._container().rebuild(self.schema_.decode(inference.joined(parts)))

    def get_feature_names_out(self, input_features: Any = None) -> NDArray[np.object_]:
        """Names of the code's entries: ``latent0``, ``latent1``, ..."""
        check_is_fitted(self)
        return np.array([f"latent{i}" for i in range(self.spec_.size)], dtype=object)

    # ------------------------------------------------------------------ keeping

    def save(self, path: str | Path) -> None:
        """Write a model folder; an existing model there is replaced in one step."""
        check_is_fitted(self)
        modelfile.save(path, archive.pack(self))

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a model folder; nothing in it is executed. Errors name what is wrong with it."""
        saved = modelfile.load(path)
        ae = cls(**archive.arguments(saved))
        archive.unpack(saved, ae)
        return ae

    # ------------------------------------------------------------------ inside

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        tags.input_tags.string = True
        tags.input_tags.categorical = True
        tags.transformer_tags.preserves_dtype = ["float32"]
        return tags

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "model_")

    def _read(self, X: Any, fresh: bool = False) -> Table:
        """Rows as columns; arrays pass scikit-learn's own checks first."""
        if isinstance(X, Table) and not fresh:
            return X
        if isinstance(X, np.ndarray | list) and np.ndim(X) <= 2:
            checked: Any = X
            return read(
                validate_data(
                    self, checked, reset=fresh, dtype="numeric", ensure_all_finite="allow-nan"
                )
            )
        table = X if isinstance(X, Table) else read(X)
        if fresh:
            for name in ("n_features_in_", "feature_names_in_"):
                if hasattr(self, name):
                    delattr(self, name)
            self.n_features_in_ = len(table.columns)
            if not any(isinstance(c, np.ndarray) for c in table.columns.values()):
                self.feature_names_in_ = np.array(list(table.columns), dtype=object)
        return table

    def _encode(self, table: Table) -> Batch:
        if len(table) == 0:
            raise InputError("the data has no rows (0 samples); give at least one")
        rows, notes = self.schema_.encode(table)
        if notes:
            warnings.warn("; ".join(notes), InputWarning, stacklevel=3)
        return rows

    def _container(self) -> Any:
        return container(self.schema_.container)

    def _wishes(self) -> Wishes:
        return Wishes(
            recipe=self.recipe,
            latent=self.latent,
            hidden=None if self.hidden is None else tuple(self.hidden),
            fusion=self.fusion,
            corruption=self.corruption,
            penalties=tuple(self.penalties),
            weights=self.weights,
        )

    def _device(self) -> torch.device:
        if self.device != "auto":
            try:
                return torch.empty(0, device=self.device).device
            except (RuntimeError, AssertionError) as error:
                raise InputError(
                    f"the device '{self.device}' cannot be used here; use 'cpu' or 'auto'"
                ) from error
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def _check_options(self) -> None:
        for name, hint in get_type_hints(type(self).__init__).items():
            if name != "return" and not fits(getattr(self, name), hint):
                raise InputError(f"{name} is {getattr(self, name)!r}; expected {expectation(hint)}")
        if not 0 <= self.seed < 2**63:
            raise InputError(f"seed is {self.seed}; give a whole number from 0 to 2**63 - 1")
        if self.precision not in ("auto", "float32", "bfloat16"):
            raise unknown("precision", str(self.precision), ("auto", "float32", "bfloat16"))
        if not 0 <= self.validation < 1:
            raise InputError(f"validation is {self.validation}; give a share in [0, 1)")
        for name in ("epochs", "batch_size", "patience"):
            value, least = getattr(self, name), 0 if name == "epochs" else 1
            if value is not None and not least <= value <= MOST:
                raise InputError(f"{name} is {value}; it must be {least} or more, up to {MOST:,}")
        if self.lr is not None and not 0 < self.lr < float("inf"):
            raise InputError(f"lr is {self.lr}; it must be above 0 and finite")

    def _print(self, progress: Progress) -> None:
        if progress.row is not None:
            row = progress.row
            print(
                f"epoch {row['epoch']:6.1f}  train {row.get('train_loss', float('nan')):.5g}  "
                f"held out {row['valid_loss']:.5g}  {progress.rows_per_second:,.0f} rows/s"
            )


@contextmanager
def seeded(seed: int) -> Generator[None]:
    """Seed torch's generators, those of accelerators too, and put them back afterwards."""
    devices = range(torch.cuda.device_count()) if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        yield


def split(n: int, share: float, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Seeded positions of training rows and of held-out rows; none below 20 rows."""
    order = np.random.default_rng(seed).permutation(n)
    held = 0 if n < SMALLEST else min(round(share * n), n - 2)
    return np.sort(order[held:]), np.sort(order[:held])


def load(path: str | Path) -> Autoencoder:
    """Read a model that :meth:`Autoencoder.save` or ``refold fit`` wrote."""
    return Autoencoder.load(path)
