"""The page of a comparison: a table, and the same figures, codes, pictures and losses drawn."""

from __future__ import annotations

import math
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from refold.comparison import MEASURES, Comparison, Contender
from refold.data.sinks import check_writable
from refold.errors import InputError
from refold.fields import Image
from refold.report.charts import Axis
from refold.report.explorer import column_colours, principal
from refold.report.figures import draw, points, training
from refold.report.figures.figure import Figure, Panel
from refold.report.page import environment, publish
from refold.report.pictures import strip
from refold.report.text import percent, shortened
from refold.uses.inspect import examine

MOST = 1500  # rows in a map of codes
PICTURES = 10  # rows shown beside their reconstructions
COLUMNS = 60  # columns of which errors are listed
WIDE, LINE = 400.0, 22.0  # of a chart of one measure, and of a recipe in it
MAP = (320.0, 240.0)


def write(
    found: Comparison, path: str | os.PathLike[str], *, title: str = "A comparison of recipes"
) -> Path:
    """Write one self-contained HTML page about a comparison, and return its path.

    Raises :class:`InputError` where it cannot be written there, and :class:`MissingExtraError`
    where jinja2 is not installed.

    >>> import refold
    >>> found = refold.compare("data.csv", label="species")  # doctest: +SKIP
    >>> write(found, "comparison.html")  # doctest: +SKIP
    PosixPath('comparison.html')
    """
    pages = check(path)
    shown = {**contents(found), "title": title}
    return publish(pages, "comparison.html.jinja", path, ("theme.js",), shown)


def check(path: str | os.PathLike[str]) -> Any:
    """Refuse, before any training, a page that could not be written; return what writes it."""
    target = Path(path)
    if target.suffix.lower() not in (".html", ".htm") or target.is_dir():
        raise InputError(
            f"cannot write {target}: a comparison is one HTML file; name it comparison.html"
        )
    check_writable(target)
    return environment()


def contents(found: Comparison) -> dict[str, Any]:
    """Everything the template shows, by name; a figure that has nothing to show is empty text."""
    figures = {
        "measures": measures_of(found),
        "maps": maps_of(found),
        "pictures": pictures_of(found),
        "losses": losses_of(found),
    }
    columns = list(dict.fromkeys(c for one in found.ranked for c in one.errors))
    return {
        "found": found,
        "named": MEASURES,
        "rows": [
            [(found.written(c, m), c.recipe in found.leaders(m)) for m in found.measures]
            for c in found.ranked
        ],
        "errors": _errors(found, columns[:COLUMNS]) if len(columns) > 1 else [],
        "more": max(0, len(columns) - COLUMNS),
        "remarks": [(c.recipe, text) for c in found.ranked for text in c.remarks],
        **{name: figure.html() if figure.panels else "" for name, figure in figures.items()},
    }


def _errors(found: Comparison, columns: list[str]) -> list[tuple[str, list[tuple[str, bool]]]]:
    """Lines of the table of columns: what does not come back by recipe, and whether it is least."""
    lines: list[tuple[str, list[tuple[str, bool]]]] = []
    for name in columns:
        shares = [c.errors.get(name, math.nan) for c in found.ranked]
        known = [s for s in shares if not math.isnan(s)]
        least = min(known) if len(set(known)) > 1 else None
        cells = [("" if math.isnan(s) else f"{s:.3f}", s == least) for s in shares]
        lines.append((shortened(name), cells))
    return lines


def measures_of(found: Comparison) -> Figure:
    """Draw a panel for each measure, a bar for each recipe."""
    panels = tuple(_measure(found, m) for m in found.measures)
    note = "Recipes stand in the order of the ranking."
    keys = (("bar plus", "the best by the measure"), ("bar bars", "the others"))
    return Figure("Measures", panels, note, keys, tile=19, columns=2)


def _measure(found: Comparison, measure: str) -> Panel:
    values = [c.figures[measure] for c in found.ranked]
    known = [v for v in values if not math.isnan(v)]
    left, right = 110.0, WIDE - 84
    axis = Axis.over([0.0, *known], left, right)
    best, marks = found.leaders(measure), list[str]()
    for i, (one, value) in enumerate(zip(found.ranked, values, strict=True)):
        y = i * LINE
        marks.append(draw.text(0, y + 15, draw.fitted(one.recipe, left - 8), kind="ink"))
        if math.isnan(value):
            marks.append(draw.text(left + 4, y + 15, "not defined"))
            continue
        kind = "plus" if one.recipe in best else "bars"
        start, end = sorted((axis.at(0.0), axis.at(value)))
        marks.append(draw.rect(start, y + 4, max(1.0, round(end - start, 1)), LINE - 8, kind))
        marks.append(draw.text(WIDE, y + 15, found.written(one, measure), anchor="end", kind="ink"))
    zero = axis.at(0.0)
    marks.append(draw.path(f"M{zero:g} 0V{len(values) * LINE:g}", "axis"))
    side = "higher is better" if MEASURES[measure].higher else "lower is better"
    return Panel("".join(marks), WIDE, len(values) * LINE + 2, measure, side)


def maps_of(found: Comparison) -> Figure:
    """Draw the codes of the test rows on their two principal components, coloured by the label."""
    rows = np.sort(np.random.default_rng(0).permutation(len(found.test))[:MOST])
    colours = None
    if found.labels is not None:
        colours = column_colours("label", found.labels.take(rows))
    groups, keys, words = points.grouped(colours, np.arange(len(rows)))
    panels = tuple(
        _map(c, c.codes[rows], groups)
        for c in found.ranked
        if c.codes is not None and len(rows) > 2
    )
    note = f"{len(rows):,} test rows on the two principal components of their codes.{words}"
    return Figure("Codes", panels, note, keys, tile=17, columns=3)


def _map(
    one: Contender, codes: NDArray[np.float32], groups: list[tuple[str, NDArray[np.bool_]]]
) -> Panel:
    dims = min(2, codes.shape[1])
    flat, shares = principal(codes, dims)
    plane = np.zeros((len(codes), 2))
    plane[:, :dims] = flat
    reach = [np.abs(plane[:, i]).max() or 1.0 for i in range(2)]
    scale = min(MAP[0] / 2 / reach[0], MAP[1] / 2 / reach[1]) * 0.94  # of both axes: shapes stay
    xy = np.array(MAP) / 2 + plane * [scale, -scale]
    marks = draw.rect(0, 0, *MAP, "ground")
    marks += "".join(points.dots(xy[members], kind) for kind, members in groups)
    return Panel(marks, *MAP, one.recipe, f"{percent(sum(shares))} of the variance")


def pictures_of(found: Comparison) -> Figure:
    """Draw the same rows as they were given and as each recipe gives them back, if pictures."""
    schema = found.best.schema_
    images = [k for k, own in schema.fields.items() if isinstance(own, Image)]
    rebuilt = [c for c in found.ranked if images and images[0] in c.ae.model_.rebuilt]
    if not rebuilt:
        return Figure("Reconstructions", ())
    name, panels = images[0], list[Panel]()
    rows = np.sort(np.random.default_rng(0).permutation(len(found.test))[:PICTURES])
    table = replace(found.test, columns=found.test.take(rows))
    for one in (None, *rebuilt):
        ae = (one or rebuilt[0]).ae
        batch = ae.schema_.encode(table)[0]
        x = batch.x[name]
        if one is not None:
            x = examine(ae.model_, batch, ae.schema_).points[name].view_as(x)
        high = 1000.0 / len(rows) * x.shape[-2] / x.shape[-1]
        marks = draw.image(strip(torch.nan_to_num(x).numpy()), 0, 0, 1000.0, high)
        caption = "as given" if one is None else one.recipe
        note = "" if one is None else f"{one.errors[name]:.3f} does not come back"
        panels.append(Panel(marks, 1000.0, high, caption, note))
    note = f"The same {len(rows)} test rows, drawn at random, in every line."
    return Figure("Reconstructions", tuple(panels), note, tile=46, most=46, columns=1)


def losses_of(found: Comparison) -> Figure:
    """Draw the loss of each recipe over its steps."""
    panels: list[Panel] = []
    for one in found.ranked:
        figure = training.losses_of(one.ae)
        if figure.panels:
            panels.append(replace(figure.panels[0], caption=one.recipe))
    keys = (
        ("line train", "training batches"),
        ("line held", "rows held out of training"),
        ("kept", "the weights that were kept"),
    )
    note = (
        "In nats per row, of each recipe's own objective: the heights of two recipes do not "
        "compare, their shapes do."
    )
    return Figure("Training", tuple(panels), note, keys, tile=19, columns=2)
