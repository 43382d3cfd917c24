"""Several processes that read rows in parts share the reading, and learn what one does."""

import os
import time
import warnings

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest
import torch

from refold import Autoencoder, InputError
from refold.data.streams import store, stream
from refold.errors import ProcessError
from refold.ops import meeting
from refold.training.checkpoint import Checkpoints
from test_ranks import Killed, at, cut_off, spawned, told

ROWS = 9_001
SETTINGS = {"latent": 2, "hidden": (8,), "epochs": 2, "batch_size": 64, "memory": "64MB", "seed": 1}
CASES = {
    "plain": ("*.parquet", {}),
    "noise": ("*.parquet", {"corruption": "swap(fraction=0.3)"}),
    "text": ("*.csv", {"fields": {"later": "numeric"}}),
    "layer by layer": ("*.parquet", {"pretrain": "layerwise", "hidden": (8, 4)}),
}


def table():
    rng = np.random.default_rng(0)
    base = rng.normal(size=ROWS)
    code = rng.integers(0, 5, ROWS)
    code[[777, 8500]] = 9  # the level is first told of by one process, and met by the other
    name = rng.choice(["a", "b"], ROWS).astype(object)
    name[[4000, 8000]] = "rare"
    name[8990] = "rarer"
    return pa.table({
        "number": np.arange(ROWS) + 17, "code": code, "name": name,
        "x": base.astype(np.float32), "y": pa.array(base + rng.normal(size=ROWS)),
        "gap": pa.array(rng.normal(size=ROWS), mask=np.isin(np.arange(ROWS), [5000, 8999])),
    })  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    found, rows = tmp_path_factory.mktemp("shared"), table()
    begin = 0
    for i, (many, group) in enumerate(((4000, 1300), (37, 100), (4963, 2500), (1, 1))):
        part = rows.slice(begin, many)
        pq.write_table(part, found / f"{i}.parquet", row_group_size=group)
        begin += many
    for i, begin in enumerate((0, 3000, 6000)):
        part = rows.slice(begin, 3001).select(["code", "x", "y"])
        later = pa.array([None if i == 0 else j if i == 1 else j / 7 for j in range(3001)])
        pa_csv.write_csv(part.append_column("later", later), found / f"{i}.csv")
    (found / "cache").mkdir()
    return found


def fitted(folder, name):
    pattern, more = CASES[name]
    return Autoencoder(**{**SETTINGS, **more}).fit(str(folder / pattern))


def looked(folder):
    """What a pass over all rows finds."""
    rows = stream.opened(str(folder / "*.parquet"), "64MB")
    stream.SAMPLE = 500
    found = rows.look(5, {"name": "categorical"})
    stream.SAMPLE = 100_000
    columns = {k: v.to_pylist() for k, v in found.table.columns.items()}
    return {
        "columns": columns, "places": found.places.tolist(), "gaps": found.gaps.tolist(),
        "counting": found.counting, "levels": len(found.table) - len(found.places),
    }  # fmt: skip


def counted(folder):
    """A fit, the rows that this process decoded and kept of windows, and names in the cache."""
    encoded, kept, names = [], [], []
    plain, room = store.Encoding._encoded, store.Layout.room

    def counting(self, begin, table, path):
        encoded.append(len(table))
        names.extend((folder / "cache").iterdir())
        return plain(self, begin, table, path)

    def noting(self, rows):
        kept.append(rows)
        return room(self, rows)

    store.Encoding._encoded, store.Layout.room = counting, noting
    os.environ[stream.CACHE] = str(folder / "cache")
    try:
        found = told(fitted(folder, "plain"))
    finally:
        store.Encoding._encoded, store.Layout.room = plain, room
        del os.environ[stream.CACHE]
    return {**found, "encoded": sum(encoded), "kept": max(kept), "names": names}


def failing(folder):
    """What is said where a value cannot be used that one process alone meets."""
    rows = table()
    x = rows.column("x").to_numpy().copy()
    x[ROWS - 12] = np.inf
    if not (folder / "bad").is_dir() and os.environ.get("RANK", "0") == "0":
        (folder / "bad").mkdir()
        pq.write_table(rows.set_column(3, "x", pa.array(x)), folder / "bad" / "0.parquet")
    meeting.everyone().gathered(None)
    stream.SAMPLE = 500
    try:
        Autoencoder(**SETTINGS).fit(str(folder / "bad" / "*.parquet"))
    except InputError as error:
        return str(error)
    finally:
        stream.SAMPLE = 100_000


def broken(folder):
    """What is said where a process fails in a way that no other does."""
    plain = store.write_at

    left = []

    def full(*_):
        if os.environ["RANK"] == "1":
            raise MemoryError("no more")
        left.append(time.sleep(0.3))

    store.write_at = full
    try:
        Autoencoder(**SETTINGS).fit(str(folder / "*.parquet"))
    except (MemoryError, ProcessError) as error:
        return type(error).__name__, str(error), len(left)
    finally:
        store.write_at = plain


def decided():
    """Memory that a fit may take where processes find different amounts free."""
    plain, stream.available = stream.available, lambda: 10**9 * (1 + int(os.environ["RANK"]))
    found = meeting.everyone().agreed(lambda: stream.Room.of(None, None))
    stream.available = plain
    return found.size


def gone_on(folder):
    """Two halves of a run, between which the memory that is free has changed."""
    given = {**SETTINGS, "memory": None}
    files, plain, due = str(folder / "*.parquet"), stream.available, Checkpoints.due
    Checkpoints.due = lambda self: True
    stream.available = lambda: 128_000_000 * (1 + int(os.environ["RANK"]))
    with at(80, cut_off), pytest.raises(Killed):
        Autoencoder(**given).fit(files, checkpoint=folder / "run")
    Checkpoints.due, stream.available = due, lambda: 10**15
    found = Autoencoder(**given).fit(files, checkpoint=folder / "run", resume=True)
    stream.available = plain
    return {**told(found), "reasons": found.reasons_}


def together(folder):
    stream.PEAK = 10_000
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = {name: told(fitted(folder, name)) for name in CASES}
        found |= {"look": looked(folder), "counted": counted(folder), "free": decided()}
        found |= {"failing": failing(folder), "gone on": gone_on(folder)}
        stream.has_room, plain = (lambda folder, size: os.environ["RANK"] == "0"), stream.has_room
        found["one disk is full"] = told(fitted(folder, "plain"))
        stream.has_room = plain
        meeting._circles.clear()
        os.environ["LOCAL_RANK"] = "0"
        found["two machines"] = counted(folder)
        found["broken"] = broken(folder)
    return found


@pytest.fixture(scope="module")
def shared(folder, tmp_path_factory):
    return spawned(together, folder, tmp_path_factory.mktemp("told"))


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(stream, "PEAK", 10_000)


def same(first, second, alone):
    for key, value in alone["state"].items():
        assert torch.equal(first["state"][key], second["state"][key]), key
        torch.testing.assert_close(first["state"][key], value, rtol=1e-4, atol=2e-5)
    assert len(first["history"]) == len(alone["history"])
    for row, other in zip(first["history"], alone["history"], strict=True):
        for key in row:
            assert row[key] == pytest.approx(other[key], rel=1e-4, abs=2e-5), key


@pytest.mark.parametrize("name", CASES)
def test_processes_that_share_the_reading_learn_what_one_does(name, folder, shared, small):
    same(*(found[name] for found in shared), told(fitted(folder, name)))


def test_a_pass_that_is_shared_finds_what_one_process_does(folder, shared, small):
    alone = looked(folder)
    assert alone["levels"] == 4
    for found in shared:
        assert found["look"] == alone


def test_each_process_decodes_and_keeps_its_share_in_files_without_a_name(folder, shared, small):
    alone = counted(folder)
    assert alone["encoded"] == ROWS
    each = [found["counted"] for found in shared]
    assert sum(found["encoded"] for found in each) == ROWS
    for found in each:
        assert found["encoded"] == pytest.approx(ROWS / 2, abs=2500)  # to a row group
        assert found["kept"] == pytest.approx(alone["kept"] / 2, abs=200)
        assert found["names"] == []
    assert not list((folder / "cache").iterdir())


def test_machines_have_no_file_in_common(folder, shared, small):
    alone = counted(folder)
    each = [found["two machines"] for found in shared]
    assert [found["encoded"] for found in each] == [ROWS, ROWS]
    same(*each, alone)


def test_rows_are_decoded_anew_everywhere_where_one_disk_is_full(folder, shared, monkeypatch):
    monkeypatch.setattr(stream, "PEAK", 10_000)
    monkeypatch.setattr(stream, "has_room", lambda folder, size: False)
    same(*(found["one disk is full"] for found in shared), told(fitted(folder, "plain")))


def test_what_one_process_cannot_use_ends_all_with_one_sentence(shared):
    first, second = (found["failing"] for found in shared)
    assert first == second
    assert "infinity" in first
    assert "bad/0.parquet" in first
    assert shared[1]["broken"] == ("MemoryError", "no more", 0)
    *said, written = shared[0]["broken"]
    sentence = "process 1 of this run failed (MemoryError: no more), so it cannot go on"
    assert said == ["ProcessError", sentence]
    assert written < 10  # it does not go on in vain


def test_a_run_goes_on_with_the_memory_that_the_first_process_had(shared):
    for found in shared:
        again, whole = found["gone on"], found["plain"]
        assert any("64.0 MB, as before" in reason for reason in again["reasons"])
        assert any("taken up at step 80" in r for r in shared[0]["gone on"]["reasons"])
        assert again["history"] == whole["history"]
        for key, value in whole["state"].items():
            assert torch.equal(again["state"][key], value), key


def test_the_first_process_decides_how_much_memory_there_is(shared):
    assert [found["free"] for found in shared] == [5 * 10**8] * 2
