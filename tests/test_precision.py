"""bfloat16 where it makes no difference to held-out rows."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import refold
from refold.training import fit as loop
from refold.training import precision
from refold.training.plan import Plan
from refold.training.precision import Caution

CPU = torch.device("cpu")


def wide(monkeypatch, n=700, noise=0.3):
    """Rows of a table, on a machine that is said to be fast at bfloat16 for small networks."""
    monkeypatch.setattr(precision, "fast_bfloat16", lambda device: True)
    monkeypatch.setattr(precision, "WIDE", 0)
    rng = np.random.default_rng(0)
    X = rng.normal(size=(n, 4)) @ rng.normal(size=(4, 20))
    return np.tanh(X) + noise * rng.normal(size=X.shape) if noise else X


def test_bfloat16_is_used_where_it_makes_no_difference_and_said(monkeypatch):
    X = wide(monkeypatch)
    formats = []
    plain = loop.choose

    def chosen(*args, bfloat16=False, **options):
        formats.append(bfloat16)
        return plain(*args, bfloat16=bfloat16, **options)

    monkeypatch.setattr(loop, "choose", chosen)
    low = refold.Autoencoder(3, recipe="dense", epochs=8).fit(X)
    full = refold.Autoencoder(3, recipe="dense", epochs=8, precision="float32").fit(X)
    assert formats == [True, False]
    assert any("in bfloat16" in reason for reason in low.reasons_)
    assert low.run_.precision in low.reasons_
    assert not any("bfloat16" in reason for reason in full.reasons_)
    assert not torch.equal(low.model_.fusion.last_bias(), full.model_.fusion.last_bias())
    best = [ae.run_.best["valid_loss"] for ae in (low, full)]
    assert best[0] == pytest.approx(best[1], rel=0.01)
    assert all(p.dtype == torch.float32 for p in low.model_.parameters())


def test_rows_that_can_be_learnt_exactly_are_learnt_in_single_precision(monkeypatch):
    X = wide(monkeypatch, noise=0.0)
    low = refold.Autoencoder(4, recipe="dense", epochs=4).fit(X)
    full = refold.Autoencoder(4, recipe="dense", epochs=4, precision="float32").fit(X)
    assert any(reason.startswith("bfloat16 until step 0") for reason in low.reasons_)
    assert low.run_.best["valid_loss"] == full.run_.best["valid_loss"]


def test_a_run_leaves_bfloat16_in_its_midst(monkeypatch):
    X = wide(monkeypatch)
    ae = refold.Autoencoder(3, recipe="dense", epochs=1).fit(X)
    model, rows = ae.model_, ae._encode(ae._read(X))
    caution = Caution()
    looked = caution.look
    answers = iter([True, True, False])
    monkeypatch.setattr(caution, "look", lambda *figures: looked(*figures) and next(answers))
    formats = []
    plain = loop.choose

    def chosen(*args, **options):
        step = plain(*args, **options)
        settle = step.set_format
        monkeypatch.setattr(
            step,
            "set_format",
            lambda bfloat16: (formats.append(bfloat16), settle(bfloat16=bfloat16)),
        )
        return step

    monkeypatch.setattr(loop, "choose", chosen)
    plan = Plan.choose(len(rows), epochs=2, batch_size=100, patience=100)
    run = loop.fit(model, rows, rows, plan, caution=caution)
    assert formats[:3] == [True, True, False]
    assert run.stopped == "the budget was used"


def test_narrow_networks_and_plain_machines_stay_in_single_precision(monkeypatch):
    monkeypatch.setattr(precision, "fast_bfloat16", lambda device: True)
    model = (
        refold.Autoencoder(2, epochs=1).fit(np.random.default_rng(0).normal(size=(99, 4))).model_
    )
    small, large = Plan.choose(99, batch_size=256), Plan.choose(99, batch_size=10**9)
    assert precision.against(model, small, CPU) == precision.SMALL
    assert precision.against(model, large, CPU) is None
    monkeypatch.setattr(precision, "fast_bfloat16", lambda device: False)
    assert precision.against(model, large, CPU) == "this cpu is no faster in bfloat16"


def said(X, tmp_path=None, **options):
    """The run's own words, and those of them among the reasons."""
    ae = refold.Autoencoder(**{"latent": 2, "epochs": 1, **options}).fit(X)
    if tmp_path is not None:
        ae.save(tmp_path / "model")
        assert refold.load(tmp_path / "model").run_.precision == ae.run_.precision
    return ae.run_.precision, [r for r in ae.reasons_ if r == ae.run_.precision]


def test_every_fit_knows_its_format_and_says_it_where_that_was_asked(monkeypatch, tmp_path):
    X = np.random.default_rng(0).normal(size=(80, 6))
    assert said(X, tmp_path) == (f"single precision: {precision.SMALL}", [])
    for asked, words in (
        ("float32", "single precision: precision='float32'"),
        ("bfloat16", "matrix products of training in bfloat16: precision='bfloat16'"),
    ):
        assert said(X, precision=asked) == (words, [words])
    assert said(X, recipe="pca", epochs=None)[0] == "nothing was trained"
    wide(monkeypatch)
    words, reasons = said(X, recipe="stacked", hidden=(8,), epochs=3)
    assert words == "single precision: layers are trained one by one"
    assert reasons == [words]
    series = {"s": np.random.default_rng(0).normal(size=(60, 8))}
    words, _ = said(series, recipe="recurrent", fields={"s": "series"})
    assert words == "single precision: bfloat16 is not for recurrent layers and attention"


def test_a_dictionary_says_that_bfloat16_has_no_effect(monkeypatch):
    X = np.random.default_rng(0).normal(size=(90, 6))
    options = {"latent": "topk(size=64, k=2)", "recipe": "dictionary"}
    words, reasons = said(X, **options, precision="bfloat16")
    assert words == f"precision='bfloat16' has no effect: {precision.EXACT}"
    assert reasons == [words]
    wide(monkeypatch)
    words, reasons = said(X, **options)
    assert words == f"single precision: {precision.EXACT}"
    assert reasons == [words]
    options["latent"] = "jumprelu(size=64)"
    assert said(X, **options)[0] == "single precision: bfloat16 is not for dictionaries"
    assert said(X, **options, precision="bfloat16")[0].startswith("matrix products of training in")


def test_a_run_that_ends_before_the_first_look_says_so():
    assert Caution().sentence() == "single precision, as where the run began"
