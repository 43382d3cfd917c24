"""Fusions: any subset of the fields, and the mathematics of each."""

import itertools
import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.distributions import MixtureSameFamily, Normal, kl_divergence

import refold
from refold.errors import InputError
from refold.fields import Categorical, Image, Numeric
from refold.fusion import (
    Attention,
    Concat,
    Gated,
    Lateral,
    Mean,
    MixtureOfExperts,
    MixtureOfProducts,
    ProductOfExperts,
    Sum,
    Towers,
    fusions,
)
from refold.latents import Gaussian
from refold.parts import PartSpec
from refold.uses.encoder import encoder_module

INPUTS = {"a": 3, "b.c": 2, "d": 4}
OUTPUTS = {"b.c": 2, "e": 5}
LAYERLESS = "direct"
EXPERTS = ("moe", "mopoe", "poe")
OTHERS = ("ensemble", "dictionary")  # rows of every member, and no layers; tests of their own
ALONE = sorted(n for n in fusions if not issubclass(fusions[n], Lateral) and n not in OTHERS)
TOWERS = sorted(name for name in fusions if issubclass(fusions[name], Towers))


def build(name, inputs=INPUTS, outputs=OUTPUTS, code=4, **options):
    torch.manual_seed(0)
    if name == LAYERLESS:
        sizes = sum(inputs.values()), sum(outputs.values())
    else:
        sizes = (2 * code if name in EXPERTS else code), code
        options = {"hidden": (6,), **options}
    return fusions.build(PartSpec(name, options), inputs, outputs, *sizes).double()


def states(rows=5, inputs=INPUTS, seed=1):
    g = torch.Generator().manual_seed(seed)
    return {k: torch.randn(rows, n, dtype=torch.float64, generator=g) for k, n in inputs.items()}


def subsets(names=tuple(INPUTS)):
    """Every subset of the fields, a row each."""
    rows = list(itertools.product([False, True], repeat=len(names)))
    return dict(zip(names, torch.tensor(rows).unbind(1), strict=True))


# What holds for every fusion


@pytest.mark.parametrize("name", ALONE)
def test_shapes_and_a_gradient_on_every_parameter(name):
    body = build(name)
    h = body.encode(states(40), {})
    assert h.shape == (40, body.into)
    parts = body.decode(torch.randn(40, body.code, dtype=torch.float64, requires_grad=True))
    assert {k: p.shape for k, p in parts.items()} == {"b.c": (40, 2), "e": (40, 5)}
    (h.square().sum() + sum(p.square().sum() for p in parts.values())).backward()
    for key, parameter in body.named_parameters():
        assert parameter.grad is not None, key
        assert torch.isfinite(parameter.grad).all(), key
        assert parameter.grad.abs().max() > 1e-9, key
    assert body.last_bias().shape == (7,)


@pytest.mark.parametrize("name", ALONE)
def test_rows_stay_apart_and_evaluation_draws_nothing(name):
    body, hidden = build(name).eval(), states(8)
    present = {"a": torch.arange(8) % 3 > 0, "d": torch.arange(8) % 2 > 0}
    before = torch.get_rng_state()
    h = body.encode(hidden, present)
    assert torch.equal(h, body.encode(hidden, present))
    assert torch.equal(before, torch.get_rng_state())
    for row in (0, 3, 7):
        one = slice(row, row + 1)
        alone = body.encode(
            {k: v[one] for k, v in hidden.items()}, {k: v[one] for k, v in present.items()}
        )
        torch.testing.assert_close(alone[0], h[row])


@pytest.mark.parametrize("name", ALONE)
def test_the_last_bias_is_what_a_constant_code_of_zero_gives(name):
    body = build(name, hidden=()) if name != LAYERLESS else build(name)
    with torch.no_grad():
        body.last_bias().copy_(torch.arange(7.0))
    parts = body.decode(torch.zeros(1, body.code, dtype=torch.float64))
    assert torch.cat([parts["b.c"], parts["e"]], 1).tolist() == [[0, 1, 2, 3, 4, 5, 6]]


@pytest.mark.parametrize("name", ALONE)
def test_a_fusion_is_written_to_json_and_read_back(name):
    if name == LAYERLESS:
        body = build(name)
    else:
        stage = {"width": 4, "repeat": 2, "residual": True}
        body = build(name, hidden=(8, stage), mirror=(3,), norm="layer", activation="tanh")
    spec = fusions.spec(body)
    again = PartSpec(spec.name, json.loads(json.dumps(dict(spec.options))))
    twin = fusions.build(again, INPUTS, OUTPUTS, body.into, body.code).double()
    assert str(twin) == str(body)
    twin.load_state_dict(body.state_dict())
    hidden, z = states(), torch.ones(5, body.code, dtype=torch.float64)
    assert torch.equal(twin.eval().encode(hidden, {}), body.eval().encode(hidden, {}))
    assert torch.equal(twin.decode(z)["e"], body.decode(z)["e"])


@pytest.mark.parametrize("name", ALONE)
@pytest.mark.parametrize("hidden", [(), (6,)])
def test_leads_are_what_meets_the_fields_first(name, hidden):
    body = build(name) if name == LAYERLESS else build(name, hidden=hidden)
    expected = {"concat": [tuple(INPUTS)], "direct": []}.get(name, [(k,) for k in INPUTS])
    assert [names for names, _ in body.leads] == expected
    given, met = states(50), []
    hooks = [
        layer.register_forward_pre_hook(lambda _, args: met.append(args[0]))
        for _, layer in body.leads
    ]
    body.encode(given, {})
    for hook in hooks:
        hook.remove()
    for (names, _), x in zip(body.leads, met, strict=True):
        assert torch.equal(x, torch.cat([given[k] for k in names], 1))


@pytest.mark.parametrize("name", sorted(set(ALONE) - {LAYERLESS}))
def test_bad_stages_are_named(name):
    for option in ("hidden", "mirror"):
        with pytest.raises(InputError, match=f"{option}, stage 2: width is 0"):
            build(name, **{option: (8, 0)})
    with pytest.raises(InputError, match="did you mean 'gelu'"):
        build(name, activation="gleu")


def test_layers_of_different_fields_make_no_pairs():
    assert len(Concat({"a": 3}, {"a": 3}, 2, 2, hidden=(6,)).pairs) == 2
    for name in ALONE:
        assert build(name).pairs == ()
    for name in TOWERS:
        assert build(name, outputs=INPUTS).pairs == ()
        assert build(name).linear_path() is None


# Any subset of the fields


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", TOWERS)
def test_what_is_absent_has_no_influence(name, training):
    body, present = build(name, norm="batch").train(training), subsets()
    results = []
    for wild in (0.0, 1e6, math.nan):
        hidden = states(8)
        for k, seen in present.items():
            hidden[k][~seen] += wild
            hidden[k].requires_grad_()
        torch.manual_seed(5)
        h = body.encode(hidden, present)
        results.append(h)
        h.square().sum().backward()
        for k, seen in present.items():
            assert torch.isfinite(hidden[k].grad).all()
            assert not hidden[k].grad[~seen].any()
    assert torch.isfinite(results[0]).all()
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


@pytest.mark.parametrize("name", TOWERS)
def test_what_is_present_has_influence(name):
    body, present = build(name).eval(), subsets()
    h, hidden = body.encode(states(8), present), states(8)
    hidden["d"] = hidden["d"] + 1
    moved = (body.encode(hidden, present) - h).abs().amax(1) > 1e-9
    assert torch.equal(moved, present["d"])


@pytest.mark.parametrize("name", TOWERS)
def test_nothing_said_is_everything_present(name):
    body, hidden = build(name).eval(), states(6)
    everything = torch.ones(6, dtype=torch.bool)
    h = body.encode(hidden, {})
    torch.testing.assert_close(h, body.encode(hidden, dict.fromkeys(INPUTS, everything)))
    torch.testing.assert_close(h, body.encode(hidden, {"d": everything}))


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", TOWERS)
def test_rows_with_nothing_are_all_alike_and_finite(name, training):
    body = build(name).train(training)
    nothing = dict.fromkeys(INPUTS, torch.zeros(5, dtype=torch.bool))
    h = body.encode(states(), nothing)
    assert torch.isfinite(h).all()
    assert torch.equal(h, h[:1].expand(5, -1))
    if name in EXPERTS:
        assert not h.any()
    h.square().sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in body.parameters() if p.grad is not None)


# Sum, mean, gates, attention


def test_sums_and_means_by_hand():
    present = subsets()
    hidden = states(8)
    for name in ("sum", "mean"):
        body = build(name, width=7, activation="tanh").eval()
        h = body.encode(hidden, present)
        for row in range(8):
            there = [
                body.towers[i](hidden[k][row]) for i, k in enumerate(INPUTS) if present[k][row]
            ]
            total = torch.stack(there).sum(0) if there else torch.zeros(7, dtype=torch.float64)
            if name == "mean" and there:
                total = total / len(there)
            torch.testing.assert_close(h[row], body.last(torch.tanh(total)))


@pytest.mark.parametrize("name", ["sum", "mean"])
def test_without_layers_the_joining_is_linear(name):
    body, (one, two) = build(name, hidden=()).eval(), (states(seed=1), states(seed=2))
    both = {k: 2 * one[k] - two[k] for k in INPUTS}
    expected = 2 * body.encode(one, {}) - body.encode(two, {})
    torch.testing.assert_close(body.encode(both, {}), expected)


def test_one_field_in_a_sum_is_a_plain_body():
    torch.manual_seed(3)
    one = Sum({"x": 5}, {"x": 5}, 2, 2, hidden=(8, 6)).double()
    other = Concat({"x": 5}, {"x": 5}, 2, 2, hidden=(8, 6, 6)).double()
    own = [*one.towers.parameters(), *one.last.parameters()]
    with torch.no_grad():
        for mine, theirs in zip(own, other.down.parameters(), strict=True):
            theirs.copy_(mine)
    x = {"x": torch.randn(4, 5, dtype=torch.float64)}
    torch.testing.assert_close(one.encode(x, {}), other.encode(x, {}))


def test_gates_of_two_fields_are_those_of_the_paper():
    inputs = {"v": 3, "t": 4}
    body = build("gated", inputs=inputs, width=6, hidden=()).eval()
    hidden = states(9, inputs)
    weights = [tower.last.weight for tower in body.towers]
    biases = [tower.last.bias for tower in body.towers]
    x = torch.cat([hidden["v"], hidden["t"]], 1)
    features = [F.linear(hidden[k], weights[i][:6], biases[i][:6]).tanh() for i, k in
                enumerate(inputs)]  # fmt: skip
    of_v, of_t = (torch.cat([w[s] for w in weights], 1) for s in (slice(6, 12), slice(12, 18)))
    bias = sum(b[6:12] - b[12:18] for b in biases)
    z = torch.sigmoid(F.linear(x, of_v - of_t, bias))
    expected = body.last(z * features[0] + (1 - z) * features[1])
    torch.testing.assert_close(body.encode(hidden, {}), expected)
    torch.testing.assert_close(body.gates(hidden, {}), torch.stack([z, 1 - z], 1))


def test_gates_sum_to_one_over_what_is_there():
    body, present = build("gated", width=5), subsets()
    gates = body.gates(states(8), present)
    seen = torch.stack(list(present.values()), 1)
    assert gates.shape == (8, 3, 5)
    assert not gates[~seen].any()
    torch.testing.assert_close(gates.sum(1), seen.any(1, keepdim=True).double().expand(-1, 5))
    alone = seen.sum(1) == 1
    assert torch.equal(gates[seen & alone[:, None]], torch.ones(3, 5, dtype=torch.float64))


@pytest.mark.parametrize("heads", [1, 2, 3])
def test_attention_by_hand(heads):
    body, present, hidden = build("attention", width=6, heads=heads), subsets(), states(8)
    h = body.encode(hidden, present)
    d = 6 // heads
    key_map, value_map = body.keys_and_values.weight.split(6)
    key_bias, value_bias = body.keys_and_values.bias.split(6)
    query = body.query(body.token)
    for row in range(8):
        tokens = [body.token]
        tokens += [body.towers[i](hidden[k][row]) for i, k in enumerate(INPUTS) if present[k][row]]
        found = []
        for head in range(heads):
            part = slice(head * d, (head + 1) * d)
            scores = [query[part] @ (key_map @ t + key_bias)[part] / d**0.5 for t in tokens]
            shares = torch.stack(scores).softmax(0)
            values = torch.stack([(value_map @ t + value_bias)[part] for t in tokens])
            found.append(shares @ values)
        torch.testing.assert_close(h[row], body.last(torch.cat(found)))


def test_attention_is_that_of_torch():
    body, present, hidden = build("attention", width=8, heads=4).eval(), subsets(), states(8)
    reference = nn.MultiheadAttention(8, 4, batch_first=True).double()
    with torch.no_grad():
        reference.in_proj_weight.copy_(torch.cat([body.query.weight, body.keys_and_values.weight]))
        reference.in_proj_bias.copy_(torch.cat([body.query.bias, body.keys_and_values.bias]))
        reference.out_proj.weight.copy_(torch.eye(8))
        reference.out_proj.bias.zero_()
    features, seen = body.features(hidden, present)
    tokens = torch.cat([body.token.expand(8, 1, -1), features], 1)
    absent = F.pad(~seen, (1, 0))
    found, _ = reference(tokens, tokens, tokens, key_padding_mask=absent)
    torch.testing.assert_close(body.encode(hidden, present), body.last(found[:, 0]))


def test_widths_and_heads():
    sizes = ({"a": 3}, {"a": 3}, 5, 5)
    assert Attention(*sizes).token.shape == (8,)  # five numbers, and three more for four heads
    assert Attention(*sizes, hidden=(6,), heads=3).token.shape == (6,)
    assert Sum(*sizes, hidden=(16, {"width": 7})).last.in_features == 7
    assert Mean(*sizes, hidden=(16,), width=9).last.in_features == 9
    assert Gated(*sizes).last.in_features == 5
    with pytest.raises(InputError, match="a width of 6 does not part into 4 heads"):
        Attention(*sizes, width=6)
    with pytest.raises(InputError, match="heads is 0"):
        Attention(*sizes, heads=0)
    with pytest.raises(InputError, match="width is 0; it must be from 1"):
        Sum(*sizes, width=0)


# Experts


def normals(body, hidden):
    """Mean and log-variance ``[B, K, D]`` of every field's expert."""
    mean, log_variance = body.features(hidden, {})[0].chunk(2, 2)
    return mean, log_variance.clamp(-12, 12)


def by_grid(density, z):
    """Mean and variance of a density known on a grid but for its scale."""
    p = density / density.sum()
    mean = (p * z).sum()
    return mean, (p * (z - mean) ** 2).sum()


def test_a_product_of_experts_is_the_product_of_densities():
    body, present, hidden = build("poe", code=1), subsets(), states(8)
    result = body.encode(hidden, present)
    mean, log_variance = normals(body, hidden)
    z = torch.linspace(-12, 12, 20001, dtype=torch.float64)
    for row in range(8):
        density = Normal(0.0, 1.0).log_prob(z)
        for i, k in enumerate(INPUTS):
            if present[k][row]:
                scale = (0.5 * log_variance[row, i, 0]).exp()
                density = density + Normal(mean[row, i, 0], scale).log_prob(z)
        expected = by_grid(density.exp(), z)
        torch.testing.assert_close(result[row, 0], expected[0], atol=1e-8, rtol=1e-7)
        torch.testing.assert_close(result[row, 1].exp(), expected[1], atol=1e-8, rtol=1e-7)


def test_the_latent_charges_the_divergence_of_the_product():
    body, latent = build("poe", code=3), Gaussian(3).eval()
    result = body.encode(states(), {})
    mean, log_variance = result.chunk(2, 1)
    prior = Normal(torch.zeros_like(mean), 1.0)
    expected = kl_divergence(Normal(mean, (0.5 * log_variance).exp()), prior).sum(1)
    torch.testing.assert_close(latent(result).terms["kl"], expected)
    assert bool((log_variance <= 0).all())  # a product with the prior is never wider than it


def sharpened(body, factor):
    """Let experts be very sure, or very unsure, of very large means."""
    with torch.no_grad():
        for tower in body.towers:
            tower.last.weight.mul_(factor)
    return body


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", EXPERTS)
def test_experts_stay_finite_in_single_precision(name, training):
    body = sharpened(build(name), 1e4).float().train(training)
    hidden = {k: v.float() for k, v in states(64).items()}
    h = body.encode(hidden, {})
    h.sum().backward()
    assert torch.isfinite(h).all()
    assert all(torch.isfinite(p.grad).all() for p in body.parameters() if p.grad is not None)
    exact = sharpened(build(name), 1e4).eval()
    single = body.eval().encode(hidden, {}).double()
    double = exact.encode({k: v.double() for k, v in hidden.items()}, {})
    torch.testing.assert_close(single, double, rtol=2e-3, atol=1e-3)


@torch.no_grad()
def test_a_mixture_in_evaluation_has_the_moments_of_its_parts():
    body, present, hidden = build("moe", code=2).eval(), subsets(), states(8)
    result = body.encode(hidden, present)
    mean, log_variance = normals(body, hidden)
    g = torch.Generator().manual_seed(0)
    for row in range(1, 8):
        there = [i for i, k in enumerate(INPUTS) if present[k][row]]
        m, s = mean[row, there].T, (0.5 * log_variance[row, there]).exp().T
        weights = torch.ones(2, len(there), dtype=torch.float64)
        mixture = MixtureSameFamily(torch.distributions.Categorical(weights), Normal(m, s))
        torch.testing.assert_close(result[row, :2], mixture.mean)
        torch.testing.assert_close(result[row, 2:].exp(), mixture.variance)
        # And by drawing from the parts.
        n = 200_000
        part = torch.randint(len(there), (n,), generator=g)
        drawn = m[:, part] + s[:, part] * torch.randn(2, n, dtype=torch.float64, generator=g)
        for i in range(2):
            error = 5 * float(mixture.variance[i] / n) ** 0.5
            assert float(drawn[i].mean()) == pytest.approx(float(result[row, i]), abs=error)
            assert float(drawn[i].var()) == pytest.approx(float(result[row, 2 + i].exp()), rel=0.03)


@pytest.mark.parametrize("name", ["moe", "mopoe"])
@torch.no_grad()
def test_divergences_lie_on_either_side_of_the_mixtures(name):
    body, hidden, latent = build(name, code=1), states(4), Gaussian(1).eval()
    parts = components(body, hidden)
    z = torch.linspace(-20, 20, 40001, dtype=torch.float64)
    step = float(z[1] - z[0])
    matched = latent(body.eval().encode(hidden, {})).terms["kl"]
    for row in range(4):
        own = [(h[row, 0], h[row, 1]) for h in parts]
        density = sum(Normal(m, (0.5 * v).exp()).log_prob(z).exp() for m, v in own) / len(own)
        inside = density > 1e-300
        log_ratio = density[inside].log() - Normal(0.0, 1.0).log_prob(z[inside])
        between = float((density[inside] * log_ratio).sum()) * step
        charged = torch.stack([latent(h).terms["kl"][row] for h in parts]).mean()
        assert float(matched[row]) <= between + 1e-9
        assert between <= float(charged) + 1e-9


def components(body, hidden):
    """Every part of the mixture over all fields, ``[B, 2 D]`` each, computed one by one."""
    mean, log_variance = normals(body, hidden)
    if isinstance(body, MixtureOfExperts):
        return [torch.cat([mean[:, i], log_variance[:, i]], 1) for i in range(len(INPUTS))]
    return [
        torch.cat(multiplied(mean[:, list(s)], log_variance[:, list(s)]), 1)
        for n in range(1, len(INPUTS) + 1)
        for s in itertools.combinations(range(len(INPUTS)), n)
    ]


def multiplied(mean, log_variance):
    precision = 1 + (1 / log_variance.exp()).sum(1)
    return (mean / log_variance.exp()).sum(1) / precision, (1 / precision).log()


def test_a_mixture_of_products_has_the_moments_of_all_subsets():
    body, present, hidden = build("mopoe", code=2).eval(), subsets(), states(8)
    result = body.encode(hidden, present)
    mean, log_variance = normals(body, hidden)
    for row in range(1, 8):
        there = [i for i, k in enumerate(INPUTS) if present[k][row]]
        found = [
            multiplied(mean[row : row + 1, list(s)], log_variance[row : row + 1, list(s)])
            for n in range(1, len(there) + 1)
            for s in itertools.combinations(there, n)
        ]
        assert len(found) == 2 ** len(there) - 1
        m = torch.cat([m for m, _ in found]).T
        s = torch.cat([(0.5 * v).exp() for _, v in found]).T
        mixture = MixtureSameFamily(
            torch.distributions.Categorical(torch.ones_like(m)), Normal(m, s)
        )
        torch.testing.assert_close(result[row, :2], mixture.mean)
        torch.testing.assert_close(result[row, 2:].exp(), mixture.variance)


@pytest.mark.parametrize("training", [False, True])
def test_mixtures_of_one_field_are_that_field(training):
    one, hidden = {"x": 5}, states(6, {"x": 5})
    bodies = {n: build(n, inputs=one, outputs=one).train(training) for n in EXPERTS}
    for body in bodies.values():
        body.load_state_dict(bodies["poe"].state_dict())
    h = {n: body.encode(hidden, {}) for n, body in bodies.items()}
    torch.testing.assert_close(h["mopoe"], h["poe"])
    torch.testing.assert_close(h["moe"], torch.cat(normals(bodies["moe"], hidden), 2)[:, 0])
    # Alone among several inputs, too.
    body = build("mopoe").train(training)
    only = {k: torch.full((6,), k == "d") for k in INPUTS}
    mean, log_variance = (v[:, 2:] for v in normals(body, states(6)))
    expected = torch.cat(multiplied(mean, log_variance), 1)
    torch.testing.assert_close(body.encode(states(6), only), expected)


@pytest.mark.parametrize("name", ["moe", "mopoe"])
def test_training_draws_parts_of_the_mixture_equally_often(name):
    body = build(name)
    rows = 14_000
    hidden = {k: v.expand(rows, -1) for k, v in states(1).items()}
    parts = torch.stack(components(body, states(1)))[:, 0]
    torch.manual_seed(7)
    result = body.encode(hidden, {})
    nearest = (result[:, None] - parts).abs().amax(2)
    assert nearest.amin(1).max() < 1e-12
    counts = nearest.argmin(1).bincount(minlength=len(parts)).double()
    expected = rows / len(parts)
    assert len(parts) == (3 if name == "moe" else 7)
    chi_squared = float(((counts - expected) ** 2 / expected).sum())
    assert chi_squared < 25
    torch.manual_seed(7)
    assert torch.equal(result, body.encode(hidden, {}))
    present = {"a": torch.zeros(rows, dtype=torch.bool)}
    drawn = torch.unique(body.encode(hidden, present).detach().round(decimals=9), dim=0)
    assert len(drawn) == (2 if name == "moe" else 3)


@pytest.mark.parametrize("name", EXPERTS)
def test_experts_need_a_gaussian_latent(name):
    with pytest.raises(InputError, match=f"'{name}' gives a mean and a log-variance .* 'gaussian'"):
        fusions.build(PartSpec(name), {"a": 3}, {"a": 3}, 4, 4)


def test_a_mixture_over_subsets_takes_six_inputs():
    six = {str(i): 2 for i in range(6)}
    body = MixtureOfProducts(six, six, 4, 2)
    assert body.subsets.shape == (63, 6)
    assert "subsets" not in body.state_dict()
    with pytest.raises(InputError, match=r"7 have 127; it takes at most 6 .* fusion 'poe'"):
        MixtureOfProducts({**six, "6": 2}, six, 4, 2)
    assert ProductOfExperts({**six, "6": 2}, six, 4, 2).code == 2


# Fitted models


ROWS = 90


def table(gaps=False):
    r = np.random.default_rng(0)
    label = r.integers(0, 3, ROWS)
    image = np.clip(0.3 * r.random((ROWS, 5, 6)) + 0.3 * label[:, None, None], 0, 1)
    number = label + 0.3 * r.normal(size=ROWS)
    names = np.array(["a", "b", "c"], dtype=object)[label]
    if gaps:
        number[r.random(ROWS) < 0.3] = np.nan
        names[r.random(ROWS) < 0.3] = None
    return {"image": image.astype(np.float32), "label": names, "number": number}


def fields(dense):
    if not dense:
        return None
    return {
        "image": Image(backbone="dense(hidden=[12, 8])"),
        "label": Categorical(backbone="dense(hidden=[5], norm='layer')"),
        "number": Numeric(backbone="dense(hidden=[4], mirror=[])"),
    }


@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("name", sorted(set(ALONE) - {LAYERLESS}))
def test_a_model_of_every_fusion_is_fitted_saved_and_loaded(name, dense, tmp_path):
    recipe = "vae" if name in EXPERTS else None
    ae = refold.Autoencoder(
        3, fusion=name, recipe=recipe, hidden=(8,), epochs=2, fields=fields(dense)
    )
    data = table(gaps=True)
    z = np.asarray(ae.fit(data).transform(data))
    assert z.shape == (ROWS, 3)
    assert np.isfinite(z).all()
    assert np.isfinite(ae.score_samples(data)).all()
    ae.save(tmp_path / "model")
    again = refold.load(tmp_path / "model")
    assert np.array_equal(np.asarray(again.transform(data)), z)
    encoder = encoder_module(ae)
    assert not any(key.startswith("fusion.up") for key in encoder.state_dict())
    ae.fit(data)
    assert np.array_equal(np.asarray(ae.transform(data)), z)


def test_dense_layers_of_fields_are_trained_one_by_one():
    data = table()
    ae = refold.Autoencoder(
        2, fusion="sum", hidden=(), epochs=4, pretrain="layerwise", fields=fields(True)
    ).fit(data)
    assert len({row["phase"] for row in ae.history_}) == 4
    assert np.isfinite(np.asarray(ae.transform(data))).all()
