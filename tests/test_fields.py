"""Kinds of data: what they take, what they refuse, and that values come back as they were."""

import datetime as dt
import json

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import torch

import refold
from refold.data.schema import Schema
from refold.data.sources import read
from refold.errors import InputError
from refold.fields import Bounded, Count, Distribution, Image, Numeric, Ordinal, Vector, fields
from refold.fields.base import from_json, kind_of, options_of
from refold.parts import PartSpec
from refold.training.start import balance

N = 120
DRAW = np.random.default_rng(0)
HIDDEN = DRAW.normal(size=N)
GRADES = ("fair", "good", "ideal")


def holed(values, at=(3,)):
    """Values with gaps, as a frame holds them."""
    column = pd.Series(values)
    column = column.astype("Int64") if column.dtype.kind in "iu" else column
    column.iloc[list(at)] = None
    return column


def shares():
    p = np.exp(np.stack([HIDDEN, -HIDDEN, 0 * HIDDEN], 1))
    p /= p.sum(1, keepdims=True)
    p[2], p[5] = np.nan, [0, 1, 0]
    return p


GRADE = pd.Categorical(np.array(GRADES)[np.digitize(HIDDEN, [-0.5, 0.8])], GRADES, ordered=True)
DATA = {
    "count": (holed(DRAW.poisson(np.exp(1 + HIDDEN))), "count"),
    "ordinal": (holed(GRADE), None),
    "bounded": (holed(1 / (1 + np.exp(-HIDDEN))), "bounded(low=0, high=1)"),
    "bounded, learnt ends": (holed(DRAW.integers(1, 11, N)), "bounded"),
    "bounded, fractional logit": (holed(np.tanh(HIDDEN)), "bounded(likelihood='bernoulli')"),
    "bounded, squared error": (holed(np.tanh(HIDDEN)), "bounded(likelihood='mse')"),
    "numeric, laplace": (holed(HIDDEN**3), "numeric(likelihood='laplace')"),
    "numeric, student": (holed(HIDDEN**3), "numeric(likelihood='student(df=3.0)')"),
    "distribution": (shares(), Distribution(3)),
}


def columns(what):
    """The column of interest, and one more so that there is something to learn it from."""
    return {"v": DATA[what][0], "other": HIDDEN + 0.1 * DRAW.normal(size=N)}


def schema_of(data, overrides=None):
    table = read(data)
    return Schema.fit(table, np.arange(len(table)), overrides), table


@pytest.fixture(scope="module", params=DATA)
def case(request):
    kind = DATA[request.param][1]
    wish = {"fields": {"v": kind}} if kind else {}
    data = columns(request.param)
    return refold.Autoencoder(2, epochs=2, **wish).fit(data), data, request.param


def test_a_fitted_model_does_its_work(case):
    ae, data, _ = case
    assert np.isfinite(ae.transform(data)).all()
    assert np.isfinite(ae.score_samples(data)).all()
    assert len(ae.anomalies(data, alpha=0.5)) == N
    assert all(np.isfinite(v) for row in ae.history_ for v in row.values() if v is not None)
    for weights in ae.spec_.weights.values():
        assert all(0.01 < w < 100 for w in weights)


def test_values_come_back_in_their_own_type_and_range(case):
    ae, data, what = case
    back = ae.reconstruct(data)["v"]
    if what == "distribution":
        assert back.dtype == data["v"].dtype
        np.testing.assert_allclose(back.sum(1), 1)
        assert (back >= 0).all()
        return
    assert back.dtype == data["v"].dtype
    assert back.notna().all()
    if what == "ordinal":
        assert tuple(back.cat.categories) == GRADES
        assert back.cat.ordered
    else:
        rounding = 1e-12 if what.startswith("numeric") else 0
        assert back.min() >= data["v"].min() - rounding
        assert back.max() <= data["v"].max() + rounding
    if what == "count":
        assert (back == back.round()).all()


def test_a_saved_model_is_the_same(case, tmp_path):
    ae, data, _ = case
    ae.save(tmp_path / "model")
    again = refold.load(tmp_path / "model")
    assert again.schema_ == ae.schema_
    assert np.array_equal(again.score_samples(data), ae.score_samples(data))
    a, b = again.reconstruct(data)["v"], ae.reconstruct(data)["v"]
    assert np.array_equal(a, b) if isinstance(b, np.ndarray) else a.equals(b)


def test_rows_do_not_see_each_other_and_gaps_have_no_say(case):
    ae, data, what = case
    part = {k: v[10:13] for k, v in data.items()}
    assert np.array_equal(ae.score_samples(part), ae.score_samples(data)[10:13])
    rows = ae.schema_.encode(read(data))[0]
    row = 2 if what == "distribution" else 3
    assert not rows.observed["v"][row].any()
    with torch.inference_mode():
        other = {k: x.clone() for k, x in rows.x.items()}
        other["v"][row] = 0.25
        one = ae.model_(rows).score
        two = ae.model_(type(rows)(other, rows.observed)).score
    assert torch.equal(one, two)


def test_samples_are_of_the_users_kind(case):
    _, data, what = case
    kind = DATA[what][1]
    wish = {"fields": {"v": kind}} if kind else {}
    ae = refold.Autoencoder(2, recipe="vae", epochs=1, **wish).fit(data)
    drawn = ae.sample(20)["v"]
    if what == "distribution":
        np.testing.assert_allclose(drawn.sum(1), 1)
    else:
        assert pd.Series(drawn).notna().all()


def test_options_are_written_and_read_back():
    for given, text in {
        Vector(100): "vector(size=100)",
        Vector(scale="pooled", weight=2.0): "vector(weight=2.0, scale='pooled')",
        Image((28, 20)): "image(size=(28, 20))",
        Distribution(10, target=True): "distribution(target=True, size=10)",
        Distribution(normalise=True): "distribution(normalise=True)",
        Count(): "count",
        Bounded(low=0.0, high=5.0): "bounded(low=0.0, high=5.0)",
        Ordinal(order=("a", "b")): "ordinal(order=('a', 'b'))",
        Numeric(likelihood="student(df=3.0)"): "numeric(likelihood='student(df=3.0)')",
    }.items():
        assert sorted(str(given)) == sorted(text)
        assert fields.build(PartSpec.parse(str(given))) == given
        assert from_json(json.loads(json.dumps(given.to_json()))) == given
        assert hash(given) == hash(fields.build(PartSpec.parse(text)))


@pytest.mark.parametrize("what", DATA)
def test_what_was_learnt_survives_json(what):
    kind = DATA[what][1]
    schema, table = schema_of(columns(what), {"v": kind} if kind else {})
    again = Schema.from_json(json.loads(json.dumps(schema.to_json(), allow_nan=False)))
    assert again == schema
    assert torch.equal(again.encode(table)[0].x["v"], schema.encode(table)[0].x["v"])


def test_what_is_learnt_is_no_option():
    assert "low" in options_of("bounded")
    assert "low" not in options_of("count")
    assert "size" in options_of("image")
    assert "width" not in options_of("image")
    with pytest.raises(InputError, match="unknown option of field kind 'count'"):
        schema_of({"v": [1, 2, 3]}, {"v": "count(fill=3)"})
    for kind in fields:
        assert not {"columns", "missing", "types", "levels", "dtype"} & set(options_of(kind))


# --- sizes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "shape", "says"),
    [
        (Vector(5), (N, 4), r"'v' was declared with rows of 5 numbers, but they have 4.*size=4"),
        ("vector(size=5)", (N, 4), r"rows of 5"),
        (Distribution(5), (N, 4), r"'v' was declared with rows of 5 numbers, but they have 4"),
        (Image((8, 9)), (N, 9, 8), r"images of 8x9, but they are 9x8.*size=\(9, 8\)"),
        ("image(size=(5, 5))", (N, 6, 5, 3), r"images of 5x5, but they are 6x5"),
    ],
)
def test_another_size_than_the_users_is_an_error(field, shape, says):
    with pytest.raises(InputError, match=says):
        schema_of({"v": DRAW.random(shape)}, {"v": field})


def test_a_size_that_fits_changes_nothing():
    for given, shape in (
        (Vector(4), (N, 4)),
        (Image((6, 5)), (N, 6, 5)),
        (Image([6, 5]), (N, 6, 5)),
    ):
        schema, _ = schema_of({"v": DRAW.random(shape)}, {"v": given})
        assert kind_of(schema.fields["v"]) == kind_of(given)
    with pytest.raises(InputError, match=r"size of images is .*height and width"):
        Image((3,))


def test_a_kind_of_scalars_is_not_for_arrays():
    for kind in ("count", "ordinal", "bounded", Numeric()):
        with pytest.raises(
            InputError, match=r"'v' was declared .* holds arrays; declare it one of"
        ):
            schema_of({"v": DRAW.random((N, 4))}, {"v": kind})


# --- numbers -------------------------------------------------------------------------------------


def test_whole_numbers_in_a_floating_type_are_noticed():
    data = {
        "gaps": [1.0, None, 1e6],
        "broken": [1.0, 2.5, 3.0],
        "int": [1, 2, 4],
        "single": np.array([1, 2, 7], np.float32),
        "empty": pd.Series([None, None, None], dtype=float),
    }
    schema, _ = schema_of(data, dict.fromkeys(data, "numeric"))
    own = schema.fields["numeric"]
    assert dict(zip(own.columns, own.whole, strict=True)) == {
        "gaps": True, "broken": False, "int": False, "single": True, "empty": False,
    }  # fmt: skip


def test_models_from_before_still_load():
    values = Numeric(columns=("a",)).fit({"a": pa.chunked_array([[1.0, 2.0]])}).to_json()
    del values["whole"]
    assert from_json(values).whole == ()


# --- counts --------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [-1, -0.5, 2.5])
def test_what_counts_nothing_is_named_with_its_place(value):
    data = {"a": [1, 2, 3], "b": [0, 5.0, value]}
    says = rf"'b' holds {value} in row 2; a count is a whole number from 0 up.*declare.*numeric"
    with pytest.raises(InputError, match=says):
        refold.Autoencoder(1, epochs=1, fields={"a": "count", "b": "count"}).fit(data)
    fitted, _ = schema_of({"a": [1, 2, 3], "b": [0, 5, 1]}, {"a": "count", "b": "count"})
    with pytest.raises(InputError, match=says):
        fitted.encode(read(data))


def test_counts_go_there_and_back_exactly():
    v = np.array([0, 1, 2, 7, 100, 65_535, 1_000_000, 0, 3])
    for values in (v, v.astype(np.uint32), v.astype(np.float32), v.astype(float)):
        schema, table = schema_of({"v": values}, {"v": "count"})
        batch, notes = schema.encode(table)
        assert notes == []
        np.testing.assert_allclose(batch.x["v"][:, 0], np.log1p(v), rtol=1e-6)
        back = schema.decode(batch.x)["v"]
        assert back.type == table.columns["v"].type
        assert back.to_pylist() == v.tolist()


def test_counts_far_beyond_training_are_said_and_infinite_ones_refused():
    schema, _ = schema_of({"v": [0, 1, 9, 4]}, {"v": "count"})
    assert schema.encode(read({"v": [9, 100]}))[1] == []
    notes = schema.encode(read({"v": [9, 1000]}))[1]
    assert notes == ["column 'v': 1 value more than twenty times the largest in training"]
    with pytest.raises(InputError, match="'v' holds infinity in row 1"):
        schema.encode(read({"v": [1.0, np.inf]}))


def test_a_column_without_a_count_has_a_range_of_its_own():
    empty = pa.chunked_array([pa.array([None, None], pa.int64())])
    own = Count(columns=("v",)).fit({"v": empty})
    assert own.bounds == ([0.0], [0.0])
    assert own.to_tensor({"v": empty}).x.tolist() == [[0.0], [0.0]]


def test_counts_are_never_inferred():
    schema, _ = schema_of({"v": DRAW.poisson(20, N)})
    assert kind_of(schema.fields["v"]) == "numeric"


# --- ordered classes -----------------------------------------------------------------------------


def ordered_frame(rows=60):
    values = [GRADES[i % 3] for i in range(rows)]
    return pd.DataFrame({"v": pd.Categorical(values, ["fair", "good", "ideal"], ordered=True)})


SOURCES = {
    "pandas": lambda f: f,
    "pandas series in a dict": lambda f: {"v": f["v"]},
    "arrow": lambda f: pa.Table.from_pandas(f),
    "polars": lambda f: pl.DataFrame({"v": pl.Series(f["v"].tolist(), dtype=pl.Enum(GRADES))}),
}


@pytest.mark.parametrize("source", SOURCES)
def test_an_ordered_type_is_ordinal_with_its_own_order(source):
    data = SOURCES[source](ordered_frame())
    schema, table = schema_of(data)
    own = schema.fields["v"]
    assert isinstance(own, Ordinal)
    assert own.levels == (GRADES,)
    assert schema.describe() == ["1 ordinal: v (fair < good < ideal)"]
    assert schema.encode(table)[0].x["v"][:3, 0].tolist() == [0.0, 0.5, 1.0]


def test_a_file_keeps_the_order(tmp_path):
    ordered_frame().to_parquet(tmp_path / "x.parquet")
    schema, _ = schema_of(str(tmp_path / "x.parquet"))
    assert schema.fields["v"].levels == (GRADES,)


def test_the_users_order_and_the_types_order():
    frame = ordered_frame()
    asked, _ = schema_of(frame, {"v": "ordinal"})
    assert asked.fields["v"].levels == (GRADES,)
    turned, _ = schema_of(frame, {"v": Ordinal(order=("ideal", "good", "fair"))})
    assert turned.fields["v"].levels == (GRADES[::-1],)
    plain, _ = schema_of(frame, {"v": "categorical"})
    assert kind_of(plain.fields["v"]) == "categorical"
    loose = frame["v"].astype(str)
    loose[:] = np.where(loose == "fair", "poor", loose)
    sorted_, _ = schema_of({"v": loose}, {"v": "ordinal"})
    assert sorted_.fields["v"].levels == (("good", "ideal", "poor"),)


def test_unordered_categories_stay_categorical_and_one_value_is_set_aside():
    frame = ordered_frame()
    frame["w"] = frame["v"].cat.as_unordered()
    frame["one"] = pd.Categorical(["a"] * 60, ["a", "b"], ordered=True)
    schema, _ = schema_of(frame)
    assert kind_of(schema.fields["w"]) == "categorical"
    assert list(schema.aside) == ["one"]


def test_columns_of_other_orders_are_fields_of_their_own():
    frame = ordered_frame()
    frame["w"] = pd.Categorical(frame["v"].tolist(), GRADES[::-1], ordered=True)
    frame["u"] = frame["v"]
    schema, table = schema_of(frame)
    assert sorted(f.columns for f in schema.fields.values()) == [("v", "u"), ("w",)]
    back = schema.decode(schema.encode(table)[0].x)
    assert back["w"].to_pylist() == frame["w"].tolist()


def test_levels_of_the_order_that_the_data_lacks_are_kept():
    order = ("worst", *GRADES)
    schema, _ = schema_of(ordered_frame(), {"v": Ordinal(order=order)})
    assert schema.fields["v"].sizes == (4,)
    batch, notes = schema.encode(read({"v": ["worst", "ideal"]}))
    assert batch.x["v"][:, 0].tolist() == [0.0, 1.0]
    assert notes == []


@pytest.mark.parametrize(
    ("order", "says"),
    [
        (("fair", "good"), "order of column 'v' misses 'ideal', which the data holds"),
        (("fair", "good", "ideal", "good"), "names 'good' twice"),
        ("fair good ideal", "name the levels from the lowest to the highest"),
        ((1, 2, 3), r"\(1, 2, 3\) does not suit column 'v', which holds string"),
    ],
)
def test_a_wrong_order_is_a_sentence(order, says):
    with pytest.raises(InputError, match=says):
        schema_of(ordered_frame(), {"v": Ordinal(order=order)})


def test_an_ordered_level_never_seen_is_told_from_a_missing_one():
    schema, _ = schema_of(ordered_frame())
    batch, notes = schema.encode(read({"v": ["good", "new", None]}))
    assert batch.x["v"][:, 0].tolist() == [0.5, -3.0, 0.5]
    assert batch.observed["v"][:, 0].tolist() == [True, True, False]
    assert "never seen in training ('new')" in notes[0]


@pytest.mark.parametrize(
    "levels",
    [
        [3, 1, 2],
        [0.5, 2.0, -1.5],
        [dt.date(2024, 1, d) for d in (9, 2, 5)],
        [dt.datetime(2024, 1, d, 3, 4, 5, 678) for d in (9, 2, 5)],
        [True, False, True],
    ],
)
def test_ordered_levels_of_any_type_survive_json(levels):
    data = {"v": levels * 20}
    order = tuple(dict.fromkeys(levels))
    for kind in (Ordinal(), Ordinal(order=order)):
        schema, table = schema_of(data, {"v": kind})
        again = Schema.from_json(json.loads(json.dumps(schema.to_json())))
        assert again == schema
        batch, notes = again.encode(table)
        assert notes == []
        assert again.decode(batch.x)["v"].to_pylist() == data["v"]
    assert batch.x["v"][0, 0] == 0


def test_the_level_of_an_entry():
    schema, table = schema_of(ordered_frame())
    x = schema.encode(table)[0].x["v"]
    assert schema.fields["v"].index(x)[:3, 0].tolist() == [0, 1, 2]
    assert schema.fields["v"].index(torch.tensor([[-3.0], [0.3]]))[:, 0].tolist() == [-2, 1]


# --- numbers between two ends --------------------------------------------------------------------


def test_a_value_outside_the_ends_is_an_error_in_training_and_clipped_in_use():
    data = {"v": [0.1, 0.5, 1.2]}
    with pytest.raises(InputError, match=r"'v' holds 1\.2, outside its ends 0 and 1; correct"):
        schema_of(data, {"v": "bounded(low=0, high=1)"})
    schema, _ = schema_of({"v": [0.1, 0.5, 0.9]}, {"v": "bounded(low=0, high=1)"})
    batch, notes = schema.encode(read({"v": [0.5, 1.2, -3.0]}))
    np.testing.assert_allclose(batch.x["v"][:, 0], [0.5, 1.0, 0.0])
    assert notes == ["column 'v': 2 values outside 0 to 1 taken as the nearer end"]


def test_ends_that_are_not_given_are_those_of_training():
    schema, _ = schema_of({"v": [2.0, 4.0, 3.0]}, {"v": "bounded"})
    assert (schema.fields["v"].least, schema.fields["v"].most) == ((2.0,), (4.0,))
    half, _ = schema_of({"v": [2.0, 4.0, 3.0]}, {"v": Bounded(low=0)})
    assert (half.fields["v"].least, half.fields["v"].most) == ((0.0,), (4.0,))
    same, table = schema_of({"v": [2.0, 2.0, 2.0]}, {"v": "bounded"})
    batch = same.encode(table)[0]
    assert batch.x["v"][:, 0].tolist() == [0, 0, 0]
    assert same.decode(batch.x)["v"].to_pylist() == [2, 2, 2]


@pytest.mark.parametrize("ends", [(1, 0), (2, 2), (0, float("inf")), (float("nan"), 1)])
def test_ends_that_are_no_interval_are_refused(ends):
    with pytest.raises(InputError, match="which is no interval; give finite ends"):
        Bounded(low=ends[0], high=ends[1])


def test_integers_stay_inside_ends_that_are_none():
    schema, _ = schema_of({"v": [1, 2, 3]}, {"v": Bounded(low=0.5, high=3.4)})
    assert schema.decode({"v": torch.tensor([[-1.0], [0.5], [2.0]])})["v"].to_pylist() == [1, 2, 3]


# --- shares --------------------------------------------------------------------------------------


def test_sums_near_one_are_made_one_and_that_is_said():
    p = np.array([[0.2, 0.8], [0.5, 0.496], [1.0, 0.0]])
    schema, table = schema_of({"v": p}, {"v": "distribution"})
    batch, notes = schema.encode(table)
    torch.testing.assert_close(batch.x["v"].sum(1), torch.ones(3))
    assert len(notes) == 1
    assert "'v': 1 rows sum to one but for up to 0.004" in notes[0]
    single, table = schema_of({"v": shares()[5:].astype(np.float32)}, {"v": "distribution"})
    assert single.encode(table)[1] == []


@pytest.mark.parametrize(
    ("row", "says"),
    [
        (
            [0.5, 0.4],
            r"'v' sums to 0.9 in row 1.*divide every row by its sum, or declare.*normalise",
        ),
        ([1.5, -0.5], r"'v' holds -0.5 in row 1; shares of a distribution are 0 or more"),
        ([0.0, 0.0], r"'v' is zero throughout in row 1, which has no shares"),
        ([np.inf, 0.0], r"'v0' holds infinity in row 1"),
    ],
)
def test_a_row_that_is_no_distribution_is_named(row, says):
    data = {"v": np.array([[0.2, 0.8], row, [0.1, 0.9]])}
    with pytest.raises(InputError, match=says):
        refold.Autoencoder(1, epochs=1, fields={"v": "distribution"}).fit(data)


def test_counts_of_classes_become_shares_where_asked():
    counts = DRAW.integers(1, 20, (N, 4))
    schema, table = schema_of({"v": counts}, {"v": Distribution(normalise=True)})
    batch, notes = schema.encode(table)
    assert notes == []
    np.testing.assert_allclose(batch.x["v"], counts / counts.sum(1, keepdims=True), rtol=1e-6)
    assert schema.decode(batch.x)["v"].dtype == np.float64
    with pytest.raises(InputError, match="sums to"):
        schema_of({"v": counts}, {"v": "distribution"})[0].encode(table)


def test_a_row_with_a_gap_is_missing_as_a_whole():
    schema, table = schema_of({"v": shares()}, {"v": "distribution"})
    batch, _ = schema.encode(table)
    assert schema.fields["v"].missing
    assert batch.observed["v"].all(1).sum() == N - 1
    assert not batch.observed["v"][2].any()
    np.testing.assert_allclose(batch.x["v"][2], schema.fields["v"].fill, rtol=1e-6)
    part = shares()
    part[7, 0] = np.nan
    assert not schema.encode(read({"v": part}))[0].observed["v"][7].any()


def test_rows_of_another_size_are_refused_in_use():
    schema, _ = schema_of({"v": shares()}, {"v": "distribution"})
    with pytest.raises(InputError, match="'v' has 2 numbers a row, but 3 in training"):
        schema.encode(read({"v": shares()[:, :2]}))


def test_describe_says_what_each_field_is():
    data = {"p": shares(), "n": DRAW.poisson(3, N), "b": DRAW.random(N)}
    schema, _ = schema_of(data, {"p": "distribution", "n": "count", "b": "bounded"})
    assert schema.describe() == ["p: distribution of 3", "1 count: n", "1 bounded: b"]


# --- the balance of kinds ------------------------------------------------------------------------


def test_every_kind_has_a_sensible_share_of_the_objective():
    data = {k: v for k, (v, _) in DATA.items()} | {"x": HIDDEN, "flat": np.tile([0.5, 0.5], (N, 1))}
    overrides = {k: kind for k, (_, kind) in DATA.items() if kind} | {"flat": "distribution"}
    schema, table = schema_of(data, overrides)
    rows, _ = schema.encode(table)
    heads = {k: f.head() for k, f in schema.fields.items()}
    for mode in ("balanced", "equal"):
        weights = balance(heads, schema.fields, rows, mode)
        for name, given in weights.items():
            assert all(np.isfinite(w) and 0.05 < w <= 20.001 for w in given), name


def test_blocks_of_zeros_and_ones_are_coins():
    r = np.random.default_rng(0)
    x = r.normal(size=(300, 6))
    facts = x[:, :3] > 0
    for given, options in (
        (facts, {}),
        (facts.astype(int), {"facts": Vector(3, scale="unit", target=True)}),
    ):
        rows = {"x": x, "facts": given}
        ae = refold.Autoencoder(4, fields={"facts": "target"} | options, epochs=30).fit(rows)
        assert ae.spec_.likelihoods["facts"].name == "bernoulli"
        answer = ae.predict({"x": x}, "facts")["facts"]
        assert answer.dtype == given.dtype
        assert (answer == given).mean() > 0.9
        again = refold.Autoencoder(2, epochs=1).fit({"facts": given, "x": x})
        assert np.isfinite(again.score_samples(rows)).all()
    with pytest.raises(InputError, match="scale='unit', but holds values from"):
        refold.Autoencoder(2, fields={"x": Vector(scale="unit")}).fit({"x": x})
    with pytest.raises(InputError, match="add scale='unit'"):
        refold.Autoencoder(2, fields={"x": "vector(likelihood='bernoulli')"}).fit({"x": x})


def test_times_count_in_the_unit_of_training():
    column = pa.chunked_array([pa.array([dt.datetime(2024, 1, d) for d in range(1, 21)])])
    own = Numeric(columns=("t",)).fit({"t": column.cast(pa.timestamp("us"))})
    there = own.to_tensor({"t": column.cast(pa.timestamp("us"))}).x
    assert torch.equal(own.to_tensor({"t": column.cast(pa.timestamp("ns"))}).x, there)
    assert torch.equal(own.to_tensor({"t": column.cast(pa.date32())}).x, there)
