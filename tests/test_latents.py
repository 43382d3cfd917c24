"""Latents: the promises every one makes, and the mathematics of each."""

import numpy as np
import pytest
import torch
from scipy import stats
from torch.distributions import Normal, kl_divergence

from refold.errors import InputError
from refold.latents import (
    KL,
    L1,
    Discrete,
    Flow,
    Gated,
    Gaussian,
    JumpReLU,
    Mixture,
    Nested,
    TopK,
    WinnerTakeAll,
    latents,
)
from refold.ops.topk import keep_spatial_winner, keep_top_k, keep_top_rows
from refold.parts import PartSpec

SIZE = 6


@pytest.fixture(params=sorted(latents))
def latent(request):
    return latents.build(PartSpec(request.param), SIZE).double()


def hidden(latent, rows=5):
    torch.manual_seed(0)
    return torch.randn(rows, latent.width, dtype=torch.float64)


def test_shapes_and_any_leading_axes(latent):
    h = hidden(latent)
    code = latent.eval()(h)
    assert code.z.shape == (5, SIZE)
    assert all(t.shape == (5,) for t in code.terms.values())
    tokens = latent(h[:4].view(2, 2, -1))
    assert tokens.z.shape == (2, 2, SIZE)
    assert torch.equal(tokens.z.view(4, SIZE), latent(h[:4]).z)


def test_evaluation_is_deterministic_and_row_by_row(latent):
    h = hidden(latent)
    latent.eval()
    whole = latent(h)
    for i in range(len(h)):
        alone = latent(h[i : i + 1])
        # A function's vectors and their remainders may differ in the last bit.
        torch.testing.assert_close(alone.z[0], whole.z[i], rtol=1e-15, atol=0)
        for name, term in alone.terms.items():
            torch.testing.assert_close(term[0], whole.terms[name][i])


def test_gradients_are_right(latent):
    h = hidden(latent).requires_grad_()
    latent.eval()
    if isinstance(latent, Discrete):
        pytest.skip("gradients pass straight through, which no difference shows")
    assert torch.autograd.gradcheck(lambda x: latent(x).z, (h,))
    for name in latent(h).terms:
        assert torch.autograd.gradcheck(lambda x, name=name: latent(x).terms[name], (h,))
    for name in latent(h).aux:
        assert torch.autograd.gradcheck(lambda x, name=name: latent(x).aux[name], (h,))


def test_gradients_reach_every_number_in_training(latent):
    h = hidden(latent, rows=400).requires_grad_()
    code = latent.train()(h)
    (code.z.sum() + sum(t.sum() for t in (*code.terms.values(), *code.aux.values()))).backward()
    assert torch.isfinite(h.grad).all()
    assert (h.grad != 0).any(0).all()


def test_the_state_is_the_latent(latent):
    again = latents.build(latents.spec(latent), SIZE).double()
    again.load_state_dict(latent.state_dict())
    h = hidden(latent)
    assert torch.equal(again.eval()(h).z, latent.eval()(h).z)
    # A prior, a posterior's flow, thresholds, or what a gate's magnitudes have of their own.
    learnt = isinstance(latent, Mixture | Flow | JumpReLU | Gated)
    assert bool(list(latent.parameters())) == learnt


def test_spec_round_trip(latent):
    spec = latents.spec(latent)
    again = latents.build(PartSpec.parse(str(spec)), SIZE)
    assert latents.spec(again) == spec


def test_sampling_or_an_error_that_names_who_can(latent):
    if latent.generative:
        assert latent.sample(7).shape == (7, SIZE)
    else:
        with pytest.raises(InputError, match="gaussian"):
            latent.sample(7)


def test_the_divergence_equals_the_closed_form_and_monte_carlo():
    latent = Gaussian(SIZE, beta=3.0).eval()
    h = hidden(latent)
    mean, log_variance = h.chunk(2, -1)
    posterior, prior = Normal(mean, (0.5 * log_variance).exp()), Normal(0.0, 1.0)
    exact = kl_divergence(posterior, prior).sum(1)
    torch.testing.assert_close(latent(h).terms["kl"], 3 * exact)
    draws = posterior.sample((200_000,))
    estimate = (posterior.log_prob(draws) - prior.log_prob(draws)).sum(2)
    error = estimate.std(0) / 200_000**0.5
    assert ((estimate.mean(0) - exact).abs() < 5 * error).all()


def test_training_codes_follow_the_posterior():
    latent = Gaussian(1)
    h = torch.tensor([[0.7, -1.2]], dtype=torch.float64).expand(100_000, 2)
    torch.manual_seed(0)
    z = latent(h).z
    assert float(z.mean()) == pytest.approx(0.7, abs=0.01)
    assert float(z.var()) == pytest.approx(torch.tensor(-1.2).exp().item(), rel=0.02)


def test_top_k_counts_and_default():
    h = torch.randn(9, 40)
    assert (TopK(40)(h).z != 0).sum(1).unique().tolist() == [4]
    assert (TopK(40, k=11)(h).z != 0).sum(1).unique().tolist() == [11]
    assert TopK(3).k == 1


def test_l1_charges_for_activity_alone():
    code = L1(2, weight=0.5)(torch.tensor([[2.0, -3.0], [-1.0, -1.0]]))
    assert code.terms["l1"].tolist() == [1.0, 0.0]
    assert code.z.tolist() == [[2.0, 0.0], [0.0, 0.0]]


def test_l1_without_a_rectifier_charges_for_either_sign():
    code = L1(2, weight=0.5, activation="identity")(torch.tensor([[2.0, -3.0]]))
    assert code.terms["l1"].tolist() == [2.5]
    assert code.z.tolist() == [[2.0, -3.0]]


@pytest.mark.parametrize("name", ["l1", "kl"])
def test_a_cost_grows_in_while_training_and_counts_in_full_after(name):
    latent = latents.build(PartSpec(name, {"warmup": 0.4, "weight": 2.0}), SIZE)
    h = hidden(latent)

    def cost(share, mode):
        latent.progress = share
        code = latent.train(mode)(h)
        return float({**code.terms, **code.aux}[{"l1": "l1", "kl": "sparsity"}[name]].sum())

    full = cost(1.0, True)
    assert full > 0
    assert [cost(p, True) / full for p in (0.0, 0.1, 0.4, 0.9)] == pytest.approx([0, 0.25, 1, 1])
    assert cost(0.0, False) == pytest.approx(full)


def test_lifetime_keeps_the_best_rows_of_each_unit_then_everything():
    h = torch.randn(40, SIZE, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    latent = WinnerTakeAll(SIZE, k=3)
    assert torch.equal(latent(h).z, keep_top_rows(h, 3).relu())
    assert torch.equal(latent(h).z, keep_top_rows(h.relu(), 3))
    assert torch.equal(latent.eval()(h).z, h.relu())
    signed = WinnerTakeAll(SIZE, k=3, activation="identity")
    assert torch.equal(signed(h).z, keep_top_rows(h, 3))
    assert torch.equal(signed.eval()(h).z, h)


@pytest.mark.parametrize(("rows", "kept"), [(100, 10), (64, 6), (7, 1), (2, 1), (1, 1)])
def test_lifetime_is_as_sparse_on_a_short_last_batch(rows, kept):
    h = torch.rand(rows, SIZE) + 0.1
    assert (WinnerTakeAll(SIZE, fraction=0.1)(h).z != 0).sum(0).unique().tolist() == [kept]


def test_lifetime_with_more_rows_asked_for_than_there_are_keeps_all():
    h = torch.rand(5, SIZE) + 0.1
    assert torch.equal(WinnerTakeAll(SIZE, k=9)(h).z, h)


def test_lifetime_with_a_limit_per_row_chooses_among_what_the_rows_left():
    h = torch.randn(30, SIZE, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    latent = WinnerTakeAll(SIZE, k=4, top=2, activation="identity")
    z = latent(h).z
    by_rows = keep_top_k(h, 2) != 0
    for i in range(SIZE):
        left = [b for b in range(30) if by_rows[b, i]]
        best = sorted(left, key=lambda b: -float(h[b, i]))[:4]
        assert z[:, i].nonzero()[:, 0].tolist() == sorted(best)
    assert torch.equal(z, torch.where(z != 0, h, 0))
    assert torch.equal(latent.eval()(h).z, keep_top_k(h, 2))


def test_lifetime_over_maps_keeps_winners_of_the_best_rows():
    h = torch.randn(12, 3 * 5, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    latent = WinnerTakeAll(15, k=2, maps=3)
    z = latent(h).z.view(12, 3, 5)
    maps = h.view(12, 3, 5)
    expected = torch.zeros_like(maps)
    for c in range(3):
        winners = [max(maps[b, c].tolist()) for b in range(12)]
        for b in sorted(range(12), key=lambda b: -winners[b])[:2]:
            at = int(maps[b, c].argmax())
            expected[b, c, at] = maps[b, c, at].relu()
    assert torch.equal(z, expected)
    everyone = WinnerTakeAll(15, k=12, maps=3)(h).z.view(12, 3, 5)
    assert torch.equal(everyone, keep_spatial_winner(maps).relu())
    assert torch.equal(latent.eval()(h).z, h.relu())
    limited = WinnerTakeAll(15, k=12, maps=3, top=4)(h).z
    assert torch.equal(limited, torch.where(keep_top_k(h, 4) != 0, everyone.flatten(1), 0))


def test_kl_charges_the_divergence_of_every_units_mean():
    h = torch.randn(50, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) - 1
    code = KL(3, target=0.1, weight=2.5)(h)
    mean = (1 / (1 + np.exp(-h.numpy()))).mean(0)
    expected = sum(stats.entropy([0.1, 0.9], [q, 1 - q]) for q in mean)
    assert float(code.aux["sparsity"]) == pytest.approx(2.5 * expected, rel=1e-12)
    assert ((code.z > 0) & (code.z < 1)).all()
    assert not code.terms


@pytest.mark.parametrize("level", [-1e4, -50.0, 50.0, 1e4])
def test_kl_of_units_that_are_dead_or_stuck_is_finite(level):
    h = torch.full((4, 3), level, requires_grad=True)
    cost = KL(3)(h).aux["sparsity"]
    cost.backward()
    assert torch.isfinite(cost)
    assert torch.isfinite(h.grad).all()


def test_kl_is_exact_in_half_precision():
    h = torch.randn(300, 5).bfloat16()
    exact = KL(5)(h.double()).aux["sparsity"]
    assert float(KL(5)(h).aux["sparsity"]) == pytest.approx(float(exact), rel=1e-3)
    assert torch.isfinite(KL(5)(torch.full((3, 5), 40.0).bfloat16()).aux["sparsity"])


def test_kl_finds_the_activity_asked_for():
    h = (3 * torch.randn(60, 4, dtype=torch.float64)).requires_grad_()
    latent, optimizer = KL(4, target=0.05), torch.optim.Adam([h], lr=0.05)
    for _ in range(300):
        optimizer.zero_grad()
        latent(h).aux["sparsity"].backward()
        optimizer.step()
    torch.testing.assert_close(
        h.sigmoid().mean(0), torch.full((4,), 0.05).double(), atol=1e-3, rtol=0
    )


@pytest.mark.parametrize(
    ("options", "chance"),
    [
        ({}, lambda b: np.ones_like(b)),
        ({"distribution": "geometric", "rate": 0.3}, lambda b: 0.7 ** (b - 1)),
        ({"distribution": "geometric"}, lambda b: (1 - 2 / 9) ** (b - 1)),
    ],
)
def test_nested_cuts_fall_as_the_distribution_says(options, chance):
    latent, rows = Nested(8, **options), 40_000
    torch.manual_seed(0)
    lengths = (latent(torch.ones(rows, 8)).z != 0).sum(1)
    share = chance(np.arange(1, 9).astype(float))
    counts = torch.bincount(lengths, minlength=9)[1:].numpy()
    assert counts.sum() == rows  # never an empty code
    assert stats.chisquare(counts, rows * share / share.sum()).pvalue > 1e-3


def test_nested_keeps_prefixes_in_training_and_everything_after():
    latent, h = Nested(7), torch.randn(50, 7)
    z = latent(h).z
    kept = z != 0
    assert torch.equal(z, torch.where(kept, h, 0))
    assert (kept[:, 1:] <= kept[:, :-1]).all()
    assert len(kept.sum(1).unique()) > 3
    assert not torch.equal(latent(h).z, z)
    assert torch.equal(latent.eval()(h).z, h)
    assert [name for name in latents if latents[name].ordered] == ["nested"]


def test_nested_draws_alike_at_any_precision():
    h = torch.ones(100, 5)
    torch.manual_seed(1)
    single = Nested(5)(h).z
    torch.manual_seed(1)
    assert torch.equal(Nested(5)(h.double()).z.float(), single)


def test_a_linear_model_with_a_nested_code_finds_the_components_in_order():
    generator = torch.Generator().manual_seed(0)
    spread = torch.tensor([5.0, 3.0, 2.0, 1.2, 0.7, 0.1], dtype=torch.float64)
    turn = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64, generator=generator)).Q
    x = torch.randn(500, 6, dtype=torch.float64, generator=generator) * spread @ turn.T
    x = x - x.mean(0)
    down, up = (
        0.3 * torch.randn(s, dtype=torch.float64, generator=generator) for s in ((6, 3),) * 2
    )
    down.requires_grad_()
    up.requires_grad_()
    latent = Nested(3)
    prefixes = torch.ones(3, 3, dtype=torch.float64).tril()

    def expected():
        errors = [(x - (x @ down * p) @ up.T).square().sum(1).mean() for p in prefixes]
        return torch.stack(errors) @ latent.chances.double()

    exact = {"max_iter": 2000, "tolerance_grad": 1e-12, "tolerance_change": 1e-16}
    optimizer = torch.optim.LBFGS([down, up], line_search_fn="strong_wolfe", **exact)

    def closure():
        optimizer.zero_grad()
        loss = expected()
        loss.backward()
        return loss

    # What is minimised is the mean of what training draws.
    repeated = x.repeat(400, 1)
    torch.manual_seed(0)
    drawn = (repeated - latent(repeated @ down).z @ up.T).square().sum(1).detach()
    assert (
        abs(float(drawn.mean() - expected().detach())) < 5 * float(drawn.std()) / len(drawn) ** 0.5
    )
    optimizer.step(closure)
    axes = torch.linalg.eigh(x.T @ x).eigenvectors.flip(1)[:, :3]
    columns = torch.nn.functional.normalize(up.detach(), dim=0)
    cosines = (columns * axes).sum(0).abs()
    assert (1 - cosines.square()).clamp_min(0).sqrt().max() < 1e-4


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("topk(k=0)", "k must lie in 1..6"),
        ("topk(k=7)", "k must lie in 1..6"),
        ("l1(weight=-1)", "0 or more"),
        ("l1(warmup=1.5)", "from 0 to 1"),
        ("l1(activation=tanh)", "identity"),
        ("kl(target=0)", "between 0 and 1"),
        ("kl(target=1)", "between 0 and 1"),
        ("kl(weight=-1)", "0 or more"),
        ("lifetime(k=2, fraction=0.1)", "one of them"),
        ("lifetime(k=0)", "1 or more"),
        ("lifetime(fraction=0)", "above 0"),
        ("lifetime(fraction=1.2)", "above 0"),
        ("lifetime(top=7)", r"1\.\.6"),
        ("lifetime(maps=4)", "divides 6"),
        ("lifetime(activation=rleu)", "did you mean 'relu'"),
        ("nested(distribution=normal)", "geometric"),
        ("nested(distribution=geometric, rate=1.5)", "a chance"),
        ("nested(rate=0.5)", "geometric"),
        ("gaussian(beta=-1)", "0 or more"),
        ("topk(q=1)", "did you mean 'k'|Known"),
        ("tpok", "did you mean 'topk'"),
        ("topk(", "cannot read"),
        ("topk(3)", "cannot read"),
        ("__import__('os')", "cannot read"),
    ],
)
def test_bad_options_are_sentences(text, message):
    with pytest.raises(InputError, match=message):
        latents.build(PartSpec.parse(text), SIZE)
    with pytest.raises(InputError, match="1 or more"):
        latents.build(PartSpec("plain"), 0)


def test_top_k_keeps_alpha_times_as_many_in_evaluation():
    h = torch.randn(20, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    latent = TopK(10, k=3, alpha=2.5)
    assert ((latent(h).z != 0).sum(1) == 3).all()
    assert ((latent.eval()(h).z != 0).sum(1) == 8).all()
    assert ((TopK(10, k=6, alpha=3).eval()(h).z != 0).sum(1) == 10).all()
    with pytest.raises(InputError, match=r"alpha is 0.5; it must be a number from 1 on"):
        TopK(10, k=3, alpha=0.5)
