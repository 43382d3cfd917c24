"""Codes made of whole numbers, against brute force and the papers' formulas in float64."""

import itertools
import math

import numpy as np
import pytest
import scipy.stats
import torch

import refold
from refold.errors import InputError
from refold.latents import FSQ, VQ, ResidualVQ, gauges
from refold.ops.usage import perplexity, usage


def vq(size=6, kind=VQ, **options):
    torch.manual_seed(0)
    latent = kind(size, **options).double()
    latent.begin(torch.randn(50, size, dtype=torch.float64), 50)
    return latent


def test_every_vector_becomes_its_nearest_entry():
    latent = vq(codes=7, dim=3).eval()
    h = torch.randn(40, 6, dtype=torch.float64)
    code = latent(h)
    for row, z, cost in zip(h, code.z, code.terms["commitment"], strict=True):
        apart = [(v - latent.books[0]).square().sum(1) for v in row.split(3)]
        nearest = torch.cat([latent.books[0][d.argmin()] for d in apart])
        torch.testing.assert_close(z, nearest, rtol=0, atol=1e-6)
        torch.testing.assert_close(cost, 0.25 * sum(d.min() for d in apart), rtol=1e-6, atol=0)


def test_gradients_pass_straight_through_and_vectors_are_drawn_to_their_entries():
    latent = vq(codes=5, dim=2, commitment=0.7).eval()
    h = torch.randn(9, 6, dtype=torch.float64, requires_grad=True)
    code = latent(h)
    up = torch.randn_like(h)
    (through,) = torch.autograd.grad(code.z, h, up, retain_graph=True)
    assert torch.equal(through, up)
    (drawn,) = torch.autograd.grad(code.terms["commitment"].sum(), h)
    torch.testing.assert_close(drawn, 2 * 0.7 * (h - code.z), rtol=1e-6, atol=1e-9)


def test_books_follow_the_exponential_averages_of_the_paper():
    latent = vq(codes=4, dim=2, decay=0.9, restart=0.0)
    counts, sums = latent.counts.clone(), latent.sums.clone()
    for _ in range(3):
        h = torch.randn(30, 6, dtype=torch.float64)
        vectors = h.view(-1, 2)
        chosen = torch.cdist(vectors, latent.books[0]).argmin(1)
        latent(h)
        for i in range(4):
            mine = vectors[chosen == i]
            counts[0, i] = 0.9 * counts[0, i] + 0.1 * len(mine)
            sums[0, i] = 0.9 * sums[0, i] + 0.1 * mine.sum(0)
        torch.testing.assert_close(latent.counts, counts)
        torch.testing.assert_close(latent.books, sums / counts[..., None], rtol=1e-4, atol=1e-6)
    before = latent.books.clone()
    latent.eval()(h)
    assert torch.equal(latent.books, before)


def test_entries_that_nothing_chooses_begin_anew_at_a_vector_of_the_batch():
    far = torch.full((2,), 1e3, dtype=torch.float64)
    h = torch.randn(64, 6, dtype=torch.float64)
    for restart in (0.0, 0.1):
        latent = vq(codes=4, dim=2, decay=0.5, restart=restart)
        latent.books[0, 2] = far
        latent.sums[0, 2] = far * latent.counts[0, 2]
        for _ in range(12):
            latent(h)
        revived = bool((torch.cdist(latent.books[0, 2:3], h.view(-1, 2)) < 2).any())
        assert revived is (restart > 0)


def test_each_level_holds_what_the_ones_before_left():
    latent = vq(kind=ResidualVQ, levels=3, codes=5, dim=2).eval()
    h = torch.randn(20, 6, dtype=torch.float64)
    numbers = latent(h).stats["indices"][:, :-1]
    rest = h.view(-1, 2)
    found = torch.zeros_like(rest)
    for level in range(3):
        index = torch.cdist(rest, latent.books[level]).argmin(1)
        entry = latent.books[level][index]
        found, rest = found + entry, rest - entry
    torch.testing.assert_close(latent(h).z, found.view(20, 6), rtol=0, atol=1e-6)
    torch.testing.assert_close(latent.lookup(numbers), latent(h).z, rtol=0, atol=1e-6)
    assert numbers.shape == (20, 9)


def test_more_levels_leave_less_over():
    h = torch.randn(500, 4, dtype=torch.float64)
    errors = []
    for levels in (1, 2, 4):
        torch.manual_seed(0)
        latent = ResidualVQ(4, levels=levels, codes=16, dim=4).double()
        latent.begin(h, 500)
        for _ in range(30):
            latent(h)
        errors.append(float((latent.eval()(h).z - h).square().mean()))
    assert errors[0] > 1.5 * errors[1] > 2 * errors[2]


def test_maps_are_read_position_by_position():
    latent = vq(size=12, codes=6, maps=3).eval()
    h = torch.randn(5, 3, 2, 2, dtype=torch.float64)
    z = latent(h.flatten(1)).z.view(5, 3, 2, 2)
    for row, i, j in itertools.product(range(5), range(2), range(2)):
        nearest = (latent.books[0] - h[row, :, i, j]).square().sum(1).argmin()
        torch.testing.assert_close(z[row, :, i, j], latent.books[0][nearest], rtol=0, atol=1e-6)
    fsq = FSQ(12, levels=(3, 5, 2), maps=True).double()
    z = fsq(h.flatten(1) * 3).z.view(5, 3, 2, 2)
    assert [len(z[:, c].unique()) <= n for c, n in enumerate((3, 5, 2))] == [True] * 3


@pytest.mark.parametrize("level", [2, 3, 4, 5, 8])
def test_an_entry_has_as_many_levels_as_asked_in_equal_steps(level):
    latent = FSQ(1, levels=(level,)).double()
    h = torch.linspace(-9, 9, 4001, dtype=torch.float64)[:, None]
    values = latent(h).z.unique()
    assert len(values) == level
    torch.testing.assert_close(values.diff(), torch.full((level - 1,), 1.0 / (level // 2)).double())
    assert 0.0 in values
    middle = latent(torch.zeros(1, 1, dtype=torch.float64, requires_grad=True))
    assert float(middle.z.detach()) == 0.0


def test_rounding_lets_the_gradient_of_the_bound_through():
    latent = FSQ(4, levels=(5, 8)).double()
    h = torch.randn(6, 4, dtype=torch.float64, requires_grad=True)
    (found,) = torch.autograd.grad(latent(h).z.sum(), h)
    for i, n in ((0, 5), (1, 8), (2, 5), (3, 8)):
        reach = (n - 1) * 1.001 / 2
        shift = math.atanh(0.5 / reach) if n % 2 == 0 else 0.0
        slope = reach * (1 - torch.tanh(h[:, i] + shift) ** 2) / (n // 2)
        torch.testing.assert_close(found[:, i], slope.detach(), rtol=1e-6, atol=1e-9)


def test_every_code_has_a_number_and_every_number_a_code():
    latent = FSQ(3, levels=(3, 4, 2)).double()
    numbers = torch.arange(24)[:, None]
    codes = latent.lookup(numbers)
    assert len(codes.unique(dim=0)) == 24
    reached = latent(torch.atanh(codes.clamp(-0.9, 0.9)) * 3)
    assert torch.equal(latent.lookup(reached.stats["indices"][:, :-1]), reached.z)
    book = vq(codes=9, dim=3).eval()
    numbers = torch.randint(9, (30, 2))
    assert torch.equal(book(book.lookup(numbers)).stats["indices"][:, :-1], numbers)


def test_perplexity_is_the_exponential_of_the_entropy():
    numbers = torch.from_numpy(np.random.default_rng(0).geometric(0.2, (500, 3)).clip(max=15))
    shares = np.bincount(numbers.flatten().numpy(), minlength=16)
    assert perplexity(numbers) == pytest.approx(np.exp(scipy.stats.entropy(shares)))
    assert usage(numbers, 16) == pytest.approx((shares > 0).mean())
    read = gauges["indices"](torch.cat([numbers, torch.full((500, 1), 16)], 1))
    assert read == {"perplexity": perplexity(numbers), "usage": usage(numbers, 16)}
    many = torch.tensor([[7, 2**31 - 1, 2**31], [7, 3, 2**31]])  # no memory could count them all
    assert gauges["indices"](many) == {"perplexity": pytest.approx(2**1.5), "usage": 3 / 2**31}


@pytest.mark.parametrize(
    "latent", ["vq(size=6, codes=16)", "residual_vq(size=6, codes=8)", "fsq(size=6)"]
)
def test_rows_fold_into_whole_numbers_and_unfold_from_them(latent, tmp_path):
    X = np.random.default_rng(0).normal(size=(200, 3)) @ np.ones((3, 8))
    ae = refold.Autoencoder(latent, epochs=4).fit(X)
    numbers = ae.transform(X, indices=True)
    assert numbers.dtype.kind == "i"
    np.testing.assert_allclose(
        ae.inverse_transform(numbers), ae.inverse_transform(ae.transform(X)), atol=1e-5
    )
    assert {"perplexity", "usage"} <= set(ae.history_[-1])
    ae.save(tmp_path / "m")
    assert np.array_equal(refold.load(tmp_path / "m").transform(X, indices=True), numbers)


def test_codes_that_are_no_entries_have_no_numbers():
    X = np.random.default_rng(0).normal(size=(50, 4))
    ae = refold.Autoencoder(2, epochs=1).fit(X)
    with pytest.raises(InputError, match="vq, residual_vq, fsq"):
        ae.transform(X, indices=True)
    ae = refold.Autoencoder("vq(size=4, codes=8, dim=2)", epochs=1).fit(X)
    with pytest.raises(InputError, match="from 0 to 7"):
        ae.inverse_transform(np.array([[0, 8]]))
    with pytest.raises(InputError, match=r"expected \(n, 2\)"):
        ae.inverse_transform(np.array([[0, 1, 2]]))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: VQ(6, codes=1), "2 or more"),
        (lambda: VQ(6, dim=4), "divides"),
        (lambda: VQ(6, dim=3, maps=2), "give one"),
        (lambda: VQ(6, decay=1.0), "below 1"),
        (lambda: VQ(6, commitment=-1), "0 or more"),
        (lambda: VQ(6, restart=1.0), "restart"),
        (lambda: ResidualVQ(6, levels=0), "1 or more"),
        (lambda: FSQ(6, levels=()), "one number or more"),
        (lambda: FSQ(6, levels=(5, 1)), "2 or more"),
        (lambda: FSQ(6, levels=(5, 5, 5, 5)), "multiple"),
        (lambda: FSQ(40, levels=(8,) * 20), "too many"),
    ],
)
def test_wrong_options_are_sentences(make, said):
    with pytest.raises(InputError, match=said):
        make()
