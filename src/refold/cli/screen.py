"""What a person sees: progress on the error stream, the summary, and one line for a mistake."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

import typer
from rich.console import Console

from refold import processes
from refold.errors import InputError

if TYPE_CHECKING:
    from refold.training.fit import Progress, Watch

UsageError: Any = typer.BadParameter.__mro__[1]
"""What a malformed command line raises: typer exports only this kind of it, by versions its own
or click's."""

EVERY = 30.0  # seconds between lines about where a long task stands
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
    """Show how far a training is, with rows per second and the loss."""
    with _shown(title, hidden=hidden) as show:
        if show is None:
            yield None
            return
        loss = pace = ""
        each = 0.0  # steps of an epoch

        def watch(progress: Progress) -> None:
            nonlocal loss, pace, each
            if progress.doing:
                at = round(1000 * progress.share)
                show(Standing(at, 1000, f"{progress.share:.0%}", (progress.doing,)))
                return
            if progress.row is not None:
                loss = f"held out {progress.row['valid_loss']:.4g}"
                each = progress.row["step"] / (progress.row["epoch"] or math.inf)
            if each:
                epochs = math.ceil(progress.steps / each)
                pace = f"epoch {min(epochs, int(progress.step / each) + 1):,} of {epochs:,}"
            rate = f"{progress.rows_per_second:,.0f} rows/s"
            show(Standing(progress.step, progress.steps, pace, (rate, loss)))

        yield watch


@contextmanager
def rows_bar(title: str, total: int, *, hidden: bool) -> Generator[Callable[[int], None]]:
    """Show how many rows are done; yield what is called with the number of those done next."""
    with _shown(title, hidden=hidden) as show:
        done = 0

        def count(rows: int) -> None:
            nonlocal done
            done += rows
            if show is not None:
                show(Standing(done, total, f"{done:,} of {total:,} rows"))

        yield count


@dataclass(frozen=True)
class Standing:
    """How much is done of what there is to do, in ``words``, and what there is to say beside."""

    done: int
    total: int
    words: str
    beside: tuple[str, ...] = ()


@contextmanager
def _shown(title: str, *, hidden: bool) -> Generator[Callable[[Standing], None] | None]:
    """Yield what shows a standing: as a bar on a terminal, else as a line now and then."""
    if hidden or processes.number():
        yield None
    elif not sys.stderr.isatty():
        yield _Lines(title).show
    else:
        from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        columns = (
            TextColumn("{task.description}"), BarColumn(),
            TextColumn("{task.percentage:>3.0f}%"), TextColumn("{task.fields[beside]}"),
            TimeRemainingColumn(),
        )  # fmt: skip
        with Bar(*columns, console=errors, transient=True) as bar:
            task = bar.add_task(title, total=None, beside="")

            def show(at: Standing) -> None:
                whole, done = (at.total, at.done) if at.total else (1, 1)
                bar.update(task, total=whole, completed=done, beside=" ".join(at.beside))

            yield show


@final
class _Lines:
    """Plain lines about where a long task stands, half a minute apart, with the time left."""

    def __init__(self, title: str) -> None:
        self.title, self.said = title, time.monotonic()
        self.began, self.first = self.said, 0
        self.last = Standing(sys.maxsize, 0, "")

    def show(self, at: Standing) -> None:
        """Print a line where the last one is old."""
        now = time.monotonic()
        if at.done < self.last.done or at.total != self.last.total:  # another task has begun
            self.began, self.first = now, at.done
        self.last = at
        if now - self.said < EVERY or at.done >= at.total:
            return
        self.said = now
        rate = (at.done - self.first) / max(1e-9, now - self.began)
        left = f"about {_long((at.total - at.done) / rate)} left" if rate else ""
        words = at.words or f"{at.done:,} of {at.total:,} steps"
        said = [f"{self.title}: {words}", *at.beside, left]
        errors.print(_escaped(", ".join(word for word in said if word)))


def _long(seconds: float) -> str:
    """Say how long something takes.

    >>> _long(40), _long(200), _long(9000)
    ('40 s', '3 min', '2.5 h')
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


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
