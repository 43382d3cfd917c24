"""The scikit-learn face: fit, transform, reconstruct, score, sample, save."""

from __future__ import annotations

import json
import warnings
from collections.abc import Collection, Generator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import Any, Self, get_type_hints

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import nn
from torch.utils.data import Dataset

from refold import archive, inference, modelfile, processes
from refold.assemble import Wishes
from refold.data.containers import container, frame
from refold.data.corruptions import Corruption, corruptions
from refold.data.pairs import is_paired, stacked
from refold.data.schema import Override, Schema
from refold.data.sources import read
from refold.data.sources.memory import is_ragged
from refold.data.streams import Stream, opened
from refold.detection import Calibration, Detector, Evidence
from refold.errors import InputError, InputWarning, unknown
from refold.fusion import Lateral
from refold.hints import expectation, fits
from refold.judging import Judging
from refold.latents import Discrete, Latent, latents
from refold.learn import Course, collapsed, learn
from refold.penalties import Penalty
from refold.table import Table
from refold.training.checkpoint import Checkpoints, digest, remove, tensors_of
from refold.training.fit import Progress, Watch
from refold.training.pretrain import LAYERWISE
from refold.types import Batch
from refold.uses import complete, interpolate, traverse
from refold.uses.encoder import encoder_module
from refold.uses.inspect import squared_errors
from refold.uses.likelihood import log_likelihood
from refold.uses.steps import step_errors
from refold.uses.supervise import EncoderClassifier
from refold.uses.truncate import truncated, truncated_quality

MOST = 1_000_000_000  # epochs, rows of a batch, evaluations: beyond, something was mistyped
ELSEWHERE = ("device", "parallel", "verbose")  # arguments with which a run may go on otherwise
NAMED = ("n_features_in_", "feature_names_in_")  # set while rows are read, before learning
PLANNED = (
    "epochs", "batch_size", "lr", "optimizer", "schedule", "patience", "min_delta", "labelled",
)  # fmt: skip


def _has_outputs(ae: Autoencoder) -> bool:
    """Whether there is a column to predict from others; before fitting that is not known."""
    return not hasattr(ae, "model_") or len(ae.schema_.order) > 1


class Autoencoder(Judging, TransformerMixin, BaseEstimator):
    """Learns to fold rows into a small code and to unfold it again.

    Parameters
    ----------
    latent : int, str or Latent, optional
        Size of the code, a latent by name (``"topk(size=64, k=8)"``), or a latent object. Not
        given: as many numbers as principal components keep 90 % of the variance.
    recipe : str, optional
        A named composition, see :func:`refold.recipes`. Not given: ``"conv"`` for large images,
        else ``"dense"``.
    hidden : tuple of int or dict, optional
        Dense layers, mirrored in the decoder: widths, or stages such as ``{"width": 128, "repeat":
        2, "activation": "gelu", "residual": True}``; ``()`` is linear.
    fields : dict, optional
        Kind of a column by name (``{"zip": "categorical", "id": "ignore"}``), or a field object.
    fusion : str, optional
        Options of the dense body: ``"concat(activation='gelu', norm='layer', dropout=0.1)"``, and
        ``mirror=(64, 256)`` for a decoder of other widths.
    corruption : str or Corruption, optional
        Noise on the input in training: ``"gaussian(std=0.3)"``, ``"masking(fraction=0.25)"``; a
        sequence of them, one after the other.
    tied : bool, "pretrain" or sequence of int
        Whether each layer of the decoder uses the transpose of the weight of the encoder's layer
        it mirrors; ``"pretrain"``: while layers are trained one by one, and no longer; numbers:
        only these pairs, counted from the outermost, 0.
    pretrain : str, optional
        ``"layerwise"``: layers are trained one pair at a time from the outside, then all together;
        ``"layerwise(share=0.5)"`` says which share of the steps that takes. Or the folder of a
        shallower model to start from.
    freeze : sequence of str
        Patterns of names of parameters that stay as they start: ``("fusion.down.*",)``.
    penalties : sequence, optional
        Further costs, by name or object.
    weights : "balanced", "equal" or dict
        Share of each field in the objective: each column equal at the start, each by its own
        cost, or numbers by field name.
    epochs, batch_size, lr, patience : optional
        Chosen from the number of rows where not given; an epoch is one pass over the rows.
    min_delta : float
        Share of the held-out loss by which it must fall for patience to start anew.
    optimizer : str
        Any optimiser of torch, in lower case, with options: ``"sgd(momentum=0.9)"``.
    schedule : str, optional
        ``cosine`` (with warm-up, the default), ``constant``, ``linear``, ``step``,
        ``exponential``, ``onecycle``, ``cyclic`` or ``plateau``.
    validation : float
        Share of the rows held out to choose the best weights and to calibrate scores; below 20
        rows none are.
    evidence : sequence, optional
        How rows are found unusual, by name or object: ``("errors", "neighbours(space='code')")``.
        Not given: as the recipe says, else by their cost in the objective alone.
    contamination : float or "auto", optional
        Share of the rows that are believed to be anomalies themselves: as many are not learnt from
        (a tenth with ``"auto"``), and less is made of few rows that are alike. 0: the rows are
        clean. Not given: rows of the fit are judged as if some were anomalies, and new rows as if
        those of the fit were clean; none is left out.
    labelled : int, optional
        How many rows with a known target join every batch, for tables in which few have one; not
        given: as the recipe says, else none.
    precision : "auto", "float32" or "bfloat16"
        Number format of matrix products in training. "auto": bfloat16 for wide networks on
        machines that are fast at it, for as long as held-out rows cost the same in it to 1 %, else
        single precision; weights and sums always are.
    device : str
        ``"auto"`` takes an accelerator where there is one.
    memory : int or str, optional
        How much learning from files may take, in bytes or as ``"2GB"``; half of what is free where
        not given. Rows that need more are read in parts, batch by batch, from Parquet, ``.npy``,
        safetensors or CSV files; see ``docs/gallery``.
    parallel : "ddp" or "fsdp"
        How processes started by ``torchrun`` train together, each with its share of every batch:
        each with the whole model, or with shards of it between the steps.
    seed : int
        Everything random follows from it; torch's global generator is left as it was.
    verbose : int
        1 prints a line per evaluation.

    Attributes
    ----------
    model_, schema_, spec_, plan_, history_, quality_, detector_, calibration_, reasons_, notes_

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
        hidden: Sequence[int | Mapping[str, Any]] | None = None,
        fields: Mapping[str, Override] | None = None,
        fusion: str | None = None,
        corruption: str | Corruption | Sequence[str | Corruption] | None = None,
        tied: bool | str | Sequence[int] = False,
        pretrain: str | None = None,
        freeze: Sequence[str] = (),
        penalties: Sequence[str | Penalty] = (),
        weights: str | Mapping[str, float] = "balanced",
        epochs: int | None = None,
        batch_size: int | None = None,
        optimizer: str = "adamw",
        lr: float | None = None,
        schedule: str | None = None,
        validation: float = 0.1,
        patience: int | None = None,
        min_delta: float = 1e-5,
        evidence: Sequence[str | Evidence] | None = None,
        contamination: float | str | None = None,
        labelled: int | None = None,
        precision: str = "auto",
        device: str = "auto",
        memory: int | str | None = None,
        parallel: str = "ddp",
        seed: int = 0,
        verbose: int = 0,
    ) -> None:
        self.latent = latent
        self.recipe = recipe
        self.hidden = hidden
        self.fields = fields
        self.fusion = fusion
        self.corruption = corruption
        self.tied = tied
        self.pretrain = pretrain
        self.freeze = freeze
        self.penalties = penalties
        self.weights = weights
        self.epochs = epochs
        self.batch_size = batch_size
        self.optimizer = optimizer
        self.lr = lr
        self.schedule = schedule
        self.validation = validation
        self.patience = patience
        self.min_delta = min_delta
        self.evidence = evidence
        self.contamination = contamination
        self.labelled = labelled
        self.precision = precision
        self.device = device
        self.parallel = parallel
        self.memory = memory
        self.seed = seed
        self.verbose = verbose

    # ------------------------------------------------------------------ learning

    def fit(
        self,
        X: Any,
        y: Any = None,
        *,
        inputs: Any = None,
        start: Autoencoder | None = None,
        watch: Watch | None = None,
        checkpoint: str | Path | None = None,
        resume: bool = False,
    ) -> Self:
        """Learn from rows; ``y`` is ignored. What was learnt before stays if this fails.

        ``inputs`` are the same rows as the encoder shall see them (noisy images beside the clean
        ones in ``X``); ``start`` is a fitted, shallower model whose layers are taken over;
        ``watch`` is called with the progress. A torch dataset is read whole; one of pairs gives
        both. ``checkpoint`` is a folder in which a run of more than half a minute keeps where it
        stands, until the model is saved; with ``resume`` it goes on from there, given the same rows
        and arguments, and begins anew where there is nothing.
        """
        self._check_options()
        rows = X
        if isinstance(X, Dataset):
            given, rows = stacked(X)
            inputs = given if is_paired(X) else inputs
        before = {k: v for k, v in vars(self).items() if k in NAMED}
        try:
            return self._fit(
                rows, inputs, start, watch, self._checkpoints(checkpoint, resume, start)
            )
        except BaseException:
            for name in NAMED:
                vars(self).pop(name, None)
            vars(self).update(before)
            raise

    def _fit(
        self,
        rows: Any,
        inputs: Any,
        start: Autoencoder | None,
        watch: Watch | None,
        checkpoints: Checkpoints | None,
    ) -> Self:
        table = self._source(rows)
        if len(table) < 2:
            raise InputError(
                f"got {len(table)} sample (n_samples = {len(table)}): a minimum of 2 rows is "
                f"required to learn from; give more rows"
            )
        if inputs is not None and isinstance(table, Stream):
            raise InputError(
                "inputs were given, and the rows are read in parts, which takes no second table; "
                "give more memory, or rows alone"
            )
        shown = None if inputs is None else self._read(inputs)
        if shown is not None and len(shown) != len(table):
            raise InputError(
                f"inputs has {len(shown)} rows and X {len(table)}; each row of one belongs to the "
                f"same row of the other"
            )
        if start is not None and self.pretrain is not None:
            raise InputError(
                f"start was given, and pretrain={self.pretrain!r} too; give one: layers begin "
                f"either with another model's weights or one pair at a time"
            )
        course = self._course(start or self._started())
        watch = watch if watch is not None else self._print if self.verbose else None
        with seeded(self.seed):
            learnt = learn(table, shown, course, self._device(), watch, checkpoints)
        self.schema_, self.spec_, self.recipe_ = learnt.schema, learnt.spec, learnt.recipe
        self.model_, self.plan_, self.run_ = learnt.model, learnt.plan, learnt.run
        self.history_ = learnt.run.history
        self.quality_, self.calibration_ = learnt.quality, learnt.calibration
        self.detector_, self.reference_ = learnt.detector, learnt.reference
        self.local_, self.members_ = learnt.local, learnt.members
        self.reasons_, self.notes_ = learnt.reasons, learnt.notes
        self.n_rows_ = len(table)
        ended = self.run_.stopped != "interrupted"
        self._unfinished = checkpoints.folder if checkpoints is not None and ended else None
        if self.run_.best.get("dead_units", 0) == self.spec_.size:
            warnings.warn(
                "no unit of the code is active in any held-out row, so the model says the same of "
                "every row; train longer, with a smaller lr, or with another latent",
                InputWarning,
                stacklevel=3,
            )
        sentence = collapsed(self.model_.latent, self.run_)
        if sentence is not None:
            warnings.warn(sentence, InputWarning, stacklevel=3)
        if self.run_.stopped == "interrupted":
            warnings.warn("training was interrupted: the best model so far is kept", stacklevel=3)
        return self

    def _checkpoints(
        self, folder: str | Path | None, resume: bool, start: Autoencoder | None
    ) -> Checkpoints | None:
        """Return the checkpoints of a fit with these arguments; None where none are kept."""
        if folder is None:
            if resume:
                raise InputError("resume=True needs a folder to resume from; give checkpoint=")
            return None
        given = {k: v for k, v in self.get_params(deep=False).items() if k not in ELSEWHERE}
        told = {k: json.dumps(archive.plain(v), default=str) for k, v in given.items()}
        if start is not None:
            check_is_fitted(start)
            told["start"] = digest(Batch(tensors_of(start.model_), {}))
        return Checkpoints(folder, told, resume=resume)

    def _started(self) -> Autoencoder | None:
        """Load the shallower model that ``pretrain`` names, unless it names a way of training."""
        if self.pretrain is None or self.pretrain.partition("(")[0] == LAYERWISE:
            return None
        if not Path(self.pretrain).exists():
            raise InputError(
                f"pretrain is '{self.pretrain}', which is no model folder; give '{LAYERWISE}', or "
                f"the folder of a shallower model"
            )
        return Autoencoder.load(self.pretrain)

    def _course(self, start: Autoencoder | None) -> Course:
        """Return how to learn, as the arguments say."""
        if start is not None:
            check_is_fitted(start)
        return Course(
            wishes=self._wishes(),
            fields=self.fields,
            tied=self.tied,
            start=None if start is None else (start.model_, start.schema_),
            freeze=tuple(self.freeze),
            validation=self.validation,
            seed=self.seed,
            bfloat16=self.precision == "bfloat16",
            float32=self.precision == "float32",
            parallel=self.parallel,
            evidence=self.evidence,
            contamination=self.contamination,
            plan={k: getattr(self, k) for k in PLANNED},
        )

    # ------------------------------------------------------------------ using

    def transform(self, X: Any, *, indices: bool = False) -> NDArray[Any]:
        """Codes of rows, ``[n, d]`` in single precision; deterministic.

        With ``indices``, the numbers of the codes' entries in their books, ``[n, g]`` whole
        numbers, where the latent is discrete (``vq``, ``residual_vq``, ``fsq``).
        """
        check_is_fitted(self)
        self._refuse_skips("embedded")
        table = self._read(X)
        if indices:
            self._refuse_continuous()
            rows = self._encode(table)
            return inference.indices(self.model_, rows, self.schema_).numpy()
        codes = self._by_portions(
            table, lambda rows: inference.embed(self.model_, rows, self.schema_)
        )
        return codes.float().numpy()

    @torch.inference_mode()
    def inverse_transform(self, X: Any) -> Any:
        """Rows of codes, in the container, columns and types of the training data.

        Whole numbers stand for entries of books where the latent is discrete, as ``transform``
        gives them with ``indices=True``.
        """
        check_is_fitted(self)
        self._refuse_skips("unfolded")
        given = np.asarray(X)
        if isinstance(self.model_.latent, Discrete):
            if given.dtype.kind == "f" and given.size and looks_whole(given):
                raise InputError(
                    f"these look like indices, but they are of type {given.dtype}; give whole "
                    f"numbers, as in codes.astype(int)"
                )
            if given.dtype.kind in "iu":
                device = self.model_.fusion.last_bias().device
                given = self.model_.latent.lookup(
                    torch.as_tensor(given.astype(np.int64)).to(device)
                )
        z = torch.as_tensor(given).float()
        if not bool(z.isfinite().all()):
            raise InputError("some codes are NaN or infinite; give finite numbers")
        if z.ndim != 2 or z.shape[1] != self.spec_.size:
            raise InputError(
                f"codes have shape {tuple(z.shape)}; expected (n, {self.spec_.size}), as transform "
                f"gives them"
            )
        parts = [inference.points(self.model_, p) for p in inference.decode(self.model_, z)]
        return self._container().rebuild(self.schema_.decode(inference.joined(parts)))

    @torch.inference_mode()
    def reconstruct(self, X: Any) -> Any:
        """Rows as the model sees them, every cell, missing ones too; like ``X`` in all else.

        Targets are left out, see :meth:`predict`; columns that are only given stay as they are.
        """
        check_is_fitted(self)
        if not self.model_.rebuilt:
            raise InputError(
                "this model rebuilds nothing: all its inputs are only given; predict gives targets"
            )
        table = self._read(X)
        parts = [
            {k: v[:count] for k, v in inference.points(self.model_, o.params).items()}
            for o, count in inference.outputs(self.model_, self._encode(table), self.schema_)
        ]
        found = {k: v for k, v in inference.joined(parts).items() if k in self.model_.rebuilt}
        return table.container.rebuild(self.schema_.decode(found, table))

    @available_if(_has_outputs)
    def predict(
        self, X: Any, columns: str | Sequence[str] | None = None, *, proba: bool = False
    ) -> Any:
        """Columns that are predicted, in their own types and the container of ``X``.

        ``columns`` are the targets unless named; a named one that is also an input is not looked
        at. A row in which nothing is known gets the answer of the prior. With ``proba``, a frame of
        the probability of each level, ``column=level``. Raises :class:`InputError` where no column
        is a target and none is named.

        >>> import numpy as np
        >>> x = np.random.default_rng(0).normal(size=(300, 4))
        >>> rows = {"x": x, "side": np.where(x[:, 0] > 0, "right", "left")}
        >>> ae = Autoencoder(3, fields={"side": "target"}, epochs=20).fit(rows)
        >>> answer = ae.predict({"x": np.array([[2.0, 0, 0, 0], [-2.0, 0, 0, 0]])})
        >>> answer["side"].tolist()
        ['right', 'left']
        """
        check_is_fitted(self)
        named = (columns,) if isinstance(columns, str) else columns
        wanted = self.schema_.targets if named is None else tuple(named)
        if not wanted:
            raise InputError(
                "no column of this model is a target; name columns to predict from the others, as "
                "in predict(X, 'label'), or fit with fields={'label': 'target'}"
            )
        for name in wanted:
            if self.schema_.fields[self.schema_.field_of(name)].given:
                raise InputError(f"column '{name}' is only given, so it cannot be predicted")
        table = complete.without(self._read(X), wanted)
        rows = self._encode(table, wanted)
        if proba:
            shares = complete.probabilities(self.model_, rows, self.schema_, wanted)
            return frame(shares, table.container)
        found = complete.predicted(self.model_, rows, self.schema_, wanted)
        bare = table.container.kind in ("numpy", "tensor") and len(found) > 1
        return (container("dict") if bare else table.container).rebuild(found)

    def impute(
        self, X: Any, n: int | None = None, *, flags: bool = False, seed: int | None = None
    ) -> Any:
        """Rows with their gaps filled, in the container, columns and types of ``X``.

        Observed cells are those of ``X``, bit for bit; whole numbers stay whole. A gap gets the
        best single value, a mean or the likeliest class. With ``n``, a list of ``n`` fillings drawn
        from what the model holds possible (multiple imputation), where likelihoods or codes have a
        spread to draw from; the same ``seed`` gives the same. ``flags`` adds a column of booleans,
        ``name_imputed``, for every column that had a gap.

        Source: Rubin, Multiple Imputation for Nonresponse in Surveys, 1987, for ``n``.

        >>> import numpy as np
        >>> x = np.random.default_rng(0).normal(size=(300, 1)) @ np.ones((1, 4))
        >>> x[0, 0] = np.nan
        >>> full = Autoencoder(1, recipe="imputation", epochs=30).fit(x).impute(x)
        >>> bool(abs(full[0, 0] - x[0, 1]) < 0.5), bool((full[1:] == x[1:]).all())
        (True, True)
        """
        check_is_fitted(self)
        if n is not None and not (fits(n, int) and 1 <= n <= MOST):
            raise InputError(f"asked for {n!r} imputations; ask for a whole number, 1 or more")
        table = self._read(X)
        rows = self._encode(table)
        left = complete.unfilled(table, self.schema_)
        if left:
            warnings.warn(
                f"gaps stay in columns that the model did not learn: {', '.join(left)}",
                InputWarning,
                stacklevel=2,
            )

        self._warn_untold(rows)
        models = (self.model_, *self.members_)
        if n is None:
            values = [complete.likeliest(models, table, rows, self.schema_, self.local_)]
        else:
            with seeded(self.seed if seed is None else seed):
                values = [
                    complete.possible(models, table, rows, self.schema_, self.local_)
                    for _ in range(n)
                ]
        found = [
            table.container.rebuild(complete.filled(table, self.schema_, v, flags=flags))
            for v in values
        ]
        return found[0] if n is None else found

    def log_likelihood(
        self, X: Any, samples: int = 5000, seed: int | None = None
    ) -> NDArray[np.float64]:
        r"""Log-density of each row ``[n]`` in nats, by ``samples`` draws of its code.

        For latents with a posterior; see :func:`refold.uses.likelihood.log_likelihood`. It is of
        what is observed of all outputs, in the model's own scale (standard deviations of columns
        and vectors), whatever the objective's weights; on average a lower bound, which more
        samples raise. The same ``seed`` (None: the estimator's) gives the same.

        >>> import numpy as np
        >>> X = np.random.default_rng(0).normal(size=(60, 3))
        >>> ae = Autoencoder("gaussian(size=1)", recipe="vae", epochs=2).fit(X)
        >>> ae.log_likelihood(X, samples=100).shape
        (60,)
        """
        check_is_fitted(self)
        if not fits(samples, int) or not 1 <= samples <= MOST:
            raise InputError(f"asked for {samples!r} draws; ask for a whole number, 1 or more")
        self._refuse_skips("judged by their likelihood")
        rows = self._encode(self._read(X))
        with seeded(self.seed if seed is None else seed):
            return log_likelihood(self.model_, rows, self.schema_, samples).numpy()

    def squared_error(self, X: Any) -> float:
        """Mean over rows of the squared reconstruction error, in the model's own scale.

        Standard deviations for columns and vectors, [0, 1] for pixels; classes as indicators.
        """
        check_is_fitted(self)
        rows = self._encode(self._read(X))
        return float(squared_errors(self.model_, rows, self.schema_).mean())

    def step_errors(self, X: Any, column: str | None = None) -> NDArray[np.float64]:
        """Squared error of every step of a series, ``[n, T, C]``, NaN where nothing was observed.

        One is a deviation of the channel in training (``scale="window"``: of the row itself).
        ``column`` is the series that is meant, where there are several; of windows cut from a long
        series, :func:`refold.per_step` brings the errors back to its steps.
        """
        check_is_fitted(self)
        field = None if column is None else self.schema_.field_of(column)
        return step_errors(self.model_, self._encode(self._read(X)), self.schema_, field)

    def sample(self, n: int = 1, seed: int | None = None, *, given: Any = None) -> Any:
        """Draw ``n`` new rows, in the container, columns and types of the training data.

        ``given`` are rows of which only some columns are known, in any container, or one such row
        as ``{"label": 3}``: then ``n`` rows are drawn for each, in order, the known values kept and
        the others drawn given them. The same ``seed`` (None: the estimator's) gives the same rows.
        Raises an error that names the latents that can, where the model's cannot.
        """
        check_is_fitted(self)
        if not fits(n, int) or not 1 <= n <= MOST:
            raise InputError(f"asked for {n!r} samples; ask for a whole number, 1 or more")
        self._refuse_skips("sampled")
        if not self.model_.latent.generative:
            raise self.model_.latent.no_prior()
        with seeded(self.seed if seed is None else seed):
            if given is None:
                z = self.model_.latent.sample(n)
                parts = [
                    inference.draws(self.model_, p, self.schema_)
                    for p in inference.decode(self.model_, z)
                ]
                return self._container().rebuild(self.schema_.decode(inference.joined(parts)))
            table = self._read(
                one_row(given, self.schema_) if isinstance(given, Mapping) else given
            )
            complete.refuse_unknown(table, self.schema_)
            rows, notes = self.schema_.encode(table, self.schema_.order)
            if notes:
                raise InputError(f"rows cannot be drawn given that: {'; '.join(notes)}")
            complete.refuse_pointlike_beside(table, self.model_, self.schema_)
            self._warn_untold(rows)
            found = complete.drawn(self.model_, rows, self.schema_, n)
        columns = complete.keep_given(self.schema_.decode(found), table, n, self.schema_)
        return self._container().rebuild(columns)

    def interpolate(self, a: Any, b: Any, steps: int = 10, kind: str = "linear") -> Any:
        r"""Rows on the way from row ``a`` to row ``b``, in the container of the training data.

        .. math:: z(t) = (1 - t)\, z_a + t\, z_b, \qquad x(t) = \operatorname{decode}(z(t))

        ``kind="spherical"`` goes along an arc, see :func:`refold.uses.interpolate.spherical`, where
        codes have a prior. The first and the last are the reconstructions of ``a`` and ``b``, one
        row each, in any container or as ``{"label": 3}``; given columns are those of ``a``.
        Raises :class:`InputError` for other than one row, fewer than two steps, a decoder that
        needs more than the code.

        >>> import numpy as np
        >>> X = np.random.default_rng(0).normal(size=(60, 3))
        >>> Autoencoder(2, recipe="pca").fit(X).interpolate(X[:1], X[1:2], steps=4).shape
        (4, 3)
        """
        check_is_fitted(self)
        if kind == "spherical" and not self.model_.latent.generative:
            raise InputError(
                f"an arc keeps codes as likely as their prior has them, and those of a "
                f"'{self.spec_.latent.name}' latent have none; use kind='linear', or fit with "
                f"recipe='vae'"
            )
        (first, start), (_, end) = self._single(a, "a"), self._single(b, "b")
        return self._unfolded(interpolate.between(start, end, steps, kind), first)

    def traverse(
        self, row: Any, units: int | Sequence[int] | None = None, steps: int = 9
    ) -> dict[str, Any]:
        """Rows by unit of the code: one row's code with that unit moved through its range.

        ``{"latent0": rows, ...}`` of ``units`` (all unless given), in the container of the training
        data. A unit runs from a low to a high quantile of held-out codes, with the row's own value
        exactly in the middle of the ``steps``, an odd number.

        >>> import numpy as np
        >>> X = np.random.default_rng(0).normal(size=(60, 3))
        >>> walks = Autoencoder(2, recipe="pca").fit(X).traverse(X[:1], steps=5)
        >>> {unit: rows.shape for unit, rows in walks.items()}
        {'latent0': (5, 3), 'latent1': (5, 3)}
        """
        check_is_fitted(self)
        table, own = self._single(row, "row")
        if not fits(steps, int):
            raise InputError(f"steps is {steps!r}; give an odd whole number, 3 or more")
        known = self.calibration_.codes
        if not len(known):
            raise InputError(
                "this model was truncated without rows, so the range of its units is not known; "
                "truncate(size, X) with rows"
            )
        chosen = range(len(own)) if units is None else units
        chosen = [chosen] if isinstance(chosen, int) else chosen
        for d in chosen:
            if not fits(d, int) or not 0 <= d < len(own):
                raise InputError(f"there is no unit {d!r}; units are numbered 0 to {len(own) - 1}")
        at = np.array(chosen, dtype=np.int64)
        walks = traverse.traverse(self.model_, own, traverse.span(known, own, steps), at)
        return {f"latent{d}": self._unfolded(z, table) for d, z in zip(at, walks, strict=True)}

    def neighbours(
        self, row: Any, X: Any, n: int = 5
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Positions ``[n]`` of the rows of ``X`` whose codes are nearest to that of ``row``.

        With their distances ``[n]``, from the nearest on; a row that is in ``X`` finds itself.

        >>> import numpy as np
        >>> X = np.random.default_rng(0).normal(size=(60, 3))
        >>> int(Autoencoder(2, recipe="pca").fit(X).neighbours(X[7:8], X)[0][0])
        7
        """
        check_is_fitted(self)
        own = self._single(row, "row")[1]
        return interpolate.nearest(self.transform(X), own, n)

    def truncate(self, size: int, X: Any = None) -> Autoencoder:
        """Return a smaller model whose code is the first ``size`` entries of this one's.

        For codes in order of importance: ``latent="nested"``, or a linear model that the principal
        components solved. Scores of the smaller model are calibrated on ``X``, rows it was not
        trained on; without them no row can be called an anomaly. This model stays as it is.
        """
        check_is_fitted(self)
        if not (self.model_.latent.ordered or self.plan_.solved):
            raise InputError(
                f"the codes of a '{self.spec_.latent.name}' latent are in no order, so a part of "
                f"one means nothing; fit with latent='nested'"
            )
        if not fits(size, int) or not 1 <= size <= self.spec_.size:
            raise InputError(f"cannot truncate to {size} entries; give 1 to {self.spec_.size}")
        smaller = copy(self)
        smaller.spec_ = replace(self.spec_, size=size)
        with seeded(self.seed):
            smaller.model_ = truncated(self.model_, self.spec_, self.schema_, size)
        smaller.quality_ = truncated_quality(self.quality_, size)
        smaller.local_, smaller.members_ = None, ()
        smaller.detector_ = Detector()
        known = self.calibration_
        smaller.calibration_ = replace(
            known,
            scores=known.scores[:0],
            bare=known.bare[:0],
            codes=known.codes[:0, :size],
            code_scores=known.scores[:0],
            parts=known.parts[:0],
        )
        if X is not None:
            rows = self._encode(self._read(X))
            smaller.calibration_ = Calibration.of(
                smaller.model_, smaller.detector_, rows, self.schema_, True
            )
        return smaller

    def classifier(self, **options: Any) -> EncoderClassifier:
        """Return a scikit-learn classifier over this model's codes, for few labels.

        Options are those of :class:`refold.uses.supervise.EncoderClassifier`.
        """
        check_is_fitted(self)
        return EncoderClassifier(self, **options)

    def encoder(self) -> nn.Module:
        """Return the encoder as a plain torch module with weights of its own, for another model."""
        check_is_fitted(self)
        return encoder_module(self)

    def get_feature_names_out(self, input_features: Any = None) -> NDArray[np.object_]:
        """Names of the code's entries: ``latent0``, ``latent1``, ..."""
        check_is_fitted(self)
        return np.array([f"latent{i}" for i in range(self.spec_.size)], dtype=object)

    # ------------------------------------------------------------------ keeping

    def save(self, path: str | Path) -> None:
        """Write a model folder; an existing model there is replaced in one step.

        Of several processes that fitted one model the first writes it.
        """
        check_is_fitted(self)
        if processes.number():
            return
        modelfile.save(path, archive.pack(self))
        folder: Path | None = getattr(self, "_unfinished", None)
        if folder is not None:
            remove(folder)
            self._unfinished = None

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

    def _source(self, X: Any) -> Table | Stream:
        """Rows to learn from: as columns, or in parts where memory would not hold them."""
        stream = opened(X, self.memory)
        if stream is None:
            return self._read(X, fresh=True)
        self._named(stream.first)
        return stream

    def _named(self, table: Table) -> None:
        """Take note of the columns to learn."""
        for name in NAMED:
            if hasattr(self, name):
                delattr(self, name)
        self.n_features_in_ = len(table.columns)
        if not any(isinstance(c, np.ndarray) for c in table.columns.values()):
            self.feature_names_in_ = np.array(list(table.columns), dtype=object)

    def _read(self, X: Any, fresh: bool = False) -> Table:
        """Rows as columns; arrays pass scikit-learn's own checks first."""
        if isinstance(X, Table) and not fresh:
            return X
        if isinstance(X, np.ndarray | list) and not is_ragged(X) and np.ndim(X) <= 2:
            checked: Any = X
            return read(
                validate_data(
                    self, checked, reset=fresh, dtype="numeric", ensure_all_finite=False
                )
            )
        table = X if isinstance(X, Table) else read(X)
        if fresh:
            self._named(table)
        return table

    def _encode(self, table: Table, absent: Collection[str] = ()) -> Batch:
        """Rows as tensors; columns in ``absent`` are expected to be missing, others remarked on.

        A model that learnt with entries hidden expects it of any, unless it judges rows by that.
        """
        if len(table) == 0:
            raise InputError("the data has no rows (0 samples); give at least one")
        noise = self.spec_.corruption
        detecting = hasattr(self, "detector_") and self.detector_.parts
        if noise is not None and corruptions.build(noise).hides and not detecting:
            absent = self.schema_.order
        rows, notes = self.schema_.encode(table, absent)
        if notes:
            warnings.warn("; ".join(notes), InputWarning, stacklevel=3)
        return rows

    def _single(self, row: Any, name: str) -> tuple[Table, NDArray[np.float32]]:
        """Read one row, in a container, as a dict of single values or as an array; and its code."""
        own = list(self.schema_.fields.values())
        if isinstance(row, Mapping):
            row = one_row(row, self.schema_)
        elif isinstance(row, np.ndarray) and len(own) == 1 and row.shape == own[0].cell:
            row = row[None]
        table = self._read(row)
        if len(table) != 1:
            raise InputError(f"{name} has {len(table)} rows; give one, as in X[3:4]")
        return table, self.transform(table)[0]

    @torch.inference_mode()
    def _unfolded(self, codes: NDArray[np.floating], like: Table) -> Any:
        """Rows of codes ``[n, D]``, in the training data's container, with given columns of a row.

        Portions are those of one row, so that its own code gives its very reconstruction.
        """
        z = torch.from_numpy(codes.astype(np.float32))
        parts = [
            inference.points(self.model_, p)
            for few in z.split(inference.SMALL)
            for p in inference.decode(self.model_, few)
        ]
        given = [c for f in self.schema_.fields.values() if f.given for c in f.columns]
        taken = like.take(np.zeros(len(codes), dtype=np.int64))
        kept = replace(like, columns={k: v for k, v in taken.items() if k in given})
        return self._container().rebuild(self.schema_.decode(inference.joined(parts), kept))

    def _warn_untold(self, rows: Batch) -> None:
        """Say where gaps are taken for the mean, because training had none."""
        fields = complete.untold(self.model_, rows)
        if fields:
            warnings.warn(
                f"the model was fitted without gaps in '{fields[0]}', so it takes a gap there for "
                f"the mean; fit with corruption='hide' or recipe='imputation' to have it learnt",
                InputWarning,
                stacklevel=3,
            )

    def _refuse_skips(self, what: str) -> None:
        """Refuse uses of the code alone where the decoder sees more than the code."""
        if self.model_.skipping and isinstance(self.model_.fusion, Lateral):
            raise InputError(
                f"rows cannot be {what}: the decoder of a '{self.spec_.fusion.name}' also takes "
                f"what its encoder met in every layer, so a code is not the whole of a row; use "
                f"predict, reconstruct or encoder, or another recipe"
            )
        if self.model_.skipping:
            raise InputError(
                f"rows cannot be {what}: the decoder of '{self.model_.skipping[0]}' also takes "
                f"feature maps from the encoder (skips), so a code is not the whole of a row; use "
                f"a backbone without skips, or reconstruct"
            )

    def _refuse_continuous(self) -> None:
        """Refuse whole numbers for codes that are no entries of a book."""
        if not isinstance(self.model_.latent, Discrete):
            able = ", ".join(name for name in latents if issubclass(latents[name], Discrete))
            raise InputError(
                f"codes of the latent '{self.spec_.latent.name}' are no entries of a book, so they "
                f"have no indices; fit with one of these latents: {able}"
            )

    def _container(self) -> Any:
        return container(self.schema_.container)

    def _wishes(self) -> Wishes:
        return Wishes(
            pretrain=self.pretrain,
            recipe=self.recipe,
            latent=self.latent,
            hidden=None if self.hidden is None else tuple(self.hidden),
            fusion=self.fusion,
            corruption=self.corruption,
            penalties=tuple(self.penalties),
            weights=self.weights,
        )

    def _device(self) -> torch.device:
        own = f"cuda:{processes.local()}" if processes.count() > 1 else "cuda"
        if self.device != "auto":
            try:
                device = own if self.device == "cuda" else self.device
                return torch.empty(0, device=device).device
            except (RuntimeError, AssertionError) as error:
                raise InputError(
                    f"the device '{self.device}' cannot be used here; use 'cpu' or 'auto'"
                ) from error
        return torch.device(own if torch.cuda.is_available() else "cpu")

    def _check_options(self) -> None:
        for name, hint in get_type_hints(type(self).__init__).items():
            if name != "return" and not fits(getattr(self, name), hint):
                raise InputError(f"{name} is {getattr(self, name)!r}; expected {expectation(hint)}")
        if self.precision not in ("auto", "float32", "bfloat16"):
            raise unknown("precision", str(self.precision), ("auto", "float32", "bfloat16"))
        if self.parallel not in ("ddp", "fsdp"):
            raise unknown("parallel", str(self.parallel), ("ddp", "fsdp"))
        if not 0 <= self.validation < 1:
            raise InputError(f"validation is {self.validation}; give a share in [0, 1)")
        for name in ("epochs", "batch_size", "patience", "labelled"):
            value, least = getattr(self, name), 0 if name in ("epochs", "labelled") else 1
            if value is not None and not least <= value <= MOST:
                raise InputError(f"{name} is {value}; it must be {least} or more, up to {MOST:,}")
        if isinstance(self.tied, str) and self.tied != "pretrain":
            raise InputError(f"tied is '{self.tied}'; expected True, False or 'pretrain'")
        if not 0 <= self.min_delta < 1:
            raise InputError(f"min_delta is {self.min_delta}; give a share in [0, 1)")
        share = self.contamination
        if isinstance(share, str) and share != "auto":
            raise unknown("contamination", share, ("auto",))
        if isinstance(share, int | float) and not 0 <= share < 0.5:
            raise InputError(
                f"contamination is {self.contamination}; give the share of rows that are "
                f"anomalies, from 0 (none) to below 0.5"
            )
        if self.lr is not None and not 0 < self.lr < float("inf"):
            raise InputError(f"lr is {self.lr}; it must be above 0 and finite")

    def _print(self, progress: Progress) -> None:
        if progress.row is not None:
            row = progress.row
            print(
                f"epoch {row['epoch']:6.1f}  train {row.get('train_loss', float('nan')):.5g}  "
                f"held out {row['valid_loss']:.5g}  {progress.rows_per_second:,.0f} rows/s"
            )


def looks_whole(codes: NDArray[np.floating]) -> bool:
    """Whether codes are whole numbers, some above 1, as indices are and entries of books hardly."""
    return bool((codes == codes.round()).all() and codes.max() > 1)


def one_row(given: Mapping[str, Any], schema: Schema) -> Mapping[str, Any]:
    """Make one row of single values, ``{"label": 3, "x": array}``; columns stay as they are."""
    cells = {c: len(f.cell) for f in schema.fields.values() for c in f.columns}
    single: dict[str, Any] = {
        k: np.asarray(v)[None] if cells.get(k) else [v]
        for k, v in given.items()
        if np.ndim(v) == cells.get(k, 0)
    }
    return single if len(single) == len(given) else given


@contextmanager
def seeded(seed: int) -> Generator[None]:
    """Seed torch's generators, those of accelerators too, and put them back afterwards."""
    if not fits(seed, int) or not 0 <= seed < 2**63:
        raise InputError(f"seed is {seed!r}; give a whole number from 0 to 2**63 - 1")
    devices = range(torch.cuda.device_count()) if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        yield


def load(path: str | Path) -> Autoencoder:
    """Read a model that :meth:`Autoencoder.save` or ``refold fit`` wrote."""
    return Autoencoder.load(path)
