"""Series of numbers: of one length or many, in one channel or several, in any container."""

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import refold
from refold.data.schema import Schema
from refold.data.sinks import write
from refold.data.sources import read
from refold.errors import InputError
from refold.fields import Series
from refold.fields.base import from_json
from refold.report.evidence import Evidence
from refold.report.gaps import filled_rows, gaps_of
from refold.report.rows import row_views
from refold.uses.complete import missing
from refold.uses.steps import step_errors

N = 40


def ragged(channels=None, seed=0, least=3):
    r = np.random.default_rng(seed)
    shape = () if channels is None else (channels,)
    return [r.normal(5, 3, (int(n), *shape)) for n in r.integers(least, 12, N)]


def fitted(column, **options):
    return Series(columns=("x",), **options).fit({"x": column})


def lists(rows):
    return read({"x": rows}).columns["x"]


def there_and_back(own, column):
    """Decode what was encoded, beside the rows it came from."""
    x = own.to_tensor({"x": column}).x
    return own.to_values_like(x.double().flatten(1), column)["x"]


# --------------------------------------------------------------------------- the mathematics


def test_each_channel_is_scaled_by_the_mean_and_deviation_of_its_steps():
    v = np.random.default_rng(0).normal(3, [1.0, 50.0], (N, 7, 2))
    own = fitted(v)
    encoded = own.to_tensor({"x": v})
    flat = v.reshape(-1, 2)
    expected = (v - flat.mean(0)) / flat.std(0)
    np.testing.assert_allclose(encoded.x, expected, atol=1e-5)
    assert encoded.x.dtype == torch.float32
    assert encoded.observed is None
    assert own.shape == (7, 2)
    assert own.sizes == (1,) * 14
    low, high = (np.array(b).reshape(7, 2) for b in own.bounds)
    np.testing.assert_allclose(low, np.broadcast_to(expected.min((0, 1)), (7, 2)))
    np.testing.assert_allclose(high, np.broadcast_to(expected.max((0, 1)), (7, 2)))


def test_a_window_is_scaled_by_itself_and_comes_back_at_its_own_level():
    r = np.random.default_rng(0)
    v = r.normal(size=(N, 9)) * r.uniform(0.1, 20, (N, 1)) + r.normal(0, 100, (N, 1))
    own = fitted(v, scale="window")
    x = own.to_tensor({"x": v}).x[:, :, 0].double()
    torch.testing.assert_close(x.mean(1), torch.zeros(N).double(), atol=1e-5, rtol=0)
    torch.testing.assert_close(x.std(1, correction=0), torch.ones(N).double(), atol=1e-5, rtol=0)
    np.testing.assert_allclose(there_and_back(own, v), v, atol=1e-3)
    level, scale = v.mean(1).mean(), v.std(1).mean()
    np.testing.assert_allclose(own.to_values(x)["x"], x.numpy() * scale + level)


def test_scale_none_leaves_values_as_they_are():
    v = np.random.default_rng(0).normal(7, 2, (N, 5))
    own = fitted(v, scale="none")
    np.testing.assert_allclose(own.to_tensor({"x": v}).x[:, :, 0], v, rtol=1e-6)
    assert own.bounds == ([v.min()] * 5, [v.max()] * 5)


@pytest.mark.parametrize("scale", ["channel", "window", "none"])
@pytest.mark.parametrize("channels", [None, 1, 3])
def test_ragged_rows_come_back_as_long_as_they_are(channels, scale):
    rows = ragged(channels)
    column = lists(rows)
    own = fitted(column, scale=scale)
    encoded = own.to_tensor({"x": column})
    assert encoded.x.shape == (N, max(map(len, rows)), channels or 1)
    expected = np.arange(own.steps) < np.array([len(v) for v in rows])[:, None]
    seen = encoded.observed.view(encoded.x.shape)
    assert torch.equal(seen, torch.from_numpy(expected)[:, :, None].expand_as(seen))
    assert (encoded.x[~seen] == 0).all()
    back = there_and_back(own, column).to_pylist()
    assert [len(v) for v in back] == [len(v) for v in rows]
    for mine, theirs in zip(back, rows, strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-5)


def test_a_batch_of_ragged_rows_is_encoded_as_its_rows_are_one_by_one():
    rows = ragged(2)
    ae = refold.Autoencoder(3, recipe="dense", epochs=2).fit(rows)
    codes, back = ae.transform(rows), ae.reconstruct(rows)
    for i in (0, 7, 20):
        assert np.array_equal(ae.transform([rows[i]]), codes[i : i + 1])
        assert np.array_equal(ae.reconstruct([rows[i]])[0], back[i])


# --------------------------------------------------------------------------- the edges


@pytest.mark.parametrize("scale", ["channel", "window"])
def test_constant_channels_one_step_missing_rows_and_no_steps(scale):
    v = np.random.default_rng(0).normal(size=(N, 4, 2))
    v[:, :, 1] = 1e6
    v[3] = np.nan
    own = fitted(v, scale=scale)
    encoded = own.to_tensor({"x": v})
    assert torch.isfinite(encoded.x).all()
    assert not encoded.observed[3].any()
    assert (encoded.x[:, :, 1] == 0).all()
    np.testing.assert_allclose(there_and_back(own, v)[4:, :, 1], 1e6)
    assert np.isfinite(there_and_back(own, v)).all()
    one = fitted(v[:, :1], scale=scale)
    assert one.shape == (1, 2)
    column = lists([np.array([]), np.array([1.0, np.nan]), None])
    short = Series(columns=("x",), scale=scale).fit({"x": column})
    found = there_and_back(short, column).to_pylist()
    assert [len(v) for v in found] == [0, 2, 2]
    with pytest.raises(InputError, match="no training row of series 'x' has a step"):
        fitted(pa.chunked_array([[[]]], pa.list_(pa.float64())))


def test_infinite_values_are_refused_by_name_row_and_step():
    v = np.zeros((5, 4))
    v[2, 3] = np.inf
    with pytest.raises(InputError, match=r"'x\[3\]' holds infinity in row 2"):
        fitted(v)
    own = fitted(np.zeros((5, 4, 2)))
    with pytest.raises(InputError, match=r"'x\[3, 0\]' holds infinity in row 2"):
        own.to_tensor({"x": np.stack([v, 0 * np.nan_to_num(v)], 2)})


def test_longer_rows_are_cut_with_a_remark_and_other_arrays_refused():
    own = fitted(lists([np.arange(4.0), np.arange(3.0)]))
    longer = lists([np.arange(6.0), np.arange(2.0)])
    encoded = own.to_tensor({"x": longer})
    assert encoded.notes == [
        "'x': 1 of 2 series are longer than the 4 steps of the model, and were cut there"
    ]
    assert [len(v) for v in there_and_back(own, longer).to_pylist()] == [4, 2]
    assert own.to_tensor({"x": np.zeros((2, 3))}).x.shape == (2, 4, 1)
    fixed = fitted(np.random.default_rng(0).random((9, 6)))
    with pytest.raises(InputError, match="have 5 steps, but 6 in training"):
        fixed.to_tensor({"x": np.zeros((2, 5))})
    with pytest.raises(InputError, match="have 3 channels, but 1 in training"):
        fixed.to_tensor({"x": np.zeros((2, 6, 3))})
    cut = fitted(np.random.default_rng(0).random((9, 6)), length=4)
    assert cut.shape == (4, 1)
    assert "9 of 9 series are longer" in cut.to_tensor({"x": np.zeros((9, 6))}).notes[0]


@pytest.mark.parametrize(
    ("rows", "why"),
    [
        ([np.zeros(3), np.zeros((3, 2))], "different channels"),
        ([np.zeros(3), np.zeros((2, 2, 2))], r"row 1 of 'x' holds an array \(2, 2, 2\)"),
        ([np.zeros((3, 2)), 7.0], "row 1 of 'x' holds 7.0, which is no series"),
    ],
)
def test_rows_that_are_no_series_are_named(rows, why):
    with pytest.raises(InputError, match=why):
        read({"x": rows})


def test_options_are_checked_and_columns_of_one_kind_are_told_apart():
    for options, why in (
        ({"scale": "rows"}, "unknown scale 'rows'"),
        ({"length": 0}, "length is 0"),
    ):
        with pytest.raises(InputError, match=why):
            Series(**options)
    table = read({"a": ragged(), "b": ragged(seed=1), "k": list(range(N))})
    with pytest.raises(InputError, match="declared numeric, but it holds series"):
        Schema.fit(table, np.arange(N), {"a": "numeric"})
    with pytest.raises(InputError, match="is to be series, but holds one value a row"):
        Schema.fit(table, np.arange(N), {"k": "series"})
    schema = Schema.fit(table, np.arange(N))
    assert list(schema.fields) == ["a", "b"]
    own = schema.fields["a"]
    assert own == from_json(own.to_json())
    assert own.entries[:2] == ("a[0]", "a[1]")
    assert fitted(np.zeros((3, 2, 2))).entries == ("x[0, 0]", "x[0, 1]", "x[1, 0]", "x[1, 1]")


# --------------------------------------------------------------------------- containers


def frames():
    rows, many = ragged(), ragged(2)
    many_lists = [v.tolist() for v in many]
    return {
        "list": rows,
        "dict": {"x": rows, "y": [v.tolist() for v in many]},
        "pandas": pd.DataFrame({"x": rows, "y": many_lists, "k": np.arange(N) % 7 + 0.5}),
        "polars": pl.DataFrame(
            {"x": [v.tolist() for v in rows], "y": many_lists},
            schema={"x": pl.List(pl.Float32), "y": pl.List(pl.List(pl.Float64))},
        ),
        "pyarrow": pa.table(
            {
                "x": pa.array([v.tolist() for v in rows], pa.large_list(pa.float32())),
                "y": pa.array(
                    [np.rint(v).astype(int).tolist() for v in many],
                    pa.list_(pa.list_(pa.int32(), 2)),
                ),
            }
        ),
    }


@pytest.mark.parametrize("kind", list(frames()))
def test_ragged_rows_come_back_in_their_container_and_a_saved_model_is_the_same(kind, tmp_path):
    X = frames()[kind]
    ae = refold.Autoencoder(2, recipe="dense", epochs=1).fit(X)
    back = ae.reconstruct(X)
    assert type(back) is type(X)
    given, found = read(X).columns, read(back).columns
    for name in given:
        if name != "k":
            lengths = [pa.compute.list_value_length(c[name]).to_pylist() for c in (given, found)]
            assert lengths[0] == lengths[1]
            assert given[name].type == found[name].type
    if kind == "pandas":
        assert isinstance(back["x"][0], np.ndarray)
        assert isinstance(back["y"][0], list)
    ae.save(tmp_path / "m")
    again = refold.load(tmp_path / "m")
    assert again.schema_ == ae.schema_
    assert np.array_equal(again.transform(X), ae.transform(X))
    assert str(again.reconstruct(X)) == str(back)
    whole = read(ae.inverse_transform(ae.transform(X))).columns["x"]
    steps = ae.schema_.fields["x"].steps
    whole = [len(v) for v in (whole if isinstance(whole, np.ndarray) else whole.to_pylist())]
    assert whole == [steps] * N


@pytest.mark.parametrize("dtype", ["float32", "float64", "int16"])
@pytest.mark.parametrize("shape", [(N, 6), (N, 6, 1), (N, 6, 3)])
def test_arrays_keep_shape_and_type(shape, dtype):
    X = np.random.default_rng(0).normal(50, 10, shape).astype(dtype)
    ae = refold.Autoencoder(2, recipe="dense", epochs=1, fields={"ecg": "series"}).fit(X)
    assert ae.schema_.describe() == [f"ecg: series of 6x{np.prod(shape[2:], dtype=int)}"]
    back = ae.reconstruct(X)
    assert (back.shape, back.dtype) == (X.shape, X.dtype)
    assert ae.reconstruct(torch.from_numpy(X)).shape == shape


def test_only_what_can_be_nothing_else_is_taken_for_series():
    r = np.random.default_rng(0)
    table = read(
        {
            "even": [[1.0, 2.0], None, [3.0, 4.0]],
            "odd": [[1.0, 2.0], None, [3.0]],
            "words": [["a"], ["b", "c"], ["d"]],
        }
    )
    assert table.columns["even"].shape == (3, 2)
    assert np.isnan(table.columns["even"][1]).all()
    assert table.columns["odd"].to_pylist() == [[1.0, 2.0], None, [3.0]]
    assert "words" not in table.columns
    kinds = Schema.fit(read({"v": r.normal(size=(9, 4)), "s": ragged()[:9]}), np.arange(9))
    assert [type(f).__name__ for f in kinds.fields.values()] == ["Vector", "Series"]


def test_files_hold_lists_or_say_that_they_cannot(tmp_path):
    column = {"x": lists(ragged())}
    for ending in ("parquet", "feather", "jsonl"):
        path = write(column, tmp_path / f"a.{ending}")
        found = read(path).columns["x"].to_pylist()
        for mine, theirs in zip(found, column["x"].to_pylist(), strict=True):
            np.testing.assert_allclose(mine, theirs)
    for ending in ("csv", "tsv", "npy", "npz"):
        with pytest.raises(InputError, match=r"holds series of different lengths.*write \.parquet"):
            write(column, tmp_path / f"a.{ending}")
    pq.write_table(pa.table({"x": [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]}), tmp_path / "b1.parquet")
    pq.write_table(pa.table({"x": [[1.0], [4.0, 5.0]]}), tmp_path / "b2.parquet")
    both = read(str(tmp_path / "b*.parquet")).columns["x"]
    assert [len(v) for v in both.to_pylist()] == [3, 3, 1, 2]


# --------------------------------------------------------------------------- uses


def test_gaps_inside_are_filled_and_the_ends_stay_where_they_are():
    rows = ragged()
    rows[0][1] = np.nan
    rows[5] = None
    X = {"x": rows, "k": list(np.arange(N) * 0.5 + 1)}
    ae = refold.Autoencoder(2, recipe="dense", epochs=1).fit(X)
    assert missing(read(X).columns["x"]).nonzero()[0].tolist() == [0, 5]
    full = ae.impute(X)["x"]
    assert len(full[0]) == len(rows[0])
    assert np.isfinite(full[0]).all()
    assert np.array_equal(full[0][2:], rows[0][2:])
    assert len(full[5]) == ae.schema_.fields["x"].steps
    assert all(np.array_equal(a, b) for a, b in zip(full[6:], rows[6:], strict=True))
    evidence = Evidence.of(ae, X)
    steps = ae.schema_.fields["x"].steps
    share = (1 + steps) / (N * steps)
    assert gaps_of(evidence).columns[0].share == pytest.approx(share)
    assert {r.row for r in filled_rows(evidence)} == {0, 5}


def test_a_series_can_be_a_target_and_drawn_rows_have_all_steps():
    r = np.random.default_rng(0)
    X = {"k": r.normal(size=N), "l": r.normal(size=N), "x": ragged()}
    ae = refold.Autoencoder(2, recipe="vae", epochs=1, fields={"x": "target"}).fit(X)
    steps = ae.schema_.fields["x"].steps
    found = ae.predict(X)["x"]
    assert {len(v) for v in found} == {steps}
    assert {len(v) for v in ae.sample(4)["x"]} == {steps}
    assert ae.quality_.predicted == () or ae.quality_.predicted[0][0] == "x"


def test_errors_of_steps_are_squared_and_in_deviations():
    rows = ragged(2)
    ae = refold.Autoencoder(2, recipe="dense", epochs=1).fit(rows)
    batch = ae._encode(ae._read(rows))
    errors = step_errors(ae.model_, batch, ae.schema_)
    back, std = ae.reconstruct(rows), np.array(ae.schema_.fields["x"].std)
    for row, mine, found in zip(rows, back, errors, strict=True):
        np.testing.assert_allclose(
            found[: len(row)], ((row - mine) / std) ** 2, rtol=1e-3, atol=1e-5
        )
        assert np.isnan(found[len(row) :]).all()
    other = refold.Autoencoder(1, epochs=1).fit(np.random.default_rng(0).normal(size=(30, 3)))
    with pytest.raises(InputError, match="but this model rebuilds none"):
        step_errors(other.model_, other._encode(other._read(np.zeros((2, 3)))), other.schema_)


def test_rows_of_a_report_are_curves_that_end_where_the_series_do():
    rows = ragged(2)
    ae = refold.Autoencoder(2, recipe="dense", epochs=1).fit(rows)
    views = row_views(Evidence.of(ae, rows), np.arange(4))
    for view in views:
        assert [c.title for c in view.curves] == ["x[·, 0]", "x[·, 1]"]
        assert [line.name for line in view.curves[0].lines] == ["given", "back"]
        for line in view.curves[1].lines:
            assert line.path.count(" ") or line.path.count("L")
    panels = refold.figures.pairs(ae, rows, rows=[0]).panels
    assert len(panels) == 2


# --------------------------------------------------------------------------- windows


@pytest.mark.parametrize("stride", [1, 2, 5])
@pytest.mark.parametrize("channels", [None, 2])
def test_windows_are_slices_and_errors_of_steps_their_means(stride, channels):
    r = np.random.default_rng(0)
    series = r.normal(size=23 if channels is None else (23, channels))
    found = refold.windows(series, 4, stride)
    starts = range(0, 23 - 4 + 1, stride)
    expected = np.stack([series[s : s + 4].reshape(4, -1) for s in starts])
    assert np.array_equal(found, expected)
    assert np.shares_memory(found, series)
    errors = r.random(found.shape)
    errors[1, 2] = np.nan
    merged = refold.per_step(errors, stride, 23)
    for t in range(23):
        covering = [errors[i, t - s] for i, s in enumerate(starts) if s <= t < s + 4]
        covering = [e for e in covering if not np.isnan(e).any()]
        expected = np.mean(covering, 0) if covering else np.full(errors.shape[2], np.nan)
        np.testing.assert_allclose(merged[t], expected)
    flat = refold.per_step(errors[:, :, 0], stride, 23)
    np.testing.assert_array_equal(flat, merged[:, 0])


def test_windows_of_frames_and_what_is_refused():
    frame = pd.DataFrame({"a": np.arange(5), "b": np.arange(5) * 2})
    assert refold.windows(frame, 2).shape == (4, 2, 2)
    assert refold.windows(frame["a"], 5).shape == (1, 5, 1)
    assert refold.per_step(np.zeros((0, 3)), 1, 4).shape == (4,)
    for values, length, stride, why in (
        (np.zeros(3), 4, 1, "has 3 steps, fewer than a window of 4"),
        (np.zeros((3, 2, 2)), 2, 1, r"an array \(3, 2, 2\)"),
        (["a", "b"], 1, 1, "one long series of numbers"),
        (np.zeros(3), 0, 1, "length is 0"),
        (np.zeros(3), 2, 1.5, "stride is 1.5"),
    ):
        with pytest.raises(InputError, match=why):
            refold.windows(values, length, stride)
    with pytest.raises(InputError, match="3 windows of 4 steps, 2 apart, reach 8 steps"):
        refold.per_step(np.zeros((3, 4)), 2, 7)
    with pytest.raises(InputError, match=r"errors have shape \(4,\)"):
        refold.per_step(np.zeros(4), 1, 4)
