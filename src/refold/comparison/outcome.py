"""What came of comparing recipes: figures by measure, a ranking, a table."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from refold.data.containers import container, frame
from refold.estimator import Autoencoder
from refold.table import Column, Table


@dataclass(frozen=True)
class Measure:
    """A figure of a model: whether more of it is better, how it is written, and what it is."""

    higher: bool
    form: str
    words: str


MEASURES: dict[str, Measure] = {
    "reconstruction": Measure(
        False, ".3f",
        "share that does not come back: squared error over the variance in training for numbers "
        "and pixels, wrong answers for classes, mean over columns",
    ),
    "neighbours": Measure(
        True, ".3f", "share of the 10 nearest rows, as encoded, that are the nearest by code too"
    ),
    "label": Measure(True, ".3f", "how well a linear map of the code tells the label"),
    "likelihood": Measure(
        True, ",.2f",
        "log-likelihood in nats a row, of models whose codes have a posterior; it compares recipes "
        "with the same likelihoods alone",
    ),
    "seconds": Measure(False, ",.1f", "that training took"),
    "parameters": Measure(False, ",.0f", "numbers that were trained"),
    "code": Measure(False, ",.0f", "numbers in a code"),
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class Contender:
    """A recipe that was trained: the model, its figures by measure, and the error by column.

    ``codes`` ``[n, D]`` are of the test rows, None where a code alone is not the whole of a row.
    """

    recipe: str
    ae: Autoencoder
    figures: Mapping[str, float]
    errors: Mapping[str, float]
    codes: NDArray[np.float32] | None
    remarks: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Comparison:
    """Recipes from the best to the worst by one measure, and those that could not be trained.

    ``refused`` holds a sentence on each of the latter. ``test`` are the rows that none has seen,
    ``labels`` their labels, ``trained`` the number of the others; ``notes`` are on the whole.
    """

    ranked: tuple[Contender, ...]
    refused: Mapping[str, str]
    by: str
    test: Table
    labels: Column | None
    trained: int
    notes: tuple[str, ...]

    @property
    def best(self) -> Autoencoder:
        """The model that comes first."""
        return self.ranked[0].ae

    @property
    def measures(self) -> tuple[str, ...]:
        """Measures of which some recipe has a figure."""
        return tuple(m for m in MEASURES if any(not math.isnan(c.figures[m]) for c in self.ranked))

    def leaders(self, measure: str) -> tuple[str, ...]:
        """Recipes with the best figure; none where all have the same."""
        known = {c.recipe: c.figures[measure] for c in self.ranked}
        known = {k: v for k, v in known.items() if not math.isnan(v)}
        if len(set(known.values())) < 2:
            return ()
        top = (max if MEASURES[measure].higher else min)(known.values())
        return tuple(k for k, v in known.items() if v == top)

    def columns(self) -> dict[str, Column]:
        """Return the table, best first: rank, recipe, a column per measure, and refusals."""
        names, blank = [c.recipe for c in self.ranked], [None] * len(self.refused)
        shown = {m: [_or_none(c.figures[m]) for c in self.ranked] for m in self.measures}
        return {
            "rank": pa.chunked_array([pa.array([*range(1, len(names) + 1), *blank], pa.int64())]),
            "recipe": pa.chunked_array([[*names, *self.refused]]),
            **{m: pa.chunked_array([pa.array([*v, *blank], pa.float64())])
               for m, v in shown.items()},
            "refusal": pa.chunked_array(
                [pa.array([*[None] * len(names), *self.refused.values()], pa.string())]
            ),
        }  # fmt: skip

    def table(self) -> Any:
        """Return the same as a frame, of the library the data came from."""
        return frame(self.columns(), container(self.test.container.kind))

    def written(self, recipe: Contender, measure: str) -> str:
        """Write a figure; nothing stands for one that is not defined."""
        value = recipe.figures[measure]
        return "" if math.isnan(value) else f"{value:{MEASURES[measure].form}}"

    def lines(self) -> list[str]:
        """Write the table for people, a star at the best figures, refusals and notes below."""
        heads = [
            ["recipe", *(f"{m} " for m in self.measures)],
            ["", *("higher " if MEASURES[m].higher else "lower " for m in self.measures)],
        ]
        stars = {m: self.leaders(m) for m in self.measures}
        body = [
            [c.recipe, *(self.written(c, m) + " *"[c.recipe in stars[m]] for m in self.measures)]
            for c in self.ranked
        ]
        cells = [*heads, *body]
        wide = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = [
            "  ".join([row[0].ljust(wide[0]), *map(str.rjust, row[1:], wide[1:])]).rstrip()
            for row in cells
        ]
        refused = [f"refused: {name}: {why}" for name, why in self.refused.items()]
        return [*lines, *refused, *(f"note: {note}" for note in self.notes)]

    def facts(self) -> dict[str, Any]:
        """Return everything but the models as plain values."""
        return {
            "by": self.by,
            "trained": self.trained,
            "tested": len(self.test),
            "recipes": [
                {"recipe": c.recipe, **{m: c.figures[m] for m in self.measures}}
                for c in self.ranked
            ],
            "refused": dict(self.refused),
            "notes": list(self.notes),
        }

    def sentence(self) -> str:
        """Say which recipe comes first, and by what."""
        first = self.ranked[0]
        value = f"{first.figures[self.by]:{MEASURES[self.by].form}}"
        side = "higher" if MEASURES[self.by].higher else "lower"
        return f"by {self.by} ({side} is better) {first.recipe} comes first: {value}"

    def __str__(self) -> str:
        return "\n".join(self.lines())


def place(value: float, measure: str) -> tuple[bool, float]:
    """Order of a figure, the best first and what has none last."""
    missing = math.isnan(value)
    return missing, 0.0 if missing else -value if MEASURES[measure].higher else value


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else value
