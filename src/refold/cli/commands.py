"""The command that fits a model, and what all commands share."""

from __future__ import annotations

import glob
import re
import sys
import warnings
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from typer.core import TyperGroup

from refold.cli.screen import complain, progress_bar, remark, rows_bar, say
from refold.errors import InputError
from refold.version import VERSION
from refold.wording import counted

if TYPE_CHECKING:
    from refold.data.writers import Columns
    from refold.estimator import Autoencoder
    from refold.table import Table
    from refold.uses.portions import Portions

T = TypeVar("T")
NUMBERS = re.compile(r"('[^']*')|\([^()]*\)|\d[\d.,]*( \w+)?")  # what may differ, names kept


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
Memory = Annotated[
    str | None, typer.Option(help="what reading and using may take, as 2GB; else half of the free")
]
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
    latent: Annotated[
        str | None, typer.Option(help="size of the code, or a latent as topk(size=64, k=8)")
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="passes over the rows")] = None,
    seed: Annotated[int, typer.Option(min=0, help="everything random follows from it")] = 0,
    target: Annotated[
        list[str] | None, typer.Option(help="column to predict from the others")
    ] = None,
    ignore: Annotated[list[str] | None, typer.Option(help="column to leave out")] = None,
    memory: Annotated[
        str | None,
        typer.Option(help="what reading and learning may take on a machine, as 2GB"),
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


def unfinished(out: Path) -> Path:
    """Folder that keeps where a fit to ``out`` stands, until it is there."""
    return out.with_name(f"{out.name}.unfinished")


def _fitted(
    arguments: dict[str, Any], data: str, out: Path, resume: bool, hidden: bool
) -> Autoencoder:
    """Read, train with a progress bar, and save."""
    from refold.estimator import Autoencoder

    folder = unfinished(out)
    if folder.is_dir() and not resume and not hidden:
        remark(f"{folder} holds a fit that was cut off, which this one replaces; --resume goes on")
    with warnings.catch_warnings(), progress_bar("training", hidden=hidden) as watch:
        warnings.simplefilter("ignore")
        ae = Autoencoder(**arguments).fit(data, watch=watch, checkpoint=folder, resume=resume)
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


def refuse_same(data: str, out: Path) -> None:
    """Refuse to write over the data, or over one of the files that are the data."""
    files = glob.glob(data, recursive=True) if glob.has_magic(data) else [data]  # noqa: PTH207
    if out.is_file() and any(Path(f).is_file() and out.samefile(f) for f in files):
        raise InputError(f"--out {out} is the data itself; choose another name")


def opened(
    model: Path,
    data: str,
    out: Path,
    quiet: bool,
    memory: str | None = None,
    made: Callable[[Autoencoder], int] = lambda ae: 0,
) -> tuple[Autoencoder, Portions]:
    """Check the file to write, load the model and read the data, or begin to.

    ``made`` is how many bytes the use of a model makes of a row.
    """
    from refold.data.sinks import check_parts
    from refold.estimator import load
    from refold.uses.portions import Portions

    check_file(out)
    refuse_same(data, out)
    ae = load(model)
    rows = Portions.of(data, memory, made(ae))
    if rows.parted:
        check_parts(out)
    for note in () if quiet else rows.notes:
        remark(note)
    return ae, rows


@contextmanager
def working(
    rows: Portions, work: Callable[[Table], T], title: str, *, hidden: bool
) -> Generator[Iterator[tuple[Table, T]]]:
    """Yield portions of rows with what ``work`` makes of each, and show how many are done.

    Nothing is shown of rows that are all read at once.
    """
    bar = rows_bar(title, len(rows), hidden=hidden or not rows.parted)
    with bar as count, closing(rows.each(lambda table: (table, work(table)))) as parts:

        def shown() -> Iterator[tuple[Table, T]]:
            for table, found in parts:
                yield table, found
                count(len(table))

        yield shown()


@contextmanager
def remarks(quiet: bool) -> Generator[None]:
    """Print the warnings about the input as remarks, each once, whatever numbers are in it."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    said: dict[str, list[str]] = {}
    for text in (str(w.message) for w in caught):
        for note in text.split("; ") if len(caught) > 1 else [text]:
            said.setdefault(NUMBERS.sub(r"\1", note), []).append(note)
    for first, *others in () if quiet else said.values():
        more = sum(other != first for other in others)
        also = f", and the like in {counted(more, 'more part')} of the rows" if more else ""
        remark(first + also)


def write_columns(
    columns: Columns, out: Path, text: str, quiet: bool, as_json: bool, **facts: Any
) -> None:
    """Write columns to a file, and say so."""
    from refold.data.sinks import write

    write(columns, out)
    tell(out, text, quiet, as_json, **facts)


def tell(out: Path, text: str, quiet: bool, as_json: bool, **facts: Any) -> None:
    """Say what a file holds that was written."""
    say([f"wrote {out}: {text}"], {"out": out, **facts}, as_json=as_json, quiet=quiet)


def summary(ae: Autoencoder, out: Path) -> list[str]:
    """Return what was read, what was chosen and why, and how good it is, for people."""
    size, error = ae.spec_.size, ae.quality_.squared_error
    judged = "held-out row" if ae.calibration_.held_out else "training row"
    scale = "" if error is None else f"; squared error {error:.4g} a row in the model's own scale"
    return [
        f"read    {ae.n_rows_:,} rows",
        *(f"        {line}" for line in (*ae.schema_.describe(), *ae.notes_)),
        f"chose   recipe {ae.recipe_}, latent size {size}, {ae.plan_.sentence()}",
        *(f"        {reason}" for reason in ae.reasons_),
        f"trained {ae.run_.seconds:.1f} s; stopped: {ae.run_.stopped}",
        f"result  {ae.quality_.sentence(size)}",
        f"        ({counted(ae.quality_.rows, judged)}{scale})",
        f"saved   {out}",
    ]


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
