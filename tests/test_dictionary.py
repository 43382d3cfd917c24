"""Dictionaries: the body, its latents and penalties, and whether known features are found."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

import refold
from refold import InputError
from refold.cli.commands import summary
from refold.errors import InputWarning
from refold.fusion import Dictionary, fusions
from refold.fusion.dictionary import geometric_median
from refold.latents import BatchTopK, Gated, JumpReLU, TopK
from refold.latents.dictionary import RATE, largest
from refold.latents.gauges import density, explained_variance
from refold.parts import PartSpec
from refold.penalties import AuxK, Matryoshka, Resample
from refold.penalties.dictionary import squares
from refold.recipe.dictionary import rate
from refold.report import figures, write
from refold.training.doubts import doubts
from refold.training.fit import Run
from refold.training.revive import revive
from refold.types import Batch, Code

WIDE = {"x": 5}


def draw(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def body(inputs=WIDE, outputs=WIDE, code=12):
    torch.manual_seed(0)
    made = Dictionary(inputs, outputs, code, code).double()
    with torch.no_grad():
        made.centre.copy_(draw(made.centre.shape[0], seed=7))
        made.encoder_bias.copy_(draw(code, seed=8))
    return made


# The body


def test_the_body_is_two_maps_around_a_centre():
    made, c, z = body(), draw(20, 5), draw(20, 12).relu()
    encoder, bias, decoder, centre = (p.detach().numpy() for p in (
        made.encoder, made.encoder_bias, made.decoder, made.centre))  # fmt: skip
    h = made.encode({"x": c}, {}).detach().numpy()
    np.testing.assert_allclose(h, (c.numpy() - centre) @ encoder.T + bias, rtol=1e-12)
    expected = z.numpy() @ decoder + centre
    np.testing.assert_allclose(made.decode(z)["x"].detach().numpy(), expected, rtol=1e-12)
    z[3] = 0
    z[:, 4] = 0
    with torch.no_grad():
        given = made.decode(z)["x"]
        torch.testing.assert_close(given, made.decode(z.clone().requires_grad_())["x"])
        assert torch.equal(given[3], made.centre)
        assert made.decode(z[:0])["x"].shape == (0, 5)


def test_fields_that_are_not_what_is_given_back_have_no_centre_to_take_off():
    made = body({"a": 3, "b": 2}, {"b": 2, "c": 4})
    assert not made.centred
    assert made.encoder.shape == (12, 5)
    assert made.decoder.shape == (12, 6)
    hidden = {"a": draw(7, 3), "b": draw(7, 2)}
    expected = torch.cat(list(hidden.values()), 1) @ made.encoder.T + made.encoder_bias
    torch.testing.assert_close(made.encode(hidden, {}), expected)
    parts = made.decode(draw(7, 12))
    assert {k: p.shape for k, p in parts.items()} == {"b": (7, 2), "c": (7, 4)}
    before = made.centre.clone()
    made.begin(hidden)
    assert torch.equal(made.centre, before)


def test_what_is_missing_stays_at_the_centre():
    made, c = body({"x": 10}), draw(20, 5)
    seen = draw(20, 5, seed=1) > -0.5
    hidden = {"x": torch.cat([c * seen, seen.double()], 1)}
    encoder, bias, centre = made.encoder, made.encoder_bias, made.centre
    expected = ((c - centre) * seen) @ encoder[:, :5].T + seen.double() @ encoder[:, 5:].T + bias
    torch.testing.assert_close(made.encode(hidden, {}), expected)
    torch.manual_seed(0)
    start = Dictionary({"x": 10}, WIDE, 12, 12)
    assert torch.equal(start.encoder[:, :5], start.decoder)
    assert not start.encoder[:, 5:].any()
    start.begin({"x": hidden["x"].float()})
    assert torch.equal(start.centre, geometric_median((c * seen).float()))
    both = Dictionary({"x": 10, "y": 4}, {"x": 5, "y": 2}, 12, 12)
    assert (both.masked, both.centred) == (False, False)


def test_a_dictionary_starts_with_unit_directions_that_both_ways_share():
    made = Dictionary(WIDE, WIDE, 12, 12)
    assert torch.equal(made.encoder, made.decoder)
    torch.testing.assert_close(made.decoder.norm(dim=1), torch.ones(12))
    assert made.encoder is not made.decoder
    spec = fusions.spec(made)
    assert json.loads(json.dumps(dict(spec.options))) == {}
    assert (made.pairs, made.leads, made.linear_path()) == ((), (), None)


def test_the_centre_is_the_geometric_median():
    rows = draw(60, 3)
    rows[:20] += 40
    found = geometric_median(rows)

    def distances(m):
        return np.linalg.norm(rows.numpy() - m, axis=1).sum()

    best = minimize(distances, rows.mean(0).numpy(), method="Nelder-Mead",
                    options={"xatol": 1e-9, "fatol": 1e-9, "maxiter": 4000})  # fmt: skip
    assert distances(found.numpy()) <= best.fun * (1 + 1e-9)
    np.testing.assert_allclose(found.numpy(), best.x, atol=1e-3)
    made = body(code=4)
    made.begin({"x": torch.cat([rows, rows[:, :2]], 1)})
    torch.testing.assert_close(
        made.centre[:3], geometric_median(torch.cat([rows, rows[:, :2]], 1))[:3]
    )
    same = torch.ones(5, 2, dtype=torch.float64)
    assert torch.equal(geometric_median(same), same[0])


def test_steps_stay_on_the_sphere():
    made, c = body(), draw(30, 5, seed=3)
    made.constrain()  # in double precision
    z = made.encode({"x": c}, {}).detach().relu()

    def loss(decoder):
        return (z @ decoder - c).square().sum()

    loss(made.decoder).backward()
    made.project()
    # The slope of the loss as a function of the direction alone.
    free = made.decoder.detach().clone().requires_grad_()
    loss(torch.nn.functional.normalize(free, dim=1)).backward()
    torch.testing.assert_close(made.decoder.grad, free.grad)
    with torch.no_grad():
        made.decoder.mul_(3.0)
    made.constrain()
    torch.testing.assert_close(made.decoder, free)
    made.decoder.grad = None
    made.project()


# The latents


def test_rectified_top_k_leaves_out_what_is_negative():
    h = draw(50, 9)
    h[0] = -h[0].abs()
    z = TopK(9, k=4, rectify=True)(h).z
    assert torch.equal(z, TopK(9, k=4)(h).z.relu())
    assert not z[0].any()
    with pytest.raises(InputError, match="absolute and rectify"):
        TopK(9, k=4, absolute=True, rectify=True)


@pytest.mark.parametrize(
    ("rows", "size", "count"), [(7, 5, 1), (7, 5, 35), (32, 64, 40), (8, 16, 8)]
)
def test_the_nth_largest_of_all(rows, size, count):
    h = draw(rows, size)
    assert largest(h, count) == h.flatten().sort(descending=True).values[count - 1]


def test_batch_top_k_keeps_the_largest_of_the_batch():
    h, latent = draw(40, 32), BatchTopK(32, k=3).double().train()
    h[5] = 0.01 * h[5]
    z = latent(h).z
    order = h.flatten().argsort(descending=True)[: 40 * 3]
    expected = torch.zeros(40 * 32, dtype=torch.float64)
    expected[order] = h.flatten()[order]
    assert torch.equal(z, expected.view(40, 32))
    assert (z[5] != 0).sum() == 0
    assert latent.threshold == pytest.approx(RATE * float(h.flatten()[order[-1]]))
    few = latent(-h.abs())
    assert not few.z.any()


def test_batch_top_k_judges_rows_by_a_running_threshold():
    torch.manual_seed(0)
    latent = BatchTopK(64, k=5)
    latent.begin(torch.randn(500, 64), 500)
    for _ in range(50):
        latent.train()(torch.randn(100, 64))
    h = torch.randn(2000, 64)
    code = latent.eval()(h)
    assert torch.equal(code.z, h * (h > latent.threshold))
    assert float((code.z > 0).sum(1).double().mean()) == pytest.approx(5, rel=0.1)
    found = density(code.stats["fired"])
    assert found["l0"] == pytest.approx(float((code.z > 0).double().sum(1).mean()))


def test_jumprelu_passes_what_the_kernel_sees():
    latent, h = JumpReLU(3, l0=1.0, bandwidth=0.5).double(), draw(200, 3).requires_grad_()
    with torch.no_grad():
        latent.log_threshold.copy_(torch.tensor([0.2, 0.5, 0.9]).log())
    weight = draw(200, 3, seed=4)
    theta = latent.threshold.detach()
    (latent(h).z * weight).sum().backward()
    inside = ((h - theta).abs() < 0.25).double()
    expected = -(theta / 0.5) * (inside * weight).sum(0).detach()
    torch.testing.assert_close(latent.log_threshold.grad, expected * theta)
    assert torch.equal(h.grad, weight * (h > theta))
    latent.log_threshold.grad = h.grad = None
    latent(h).aux["l0"].backward()
    share = float((h > theta).double().mean()) * 3
    slope = -inside.sum(0).detach() / 0.5 / 200 * (share - 1)
    torch.testing.assert_close(latent.log_threshold.grad, slope * theta)
    assert not h.grad.any()


def test_the_kernel_estimates_the_slope_of_an_expectation():
    torch.manual_seed(0)
    latent, h = JumpReLU(1, l0=1.0, bandwidth=0.05).double(), torch.randn(2_000_000, 1).double()
    with torch.no_grad():
        latent.log_threshold.fill_(np.log(0.7))
    latent(h).z.mean().backward()
    normal = np.exp(-(0.7**2) / 2) / np.sqrt(2 * np.pi)
    slope = float(latent.log_threshold.grad) / 0.7
    assert slope == pytest.approx(-0.7 * normal, rel=0.02)


def test_jumprelu_charges_for_more_and_for_fewer_than_its_target():
    latent = JumpReLU(4, l0=2.0, weight=3.0).double()
    h = torch.tensor([[5.0, 5, 5, 0], [5, 5, 5, 0]]).double()
    latent.begin(h, 2)
    latent.energy.fill_(10.0)
    with torch.no_grad():
        latent.log_threshold.fill_(np.log(1.0))
    assert latent(h).aux["l0"].item() == pytest.approx(0.5 * 3 * 10 * (3 / 2 - 1) ** 2)
    assert latent(h * 0).aux["l0"].item() == pytest.approx(0.5 * 3 * 10)
    torch.manual_seed(0)
    wide = JumpReLU(500, l0=20.0)
    sample = torch.randn(300, 500) * 7
    wide.begin(sample, 300)
    z = wide.eval()(sample).z
    assert float((z > 0).sum(1).double().mean()) == pytest.approx(20, rel=0.01)
    assert wide.energy.item() == pytest.approx(z.square().sum(1).mean().item(), rel=0.05)


def test_a_gate_opens_and_another_map_measures():
    latent, h = Gated(3, weight=0.5).double(), draw(20, 3)
    with torch.no_grad():
        latent.scale.copy_(torch.tensor([0.1, -0.2, 0.3]))
        latent.bias.copy_(torch.tensor([0.5, 0.0, -0.4]))
    code = latent(h)
    size = (h * latent.scale.exp() + latent.bias).clamp_min(0)
    torch.testing.assert_close(code.z, torch.where(h > 0, size, 0))
    torch.testing.assert_close(code.terms["l1"], 0.5 * h.relu().sum(1))
    assert torch.equal(code.beside["gate"], h.relu())


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (lambda: BatchTopK(4, k=5), "batch top-k keeps k=5 of a code of 4"),
        (lambda: JumpReLU(4, l0=0.0), "jumprelu aims at l0=0.0"),
        (lambda: JumpReLU(4, bandwidth=0.0), "bandwidth is 0.0"),
        (lambda: JumpReLU(4, weight=-1.0), "weight of l0 is -1.0"),
        (lambda: Gated(4, weight=-1.0), "weight of the gate is -1.0"),
        (lambda: AuxK(weight=-1.0), "weight of auxk is -1.0"),
        (lambda: AuxK(k=0), "k of auxk is 0"),
        (lambda: AuxK(after=0), "dead after 0 silent rows"),
        (lambda: Matryoshka(sizes=(4, 2)), "that rise"),
        (lambda: Matryoshka(weight=-1.0), "weight of matryoshka is -1.0"),
    ],
)
def test_options_that_cannot_be_are_said(build, said):
    with pytest.raises(InputError, match=said):
        build()


# The penalties


def rows(n=300, d=6):
    g = np.random.default_rng(0)
    return g.normal(size=(n, 3)) @ g.normal(size=(3, d)) + 0.1 * g.normal(size=(n, d)) + 5


@pytest.fixture(scope="module")
def model():
    options = {"recipe": "dictionary", "epochs": 1, "penalties": ("auxk(after=50, k=2)",)}
    ae = refold.Autoencoder("topk(size=24, k=2)", **options).fit(rows())
    return ae.model_.double(), Batch({"x": draw(40, 6, seed=2)}, {"x": None})


def of(model, kind):
    return next(p for p in model.penalties if isinstance(p, kind))


def test_dead_latents_learn_what_is_left_over(model):
    made, batch = model
    made.train()
    penalty = of(made, AuxK)
    penalty.idle.zero_()
    dead = torch.tensor([3, 4, 9])
    penalty.idle[dead] = 1000
    code, _ = made.encode(batch)
    z = code.z.detach().clone()
    z[:, dead] = 0
    params = {"x": made.fusion.decode(z)["x"]}
    made.zero_grad()
    cost = penalty(made, batch, Code(z), params)["auxk"]
    cost.backward()
    b, x = made.fusion, batch.x["x"]
    h = (x - b.centre) @ b.encoder[dead].T + b.encoder_bias[dead]
    kept = torch.where(h >= h.topk(2, dim=1).values[:, 1:], h, 0).relu()
    residual = (x - params["x"]).detach() - kept @ b.decoder[dead]
    torch.testing.assert_close(cost, 0.5 / 32 * residual.square().sum(1).mean())
    alive = torch.ones(24, dtype=torch.bool).index_fill_(0, dead, False)
    assert not b.decoder.grad[alive].any()
    assert not b.encoder.grad[alive].any()
    assert b.decoder.grad[dead].any(1).all()


def test_a_latent_is_dead_that_was_long_silent(model):
    made, batch = model
    penalty = of(made, AuxK)
    penalty.idle.zero_()
    counts = torch.zeros(24, dtype=torch.int64)
    counts[:20] = 4
    assert penalty.note(counts, 50).tolist() == []
    assert penalty.note(counts, 50).tolist() == [20, 21, 22, 23]
    counts[21] = 1
    assert penalty.note(counts, 50).tolist() == [20, 22, 23]
    assert penalty.idle[[0, 20, 21]].tolist() == [0, 150, 0]
    usual = AuxK()
    usual.attach(made)
    usual.note(counts, 50)  # 81 in 50 rows: did all of 24 fire alike, 100 times in 1,481 rows
    assert float(usual.enough) == pytest.approx(100 * 50 * 24 / 81)
    made.train()
    penalty.idle.zero_()
    z = torch.ones(4, 24, dtype=torch.float64)
    assert float(penalty(made, Batch({}, {}), Code(z), {})["auxk"]) == 0
    penalty.eval()
    code = Code(z)
    assert penalty(made, batch, code, {"x": batch.x["x"]}) == {}
    assert explained_variance(code.stats["squares"]) == {"explained": 1.0}


def test_prefixes_rebuild_by_themselves(model):
    made, batch = model
    b = made.fusion
    z = draw(40, 24, seed=5).relu()
    for sizes in ((1, 5), (20,)):
        cost = Matryoshka(sizes=sizes, weight=2.0)(made, batch, Code(z), {})["matryoshka"]
        expected = sum(
            0.5 * (z[:, :s] @ b.decoder[:s] + b.centre - batch.x["x"]).square().sum(1).mean()
            for s in sizes
        )
        torch.testing.assert_close(cost, 2.0 * expected)
    usual, named = (Matryoshka(sizes=s)(made, batch, Code(z), {}) for s in (None, (2, 3, 6, 12)))
    assert usual["matryoshka"] != named["matryoshka"]
    halves = Matryoshka(sizes=(1, 3, 6, 12))(made, batch, Code(z), {})
    torch.testing.assert_close(usual, halves)
    with pytest.raises(InputError, match="not shorter than the code of 24"):
        Matryoshka(sizes=(24,)).attach(made)


def test_a_gate_learns_with_directions_that_are_held_still():
    ae = refold.Autoencoder("gated(size=24)", recipe="dictionary", epochs=1).fit(rows())
    assert [p.name for p in ae.spec_.penalties] == ["auxk", "gate"]
    made, batch = ae.model_.double().train(), Batch({"x": draw(40, 6, seed=2)}, {"x": None})
    output = made(batch)
    gate, b = output.code.beside["gate"], made.fusion
    made.zero_grad()
    cost = made.penalties[1](made, batch, output.code, output.params)["gate"]
    cost.backward()
    rebuilt = gate @ b.decoder + b.centre
    torch.testing.assert_close(cost, 0.5 * (batch.x["x"] - rebuilt).square().sum(1).mean())
    assert b.decoder.grad is None
    assert b.encoder.grad.abs().sum() > 0
    seen = gate.detach() > 0  # the centre moves with what is encoded, and not with what is rebuilt
    slope = ((rebuilt - batch.x["x"]) @ b.decoder.T * seen / 40).sum(0)
    torch.testing.assert_close(b.centre.grad, -(slope @ b.encoder).detach())


def test_penalties_of_dictionaries_say_what_they_are_for():
    for penalty in ("auxk", "matryoshka", "gate", "resample"):
        with pytest.raises(InputError, match=f"'{penalty}' is for dictionaries.*another body"):
            refold.Autoencoder(2, penalties=(penalty,), epochs=1).fit(rows())
    with pytest.raises(InputError, match="takes more than one number an entry"):
        refold.Autoencoder("gaussian(size=9)", recipe="dictionary", epochs=1).fit(rows())
    with pytest.raises(InputError, match="'gate' is for the latent 'gated'"):
        refold.Autoencoder(recipe="dictionary", penalties=("gate",), epochs=1).fit(rows())


def test_dead_latents_begin_anew_at_rows_that_are_rebuilt_badly():
    options = {"recipe": "dictionary", "epochs": 1, "penalties": ("resample(after=100)",)}
    made = refold.Autoencoder("topk(size=24, k=2)", **options).fit(rows()).model_
    counts, b = of(made, Resample), made.fusion
    batch = Batch({"x": draw(400, 6, seed=2).float()}, {"x": None})
    batch.x["x"][:390] = b.centre.detach()  # which cost nothing
    with torch.no_grad():
        b.encoder_bias.fill_(-1e-3)
    batch.x["x"][390:] *= 30
    forgotten = []
    draws = torch.Generator().manual_seed(0)
    counts.progress, counts.enough[()] = 0.5, 100
    counts.idle.zero_()
    assert not len(revive(made, batch, lambda *a: forgotten.append(a), draws))
    counts.idle[[2, 7]] = 500
    before = b.encoder.detach().clone()
    found = revive(made, batch, lambda *a: forgotten.append(a), draws)
    assert found.tolist() == [2, 7]
    assert [name for name, _ in forgotten] == [
        "fusion.encoder", "fusion.encoder_bias", "fusion.decoder"
    ]  # fmt: skip
    for name, _ in forgotten:
        made.get_parameter(name)
    alive = [i for i in range(24) if i not in (2, 7)]
    norm = float(before[alive].norm(dim=1).mean())
    torch.testing.assert_close(b.encoder[[2, 7]], 0.2 * norm * b.decoder[[2, 7]])
    assert torch.equal(b.encoder[alive], before[alive])
    bad = torch.nn.functional.normalize(batch.x["x"][390:] - b.centre, dim=1)
    assert ((b.decoder[[2, 7]] @ bad.T).amax(1) > 0.9999).all()
    assert b.encoder_bias[[2, 7]].tolist() == [0, 0]
    assert counts.idle[[2, 7]].tolist() == [0, 0]
    counts.progress = 0.9
    counts.idle[[2, 7]] = 500
    assert not len(revive(made, batch, lambda *a: forgotten.append(a), draws))


# The recipe


def test_what_the_recipe_chooses():
    ae = refold.Autoencoder(recipe="dictionary", epochs=1).fit(rows(d=20))
    assert ae.spec_.size == 160
    assert str(ae.spec_.latent) == "topk(k=32, rectify=True)"
    assert "latent size 160: 8 times the 20 numbers of a row" in ae.reasons_
    assert ae.plan_.lr == rate(160)
    assert ae.plan_.optimizer.name == "adam"
    own = ae.schema_.fields["x"]
    assert own.scale == "pooled"
    assert len(set(own.std)) == 1
    assert refold.Autoencoder(recipe="dictionary", epochs=1).fit(rows(d=2)).spec_.size == 64
    said = {"x": "vector(scale='standard')"}
    other = refold.Autoencoder(96, recipe="dictionary", epochs=1, fields=said).fit(rows())
    assert other.schema_.fields["x"].scale == "standard"
    assert str(other.spec_.latent) == "topk(k=32, rectify=True)"
    assert other.plan_.lr == rate(96)
    few = refold.Autoencoder("topk(k=3)", recipe="dictionary", epochs=1).fit(rows())
    assert PartSpec("topk", {"k": 3, "rectify": True}) == few.spec_.latent


@pytest.mark.parametrize(
    "latent", ["topk(k=3)", "batch_topk(k=3)", "jumprelu(l0=3.0)", "gated(weight=2.0)"]
)
def test_known_features_are_found(latent, tmp_path):
    g = np.random.default_rng(0)
    directions = g.normal(size=(24, 16))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    fired = np.argsort(g.random((8000, 24)), axis=1) < 2
    centre = 3 * g.normal(size=16)
    x = (fired * g.lognormal(0, 0.3, fired.shape)) @ directions + centre
    ae = refold.Autoencoder(
        latent.replace("(", "(size=48, ").replace("=3", "=2"), recipe="dictionary", epochs=12,
        batch_size=128, seed=1,
    ).fit(x.astype(np.float32))  # fmt: skip
    decoder = ae.model_.fusion.decoder.detach()
    torch.testing.assert_close(decoder.norm(dim=1), torch.ones(48))
    assert (directions @ decoder.numpy().T).max(1).mean() > 0.9
    best = ae.run_.best
    if "gated" not in latent:
        assert best["l0"] == pytest.approx(2, rel=0.15)
    assert {"dead_share", "density_-1.0", "density_-5.0"} <= best.keys()
    shares = [v for k, v in best.items() if k.startswith("density_")]
    assert sum(shares) + best["dead_share"] == pytest.approx(1)
    assert ae.quality_.kept > 0.8
    ae.save(tmp_path / "model")
    again = refold.load(tmp_path / "model")
    assert np.array_equal(again.transform(x), ae.transform(x))


def combined(n=4000, d=16, m=24, seed=0):
    """Sums of two of ``m`` unit directions around a far centre."""
    g = np.random.default_rng(seed)
    directions = g.normal(size=(m, d))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    fired = np.argsort(g.random((n, m)), axis=1) < 2
    x = (fired * g.lognormal(0, 0.3, fired.shape)) @ directions + 3 * g.normal(size=d)
    return x.astype(np.float32)


def test_one_gap_costs_a_dictionary_nothing(tmp_path):
    x = combined()
    options = {"recipe": "dictionary", "epochs": 12, "batch_size": 128}
    whole = refold.Autoencoder("topk(size=48, k=2)", **options).fit(x)
    lacking = x.copy()
    lacking[7:12, 3] = np.nan
    ae = refold.Autoencoder("topk(size=48, k=2)", **options).fit(lacking)
    body = ae.model_.fusion
    assert (body.masked, body.centred) == (True, True)
    assert any("gaps stay at the dictionary's centre" in r for r in ae.reasons_)
    assert not any("gaps" in r for r in whole.reasons_)
    assert ae.run_.best["explained"] > whole.run_.best["explained"] - 0.02
    assert abs(ae.impute(lacking)[7, 3] - x[7, 3]) < 1
    ae.save(tmp_path / "model")
    assert np.array_equal(refold.load(tmp_path / "model").transform(lacking), ae.transform(lacking))
    many = np.where(np.random.default_rng(1).random(x.shape) < 0.05, np.nan, x)
    anew = refold.Autoencoder("topk(size=48, k=2)", penalties=("resample(after=300)",), **options)
    decoder = anew.fit(many).model_.fusion.decoder
    torch.testing.assert_close(decoder.norm(dim=1), torch.ones(48))
    assert anew.run_.best["explained"] > whole.run_.best["explained"] - 0.05


def test_a_dictionary_of_classes_says_that_nothing_is_taken_off():
    table = {"a": np.arange(60.0), "b": np.array(["u", "v", "w"] * 20)}
    ae = refold.Autoencoder("topk(size=16, k=2)", recipe="dictionary", epochs=1).fit(table)
    assert any(r.startswith("no centre is taken off") for r in ae.reasons_)


# What a run leaves to be desired


def test_thresholds_that_miss_their_number_are_said():
    options = {"recipe": "dictionary", "epochs": 1, "batch_size": 128}
    with pytest.warns(InputWarning, match="where 16 were asked for") as said:
        ae = refold.Autoencoder("jumprelu(size=160, l0=16.0)", **options).fit(combined())
    (found,) = [str(w.message) for w in said if "asked for" in str(w.message)]
    assert found.startswith(f"{ae.run_.best['l0']:.1f} latents are active in a row")
    assert found in ae.reasons_
    assert f"after {ae.run_.best['step']:.0f} steps" in found
    assert "bandwidth=0.2" in found


def judged(model, rows=1000, **best):
    """Doubts about a model after a run that ended in these figures."""
    row = {"step": 9.0, "l0": 2.0, "dead_share": 0.0, "dead_units": 0.0, **best}
    return doubts(model, Run([{**row, "step": 0.0}, {**row, "step": 14.0}], best=row), rows)


def test_what_is_doubted_and_what_is_not():
    def fitted(latent, **options):
        options = {"recipe": "dictionary", "epochs": 0, **options}
        return refold.Autoencoder(latent, **options).fit(rows()).model_

    topk, batched = fitted("topk(size=24, k=2)"), fitted("batch_topk(size=24, k=2)")
    gated, anew = fitted("gated(size=24)"), fitted("gated(size=24)", penalties=("resample",))
    assert judged(topk) == judged(batched) == judged(gated, l0=9.0) == []
    assert judged(batched, l0=2.4) == []
    (found,) = judged(batched, l0=1.4)
    assert found.startswith("1.4 latents are active in a row, where 2 were asked for")
    assert "bandwidth" not in found
    (found,) = judged(gated, dead_share=0.5)
    assert found.startswith(
        "12 of 24 latents are active in none of the 1,000 rows judged, where each would be in 83"
    )
    assert "penalties=('resample',)" in found
    assert "resample" not in judged(anew, dead_share=0.5)[0]
    assert judged(gated, dead_share=0.45) == []
    assert judged(gated, rows=100, dead_share=0.9) == []  # too few rows to tell
    assert len(judged(batched, l0=1.0, dead_share=0.8)) == 2
    assert judged(gated, dead_share=1.0, dead_units=24.0)[0].startswith("no latent is active")
    (found,) = judged(batched, step=0.0, l0=0.1, dead_share=0.9)
    assert found.startswith("the dictionary is as it began, with random directions: none of 14 ste")
    assert doubts(topk, Run(), 1000) == []


# Figures


def test_the_same_words_on_the_page_and_the_command_line(tmp_path):
    ae = refold.Autoencoder("topk(size=48, k=2)", recipe="dictionary", epochs=3).fit(combined())
    sentence = ae.quality_.sentence(48)
    l0, dead = ae.quality_.sparse
    assert (l0, dead) == (ae.run_.best["l0"], ae.run_.best["dead_share"])
    assert sentence == (
        f"2.0 of 48 latents active a row explain {ae.quality_.kept:.1%} of the variance; "
        f"{dead:.0%} were never active"
    )
    assert f"result  {sentence}" in summary(ae, tmp_path / "m")
    ae.save(tmp_path / "m")
    again = refold.load(tmp_path / "m")
    assert again.quality_ == ae.quality_
    page = write(again, tmp_path / "r.html", combined(300)).read_text(encoding="utf-8")
    shown = re.sub(r"<(script|style).*?</\1>|<[^>]*>", " ", page, flags=re.DOTALL)
    assert sentence in shown
    assert "Kept by PCA" not in shown
    assert "where the directions are random" in shown
    assert "predicts a constant" not in shown
    for word in ("units?", "atoms?", "fired?", "fires", "neurons?", "silent"):
        assert not re.search(rf"\b{word}\b", shown, re.IGNORECASE), word
    few = replace(ae.quality_, sparse=(2.0, 0.004), kept=None)
    assert few.sentence(1024) == (
        "2.0 of 1,024 latents active a row; less than 1% were never active"
    )
    dense = refold.Autoencoder(2, epochs=1).fit(rows())
    assert dense.quality_.sparse is None
    page = write(dense, tmp_path / "r.html", rows()).read_text(encoding="utf-8")
    assert "The units of the code" in page
    assert "predicts a constant" in page


def test_explained_variance_is_about_the_mean_of_the_rows():
    g = np.random.default_rng(0)
    x = g.normal(size=(300, 4)) + 50
    ae = refold.Autoencoder("topk(size=16, k=2)", recipe="dictionary", epochs=1).fit(x)
    batch = Batch({"x": draw(60, 4) * 2 + 9}, {"x": draw(60, 4, seed=1) > -1})
    params = {"x": draw(60, 4, seed=2) * 2 + 9}
    parts = [
        squares(ae.model_, batch.rows(at), {"x": params["x"][at]})
        for at in (slice(0, 25), slice(25, 60))
    ]
    there, y = batch.observed["x"].numpy(), batch.x["x"].numpy()
    lost = np.square(y - params["x"].numpy())[there].sum()
    mean = np.nanmean(np.where(there, y, np.nan), axis=0)
    found = explained_variance(torch.cat(parts))["explained"]
    assert found == pytest.approx(1 - lost / np.square(y - mean)[there].sum())
    assert explained_variance(torch.zeros(1, 10)) == {}
    best = ae.run_.best
    assert best["explained"] == pytest.approx(ae.quality_.kept, abs=0.02)
    # The cost in nats says the same: half of what a standardised row varies is what a mean costs.
    assert best["valid_x"] == pytest.approx(0.5 * 4 * (1 - best["explained"]), rel=0.3)


def test_density_is_counted_by_decimal_logarithm():
    fired = torch.tensor([[0, 1, 10, 100, 1000, 999, 1000]])
    found = density(fired)
    assert found["dead_share"] == pytest.approx(1 / 6)
    assert found["l0"] == pytest.approx(2.11)
    for low, share in ((-3.0, 1), (-2.0, 1), (-1.0, 1), (-0.5, 2), (-5.0, 0)):
        assert found[f"density_{low}"] == pytest.approx(share / 6), low
    assert density(torch.cat([fired, fired])) == found


def test_the_report_shows_how_often_entries_fire(tmp_path):
    options = {"recipe": "dictionary", "epochs": 3}
    ae = refold.Autoencoder("topk(size=24, k=2)", **options).fit(rows())
    figure = figures.density(ae)
    captions = [p.caption for p in figure.panels]
    assert captions == [
        "Latents by share of rows,", "Active latents of a row,", "Variance explained,",
        "Latents never active,",
    ]  # fmt: skip
    page = write(ae, tmp_path / "r.html", rows()).read_text(encoding="utf-8")
    assert figure.html() in page
    dense = refold.Autoencoder(2, epochs=1).fit(rows())
    with pytest.raises(InputError, match="how often entries of the code are active"):
        figures.density(dense)
    with pytest.raises(InputError, match="not fitted"):
        figures.density(refold.Autoencoder())


def test_a_dictionary_of_wide_rows_is_no_larger_than_what_can_be_learnt():
    X = np.random.default_rng(0).normal(size=(40, 3000)).astype(np.float32)
    ae = refold.Autoencoder(recipe="dictionary", epochs=1).fit(X)
    assert 2 * 3000 * ae.spec_.size <= 50_000_000


def test_the_directions_are_read_off_the_weights():
    X = np.random.default_rng(0).normal(size=(200, 6))
    ae = refold.Autoencoder("topk(size=16, k=2)", recipe="dictionary", epochs=1).fit(X)
    found = refold.uses.inspect.dictionary(ae.model_, ae.schema_)
    assert np.array_equal(found.atoms["x"], ae.model_.fusion.decoder.detach().numpy().T)
