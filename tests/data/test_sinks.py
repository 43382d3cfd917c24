"""Files are written whole or not at all, and read back as they were."""

import datetime
import errno
import os
import resource
import stat

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from refold.data.sinks import (
    atomic_folder,
    atomic_path,
    check_format,
    check_parts,
    check_writable,
    write,
    writing,
)
from refold.data.sources import read
from refold.errors import InputError

FLAT = (".csv", ".tsv", ".parquet", ".feather", ".jsonl")
FILES = (*FLAT, ".npy", ".npz")


def columns():
    return {
        "n": pa.chunked_array([[1, None, -(2**62) - 1]]),
        "x": pa.chunked_array([[0.1, 1e-300, None]]),
        "t": pa.chunked_array([["a,b", None, 'q"\nü']]),
        "ok": pa.chunked_array([[True, None, False]]),
        "at": pa.chunked_array([[datetime.date(2024, 1, 1), None, datetime.date(1969, 12, 31)]]),
    }


# --- contents ----------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", FLAT)
def test_tables_read_back_equal(tmp_path, ending):
    path = write(columns(), tmp_path / f"out{ending}")
    back = read(path)
    for name, column in columns().items():
        own = back.columns[name]
        own = own.cast(pa.date32()) if ending == ".jsonl" and name == "at" else own
        assert own.to_pylist() == column.to_pylist()


@pytest.mark.parametrize("ending", FLAT)
def test_vectors_become_columns(tmp_path, ending):
    block = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    back = read(write({"z": block}, tmp_path / f"z{ending}"))
    assert list(back.columns) == ["z0", "z1", "z2"]
    np.testing.assert_array_equal(
        np.stack([np.asarray(c) for c in back.columns.values()], axis=1).astype(np.float32), block
    )


def test_a_single_column_keeps_its_missing_rows(tmp_path):
    column = pa.chunked_array([[1, None, 3, None]])
    back = read(write({"a": column}, tmp_path / "a.csv"))
    assert back.columns["a"].to_pylist() == column.to_pylist()


@pytest.mark.parametrize("shape", [(4, 3), (4, 5, 6), (4, 5, 6, 3)])
@pytest.mark.parametrize("dtype", ["float32", "uint8", "bool"])
def test_blocks_are_bit_equal_in_npy_and_npz(tmp_path, shape, dtype):
    block = np.random.default_rng(0).integers(0, 2, shape).astype(dtype)
    for ending in (".npy", ".npz"):
        loaded = np.load(write({"file": block}, tmp_path / f"b{ending}"))
        loaded = loaded["file"] if ending == ".npz" else loaded
        assert loaded.dtype == block.dtype
        np.testing.assert_array_equal(loaded, block)


def test_npy_stacks_numbers_and_npz_holds_anything(tmp_path):
    numbers = {n: columns()[n] for n in ("x", "ok")}
    stacked = np.load(write(numbers, tmp_path / "a.npy"))
    np.testing.assert_array_equal(stacked, [[0.1, 1], [1e-300, np.nan], [np.nan, 0]])
    with np.load(write(columns(), tmp_path / "a.npz")) as loaded:
        assert loaded["t"].tolist() == ["a,b", "", 'q"\nü']
        np.testing.assert_array_equal(loaded["ok"], [1, np.nan, 0])
        assert str(loaded["at"].dtype) == "datetime64[D]"


@pytest.mark.parametrize(
    ("images", "pixels"),
    [
        (np.array([[[0, 255], [7, 1]]], np.uint8), [[0, 255], [7, 1]]),
        (np.array([[[0, 1], [0.5, 0.1]]]), [[0, 255], [128, 26]]),
        (np.array([[[0, 255], [7.4, 1]]]), [[0, 255], [7, 1]]),
        (np.array([[[False, True], [True, True]]]), [[0, 255], [255, 255]]),
        (np.array([[[0, 60_000], [7, 1]]], np.uint16), [[0, 60_000], [7, 1]]),
        (np.arange(12, dtype=np.uint8).reshape(1, 2, 2, 3), np.arange(12).reshape(2, 2, 3)),
        (
            np.arange(15, dtype=np.uint8).reshape(1, 3, 5, 1).transpose(0, 3, 1, 2),
            np.arange(15).reshape(3, 5),
        ),
    ],
    ids=["grey", "share", "float levels", "bool", "16 bit", "colour", "channels first"],
)
def test_images_become_pngs(tmp_path, images, pixels):
    for _ in range(2):  # a folder of PNGs may be replaced by another
        folder = write({"image": images}, tmp_path / "out")
    assert [p.name for p in folder.iterdir()] == ["000000.png"]
    np.testing.assert_array_equal(np.asarray(Image.open(folder / "000000.png")), pixels)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.xlsx", {"a": np.zeros(2)}, r"unknown ending '.xlsx'; use .csv .tsv"),
        ("a.csv.gz", {"a": np.zeros(2)}, r"unknown ending '.gz'"),
        ("a.csv", {}, r"no columns to write"),
        ("a.csv", {"i": np.zeros((1, 4, 4))}, r"'i' holds images.*; write .npy, .npz or a folder"),
        ("a.jsonl", {"i": np.zeros((1, 4, 4))}, r"'i' holds images"),
        ("a.jsonl", {"x": np.array([np.inf])}, r"cannot write .*a\.jsonl: Out of range float"),
        ("a.csv", {"x1": np.zeros(2), "x": np.eye(2)}, r"expands to a column 'x1', which exists"),
        ("a.npy", {"x": np.eye(2), "y": np.zeros(2)}, r"'x' is no column of numbers .*npz"),
        ("a.npy", {"y": np.zeros(2), "t": pa.array(["a", "b"])}, r"'t' is no column of numbers"),
        ("out", {"y": np.zeros(2)}, r"can hold one column of images, not y; .* as out.csv"),
        ("out/", {"y": np.zeros((1, 4, 4)), "z": np.zeros(1)}, r"one column of images, not y, z"),
        ("out", {"i": np.zeros((1, 5, 5, 7))}, r"'i' has shape .*, which is no set of images"),
        ("out", {"i": np.full((1, 4, 4), -1.5)}, r"range from -1.5 to -1.5; PNG holds"),
        ("no/a.csv", {"a": np.zeros(2)}, r"there is no folder .*no; create it first"),
        ("full.csv", {"a": np.zeros(2)}, r"full.csv: it is a folder; choose another name"),
        ("full", {"i": np.zeros((1, 4, 4))}, r"full exists and is not a folder of numbered PNGs"),
        ("/dev/null", {"i": np.zeros((1, 4, 4))}, r"/dev/null exists and is not a folder"),
    ],
)
def test_refusals_leave_nothing(tmp_path, name, content, message):
    for folder in ("full", "full.csv"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "precious").write_text("kept")
    path = name if name.startswith("/") else f"{tmp_path}/{name}"
    with pytest.raises(InputError, match=message):
        write(content, path)
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["full", "full.csv", *["precious"] * 2]


# --- some rows after others --------------------------------------------------------------------


def added(path, *parts):
    with writing(path) as add:
        for part in parts:
            add(part)
    return path


def table(begin, end):
    """Rows of every type that has a place in a table, some of them missing."""
    at = range(begin, end)
    return {
        "n": pa.chunked_array([pa.array([None if i % 3 == 0 else i for i in at], pa.int64())]),
        "x": np.array([i / 7 for i in at], np.float32),
        "t": pa.chunked_array([pa.array([None if i % 4 == 0 else f"a,{i}" for i in at], "string")]),
        "d": pa.chunked_array([pa.array([f"k{i % 2}" for i in at]).dictionary_encode()]),
        "v": np.arange(2 * begin, 2 * end, dtype=np.float64).reshape(-1, 2),
    }


@pytest.mark.parametrize("ending", FLAT)
def test_rows_added_some_after_others_are_as_all_at_once(tmp_path, ending):
    whole = added(tmp_path / f"whole{ending}", table(0, 12))
    parts = added(tmp_path / f"parts{ending}", table(0, 1), table(1, 7), table(7, 12))
    if ending in (".csv", ".tsv", ".jsonl"):
        assert parts.read_bytes() == whole.read_bytes()
    one, other = read(whole).columns, read(parts).columns
    assert [str(c.type) for c in one.values()] == [str(c.type) for c in other.values()]
    assert [c.to_pylist() for c in one.values()] == [c.to_pylist() for c in other.values()]


def test_texts_are_added_as_lines(tmp_path):
    texts = [pa.chunked_array([pa.array(t)]) for t in (["a", None], ["b\nc"])]
    added(tmp_path / "a.txt", *({"t": t} for t in texts))
    assert (tmp_path / "a.txt").read_text() == "a\n\nb c\n"


@pytest.mark.parametrize(
    "parts",
    [
        [np.arange(6).reshape(3, 2), np.arange(4).reshape(2, 2)],
        [np.zeros((3, 4, 4), np.uint8), np.ones((200_000, 4, 4), np.uint8)],
        [np.arange(3), np.array([0.5, np.nan])],
        [np.arange(200_000, dtype=np.int8), np.array([2**40]), np.array([0.5])],
        [np.array([0.5]), np.array([3], np.int8)],
        [np.array(["a", "bcd"]), np.array(["lengthy", ""])],
        [np.array([True]), np.array([False, True])],
        [np.array(["2024-01-01"], "M8[D]"), np.array(["1969-12-31"], "M8[D]")],
    ],
    ids=lambda parts: " then ".join(str(p.dtype) for p in parts),
)
def test_an_array_takes_a_type_that_holds_all_its_rows(tmp_path, parts):
    path = added(tmp_path / "a.npy", *({"x": p} for p in parts))
    found, whole = np.load(path), np.concatenate(parts)
    assert found.dtype == whole.dtype
    np.testing.assert_array_equal(found, whole)
    assert [p.name for p in tmp_path.iterdir()] == ["a.npy"]


@pytest.mark.parametrize(
    ("name", "parts", "message"),
    [
        ("a.csv", ({"a": np.ones(2)}, {"b": np.ones(2)}), "other columns than the first: b inst"),
        (
            "a.parquet",
            ({"a": np.ones(2, np.int64)}, {"a": np.full(2, 0.5)}),
            "'a' is of type int64 in the first rows, which does not hold double of later ones",
        ),
        (
            "a.parquet",
            ({"a": np.ones(2, np.float32)}, {"a": np.full(2, 1 / 3)}),
            "'a' is of type float in the first rows, which does not hold double of later ones",
        ),
        (
            "a.csv",
            ({"a": np.ones(2, bool)}, {"a": np.full(2, 5)}),
            "'a' is of type bool in the first rows, which does not hold int64 of later ones",
        ),
        ("a.npy", ({"x": np.eye(2)}, {"x": np.eye(3)}), r"shape \(3,\), the first \(2,\)"),
        ("a.jsonl", ({"x": np.ones(1)}, {"x": np.array([np.inf])}), "Out of range float"),
    ],
)
def test_rows_that_do_not_go_with_the_first_leave_nothing(tmp_path, name, parts, message):
    with pytest.raises(InputError, match=message):
        added(tmp_path / name, *parts)
    assert not list(tmp_path.iterdir())


def test_later_rows_take_a_type_that_holds_each_of_their_values(tmp_path):
    later = np.array([0.5, np.nan, -3.0])
    path = added(tmp_path / "a.parquet", {"a": np.ones(2)}, {"a": later.astype(np.float32)})
    found = read(path).columns["a"].to_numpy()
    np.testing.assert_array_equal(found, [1, 1, *later])
    path = added(tmp_path / "b.parquet", {"a": np.ones(2, np.float32)}, {"a": later})
    np.testing.assert_array_equal(read(path).columns["a"].to_numpy(), [1, 1, *later])


def test_what_takes_all_rows_at_once_says_so(tmp_path):
    for name in ("a.npz", "folder", "folder/"):
        with pytest.raises(InputError, match=r"takes all at once; use .csv .* or give more memory"):
            check_parts(tmp_path / name)
    check_parts(tmp_path / "a.npy")


# --- the disk ----------------------------------------------------------------------------------


@pytest.fixture
def small_disk():
    """Let files grow to 4 KiB only: writes fail half-way, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("name", [*(f"a{e}" for e in FILES), "out"])
def test_a_write_that_fails_half_way_keeps_the_old(tmp_path, small_disk, name):
    rng = np.random.default_rng(0)
    old = np.zeros((1, 4, 4), np.uint8) if name == "out" else np.zeros((2, 2))
    path = write({"x": old}, tmp_path / name)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    new = (
        rng.integers(0, 255, (2, 99, 99), np.uint8) if name == "out" else rng.normal(size=(99, 99))
    )
    with pytest.raises(InputError, match=r"cannot write .*: the (file would|disk took only)"):
        write({"x": new}, path)
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


@pytest.mark.parametrize("function", ["os.fsync", "os.replace", "os.rename"])
@pytest.mark.parametrize(
    ("number", "message"),
    [
        (errno.ENOSPC, "no space left on the disk; free some or write elsewhere"),
        (errno.EROFS, "the disk is read-only"),
        (errno.EIO, "Input/output error"),
    ],
)
def test_a_full_disk_at_the_last_step(tmp_path, monkeypatch, function, number, message):
    file, folder = tmp_path / "a.csv", tmp_path / "model"
    file.write_text("old")
    folder.mkdir()
    (folder / "old").write_text("old")

    def fail(*args):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(function, fail)
    if function != "os.rename":
        with pytest.raises(InputError, match=rf"cannot write .*a\.csv: {message}"):
            write({"x": np.eye(2)}, file)
    if function != "os.replace":
        with (
            pytest.raises(InputError, match=rf"cannot write .*model: {message}"),
            atomic_folder(folder, replaceable=lambda p: True) as to,
        ):
            (to / "new").write_text("new")
    monkeypatch.undo()
    assert sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*")) == [
        "a.csv",
        "model",
        "model/old",
    ]
    assert file.read_text() == "old"


def test_a_swap_that_fails_puts_the_old_folder_back(tmp_path, monkeypatch):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "old").touch()
    rename, calls = os.rename, []

    def fail_on_new(source, target):
        calls.append(target)
        if len(calls) == 2:  # the first moves the old folder away, the third brings it back
            raise OSError(errno.ENOSPC, "full")
        rename(source, target)

    monkeypatch.setattr("os.rename", fail_on_new)
    with (
        pytest.raises(InputError, match="no space left"),
        atomic_folder(tmp_path / "model", replaceable=lambda p: True) as to,
    ):
        (to / "new").touch()
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["model", "old"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_interrupted_body_leaves_nothing(tmp_path, error):
    def file():
        with atomic_path(tmp_path / "a.html") as path:
            path.write_text("half")
            raise error

    def folder():
        with atomic_folder(tmp_path / "model", replaceable=lambda p: False) as path:
            (path / "half").touch()
            raise error

    for interrupted in (file, folder):
        with pytest.raises(error):
            interrupted()
    assert list(tmp_path.iterdir()) == []


def test_the_temporary_is_a_hidden_sibling_of_the_same_ending(tmp_path):
    with atomic_path(tmp_path / "a.html") as path:
        assert (path.parent, path.suffix, path.name[0]) == (tmp_path, ".html", ".")
        path.write_text("whole")
    assert [p.name for p in tmp_path.iterdir()] == ["a.html"]


def test_links_and_permissions_stay(tmp_path):
    real, link = tmp_path / "real.csv", tmp_path / "link.csv"
    real.write_text("old")
    real.chmod(0o600)
    link.symlink_to(real)
    write({"x": np.eye(2)}, link)
    assert link.is_symlink()
    assert stat.S_IMODE(real.stat().st_mode) == 0o600
    assert real.read_text() == '"x0","x1"\n1,0\n0,1\n'


def test_a_folder_replaces_only_its_kind(tmp_path):
    def is_model(path):
        return (path / "config.json").exists()

    def save(path, text):
        with atomic_folder(path, replaceable=is_model, what="a model folder") as folder:
            (folder / "config.json").write_text(text)

    (tmp_path / "empty").mkdir()
    for name in ("empty", "fresh", "fresh"):
        save(tmp_path / name, name)
        assert (tmp_path / name / "config.json").read_text() == name
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").touch()
    (tmp_path / "file").touch()
    for name in ("other", "file"):
        with pytest.raises(InputError, match=rf"{name} exists and is not a model folder; choose"):
            save(tmp_path / name, name)
    assert (tmp_path / "other" / "thesis.tex").exists()


def test_early_checks(tmp_path, monkeypatch):
    check_writable(tmp_path / "a.csv")
    check_format(tmp_path / "a.csv")
    check_format(tmp_path / "folder")
    with pytest.raises(InputError, match="unknown ending"):
        check_format(tmp_path / "a.doc")
    with pytest.raises(InputError, match=r"no folder .*no; create it first"):
        check_writable(tmp_path / "no" / "a.csv")
    monkeypatch.setattr("os.access", lambda *args: False)  # root may write anywhere
    with pytest.raises(InputError, match="no permission to write in"):
        check_writable(tmp_path / "a.csv")
