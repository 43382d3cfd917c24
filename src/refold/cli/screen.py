"""What a person sees: progress on the error stream, the summary, and one line for a mistake."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console

from refold import processes
from refold.errors import InputError

if TYPE_CHECKING:
    from refold.training.fit import Progress, Watch

UsageError: Any = typer.BadParameter.__mro__[1]
"""What a malformed command line raises: typer exports only this kind of it, by versions its own
or click's."""

PATIENCE = 10.0  # seconds in which a process is ended by torchrun where the first one failed
errors = Console(stderr=True, highlight=False, soft_wrap=True, emoji=False)


def complain(sentence: str, *, alone: bool = False) -> None:
    """Print one line to the error stream.

    Of several processes all find the same mistakes, and the first one speaks for all; another only
    where it turns out to be ``alone``: it is ended with the first one, or else still there.
    """
    if processes.number() and not alone:
        time.sleep(PATIENCE)
    errors.print(f"[red]error:[/red] {_escaped(sentence)}")


def remark(sentence: str) -> None:
    """Print a remark about the input to the error stream."""
    if processes.number():
        return
    errors.print(f"[yellow]note:[/yellow] {_escaped(sentence)}")


def correction(error: Any) -> str:
    """Say what is wrong with a malformed command line, and where to look."""
    path = error.ctx.command_path if error.ctx else "refold"
    said = error.format_message().rstrip(".")
    return f"{said[:1].lower()}{said[1:]}; see '{path} --help'"


def say(lines: list[str], values: Mapping[str, Any], *, as_json: bool, quiet: bool) -> None:
    """Print the outcome: lines for people, or one JSON object for machines."""
    if (quiet and not as_json) or processes.number():
        return
    text = json.dumps(_finite(values), default=str, allow_nan=False) if as_json else None
    try:
        print("\n".join(lines) if text is None else text, flush=True)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise InputError(
            f"cannot print the outcome: {error.strerror}; send it elsewhere or pass --quiet"
        ) from error


@contextmanager
def progress_bar(title: str, *, hidden: bool) -> Generator[Watch | None]:
    """Show steps, rows per second, the loss and the time left, on a terminal alone."""
    if hidden or processes.number() or not sys.stderr.isatty():
        yield None
        return
    from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (
        TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"),
        TextColumn("{task.fields[rate]}"), TextColumn("{task.fields[loss]}"), TimeRemainingColumn(),
    )  # fmt: skip
    with Bar(*columns, console=errors, transient=True) as bar:
        task = bar.add_task(title, total=None, rate="", loss="")

        def watch(progress: Progress) -> None:
            bar.update(
                task,
                total=progress.steps or 1,
                completed=progress.step if progress.steps else 1,
                rate=f"{progress.rows_per_second:,.0f} rows/s",
            )
            if progress.row is not None:
                bar.update(task, loss=f"held out {progress.row['valid_loss']:.4g}")

        yield watch


def _finite(value: Any) -> Any:
    """Return the same with null for numbers that JSON has not."""
    if isinstance(value, Mapping):
        return {str(k): _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _escaped(text: str) -> str:
    from rich.markup import escape

    return escape(" ".join(text.split()))
