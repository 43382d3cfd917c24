"""refold beside other libraries: the same work in turns, and what it comes to.

    make bench                                  (or, in an environment with the peers:)
    python bench/suite.py [--only CASE ...] [--repeats 5] [--quick] [--write] [--list]

Every case has one or more ways of refold's and other contestants, on the same network, data,
optimiser, batches, precision and number of steps. Each runs in a process of its own, one at a time,
in turns; a ratio is the median over the rounds of the other's time by refold's, with the lowest and
the highest, so above 1 refold is faster. All of a call counts: reading and scaling the array,
choosing and calibrating, evaluating, keeping the best weights.

``of peak`` is the speed of the matrix products that the work consists of, by that of a product of
two matrices of 2,048 a side, measured in every round. ``MiB`` is the most memory a process held,
and how much of it came after imports and data.

``--write`` puts the result into ``bench/RESULTS.md``, in the place of what cases of the same name
had there, and draws ``bench/growth.svg``. ``--quick`` shows in little time that everything runs,
and measures nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import growth
from cases import every
from contest import FULL, HALF, Case, Contest, block, merged, missed
from peers import NOTED, pins
from worker import PEAK, Failed, Worker

RESULTS = Path(__file__).with_name("RESULTS.md")
REPEATS = 5


def say(words: str) -> None:
    """Tell what is going on, at once."""
    print(words, flush=True)


def compete(case: Case, repeats: int, quick: bool, absent: dict[str, str], peak: Worker) -> Contest:
    """Run all contestants of a case, in turns that begin with another one each round."""
    contest = Contest()
    say(f"\n{case.name}: {case.what}\n  preparing {', '.join(case.contestants)}")
    workers = {name: Worker(case.name, name, quick) for name in case.contestants}

    def out(name: str, error: Failed) -> None:
        """Leave a contestant out that cannot run."""
        contest.missing[name] = reason(str(error), absent)
        contest.laps.pop(name, None)
        workers.pop(name).close()
        say(f"  {name} cannot run: {contest.missing[name]}")

    for name, worker in list(workers.items()):
        try:
            contest.idle[name] = worker.ready()
        except Failed as error:
            out(name, error)
    for turn in range(repeats):
        for kind, speed in peak.ask().items():
            contest.peaks.setdefault(kind, []).append(speed)
        order = list(workers)
        at = turn % max(1, len(order))
        seconds: dict[str, str] = {}
        for name in order[at:] + order[:at]:
            try:
                lap = workers[name].lap()
            except Failed as error:
                out(name, error)
                continue
            contest.laps.setdefault(name, []).append(lap)
            seconds[name] = f"{name} {lap.seconds:.2f} s"
        say(f"  round {turn + 1} of {repeats}: {', '.join(seconds.values())}")
    for worker in workers.values():
        worker.close()
    say("")
    return contest


def reason(error: str, absent: dict[str, str]) -> str:
    """Say why a contestant is missing: its package could not be installed, or what it raised."""
    for package, why in absent.items():
        if package.replace("-", "_") in error.replace("-", "_"):
            return f"{package} could not be installed: {why}"
    return error


def machine() -> str:
    """Say what this was measured on, and with what."""
    cpu = platform.processor() or platform.machine()
    known = Path("/proc/cpuinfo")
    if known.exists():
        names = [line for line in known.read_text().splitlines() if line.startswith("model name")]
        cpu = names[0].partition(": ")[2] if names else cpu
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    found = [f"Python {platform.python_version()}"]
    for package in ("torch", "numpy", "scikit-learn", *pins()):
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            found.append(f"{package} absent")
    return (
        f"{os.cpu_count()} cores of {cpu}, {memory:.0f} GiB, {platform.system()}; "
        f"{', '.join(found)}."
    )


def heading() -> str:
    """Return what stands above the cases in the document."""
    columns = (__doc__ or "").split("\n\n")[2:4]
    return "\n\n".join(["## refold beside other libraries, in turns", *columns, machine()])


def note(contest: Contest, repeats: int) -> str:
    """Say when a case was measured, how often, and how fast the machine was."""
    peaks = ", ".join(f"{max(contest.peaks[k]):,.0f} in {k}" for k in (FULL, HALF))
    return f"{when()} Rounds: {repeats}; peak {peaks} GFLOP/s."


def when() -> str:
    """Say the date, and how many threads there may be."""
    threads = os.environ.get("OMP_NUM_THREADS")
    told = "" if threads is None else f", OMP_NUM_THREADS={threads}"
    return f"{datetime.now(UTC):%d %B %Y}{told}."


def not_installed() -> dict[str, str]:
    """Packages that could not be installed here, and why."""
    path = Path(sys.prefix) / NOTED
    return json.loads(path.read_text()) if path.exists() else {}


def main() -> None:
    """Run the cases asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", metavar="CASE")
    parser.add_argument("--repeats", type=int, default=REPEATS)
    parser.add_argument("--quick", action="store_true", help="sizes that only show that all runs")
    parser.add_argument("--write", action="store_true", help="into bench/RESULTS.md")
    parser.add_argument("--list", action="store_true", help="name the cases")
    given = parser.parse_args()
    cases = every(given.quick)
    if given.quick:
        cases = {name: replace(case, aims={}) for name, case in cases.items()}
    if given.list:
        for case in cases.values():
            print(f"{case.name}: {case.what}\n    {', '.join(case.contestants)}")
        print(f"{growth.NAME}: bench/growth.py")
        return
    order = [*cases, growth.NAME]
    chosen = order if given.only is None else given.only
    for name in chosen:
        if name not in order:
            parser.error(f"no case is called '{name}'; give some of: {', '.join(order)}")
    if given.quick and given.write:
        parser.error("figures of --quick mean nothing; leave out --quick to write")
    say(machine())
    absent, began = not_installed(), time.monotonic()
    for package, why in absent.items():
        say(f"{package} could not be installed, so its cases are left out: {why}")
    short: list[str] = []
    peak = Worker("", PEAK, given.quick)
    peak.ready()
    for name in chosen:
        if name == growth.NAME:
            path = growth.PICTURE if given.write else Path(tempfile.gettempdir()) / "growth.svg"
            written = growth.block(given.quick, when(), path)
            say(f"\n{written}\n\nThe picture is {path}.")
        else:
            contest = compete(cases[name], given.repeats, given.quick, absent, peak)
            written = block(cases[name], contest, note(contest, given.repeats))
            short += missed(cases[name], contest)
            say(written)
        if given.write:
            document = merged(RESULTS.read_text(), heading(), {name: written}, order)
            RESULTS.write_text(document)
    peak.close()
    say(f"\n{len(chosen)} cases in {(time.monotonic() - began) / 60:.1f} minutes.")
    if not given.quick:
        say("Missed: " + "; ".join(short) if short else "All that was aimed at is met.")


if __name__ == "__main__":
    main()
