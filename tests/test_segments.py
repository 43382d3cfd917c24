"""Many columns of classes at once against torch's own functions, column by column."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from refold.backbones.base import Geometry
from refold.backbones.flat import Embed
from refold.likelihoods.categorical import RARE, UNSEEN, Categorical, SegmentedCategorical
from refold.ops import segments
from refold.ops.segments import (
    layout_of,
    segment_argmax,
    segment_cross_entropy,
    segment_log_softmax,
    segment_softmax,
)

CASES = {
    "mixed": (3, 70, 1, 2, 40, 2, 17, 33, 5, 9, 100, 1),
    "narrow": (2, 5, 1, 9, 2, 3),
    "wide": (40, 33, 64),
    "equal": (4, 4, 4),
    "equal and wide": (40, 40, 40),
    "one": (7,),
    "one wide": (50,),
    "single levels": (1, 1, 1),
    "a hundred": tuple(1 + (37 * k) % 60 for k in range(100)),
}


WAYS = {
    "narrow and wide": (32, 0),
    "all wide": (0, 0),
    "all in groups": (1000, 0),  # as on devices other than a processor
    "no blocks": (32, 10_000),
}


@pytest.fixture(params=WAYS.values(), ids=WAYS)
def narrow(request, monkeypatch):
    """Every way to choose the blocks, and to do without."""
    for name, value in zip(("NARROW", "FEW"), request.param, strict=True):
        monkeypatch.setattr(segments, name, value)
    layout_of.cache_clear()
    yield request.param
    layout_of.cache_clear()


def rows_of(sizes, rows=6, scale=3.0):
    torch.manual_seed(0)
    logits = scale * torch.randn(rows, sum(sizes), dtype=torch.float64)
    return logits, torch.stack([torch.randint(n, (rows,)) for n in sizes], 1)


def by_column(logits, classes, sizes):
    parts = enumerate(logits.split(sizes, 1))
    return torch.stack([F.cross_entropy(p, classes[:, k], reduction="none") for k, p in parts], 1)


@pytest.mark.parametrize("sizes", CASES.values(), ids=CASES)
@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_values_and_gradients_equal_torchs_cross_entropy(sizes, scale, narrow):
    logits, classes = rows_of(sizes, scale=scale)
    seed = torch.randn(len(logits), len(sizes), dtype=torch.float64)
    found, slopes = [], []
    for function in (segment_cross_entropy, by_column):
        leaf = logits.clone().requires_grad_()
        found.append(function(leaf, classes, sizes))
        found[-1].backward(seed)
        slopes.append(leaf.grad)
    assert torch.isfinite(found[0]).all()
    torch.testing.assert_close(*found, rtol=1e-12, atol=1e-11)
    torch.testing.assert_close(*slopes, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("sizes", [(3, 5, 1, 2), (4,), (2, 9, 6, 9)])
def test_first_and_second_derivatives_are_those_of_the_values(sizes, narrow):
    logits, classes = rows_of(sizes, rows=2, scale=1.0)
    logits.requires_grad_()
    for check in (torch.autograd.gradcheck, torch.autograd.gradgradcheck):
        assert check(lambda x: segment_cross_entropy(x, classes, sizes), (logits,))


@pytest.mark.parametrize("sizes", [CASES["mixed"], CASES["wide"]])
def test_the_gradient_of_a_gradient_equals_torchs(sizes, narrow):
    logits, classes = rows_of(sizes)
    found = []
    for function in (segment_cross_entropy, by_column):
        leaf = logits.clone().requires_grad_()
        (slope,) = torch.autograd.grad(
            function(leaf, classes, sizes).square().sum(), leaf, create_graph=True
        )
        slope.square().sum().backward()
        found.append((slope.detach(), leaf.grad))
    torch.testing.assert_close(*found)


def test_a_graph_can_be_walked_twice_and_its_input_keeps_its_values(narrow):
    sizes = CASES["mixed"]
    logits, classes = rows_of(sizes)
    leaf = logits.clone().requires_grad_()
    cost = segment_cross_entropy(leaf, classes, sizes).sum()
    (first,) = torch.autograd.grad(cost, leaf, retain_graph=True)
    (second,) = torch.autograd.grad(cost, leaf)
    assert torch.equal(first, second)
    assert torch.equal(leaf, logits)


def test_a_part_of_a_wider_output_is_read_where_it_lies(narrow):
    sizes = CASES["mixed"]
    logits, classes = rows_of(sizes)
    joined = torch.cat([torch.randn(len(logits), 5), logits], 1)
    assert not joined[:, 5:].is_contiguous()
    torch.testing.assert_close(
        segment_cross_entropy(joined[:, 5:], classes, sizes), by_column(logits, classes, sizes)
    )


@pytest.mark.parametrize("sizes", CASES.values(), ids=CASES)
def test_probabilities_and_modes_equal_those_of_each_column(sizes, narrow):
    logits, _ = rows_of(sizes)
    parts = logits.split(sizes, 1)
    torch.testing.assert_close(
        segment_softmax(logits, sizes), torch.cat([p.softmax(1) for p in parts], 1)
    )
    assert torch.equal(segment_argmax(logits, sizes), torch.stack([p.argmax(1) for p in parts], 1))


@pytest.mark.parametrize("sizes", CASES.values(), ids=CASES)
def test_of_equal_levels_the_first_is_the_mode(sizes, narrow):
    assert not segment_argmax(torch.zeros(3, sum(sizes)), sizes).any()


def test_probabilities_can_be_differentiated():
    sizes = (3, 40, 2)
    logits, _ = rows_of(sizes, rows=2, scale=1.0)
    logits.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: segment_softmax(x, sizes), (logits,))
    torch.testing.assert_close(
        segment_softmax(logits, sizes), segment_softmax(logits.detach(), sizes)
    )


def test_a_column_cannot_be_moved_by_another():
    """A gap of 20,000 between columns leaves the one below as exact as it was alone."""
    sizes = (3, 40)
    logits, classes = rows_of(sizes)
    alone = segment_cross_entropy(logits, classes, sizes)
    apart = logits + torch.tensor([1e4] * 3 + [-1e4] * 40)
    torch.testing.assert_close(segment_cross_entropy(apart, classes, sizes), alone)


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_half_precision_logits_cost_in_single_precision(kind):
    sizes = CASES["mixed"]
    logits, classes = rows_of(sizes)
    logits = logits.to(kind)
    found = segment_cross_entropy(logits, classes, sizes)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, by_column(logits.float(), classes, sizes))


def test_columns_first_asked_for_in_inference_can_train_later():
    layout_of.cache_clear()
    sizes = (3, 40, 2)
    logits, classes = rows_of(sizes)
    with torch.inference_mode():
        segment_cross_entropy(logits, classes, sizes)
    logits.requires_grad_()
    (slope,) = torch.autograd.grad(
        segment_cross_entropy(logits, classes, sizes).sum(), logits, create_graph=True
    )
    slope.square().sum().backward()
    assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("sizes", CASES.values(), ids=CASES)
def test_every_logit_has_one_place_in_the_blocks(sizes, narrow):
    logits = torch.arange(1.0, sum(sizes) + 1)[None]
    layout = layout_of(sizes, logits.device)
    ones = torch.ones(1, len(sizes))
    blocks = list(layout.blocks(logits))
    assert torch.equal(layout.scaled(blocks, ones), logits)
    assert sum(group.count for group in layout.groups) + len(layout.wide) == len(sizes)
    padded = len(layout.index)
    levels = len(layout.narrow)
    assert padded <= 2 * levels + segments.SPARE


def test_nothing_is_unknown_about_a_column_of_one_level():
    logits = torch.randn(4, 3, requires_grad=True)
    cost = segment_cross_entropy(logits, torch.zeros(4, 3, dtype=torch.long), (1, 1, 1))
    assert torch.equal(cost, torch.zeros(4, 3))
    cost.sum().backward()
    assert torch.equal(logits.grad, torch.zeros(4, 3))


@pytest.mark.parametrize("weight", [2.0, "entries"])
def test_a_missing_class_costs_nothing_and_moves_no_logit(weight):
    sizes = CASES["mixed"]
    logits, classes = rows_of(sizes)
    seen = torch.rand(classes.shape) > 0.4
    head = Categorical(sizes)
    w = torch.rand(len(sizes)).double() if weight == "entries" else weight
    leaf = logits.clone().requires_grad_()
    value, factor = head.cost(leaf, classes.masked_fill(~seen, -1), seen, w)
    (value * factor).backward()
    plain = logits.clone().requires_grad_()
    expected = (by_column(plain, classes, sizes) * seen * w).sum(1).mean()
    expected.backward()
    torch.testing.assert_close(value * factor, expected)
    torch.testing.assert_close(leaf.grad, plain.grad)
    assert not leaf.grad[~head.spread(seen)].any()


def test_an_unseen_class_costs_what_the_least_likely_does_and_at_least_log_1000():
    sizes = (2, 40, 3)
    logits, classes = rows_of(sizes, scale=20.0)
    logits[0] = 0
    head = Categorical(sizes).eval()
    known = head.cells(logits, classes)
    classes[:, 1] = UNSEEN
    found = head.cells(logits, classes)
    least = -torch.stack([p.log_softmax(1).amin(1) for p in logits.split(sizes, 1)], 1)
    torch.testing.assert_close(found[:, 1], least[:, 1].clamp_min(math.log(1000)))
    assert float(found[0, 1]) == pytest.approx(RARE)
    assert torch.equal(found[:, [0, 2]], known[:, [0, 2]])


def test_draws_have_the_shape_asked_for_and_the_right_frequencies():
    sizes = (3, 40, 1)
    logits, _ = rows_of(sizes, rows=2, scale=1.0)
    torch.manual_seed(1)
    drawn = SegmentedCategorical(logits, sizes).sample((4000, 2))
    assert drawn.shape == (4000, 2, 2, 3)
    probs = segment_softmax(logits, sizes)
    for row in range(2):
        for k, part in enumerate(probs[row].split(sizes)):
            share = torch.bincount(drawn[:, :, row, k].flatten(), minlength=sizes[k]) / 8000
            error = (part * (1 - part) / 8000).sqrt()
            assert ((share - part).abs() <= 4.5 * error + 1e-12).all()


def test_the_plain_softmax_takes_segments_in_any_order():
    segment = torch.tensor([1, 0, 1, 2, 0, 1])
    logits = torch.randn(3, 6, dtype=torch.float64)
    found = segment_log_softmax(logits, segment, 3)
    for k in range(3):
        torch.testing.assert_close(found[:, segment == k], logits[:, segment == k].log_softmax(1))


def test_the_best_constant_counts_classes_and_skips_missing_ones():
    sizes = (3, 2)
    classes = torch.tensor([[0, 1], [0, -1], [2, 1], [-1, 0]])
    found = Categorical(sizes).marginal(classes, classes >= 0).exp()
    torch.testing.assert_close(found, torch.tensor([2.5, 0.5, 1.5, 1.5, 2.5]))


def test_embeddings_and_their_gradients_are_those_of_a_table_per_column():
    sizes = (3, 1, 5)
    torch.manual_seed(0)
    embed = Embed(Geometry((3,), sizes, sum(sizes), True), width=4)
    classes = torch.stack([torch.randint(-1, n, (50,)) for n in sizes], 1)
    visible = torch.rand(50, 3) > 0.2
    h, _ = embed.encode(classes, visible)
    seed = torch.randn_like(h)
    h.backward(seed)
    tables = embed.table.detach().split([n + 1 for n in sizes])
    plain = [nn.Parameter(t.clone()) for t in tables]
    shown = classes.masked_fill(~visible, -1) + 1
    expected = torch.cat([F.embedding(shown[:, k], t) for k, t in enumerate(plain)], 1)
    expected.backward(seed)
    assert torch.equal(h, expected)
    torch.testing.assert_close(embed.table.grad, torch.cat([t.grad for t in plain]))
