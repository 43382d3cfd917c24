"""Rows larger than memory: looked at once, each in every epoch, mixed, within a budget."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest
import safetensors.numpy
import torch

import refold
from refold.data.feed import portions
from refold.data.schema import Schema
from refold.data.sources import read
from refold.data.streams import Stream, Streamed, mixing, opened, stream
from refold.data.streams.ahead import ahead
from refold.data.streams.budget import bytes_of
from refold.data.streams.store import Cached
from refold.errors import InputError
from refold.training.fit import Progress

MEMORY = 32_000_000
BATCH = 64


def table_of(rows: int, seed: int = 0) -> pa.Table:
    rng = np.random.default_rng(seed)
    base = rng.normal(size=rows)
    return pa.table({
        "place": np.arange(rows, dtype=np.float64) * 2,  # in order, but no row number
        "x": (base + 0.1 * rng.normal(size=rows)).astype(np.float32),
        "y": pa.array(base, mask=rng.random(rows) < 0.05),
        "c": np.where(base > 0, "up", np.where(rng.random(rows) < 0.1, "side", "down")),
    })  # fmt: skip


def written(folder: Path, table: pa.Table, files: tuple[tuple[int, int], ...]) -> str:
    """Ragged files: rows of each, and of its row groups."""
    begin = 0
    for i, (rows, group) in enumerate(files):
        pq.write_table(table.slice(begin, rows), folder / f"{i}.parquet", row_group_size=group)
        begin += rows
    assert begin == len(table)
    return str(folder / "*.parquet")


@pytest.fixture
def ragged(tmp_path: Path) -> str:
    return written(tmp_path, table_of(9_001), ((4000, 1300), (37, 100), (4963, 2500), (1, 1)))


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have small files streamed as well."""
    monkeypatch.setattr(stream, "PEAK", 10_000)


def in_stream(source: str) -> Stream:
    found = stream.in_parts(Path(source), stream.Room.of(None, None))
    assert found is not None
    return Stream(found, MEMORY, "")


def fed(
    source: str, monkeypatch: pytest.MonkeyPatch, *, cached: bool, window: int = 10 * BATCH
) -> tuple[Streamed, Schema, np.ndarray]:
    """A feed with small windows, and the places of the rows held out."""
    monkeypatch.setattr(stream, "has_room", lambda folder, size: cached)
    rows = in_stream(source)
    found = rows.look(0, None)
    schema = found.schema(np.arange(1000), None, None)
    sample, _ = schema.encode(found.table)
    held = found.places[::100]
    feed = rows.feed(schema, sample, held, BATCH, seed=3)
    feed.window = window
    return feed, schema, held


def places(feed: Streamed, schema: Schema, count: int, start: int = 0) -> list[np.ndarray]:
    """Places in the files of the rows of so many batches."""
    name = schema.field_of("place")
    at = schema.fields[name].columns.index("place")
    mean, std = (getattr(schema.fields[name], k)[at] for k in ("mean", "std"))
    found: list[np.ndarray] = []
    batches = feed.batches(start)
    for _, (rows, _) in zip(range(count), batches, strict=False):
        value = rows.x[name][:, at].double().numpy() * std + mean
        found.append(np.rint(value / 2).astype(int))
    batches.close()  # type: ignore[attr-defined]
    return found


# --- the order ---------------------------------------------------------------------------------


@pytest.mark.parametrize("cached", [True, False])
def test_an_epoch_has_each_row_once_and_follows_from_its_number(ragged, monkeypatch, cached):
    feed, schema, held = fed(ragged, monkeypatch, cached=cached)
    each = portions(len(feed), BATCH)
    found = places(feed, schema, 2 * len(each))
    assert [len(b) for b in found] == each * 2
    wanted = np.setdiff1d(np.arange(9_001), held)
    first, second = np.concatenate(found[: len(each)]), np.concatenate(found[len(each) :])
    assert len(held) > 50
    np.testing.assert_array_equal(np.sort(first), wanted)
    np.testing.assert_array_equal(np.sort(second), wanted)
    assert (first != second).mean() > 0.9
    for start in (1, 11, len(each) - 1, len(each), len(each) + 25):
        again = places(feed, schema, 3, start)
        for mine, theirs in zip(again, found[start : start + 3], strict=False):
            np.testing.assert_array_equal(mine, theirs)
    feed.close()


def test_the_loop_reads_what_the_system_was_told_of_and_else_a_thread_does(ragged, monkeypatch):
    feed, schema, _ = fed(ragged, monkeypatch, cached=True)
    assert feed.store.foretold == hasattr(os, "posix_fadvise")
    found = []
    for foretold in (True, False):
        monkeypatch.setattr(Cached, "foretold", foretold)
        batches = feed.batches()
        next(batches)
        assert len(threads()) == (not foretold)
        batches.close()
        found.append(np.concatenate(places(feed, schema, 40)))
    np.testing.assert_array_equal(*found)
    feed.close()


def test_batches_are_what_the_schema_makes_of_the_rows(ragged, monkeypatch):
    feed, schema, _ = fed(ragged, monkeypatch, cached=True)
    whole, _ = schema.encode(read(ragged))
    rows, seen = next(feed.batches())
    (at,) = places(feed, schema, 1)
    for name in whole.x:
        torch.testing.assert_close(rows.x[name], whole.x[name][at], rtol=0, atol=0)
        mine, theirs = rows.observed[name], whole.observed[name]
        assert (mine is None) == (theirs is None)
        assert mine is None or theirs is None or mine.equal(theirs[at])
    assert seen is rows
    feed.seen = [schema.field_of("c")]
    assert list(next(feed.batches())[1].x) == feed.seen
    feed.close()


def test_blocks_mix_rows_as_well_as_is_said(tmp_path, monkeypatch):
    source = written(tmp_path, table_of(60_000), ((60_000, 20_000),))
    feed, schema, _ = fed(source, monkeypatch, cached=True, window=100 * BATCH)
    feed.store.block = 50  # type: ignore[attr-defined]
    each = portions(len(feed), BATCH)
    epochs = 3
    found = places(feed, schema, epochs * len(each))
    measured = mixing(np.concatenate(found), [len(b) for b in found])
    expected = 1 / (1 + BATCH / (100 * BATCH / 50))
    assert measured == pytest.approx(expected, rel=3 * np.sqrt(2 / len(found)))
    feed.close()


def test_the_measure_of_mixing_is_one_for_permutations_and_less_for_less():
    rng = np.random.default_rng(0)
    sizes = portions(100_001, 100)
    assert mixing(rng.permutation(100_001), sizes) == pytest.approx(1, abs=0.15)
    near = np.arange(100_001) + rng.normal(size=100_001) * 10_000
    assert mixing(near.argsort(), sizes) < 0.05
    blocks = rng.permutation(1000)[:, None] * 100 + np.arange(100)
    assert mixing(blocks.ravel(), [100] * 1000) == pytest.approx(0.01, rel=0.15)


def test_blocks_are_so_small_that_windows_mix(tmp_path, monkeypatch):
    source = written(tmp_path, table_of(60_000), ((60_000, 20_000),))
    monkeypatch.setattr(stream, "has_room", lambda folder, size: True)
    rows = Stream(in_stream(source).source, 2_000_000_000, "")
    found = rows.look(0, None)
    schema = found.schema(np.arange(1000), None, None)
    sample, _ = schema.encode(found.table)
    feed = rows.feed(schema, sample, found.places[:0], 256, seed=0)
    window = 2_000_000_000 // stream.WINDOW // feed.store.layout.row_bytes
    assert window / feed.store.block > 31 * 256  # type: ignore[attr-defined]  # mixing 0.97


# --- the thread and the files --------------------------------------------------------------------


def test_what_the_thread_raises_is_raised_where_its_items_are_used():
    def broken() -> Iterator[int]:
        yield 1
        raise InputError("no more")

    items = ahead(broken(), 4)
    assert next(items) == 1
    with pytest.raises(InputError, match="no more"):
        next(items)
    assert not threads()


def test_the_thread_ends_with_the_loop():
    made: list[int] = []

    def endless() -> Iterator[int]:
        while True:
            made.append(0)
            yield len(made)

    for item in ahead(endless(), 3):
        if item == 5:
            break
    assert not threads()
    assert len(made) < 12


def threads() -> list[threading.Thread]:
    return [t for t in threading.enumerate() if t.name == "refold-ahead"]


def test_the_cache_has_no_name_and_ends_with_the_fit(ragged, monkeypatch, small, tmp_path_factory):
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv(stream.CACHE, str(folder))
    before = list(Path("/proc/self/fd").iterdir())
    during: list[list[Path]] = []
    refold.Autoencoder(2, memory="32MB", epochs=2).fit(
        ragged, watch=lambda progress: during.append(list(folder.iterdir()))
    )
    assert during
    assert not any(during)
    assert not threads()
    assert len(list(Path("/proc/self/fd").iterdir())) <= len(before)


def test_an_interrupted_fit_leaves_nothing(ragged, small):
    def stop(progress: object) -> None:
        if getattr(progress, "step", 0) > 50:
            raise KeyboardInterrupt

    with pytest.warns(UserWarning, match="interrupted"):
        ae = refold.Autoencoder(2, memory="32MB", epochs=20).fit(ragged, watch=stop)
    assert ae.run_.stopped == "interrupted"
    assert not threads()


def test_an_infinite_value_is_said_with_its_rows(tmp_path, monkeypatch, small):
    table = table_of(20_000)
    x = table.column("x").to_numpy().copy()
    x[19_990] = np.inf
    table = table.set_column(1, "x", pa.array(x))
    source = written(tmp_path, table, ((20_000, 5000),))
    monkeypatch.setattr(stream, "SAMPLE", 500)
    with pytest.raises(InputError, match="infinity"):
        refold.Autoencoder(2, memory="32MB", epochs=1).fit(source)
    assert not threads()


# --- what the whole table tells -------------------------------------------------------------------


def test_levels_and_gaps_of_all_rows_are_known_though_the_sample_has_few(tmp_path, monkeypatch):
    rows = 50_000
    rng = np.random.default_rng(0)
    code = rng.integers(0, 5, rows)
    code[777] = 9
    name = rng.choice(["a", "b", "c"], rows).astype(object)
    name[12_345], name[45_678] = "rare", "rarer"
    gap = rng.normal(size=rows)
    gap[23_456] = np.nan
    table = pa.table({
        "id": np.arange(rows) + 17, "code": code, "name": name, "gap": gap,
        "nearly": np.where(np.arange(rows) == 33_333, 2.5, 0.5), "x": rng.normal(size=rows),
        "key": [f"k{i}" for i in range(rows)],
    })  # fmt: skip
    source = written(tmp_path, table, ((rows, 7000),))
    monkeypatch.setattr(stream, "SAMPLE", 2000)
    found = in_stream(source).look(0, {"name": "categorical"})
    assert found.rows == rows
    assert 2000 < len(found.table) < 2010
    schema = found.schema(np.arange(1800), {"name": "categorical"}, None)
    whole = Schema.fit(read(source), np.arange(rows), {"name": "categorical"})
    assert schema.describe() == [
        line.replace("50000", str(len(found.table))) for line in whole.describe()
    ]
    levels = {c: v for f in schema.fields.values() if hasattr(f, "levels")
              for c, v in zip(f.columns, f.levels, strict=True)}  # fmt: skip
    assert levels["name"] == ("a", "b", "c", "rare", "rarer")
    assert levels["code"] == (0, 1, 2, 3, 4, 9)
    assert levels["nearly"] == (0.5, 2.5)
    assert schema.fields[schema.field_of("gap")].missing
    assert schema.aside["id"].reason == "a row number"
    mean = dict(zip(schema.fields["numeric"].columns, schema.fields["numeric"].mean, strict=True))
    assert mean["x"] == pytest.approx(0, abs=5 / np.sqrt(2000))


def test_a_column_that_some_files_lack_is_missing_there(tmp_path):
    table = table_of(6000)
    written(tmp_path, table, ((6000, 2000),))
    pq.write_table(table.slice(0, 3).drop_columns(["x"]), tmp_path / "z.parquet")
    found = in_stream(str(tmp_path / "*.parquet")).look(0, None)
    schema = found.schema(np.arange(1500), None, None)
    assert schema.fields[schema.field_of("x")].missing
    assert len(found.table.columns["x"]) == len(found.table)


# --- the whole way -------------------------------------------------------------------------------


def test_a_streamed_fit_is_as_good_as_one_in_memory(ragged, small):
    settings = {"latent": 2, "epochs": 8, "fields": {"place": "ignore"}}
    parts = refold.Autoencoder(memory="32MB", **settings).fit(ragged)
    whole = refold.Autoencoder(**settings).fit(read(ragged))
    assert parts.n_rows_ == whole.n_rows_ == 9001
    assert parts.schema_.describe() == whole.schema_.describe()
    assert parts.plan_.steps == whole.plan_.steps
    assert parts.quality_.kept == pytest.approx(whole.quality_.kept, abs=0.02)
    assert any("in parts" in r for r in parts.reasons_)
    assert not any("in parts" in r for r in whole.reasons_)
    codes = parts.transform(ragged)
    assert codes.shape == (9001, 2)
    assert parts.anomalies(ragged).is_anomaly.mean() < 0.1


@pytest.mark.parametrize(
    "settings",
    [
        {"recipe": "anomaly"},
        {"recipe": "imputation"},
        {"recipe": "pca"},
        {"pretrain": "layerwise", "hidden": (8, 4)},
        {"corruption": "gaussian(std=0.1)", "fields": {"c": "target"}},
        {"validation": 0.0},
    ],
    ids=lambda s: next(iter(s)) + str(next(iter(s.values()))),
)
def test_other_ways_of_learning_take_streams(ragged, small, settings):
    ae = refold.Autoencoder(2, memory="32MB", epochs=2, **settings).fit(ragged)
    rebuilt = ae.reconstruct(ragged)
    assert len(rebuilt) == 9001
    assert not ae.plan_.solved


def test_a_fit_follows_from_its_seed(ragged, small):
    one, two = (refold.Autoencoder(2, memory="32MB", epochs=2).fit(ragged) for _ in range(2))
    for mine, theirs in zip(one.model_.parameters(), two.model_.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_arrays_tensors_and_text_are_streamed_as_they_are_read(tmp_path, small):
    x = np.random.default_rng(0).normal(size=(3000, 3)) @ np.ones((3, 8))
    x = x.astype(np.float32)
    np.save(tmp_path / "a.npy", x[:1000])
    np.save(tmp_path / "b.npy", x[1000:])
    safetensors.numpy.save_file({"rows": x}, tmp_path / "c.safetensors")
    names = {f"c{j}": x[:, j] for j in range(8)}
    pa_csv.write_csv(pa.table(names), tmp_path / "d.csv")
    mapped = np.lib.format.open_memmap(tmp_path / "b.npy", mode="r")
    for source, rows in (
        (str(tmp_path / "*.npy"), x),
        (str(tmp_path / "c.safetensors"), x),
        (mapped, x[1000:]),
        (str(tmp_path / "d.csv"), x),
    ):
        found = opened(source, MEMORY)
        assert found is not None
        parts = [t for g in range(len(found.source.groups)) for t in found.source.portions(g, 300)]
        assert max(len(t) for t in parts) <= 300
        joined = [np.stack([np.asarray(c) for c in t.columns.values()], 1).reshape(len(t), 8)
                  for t in parts]  # fmt: skip
        np.testing.assert_allclose(np.concatenate(joined), rows, rtol=1e-6)
        ae = refold.Autoencoder(2, memory="32MB", epochs=2).fit(source)
        assert ae.n_rows_ == len(rows)


def test_brain_floats_are_read(tmp_path):
    import safetensors.torch

    rows = torch.randn(50, 4, generator=torch.Generator().manual_seed(0)).bfloat16()
    safetensors.torch.save_file({"w": rows}, tmp_path / "a.safetensors")
    found = stream.in_parts(tmp_path / "a.safetensors", stream.Room.of(None, None))
    assert found is not None
    (table,) = found.portions(0, 100)
    np.testing.assert_array_equal(read(tmp_path / "a.safetensors").columns["x"], rows.float())
    np.testing.assert_array_equal(table.columns["x"], rows.float().numpy())


def test_text_whose_later_rows_are_of_a_wider_type(tmp_path, monkeypatch):
    from refold.data.streams import sources

    monkeypatch.setattr(sources, "BLOCK", 1000)
    lines = [f"{i % 7},{i % 5}, {'ab'[i % 2]}" for i in range(1000)]
    lines += ["2.5,x, ?"]
    (tmp_path / "a.csv").write_text("n,m,t\n" + "\n".join(lines) + "\n")
    found = sources.TextFiles([tmp_path / "a.csv"])
    assert len(found) == 1001
    tables = list(found.portions(0, 400))
    n, m, t = (np.concatenate([t.columns[k].to_pylist() for t in tables]) for k in "nmt")
    assert n[-1] == 2.5
    assert n[0] == 0
    assert m[-1] == "x"
    assert m[3] == "3"
    assert t[-1] is None
    assert set(t[:-1]) == {"a", "b"}


def test_text_whose_first_block_shows_nothing(tmp_path, monkeypatch):
    from refold.data.streams import sources

    monkeypatch.setattr(sources, "BLOCK", 1000)
    lines = [f"{i},," for i in range(1000)] + ["1000,2.5,late", "1001,3,?"]
    (tmp_path / "a.csv").write_text("n,number,text\n" + "\n".join(lines) + "\n")
    found = sources.TextFiles([tmp_path / "a.csv"])
    assert len(found) == 1002
    tables = list(found.portions(0, 400))
    assert {str(t.columns["number"].type) for t in tables} == {"double"}
    assert {str(t.columns["text"].type) for t in tables} == {"string"}
    cells = {k: [v for t in tables for v in t.columns[k].to_pylist()] for k in ("number", "text")}
    assert cells["number"] == [None] * 1000 + [2.5, 3.0]
    assert cells["text"] == [None] * 1000 + ["late", None]


def test_text_whose_later_files_are_of_a_wider_type(tmp_path):
    (tmp_path / "a.csv").write_text("n,m,d\n" + "1,2,2020-01-01\n" * 50)
    (tmp_path / "b.csv").write_text("n,m,d\n" + "1.5,word,other\n" * 50)
    found = stream.in_parts(tmp_path / "*.csv", stream.Room(0, "as in a test"))
    assert found is not None
    for group in (0, 1):
        (table,) = found.portions(group, 100)
        assert [str(table.columns[k].type) for k in "nmd"] == ["double", "string", "string"]


def test_types_that_differ_are_said_with_their_files(tmp_path, small):
    for name, values in (("a", [1, 2] * 50), ("b", [3, 4] * 50), ("c", ["x", "y"] * 50)):
        pq.write_table(pa.table({"n": values, "x": [0.5, 1] * 50}), tmp_path / f"{name}.parquet")
    with pytest.raises(
        InputError, match=r"'n' has.*: int64 in \S*a\.parquet and string in \S*c\.p"
    ):
        refold.Autoencoder(1, memory="32MB").fit(str(tmp_path / "*.parquet"))


def test_packed_text_is_judged_by_what_it_is_unpacked(tmp_path):
    text = b"a,b\n" + b"1,2\n" * 3_000_000  # 12 MB, and next to nothing packed
    whole, parts = tmp_path / "a.csv.gz", tmp_path / "b.csv.gz"
    whole.write_bytes(gzip.compress(text, 1))
    parts.write_bytes(b"".join(gzip.compress(text[i::3], 1) for i in range(3)))
    assert whole.stat().st_size < 1_000_000
    assert stream.unpacked(whole) == pytest.approx(len(text), rel=0.01)
    assert stream.unpacked(parts) == pytest.approx(len(text), rel=0.2)
    (tmp_path / "c.csv").write_bytes(text)
    assert stream.unpacked(tmp_path / "c.csv") == len(text)
    with pytest.raises(InputError, match=r"12\.0 MB take about .* more than the 40"):
        opened(str(whole), "40MB")
    assert opened(str(whole), "100MB") is None


def test_memory_that_wide_rows_cannot_be_learnt_in_is_refused(tmp_path, small):
    x = np.random.default_rng(0).normal(size=(50, 600)).astype(np.float32)
    pq.write_table(pa.table({f"c{j}": x[:, j] for j in range(600)}), tmp_path / "a.parquet")
    with pytest.raises(InputError, match=r"50\.0 MB, and .* 600 columns takes 127 MB at least"):
        refold.Autoencoder(1, memory="50MB").fit(str(tmp_path / "*.parquet"))
    refold.Autoencoder(1, memory="127MB", epochs=1).fit(str(tmp_path / "*.parquet"))


def test_passes_over_the_rows_are_told(ragged, small):
    seen: list[tuple[str, float]] = []
    steps: list[int] = []

    def watch(progress: Progress) -> None:
        if progress.doing:
            assert not steps
            seen.append((progress.doing, progress.share))
        elif progress.step:
            steps.append(progress.step)

    refold.Autoencoder(2, memory="32MB", epochs=1).fit(ragged, watch=watch)
    for doing in ("looking at all rows", "decoding rows"):
        shares = [share for what, share in seen if what == doing]
        assert shares == sorted(shares)
        assert shares[-1] == pytest.approx(1, abs=0.05)
    assert steps


def test_what_a_stream_cannot_do_is_said(ragged, small, tmp_path):
    with pytest.raises(InputError, match=r"contamination=0\.1 compares all rows"):
        refold.Autoencoder(2, memory="32MB", contamination=0.1).fit(ragged)
    with pytest.raises(InputError, match="inputs were given"):
        refold.Autoencoder(2, memory="32MB").fit(ragged, inputs=ragged)
    (tmp_path / "a.jsonl").write_text('{"a": 1}\n' * 5000)
    with pytest.raises(InputError, match=r"cannot be read in parts.*\.parquet \.npy"):
        opened(str(tmp_path / "a.jsonl"), MEMORY)


@pytest.mark.parametrize("size", ["2 cups", "-1", "1MB", True, 5])
def test_a_memory_that_is_no_size_is_refused(size):
    with pytest.raises(InputError, match="memory is"):
        bytes_of(size)


def test_what_fits_is_read_at_once(ragged):
    assert opened(ragged, "1GB") is None
    assert opened(ragged, None) is None
    assert opened(np.zeros((3, 2)), MEMORY) is None


def test_the_command_line_streams(tmp_path):
    rows = 300_000
    x = np.random.default_rng(0).normal(size=(rows, 4)) @ np.ones((4, 8))
    table = pa.table({f"c{j}": x[:, j].astype(np.float32) for j in range(8)})
    source = written(tmp_path, table, ((rows, 100_000),))
    command = ["fit", source, "--memory", "32MB", "--out", str(tmp_path / "m"), "--json",
               "--set", "epochs=1", "--set", "batch_size=2048"]  # fmt: skip
    ran = subprocess.run(
        [sys.executable, "-m", "refold", *command], capture_output=True, text=True, timeout=100
    )
    assert ran.returncode == 0, ran.stderr
    told = json.loads(ran.stdout)
    assert told["rows"] == rows
    assert any("memory is 32.0 MB, given" in r for r in told["reasons"])


SIZED = """
import sys
sys.path.insert(0, {bench!r})
import stream
stream.size(0.3, "200MB", 32, False)
"""


@pytest.mark.skipif(not Path("/proc/self/statm").is_file(), reason="memory is read from /proc")
def test_memory_stays_within_the_budget():
    bench = str(Path(__file__).parents[1] / "bench")
    ran = subprocess.run(
        [sys.executable, "-c", SIZED.format(bench=bench)],
        capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    told = next(line for line in ran.stdout.splitlines() if " above the " in line)
    above = float(told.partition(": ")[2].partition(" MB")[0])
    assert above < 200, told
