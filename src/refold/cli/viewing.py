"""The commands that show: pages about models, recipes beside each other, the list of them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from refold.cli import commands
from refold.cli.commands import Data, Json, Memory, Model, Quiet
from refold.cli.screen import progress_bar, say
from refold.errors import InputError


@commands.app.command()
def report(
    model: Model,
    out: Annotated[Path, typer.Option("--out", help="HTML file to write")],
    data: Annotated[str | None, typer.Argument(metavar="DATA", help="rows to show")] = None,
    memory: Memory = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Write one self-contained HTML page about the model, with rows of DATA if given.

    Of rows that do not fit in memory it shows a sample, and says so.
    """
    from refold.data.sinks import check_writable
    from refold.estimator import load
    from refold.monitor import Monitor
    from refold.monitor.keeping import is_monitor
    from refold.report import monitor as page
    from refold.report import write
    from refold.uses.portions import Portions

    if out.suffix.lower() not in (".html", ".htm") or out.is_dir():
        raise InputError(f"cannot write {out}: a report is one HTML file; name it report.html")
    check_writable(out)
    with commands.remarks(quiet):
        if is_monitor(model):
            if data is None:
                raise InputError("a report on a monitor shows a series; give DATA after MODEL")
            page.write(Monitor.load(model), out, data)
        else:
            ae = load(model)
            rows = None if data is None else Portions.of(data, memory)
            few = None if rows is None else rows.sample(ae.seed)
            write(ae, out, few, title=None if data is None else Path(data).name)
    say([f"wrote {out}"], {"out": out}, as_json=as_json, quiet=quiet)


@commands.app.command()
def compare(
    data: Data,
    recipes: Annotated[
        str | None, typer.Option(help="names with commas between, or 'all' that suit the data")
    ] = None,
    label: Annotated[
        str | None, typer.Option(help="column that no recipe sees, to be told from the codes")
    ] = None,
    latent: Annotated[int | None, typer.Option(help="size of every code")] = None,
    epochs: Annotated[int | None, typer.Option(help="passes over the rows, each recipe")] = None,
    seconds: Annotated[float | None, typer.Option(help="or about so long, each recipe")] = None,
    by: Annotated[
        str | None, typer.Option(help="purpose: reconstruction, neighbours, label, likelihood ...")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="a page (.html), or the table (.csv ...)")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="everything random follows from it")] = 0,
    ignore: Annotated[list[str] | None, typer.Option(help="column to leave out")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="key=value, for every recipe: lr=0.002")
    ] = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Train several recipes on DATA, and rank them on rows that none of them has seen."""
    from refold.cli.settings import shared_arguments
    from refold.comparison import compare as compared
    from refold.data.sinks import write
    from refold.data.sources import read
    from refold.report import comparison as page

    is_page = out is not None and out.suffix.lower() in (".html", ".htm")
    if out is not None and is_page:
        page.check(out)
    elif out is not None:
        commands.check_file(out)
        if not out.suffix:
            raise InputError(f"cannot write {out}: name a page (.html) or a table (.csv)")
    arguments = shared_arguments(ignore or (), settings or ())
    named = recipes if recipes in (None, "all") else [r for r in recipes.split(",") if r]
    with progress_bar("training", hidden=quiet or as_json) as watch:
        found = compared(
            read(data), named, label=label, latent=latent, epochs=epochs, seconds=seconds, by=by,
            seed=seed, watch=watch, **arguments,
        )  # fmt: skip
    if out is not None and is_page:
        page.write(found, out, title=Path(data).name)
    elif out is not None:
        write(found.columns(), out)
    wrote = [] if out is None else [f"wrote {out}"]
    lines = [*found.lines(), found.sentence(), *wrote]
    say(lines, {"out": out, **found.facts()}, as_json=as_json, quiet=quiet)


@commands.app.command()
def recipes(as_json: Json = False) -> None:
    """List the recipes, a line each."""
    from refold.recipe import recipes as listed

    names = listed()
    wide = max(map(len, names))
    lines = [f"{name:<{wide}}  {line}" for name, line in names.items()]
    say(lines, names, as_json=as_json, quiet=False)
