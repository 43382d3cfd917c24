"""Fast functions against plain references, in double precision."""

import numpy as np
import pytest
import torch

from refold.ops.pca import principal_components
from refold.ops.segments import segment_log_softmax, segment_logsumexp
from refold.ops.topk import exact_mask, keep_top_k

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


def test_top_k_takes_any_leading_axes():
    h = torch.randn(2, 3, 6)
    assert torch.equal(keep_top_k(h, 2).view(6, 6), keep_top_k(h.view(6, 6), 2))


def test_top_k_gradient_reaches_the_kept_alone_and_is_twice_differentiable():
    h = torch.randn(3, 6, dtype=torch.float64, requires_grad=True)
    keep_top_k(h, 2).sum().backward()
    assert torch.equal(h.grad, (keep_top_k(h.detach(), 2) != 0).double())
    assert torch.autograd.gradgradcheck(lambda x: keep_top_k(x, 2).pow(3), (h,))


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
