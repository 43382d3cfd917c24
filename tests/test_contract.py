"""What every recipe promises on every kind of data. A new recipe or part needs no new test here."""

import numpy as np
import pandas as pd
import pytest
import torch

import refold
from refold.recipe import RECIPES, get
from refold.types import Batch

ROWS = 60


def vectors():
    r = np.random.default_rng(0)
    return r.normal(size=(ROWS, 3)) @ r.normal(size=(3, 7)) + 0.1 * r.normal(size=(ROWS, 7))


def images():
    return (np.random.default_rng(0).random((ROWS, 9, 7)) * 255).astype(np.uint8)


def tables():
    r = np.random.default_rng(0)
    frame = pd.DataFrame(
        {
            "age": r.integers(18, 90, ROWS),
            "pay": r.lognormal(3, 1, ROWS),
            "sex": r.choice(["f", "m"], ROWS),
            "town": r.choice(["a", "b", "c"], ROWS),
        }
    )
    frame.loc[3, "pay"] = np.nan
    frame.loc[5, "town"] = None
    frame.loc[7] = None
    return frame


def series():
    r = np.random.default_rng(0)
    steps = np.arange(10) + r.uniform(0, 6, (ROWS, 1))
    return np.stack([np.sin(steps), r.normal(size=(ROWS, 10))], 2)


def texts():
    r = np.random.default_rng(0)
    words = ["ab", "cad", "dab", "bacd", "da"]
    rows = [" ".join(r.choice(words, r.integers(1, 4))) for _ in range(ROWS)]
    return pd.DataFrame({"said": [None if i == 5 else row for i, row in enumerate(rows)]})


DATA = {"vector": vectors, "image": images, "table": tables, "series": series, "text": texts}
FIELDS = {"series": {"x": "series"}, "text": {"said": "text(tokens='characters')"}}
FRAMES = ("table", "text")


def fitted(recipe, data, **options):
    given = {"fields": FIELDS.get(data), "epochs": 2, **options}
    return refold.Autoencoder(recipe=recipe, **given).fit(DATA[data]())


KIND = {"vector": "vector", "image": "image", "table": "numeric"}
IN_STEPS = ("recurrent", "transformer", "masked", "dense", "vae")  # others treat steps as numbers
UNSUITED = [("vampprior", "table")]  # classes have no gradient for inputs to be learnt by
CASES = [
    (r, d)
    for r in RECIPES
    for d in KIND
    if KIND[d] in (get(r).only or KIND.values()) and (r, d) not in UNSUITED
] + [(r, d) for r in IN_STEPS for d in FIELDS]


@pytest.fixture(scope="module", params=CASES, ids=str)
def case(request):
    recipe, data = request.param
    return fitted(recipe, data), DATA[data](), recipe, data


def parameters(ae):
    return torch.cat([p.flatten() for p in ae.model_.parameters()])


@pytest.fixture
def folding(case):
    """A case whose codes are all that its decoder needs."""
    if case[0].model_.skipping:
        pytest.skip("the decoder sees more than the code")
    return case


def same(a, b):
    return a.equals(b) if isinstance(a, pd.DataFrame) else np.array_equal(a, b)


def test_shapes_and_finite_values(folding):
    ae, X, _, _ = folding
    z = ae.transform(X)
    assert z.shape == (ROWS, ae.spec_.size)
    assert z.dtype == np.float32
    assert np.isfinite(z).all()
    assert np.isfinite(ae.score_samples(X)).all()


def test_what_comes_back_is_like_what_went_in(case):
    ae, X, _, data = case
    found = [ae.reconstruct(X)]
    if not ae.model_.skipping:
        found.append(ae.inverse_transform(ae.transform(X)))
    for back in found:
        assert type(back) is type(X)
        assert back.shape == X.shape
        if data == "text":
            assert list(back.columns) == list(X.columns)
            assert all(isinstance(said, str) for said in back["said"])
        elif data == "table":
            assert list(back.columns) == list(X.columns)
            assert not back.isna().any().any()
            assert set(back["town"]) <= {"a", "b", "c"}
        else:
            assert back.dtype == X.dtype


def test_decoding_a_code_is_the_reconstruction(folding):
    ae, X, _, data = folding
    a, b = ae.reconstruct(X), ae.inverse_transform(ae.transform(X))
    if data in FRAMES:
        pd.testing.assert_frame_equal(a.astype(b.dtypes), b)
    else:
        np.testing.assert_allclose(a, b, atol=1 if data == "image" else 1e-4)


def test_training_and_scoring_are_one_computation(case, monkeypatch):
    ae, X, _, _ = case
    monkeypatch.setattr(ae.model_, "penalties", ())  # which are no part of scores
    rows = ae._encode(ae._read(X))
    with torch.inference_mode():
        output = ae.model_(rows)
        whole = output.score.mean() + sum(output.code.aux.values())
        torch.testing.assert_close(output.loss, whole)
        torch.testing.assert_close(sum(output.nll.values()), torch.cat(
            list(output.cells.values()), 1).sum(1))  # fmt: skip


def test_every_parameter_learns(case):
    ae, X, _, _ = case
    rows = ae._encode(ae._read(X))
    ae.model_.train()
    ae.model_.zero_grad()
    ae.model_(rows).loss.backward()
    ae.model_.eval()
    for name, p in ae.model_.named_parameters():
        assert p.grad is not None, name
        assert torch.isfinite(p.grad).all(), name


def test_rows_do_not_see_each_other(case):
    ae, X, _, data = case
    part = X.iloc[10:13] if data in FRAMES else X[10:13]
    if not ae.model_.skipping:
        assert np.array_equal(ae.transform(part), ae.transform(X)[10:13])
    assert np.array_equal(ae.score_samples(part), ae.score_samples(X)[10:13])


def test_a_missing_entry_has_no_say(case):
    ae, X, _, _ = case
    rows = ae._encode(ae._read(X))
    x, observed = dict(rows.x), dict(rows.observed)
    for name, value in rows.x.items():
        seen = torch.rand(ROWS, value[0].numel(), generator=torch.manual_seed(0)) > 0.3
        observed[name] = seen if rows.observed[name] is None else seen & rows.observed[name]
        absent = ~observed[name].view_as(value)
        x[name] = value.masked_fill(absent, 0 if value.is_floating_point() else -1)
    moved = {k: torch.where(observed[k].view_as(v), v, torch.full_like(v, 1)) for k, v in x.items()}
    with torch.inference_mode():
        one = ae.model_(Batch(x, observed))
        two = ae.model_(Batch(x, observed), Batch(moved, observed))
        torch.testing.assert_close(one.score, two.score, rtol=0, atol=0)


def test_the_same_seed_gives_the_same_model_and_another_another(case):
    ae, _, recipe, data = case
    assert torch.equal(parameters(ae), parameters(fitted(recipe, data)))
    assert not torch.equal(parameters(ae), parameters(fitted(recipe, data, seed=1)))


def test_fitting_leaves_the_global_generators_alone(case):
    _, _, recipe, data = case
    torch.manual_seed(5)
    np.random.seed(5)
    fitted(recipe, data)
    drawn = torch.rand(1), np.random.rand(1)
    torch.manual_seed(5)
    np.random.seed(5)
    assert (drawn[0], drawn[1]) == (torch.rand(1), np.random.rand(1))


def test_a_saved_model_is_the_same_model(case, tmp_path):
    ae, X, _, _ = case
    ae.save(tmp_path / "model")
    again = refold.load(tmp_path / "model")
    if not ae.model_.skipping:
        assert np.array_equal(again.transform(X), ae.transform(X))
    assert np.array_equal(again.score_samples(X), ae.score_samples(X))
    assert same(again.reconstruct(X), ae.reconstruct(X))
    judged, before = again.judge(X), ae.judge(X)
    assert all(np.array_equal(judged[k], before[k]) for k in before)
    assert str(again.get_params()) == str(ae.get_params())
    assert again.history_ == ae.history_
    again.save(tmp_path / "again")
    for name in ("config.json", "model.safetensors", "history.csv", "calibration.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (
            tmp_path / "model" / name
        ).read_bytes(), name


def test_sampling_or_an_error_that_names_who_can(case):
    ae, X, _, _ = case
    if not ae.model_.latent.generative:
        with pytest.raises(
            refold.InputError, match=r"cannot sample.*gaussian|be sampled.*(skips|every layer)"
        ):
            ae.sample(3)
        return
    drawn = ae.sample(5)
    assert type(drawn) is type(X)
    assert len(drawn) == 5
    assert same(drawn, ae.sample(5))
    assert not same(drawn, ae.sample(5, seed=9))


def test_the_judgement_of_rows(case):
    ae, X, _, _ = case
    judged = ae.anomalies(X)
    assert list(judged.columns) == ["score", "p_value", "is_anomaly", "cause"]
    assert len(judged) == ROWS
    assert ((judged["p_value"] > 0) & (judged["p_value"] <= 1)).all()
    assert set(judged["cause"]) <= set(ae.schema_.entries())
    added = np.concatenate([v.reshape(ROWS, -1) for v in ae.contributions(X).values()], 1)
    names = [e for k in ae.contributions(X) for e in ae.schema_.fields[k].entries]
    assert list(judged["cause"]) == [names[i] for i in added.argmax(1)]


@pytest.mark.parametrize("recipe", [r for r in RECIPES if get(r).only])
def test_a_recipe_for_other_kinds_of_data_says_so(recipe):
    with pytest.raises(refold.InputError, match=f"'{recipe}' is for fields of kind .*, but the"):
        fitted(recipe, "table")


@pytest.mark.parametrize("use", ["transform", "inverse_transform", "sample"])
def test_a_code_that_is_not_the_whole_of_a_row_is_refused(use):
    ae = fitted("unet", "image")
    given = {"transform": images(), "inverse_transform": np.zeros((2, ae.spec_.size)), "sample": 3}
    with pytest.raises(refold.InputError, match=r"skips.*use a backbone without skips"):
        getattr(ae, use)(given[use])
