"""Likelihoods against SciPy and closed forms; the promises every likelihood makes."""

from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest
import torch
from scipy import stats
from scipy.ndimage import gaussian_filter1d

import refold
from refold.errors import InputError
from refold.fields import Count, Image, Vector
from refold.likelihoods import (
    Beta,
    Divergence,
    LogisticMixture,
    NegativeBinomial,
    Ordinal,
    Poisson,
    Settling,
    likelihoods,
)
from refold.likelihoods.beta import squeezed
from refold.parts import PartSpec

SPECS = ["mse", "l1", "huber(delta=0.7)", "gaussian", "gaussian(variance='predicted')",
         "laplace", "laplace(variance='predicted')", "student", "student(df=2.5)",
         "student(df=4, variance='predicted', floor=-2.0)", "bernoulli", "categorical", "ordinal",
         "poisson", "negative_binomial", "negative_binomial(dispersion='predicted')", "beta", "kl",
         "logistic_mixture", "logistic_mixture(components=2, levels=4)", "ssim",
         "ssim(mix=0.3, scales=3)"]  # fmt: skip
LEVELS = (3, 2, 5)


def case(text, rows=40):
    """A likelihood, targets and parameters that suit it, in double precision."""
    torch.manual_seed(0)
    spec = PartSpec.parse(text)
    sizes = LEVELS if spec.name in ("categorical", "ordinal") else (1, 1, 1)
    head = likelihoods.build(spec, sizes, (1, 1, 3)).double()
    x = torch.randn(rows, 3, dtype=torch.float64)
    if spec.name == "bernoulli":
        x = (x > 0).double()
    if spec.name == "categorical":
        x = torch.stack([torch.randint(n, (rows,)) for n in LEVELS], 1)
    if spec.name == "ordinal":
        x = torch.stack([torch.randint(n, (rows,)) / (n - 1) for n in LEVELS], 1).double()
    if spec.name in ("poisson", "negative_binomial"):
        x = torch.poisson(torch.rand(rows, 3, dtype=torch.float64) * 30).log1p()
    if spec.name == "beta":
        x = x.sigmoid()
    if spec.name == "logistic_mixture":
        x = (x.sigmoid() * (head.levels - 1)).round() / (head.levels - 1)
        x[:3], x[3:6] = 0.0, 1.0
    if spec.name == "kl":
        x = (4 * x).softmax(1)
        x[:5, 0] = 0
        x = x / x.sum(1, keepdim=True)
    with torch.no_grad():
        for p in head.parameters():
            p += 0.1 * torch.rand_like(p)
    return head, x, torch.randn(rows, head.width, dtype=torch.float64)


def mask(text, x):
    """What is there: single entries, but whole rows of a distribution."""
    return torch.rand(len(x), 1 if text == "kl" else 3).expand(-1, 3) > 0.4


def similar(x, y, sigma):
    """Similarity of images one pixel high, one per row, by SciPy's filters."""

    def blur(a):
        return gaussian_filter1d(a, sigma, axis=1, truncate=3.5, mode="reflect")

    mx, my = blur(x), blur(y)
    vx, vy, vxy = blur(x * x) - mx * mx, blur(y * y) - my * my, blur(x * y) - mx * my
    light = (2 * mx * my + 1e-4) / (mx**2 + my**2 + 1e-4)
    return light * (2 * vxy + 9e-4) / (vx + vy + 9e-4)


def expected_cells(text, head, params, x):
    p, v = params.numpy(), x.numpy()
    if text == "mse":
        return -stats.norm(p).logpdf(v) - 0.5 * np.log(2 * np.pi)
    if text == "l1":
        return -stats.laplace(p).logpdf(v) - np.log(2)
    if text.startswith("huber"):
        return np.where(abs(v - p) <= 0.7, (v - p) ** 2 / 2, 0.7 * (abs(v - p) - 0.35))
    raw = {k: q.detach().numpy() for k, q in head.named_parameters()}
    scale = np.exp(np.clip(10 * raw["raw"], -4, 10)) if "raw" in raw else np.ones(3)
    if text == "gaussian":
        return -stats.norm(p, scale).logpdf(v)
    if text.startswith(("laplace", "student")):
        predicted = "predicted" in text
        floor = -2 if "floor" in text else -4
        scale = np.exp(np.clip(p[:, 3:], floor, 10)) if predicted else scale
        p = p[:, :3]
        if text.startswith("laplace"):
            return -stats.laplace(p, scale).logpdf(v)
        df = 100 ** (1 / (1 + np.exp(-10 * raw["raw_df"]))) if text == "student" else head.df
        return -stats.t(df, p, scale).logpdf(v)
    if text == "poisson":
        return -stats.poisson(np.exp(p)).logpmf(np.rint(np.expm1(v)))
    if text.startswith("negative_binomial"):
        shared = raw["raw"] if "raw" in raw else p[:, 3:] / 10
        size = np.exp(-np.clip(10 * shared, -16, 8))
        share = size / (size + np.exp(p[:, :3]))
        return -stats.nbinom(size, share).logpmf(np.rint(np.expm1(v)))
    if text.startswith("logistic_mixture"):
        half = 0.5 / (head.levels - 1)
        logits, mean, scale = p.reshape(len(p), 3, -1, 3).transpose(1, 0, 2, 3)
        scale = np.exp(np.clip(scale, np.log(2 * half) - 2, 3))
        part, at = stats.logistic(mean, scale), v[:, None]
        above = np.where(at == 1, 0, part.sf(at + half))
        mass = np.where(at == 0, 1, part.sf(at - half)) - above
        weights = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        return -np.log((weights * mass).sum(1))
    if text == "beta":
        mean, precision = 1 / (1 + np.exp(-p)), np.exp(np.clip(10 * raw["raw"], -3, 8))
        return -stats.beta(mean * precision, (1 - mean) * precision).logpdf((v * 999 + 0.5) / 1000)
    if text == "kl":
        q = np.exp(p) / np.exp(p).sum(1, keepdims=True)
        return np.where(v > 0, v * np.log(np.where(v > 0, v, 1) / q), 0) - v + q
    if text == "ordinal":
        costs = []
        for k, n in enumerate(LEVELS):
            steps = np.log1p(np.exp(raw["steps"][k, : n - 2])) + 1e-6
            cuts = np.cumsum([raw["first"][k], *steps])
            below = 1 / (1 + np.exp(p[:, [k]] - cuts))
            shares = np.diff(below, axis=1, prepend=0, append=1)
            costs.append(-np.log(shares[np.arange(len(v)), np.rint(v[:, k] * (n - 1)).astype(int)]))
        return np.stack(costs, 1)
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
        head.cells(params, x).detach().numpy(), expected_cells(text, head, params, x), atol=1e-10
    )


@pytest.mark.parametrize("text", SPECS)
@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("weight", [1.0, 2.5, "entries"])
def test_the_fused_mean_is_the_mean_of_the_rows(text, missing, weight):
    head, x, params = case(text)
    seen = mask(text, x) if missing else None
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
    seen = mask(text, x)
    other = torch.where(seen, x, 0)
    before, after = head.nll(params, x, seen, 1.0), head.nll(params, other, seen, 1.0)
    assert torch.equal(before, after)


class _Cells(torch.nn.Module):
    def __init__(self, head):
        super().__init__()
        self.head = head

    def forward(self, params, x):
        return self.head.cells(params, x)


@pytest.mark.parametrize("text", SPECS)
def test_gradients_are_right_and_reach_every_parameter(text):
    head, x, params = case(text, rows=4)
    params.requires_grad_()
    assert torch.autograd.gradcheck(lambda p: head.cells(p, x), (params,))
    ours = list(head.parameters())
    names = [k for k, _ in head.named_parameters()]

    def cost(*values):
        given = dict(zip(names, values, strict=True))
        return torch.func.functional_call(_Cells(head), {f"head.{k}": v for k, v in given.items()},
                                          (params.detach(), x))  # fmt: skip

    if ours:
        fresh = tuple(p.detach().clone().requires_grad_() for p in ours)
        assert torch.autograd.gradcheck(cost, fresh)
    head.cells(params, x).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in head.parameters())


@pytest.mark.parametrize(
    "text",
    [s for s in SPECS if not s.startswith(("huber", "ssim", "student", "beta", "logistic"))],
)
def test_the_marginal_is_the_best_constant(text):
    head, x, _ = case(text, rows=101)
    if isinstance(head, Settling):
        head.settle(x, None)
    best = head.marginal(x, None)
    cost = head.cells(best.expand(len(x), -1), x).sum()
    for nudge in (0.05, -0.05):
        for i in range(len(best)):
            moved = best.clone()
            moved[i] += nudge
            # Half a count of smoothing keeps classes off the exact optimum by a hair.
            slack = 0.05 if text in ("categorical", "ordinal") else 1e-9
            assert head.cells(moved.expand(len(x), -1), x).sum() > cost - slack


@pytest.mark.parametrize("text", SPECS)
def test_draws_have_the_expected_mean(text):
    head, _, params = case(text, rows=1)
    params[:, 3:] = 0.3 if "predicted" in text else params[:, 3:]
    torch.manual_seed(3)
    many = head.draw(params.expand(20_000, -1))
    view = head.linear_view(many).double()
    mean = head.expected(params)[0]
    error = view.std(0) / 20_000**0.5
    # As their docstrings say: the sixth digit, and a fortieth of one of four levels.
    slack = {"poisson": 0.025, "beta": 1e-3, "logistic_mixture": 1e-4}.get(text, 1e-6)
    slack = 0.025 / 3 if "levels=4" in text else slack
    assert ((view.mean(0) - mean).abs() <= 4.5 * error + slack).all()


@pytest.mark.parametrize("text", [s for s in SPECS if not s.startswith("ssim")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [1e3, 1e4])
def test_extreme_outputs_cost_a_finite_amount_and_have_a_finite_slope(text, dtype, size):
    head, x, params = case(text)
    head = head.to(dtype)
    x = x.to(dtype) if x.is_floating_point() else x
    params = (params.sign() * size).to(dtype).requires_grad_()
    cells = head.cells(params, x)
    assert torch.isfinite(cells).all()
    cells.sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in (params, *head.parameters()))
    for found in (head.point(params), head.expected(params)):
        assert torch.isfinite(found).all()


def test_log_prob_of_the_distribution_is_minus_the_cells_where_exact():
    for text in ("gaussian", "laplace", "student", "student(df=2.5)", "bernoulli", "categorical",
                 "logistic_mixture"):  # fmt: skip
        head, x, params = case(text)
        torch.testing.assert_close(-head.distribution(params).log_prob(x), head.cells(params, x))
    values = {
        "poisson": torch.expm1,
        "negative_binomial": torch.expm1,
        "negative_binomial(dispersion='predicted')": torch.expm1,
        "beta": squeezed,
        "ordinal": ranks,
    }
    for text, value in values.items():
        head, x, params = case(text)
        found = -head.distribution(params).log_prob(value(x))
        torch.testing.assert_close(found, head.cells(params, x))


def ranks(x):
    return (x * (torch.tensor(LEVELS) - 1)).round()


# --- numbers with a learnt scale -----------------------------------------------------------------


def fitted_scale(text, x, steps=3000):
    """Scale and location that the likelihood itself learns for one column."""
    head = likelihoods.build(PartSpec.parse(text), (1,)).double()
    at = torch.zeros(1, 1, dtype=torch.float64, requires_grad=True)
    adam = torch.optim.Adam([at, *head.parameters()], lr=0.01)
    for _ in range(steps):
        adam.zero_grad()
        head.cells(at.expand(len(x), -1), x).mean().backward()
        adam.step()
    return head, at.item(), head.log_scale.exp().item()


def test_the_learnt_scale_is_the_maximum_likelihood():
    x = torch.from_numpy(stats.t(3, 1.0, 0.5).rvs((2000, 1), random_state=0))
    _, at, scale = fitted_scale("laplace", x)
    assert at == pytest.approx(float(x.median()), abs=0.02)
    assert scale == pytest.approx(float((x - x.median()).abs().mean()), rel=0.01)
    head, at, scale = fitted_scale("student", x)
    df, location, spread = stats.t.fit(x.numpy())
    assert (at, scale) == pytest.approx((location, spread), rel=0.01)
    assert head.freedom.item() == pytest.approx(df, rel=0.02)
    _, at, scale = fitted_scale("student(df=3)", x)
    _, location, spread = stats.t.fit(x.numpy(), fix_df=3)
    assert (at, scale) == pytest.approx((location, spread), rel=0.01)


def test_the_scale_stays_above_its_floor():
    for text in ("gaussian(floor=-2.0)", "laplace(floor=-2.0)", "student(floor=-2.0)"):
        _, _, scale = fitted_scale(text, torch.zeros(10, 1, dtype=torch.float64), steps=300)
        assert scale == pytest.approx(np.exp(-2))


def test_wild_values_hardly_move_a_student_t():
    head = likelihoods.build(PartSpec.parse("student(df=3)"), (1,)).double()
    params = torch.zeros(1, 1, dtype=torch.float64, requires_grad=True)
    slopes = []
    for value in (2.0, 20.0, 2e5):
        head.cells(params, torch.full((1, 1), value, dtype=torch.float64)).sum().backward()
        slopes.append(abs(float(params.grad)))
        params.grad = None
    assert slopes[0] > slopes[1] > slopes[2]


@pytest.mark.parametrize("text", ["student(df=0)", "student(df=-1.0)", "student(df=1e999)"])
def test_degrees_of_freedom_are_above_zero(text):
    with pytest.raises(InputError, match=r"df is .*a number above 0"):
        likelihoods.build(PartSpec.parse(text), (1,))


def test_a_floor_above_the_ceiling_is_refused():
    with pytest.raises(InputError, match=r"floor is 11.0.*below 10"):
        likelihoods.build(PartSpec.parse("laplace(floor=11.0)"), (1,))


# --- counts --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_costs_of_any_count_keep_their_digits(dtype):
    v = np.array([0, 1, 2, 15, 16, 17, 100, 10_000, 1_000_000, 5_000_000])
    head = Poisson((1,))
    for shift in (-0.3, 0.0, 0.01, 1.0):
        log_rate = np.log(np.maximum(v, 0.1)) + shift
        x = torch.from_numpy(np.log1p(v))[:, None].to(dtype)
        found = head.cells(torch.from_numpy(log_rate)[:, None].to(dtype), x)[:, 0].double()
        given = torch.from_numpy(log_rate).to(dtype).double().numpy()
        kept = np.rint(np.expm1(x[:, 0].double().numpy()))
        expected = -stats.poisson(np.exp(given)).logpmf(kept)
        tolerance = 1e-9 if dtype == torch.float64 else 1e-4
        np.testing.assert_allclose(found.numpy(), expected, rtol=tolerance, atol=tolerance * 10)


def test_the_rate_goes_on_in_proportion_beyond_its_bound():
    head = Poisson((1,)).double()
    params = torch.tensor([[25.0]], dtype=torch.float64)
    rate = np.exp(20.0) * 6.0
    assert float(head.point(params)) == pytest.approx(np.log1p(rate))
    v = round(rate * 1.01)
    x = torch.tensor([[v]], dtype=torch.float64).log1p()
    assert float(head.cells(params, x)) == pytest.approx(-stats.poisson(rate).logpmf(v), rel=1e-6)


def test_the_expected_logarithm_of_a_count_is_within_what_is_said():
    rates = np.exp(np.linspace(-5, 5, 60))
    v = np.arange(600)
    exact = (stats.poisson(rates[:, None]).pmf(v) * np.log1p(v)).sum(1)
    found = Poisson((1,)).expected(torch.from_numpy(np.log(rates))[:, None])[:, 0].numpy()
    assert np.abs(found - exact).max() < 0.03
    assert (found < np.log1p(rates)).all()


def test_a_column_of_zeros_starts_at_a_small_rate():
    head = Poisson((1,))
    x = torch.zeros(10, 1)
    assert float(head.marginal(x, None)) == pytest.approx(np.log(1e-4))
    assert float(head.marginal(x, torch.zeros(10, 1, dtype=torch.bool))) == pytest.approx(
        np.log(1e-4)
    )


# --- counts that stray further -------------------------------------------------------------------


def exact_counts(v, log_rate, log_dispersion):
    """Cost of a count in sixty digits."""
    mp = pytest.importorskip("mpmath")
    with mp.workdps(60):
        mean, r = mp.exp(log_rate), mp.exp(-log_dispersion)
        known = mp.loggamma(v + r) - mp.loggamma(r) - mp.loggamma(v + 1)
        return float(r * mp.log((r + mean) / r) + v * mp.log((r + mean) / mean) - known)


def test_costs_of_counts_keep_their_digits_at_any_dispersion():
    grid = [
        (v, log_rate, log_dispersion)
        for v in (0, 1, 2, 15, 17, 100, 10_000, 1_000_000)
        for log_rate in (-8, 0, 3, 14, 20)
        for log_dispersion in (-16, -7, -1, 0, 2, 8)
    ]
    exact = np.array([exact_counts(*point) for point in grid])
    v, *outputs = (torch.tensor(c, dtype=torch.float64)[:, None] for c in zip(*grid, strict=True))
    head = NegativeBinomial((1,), dispersion="predicted")
    for dtype, tolerance in ((torch.float64, 1e-11), (torch.float32, 1e-4)):
        params = torch.cat(outputs, 1).to(dtype).requires_grad_()
        x = v.log1p().to(dtype)
        x = torch.where(torch.expm1(x.double()).round() == v, x, torch.nan)  # single precision
        cells = head.cells(params, x.nan_to_num(0.0))[:, 0]
        there = ~x[:, 0].isnan()
        assert there.sum() >= len(grid) * 0.8
        found = cells.detach().double()[there].numpy()
        np.testing.assert_allclose(found, exact[there.numpy()], rtol=tolerance, atol=tolerance)
        cells.sum().backward()
        assert torch.isfinite(params.grad).all()


def test_the_least_dispersion_is_poissons():
    v = torch.arange(0, 1000, 7, dtype=torch.float64)[:, None]
    log_rate = v.clamp_min(0.1).log() + torch.linspace(-0.2, 0.2, len(v)).double()[:, None]
    wide = NegativeBinomial((1,), dispersion="predicted")
    least = torch.full_like(log_rate, -100.0)
    found = wide.cells(torch.cat([log_rate, least], 1), v.log1p())
    expected = Poisson((1,)).cells(log_rate, v.log1p())
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
    few = v[:, 0] < 100
    torch.testing.assert_close(found[few], expected[few], rtol=1e-5, atol=2e-5)


def test_the_expected_logarithm_is_that_of_the_sum_over_all_counts():
    v = np.arange(200_000)
    head = NegativeBinomial((1,), dispersion="predicted")
    for log_rate, log_dispersion in [(-3, 0), (0, 2), (2, -16), (3, 0), (4, 1), (6, -2)]:
        size = np.exp(-log_dispersion)
        chance = stats.nbinom(size, size / (size + np.exp(log_rate))).pmf(v)
        params = torch.tensor([[log_rate, log_dispersion]], dtype=torch.float64)
        assert float(head.expected(params)) == pytest.approx((chance * np.log1p(v)).sum(), abs=1e-6)


@pytest.mark.parametrize("missing", [False, True])
def test_the_dispersion_settles_at_the_likeliest(missing):
    rng = np.random.default_rng(0)
    counts = rng.negative_binomial([0.5, 4.0], [0.05, 0.2], size=(5000, 2))
    x = torch.from_numpy(counts).double().log1p()
    seen = torch.rand(5000, 2, generator=torch.Generator().manual_seed(0)) > 0.3
    head = NegativeBinomial((1, 1)).double()
    head.settle(torch.where(seen, x, 9.0) if missing else x, seen if missing else None)
    torch.testing.assert_close(
        head.log_dispersion.exp(), torch.tensor([2.0, 0.25]).double(), rtol=0.08, atol=0
    )
    params = head.marginal(x, None)[None].expand(5000, -1)
    given = seen.double() if missing else 1.0
    slope = torch.autograd.grad((head.cells(params, x) * given).mean(), head.raw)[0]
    assert missing or slope.abs().max() < 1e-5


def test_counts_that_stray_less_than_poissons_settle_near_them():
    x = torch.full((50, 1), 5.0).log1p()
    head = NegativeBinomial((1,))
    head.settle(x, None)
    assert head.log_dispersion.item() < -13
    head.cells(head.marginal(x, None).expand(50, 1), x).sum().backward()
    assert head.raw.grad.item() != 0


def test_fields_of_counts_take_the_negative_binomial():
    column = {"n": pa.chunked_array([[0, 3, 8, 1]])}
    field = Count(columns=("n",), likelihood="negative_binomial(dispersion='predicted')")
    head = field.fit(column).head()
    assert str(likelihoods.spec(head)) == "negative_binomial(dispersion='predicted')"
    with pytest.raises(InputError, match="'shared' or 'predicted'"):
        NegativeBinomial((1,), dispersion="both")


# --- values on a grid ----------------------------------------------------------------------------


@pytest.mark.parametrize("levels", [2, 3, 16, 256])
@pytest.mark.parametrize("size", [1.0, 30.0])
def test_probabilities_of_all_levels_sum_to_one(levels, size):
    head = LogisticMixture((1,), components=3, levels=levels)
    params = size * torch.randn(50, 9, dtype=torch.float64)
    grid = torch.arange(levels, dtype=torch.float64)[:, None] / (levels - 1)
    costs = torch.stack([head.cells(params, v.expand(50, 1)) for v in grid])
    torch.testing.assert_close((-costs).exp().sum(0), torch.ones(50, 1).double())


def test_levels_far_from_any_component_cost_what_they_do_in_many_digits():
    mp = pytest.importorskip("mpmath")
    head = LogisticMixture((1,), components=1)
    for mean, log_scale, level in [(0.1, -7.0, 254), (0.9, -7.5, 3), (40.0, -5.0, 200), (5, 3, 9)]:
        params = torch.tensor([[0.0, mean, log_scale]], dtype=torch.float64)
        with mp.workdps(2000):
            low, high = ((mp.mpf(level + h) / 255 - mean) / mp.exp(log_scale) for h in (-0.5, 0.5))
            exact = -mp.log(1 / (1 + mp.exp(-high)) - 1 / (1 + mp.exp(-low)))
        found = float(head.cells(params, torch.tensor([[level / 255]], dtype=torch.float64)))
        assert found == pytest.approx(float(exact), rel=1e-10)


@pytest.mark.parametrize("levels", [2, 5, 256])
def test_the_mean_is_within_what_is_said(levels):
    head = LogisticMixture((1,), components=1, levels=levels)
    level = 1 / (levels - 1)
    grid = torch.arange(levels, dtype=torch.float64) * level
    for narrowest, bound in ((head.narrowest, 1 / 7), (np.log(level / 2), 1 / 40)):
        means, log_scales = torch.meshgrid(
            torch.linspace(-0.3, 1.3, 401).double(), torch.linspace(narrowest, 3, 20).double(),
            indexing="ij",
        )  # fmt: skip
        params = torch.stack([0 * means, means, log_scales], 2).view(-1, 3)
        chances = [(-head.cells(params, v.expand(len(params), 1))).exp() * v for v in grid]
        error = (head.point(params) - torch.stack(chances).sum(0)).abs().max()
        assert bound / 4 * level < error < bound * level


def test_draws_are_as_frequent_as_they_are_likely():
    head = LogisticMixture((1,), components=3, levels=6)
    torch.manual_seed(0)
    params = torch.tensor([[0.3, -0.5, 0.1, 0.0, 0.55, 1.1, -2.0, -3.0, -1.0]]).expand(40_000, -1)
    drawn = head.draw(params)
    grid = torch.arange(6) / 5
    found = (drawn == grid).sum(0)
    one = params[:1].double()
    chance = torch.cat([(-head.cells(one, v.view(1, 1))).exp()[0] for v in grid.double()])
    assert found.sum() == len(drawn)
    assert stats.chisquare(found, chance * len(drawn)).pvalue > 0.01
    several = head.distribution(params[:5]).sample((7,))
    assert several.shape == (7, 5, 1)


def test_values_off_the_grid_count_as_the_nearest_level():
    head = LogisticMixture((1,) * 4, levels=5)
    params = torch.randn(1, head.width)
    given, nearest = torch.tensor([[-0.3, 0.3, 0.6, 1.4]]), torch.tensor([[0.0, 0.25, 0.5, 1.0]])
    assert torch.equal(head.cells(params, given), head.cells(params, nearest))


@pytest.mark.parametrize("missing", [False, True])
def test_a_mixture_starts_near_the_frequencies_of_levels(missing):
    rng = np.random.default_rng(0)
    one, two = rng.random(3000), rng.integers(0, 256, 3000) / 255
    columns = [0 * one, 0 * one + 1, 1.0 * (one > 0.8), two, np.where(one < 0.6, 0, two),
               np.clip(0.4 + 0.1 * rng.normal(size=3000), 0, 1)]  # fmt: skip
    x = torch.from_numpy((np.stack(columns, 1) * 255).round() / 255)
    seen = torch.from_numpy(rng.random(x.shape) > 0.5) if missing else None
    head = LogisticMixture((1,) * 6)
    start = head.marginal(x if seen is None else torch.where(seen, x, 0.7), seen)
    params = start.expand(len(x), -1)
    for i, column in enumerate(x.T.numpy()):
        frequency = np.bincount((column * 255).round().astype(int), minlength=256) / len(x)
        best = stats.entropy(frequency)
        assert best - 1e-6 < float(head.cells(params, x)[:, i].mean()) < best + 0.3
    assert (head.point(params)[0] - x.mean(0)).abs().max() < 0.05
    nothing = head.marginal(x, torch.zeros_like(x, dtype=torch.bool))
    assert torch.isfinite(nothing).all()


def test_the_blocks_of_parameters_are_weights_means_and_scales_of_all_entries():
    """So a convolution's channels are those blocks, as they are a normal's means and scales."""
    head = LogisticMixture((1,) * 12, (3, 2, 2), components=2)
    params = torch.zeros(1, 6, 12)
    params[:, 0], params[:, 2] = 50.0, torch.linspace(0, 1, 12)
    params[:, 4] = -4.0
    torch.testing.assert_close(head.point(params.flatten(1))[0], torch.linspace(0, 1, 12),
                               atol=0.02, rtol=0)  # fmt: skip


def test_a_grid_needs_levels_and_components_and_an_image():
    with pytest.raises(InputError, match="two or more"):
        LogisticMixture((1,), levels=1)
    with pytest.raises(InputError, match="one or more"):
        LogisticMixture((1,), components=0)
    images = (np.random.default_rng(0).random((40, 6, 5, 3)) * 255).astype(np.uint8)
    wished = "logistic_mixture(components=3)"
    fields = {"x": Image(likelihood=wished)}
    model = refold.Autoencoder(4, fields=fields, epochs=2).fit({"x": images})
    assert model.reconstruct({"x": images})["x"].dtype == np.uint8
    assert np.isfinite(model.score_samples({"x": images})).all()
    with pytest.raises(InputError, match="cannot predict"):
        Vector(columns=("x",), likelihood=wished).fit({"x": np.eye(5)}).head()


# --- numbers between two ends --------------------------------------------------------------------


def test_beta_is_finite_at_its_ends_and_beyond():
    head, _, params = case("beta")
    x = torch.tensor([[0.0, 1.0, 0.5], [-0.2, 1.3, 1e-9]], dtype=torch.float64)
    cells = head.cells(params[:2], x)
    assert torch.isfinite(cells).all()
    torch.testing.assert_close(cells, head.cells(params[:2], x.clamp(0, 1)))


def test_beta_draws_and_points_stay_inside():
    head = Beta((1,) * 3)
    params = torch.tensor([[-1000.0, 0.0, 1000.0]]).expand(500, -1)
    for found in (head.point(params), head.draw(params)):
        assert ((found >= 0) & (found <= 1)).all()
    assert head.point(params)[0].tolist() == [0.0, 0.5, 1.0]


# --- shares --------------------------------------------------------------------------------------


def test_divergence_is_that_of_scipy_and_its_cells_are_never_negative():
    head, x, params = case("kl", rows=200)
    q = params.softmax(1)
    expected = [stats.entropy(a, b) for a, b in zip(x.numpy(), q.numpy(), strict=True)]
    torch.testing.assert_close(head.nll(params, x, None, 1.0).numpy(), np.array(expected))
    assert (head.cells(params, x) >= -1e-15).all()
    same = x.clamp_min(1e-300).log()
    assert head.cells(same, x).abs().max() < 1e-12


def test_a_share_of_zero_has_a_finite_cost_and_slope():
    p = torch.tensor([[1.0, 0.0, 0.0]])
    params = torch.zeros(1, 3, requires_grad=True)
    cells = Divergence((1,) * 3).cells(params, p)
    assert float(cells.detach().sum()) == pytest.approx(np.log(3))
    cells.sum().backward()
    torch.testing.assert_close(params.grad, torch.full((1, 3), 1 / 3) - p)


# --- ordered classes -----------------------------------------------------------------------------


def test_probabilities_of_ordered_levels_sum_to_one_in_each_column():
    head, _, params = case("ordinal")
    shares = head.expected(params * 20)
    assert (shares >= 0).all()
    for part in shares.split(LEVELS, 1):
        torch.testing.assert_close(part.sum(1), torch.ones(len(params), dtype=torch.float64))


def test_a_higher_output_means_a_higher_level():
    head, _, _ = case("ordinal")
    rising = torch.linspace(-30, 30, 200, dtype=torch.float64)[:, None].expand(-1, 3)
    points = head.point(rising)
    assert (points.diff(dim=0) >= 0).all()
    assert points[0].tolist() == [0, 0, 0]
    assert points[-1].tolist() == [1, 1, 1]


def test_cut_points_rise_and_have_an_end_in_each_column():
    head, _, _ = case("ordinal")
    assert head.cuts.shape == (3, 4)
    assert torch.isfinite(head.cuts).sum(1).tolist() == [2, 1, 4]
    for row, n in zip(head.cuts, LEVELS, strict=True):
        assert (row[: n - 1].diff() > 0).all()


@pytest.mark.parametrize("missing", [False, True])
def test_settled_cut_points_give_the_observed_shares(missing):
    head, x, _ = case("ordinal", rows=5000)
    x[:, 2] = torch.where(x[:, 2] == 0.5, 0.25, x[:, 2])  # a level that is never there
    seen = torch.rand(5000, 3) > 0.4 if missing else None
    head.settle(x, seen)
    shares = head.expected(head.marginal(x, seen)[None].double())[0].split(LEVELS)
    for k, n in enumerate(LEVELS):
        rank = (x[:, k] * (n - 1)).round().long()[slice(None) if seen is None else seen[:, k]]
        counts = torch.bincount(rank, minlength=n).double() + 0.5
        torch.testing.assert_close(shares[k], counts / counts.sum(), rtol=1e-4, atol=2e-6)


def test_fresh_cut_points_give_every_level_the_same_share():
    shares = Ordinal(LEVELS).expected(torch.zeros(1, 3))[0]
    expected = torch.cat([torch.full((n,), 1 / n) for n in LEVELS])
    torch.testing.assert_close(shares, expected, rtol=1e-5, atol=1e-6)


def test_columns_of_one_level_cost_nothing():
    for sizes in ((1,), (1, 1), (1, 4)):
        head = Ordinal(sizes)
        head.settle(torch.zeros(5, len(sizes)), None)
        params = torch.randn(5, len(sizes), requires_grad=True)
        cells = head.cells(params, torch.zeros(5, len(sizes)))
        assert cells[:, 0].abs().max() == 0
        cells.sum().backward()
        assert torch.isfinite(params.grad).all()
        assert head.expected(params).shape == (5, sum(sizes))
        assert head.point(params)[:, 0].tolist() == [0] * 5


def test_an_ordered_level_never_seen_costs_at_least_as_the_rarest():
    head, x, params = case("ordinal")
    head.eval()
    x[0] = -3
    cells = head.cells(params * 5, x)
    shares = -head.expected(params * 5).log()[0]
    rarest = torch.stack([p.max() for p in shares.split(LEVELS)]).clamp_min(np.log(1000))
    torch.testing.assert_close(cells[0], rarest)
    torch.testing.assert_close(cells[1:], head.cells(params[1:] * 5, x[1:]))
    assert head.linear_view(x)[0].sum() == 0


def test_two_ordered_levels_are_a_coin():
    head, coin = Ordinal((2,)).double(), likelihoods.build(PartSpec("bernoulli"), (1,))
    params = torch.randn(20, 1, dtype=torch.float64)
    x = (torch.rand(20, 1) > 0.5).double()
    torch.testing.assert_close(head.cells(params, x), coin.cells(params, x))


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
