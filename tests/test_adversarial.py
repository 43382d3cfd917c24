"""Codes matched to a prior by a critic: priors, latent, costs, updates, guards, labels."""

import copy
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import stats
from torch import nn

import refold
from refold.errors import InputError
from refold.latents import Matched
from refold.latents.priors import Labelled, prior, priors
from refold.penalties import Adversarial
from refold.penalties.adversarial import (
    Critic,
    Deviation,
    Discrimination,
    energy_distance,
    frozen,
    softplus,
)
from refold.types import Batch, Code

MANY = 40_000


def drawn(text, size=2, n=MANY):
    torch.manual_seed(0)
    return prior(text, size).draw(n).double()


def test_a_normal_prior_is_normal_and_a_uniform_one_fills_the_cube():
    z = drawn("normal", 3)
    assert stats.kstest(z.flatten().numpy(), "norm").pvalue > 0.01
    assert float((z.T.cov() - torch.eye(3)).abs().max()) < 0.03
    z = drawn("uniform(bound=2.0)", 3)
    assert stats.kstest(z.flatten().numpy(), "uniform", (-2, 4)).pvalue > 0.01


def test_a_mixture_has_the_moments_of_a_ring_and_each_class_a_component():
    z = drawn("mixture(components=5, radius=2.0, along=0.5, across=0.2)", 4)
    within = (2.0**2 + 0.5**2 + 0.2**2) / 2
    expected = torch.diag(torch.tensor([within, within, 1.0, 1.0], dtype=torch.float64))
    assert float(z.mean(0).abs().max()) < 0.03
    assert float((z.T.cov() - expected).abs().max()) < 0.04
    law = prior("mixture(components=5, radius=2.0, along=0.5, across=0.2)", 4)
    for i in range(5):
        z = law.given(torch.full((MANY,), i), 5).double()
        angle = 2 * math.pi * i / 5
        out = torch.tensor([math.cos(angle), math.sin(angle)], dtype=torch.float64)
        side = torch.tensor([-out[1], out[0]], dtype=torch.float64)
        for axis, mean, deviation in ((out, 2.0, 0.5), (side, 0.0, 0.2)):
            along = (z[:, :2] @ axis).numpy()
            assert stats.kstest(along, "norm", (mean, deviation)).pvalue > 0.001


def test_a_swiss_roll_is_its_formula_and_each_class_a_segment():
    law = prior("swiss_roll(turns=2.0, radius=3.0)", 3)
    for at, classes in ((None, 1), (2, 4)):
        torch.manual_seed(0)
        labels = torch.full((MANY,), at or 0)
        z = law.draw(MANY) if at is None else law.given(labels, classes)
        t = (z[:, 0].square() + z[:, 1].square()).double() / 9
        low = (at or 0) / classes
        assert stats.kstest(t.numpy(), "uniform", (low, 1 / classes)).pvalue > 0.001
        angle = 4 * math.pi * t.sqrt()
        curve = 3 * t.sqrt()[:, None] * torch.stack([angle.cos(), angle.sin()], 1)
        torch.testing.assert_close(z[:, :2].double(), curve, atol=1e-4, rtol=0)
        assert stats.kstest(z[:, 2].numpy(), "norm").pvalue > 0.001
    torch.manual_seed(1)
    rough = prior("swiss_roll(noise=0.3, radius=0.0)", 2).draw(MANY)
    assert stats.kstest((rough / 0.3).flatten().numpy(), "norm").pvalue > 0.01


def test_a_categorical_prior_has_each_class_as_often():
    z = drawn("categorical", 4)
    assert set(z.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(z.sum(1), torch.ones(MANY, dtype=torch.float64))
    assert stats.chisquare(z.sum(0).numpy()).pvalue > 0.01


@pytest.mark.parametrize("name", list(priors))
def test_priors_are_as_wide_as_the_code_and_follow_the_seed(name):
    law = prior(name, 5)
    torch.manual_seed(3)
    one = law.draw(7)
    torch.manual_seed(3)
    assert one.shape == (7, 5)
    assert torch.equal(one, law.draw(7))
    if isinstance(law, Labelled):
        assert law.given(torch.tensor([0, 1]), 5).shape == (2, 5)


@pytest.mark.parametrize(
    ("text", "size", "said"),
    [
        ("mixtrue", 2, "unknown prior 'mixtrue'.*mixture"),
        ("mixture", 1, "lies in a plane"),
        ("swiss_roll", 1, "lies in a plane"),
        ("mixture(components=0)", 2, "1 or more"),
        ("mixture(across=-1.0)", 2, "across is -1.0"),
        ("swiss_roll(turns=-1.0)", 2, "turns is -1.0"),
        ("uniform(bound=0.0)", 2, "above 0"),
    ],
)
def test_a_prior_that_cannot_be_is_a_sentence(text, size, said):
    with pytest.raises(InputError, match=said):
        prior(text, size)


def test_a_matched_code_is_shares_of_classes_and_the_rest_as_it_is():
    h = torch.randn(6, 5, dtype=torch.float64)
    z = Matched(5, classes=3)(h).z
    torch.testing.assert_close(z[:, :3], h[:, :3].softmax(1))
    assert torch.equal(z[:, 3:], h[:, 3:])
    assert torch.equal(Matched(5)(h).z, h)
    torch.testing.assert_close(Matched(5, prior="categorical")(h).z, h.softmax(1))
    assert Matched(3, classes=3)(h[:, :3]).z.sum(1).tolist() == pytest.approx([1.0] * 6)


def test_a_matched_prior_draws_classes_apart_from_the_rest():
    torch.manual_seed(0)
    z = Matched(5, prior="mixture(components=4)", classes=3).sample(MANY).double()
    assert stats.chisquare(z[:, :3].sum(0).numpy()).pvalue > 0.01
    assert float(z.T.corrcoef()[:3, 3:].abs().max()) < 0.02


@pytest.mark.parametrize("classes", [1, -1, 6])
def test_classes_that_do_not_fit_are_a_sentence(classes):
    with pytest.raises(InputError, match="classes"):
        Matched(5, classes=classes)


class Small(nn.Module):
    """The little of a model that the penalty needs: an encoder, a latent, perhaps a label."""

    def __init__(self, latent, inputs=4, classes=0):
        super().__init__()
        self.encoder = nn.Linear(inputs, latent.width)
        self.latent = latent
        self.backbones = {}
        if classes:
            geometry = type("Geometry", (), {"sizes": (classes,)})
            self.backbones["y"] = type("Spine", (), {"geometry": geometry})


def small(latent=None, classes=0, **options):
    torch.manual_seed(0)
    model = Small(latent or Matched(3, prior="uniform"), classes=classes).double()
    penalty = Adversarial(hidden=(8,), **options)
    penalty.attach(model)
    return model, penalty.double()


def costs_of(model, penalty, x, batch=None):
    return penalty(model, batch or Batch({}, {}), model.latent(model.encoder(x)), {})


X = torch.randn(20, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def logit(penalty, z):
    first, last = (m for m in penalty.networks[0][0].modules() if isinstance(m, nn.Linear))
    return last(first(z).relu())[:, 0]


@pytest.mark.parametrize("updates", ["alternating", "simultaneous"])
def test_one_backward_gives_each_side_the_gradient_of_its_own_cost_alone(updates):
    model, penalty = small(updates=updates, weight=3.0)
    for turn in range(2):
        torch.manual_seed(5 + turn)
        costs = costs_of(model, penalty, X)
        learning = [c for c in costs.values() if c.requires_grad]
        torch.autograd.backward(learning)
        torch.manual_seed(5 + turn)
        z, draws = model.encoder(X), model.latent.sample(20).double()
        told = F.binary_cross_entropy_with_logits
        critic = told(logit(penalty, draws), torch.ones(20).double()) + told(
            logit(penalty, z.detach()), torch.zeros(20).double()
        )
        encoder = 3.0 * told(logit(penalty, z), torch.ones(20).double())
        for own, cost, moves in (
            (list(penalty.parameters()), critic, updates == "simultaneous" or turn == 0),
            (list(model.encoder.parameters()), encoder, updates == "simultaneous" or turn == 1),
        ):
            expected = torch.autograd.grad(cost, own, retain_graph=True)
            for parameter, gradient in zip(own, expected, strict=True):
                if moves:
                    torch.testing.assert_close(parameter.grad, gradient)
                else:
                    assert parameter.grad is None
                parameter.grad = None
        if updates == "simultaneous":
            torch.testing.assert_close(costs["adversarial_critic"], critic)
            torch.testing.assert_close(costs["adversarial"], encoder)


def test_neither_cost_reaches_the_other_side():
    model, penalty = small(updates="simultaneous")
    costs = costs_of(model, penalty, X)
    theirs = [*model.encoder.parameters()]
    found = torch.autograd.grad(
        costs["adversarial_critic"], theirs, allow_unused=True, retain_graph=True
    )
    assert found == (None, None)
    assert all(
        g is None
        for g in torch.autograd.grad(
            costs["adversarial"], [*penalty.parameters()], allow_unused=True, retain_graph=True
        )
    )
    assert all(p.requires_grad for p in penalty.parameters())


def test_frozen_leaves_alone_what_was_frozen_before():
    layer = nn.Linear(2, 2)
    layer.bias.requires_grad_(False)
    with frozen(layer):
        assert not layer.weight.requires_grad
    assert layer.weight.requires_grad
    assert not layer.bias.requires_grad


def rows_of(n=64):
    x = np.random.default_rng(0).normal(size=(n, 2)) @ np.random.default_rng(1).normal(size=(2, 5))
    return x + 0.1 * np.random.default_rng(2).normal(size=(n, 5))


def started(**options):
    """A model with the weights it starts from, its rows, and a plan of few steps, in float64."""
    from refold.assemble import Wishes, assemble
    from refold.data.schema import Schema
    from refold.data.sources import read
    from refold.training.plan import Plan

    table = read(rows_of())
    schema = Schema.fit(table, np.arange(len(table)))
    rows, _ = schema.encode(table)
    wishes = Wishes(
        recipe="dense",
        latent="matched(size=2)",
        hidden=(6,),
        fusion="concat(linear=False)",
        penalties=(f"adversarial(hidden=(7,), lr=0.003, weight=2.0{options.get('more', '')})",),
    )
    torch.manual_seed(0)
    model = assemble(schema, rows, wishes).spec.build(schema).double()
    x = {k: v.double() for k, v in rows.x.items()}
    return model, Batch(x, rows.observed), Plan.choose(len(table), epochs=2, batch_size=32, lr=1e-3)


def test_training_equals_two_optimisers_taking_turns():
    from refold.data.feed import shuffling
    from refold.training.fit import fit

    model, rows, plan = started()
    twin = copy.deepcopy(model)
    torch.manual_seed(7)
    run = fit(model, rows, None, plan)
    assert run.best["step"] == plan.steps  # else these are not the weights of the last step

    (penalty,) = twin.penalties
    penalty.requires_grad_(True)
    main = [p for k, p in twin.named_parameters() if not k.startswith("_penalties")]
    ours = torch.optim.AdamW(main, lr=1e-3, weight_decay=1e-4)
    theirs = torch.optim.Adam(penalty.parameters(), lr=3e-3, betas=(0.5, 0.999))
    (name,) = twin.outputs
    weight, told = twin.weight(name), F.binary_cross_entropy_with_logits
    rates = plan.rates()
    one, zero = torch.ones(32).double(), torch.zeros(32).double()
    torch.manual_seed(7)
    step = 0
    while step < plan.steps:
        order = torch.randperm(len(rows), generator=shuffling(0, step // plan.steps_per_epoch))
        for index in order.split(32):
            ours.param_groups[0]["lr"] = rates[step // plan.tick]
            theirs.param_groups[0]["lr"] = 3 * rates[step // plan.tick]
            x = rows.x[name][index]
            z = twin.fusion.down(x)
            rebuilt = twin.fusion.up(z)
            draws = torch.randn(32, 2).double()
            ours.zero_grad()
            loss = twin.likelihoods[name].cost(rebuilt, x, None, weight)
            loss = loss[0] * loss[1]
            if step % 2 == 0:
                theirs.zero_grad()
                critic = told(logit(penalty, draws), one) + told(logit(penalty, z.detach()), zero)
                critic.backward()
                theirs.step()
                loss.backward()
            else:
                (loss + 2.0 * told(logit(penalty, z), one)).backward()
            ours.step()
            step += 1
    for (key, mine), other in zip(model.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-9, atol=1e-12, msg=key)


def test_evaluation_changes_nothing_and_reports_the_distance_from_the_prior():
    model, rows, _ = started()
    model.eval()
    before = copy.deepcopy(model.state_dict())
    torch.manual_seed(0)
    output = model(rows)
    costs = output.costs
    torch.manual_seed(0)
    draws = torch.randn(64, 2).double()
    assert set(costs) == {*model.outputs, "adversarial"}
    expected = 2.0 * energy_distance(output.code.z, draws)
    torch.testing.assert_close(costs["adversarial"][0], expected)
    (penalty,) = model.penalties
    right = (logit(penalty, draws) > 0).double() + (logit(penalty, output.code.z) < 0).double()
    torch.testing.assert_close(output.code.stats["critic"].double(), right / 2)
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key])
    turn = penalty._turn
    model(rows).costs  # noqa: B018
    assert penalty._turn == turn


def test_the_energy_distance_equals_its_closed_form_and_is_zero_for_one_distribution():
    x = torch.randn(1000, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    # Of normals with means apart by d: 2 E|N(d, 2)| - 2 E|N(0, 2)|.
    for d in (0.0, 2.0):
        folded = 2 / math.sqrt(math.pi) * math.exp(-(d**2) / 4) + d * math.erf(d / 2)
        y = torch.randn(1000, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        expected = 2 * folded - 4 / math.sqrt(math.pi)
        assert float(energy_distance(x, y + d)) == pytest.approx(expected, abs=0.05)
    many = [energy_distance(torch.randn(5, 2), torch.randn(5, 2)) for _ in range(4000)]
    assert float(torch.stack(many).mean()) == pytest.approx(0, abs=0.03)  # no bias in few rows


def plain_critic(inputs=3, hidden=(6,), statistics="none", spectral=False):
    torch.manual_seed(0)
    return Critic(inputs, hidden, statistics, spectral).double()


def test_spectral_norms_are_one_whatever_the_weights():
    critic = plain_critic(hidden=(6, 5), statistics="discrimination", spectral=True)
    layers = [m for m in critic.modules() if isinstance(m, nn.Linear)]
    with torch.no_grad():
        for layer in layers:
            layer.parametrizations.weight.original.mul_(30)
    for _ in range(200):
        critic(torch.randn(4, 3).double())
    norms = [float(torch.linalg.matrix_norm(m.weight, 2).detach()) for m in layers]
    assert norms == pytest.approx([1.0] * 4, rel=1e-3)


def test_batch_statistics_equal_their_formulas_and_tell_a_collapsed_batch():
    h = torch.randn(9, 4, dtype=torch.float64)
    expected = float(h.std(0, correction=0).mean())
    assert Deviation()(h).flatten().tolist() == pytest.approx([expected] * 9, rel=1e-6)
    part = Discrimination(4).double()
    m = (h @ part.tensor.weight.T).view(9, 16, 4)
    apart = (m[:, None] - m[None]).abs().sum(3)
    torch.testing.assert_close(part(h), (-apart).exp().mean(1))
    one = h[:1].expand(9, 4)
    for statistics in ("std", "discrimination"):
        critic = plain_critic(4, (), statistics)
        alone = torch.cat([critic(h[i : i + 1]) for i in range(9)])
        assert not torch.allclose(critic(h), alone)  # the batch has a say
        torch.testing.assert_close(critic(one), alone[:1].expand(9))  # and here none
        h.requires_grad_()
        critic(h).sum().backward()
        assert torch.isfinite(h.grad).all()
        h = h.detach()
    plain = plain_critic(4)
    torch.testing.assert_close(plain(h)[:1], plain(h[:1]))


def test_instance_noise_is_what_it_says_and_ends_with_the_training():
    model, penalty = small(noise=0.5, updates="simultaneous")
    seen = []
    penalty.networks[0][0].register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    z = torch.zeros(4000, 3, dtype=torch.float64)
    for progress, deviation in ((0.0, 0.5), (0.6, 0.2), (1.0, 0.0)):
        seen.clear()
        penalty.progress = progress
        penalty(model, Batch({}, {}), Code(z), {})
        _, told, deceived = seen
        assert float(told.std()) == pytest.approx(deviation, rel=0.03)
        assert float(deceived.std()) == pytest.approx(deviation, rel=0.03)
        assert deviation == 0 or not torch.equal(told, deceived)
    penalty.progress = 0.0
    penalty.eval()(model, Batch({}, {}), Code(z), {})
    assert torch.equal(seen[-2], z)


def test_several_critics_differ_and_their_costs_are_averaged():
    model, penalty = small(critics=3, updates="simultaneous")
    z = model.latent(model.encoder(X)).z
    each = [F.softplus(-critic(z)).mean().detach() for critic in penalty.networks[0]]
    assert len({round(float(e), 9) for e in each}) == 3
    costs = costs_of(model, penalty, X)
    torch.testing.assert_close(costs["adversarial"], torch.stack(each).mean())


def test_shares_of_classes_and_the_rest_have_a_critic_each():
    latent = Matched(5, prior="uniform", classes=3)
    model, penalty = small(latent, updates="simultaneous")
    seen = []
    for theirs in penalty.networks:
        theirs[0].register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    costs = costs_of(model, penalty, X)
    z = model.latent(model.encoder(X)).z
    draws, codes = seen[:2], seen[2:4]
    torch.testing.assert_close(torch.cat(codes, 1), z)
    assert set(draws[0].unique().tolist()) == {0.0, 1.0}
    assert draws[1].shape == (20, 2)
    one, two = (F.softplus(-c[0](x)).mean() for c, x in zip(penalty.networks, codes, strict=True))
    torch.testing.assert_close(costs["adversarial"], one + two)


def test_labels_show_the_critic_a_class_and_draw_from_its_part_of_the_prior():
    latent = Matched(2, prior="mixture(components=3, along=0.0, across=0.0)")
    model, penalty = small(latent, classes=3, labels="y", updates="simultaneous")
    y = torch.tensor([0, 1, 2, -1, 2] * 4)[:, None]
    seen = torch.ones_like(y, dtype=torch.bool)
    seen[4] = False  # a class that must not be told
    shown = []
    penalty.networks[0][0].register_forward_pre_hook(lambda _, given: shown.append(given[0]))
    costs_of(model, penalty, X, Batch({"y": y}, {"y": seen}))
    draws, codes = shown[:2]
    told = torch.where(seen & (y >= 0), y, 3)[:, 0]
    expected = F.one_hot(told, 4).double()
    assert torch.equal(draws[:, 2:], expected)
    assert torch.equal(codes[:, 2:], expected)
    angle = torch.atan2(draws[:, 1], draws[:, 0]) / (2 * math.pi / 3)
    component = angle.round().long() % 3
    assert torch.equal(component[told < 3], told[told < 3])
    assert len(component[told == 3].unique()) > 1  # of rows without a class: any component


@pytest.mark.parametrize(
    ("latent", "options", "said"),
    [
        (Matched(2), {"labels": "y"}, "needs a prior with a part for each class.*mixture"),
        (Matched(2, prior="mixture"), {"labels": "y"}, r"10 components.*components=3"),
        (Matched(2, prior="swiss_roll"), {"labels": "u"}, "unknown field of labels 'u'.*y"),
        (refold.latents.Plain(2), {}, "have no prior.*matched"),
        (Matched(2), {"updates": "both"}, "unknown way of updates 'both'.*alternating"),
        (Matched(2), {"batch_statistics": "all"}, "unknown batch statistics 'all'"),
        (Matched(2), {"critics": 0}, "0 critics"),
        (Matched(2), {"lr": 0.0}, "lr is 0.0"),
        (Matched(2), {"noise": -1.0}, "noise is -1.0"),
        (Matched(2), {"weight": -1.0}, "weight is -1.0"),
    ],
)
def test_a_critic_that_cannot_be_is_a_sentence(latent, options, said):
    with pytest.raises(InputError, match=said):
        small(latent, classes=3, **options)


def test_a_matched_latent_without_a_penalty_is_a_sentence():
    with pytest.raises(InputError, match=r"nothing pulls the codes.*adversarial"):
        refold.Autoencoder("matched(size=2)", epochs=1).fit(rows_of())


def test_the_mean_of_logits_in_half_precision_is_taken_in_single():
    assert softplus(torch.zeros(1, 1, 3, dtype=torch.bfloat16)).dtype == torch.float32


@pytest.mark.parametrize(
    ("prior_of", "options"),
    [("normal", ""), ("mixture(components=3)", ", critics=2, noise=0.2, spectral=True")],
)
def test_codes_come_to_follow_the_prior(prior_of, options):
    r = np.random.default_rng(0)
    y, plane = r.integers(0, 3, 2000), r.normal(size=(2, 6)) / 2
    x = 2 * r.normal(size=(3, 6))[y] + r.normal(size=(2000, 2)) @ plane
    shared = {
        "recipe": "dense",
        "hidden": (64,),
        "epochs": 40,
        "batch_size": 100,
        "lr": 3e-3,
        "patience": 1000,
    }
    ae = refold.Autoencoder(
        f"matched(size=2, prior='{prior_of}')",
        penalties=(f"adversarial(weight=5.0, hidden=(64, 64), updates=simultaneous{options})",),
        **shared,
    ).fit(x)
    plain = refold.Autoencoder(2, **shared).fit(x)
    torch.manual_seed(0)
    draws = prior(prior_of, 2).draw(1000)
    matched, other = (torch.from_numpy(m.transform(x[:1000])) for m in (ae, plain))
    assert float(energy_distance(matched, draws)) < 0.1 * float(energy_distance(other, draws))
    assert p_value(matched[:80], draws[:80]) > 0.01 > p_value(other[:80], draws[:80])
    assert 0.3 < ae.history_[-1]["critic_accuracy"] < 0.7


def p_value(codes, draws, rounds=300):
    """Of the permutation test of the energy distance, that both follow one distribution."""
    both, n = torch.cat([codes, draws]).double(), len(codes)
    apart, shuffle = torch.cdist(both, both), torch.Generator().manual_seed(0)
    signs = torch.ones(2 * n, dtype=torch.float64)
    signs[n:] = -1
    found = -float(signs @ apart @ signs)
    drawn = (signs[torch.randperm(2 * n, generator=shuffle)] for _ in range(rounds))
    return (1 + sum(-float(s @ apart @ s) >= found for s in drawn)) / (rounds + 1)


def labelled_rows(n=600, known=30):
    r = np.random.default_rng(0)
    y = r.integers(0, 3, n)
    x = 3 * r.normal(size=(3, 6))[y] + 0.5 * r.normal(size=(n, 6))
    few = np.full(n, None, dtype=object)
    few[:known] = np.array(["a", "b", "c"])[y[:known]]
    return {"x": x, "label": few}, np.array(["a", "b", "c"])[y]


def semisupervised(**options):
    rows, y = labelled_rows()
    shared = {
        "latent": "matched(size=4, classes=3)",
        "recipe": "dense",
        "hidden": (32,),
        "fields": {"label": "categorical(target=True, backbone='coded(log=True)')"},
        "penalties": ("adversarial(weight=3.0, hidden=(32,))",),
        "labelled": 10,
        "epochs": 30,
        "lr": 3e-3,
    }
    return refold.Autoencoder(**{**shared, **options}).fit(rows), rows, y


def test_few_labels_name_the_classes_of_all_rows_and_new_rows_have_one():
    ae, rows, y = semisupervised()
    assert (ae.predict({"x": rows["x"]})["label"] == y).mean() > 0.97
    z = ae.transform({"x": rows["x"]})
    assert z[:, :3].sum(1) == pytest.approx(1, abs=1e-5)
    new = ae.sample(300)
    assert set(new["label"]) == {"a", "b", "c"}
    nearest = [rows["x"][y == k].mean(0) for k in "abc"]
    found = [np.square(new["x"] - m).sum(1) for m in nearest]
    assert (np.array(list("abc"))[np.argmin(found, 0)] == new["label"]).mean() > 0.8
    last = ae.history_[-1]
    assert {"train_adversarial", "train_adversarial_critic", "valid_adversarial"} <= set(last)
    assert "valid_adversarial_critic" not in last


def test_fits_repeat_and_saved_models_keep_their_critic(tmp_path):
    one, rows, _ = semisupervised(epochs=2)
    two, _, _ = semisupervised(epochs=2)
    torch.testing.assert_close(one.model_.state_dict(), two.model_.state_dict(), rtol=0, atol=0)
    one.save(tmp_path / "m")
    back = refold.Autoencoder.load(tmp_path / "m")
    torch.testing.assert_close(back.model_.state_dict(), one.model_.state_dict(), rtol=0, atol=0)
    assert any("networks" in key for key in back.model_.state_dict())
    assert np.array_equal(back.transform(rows), one.transform(rows))
    spec = refold.penalties.penalties.spec
    assert spec(back.model_.penalties[0]) == spec(one.model_.penalties[0])


@pytest.mark.parametrize("statistics", ["none", "std", "discrimination"])
def test_half_precision_and_every_guard_train_together(statistics):
    more = f"critics=2, noise=0.1, spectral=True, batch_statistics={statistics}"
    ae, _, _ = semisupervised(
        epochs=1, precision="bfloat16", penalties=(f"adversarial(hidden=(8,), {more})",)
    )
    assert np.isfinite(ae.history_[-1]["valid_loss"])


def test_a_class_of_rows_stands_in_its_part_of_the_prior():
    rows, y = labelled_rows(known=600)
    ae = refold.Autoencoder(
        "matched(size=2, prior='mixture(components=3)')",
        recipe="dense",
        hidden=(32,),
        fields={"label": "categorical(target=True)"},
        penalties=("adversarial(weight=5.0, labels=label, hidden=(32,), updates=simultaneous)",),
        epochs=20,
        lr=3e-3,
        patience=1000,
    ).fit(rows)
    z = ae.transform({"x": rows["x"]})
    angle = np.arctan2(z[:, 1], z[:, 0]) / (2 * np.pi / 3)
    component = np.round(angle).astype(int) % 3
    assert (np.array(list("abc"))[component] == y).mean() > 0.9


def test_the_recipe_has_as_many_classes_as_the_target():
    rows, _ = labelled_rows()
    fields = {"label": "categorical(target=True)"}
    ae = refold.Autoencoder(3, recipe="semisupervised", fields=fields, epochs=2).fit(rows)
    assert (ae.spec_.latent.options["classes"], ae.spec_.size) == (3, 3)
    ae = refold.Autoencoder(recipe="semisupervised", fields=fields, epochs=2).fit(rows)
    assert ae.spec_.size == 3 + refold.Autoencoder(epochs=1).fit(rows["x"]).spec_.size
    for latent in ("gaussian(size=5)", "matched(classes=4)"):
        with pytest.raises(InputError, match=r"'label' has 3 classes.*matched\(classes=3\)"):
            refold.Autoencoder(latent, recipe="semisupervised", fields=fields).fit(rows)


def test_a_penalty_of_the_users_replaces_the_recipes():
    options = {"recipe": "adversarial", "latent": 2, "epochs": 1}
    (usual,) = refold.Autoencoder(**options).fit(rows_of()).spec_.penalties
    mine = ("adversarial(weight=7.0)", "decorrelation")
    found = refold.Autoencoder(penalties=mine, **options).fit(rows_of()).spec_.penalties
    assert usual.name == "adversarial"
    assert [str(p) for p in found] == list(mine)
