"""What a person sees: progress on the error stream, the summary, and one line for a mistake."""

from __future__ import annotations

import json
import sys
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console

if TYPE_CHECKING:
    from refold.training.fit import Progress, Watch

errors = Console(stderr=True, highlight=False, soft_wrap=True)


def complain(sentence: str) -> None:
    """Print one line to the error stream."""
    errors.print(f"[red]error:[/red] {_escaped(sentence)}")


def remark(sentence: str) -> None:
    """Print a remark about the input to the error stream."""
    errors.print(f"[yellow]note:[/yellow] {_escaped(sentence)}")


def say(lines: list[str], values: Mapping[str, Any], *, as_json: bool, quiet: bool) -> None:
    """Print the outcome: lines for people, or one JSON object for machines."""
    if as_json:
        print(json.dumps(values, default=str))
    elif not quiet:
        print("\n".join(lines))


@contextmanager
def progress_bar(title: str, *, hidden: bool) -> Generator[Watch | None]:
    """Show steps, rows per second, the loss and the time left, on a terminal alone."""
    if hidden or not sys.stderr.isatty():
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


def _escaped(text: str) -> str:
    from rich.markup import escape

    return escape(" ".join(text.split()))
