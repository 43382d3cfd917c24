"""Folders of SAELens: what is written means there what it means here, and back."""

import json

import numpy as np
import pytest
import safetensors.numpy

import refold
from refold import InputError, saelens

LATENTS = ("topk(k=4)", "batch_topk(k=4)", "jumprelu(l0=4.0)", "gated", "l1")


def rows(n=400, d=12):
    g = np.random.default_rng(0)
    return (g.normal(size=(n, 5)) @ g.normal(size=(5, d)) * 3 + 7).astype(np.float32)


def fitted(latent, **options):
    ae = refold.Autoencoder(latent, recipe="dictionary", epochs=2, penalties=(), **options)
    return ae.fit(rows())


def forward(config, w, x):
    """What SAELens computes, in NumPy: codes and reconstructions."""
    x = x.astype(np.float64)
    w = {k: v.astype(np.float64) for k, v in w.items()}
    seen = x - w["b_dec"] * config["apply_b_dec_to_input"]
    kind = config["architecture"]
    if kind == "gated":
        gate = seen @ w["W_enc"] + w["b_gate"] > 0
        size = seen @ (w["W_enc"] * np.exp(w["r_mag"])) + w["b_mag"]
        z = gate * np.maximum(size, 0)
        return z, z @ w["W_dec"] + w["b_dec"]
    h = seen @ w["W_enc"] + w["b_enc"]
    norms = np.linalg.norm(w["W_dec"], axis=1) if config.get("rescale_acts_by_decoder_norm") else 1
    h = h * norms
    if kind == "topk":
        least = np.sort(h, axis=1)[:, -config["k"]]
        z = np.maximum(np.where(h >= least[:, None], h, 0), 0)
    elif kind == "jumprelu":
        z = np.maximum(h, 0) * (h > w["threshold"])
    else:
        z = np.maximum(h, 0)
    return z, z / norms @ w["W_dec"] + w["b_dec"]


def contents(folder):
    config = json.loads((folder / "cfg.json").read_text())
    return config, safetensors.numpy.load_file(folder / "sae_weights.safetensors")


def inside(ae, x):
    """Rows within the range of training, where nothing is kept back."""
    return x[(np.abs(x - x.mean(0)) < 2.5 * x.std()).all(1)]


@pytest.mark.parametrize("scale", ["pooled", "standard"])
@pytest.mark.parametrize("latent", LATENTS)
def test_what_is_written_has_the_same_codes_and_reconstructions(latent, scale, tmp_path):
    ae = fitted(latent, fields={"x": f"vector(scale='{scale}')"})
    x = inside(ae, rows())
    config, weights = contents(saelens.write(ae, tmp_path / "sae"))
    z, back = forward(config, weights, x)
    factor = ae.schema_.fields["x"].std[0] if scale == "pooled" else 1.0
    assert config["d_in"] == 12
    assert weights["W_enc"].shape == (12, 96)
    assert len(x) > 100
    assert (z > 0).sum() > len(x) / 2
    np.testing.assert_allclose(z, factor * ae.transform(x), atol=2e-4)
    np.testing.assert_allclose(back, ae.reconstruct(x), atol=1e-3)
    if scale == "pooled" and latent != "l1":
        np.testing.assert_allclose(np.linalg.norm(weights["W_dec"], axis=1), 1.0, atol=1e-5)


@pytest.mark.parametrize("latent", LATENTS)
def test_there_and_back_is_the_same_dictionary(latent, tmp_path):
    ae = fitted(latent)
    again = saelens.read(saelens.write(ae, tmp_path / "sae"))
    x = inside(ae, rows())
    np.testing.assert_allclose(again.reconstruct(x), ae.reconstruct(x), atol=1e-3)
    factor = ae.schema_.fields["x"].std[0]
    np.testing.assert_allclose(again.transform(x), factor * ae.transform(x), atol=2e-4)


def theirs(folder, kind, **options):
    """A folder with random weights, as SAELens would write it."""
    g = np.random.default_rng(1)
    config = {
        "architecture": kind, "d_in": 12, "d_sae": 40, "dtype": "float32",
        "apply_b_dec_to_input": True, "normalize_activations": "none", "metadata": {}, **options,
    }  # fmt: skip
    names = ["b_gate", "b_mag", "r_mag"] if kind == "gated" else ["b_enc"]
    names += ["threshold"] if kind == "jumprelu" else []
    weights = {k: 0.3 * g.normal(size=40) for k in names}
    weights |= {"W_enc": g.normal(size=(12, 40)), "W_dec": g.normal(size=(40, 12))}
    weights["b_dec"] = g.normal(size=12)
    weights = {k: v.astype(np.float32) for k, v in weights.items()}
    folder.mkdir()
    (folder / "cfg.json").write_text(json.dumps(config))
    safetensors.numpy.save_file(weights, folder / "sae_weights.safetensors")
    return config, weights


@pytest.mark.parametrize("at_input", [True, False])
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("standard", {}),
        ("topk", {"k": 5}),
        ("topk", {"k": 5, "rescale_acts_by_decoder_norm": True}),
        ("jumprelu", {}),
        ("gated", {}),
    ],
)
def test_what_they_wrote_is_read(kind, options, at_input, tmp_path):
    config, weights = theirs(tmp_path / "sae", kind, apply_b_dec_to_input=at_input, **options)
    ae = saelens.read(tmp_path / "sae")
    x = np.random.default_rng(2).normal(size=(300, 12)).astype(np.float32) * 100
    z, back = forward(config, weights, x)
    np.testing.assert_allclose(ae.transform(x), z, rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(ae.reconstruct(x), back, rtol=1e-4, atol=1e-2)


def test_a_training_checkpoint_keeps_its_running_threshold(tmp_path):
    _, weights = theirs(tmp_path / "sae", "batchtopk", k=4.4)
    weights["topk_threshold"] = np.array(1.5)
    safetensors.numpy.save_file(weights, tmp_path / "sae" / "sae_weights.safetensors")
    ae = saelens.read(tmp_path / "sae")
    x = np.random.default_rng(2).normal(size=(300, 12)).astype(np.float32)
    h = (x - weights["b_dec"]) @ weights["W_enc"] + weights["b_enc"]
    np.testing.assert_allclose(ae.transform(x), h * (h > 1.5), atol=1e-4)


def test_what_is_read_is_an_estimator_like_others(tmp_path):
    theirs(tmp_path / "sae", "topk", k=5)
    ae = saelens.read(tmp_path / "sae")
    x = np.random.default_rng(2).normal(size=(60, 12)).astype(np.float32)
    judged = ae.judge(x[:10], alpha=0.5)
    assert (judged["p_value"] == 1).all()
    assert not judged["is_anomaly"].any()
    ae.save(tmp_path / "model")
    again = refold.load(tmp_path / "model")
    assert np.array_equal(again.transform(x), ae.transform(x))
    assert again.reasons_ == ae.reasons_
    ae.recalibrate(x)
    assert ae.judge(x[:10])["p_value"].min() < 1
    assert "read from" in ae.reasons_[0]


def test_what_cannot_be_is_said(tmp_path):
    with pytest.raises(InputError, match="no dictionary of SAELens"):
        saelens.read(tmp_path)
    theirs(tmp_path / "a", "transcoder")
    with pytest.raises(InputError, match="unknown architecture"):
        saelens.read(tmp_path / "a")
    theirs(tmp_path / "b", "standard", normalize_activations="layer_norm")
    with pytest.raises(InputError, match="scales each row by itself"):
        saelens.read(tmp_path / "b")
    theirs(tmp_path / "d", "standard", normalize_activations="covariance_whitening")
    with pytest.raises(InputError, match="by 'covariance_whitening', which refold does not know"):
        saelens.read(tmp_path / "d")
    theirs(tmp_path / "e", "standard", reshape_activations="hook_z")
    with pytest.raises(InputError, match=r"by 'hook_z', which refold does not do; flatten"):
        saelens.read(tmp_path / "e")
    (tmp_path / "b" / "cfg.json").write_text("{")
    with pytest.raises(InputError, match="cannot be read"):
        saelens.read(tmp_path / "b")
    with pytest.raises(InputError, match="not fitted, so there is nothing to write"):
        saelens.write(refold.Autoencoder(recipe="dictionary"), tmp_path / "c")
    assert not (tmp_path / "c").exists()
    dense = refold.Autoencoder(2, epochs=1).fit(rows())
    with pytest.raises(InputError, match=r"this is recipe 'dense'.*fit recipe='dictionary'"):
        saelens.write(dense, tmp_path / "c")
    with pytest.raises(InputError, match="no latent like 'Plain'"):
        saelens.write(fitted("plain"), tmp_path / "c")
    with pytest.raises(InputError, match="is not a folder of SAELens"):
        saelens.write(fitted("topk(k=4)"), tmp_path)


@pytest.mark.parametrize("name", ["W_enc", "b_dec"])
@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_weights_that_are_no_numbers_are_refused(name, value, tmp_path):
    _, weights = theirs(tmp_path / "sae", "standard")
    weights[name].flat[5] = value
    safetensors.numpy.save_file(weights, tmp_path / "sae" / "sae_weights.safetensors")
    with pytest.raises(InputError, match=f"its weight '{name}' holds NaN or infinite values"):
        saelens.read(tmp_path / "sae")


def test_what_was_left_open_is_as_saelens_has_it(tmp_path):
    config, weights = theirs(tmp_path / "sae", "topk", k=5)
    x = np.random.default_rng(2).normal(size=(20, 12)).astype(np.float32)
    for changed in ({"normalize_activations": None}, {"reshape_activations": "none"}):
        (tmp_path / "sae" / "cfg.json").write_text(json.dumps(config | changed))
        z = saelens.read(tmp_path / "sae").transform(x)
        np.testing.assert_allclose(z, forward(config, weights, x)[0], rtol=1e-4, atol=1e-3)
