"""The scikit-learn face."""

import pickle

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch
from sklearn.base import clone
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks
from torch.utils.data import TensorDataset

import refold
from refold.data.pairs import Pairs
from refold.estimator import Autoencoder, InputWarning
from refold.report import write


@parametrize_with_checks([Autoencoder(epochs=2)])
def test_scikit_learns_own_checks(estimator, check):
    check(estimator)


def data(n=120):
    r = np.random.default_rng(0)
    return r.normal(size=(n, 2)) @ r.normal(size=(2, 6)) + 0.05 * r.normal(size=(n, 6))


def test_clone_pickle_pipeline_and_search():
    X = data()
    y = (X[:, 0] > 0).astype(int)
    latent = refold.latents.TopK(6, k=2)
    ae = Autoencoder(latent=latent, epochs=2, fields={"x": "vector"}).fit(X)
    assert ae.latent is latent
    assert clone(ae).get_params()["epochs"] == 2
    again = pickle.loads(pickle.dumps(ae))
    assert np.array_equal(again.transform(X), ae.transform(X))
    pipe = make_pipeline(StandardScaler(), Autoencoder(latent=2), LogisticRegression())
    assert pipe.fit(X, y).score(X, y) > 0.8
    search = GridSearchCV(Autoencoder(epochs=2), {"latent": [1, 2]}, cv=2).fit(X)
    assert search.best_params_ == {"latent": 2}


def test_what_was_fitted_on_a_file_takes_an_array(tmp_path):
    X = np.random.default_rng(0).normal(size=(200, 5))
    np.save(tmp_path / "x.npy", X)
    ae = Autoencoder(2, epochs=1).fit(tmp_path / "x.npy")
    np.testing.assert_array_equal(ae.transform(X), ae.transform(tmp_path / "x.npy"))
    with pytest.raises(ValueError, match="5 features"):
        ae.transform(X[:, :4])


def test_names_and_output_containers():
    X = pd.DataFrame(data(), columns=list("abcdef"), index=range(7, 127))
    ae = Autoencoder(latent=2, epochs=1).fit(X)
    assert list(ae.feature_names_in_) == list("abcdef")
    assert ae.n_features_in_ == 6
    assert list(ae.get_feature_names_out()) == ["latent0", "latent1"]
    out = ae.set_output(transform="pandas").transform(X)
    assert list(out.columns) == ["latent0", "latent1"]
    assert list(out.index) == list(X.index)
    back = ae.reconstruct(X)
    assert list(back.index) == list(X.index)
    assert isinstance(ae.reconstruct(pl.from_pandas(X)), pl.DataFrame)
    assert isinstance(ae.anomalies(pl.from_pandas(X)), pl.DataFrame)


def test_a_code_decodes_to_the_same_row_whatever_comes_with_it():
    X = data(5000)
    ae = Autoencoder(latent=2, epochs=1).fit(X)
    z = ae.transform(X)
    for n in (1, 63, 64, 65, 1024, 1025):
        assert np.array_equal(ae.transform(X[:n]), z[:n]), n


def test_the_linear_model_is_pca():
    X = data()
    ae = Autoencoder(recipe="pca", latent=2, fields={"x": "vector(scale='pooled')"}).fit(X)
    pca = PCA(2).fit(X)
    np.testing.assert_allclose(
        ae.reconstruct(X), pca.inverse_transform(pca.transform(X)), atol=1e-4
    )


def test_p_values_are_valid_on_new_rows():
    r = np.random.default_rng(0)
    mix = r.normal(size=(3, 8))
    draw = lambda n: r.standard_t(4, size=(n, 3)) @ mix + 0.3 * r.normal(size=(n, 8))  # noqa: E731
    judged = Autoencoder(latent=2, epochs=5).fit(draw(4000)).anomalies(draw(4000))
    for alpha in (0.01, 0.05, 0.1):
        share = (judged["p_value"] <= alpha).mean()
        # Both the new rows and the 400 held-out ones are samples.
        slack = 3.5 * np.sqrt(alpha * (1 - alpha) * (1 / 4000 + 1 / 400))
        assert share < alpha + slack
        assert share > alpha - slack - 1 / 400


def test_the_corrupted_column_is_the_cause():
    X = pd.DataFrame(data(400), columns=list("abcdef"))
    ae = Autoencoder(latent=2, epochs=20).fit(X)
    broken = X.head(60).copy()
    columns = [list("abcdef")[i % 6] for i in range(60)]
    for row, column in enumerate(columns):
        broken.loc[row, column] += 8 * X[column].std()
    judged = ae.anomalies(broken, alpha=0.05)
    assert judged["is_anomaly"].mean() > 0.95
    assert (judged["cause"] == columns).mean() > 0.9
    assert (judged["p_value"] == ae.calibration_.smallest).mean() > 0.95
    with pytest.warns(InputWarning, match="no row can be an anomaly at alpha 0.01: 40 rows"):
        ae.anomalies(broken)
    assert judged["score"].max() < ae.score_samples(X.head(60)).mean()


def test_missing_cells_are_filled_and_the_rest_is_close():
    X = pd.DataFrame(data(400), columns=list("abcdef"))
    holes = X.mask(np.random.default_rng(1).random(X.shape) < 0.1)
    holes.iloc[0] = np.nan
    ae = Autoencoder(latent=2, epochs=60).fit(holes)
    filled = ae.reconstruct(holes)
    assert not filled.isna().any().any()
    hidden = holes.isna().to_numpy()[1:]
    error = (filled - X).to_numpy()[1:][hidden]
    assert np.square(error).mean() < 0.5 * X.to_numpy()[1:][hidden].var()


def test_input_that_had_to_be_handled_is_remarked_on():
    X = pd.DataFrame({"a": np.arange(60.0) ** 1.5, "b": list("xyz") * 20})
    ae = Autoencoder(latent=1, epochs=1).fit(X)
    with pytest.warns(InputWarning, match="never seen in training"):
        ae.transform(X.assign(b="q"))
    with pytest.warns(InputWarning, match="missing in every row: 'b'"):
        ae.transform(X[["a"]])
    with pytest.warns(InputWarning, match="ignored: 'c'"):
        ae.transform(X.assign(c=1))
    with pytest.warns(InputWarning, match="more than ten standard deviations"):
        judged = ae.score_samples(X.assign(a=1e30))
    assert np.isfinite(judged).all()
    shuffled = ae.transform(X[["b", "a"]])
    assert np.array_equal(shuffled, ae.transform(X))


def test_the_code_size_is_chosen_from_the_data_and_said():
    r = np.random.default_rng(0)
    X = r.normal(size=(300, 3)) @ r.normal(size=(3, 20)) + 0.01 * r.normal(size=(300, 20))
    ae = Autoencoder(epochs=1).fit(X)
    assert ae.spec_.size == 3
    assert any("latent size 3: 3 principal components keep" in reason for reason in ae.reasons_)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"latent": 0}, "from 1 to"),
        ({"latent": 2.5}, "expected a whole number"),
        ({"latent": "topk(k=1.5)"}, "k=1.5 does not suit latent 'topk'"),
        ({"latent": "plain(size=2.5)"}, "from 1 to"),
        ({"lr": "fast"}, "expected a number"),
        ({"seed": -1}, "from 0 to"),
        ({"optimizer": "lbfgs"}, "unknown optimizer"),
        ({"fields": {"x": "vector(mean=3)"}}, "unknown option of field kind"),
        ({"latent": "topk(k=9, size=4)"}, r"k must lie in 1\.\.4"),
        ({"recipe": "vea"}, "did you mean 'vae'"),
        ({"precision": "float16"}, "unknown precision"),
        ({"device": "tpu9"}, "cannot be used here"),
        ({"validation": 1.5}, r"a share in \[0, 1\)"),
        ({"epochs": -1}, "0 or more"),
        ({"lr": 0.0}, "above 0"),
        ({"weights": "fair"}, "unknown weights"),
        ({"weights": {"y": 2.0}}, "unknown field in weights"),
        ({"penalties": ["contractiv"]}, "unknown penalty.*contractive"),
        ({"fields": {"z": "numeric"}}, "unknown column 'z'"),
        ({"hidden": (0,)}, "hidden, stage 1: width is 0"),
    ],
)
def test_bad_options_are_sentences(options, message):
    with pytest.raises(refold.InputError, match=message):
        Autoencoder(**{"epochs": 1, **options}).fit(data())


def test_bad_codes_and_counts_are_sentences():
    ae = Autoencoder(recipe="vae", latent=2, epochs=1).fit(data())
    with pytest.raises(refold.InputError, match=r"expected \(n, 2\)"):
        ae.inverse_transform(np.zeros((3, 5)))
    with pytest.raises(refold.InputError, match="1 or more"):
        ae.sample(0)
    with pytest.raises(refold.InputError, match="between 0 and 1"):
        ae.anomalies(data(), alpha=0)


def test_public_names_are_what_they_say_once_everything_is_loaded():
    assert refold.Autoencoder is Autoencoder
    assert list(refold.recipes())[:2] == ["pca", "dense"]
    assert refold.latents.TopK(4).k == 1
    assert set(refold.__all__) <= set(dir(refold))


def test_the_body_and_a_fields_backbone_are_the_users_to_choose():
    ae = Autoencoder(
        latent=3,
        hidden=(16, 8),
        fusion="concat(activation='gelu', norm='layer', dropout=0.1, init='he', mirror=(9,))",
        epochs=2,
    ).fit(data())
    layers = [type(m).__name__ for m in ae.model_.fusion.modules()]
    assert (layers.count("GELU"), layers.count("LayerNorm"), layers.count("Dropout")) == (3, 3, 3)
    up = [m.out_features for m in ae.model_.fusion.up if hasattr(m, "out_features")]
    assert up == [9, 6]
    images = np.random.default_rng(0).random((40, 8, 8))
    conv = Autoencoder(fields={"image": "image(backbone='conv(channels=(4,))')"}, epochs=1)
    assert conv.fit(images).model_.backbones["image"].widths == (4,)


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ("vector(likelihood='categorical')", "cannot predict a field of kind 'vector'"),
        ("vector(likelihood='bernoulli')", "add scale='unit'"),
        ("vector(likelihood='gauss')", "did you mean 'gaussian'"),
        ("vector(weight=-1.0)", "must be above 0"),
        ("vector(backbone='convv')", "did you mean 'conv'"),
    ],
)
def test_what_a_field_cannot_be_is_a_sentence(field, message):
    with pytest.raises(refold.InputError, match=message):
        Autoencoder(fields={"x": field}, epochs=1).fit(data())


def test_a_small_fit_leaves_the_number_of_threads_as_it_was():
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    Autoencoder(latent=2, epochs=1).fit(data())
    assert torch.get_num_threads() == 2
    torch.set_num_threads(before)


def test_a_value_never_seen_makes_its_row_unusual_and_is_the_cause():
    r = np.random.default_rng(0)
    X = pd.DataFrame({"a": r.choice(4, 600), "b": r.choice(list("xyz"), 600),
                      "sex": r.choice(["f", "m"], 600), "c": r.normal(size=600)})  # fmt: skip
    ae = Autoencoder(epochs=20).fit(X)
    for column, value in (("a", 99999), ("b", "QQQ"), ("sex", "robot")):
        with pytest.warns(InputWarning, match="never seen"):
            judged = ae.anomalies(X.assign(**{column: value}).head(50), alpha=0.05)
        assert (judged["cause"] == column).mean() > 0.9
        assert judged["is_anomaly"].mean() > 0.9


def test_pixels_out_of_range_never_look_more_normal():
    X = np.random.default_rng(0).random((300, 6, 6)) ** 2
    ae = Autoencoder(recipe="vae", latent=2, epochs=5).fit(X)
    wild = X[:5].copy()
    wild[:, :, 0] = 20.0
    assert (ae.score_samples(wild) < ae.score_samples(X[:5]) - 100).all()


def test_a_field_may_have_the_name_of_a_cost():
    X = data(300)
    plain = Autoencoder(2, recipe="vae", epochs=3).fit({"x": X})
    for name in ("kl", "loss"):
        named = Autoencoder(2, recipe="vae", epochs=3).fit({name: X})
        assert named.quality_ == plain.quality_
        assert named.run_.best["valid_loss"] == plain.run_.best["valid_loss"]


def test_pca_judges_itself_alike_with_missing_cells():
    X = data(600)
    X[np.random.default_rng(1).random(X.shape) < 0.3] = np.nan
    ae = Autoencoder(2, hidden=(), epochs=0).fit(X)
    assert ae.quality_.kept == pytest.approx(ae.quality_.pca_kept, abs=1e-4)


@pytest.mark.parametrize(
    "options",
    [
        {"corruption": "gaussian(std=1.0)"},
        {"fields": {"x": "vector(likelihood='l1')"}},
        {"fields": {"x": "vector(likelihood='gaussian')"}},
    ],
)
def test_the_closed_form_is_claimed_only_where_it_is_the_optimum(options):
    assert Autoencoder(2, recipe="pca", **options).fit(data()).plan_.steps > 0


def test_no_rows_and_another_tables_rows_are_sentences():
    X = pd.DataFrame(data(), columns=list("abcdef"))
    ae = Autoencoder(2, epochs=1).fit(X)
    with pytest.raises(refold.InputError, match="no rows"):
        ae.anomalies(X.head(0))
    with pytest.raises(refold.InputError, match="none of the columns"):
        ae.transform(X[["a", "b"]].rename(columns=str.upper))


def test_a_model_trained_with_a_network_of_the_users_is_saved_without_it(tmp_path):
    torch.manual_seed(0)
    images = np.random.default_rng(0).random((60, 8, 8)).astype(np.float32)
    network = torch.nn.Conv2d(1, 2, 3)
    ae = refold.Autoencoder(
        3, penalties=(refold.penalties.Perceptual(network=network, weight=10.0),), epochs=2
    ).fit(images)
    assert ae.history_[-1]["valid_perceptual"] > 0
    ae.save(tmp_path / "m")
    again = refold.load(tmp_path / "m")
    assert np.array_equal(again.reconstruct(images), ae.reconstruct(images))
    with pytest.raises(refold.InputError, match="network='Conv2d' does not suit"):
        again.fit(images)


NESTED = {"recipe": "nested", "hidden": (16,), "epochs": 10}


@pytest.mark.parametrize("norm", ["none", "batch", "layer", "group", "weight"])
def test_a_truncated_model_decodes_as_the_whole_one_with_zeros(norm, tmp_path):
    X = np.tanh(data())
    ae = refold.Autoencoder("nested(size=5)", fusion=f"concat(norm='{norm}')", **NESTED).fit(X)
    small = ae.truncate(2)
    z = ae.transform(X)
    assert np.allclose(small.transform(X), z[:, :2], atol=1e-6)
    cut = np.where(np.arange(5) < 2, z, 0)
    assert np.allclose(small.inverse_transform(z[:, :2]), ae.inverse_transform(cut), atol=1e-5)
    kept = {d: k for d, k, _ in ae.quality_.curve}
    assert small.quality_.kept == pytest.approx(kept[2])
    assert ae.quality_.kept == pytest.approx(kept[5], abs=1e-4)
    small.save(tmp_path / "m")
    again = refold.load(tmp_path / "m")
    assert np.array_equal(again.transform(X), small.transform(X))
    write(again, tmp_path / "r.html", X)
    with pytest.raises(refold.InputError, match="holds no rows of its own to show; give data"):
        write(again, tmp_path / "r.html")


def test_a_truncated_model_is_calibrated_on_request():
    X = np.tanh(data())
    ae = refold.Autoencoder("nested(size=5)", **NESTED).fit(X)
    with pytest.warns(InputWarning, match="no row can be an anomaly"):
        assert not ae.truncate(2).anomalies(X)["is_anomaly"].any()
    assert len(ae.truncate(2, X).calibration_.scores) == len(X)


def test_principal_components_can_be_truncated_and_other_codes_cannot():
    X = data()
    whole, part = (refold.Autoencoder(d, recipe="pca").fit(X) for d in (4, 2))
    assert np.allclose(whole.truncate(2).reconstruct(X), part.reconstruct(X), atol=1e-4)
    assert whole.truncate(2).quality_.kept == pytest.approx(part.quality_.kept, abs=1e-4)
    given = ({"recipe": "dense"}, {"recipe": "pca", "epochs": 0}, {"latent": "topk(size=4)"})
    for options in given:
        ae = refold.Autoencoder(**{"latent": 4, "epochs": 1, **options}).fit(X)
        with pytest.raises(refold.InputError, match="in no order"):
            ae.truncate(2)
    with pytest.raises(refold.InputError, match="give 1 to 4"):
        whole.truncate(5)


def test_a_refit_that_fails_leaves_the_old_model_as_it_was():
    X = data()
    ae = refold.Autoencoder(2, epochs=1).fit(X)
    before = ae.transform(X)
    with pytest.raises(refold.InputError):
        ae.set_params(latent=10**9).fit(X[:, :3])
    assert np.array_equal(ae.transform(X), before)


def test_inputs_beside_the_targets_are_what_the_encoder_learns_from():
    clean = data(400)
    shown = -clean
    ae = refold.Autoencoder(2, hidden=(), epochs=60, lr=0.01).fit(clean, inputs=shown)
    error = np.square(ae.reconstruct(shown) - clean).mean() / clean.var()
    assert error < 0.05
    with pytest.raises(refold.InputError, match="inputs has 10 rows and X 400"):
        ae.fit(clean, inputs=shown[:10])


def test_a_torch_dataset_of_pairs_is_fitted():
    X = torch.from_numpy(data()).float()
    pairs = Pairs(TensorDataset(X), input=lambda x: -x, target=lambda x: 2 * x)
    a = refold.Autoencoder(2, epochs=2).fit(pairs)
    b = refold.Autoencoder(2, epochs=2).fit(2 * X.numpy(), inputs=-X.numpy())
    assert np.array_equal(a.transform(X.numpy()), b.transform(X.numpy()))
