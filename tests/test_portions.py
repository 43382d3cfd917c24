"""A model used on rows read in parts gives what it gives on all of them at once, within memory."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.feather as pf
import pyarrow.parquet as pq
import pytest

import refold
from refold import cli, inference
from refold.cli import screen
from refold.data.sinks import writing
from refold.data.sources import read
from refold.data.streams import stream
from refold.errors import InputError
from refold.uses import portions
from refold.uses.portions import Portions

ROWS = 20_001
FILES = ((7000, 3000), (1, 1), (13_000, 5000))  # rows of each, and of its row groups
COMMANDS = {
    "embed": ("embed", "model"),
    "reconstruct": ("reconstruct", "model"),
    "impute": ("impute", "model"),
    "predict": ("predict", "model"),
    "proba": ("predict", "model", "--proba"),
    "others": ("predict", "model", "--column", "y", "--column", "d"),
    "score": ("score", "model"),
    "share": ("score", "model", "--contamination", "0.03"),
    "expected": ("score", "anomaly", "--expected", "5"),
    "fdr": ("score", "anomaly", "--fdr", "0.2"),
}


def table_of(rows: int, seed: int = 0) -> pa.Table:
    """Columns of every kind, most of them with gaps."""
    rng = np.random.default_rng(seed)
    base = rng.normal(size=rows)

    def gaps(values: np.ndarray, share: float = 0.02) -> pa.Array:
        return pa.array(values, mask=rng.random(rows) < share)

    days = (np.datetime64("2024-01-01") + rng.integers(0, 300, rows)).astype("datetime64[D]")
    return pa.table({
        "id": np.arange(rows),
        "x": (base + 0.1 * rng.normal(size=rows)).astype(np.float32),
        "y": gaps(base),
        "n": gaps(rng.integers(0, 1000, rows)),
        "small": rng.integers(0, 120, rows).astype(np.int8),
        "c": gaps(np.where(base > 0, "up", np.where(rng.random(rows) < 0.1, "side", "down"))),
        "b": gaps(base > 0.3),
        "day": gaps(days),
        "at": days.astype("datetime64[s]"),
        "name": [f"n{v}" for v in rng.integers(0, 10**6, rows)],
        "one": ["same"] * rows,
        "d": pa.array(np.where(base > 1, "big", "little")).dictionary_encode(),
    })  # fmt: skip


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models, and the files they were fitted on."""
    folder = tmp_path_factory.mktemp("home")
    table, begin = table_of(ROWS), 0
    for i, (rows, group) in enumerate(FILES):
        part = table.slice(begin, rows)
        pq.write_table(part, folder / f"{i}.parquet", row_group_size=group)
        begin += rows
    assert begin == ROWS
    source = str(folder / "*.parquet")
    refold.Autoencoder(4, epochs=1, fields={"c": "target"}).fit(source).save(folder / "model")
    refold.Autoencoder(recipe="anomaly", epochs=1).fit(source).save(folder / "anomaly")
    return folder


@pytest.fixture
def parted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have small files read in parts, of as few rows as the passes of a model have."""
    monkeypatch.setattr(stream, "PEAK", 10**6)
    monkeypatch.setattr(portions, "MOST", 1)


def run(*words: object) -> int:
    """Run the command line in this process."""
    kept, sys.argv = sys.argv, ["refold", *map(str, words)]
    try:
        with pytest.raises(SystemExit) as ended:
            cli.main()
    finally:
        sys.argv = kept
    return int(ended.value.code or 0)


def content(path: Path) -> object:
    """What is in a file, with the types of tables."""
    if path.suffix == ".parquet":
        return pq.read_table(path)
    return pf.read_table(path) if path.suffix == ".feather" else path.read_bytes()


def both(
    words: tuple[str, ...], home: Path, source: str, ending: str, folder: Path
) -> tuple[Path, Path]:
    """Run a command on all rows at once and on rows in parts; return the two files."""
    command, model, *options = words
    out = folder / f"whole{ending}", folder / f"parts{ending}"
    assert run(command, home / model, source, "--out", out[0], *options) == 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stream, "PEAK", 10**6)
        patch.setattr(portions, "MOST", 1)
        assert run(command, home / model, source, "--out", out[1], *options) == 0
    return out


# --- the same as all at once -------------------------------------------------------------------


@pytest.mark.parametrize("job", COMMANDS)
def test_rows_in_parts_give_the_same_file(
    job: str, home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, parts = both(COMMANDS[job], home, str(home / "*.parquet"), ".parquet", tmp_path)
    said = capsys.readouterr()
    assert "rows are read in parts of 8,192" in said.err
    assert pq.read_table(parts).equals(pq.read_table(whole))
    assert pq.ParquetFile(parts).metadata.num_row_groups == 3, "not written in parts"
    first, second = said.out.splitlines()
    assert first.replace("whole", "parts") == second


@pytest.mark.parametrize("ending", [".csv", ".tsv", ".feather", ".jsonl", ".npy"])
@pytest.mark.parametrize("job", ["embed", "reconstruct", "predict"])
def test_rows_in_parts_give_the_same_file_in_other_formats(
    job: str, ending: str, home: Path, tmp_path: Path
) -> None:
    if (job, ending) == ("reconstruct", ".npy"):
        pytest.skip("text beside numbers is no array")
    whole, parts = both(COMMANDS[job], home, str(home / "*.parquet"), ending, tmp_path)
    assert content(parts) == content(whole)


@pytest.mark.parametrize("job", ["embed", "reconstruct", "impute", "score"])
def test_delimited_text_in_parts(job: str, home: Path, tmp_path: Path) -> None:
    for i, rows in enumerate((12_000, 7000)):
        part = table_of(rows, seed=i)
        plain = part.set_column(11, "d", part["d"].cast(pa.string()))
        pa_csv.write_csv(plain, tmp_path / f"{i}.csv")
    whole, parts = both(COMMANDS[job], home, str(tmp_path / "?.csv"), ".feather", tmp_path)
    assert pf.read_table(parts).equals(pf.read_table(whole))


@pytest.mark.parametrize("job", ["embed", "reconstruct"])
def test_pictures_in_parts(job: str, tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 255, (3000, 6, 6), dtype=np.uint8)
    np.save(tmp_path / "images.npy", images)
    refold.Autoencoder(3, epochs=1).fit(images[:200]).save(tmp_path / "model")
    for ending in (".npy", ".csv") if job == "embed" else (".npy",):
        whole, parts = both(
            (job, "model"), tmp_path, str(tmp_path / "images.npy"), ending, tmp_path
        )
        assert whole.read_bytes() == parts.read_bytes()


def test_few_rows_and_many_threads(home: Path) -> None:
    """Rows of a portion are whole passes; where these do not fit, those of fewer threads."""
    for count, fitting, threads, size, among in (
        (10**6, 10**6, 16, portions.MOST * 2, 10**6),  # a pass is larger than portions are else
        (10**6, 20_000, 16, 16_384, 32_768),
        (10**6, 4000, 16, 3072, 16_383),
        (10**6, 10, 1, 1024, 16_383),
        (5000, 3000, 4, 2048, 5000),
    ):
        assert portions.portioned(count, fitting, threads) == (size, among)
        if count >= 16_384 and size >= inference.LARGE:
            assert size % inference.large(among, threads) == 0


@pytest.mark.parametrize("rows", [1100, 9_001, 40_000])
def test_codes_and_scores_are_the_same_to_the_last_bit(
    rows: int, tmp_path: Path, parted: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Plain numbers take another way where they are many, which is encoded bit by bit."""
    x = np.random.default_rng(0).normal(size=(rows, 6)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    ae = refold.Autoencoder(3, epochs=1, hidden=(64,)).fit(x[:1000])
    found, filled = Portions.of(tmp_path / "x.npy"), inference.filled
    assert found.parted
    passes = list[int]()
    monkeypatch.setattr(
        inference, "filled", lambda p, size: (passes.append(size), filled(p, size))[1]
    )
    whole, sizes = ae.transform(x), set(passes)
    passes.clear()
    parts = list(found.each(ae.transform))
    assert len(parts) > 1
    assert set(passes) == sizes, "other passes may round otherwise"
    np.testing.assert_array_equal(np.concatenate(parts), whole)
    passes.clear()
    np.testing.assert_array_equal(ae.transform(tmp_path / "x.npy"), whole)
    assert len(passes) > 1
    np.testing.assert_array_equal(ae.score_samples(tmp_path / "x.npy"), ae.score_samples(x))


def test_causes_and_drift_are_the_same(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = table_of(9001, seed=1)
    moved = table.set_column(1, "x", pa.array(np.asarray(table["x"]) + np.float32(3)))
    pq.write_table(moved, tmp_path / "new.parquet", row_group_size=2000)
    options = ("--causes", str(tmp_path / "causes.csv"), "--json")
    files = both(
        ("score", "model", *options), home, str(tmp_path / "new.parquet"), ".csv", tmp_path
    )
    found = [file.read_bytes() for file in files]
    said = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert found[0] == found[1]
    assert "x" in said[0]["drift"]
    assert said[0]["drift"] == said[1]["drift"]
    assert said[0]["anomalies"] == said[1]["anomalies"] > 0


def test_causes_come_from_the_rows_that_are_flagged(home: Path, tmp_path: Path) -> None:
    for ending in ("whole", "parts"):
        with pytest.MonkeyPatch.context() as patch:
            if ending == "parts":
                patch.setattr(stream, "PEAK", 10**6)
                patch.setattr(portions, "MOST", 1)
            assert not run(
                "score", home / "model", home / "*.parquet", "--out", tmp_path / "s.csv",
                "--causes", tmp_path / f"{ending}.csv", "--contamination", "0.001",
            )  # fmt: skip
    assert (tmp_path / "whole.csv").read_bytes() == (tmp_path / "parts.csv").read_bytes()
    judged = read(tmp_path / "s.csv").columns["is_anomaly"].to_numpy()
    named = read(tmp_path / "parts.csv").columns["row"].to_numpy()
    np.testing.assert_array_equal(np.unique(named), np.flatnonzero(judged))


def test_rows_of_a_fit_are_known_among_all_rows(tmp_path: Path, parted: None) -> None:
    """Whether most rows are those of the fit is asked of all, not of each portion."""
    rng = np.random.default_rng(0)
    fitted = rng.normal(size=(2000, 4)).astype(np.float32)
    fitted[500:600] = fitted[400:500]  # these recurred
    ae = refold.Autoencoder(recipe="anomaly", epochs=1).fit(fitted)
    assert ae.detector_.recurred is not None
    assert len(ae.detector_.recurred)
    ae.save(tmp_path / "model")
    new = rng.normal(size=(2000, 4)).astype(np.float32)
    for name, rows in (("few", [fitted, new, new + 1]), ("most", [new[:1000], fitted])):
        np.save(tmp_path / f"{name}.npy", np.concatenate(rows))
        out = tmp_path / f"{name}.csv"
        assert run("score", tmp_path / "model", tmp_path / f"{name}.npy", "--out", out) == 0
        found = read(out).columns["score"].to_numpy()
        np.testing.assert_array_equal(found, ae.judge(np.concatenate(rows))["score"])
        np.testing.assert_array_equal(found, ae.score_samples(tmp_path / f"{name}.npy"))


@pytest.mark.parametrize("job", ["reconstruct", "impute"])
def test_columns_of_other_types_in_other_files(job: str, tmp_path: Path, home: Path) -> None:
    table = table_of(9000)
    wide = table.set_column(4, "small", table["small"].cast(pa.float64()))
    holed = wide.drop_columns(["name"]).set_column(6, "b", pa.nulls(9000))
    pq.write_table(table, tmp_path / "0.parquet")
    pq.write_table(holed, tmp_path / "1.parquet")
    source = str(tmp_path / "*.parquet")
    whole, parts = both(COMMANDS[job], home, source, ".feather", tmp_path)
    assert pf.read_table(parts).equals(pf.read_table(whole))
    assert pf.read_table(parts)["name"].null_count == 9000


def test_columns_in_another_order_in_other_text_files(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).normal(size=(6000, 4)) + 100 * np.arange(4)
    table = pa.table({name: rows[:, i] for i, name in enumerate("abcd")})
    pa_csv.write_csv(table.slice(0, 3000), tmp_path / "0.csv")
    pa_csv.write_csv(table.slice(3000).select(["d", "c", "a"]), tmp_path / "1.csv")
    refold.Autoencoder(recipe="imputation", epochs=1).fit(table).save(tmp_path / "model")
    whole, parts = both(("impute", "model"), tmp_path, str(tmp_path / "*.csv"), ".npy", tmp_path)
    np.testing.assert_allclose(np.load(parts), np.load(whole), rtol=1e-6)
    assert np.load(parts)[3000:].mean(0).round(-2).tolist() == [0, 100, 200, 300]


def test_types_that_nothing_holds_are_said_with_their_files(
    home: Path, tmp_path: Path, parted: None, capsys: pytest.CaptureFixture[str]
) -> None:
    table = table_of(9000)
    pq.write_table(table, tmp_path / "0.parquet")
    pq.write_table(table.set_column(1, "x", table["c"]), tmp_path / "1.parquet")
    assert run("embed", home / "model", tmp_path / "*.parquet", "--out", tmp_path / "z.npy") == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "'x' has different types in different files: float in" in said
    assert "0.parquet and string in" in said


def test_an_infinity_is_said_with_the_rows_of_its_portion(tmp_path: Path, parted: None) -> None:
    x = np.random.default_rng(0).normal(size=(40_000, 4)).astype(np.float32)
    ae = refold.Autoencoder(2, epochs=1, memory="32MB").fit(x[:500])
    x[30_000, 2] = np.inf
    np.save(tmp_path / "x.npy", x)
    with pytest.raises(InputError, match=r"rows \d+ to \d+ of all: column 'x2' holds inf.* in row"):
        ae.transform(tmp_path / "x.npy")


# --- order and places --------------------------------------------------------------------------


def test_rows_come_in_order_and_can_be_picked(home: Path, parted: None) -> None:
    found = Portions.of(home / "*.parquet", "32MB")
    sizes, names = zip(*((len(t), t.columns["id"].to_numpy()) for t in found), strict=True)
    assert sizes == (8192, 8192, 3617)
    np.testing.assert_array_equal(np.concatenate(names), np.arange(ROWS))
    places = np.array([0, 6999, 7000, 7001, 8191, 8192, 20_000])
    np.testing.assert_array_equal(found.take(places).columns["id"].to_numpy(), places)
    few = found.sample(0)
    assert 2048 <= len(few) < ROWS
    assert few.notes[0] == (
        f"the rows are a sample of {len(few):,} of {ROWS:,}, drawn from everywhere"
    )
    np.testing.assert_array_equal(few.columns["id"].to_numpy(), few.places)


def test_a_report_shows_a_sample_and_says_so(
    home: Path, tmp_path: Path, parted: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(portions, "SAMPLE", 2500)
    page = tmp_path / "page.html"
    assert run("report", home / "model", home / "*.parquet", "--out", page, "-q") == 0
    text = page.read_text()
    assert "the rows are a sample of 2,500 of 20,001, drawn from everywhere" in text
    numbers = [int(n) for n in re.findall(r"Row (\d+)", text)]
    assert max(numbers) > 2500  # they count the rows of the files


# --- what cannot be done in parts --------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "name", "says"),
    [
        (("embed",), "z.npz", "the rows are read in parts, and .npz takes all at once; use .csv"),
        (("embed",), "folder", "a folder of PNGs takes all at once"),
        (("impute", "--n", "2"), "z.csv", "--n draws by all rows together"),
        (("impute", "--flags"), "z.csv", "--flags marks columns by all rows together"),
        (("embed", "--memory", "1MB"), "z.csv", "too little; give at least '32MB'"),
    ],
)
def test_what_needs_all_rows_is_refused_before_any_work(
    words: tuple[str, ...], name: str, says: str, home: Path, tmp_path: Path,
    parted: None, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    command, *options = words
    out = tmp_path / name
    assert run(command, home / "model", home / "*.parquet", "--out", out, "-q", *options) == 2
    assert says in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_the_data_is_not_written_over(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("embed", home / "model", home / "*.parquet", "--out", home / "1.parquet") == 2
    assert "is the data itself" in capsys.readouterr().err


# --- whole or not at all -----------------------------------------------------------------------


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError, ValueError])
@pytest.mark.parametrize("ending", [".parquet", ".csv", ".npy", ".feather", ".jsonl"])
def test_what_fails_on_the_way_leaves_nothing(
    error: type[BaseException], ending: str, tmp_path: Path
) -> None:
    out = tmp_path / f"old{ending}"
    out.write_text("precious")

    def half() -> None:
        with writing(out) as add:
            add({"x": np.zeros(5)})
            raise error

    with pytest.raises((error, InputError)):
        half()
    assert [p.name for p in tmp_path.iterdir()] == [out.name]
    assert out.read_text() == "precious"


SLOW = """
import sys, time
from refold.data.streams import stream
from refold.uses import portions
from refold.estimator import Autoencoder
from refold import cli

stream.PEAK, portions.MOST = 10**6, 1
use, done = Autoencoder.transform, []

def transform(self, X, **options):
    done.append(len(X))
    if len(done) == 2:
        print("under way", flush=True)
        time.sleep(60)
    return use(self, X, **options)

Autoencoder.transform = transform
cli.main()
"""


def test_ctrl_c_leaves_nothing(home: Path, tmp_path: Path) -> None:
    words = ["embed", home / "model", home / "*.parquet", "--out", tmp_path / "z.parquet"]
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW, *map(str, words)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "under way\n"
        assert len(list(tmp_path.iterdir())) == 1, "nothing was written yet"
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130, err
    assert "no file was left half-written" in err
    assert not list(tmp_path.iterdir())


# --- what is said ------------------------------------------------------------------------------


def test_remarks_of_all_parts_are_one(
    home: Path, tmp_path: Path, parted: None, capsys: pytest.CaptureFixture[str]
) -> None:
    table = table_of(ROWS)
    odd = np.asarray(table["d"].cast(pa.string()).to_pylist(), dtype=object)
    odd[[5, 9000, 9001]] = ["huge", "tiny", "tiny"]
    pq.write_table(table.set_column(11, "d", pa.array(odd)), tmp_path / "odd.parquet")
    out = tmp_path / "z.csv"
    assert run("embed", home / "model", tmp_path / "odd.parquet", "--out", out) == 0
    notes = [line for line in capsys.readouterr().err.splitlines() if "'d'" in line]
    assert notes == [
        "note: column 'd': 1 value never seen in training ('huge'), "
        "and the like in 1 more part of the rows"
    ]


def test_lines_now_and_then_where_there_is_no_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [1000.0]
    monkeypatch.setattr(screen.time, "monotonic", lambda: now[0])
    with screen.rows_bar("embedding", 1000, hidden=False) as count:
        for _ in range(10):
            now[0] += 12.0
            count(100)
    assert capsys.readouterr().err.splitlines() == [
        "embedding: 300 of 1,000 rows, about 84 s left",
        "embedding: 600 of 1,000 rows, about 48 s left",
        "embedding: 900 of 1,000 rows, about 12 s left",
    ]


def test_lines_of_a_training(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from refold.training.fit import Progress

    now = [1000.0]
    monkeypatch.setattr(screen.time, "monotonic", lambda: now[0])
    with screen.progress_bar("training", hidden=False) as watch:
        assert watch is not None
        watch(Progress(0, 2000, 0.0, {"step": 0.0, "epoch": 0.0, "valid_loss": 2.0}))
        for step in (50, 100, 150, 200, 250):
            now[0] += 16.0
            row = {"step": step, "epoch": step / 100, "valid_loss": 1.5} if step == 100 else None
            watch(Progress(step, 2000, 500.0, row))
    assert capsys.readouterr().err.splitlines() == [
        "training: epoch 2 of 20, 500 rows/s, held out 1.5, about 10 min left",
        "training: epoch 3 of 20, 500 rows/s, held out 1.5, about 10 min left",
    ]
