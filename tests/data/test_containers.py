"""What comes back is of the kind, the types and the order of what came in."""

import datetime

import numpy as np
import pandas as pd
import polars as pl
import polars.testing
import pyarrow as pa
import pytest
import torch

from refold.data.containers import as_dtype, cast, container, default, frame
from refold.data.sources import read
from refold.errors import InputError
from refold.table import Table

DAY = datetime.date(2024, 2, 29)


def again(source):
    """Read a source and put its columns back."""
    table = read(source)
    return table.container.rebuild(table.columns)


def pandas_columns():
    zone = pd.date_range("2024-01-01", periods=3, tz="Europe/Vienna").as_unit("ns")
    return {
        "int8": pd.Series([1, -2, 3], dtype="int8"),
        "int64": pd.Series([2**62 + 1, 0, -1]),
        "uint64": pd.Series([2**63 + 7, 0, 1], dtype="uint64"),
        "float32": pd.Series([0.1, np.nan, 2], dtype="float32"),
        "bool": pd.Series([True, False, True]),
        "Int64": pd.Series([2**62 + 1, None, 3], dtype="Int64"),
        "UInt8": pd.Series([200, None, 3], dtype="UInt8"),
        "boolean": pd.Series([True, None, False], dtype="boolean"),
        "string": pd.Series(["a", None, "ü"], dtype="string"),
        "str": pd.Series(["a", None, "b"]),
        "object": pd.Series(["a", None, "b"], dtype=object),
        "object nan": pd.Series(["a", np.nan, "b"], dtype=object),
        "category": pd.Series(
            pd.Categorical(["lo", None, "hi"], categories=["lo", "mid", "hi"], ordered=True)
        ),
        "category of int": pd.Series(pd.Categorical([3, 1, None], categories=[3, 2, 1])),
        "datetime": pd.Series(
            pd.to_datetime(["2024-01-01 03:04:05.678000", None, "1969-01-01 00:00:00.000001"])
        ),
        "zoned": pd.Series(zone),
        "timedelta": pd.Series(pd.to_timedelta([1, None, 3], unit="s")),
        "arrow": pd.Series([1, None, 3], dtype=pd.ArrowDtype(pa.int16())),
        "sparse": pd.Series(pd.arrays.SparseArray([0.0, 0.0, 1.0])),
        5: pd.Series([1.0, 2.0, 3.0]),
    }


@pytest.mark.parametrize("name", pandas_columns())
def test_pandas_column_returns_bit_equal(name):
    data = pd.DataFrame({name: pandas_columns()[name]})
    pd.testing.assert_frame_equal(again(data), data, check_exact=True)


def test_pandas_index_and_order_return():
    data = pd.DataFrame(pandas_columns()).set_index(pd.Index(["x", "y", "z"], name="key"))
    table = read(data)
    backwards = dict(reversed(table.columns.items()))
    pd.testing.assert_frame_equal(table.container.rebuild(backwards), data, check_exact=True)


def test_pandas_hierarchical_labels_return():
    data = pd.DataFrame(np.eye(2), columns=pd.MultiIndex.from_tuples([("a", 1), ("a", 2)]))
    pd.testing.assert_frame_equal(again(data), data)


def test_pandas_subset_extra_and_other_rows():
    like = read(pd.DataFrame({"a": [1, 2], "b": ["x", "y"]}, index=[7, 9])).container
    built = like.rebuild({"new": np.array([0.5, 1.5, 2.5]), "b": pa.array(["p", None, "q"])})
    assert list(built.columns) == ["b", "new"]
    assert list(built.index) == [0, 1, 2]
    assert built["new"].tolist() == [0.5, 1.5, 2.5]


def test_pandas_new_category_is_appended_not_lost():
    grade = pd.Categorical(["lo", "hi"], categories=["lo", "hi"], ordered=True)
    built = read(pd.DataFrame({"g": grade})).container.rebuild({"g": pa.array(["new", "hi", None])})
    assert built["g"].cat.categories.tolist() == ["lo", "hi", "new"]
    assert built["g"].cat.ordered
    assert built["g"].tolist()[:2] == ["new", "hi"]
    assert built["g"].isna().tolist() == [False, False, True]


@pytest.mark.parametrize(
    ("cells", "values", "expected"),
    [
        (np.array([1, 2], "int8"), [300.0, 1.6], ("int8", [127, 2])),
        (np.array([1, 2]), [1, None], ("Int64", [1, pd.NA])),
        (np.array([True, False]), [0.6, 0.4], ("bool", [True, False])),
        (np.array([True, False]), [True, None], ("boolean", [True, pd.NA])),
        (np.array([1, 2]), ["text", "more"], ("str", ["text", "more"])),
    ],
    ids=["round and clip", "missing integer", "half", "missing boolean", "cannot be cast"],
)
def test_pandas_values_of_another_type(cells, values, expected):
    built = read(pd.DataFrame({"a": cells})).container.rebuild({"a": pa.array(values)})
    assert (str(built["a"].dtype), built["a"].tolist()) == expected


def polars_frame():
    return pl.DataFrame(
        {
            "cat": ["a", None, "b"],
            "enum": ["lo", "hi", None],
            "bool": [True, None, False],
            "date": [DAY, None, DAY],
            "time": [datetime.datetime(2024, 1, 1, 3, 4, 5, 6), None, None],
            "u8": [1, None, 255],
            "f32": [0.1, None, 2.0],
            "text": ["x", None, ""],
            "vector": [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]],
            "list": [[1, 2], [3, 4], [5, 6]],
        },
        schema_overrides={
            "cat": pl.Categorical,
            "enum": pl.Enum(["lo", "hi"]),
            "u8": pl.UInt8,
            "f32": pl.Float32,
            "vector": pl.Array(pl.Float64, 2),
        },
    )


@pytest.mark.parametrize("lazy", [False, True])
def test_polars_returns_equal(lazy):
    data = polars_frame()
    polars.testing.assert_frame_equal(again(data.lazy() if lazy else data), data)


def test_polars_enum_gains_new_levels_at_the_end():
    built = read(polars_frame()).container.rebuild({"enum": pa.array(["hi", "new"])})
    assert built["enum"].dtype == pl.Enum(["lo", "hi", "new"])
    assert built["enum"].to_list() == ["hi", "new"]


def arrow_table():
    return pa.table(
        {
            "dict": pa.array(["a", None, "b"]).cast(pa.dictionary(pa.int8(), pa.string())),
            "large": pa.array(["a", None, "b"], pa.large_string()),
            "decimal": pa.array([1, None, 3]).cast(pa.decimal128(21, 2)),
            "half": pa.array(np.array([1, 2, 3], np.float16)),
            "date": pa.array([DAY, None, DAY]),
            "zoned": pa.array([1, None, 3], pa.timestamp("us", "UTC")),
            "vector": pa.FixedSizeListArray.from_arrays(pa.array(np.arange(6.0)), 2),
        }
    ).replace_schema_metadata({"made": "here"})


def test_pyarrow_returns_equal():
    table = arrow_table()
    back = again(table)
    assert back.equals(table, check_metadata=True)


def test_record_batch_returns_as_one():
    batch = arrow_table().to_batches()[0]
    back = again(batch)
    assert isinstance(back, pa.RecordBatch)
    assert back.equals(batch)


class Stream:
    """What another library's object looks like: only the Arrow stream."""

    def __init__(self, table):
        self.table = table

    def __arrow_c_stream__(self, requested_schema=None):
        return self.table.__arrow_c_stream__(requested_schema)


def test_arrow_stream_returns_as_table():
    table = pa.table({"a": [1, 2]})
    assert again(Stream(table)).equals(table)


@pytest.mark.parametrize("dtype", ["uint8", "int16", "int64", "float16", "float32", "bool"])
@pytest.mark.parametrize("shape", [(5, 3), (5, 4, 4), (5, 4, 4, 3), (5, 3, 4, 4)])
def test_array_and_tensor_return_bit_equal(dtype, shape):
    array = np.random.default_rng(0).integers(0, 2, shape).astype(dtype)
    back = again(array)
    assert back.dtype == array.dtype
    np.testing.assert_array_equal(back, array)
    tensor = torch.from_numpy(array)
    assert again(tensor).dtype == tensor.dtype
    assert torch.equal(again(tensor), tensor)


def test_half_precision_tensor_returns():
    tensor = torch.ones(2, 3, dtype=torch.bfloat16, requires_grad=True)
    assert torch.equal(again(tensor), tensor)


@pytest.mark.parametrize(
    ("dtype", "values", "expected"),
    [
        ("uint8", [-3.2, 1.6, 999.0], [0, 2, 255]),
        ("int32", np.array([3e9, -3e9, 0.5], "float32"), [2**31 - 1, -(2**31), 0]),
        ("int64", [1e30, -1e30], [2**63 - 1024, -(2**63)]),
        ("uint64", np.array([-5, 5], "int64"), [0, 5]),
        ("bool", [0.4, 0.6], [False, True]),
    ],
)
def test_cast_rounds_and_stays_in_range(dtype, values, expected):
    values = np.array(values)
    back = as_dtype(values, np.dtype(dtype))
    assert (back.dtype, back.tolist()) == (np.dtype(dtype), expected)
    arrow = cast(pa.chunked_array([values]), pa.from_numpy_dtype(np.dtype(dtype)))
    assert arrow.to_pylist() == expected


def test_integer_array_with_missing_values_stays_float():
    built = as_dtype(np.array([1.0, np.nan]), np.dtype("int8"))
    assert built.dtype == np.float64


def test_columns_of_arrays_stand_side_by_side():
    built = container("numpy").rebuild({"a": pa.array([1, 2]), "x": np.eye(2)})
    np.testing.assert_array_equal(built, [[1, 1, 0], [2, 0, 1]])


def test_dict_values_return_in_their_own_kind():
    source = {
        "array": np.array([1, 2], "int16"),
        "text": np.array(["a", "bc"]),
        "block": np.eye(2, dtype="float32"),
        "tensor": torch.tensor([[1], [2]], dtype=torch.int32),
        "list": ["x", None],
        "rows": [[1, 2], [3, 4]],
        "series": pd.Series([1, 2], dtype="int8", index=[5, 6], name="series"),
        "polars": pl.Series("polars", ["a", "b"], dtype=pl.Categorical),
        "arrow": pa.chunked_array([[DAY, DAY]]),
    }
    back = again(source)
    assert list(back) == list(source)
    for name in ("array", "text", "block"):
        assert back[name].dtype == source[name].dtype
        np.testing.assert_array_equal(back[name], source[name])
    assert torch.equal(back["tensor"], source["tensor"])
    assert back["tensor"].dtype == torch.int32
    assert (back["list"], back["rows"]) == (source["list"], source["rows"])
    pd.testing.assert_series_equal(back["series"], source["series"])
    polars.testing.assert_series_equal(back["polars"], source["polars"])
    assert back["arrow"].equals(source["arrow"])


@pytest.mark.parametrize(
    ("kind", "type_"),
    [
        ("pandas", pd.DataFrame),
        ("polars", pl.DataFrame),
        ("pyarrow", pa.Table),
        ("numpy", np.ndarray),
        ("tensor", torch.Tensor),
        ("dict", dict),
    ],
)
def test_container_without_template(kind, type_):
    made = container(kind)
    assert made.kind == kind
    assert isinstance(made.rebuild({"x": np.eye(3), "n": pa.chunked_array([[1, 2, 3]])}), type_)


@pytest.mark.parametrize("kind", ["pandas", "polars", "pyarrow"])
def test_frames_expand_vectors_and_nest_images(kind):
    built = container(kind).rebuild({"x": np.eye(2), "image": np.zeros((2, 3, 4))})
    names = built.column_names if kind == "pyarrow" else list(built.columns)
    assert names == ["x0", "x1", "image"]
    with pytest.raises(InputError, match="block 'x' expands to a column 'x1', which exists"):
        container(kind).rebuild({"x1": np.zeros(2), "x": np.eye(2)})


def test_unknown_container_suggests_one():
    with pytest.raises(InputError, match=r"unknown container 'panda'; did you mean 'pandas'\?"):
        container("panda")


def test_results_come_in_the_users_library():
    scores = {"score": np.array([0.5, np.nan]), "cause": pa.array(["a", None])}
    data = pd.DataFrame({"score": [1, 2]}, index=["p", "q"])
    built = frame(scores, read(data).container)
    assert built.index.tolist() == ["p", "q"]
    assert built["score"].dtype == np.float64  # of the result, not of a column of that name
    assert isinstance(frame(scores, read(pl.DataFrame({"a": [1]})).container), pl.DataFrame)
    assert isinstance(frame(scores, read(pa.table({"a": [1]})).container), pa.Table)
    assert isinstance(frame(scores, read(np.eye(2)).container), pd.DataFrame)


def test_without_pandas_results_are_arrow_tables(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert default().kind == "pyarrow"


def test_a_missing_library_is_one_sentence(monkeypatch):
    def absent(name):
        raise ImportError(name)

    monkeypatch.setattr("importlib.import_module", absent)
    with pytest.raises(InputError, match="the data came from polars, which is not installed"):
        container("polars").rebuild({})


def test_a_table_reads_as_itself():
    table = read(np.eye(2))
    assert isinstance(table, Table)
    assert read(table) is table
