"""Latents: the promises every one makes, and the mathematics of each."""

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from refold.errors import InputError
from refold.latents import L1, Gaussian, TopK, latents
from refold.parts import PartSpec

SIZE = 6


@pytest.fixture(params=sorted(latents))
def latent(request):
    return latents.build(PartSpec(request.param), SIZE)


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
        assert torch.equal(alone.z[0], whole.z[i])
        for name, term in alone.terms.items():
            torch.testing.assert_close(term[0], whole.terms[name][i])


def test_gradients_are_right(latent):
    h = hidden(latent).requires_grad_()
    latent.eval()
    assert torch.autograd.gradcheck(lambda x: latent(x).z, (h,))
    for name in latent(h).terms:
        assert torch.autograd.gradcheck(lambda x, name=name: latent(x).terms[name], (h,))


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


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("topk(k=0)", "k must lie in 1..6"),
        ("topk(k=7)", "k must lie in 1..6"),
        ("l1(weight=-1)", "0 or more"),
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
