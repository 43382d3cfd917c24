"""Rules that move the weights of outputs while a model is trained."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.optimize import minimize
from torch import nn

import refold
from refold.assemble import Wishes, assemble
from refold.data.containers import container
from refold.data.schema import Schema
from refold.errors import InputError
from refold.fields import Vector
from refold.likelihoods import Bernoulli
from refold.parts import PartSpec
from refold.report import write
from refold.table import Table
from refold.training import fit as loop
from refold.training.balance import (
    DENSITIES,
    Balancer,
    GradNorm,
    Task,
    Uncertainty,
    balancers,
    begin,
    tasks_of,
)
from refold.training.plan import Plan
from refold.training.pretrain import fit_layerwise, freeze
from refold.training.start import baseline, start_constant
from refold.training.steps import Eager
from refold.types import Code

D = torch.float64


def scalars(**costs):
    return {k: (torch.tensor(c, dtype=D), 1.0) for k, c in costs.items()}


def blocks(n=300, seed=0):
    """Two blocks of columns of one cause: one clean, one nearly noise."""
    r = np.random.default_rng(seed)
    base = r.normal(size=(n, 2))
    clean = np.tanh(base @ r.normal(size=(2, 6))) + 0.02 * r.normal(size=(n, 6))
    noisy = base @ r.normal(size=(2, 3)) + 3.0 * r.normal(size=(n, 3))
    return {"clean": clean, "noisy": noisy}


def built(values=None, seed=0, tie=False, **wishes):
    """A model that was not trained, its schema and its rows."""
    values = blocks() if values is None else values
    table = Table(values, container("dict"))
    schema = Schema.fit(table, np.arange(len(table)))
    rows, _ = schema.encode(table)
    chosen = assemble(schema, rows, Wishes(**{"latent": 3, "recipe": "stacked", **wishes}))
    torch.manual_seed(seed)
    model = chosen.spec.build(schema)
    start_constant(model, rows)
    if tie:
        model.tie()
    return model, schema, rows


def trained(rule, values=None, epochs=20, **options):
    """Train with a rule; return the model, its run and the rule."""
    model, schema, rows = built(values, **options)
    balancer = begin(rule, model, schema.fields, rows, [])
    plan = Plan.choose(len(rows), epochs=epochs, patience=1000)
    return model, loop.fit(model, rows, None, plan, balancer=balancer), balancer


# --- uncertainty ----------------------------------------------------------------------------------


def test_shares_are_the_optimum_of_the_uncertainty_objective():
    costs, units, own = [0.7, 2.9, 11.0], [3, 1, 8], [1.0, 2.5, 0.5]
    names = "abc"

    def objective(s):
        return sum(
            math.exp(-x) * c + 0.5 * a * n * x
            for x, c, n, a in zip(s, costs, units, own, strict=True)
        )

    found = minimize(objective, np.zeros(3), method="BFGS", options={"gtol": 1e-10}).x
    tasks = {k: Task(n, a) for k, n, a in zip(names, units, own, strict=True)}
    shares = dict.fromkeys(names, 1.0)
    Uncertainty(shares, tasks, every=1)(scalars(**dict(zip(names, costs, strict=True))), None)
    moved = np.array(list(shares.values()))
    np.testing.assert_allclose(
        moved / moved.sum(), np.exp(-found) / np.exp(-found).sum(), rtol=1e-6
    )
    # Every unit costs the same, times its weight.
    weighted = moved * costs
    np.testing.assert_allclose(weighted / weighted.sum(), np.multiply(units, own) / 9.5)


def test_shares_are_the_gradient_of_what_is_judged():
    """The objective is one function of the costs, however shares move; other terms count as is."""
    tasks = {"a": Task(3, 1.0), "b": Task(1, 2.5), "c": Task(8, 0.5)}
    rule = Uncertainty(dict.fromkeys(tasks, 1.0), tasks)
    costs = {"a": 0.7, "b": 2.9, "c": 11.0}

    def judged(moved, kl=0.4):
        return rule.judge({**moved, "kl": kl, "loss": sum(moved.values()) + kl})

    units = np.array([3.0, 2.5, 4.0])
    mean = np.exp((units * np.log(np.array(list(costs.values())) / units)).sum() / 9.5)
    assert judged(costs) == pytest.approx(9.5 * mean + 0.4)
    assert judged(costs, kl=1.4) - judged(costs) == pytest.approx(1.0)
    for name, share in rule.optimum(costs).items():
        slope = judged({**costs, name: costs[name] + 1e-6}) - judged(costs)
        assert slope == pytest.approx(1e-6 * share, rel=1e-4)
    # Where costs are alike it is the plain sum, and any rule without one of its own judges by that.
    assert judged({"a": 3.0, "b": 2.5, "c": 4.0}) == pytest.approx(9.9)
    assert judged({"a": -3.0, "b": 2.5, "c": 0.0}) == pytest.approx(-0.1)
    assert GradNorm(dict.fromkeys(tasks, 1.0), tasks).judge({"a": 1.0, "loss": 2.0}) == 2.0


def test_a_cost_in_another_unit_gets_a_share_in_the_inverse():
    ratios = []
    for factor in (1.0, 4.0):
        shares = {"a": 1.0, "b": 1.0}
        rule = Uncertainty(shares, {"a": Task(), "b": Task(2)}, every=1)
        rule(scalars(a=0.6 * factor, b=1.7), None)
        ratios.append(shares["a"] / shares["b"])
    assert ratios[0] == pytest.approx(4.0 * ratios[1])


@pytest.mark.parametrize("rule", ["uncertainty", "gradnorm"])
def test_units_of_the_data_change_nothing(rule):
    values = {k: v.astype(np.float64) for k, v in blocks().items()}
    plain = trained(rule, values, epochs=3)[1].history[-1]
    large = trained(rule, {**values, "noisy": values["noisy"] * 2.0**20}, epochs=3)[1].history[-1]
    for name in ("weight_clean", "weight_noisy", "valid_loss"):
        assert large[name] == pytest.approx(plain[name], rel=1e-4)


def test_shares_are_bounded():
    tasks = {"a": Task(1), "b": Task(4)}
    shares = dict.fromkeys(tasks, 1.0)
    rule = Uncertainty(shares, tasks, every=1)
    rule(scalars(a=0.0, b=2.0), None)
    # One unit at a twentieth of the mean 0.4, four at 0.5.
    mean = (0.02 * 0.5**4) ** 0.2
    assert shares == {"a": pytest.approx(mean / 0.02), "b": pytest.approx(mean / 0.5)}
    for a, b in ((1e-9, 1.0), (1.0, 1e-9), (0.3, 0.4)):
        found = rule.optimum({"a": a, "b": b})
        assert 1 / 100 < found["a"] / found["b"] < 100
    # Nothing can be said of costs that are all zero, or no numbers.
    assert rule.optimum({"a": 0.0, "b": 0.0}) == {}
    assert rule.optimum({"a": math.nan, "b": 1.0}) == {}


def test_the_running_mean_forgets_and_has_no_start():
    tasks = {"a": Task(), "b": Task()}
    shares = dict.fromkeys(tasks, 1.0)
    rule = Uncertainty(shares, tasks, memory=5, every=4)
    seen = []
    for step in range(1, 13):
        a, b = 3.0 if step > 4 else 1.0, 1.0
        seen.append((a, b))
        rule(scalars(a=a * shares["a"], b=b * shares["b"]), None)  # as the model gives them
        if step < 4:
            assert shares == {"a": 1.0, "b": 1.0}
        if step % 4 == 0:
            parts = np.array(seen).reshape(-1, 4, 2).mean(1)
            fades = math.exp(-4 / 5) ** np.arange(len(parts))[::-1]
            mean = (fades[:, None] * parts).sum(0) / fades.sum()
            np.testing.assert_allclose(list(shares.values()), np.sqrt(mean.prod()) / mean)


def test_balanced_weights_are_where_uncertainty_begins():
    """A model that predicts a constant has balanced costs, so there is nothing to move."""
    model, schema, rows = built()
    rule = Uncertainty(model.shares, tasks_of(model, schema.fields, rows))
    found = rule.optimum({k: t.start for k, t in rule.tasks.items()})
    for share in found.values():
        assert share == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("rule", ["uncertainty", "gradnorm"])
def test_the_weight_a_user_gives_is_kept(rule):
    """The tasks know it, so that a rule does not take it back."""
    x = blocks()["clean"]
    table = Table({"a": x[:, :2], "b": x[:, 2:4]}, container("dict"))
    fields = {"a": Vector(weight=3.0)}
    schema = Schema.fit(table, np.arange(len(table)), fields)
    rows, _ = schema.encode(table)
    model = assemble(schema, rows, Wishes(latent=1, recipe="stacked")).spec.build(schema)
    tasks = tasks_of(model, schema.fields, rows)
    assert [t.weight for t in tasks.values()] == [3.0, 1.0]
    balancer = balancers.build(PartSpec(rule, {"every": 1}), model.shares, tasks)
    z = torch.ones(4, 1, dtype=D, requires_grad=True)
    costs = {"a": (3 * z.sum(), 1.0), "b": (z.sum(), 1.0)}
    balancer(costs, Code(z))
    assert model.shares["a"] == pytest.approx(1.0, abs=0.026)
    if rule == "uncertainty":
        assert model.shares == {"a": pytest.approx(1.0), "b": pytest.approx(1.0)}
    else:  # three times the pull is wanted and is there, so that nothing moves it
        rule_of = GradNorm(dict(model.shares), tasks, alpha=0.0)
        slopes = torch.tensor([3.0, 1.0], dtype=D)
        assert rule_of.gradient(slopes, slopes).tolist() == [0.0, 0.0]


# --- GradNorm -------------------------------------------------------------------------------------


def pulled(alpha, scales=(1.0, 6.0), lr=0.025):
    """A code, costs of two decoders and the rule, as one step of training has them."""
    torch.manual_seed(0)
    z = torch.randn(5, 3, dtype=D, requires_grad=True)
    weights = [torch.randn(3, 2, dtype=D) for _ in scales]
    costs = {
        k: (s * (z @ w).square().sum(), 0.2) for k, w, s in zip("ab", weights, scales, strict=True)
    }
    tasks = {"a": Task(start=4.0), "b": Task(start=9.0)}
    shares = dict.fromkeys(tasks, 1.0)
    return z, costs, shares, GradNorm(shares, tasks, alpha=alpha, lr=lr, every=1)


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.5])
def test_a_step_of_gradnorm_is_that_of_autograd(alpha):
    z, costs, shares, rule = pulled(alpha)
    before = {"a": 0.6, "b": 1.4}
    shares.update(before)
    rule._logs.copy_(torch.tensor([0.6, 1.4], dtype=D).log())
    shared = {k: (v, f * before[k]) for k, (v, f) in costs.items()}
    plain = rule(shared, Code(z))
    assert {k: float((v * f).detach()) for k, (v, f) in plain.items()} == pytest.approx(
        {k: float((v * f).detach()) for k, (v, f) in costs.items()}
    )
    # The same by the definition, through torch: the norm of the gradient of each weighted cost.
    logs = torch.tensor([0.6, 1.4], dtype=D).log().requires_grad_()
    losses = torch.stack([v * f for v, f in costs.values()])
    norms = torch.stack(
        [
            torch.autograd.grad(w * c, z, create_graph=True)[0].norm()
            for w, c in zip(logs.exp(), losses, strict=True)
        ]
    )
    left = losses.detach() / torch.tensor([4.0, 9.0], dtype=D)
    rates = left / left.mean()
    (norms - (norms.mean() * rates**alpha).detach()).abs().sum().backward()
    adam = torch.optim.Adam([logs], lr=0.025)
    expected = logs.grad.clone()
    adam.step()
    got = logs.detach().exp()
    torch.testing.assert_close(rule._logs.grad, expected)
    np.testing.assert_allclose(list(shares.values()), (got * 2 / got.sum()).numpy(), rtol=1e-9)


def test_gradnorm_makes_the_pulls_alike():
    z, costs, shares, rule = pulled(0.0, lr=0.01)
    for _ in range(400):
        rule({k: (v, f * shares[k]) for k, (v, f) in costs.items()}, Code(z))
        assert sum(shares.values()) == pytest.approx(2.0)
        assert min(shares.values()) >= rule.least
    slopes = [
        float(torch.autograd.grad(v, z, retain_graph=True)[0].norm()) for v, _ in costs.values()
    ]
    ratio = shares["a"] * slopes[0] / (shares["b"] * slopes[1])
    assert ratio == pytest.approx(1.0, abs=0.05)


def test_shares_stay_positive_whatever_happens():
    z, costs, shares, rule = pulled(1.5, scales=(1e-12, 1e9), lr=0.5)
    for _ in range(100):
        rule({k: (v, f * shares[k]) for k, (v, f) in costs.items()}, Code(z))
        assert min(shares.values()) >= rule.least * (1 - 1e-9)
        assert sum(shares.values()) == pytest.approx(2.0)


def toy(rule):
    """The source's toy: functions of one kind on scales of 1 and 10, one body too narrow for both.

    Returns the share of each cost that is left.
    """
    r = torch.Generator().manual_seed(0)
    base = torch.randn(20, 10, dtype=D, generator=r)
    x = torch.randn(512, 20, dtype=D, generator=r) / 5
    ys = {
        k: s * torch.tanh(x @ (base + 0.35 * torch.randn(20, 10, dtype=D, generator=r)))
        for k, s in (("a", 1.0), ("b", 10.0))
    }
    torch.manual_seed(0)
    body = nn.Sequential(nn.Linear(20, 40), nn.ReLU(), nn.Linear(40, 4)).double()
    heads = nn.ModuleDict({k: nn.Linear(4, 10).double() for k in ys})
    tasks = {k: Task(start=float(y.square().sum(1).mean() / 2)) for k, y in ys.items()}
    shares = dict.fromkeys(ys, 1.0)
    balancer = rule(shares, tasks) if rule else None
    adam = torch.optim.Adam([*body.parameters(), *heads.parameters()], lr=0.01)
    left = {}
    for _ in range(500):
        z = body(x)
        losses = {k: 0.5 * (heads[k](z) - y).square().sum(1).mean() for k, y in ys.items()}
        costs = {k: (c, shares[k]) for k, c in losses.items()}
        left = {k: float(c.detach()) / tasks[k].start for k, c in losses.items()}
        if balancer:
            balancer(costs, Code(z))
        adam.zero_grad()
        sum(c * s for c, s in costs.values()).backward()
        adam.step()
    return left, shares


def test_tasks_of_different_scales_learn_at_closer_rates():
    equal, _ = toy(None)
    moved, shares = toy(lambda s, t: GradNorm(s, t, least=1e-4, every=1))
    known, _ = toy(lambda s, t: Uncertainty(s, t, least=1e-4, every=1))

    def apart(left):
        return abs(math.log(left["a"] / left["b"]))

    assert apart(equal) > 0.25
    assert apart(moved) < 0.4 * apart(equal)
    assert apart(known) < 0.4 * apart(equal)
    assert shares["a"] > 20 * shares["b"]
    assert sum(shares.values()) == pytest.approx(2.0)


def test_a_code_without_a_gradient_moves_nothing():
    z, costs, shares, rule = pulled(1.5)
    rule(costs, None)
    rule({k: (v.detach(), f) for k, (v, f) in costs.items()}, Code(z.detach()))
    assert shares == {"a": 1.0, "b": 1.0}
    # Where one cost does not depend on the code, its pull is none and the other's is.
    rule({"a": costs["a"], "b": (torch.tensor(1.0, dtype=D), 1.0)}, Code(z))
    assert rule._logs.grad[1] == 0


# --- in training ----------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", ["uncertainty(every=1)", "gradnorm(alpha=0.5, every=2)"])
def test_shares_are_for_training_alone(rule):
    model, run, balancer = trained(rule)
    assert any(abs(s - 1) > 0.01 for s in model.shares.values())
    _, _, rows = built()
    with torch.no_grad():
        model.eval()
        judged = model(rows)
        loss, score = float(judged.loss), float(judged.score.mean())
        model.train()
        shared = {k: f for k, (_, f) in model(rows).costs.items()}
        balancer.rest()
        assert model.shares == dict.fromkeys(model.outputs, 1.0)
        resting = model(rows).loss
    assert loss == pytest.approx(score, rel=1e-5)
    assert loss == pytest.approx(float(resting), rel=1e-5)
    assert shared != {k: f for k, (_, f) in model(rows).costs.items()}
    # The history compares: its means are of the costs without shares.
    last = run.history[-1]
    for name in model.outputs:
        assert last[f"train_{name}"] == pytest.approx(last[f"valid_{name}"], rel=0.3)
    assert last["train_loss"] == pytest.approx(sum(last[f"train_{k}"] for k in model.outputs))


@pytest.mark.parametrize("rule", ["balanced", "uncertainty", "gradnorm"])
def test_the_log_shows_every_weight(rule):
    model, run, _ = trained(rule, epochs=8)
    for row in run.history:
        assert {k for k in row if k.startswith("weight_")} == {"weight_clean", "weight_noisy"}
    first, last = run.history[0], run.history[-1]
    stays = {k: float(torch.as_tensor(model.weight(k)).mean()) for k in model.outputs}
    for name, weight in stays.items():
        assert first[f"weight_{name}"] == pytest.approx(weight)
        assert last[f"weight_{name}"] == pytest.approx(weight * model.shares[name])
    moved = any(first[f"weight_{k}"] != last[f"weight_{k}"] for k in stays)
    assert moved == (rule != "balanced")


def test_one_output_has_no_weight_to_log():
    model, run, balancer = trained("gradnorm", {"x": blocks()["clean"]}, epochs=2)
    assert balancer is None
    assert not any(k.startswith("weight_") for row in run.history for k in row)
    reasons = []
    _, schema, rows = built({"x": blocks()["clean"]})
    assert begin("uncertainty", model, schema.fields, rows, reasons) is None
    assert reasons == ["weights 'uncertainty' have nothing to balance: there is one output"]


def test_what_is_noise_counts_less():
    _, run, _ = trained("uncertainty", epochs=40)
    last = run.history[-1]
    _, plain, _ = trained("balanced", epochs=40)
    assert last["weight_clean"] / last["weight_noisy"] > 5
    assert last["valid_clean"] < plain.history[-1]["valid_clean"]


def test_the_weights_to_keep_are_chosen_by_the_rule():
    """By the loss with weights that stay the start is best, which the rule does not want."""
    ae = refold.Autoencoder(latent=2, recipe="dense", weights="uncertainty", epochs=30)
    ae.fit(blocks(2000))
    by_loss, by_rule = (
        min(ae.history_, key=lambda row: row[name])["step"] for name in ("valid_loss", "objective")
    )
    assert by_rule == ae.run_.best["step"] > 10 * by_loss
    first, kept = ae.history_[0], ae.run_.best
    assert kept["valid_clean"] < 0.5 * first["valid_clean"]
    plain = refold.Autoencoder(latent=2, recipe="dense", epochs=2).fit(blocks(200))
    assert "objective" not in plain.history_[-1]


@pytest.mark.parametrize("rule", ["uncertainty", "gradnorm"])
def test_the_same_seed_gives_the_same_run(rule):
    first, second = (trained(rule, epochs=4)[1].history for _ in range(2))
    for a, b in zip(first, second, strict=True):
        assert {k: v for k, v in a.items() if k != "seconds"} == {
            k: v for k, v in b.items() if k != "seconds"
        }


class Still(Balancer):
    """Looks as hard as any rule, and moves nothing."""

    def look(self, costs, code):
        for value, _ in costs.values():
            torch.autograd.grad(value, code.z, retain_graph=True)


def test_looking_changes_nothing(monkeypatch):
    """Shares of 1 are plain steps bit for bit, and looking leaves the gradients alone."""
    monkeypatch.setattr(loop, "choose", Eager)
    plain, run, _ = trained("balanced", epochs=4)
    model, _, rows = built()
    rule = Still(model.shares, {"clean": Task(), "noisy": Task()}, every=1)
    plan = Plan.choose(len(rows), epochs=4, patience=1000)
    watched = loop.fit(model, rows, None, plan, balancer=rule)
    assert rule.steps == plan.steps
    for a, b in zip(plain.parameters(), model.parameters(), strict=True):
        assert torch.equal(a, b)
    for a, b in zip(run.history, watched.history, strict=True):
        assert {**a, "seconds": 0, "objective": a["valid_loss"]} == {**b, "seconds": 0}


@pytest.mark.parametrize("rule", ["uncertainty", "gradnorm"])
def test_layers_one_by_one_and_tied(rule):
    model, schema, rows = built(hidden=(8, 5), tie=True)
    balancer = begin(rule, model, schema.fields, rows, [])
    plan = Plan.choose(len(rows), epochs=12, patience=1000)
    run = fit_layerwise(model, rows, None, plan, balancer=balancer)
    assert run.phases[-1] == "all layers"
    for row in run.history:
        assert {"weight_clean", "weight_noisy"} <= set(row)
    assert run.history[-1]["weight_clean"] != run.history[0]["weight_clean"]
    early = [row["weight_clean"] for row in run.history if row["phase"] == 0]
    # A phase that leaves the code out has no gradient there.
    assert (len(set(early)) == 1) == (rule == "gradnorm")


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("rule", ["uncertainty", "gradnorm"])
def test_frozen_encoders_missing_values_and_bfloat16(rule, frozen):
    values = blocks()
    values["noisy"][np.random.default_rng(0).random(values["noisy"].shape) < 0.2] = np.nan
    model, schema, rows = built(values, hidden=(8,))
    if frozen:
        freeze(model, ["fusion.down.*"])
    balancer = begin(rule, model, schema.fields, rows, [])
    plan = Plan.choose(len(rows), epochs=3)
    run = loop.fit(model, rows, None, plan, balancer=balancer, bfloat16=True)
    assert math.isfinite(run.history[-1]["valid_loss"])
    # No gradient reaches a code whose encoder is frozen.
    assert (model.shares["clean"] == 1.0) == (rule == "gradnorm" and frozen)


# --- names, options and refusals ------------------------------------------------------------------


def test_the_small_language_names_rules():
    assert list(balancers) == ["uncertainty", "gradnorm"]
    model, schema, rows = built()
    rule = begin("gradnorm(alpha=0.5)", model, schema.fields, rows, [])
    assert isinstance(rule, GradNorm)
    assert rule.alpha == 0.5
    assert str(balancers.spec(rule)) == "gradnorm(alpha=0.5, lr=0.025, least=0.05, every=10)"
    assert rule.shares is model.shares
    for stays in ("balanced", "equal", {"clean": 2.0}):
        assert begin(stays, model, schema.fields, rows, []) is None


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        ("gradnrm", "did you mean 'gradnorm'"),
        ("gradnorm(beta=1)", "unknown option of weights 'gradnorm' 'beta'"),
        ("balanced(beta=1)", "unknown option of weights 'balanced' 'beta'"),
        ("gradnorm(alpha='x')", "expected a number"),
        ("gradnorm(alpha=-1)", "alpha is -1; it is a power, 0 or more"),
        ("gradnorm(lr=0.0)", "must be above 0"),
        ("gradnorm(least=1.0)", "between 0 and 1"),
        ("gradnorm(every=0)", "1 or more"),
        ("uncertainty(every=0)", "1 or more"),
        ("uncertainty(memory=0)", "1 or more"),
        ("uncertainty(least=1.5)", "between 0 and 1"),
    ],
)
def test_what_cannot_be_is_said(rule, said):
    model, schema, rows = built()
    with pytest.raises(InputError, match=said.replace("(", r"\(")):
        begin(rule, model, schema.fields, rows, [])


@pytest.mark.parametrize("rule", ["uncertainty", "gradnorm"])
def test_densities_are_refused(rule):
    tasks = {"a": Task(), "b": Task(density=True)}
    with pytest.raises(InputError, match="that of 'b' may be: its likelihood is a density"):
        balancers.build(PartSpec(rule), dict.fromkeys(tasks, 1.0), tasks)
    # A likelihood that nobody named is found out by its costs.
    z = torch.ones(2, 1, dtype=D, requires_grad=True)
    costs = {"a": (z.sum(), 1.0), "b": (-z.sum(), 1.0)}
    own = balancers.build(
        PartSpec(rule, {"every": 1}), {"a": 1.0, "b": 1.0}, {"a": Task(), "b": Task()}
    )
    with pytest.raises(InputError, match=r"that of 'b' may be \(-2\)"):
        own(costs, Code(z))


def test_gradients_alone_can_balance_densities():
    tasks = {"a": Task(), "b": Task(density=True)}
    shares = dict.fromkeys(tasks, 1.0)
    z = torch.ones(2, 1, dtype=D, requires_grad=True)
    rule = GradNorm(shares, tasks, alpha=0.0, every=1)
    rule({"a": (z.sum(), 1.0), "b": (-3 * z.sum(), 1.0)}, Code(z))
    assert shares["a"] > 1 > shares["b"]


def test_learnt_variances_are_known_as_densities():
    table = Table(blocks(), container("dict"))
    fields = {"noisy": Vector(likelihood="gaussian")}
    schema = Schema.fit(table, np.arange(len(table)), fields)
    rows, _ = schema.encode(table)
    model = assemble(schema, rows, Wishes(latent=1, recipe="stacked")).spec.build(schema)
    assert {k: t.density for k, t in tasks_of(model, schema.fields, rows).items()} == {
        "clean": False,
        "noisy": True,
    }
    with pytest.raises(InputError, match=r"use weights='balanced' or 'equal'$"):
        begin("uncertainty", model, schema.fields, rows, [])
    with pytest.raises(InputError, match=r"or weights='gradnorm\(alpha=0\)'$"):
        begin("gradnorm", model, schema.fields, rows, [])
    assert begin("gradnorm(alpha=0)", model, schema.fields, rows, []) is not None
    assert "gaussian" in DENSITIES


@pytest.mark.parametrize("gaps", [False, True])
@pytest.mark.parametrize("high", [1.0, 1.5])
def test_what_a_constant_coin_costs_is_the_mean_over_rows(gaps, high):
    g = torch.Generator().manual_seed(2)
    x = torch.rand(200, 5, generator=g, dtype=torch.float64) * high
    seen = torch.rand(200, 5, generator=g) > 0.3 if gaps else None
    head = Bernoulli((1,) * 5)
    cells = head.weighted(head.marginal(x, seen).expand(200, -1), x, seen, 1.0)
    count = 200 if seen is None else seen.sum(0)
    torch.testing.assert_close(baseline(head, x, seen), cells.sum(0) / count)


def test_a_start_is_the_cost_of_the_best_constant():
    model, schema, rows = built()
    for name, task in tasks_of(model, schema.fields, rows).items():
        x = rows.x[name].double()
        weight = torch.as_tensor(model.weight(name)).double()
        expected = 0.5 * ((x - x.mean(0)).square() * weight).sum(1).mean()
        assert task.start == pytest.approx(float(expected), rel=1e-4)
        assert task.units == len(schema.fields[name].units)


def test_numbers_that_are_none_are_left_to_the_evaluation():
    shares = {"a": 1.0, "b": 1.0}
    tasks = {k: Task() for k in shares}
    z = torch.ones(2, 1, dtype=D, requires_grad=True)
    costs = {"a": (z.sum() * math.nan, 1.0), "b": (z.sum(), 1.0)}
    for rule in ("uncertainty", "gradnorm"):
        balancers.build(PartSpec(rule, {"every": 1}), shares, tasks)(costs, Code(z))
        assert shares == {"a": 1.0, "b": 1.0}


def table_of(n=240):
    r = np.random.default_rng(0)
    a = r.normal(size=n)
    return pd.DataFrame(
        {"a": a, "b": a**2 + 0.1 * r.normal(size=n), "c": np.where(a > 0.2, "yes", "no")}
    )


@pytest.mark.parametrize("rule", ["uncertainty", "gradnorm(alpha=0.5)"])
def test_a_table_is_fitted_and_saved(rule, tmp_path):
    X = table_of()
    ae = refold.Autoencoder(latent=2, recipe="stacked", weights=rule, epochs=8).fit(X)
    assert {f"weight_{k}" for k in ae.model_.outputs} <= set(ae.history_[-1])
    assert ae.history_[-1]["weight_c"] != ae.history_[0]["weight_c"]
    assert ae.model_.shares == dict.fromkeys(ae.model_.outputs, 1.0)
    ae.save(tmp_path / "model")
    again = refold.load(tmp_path / "model")
    np.testing.assert_array_equal(again.score_samples(X), ae.score_samples(X))
    assert again.history_ == ae.history_
    page = write(ae, tmp_path / "report.html", X).read_text(encoding="utf-8")
    assert "as a multiple of the one at the start" in page


def test_several_draws_of_a_code_have_one_cost_and_nothing_to_balance():
    X = table_of()[["c"]].assign(d=np.where(table_of()["b"] > 1, "much", "little"))
    for rule in ("uncertainty", "gradnorm"):
        ae = refold.Autoencoder("gaussian(size=2, draws=3)", weights=rule, epochs=1)
        with pytest.raises(InputError, match="one cost, the bound; use weights='balanced'"):
            ae.fit(X)
