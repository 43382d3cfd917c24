"""How the cost of ``fit`` grows: time a row and memory with the rows, time a step with the columns.

    python bench/growth.py [--quick] [--picture growth.svg]

Batches of 256, a hidden layer of 64 and a code of 8, so every row has the same share of a step. One
epoch of a million rows or more; of fewer, as many epochs as make a million, because what a run does
once (a step is recorded in some ten milliseconds) would else be charged to one epoch of a small
table; what one epoch of those alone takes is said beside. Every point is a process of its own. Time
a row is what an epoch takes, with its evaluations, and what all else in ``fit`` takes, from the
array. Memory is the most the process held beyond what it held with the array and all imports. Of
sizes that take little the median of three runs is shown.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from contest import aligned
from worker import most_memory

NAME = "cost growth"
PICTURE = Path(__file__).with_name("growth.svg")
ROWS = (10_000, 30_000, 100_000, 300_000, 1_000_000, 3_000_000, 10_000_000)
COLUMNS = (10, 30, 100, 300, 1_000, 2_000)
WIDE, STEPPED = 30, 20_000  # columns where rows grow, and rows where columns do
QUICK = 1_000_000  # rows, at most
SETTLED = 100_000  # rows from which all of a fit is flat, too
LONG = 1_000_000  # rows that a run meets at least
AGAIN = 30_000_000  # cells up to which there are three runs
FLAT = 0.1  # share by which time a row may differ from its median

Point = dict[str, float]


def point(rows: int, columns: int) -> Point:
    """Fit once, in this process; microseconds a row and a step, MiB beyond the array."""
    import refold
    from cases.rows import table

    def fitted(x: Any, epochs: int) -> tuple[float, Any]:
        """Fit; return seconds, and the model."""
        options: dict[str, Any] = {"recipe": "dense", "hidden": (64,), "batch_size": 256}
        began = time.perf_counter()
        ae = refold.Autoencoder(8, **options, epochs=epochs, patience=epochs + 1).fit(x)
        return time.perf_counter() - began, ae

    fitted(table(20_000, columns), 1)  # what is imported at first use
    x = table(rows, columns)
    epochs = max(1, LONG // rows)
    runs: list[Point] = []
    for _ in range(3 if x.size <= AGAIN else 1):
        before = most_memory(anew=True)
        seconds, ae = fitted(x, epochs)
        memory = most_memory() - before
        one = seconds if epochs == 1 else fitted(x, 1)[0]
        runs.append(
            {
                "epoch": 1e6 * ae.run_.seconds / rows / epochs,
                "else": 1e6 * (seconds - ae.run_.seconds) / rows,
                "one": 1e6 * one / rows,
                "step": 1e6 * ae.run_.seconds / ae.plan_.steps,
                "memory": memory,
            }
        )
    found = {k: statistics.median(run[k] for run in runs) for k in ("epoch", "else", "one", "step")}
    return {
        **found,
        "row": found["epoch"] + found["else"],
        "memory": max(run["memory"] for run in runs),  # later ones find what the first left
        "array": x.nbytes / 2**20,
    }


def apart(rows: int, columns: int) -> Point:
    """Fit in a process of its own."""
    told = json.dumps([rows, columns])
    done = subprocess.run(
        [sys.executable, __file__, "--point", told], stdout=subprocess.PIPE, text=True, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def measured(quick: bool) -> tuple[dict[int, Point], dict[int, Point]]:
    """Points by rows, and by columns; says each."""
    by_rows: dict[int, Point] = {}
    by_columns: dict[int, Point] = {}
    for rows in ROWS:
        if not quick or rows <= QUICK:
            found = by_rows[rows] = apart(rows, WIDE)
            print(
                f"  {rows:,} rows: {found['row']:.2f} microseconds a row, "
                f"{found['memory']:,.0f} MiB",
                flush=True,
            )
    for columns in COLUMNS:
        found = by_columns[columns] = apart(STEPPED, columns)
        print(f"  {columns:,} columns: {found['step']:,.0f} microseconds a step", flush=True)
    return by_rows, by_columns


def line(by_columns: dict[int, Point]) -> tuple[float, float]:
    """Microseconds a step without columns and for each, by least squares of relative errors."""
    at, seen = (np.array(v, dtype=float) for v in (
        list(by_columns), [p["step"] for p in by_columns.values()]
    ))  # fmt: skip
    slope, start = np.polyfit(at, seen, 1, w=1 / seen)
    return float(start), float(slope)


def sentence(by_rows: dict[int, Point], by_columns: dict[int, Point]) -> str:
    """What the points come to."""
    epochs, wholes = ([p[k] for p in by_rows.values()] for k in ("epoch", "row"))
    flat = worst(epochs)
    settled = [p["row"] for n, p in by_rows.items() if n >= SETTLED]
    start, slope = line(by_columns)
    off = max(abs(p["step"] / (start + slope * c) - 1) for c, p in by_columns.items())
    large = by_rows[max(by_rows)]
    return (
        f"An epoch takes a row {statistics.median(epochs):.2f} microseconds, within {flat:.0%} "
        f"({'met' if flat <= FLAT else '**missed**'}: {FLAT:.0%}). With all else in a fit it takes "
        f"{statistics.median(settled):.2f}, within {worst(settled):.0%} from {SETTLED:,} rows on; "
        f"of fewer, what does not depend on their number shows, up to {max(wholes):.2f}. A step "
        f"takes {start:,.0f} microseconds and {slope:.2f} for each column, within {off:.0%}. At "
        f"{max(by_rows):,} rows memory peaks at {large['memory'] / large['array']:.1f} times the "
        f"array, beside it."
    )


def worst(values: list[float]) -> float:
    """Largest share by which one is off their median."""
    middle = statistics.median(values)
    return max(abs(v / middle - 1) for v in values)


def block(quick: bool, note: str, picture: Path) -> str:
    """Measure, draw, and say it all under a heading of its own."""
    print(f"\n{NAME}", flush=True)
    by_rows, by_columns = measured(quick)
    draw(by_rows, by_columns, picture)
    rows = [["rows", "in an epoch", "else", "together", "fit of one epoch", "MiB (array)"]]
    rows += [
        [
            f"{n:,}",
            *(f"{p[k]:.2f}" for k in ("epoch", "else", "row", "one")),
            f"{p['memory']:,.0f} ({p['array']:,.0f})",
        ]
        for n, p in by_rows.items()
    ]
    columns = [["columns", "microseconds a step"]]
    columns += [[f"{n:,}", f"{p['step']:,.0f}"] for n, p in by_columns.items()]
    what = (
        "Batches of 256, a layer of 64 and a code of 8; one epoch, or as many as meet "
        f"{LONG:,} rows. Microseconds a row. {note}"
    ).strip()
    return "\n\n".join(
        [
            f"### {NAME}",
            what,
            sentence(by_rows, by_columns),
            f"![Time a row, time a step and memory, as data grow]({picture.name})",
            "\n".join(aligned(rows)),
            "\n".join(aligned(columns)),
        ]
    )


def draw(by_rows: dict[int, Point], by_columns: dict[int, Point], path: Path) -> None:
    """Three panels, one for each figure."""
    import matplotlib
    from matplotlib.figure import Figure

    style = {
        "svg.hashsalt": "refold", "font.size": 9, "axes.spines.top": False,
        "axes.spines.right": False, "axes.titlesize": 10, "axes.titlelocation": "left",
    }  # fmt: skip
    ink, faint = "#1f5f8b", "#b9c7d1"
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(10.5, 3.2), layout="constrained")
        row, memory, step = figure.subplots(1, 3)
        at, grey = list(by_rows), "#5b6b76"
        for key, style, name in (
            ("row", "o--", "with all else in a fit"),
            ("epoch", "o-", "an epoch"),
        ):
            each = [p[key] for p in by_rows.values()]
            row.plot(at, each, style, color=ink, ms=4, alpha=1 if key == "epoch" else 0.5)
            row.annotate(
                name, (at[-1], each[-1]), ha="right", va="bottom", xytext=(0, 5),
                textcoords="offset points", color=grey,
            )  # fmt: skip
        middle, most = statistics.median(each), max(p["row"] for p in by_rows.values())
        row.axhspan(middle * (1 - FLAT), middle * (1 + FLAT), color=faint, alpha=0.5, lw=0)
        row.set(xscale="log", ylim=(0, 1.15 * most), xlabel="rows", title="microseconds a row")
        row.annotate(
            f"median ± {FLAT:.0%}", (at[0], middle * (1 - FLAT)), va="top", xytext=(0, -2),
            textcoords="offset points", color=grey,
        )  # fmt: skip
        memory.plot(at, [p["array"] for p in by_rows.values()], "--", color=faint)
        memory.plot(at, [p["memory"] for p in by_rows.values()], "o-", color=ink, ms=4)
        memory.set(xscale="log", yscale="log", xlabel="rows", title="MiB beside the array, at most")
        memory.annotate(
            "the array itself", (at[len(at) // 2], by_rows[at[len(at) // 2]]["array"]),
            ha="left", va="top", xytext=(6, -2), textcoords="offset points", color=grey,
        )  # fmt: skip
        start, slope = line(by_columns)
        ends = np.array([0, max(by_columns)])
        step.plot(ends, start + slope * ends, "--", color=faint)
        step.plot(list(by_columns), [p["step"] for p in by_columns.values()], "o", color=ink, ms=4)
        step.set(xlabel="columns", ylim=(0, None), title="microseconds a step")
        step.annotate(
            f"{start:,.0f} + {slope:.2f} a column", (0.97, 0.06), xycoords="axes fraction",
            ha="right", color=grey,
        )  # fmt: skip
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None, dpi=120)


def main() -> None:
    """Measure one point, or all."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help=f"up to {QUICK:,} rows")
    parser.add_argument("--picture", type=Path, default=PICTURE)
    parser.add_argument("--point", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.point is not None:
        print(json.dumps(point(*json.loads(given.point))))
        return
    print(block(given.quick, "", given.picture))


if __name__ == "__main__":
    main()
