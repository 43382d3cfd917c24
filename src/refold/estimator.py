"""The scikit-learn face: its arguments, learning, keeping; how it is used is in ``using``."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import Any, Self, get_type_hints

import torch
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted
from torch import nn
from torch.utils.data import Dataset

from refold import archive, modelfile, processes
from refold.assemble import Wishes
from refold.data.corruptions import Corruption
from refold.data.pairs import is_paired, stacked
from refold.data.schema import Override
from refold.data.streams import Stream, opened
from refold.detection import Calibration, Detector, Evidence
from refold.errors import InputError, InputWarning, unknown
from refold.hints import expectation, fits
from refold.latents import Latent
from refold.learn import Course, learn, telling
from refold.penalties import Penalty
from refold.table import Table
from refold.training.checkpoint import Checkpoints, digest, remove, tensors_of
from refold.training.fit import Progress, Watch
from refold.training.pretrain import LAYERWISE
from refold.types import Batch
from refold.uses.encoder import encoder_module
from refold.uses.supervise import EncoderClassifier
from refold.uses.truncate import truncated, truncated_quality
from refold.using import MOST, NAMED, Using, seeded

ELSEWHERE = ("device", "memory", "parallel", "verbose")  # with others of which a run may go on
PLANNED = (
    "epochs", "batch_size", "lr", "optimizer", "schedule", "patience", "min_delta", "labelled",
)  # fmt: skip


class Autoencoder(Using, BaseEstimator):
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
        rows none are. Of rows that are read in parts it is the share of all, but at most a quarter
        of the sample that tells of them.
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
        single precision; weights and sums always are. "auto" leaves dictionaries, recurrent layers,
        attention and layers trained one by one in single precision. "bfloat16" has no effect on
        top-k dictionaries, whose steps on a processor use it without changing a choice.
        ``run_.precision`` says what was used, and why.
    device : str
        ``"auto"`` takes an accelerator where there is one.
    memory : int or str, optional
        How much learning from files may take, in bytes or as ``"2GB"``; half of what is free where
        not given. Rows that need more are read in parts, batch by batch, from Parquet, ``.npy``,
        safetensors or CSV files; see ``docs/gallery``. So are files given to ``transform`` and
        ``score_samples``; what these return is in memory. Processes of one machine have it
        together.
    parallel : "ddp" or "fsdp"
        How processes started by ``torchrun`` train together, each with its share of every batch:
        each with the whole model, or with shards of it between the steps.
    seed : int
        Everything random follows from it; torch's global generator is left as it was.
    verbose : int
        1 prints a line per evaluation.

    Attributes
    ----------
    model_ : torch.nn.Module
        What was learnt; ``schema_`` says what its columns are, ``spec_`` which parts it is made of,
        and ``recipe_`` is the name of the recipe.
    plan_, run_, history_
        How long and how fast it was to be trained; how that went (``run_.best``, the figures of the
        weights kept, ``stopped``, ``seconds``, ``precision``); and a row of figures for each
        evaluation, the first before any step.
    quality_
        How well held-out rows come back; ``quality_.sentence(size)`` says it.
    detector_, calibration_, reference_
        What judges rows, what it compares them with, and what drift is measured from.
    reasons_, notes_ : tuple of str
        What was chosen and why, with what is to be doubted; and remarks about the rows.
    n_rows_, n_features_in_ : int
        Rows and columns it was fitted on; ``feature_names_in_`` where columns have names.

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
        watch = watch if watch is not None else self._print if self.verbose else None
        table = self._source(rows, watch, checkpoints)
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
        for sentence in learnt.doubts:
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
            precision=self.precision,
            parallel=self.parallel,
            evidence=self.evidence,
            contamination=self.contamination,
            plan={k: getattr(self, k) for k in PLANNED},
        )

    # ------------------------------------------------------------------ using

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

    def _source(
        self, X: Any, watch: Watch | None, checkpoints: Checkpoints | None
    ) -> Table | Stream:
        """Rows to learn from: as columns, or in parts where memory would not hold them."""
        before = None if checkpoints is None else checkpoints.before
        stream = opened(X, self.memory, before=before, told=telling(watch))
        if stream is None:
            return self._read(X, fresh=True)
        self._named(stream.first)
        return stream

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


def load(path: str | Path) -> Autoencoder:
    """Read a model that :meth:`Autoencoder.save` or ``refold fit`` wrote."""
    return Autoencoder.load(path)
