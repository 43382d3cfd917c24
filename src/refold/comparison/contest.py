"""Several recipes trained on the same rows and judged on others."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, get_type_hints

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from refold import inference
from refold.casting import as_arrow
from refold.comparison.measures import Labels, neighbours_kept, unexplained, views
from refold.comparison.outcome import MEASURES, Comparison, Contender, place
from refold.data.schema import Override, Schema
from refold.data.sources import read
from refold.errors import InputError, MissingExtraError, unknown
from refold.estimator import Autoencoder
from refold.fields.base import kind_of
from refold.hints import fits
from refold.learn import split
from refold.recipe import RECIPES, Recipe, get
from refold.table import Table
from refold.training.fit import Watch
from refold.uses.complete import without

LEAST = 20  # rows
USUAL = ("pca", "dense", "conv", "sparse", "nested", "denoising", "vae")
ALL = "all"
WEIGHED, DRAWS = 500, 100  # rows whose likelihood is estimated, and draws of each one's code
TIES = "reconstruction"  # the measure by which recipes of one rank stand
OWN = ("recipe", "latent", "epochs", "seed", "fields", "verbose")  # arguments with a word here


def compare(
    X: Any,
    recipes: Sequence[str] | str | None = None,
    *,
    label: Any = None,
    latent: int | None = None,
    epochs: int | None = None,
    seconds: float | None = None,
    by: str | None = None,
    test: float = 0.2,
    fields: Mapping[str, Override] | None = None,
    seed: int = 0,
    watch: Watch | None = None,
    **options: Any,
) -> Comparison:
    """Train several recipes on the same rows, test them on others, and rank them.

    Parameters
    ----------
    X
        Rows, in anything :class:`refold.Autoencoder` reads; 20 or more.
    recipes : sequence of str or "all", optional
        Recipes by name; ``"all"`` that suit the data; not given, a short list of these.
    label : str or sequence, optional
        A column, or one value a row, that no recipe sees: codes are judged by how well a linear
        map tells it, by the share of right answers for classes, by R² for numbers.
    latent : int, optional
        Numbers in every code; recipes with wide, sparse codes have their usual multiple of it, and
        those whose encoder says the size keep theirs. Not given: each chooses.
    epochs, seconds : optional
        Budget of each recipe: passes over the rows, or about so many seconds, of which an epoch
        that is trained first tells how many passes they are. Not given: as long as usual.
    by : str, optional
        Measure that ranks: ``reconstruction``, ``neighbours``, ``label``, ``likelihood``,
        ``seconds``, ``parameters`` or ``code``. Not given: the label where there is one, else the
        reconstruction.
    test : float
        Share of the rows, drawn with the seed, that no recipe sees and all are judged on.
    fields : dict, optional
        Kind of a column by name, as in :class:`refold.Autoencoder`; that of the label too.
    seed : int
        Everything random follows from it.
    watch : callable, optional
        Called with the progress of each training.
    **options
        Further arguments of :class:`refold.Autoencoder`, for every recipe.

    A recipe that refuses the data, or fails, is listed with its sentence. Raises
    :class:`InputError` where all do, for unknown names, and for fewer than 20 rows.

    >>> import numpy as np
    >>> X = np.random.default_rng(0).normal(size=(100, 3)) @ np.ones((3, 6))
    >>> found = compare(X, ["pca", "vae"], latent=2, epochs=1)
    >>> [c.recipe for c in found.ranked], found.measures[:2]
    (['pca', 'vae'], ('reconstruction', 'neighbours'))
    """
    _check(by, label, epochs, seconds, test, options)
    named = [recipes] if isinstance(recipes, str) and recipes != ALL else recipes
    for name in () if named is None or named == ALL else named:
        get(name)
    table = read(X)
    if len(table) < LEAST:
        raise InputError(
            f"got {len(table)} rows; comparing takes {LEAST} or more, because some are kept for "
            f"the test"
        )
    fields = {str(k): v for k, v in (fields or {}).items()}
    table, labels = _apart(table, label, fields)
    fields = {k: v for k, v in fields.items() if labels is None or k != labels.name}
    schema = Schema.fit(table, np.arange(len(table)), fields)
    chosen = chosen_recipes(named, {kind_of(f) for f in schema.fields.values()})
    train, held = split(len(table), test, seed)
    if len(held) < 3 or len(train) < 3:
        raise InputError(
            f"test is {test}, which parts {len(table)} rows into {len(train)} and {len(held)}; "
            f"give a share that leaves 3 or more on both sides"
        )
    _warm_up()
    arena = Arena(table, labels, train, held, views(schema, _rows(schema, table, held)))
    shared = {**options, "fields": fields or None, "seed": seed}
    ranked: list[Contender] = []
    refused: dict[str, str] = {}
    for name in chosen:
        wishes = {**shared, "recipe": name, "latent": sized(get(name), latent)}
        try:
            ranked.append(arena.judged(name, wishes, epochs, seconds, watch))
        except (InputError, MissingExtraError) as error:
            refused[name] = str(error)
        except Exception as error:  # what others took minutes to learn shall not be lost by one
            refused[name] = f"{type(error).__name__}: {' '.join(str(error).split())}"
    if not ranked:
        reasons = "; ".join(f"{name}: {why}" for name, why in refused.items())
        raise InputError(f"no recipe could be trained on this data: {reasons}")
    purpose = by or ("label" if labels is not None else "reconstruction")
    notes = _notes(schema, labels, held)
    if not all(math.isnan(c.figures["likelihood"]) for c in ranked):
        notes.append(
            "likelihood compares recipes with the same likelihoods alone, in nats a row, "
            f"estimated with {DRAWS} draws"
        )
    if all(math.isnan(c.figures[purpose]) for c in ranked):
        notes.append(f"no recipe has a figure of {purpose}, so they stand by reconstruction")
        purpose = "reconstruction"
    return Comparison(
        tuple(sorted(ranked, key=lambda c: [place(c.figures[m], m) for m in (purpose, TIES)])),
        refused,
        purpose,
        replace(table, columns=table.take(held)),
        None if labels is None else labels.column.take(pa.array(held)),
        len(train),
        tuple(notes),
    )


def chosen_recipes(named: Sequence[str] | str | None, kinds: Collection[str]) -> list[str]:
    """Return the recipes that were named, all that suit these kinds of field, or the usual ones."""
    if named is not None and named != ALL:
        if not named:
            raise InputError("no recipe is named, so there is nothing to compare; name some")
        return list(dict.fromkeys(named))
    known = RECIPES if named == ALL else USUAL
    return [name for name in known if suits(get(name), kinds)]


def suits(recipe: Recipe, kinds: Collection[str]) -> bool:
    """Whether data has a kind of field that a recipe is for, or has backbones for.

    >>> suits(get("conv"), {"numeric"}), suits(get("conv"), {"numeric", "image"})
    (False, True)
    """
    return all(not some or set(some) & set(kinds) for some in (recipe.only, recipe.backbones))


def sized(recipe: Recipe, latent: int | None) -> int | None:
    """Return the code size for a recipe: its multiple where codes are sparse, None for its own."""
    if latent is None or not fits(latent, int):
        return latent
    return None if recipe.fusion == "direct" else latent * recipe.expand


@dataclass(frozen=True, eq=False)
class Arena:
    """What all recipes share: rows to train on and to be judged on, and those as encoded."""

    table: Table
    labels: Labels | None
    train: NDArray[np.int64]
    held: NDArray[np.int64]
    inputs: NDArray[np.floating]

    def judged(
        self,
        name: str,
        wishes: Mapping[str, Any],
        epochs: int | None,
        seconds: float | None,
        watch: Watch | None,
    ) -> Contender:
        """Train one recipe, and take its figures."""
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            if seconds is not None:
                epochs = self._epochs(wishes, seconds)
            began = time.perf_counter()
            ae = self._fitted({**wishes, "epochs": epochs}, watch)
            took = time.perf_counter() - began
            remarks = tuple(dict.fromkeys(str(w.message) for w in caught))
            train, held = (_rows(ae.schema_, self.table, at) for at in (self.train, self.held))
            errors = unexplained(ae.model_, ae.schema_, train, held)
            codes = None
            figures = dict.fromkeys(MEASURES, math.nan)
            known = [v for v in errors.values() if not math.isnan(v)]
            figures["reconstruction"] = float(np.mean(known)) if known else math.nan
            figures["seconds"] = took
            figures["parameters"] = float(sum(p.numel() for p in ae.model_.parameters()))
            figures["code"] = float(ae.spec_.size)
            if not ae.model_.skipping:
                codes = inference.embed(ae.model_, held, ae.schema_).float().numpy()
                figures["code"] = float(codes.shape[1])
                some = len(self.inputs)
                figures["neighbours"] = neighbours_kept(self.inputs, codes[:some])
                figures["likelihood"] = self._likelihood(ae)
            if self.labels is not None and codes is not None:
                known = inference.embed(ae.model_, train, ae.schema_).float().numpy()
                both = {"train": known, "test": codes}
                figures["label"] = self.labels.probe(both, self.train, self.held)
        return Contender(name, ae, figures, errors, codes, remarks)

    def _likelihood(self, ae: Autoencoder) -> float:
        """Mean log-likelihood of test rows; NaN for models that have none."""
        rows = replace(self.table, columns=self.table.take(self.held[:WEIGHED]))
        try:
            return float(ae.log_likelihood(rows, samples=DRAWS).mean())
        except InputError:
            return math.nan

    def _fitted(self, wishes: Mapping[str, Any], watch: Watch | None) -> Autoencoder:
        rows = replace(self.table, columns=self.table.take(self.train))
        # An array is handed on as one, so that the model takes the user's own arrays.
        bare = self.table.container.kind == "numpy"
        data = self.table.container.rebuild(rows.columns) if bare else rows
        ae = Autoencoder(**wishes).fit(data, watch=watch)
        if ae.run_.stopped == "interrupted":
            raise KeyboardInterrupt
        return ae

    def _epochs(self, wishes: Mapping[str, Any], seconds: float) -> int:
        """Epochs that take so many seconds, as one says."""
        history = self._fitted({**wishes, "epochs": 1}, None).history_
        each = history[-1]["seconds"] - history[0]["seconds"]
        return max(1, int(seconds / max(each, 1e-4)))


def _warm_up() -> None:
    """Load what the first fit of a process would be charged for."""
    Autoencoder(1, epochs=1).fit(np.random.default_rng(0).normal(size=(LEAST, 2)))


def _rows(schema: Schema, table: Table, at: NDArray[np.int64]) -> Any:
    """Rows by position, as tensors."""
    return schema.encode(replace(table, columns=table.take(at)))[0]


def _apart(table: Table, label: Any, fields: Mapping[str, Override]) -> tuple[Table, Labels | None]:
    """Part the label from what recipes see."""
    if label is None:
        return table, None
    if not isinstance(label, str):
        column = as_arrow(np.asarray(label))
        if len(column) != len(table):
            raise InputError(f"there are {len(column)} labels for {len(table)} rows; give one each")
        return table, Labels.of("label", column)
    if label not in table.columns:
        raise unknown("column", label, table.columns)
    kind = fields.get(label)
    kind = None if kind in ("ignore", "target", "given") else kind
    rest = without(table, [label])
    if not rest.columns:
        raise InputError(f"'{label}' is the only column, so there is nothing to tell it from")
    return rest, Labels.of(label, table.columns[label], kind)


def _check(
    by: str | None,
    label: Any,
    epochs: int | None,
    seconds: float | None,
    test: float,
    options: Mapping[str, Any],
) -> None:
    """Refuse, before any work, what cannot be meant."""
    if by is not None and by not in MEASURES:
        raise unknown("purpose", by, MEASURES)
    if by == "label" and label is None:
        raise InputError("no label is named to rank by; name one, as in label='species'")
    if epochs is not None and seconds is not None:
        raise InputError(
            f"epochs is {epochs} and seconds {seconds}; give one of them: each is the budget"
        )
    if seconds is not None and not (fits(seconds, float) and 0 < seconds < math.inf):
        raise InputError(f"seconds is {seconds!r}; give a number above 0")
    if not (fits(test, float) and 0 < test < 1):
        raise InputError(f"test is {test!r}; give a share of the rows, above 0 and below 1")
    known = [k for k in get_type_hints(Autoencoder.__init__) if k not in (*OWN, "return")]
    for name in options:
        if name not in known:
            raise unknown("option", name, known)


def _notes(schema: Schema, labels: Labels | None, held: NDArray[np.int64]) -> list[str]:
    """Say what the figures are of."""
    aside = [f"'{name}' is left out: {own.reason}" for name, own in schema.aside.items()]
    if labels is None:
        return aside
    what = "R² of a ridge regression"
    if labels.classes:
        share = f"{labels.guess(held):.3f}"
        what = f"right answers of a logistic regression (the commonest class: {share})"
    return [f"label '{labels.name}', which no recipe sees: {what}, on codes", *aside]
