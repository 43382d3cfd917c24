"""Few labels: classifiers over a fitted encoder, and the encoder inside other torch models."""

import copy

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.special import softmax
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, cross_val_score

import refold
from refold import inference
from refold.data.sources import read
from refold.errors import InputError
from refold.uses.encoder import encoder_module
from refold.uses.supervise import EncoderClassifier

DIGITS = load_digits()
LABELLED = np.random.default_rng(0).permutation(len(DIGITS.images))[:100]
REST = np.setdiff1d(np.arange(len(DIGITS.images)), LABELLED)


@pytest.fixture(scope="module")
def digits():
    return refold.Autoencoder(16, epochs=12).fit(DIGITS.images / 16)


@pytest.fixture(scope="module")
def people():
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(
        {
            "age": np.where(rng.random(300) < 0.1, np.nan, rng.normal(40, 10, 300)),
            "pay": rng.normal(100, 5, 300),
            "town": rng.choice(["Bern", "Graz", "Ulm"], 300),
            "member": rng.choice(["yes", "no"], 300),
        }
    )
    frame.loc[:5, "town"] = None
    frame.loc[9:12, "member"] = None
    return frame


@pytest.fixture(scope="module")
def people_model(people):
    return refold.Autoencoder(3, epochs=2).fit(people)


def weights(ae):
    return copy.deepcopy(ae.model_.state_dict())


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


# --- the classifier ------------------------------------------------------------------------------


def test_a_hundred_labels_are_enough_for_digits_and_leave_the_encoder_alone(digits):
    before, X, y = weights(digits), DIGITS.images / 16, DIGITS.target
    frozen = EncoderClassifier(digits).fit(X[LABELLED], y[LABELLED])
    tuned = EncoderClassifier(digits, tune=True).fit(X[LABELLED], y[LABELLED])
    scores = [c.score(X[REST], y[REST]) for c in (frozen, tuned)]
    assert scores[0] > 0.8
    assert scores[1] >= scores[0] - 0.005
    assert same(before, weights(digits))
    assert all(p.requires_grad for p in digits.model_.parameters())
    assert not torch.equal(
        tuned.module_.encoder.fusion.down.last.weight, digits.model_.fusion.down.last.weight
    )


@pytest.mark.parametrize("tune", [False, True])
def test_probabilities_are_distributions_over_the_labels_as_given(digits, tune):
    names = np.array([f"digit {i}" for i in range(10)], dtype=object)[DIGITS.target]
    X = DIGITS.images / 16
    found = EncoderClassifier(digits, tune=tune, epochs=2).fit(X[:300], names[:300])
    p = found.predict_proba(X[:70])
    assert p.shape == (70, 10)
    np.testing.assert_allclose(p.sum(1), 1, atol=1e-6)
    assert found.classes_.tolist() == sorted(set(names))
    assert (found.predict(X[:70]) == found.classes_[p.argmax(1)]).all()
    assert (found.predict(X[:70]) == names[:70]).mean() > 0.8
    np.testing.assert_allclose(found.predict_proba(X[:3]), p[:3], atol=1e-6)
    assert found.n_features_in_ == digits.n_features_in_


def test_frozen_is_logistic_regression_on_codes_of_one_scale(digits):
    X, y = DIGITS.images[:200] / 16, DIGITS.target[:200]
    codes = digits.transform(X).astype(float)
    codes = (codes - codes.mean(0)) / codes.std(0).__pow__(2).mean() ** 0.5
    expected = LogisticRegression(C=0.3, max_iter=5000).fit(codes, y).predict_proba(codes)
    found = EncoderClassifier(digits, C=0.3).fit(X, y).predict_proba(X)
    np.testing.assert_allclose(found, expected, atol=1e-3)


@pytest.mark.parametrize("classes", [2, 4])
def test_tuning_starts_at_the_frozen_classifier(digits, classes):
    rows = np.flatnonzero(DIGITS.target < classes)[:90]
    X, y = DIGITS.images[rows] / 16, DIGITS.target[rows]
    frozen = EncoderClassifier(digits).fit(X, y)
    start = EncoderClassifier(digits, tune=True, epochs=0).fit(X, y)
    np.testing.assert_allclose(start.predict_proba(X), frozen.predict_proba(X), atol=1e-5)
    tuned = EncoderClassifier(digits, tune=True, epochs=3).fit(X, y)
    loss = -np.log(frozen.predict_proba(X)[np.arange(len(y)), y]).mean()
    assert tuned.history_[0]["valid_loss"] == pytest.approx(loss, abs=1e-4)
    assert tuned.history_[-1]["valid_loss"] < loss


def test_where_labels_are_enough_some_choose_the_weights(digits):
    X, y = DIGITS.images[:400] / 16, DIGITS.target[:400]
    tuned = EncoderClassifier(digits, tune=True, epochs=4).fit(X, y)
    logits = np.log(tuned.predict_proba(X))
    best = min(r["valid_loss"] for r in tuned.history_)
    # The held-out 60 are among these; the kept weights are those that did best on them.
    assert np.isfinite(logits).all()
    assert best <= tuned.history_[0]["valid_loss"]
    assert tuned.history_[-1]["train_loss"] < tuned.history_[1]["train_loss"]


def test_same_seed_same_classifier_and_the_global_generator_is_left_alone(digits):
    X, y = DIGITS.images[:80] / 16, DIGITS.target[:80]
    state = torch.random.get_rng_state()
    a, b = (
        EncoderClassifier(digits, tune=True, epochs=2, dropout=0.2, seed=s).fit(X, y)
        for s in (3, 3)
    )
    other = EncoderClassifier(digits, tune=True, epochs=2, dropout=0.2, seed=4).fit(X, y)
    assert same(a.module_.state_dict(), b.module_.state_dict())
    assert not same(a.module_.state_dict(), other.module_.state_dict())
    assert torch.equal(state, torch.random.get_rng_state())


def test_scikit_learn_s_tools_keep_the_fitted_encoder(digits):
    X, y = DIGITS.images[:200] / 16, DIGITS.target[:200]
    copied = clone(EncoderClassifier(digits, C=0.5))
    assert copied.encoder is digits
    assert copied.C == 0.5
    assert not hasattr(copied, "classes_")
    assert cross_val_score(EncoderClassifier(digits), X, y, cv=3).min() > 0.7
    search = GridSearchCV(EncoderClassifier(digits), {"C": [1e-6, 1.0]}, cv=2).fit(X, y)
    assert search.best_params_ == {"C": 1.0}


def test_c_is_chosen_by_cross_validation(digits):
    X, y = DIGITS.images[:120] / 16, DIGITS.target[:120]
    rng = np.random.default_rng(0)
    assert EncoderClassifier(digits, C=None).fit(X, rng.permutation(y)).C_ <= 0.1
    assert EncoderClassifier(digits, C=None).fit(X, y).C_ >= 1


def test_tables_with_gaps_and_classes(people_model, people):
    y = (people["pay"] > 100).map({True: "rich", False: "poor"})
    for tune in (False, True):
        found = EncoderClassifier(people_model, tune=tune, epochs=10).fit(people, y)
        assert (found.predict(people) == y).mean() > 0.75


@pytest.mark.parametrize(
    ("y", "message"),
    [
        (None, "y is missing: a classifier needs one label per row"),
        (["a"] * 300, "y has one class"),
        (["a", "b"], "y has 2 labels for 300 rows"),
        (["a"] * 299 + [None], "y is missing in 1 row, first in row 299"),
        ([1.0, np.nan] * 150, "y is missing in 150 rows, first in row 1"),
        (np.linspace(0, 1, 300), "no classes"),
        (["a", 1] * 150, "all of one type"),
        (np.zeros((300, 2)), r"y has shape \(300, 2\)"),
    ],
)
def test_labels_that_cannot_be_used(people_model, people, y, message):
    y = np.array(y, dtype=object) if y is not None and "a" in list(map(str, y)) and 1 in y else y
    with pytest.raises(InputError, match=message):
        EncoderClassifier(people_model).fit(people, y)


def test_options_and_encoders_that_cannot_be_used(people_model, people):
    with pytest.raises(InputError, match="not fitted"):
        EncoderClassifier(refold.Autoencoder()).fit(people, ["a", "b"] * 150)
    with pytest.raises(InputError, match="not fitted"):
        EncoderClassifier("model").fit(people, ["a", "b"] * 150)
    for option, value in (("C", -1), ("dropout", 1.0), ("lr", 0.0), ("epochs", -1)):
        with pytest.raises(InputError, match=option):
            EncoderClassifier(people_model, **{option: value}).fit(people, ["a", "b"] * 150)


# --- the encoder elsewhere -----------------------------------------------------------------------


def test_encoder_is_transform_on_every_kind_of_field(people_model, people, digits):
    for ae, X in ((people_model, people), (digits, DIGITS.images[:200] / 16)):
        batch, _ = ae.schema_.encode(read(X))
        x = {k: v.clone() for k, v in batch.x.items()}
        for name, seen in batch.observed.items():
            if seen is not None and x[name].is_floating_point():
                x[name][~seen.view_as(x[name])] = torch.nan
        with torch.no_grad():
            z = encoder_module(ae)(**x)
        np.testing.assert_allclose(z.numpy(), ae.transform(X), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("recipe", ["dense", "pca", "sparse", "vae", "conv"])
def test_every_recipe_hands_its_encoder_over_without_the_decoder(recipe):
    X = np.random.default_rng(0).random((64, 8, 8)).astype(np.float32)
    ae = refold.Autoencoder(4, recipe=recipe, epochs=1, hidden=None).fit(X)
    ae.model_.zero_grad()
    module = encoder_module(ae)
    z = module(torch.from_numpy(X)[:, None])
    np.testing.assert_allclose(z.detach(), ae.transform(X), atol=1e-6, rtol=1e-5)
    z.square().sum().backward()
    grads = [p.grad for p in module.parameters()]
    assert grads
    assert all(g is not None for g in grads)
    assert sum(p.numel() for p in module.parameters()) < 0.7 * sum(
        p.numel() for p in ae.model_.parameters()
    )
    assert not any("up" in k.split(".") or "decoder" in k for k in module.state_dict())
    assert all(p.grad is None for p in ae.model_.parameters())


def test_encoder_owns_its_weights_and_reloads_them(digits):
    before, x = weights(digits), torch.rand(8, 1, 8, 8)
    model = torch.nn.Sequential(encoder_module(digits), torch.nn.Linear(16, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(x).square().mean().backward()
    optimizer.step()
    assert same(before, weights(digits))
    fresh = encoder_module(digits)
    assert not torch.equal(fresh(x), model[0](x))
    fresh.load_state_dict(model[0].state_dict())
    torch.testing.assert_close(fresh(x), model[0].eval()(x))


def test_encoder_says_its_scales(people_model):
    module, numeric = encoder_module(people_model), people_model.schema_.fields["numeric"]
    assert module.scales["numeric"] == {
        "columns": ("age", "pay"), "mean": numeric.mean, "std": numeric.std
    }  # fmt: skip
    assert "numeric: columns [age, pay], mean [" in repr(module)
    assert module.scales["town"]["levels"] == (("Bern", "Graz", "Ulm"),)


def test_wild_inputs_are_kept_in_range_as_transform_keeps_them(digits):
    wild = np.full((64, 8, 8), 50.0)
    with torch.no_grad():
        z = encoder_module(digits)(torch.full((64, 1, 8, 8), 50.0))
    np.testing.assert_allclose(z, digits.transform(wild), rtol=1e-5, atol=1e-6)
    batch, _ = digits.schema_.encode(read(wild))
    guarded = inference.guard(batch, digits.schema_).x["image"]
    assert float(guarded.max()) == 4.0


def test_fields_are_given_by_name(people_model):
    module = encoder_module(people_model)
    with pytest.raises(InputError, match="expected the fields by name: numeric"):
        module(torch.zeros(2, 2))
    with pytest.raises(InputError, match="given numeric"):
        module(numeric=torch.zeros(2, 2))


def test_softmax_of_the_tuned_logits_is_the_probability(digits):
    X, y = DIGITS.images[:100] / 16, DIGITS.target[:100]
    tuned = EncoderClassifier(digits, tune=True, epochs=1).fit(X, y)
    batch, _ = digits.schema_.encode(read(X))
    with torch.no_grad():
        logits = tuned.module_.logits(batch)
    np.testing.assert_allclose(tuned.predict_proba(X), softmax(logits.double(), 1), atol=1e-5)
