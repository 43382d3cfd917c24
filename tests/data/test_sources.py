"""Anything becomes columns; what cannot is one sentence that says what to do."""

import decimal
import gzip
import io
import os
import pickle
import re
import struct
import subprocess
import sys

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet
import pytest
import scipy.sparse
import torch
from PIL import Image

from refold.data.sources import read
from refold.errors import InputError


@pytest.fixture
def csv(tmp_path):
    """Read text (or bytes) as a file of the given name."""

    def read_text(text, name="data.csv"):
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return read(path)

    return read_text


def lists(table):
    return {n: c.to_pylist() for n, c in table.columns.items()}


def kinds(table):
    return {n: str(c.type) for n, c in table.columns.items()}


# --- real data ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "rows"), [("adult.data", 32_561), ("adult.test", 16_281)])
def test_adult_reads_by_content(shared, name, rows):
    table = read(shared / "adult" / name)
    assert len(table) == rows
    numbers = [n for n, kind in kinds(table).items() if kind == "int64"]
    assert numbers == [
        "age",
        "fnlwgt",
        "education-num",
        "capital-gain",
        "capital-loss",
        "hours-per-week",
    ]
    missing = {n for n, c in table.columns.items() if c.null_count}
    assert missing == {"workclass", "occupation", "native-country"}
    assert set(table.columns["classification"].unique().to_pylist()) == {"<=50K", ">50K"}
    assert "was read as text with ','" in table.notes[0]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("tables/titanic.csv", {"age": "double", "alone": "bool", "deck": "string"}),
        ("tables/penguins.csv", {"body_mass_g": "int64", "sex": "string"}),
        ("tables/diamonds.csv", {"carat": "double", "cut": "string", "price": "int64"}),
        ("series/nyc_taxi.csv", {"timestamp": "timestamp[s]", "value": "int64"}),
    ],
)
def test_real_tables_read_as_pandas_reads_them(shared, name, expected):
    table = read(shared / name)
    assert expected.items() <= kinds(table).items()
    pandas = pd.read_csv(shared / name, keep_default_na=True)
    assert list(table.columns) == list(pandas.columns)
    for column in pandas:
        assert table.columns[column].null_count == pandas[column].isna().sum()
        if pandas[column].dtype.kind in "if":
            ours = table.columns[column].to_numpy()
            # Arrow's float parser is exact, pandas' default one may be an ulp away.
            np.testing.assert_allclose(ours, pandas[column].to_numpy(), rtol=1e-15)


def test_adbench_labels_are_set_aside(shared):
    table = read(shared / "adbench" / "45_wine.npz")
    assert table.columns["X"].shape == (129, 13)
    assert table.columns["X"].dtype == np.float64
    assert table.aside == ("y",)
    assert sum(table.columns["y"].to_pylist()) == 10


def test_mnist_reads(shared):
    images = read(str(shared / "mnist" / "t10k-images-idx3-ubyte.gz")).columns["image"]
    assert (images.shape, images.dtype) == ((10_000, 28, 28), np.uint8)
    labels = read(shared / "mnist" / "t10k-labels-idx1-ubyte.gz").columns["label"]
    assert labels.slice(0, 5).to_pylist() == [7, 2, 1, 0, 4]


# --- in memory ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "name"),
    [((4, 3), "x"), ((4, 5, 6), "image"), ((4, 5, 6, 3), "image"), ((4, 3, 5, 6), "image")],
)
def test_arrays_are_one_block(shape, name):
    array = np.random.default_rng(0).normal(size=shape)
    for source in (array, torch.from_numpy(array), array.tolist()):
        (found, block), *rest = read(source).columns.items()
        assert (found, rest) == (name, [])
        np.testing.assert_array_equal(block, array)


def test_masked_entries_are_nan():
    block = read(np.ma.masked_equal(np.array([[1, 2], [3, 4]]), 3)).columns["x"]
    np.testing.assert_array_equal(block, [[1, 2], [np.nan, 4]])


def test_objects_that_are_numbers_are_numbers():
    assert read(np.array([[1, 2.5]], dtype=object)).columns["x"].dtype == np.float64


@pytest.mark.parametrize(
    ("source", "error", "message"),
    [
        (np.zeros(3), InputError, r"2-D array, got an array .* Reshape your data .*\(-1, 1\)"),
        (pd.Series([1]), InputError, r"got a series of one dimension. Reshape"),
        (pa.chunked_array([[1]]), InputError, r"got a series of one dimension. Reshape"),
        (np.float64(3), InputError, r"got a single value of one dimension"),
        (np.zeros((1, 1, 1, 1, 1)), InputError, r"5 dimensions, \(1, 1, 1, 1, 1\); expected \(n,"),
        (np.zeros((2, 2), complex), InputError, r"Complex data not supported: got complex128"),
        (np.array([["a"]]), InputError, r"array of numbers was expected, got one of type <U1"),
        (np.array([["a"]], object), InputError, r"array of numbers was expected"),
        (np.array([[{}]], object), TypeError, r"argument must be .* string.* number"),
        (scipy.sparse.eye(3).tocsr(), TypeError, r"A sparse matrix was passed, but dense data"),
        ([[1, 2], [3]], InputError, r"the rows have different lengths"),
        ({"a": [1, 2], "b": [1]}, InputError, r"different lengths: 'a' 2, 'b' 1; give one value"),
        ({1: [1], "1": [1]}, InputError, r"two fields have the same name"),
        ({"a": 3}, InputError, r"field 'a' is a int; expected an array, a list or a series"),
        ({"a": scipy.sparse.eye(3)}, TypeError, r"A sparse matrix was passed"),
        ({"a": pd.Series([1j])}, InputError, r"Complex data not supported: 'a' is complex"),
        ({}, InputError, r"the data has no column that can be used"),
        (pd.DataFrame([[1, 2]], columns=["a", "a"]), InputError, r"two columns are named 'a'"),
        (pa.table([[1], [2]], names=["a", "a"]), InputError, r"two columns are named 'a'"),
        (pa.table({"s": [{"k": 1}]}), InputError, r"no column .*'s' has type struct.*set aside"),
        (object(), InputError, r"cannot read a object; give a data frame, an array"),
    ],
)
def test_refusals_in_memory(source, error, message):
    with pytest.raises(error, match=message):
        read(source)


def test_missing_is_null_in_every_library():
    frames = [
        pd.DataFrame({"n": [1.0, np.nan], "s": ["a", None]}),
        pl.DataFrame({"n": [1.0, float("nan")], "s": ["a", None]}),
        pa.table({"n": [1.0, float("nan")], "s": ["a", None]}),
        {"n": np.array([1.0, np.nan]), "s": ["a", None]},
    ]
    for source in frames:
        table = read(source)
        assert lists(table) == {"n": [1.0, None], "s": ["a", None]}
        assert kinds(table) == {"n": "double", "s": "string"}


def test_mixed_python_types_become_text():
    cells = [1, "a", None, float("nan"), pd.NaT]
    for source in (pd.DataFrame({"m": pd.Series(cells, dtype=object)}), {"m": cells}):
        table = read(source)
        assert lists(table) == {"m": ["1", "a", None, None, None]}
        assert table.notes == ("column 'm' mixes types and was read as text; give it one type",)


def test_arrow_types_without_a_field():
    table = read(
        pa.table(
            {
                "dictionary": pa.array(["a", "b"]).dictionary_encode(),
                "decimal": [decimal.Decimal("1.5"), None],
                "vector": [[1, 2], [3, None]],
                "image": [[[1, 2], [3, 4]]] * 2,
                "ragged": [[1], [1, 2]],
                "struct": [{"k": 1}] * 2,
                "texts": [["a"], ["b"]],
                "bytes": [b"a", b"b"],
            }
        )
    )
    blocks = {n: c for n, c in table.columns.items() if isinstance(c, np.ndarray)}
    assert list(table.columns) == ["dictionary", "decimal", "vector", "image", "ragged"]
    assert table.columns["ragged"].to_pylist() == [[1], [1, 2]]
    assert str(table.columns["dictionary"].type) == "string"
    assert table.columns["decimal"].to_pylist() == [1.5, None]
    np.testing.assert_array_equal(blocks["vector"], [[1, 2], [3, np.nan]])
    assert blocks["image"].shape == (2, 2, 2)
    assert len(table.notes) == 3
    assert all("which is not supported; it was set aside" in note for note in table.notes)


def test_polars_objects_are_set_aside():
    table = read(pl.DataFrame({"a": [1], "o": pl.Series([object()], dtype=pl.Object)}))
    assert list(table.columns) == ["a"]
    assert "column 'o' holds Python objects" in table.notes[0]


def test_bare_import_needs_no_data_frame_library():
    code = (
        "import importlib.abc, sys\n"
        "class Absent(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path, target=None):\n"
        "        if name in ('pandas', 'polars', 'torch'): raise ImportError(name)\n"
        "sys.meta_path.insert(0, Absent())\n"
        "from refold.data import containers, sinks, sources\n"
        "print(sources.read({'a': [1, None]}).columns['a'].null_count)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ}
    )
    assert done.stdout == "1\n", done.stderr


# --- delimited text ----------------------------------------------------------------------------


def test_csv_is_trimmed_and_inferred(csv):
    table = csv(
        "age , city, ok, at, x\n"
        " 39, Bern , true, 2024-01-01 , 1.5\n"
        " 40, ?,false ,,NA\n"
        ',"a, b",,,1\n'
    )
    assert kinds(table) == {
        "age": "int64",
        "city": "string",
        "ok": "bool",
        "at": "date32[day]",
        "x": "double",
    }
    assert lists(table)["age"] == [39, 40, None]
    assert lists(table)["city"] == ["Bern", None, "a, b"]
    assert lists(table)["ok"] == [True, False, None]


@pytest.mark.parametrize("token", ["", "?", "NA", "N/A", "NaN", "nan", "null", "NULL", "#N/A"])
def test_csv_missing_tokens(csv, token):
    assert lists(csv(f"a,b\n1,x\n {token},{token}\n")) == {"a": [1, None], "b": ["x", None]}


def test_csv_a_lone_dash_is_a_value(csv):
    assert lists(csv("a,b\n-,1\nx,2\n"))["a"] == ["-", "x"]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", "a;b\n1;2,5\n"),
        ("a.csv", "a\tb\n1\t2,5\n"),
        ("a.tsv", "a\tb\n1\t2,5\n"),
        ("a.data", "a;b\n1;2,5\n"),
        ("a", "a|b\n1|2,5\n"),
        ("a.csv.gz", gzip.compress(b"a;b\n1;2,5\n", mtime=0)),
        ("bom.csv", "\ufeffa;b\r\n1;2,5\r\n"),
        ("quoted.csv", 'a, b\n1, "2,5"\n'),
        ("lines.csv", '\n\na,b\n\n1,"2,5"\n\n'),
    ],
)
def test_csv_delimiters_and_quotes(csv, name, text):
    assert lists(csv(text, name)) == {"a": [1], "b": ["2,5"]}


def test_csv_without_names(csv):
    table = csv("5.1, 3\n4.9, 2\n")
    assert lists(table) == {"c0": [5.1, 4.9], "c1": [3, 2]}
    assert "numbers only, so columns were named c0 to c1" in table.notes[0]
    table = csv(",b\n0,x\n1,y\n")
    assert list(table.columns) == ["c0", "b"]
    assert table.notes == ("column 1 has no name and was named c0",)


def test_csv_of_an_unnamed_pandas_frame_has_names(csv):
    frame = pd.DataFrame([[5.1, 3, 1], [4.9, 2, 0]])
    table = csv(frame.to_csv(index=False))
    assert lists(table) == {"0": [5.1, 4.9], "1": [3, 2], "2": [1, 0]}
    assert table.notes == ()
    for first in ("0,1,3", "1,2,3", "0,1,2.0", "1,0,2"):  # any other numbers are a row
        assert list(csv(f"{first}\n4.9,2,0\n").columns) == ["c0", "c1", "c2"]


def test_csv_type_is_that_of_the_whole_file(csv):
    rows = "".join(f"{i},{i}\n" for i in range(20_000))
    assert kinds(csv(f"a,b\n{rows}x,0.5\n")) == {"a": "string", "b": "double"}


def test_csv_of_one_column_keeps_blank_lines_as_missing(csv):
    assert lists(csv("a\n1\n\n3\n")) == {"a": [1, None, 3]}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"the file is empty"),
        ("\n \n", r"the file is empty"),
        ("a,b\n", r"column names but no rows"),
        ("a,b\n1,2\n\n1,2,3\n", r"line 4 has 3 cells, but the first line has 2; give"),
        ('a,b\n"1\n1",2\n3\n', r"line 4 has 1 cells, but the first line has 2"),
        ("a, a\n1,2\n", r"two columns are named 'a'; rename one"),
        (b"a,b\n\xff\xfe,1\n", r"not UTF-8 text \(byte 4 cannot be read\); save it as UTF-8"),
        (b"a,b\n\0\0,1\n", r"binary data, not text"),
        (bytes(range(100, 200)), r"this is not UTF-8 text \(byte 28"),
        ("a,b\n1,2\n".replace("a", "a" * 200_000), r"readable .csv file \(field larger than"),
        (gzip.compress(b"a,b\n1,2\n", mtime=0)[:-9], r"not a whole, readable .csv file"),
    ],
)
def test_csv_refusals_name_the_file(csv, text, message):
    with pytest.raises(InputError, match=rf"data\.csv: .*{message}"):
        csv(text)


# --- other files -------------------------------------------------------------------------------


def written(folder, name):
    """A small table in the format that the name says."""
    path = folder / name
    table = pa.table({"a": [1, None], "b": ["x", "y"]})
    if name.endswith("parquet"):
        pa.parquet.write_table(table, path)
    elif name.endswith("feather"):
        pa.feather.write_feather(table, str(path))
    elif name == "stream.arrow":
        with pa.ipc.new_stream(path, table.schema) as stream:
            stream.write_table(table)
    else:
        text = b'{"a": 1, "b": "x"}\n{"a": null, "b": "y"}\n'
        path.write_bytes(gzip.compress(text) if name.endswith("gz") else text)
    return path


@pytest.mark.parametrize(
    "name", ["t.parquet", "T.PARQUET.feather", "stream.arrow", "t.jsonl", "t.ndjson", "t.jsonl.gz"]
)
def test_tables_in_files(tmp_path, name):
    table = read(written(tmp_path, name))
    assert lists(table) == {"a": [1, None], "b": ["x", "y"]}
    assert table.container.kind == "pandas"


def idx(array, code, magic=b"\0\0"):
    shape = struct.pack(f">{array.ndim}I", *array.shape)
    return magic + bytes([code, array.ndim]) + shape + array.tobytes()


@pytest.mark.parametrize(
    ("code", "dtype"), [(8, ">u1"), (9, ">i1"), (11, ">i2"), (12, ">i4"), (13, ">f4"), (14, ">f8")]
)
@pytest.mark.parametrize(("shape", "name"), [((3,), "label"), ((3, 2), "x"), ((3, 4, 5), "image")])
def test_idx(tmp_path, code, dtype, shape, name):
    array = np.arange(np.prod(shape)).reshape(shape).astype(dtype)
    path = tmp_path / "some-idx-ubyte.idx1-ubyte"
    path.write_bytes(idx(array, code))
    found = read(path).columns[name]
    assert not isinstance(found, np.ndarray) or found.dtype == array.dtype.newbyteorder("=")
    np.testing.assert_array_equal(np.asarray(found), array)


def test_npz_rules(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, x=np.eye(3), y=np.arange(3), names=np.array(["a", "b"]), k=np.array(5))
    table = read(path)
    assert list(table.columns) == ["x", "y"]
    assert table.aside == ("y",)
    assert table.notes == (
        "'k' is a single value and was set aside",
        "'names' has 2 entries, 'x' 3 rows; it was set aside",
    )
    np.savez(path, left=np.eye(3), right=np.array(["a", "b", "c"]))
    table = read(path)
    assert (list(table.columns), table.aside) == (["left", "right"], ())


def damaged(folder, name):
    """A file that is not what its name says."""
    path = folder / name
    kind = re.split(r"\W", name)[0]
    buffer = io.BytesIO()
    if kind == "truncated":
        if name.endswith(".npy"):
            np.save(buffer, np.eye(20))
        elif name.endswith(".npz"):
            np.savez(buffer, X=np.eye(20))
        elif name.endswith(".png"):
            Image.fromarray(np.eye(40, dtype=np.uint8)).save(buffer, "png")
        elif "idx" in name:
            data = idx(np.zeros((9, 4, 4), ">u1"), 8)
            buffer.write(gzip.compress(data) if name.endswith("gz") else data)
        path.write_bytes(buffer.getvalue()[:-30])
    elif kind == "objects":
        np.save(buffer, np.array([{}], dtype=object), allow_pickle=True)
        path.write_bytes(buffer.getvalue())
    elif kind == "header":
        path.write_bytes(b"\x93NUMPY\x01\x00\x10\x00{'descr': '<f8((\n")
    elif kind == "pickle":
        path.write_bytes(pickle.dumps([1, 2, 3]))
    elif kind == "folder":
        path.mkdir()
    elif kind == "line":
        path.write_bytes(b"1")
    elif kind == "brackets":
        path.write_bytes(b'{"a": [1,\n2, 3],\n"b": 2}\n')
    elif kind == "garbage":
        path.write_bytes(b"PAR1 this is no such file at all, whatever it says it is")
    return path


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing.csv", "no such file or folder; check the path"),
        ("mis*ing.csv", "no file matches; check the pattern"),
        ("garbage.parquet", "not a whole, readable .parquet file"),
        ("garbage.feather", "not a whole, readable .feather file"),
        ("garbage.jsonl", "not a whole, readable .jsonl file"),
        ("garbage.npy", "not a whole, readable .npy file"),
        ("garbage.npz", "no .npz archive, or a truncated one"),
        ("garbage-idx3-ubyte", "no IDX file: it does not start with an IDX magic number"),
        ("garbage.png", "image '.*garbage.png' is corrupt or no image; repair or remove it"),
        ("garbage.xlsx", r"unknown ending '.xlsx'; known are .csv .tsv .*, a folder of images"),
        ("brackets.json", r"unknown ending '.json'"),
        ("truncated.npy", "not a whole, readable .npy file"),
        ("truncated.npz", "no .npz archive, or a truncated one"),
        ("truncated.png", "image '.*truncated.png' is corrupt"),
        ("truncated-idx3-ubyte.gz", "not a whole, readable .idx file"),
        ("truncated.idx3-ubyte", r"truncated .*: 130 bytes, where .* \(9, 4, 4\) takes 160"),
        ("objects.npy", "it holds Python objects, and pickle is never loaded"),
        ("header.npy", "not a whole, readable .npy file"),
        ("pickle.npy", "not a whole, readable .npy file"),
        ("folder.csv", "this is a folder, not a file"),
        ("folder", "the folder holds no images"),
        ("x" * 300, "File name too long; check the path"),
    ],
)
def test_damaged_files(tmp_path, name, message):
    path = tmp_path / name
    if name[:3] not in ("mis", "xxx"):
        path = damaged(tmp_path, name)
    with pytest.raises(InputError, match=message) as caught:
        read(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_folder_of_other_files_says_how_to_name_them(tmp_path):
    for i in range(3):
        np.save(tmp_path / f"{i}.npy", np.eye(2))
    (tmp_path / "README.txt").write_text("about these files")
    with pytest.raises(InputError, match=rf"name them, such as '{tmp_path}/\*\.npy'"):
        read(tmp_path)
    assert len(read(tmp_path / "*.npy")) == 6
    for i in (1, 2):
        (tmp_path / f"{i}.npy").unlink()
    with pytest.raises(InputError, match=rf"name them, such as '{tmp_path}/(0.npy|README.txt)'"):
        read(tmp_path)


def test_permission_denied(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    path = tmp_path / "a.csv"
    path.write_text("a\n1\n")
    monkeypatch.setattr("pathlib.Path.read_bytes", refuse)
    with pytest.raises(InputError, match=r"a\.csv: permission denied; make it readable"):
        read(path)


# --- several files -----------------------------------------------------------------------------


def test_pattern_joins_files_in_order(tmp_path):
    (tmp_path / "b.csv").write_text("n,t\n3,x\n")
    (tmp_path / "a.csv").write_text("n,u\n0.5,\n1,\n")
    table = read(str(tmp_path / "*.csv"))
    assert lists(table) == {"n": [0.5, 1, 3], "u": [None] * 3, "t": [None, None, "x"]}


def test_pattern_joins_blocks(tmp_path):
    for i in (2, 1):
        np.savez(tmp_path / f"{i}.npz", X=np.full((2, 3), i), y=np.array([0, i]))
    table = read(tmp_path / "*.npz")
    assert table.columns["X"][:, 0].tolist() == [1, 1, 2, 2]
    assert table.columns["y"].to_pylist() == [0, 1, 0, 2]
    assert table.aside == ("y",)


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        (np.eye(2), np.eye(3), r"b\.npy: rows of 'x' have shape \(3,\), those of .*a\.npy \(2,\)"),
        (np.eye(2), np.zeros((2, 2, 2)), r"rows of 'x' have shape None"),
    ],
)
def test_pattern_of_different_shapes(tmp_path, first, second, message):
    np.save(tmp_path / "a.npy", first)
    np.save(tmp_path / "b.npy", second)
    with pytest.raises(InputError, match=message):
        read(tmp_path / "*.npy")


def test_pattern_of_different_types(tmp_path):
    (tmp_path / "a.csv").write_text("n\n1\n")
    (tmp_path / "b.csv").write_text("n\nx\n")
    named = r"types .*: int64 in \S*a\.csv and string in \S*b\.csv; give"
    with pytest.raises(InputError, match=named):
        read(tmp_path / "*.csv")


# --- images ------------------------------------------------------------------------------------

GREY = np.arange(48, dtype=np.uint8).reshape(6, 8)
RGB = np.stack([GREY, GREY + 50, GREY + 100], axis=-1)


@pytest.mark.parametrize("ending", ["png", "bmp", "gif", "tif", "tiff"])
def test_folder_of_grey_images(tmp_path, ending):
    (tmp_path / "b").mkdir()
    Image.fromarray(GREY).save(tmp_path / f"a.{ending}")
    Image.fromarray(GREY[::-1].copy()).save(tmp_path / "b" / f"0.{ending}")
    table = read(tmp_path)
    expected = np.stack([GREY, GREY[::-1]])
    if ending == "gif":  # a palette is colour, whatever its colours are
        expected = np.repeat(expected[..., None], 3, axis=-1)
    np.testing.assert_array_equal(table.columns["image"], expected)
    np.testing.assert_array_equal(read(f"{tmp_path}/**/*.{ending}").columns["image"], expected)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "1", "P"])
def test_palettes_and_alpha_are_converted(tmp_path, mode):
    Image.fromarray(RGB).convert(mode).save(tmp_path / "a.png")
    Image.fromarray(RGB).save(tmp_path / "b.png")
    (tmp_path / "notes.md").write_text("no image")
    (tmp_path / ".DS_Store").write_text("hidden")
    table = read(tmp_path)
    assert table.columns["image"].shape == (2, 6, 8, 3)
    np.testing.assert_array_equal(table.columns["image"][1], RGB)
    if mode in ("RGB", "RGBA"):
        np.testing.assert_array_equal(table.columns["image"][0], RGB)
    assert table.notes == ("1 file ignored: no image",)


def test_lossy_images_and_deep_grey_read(tmp_path):
    for name in ("a.jpg", "b.jpeg", "c.webp"):
        Image.fromarray(RGB).save(tmp_path / name)
    assert read(tmp_path).columns["image"].shape == (3, 6, 8, 3)
    deep = GREY.astype(np.uint16) * 1000
    Image.fromarray(deep).save(tmp_path / "deep.png")
    np.testing.assert_array_equal(read(tmp_path / "deep.png").columns["image"], deep[None])
    with pytest.raises(InputError, match=r"differ in depth: '.*a.jpg' is uint8, '.*' uint16"):
        read(tmp_path)


def test_images_of_different_sizes(tmp_path):
    Image.fromarray(GREY).save(tmp_path / "a.png")
    Image.fromarray(GREY.T.copy()).save(tmp_path / "b.png")
    message = r"differ in size: '.*a.png' is 8x6 pixels, '.*b.png' 6x8; resize them"
    with pytest.raises(InputError, match=message):
        read(tmp_path)


def test_a_folder_of_tables_says_how_to_read_them(tmp_path):
    (tmp_path / "a.csv").write_text("a\n1\n")
    with pytest.raises(InputError, match=r"holds no images .* name them, such as '.*a\.csv'"):
        read(tmp_path)
