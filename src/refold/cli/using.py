"""The commands that use a model: on rows, which are written in order, or to draw new ones."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Annotated

import typer

from refold.cli import commands
from refold.cli.commands import Data, Json, Memory, Model, OutFile, Quiet
from refold.cli.screen import say
from refold.errors import InputError
from refold.wording import counted

if TYPE_CHECKING:
    from refold.estimator import Autoencoder
    from refold.table import Table


@commands.app.command()
def embed(
    model: Model,
    data: Data,
    out: OutFile,
    memory: Memory = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Write the code of every row of DATA."""
    from refold.data.sinks import writing

    ae, rows = commands.opened(model, data, out, quiet, memory, lambda ae: 16 * ae.spec_.size)
    names, array = ae.get_feature_names_out(), out.suffix in (".npy", ".npz")
    embedding = commands.working(rows, ae.transform, "embedding", hidden=quiet or as_json)
    with commands.remarks(quiet), writing(out) as add, embedding as parts:
        for _, codes in parts:
            add({"code": codes} if array else {n: codes[:, i] for i, n in enumerate(names)})
    text = f"{counted(len(rows), 'code')} of {counted(ae.spec_.size, 'number')}"
    commands.tell(out, text, quiet, as_json)


@commands.app.command()
def reconstruct(
    model: Model,
    data: Data,
    out: OutFile,
    memory: Memory = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Write every row of DATA as the model sees it, missing cells filled."""
    from refold.data.sinks import writing
    from refold.data.sources import read

    ae, rows = commands.opened(model, data, out, quiet, memory, _said)

    def rebuilt(table: Table) -> tuple[Table, float]:
        return read(ae.reconstruct(table)), ae.squared_error(table)

    total = 0.0
    rebuilding = commands.working(rows, rebuilt, "reconstructing", hidden=quiet or as_json)
    with commands.remarks(quiet), writing(out) as add, rebuilding as parts:
        for table, (found, error) in parts:
            add(found.columns)
            total += error * len(table)
    error = total / len(rows)
    text = f"{counted(len(rows), 'row')}; squared error {error:.4g} a row in the model's own scale"
    commands.tell(out, text, quiet, as_json, squared_error=error)


@commands.app.command()
def predict(
    model: Model,
    data: Data,
    out: OutFile,
    column: Annotated[
        list[str] | None, typer.Option(help="column to predict; the targets unless named")
    ] = None,
    proba: Annotated[bool, typer.Option(help="write the probability of each level")] = False,
    memory: Memory = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Write the targets of every row of DATA, or the named columns, as the model predicts them."""
    from refold.data.sinks import writing
    from refold.data.sources import read

    ae, rows = commands.opened(model, data, out, quiet, memory, _said)

    def predicted(table: Table) -> Table:
        return read(ae.predict(table, column, proba=proba))

    names: tuple[str, ...] = ()
    predicting = commands.working(rows, predicted, "predicting", hidden=quiet or as_json)
    with commands.remarks(quiet), writing(out) as add, predicting as parts:
        for _, found in parts:
            add(found.columns)
            names = tuple(found.columns)
    commands.tell(out, f"{counted(len(rows), 'row')} of {', '.join(names)}", quiet, as_json)


@commands.app.command()
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
    memory: Memory = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Write DATA with its missing cells filled; all other cells stay as they are."""
    from refold.data.sinks import check_writable, writing
    from refold.data.sources import read
    from refold.uses.complete import gaps, without

    ae, rows = commands.opened(model, data, out, quiet, memory, _said)
    if rows.parted and (n is not None or flags):
        which = "--n draws" if n is not None else "--flags marks columns"
        raise InputError(
            f"{which} by all rows together, and these are read in parts; leave it out, or give "
            f"more memory"
        )
    files = [out] if n is None else [out.with_stem(f"{out.stem}-{i + 1}") for i in range(n)]
    for file in files:
        check_writable(file)

    def filled(table: Table) -> list[Table]:
        found = ae.impute(table, n, flags=flags, seed=seed)
        return [read(one) for one in ([found] if n is None else found)]

    cells = left = 0
    filling = commands.working(rows, filled, "filling", hidden=quiet or as_json)
    with commands.remarks(quiet), ExitStack() as stack, filling as parts:
        adding = [stack.enter_context(writing(file)) for file in files]
        for table, tables in parts:
            for one, add in zip(tables, adding, strict=True):
                add(one.columns)
            first = tables[0]
            still = gaps(without(first, [c for c in first.columns if c not in table.columns]))
            cells, left = cells + gaps(table) - still, left + still
    names = str(out) if n is None else f"{files[0]} to {files[-1]}"
    done = f"{counted(cells, 'missing cell')} filled, {left} left"
    said = f"wrote {names}: {counted(len(rows), 'row')}, {done}"
    facts = {"out": [str(f) for f in files], "filled": cells, "left": left}
    say([said], facts, as_json=as_json, quiet=quiet)


@commands.app.command()
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

    commands.check_file(out)
    known = known_values(given or ())
    with commands.remarks(quiet):
        drawn = read(load(model).sample(n, seed, given=known or None))
    text = f"{counted(len(drawn), 'row')} drawn"
    commands.write_columns(dict(drawn.columns), out, text, quiet, as_json)


def _said(ae: Autoencoder) -> int:
    """Bytes of what a model says of a row: as tensors, as columns, and on the way between."""
    return 16 * sum(head.width for head in ae.model_.likelihoods.values())
