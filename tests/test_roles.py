"""Fields that are inputs, outputs or both: predicting, filling gaps, drawing given some columns."""

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import torch

import refold
from refold.data.corruptions import Hide
from refold.errors import InputError
from refold.types import Batch

N = 400


def rows(n=N, seed=0):
    r = np.random.default_rng(seed)
    x = r.normal(size=(n, 5))
    return {
        "x": x,
        "side": np.where(x[:, 0] + x[:, 1] > 0, "right", "left"),
        "kind": np.array(["a", "b", "c"])[np.digitize(x[:, 2], [-0.5, 0.5])],
        "price": 3.0 * x[:, 3] + 10,
        "month": r.integers(0, 1000, n),
    }


ROLES = {"side": "target", "kind": "target", "price": "target", "month": "given"}


@pytest.fixture(scope="module")
def headed():
    return refold.Autoencoder(6, fields=ROLES, epochs=60).fit(rows())


@pytest.fixture(scope="module")
def table():
    r = np.random.default_rng(1)
    z = r.normal(size=(N, 2))
    frame = pd.DataFrame(
        {
            "a": z[:, 0],
            "b": z[:, 0] * 2 + 1,
            "whole": np.round(z[:, 1] * 20),
            "count": np.round(z[:, 1] * 10).astype(int),
            "side": pd.Categorical(np.where(z[:, 0] > 0, "right", "left")),
            "kind": np.array(["u", "v", "w"])[np.digitize(z[:, 1], [-0.5, 0.5])],
        },
        index=np.arange(N) + 7,
    )
    frame["count"] = frame["count"].astype("Int64")
    for i, name in enumerate(frame):
        frame.loc[frame.index[i::11], name] = pd.NA if name == "count" else None
    return frame


@pytest.fixture(scope="module")
def filler(table):
    options = {"fields": {"a": "numeric", "count": "numeric"}, "seed": 3}
    return refold.Autoencoder(recipe="imputation", epochs=60, **options).fit(table)


# ------------------------------------------------------------------ roles


def test_targets_are_predicted_and_never_seen(headed):
    new = rows(300, seed=5)
    answer = headed.predict(new)
    assert list(answer) == ["side", "kind", "price"]
    assert (answer["side"] == new["side"]).mean() > 0.9
    assert (answer["kind"] == new["kind"]).mean() > 0.85
    assert np.corrcoef(answer["price"], new["price"])[0, 1] > 0.98
    lied = {**new, "side": new["side"][::-1].copy(), "price": new["price"] * 0}
    for name, values in headed.predict(lied).items():
        np.testing.assert_array_equal(values, answer[name])
    np.testing.assert_array_equal(headed.transform(lied), headed.transform(new))
    bare = headed.predict({"x": new["x"], "month": new["month"]})
    np.testing.assert_array_equal(bare["price"], answer["price"])
    assert headed.schema_.targets == ("side", "kind", "price")


def test_absent_targets_are_no_surprise_and_cost_nothing(headed, recwarn):
    new = rows(50)
    bare = {k: v for k, v in new.items() if k not in ROLES or ROLES[k] == "given"}
    whole, part = headed.score_samples(new), headed.score_samples(bare)
    assert not [w for w in recwarn if "missing in every row" in str(w.message)]
    assert (part >= whole).all()
    blank = {**new, "side": np.array([None] * 50), "kind": np.array([None] * 50)}
    blank["price"] = np.full(50, np.nan)
    np.testing.assert_allclose(headed.score_samples(blank), part)


def test_reconstruct_gives_the_inputs_and_sampling_everything(headed):
    new = rows(20)
    back = headed.reconstruct(new)
    assert list(back) == ["x", "month"]
    np.testing.assert_array_equal(back["month"], new["month"])
    decoded = headed.inverse_transform(headed.transform(new))
    assert list(decoded) == ["x", "side", "kind", "price"]


def test_given_columns_matter_to_the_code_but_have_no_cost(headed):
    new = rows(50)
    other = {**new, "month": new["month"][::-1].copy()}
    assert not np.array_equal(headed.transform(other), headed.transform(new))
    assert set(headed.model_.likelihoods) == {"x", "side", "kind", "price"}
    assert not [k for k in headed.history_[-1] if k == "valid_month"]


def test_every_parameter_learns(headed):
    batch = headed.schema_.encode(refold.data.sources.read(rows(64)))[0]
    model = headed.spec_.build(headed.schema_)
    model(batch).loss.backward()
    assert [k for k, p in model.named_parameters() if p.grad is None] == []


def test_probabilities_belong_to_the_predictions(headed):
    new = rows(80, seed=2)
    shares = headed.predict(new, ["side", "kind"], proba=True)
    assert list(shares) == ["side=left", "side=right", "kind=a", "kind=b", "kind=c"]
    np.testing.assert_allclose(shares.iloc[:, 2:].sum(1), 1, atol=1e-6)
    np.testing.assert_allclose(shares.iloc[:, :2].sum(1), 1, atol=1e-6)
    likeliest = np.array(["a", "b", "c"])[shares.iloc[:, 2:].to_numpy().argmax(1)]
    np.testing.assert_array_equal(likeliest, headed.predict(new)["kind"])
    with pytest.raises(InputError, match="'price' holds numbers, which have no probabilities"):
        headed.predict(new, "price", proba=True)


def test_heads_survive_saving(headed, tmp_path):
    headed.save(tmp_path / "m")
    again = refold.load(tmp_path / "m")
    new = rows(30)
    for name, values in again.predict(new).items():
        np.testing.assert_array_equal(values, headed.predict(new)[name])
    assert again.quality_ == headed.quality_
    assert again.schema_ == headed.schema_


def test_quality_names_every_target(headed):
    judged = {name: (kept, guess) for name, kept, guess in headed.quality_.predicted}
    assert list(judged) == ["side", "kind", "price"]
    assert 0.4 < judged["side"][1] < judged["side"][0] <= 1
    assert judged["price"][1] == 0
    assert "price" in headed.quality_.sentence(6)


def test_a_model_of_heads_alone():
    fields = {**ROLES, "x": "given", "month": "ignore"}
    ae = refold.Autoencoder(6, fields=fields, epochs=40).fit(rows())
    assert ae.quality_.kept is None
    assert (ae.predict(rows(200, 9))["side"] == rows(200, 9)["side"]).mean() > 0.9
    with pytest.raises(InputError, match="rebuilds nothing"):
        ae.reconstruct(rows(5))
    assert len(ae.anomalies(rows(5))) == 5


@pytest.mark.parametrize("kind", ["pandas", "polars", "pyarrow"])
def test_predictions_come_in_the_users_container(kind):
    columns = {k: v for k, v in rows().items() if k != "x"}
    columns |= {f"x{i}": rows()["x"][:, i] for i in range(5)}
    make = {"pandas": pd.DataFrame, "polars": pl.DataFrame, "pyarrow": pa.table}[kind]
    ae = refold.Autoencoder(4, fields={"kind": "target"}, epochs=3).fit(make(columns))
    answer = ae.predict(make(columns))
    assert type(answer) is type(make(columns))
    assert len(answer) == N


def test_any_column_can_be_predicted_from_the_others(table, filler):
    left = table.drop(columns="b")
    with_b = filler.predict(table, "b")["b"]
    np.testing.assert_array_equal(with_b, filler.predict(left, "b")["b"])
    with pytest.raises(InputError, match="no column of this model is a target"):
        filler.predict(table)
    with pytest.raises(InputError, match="unknown column 'bb'; did you mean 'b'"):
        filler.predict(table, "bb")


def test_an_array_alone_has_nothing_to_predict():
    assert not hasattr(refold.Autoencoder(2, epochs=1).fit(rows()["x"]), "predict")


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        (dict.fromkeys(rows(), "target"), "every column is a target"),
        (dict.fromkeys(rows(), "given"), "every column is given"),
        ({"kind": "categorical(target=True, given=True)"}, "to be a target, which is never seen"),
        ({"nope": "target"}, "unknown column 'nope'"),
    ],
)
def test_roles_that_cannot_be(fields, said):
    with pytest.raises(InputError, match=said):
        refold.Autoencoder(2, fields=fields, epochs=1).fit(rows())


def test_a_target_that_is_no_target():
    columns = {**rows(), "one": np.ones(N), "name": [f"n{i}" for i in range(N)]}
    for column, why in (("one", "the same in every row"), ("name", "an identifier")):
        with pytest.raises(InputError, match=f"column '{column}' cannot be target: it is {why}"):
            refold.Autoencoder(2, fields={column: "target"}, epochs=1).fit(columns)


def test_an_output_without_data_is_refused():
    columns = {**rows(), "price": np.full(N, np.nan)}
    with pytest.raises(InputError, match="'price' has no value in any row"):
        refold.Autoencoder(2, epochs=1).fit(columns)
    block = {**rows(), "y": np.full((N, 2), np.nan)}
    with pytest.raises(InputError, match="'y0' has no value in any of the 360 training rows"):
        refold.Autoencoder(2, fields={"y": "target"}, epochs=1).fit(block)


def test_lengths_weights_and_names_are_checked():
    with pytest.raises(InputError, match="fields have different lengths: 'x' 400, 'side' 3"):
        refold.Autoencoder(2).fit({"x": rows()["x"], "side": ["a", "b", "a"]})
    with pytest.raises(InputError, match="unknown field in weights 'prize'; did you mean 'price'"):
        refold.Autoencoder(2, weights={"prize": 1.0}).fit(rows())
    with pytest.raises(InputError, match="the weight of 'price' is -1"):
        refold.Autoencoder(2, weights={"price": -1.0}).fit(rows())
    with pytest.raises(InputError, match="two columns are named 'a'"):
        refold.Autoencoder(2).fit(pd.DataFrame(np.ones((9, 2)), columns=["a", "a"]))


def test_weights_by_column_of_a_packed_field():
    frame = pd.DataFrame(rows()["x"], columns=list("abcde"))
    ae = refold.Autoencoder(2, weights={"a": 5.0, "numeric": 2.0}, epochs=1).fit(frame)
    assert ae.spec_.weights["numeric"] == (10.0, 2.0, 2.0, 2.0, 2.0)


# ------------------------------------------------------------------ hiding


def test_hide_keeps_values_and_tells_of_them():
    g = torch.Generator().manual_seed(0)
    batch = Batch({"a": torch.ones(4000, 3), "b": torch.zeros(4000, 2)}, {"a": None, "b": None})
    hidden = Hide(rate=(0.2, 0.6), whole=0.25)(batch, g)
    assert hidden.x is batch.x
    seen = torch.cat([hidden.observed["a"], hidden.observed["b"]], 1)
    whole = seen.all(1).double().mean()
    assert float((~seen).double().mean()) == pytest.approx(0.75 * 0.4, abs=0.01)
    assert float(whole) > 0.25
    known = torch.ones(4000, 3, dtype=torch.bool)
    known[:, 0] = False
    gone = Hide(rate=0.0, fields=1.0)(Batch(batch.x, {"a": known, "b": None}), g)
    either = torch.stack([gone.observed["a"].any(1), gone.observed["b"].any(1)])
    assert (either.sum(0) == 1).all()
    assert 0.4 < float(either[0].double().mean()) < 0.6
    assert not gone.observed["a"][:, 0].any()


def test_hide_leaves_targets_alone_and_has_the_encoder_told(monkeypatch):
    met, call = set(), Hide.__call__

    def watched(part, batch, generator):
        met.add(tuple(batch.x))
        return call(part, batch, generator)

    monkeypatch.setattr(Hide, "__call__", watched)
    ae = refold.Autoencoder(4, fields=ROLES, corruption="hide(rate=0.5)", epochs=1).fit(rows())
    assert met == {("x", "month")}
    told = {k: b.geometry.missing for k, b in ae.model_.backbones.items()}
    assert told["x"]
    x = rows()["x"].copy()
    x[:, 0] = np.nan
    filled = {**rows(), "x": np.where(np.isnan(x), 1e3, x)}
    assert not np.array_equal(ae.transform({**rows(), "x": x}), ae.transform(filled))


@pytest.mark.parametrize("options", [{"rate": (0.5, 0.2)}, {"rate": 2.0}, {"rate": 0.0}])
def test_hide_refuses_what_hides_nothing(options):
    with pytest.raises(InputError, match="rate"):
        Hide(**options)


def test_what_is_hidden_cannot_be_seen():
    ae = refold.Autoencoder(3, corruption="hide", hidden=(16,), epochs=1).fit(rows()["x"])
    model, batch = ae.model_, ae.schema_.encode(refold.data.sources.read(rows()["x"][:9]))[0]
    mask = torch.ones(9, 5, dtype=torch.bool)
    mask[:, 2] = False
    one = model.encode(Batch(batch.x, {"x": mask}))[0].z
    wild = batch.x["x"].clone()
    wild[:, 2] = 77.0
    torch.testing.assert_close(model.encode(Batch({"x": wild}, {"x": mask}))[0].z, one)


# ------------------------------------------------------------------ filling gaps


def test_observed_cells_stay_bit_for_bit(table, filler):
    before = table.copy(deep=True)
    full = filler.impute(table)
    pd.testing.assert_frame_equal(table, before)
    assert full.notna().all().all()
    assert list(full) == list(table)
    assert (full.dtypes == table.dtypes).all()
    assert (full.index == table.index).all()
    for name in table:
        known = table[name].notna()
        assert (full[name][known] == table[name][known]).all()
    gap = table["whole"].isna()
    assert (full["whole"][gap] % 1 == 0).all()
    truth = full["a"] * 2 + 1
    assert np.abs(full["b"] - truth)[table["b"].isna() & table["a"].notna()].mean() < 0.3


def test_filled_by_other_containers_alike(table, filler):
    full = filler.impute(table)
    arrow = pa.Table.from_pandas(table, preserve_index=False)
    np.testing.assert_allclose(filler.impute(arrow)["a"].to_numpy(), full["a"])
    assert filler.impute(arrow).schema.types == arrow.schema.types
    frame = pl.from_arrow(arrow)
    again = filler.impute(frame)
    assert again.schema == frame.schema
    np.testing.assert_allclose(again["b"].to_numpy(), full["b"])


def test_flags_say_what_was_filled(table, filler):
    full = filler.impute(table, flags=True)
    assert list(full)[: len(table.columns)] == list(table)
    for name in table:
        np.testing.assert_array_equal(full[f"{name}_imputed"], table[name].isna())
    whole = table.dropna().head(5)
    assert list(filler.impute(whole, flags=True)) == list(table)


def test_several_fillings_are_draws(table, filler):
    found = filler.impute(table, 4, seed=1)
    again = filler.impute(table, 4, seed=1)
    assert len(found) == 4
    for one, two in zip(found, again, strict=True):
        pd.testing.assert_frame_equal(one, two)
        for name in table:
            known = table[name].notna()
            assert (one[name][known] == table[name][known]).all()
    gap = table["b"].isna()
    assert not np.array_equal(found[0]["b"][gap], found[1]["b"][gap])
    plain = refold.Autoencoder(2, epochs=1).fit(table)
    with pytest.raises(InputError, match="cannot be drawn: its likelihood has no spread"):
        plain.impute(table, 2)
    with pytest.raises(InputError, match="asked for 0 imputations; ask for a whole number"):
        filler.impute(table, 0)


def test_draws_cover_what_is_not_known():
    """Of a value that nothing tells of, draws have the spread of the data itself."""
    r = np.random.default_rng(0)
    x = pd.DataFrame({"a": r.normal(size=1500), "b": 5 * r.normal(size=1500)})
    ae = refold.Autoencoder(recipe="imputation", epochs=30).fit(x)
    holes = x.assign(b=np.nan)
    drawn = np.stack([f["b"] for f in ae.impute(holes, 5)])
    assert drawn.std() == pytest.approx(5.0, rel=0.15)


def test_blocks_images_and_shares_are_filled():
    r = np.random.default_rng(0)
    x = r.normal(size=(N, 1)) @ np.ones((1, 6))
    holes = x.copy()
    holes[::7, 2] = np.nan
    ae = refold.Autoencoder(recipe="imputation", epochs=100).fit(holes)
    full = ae.impute(holes)
    assert type(full) is np.ndarray
    assert (full[~np.isnan(holes)] == holes[~np.isnan(holes)]).all()
    assert np.abs(full - x)[np.isnan(holes)].mean() < 0.3
    both = ae.impute(holes, flags=True)
    assert both.shape == (N, 12)
    image = np.repeat(r.random((60, 1, 1)), 8, 1) * np.ones((1, 8, 8))
    image[0, 3, 3] = np.nan
    filled = refold.Autoencoder(2, recipe="imputation", epochs=5).fit(image).impute(image)
    assert not np.isnan(filled).any()
    shares = r.dirichlet(np.ones(4), size=N)
    holed = shares.copy()
    holed[5] = np.nan
    holed[6, :2] = np.nan
    rows_ = {"x": x, "mix": holed}
    mixed = refold.Autoencoder(2, fields={"mix": "distribution"}, epochs=3).fit(rows_)
    mended = mixed.impute(rows_)["mix"]
    np.testing.assert_allclose(mended.sum(1), 1, atol=1e-6)
    np.testing.assert_array_equal(mended[6, 2:], shares[6, 2:])


def test_gaps_that_stay_are_said(table):
    ae = refold.Autoencoder(2, fields={"kind": "ignore", "a": "given"}, epochs=1).fit(table)
    with pytest.warns(UserWarning, match="gaps stay in columns that the model did not learn: a, k"):
        full = ae.impute(table)
    assert full["kind"].isna().sum() == table["kind"].isna().sum()
    assert full["b"].notna().all()


# ------------------------------------------------------------------ drawing given columns


@pytest.fixture(scope="module")
def pair():
    r = np.random.default_rng(0)
    label = r.integers(0, 3, 900)
    x = np.eye(3)[label] * 4 + r.normal(size=(900, 3)) * 0.3
    data = {"x": x, "label": np.array(["a", "b", "c"])[label]}
    options = {"fusion": "poe", "corruption": "hide(rate=0.0, fields=0.5, whole=0.3)"}
    return refold.Autoencoder(2, recipe="vae", hidden=(32,), epochs=60, **options).fit(data), data


def test_rows_are_drawn_given_a_column(pair):
    ae, _ = pair
    drawn = ae.sample(50, given={"label": "b"})
    assert (drawn["label"] == "b").all()
    assert (drawn["x"].argmax(1) == 1).mean() > 0.9
    assert drawn["x"].std(0).min() > 0.01
    many = ae.sample(20, given={"label": ["a", "c"]})
    assert many["label"].tolist() == ["a"] * 20 + ["c"] * 20
    assert (many["x"].argmax(1) == np.repeat([0, 2], 20)).mean() > 0.9
    np.testing.assert_array_equal(ae.sample(5, 1, given={"label": "a"})["x"],
                                  ae.sample(5, 1, given={"label": "a"})["x"])  # fmt: skip


def test_a_label_is_predicted_from_the_rest_alone(pair):
    ae, data = pair
    answer = ae.predict({"x": data["x"]}, "label")["label"]
    assert (answer == data["label"]).mean() > 0.95


def test_with_nothing_known_the_prior_answers(pair):
    ae, _ = pair
    nothing = {"x": np.full((4, 3), np.nan), "label": np.array([None] * 4, dtype=object)}
    np.testing.assert_allclose(ae.transform(nothing), 0, atol=1e-6)
    plain = ae.reconstruct(nothing)
    for name, values in ae.inverse_transform(np.zeros((4, 2))).items():
        np.testing.assert_array_equal(values, plain[name])


@pytest.mark.parametrize("fusion", ["concat", "mean", "attention", "gated", "sum", "moe", "mopoe"])
def test_every_fusion_takes_rows_with_a_field_missing(fusion, pair):
    _, data = pair
    holed = {"x": data["x"].copy(), "label": data["label"].astype(object)}
    holed["x"][::5] = np.nan
    holed["label"][1::5] = None
    options = {"corruption": "hide(rate=0.0, fields=0.5, whole=0.3)", "epochs": 30}
    ae = refold.Autoencoder(2, recipe="vae", hidden=(32,), fusion=fusion, **options).fit(holed)
    answer = ae.predict({"x": data["x"]}, "label")["label"]
    assert (answer == data["label"]).mean() > 0.8
    nothing = {"x": np.full((1, 3), np.nan), "label": np.array([None], dtype=object)}
    np.testing.assert_allclose(ae.transform(nothing), 0, atol=1e-6)


def test_latents_that_cannot_draw_say_so(headed):
    with pytest.raises(InputError, match="cannot sample"):
        headed.sample(2, given={"side": "left"})


# ------------------------------------------------------------------ shares of the objective


def parts(n=1500):
    r = np.random.default_rng(0)
    z = r.normal(size=(n, 3))
    five = z @ r.normal(size=(3, 5)) + 0.3 * r.normal(size=(n, 5))
    other = np.tanh(z @ r.normal(size=(3, 4))) + 0.1 * r.normal(size=(n, 4))
    return {"five": five, "other": other}, r.normal(size=(n, 500))


def rebuilt_error(data, name="five", cut=1200):
    train = {k: v[:cut] for k, v in data.items()}
    test = {k: v[cut:] for k, v in data.items()}
    ae = refold.Autoencoder(3, epochs=15).fit(train)
    return np.square(ae.reconstruct(test)[name] - test[name]).mean()


def test_a_unit_changes_nothing_for_the_others():
    data, _ = parts()
    large = {**data, "other": data["other"] * 1e6}
    assert rebuilt_error(large) == pytest.approx(rebuilt_error(data), rel=0.01)


def test_a_block_of_noise_leaves_the_others_alone():
    data, noise = parts()
    alone = {"five": data["five"]}
    assert rebuilt_error({**alone, "noise": noise}) < 1.05 * rebuilt_error(alone)


def test_rows_without_targets_are_judged_by_rows_without_targets():
    data = rows(2000, 4)
    fields = {"side": "target", "price": "target", "kind": "ignore", "month": "ignore"}
    ae = refold.Autoencoder(4, fields=fields, epochs=15).fit(data)
    new = rows(2000, 5)
    bare = {"x": new["x"]}
    for given in (new, bare):
        share = ae.anomalies(given, alpha=0.1)["is_anomaly"].mean()
        assert 0.04 < share < 0.17


# ------------------------------------------------------------------ what cannot be


def test_given_values_take_the_columns_own_type(pair):
    ae, _ = pair
    drawn = ae.sample(3, given={"label": ["a", None]})
    assert drawn["label"].dtype == ae.sample(3)["label"].dtype
    table = pd.DataFrame({"n": np.arange(300.0) / 7, "k": np.arange(300) % 3})
    table["m"] = table["n"] * 2 + table["k"]
    options = {"corruption": "hide(rate=0.3)", "fields": {"k": "categorical"}, "epochs": 3}
    vae = refold.Autoencoder(2, recipe="vae", **options).fit(table)
    for given in ({"n": 30, "k": "2"}, {"n": [30, None], "k": [1, None]}):
        drawn = vae.sample(4, given=given)
        assert (drawn.dtypes == table.dtypes).all()
    assert (drawn["n"][4:] % 1 != 0).any()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"lable": "a"}, "unknown column 'lable'; did you mean 'label'"),
        ({"label": "z"}, "1 value never seen in training"),
    ],
)
def test_what_nothing_can_be_drawn_given(given, said, pair):
    with pytest.raises(InputError, match=said):
        pair[0].sample(2, given=given)


def test_targets_condition_nothing():
    ae = refold.Autoencoder(2, recipe="vae", fields={"side": "target"}, epochs=1).fit(rows())
    with pytest.raises(InputError, match="'side' is a target, which the model does not see"):
        ae.sample(2, given={"side": "left"})
    with pytest.raises(InputError, match=r"asked for 2\.5 samples; ask for a whole number"):
        ae.sample(2.5)
    for seed in (-1, 1.5, "x"):
        with pytest.raises(InputError, match=r"seed is .*; give a whole number from 0"):
            ae.sample(2, seed)


def test_a_flag_never_replaces_a_column(table, filler):
    taken = table.assign(a_imputed=1.5)
    with pytest.raises(InputError, match="has a column 'a_imputed', which is the name of a flag"):
        filler.impute(taken, flags=True)


def test_a_column_without_any_value_is_filled(table, filler):
    full = filler.impute(table.assign(kind=np.nan))
    assert set(full["kind"]) <= {"u", "v", "w"}


def test_columns_named_by_numbers():
    frame = pd.DataFrame(np.column_stack([rows()["x"], rows()["price"]]))
    ae = refold.Autoencoder(3, fields={5: "target"}, weights={5: 2.0}, epochs=1).fit(frame)
    assert ae.schema_.targets == ("5",)


def test_several_targets_of_an_array_come_by_name():
    image = np.random.default_rng(0).random((N, 6, 6))
    data = {"image": image, "side": rows()["side"], "price": rows()["price"]}
    fields = {"side": "target", "price": "target"}
    ae = refold.Autoencoder(3, fields=fields, epochs=1).fit(data)
    assert list(ae.predict(image)) == ["side", "price"]


def test_one_row_may_hold_an_array(pair):
    ae, data = pair
    drawn = ae.sample(4, given={"x": data["x"][0]})
    assert drawn["x"].shape == (4, 3)
    assert (drawn["label"] == data["label"][0]).all()
