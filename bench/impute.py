"""How well the imputation recipe fills holes, beside the usual methods, on eight real tables.

    python bench/impute.py FOLDER --out results.json [--methods M ...] [--tables T ...]

FOLDER holds adult/adult.data, tables/{titanic,penguins,diamonds}.csv and adbench/*.npz, of which
four sets are read without their labels. A table has at most 10,000 rows. Cells are hidden in two
ways, about a fifth of them each time: ``random``, any observed cell alike; ``rule`` (MAR, as in
Muzellec et al. 2020), half of the columns stay complete and drive what is hidden in the others. A
method sees the table with its holes and fills them; time is that of fitting and filling, in one
thread, by the clock and by the processor (the same but on a busy machine). Numbers: RMSE over
hidden cells by the column's standard deviation, averaged over columns. Categories: share of hidden
cells filled wrongly, averaged over columns. Tables below 2,000 rows are run with three seeds, the
others with one. Runs found in the results file are not run again unless ``--again`` is given.
HyperImpute runs in an environment of its own, whose interpreter ``--hyperimpute`` names, for at
most ten minutes of the processor a run (0.1.17 wants scikit-learn < 1.6 and pandas < 2.3: with
later ones it leaves the means in place without a word). A run without a result shares the last rank
of its setting.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import expit
from scipy.stats import rankdata
from sklearn.ensemble import (
    ExtraTreesClassifier,
    ExtraTreesRegressor,
    RandomForestClassifier,
    RandomForestRegressor,
)
from sklearn.experimental import enable_iterative_imputer  # noqa: F401  # pyright: ignore[reportUnusedImport]
from sklearn.impute import IterativeImputer, KNNImputer
from sklearn.linear_model import BayesianRidge
from threadpoolctl import threadpool_limits

import refold

Matrix = NDArray[np.float64]
Kinds = dict[str, Literal["numeric", "categorical"]]
Record = dict[str, Any]

ROWS = 10_000
SMALL = 2_000  # rows below which a table is run with three seeds
SHARE = 0.2  # of cells hidden at random
HIDDEN = 0.4  # of the cells of a column that a rule hides
SLOPE = 3.0  # of the rule's logistic, over a driver that runs from 0 to 1
LIMIT = 600  # seconds of the processor for a run in another environment
MECHANISMS = ("random", "rule")
CODES = {"titanic": ("survived", "pclass")}  # whole numbers that name a class
SETS = {"wine": "45_wine", "thyroid": "38_thyroid", "pendigits": "28_pendigits",
        "satellite": "30_satellite"}  # fmt: skip
TABLES = ("wine", "penguins", "titanic", "thyroid", "pendigits", "satellite", "diamonds", "adult")


# --- tables and their holes --------------------------------------------------------------------


@dataclass(frozen=True)
class Table:
    """A frame of float and string columns, and which of them are categories."""

    frame: pd.DataFrame
    kinds: Kinds

    @property
    def seeds(self) -> range:
        """The seeds that it is run with."""
        return range(3 if len(self.frame) < SMALL else 1)


def tables(folder: Path, names: Sequence[str] = TABLES) -> dict[str, Table]:
    """Read tables by name."""
    return {name: table(raw(folder, name), CODES.get(name, ())) for name in names}


def raw(folder: Path, name: str) -> pd.DataFrame:
    """A table as its file has it."""
    if name in SETS:
        x = np.load(folder / "adbench" / f"{SETS[name]}.npz", allow_pickle=True)["X"]
        return pd.DataFrame(x, columns=[f"x{i}" for i in range(x.shape[1])]).astype(float)
    if name == "adult":
        path = folder / "adult" / "adult.data"
        return pd.read_csv(path, skipinitialspace=True, na_values="?", keep_default_na=False)
    return pd.read_csv(folder / "tables" / f"{name}.csv")


def table(frame: pd.DataFrame, codes: Sequence[str] = ()) -> Table:
    """At most so many rows, no constant column, numbers as floats and categories as strings."""
    if len(frame) > ROWS:
        frame = frame.sample(ROWS, random_state=0)
    frame = frame.loc[:, frame.nunique() > 1].reset_index(drop=True)
    kinds: Kinds = {}
    columns: dict[str, Any] = {}
    for name, column in frame.items():
        numeric = pd.api.types.is_numeric_dtype(column) and column.nunique() > 2
        kinds[str(name)] = "numeric" if numeric and name not in codes else "categorical"
        to = float if kinds[str(name)] == "numeric" else "str"
        columns[str(name)] = column.astype(to)
    return Table(pd.DataFrame(columns), kinds)


def holed(frame: pd.DataFrame, kinds: Kinds, mechanism: str, seed: int) -> pd.DataFrame:
    """The frame with some of its observed cells missing."""
    draw = np.random.default_rng([MECHANISMS.index(mechanism), seed])
    seen = frame.notna().to_numpy()
    hide = np.zeros_like(seen)
    if mechanism == "random":
        cells = np.flatnonzero(seen)
        hide.flat[draw.choice(cells, round(SHARE * len(cells)), replace=False)] = True
    else:
        order = draw.permutation(frame.shape[1])
        drivers, others = np.split(order, [frame.shape[1] // 2])
        for j in others:
            driver = str(frame.columns[draw.choice(drivers)])
            slope = SLOPE * draw.choice([-1.0, 1.0])
            score = slope * level(frame[driver], kinds[driver])
            hide[:, j] = (draw.random(len(frame)) < chances(score, seen[:, j])) & seen[:, j]
    return frame.mask(hide)


def level(column: Any, kind: str) -> Matrix:
    """A column's rank, or its level's, from 0 to 1; a missing cell is in the middle."""
    if kind == "categorical":
        codes = column.astype("category").cat.codes.to_numpy()
        ranks = np.where(codes < 0, np.nan, codes.astype(float))
    else:
        ranks = column.rank().to_numpy(dtype=float) - 1
    return np.nan_to_num(ranks / np.nanmax(ranks), nan=0.5)


def chances(score: Matrix, seen: NDArray[np.bool_]) -> Matrix:
    """Logistic probabilities of the given mean over the cells that are seen."""

    def excess(offset: float) -> float:
        return float(expit(score[seen] + offset).mean()) - HIDDEN

    solved: Any = brentq(excess, -20, 20)
    return expit(score + solved)


def scores(full: pd.DataFrame, given: pd.DataFrame, found: pd.DataFrame, kinds: Kinds) -> Record:
    """Errors over the cells that were hidden, averaged over columns of a kind."""
    parts: dict[str, list[float]] = {"numeric": [], "categorical": []}
    for name, kind in kinds.items():
        hidden = (given[name].isna() & full[name].notna()).to_numpy()
        if not hidden.any():
            continue
        true, guess = full[name].to_numpy()[hidden], found[name].to_numpy()[hidden]
        if pd.isna(guess).any():
            raise ValueError(f"column {name!r} still has missing cells")
        if kind == "numeric":
            off = np.asarray(guess, float) - np.asarray(true, float)
            parts[kind].append(float(np.sqrt(np.mean(off**2)) / np.nanstd(full[name].to_numpy())))
        else:
            parts[kind].append(float(np.mean(true.astype(str) != guess.astype(str))))
    nrmse, errors = (float(np.mean(p)) if p else None for p in parts.values())
    return {"nrmse": nrmse, "error": errors}


# --- methods -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Encoded:
    """A frame as numbers: standardised columns, and an indicator per level of a category.

    Levels come most frequent first. ``reference`` leaves the first without an indicator: of all
    of them together each is one minus the rest, so a linear regression would learn only that.
    """

    frame: pd.DataFrame
    kinds: Kinds
    reference: bool = False

    def levels(self, name: str) -> NDArray[Any]:
        """A category's levels, most frequent first."""
        return self.frame[name].value_counts().index.to_numpy(dtype=object)

    def scale(self, name: str) -> tuple[float, float]:
        """A number's mean and deviation over the observed cells."""
        values = self.frame[name].to_numpy(dtype=float)
        return float(np.nanmean(values)), float(np.nanstd(values)) or 1.0

    def codes(self, name: str) -> Matrix:
        """A column as one: standardised, or the level's number; NaN where missing."""
        if self.kinds[name] == "numeric":
            mean, deviation = self.scale(name)
            return (self.frame[name].to_numpy(dtype=float) - mean) / deviation
        at = pd.Index(self.levels(name)).get_indexer(self.frame[name].to_numpy(dtype=object))
        return np.where(at < 0, np.nan, at)

    def matrix(self) -> Matrix:
        """All columns side by side, NaN where missing."""
        blocks: list[Matrix] = []
        for name, kind in self.kinds.items():
            codes = self.codes(name)
            if kind == "numeric":
                blocks.append(codes[:, None])
                continue
            levels = np.arange(int(self.reference), len(self.levels(name)))
            ones = (codes[:, None] == levels).astype(float)
            blocks.append(np.where(np.isnan(codes)[:, None], np.nan, ones))
        return np.concatenate(blocks, axis=1)

    def back(self, filled: Matrix) -> pd.DataFrame:
        """The frame filled from a filled matrix, a category by its largest indicator."""
        columns: list[Matrix] = []
        start = 0
        for name, kind in self.kinds.items():
            width = 1 if kind == "numeric" else len(self.levels(name)) - int(self.reference)
            block = filled[:, start : start + width]
            start += width
            if kind == "numeric":
                columns.append(block[:, 0])
                continue
            if self.reference:
                block = np.concatenate([1 - block.sum(1, keepdims=True), block], axis=1)
            columns.append(block.argmax(1).astype(float))
        return self.back_codes(np.stack(columns, axis=1))

    def back_codes(self, codes: Matrix) -> pd.DataFrame:
        """The frame filled from a column of codes each."""
        found = self.frame.copy()
        for j, (name, kind) in enumerate(self.kinds.items()):
            missing = self.frame[name].isna().to_numpy()
            if not missing.any():
                continue
            if kind == "numeric":
                mean, deviation = self.scale(name)
                found.loc[missing, name] = codes[missing, j] * deviation + mean
            else:
                found.loc[missing, name] = self.levels(name)[codes[missing, j].astype(int)]
        return found


def mean(frame: pd.DataFrame, kinds: Kinds, seed: int) -> pd.DataFrame:
    """Mean or most frequent level: zero among codes, both."""
    del seed
    return Encoded(frame, kinds).back_codes(np.zeros(frame.shape))


def knn(frame: pd.DataFrame, kinds: Kinds, seed: int) -> pd.DataFrame:
    """The five nearest rows."""
    del seed
    rows = Encoded(frame, kinds)
    return rows.back(KNNImputer(n_neighbors=5).fit_transform(rows.matrix()))


def chained(
    frame: pd.DataFrame, kinds: Kinds, seed: int, regressor: Callable[[int], Any]
) -> pd.DataFrame:
    """Ten rounds of scikit-learn's IterativeImputer, clipped to the observed range."""
    rows = Encoded(frame, kinds, reference=True)
    x = rows.matrix()
    imputer = IterativeImputer(
        regressor(seed),
        max_iter=10,
        min_value=np.nanmin(x, axis=0),
        max_value=np.nanmax(x, axis=0),
        random_state=seed,
    )
    return rows.back(np.asarray(imputer.fit_transform(x)))


def trees(seed: int) -> ExtraTreesRegressor:
    """Extra-trees with the settings of :func:`forests`."""
    tried: Any = "sqrt"
    return ExtraTreesRegressor(100, max_features=tried, min_samples_split=6, random_state=seed)


def forests(frame: pd.DataFrame, kinds: Kinds, seed: int, extra: bool) -> pd.DataFrame:
    """missForest: chained forests until the filled cells stop settling, at most ten times.

    As missForest's defaults have it: 100 trees, the root of the number of columns tried at a
    split, regression nodes of five rows or fewer not split.
    """
    regressor, classifier = (
        (ExtraTreesRegressor, ExtraTreesClassifier)
        if extra
        else (RandomForestRegressor, RandomForestClassifier)
    )
    rows = Encoded(frame, kinds)
    x = np.stack([rows.codes(name) for name in kinds], axis=1)
    numeric = np.array([kind == "numeric" for kind in kinds.values()])
    missing = np.isnan(x)
    x[missing] = 0
    counts = missing.sum(0)
    order = [j for j in np.argsort(counts, kind="stable") if counts[j]]
    before = (np.inf, np.inf)
    for turn in range(10):
        last = x.copy()
        for j in order:
            common: dict[str, Any] = {
                "n_estimators": 100,
                "max_features": "sqrt",
                "random_state": 10_000 * seed + 100 * turn + int(j),
                "n_jobs": 1,
            }
            model = regressor(min_samples_split=6, **common) if numeric[j] else classifier(**common)
            others, hidden = np.delete(x, j, axis=1), missing[:, j]
            model.fit(others[~hidden], x[~hidden, j])
            x[hidden, j] = model.predict(others[hidden])
        moved = np.square(x - last)[:, numeric].sum() / max(np.square(x[:, numeric]).sum(), 1e-12)
        changed = (x != last)[:, ~numeric].sum() / max(missing[:, ~numeric].sum(), 1)
        if moved >= before[0] and changed >= before[1]:
            return rows.back_codes(last)
        before = (
            moved if counts[numeric].any() else -np.inf,
            changed if counts[~numeric].any() else -np.inf,
        )
    return rows.back_codes(x)


def imputation(frame: pd.DataFrame, kinds: Kinds, seed: int) -> pd.DataFrame:
    """The package's own recipe; it is told which columns are numbers, as the others are."""
    fields = {name: "numeric" for name, kind in kinds.items() if kind == "numeric"}
    ae: Any = refold.Autoencoder(recipe="imputation", fields=fields, seed=seed)
    return ae.fit(frame).impute(frame)


HYPERIMPUTE = """
import os, resource, sys, time
if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
import pandas as pd
from hyperimpute.plugins.imputers import Imputers
from hyperimpute.utils.distributions import enable_reproducible_results

source, target, seed, limit, classes = sys.argv[1:]
enable_reproducible_results(int(seed))
frame = pd.read_csv(source)
limit = int(time.process_time()) + int(limit)
resource.setrlimit(resource.RLIMIT_CPU, (limit, limit))
plugin = Imputers().get(
    "hyperimpute", random_state=int(seed), **({"class_threshold": int(classes)} if classes else {})
)
began = time.perf_counter()
worked = time.process_time()
found = plugin.fit_transform(frame)
seconds, cpu = time.perf_counter() - began, time.process_time() - worked
found.columns = frame.columns
found.to_csv(target, index=False)
print(seconds, cpu)
"""


def hyperimpute(
    frame: pd.DataFrame, kinds: Kinds, seed: int, python: Path
) -> tuple[pd.DataFrame, float, float]:
    """HyperImpute on numbers and level codes, in its own environment; and its two times.

    As it comes, but that its threshold, below which a column's values count as classes, is set so
    that all categories do.
    """
    rows = Encoded(frame, kinds)
    most = max((len(rows.levels(n)) for n, k in kinds.items() if k == "categorical"), default=0)
    classes = str(most + 2) if most else ""
    codes = {
        name: frame[name].to_numpy() if kind == "numeric" else rows.codes(name)
        for name, kind in kinds.items()
    }
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "given.csv", Path(folder) / "found.csv"
        pd.DataFrame(codes).to_csv(source, index=False)
        options = [str(source), str(target), str(seed), str(LIMIT), classes]
        done = subprocess.run(
            [str(python.absolute()), "-c", HYPERIMPUTE, *options],
            cwd=folder,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode < 0:
            raise TimeoutError(f"stopped after {LIMIT} s, by signal {-done.returncode}")
        if done.returncode:
            raise RuntimeError(done.stderr.strip().splitlines()[-1])
        answer = pd.read_csv(target)
    found = frame.copy()
    for name, kind in kinds.items():
        missing = frame[name].isna().to_numpy()
        values = answer[name].to_numpy(dtype=float)[missing]
        if kind == "categorical":
            levels = rows.levels(name)
            at = np.clip(np.rint(values), 0, len(levels) - 1).astype(int)
            found.loc[missing, name] = levels[at]
        else:
            found.loc[missing, name] = values
    seconds, cpu = map(float, done.stdout.split()[-2:])
    return found, seconds, cpu


METHODS: dict[str, Callable[[pd.DataFrame, Kinds, int], pd.DataFrame]] = {
    "mean": mean,
    "knn": knn,
    "ridge": partial(chained, regressor=lambda _: BayesianRidge()),
    "extra-trees": partial(forests, extra=True),
    "chained-trees": partial(chained, regressor=trees),
    "random-forest": partial(forests, extra=False),
    "refold": imputation,
}
NAMES = (*METHODS, "hyperimpute")


def run(method: str, data: Table, mechanism: str, seed: int, python: Path | None) -> Record:
    """Fill one table's holes; what a method failed with, if it did."""
    given = holed(data.frame, data.kinds, mechanism, seed)
    began, worked = time.perf_counter(), time.process_time()
    try:
        if method == "hyperimpute":
            assert python, "--hyperimpute names the interpreter of its environment"
            found, seconds, cpu = hyperimpute(given, data.kinds, seed, python)
        else:
            found = METHODS[method](given.copy(), data.kinds, seed)
            seconds, cpu = time.perf_counter() - began, time.process_time() - worked
        return {"seconds": seconds, "cpu": cpu, **scores(data.frame, given, found, data.kinds)}
    except Exception as failure:  # a method's failure is a result
        reason = f"{type(failure).__name__}: {str(failure)[-300:]}"
        return {"seconds": time.perf_counter() - began, "failure": reason}


# --- results -----------------------------------------------------------------------------------


def key(record: Record) -> tuple[Any, ...]:
    return tuple(record[k] for k in ("table", "mechanism", "seed", "method"))


def stored(path: Path) -> list[Record]:
    return json.loads(path.read_text()) if path.exists() else []


def store(path: Path, record: Record) -> None:
    """Put a record in the place of the one it repeats, if any."""
    kept = [r for r in stored(path) if key(r) != key(record)]
    beside = path.with_suffix(".part")
    beside.write_text(json.dumps([*kept, record], indent=1))
    beside.replace(path)


def show(records: Sequence[Record]) -> None:
    """Print a line per setting and method, and each method's mean ranks."""
    methods = [m for m in NAMES if any(r["method"] == m for r in records)]
    ranks: dict[str, dict[str, list[float]]] = {m: {"nrmse": [], "error": []} for m in methods}
    totals = {m: np.zeros(2) for m in methods}
    print("table, mechanism, method: NRMSE, error rate, seconds by the clock and the processor")
    for table_name in TABLES:
        for mechanism in MECHANISMS:
            setting = [
                r for r in records if (r["table"], r["mechanism"]) == (table_name, mechanism)
            ]
            here = [m for m in methods if any(r["method"] == m for r in setting)]
            means: dict[str, list[float]] = {"nrmse": [], "error": []}
            for method in here:
                runs = [r for r in setting if r["method"] == method]
                times = np.array([[r["seconds"], r.get("cpu", np.nan)] for r in runs])
                totals[method] += np.nansum(times, axis=0)
                seconds, cpu = times.mean(0)
                for measure, values in means.items():
                    each = [np.inf if r.get(measure) is None else r[measure] for r in runs]
                    values.append(float(np.mean(each)))
                failed = "".join(sorted({f" ({r['failure']})" for r in runs if "failure" in r}))
                shown = [f"{v[-1]:.3f}" if np.isfinite(v[-1]) else "-" for v in means.values()]
                print(f"{table_name:10}{mechanism:8}{method:14}{shown[0]:>7}{shown[1]:>7}"
                      f"{seconds:9.1f}{cpu:9.1f}{failed}")  # fmt: skip
            for measure, values in means.items():
                if np.isfinite(values).any():
                    for method, rank in zip(here, rankdata(values), strict=True):
                        ranks[method][measure].append(float(rank))
    print("method: mean rank by NRMSE (settings), by error rate (settings), total seconds twice")
    for method in methods:
        cells = [
            f"{np.mean(r):6.2f} ({len(r):2})" if r else "     -     "
            for r in ranks[method].values()
        ]
        print(f"{method:14}{'  '.join(cells)}{totals[method][0]:10.1f}{totals[method][1]:10.1f}")


def main() -> None:
    """Run what is asked for and not yet in the results, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--methods", nargs="*", choices=NAMES, default=list(METHODS))
    parser.add_argument("--tables", nargs="*", choices=TABLES, default=list(TABLES))
    parser.add_argument("--hyperimpute", type=Path, metavar="PYTHON")
    parser.add_argument("--again", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    for name, data in tables(given.folder, given.tables).items():
        for mechanism in MECHANISMS:
            for seed in data.seeds:
                for method in given.methods:
                    record: Record = {
                        "table": name,
                        "mechanism": mechanism,
                        "seed": seed,
                        "method": method,
                    }
                    if not given.again and key(record) in map(key, stored(given.out)):
                        continue
                    with threadpool_limits(1):
                        record |= run(method, data, mechanism, seed, given.hyperimpute)
                    store(given.out, record)
                    print(json.dumps(record), flush=True)
    show(stored(given.out))


if __name__ == "__main__":
    main()
