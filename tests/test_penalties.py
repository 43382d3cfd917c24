"""Penalties: the promises every one makes, and the mathematics of each."""

import numpy as np
import pytest
import torch
from torch import nn

import refold
from refold.errors import InputError
from refold.latents import KL, L1
from refold.parts import PartSpec
from refold.penalties import (
    ActivityKL,
    ActivityL1,
    Decorrelation,
    Orthogonality,
    Perceptual,
    penalties,
)
from refold.penalties.codes import correlation_cost
from refold.penalties.weights import identity_cost
from refold.types import Batch, Code

OPTIONS = {"perceptual": {"network": nn.Linear(6, 4)}}
OF_DICTIONARIES = {"auxk", "gate", "matryoshka", "resample"}  # tested with them
CHARGING = sorted({*penalties} - {"adversarial", "mmd"} - OF_DICTIONARIES)  # need a prior


@pytest.fixture(scope="module")
def passed():
    """A model, a batch, its code and what the decoder gave."""
    x = np.random.default_rng(0).normal(size=(50, 6))
    ae = refold.Autoencoder(latent=4, hidden=(8, 5), epochs=1, device="cpu").fit(x)
    model, rows = ae.model_, ae._encode(ae._read(x))
    output = model(rows)
    return model, rows, output.code, output.params


def built(name):
    return penalties.build(PartSpec(name, OPTIONS.get(name, {})))


@pytest.mark.parametrize("name", CHARGING)
def test_every_cost_is_a_named_scalar_that_reaches_the_model(name, passed):
    model, rows, _, _ = passed
    output = model(rows)
    costs = built(name)(model, rows, output.code, output.params)
    assert costs
    for term, cost in costs.items():
        assert term.startswith(name)
        assert cost.shape == ()
        assert torch.isfinite(cost)
        model.zero_grad()
        cost.backward(retain_graph=True)
        reached = [p.grad for p in model.parameters() if p.grad is not None]
        assert sum(float(g.abs().sum()) for g in reached) > 0
    model.zero_grad()


@pytest.mark.parametrize("name", CHARGING)
def test_spec_round_trip_and_weight(name, passed):
    penalty = built(name)
    spec = penalties.spec(penalty)
    twice = penalties.build(PartSpec(name, {**spec.options, "weight": 2 * spec.options["weight"]}))
    torch.manual_seed(0)
    one = penalty(*passed)
    torch.manual_seed(0)
    two = twice(*passed)
    for term in one:
        torch.testing.assert_close(two[term], 2 * one[term])
    with pytest.raises(InputError, match="0 or more"):
        penalties.build(PartSpec(name, {**spec.options, "weight": -1.0}))


@pytest.mark.parametrize("shape", [(3, 7), (7, 3), (5, 5), (1, 4)])
def test_orthogonality_is_the_distance_of_singular_values_from_one(shape):
    w = torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    squared = torch.linalg.svdvals(w).square()
    n = min(shape)
    torch.testing.assert_close(identity_cost(w), (squared - 1).square().sum() / n**2)
    assert identity_cost(torch.linalg.svd(w, full_matrices=False).Vh) < 1e-28
    w.requires_grad_()
    assert torch.autograd.gradcheck(identity_cost, (w,))


def test_orthogonality_charges_the_encoders_layers_or_those_named(passed):
    model = passed[0]
    shapes = [tuple(m.weight.shape) for m in Orthogonality().chosen(model)]
    assert shapes == [(8, 6), (5, 8), (4, 5)]
    named = Orthogonality(layers=("fusion.up.*",)).chosen(model)
    assert [tuple(m.weight.shape) for m in named] == [(5, 4), (8, 5), (6, 8)]
    expected = torch.stack([identity_cost(m.weight) for m in named]).mean()
    cost = Orthogonality(weight=3.0, layers=("fusion.up.*",))(*passed)["orthogonality"]
    torch.testing.assert_close(cost, 3 * expected)
    with pytest.raises(InputError, match=r"no layer is named like 'fusion\.dwon.*fusion\.down"):
        Orthogonality(layers=("fusion.dwon.*",))(*passed)


def test_orthogonality_reads_a_kernel_as_one_row_per_channel():
    net = nn.Sequential(nn.Conv2d(2, 3, 5))
    batch, code = Batch({}, {}), Code(torch.zeros(1, 1))
    cost = Orthogonality(layers=("0",))(net, batch, code, {})["orthogonality"]
    torch.testing.assert_close(cost, identity_cost(net[0].weight.view(3, 50)))


def test_decorrelation_equals_numpys_correlations():
    z = torch.randn(80, 5, dtype=torch.float64) @ torch.randn(5, 5, dtype=torch.float64) + 3
    r = np.corrcoef(z.numpy().T)
    expected = (r[~np.eye(5, dtype=bool)] ** 2).mean()
    assert float(correlation_cost(z)) == pytest.approx(expected, rel=1e-4)
    assert float(correlation_cost(1e-3 * z - 9)) == pytest.approx(expected, rel=1e-4)
    cost = Decorrelation(weight=2.0)(nn.Identity(), Batch({}, {}), Code(z), {})
    assert float(cost["decorrelation"]) == pytest.approx(2 * expected, rel=1e-4)


def test_decorrelation_is_one_for_copies_and_chance_for_independent_units():
    one = torch.randn(4000, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert float(correlation_cost(torch.cat([one, -3 * one], 1))) == pytest.approx(1, rel=1e-4)
    many = torch.randn(400, 30, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    assert float(correlation_cost(many)) == pytest.approx(1 / 400, rel=0.2)


@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
def test_dead_units_single_units_and_single_rows_have_finite_gradients(kind):
    dead = torch.randn(20, 4, dtype=kind)
    dead[:, 1] = 0.7
    for z in (dead, torch.zeros(20, 4, dtype=kind), dead[:, :1].clone(), dead[:1].clone()):
        z.requires_grad_()
        cost = correlation_cost(z)
        cost.backward()
        assert torch.isfinite(cost)
        assert torch.isfinite(z.grad).all()
    z = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(correlation_cost, (z,))


def test_decorrelation_grows_in_while_training_and_counts_in_full_after():
    penalty, z = Decorrelation(warmup=0.5), torch.randn(30, 3)

    def cost(share, mode):
        penalty.progress = share
        return float(penalty.train(mode)(penalty, Batch({}, {}), Code(z), {})["decorrelation"])

    full = float(correlation_cost(z))
    found = [cost(0.0, True), cost(0.25, True), cost(0.5, True), cost(0.0, False)]
    assert found == pytest.approx([0, full / 2, full, full])


def test_decorrelation_frees_a_code_of_its_copies():
    r = np.random.default_rng(0)
    x = r.normal(size=(300, 2)) @ r.normal(size=(2, 8)) + 0.3 * r.normal(size=(300, 8))
    plain, free = (
        refold.Autoencoder("kl(size=4, weight=0.0)", hidden=(), epochs=60, penalties=p).fit(x)
        for p in ((), ("decorrelation(weight=20.0)",))
    )
    before, after = (
        float(correlation_cost(torch.from_numpy(ae.transform(x)))) for ae in (plain, free)
    )
    assert after < 0.2 * before
    assert "valid_decorrelation" in free.history_[-1]


def images(rows=10, missing=False):
    x = torch.rand(rows, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    seen = torch.rand(rows, 36, generator=torch.Generator().manual_seed(1)) > 0.3
    return Batch({"x": x}, {"x": seen if missing else None})


class Head:
    """The one thing of a model that the perceptual cost needs."""

    def __init__(self):
        self.likelihoods = {"x": self}

    def point(self, params):
        return params


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(inplace=True), nn.Dropout(0.5), nn.Conv2d(4, 2, 3)
    )


def test_perceptual_compares_what_the_layers_give():
    batch, params = images(), {"x": torch.rand(10, 36)}
    net = network().eval()
    rebuilt, x, code = params["x"].view(10, 1, 6, 6), batch.x["x"], Code(torch.zeros(10, 1))

    def difference(part):
        return (part(rebuilt) - part(x)).square().mean()

    cost = Perceptual(network=net, weight=0.5)(Head(), batch, code, params)["perceptual"]
    torch.testing.assert_close(cost, 0.5 * difference(net))
    # The first layer's own output, before the rectifier overwrites it.
    two = Perceptual(network=net, layers=("0", "3"))(Head(), batch, code, params)["perceptual"]
    torch.testing.assert_close(two, (difference(net[0]) + difference(net)) / 2)


def test_perceptual_keeps_its_network_frozen_apart_and_untouched():
    theirs = network()
    penalty = Perceptual(network=theirs)
    assert list(penalty.parameters()) == []
    assert penalty.state_dict() == {}
    assert all(p.requires_grad for p in theirs.parameters())
    assert theirs.training
    penalty.train()
    assert not penalty.network.training
    params = {"x": torch.rand(10, 36, requires_grad=True)}
    cost = penalty(Head(), images(), Code(torch.zeros(10, 1)), params)["perceptual"]
    cost.backward()
    assert params["x"].grad.abs().sum() > 0
    assert all(p.grad is None for p in penalty.network.parameters())
    assert penalties.spec(penalty).options["network"] is penalty.network


def test_perceptual_takes_a_missing_pixel_for_what_was_reconstructed():
    batch, penalty, code = images(missing=True), Perceptual(network=network()), Code(torch.ones(1))
    seen = batch.observed["x"].view(10, 1, 6, 6)
    params = {"x": torch.rand(10, 36)}
    other = Batch({"x": torch.where(seen, batch.x["x"], 7.0)}, batch.observed)
    one, two = (penalty(Head(), b, code, params)["perceptual"] for b in (batch, other))
    assert torch.equal(one, two)
    assert one > 0
    right = {"x": batch.x["x"].flatten(1)}
    assert float(penalty(Head(), batch, code, right)["perceptual"]) == 0


def test_perceptual_looks_at_images_where_there_are_any():
    batch = Batch({"a": torch.rand(2, 3), "b": torch.rand(2, 1, 4, 4)}, {"a": None, "b": None})
    assert Perceptual(network=network()).chosen(batch) == ["b"]
    assert Perceptual(network=network(), fields=("a",)).chosen(batch) == ["a"]
    assert Perceptual(network=network()).chosen(Batch({"a": batch.x["a"]}, {})) == ["a"]
    with pytest.raises(InputError, match="unknown field 'c'"):
        Perceptual(network=network(), fields=("c",)).chosen(batch)
    with pytest.raises(InputError, match="field of numbers"):
        Perceptual(network=network()).chosen(Batch({"a": torch.zeros(2, 1).long()}, {}))


def test_perceptual_without_a_network_or_with_a_wrong_layer_is_a_sentence():
    with pytest.raises(InputError, match="needs a network"):
        penalties.build(PartSpec("perceptual"))
    with pytest.raises(InputError, match="unknown layer of the perceptual network '9'"):
        Perceptual(network=network(), layers=("9",))


def test_penalties_train_with_everything_else_and_are_logged():
    x = np.random.default_rng(0).random((60, 8, 8))
    ae = refold.Autoencoder(
        L1(6, warmup=0.5), epochs=2, penalties=("orthogonality(weight=0.1)", "decorrelation")
    ).fit(x)
    last = ae.history_[-1]
    assert {"valid_orthogonality", "valid_decorrelation", "valid_l1"} <= set(last)
    parts = [v for k, v in last.items() if k.startswith("valid_") and k != "valid_loss"]
    assert sum(parts) == pytest.approx(last["valid_loss"])


def test_soft_sparsity_of_any_code_equals_the_latents_own():
    h = torch.randn(30, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    z = torch.sigmoid(h)
    for penalty, own in (
        (ActivityKL(target=0.1, weight=2.0), KL(5, target=0.1, weight=2.0)(h).aux["sparsity"]),
        (ActivityL1(weight=0.3), L1(5, weight=0.3)(z).terms["l1"].mean()),
    ):
        (cost,) = penalty(penalty, Batch({}, {}), Code(z), {}).values()
        torch.testing.assert_close(cost, own)


@pytest.mark.parametrize("name", ["l1", "kl"])
def test_soft_sparsity_warms_up_and_is_finite_everywhere(name):
    penalty = penalties[name](weight=2.0, warmup=0.5)
    penalty.progress = 0.25
    for value in (0.0, 1.0, -3.0, 1e6):
        z = torch.full((4, 3), value, dtype=torch.float64, requires_grad=True)
        (half,) = penalty.train()(penalty, Batch({}, {}), Code(z), {}).values()
        (whole,) = penalty.eval()(penalty, Batch({}, {}), Code(z), {}).values()
        assert float(half.detach()) == pytest.approx(float(whole.detach()) / 2)
        whole.backward()
        assert torch.isfinite(z.grad).all()


def test_soft_sparsity_joins_any_latent():
    X = np.random.default_rng(0).normal(size=(200, 6))
    sizes = []
    for penalty in ((), ("l1(weight=1.0)",)):
        ae = refold.Autoencoder("topk(size=12, k=6)", hidden=(), penalties=penalty, epochs=20)
        sizes.append(np.abs(ae.fit_transform(X)).mean())
    assert sizes[1] < 0.5 * sizes[0]
    assert "valid_l1" in ae.history_[-1]


@pytest.mark.parametrize("target", [0.0, 1.0, -1.0])
def test_a_target_outside_is_refused(target):
    with pytest.raises(InputError, match="must lie between 0 and 1"):
        ActivityKL(target=target)


def test_every_penalty_takes_several_draws_of_a_code():
    x = np.random.default_rng(0).normal(size=(60, 6))
    rest = [p for p in penalties if p not in {"perceptual", *OF_DICTIONARIES}]
    for penalty in (*rest, Perceptual(network=nn.Linear(6, 4))):
        ae = refold.Autoencoder("gaussian(size=2, draws=3)", penalties=(penalty,), epochs=1).fit(x)
        assert np.isfinite(ae.history_[-1]["valid_loss"])


def test_what_a_network_sees_of_several_draws_is_the_mean_over_them(passed):
    model, rows, code, params = passed
    (name,) = rows.x
    penalty = Perceptual(network=nn.Linear(6, 4))
    drawn = {name: torch.cat([params[name], params[name] + 1.0])}
    both = Code(code.z.repeat(2, 1), draws=2)
    (found,) = penalty(model, rows, both, drawn).values()
    each = [penalty(model, rows, code, {name: p})["perceptual"] for p in drawn[name].chunk(2)]
    torch.testing.assert_close(found, torch.stack(each).mean())
