"""An ensemble in batched products beside as many models apart."""

import copy
import json

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

import refold
from refold.backbones.base import Geometry
from refold.backbones.flat import Flat
from refold.errors import InputError
from refold.fusion import Concat, Ensemble, fusions
from refold.latents import L1, Gaussian, Latent, Plain, WinnerTakeAll
from refold.likelihoods import likelihoods
from refold.model import Model
from refold.parts import PartSpec
from refold.penalties import ActivityL1
from refold.penalties.contractive import Contractive
from refold.training.start import start_centred, start_constant
from refold.types import Batch
from refold.uses.encoder import encoder_module

MEMBERS, OWN, WIDTH, ROWS = 3, 4, 6, 20
HIDDEN = (7, {"width": 5, "repeat": 2, "residual": True, "activation": "tanh"})
LATENTS = {
    "plain": lambda size: Plain(size),
    "l1": lambda size: L1(size, weight=0.1),
    "gaussian": lambda size: Gaussian(size, beta=0.5),
    "lifetime": lambda size: WinnerTakeAll(size, fraction=0.4),
}


def model(fusion, latent, penalties=()):
    geometry = Geometry((WIDTH,), (1,) * WIDTH, WIDTH, missing=True)
    head = likelihoods.build(PartSpec("mse"), (1,) * WIDTH, (WIDTH,))
    made = Model({"x": Flat(geometry)}, fusion, latent, {"x": head}, penalties).double()
    made.weigh({"x": (1.0, 2.0, 0.5, 1.0, 1.0, 3.0)})
    return made


def ensemble(latent="plain", penalties=(), hidden=HIDDEN, **options):
    torch.manual_seed(0)
    found: Latent = LATENTS[latent](MEMBERS * OWN)
    sizes = {"x": 2 * WIDTH}, {"x": WIDTH}, found.width, found.size
    body = Ensemble(*sizes, hidden=hidden, members=MEMBERS, **options)
    return model(body, found, penalties)


def alone(whole, m, latent, penalties=(), hidden=HIDDEN):
    """Return a dense model with the weights of a member."""
    found: Latent = LATENTS[latent](OWN)
    sizes = {"x": 2 * WIDTH}, {"x": WIDTH}, found.width, found.size
    made = model(Concat(*sizes, hidden=hidden), found, penalties)
    theirs = [p.unflatten(0, (MEMBERS, -1))[m] for p in whole.fusion.parameters()]
    with torch.no_grad():
        for own, given in zip(made.fusion.parameters(), theirs, strict=True):
            own.copy_(given)
        made.fusion.last_bias().add_(whole.fusion.last_bias())
    return made


def rows(n=ROWS, seed=1):
    g = torch.Generator().manual_seed(seed)
    seen = torch.rand(n, WIDTH, generator=g) > 0.2
    x = torch.randn(n, WIDTH, dtype=torch.float64, generator=g)
    return Batch({"x": x * seen}, {"x": seen})


def entries(m):
    return slice(m * OWN, (m + 1) * OWN)


# The same as models apart


@pytest.mark.parametrize("hidden", [(), HIDDEN], ids=["linear", "layers"])
@pytest.mark.parametrize("latent", ["plain", "l1", "lifetime"])
def test_steps_of_an_ensemble_are_those_of_its_members_apart(latent, hidden):
    whole = ensemble(latent, (ActivityL1(weight=0.2),), hidden, widths=1.0)
    whole.fusion.last_bias().copy_(torch.arange(WIDTH) / 10)
    before = [p.clone() for p in whole.fusion.parameters()]
    apart = [alone(whole, m, latent, (ActivityL1(weight=0.2),), hidden) for m in range(MEMBERS)]
    step = torch.optim.SGD(whole.parameters(), lr=MEMBERS * 0.02)
    steps = [torch.optim.SGD(one.parameters(), lr=0.02) for one in apart]
    for seed in range(4):
        batch, target = rows(seed=seed), rows(seed=seed + 50)
        step.zero_grad()
        output = whole.train()(batch, target)
        output.loss.backward()
        losses = []
        for m, (one, own) in enumerate(zip(apart, steps, strict=True)):
            own.zero_grad()
            found = one.train()(batch, target)
            torch.testing.assert_close(output.code.z[:, entries(m)], found.code.z)
            torch.testing.assert_close(
                output.params["x"][m * ROWS : (m + 1) * ROWS], found.params["x"]
            )
            found.loss.backward()
            losses.append(found.loss)
            own.step()
        torch.testing.assert_close(output.loss, torch.stack(losses).mean())
        step.step()
    start = whole.fusion.last_bias()
    for m, one in enumerate(apart):
        mine = [p.unflatten(0, (MEMBERS, -1))[m] for p in whole.fusion.parameters()]
        mine[-1] = mine[-1] + start
        for a, b in zip(mine, one.fusion.parameters(), strict=True):
            torch.testing.assert_close(a, b)
    moved = zip(whole.fusion.parameters(), before, strict=True)
    assert all((now - then).abs().max() > 1e-3 for now, then in moved)


def test_the_score_of_training_is_the_mean_of_the_members_scores():
    whole, batch = ensemble("l1", widths=1.0).train(), rows()
    scores = [alone(whole, m, "l1").train()(batch).score for m in range(MEMBERS)]
    output = whole(batch)
    torch.testing.assert_close(output.score, torch.stack(scores).mean(0))
    assert output.cells["x"].shape == (MEMBERS * ROWS, WIDTH)
    torch.testing.assert_close(output.loss, output.score.mean())


def test_gaussian_members_have_their_own_means_and_divergences():
    whole, batch = ensemble("gaussian", widths=1.0).eval(), rows()
    output, apart = whole(batch), [alone(whole, m, "gaussian").eval() for m in range(MEMBERS)]
    codes = [one(batch).code for one in apart]
    torch.testing.assert_close(output.code.z, torch.cat([c.z for c in codes], 1))
    terms = torch.stack([c.terms["kl"] for c in codes])
    torch.testing.assert_close(output.code.terms["kl"], terms.sum(0))
    torch.testing.assert_close(output.score, output.nll["x"] + terms.mean(0))
    torch.testing.assert_close(output.terms["kl"], terms.mean())


def test_the_contractive_cost_is_the_mean_of_the_members_costs():
    penalty = Contractive(weight=1.0, method="exact")
    whole, batch = ensemble(penalties=(penalty,), hidden=(5,), widths=1.0).train(), rows()
    found = [
        alone(whole, m, "plain", (penalty,), (5,)).train()(batch).terms for m in range(MEMBERS)
    ]
    expected = torch.stack([f["contractive"] for f in found]).mean()
    torch.testing.assert_close(whole(batch).terms["contractive"], expected)


def test_evaluation_gives_the_mean_of_what_members_give():
    whole, batch = ensemble(widths=1.0).eval(), rows()
    output = whole(batch)
    given = [alone(whole, m, "plain").eval()(batch).params["x"] for m in range(MEMBERS)]
    mean = torch.stack(given).mean(0)
    torch.testing.assert_close(output.params["x"], mean)
    torch.testing.assert_close(whole.decode(output.code.z)["x"], mean)
    expected = 0.5 * (mean - batch.x["x"]).square() * batch.observed["x"]
    torch.testing.assert_close(output.cells["x"], expected * whole.weight("x"))
    torch.testing.assert_close(output.loss, output.score.mean())
    worse = whole.train()(batch).loss
    assert output.loss < worse  # the mean of convex costs


def test_no_member_hears_of_another():
    whole = ensemble(widths=1.0).train()
    z = torch.randn(ROWS, MEMBERS * OWN, dtype=torch.float64, requires_grad=True)
    whole.decode(z)["x"][ROWS : 2 * ROWS].square().sum().backward()
    heard = z.grad.abs().amax(0) > 0
    assert heard.tolist() == [False] * OWN + [True] * OWN + [False] * OWN
    for parameter in whole.fusion.up.parameters():
        moved = parameter.grad.unflatten(0, (MEMBERS, -1)).flatten(1).abs().amax(1) > 0
        assert moved.tolist() == [False, True, False]


# Where members start, and what of their codes they use


def test_members_start_from_weights_of_their_own_drawn_as_dense_ones_are():
    torch.manual_seed(0)
    body = Ensemble({"x": 50}, {"x": 50}, 80, 80, hidden=(64,), members=8, activation="relu")
    for layer in body.modules():
        if isinstance(layer, nn.Linear):
            apart = layer.weight.unflatten(0, (8, -1)).flatten(1)
            assert not torch.corrcoef(apart).triu(1).abs().gt(0.2).any()
    first = body.leads[0][1].weight.unflatten(0, (8, -1))
    torch.testing.assert_close(
        first.std((1, 2)), torch.full((8,), (2 / 50) ** 0.5), rtol=0.1, atol=0
    )
    bound = 64**-0.5
    last = body.up[-1].linear
    assert 0.95 * bound < last.weight.abs().max() <= bound
    assert not last.bias.any()


def test_widths_are_drawn_evenly_and_follow_the_generator():
    torch.manual_seed(3)
    body = Ensemble({"x": 3}, {"x": 3}, 8000, 8000, members=1000, widths=(0.25, 0.75))
    used = body.used.view(1000, 8)
    assert torch.equal(used, used.sort(1, descending=True).values)
    counts = used.sum(1).long().bincount(minlength=9)
    assert counts.nonzero().flatten().tolist() == [2, 3, 4, 5, 6]
    assert ((counts[2:7] - 200).abs() < 60).all()
    torch.manual_seed(3)
    again = Ensemble({"x": 3}, {"x": 3}, 8000, 8000, members=1000, widths=(0.25, 0.75))
    assert torch.equal(again.used, body.used)
    half = Ensemble({"x": 3}, {"x": 3}, 8, 8, members=2, widths=0.5)
    assert half.used.tolist() == [1, 1, 0, 0, 1, 1, 0, 0]


@pytest.mark.parametrize("latent", ["plain", "gaussian"])
def test_what_a_member_does_not_use_is_zero_and_has_no_say(latent):
    whole = ensemble(latent, widths=(0.25, 0.75)).train()
    unused = whole.fusion.used[: MEMBERS * OWN] == 0
    assert 3 <= unused.sum() <= 9
    step = torch.optim.AdamW(whole.parameters(), lr=0.01)
    for seed in range(5):
        step.zero_grad()
        whole(rows(seed=seed)).loss.backward()
        step.step()
    code = whole.eval()(rows()).code
    assert not code.z[:, unused].any()
    assert code.z[:, ~unused].any(0).all()
    if latent == "gaussian":
        assert not code.stats["entry_kl"][:, unused].any()
    z = torch.randn(ROWS, MEMBERS * OWN, dtype=torch.float64)
    moved = torch.where(unused, z + 9, z)
    assert torch.equal(whole.decode(z)["x"], whole.decode(moved)["x"])


def test_the_start_is_the_best_constant_and_centred():
    whole, data = ensemble(widths=1.0), rows(200)
    data.x["x"] += 5.0 * data.observed["x"]
    start_constant(whole, data)
    start_centred(whole, data)
    mean = data.x["x"].sum(0) / data.observed["x"].sum(0)
    torch.testing.assert_close(whole.fusion.last_bias(), mean, rtol=1e-5, atol=1e-5)
    joined = whole.backbones["x"].encode(data.x["x"], data.observed["x"])[0]
    first = whole.fusion.leads[0][1]
    torch.testing.assert_close(first(joined).mean(0), torch.zeros(7 * MEMBERS).double())


# As a part


def test_it_is_written_to_json_and_read_back_and_copied():
    whole = ensemble(widths=(0.25, 0.75)).eval()
    spec = fusions.spec(whole.fusion)
    again = PartSpec(spec.name, json.loads(json.dumps(dict(spec.options))))
    twin = fusions.build(again, {"x": 12}, {"x": 6}, 12, 12).double()
    twin.load_state_dict(whole.fusion.state_dict())
    z = torch.randn(5, 12, dtype=torch.float64)
    for other in (twin, copy.deepcopy(whole.fusion)):
        assert torch.equal(other.decode(z)["x"], whole.fusion.decode(z)["x"])
        assert str(other) == str(whole.fusion)


def test_gradients_reach_every_weight_and_are_right():
    whole = ensemble("gaussian", hidden=(3,), widths=1.0, activation="tanh").train()
    output = whole(rows())
    output.loss.backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in whole.parameters())
    weight, batch = whole.fusion.up[0].linear.weight, rows()

    def loss(by):
        with torch.no_grad():
            weight[1, 2] += by
        torch.manual_seed(0)
        value = whole(batch).loss
        with torch.no_grad():
            weight[1, 2] -= by
        return value.item()

    torch.manual_seed(0)
    whole.zero_grad()
    whole(batch).loss.backward()
    assert weight.grad[1, 2].item() == pytest.approx((loss(1e-6) - loss(-1e-6)) / 2e-6, rel=1e-6)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"members": 5}, "12 numbers, which do not part evenly among 5 .* size to 10 or 15"),
        ({"members": 20}, "size to 20"),
        ({"members": 0}, "members is 0"),
        ({"widths": 0.0}, "widths is 0.0; give the least"),
        ({"widths": (0.5, 0.2)}, "the least and the greatest share"),
        ({"widths": (0.2, 0.5, 1.0)}, "the least and the greatest share"),
        ({"widths": 1.5}, "up to 1 for all"),
        ({"hidden": (4, {"width": 5, "norm": "batch"})}, "hidden, stage 2: norm is 'batch'"),
        ({"hidden": (4, 0)}, "hidden, stage 2: width is 0"),
        ({"activation": "gleu"}, "did you mean 'gelu'"),
    ],
)
def test_what_makes_no_ensemble_is_said(options, said):
    with pytest.raises(InputError, match=said):
        Ensemble({"x": 6}, {"x": 6}, 12, 12, **{"members": 3, **options})


def test_a_latent_with_an_odd_number_an_entry_is_refused():
    with pytest.raises(InputError, match="takes 18 numbers for a code of 12"):
        Ensemble({"x": 6}, {"x": 6}, 18, 12, members=3)


# Fitted models


def table():
    r = np.random.default_rng(0)
    kind = r.integers(0, 3, 120)
    frame = pd.DataFrame(
        {
            "size": kind + 0.2 * r.normal(size=120),
            "pay": r.lognormal(kind, 0.3),
            "town": np.array(["a", "b", "c"], dtype=object)[kind],
        }
    )
    frame.loc[r.random(120) < 0.2, "pay"] = np.nan
    frame.loc[r.random(120) < 0.2, "town"] = None
    return frame


DATA = {
    "vector": lambda: np.random.default_rng(0).normal(size=(120, 4)) @ np.ones((4, 9)),
    "table": table,
    "image": lambda: (np.random.default_rng(0).random((120, 6, 5)) * 255).astype(np.uint8),
}


@pytest.mark.parametrize(
    ("data", "options"),
    [
        ("vector", {}),
        ("table", {}),
        ("image", {}),
        ("vector", {"recipe": "anomaly"}),
        ("table", {"recipe": "anomaly"}),
        ("image", {"recipe": "anomaly"}),
        ("table", {"corruption": "hide(rate=0.5)"}),
        ("table", {"recipe": "vae"}),
        ("table", {"weights": "gradnorm"}),
        ("table", {"weights": "uncertainty"}),
        ("table", {"fields": {"town": "target"}}),
        ("image", {"recipe": "conv"}),
    ],
    ids=str,
)
def test_a_model_is_fitted_saved_and_loaded(data, options, tmp_path):
    x = DATA[data]()
    ae = refold.Autoencoder(fusion="ensemble(members=4)", epochs=2, **options).fit(x)
    z = np.asarray(ae.transform(x))
    assert z.shape == (120, ae.spec_.size)
    assert ae.spec_.size % 4 == 0
    unused = ae.model_.fusion.used[: ae.spec_.size].numpy() == 0
    if not ae.model_.latent.generative:
        assert not z[:, unused].any()
    assert np.isfinite(ae.score_samples(x)).all()
    assert len(ae.anomalies(x, alpha=0.2)) == 120
    assert len(ae.reconstruct(x)) == 120
    ae.save(tmp_path / "model")
    again = refold.load(tmp_path / "model")
    assert np.array_equal(np.asarray(again.transform(x)), z)
    assert np.array_equal(again.score_samples(x), ae.score_samples(x))
    assert torch.equal(again.model_.fusion.used, ae.model_.fusion.used)
    twin = refold.Autoencoder(fusion="ensemble(members=4)", epochs=2, **options).fit(x)
    assert np.array_equal(np.asarray(twin.transform(x)), z)
    assert not any(key.startswith("fusion.up") for key in encoder_module(ae).state_dict())


def test_every_member_meets_the_maps_of_its_rows():
    x = np.random.default_rng(0).random((40, 9, 7))
    ae = refold.Autoencoder(recipe="unet", fusion="ensemble(members=2)", epochs=1).fit(x)
    rows = ae._encode(ae._read(x))
    with torch.no_grad():
        whole = ae.model_.train()(rows).params
        part = ae.model_(rows.rows(slice(30, 40))).params
    for name, params in whole.items():
        assert params.shape[0] == 80
        last = torch.cat([params[30:40], params[70:80]])
        torch.testing.assert_close(last, part[name], rtol=1e-4, atol=1e-5)
    assert np.isfinite(ae.score_samples(x)).all()


def test_the_history_shows_means_over_members_and_rows():
    x = DATA["vector"]()
    ae = refold.Autoencoder(
        fusion="ensemble(members=3, widths=1.0)", recipe="dense", epochs=1, lr=1e-12, validation=0
    ).fit(x)
    rows = ae._encode(ae._read(x))
    ae.model_.train()
    with torch.no_grad():
        output = ae.model_(rows)
    params = output.params["x"].view(3, 120, -1)
    expected = torch.stack([0.5 * (p - rows.x["x"]).square().sum(1).mean() for p in params]).mean()
    ae.model_.eval()
    assert ae.history_[-1]["train_loss"] == pytest.approx(float(expected), rel=1e-4)
    mean = 0.5 * (params.mean(0) - rows.x["x"]).square().sum(1).mean()
    assert ae.history_[-1]["valid_loss"] == pytest.approx(float(mean), rel=1e-4)


def test_values_are_drawn_given_others_as_by_one_model():
    ae = refold.Autoencoder(fusion="ensemble(members=4)", recipe="vae", epochs=2).fit(table())
    assert len(ae.sample(5)) == 5
    gaps = table()
    assert not ae.impute(gaps).isna().any().any()
    assert np.isfinite(ae.log_likelihood(gaps, samples=5)).all()


def test_the_size_of_the_code_is_each_members_unless_it_was_given():
    x = DATA["vector"]()
    one = refold.Autoencoder(recipe="dense", epochs=1).fit(x)
    for options, size in (
        ({}, 4 * one.spec_.size),
        ({"latent": "l1"}, 4 * one.spec_.size),
        ({"latent": 8}, 8),
        ({"latent": "l1(size=8)"}, 8),
        ({"latent": Plain(8)}, 8),
    ):
        ae = refold.Autoencoder(
            recipe="dense", fusion="ensemble(members=4)", epochs=1, **options
        ).fit(x)
        assert ae.spec_.size == size
        told = any("each member has its own" in reason for reason in ae.reasons_)
        assert told == (size != 8)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"latent": 10}, "10 numbers, which do not part evenly among 4 members"),
        ({"latent": "topk"}, "latent 'topk' takes all as one"),
        ({"latent": "gaussian(draws=4)"}, "draws=4"),
        ({"latent": "lifetime(top=2)"}, "top=2"),
        ({"penalties": ("decorrelation",)}, "penalty 'decorrelation' takes all as one"),
        ({"recipe": "residual"}, "norm is 'layer'"),
        ({"pretrain": "layerwise"}, "no layers to train one by one.*'concat'"),
        ({"tied": True}, "nothing to tie"),
    ],
)
def test_what_would_join_the_members_is_refused(options, said):
    with pytest.raises(InputError, match=said):
        refold.Autoencoder(fusion="ensemble(members=4)", epochs=1, **options).fit(DATA["vector"]())


def test_an_answer_in_the_code_is_refused():
    fields = {"town": refold.fields.Categorical(target=True, backbone="coded")}
    with pytest.raises(InputError, match="answer of 'town' in the code takes all as one"):
        refold.Autoencoder(fusion="ensemble(members=4)", epochs=1, fields=fields).fit(table())
