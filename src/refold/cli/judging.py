"""The commands that judge: score, and calibrate."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from refold.cli import commands
from refold.cli.commands import Data, Json, Memory, Model, OutFile, Quiet
from refold.cli.screen import remark, say
from refold.errors import InputError
from refold.wording import counted

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
    memory: Memory = None,
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
    from refold.cli import scoring
    from refold.detection import Rule

    rule = Rule(alpha, contamination, expected, fdr)
    ae, rows = commands.opened(model, data, out, quiet, memory)
    if causes is not None:
        commands.check_file(causes)
    hidden = quiet or as_json
    with commands.remarks(quiet):
        flagged, drift = scoring.score(ae, rows, rule, out, hidden=hidden)
    text = f"{counted(len(rows), 'row')} scored, {len(flagged):,} of them anomalies {rule.words}"
    told = None if drift is None else drift.sentence
    commands.tell(out, text, quiet, as_json, anomalies=len(flagged), drift=told)
    if causes is not None:
        with commands.remarks(True):
            scoring.explain(ae, rows, flagged, causes)
        if not hidden:
            print(f"wrote {causes}: causes of {counted(len(flagged), 'row')}")
    if told is not None and not hidden:
        remark(told)


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
    commands.refuse_same(data, out)
    monitor = Monitor.load(model)
    with commands.remarks(quiet):
        judged = monitor.judge_steps(data, 0.01 if alpha is None else alpha)
        found = monitor.judge_alarms(data, per_month=per_month)
    flagged, count = int(sum(judged["is_anomaly"])), len(found["score"])
    if alarms is not None:
        write(dict(found), alarms)
    blank = sum(1 for score in judged["score"] if score != score)
    steps = f"{counted(len(judged['score']), 'step')} scored"
    if blank:
        steps = f"{counted(len(judged['score']), 'step')}, {blank} of them without a score"
    told = counted(count, "alarm")
    text = f"{steps}, {flagged} of them unusual, {told}"
    commands.write_columns(dict(judged), out, text, quiet, as_json, anomalies=flagged,
                           alarms=count)  # fmt: skip
    if alarms is not None and not quiet and not as_json:
        print(f"wrote {alarms}: {told}")
