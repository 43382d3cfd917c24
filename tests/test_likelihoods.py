"""Likelihoods against SciPy and closed forms; the promises every likelihood makes."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.ndimage import gaussian_filter1d

from refold.errors import InputError
from refold.fields import Image, Vector
from refold.likelihoods import likelihoods
from refold.parts import PartSpec

SPECS = ["mse", "l1", "huber(delta=0.7)", "gaussian", "gaussian(variance='predicted')",
         "bernoulli", "categorical", "ssim", "ssim(mix=0.3, scales=3)"]  # fmt: skip
LEVELS = (3, 2, 5)


def case(text, rows=40):
    """A likelihood, targets and parameters that suit it, in double precision."""
    torch.manual_seed(0)
    spec = PartSpec.parse(text)
    sizes = LEVELS if spec.name == "categorical" else (1, 1, 1)
    head = likelihoods.build(spec, sizes, (1, 1, 3)).double()
    x = torch.randn(rows, 3, dtype=torch.float64)
    if spec.name == "bernoulli":
        x = (x > 0).double()
    if spec.name == "categorical":
        x = torch.stack([torch.randint(n, (rows,)) for n in LEVELS], 1)
    return head, x, torch.randn(rows, head.width, dtype=torch.float64)


def similar(x, y, sigma):
    """Similarity of images one pixel high, one per row, by SciPy's filters."""

    def blur(a):
        return gaussian_filter1d(a, sigma, axis=1, truncate=3.5, mode="reflect")

    mx, my = blur(x), blur(y)
    vx, vy, vxy = blur(x * x) - mx * mx, blur(y * y) - my * my, blur(x * y) - mx * my
    light = (2 * mx * my + 1e-4) / (mx**2 + my**2 + 1e-4)
    return light * (2 * vxy + 9e-4) / (vx + vy + 9e-4)


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
    if text.startswith("ssim"):
        mix, weights = (0.84, [1.0]) if text == "ssim" else (0.3, [0.0448, 0.2856, 0.3001])
        alike = sum(w / sum(weights) * similar(p, v, 1.5 * 2**j) for j, w in enumerate(weights))
        return (1 - mix) * (v - p) ** 2 / 2 + mix * (1 - alike) / 2
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
    if head.contextual and seen is not None:
        x = torch.where(seen, x, params)
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


@pytest.mark.parametrize("text", [s for s in SPECS if not s.startswith(("huber", "ssim"))])
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


def image_head(**options):
    return likelihoods.build(PartSpec("ssim", options), (1,) * 3 * 20 * 14, (3, 20, 14)).double()


def test_similarity_without_a_share_is_half_the_squared_error():
    x, params = torch.rand(4, 3, 20, 14).double(), torch.rand(4, 840).double()
    plain = likelihoods.build(PartSpec("mse"), (1,) * 840)
    assert torch.equal(image_head(mix=0.0).cells(params, x), plain.cells(params, x))


def test_the_cost_of_a_picture_is_one_minus_its_similarity():
    x, params = torch.rand(4, 3, 20, 14).double(), torch.rand(4, 3, 20, 14).double()
    metrics = pytest.importorskip("skimage.metrics")
    cost = image_head(mix=1.0).nll(params.flatten(1), x, None, 1.0)
    for row in range(4):
        options = {"gaussian_weights": True, "use_sample_covariance": False, "full": True}
        _, full = metrics.structural_similarity(
            x[row].numpy(), params[row].numpy(), data_range=1.0, channel_axis=0, **options
        )
        assert float(cost[row]) == pytest.approx((1 - full).sum() / 2, rel=1e-10)


def test_an_equal_picture_costs_nothing_and_any_other_something():
    x = torch.rand(5, 3, 20, 14).double()
    head = image_head(scales=4)
    torch.testing.assert_close(head.nll(x.flatten(1), x, None, 1.0), torch.zeros(5).double())
    moved = (x + 0.05 * torch.randn_like(x)).flatten(1)
    assert (head.nll(moved, x, None, 1.0) > 1).all()
    assert (head.cells(moved, x) >= 0).all()


def test_similarity_sees_structure_where_squared_error_sees_none():
    """A shift of light and noise of the same squared error: eyes forgive the first."""
    x = torch.rand(6, 3, 20, 14, generator=torch.Generator().manual_seed(0)).double()
    lighter = (x + 0.1).flatten(1)
    noisy = (x + 0.1 * torch.randn_like(x).sign()).flatten(1)
    head = image_head(mix=1.0)
    assert (head.nll(lighter, x, None, 1.0) * 1.5 < head.nll(noisy, x, None, 1.0)).all()


def test_similarity_needs_an_image_and_options_that_mean_something():
    with pytest.raises(InputError, match="use 'mse'"):
        likelihoods.build(PartSpec("ssim"), (1, 1))
    with pytest.raises(InputError, match="0 to 1"):
        image_head(mix=1.5)
    with pytest.raises(InputError, match=r"1\.\.5"):
        image_head(scales=6)


def test_similarity_suits_images_alone_and_is_saved_with_its_options():
    images = np.random.default_rng(0).random((40, 9, 7)).astype(np.float32)
    field = Image(columns=("x",), likelihood="ssim(mix=0.5, scales=2)").fit({"x": images})
    head = field.head()
    assert str(likelihoods.spec(head)) == "ssim(mix=0.5, scales=2)"
    assert head.shape == (1, 9, 7)
    with pytest.raises(InputError, match="cannot predict"):
        Vector(columns=("x",), likelihood="ssim").fit({"x": images.reshape(40, -1)}).head()
