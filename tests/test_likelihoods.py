"""Likelihoods against SciPy and closed forms; the promises every likelihood makes."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy import stats

from refold.errors import InputError
from refold.likelihoods import likelihoods
from refold.parts import PartSpec

SPECS = ["mse", "l1", "huber(delta=0.7)", "gaussian", "gaussian(variance='predicted')",
         "bernoulli", "categorical"]  # fmt: skip
LEVELS = (3, 2, 5)


def case(text, rows=40):
    """A likelihood, targets and parameters that suit it, in double precision."""
    torch.manual_seed(0)
    spec = PartSpec.parse(text)
    sizes = LEVELS if spec.name == "categorical" else (1, 1, 1)
    head = likelihoods.build(spec, sizes).double()
    x = torch.randn(rows, 3, dtype=torch.float64)
    if spec.name == "bernoulli":
        x = (x > 0).double()
    if spec.name == "categorical":
        x = torch.stack([torch.randint(n, (rows,)) for n in LEVELS], 1)
    return head, x, torch.randn(rows, head.width, dtype=torch.float64)


def expected_cells(text, params, x):
    p, v = params.numpy(), x.numpy()
    if text == "mse":
        return -stats.norm(p).logpdf(v) - 0.5 * np.log(2 * np.pi)
    if text == "l1":
        return -stats.laplace(p).logpdf(v) - np.log(2)
    if text.startswith("huber"):
        return np.where(abs(v - p) <= 0.7, (v - p) ** 2 / 2, 0.7 * (abs(v - p) - 0.35))
    if text == "gaussian":
        return -stats.norm(p).logpdf(v)
    if text.startswith("gaussian("):
        return -stats.norm(p[:, :3], np.exp(np.clip(p[:, 3:], -4, 10))).logpdf(v)
    if text == "bernoulli":
        return -stats.bernoulli(1 / (1 + np.exp(-p))).logpmf(v)
    starts = np.cumsum([0, *LEVELS])
    probs = [np.exp(p[:, a:b]) for a, b in pairwise(starts)]
    return -np.stack(
        [np.log((q / q.sum(1, keepdims=True))[np.arange(len(v)), v[:, k]])
         for k, q in enumerate(probs)], 1)  # fmt: skip


@pytest.mark.parametrize("text", SPECS)
def test_cells_equal_scipy(text):
    head, x, params = case(text)
    np.testing.assert_allclose(
        head.cells(params, x).detach().numpy(), expected_cells(text, params, x), atol=1e-10
    )


@pytest.mark.parametrize("text", SPECS)
@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("weight", [1.0, 2.5, "entries"])
def test_the_fused_mean_is_the_mean_of_the_rows(text, missing, weight):
    head, x, params = case(text)
    seen = torch.rand(len(x), 3) > 0.4 if missing else None
    w = torch.tensor([0.5, 1.0, 3.0], dtype=torch.float64) if weight == "entries" else weight
    rows = head.nll(params, x, seen, w)
    by_hand = head.cells(params, x) * (1 if seen is None else seen) * w
    torch.testing.assert_close(rows, by_hand.sum(1))
    value, factor = head.cost(params, x, seen, w)
    torch.testing.assert_close(value * factor, rows.mean())


@pytest.mark.parametrize("text", SPECS)
def test_a_missing_entry_has_no_say(text):
    head, x, params = case(text)
    seen = torch.rand(len(x), 3) > 0.4
    other = torch.where(seen, x, 0)
    before, after = head.nll(params, x, seen, 1.0), head.nll(params, other, seen, 1.0)
    assert torch.equal(before, after)


@pytest.mark.parametrize("text", SPECS)
def test_gradients_are_right_and_reach_every_parameter(text):
    head, x, params = case(text, rows=4)
    params.requires_grad_()
    assert torch.autograd.gradcheck(lambda p: head.cells(p, x), (params,))
    head.cells(params, x).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in head.parameters())


@pytest.mark.parametrize("text", [s for s in SPECS if not s.startswith("huber")])
def test_the_marginal_is_the_best_constant(text):
    head, x, _ = case(text, rows=101)
    best = head.marginal(x, None)
    cost = head.cells(best.expand(len(x), -1), x).sum()
    for nudge in (0.05, -0.05):
        for i in range(len(best)):
            moved = best.clone()
            moved[i] += nudge
            # Half a count of smoothing keeps classes off the exact optimum by a hair.
            slack = 0.05 if text == "categorical" else 1e-9
            assert head.cells(moved.expand(len(x), -1), x).sum() > cost - slack


@pytest.mark.parametrize("text", SPECS)
def test_draws_have_the_expected_mean(text):
    head, _, params = case(text, rows=1)
    torch.manual_seed(3)
    many = head.draw(params.expand(20_000, -1))
    view = head.linear_view(many).double()
    mean = head.expected(params)[0]
    error = view.std(0) / 20_000**0.5
    assert ((view.mean(0) - mean).abs() <= 4.5 * error + 1e-9).all()


@pytest.mark.parametrize("text", ["bernoulli", "categorical", "gaussian"])
def test_extreme_outputs_cost_a_finite_amount(text):
    head, x, params = case(text)
    assert torch.isfinite(head.cells(params * 1e4, x)).all()


def test_log_prob_of_the_distribution_is_minus_the_cells_where_exact():
    for text in ("gaussian", "bernoulli", "categorical"):
        head, x, params = case(text)
        torch.testing.assert_close(-head.distribution(params).log_prob(x), head.cells(params, x))


def test_a_wrong_option_is_a_sentence():
    with pytest.raises(InputError, match="did you mean 'delta'"):
        likelihoods.build(PartSpec("huber", {"dleta": 1.0}), (1,))
    with pytest.raises(InputError, match="'shared' or 'predicted'"):
        likelihoods.build(PartSpec("gaussian", {"variance": "both"}), (1,))
