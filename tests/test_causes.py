"""Why rows are unusual: causes, what was seen and expected; and input that goes wrong."""

import warnings

import numpy as np
import pandas as pd
import polars as pl
import pytest

import refold
from refold import Autoencoder
from refold.data.sources import read
from refold.detection.causes import Cause, leading
from refold.detection.judge import learnt
from refold.errors import InputError
from refold.fields import Numeric, Series

MIX = np.random.default_rng(9).normal(size=(3, 12))


def correlated(n, seed=0):
    r = np.random.default_rng(seed)
    return r.normal(size=(n, 3)) @ MIX + 0.1 * r.normal(size=(n, 12))


def people(n, seed=0, gaps=True):
    r = np.random.default_rng(seed)
    town = r.choice(["Bern", "Genf", "Chur"], n)
    level = np.select([town == "Bern", town == "Genf"], [0.0, 50.0], 100.0)
    frame = pd.DataFrame(
        {
            "height": (1700 + level + 5 * r.normal(size=n)).round(),
            "weight": 70 + level + 5 * r.normal(size=n),
            "town": town,
            "member": level > 20,
            "since": pd.Timestamp("2024-01-01") + pd.to_timedelta(level + r.random(n), "D"),
        }
    )
    frame = frame.astype({"height": "int64", "member": object})
    if gaps:
        frame.loc[::9, "weight"] = np.nan
        frame.loc[::7, "town"] = None
    return frame


def quick(X, **options):
    given = {"epochs": 3, "evidence": ("errors", "neighbours"), "contamination": 0, **options}
    return Autoencoder(**given).fit(X)


def table(found):
    return pd.DataFrame(found)


@pytest.fixture
def no_warnings():
    """Let no warning of a library pass; refold's own are for the user."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", refold.InputWarning)
        yield


# ------------------------------------------------------------------ causes


def test_three_corrupted_cells_are_the_first_three_causes():
    X, new = correlated(2000), correlated(200, seed=1)
    ae = Autoencoder(recipe="anomaly", contamination=0).fit(X)
    r = np.random.default_rng(2)
    cells = np.stack([r.permutation(12)[:3] for _ in new])
    sign = r.choice([-1, 1], cells.shape)
    size = r.uniform(3, 5, cells.shape)
    broken = new.copy()
    np.put_along_axis(
        broken, cells, np.take_along_axis(new, cells, 1) + sign * size * X.std(0)[cells], 1
    )
    found = table(ae.explain(broken))
    assert (found.groupby("row").size() == 3).all()
    named = found.groupby("row")["cause"].apply(set)
    true = [{f"x{c}" for c in row} for row in cells]
    assert np.mean([mine == own for mine, own in zip(named, true, strict=True)]) >= 0.8
    # Most of the score is theirs, and what was there before is what is expected.
    assert found.groupby("row")["share"].sum().median() > 0.8
    hit = [c in own for c, own in zip(found["cause"], np.repeat(true, 3), strict=True)]
    at = found["cause"].str[1:].astype(int)
    before, seen = new[found["row"], at][hit], broken[found["row"], at][hit]
    assert np.abs(found["expected"][hit] - before).median() < 0.3 * np.abs(seen - before).mean()
    np.testing.assert_allclose(found["seen"][hit], seen, rtol=1e-4, atol=1e-5)


def test_causes_are_the_largest_contributions_in_order():
    frame = people(200)
    ae = quick(frame)
    new = people(40, seed=1)
    found = table(ae.explain(new, top=4))
    added = ae.contributions(new)
    names = [e for k in ae.model_.rebuilt for e in ae.schema_.fields[k].entries]
    joined = np.concatenate([p.reshape(40, -1) for p in added.values()], 1)
    held = ae.calibration_.parts
    for row, own in found.groupby("row"):
        order = np.argsort(-joined[row], kind="stable")[: len(own)]
        assert own["cause"].tolist() == [names[e] for e in order]
        np.testing.assert_allclose(own["share"], joined[row, order] / joined[row].sum(), rtol=1e-5)
        p = [(1 + (held[:, e] >= joined[row, e]).sum()) / (1 + len(held)) for e in order]
        np.testing.assert_allclose(own["p_value"], p)
    first = found.groupby("row")["cause"].first()
    assert (first.to_numpy() == ae.anomalies(new, alpha=0.2)["cause"].to_numpy()).all()


def test_values_are_told_as_the_user_writes_them():
    frame = people(400)
    ae = quick(frame, epochs=60)
    row = frame[frame.town == "Genf"].head(1).copy()
    for column, value, expected in (
        ("height", 1900, 1750),
        ("weight", -40.0, 120.0),
        ("town", "Chur", "Genf"),
        ("town", "Ulm", "Genf"),  # never seen in training
        ("member", False, "True"),
        ("since", pd.Timestamp("2029-05-06"), "2024-02-2"),
    ):
        broken = row.copy()
        broken[column] = value
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", refold.InputWarning)
            first = table(ae.explain(broken, top=1)).iloc[0]
        assert first["cause"] == column
        if isinstance(expected, str):
            assert first["seen"] == str(value)
            assert first["expected"].startswith(expected)
        else:
            assert first["seen"] == value
            assert abs(first["expected"] - expected) < 15
        assert first["share"] > 0.5


def test_a_missing_cell_was_not_seen_and_comes_last():
    ae = quick(people(200), corruption="hide")
    gone = people(1, seed=1, gaps=False)
    gone["town"], gone["weight"] = None, np.nan
    found = table(ae.explain(gone, top=9))
    assert set(found["cause"][:3]) == {"height", "member", "since"}
    assert found["share"].sum() == pytest.approx(1)
    nothing = table(ae.explain(gone.assign(height=np.nan, member=None, since=pd.NaT), top=9))
    assert nothing["seen"].isna().all()
    assert nothing["expected"].notna().all()
    assert len(nothing) == 5


def test_as_many_causes_as_are_asked_for_or_there_are():
    X = correlated(100)
    ae = quick(X)
    for top, rows in ((1, 1), (5, 5), (12, 12), (500, 12)):
        found = table(ae.explain(X[:2], top=top))
        assert found["row"].tolist() == [0] * rows + [1] * rows
    assert found.groupby("row")["share"].sum().tolist() == pytest.approx([1, 1], rel=1e-4)
    for top in (0, -1, 2.5, "three"):
        with pytest.raises(InputError, match=r"asked for .* causes; ask for a whole number"):
            ae.explain(X, top=top)


def test_frames_come_back_in_the_users_container():
    frame = people(100)
    ae = quick(frame)
    assert isinstance(ae.explain(frame.head(2)), pd.DataFrame)
    other = ae.explain(pl.from_pandas(frame.head(2).astype({"member": bool})))
    assert isinstance(other, pl.DataFrame)
    assert other.columns == ["row", "cause", "seen", "expected", "share", "p_value"]
    columns = {k: frame[k].head(2).to_numpy() for k in frame}
    assert len(ae.explain(columns, top=1)["cause"]) == 2


def test_channels_of_a_series_are_told_by_intervals():
    r = np.random.default_rng(0)
    steps = np.arange(20) + r.uniform(0, 6, (300, 1))
    X = np.stack([np.sin(steps), 5 + np.cos(steps)], 2) + 0.05 * r.normal(size=(300, 20, 2))
    ae = quick(X, fields={"x": "series"}, epochs=20)
    broken = X[:2].copy()
    broken[0, 8:12, 1] += 4
    broken[1, 3, 0] = np.nan
    found = table(ae.explain(broken, top=3))
    first = found.iloc[0]
    assert first["cause"] == "x[8:12, 1]"
    assert first["seen"] == pytest.approx(broken[0, 8:12, 1].mean(), rel=1e-5)
    assert abs(first["expected"] - X[0, 8:12, 1].mean()) < 1
    assert first["share"] > 0.6
    added = ae.contributions(broken)["x"]
    assert added.shape == (2, 20, 2)
    assert added[1, 3, 0] == 0
    total = -ae.score_samples(broken)[0]
    assert first["share"] == pytest.approx(added[0, 8:12, 1].sum() / total, rel=1e-4)
    for cause in found["cause"][found["row"] == 1]:  # a gap parts two causes
        span = cause.partition("[")[2].partition(",")[0].split(":")
        if cause.endswith("0]") and len(span) == 2:
            assert not int(span[0]) <= 3 < int(span[1])


@pytest.mark.parametrize("ragged", [False, True])
def test_a_series_scaled_by_its_window_is_told_at_its_own_level(ragged):
    r = np.random.default_rng(0)
    X = r.uniform(-500, 500, (200, 1)) + np.sin(np.arange(16) + r.uniform(0, 6, (200, 1)))
    rows = [list(map(float, x[: 10 + i % 7])) for i, x in enumerate(X)]
    data = pd.DataFrame({"x": rows}) if ragged else X
    ae = quick(data, fields={"x": "series(scale='window')"})
    broken = X[3:4].copy()
    broken[0, 5] += 5
    shown = pd.DataFrame({"x": [broken[0, : len(rows[3])].tolist()]}) if ragged else broken
    first = table(ae.explain(shown, top=1)).iloc[0]
    assert first["cause"].startswith("x[5") or ragged
    at = first["cause"].partition("[")[2].rstrip("]").split(":")
    span = slice(int(at[0]), int(at[-1]) + (len(at) == 1))
    assert first["seen"] == pytest.approx(broken[0, span].mean(), rel=1e-5)
    assert abs(first["expected"] - X[3].mean()) < 10


@pytest.mark.parametrize("layout", ["grey", "last", "first"])
def test_pixels_are_told_by_place_and_in_their_own_unit(layout):
    r = np.random.default_rng(0)
    X = r.integers(100, 120, (120, 9, 7)).astype(np.uint8)
    if layout != "grey":
        X = np.stack([X, X + 10, X + 20], -1)
    if layout == "first":
        X = np.ascontiguousarray(np.moveaxis(X, -1, 1))
    ae = quick(X, recipe="dense", latent=2)
    broken = X[:1].copy()
    at, name = {
        "grey": ((4, 5), "image[4, 5]"),
        "last": ((4, 5, 2), "image[2, 4, 5]"),
        "first": ((2, 4, 5), "image[2, 4, 5]"),
    }[layout]
    broken[(0, *at)] = 255
    first = table(ae.explain(broken, top=1)).iloc[0]
    assert first["cause"] == name
    assert first["seen"] == 255
    assert 95 < first["expected"] < 145
    heat = next(iter(ae.contributions(broken).values()))
    assert heat[0].reshape(-1, 9, 7).shape == ((1 if layout == "grey" else 3), 9, 7)
    assert np.unravel_index(heat[0].argmax(), heat[0].shape)[-2:] == (4, 5)


def test_leading_joins_steps_beside_one_another_and_nothing_else():
    numbers = Numeric(columns=("a", "b", "c"))
    fields = {"n": numbers}
    assert leading(np.array([1.0, 3.0, 2.0]), fields, 2) == [Cause(1, 2), Cause(2, 3)]
    assert leading(np.array([0.0, 3.0, 0.0]), fields, 3) == [Cause(1, 2)]
    assert leading(np.zeros(3), fields, 2) == [Cause(0, 1)]
    column = {"s": np.random.default_rng(0).normal(size=(9, 6, 2))}
    fields = {"n": numbers, "s": Series(columns=("s",)).fit(column)}
    steps = np.zeros((6, 2))
    steps[1:4, 1] = [1.0, 4.0, 1.0]
    steps[4, 1], steps[2, 0], steps[5, 1] = 0.9, 0.5, 2.0
    added = np.concatenate([[0.1, 0.2, 0.3], steps.ravel()])
    found = leading(added, fields, 9)
    assert found[0] == Cause(3 + 2 * 1 + 1, 3 + 2 * 3 + 2, 2)
    assert found[0].at == slice(6, 11, 2)
    assert found[1] == Cause(3 + 2 * 4 + 1, 3 + 2 * 5 + 2, 2)
    assert found[2:] == [Cause(7, 8, 2), Cause(2, 3), Cause(1, 2), Cause(0, 1)]


def test_targets_have_a_part_where_the_cost_is_the_score():
    frame = people(200, gaps=False)
    ae = quick(frame, evidence=(), fields={"weight": "target"})
    broken = frame.head(1).assign(weight=900.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", refold.InputWarning)
        found = table(ae.explain(broken, top=1))
    assert found["cause"][0] == "weight"
    assert found["expected"][0] < 300
    judged = quick(frame, fields={"weight": "target"})
    other = frame.head(5).assign(weight=frame["weight"].iloc[5])
    np.testing.assert_array_equal(judged.score_samples(frame.head(5)), judged.score_samples(other))


# ------------------------------------------------------------------ input that goes wrong


def answers(ae, X, top=3):
    """Ask everything of a model; every number has to be one."""
    judged = ae.judge(X, alpha=0.5)
    assert np.isfinite(judged["score"]).all()
    assert ((judged["p_value"] > 0) & (judged["p_value"] <= 1)).all()
    found = table(ae.explain(X, top=top))
    assert found["share"].between(0, 1 + 1e-6).all()
    rows = ae.schema_.encode(read(X))[0]
    known = learnt(ae.model_, ae.detector_, rows, ae.schema_).numpy()[found["row"]]
    assert found["p_value"][known].isna().all()  # of rows of the fit nothing is comparable
    assert found["p_value"][~known].between(0, 1).all()
    for part in ae.contributions(X).values():
        assert np.isfinite(part).all()
    return judged, found


def test_rows_that_are_all_alike(no_warnings):
    ae = Autoencoder(recipe="anomaly").fit(np.ones((60, 4)))
    same, _ = answers(ae, np.ones((3, 4)))
    assert (same["p_value"] == 1).all()
    other, found = answers(ae, np.array([[1.0, 1.0, 2.0, 1.0]]))
    assert other["p_value"] == ae.calibration_.smallest
    assert found["cause"][0] == "x2"
    with pytest.raises(InputError, match="no column is left to learn from"):
        Autoencoder(recipe="anomaly").fit(pd.DataFrame({"a": [1.0] * 60, "b": ["x"] * 60}))


def test_a_constant_column(no_warnings):
    X = correlated(200)
    X[:, 5] = 3.0
    ae = Autoencoder(recipe="anomaly", epochs=20).fit(X)
    judged, found = answers(ae, np.stack([X[0] + 0.2 * np.eye(12)[1], X[0] + 9 * np.eye(12)[5]]))
    assert judged["score"].min() > -1e4
    assert found["cause"][3] == "x5"
    frame = pd.DataFrame(X, columns=list("abcdefghijkl"))
    answers(Autoencoder(recipe="anomaly", epochs=2).fit(frame), frame.head(5))


@pytest.mark.parametrize(("rows", "columns"), [(12, 40), (10, 12), (2, 12), (3, 1), (25, 300)])
def test_few_rows_and_many_columns(rows, columns, no_warnings):
    X = np.random.default_rng(0).normal(size=(rows, columns))
    ae = Autoencoder(recipe="anomaly", epochs=2).fit(X)
    answers(ae, X)
    answers(ae, np.random.default_rng(1).normal(size=(7, columns)), top=50)
    assert ae.calibration_.held_out == (rows >= 20)
    for contamination in (0, 0.4):
        answers(Autoencoder(recipe="anomaly", epochs=1, contamination=contamination).fit(X), X)


def test_columns_that_are_missing_or_extra(no_warnings):
    frame = people(120)
    ae = Autoencoder(recipe="anomaly", epochs=2).fit(frame)
    few = frame.head(4)
    for gone in (["town"], ["height", "weight"], ["since", "member", "town"]):
        _, found = answers(ae, few.drop(columns=gone), top=9)
        assert found["seen"][found["cause"].isin(gone)].isna().all()
    whole, _ = answers(ae, few)
    more, _ = answers(ae, few.assign(other=1, shoe="x")[["other", *few.columns[::-1], "shoe"]])
    np.testing.assert_array_equal(whole["score"], more["score"])
    with pytest.warns(refold.InputWarning, match="never seen in training are ignored: 'shoe'"):
        ae.explain(few.assign(shoe="x"))
    with pytest.warns(refold.InputWarning, match="missing in every row: 'town'"):
        quick(frame).explain(few.drop(columns="town"))
    with pytest.raises(ValueError, match="X has 4 features, but Autoencoder is expecting 12"):
        quick(correlated(60)).explain(correlated(3)[:, :4])


@pytest.mark.parametrize("value", [np.inf, -np.inf])
def test_infinite_values_are_one_sentence(value, no_warnings):
    frame = people(80)
    ae = Autoencoder(recipe="anomaly", epochs=1).fit(frame)
    broken = frame.copy()
    broken.loc[3, "weight"] = value
    one = "column 'weight' holds infinity in row 3: .*; replace it or leave the cell empty"
    for ask in (Autoencoder(recipe="anomaly").fit, ae.anomalies, ae.explain, ae.contributions):
        with pytest.raises(InputError, match=one) as e:
            ask(broken)
        assert "\n" not in str(e.value)
    X = correlated(60)
    vector = Autoencoder(recipe="anomaly", epochs=1).fit(X)
    X[2, 1] = value
    for ask in (Autoencoder(recipe="anomaly").fit, vector.anomalies, vector.explain):
        with pytest.raises(ValueError, match="contains infinity"):
            ask(X)


def test_numbers_beyond_all_measure_are_anomalies(no_warnings):
    X = correlated(100)
    ae = Autoencoder(recipe="anomaly", epochs=2).fit(X)
    wild = np.stack([X[0]] * 3)
    wild[0, 1], wild[1, 2], wild[2, 3] = 1e25, -1e300, 1e7
    judged, found = answers(ae, wild, top=1)
    assert (judged["p_value"] == ae.calibration_.smallest).all()
    assert found["cause"].tolist() == ["x1", "x2", "x3"]


def test_no_rows_is_one_sentence():
    ae = quick(correlated(60))
    frame = pd.DataFrame(correlated(60), columns=list("abcdefghijkl"))
    for ask in (ae.anomalies, ae.explain, ae.contributions, ae.recalibrate):
        with pytest.raises(ValueError, match=r"0 sample|no rows"):
            ask(np.zeros((0, 12)))
        with pytest.raises(InputError, match="no rows"):
            getattr(quick(frame), ask.__name__)(frame.head(0))


def test_gaps_that_training_never_had(no_warnings):
    X = correlated(100)
    ae = Autoencoder(recipe="anomaly", epochs=2).fit(X)
    holes = X[:6].copy()
    holes[np.random.default_rng(0).random(holes.shape) < 0.3] = np.nan
    holes[5] = np.nan
    _, found = answers(ae, holes, top=12)
    for row, own in found.groupby("row"):
        seen = own["seen"].notna().sum()
        assert seen <= (~np.isnan(holes[row])).sum()


def test_causes_of_rows_of_the_fit_have_no_p_value():
    r = np.random.default_rng(0)
    X, new = r.normal(size=(200, 4)), r.normal(size=(5, 4))
    ae = Autoencoder(recipe="anomaly", epochs=2).fit(X)
    told = ae.explain(np.concatenate([X[:5], new]), top=2)
    p = np.asarray(told["p_value"])
    known = np.asarray(told["row"]) < 5
    assert np.isnan(p[known]).all()
    added = np.concatenate([v.reshape(5, -1) for v in ae.contributions(new).values()], 1)
    own = ae.calibration_.entry_p_values(added)
    first = added.argmax(1)
    np.testing.assert_allclose(p[~known][::2], own[np.arange(5), first])
