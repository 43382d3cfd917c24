"""The latent: the explorer's points and colours, and histograms and activity of the dimensions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from refold.fields import Image
from refold.report.charts import Axis, Histogram, bars, histogram
from refold.report.evidence import Evidence
from refold.report.pictures import Sheet, sheet
from refold.report.text import cell, number, percent, rounded, shortened
from refold.uses.inspect import Activity

UNITS = 64  # dimensions drawn one by one
COLOURS = 40  # columns to colour by
LEVELS = 23  # classes with a colour and shape of their own
EVEN = 0.5  # share of zeros from which a histogram leaves them out


def liveliest(codes: NDArray[np.float32], most: int = UNITS) -> NDArray[np.int64]:
    """Dimensions with the largest standard deviations, at most ``most``, in their own order."""
    spread = Activity.of(codes).std
    return np.sort(np.argsort(-spread, kind="stable")[:most])


def principal(codes: NDArray[np.float32]) -> tuple[NDArray[np.float64], list[float]]:
    """Project codes on their first two principal components ``[n, 2]``, with their shares."""
    centred = codes.astype(np.float64) - codes.mean(0, dtype=np.float64)
    _, sizes, axes = np.linalg.svd(centred, full_matrices=False)
    axes = axes[:2] * np.sign(axes[np.arange(len(axes[:2])), np.abs(axes[:2]).argmax(1)])[:, None]
    power = np.square(sizes)
    total = float(power.sum())
    shares = [float(p) / total if total > 0 else 0.0 for p in power[:2]]
    return centred @ axes.T, shares


def explorer(evidence: Evidence) -> dict[str, Any]:
    """Points, axes and colours for the page's script."""
    codes, data = evidence.codes, evidence.data
    units = liveliest(codes)
    axes = [{"name": f"z{d}", "values": rounded(codes[:, d])} for d in units]
    if codes.shape[1] > 2 and len(codes) > 1:
        points, shares = principal(codes)
        first = [
            {"name": f"PC {i + 1} ({percent(s)})", "values": rounded(points[:, i])}
            for i, s in enumerate(shares)
        ]
        axes = [*first, *axes]
    colours: list[dict[str, Any]] = [
        {"name": "score", "kind": "number", "values": evidence.score.tolist()},
        {"name": "p-value", "kind": "number", "values": rounded(evidence.p_value)},
    ]
    if data is not None:
        colours.append(_classes("cause", [str(c) for c in data.cause[data.rows]]))
        colours += columns(evidence)
    return {
        "rows": list(range(len(codes))) if data is None else data.rows.tolist(),
        "label": "row" if data is not None else "saved row",
        "axes": [*axes, {"name": "score", "values": evidence.score.tolist()}],
        "colours": colours,
        "colour": _first_choice(evidence, colours),
    }


def _first_choice(evidence: Evidence, colours: list[dict[str, Any]]) -> int:
    """Colour by a label that was set aside, where there is one: it was not learnt, so it tells."""
    labels = evidence.ae.schema_.aside
    for i, colour in enumerate(colours):
        telling = colour["kind"] == "class" and len(colour["levels"]) > 1 and not colour["rest"]
        if telling and colour["name"] in labels:
            return i
    return 0


def columns(evidence: Evidence) -> list[dict[str, Any]]:
    """Every column of the shown rows as a colouring, labels and columns set aside included."""
    assert evidence.data is not None
    data, schema, found = evidence.data, evidence.ae.schema_, list[dict[str, Any]]()
    raw = data.raw(data.rows)
    order = [*(c for c in raw if c in schema.aside), *(c for c in raw if c not in schema.aside)]
    classes = {c for f in schema.fields.values() if hasattr(f, "levels") for c in f.columns}
    for name in order:
        column = raw[name]
        if isinstance(column, np.ndarray):
            if column.ndim == 2:
                block = column[:, : COLOURS - len(found)].astype(float)
                found += [_numbers(f"{name}{i}", block[:, i]) for i in range(block.shape[1])]
            continue
        found.append(_column(name, column, name in classes))
        if len(found) >= COLOURS:
            break
    return found[:COLOURS]


def _column(name: str, column: Any, is_class: bool) -> dict[str, Any]:
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    kind = column.type
    numeric = pa.types.is_integer(kind) or pa.types.is_floating(kind)
    few = len(column.unique()) <= 10 and pa.types.is_integer(kind)
    if numeric and not is_class and not few:
        return _numbers(name, column.cast(pa.float64(), safe=False).to_numpy())
    return _classes(name, [cell(v) for v in column.to_pylist()])


def _numbers(name: str, values: NDArray[Any]) -> dict[str, Any]:
    return {"name": name, "kind": "number", "values": rounded(values)}


def _classes(name: str, values: list[str | None]) -> dict[str, Any]:
    """Code texts by frequency; the rarest share one level, and a missing one is -1."""
    texts, counts = np.unique([v for v in values if v is not None], return_counts=True)
    common = [str(t) for t in texts[np.argsort(-counts, kind="stable")]]
    levels = sorted(common[:LEVELS], key=_natural)
    place = {t: i for i, t in enumerate(levels)}
    codes = [-1 if v is None else place.get(v, len(levels)) for v in values]
    if len(common) > LEVELS:
        levels = [*levels, f"others ({len(common) - LEVELS})"]
    return {
        "name": name, "kind": "class", "values": codes,
        "levels": [shortened(t) for t in levels], "rest": len(common) > LEVELS,
    }  # fmt: skip


def _natural(text: str) -> tuple[float, str]:
    try:
        return float(text.replace("−", "-")), ""
    except ValueError:
        return float("inf"), text


def thumbnails(evidence: Evidence) -> Sheet | None:
    """Pictures of all shown rows, where the first field of images has them."""
    if evidence.data is None:
        return None
    for name, own in evidence.ae.schema_.fields.items():
        if isinstance(own, Image):
            return sheet(evidence.data.batch.x[name].numpy())
    return None


@dataclass(frozen=True)
class UnitView:
    """One dimension of the code."""

    name: str
    chart: Histogram
    std: str
    share: str
    sparse: bool


@dataclass(frozen=True)
class Profile:
    """A figure of every dimension, sorted: bars, their scale and the best and worst values."""

    path: str
    top: str
    last: str


@dataclass(frozen=True)
class Units:
    """Histograms of the liveliest dimensions, profiles of all, and what stands out in words."""

    views: tuple[UnitView, ...]
    total: int
    std: Profile
    share: Profile | None
    remarks: tuple[str, ...]


def units(evidence: Evidence) -> Units:
    """Describe how the dimensions of the code are used."""
    codes = evidence.codes
    activity = Activity.of(codes)
    views: list[UnitView] = []
    for d in liveliest(codes):
        if activity.share[d] == 0:
            continue
        values, sparse = codes[:, d], activity.share[d] < EVEN
        views.append(
            UnitView(
                f"z{d}",
                histogram(values[values != 0] if sparse else values),
                number(float(activity.std[d]), 3),
                percent(float(activity.share[d])),
                bool(sparse),
            )
        )
    sparse = bool((activity.share < 0.999).any())
    return Units(
        tuple(views),
        codes.shape[1],
        profile(activity.std),
        profile(activity.share, top=1.0) if sparse else None,
        tuple(_remarks(activity, len(codes))),
    )


def profile(values: NDArray[np.float64], top: float | None = None) -> Profile:
    """Sort values and lay them out as bars in a chart of 400 by 80."""
    ordered = np.sort(values)[::-1]
    highest = top or float(ordered[0]) or 1.0
    x = Axis(0, len(ordered), 0, 400)
    edges = [x.at(i) for i in range(len(ordered) + 1)]
    return Profile(
        bars(edges, ordered / highest * 80, 80),
        number(float(ordered[0])),
        number(float(ordered[-1])),
    )


def _remarks(activity: Activity, rows: int) -> list[str]:
    size, found = len(activity.std), list[str]()
    if rows < 2:
        return ["a single row: nothing varies"]
    dead, still = int((activity.share == 0).sum()), int((activity.std <= 1e-6).sum())
    if dead:
        found.append(f"{dead} of {size} dimensions are zero in every row and not drawn")
    if still > dead:
        found.append(f"{still - dead} of {size} dimensions are constant")
    if not still:
        found.append("every dimension varies" if size > 1 else "the one dimension varies")
    mean = float(activity.share.sum())
    if mean < 0.999 * size:
        found.append(f"{number(mean)} of {size} dimensions are active in a row on average")
    return found
