"""Layers one pair at a time, weights from a shallower model, layers held still."""

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

import refold
from refold.backbones.tied import ties
from refold.errors import InputError
from refold.training import pretrain
from refold.training.fit import fit
from refold.training.plan import Plan
from refold.training.pretrain import Outer, fit_layerwise, freeze, phases, start_from, unfreeze


def rows(n=200):
    r = np.random.default_rng(0)
    return np.tanh(r.normal(size=(n, 3)) @ r.normal(size=(3, 12))) + 0.05 * r.normal(size=(n, 12))


def images(n=60):
    return np.random.default_rng(0).random((n, 12, 12)).astype(np.float32)


def built(X=None, **options):
    """A model that was not trained, its rows and its plan."""
    options = {"latent": 2, "hidden": (8, 5), "recipe": "stacked", "epochs": 0, **options}
    ae = refold.Autoencoder(**options).fit(rows() if X is None else X)
    return ae.model_, ae.schema_.encode(ae._read(rows() if X is None else X))[0]


def test_phases_go_from_the_outermost_pair_to_the_code():
    model, batch = built()
    parts = phases(model)
    assert [p.name for p in parts] == ["pair 1", "pair 2", "pair 3"]
    x = batch.x["x"]
    down, up = model.fusion.down, model.fusion.up
    expected = up[4](torch.relu(down[0](x)))
    twice = torch.relu(down[2](torch.relu(down[0](x))))
    second = up[4](torch.relu(up[2](twice)))
    for phase, value in zip(parts, (expected, second), strict=False):
        scalar, factor = phase.module(batch, batch).costs["x"]
        lost = 0.5 * (value - x).square().sum(1).mean()
        assert float(scalar.detach() * factor) == pytest.approx(float(lost.detach()), rel=1e-5)
    assert parts[2].module is model


def test_every_phase_trains_its_own_pair_alone(monkeypatch):
    model, batch = built()
    learnt = []

    def spy(module, *args, **options):
        before = {k: v.detach().clone() for k, v in model.named_parameters()}
        run = fit(module, *args, **options)
        learnt.append({k for k, v in model.named_parameters() if not torch.equal(v, before[k])})
        return run

    monkeypatch.setattr(pretrain, "fit", spy)
    plan = Plan.choose(len(batch), epochs=8, patience=100)
    run = fit_layerwise(model, batch, None, plan)
    layers = [{name.rpartition(".")[0] for name in phase} for phase in learnt]
    assert layers[:3] == [
        {"fusion.down.0", "fusion.up.4"},
        {"fusion.down.2", "fusion.up.2"},
        {"fusion.down.4", "fusion.up.0"},
    ]
    assert layers[3] == set().union(*layers[:3])
    assert run.phases == ("pair 1", "pair 2", "pair 3", "all layers")
    assert [row["phase"] for row in run.history] == sorted(row["phase"] for row in run.history)
    steps = [row["step"] for row in run.history]
    assert steps == sorted(steps)
    assert steps[-1] == plan.steps
    assert all(p.requires_grad for p in model.parameters())
    first = next(row for row in run.history if any(k.startswith("grad_") for k in row))
    assert {k for k in first if k.startswith("grad_")} == {"grad_fusion.down.0", "grad_fusion.up.4"}


def test_a_phase_starts_where_the_one_before_ended():
    X = rows()
    ae = refold.Autoencoder(2, hidden=(8, 5), recipe="stacked", epochs=20).fit(X)
    phase = [row["phase"] for row in ae.history_]
    assert ae.run_.phases[-1] == "all layers"
    last = phase.index(3.0)
    inner = [row["valid_loss"] for row in ae.history_ if row["phase"] == 2.0]
    assert ae.history_[last]["valid_loss"] == pytest.approx(min(inner), rel=1e-5)


def test_convolutions_are_trained_stage_by_stage_before_the_body():
    model, batch = built(images(), recipe="conv", hidden=(8,), pretrain="layerwise")
    parts = phases(model)
    assert [p.name for p in parts] == ["stage 1", "stage 2", "stage 3", "pair 1", "pair 2"]
    assert isinstance(parts[0].module, Outer)
    plan = Plan.choose(len(batch), epochs=4, patience=100)
    run = fit_layerwise(model, batch, None, plan)
    for index in range(3):
        own = [row["valid_loss"] for row in run.history if row["phase"] == index]
        assert own[-1] < own[0]


def test_ties_can_be_loosened_before_the_last_phase():
    X = rows()
    options = {"latent": 2, "hidden": (8, 5), "recipe": "stacked", "epochs": 8}
    loose = refold.Autoencoder(tied="pretrain", **options).fit(X)
    assert ties(loose.model_) == ()
    tight = refold.Autoencoder(tied=True, **options).fit(X)
    assert len(ties(tight.model_)) == 3
    down, up = loose.model_.fusion.down[0].weight, loose.model_.fusion.up[4].weight
    apart = (down.t() - up).norm() / down.norm()
    assert 0 < apart < 0.5  # they began together


def test_a_warm_start_takes_over_the_outer_layers(tmp_path):
    X = rows()
    shallow = refold.Autoencoder(8, hidden=(10,), recipe="stacked", epochs=3).fit(X)
    deep = refold.Autoencoder(2, hidden=(10, 8), epochs=0).fit(X, start=shallow)
    a, b = shallow.model_.fusion, deep.model_.fusion
    assert torch.equal(a.down[0].weight, b.down[0].weight)
    assert torch.equal(a.down[2].weight, b.down[2].weight)
    assert torch.equal(a.up[-1].weight, b.up[-1].weight)
    assert torch.equal(a.up[0].weight, b.up[2].weight)
    shallow.save(tmp_path / "m")
    again = refold.Autoencoder(2, hidden=(10, 8), pretrain=str(tmp_path / "m"), epochs=0).fit(X)
    assert torch.equal(a.down[0].weight, again.model_.fusion.down[0].weight)
    assert start_from(built(hidden=(10, 8))[0], shallow.model_) == 2


@pytest.mark.parametrize(
    ("shallow", "message"),
    [
        ({"hidden": (9,), "recipe": "stacked"}, r"\(9, 12\).*differ from \(10, 12\)"),
        ({"hidden": (10,), "recipe": "dense"}, "linear path"),
    ],
)
def test_a_start_that_does_not_fit_is_a_sentence(shallow, message):
    X = rows()
    other = refold.Autoencoder(4, epochs=1, **shallow).fit(X)
    with pytest.raises(InputError, match=message):
        refold.Autoencoder(2, hidden=(10, 8), epochs=0).fit(X, start=other)


def test_frozen_parameters_stay_as_they_start():
    X = rows()
    shallow = refold.Autoencoder(8, hidden=(10,), recipe="stacked", epochs=2).fit(X)
    deep = refold.Autoencoder(2, hidden=(10, 8), freeze=("fusion.down.0.*",), epochs=2)
    deep.fit(X, start=shallow)
    assert torch.equal(shallow.model_.fusion.down[0].weight, deep.model_.fusion.down[0].weight)
    assert not torch.equal(shallow.model_.fusion.down[2].weight, deep.model_.fusion.down[2].weight)


def test_names_of_frozen_parameters_are_patterns():
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    assert freeze(net, ["0.*", "*.bias"]) == 3
    assert unfreeze(net, ["0.weight"]) == 1
    assert [p.requires_grad for p in net.parameters()] == [True, False, True, False]
    with pytest.raises(InputError, match=r"no parameter is called '2.\*'; there are: 0.weight"):
        freeze(net, ["2.*"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pretrain": "layerwise(share=2)"}, "share is 2; give a number between 0 and 1"),
        ({"pretrain": "layerwise(steps=2)"}, "unknown option of pretrain 'layerwise' 'steps'"),
        ({"pretrain": "layerwize"}, "no model folder; give 'layerwise'"),
        ({"pretrain": "layerwise", "hidden": ()}, "no layers to train one by one"),
        ({"pretrain": "layerwise", "fusion": "concat(mirror=(4,))"}, "no layers to train one by"),
        ({"freeze": ("nothing*",)}, r"no parameter is called 'nothing\*'"),
    ],
)
def test_what_cannot_be_trained_so_is_a_sentence(options, message):
    with pytest.raises(InputError, match=message):
        refold.Autoencoder(2, **{"hidden": (8, 5), "epochs": 1, **options}).fit(rows())


def test_skips_lead_around_layers():
    with pytest.raises(InputError, match="skips lead around them"):
        refold.Autoencoder(2, recipe="unet", pretrain="layerwise", epochs=1).fit(images())


def test_an_interruption_in_a_phase_ends_the_run_and_keeps_the_layers():
    def stop(progress):
        if progress.step > 12:
            raise KeyboardInterrupt

    ae = refold.Autoencoder(2, hidden=(8, 5), recipe="stacked", epochs=20)
    with pytest.warns(UserWarning, match="interrupted"):
        ae.fit(rows(), watch=stop)
    assert ae.run_.stopped == "interrupted"
    assert all(p.requires_grad for p in ae.model_.parameters())
    assert np.isfinite(ae.score(rows()))


def test_progress_counts_through_all_phases():
    seen = []
    refold.Autoencoder(2, hidden=(8, 5), recipe="stacked", epochs=8).fit(rows(), watch=seen.append)
    steps = [p.step for p in seen]
    assert steps == sorted(steps)
    assert seen[-1].step == seen[-1].steps == max(p.steps for p in seen)


@pytest.mark.parametrize("latent", ["l1(size=4)", "kl(size=4)", "gaussian(size=4)"])
def test_costs_that_nothing_can_change_only_count(latent):
    options = {"hidden": (8,), "fusion": "concat(linear=False)", "epochs": 2}
    ae = refold.Autoencoder(latent, freeze=("fusion.down.*",), **options).fit(rows())
    assert ae.history_[-1]["valid_loss"] < ae.history_[0]["valid_loss"]
    terms = {k for k in ae.history_[-1] if k.startswith("train_")}
    assert len(terms) == 3  # the field, the latent's own, and their sum


def test_phases_with_a_cost_of_frozen_layers_and_fields_of_other_depths():
    penalty = "orthogonality(layers=('fusion.down.0',))"
    ae = refold.Autoencoder(2, hidden=(8, 6), recipe="stacked", penalties=(penalty,), epochs=4)
    assert np.isfinite(ae.fit(rows()).score(rows()))
    X = {"a": images(), "b": images()}
    fields = {
        "a": "image(backbone='conv(channels=(4,))')",
        "b": "image(backbone='conv(channels=(4, 4))')",
    }
    ae = refold.Autoencoder(2, fields=fields, hidden=(8,), pretrain="layerwise", epochs=4).fit(X)
    assert ae.run_.phases == ("stage 1", "stage 2", "pair 1", "pair 2", "all layers")


@pytest.mark.parametrize(
    "options",
    [{"recipe": "conv_wta"}, {"recipe": "conv", "hidden": (16,), "fusion": "concat(mirror=(8,))"}],
)
def test_stages_are_trained_even_where_the_body_has_no_pairs(options):
    ae = refold.Autoencoder(pretrain="layerwise", epochs=4, **options).fit(images())
    assert ae.run_.phases[0] == "stage 1"
    assert ae.run_.phases[-1] == "all layers"


def test_the_norms_of_frozen_layers_stand_still():
    X = rows()
    fusion = "concat(norm='batch', dropout=0.2)"
    shallow = refold.Autoencoder(8, hidden=(10,), recipe="stacked", fusion=fusion, epochs=3).fit(X)
    deep = refold.Autoencoder(
        2, hidden=(10, 8), fusion=fusion, freeze=("fusion.down.[01].*",), epochs=3
    ).fit(X, start=shallow)
    a, b = shallow.model_.fusion.down[1], deep.model_.fusion.down[1]
    assert torch.equal(a.running_mean, b.running_mean)
    assert torch.equal(a.running_var, b.running_var)
    later = deep.model_.fusion.down[5]
    assert not torch.equal(later.running_mean, torch.zeros(8))


def test_a_tied_model_can_be_started_from():
    X = rows()
    shallow = refold.Autoencoder(8, hidden=(10,), recipe="stacked", tied=True, epochs=2).fit(X)
    deep = refold.Autoencoder(2, hidden=(10, 8), epochs=0).fit(X, start=shallow)
    assert torch.equal(shallow.model_.fusion.down[0].weight, deep.model_.fusion.down[0].weight)
    assert torch.equal(shallow.model_.fusion.up[2].weight, deep.model_.fusion.up[4].weight)


def test_a_start_of_other_columns_or_with_a_path_is_refused():
    frame = pd.DataFrame(rows(), columns=[f"c{i}" for i in range(12)])
    shallow = refold.Autoencoder(8, hidden=(10,), recipe="stacked", epochs=1).fit(frame)
    deep = refold.Autoencoder(2, hidden=(10, 8), epochs=0)
    with pytest.raises(InputError, match="fitted on the columns c0, c1"):
        deep.fit(frame[frame.columns[::-1]], start=shallow)
    with pytest.raises(InputError, match="layers that add to a linear path"):
        deep.set_params(fusion="concat(linear=True)").fit(frame, start=shallow)
    with pytest.raises(InputError, match="pretrain='layerwise' too; give one"):
        deep.set_params(pretrain="layerwise").fit(frame, start=shallow)


def test_ties_for_pretraining_need_pretraining():
    with pytest.raises(InputError, match="add pretrain='layerwise', or use tied=True"):
        refold.Autoencoder(2, hidden=(8,), tied="pretrain", epochs=1).fit(rows())


def test_pairs_can_be_tied_one_by_one():
    ae = refold.Autoencoder("gaussian(size=2)", hidden=(8,), tied=(0,), epochs=1).fit(rows())
    assert ties(ae.model_) == (("fusion.down.0", "fusion.up.2"),)


def strays(model, batch):
    """How far an entry of a book is at most from what the encoder gives of any row."""
    with torch.no_grad():
        vectors = model.latent.vectors(model.hidden(batch)[0]).flatten(0, -2)
    return float(torch.cdist(model.latent.books[0], vectors).min(1).values.max())


def test_a_latent_starts_from_what_its_encoder_gives_by_then(monkeypatch):
    X = rows()
    book = {"latent": "vq(size=4, codes=16, dim=2)", "recipe": "stacked", "validation": 0}
    shallow = refold.Autoencoder(8, hidden=(10,), recipe="stacked", epochs=3).fit(X)
    deep = refold.Autoencoder(**book, hidden=(10, 8), epochs=0).fit(X, start=shallow)
    assert strays(deep.model_, deep._encode(deep._read(X))) < 1e-3
    found = []

    def watched(module, train, *rest, **options):
        if not isinstance(module, Outer):
            found.append(strays(module, train))
        return fit(module, train, *rest, **options)

    monkeypatch.setattr(pretrain, "fit", watched)
    refold.Autoencoder(**book, hidden=(10, 8), epochs=8).fit(X)
    assert found[0] < 1e-3 < found[1]
