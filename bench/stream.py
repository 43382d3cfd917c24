"""What training costs whose rows are read in parts, beside the same in memory.

    python bench/stream.py speed [--memory 200MB] [--repeats 7]     dense 784-128-64-12-64-128-784
    python bench/stream.py feed [--memory 200MB] [--repeats 5]      32 columns, batches of 1,024
    python bench/stream.py size [--gigabytes 20] [--memory 500MB]   how much memory a fit takes

``speed`` trains one network from the same weights by turns from memory and from Parquet files, and
gives the median of the ratios of rows per second, streamed by memory, from the second epoch on; and
what comes before: reading and encoding all rows, beside looking at them and decoding them into the
cache. ``feed`` takes batches without training. ``size`` fits files that are hard links to one, so
that they take no room; with ``--decoded`` as on a disk that has none for a cache. It needs no
machine of its own: what counts is the memory above that of a process that has imported refold and
fitted a small table.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

import refold
from refold.assemble import Wishes, assemble
from refold.data.feed import Feed, Memory, portions
from refold.data.schema import Schema
from refold.data.sources import read
from refold.data.streams import Stream, mixing, stream
from refold.data.streams.budget import bytes_of, in_words, released
from refold.parts import PartSpec
from refold.training.fit import fit
from refold.training.plan import Plan
from refold.types import Batch

EPOCHS = 3


def write(folder: Path, rows: int, columns: int, files: int) -> Path:
    """Normal columns that depend on each other, and the place of the row, as Parquet files."""
    rng = np.random.default_rng(0)
    mix = rng.normal(size=(8, columns))
    each = -(-rows // files)
    for i in range(files):
        n = min(each, rows - i * each)
        x = rng.normal(size=(n, 8)) @ mix + 0.3 * rng.normal(size=(n, columns))
        x[:, 0] = 2 * (np.arange(n) + i * each)  # the place in the files
        table = pa.table({f"c{j}": x[:, j].astype(np.float32) for j in range(columns)})
        pq.write_table(table, folder / f"{i:03}.parquet", row_group_size=max(1000, each // 4))
    return folder / "*.parquet"


def streamed(pattern: Path, memory: str) -> Stream:
    """The files as a stream, whatever their size."""
    source = stream.in_parts(pattern, stream.Room.of(None, None))
    assert source is not None
    return Stream(source, bytes_of(memory), "")


def rate(feed: Feed, batch: int, epochs: int) -> float:
    """Rows per second of batches alone, after one epoch that fills what there is to fill."""
    each = len(portions(len(feed), batch))
    began, seen = 0.0, 0
    for step, (clean, _) in enumerate(feed.batches()):
        if step == each:
            began = time.perf_counter()
        if step >= each:
            seen += len(clean)
        if step + 1 == each * (epochs + 1):
            break
    return seen / (time.perf_counter() - began)


def mixed(feed: Feed, batch: int) -> float:
    """How well an epoch mixes rows, by the places that they carry."""
    each = len(portions(len(feed), batch))
    found = [
        next(iter(r.x.values()))[:, 0]
        for _, (r, _) in zip(range(each), feed.batches(), strict=False)
    ]
    return mixing(torch.cat(found).double().numpy().argsort().argsort(), [len(b) for b in found])


def prepared(
    pattern: Path, memory: str, batch: int
) -> tuple[Schema, Batch, Feed, Feed, dict[str, float]]:
    """Schema, sample, feed from memory, feed from files, and what each took to begin."""
    clock: dict[str, float] = {}
    began = time.perf_counter()
    table = read(str(pattern))
    schema = Schema.fit(table, np.arange(len(table)))
    whole, _ = schema.encode(table)
    clock["read and encode"] = time.perf_counter() - began
    rows = streamed(pattern, memory)
    began = time.perf_counter()
    found = rows.look(0, None)
    clock["look"] = time.perf_counter() - began
    sample, _ = schema.encode(found.table)
    feed = rows.feed(schema, sample, np.zeros(0, np.int64), batch, seed=0)
    began = time.perf_counter()
    next(feed.batches())
    clock["decode"] = time.perf_counter() - began
    return schema, sample, Memory(whole, batch), feed, clock


def speed(memory: str, repeats: int) -> None:
    """Print the ratio of the dense case."""
    hidden, code, batch = (128, 64), 12, 256
    with tempfile.TemporaryDirectory() as folder:
        pattern = write(Path(folder), 60_000, 784, 4)
        schema, sample, inside, outside, clock = prepared(pattern, memory, batch)
        spec = assemble(schema, sample, Wishes(recipe="dense", latent=code, hidden=hidden)).spec
        spec = replace(spec, fusion=PartSpec("concat", {"hidden": hidden}))
        steps = len(portions(60_000, batch))
        plan = Plan.choose(60_000, epochs=EPOCHS, batch_size=batch)
        plan = replace(plan, period=plan.steps, patience=None)
        ratios: list[float] = []
        for _ in range(repeats):
            took: list[float] = []
            for feed in (inside, outside):
                torch.manual_seed(0)
                marks: list[float] = []

                def watch(progress: object, marks: list[float] = marks) -> None:
                    if getattr(progress, "step") >= steps:  # noqa: B009
                        marks.append(time.perf_counter())

                model = spec.build(schema)
                fit(model, feed, sample.rows(slice(0, 1000)), plan, watch=watch)
                took.append(marks[-1] - marks[0])
            ratios.append(took[0] / took[1])
            print(f"  {took[0]:.2f} s from memory, {took[1]:.2f} s from files", flush=True)
    for name, seconds in clock.items():
        print(f"{name}: {seconds:.2f} s")
    print(
        f"rows per second, from files by from memory, memory {memory}: median "
        f"{statistics.median(ratios):.3f}, {min(ratios):.3f} to {max(ratios):.3f}"
    )


def feeds(memory: str, repeats: int) -> None:
    """Print what batches alone cost, and how well they mix."""
    rows, batch = 2_000_000, 1024
    with tempfile.TemporaryDirectory() as folder:
        pattern = write(Path(folder), rows, 32, 8)
        *_, inside, outside, clock = prepared(pattern, memory, batch)
        pairs = [(rate(inside, batch, 1), rate(outside, batch, 1)) for _ in range(repeats)]
        well = mixed(inside, batch), mixed(outside, batch)
        print(f"mixing: {well[0]:.3f} from memory, {well[1]:.3f} from files, memory {memory}")
        for name, seconds in clock.items():
            print(f"{name}: {rows / seconds / 1e6:.2f} million rows a second")
    for name, found in zip(("memory", "files"), zip(*pairs, strict=True), strict=True):
        print(f"from {name}: {statistics.median(found) / 1e6:.2f} million rows a second")
    print(f"ratio: median {statistics.median(b / a for a, b in pairs):.3f}")


def resident() -> int:
    """Bytes that the process holds in memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


@contextmanager
def sampled(most: list[int], every: float = 0.01) -> Iterator[None]:
    """Note the most memory that is held meanwhile."""
    ended = threading.Event()
    most.append(resident())

    def look() -> None:
        while not ended.wait(every):
            most[0] = max(most[0], resident())

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def size(gigabytes: float, memory: str, columns: int, decoded: bool) -> None:
    """Print the most memory of a fit, above that of a process that has fitted a small table."""
    settings = {"latent": 8, "hidden": (32,), "batch_size": 1024, "memory": memory}
    refold.Autoencoder(**settings, epochs=1).fit(np.random.default_rng(0).normal(size=(9999, 32)))
    if decoded:
        stream.has_room = lambda folder, size: False  # type: ignore[assignment]
    with tempfile.TemporaryDirectory() as folder:
        own = Path(folder)
        rows = 1_000_000 * 32 // columns
        write(own, rows, columns, 1)
        many = max(1, round(gigabytes * 1e9 / (4 * columns * rows)))
        for i in range(1, many):
            os.link(own / "000.parquet", own / f"{i:03}.parquet")
        released()  # what the small fit freed and the process kept does not hide anything
        before, most = resident(), list[int]()
        began = time.perf_counter()
        with sampled(most):
            ae = refold.Autoencoder(**settings, epochs=1).fit(str(own / "*.parquet"))
        print(*ae.reasons_, sep="\n")
        print(
            f"{ae.n_rows_:,} rows of {columns} numbers, {in_words(4 * columns * ae.n_rows_)}: "
            f"{in_words(most[0] - before)} above the {in_words(before)} before, memory {memory}; "
            f"{time.perf_counter() - began:.0f} s, of them {ae.run_.seconds:.0f} training"
        )


def main() -> None:
    """Run what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("task", choices=("speed", "feed", "size"))
    parser.add_argument("--memory")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--gigabytes", type=float, default=20)
    parser.add_argument("--columns", type=int, default=32)
    parser.add_argument("--decoded", action="store_true", help="size: as if the disk were full")
    given = parser.parse_args()
    if given.task == "size":
        size(given.gigabytes, given.memory or "500MB", given.columns, given.decoded)
    else:
        run = {"speed": speed, "feed": feeds}[given.task]
        run(given.memory or "200MB", given.repeats)


if __name__ == "__main__":
    main()
