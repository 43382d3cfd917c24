"""Where values are missing."""

from __future__ import annotations

from typing import Any

from refold.errors import InputError
from refold.estimator import Autoencoder
from refold.report.evidence import Evidence
from refold.report.figures import draw
from refold.report.figures.figure import Figure, Panel
from refold.report.gaps import gaps_of
from refold.report.text import percent

COLUMNS = 40  # columns that have a bar
LINE = 18.0


def missing(ae: Autoencoder, X: Any) -> Figure:
    """Draw the share of each column that is missing in ``X``, the largest first.

    Of a column of arrays it is the share of entries. Targets that ``X`` does not hold are not
    missing. Raises :class:`InputError` where nothing is.

    >>> import numpy as np, refold
    >>> X = {"a": np.arange(50) / 7, "b": np.arange(50) ** 2 / 7}
    >>> X["b"][:5] = np.nan
    >>> ae = refold.Autoencoder(1, epochs=1).fit(X)
    >>> missing(ae, X).note
    '1 of 2 columns has missing values. Over the 50 rows of the data.'
    """
    found = missing_of(Evidence.of(ae, X))
    if not found.panels:
        raise InputError("no value is missing in these rows, so there is nothing to draw")
    return found


def missing_of(evidence: Evidence) -> Figure:
    """Draw a bar per column that has gaps; without any a figure without panels."""
    found, title = gaps_of(evidence), "Missing values"
    columns = [c for c in found.columns if c.share > 0]
    if not columns:
        return Figure(title, ())
    shown = sorted(columns, key=lambda c: -c.share)[:COLUMNS]
    width, left, right, marks = 480.0, 150.0, 424.0, list[str]()
    for i, column in enumerate(shown):
        y = i * LINE
        name = f"{column.name} · {column.role}" if column.role else column.name
        marks.append(draw.text(0, y + 12, draw.fitted(name, left - 8), kind="ink"))
        marks.append(draw.rect(left, y + 3, right - left, LINE - 6, "ground"))
        long = round(column.share * (right - left), 1)
        marks.append(draw.rect(left, y + 3, max(1.0, long), LINE - 6, "bars"))
        marks.append(draw.text(width, y + 12, percent(column.share), anchor="end", kind="ink"))
    every = len(found.columns)
    note = f"{len(columns):,} of {every:,} columns {'has' if len(columns) == 1 else 'have'} missing"
    note += " values" + (f"; the {COLUMNS} with most of them" if len(columns) > COLUMNS else "")
    rows = len(evidence.given().table)
    note += f". Over the {f'{rows:,} rows' if rows > 1 else 'row'} of the data."
    panel = Panel("".join(marks), width, LINE * len(shown), label="share missing of each column")
    return Figure(title, (panel,), note, tile=19, most=36, columns=1)
