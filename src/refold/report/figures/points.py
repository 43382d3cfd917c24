"""Codes as points in two or three dimensions, coloured by a label."""

from __future__ import annotations

import importlib
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refold.data.containers import as_arrow
from refold.errors import InputError, missing_extra, unknown
from refold.estimator import Autoencoder
from refold.report.charts import Axis
from refold.report.evidence import Evidence
from refold.report.explorer import (
    column_colours,
    first_choice,
    liveliest,
    principal,
    spread_of,
)
from refold.report.figures import draw
from refold.report.figures.figure import Figure, Panel
from refold.report.text import number, percent, script_json, shortened

METHODS = ("code", "pca", "tsne", "umap")
SLOW = 1000  # rows that t-SNE takes
HUES = 8
YAW, PITCH = 0.6, 0.4  # radians that a drawing in three dimensions is turned by
RAMP = ("#472f7d", "#39568c", "#2a788e", "#1f988b", "#35b779", "#83d44b")  # of viridis


@dataclass(frozen=True)
class Projection:
    """Points ``[n, dims]``, the names of their axes, and which ``rows`` ``[n]`` they are."""

    points: NDArray[np.float64]
    axes: tuple[str, ...]
    rows: NDArray[np.int64]


def scatter(
    ae: Autoencoder, X: Any = None, labels: Any = None, *, dims: int = 2, method: str = "code"
) -> Figure:
    """Draw codes as points, coloured by label; three dimensions turn under the hand in HTML.

    ``labels``: one per row of ``X``, or the name of one of its columns; not given, a label that was
    set aside. ``method``: ``"code"`` the units that vary most, ``"pca"`` principal components,
    ``"tsne"`` (scikit-learn, at most 1,000 rows) and ``"umap"`` (umap-learn). At most 2,000 rows
    are drawn, chosen with the model's seed.

    Raises :class:`InputError` for an unknown method, dims other than 2 or 3 or more than the code
    has, labels of another number than the rows; :class:`MissingExtraError` without umap-learn.

    >>> import numpy as np, refold
    >>> X = np.random.default_rng(0).normal(size=(60, 5))
    >>> ae = refold.Autoencoder(3, recipe="pca").fit(X)
    >>> scatter(ae, X, X[:, 0] > 0).keys
    (('point s0', 'no'), ('point s1', 'yes'))
    """
    if method not in METHODS:
        raise unknown("method of scatter", method, METHODS)
    if dims not in (2, 3):
        raise InputError(f"dims is {dims}; give 2 or 3")
    evidence = Evidence.of(ae, X)
    return scatter_of(evidence, _colours(evidence, labels), dims, method)


def scatter_of(
    evidence: Evidence, colours: dict[str, Any] | None, dims: int = 2, method: str = "code"
) -> Figure:
    """Draw the evidence's codes; ``colours`` as the explorer has them, None: all alike."""
    found = projected(evidence.codes, dims, method, evidence.ae.seed)
    groups, keys, note = grouped(colours, found.rows)
    names = {"code": "", "pca": "", "tsne": "t-SNE of the code. ", "umap": "UMAP of the code. "}
    count = f"{len(found.rows):,} of " if len(found.rows) < len(evidence.codes) else ""
    note = f"{names[method]}A point for each of {count}{evidence.whose()}.{note}"
    panel = (_flat if dims == 2 else _deep)(found, groups)
    return Figure("The latent", (panel,), note, keys, tile=19, most=46, columns=1)


def projected(
    codes: NDArray[np.float32], dims: int, method: str = "code", seed: int = 0
) -> Projection:
    """Take codes ``[n, D]`` to points in ``dims`` dimensions."""
    n, size = codes.shape
    rows = np.arange(n)
    if method in ("code", "pca"):
        if size < dims or (method == "pca" and n < dims):
            what = f"a code of {size} numbers" if size < dims else f"{n} rows"
            raise InputError(f"{what} cannot be drawn in {dims} dimensions; give fewer dims")
        if method == "code":
            units = liveliest(codes, dims)
            return Projection(
                codes[:, units].astype(float), tuple(f"latent{d}" for d in units), rows
            )
        points, shares = principal(codes, dims)
        names = (f"PC {i + 1} ({percent(s)})" for i, s in enumerate(shares))
        return Projection(points, tuple(names), rows)
    if n < 5:
        raise InputError(f"{n} rows are too few for {method}; give 5 or more")
    if method == "tsne":
        rows = np.sort(np.random.default_rng(seed).permutation(n)[:SLOW])
    embed = _tsne if method == "tsne" else _umap
    name = "t-SNE" if method == "tsne" else "UMAP"
    points = embed(codes[rows], dims, seed)
    return Projection(points.astype(float), tuple(f"{name} {i + 1}" for i in range(dims)), rows)


def _tsne(codes: NDArray[np.float32], dims: int, seed: int) -> NDArray[Any]:
    from sklearn.manifold import TSNE

    perplexity = min(30.0, (len(codes) - 1) / 3)
    start = "pca" if codes.shape[1] >= dims else "random"
    return TSNE(dims, perplexity=perplexity, init=start, random_state=seed).fit_transform(codes)


def _umap(codes: NDArray[np.float32], dims: int, seed: int) -> NDArray[Any]:
    try:
        umap: Any = importlib.import_module("umap")
    except ImportError as error:
        raise missing_extra("umap-learn", "umap", "method='umap'") from error
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a seed forbids threads, which is what it is for
        count = min(15, len(codes) - 1)
        model = umap.UMAP(n_neighbors=count, n_components=dims, random_state=seed, n_jobs=1)
        points = np.asarray(model.fit_transform(codes))
    graph: Any = model.graph_
    edges, least = int(graph.nnz), len(codes) * (count - 1) // 2
    if edges < least:
        # Seen with umap-learn 0.5.12 on numba 0.68: most edges get no weight.
        warnings.warn(
            f"umap-learn joined {len(codes)} rows by {edges} edges, where {count} neighbours a row "
            f"make more than {least}: it does not work with the numba installed, and its map means "
            f"little; install another numba, or use method='tsne'",
            stacklevel=2,
        )
    return points


def _colours(evidence: Evidence, labels: Any) -> dict[str, Any] | None:
    """Colours of the rows at hand: of given labels, a column by name, or a label set aside."""
    every = len(evidence.codes) if evidence.data is None else len(evidence.data.table)
    if labels is None or isinstance(labels, str):
        if evidence.data is None:
            if labels is not None:
                raise InputError(f"there is no column '{labels}' without rows; give X")
            return None
        raw = evidence.data.raw(evidence.data.rows)
        if labels is None:
            return first_choice(evidence)
        if labels not in raw or isinstance(raw[labels], np.ndarray):
            raise unknown(
                "column", labels, [k for k, v in raw.items() if not isinstance(v, np.ndarray)]
            )
        return column_colours(labels, raw[labels])
    column = as_arrow(np.asarray(labels))
    if len(column) != every:
        raise InputError(f"there are {len(column)} labels for {every} rows; give one per row")
    return column_colours("label", column.take(evidence.rows))


def grouped(
    colours: dict[str, Any] | None, rows: NDArray[np.int64]
) -> tuple[list[tuple[str, NDArray[np.bool_]]], tuple[tuple[str, str], ...], str]:
    """Part points by colour: a class and the points that have it; with the keys, and a remark."""
    everything = np.ones(len(rows), dtype=bool)
    if colours is None:
        return [("point s0", everything)], (), ""
    if colours["kind"] == "number":
        values = np.array([np.nan if v is None else v for v in colours["values"]], float)[rows]
        low, high = spread_of(values)
        share = np.clip((values - low) / (high - low or 1.0), 0, 1)
        step = np.nan_to_num(share * (len(RAMP) - 1)).round().astype(int)
        groups = [(f"point r{i}", (step == i) & ~np.isnan(values)) for i in range(len(RAMP))]
        groups.append(("point s-", np.isnan(values)))
        words = (
            f" Colour: {shortened(colours['name'])}, from {number(low)} (dark) to {number(high)}."
        )
        return [g for g in groups if g[1].any()], (), words
    level = np.array(colours["values"])[rows]
    names = colours["levels"]
    rest = len(names) - 1 if colours["rest"] else -2
    kinds = {
        i: "point s-" if i == rest else f"point {'square ' if i // HUES % 2 else ''}s{i % HUES}"
        for i in range(len(names))
    }
    groups = [(k, level == i) for i, k in kinds.items()]
    keys = [(k, names[i]) for i, k in kinds.items()]
    if (level < 0).any():
        groups, keys = [*groups, ("point s-", level < 0)], [*keys, ("point s-", "missing")]
    return [g for g in groups if g[1].any()], tuple(keys), ""


def dots(xy: NDArray[np.float64], kind: str) -> str:
    """Draw points as one path of dots without length, which costs a tenth of a circle each."""
    small = " small" if len(xy) > 150 else ""
    number_of = kind.split()[-1]
    colour = f' style="stroke:{RAMP[int(number_of[1:])]}"' if number_of.startswith("r") else ""
    d = "".join(f"M{x:g} {y:g}h0" for x, y in np.round(xy, 1).tolist())
    return f'<path class="{kind}{small}"{colour} d="{d}"/>'


def _flat(found: Projection, groups: list[tuple[str, NDArray[np.bool_]]]) -> Panel:
    wide, high = 640.0, 440.0
    x = _axis(found.points[:, 0], 52, wide - 8)
    y = _axis(found.points[:, 1], high - 40, 8)
    marks: list[str] = []
    for tick in x.ticks(7):
        marks.append(draw.path(f"M{tick.at:g} 8V{high - 40:g}", "grid"))
        marks.append(draw.text(tick.at, high - 24, tick.label, anchor="middle"))
    for tick in y.ticks(6):
        marks.append(draw.path(f"M52 {tick.at:g}H{wide - 8:g}", "grid"))
        marks.append(draw.text(46, tick.at + 4, tick.label, anchor="end"))
    xy = np.array([[x.at(a), y.at(b)] for a, b in found.points.tolist()]).reshape(-1, 2)
    marks += [dots(xy[members], kind) for kind, members in groups]
    marks.append(draw.text(wide - 8, high - 6, f"{found.axes[0]} →", anchor="end"))
    marks.append(draw.text(0, high - 6, f"↑ {found.axes[1]}"))
    return Panel("".join(marks), wide, high, label="codes as points in two dimensions")


def _axis(values: NDArray[np.float64], start: float, end: float) -> Axis:
    low, high = float(values.min()), float(values.max())
    margin = (high - low) * 0.03 or 1.0
    return Axis(low - margin, high + margin, start, end)


def turned(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Turn centred points ``[n, 3]`` as the drawing shows them: right, up, towards the eye."""
    x, y, z = points.T
    right, away = np.cos(YAW) * x + np.sin(YAW) * z, -np.sin(YAW) * x + np.cos(YAW) * z
    return np.stack([right, np.cos(PITCH) * y - np.sin(PITCH) * away,
                     np.sin(PITCH) * y + np.cos(PITCH) * away], 1)  # fmt: skip


def _deep(found: Projection, groups: list[tuple[str, NDArray[np.bool_]]]) -> Panel:
    wide, high = 640.0, 440.0
    middle = (found.points.max(0) + found.points.min(0)) / 2
    reach = float(np.abs(found.points - middle).max()) or 1.0
    unit = (found.points - middle) / reach
    scale, centre = 175.0, np.array([wide / 2, high / 2])
    flat = turned(unit)
    place = centre + flat[:, :2] * [scale, -scale]
    marks: list[str] = []
    for i, name in enumerate(found.axes):
        tip = turned(np.eye(3)[i][None] * 1.1)[0]
        a, b = (centre + s * scale * tip[:2] * [1, -1] for s in (-1, 1))
        marks.append(draw.path(f"M{a[0]:.0f} {a[1]:.0f}L{b[0]:.0f} {b[1]:.0f}", "axis"))
        marks.append(draw.text(round(b[0] + 4), round(b[1] - 4), name))
    marks += [dots(place[members], kind) for kind, members in groups]
    kinds = [kind for kind, _ in groups]
    which = np.zeros(len(unit), dtype=int)
    for i, (_, members) in enumerate(groups):
        which[members] = i
    scene = script_json(
        {
            "points": np.round(unit, 2).tolist(), "group": which.tolist(), "axes": found.axes,
            "kinds": [k.replace("point ", "") for k in kinds], "ramp": RAMP,
            "yaw": YAW, "pitch": PITCH,
        }
    )  # fmt: skip
    label = "codes as points in three dimensions; drag to turn"
    return Panel("".join(marks), wide, high, label=label, scene=scene)
