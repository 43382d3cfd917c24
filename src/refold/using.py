"""How an estimator uses its model: codes of rows, rows of codes, predictions, fillings, draws."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import TransformerMixin
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import check_is_fitted, validate_data

from refold import inference
from refold.data.containers import container, frame
from refold.data.corruptions import corruptions
from refold.data.schema import Schema
from refold.data.sources import read
from refold.data.sources.memory import is_ragged
from refold.errors import InputError, InputWarning
from refold.fusion import Lateral
from refold.hints import fits
from refold.judging import Judging
from refold.latents import Discrete, latents
from refold.model import Model
from refold.spec import ModelSpec
from refold.table import Table
from refold.types import Batch
from refold.uses import complete, interpolate, traverse
from refold.uses.inspect import squared_errors
from refold.uses.likelihood import log_likelihood
from refold.uses.local import Local
from refold.uses.portions import Portions
from refold.uses.steps import step_errors

MOST = 1_000_000_000  # epochs, rows of a batch, evaluations: beyond, something was mistyped
NAMED = ("n_features_in_", "feature_names_in_")  # set while rows are read, before learning


def _has_outputs(ae: Using) -> bool:
    """Whether there is a column to predict from others; before fitting that is not known."""
    return not hasattr(ae, "model_") or len(ae.schema_.order) > 1


class Using(Judging, TransformerMixin):
    """What a fitted model makes of rows and of codes, in the containers that rows come in."""

    spec_: ModelSpec
    local_: Local | None
    members_: tuple[Model, ...]
    seed: int

    def transform(self, X: Any, *, indices: bool = False) -> NDArray[Any]:
        """Codes of rows, ``[n, d]`` in single precision; deterministic.

        With ``indices``, the numbers of the codes' entries in their books, ``[n, g]`` whole
        numbers, where the latent is discrete (``vq``, ``residual_vq``, ``fsq``).
        """
        check_is_fitted(self)
        self._refuse_skips("embedded")
        table = self._rows(X, 8 * self.spec_.size)
        if isinstance(table, Portions):
            parts = table.each(lambda part: self.transform(part, indices=indices))
            return np.concatenate(list(parts))
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
        >>> from refold import Autoencoder
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
        >>> from refold import Autoencoder
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
        >>> from refold import Autoencoder
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
        >>> from refold import Autoencoder
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
        >>> from refold import Autoencoder
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
        >>> from refold import Autoencoder
        >>> X = np.random.default_rng(0).normal(size=(60, 3))
        >>> int(Autoencoder(2, recipe="pca").fit(X).neighbours(X[7:8], X)[0][0])
        7
        """
        check_is_fitted(self)
        own = self._single(row, "row")[1]
        return interpolate.nearest(self.transform(X), own, n)

    def get_feature_names_out(self, input_features: Any = None) -> NDArray[np.object_]:
        """Names of the code's entries: ``latent0``, ``latent1``, ..."""
        check_is_fitted(self)
        return np.array([f"latent{i}" for i in range(self.spec_.size)], dtype=object)

    # ------------------------------------------------------------------ inside

    def _named(self, table: Table) -> None:
        """Take note of the columns to learn."""
        for name in NAMED:
            if hasattr(self, name):
                delattr(self, name)
        own = list(table.columns.values())
        matrix = len(own) == 1 and isinstance(own[0], np.ndarray) and own[0].ndim == 2
        self.n_features_in_ = own[0].shape[1] if matrix else len(own)
        if not any(isinstance(c, np.ndarray) for c in table.columns.values()):
            self.feature_names_in_ = np.array(list(table.columns), dtype=object)

    def _read(self, X: Any, fresh: bool = False) -> Table:
        """Rows as columns; arrays pass scikit-learn's own checks first."""
        if isinstance(X, Table) and not fresh:
            return X
        if isinstance(X, np.ndarray | list) and not is_ragged(X) and np.ndim(X) <= 2:
            checked: Any = X
            return read(
                validate_data(self, checked, reset=fresh, dtype="numeric", ensure_all_finite=False)
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
