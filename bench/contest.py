"""What runs of several contestants, taken in turn, come to: ratios, shares of the peak, a table.

Nothing here runs anything, and nothing but the standard library is needed.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

BEGIN, END = "<!-- suite: begin -->", "<!-- suite: end -->"
FULL, HALF = "float32", "bfloat16"


@dataclass(frozen=True)
class Found:
    """What a run left behind, read when the clock has stopped.

    ``error`` is how well the trained model does, the same figure for every contestant of a case, so
    that nobody is fast by doing less; ``products`` the numbers its large matrix products were of.
    """

    error: float | None = None
    products: str = FULL


Run = Callable[[], Callable[[], Found]]
"""What is timed; it returns what tells of its outcome, which is not."""

Prepare = Callable[[], Run]
"""Imports what a contestant needs and makes its data; called in a process of its own."""


@dataclass(frozen=True)
class Case:
    """One thing to do, refold's ways to do it and the others'.

    ``aims`` holds for pairs of a way of refold's and another contestant the least ratio of their
    times that is aimed at. ``flops`` counts what the matrix products of a run take that no
    contestant can do without, where there are such. A time is shown as that of one of ``units``
    called ``unit``, such as a step. ``error`` says what the figure of a contestant's outcome is,
    and ``inside`` whether the work is done, and memory taken, in the contestant's own process.
    """

    name: str
    what: str
    refold: Mapping[str, Prepare]
    others: Mapping[str, Prepare]
    aims: Mapping[tuple[str, str], float] = field(default_factory=dict[tuple[str, str], float])
    flops: float | None = None
    units: int = 1
    unit: str = "run"
    error: str = "squared error"
    inside: bool = True

    def __post_init__(self) -> None:
        assert not set(self.refold) & set(self.others)
        assert all(a in self.refold and b in self.others for a, b in self.aims)

    @property
    def contestants(self) -> dict[str, Prepare]:
        """All of them, refold first."""
        return {**self.refold, **self.others}


@dataclass(frozen=True)
class Lap:
    """One run: its seconds, what it found, and the most memory of the process so far, in MiB."""

    seconds: float
    found: Found
    memory: float


@dataclass
class Contest:
    """Laps of every contestant, round by round, and why others are missing.

    ``peaks`` are the machine's own matrix products, by kind of number, in each round in GFLOP/s;
    ``idle`` is what a contestant's process held before its first run, in MiB.
    """

    laps: dict[str, list[Lap]] = field(default_factory=dict[str, list[Lap]])
    missing: dict[str, str] = field(default_factory=dict[str, str])
    peaks: dict[str, list[float]] = field(default_factory=dict[str, list[float]])
    idle: dict[str, float] = field(default_factory=dict[str, float])


@dataclass(frozen=True)
class Spread:
    """A median with the lowest and the highest."""

    middle: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Of at least one value."""
        return cls(statistics.median(values), min(values), max(values))

    def __str__(self) -> str:
        if self.low == self.high:
            return f"{self.middle:.2f}"
        return f"{self.middle:.2f} ({self.low:.2f} to {self.high:.2f})"


def ratio(contest: Contest, ours: str, theirs: str) -> Spread | None:
    """By how much ``ours`` is faster: the other's time by its own, round by round.

    None where one of them has no laps.
    """
    pairs = zip(contest.laps.get(theirs, []), contest.laps.get(ours, []), strict=False)
    found = [b.seconds / a.seconds for b, a in pairs]
    return Spread.of(found) if found else None


def verdict(spread: Spread | None, aim: float | None) -> str:
    """Say a ratio, and whether it is as large as aimed at."""
    if spread is None:
        return ""
    if aim is None:
        return str(spread)
    met = "met" if spread.middle >= aim else "**missed**"
    return f"{spread}; {aim:g}: {met}"


def share(case: Case, contest: Contest, name: str) -> float | None:
    """Speed of a contestant's matrix products, by the machine's own for such numbers."""
    laps = contest.laps[name]
    peak = contest.peaks.get(laps[-1].found.products)
    if case.flops is None or not peak:
        return None
    return case.flops / statistics.median(lap.seconds for lap in laps) / 1e9 / max(peak)


def table(case: Case, contest: Contest) -> list[str]:
    """Lines of a Markdown table, aligned so that it reads as it stands."""
    ours = [name for name in case.refold if name in contest.laps]
    against = ["ratio"] if len(ours) == 1 else [f"ratio to {name}" for name in ours]
    rows = [["", f"ms a {case.unit}", *against, "of peak", "MiB", case.error]]
    for name in case.contestants:
        laps = contest.laps.get(name)
        if not laps:
            continue
        once = Spread.of([1e3 * lap.seconds / case.units for lap in laps]).middle
        seen = [""] * len(ours)
        if name in case.others:
            seen = [verdict(ratio(contest, o, name), case.aims.get((o, name))) for o in ours]
        part, error = share(case, contest, name), laps[-1].found.error
        most, idle = max(lap.memory for lap in laps), contest.idle.get(name, 0.0)
        rows.append(
            [
                name,
                f"{once:,.4g}" if once < 1000 else f"{once:,.0f}",
                *seen,
                "" if part is None else f"{part:.1%}",
                f"{most:,.0f} (+{max(0.0, most - idle):,.0f})" if case.inside else "",
                "" if error is None else f"{error:.4g}",
            ]
        )
    told = [i for i, head in enumerate(rows[0]) if not head or any(row[i] for row in rows[1:])]
    return aligned([[row[i] for i in told] for row in rows])


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of cells as a Markdown table, the first row its head."""
    widths = [max(3, *(len(row[i]) for row in rows)) for i in range(len(rows[0]))]
    head, *body = (
        "| " + " | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) + " |"
        for row in rows
    )
    return [head, "|" + "|".join("-" * (w + 2) for w in widths) + "|", *body]


def block(case: Case, contest: Contest, note: str) -> str:
    """All there is to say of a case, under its own heading."""
    lines = [f"### {case.name}", "", f"{case.what} {note}", "", *table(case, contest)]
    if contest.missing:
        lines += ["", *(f"Not run: {name}: {why}" for name, why in contest.missing.items())]
    return "\n".join(lines)


def missed(case: Case, contest: Contest) -> list[str]:
    """Sentences on what was aimed at and not reached."""
    found: list[str] = []
    for (ours, theirs), aim in case.aims.items():
        spread = ratio(contest, ours, theirs)
        if spread is not None and spread.middle < aim:
            found.append(f"{case.name}: {spread.middle:.2f} times {theirs} ({ours}), not {aim:g}")
    return found


def merged(document: str, head: str, blocks: Mapping[str, str], order: Sequence[str]) -> str:
    """Write a section of cases into a document; cases that were not run stay as they were.

    The section stands between two markers, and at the end where a document has none. Nothing else
    of the document changes.
    """
    before, found, rest = document.partition(BEGIN)
    kept: dict[str, str] = {}
    after = ""
    if found:
        inside, ended, after = rest.partition(END)
        if not ended:
            raise ValueError(f"the document has '{BEGIN}' without '{END}'")
        for part in re.split(r"^(?=### )", inside, flags=re.MULTILINE)[1:]:
            kept[part.partition("\n")[0].removeprefix("### ")] = part.strip()
    else:
        before = before.rstrip("\n") + "\n\n"
        after = "\n"
    kept |= blocks
    shown = [kept[name] for name in order if name in kept]
    return before + "\n\n".join([f"{BEGIN}\n{head}", *shown, END]) + after
