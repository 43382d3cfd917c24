"""The page: evidence in, one HTML file out."""

from __future__ import annotations

import base64
import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np

from refold.data.sinks import atomic_path
from refold.errors import missing_extra
from refold.estimator import Autoencoder
from refold.report import atoms, latent, losses, overview, rows
from refold.report.evidence import ALPHA, MOST, Evidence
from refold.report.text import LONGEST, number, percent, script_json, shortened
from refold.version import VERSION

COMPARED = 8  # rows beside their reconstructions
WORST = 12  # worst-reconstructed rows
HERE = Path(__file__).parent


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
    try:
        import jinja2
    except ImportError as error:
        raise missing_extra("jinja2", "report", "the report") from error
    target = Path(path)
    evidence = Evidence.of(ae, data)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {"number": number, "percent": percent, "short": shortened}
    script = (HERE / "page.js").read_text(encoding="utf-8")
    page = environment.get_template("page.html.jinja").render(
        **contents(evidence),
        title=title or _title(data, ae),
        style=(HERE / "page.css").read_text(encoding="utf-8"),
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        longest=LONGEST,
        version=VERSION,
    )
    with atomic_path(target) as temporary:
        Path(temporary).write_text(page, encoding="utf-8")
    return target


def contents(evidence: Evidence) -> dict[str, Any]:
    """Everything the template shows, by name."""
    ae, data = evidence.ae, evidence.data
    compared, worst = [], []
    if data is not None:
        drawn = np.random.default_rng(ae.seed).permutation(data.rows)[:COMPARED]
        compared = rows.row_views(evidence, np.sort(drawn))
        worst = rows.row_views(evidence, np.argsort(data.score, kind="stable")[:WORST])
    dictionary, whole = atoms.atoms(evidence)
    thumbnails = latent.thumbnails(evidence)
    explored = latent.explorer(evidence)
    judged = "held-out rows" if ae.calibration_.held_out else "training rows, weights at rest"
    learnt = losses.losses(ae.history_)
    history = [{k: float(row[k]) for k in learnt.names if k in row} for row in ae.history_]
    explored["sheet"] = None if thumbnails is None else [
        thumbnails.columns, thumbnails.width, thumbnails.height
    ]  # fmt: skip
    return {
        "ae": ae,
        "data": data,
        "held_out": ae.calibration_.held_out,
        "whose": evidence.whose(),
        "facts": overview.facts(evidence),
        "overview": overview.overview(evidence),
        "choices": overview.choices(evidence),
        "losses": learnt,
        "judged": judged,
        "compared": compared,
        "worst": worst,
        "cells_shown": rows.CELLS,
        "alpha": ALPHA,
        "most": MOST,
        "units": latent.units(evidence),
        "most_units": latent.UNITS,
        "dictionary": dictionary,
        "dictionary_whole": whole,
        "thumbnails": thumbnails,
        "json": script_json({"history": history, "judged": judged, "latent": explored}),
    }


def _title(data: Any, ae: Autoencoder) -> str:
    if isinstance(data, str | os.PathLike):
        return Path(data).name
    return f"An autoencoder of {ae.n_rows_:,} rows"
