"""The commands, one function each."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from refold.cli.screen import complain, progress_bar, remark, say
from refold.errors import InputError
from refold.version import VERSION

if TYPE_CHECKING:
    from refold.estimator import Autoencoder


class Commands(TyperGroup):
    """The commands; Ctrl-C in any of them is one sentence and exit code 130."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command that was asked for."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            complain("interrupted; no file was left half-written")
            raise typer.Exit(130) from None


app = typer.Typer(
    name="refold",
    cls=Commands,
    help="Fold data into a small code and unfold it again.",
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

DATA_HELP = (
    "table (.csv .tsv .parquet .feather .jsonl), array (.npy .npz .safetensors), IDX, "
    "image folder, glob"
)
Data = Annotated[str, typer.Argument(metavar="DATA", help=DATA_HELP)]
Model = Annotated[Path, typer.Argument(metavar="MODEL", help="folder that 'refold fit' wrote")]
OutFile = Annotated[Path, typer.Option("--out", help="file to write; the ending says the format")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="print nothing but errors")]
Json = Annotated[bool, typer.Option("--json", help="print one JSON object")]


@app.callback(invoke_without_command=True)
def bare(
    ctx: typer.Context,
    show: Annotated[bool, typer.Option("--version", help="print the version and stop")] = False,
) -> None:
    """Fold data into a small code and unfold it again."""
    if show:
        print(f"refold {VERSION}")
        raise typer.Exit
    if ctx.invoked_subcommand is None:
        print(ctx.get_help(), file=sys.stderr)
        raise typer.Exit(2)


@app.command()
def fit(
    data: Data,
    out: Annotated[Path, typer.Option("--out", help="folder to write the model to")],
    recipe: Annotated[str | None, typer.Option(help="see 'refold recipes'")] = None,
    latent: Annotated[int | None, typer.Option(help="size of the code")] = None,
    epochs: Annotated[int | None, typer.Option(help="passes over the rows")] = None,
    seed: Annotated[int, typer.Option(min=0, help="everything random follows from it")] = 0,
    target: Annotated[
        list[str] | None, typer.Option(help="column to predict from the others")
    ] = None,
    ignore: Annotated[list[str] | None, typer.Option(help="column to leave out")] = None,
    memory: Annotated[
        str | None, typer.Option(help="what reading and learning may take, as 2GB")
    ] = None,
    series: Annotated[
        bool, typer.Option("--series", help="DATA is one long series, a row a step: watch it")
    ] = False,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="key=value: lr=0.002, latent.k=8, field.COL=categorical"),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="go on with a fit to --out that was cut off")
    ] = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Learn a model from DATA and write it to the folder --out."""
    from refold.cli.settings import constructor_arguments, monitor_arguments

    check_model(out)
    if series:
        if target or ignore:
            raise InputError("a series has no --target and no --ignore; leave them out")
        if resume:
            raise InputError("the monitor of a series cannot --resume; leave it out")
        _fit_series(
            data, out, quiet, as_json,
            monitor_arguments(
                settings or (), recipe=recipe, latent=latent, epochs=epochs, seed=seed
            ),
        )  # fmt: skip
        return
    if resume and out.is_dir() and any(out.iterdir()) and not unfinished(out).is_dir():
        said = f"{out} is finished, so there is nothing to resume; leave --resume out to fit anew"
        say([said], {"out": out, "finished": True}, as_json=as_json, quiet=quiet)
        return
    arguments = constructor_arguments(
        recipe=recipe, latent=latent, epochs=epochs, seed=seed,
        target=target or (), ignore=ignore or (), settings=settings or (),
    )  # fmt: skip
    if memory is not None:
        arguments["memory"] = memory
    ae = _fitted(arguments, data, out, resume, quiet or as_json)
    say(summary(ae, out), facts(ae, out), as_json=as_json, quiet=quiet)
    if ae.run_.stopped == "interrupted":
        more = "; --resume goes on" if unfinished(out).is_dir() else ""
        remark(f"interrupted: the best model so far is kept in {out}{more}")
        raise typer.Exit(130)


@app.command()
def embed(
    model: Model, data: Data, out: OutFile, quiet: Quiet = False, as_json: Json = False
) -> None:
    """Write the code of every row of DATA."""
    ae, table = opened(model, data, out, quiet)
    with remarks(quiet):
        codes = ae.transform(table)
    names = ae.get_feature_names_out()
    array = out.suffix in (".npy", ".npz")
    columns = {"code": codes} if array else {n: codes[:, i] for i, n in enumerate(names)}
    write_columns(columns, out, f"{len(codes)} codes of {codes.shape[1]} numbers", quiet, as_json)


@app.command()
def reconstruct(
    model: Model, data: Data, out: OutFile, quiet: Quiet = False, as_json: Json = False
) -> None:
    """Write every row of DATA as the model sees it, missing cells filled."""
    from refold.data.sources import read

    ae, table = opened(model, data, out, quiet)
    with remarks(quiet):
        rebuilt = read(ae.reconstruct(table))
        error = ae.squared_error(table)
    text = f"{len(rebuilt)} rows; squared error {error:.4g} a row in the model's own scale"
    write_columns(dict(rebuilt.columns), out, text, quiet, as_json, squared_error=error)


@app.command()
def predict(
    model: Model,
    data: Data,
    out: OutFile,
    column: Annotated[
        list[str] | None, typer.Option(help="column to predict; the targets unless named")
    ] = None,
    proba: Annotated[bool, typer.Option(help="write the probability of each level")] = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Write the targets of every row of DATA, or the named columns, as the model predicts them."""
    from refold.data.sources import read

    ae, table = opened(model, data, out, quiet)
    with remarks(quiet):
        found = read(ae.predict(table, column, proba=proba))
    what = f"{len(found)} rows of {', '.join(found.columns)}"
    write_columns(dict(found.columns), out, what, quiet, as_json)


@app.command()
def impute(
    model: Model,
    data: Data,
    out: OutFile,
    n: Annotated[
        int | None, typer.Option("--n", help="draw this many fillings, in numbered files")
    ] = None,
    flags: Annotated[bool, typer.Option(help="add a column COL_imputed per column with gaps")] = (
        False
    ),
    seed: Annotated[int | None, typer.Option(help="the same seed gives the same draws")] = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Write DATA with its missing cells filled; all other cells stay as they are."""
    from refold.data.sinks import check_writable, write
    from refold.data.sources import read
    from refold.uses.complete import gaps, without

    ae, table = opened(model, data, out, quiet)
    files = [out] if n is None else [out.with_stem(f"{out.stem}-{i + 1}") for i in range(n)]
    for file in files:
        check_writable(file)
    with remarks(quiet):
        found = ae.impute(table, n, flags=flags, seed=seed)
    tables = [read(filled) for filled in ([found] if n is None else found)]
    for filled, file in zip(tables, files, strict=True):
        write(dict(filled.columns), file)
    left = gaps(without(tables[0], [c for c in tables[0].columns if c not in table.columns]))
    cells = gaps(table) - left
    names = str(out) if n is None else f"{files[0]} to {files[-1]}"
    said = f"wrote {names}: {len(table)} rows, {cells} missing cells filled, {left} left"
    facts = {"out": [str(f) for f in files], "filled": cells, "left": left}
    say([said], facts, as_json=as_json, quiet=quiet)


@app.command()
def sample(
    model: Model,
    out: OutFile,
    n: Annotated[int, typer.Option("--n", help="rows to draw")] = 10,
    given: Annotated[
        list[str] | None, typer.Option(help="column=value that every row shall have")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="the same seed gives the same rows")] = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Write new rows drawn from a generative model, given the values of some columns or none."""
    from refold.cli.settings import known_values
    from refold.data.sources import read
    from refold.estimator import load

    check_file(out)
    known = known_values(given or ())
    with remarks(quiet):
        drawn = read(load(model).sample(n, seed, given=known or None))
    write_columns(dict(drawn.columns), out, f"{len(drawn)} rows drawn", quiet, as_json)


@app.command()
def report(
    model: Model,
    out: Annotated[Path, typer.Option("--out", help="HTML file to write")],
    data: Annotated[str | None, typer.Argument(metavar="DATA", help="rows to show")] = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Write one self-contained HTML page about the model, with rows of DATA if given."""
    from refold.data.sinks import check_writable
    from refold.estimator import load
    from refold.monitor import Monitor
    from refold.monitor.keeping import is_monitor
    from refold.report import monitor as page
    from refold.report import write

    if out.suffix.lower() not in (".html", ".htm") or out.is_dir():
        raise InputError(f"cannot write {out}: a report is one HTML file; name it report.html")
    check_writable(out)
    with remarks(quiet):
        if is_monitor(model):
            if data is None:
                raise InputError("a report on a monitor shows a series; give DATA after MODEL")
            page.write(Monitor.load(model), out, data)
        else:
            write(load(model), out, data)
    say([f"wrote {out}"], {"out": out}, as_json=as_json, quiet=quiet)


@app.command()
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
        check_file(out)
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


@app.command()
def recipes(as_json: Json = False) -> None:
    """List the recipes, a line each."""
    from refold.recipe import recipes as listed

    names = listed()
    wide = max(map(len, names))
    lines = [f"{name:<{wide}}  {line}" for name, line in names.items()]
    say(lines, names, as_json=as_json, quiet=False)


def unfinished(out: Path) -> Path:
    """Folder that keeps where a fit to ``out`` stands, until it is there."""
    return out.with_name(f"{out.name}.unfinished")


def _fitted(
    arguments: dict[str, Any], data: str, out: Path, resume: bool, hidden: bool
) -> Autoencoder:
    """Read, train with a progress bar, and save."""
    from refold.data.sources import read
    from refold.data.streams import opened as in_parts
    from refold.estimator import Autoencoder

    folder = unfinished(out)
    if folder.is_dir() and not resume and not hidden:
        remark(f"{folder} holds a fit that was cut off, which this one replaces; --resume goes on")
    rows = in_parts(data, arguments.get("memory")) or read(data)
    with warnings.catch_warnings(), progress_bar("training", hidden=hidden) as watch:
        warnings.simplefilter("ignore")
        ae = Autoencoder(**arguments).fit(rows, watch=watch, checkpoint=folder, resume=resume)
    ae.save(out)
    return ae


def _fit_series(
    data: str, out: Path, quiet: bool, as_json: bool, arguments: dict[str, Any]
) -> None:
    """Learn a long series, and save its monitor."""
    from refold.monitor import Monitor

    with remarks(quiet):
        monitor = Monitor(**arguments).fit(data)
    monitor.save(out)
    told = [*monitor.notes_, *monitor.reasons_]
    size, channels = monitor.window_, ", ".join(monitor.channels_)
    lines = [
        f"read    one series of {len(monitor.own_.times):,} steps: {channels}",
        *(f"        {line}" for line in told),
        f"chose   windows of {size} steps, one every {monitor.stride_}",
        f"saved   {out}",
    ]
    facts = {"out": out, "steps": len(monitor.own_.times), "channels": list(monitor.channels_),
             "window": size, "stride": monitor.stride_, "reasons": told}  # fmt: skip
    say(lines, facts, as_json=as_json, quiet=quiet)


def check_model(out: Path) -> None:
    """Refuse, before any work, a place where no model can be put."""
    from refold.data.sinks import check_writable
    from refold.modelfile import is_model
    from refold.monitor.keeping import is_monitor

    check_writable(out)
    if out.is_file():
        raise InputError(f"cannot write the model to {out}: it is a file; name a new folder")
    kept = out.is_dir() and any(out.iterdir())
    if kept and not (is_model(out) or is_monitor(out)):
        raise InputError(
            f"cannot write the model to {out}: the folder holds other things; name a new one"
        )


def check_file(out: Path) -> None:
    """Refuse, before any work, a place or a format that cannot be written."""
    from refold.data.sinks import check_format, check_writable

    check_format(out)
    check_writable(out)


def opened(model: Path, data: str, out: Path, quiet: bool) -> tuple[Autoencoder, Any]:
    """Check the file to write, load the model and read the data."""
    from refold.data.sources import read
    from refold.estimator import load

    check_file(out)
    if out.is_file() and Path(data).is_file() and out.samefile(data):
        raise InputError(f"--out {out} is the data itself; choose another name")
    ae, table = load(model), read(data)
    for note in () if quiet else table.notes:
        remark(note)
    return ae, table


@contextmanager
def remarks(quiet: bool) -> Generator[None]:
    """Print the warnings about the input, each once, as remarks."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    for text in dict.fromkeys(str(w.message) for w in caught):
        if not quiet:
            remark(text)


def write_columns(
    columns: dict[str, Any], out: Path, text: str, quiet: bool, as_json: bool, **facts: Any
) -> None:
    """Write columns to a file, and say so."""
    from refold.data.sinks import write

    write(columns, out)
    say([f"wrote {out}: {text}"], {"out": out, **facts}, as_json=as_json, quiet=quiet)


def summary(ae: Autoencoder, out: Path) -> list[str]:
    """Return what was read, what was chosen and why, and how good it is, for people."""
    size, error = ae.spec_.size, ae.quality_.squared_error
    scale = "" if error is None else f"; squared error {error:.4g} a row in the model's own scale"
    return [
        f"read    {ae.n_rows_:,} rows",
        *(f"        {line}" for line in (*ae.schema_.describe(), *ae.notes_)),
        f"chose   recipe {ae.recipe_}, latent size {size}, {ae.plan_.sentence()}",
        *(f"        {reason}" for reason in ae.reasons_),
        f"trained {ae.run_.seconds:.1f} s; stopped: {ae.run_.stopped}",
        f"result  {sparsely(ae) or ae.quality_.sentence(size)}",
        f"        ({ae.quality_.rows:,} {'held-out' if ae.calibration_.held_out else 'training'} "
        f"rows{scale})",
        f"saved   {out}",
    ]


def sparsely(ae: Autoencoder) -> str | None:
    """Say how few entries explain how much, where the history knows; else nothing."""
    best = ae.run_.best
    if not {"l0", "explained", "dead_share"} <= best.keys():
        return None
    return (
        f"{best['l0']:.1f} of {ae.spec_.size} entries active a row explain {best['explained']:.1%} "
        f"of the variance; {best['dead_share']:.0%} were never active"
    )


def facts(ae: Autoencoder, out: Path) -> dict[str, Any]:
    """Return the same for machines."""
    return {
        "out": str(out),
        "rows": ae.n_rows_,
        "fields": {k: list(f.columns) for k, f in ae.schema_.fields.items()},
        "aside": {k: a.reason for k, a in ae.schema_.aside.items()},
        "recipe": ae.recipe_,
        "latent": ae.spec_.size,
        "reasons": list(ae.reasons_),
        "notes": list(ae.notes_),
        "stopped": ae.run_.stopped,
        "seconds": ae.run_.seconds,
        "kept": ae.quality_.kept,
        "pca_kept": ae.quality_.pca_kept,
        "squared_error": ae.quality_.squared_error,
        "predicted": {name: kept for name, kept, _ in ae.quality_.predicted},
    }
