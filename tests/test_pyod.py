"""PyOD's manners: what its users' code relies on, with and without PyOD beside it."""

import inspect

import numpy as np
import pandas as pd
import pytest
from scipy.special import erf
from scipy.stats import binom
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import (
    check_no_attributes_set_in_init,
    check_parameters_default_constructible,
)

from refold.errors import InputError
from refold.pyod import Detector

OPTIONS = {"batch_size": 32, "lr": 0.003}


def quick(contamination=0.1, **given):
    return Detector(contamination, recipe="dense", latent=2, epochs=3, options=OPTIONS, **given)


def rows(n, seed=0):
    """Rows near a plane, one in ten of them off it; 1 for those."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, 2)) @ np.random.default_rng(9).normal(size=(2, 6))
    X += 0.1 * rng.normal(size=X.shape)
    y = (np.arange(n) % 10 == 0).astype(int)
    return X + y[:, None] * rng.normal(size=X.shape), y


@pytest.fixture(scope="module")
def fitted():
    X, y = rows(300)
    return quick().fit(X, y)


def test_what_is_learnt_has_pyods_names_shapes_and_meanings(fitted):
    X, y = rows(300)
    scores = fitted.decision_scores_
    assert scores.shape == fitted.labels_.shape == (300,)
    assert fitted.labels_.dtype.kind == "i"
    np.testing.assert_array_equal(scores, fitted.decision_function(X))
    np.testing.assert_array_equal(scores, -fitted.autoencoder_.score_samples(X))
    assert fitted.threshold_ == pytest.approx(np.percentile(scores, 90))
    np.testing.assert_array_equal(fitted.labels_, scores > fitted.threshold_)
    assert fitted.labels_.sum() == 30
    assert roc_auc_score(y, scores) > 0.95
    assert fitted.n_features_in_ == 6


def test_answers_are_those_of_a_plain_reference(fitted):
    X, _ = rows(80, seed=1)
    known, new = fitted.decision_scores_, fitted.decision_function(X)
    labels, confidence = fitted.predict(X, return_confidence=True)
    np.testing.assert_array_equal(labels, (new > fitted.threshold_).astype(int))
    np.testing.assert_array_equal(labels, fitted.predict(X))
    expected = []
    for score, label in zip(new, labels, strict=True):
        share = (1 + sum(known <= score)) / (2 + 300)
        outlier = sum(binom.pmf(k, 300, share) for k in range(271, 301))
        expected.append(outlier if label else 1 - outlier)
    np.testing.assert_allclose(confidence, expected, atol=1e-9)
    np.testing.assert_array_equal(confidence, fitted.predict_confidence(X))

    linear = fitted.predict_proba(X)
    place = np.clip((new - known.min()) / (known.max() - known.min()), 0, 1)
    np.testing.assert_allclose(linear, np.stack([1 - place, place], 1))
    unified, beside = fitted.predict_proba(X, method="unify", return_confidence=True)
    place = np.clip(erf((new - known.mean()) / (known.std() * np.sqrt(2))), 0, 1)
    np.testing.assert_allclose(unified, np.stack([1 - place, place], 1))
    np.testing.assert_array_equal(beside, confidence)


def test_answers_are_those_of_pyods_base_class(fitted):
    base = pytest.importorskip("pyod.models.base")
    X, _ = rows(300)
    new, _ = rows(80, seed=1)

    class Wrapped(base.BaseDetector):
        def __init__(self, contamination=0.1):
            super().__init__(contamination)

        def fit(self, X, y=None):
            self._set_n_classes(y)
            self.decision_scores_ = self.decision_function(X)
            self._process_decision_scores()
            return self

        def decision_function(self, X):
            return fitted.decision_function(X)

    theirs = Wrapped().fit(X)
    assert fitted.threshold_ == theirs.threshold_
    np.testing.assert_array_equal(fitted.labels_, theirs.labels_)
    np.testing.assert_array_equal(fitted.predict(new), theirs.predict(new))
    np.testing.assert_allclose(fitted.predict_confidence(new), theirs.predict_confidence(new))
    for method in ("linear", "unify"):
        np.testing.assert_allclose(
            fitted.predict_proba(new, method), theirs.predict_proba(new, method)
        )
    # Every question that is asked of both is asked with the same words.
    for name in ("fit", "decision_function", "predict", "predict_proba", "predict_confidence"):
        mine, other = (inspect.signature(getattr(c, name)) for c in (Detector, base.BaseDetector))
        assert list(mine.parameters) == list(other.parameters)


def test_it_stands_beside_pyods_detectors_in_pyods_own_code(capsys):
    data = pytest.importorskip("pyod.utils.data")
    utility = pytest.importorskip("pyod.utils.utility")
    knn = pytest.importorskip("pyod.models.knn")
    lscp = pytest.importorskip("pyod.models.lscp")
    X, _ = rows(300)
    new, truth = rows(100, seed=1)
    mine = quick()
    utility.check_detector(mine)
    for detector in (mine, knn.KNN()):
        detector.fit(X)
        data.evaluate_print(type(detector).__name__, truth, detector.decision_function(new))
    assert "Detector ROC:" in capsys.readouterr().out
    both = [d.decision_scores_.reshape(-1, 1) for d in (mine, knn.KNN().fit(X))]
    utility.standardizer(np.concatenate(both, 1))
    joined = lscp.LSCP([quick(), knn.KNN()], random_state=0).fit(X)
    assert roc_auc_score(truth, joined.decision_function(new)) > 0.8


def test_arguments_are_kept_untouched_and_copied():
    fields = {"a": "categorical"}
    one = quick(0.2, fields=fields, random_state=3)
    assert one.fields is fields
    assert one.options is OPTIONS
    copy = clone(one)
    assert copy is not one
    assert copy.get_params() == one.get_params()
    assert one.set_params(contamination=0.3).get_params()["contamination"] == 0.3
    check_parameters_default_constructible("Detector", Detector())
    check_no_attributes_set_in_init("Detector", Detector())
    with pytest.raises(NotFittedError):
        one.predict(np.zeros((3, 6)))


def test_refits_agree_under_a_seed_and_differ_without():
    X, _ = rows(120)
    first = quick(random_state=1).fit(X).decision_scores_
    again = clone(quick(random_state=1)).fit(X).decision_scores_
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, quick(random_state=2).fit(X).decision_scores_)
    assert not np.array_equal(
        quick(random_state=None).fit(X).decision_scores_,
        quick(random_state=None).fit(X).decision_scores_,
    )
    states = [quick(random_state=np.random.RandomState(5)).fit(X) for _ in range(2)]
    np.testing.assert_array_equal(*(s.decision_scores_ for s in states))


def test_frames_with_classes_and_gaps_are_taken():
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(
        {
            "amount": rng.normal(size=200),
            "city": pd.Series(rng.choice(["a", "b", "c"], 200)).astype("category"),
            "when": pd.Timestamp("2024-01-01") + pd.to_timedelta(rng.integers(0, 90, 200), "D"),
        }
    )
    frame.loc[::7, "amount"] = np.nan
    frame.loc[::9, "city"] = None
    found = quick().fit(frame)
    assert found.feature_names_in_.tolist() == ["amount", "city", "when"]
    assert np.isfinite(found.decision_scores_).all()
    assert found.predict(frame.iloc[:5]).shape == (5,)
    # Names that were learnt before are no names of an array.
    assert not hasattr(found.fit(rows(60)[0]), "feature_names_in_")


def test_it_ends_a_pipeline():
    X, _ = rows(100)
    pipe = make_pipeline(StandardScaler(), quick(0.05)).fit(X)
    assert pipe.predict(X).sum() == 5
    assert pipe.decision_function(X).shape == (100,)
    np.testing.assert_array_equal(quick(0.05).fit_predict(X), quick(0.05).fit(X).labels_)


def test_rows_that_are_all_alike_have_answers():
    X = np.ones((60, 3))
    X[:, 0] = np.arange(60) % 2
    found = Detector(recipe="pca", latent=1).fit(X)
    for method in ("linear", "unify"):
        assert np.isfinite(found.predict_proba(X, method)).all()


@pytest.mark.parametrize("share", [0, 0.7, -0.1, 1, float("nan"), "auto", None, True])
def test_a_contamination_that_is_none_is_one_sentence(share):
    with pytest.raises(InputError, match=r"contamination is .*; give the share of outliers") as e:
        quick(share).fit(np.zeros((9, 2)))
    assert "\n" not in str(e.value)


def test_other_bad_input_is_one_sentence(fitted):
    X, _ = rows(40)
    with pytest.raises(InputError, match="unknown method 'linaer'; did you mean 'linear'"):
        fitted.predict_proba(X, "linaer")
    with pytest.raises(InputError, match="give it as random_state"):
        Detector(options={"seed": 3}).fit(X)
    with pytest.raises(InputError, match="give it as latent"):
        Detector(options={"latent": 3}).fit(X)
    with pytest.raises(InputError, match="unknown option of Autoencoder 'hiden'; did you mean"):
        Detector(options={"hiden": (3,)}).fit(X)
    with pytest.raises(ValueError, match="features"):
        fitted.predict(X[:, :4])
