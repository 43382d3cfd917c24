"""The latent explorer: its points, axes and colours."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from refold.fields import Image
from refold.report.evidence import Evidence
from refold.report.pictures import Sheet, sheet
from refold.report.text import cell, percent, rounded, shortened
from refold.table import is_list
from refold.uses.inspect import Activity

UNITS = 64  # units to choose an axis from
COLOURS = 40  # columns to colour by
NUMBERS = 24_000  # that go into the page as axes, and as colours: few rows have all, many have some
LEVELS = 23  # classes with a colour and shape of their own


def principal(codes: NDArray[np.float32], dims: int = 2) -> tuple[NDArray[np.float64], list[float]]:
    """Project codes on their first principal components ``[n, dims]``, with their shares."""
    centred = codes.astype(np.float64) - codes.mean(0, dtype=np.float64)
    _, sizes, axes = np.linalg.svd(centred, full_matrices=False)
    axes = axes[:dims]
    axes = axes * np.sign(axes[np.arange(len(axes)), np.abs(axes).argmax(1)])[:, None]
    power = np.square(sizes)
    total = float(power.sum())
    shares = [float(p) / total if total > 0 else 0.0 for p in power[:dims]]
    return centred @ axes.T, shares


def explorer(evidence: Evidence) -> dict[str, Any]:
    """Points, axes and colours for the page's script."""
    codes, data = evidence.codes, evidence.data
    units = liveliest(codes, min(UNITS, max(2, NUMBERS // max(1, len(codes)))))
    axes = [{"name": f"latent{d}", "values": rounded(codes[:, d], 4)} for d in units]
    if codes.shape[1] > 2 and len(codes) > 1:
        points, shares = principal(codes)
        first = [
            {"name": f"PC {i + 1} ({percent(s)})", "values": rounded(points[:, i], 4)}
            for i, s in enumerate(shares)
        ]
        axes = [*first, *axes]
    colours: list[dict[str, Any]] = [
        {"name": "score", "kind": "number", "values": rounded(evidence.score, 6)},
        {"name": "p-value", "kind": "number", "values": rounded(evidence.p_value)},
    ]
    if data is not None:
        colours.append(_classes("cause", [str(c) for c in data.cause[data.rows]]))
        colours += columns(evidence)
    return {
        "rows": evidence.numbers,
        "label": "row" if data is not None else "saved row",
        "axes": [*axes, {"name": "score", "values": rounded(evidence.score, 6)}],
        "colours": colours,
        "colour": _first_choice(evidence, colours) or 0,
    }


def liveliest(codes: NDArray[np.float32], most: int) -> NDArray[np.int64]:
    """Units with the largest standard deviations, at most ``most``, in their own order."""
    spread = Activity.of(codes).std
    return np.sort(np.argsort(-spread, kind="stable")[:most])


def first_choice(evidence: Evidence) -> dict[str, Any] | None:
    """Return the colours of a label that was set aside or is predicted, where there is one."""
    found = [] if evidence.data is None else columns(evidence)
    return found[i] if (i := _first_choice(evidence, found)) is not None else None


def _first_choice(evidence: Evidence, colours: list[dict[str, Any]]) -> int | None:
    """Colour by a label that was set aside, where there is one: it was not learnt, so it tells.

    Else by a target.
    """
    schema = evidence.ae.schema_
    for labels in (schema.aside, schema.targets):
        for i, colour in enumerate(colours):
            telling = colour["kind"] == "class" and len(colour["levels"]) > 1
            if telling and not colour["rest"] and colour["name"] in labels:
                return i
    return None


def columns(evidence: Evidence) -> list[dict[str, Any]]:
    """Every column of the shown rows as a colouring, labels and columns set aside included."""
    assert evidence.data is not None
    data, schema, found = evidence.data, evidence.ae.schema_, list[dict[str, Any]]()
    most = min(COLOURS, max(4, NUMBERS // len(data.rows)))
    raw = data.raw(data.rows)
    first = (*schema.aside, *schema.targets)
    order = [*(c for c in raw if c in first), *(c for c in raw if c not in first)]
    classes = {c for f in schema.fields.values() if hasattr(f, "levels") for c in f.columns}
    for name in order:
        column = raw[name]
        if isinstance(column, np.ndarray):
            if column.ndim == 2:
                block = column[:, : most - len(found)].astype(float)
                found += [_numbers(f"{name}{i}", block[:, i]) for i in range(block.shape[1])]
            continue
        if is_list(column.type):
            continue
        found.append(column_colours(name, column, name in classes))
        if len(found) >= most:
            break
    return found[:most]


def column_colours(name: str, column: Any, is_class: bool = False) -> dict[str, Any]:
    """Colours of a column: by class where its values are few or text, by number otherwise."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    kind = column.type
    numeric = pa.types.is_integer(kind) or pa.types.is_floating(kind)
    few = len(column.unique()) <= 10 and pa.types.is_integer(kind)
    if numeric and not is_class and not few:
        return _numbers(name, column.cast(pa.float64(), safe=False).to_numpy())
    return _classes(name, [cell(v) for v in column.to_pylist()])


def spread_of(values: NDArray[np.float64]) -> tuple[float, float]:
    """Range that colours run over, without the outermost 2 % at either end."""
    known = values[~np.isnan(values)]
    if len(known) == 0:
        return 0.0, 1.0
    low, high = np.quantile(known, (0.02, 0.98))
    return float(low), float(high)


def _numbers(name: str, values: NDArray[Any]) -> dict[str, Any]:
    return {"name": name, "kind": "number", "values": rounded(values, 4)}


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
        if isinstance(own, Image) and bool(evidence.data.seen(name).any()):
            return sheet(evidence.data.batch.x[name].numpy())
    return None
