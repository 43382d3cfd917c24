"""The ladder network: its mathematics against the algorithm of the paper, and its use."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F

import refold
from refold.errors import InputError
from refold.fields import Categorical, Numeric
from refold.fusion import Ladder, fusions
from refold.fusion.combinators import GaussianCombinator, MlpCombinator
from refold.ops.batch import standardised
from refold.parts import PartSpec
from refold.spec import part_from_json, part_json
from refold.training.start import balance, baseline
from refold.uses.encoder import encoder_module

INPUTS, WIDTHS, CODE = {"a": 4, "b.c": 3}, (6, 5), 3
COSTS, NOISE = (10.0, 0.1), 0.3


def build(outputs=INPUTS, inputs=INPUTS, **options):
    """A ladder of random weights, all of which matter."""
    torch.manual_seed(0)
    wanted = {"hidden": WIDTHS, "costs": COSTS, "noise": NOISE, "answers": CODE} | options
    body = fusions.build(PartSpec("ladder", wanted), inputs, outputs, CODE, CODE).double()
    draw = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for p in body.parameters():
            p.add_(0.5 * torch.randn(p.shape, dtype=p.dtype, generator=draw))
    return body


def states(rows=9, inputs=INPUTS, seed=1):
    g = torch.Generator().manual_seed(seed)
    return {k: torch.randn(rows, n, dtype=torch.float64, generator=g) for k, n in inputs.items()}


def costed(body, hidden, seed=3):
    """One pass under the noise of a seed: code, outputs and costs."""
    torch.manual_seed(seed)
    h, beside = body.descend(hidden, {})
    return h, *body.ascend(h, beside)


def normed(z):
    return (z - z.mean(0)) / (z.var(0, correction=0) + 1e-10).sqrt()


def combined(body, level, z, u):
    a = body.steps[len(body.rungs) - level].combinator.a
    mean = a[0] * torch.sigmoid(a[1] * u + a[2]) + a[3] * u + a[4]
    kept = a[5] * torch.sigmoid(a[6] * u + a[7]) + a[8] * u + a[9]
    return (z - mean) * kept + mean


def algorithm_1(body, x, prices, seed=3):
    """Algorithm 1 of Rasmus et al. 2015, step by step, with all rows unlabelled."""
    torch.manual_seed(seed)
    top = len(body.rungs)
    h = noisy = x + NOISE * torch.randn(x.shape, dtype=x.dtype)
    corrupted, targets, means, stds = [noisy], [x], [None], [None]
    clean = x
    for level in range(1, top + 1):
        rung = body.rungs[level - 1]
        before = h @ rung.linear.weight.T
        noisy = normed(before) + NOISE * torch.randn(before.shape, dtype=x.dtype)
        corrupted.append(noisy)
        pre = clean @ rung.linear.weight.T
        means.append(pre.mean(0))
        stds.append((pre.var(0, correction=0) + 1e-10).sqrt())
        targets.append((pre - means[-1]) / stds[-1])
        if level < top:
            h, clean = (F.relu(z + rung.shift) for z in (noisy, targets[-1]))
        else:
            h = rung.scale * (noisy + rung.shift)
    code, costs = h, {}
    for level in range(top, -1, -1):
        if level == top:
            u = normed(code.softmax(1))
        else:
            u = normed(found @ body.steps[top - level].linear.weight.T)  # noqa: F821
        found = combined(body, level, corrupted[level], u)
        if level:
            away = targets[level] - (found - means[level]) / stds[level]
            costs[level] = prices[level] / away.shape[1] * away.square().sum(1).mean()
    return code, found, costs


# The mathematics


def test_code_costs_and_outputs_are_those_of_the_algorithm():
    body, hidden = build(), states()
    h, parts, costs = costed(body, hidden)
    code, below, expected = algorithm_1(
        body, torch.cat(list(hidden.values()), 1), [0, 10, 0.1, 0.1]
    )
    torch.testing.assert_close(h, code)
    torch.testing.assert_close(torch.cat(list(parts.values()), 1), below)
    assert list(costs) == ["denoise1", "denoise2", "denoise3"]
    torch.testing.assert_close(list(costs.values()), [expected[i] for i in (1, 2, 3)])


def test_gradients_are_those_of_the_algorithm_through_the_clean_way_too():
    body, hidden = build(), states()
    x = torch.cat(list(hidden.values()), 1)
    h, parts, costs = costed(body, hidden)
    total = sum(costs.values()) + h.square().sum() + sum(p.sin().sum() for p in parts.values())
    names, weights = zip(*body.named_parameters(), strict=True)
    ours = torch.autograd.grad(total, weights)
    code, below, expected = algorithm_1(body, x, [0, 10, 0.1, 0.1])
    total = sum(expected.values()) + code.square().sum() + below.sin().sum()
    for name, mine, other in zip(names, ours, torch.autograd.grad(total, weights), strict=True):
        torch.testing.assert_close(mine, other, msg=name)
        assert mine.abs().max() > 1e-9, name


def test_rows_that_join_for_their_target_are_normalised_apart_and_cost_nothing():
    body, hidden = build(noise=0.0), states(20)
    body.joined = 6
    h, _, costs = costed(body, hidden)
    x = torch.cat(list(hidden.values()), 1)
    assert len(h) == 20
    alone = build(noise=0.0)
    for rows in (slice(0, 14), slice(14, 20)):
        code, _, expected = costed(alone, {k: v[rows] for k, v in hidden.items()})
        torch.testing.assert_close(h[rows], code)
        if rows.start == 0:
            torch.testing.assert_close(costs, expected)
            pre = x[rows] @ body.rungs[0].linear.weight.T
            torch.testing.assert_close(body.rungs[0].mean, pre.mean(0))
    body.eval()
    torch.testing.assert_close(
        body.descend(hidden, {})[0][:14],
        body.descend({k: v[:14] for k, v in hidden.items()}, {})[0],
    )


def test_the_gaussian_combinator_is_its_formula_with_its_derivatives():
    g = torch.Generator().manual_seed(0)
    z, u = (torch.randn(6, 3, dtype=torch.float64, generator=g, requires_grad=True) for _ in "zu")
    part = GaussianCombinator(3).double()
    assert torch.equal(part(z, u), torch.zeros(6, 3))
    with torch.no_grad():
        part.a.copy_(torch.randn(10, 3, dtype=torch.float64, generator=g))
    a = part.a.tolist()
    found = part(z, u).detach()
    for row, unit in ((0, 0), (5, 2)):
        a1, a2, a3, a4, a5, a6, a7, a8, a9, a10 = (each[unit] for each in a)
        zi, ui = z[row, unit].item(), u[row, unit].item()
        mean = a1 / (1 + np.exp(-a2 * ui - a3)) + a4 * ui + a5
        kept = a6 / (1 + np.exp(-a7 * ui - a8)) + a9 * ui + a10
        assert float(found[row, unit]) == pytest.approx((zi - mean) * kept + mean)

    def run(z, u, a):
        return torch.func.functional_call(part, {"a": a}, (z, u))

    assert torch.autograd.gradcheck(run, (z, u, part.a))
    assert torch.autograd.gradgradcheck(run, (z, u, part.a))


def test_the_mlp_combinator_runs_one_network_over_every_unit():
    torch.manual_seed(0)
    part = MlpCombinator(3).double()
    z, u = torch.randn(2, 5, 3, dtype=torch.float64)
    with torch.no_grad():
        part.b.copy_(torch.arange(3.0))
    found = part(z, u)
    for row in range(5):
        for unit in range(3):
            given = torch.stack([u[row, unit], z[row, unit], u[row, unit] * z[row, unit]])
            inner = part.inner.weight @ given + part.inner.bias
            inner = torch.where(inner > 0, inner, 0.1 * inner)
            torch.testing.assert_close(found[row, unit], part.outer.weight[0] @ inner + unit)


def test_standardised_columns_and_their_derivatives():
    h = torch.randn(2, 7, 3, dtype=torch.float64, requires_grad=True)
    z, mean, std = standardised(h, 1e-3)
    torch.testing.assert_close(mean[:, 0], h.mean(1))
    torch.testing.assert_close(std[:, 0], (h.var(1, correction=0) + 1e-3).sqrt())
    torch.testing.assert_close(z, (h - mean) / std)
    assert torch.autograd.gradcheck(lambda h: standardised(h, 1e-3), (h,))
    assert torch.autograd.gradgradcheck(lambda h: standardised(h, 1e-3), (h,))


def test_running_statistics_are_those_of_the_clean_way():
    body = build(outputs={})
    batches = [states(seed=i) for i in range(12)]
    for hidden in batches:
        body.descend(hidden, {})
    x = torch.stack([torch.cat(list(hidden.values()), 1) for hidden in batches])
    pre = x @ body.rungs[0].linear.weight.T
    mean, var = pre[:10].mean(1).mean(0), pre[:10].var(1).mean(0)  # of ten batches: their mean
    for each in pre[10:]:
        mean, var = 0.9 * mean + 0.1 * each.mean(0), 0.9 * var + 0.1 * each.var(0)
    torch.testing.assert_close(body.rungs[0].mean, mean)
    torch.testing.assert_close(body.rungs[0].var, var)
    before = {k: v.clone() for k, v in body.state_dict().items()}
    with torch.no_grad():
        body.descend(states(seed=99), {})
    body.eval().descend(states(seed=99), {})
    assert all(torch.equal(v, before[k]) for k, v in body.state_dict().items())


def test_evaluation_has_no_noise_and_rows_do_not_meet():
    body, hidden = build(), states()
    for seed in range(20):
        costed(body, states(30, seed=seed), seed)
    body.eval()
    drawn = torch.get_rng_state()
    h, beside = body.descend(hidden, {})
    parts, costs = body.ascend(h, beside)
    assert torch.equal(drawn, torch.get_rng_state())
    x = torch.cat(list(hidden.values()), 1)
    expected, sides = x, [x]
    for i, rung in enumerate(body.rungs):
        z = (expected @ rung.linear.weight.T - rung.mean) / (rung.var + 1e-10).sqrt()
        sides.append(z)
        expected = rung.scale * (z + rung.shift) if i == 2 else F.relu(z + rung.shift)
    torch.testing.assert_close(h, expected)
    below = h.softmax(1)
    for level, step in zip((3, 2, 1, 0), body.steps, strict=True):
        u = below if level == 3 else below @ step.linear.weight.T
        below = combined(body, level, sides[level], (u - step.mean) / (step.var + 1e-10).sqrt())
        if level:
            rung = body.rungs[level - 1]
            away = (below - rung.mean) / (rung.var + 1e-10).sqrt() - sides[level]
            price = [0, 10, 0.1, 0.1][level]
            torch.testing.assert_close(costs[f"denoise{level}"], price * away.square().mean())
    torch.testing.assert_close(torch.cat(list(parts.values()), 1), below)
    one = {k: v[4:5] for k, v in hidden.items()}
    alone, beside = body.descend(one, {})
    torch.testing.assert_close(alone[0], h[4])
    torch.testing.assert_close(body.ascend(alone, beside)[0]["a"][0], parts["a"][4])


def test_the_gamma_model_is_a_ladder_with_a_cost_at_the_top_alone():
    whole, gamma = build(costs=(0.0,), top=0.5), build(outputs={}, costs=(0.0,), top=0.5)
    gamma.load_state_dict({k: v for k, v in whole.state_dict().items() if k in gamma.state_dict()})
    assert len(gamma.steps) == 1
    assert len(whole.steps) == 4
    hidden = states()
    (h, _, costs), (other, parts, same) = costed(whole, hidden), costed(gamma, hidden)
    assert parts == {}
    assert list(costs) == list(same) == ["denoise3"]
    torch.testing.assert_close((other, same["denoise3"]), (h, costs["denoise3"]))
    expected = algorithm_1(whole, torch.cat(list(hidden.values()), 1), [0, 0, 0, 0.5])[2][3]
    torch.testing.assert_close(same["denoise3"], expected)
    same["denoise3"].backward()
    assert all(p.grad is not None for p in gamma.parameters())
    assert gamma.last_bias().shape == (0,)
    assert gamma.decode(h) == {}


def test_without_costs_and_outputs_only_the_noise_is_left():
    body = build(outputs={}, costs=(0.0,))
    h, parts, costs = costed(body, states())
    assert (parts, costs, len(body.steps)) == ({}, {}, 0)
    assert h.shape == (9, CODE)


def test_the_way_up_ends_at_the_lowest_layer_with_a_cost():
    body = build(outputs={}, costs=(0.0, 0.2, 0.3))
    assert len(body.steps) == 2
    assert list(costed(body, states())[2]) == ["denoise2", "denoise3"]


def test_an_output_that_is_no_input_of_its_width_has_what_comes_from_above_alone():
    outputs = {"e": 2, "a": 4, "b.c": 5}
    body, hidden = build(outputs), states()
    parts = costed(body.eval(), hidden)[1]
    assert {k: p.shape[1] for k, p in parts.items()} == outputs
    h, beside = body.descend(hidden, {})
    torch.testing.assert_close(beside[0][:, 2:6], hidden["a"])
    assert not beside[0][:, [0, 1, 6, 7, 8, 9, 10]].any()
    with torch.no_grad():
        body.last_bias().copy_(torch.arange(11.0))
        for step in body.steps:
            step.combinator.a[[0, 3, 5, 8, 9]] = 0.0
    parts, _ = body.ascend(h, beside)
    assert torch.cat(list(parts.values()), 1)[0].tolist() == list(range(11))


@pytest.mark.parametrize("activation", ["tanh", "leaky_relu"])
@pytest.mark.parametrize("combinator", ["gaussian", "mlp"])
def test_every_parameter_learns_and_options_are_written_to_json(activation, combinator):
    body = build(activation=activation, combinator=combinator, answers=2)
    _, parts, costs = costed(body, states())
    (sum(costs.values()) + sum(p.square().sum() for p in parts.values())).backward()
    assert all(p.grad.abs().max() > 1e-12 for p in body.parameters())
    scaled = [rung.scale is not None for rung in body.rungs]
    assert scaled == [activation == "tanh"] * 2 + [True]
    spec = fusions.spec(body)
    again = part_from_json(json.loads(json.dumps(part_json(spec))))
    twin = fusions.build(again, INPUTS, INPUTS, CODE, CODE).double()
    twin.load_state_dict(body.state_dict())
    torch.testing.assert_close(costed(twin, states()), costed(body, states()))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"hidden": (0,)}, "widths of layers must be 1 or more"),
        ({"noise": -1.0}, "noise is -1.0"),
        ({"costs": ()}, "give one number of 0 or more"),
        ({"costs": (1.0, -1.0)}, "give one number of 0 or more"),
        ({"top": float("nan")}, "give one number of 0 or more"),
        ({"activation": "rely"}, "relu"),
        ({"combinator": "gauss"}, "gaussian"),
    ],
)
def test_what_makes_no_ladder_is_refused(options, said):
    with pytest.raises(InputError, match=said):
        Ladder(INPUTS, INPUTS, CODE, CODE, **options)


def test_a_code_alone_and_a_code_of_another_width_are_refused():
    with pytest.raises(InputError, match="cannot decode a code alone"):
        build().decode(torch.zeros(2, CODE))
    with pytest.raises(InputError, match="use the latent 'plain'"):
        Ladder(INPUTS, INPUTS, 2 * CODE, CODE)


# Its use


def table(rows=300, known=30, classes=("b", "a", "c"), seed=0):
    """Clusters of which few rows say what they are, and the truth."""
    r = np.random.default_rng(seed)
    truth = r.integers(len(classes), size=rows)
    x = 4 * r.normal(size=(len(classes), 6))[truth] + r.normal(size=(rows, 6))
    frame = pd.DataFrame(x, columns=list("uvwxyz"))
    frame["kind"] = np.array(classes, dtype=object)[truth]
    frame.loc[known:, "kind"] = None
    return frame, np.array(classes)[truth]


@pytest.fixture(scope="module", params=["ladder", "gamma"])
def few(request):
    frame, truth = table()
    ae = refold.Autoencoder(
        recipe=request.param,
        hidden=(32, 16),
        fields={"kind": "target"},
        epochs=15,
        validation=0.1,
    )
    return ae.fit(frame), frame, truth, request.param


def test_few_labels_are_enough(few):
    ae, frame, truth, recipe = few
    assert ae.spec_.size == 3
    assert ae.spec_.backbones["kind"].name == "coded"
    assert ae.spec_.fusion.options["answers"] == 3
    found = ae.predict(frame.drop(columns="kind"))
    assert (np.asarray(found["kind"]) == truth).mean() > 0.97
    names = {k for row in ae.history_ for k in row}
    assert ("train_denoise1" in names) == (recipe == "ladder")
    assert {"train_kind", "train_denoise3", "valid_denoise3"} <= names


def test_the_ladder_gives_rows_back_and_the_gamma_model_reads_alone(few):
    ae, frame, _, recipe = few
    written = set(ae.model_.outputs)
    assert written == ({"kind"} if recipe == "gamma" else {"numeric", "kind"})
    if recipe == "gamma":
        assert ae.transform(frame).shape == (300, 3)
        with pytest.raises(InputError, match="rebuilds nothing"):
            ae.reconstruct(frame)
    else:
        back = ae.reconstruct(frame)
        assert list(back.columns) == list("uvwxyz")
        left = frame.iloc[:, :6] - back.iloc[:, :6]
        assert (left.var() < 0.3 * frame.iloc[:, :6].var()).all()
        with pytest.raises(InputError, match="not the whole of a row"):
            ae.transform(frame)


def test_rows_are_judged_alike_whatever_comes_along_and_saved_models_agree(few, tmp_path):
    ae, frame, _, _ = few
    unlabelled = frame.assign(kind=None)
    whole = ae.score_samples(frame)
    assert np.array_equal(ae.score_samples(frame[5:40]), whole[5:40])
    assert np.array_equal(ae.score_samples(frame), whole)
    ae.save(tmp_path / "m")
    again = refold.load(tmp_path / "m")
    assert np.array_equal(again.score_samples(frame), whole)
    found, before = again.predict(unlabelled), ae.predict(unlabelled)
    assert found.equals(before)


def test_held_out_rows_are_judged_under_noise_that_is_the_same_each_time(few):
    ae, frame, _, _ = few
    body = ae.model_.fusion
    assert body.relaxed
    assert not body.training
    first, last = ae.history_[0], ae.history_[-1]
    assert last["valid_denoise3"] != first["valid_denoise3"]
    again = refold.Autoencoder(**ae.get_params()).fit(frame)
    assert [r["valid_loss"] for r in again.history_] == [r["valid_loss"] for r in ae.history_]


def test_two_classes_and_a_code_that_holds_more_than_the_answer():
    frame, truth = table(classes=("no", "yes"))
    ae = refold.Autoencoder(
        5, recipe="ladder", hidden=(16,), fields={"kind": "target"}, epochs=15
    ).fit(frame)
    assert ae.spec_.size == 5
    assert (np.asarray(ae.predict(frame.drop(columns="kind"))["kind"]) == truth).mean() > 0.97


def test_without_a_target_the_ladder_folds_rows():
    frame = table()[0].drop(columns="kind")
    ae = refold.Autoencoder(2, recipe="ladder", hidden=(16,), epochs=3).fit(frame)
    assert ae.spec_.fusion.options["answers"] == 0
    assert {"train_denoise1", "train_denoise2"} <= {k for row in ae.history_ for k in row}
    assert ae.reconstruct(frame).shape == frame.shape


def test_without_any_label_the_error_says_so():
    frame = table(known=0)[0]
    with pytest.raises(InputError, match="kind"):
        refold.Autoencoder(recipe="ladder", fields={"kind": "categorical(target=True)"}).fit(frame)


def test_a_code_too_small_for_the_answer_and_two_answers_are_refused():
    frame = table()[0]
    with pytest.raises(InputError, match=r"takes 3 numbers.*latent size is 2"):
        refold.Autoencoder(2, recipe="ladder", fields={"kind": "target"}).fit(frame)
    frame["other"] = frame["kind"].map({"a": 1.5, "b": 2.5, "c": 0.5}).astype(str)
    options = {"kind": "target", "other": "categorical(target=True, weight=2.0)"}
    with pytest.raises(InputError, match="the answer of one target, but 'kind' and 'other'"):
        refold.Autoencoder(recipe="ladder", fields=options).fit(frame)


def test_the_users_weights_win_and_the_recipes_say_what_a_constant_costs():
    frame, _ = table()
    wishes = {"recipe": "ladder", "hidden": (8,), "fields": {"kind": "target"}, "epochs": 1}
    ae = refold.Autoencoder(**wishes, weights={"kind": 7.0}).fit(frame)
    assert ae.spec_.weights == {"numeric": (1.0,), "kind": (7.0,)}
    ae = refold.Autoencoder(**wishes).fit(frame)
    fields = {k: type(f) for k, f in ae.schema_.fields.items()}
    assert fields == {"numeric": Numeric, "kind": Categorical}
    rows = ae.schema_.encode(ae._read(frame))[0]
    heads = ae.model_.likelihoods
    weights = balance(heads, ae.schema_.fields, rows, "balanced", (60.0, 6.0))
    for name, total in (("numeric", 60.0), ("kind", 6.0)):
        start = baseline(heads[name], rows.x[name], rows.observed[name])
        assert float((start * torch.tensor(weights[name])).sum()) == pytest.approx(total)


def test_known_rows_join_every_batch():
    frame, _ = table(known=12)
    ae = refold.Autoencoder(
        recipe="ladder", hidden=(8,), fields={"kind": "target"}, epochs=1, validation=0.0
    ).fit(frame)
    assert ae.plan_.labelled == 100


def test_the_encoder_alone_has_nothing_of_the_way_up(few):
    ae, frame, _, _ = few
    encoder = encoder_module(ae)
    assert not any(key.startswith("fusion.steps") for key in encoder.state_dict())
    rows = ae.schema_.encode(ae._read(frame))[0]
    with torch.inference_mode():
        torch.testing.assert_close(encoder(rows.x["numeric"]), ae.model_.encode(rows)[0].z)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_half_precision_trains_the_same_ladder(precision):
    frame, truth = table()
    ae = refold.Autoencoder(
        recipe="ladder", hidden=(16,), fields={"kind": "target"}, epochs=15, precision=precision
    ).fit(frame)
    assert (np.asarray(ae.predict(frame.drop(columns="kind"))["kind"]) == truth).mean() > 0.97
