"""The commands that judge: score, and calibrate."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from refold.cli import commands
from refold.cli.commands import Data, Json, Model, OutFile, Quiet
from refold.cli.screen import remark, say
from refold.errors import InputError

if TYPE_CHECKING:
    from refold.estimator import Autoencoder

Alpha = Annotated[
    float | None, typer.Option(help="flag rows with a p-value up to this; 0.01 unless said")
]


@commands.app.command()
def score(
    model: Model,
    data: Data,
    out: OutFile,
    alpha: Alpha = None,
    contamination: Annotated[
        float | None, typer.Option(help="or this share of the rows, the most unusual")
    ] = None,
    expected: Annotated[
        float | None, typer.Option(help="or as leaves so many false alarms to be expected")
    ] = None,
    fdr: Annotated[
        float | None, typer.Option(help="or with at most this share of false ones among them")
    ] = None,
    causes: Annotated[
        Path | None, typer.Option(help="file for the causes of every flagged row")
    ] = None,
    alarms: Annotated[
        Path | None, typer.Option(help="of a series: file for the intervals of alarms")
    ] = None,
    per_month: Annotated[
        float | None, typer.Option("--per-month", help="of a series: false alarms to expect")
    ] = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Write score (higher is more normal), p_value, is_anomaly and cause of every row, in order.

    A model that 'fit --series' wrote judges the steps of a series.
    """
    from refold.monitor.keeping import is_monitor

    if is_monitor(model):
        if not (contamination is expected is fdr is causes is None):
            raise InputError(
                "steps of a series are flagged by --alpha, and alarms by --per-month; "
                "--contamination, --expected, --fdr and --causes are for rows"
            )
        _score_series(model, data, out, alpha, alarms, per_month, quiet, as_json)
        return
    if not (alarms is per_month is None):
        raise InputError(
            f"{model} judges rows, and alarms are of a series; fit with --series, or leave "
            f"--alarms and --per-month out"
        )
    ae, table = commands.opened(model, data, out, quiet)
    if causes is not None:
        commands.check_file(causes)
    with commands.remarks(quiet):
        judged = ae.judge(table, alpha, contamination=contamination, expected=expected, fdr=fdr)
    with commands.remarks(True):
        drift = ae.drift(table)
    flagged = int(judged["is_anomaly"].sum())
    rule = _rule(alpha, contamination, expected, fdr)
    text = f"{len(judged['score'])} rows scored, {flagged} of them anomalies {rule}"
    commands.write_columns(judged, out, text, quiet, as_json, anomalies=flagged,
                           drift=None if drift is None else drift.sentence)  # fmt: skip
    if causes is not None:
        _write_causes(ae, table, judged["is_anomaly"], causes, quiet or as_json)
    if drift is not None and not quiet and not as_json:
        remark(drift.sentence)


@commands.app.command()
def calibrate(model: Model, data: Data, quiet: Quiet = False, as_json: Json = False) -> None:
    """Compare later rows with those of DATA, which are clean and new; MODEL is replaced."""
    from refold.data.sinks import check_writable
    from refold.estimator import load
    from refold.monitor import Monitor
    from refold.monitor.keeping import is_monitor

    check_writable(model)
    own: Any = Monitor.load(model) if is_monitor(model) else load(model)
    with commands.remarks(quiet):
        own.recalibrate(data)
    own.save(model)
    say([f"saved {model}: p-values are ranks among the rows of {data}"],
        {"out": model}, as_json=as_json, quiet=quiet)  # fmt: skip


def _rule(
    alpha: float | None, contamination: float | None, expected: float | None, fdr: float | None
) -> str:
    """Say by which rule rows were flagged."""
    if contamination is not None:
        return f"as the most unusual share {contamination:g}"
    if expected is not None:
        return f"with {expected:g} false alarms to be expected"
    if fdr is not None:
        return f"of which on average a share of {fdr:g} at most is none"
    return f"at alpha {0.01 if alpha is None else alpha:g}"


def _write_causes(ae: Autoencoder, table: Any, flagged: Any, out: Path, hidden: bool) -> None:
    import numpy as np

    from refold.data.sinks import write
    from refold.data.sources import read

    rows, names = np.flatnonzero(flagged), ("row", "cause", "seen", "expected", "share", "p_value")
    found: dict[str, Any] = {name: np.zeros(0) for name in names}
    if len(rows):
        with commands.remarks(True):
            found = dict(read(ae.explain(replace(table, columns=table.take(rows)))).columns)
        found["row"] = rows[np.asarray(found["row"], dtype=np.int64)]
    write(found, out)
    if not hidden:
        print(f"wrote {out}: causes of {len(rows)} rows")


def _score_series(
    model: Path,
    data: str,
    out: Path,
    alpha: float | None,
    alarms: Path | None,
    per_month: float | None,
    quiet: bool,
    as_json: bool,
) -> None:
    from refold.data.sinks import write
    from refold.monitor import Monitor

    commands.check_file(out)
    if alarms is not None:
        commands.check_file(alarms)
    if out.is_file() and Path(data).is_file() and out.samefile(data):
        raise InputError(f"--out {out} is the data itself; choose another name")
    monitor = Monitor.load(model)
    with commands.remarks(quiet):
        judged = monitor.judge_steps(data, 0.01 if alpha is None else alpha)
        found = monitor.judge_alarms(data, per_month=per_month)
    flagged, count = int(sum(judged["is_anomaly"])), len(found["score"])
    if alarms is not None:
        write(dict(found), alarms)
    blank = sum(1 for score in judged["score"] if score != score)
    steps = f"{len(judged['score'])} steps scored"
    if blank:
        steps = f"{len(judged['score'])} steps, {blank} of them without a score"
    told = "1 alarm" if count == 1 else f"{count} alarms"
    text = f"{steps}, {flagged} of them unusual, {told}"
    commands.write_columns(dict(judged), out, text, quiet, as_json, anomalies=flagged,
                           alarms=count)  # fmt: skip
    if alarms is not None and not quiet and not as_json:
        print(f"wrote {alarms}: {told}")
