"""Fast functions against plain references, in double precision."""

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from scipy.special import rel_entr

from refold.errors import InputError
from refold.ops.pca import principal_components
from refold.ops.segments import segment_log_softmax, segment_logsumexp
from refold.ops.sparsity import bernoulli_kl
from refold.ops.structure import ms_ssim, ssim_map
from refold.ops.topk import exact_mask, keep_spatial_winner, keep_top_k, keep_top_rows, top_mask

SIZES = (2, 5, 1, 9)


def reference_top_k(row, k, absolute):
    order = sorted(range(len(row)), key=lambda i: abs(row[i]) if absolute else row[i])
    kept = set(order[len(row) - k :])
    return [v if i in kept else 0.0 for i, v in enumerate(row)]


@pytest.mark.parametrize("absolute", [False, True])
@pytest.mark.parametrize("k", [1, 3, 7])
def test_top_k_equals_a_loop_over_rows(k, absolute):
    h = torch.randn(5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    rows = [reference_top_k(r, k, absolute) for r in h.tolist()]
    expected = torch.tensor(rows, dtype=torch.float64)
    assert torch.equal(keep_top_k(h, k, absolute=absolute), expected)


def test_top_k_keeps_exactly_k_under_ties():
    assert (keep_top_k(torch.ones(3, 8), 5) != 0).sum(1).tolist() == [5, 5, 5]
    assert keep_top_k(torch.ones(1, 4), 2).tolist() == [[1, 1, 0, 0]]


def test_top_k_takes_any_leading_axes():
    h = torch.randn(2, 3, 6)
    assert torch.equal(keep_top_k(h, 2).view(6, 6), keep_top_k(h.view(6, 6), 2))


def test_top_k_gradient_reaches_the_kept_alone_and_is_twice_differentiable():
    h = torch.randn(3, 6, dtype=torch.float64, requires_grad=True)
    keep_top_k(h, 2).sum().backward()
    assert torch.equal(h.grad, (keep_top_k(h.detach(), 2) != 0).double())
    assert torch.autograd.gradgradcheck(lambda x: keep_top_k(x, 2).pow(3), (h,))


def loop_over_columns(h, k):
    """Keep by hand the k largest entries of each column; of equal ones the first."""
    z = torch.zeros_like(h)
    for i in range(h.shape[1]):
        column = h[:, i].tolist()
        for b in sorted(range(len(column)), key=lambda b: -column[b])[:k]:
            z[b, i] = h[b, i]
    return z


def value_and_gradient(function, h, seed):
    h = h.clone().requires_grad_()
    z = function(h)
    z.backward(seed)
    return z.detach(), h.grad


@pytest.mark.parametrize("kind", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("k", [1, 4, 19, 20, 30])
def test_top_rows_equal_a_loop_over_columns_to_the_bit(kind, ties, k):
    h = torch.randn(20, 13, generator=torch.Generator().manual_seed(k)).to(kind)
    h = h.round() if ties else h
    seed = torch.randn(20, 13).to(kind)
    fast = value_and_gradient(lambda x: keep_top_rows(x, k), h, seed)
    slow = value_and_gradient(lambda x: loop_over_columns(x, k), h, seed)
    for mine, plain in zip(fast, slow, strict=True):
        assert torch.equal(mine, plain)
    assert not (fast[0].signbit() & (fast[0] == 0)).any()


def test_top_rows_keep_exactly_k_under_ties_and_all_of_a_short_batch():
    assert (keep_top_rows(torch.ones(8, 3), 5) != 0).sum(0).tolist() == [5, 5, 5]
    assert (keep_top_rows(-torch.ones(8, 3), 5) != 0).sum(0).tolist() == [5, 5, 5]
    short = torch.randn(4, 3)
    assert torch.equal(keep_top_rows(short, 5), short)


def test_top_rows_of_a_turned_tensor_leave_it_as_it_is():
    h = torch.randn(7, 3, generator=torch.Generator().manual_seed(1))
    turned = h.t().contiguous().t()
    assert torch.equal(keep_top_rows(turned, 2), keep_top_rows(h, 2))
    assert torch.equal(turned, h)


def test_top_rows_count_every_leading_position_as_a_row():
    h = torch.randn(3, 5, 6)
    assert torch.equal(keep_top_rows(h, 4).view(15, 6), keep_top_rows(h.view(15, 6), 4))


def test_top_rows_are_twice_differentiable():
    h = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda x: keep_top_rows(x, 2).pow(3), (h,))


@pytest.mark.parametrize("ties", [False, True])
def test_the_spatial_winner_equals_a_loop_over_maps_to_the_bit(ties):
    h = torch.randn(6, 5, 9, generator=torch.Generator().manual_seed(1))
    h = h.round() if ties else h

    def loop(x):
        z = torch.zeros_like(x)
        for b in range(6):
            for c in range(5):
                at = int(x[b, c].detach().numpy().argmax())
                z[b, c, at] = x[b, c, at]
        return z

    seed = torch.randn(6, 5, 9)
    fast, slow = value_and_gradient(keep_spatial_winner, h, seed), value_and_gradient(loop, h, seed)
    assert torch.equal(fast[0], slow[0])
    assert torch.equal(fast[1], slow[1])
    assert (fast[0] != 0).sum(2).max() == 1


@pytest.mark.filterwarnings(
    "ignore:.*jit.trace", "ignore:.*jit.script", "ignore::torch.jit.TracerWarning"
)
@pytest.mark.parametrize("axis", [0, -1])
def test_the_mask_is_the_same_where_tensors_have_no_memory_to_see(axis):
    h = torch.randn(9, 7, generator=torch.Generator().manual_seed(3))
    plain = top_mask(h, 3, axis=axis)

    def marked(x):
        return x * top_mask(x, 3, axis=axis)

    value, slope = torch.func.jvp(marked, (h,), (torch.ones_like(h),))
    assert torch.equal(value, h * plain)
    assert torch.equal(slope, plain)
    traced = torch.jit.trace(marked, torch.randn(9, 7), check_trace=False)
    assert torch.equal(traced(h), h * plain)


def test_what_is_not_finite_is_not_hidden():
    h = torch.randn(6, 6)
    h[2, 3] = torch.nan
    for function in (keep_top_k, keep_top_rows):
        assert function(h, 2).isnan().sum() == 1
    assert top_mask(torch.full((3, 4), -torch.inf), 2).sum() == 0


RHO = 0.2


def divergence(q):
    return rel_entr(RHO, q) + rel_entr(1 - RHO, 1 - q)


def test_the_coins_divergence_equals_scipy():
    q = np.linspace(0.01, 0.99, 197)
    found = bernoulli_kl(torch.from_numpy(q), RHO, eps=0.01)
    np.testing.assert_allclose(found.numpy(), divergence(q), atol=1e-14)
    assert float(bernoulli_kl(torch.tensor(RHO).double(), RHO)) == pytest.approx(0, abs=1e-15)


@pytest.mark.parametrize("eps", [1e-3, 0.1])
def test_the_coins_divergence_goes_on_as_its_tangent(eps):
    step = 1e-9
    for edge in (eps, 1 - eps):
        near = torch.tensor([edge - step, edge, edge + step], dtype=torch.float64)
        near.requires_grad_()
        value = bernoulli_kl(near, RHO, eps=eps)
        (slope,) = torch.autograd.grad(value.sum(), near)
        exact = (1 - RHO) / (1 - edge) - RHO / edge
        np.testing.assert_allclose(value.detach().numpy(), divergence(edge), atol=1e-5)
        np.testing.assert_allclose(slope.numpy(), exact, rtol=1e-5)
        far = bernoulli_kl(torch.tensor(edge + np.sign(edge - 0.5) * 7.0), RHO, eps=eps)
        assert float(far) == pytest.approx(float(divergence(edge)) + abs(exact) * 7, rel=1e-6)
    inside = torch.linspace(-0.3, 1.3, 40, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda q: bernoulli_kl(q, RHO, eps=eps), (inside,))


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("target", [1e-5, 0.05, 0.5, 0.9999])
def test_any_activity_costs_a_finite_amount_and_is_drawn_back(target, kind):
    q = torch.tensor([-1e6, -1.0, 0.0, 1.0, 2.0, 1e6], dtype=kind, requires_grad=True)
    cost = bernoulli_kl(q, target)
    cost.sum().backward()
    assert torch.isfinite(cost).all()
    assert (cost >= 0).all()
    assert torch.isfinite(q.grad).all()
    assert (q.grad[:3] < 0).all()
    assert (q.grad[3:] > 0).all()


@pytest.mark.parametrize("target", [0.0, 1.0, -0.1, 1.5])
def test_a_target_activity_outside_0_1_is_a_sentence(target):
    with pytest.raises(InputError, match="between 0 and 1"):
        bernoulli_kl(torch.tensor(0.5), target)


def pictures(*shape):
    """Two alike: noise, and a blend of it with other noise."""
    r = np.random.default_rng(0)
    x, noise = r.random(shape), r.random(shape)
    return x, 0.7 * x + 0.3 * noise


@pytest.mark.parametrize("size", [(11, 11), (40, 23), (7, 16), (4, 5)])
@pytest.mark.parametrize("top", [1.0, 255.0])
def test_similarity_equals_scipys_filters(size, top):
    x, y = pictures(*size)
    x, y = x * top, y * top

    def blur(a):
        return gaussian_filter(a, 1.5, truncate=3.5, mode="reflect")

    mx, my = blur(x), blur(y)
    vx, vy, vxy = blur(x * x) - mx * mx, blur(y * y) - my * my, blur(x * y) - mx * my
    c1, c2 = (0.01 * top) ** 2, (0.03 * top) ** 2
    light, contrast = (2 * mx * my + c1) / (mx**2 + my**2 + c1), (2 * vxy + c2) / (vx + vy + c2)
    found = ssim_map(torch.from_numpy(x), torch.from_numpy(y), data_range=top)
    np.testing.assert_allclose(found.numpy(), light * contrast, atol=1e-12)


@pytest.mark.parametrize("sigma", [0.8, 1.5])
def test_similarity_equals_scikit_image(sigma):
    metrics = pytest.importorskip("skimage.metrics")
    x, y = pictures(30, 21)
    options = {"gaussian_weights": True, "use_sample_covariance": False, "full": True}
    _, expected = metrics.structural_similarity(x, y, sigma=sigma, data_range=1.0, **options)
    found = ssim_map(torch.from_numpy(x), torch.from_numpy(y), sigma=sigma)
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-12)


def test_similarity_is_symmetric_bounded_and_differentiable():
    x, y = (torch.from_numpy(a) for a in pictures(2, 3, 6, 5))
    torch.testing.assert_close(ssim_map(x, y), ssim_map(y, x))
    torch.testing.assert_close(ssim_map(x, x), torch.ones_like(x))
    assert ssim_map(x, 1 - x).abs().max() <= 1
    y.requires_grad_()
    assert torch.autograd.gradcheck(lambda b: ssim_map(x, b), (y,))
    assert torch.autograd.gradcheck(lambda b: ms_ssim(x, b, scales=2), (y,))


def reference_ms_ssim(x, y, scales):
    """The paper's formula by SciPy's filters, images halved by hand."""
    weights = np.array([0.0448, 0.2856, 0.3001, 0.2363, 0.1333])[:scales]
    weights, product = weights / weights.sum(), 1.0
    for j in range(scales):

        def blur(a):
            return gaussian_filter(a, 1.5, truncate=3.5, mode="reflect")

        mx, my = blur(x), blur(y)
        vx, vy, vxy = blur(x * x) - mx * mx, blur(y * y) - my * my, blur(x * y) - mx * my
        value = (2 * vxy + 9e-4) / (vx + vy + 9e-4)
        if j == scales - 1:
            value = value * (2 * mx * my + 1e-4) / (mx**2 + my**2 + 1e-4)
        product *= value.mean() ** weights[j]
        h, w = x.shape[0] // 2, x.shape[1] // 2
        x, y = (a[: 2 * h, : 2 * w].reshape(h, 2, w, 2).mean((1, 3)) for a in (x, y))
    return product


@pytest.mark.parametrize(
    ("size", "scales"), [((9, 9), 1), ((28, 28), 2), ((64, 45), 3), ((176, 180), 5)]
)
def test_similarity_over_scales_equals_the_formula(size, scales):
    x, y = pictures(2, *size)
    found = ms_ssim(torch.from_numpy(x), torch.from_numpy(y))
    expected = [reference_ms_ssim(a, b, scales) for a, b in zip(x, y, strict=True)]
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-12)


def test_similarity_first_asked_for_in_inference_can_train_later():
    x, y = torch.rand(19, 17), torch.rand(19, 17, requires_grad=True)
    with torch.inference_mode():
        ssim_map(x, x)
    ssim_map(x, y).mean().backward()
    assert y.grad.abs().sum() > 0


def test_similarity_keeps_its_precision_under_half_precision():
    x, y = (torch.from_numpy(a).float().bfloat16() for a in pictures(24, 24))
    with torch.autocast("cpu", torch.bfloat16):
        found = ssim_map(x, y.float())
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), ssim_map(x.double(), y.double()), atol=1e-4, rtol=0)


def test_more_scales_than_an_image_has_halves_are_a_sentence():
    with pytest.raises(InputError, match=r"allow 1\.\.3"):
        ms_ssim(torch.ones(7, 7), torch.ones(7, 7), scales=4)
    assert ms_ssim(torch.ones(2, 3, 4, 7, 7), torch.ones(2, 3, 4, 7, 7), scales=3).shape == (
        2,
        3,
        4,
    )


def test_images_that_disagree_have_no_similarity_and_a_finite_slope():
    x = torch.rand(32, 32, dtype=torch.float64)
    y = (1 - x).requires_grad_()
    ms_ssim(x, y).backward()
    assert torch.isfinite(y.grad).all()


def test_exact_mask_has_the_count_and_differs_between_rows():
    mask = exact_mask(200, 50, 13, torch.Generator().manual_seed(1), torch.device("cpu"))
    assert mask.sum(1).unique().tolist() == [13]
    assert len(mask.unique(dim=0)) > 190
    share = mask.double().mean(0)
    assert share.sub(13 / 50).abs().max() < 4 * np.sqrt(0.26 * 0.74 / 200)


def segments():
    return torch.repeat_interleave(torch.arange(len(SIZES)), torch.tensor(SIZES))


def test_segments_equal_a_loop_over_columns():
    logits = 30 * torch.randn(6, sum(SIZES), dtype=torch.float64)
    parts = logits.split(SIZES, 1)
    sums = torch.stack([p.logsumexp(1) for p in parts], 1)
    soft = torch.cat([p.log_softmax(1) for p in parts], 1)
    torch.testing.assert_close(segment_logsumexp(logits, segments(), 4), sums)
    torch.testing.assert_close(segment_log_softmax(logits, segments(), 4), soft)


def test_segments_stay_finite_at_any_logit_and_differentiate():
    logits = torch.tensor([[1e4, -1e4, *([-1e4] * 15)]], dtype=torch.float64, requires_grad=True)
    out = segment_log_softmax(logits, segments(), 4)
    assert torch.isfinite(out).all()
    small = torch.randn(2, sum(SIZES), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: segment_logsumexp(x, segments(), 4), (small,))


@pytest.mark.parametrize("width", [12, 5000])
def test_principal_components_equal_the_singular_vectors(width):
    x = torch.randn(300, 8, dtype=torch.float64) @ torch.randn(8, width, dtype=torch.float64)
    x = x + 0.01 * torch.randn_like(x) + 3
    found = principal_components(x, 5)
    centred = x - x.mean(0)
    _, s, v = torch.linalg.svd(centred, full_matrices=False)
    cosines = torch.linalg.svdvals(found.axes.T @ v[:5].T)
    assert cosines.min() > 1 - 1e-9
    torch.testing.assert_close(found.variance, s[:5].square() / 300, rtol=1e-6, atol=0)
    assert found.total == pytest.approx(float(centred.square().sum() / 300))


def test_principal_components_of_wide_single_precision_rows_are_those_of_double():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3000, 20, generator=generator) @ torch.randn(20, 300, generator=generator) + 5
    x += 0.1 * torch.randn(3000, 300, generator=generator)
    ours, exact = principal_components(x, exact=False), principal_components(x)
    assert float((ours.variance - exact.variance).abs().max()) < 1e-6 * float(exact.variance[0])
    span = ours.axes[:, :20].T @ exact.axes[:, :20]
    assert float(torch.linalg.svdvals(span).min()) > 1 - 1e-6
