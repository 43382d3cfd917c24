"""The page: evidence in, one HTML file out."""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from refold.data.sinks import atomic_path
from refold.errors import missing_extra
from refold.estimator import Autoencoder
from refold.report import anomalies, explorer, gaps, overview, rows
from refold.report.charts import LineChart
from refold.report.evidence import ALPHA, MOST, Evidence, unit
from refold.report.figures import (
    anomaly,
    code,
    decoder,
    draw,
    lacking,
    points,
    restoring,
    sparsity,
    targets,
    training,
)
from refold.report.figures.figure import Figure, Panel, read
from refold.report.text import LONGEST, number, percent, script_json, shortened
from refold.uses import inspect
from refold.version import VERSION

COMPARED = 8  # rows beside their reconstructions
WORST = 12  # most unusual rows
WIDE = 12  # units from which profiles of all are worth a chart
HERE = Path(__file__).parent
CURVE_KEYS = Figure("", (), keys=(("line given", "as given"), ("line back", "as it comes back")))
FILLED_KEYS = Figure("", (), keys=(("line given", "as given"), ("line back", "filled in")))


def write(
    ae: Autoencoder, path: str | os.PathLike[str], data: Any = None, *, title: str | None = None
) -> Path:
    """Write one self-contained HTML page about a fitted model, and return its path.

    ``data`` is anything :func:`refold.data.sources.read` takes: the rows to show, score and
    embed. Without it the page holds what was saved with the model. At most 2,000 rows go into the
    page, drawn with the model's seed; the worst rows are chosen among all.

    Raises :class:`InputError` where the data does not fit the model, and
    :class:`MissingExtraError` where jinja2 is not installed.

    >>> import refold
    >>> write(refold.load("model"), "report.html", "data.csv")  # doctest: +SKIP
    PosixPath('report.html')
    """
    pages = environment()
    evidence = Evidence.of(ae, data)
    shown = {**contents(evidence), "title": title or _title(data, ae)}
    return publish(pages, "page.html.jinja", path, ("page.js", "orbit.js"), shown)


def environment() -> Any:
    """Return the templates' environment; :class:`MissingExtraError` where jinja2 is missing."""
    try:
        import jinja2
    except ImportError as error:
        raise missing_extra("jinja2", "report", "the report") from error
    found = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    found.filters |= {"number": number, "percent": percent, "short": shortened, "curve": _curve}
    return found


def publish(
    pages: Any,
    template: str,
    path: str | os.PathLike[str],
    scripts: Sequence[str],
    shown: Mapping[str, Any],
) -> Path:
    """Write a template as one self-contained file, whole or not at all."""
    target = Path(path)
    script = "\n".join(map(read, scripts))
    page = pages.get_template(template).render(
        **shown,
        style=_style(),
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        longest=LONGEST,
        version=VERSION,
    )
    with atomic_path(target) as temporary:
        Path(temporary).write_text(page, encoding="utf-8")
    return target


def contents(evidence: Evidence) -> dict[str, Any]:
    """Everything the template shows, by name; a figure that has nothing to show is empty text."""
    ae, data = evidence.ae, evidence.data
    compared, worst = [], []
    if data is not None:
        drawn = np.random.default_rng(ae.seed).permutation(data.rows)[:COMPARED]
        compared = rows.row_views(evidence, np.sort(drawn))
        worst = anomalies.anomalies(evidence, np.argsort(data.score, kind="stable")[:WORST])
    thumbnails = explorer.thumbnails(evidence)
    explored = explorer.explorer(evidence)
    history = History.of(ae)
    explored["sheet"] = None if thumbnails is None else [
        thumbnails.columns, thumbnails.width, thumbnails.height
    ]  # fmt: skip
    embedded = {
        "history": [{k: float(row[k]) for k in history.names if k in row} for row in ae.history_],
        "judged": training.judged_rows(ae),
        "phases": list(getattr(ae.run_, "phases", ()) or ()),
        "latent": explored,
    }
    return {
        "ae": ae,
        "data": data,
        "held_out": ae.calibration_.held_out,
        "whose": evidence.whose(),
        "facts": overview.facts(evidence),
        "shares_kept": overview.shares_kept(ae.quality_),
        "overview": overview.overview(evidence),
        "choices": overview.choices(evidence),
        "history": history,
        "phases": training.phase_starts(ae),
        "compared": compared,
        "worst": worst,
        "cells_shown": rows.CELLS,
        "differing": rows.differing_words(ae.schema_),
        "curve_keys": CURVE_KEYS.html(),
        "filled": [] if data is None else gaps.filled_rows(evidence),
        "filled_keys": FILLED_KEYS.html(),
        "rebuilt": ae.model_.rebuilt,
        "targets": ae.schema_.targets,
        "only_given": any(f.given for f in ae.schema_.fields.values()),
        "unfillable": _unfillable(evidence),
        "unknown": _unknown(evidence),
        "judged": "" if data is None else anomalies.verdict(evidence, ALPHA),
        "pieces": anomalies.pieces(evidence),
        "drift": anomalies.drift_of(evidence),
        "alpha": ALPHA,
        "most": MOST,
        "remarks": code.remarks(evidence.codes, unit(ae)),
        "unit": unit(ae),
        "start": training.start_of(ae),
        "skipping": ae.model_.skipping,
        "thumbnails": thumbnails,
        **{name: figure.html() if figure.panels else "" for name, figure in drawn_of(evidence)},
        "json": script_json(embedded),
    }


def drawn_of(evidence: Evidence) -> list[tuple[str, Figure]]:
    """Every figure of the page by the template's name for it; those that do not apply are empty."""
    ae, nothing, size = evidence.ae, Figure("", ()), evidence.codes.shape[1]
    found = inspect.dictionary(ae.model_, ae.schema_)
    alone = not ae.model_.skipping and len(evidence.codes) > 0
    several = len(evidence.codes) > 1
    restorable = restoring.restorable(evidence)
    given = evidence.data is not None
    return [
        ("scores", anomaly.scores_of(evidence)),
        ("p_values", anomaly.p_values_of(evidence)),
        ("training", training.losses_of(ae)),
        ("weights", training.weights_of(ae)),
        ("health", training.health_of(ae)),
        ("density", sparsity.density_of(ae)),
        ("confusion", targets.confusion_of(evidence) if given else nothing),
        ("parity", targets.parity_of(evidence) if given else nothing),
        ("shares", targets.shares_of(evidence) if given else nothing),
        ("missing", lacking.missing_of(evidence) if given else nothing),
        ("prefixes", training.prefixes(ae) if ae.quality_.curve else nothing),
        ("deep", _deep(evidence) if size > 2 and len(evidence.codes) > 3 else nothing),
        ("profiles", code.profiles_of(evidence) if size > WIDE else nothing),
        ("histograms", code.histograms_of(evidence)),
        ("activity", code.activity_of(evidence)),
        ("codes", code.codes_of(evidence) if given else nothing),
        ("correlation", code.correlation_of(evidence) if several and size > 1 else nothing),
        ("dictionary", nothing if found is None else decoder.dictionary_of(evidence)),
        ("units", decoder.units_of(evidence) if alone and not _whole(found) else nothing),
        ("walks", decoder.traversals_of(evidence) if alone and several else nothing),
        ("restoration", restoring.restoration_of(evidence) if restorable else nothing),
    ]


def _whole(found: inspect.Dictionary | None) -> bool:
    """Whether the dictionary says everything: units one by one would repeat it."""
    return found is not None and found.whole


def _deep(evidence: Evidence) -> Figure:
    """Draw the codes' principal components in three dimensions, in the explorer's first colours."""
    return points.scatter_of(evidence, explorer.first_choice(evidence), 3, "pca")


@dataclass(frozen=True)
class History:
    """The numbers of training: names of columns, rows of text, and the row that was kept."""

    names: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    best: int

    @classmethod
    def of(cls, ae: Autoencoder) -> History:
        """Lay out a model's history."""
        known = dict.fromkeys(k for row in ae.history_ for k in row)
        drawn = (k for k in known if not k.startswith(training.WEIGHT))  # where they move at all
        names = tuple(sorted(drawn, key=_place))
        table = tuple(tuple(number(row.get(k)) for k in names) for row in ae.history_)
        return cls(names, table, training.best_row(ae.history_) if ae.history_ else 0)


def _place(name: str) -> int:
    """Order of columns: where, training, held out, the rest, time."""
    starts = (training.TRAIN, training.HELD, training.NORM)
    found = [i + 1 for i, start in enumerate(starts) if name.startswith(start)]
    return found[0] if found else 4 * (name == "seconds")


def _unknown(evidence: Evidence) -> list[str]:
    """Targets of which the rows at hand hold no value."""
    data, schema = evidence.data, evidence.ae.schema_
    if data is None:
        return []
    columns = {
        c: bool(data.seen(k)[:, 0 if f.block else j].any())
        for k, f in schema.fields.items()
        if f.target
        for j, c in enumerate(f.columns)
    }
    return [c for c in schema.targets if not columns[c]]


def _unfillable(evidence: Evidence) -> list[str]:
    """Columns with gaps that stay: those only given, which no output predicts."""
    if evidence.data is None:
        return []
    found = gaps.gaps_of(evidence).columns
    return [c.name for c in found if c.share > 0 and c.role == "given"]


def _curve(chart: LineChart) -> str:
    """Draw a long vector beside its reconstruction."""
    return Panel(draw.line_chart(chart, 96), 400, 116, label=chart.title).svg()


def _style() -> str:
    """Styles of the page: the reader's light or dark, or what the page's button says."""
    dark = read("dark.css")
    chosen = dark.replace(":root", ':root[data-theme="dark"]')
    wanted = dark.replace(":root", ':root:not([data-theme="light"])')
    media = f"@media (prefers-color-scheme: dark) {{{wanted}}}"
    return "\n".join((read("theme.css"), media, chosen, read("figures.css"), read("page.css")))


def _title(data: Any, ae: Autoencoder) -> str:
    if isinstance(data, str | os.PathLike):
        return Path(data).name
    return f"An autoencoder of {ae.n_rows_:,} rows"
