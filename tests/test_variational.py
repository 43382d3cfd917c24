"""Variational latents: divergences, bounds, priors and flows against closed forms."""

import importlib
import math
import sys
import warnings
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats
from torch.distributions import (
    Categorical,
    Independent,
    MixtureSameFamily,
    MultivariateNormal,
    Normal,
    kl_divergence,
)

import refold
from refold.errors import InputError, MissingExtraError
from refold.estimator import InputWarning
from refold.latents import Flow, Gaussian, Mixture, TotalCorrelation, Vamp, latents
from refold.latents.flow import fixed_points
from refold.latents.total_correlation import aggregate
from refold.latents.vamp import parts
from refold.model import Output
from refold.ops import normal
from refold.penalties import MMD
from refold.penalties.mmd import discrepancy
from refold.training.fit import evaluate
from refold.types import Batch, Code
from refold.uses.likelihood import log_likelihood

D = 3
VARIATIONAL = {
    "gaussian": Gaussian(D),
    "total_correlation": TotalCorrelation(D),
    "mixture": Mixture(D, components=4),
    "vamp": Vamp(D, components=5),
    "flow posterior": Flow(D, where="posterior"),
    "flow prior": Flow(D, where="prior", kind="spline"),
    "flow both": Flow(D, where="both"),
}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def hidden(latent, rows=4, seed=0):
    h = torch.randn(rows, latent.width, dtype=torch.float64, generator=seeded(seed))
    if isinstance(latent, Vamp):
        kept = torch.randn(latent.components, latent.width, dtype=torch.float64)
        latent.double().known.copy_(kept)
    return h


@pytest.fixture(params=VARIATIONAL)
def latent(request):
    torch.manual_seed(1)
    made = VARIATIONAL[request.param]
    again = latents.build(latents.spec(made), D).double()
    if isinstance(again, Flow):
        with torch.no_grad():  # far from the identity, where they begin
            for weight in again.parameters():
                weight.mul_(3.0)
    return again


# ---------------------------------------------------------------------- what all of them promise


def test_a_draw_has_the_density_it_says(latent):
    h = hidden(latent, rows=2)
    torch.manual_seed(0)
    z, log_q = latent.draw(h, 30_000)
    assert z.shape == (30_000, 2, D)
    assert log_q.shape == (30_000, 2)
    # The mean of 1 / q over a box that q covers is the box's volume.
    middle, spread = z.mean(0), z.std(0)
    low, high = middle - 0.7 * spread, middle + 0.7 * spread
    inside = ((z > low) & (z < high)).all(2)
    weights = torch.where(inside, (-log_q).exp(), 0.0)
    error = weights.std(0) / len(z) ** 0.5
    assert ((weights.mean(0) - (high - low).prod(1)).abs() < 4 * error).all()


def test_the_prior_has_the_density_of_its_samples(latent):
    torch.manual_seed(0)
    hidden(latent)
    z = latent.sample(30_000).double()
    log_p = latent.log_prior(z)
    assert log_p.shape == (30_000,)
    low, high = z.mean(0) - 0.7 * z.std(0), z.mean(0) + 0.7 * z.std(0)
    inside = ((z > low) & (z < high)).all(1)
    weights = torch.where(inside, (-log_p).exp(), 0.0)
    error = weights.std() / len(z) ** 0.5
    assert float((weights.mean() - (high - low).prod()).abs().detach()) < 4 * float(error)


def test_terms_of_training_are_the_divergence_on_average(latent):
    h = hidden(latent, rows=2)
    many = h.repeat(15_000, 1)
    torch.manual_seed(0)
    z, log_q = latent.draw(h, 30_000)
    each = log_q - latent.log_prior(z)
    exact, error = each.mean(0), each.std(0) / 30_000**0.5
    if isinstance(latent, TotalCorrelation):
        assert not latent.train()(h).terms
        return
    code = latent.train()(many)
    found = code.terms["kl"].view(-1, 2)
    spread = (error.square() + found.var(0) / len(found)).sqrt()
    assert ((found.mean(0) - exact).abs() < 4 * spread + 1e-9).all()


def test_evaluation_charges_the_divergence_or_a_bound_of_it(latent):
    h = hidden(latent, rows=3)
    torch.manual_seed(0)
    z, log_q = latent.draw(h, 30_000)
    each = log_q - latent.log_prior(z)
    exact, error = each.mean(0), each.std(0) / 30_000**0.5
    found = latent.eval()(h).terms["kl"]
    if isinstance(latent, Mixture | Vamp):
        assert (found > exact - 4 * error).all()
    elif isinstance(latent, Flow):
        assert ((found - exact).abs() < 0.15 * exact.abs() + 0.3).all()
    else:
        assert ((found - exact).abs() < 4 * error).all()


def test_evaluation_is_the_centre_and_draws_nothing(latent):
    h = hidden(latent)
    before = torch.get_rng_state()
    assert torch.equal(latent.eval()(h).z, latent.centre(h))
    assert torch.equal(torch.get_rng_state(), before)


# ---------------------------------------------------------------------- the normal posterior


def test_mixtures_of_normals_against_torch():
    g = seeded()
    means, spread = (torch.randn(4, D, dtype=torch.float64, generator=g) for _ in range(2))
    log_weights = torch.randn(4, dtype=torch.float64, generator=g).log_softmax(0)
    z = 2 * torch.randn(9, D, dtype=torch.float64, generator=g)
    known = MixtureSameFamily(
        Categorical(logits=log_weights), Independent(Normal(means, (0.5 * spread).exp()), 1)
    )
    found = normal.mixture_log_density(z, means, spread, log_weights)
    torch.testing.assert_close(found, known.log_prob(z))
    own = torch.randn(9, D, dtype=torch.float64, generator=g)
    one = normal.mixture_divergence(z, own, means[:1], spread[:1], torch.zeros(1).double())
    exact = kl_divergence(Normal(z, (own / 2).exp()), Normal(means[0], (spread[0] / 2).exp()))
    torch.testing.assert_close(one, exact.sum(1))


def test_single_precision_loses_nothing_with_narrow_components():
    means = torch.full((2, 40), 3.0)
    narrow = torch.full((2, 40), -12.0)
    weights = torch.full((2,), -math.log(2))
    found = normal.mixture_log_density(means[:1], means, narrow, weights)
    assert float(found) == pytest.approx(40 * (6 - 0.5 * math.log(2 * math.pi)), rel=1e-6)


def test_the_divergence_grows_in_while_training_and_counts_in_full_after():
    latent = Gaussian(D, beta=4.0, warmup=0.5)
    h = torch.zeros(3, 2 * D).index_fill(1, torch.arange(D), 1.0)
    latent.progress = 0.25
    torch.testing.assert_close(latent.train()(h).terms["kl"], torch.full((3,), 3.0))
    torch.testing.assert_close(latent.eval()(h).terms["kl"], torch.full((3,), 6.0))
    latent.progress = 0.6
    torch.testing.assert_close(latent.train()(h).terms["kl"], torch.full((3,), 6.0))


def test_free_bits_make_up_what_an_entry_lacks():
    latent, h = Gaussian(D, beta=2.0, free_bits=0.7), hidden(Gaussian(D), rows=50)
    h[:, 0], h[:, D] = 0.01 * h[:, 0], 0.01 * h[:, D]  # an entry with nearly no divergence
    h.requires_grad_()
    torch.manual_seed(0)
    code = latent.train()(h)
    kl = normal.divergence(*normal.moments(h)).mean(0)
    assert float(kl[0]) < 0.7 < float(kl.max())
    total = code.terms["kl"].mean() + code.aux["free_bits"]
    torch.testing.assert_close(total, 2 * kl.clamp_min(0.7).sum())
    total.backward()
    assert float(h.grad[:, [0, D]].abs().max()) < 1e-15  # nothing pulls it to the prior
    assert float(h.grad[:, 1].abs().max()) > 0
    assert "free_bits" not in latent.eval()(h).aux
    assert float(latent(h).terms["kl"].mean()) == pytest.approx(2 * float(kl.sum()))


def test_a_monte_carlo_divergence_is_that_of_its_draw():
    latent, h = Gaussian(D, monte_carlo=True), hidden(Gaussian(D))
    torch.manual_seed(3)
    code = latent.train()(h)
    mean, log_variance = normal.moments(h)
    each = normal.log_density(code.z, mean, log_variance) - normal.log_density(code.z)
    torch.testing.assert_close(code.terms["kl"], each.sum(1))


def test_several_draws_follow_one_another():
    latent, h = Gaussian(D, draws=5), hidden(Gaussian(D))
    torch.manual_seed(3)
    code = latent.train()(h)
    assert code.draws == 5
    assert code.z.shape == (20, D)
    mean, log_variance = (t.repeat(5, 1) for t in normal.moments(h))
    each = normal.log_density(code.z, mean, log_variance) - normal.log_density(code.z)
    torch.testing.assert_close(code.terms["kl"], each.sum(1))
    assert latent.eval()(h).draws == 1


# ---------------------------------------------------------------------- bounds of a linear model


class Linear:
    """A linear-Gaussian model of rows ``[n, E]``: its density is known in closed form."""

    def __init__(self, entries=4, code=2, draws=1, spread=0.6):
        g = seeded(5)
        rows = 9 * torch.randn(60, entries, generator=g).double().numpy()
        ae = refold.Autoencoder(
            f"gaussian(size={code}, draws={draws})",
            recipe="vae",
            hidden=(),
            fields={"x": "vector(scale='centred', likelihood='gaussian')"},
            epochs=1,
            validation=0,
        ).fit(rows)
        self.ae, self.model, self.schema = ae, ae.model_.double(), ae.schema_
        path = self.model.fusion.linear_path()
        w = torch.randn(entries, code, generator=g).double()
        mean = torch.randn(entries, generator=g).double()
        self.covariance = w @ w.T + spread**2 * torch.eye(entries).double()
        self.density = MultivariateNormal(mean, self.covariance)
        with torch.no_grad():
            path.up.copy_(w)
            path.up_bias.copy_(mean)
            head = self.model.likelihoods["x"]
            head.raw.fill_(math.log(spread) / 10)
            # The true posterior: covariance (I + W'W / s²)⁻¹, which is not diagonal; its mean.
            true = torch.linalg.inv(torch.eye(code).double() + w.T @ w / spread**2)
            gain = true @ w.T / spread**2
            path.down.zero_()
            path.down[:code] = gain
            path.down_bias[:code] = -(gain @ mean)
            path.down_bias[code:] = true.diagonal().log()
        self.true = true
        self.x = self.density.sample((300,))
        self.rows = Batch({"x": self.x}, {"x": None})

    def bound(self, draws, seed=0):
        self.model.latent.draws = draws
        self.model.eval()
        self.model.latent.train()
        torch.manual_seed(seed)
        with torch.no_grad():
            return -self.model(self.rows).score


@pytest.fixture(scope="module")
def linear():
    return Linear()


def test_bounds_are_ordered_and_near_the_true_density(linear):
    exact = linear.density.log_prob(linear.x)
    bounds = [torch.stack([linear.bound(k, s) for s in range(8)]) for k in (1, 5, 50)]
    means = [float(b.mean()) for b in bounds]
    assert means[0] < means[1] < means[2] < float(exact.mean()) + 0.01
    assert means[0] < float(exact.mean()) - 0.03
    # The evidence bound in closed form: log p(x) less the divergence from the true posterior.
    own = torch.diag_embed(linear.true.diagonal())
    gap = kl_divergence(
        MultivariateNormal(torch.zeros(2).double(), own),
        MultivariateNormal(torch.zeros(2).double(), linear.true),
    )
    error = bounds[0].mean(0).std() / len(exact) ** 0.5 / 8**0.5
    assert means[0] == pytest.approx(float(exact.mean() - gap), abs=4 * float(error) + 0.02)
    torch.manual_seed(0)
    found = log_likelihood(linear.model, linear.rows, linear.schema, 5000)
    assert means[2] < float(found.mean()) + 0.01
    assert float((found - exact).abs().max()) < 0.1
    assert float((found - exact).mean()) == pytest.approx(0, abs=5e-3)


def test_with_the_true_posterior_every_number_of_draws_is_exact():
    one = Linear(code=1)  # of one entry, which a diagonal covariance describes
    exact = one.density.log_prob(one.x)
    for k in (3, 20):
        torch.testing.assert_close(one.bound(k), exact)
    one.model.latent.monte_carlo = True
    torch.testing.assert_close(one.bound(1), exact)
    for n in (1, 7):
        found = log_likelihood(one.model, one.rows, one.schema, n)
        torch.testing.assert_close(found, exact)


def test_missing_entries_are_integrated_out(linear):
    seen = torch.rand(300, 4, generator=seeded()) > 0.3
    rows = Batch({"x": linear.x.masked_fill(~seen, 0.0)}, {"x": seen})
    torch.manual_seed(0)
    found = log_likelihood(linear.model, rows, linear.schema, 4000)
    mean, exact = linear.density.mean, torch.zeros(300).double()
    for i, at in enumerate(seen):
        if at.any():
            part = MultivariateNormal(mean[at], linear.covariance[at][:, at])
            exact[i] = part.log_prob(linear.x[i, at])
    assert float((found - exact).abs().median()) < 0.03
    assert float((found - exact).mean()) == pytest.approx(0, abs=0.1)
    torch.testing.assert_close(found[~seen.any(1)], exact[~seen.any(1)])


def test_portions_change_nothing_but_the_draws(linear, monkeypatch):
    torch.manual_seed(0)
    whole = log_likelihood(linear.model, linear.rows, linear.schema, 3000)
    monkeypatch.setattr("refold.uses.likelihood.CODES", 1000)
    torch.manual_seed(0)
    parted = log_likelihood(linear.model, linear.rows, linear.schema, 3000)
    assert float((whole - parted).abs().mean()) < 0.02


def test_weights_of_the_objective_do_not_enter(linear):
    before = linear.model.weight("x")
    torch.manual_seed(0)
    one = log_likelihood(linear.model, linear.rows, linear.schema, 50)
    linear.model.weigh({"x": (7.0,)})
    torch.manual_seed(0)
    two = log_likelihood(linear.model, linear.rows, linear.schema, 50)
    linear.model.weigh({"x": (before,)})
    assert torch.equal(one, two)


def rows_of(n=120):
    r = np.random.default_rng(0)
    return r.normal(size=(n, 2)) @ r.normal(size=(2, 5)) + 0.3 * r.normal(size=(n, 5))


@pytest.mark.parametrize(("likelihood", "constant"), [("mse", 0.5 * math.log(2 * math.pi)),
                                                      ("l1", math.log(2.0))])  # fmt: skip
def test_costs_without_their_constant_get_it(likelihood, constant):
    field = {"x": f"vector(likelihood='{likelihood}')"}
    X = rows_of()
    ae = refold.Autoencoder("gaussian(size=2)", fields=field, epochs=2).fit(X)
    ae.model_.latent.beta = 0.0
    rows = ae._encode(ae._read(X))
    with torch.inference_mode():
        ae.model_.eval()
        h = torch.zeros(len(X), 4) + torch.tensor([0.1, 0.2, -12.0, -12.0])
        z = h[:, :2]
        law = ae.model_.likelihoods["x"].distribution(ae.model_.decode(z)["x"])
        exact = law.log_prob(rows.x["x"]).sum(1)
        cost = ae.model_.likelihoods["x"].nll(ae.model_.decode(z)["x"], rows.x["x"], None, 1.0)
    torch.testing.assert_close(-cost - 5 * constant, exact)
    assert refold.uses.likelihood.CONSTANTS[likelihood] == pytest.approx(constant)


def test_probabilities_of_all_that_two_pixels_can_show_sum_to_one():
    shades = np.random.default_rng(0).integers(0, 2, (60, 4, 4)).astype(float)
    shades[0, 1:] = np.nan
    image = {"image": "image(likelihood='logistic_mixture(components=2, levels=2)')"}
    ae = refold.Autoencoder("gaussian(size=1)", fields=image, epochs=20).fit(shades)
    rows = np.full((4, 4, 4), np.nan)
    rows[:, 0, :2] = [[0, 0], [0, 1], [1, 0], [1, 1]]
    assert np.exp(ae.log_likelihood(rows, 2000)).sum() == pytest.approx(1.0, abs=0.02)


def test_beta_has_the_constant_of_its_squeezing():
    head, x = refold.likelihoods.Beta((1,)).double(), torch.linspace(0, 1, 100_001).double()
    lacking = refold.uses.likelihood.CONSTANTS["beta"]
    cost = head.cells(torch.zeros(len(x), 1, dtype=x.dtype), x[:, None])[:, 0] + lacking
    law = stats.beta(*(2 * [float(head.log_precision.exp()) / 2]))
    inside = law.cdf(0.9995) - law.cdf(0.0005)
    assert float(torch.trapezoid((-cost).exp(), x).detach()) == pytest.approx(inside, abs=1e-5)


@pytest.mark.parametrize("kind", sorted(refold.uses.likelihood.CONSTANTS))
def test_what_has_a_constant_exists(kind):
    assert kind in refold.likelihoods.likelihoods


@pytest.mark.parametrize("recipe", ["vae", "iwae", "tcvae", "mixture", "vampprior", "flow"])
def test_every_recipe_has_a_likelihood_above_its_bound(recipe):
    X = rows_of()
    ae = refold.Autoencoder(2, recipe=recipe, epochs=20, weights="equal").fit(X)
    found = ae.log_likelihood(X, 500)
    assert found.shape == (len(X),)
    assert found.dtype == np.float64
    assert np.array_equal(found, ae.log_likelihood(X, 500))
    assert not np.array_equal(found, ae.log_likelihood(X, 500, seed=1))
    assert found.mean() > ae.log_likelihood(X, 1).mean()
    assert len(ae.log_likelihood(X[:3], 10)) == 3


def test_likelihoods_that_are_no_density_are_refused():
    X = rows_of()
    huber = refold.Autoencoder(
        "gaussian(size=2)", fields={"x": "vector(likelihood='huber')"}, epochs=1
    ).fit(X)
    with pytest.raises(InputError, match=r"'huber' of 'x' is a cost and no density.*gaussian"):
        huber.log_likelihood(X)
    plain = refold.Autoencoder(2, epochs=1).fit(X)
    with pytest.raises(InputError, match=r"'plain', whose codes follow no posterior.*vamp"):
        plain.log_likelihood(X)
    grey = np.random.default_rng(0).random((40, 5, 5))
    images = refold.Autoencoder("gaussian(size=2)", recipe="vae", epochs=1).fit(grey)
    with pytest.raises(InputError, match="which a coin cannot show"):
        images.log_likelihood(grey)
    with pytest.raises(InputError, match="asked for 0 draws"):
        huber.log_likelihood(X, 0)


# ---------------------------------------------------------------------- draws given others


def test_of_rows_in_which_nothing_is_known_codes_are_draws_of_the_prior():
    X = np.concatenate([rows_of(100) + 9.0, rows_of(100) - 9.0])
    X[::9] = np.nan
    ae = refold.Autoencoder("vamp(size=1, components=6)", recipe="vae", epochs=30).fit(X)
    ae.model_.latent.known.copy_(torch.tensor([[3.0, -6.0]] * 6))  # one place, far from zero
    found = ae.sample(400, given=np.full((1, 5), np.nan))
    expected = ae.sample(400)
    for own, theirs in zip(found.T, expected.T, strict=True):
        assert stats.ks_2samp(own, theirs).pvalue > 1e-3


def test_values_are_drawn_where_the_code_or_the_likelihood_is():
    X = pd.DataFrame(rows_of(), columns=list("abcde"))
    X.loc[::7, "a"] = None
    options = {"recipe": "wae", "epochs": 2, "hidden": ()}
    fixed = refold.Autoencoder(2, **options).fit(X)
    for use in (lambda: fixed.sample(3, given={"b": 1.0}), lambda: fixed.impute(X, 3)):
        with pytest.raises(InputError, match=r"cannot be drawn: its likelihood has no spread.*vae"):
            use()
    assert len(fixed.sample(3)) == 3
    assert fixed.sample(2, given=X[1:2]).equals(pd.concat([X[1:2]] * 2, ignore_index=True))
    drawn = dict.fromkeys(X, "numeric(likelihood='gaussian')")
    spread = refold.Autoencoder(2, **options, fields=drawn).fit(X).sample(9, given={"b": 1.0})
    assert spread["a"].nunique() == 9
    grey = np.random.default_rng(0).random((40, 4, 4))
    images = refold.Autoencoder(2, **options).fit(grey)
    grey[:, 0] = np.nan
    with pytest.raises(InputError, match=r"cannot be drawn: .*recipe='vae'"):
        images.impute(grey, 3)


# ---------------------------------------------------------------------- total correlation


def test_the_three_parts_are_the_divergence():
    latent = TotalCorrelation(D, beta=1.0)
    h = hidden(latent, rows=40)
    for rows in (40, 5000):
        latent.begin(h, rows)
        torch.manual_seed(2)
        code = latent.train()(h)
        mean, log_variance = normal.moments(h)
        each = normal.log_density(code.z, mean, log_variance) - normal.log_density(code.z)
        torch.testing.assert_close(sum(code.aux.values()), each.sum(1).mean())
    assert latent.eval()(h).terms["kl"].shape == (40,)


def test_a_batch_of_all_rows_gives_the_aggregate_posterior_itself():
    g = seeded()
    mean, log_variance = (torch.randn(7, D, dtype=torch.float64, generator=g) for _ in range(2))
    z = torch.randn(7, D, dtype=torch.float64, generator=g)
    whole, entries = aggregate(z, mean, log_variance, 7)
    equal = torch.full((7,), -math.log(7)).double()
    torch.testing.assert_close(whole, normal.mixture_log_density(z, mean, log_variance, equal))
    for i in range(D):
        at = slice(i, i + 1)
        one = normal.mixture_log_density(z[:, at], mean[:, at], log_variance[:, at], equal)
        torch.testing.assert_close(entries[:, i], one)


def test_the_density_of_a_batch_is_right_on_average():
    g = seeded()
    n, batch = 12, 4
    mean, log_variance = (torch.randn(n, D, dtype=torch.float64, generator=g) for _ in range(2))
    z = torch.randn(n, D, dtype=torch.float64, generator=g)
    exact = aggregate(z, mean, log_variance, n)[0][0].exp()
    found = []
    for _ in range(4000):
        others = 1 + torch.randperm(n - 1, generator=g)[: batch - 1]
        at = torch.cat([torch.zeros(1, dtype=torch.long), others])
        found.append(float(aggregate(z[at], mean[at], log_variance[at], n)[0][0].exp()))
    assert np.mean(found) == pytest.approx(float(exact), abs=4 * np.std(found) / 4000**0.5)


def test_parts_of_correlated_codes_have_their_closed_form():
    # Means follow a correlated normal, posteriors are as wide each: so is the aggregate.
    n, rho, width = 3000, 0.8, 0.5
    g = seeded(1)
    root = torch.linalg.cholesky(torch.tensor([[1.0, rho], [rho, 1.0]]).double())
    mean = torch.randn(n, 2, dtype=torch.float64, generator=g) @ root.T
    h = torch.cat([mean, torch.full((n, 2), 2 * math.log(width)).double()], 1)
    latent = TotalCorrelation(2, beta=1.0)
    latent.begin(h, n)
    torch.manual_seed(0)
    aux = latent.train()(h).aux
    total = torch.tensor([[1.0, rho], [rho, 1.0]]).double() + width**2 * torch.eye(2).double()
    variance = float(total[0, 0])
    correlation = -0.5 * math.log(float(torch.linalg.det(total)) / variance**2)
    information = 0.5 * math.log(float(torch.linalg.det(total)) / width**4)
    entries = 2 * 0.5 * (variance - 1 - math.log(variance))
    assert float(aux["total_correlation"]) == pytest.approx(correlation, abs=0.05)
    assert float(aux["index_code"]) == pytest.approx(information, abs=0.05)
    assert float(aux["dimension_kl"]) == pytest.approx(entries, abs=0.06)


def test_the_number_of_rows_is_saved(tmp_path):
    X = rows_of()
    ae = refold.Autoencoder(2, recipe="tcvae", epochs=1).fit(X)
    ae.save(tmp_path / "m")
    assert int(refold.load(tmp_path / "m").model_.latent.rows) == 108


# ---------------------------------------------------------------------- learnt priors


def test_a_learnt_mixture_finds_groups():
    r = np.random.default_rng(0)
    centres = np.array([[4.0, 0], [-4.0, 0], [0, 4.0]])
    X = centres[r.integers(0, 3, 900)] + 0.2 * r.normal(size=(900, 2))
    options = {"weights": "equal", "epochs": 40, "hidden": (32,), "lr": 5e-3}
    plain = refold.Autoencoder("gaussian(size=2)", recipe="vae", **options).fit(X)
    grouped = refold.Autoencoder("mixture(size=2, components=6)", **options, recipe="mixture")
    gained = grouped.fit(X).log_likelihood(X, 200).mean() - plain.log_likelihood(X, 200).mean()
    assert gained > 0.1
    drawn = grouped.sample(600)
    nearest = np.linalg.norm(drawn[:, None] - centres, axis=2).min(1)
    assert (nearest < 1.5).mean() > 0.9


@pytest.fixture(scope="module")
def vamp():
    X = rows_of(200)
    return refold.Autoencoder("vamp(size=2, components=9)", recipe="vampprior", epochs=5).fit(X), X


def test_the_prior_is_the_posterior_of_learnt_inputs(vamp):
    ae, _ = vamp
    model = ae.model_
    drawn = model.references.rows[0]
    assert drawn.shape == (9, 5)
    batch = Batch({"x": drawn.detach()}, {"x": None})
    with torch.no_grad():
        h = model.eval().hidden(batch)[0]
    torch.testing.assert_close(model.latent.known, h)
    z = torch.randn(7, 2, generator=seeded())
    means, log_variances, log_weights = parts(h)
    known = normal.mixture_log_density(z, means, log_variances, log_weights)
    torch.testing.assert_close(model.latent.log_prior(z), known)


def test_learnt_inputs_learn_by_the_prior(vamp):
    ae, X = vamp
    ae.model_.train()
    ae.model_.zero_grad()
    output = ae.model_(ae._encode(ae._read(X)))
    output.code.terms["kl"].mean().backward()
    assert float(ae.model_.references.rows[0].grad.abs().sum()) > 0
    ae.model_.eval()
    assert ae.model_.latent._met is None  # or the graph would stay


def test_uses_leave_the_prior_as_it_was(vamp, tmp_path):
    ae, X = vamp
    before = ae.model_.latent.known.clone()
    scores = ae.score_samples(X)
    ae.sample(5, given=X[:2])
    ae.log_likelihood(X[:5], 20)
    assert torch.equal(ae.model_.latent.known, before)
    assert np.array_equal(ae.score_samples(X), scores)
    ae.save(tmp_path / "m")
    again = refold.load(tmp_path / "m")
    assert np.array_equal(again.score_samples(X), scores)
    assert np.array_equal(again.sample(7), ae.sample(7))


# ---------------------------------------------------------------------- flows


@pytest.mark.parametrize("kind", ["affine", "spline"])
def test_volumes_against_the_jacobian(kind):
    torch.manual_seed(0)
    latent = Flow(D, where="both", kind=kind, transforms=2).double()
    with torch.no_grad():
        for weight in latent.parameters():
            weight.mul_(3.0)
    h = torch.randn(1, latent.width, dtype=torch.float64)
    base = torch.randn(1, 1, D, dtype=torch.float64)
    z, minus = latent._push(h, base, torch.zeros_like(base))
    jacobian = torch.autograd.functional.jacobian(
        lambda b: latent._push(h, b.view(1, 1, D), base)[0].flatten(), base.flatten()
    )
    torch.testing.assert_close(-minus.squeeze(), torch.linalg.slogdet(jacobian)[1])
    assert abs(float(minus)) > 1e-3

    def back(code):
        for step in latent.prior:
            code = step(None)(code)
        return code

    jacobian = torch.autograd.functional.jacobian(back, z.flatten())
    known = normal.log_density(back(z.flatten())).sum() + torch.linalg.slogdet(jacobian)[1]
    torch.testing.assert_close(latent.log_prior(z).squeeze(), known)


def test_samples_of_a_flow_are_its_inverse():
    torch.manual_seed(0)
    latent = Flow(D, where="prior").double()
    torch.manual_seed(4)
    z = latent.sample(6)
    torch.manual_seed(4)
    base = torch.randn(6, D)
    for step in latent.prior:
        z = step(None)(z)
    torch.testing.assert_close(z, base.double(), atol=1e-6, rtol=1e-5)


def test_flows_that_do_nothing_leave_the_divergence_of_normals():
    latent = Flow(D, where="both").double().eval()
    with torch.no_grad():
        for step in (*latent.posterior, *latent.prior):
            for weight in list(step.parameters())[-2:]:
                weight.zero_()
    h = hidden(latent)
    code = latent(h)
    mean, log_variance = normal.moments(h[:, : 2 * D])
    torch.testing.assert_close(code.z, mean)
    torch.testing.assert_close(code.terms["kl"], normal.divergence(mean, log_variance).sum(1))
    points = fixed_points(50)
    torch.testing.assert_close(points.mean(0), torch.zeros(50).double(), atol=1e-12, rtol=0)
    torch.testing.assert_close(points.square().mean(0), torch.ones(50).double())


def test_a_code_of_one_entry_has_flows_too():
    latent = Flow(1, where="both", kind="spline")
    code = latent(torch.randn(4, latent.width))
    assert code.z.shape == (4, 1)
    assert latent.sample(3).shape == (3, 1)


def test_without_zuko_a_flow_says_what_to_install(monkeypatch):
    for name in [n for n in sys.modules if n.split(".")[0] == "zuko"]:
        monkeypatch.delitem(sys.modules, name)
    original = importlib.import_module

    def absent(name, *rest):
        if name.startswith("zuko"):
            raise ImportError(name)
        return original(name, *rest)

    monkeypatch.setattr(importlib, "import_module", absent)
    with pytest.raises(MissingExtraError, match=r"needs zuko: pip install 'refold\[flows\]'"):
        Flow(2)


def test_a_flow_posterior_bends_where_a_normal_cannot():
    # A posterior that is a ring cut open: z2 follows z1 squared.
    torch.manual_seed(0)

    def gap(latent):
        layer = torch.zeros(1, latent.width, requires_grad=True)
        optimizer = torch.optim.Adam([layer, *latent.parameters()], lr=0.02)
        for _ in range(300):
            z, log_q = latent.draw(layer, 128)
            law = -0.5 * (z[..., 0].square() + ((z[..., 1] - z[..., 0].square()) / 0.2).square())
            cost = (log_q - law).mean()
            optimizer.zero_grad()
            cost.backward()
            optimizer.step()
        return float(cost.detach())

    assert gap(Flow(2, transforms=2)) < gap(Gaussian(2)) - 0.5


# ---------------------------------------------------------------------- discrepancy


@pytest.mark.parametrize("kernel", ["imq", "rbf"])
def test_the_discrepancy_against_a_plain_loop(kernel):
    g = seeded()
    a = torch.randn(6, D, dtype=torch.float64, generator=g)
    b = 1 + torch.randn(5, D, dtype=torch.float64, generator=g)
    scales = (0.3, 2.0)

    def k(x, y):
        far = float((x - y).square().sum())
        cs = [2 * D * s for s in scales]
        return sum(c / (c + far) if kernel == "imq" else math.exp(-far / c) for c in cs)

    within = sum(k(x, y) for i, x in enumerate(a) for j, y in enumerate(a) if i != j) / 30
    beside = sum(k(x, y) for i, x in enumerate(b) for j, y in enumerate(b) if i != j) / 20
    between = sum(k(x, y) for x in a for y in b) / 30
    found = discrepancy(a, b, kernel, scales)
    assert float(found) == pytest.approx(within + beside - 2 * between, abs=1e-12)


@pytest.mark.parametrize("kernel", ["imq", "rbf"])
def test_equal_distributions_have_no_discrepancy_on_average(kernel):
    g = seeded()
    found = [
        float(discrepancy(*torch.randn(2, 20, D, dtype=torch.float64, generator=g), kernel))
        for _ in range(1500)
    ]
    assert np.mean(found) == pytest.approx(0, abs=4 * np.std(found) / 1500**0.5)
    assert min(found) < 0
    a, b = torch.randn(2, 400, D, dtype=torch.float64, generator=g)
    assert float(discrepancy(a, 0.5 * b, kernel)) > 2 * np.std(found)


def test_gradients_of_the_discrepancy():
    g = seeded()
    a = torch.randn(4, 2, dtype=torch.float64, generator=g, requires_grad=True)
    b = torch.randn(4, 2, dtype=torch.float64, generator=g)
    assert torch.autograd.gradcheck(lambda x: discrepancy(x, b), (a,))


def test_codes_come_to_look_like_the_prior():
    X = rows_of(600) * 3
    options = {"epochs": 30, "recipe": "wae"}
    with_it = refold.Autoencoder("matched(size=2)", penalties=("mmd(weight=50.0)",), **options)
    z = with_it.fit(X).transform(X)
    assert stats.kstest(z[:, 0], "norm").statistic < 0.15
    assert abs(np.corrcoef(z.T)[0, 1]) < 0.35
    assert "valid_mmd" in with_it.history_[-1]
    with pytest.raises(InputError, match="compares codes with draws from a prior"):
        refold.Autoencoder(2, penalties=("mmd",), epochs=1).fit(X)


def test_the_discrepancy_has_options():
    for wrong in ({"weight": -1.0}, {"kernel": "cubic"}, {"scales": ()}, {"scales": (0.0,)}):
        with pytest.raises(InputError):
            MMD(**wrong)
    code = Code(torch.ones(1, 2, requires_grad=True))
    assert float(MMD()(torch.nn.Identity(), Batch({}, {}), code, {})["mmd"].detach()) == 0.0


# ---------------------------------------------------------------------- training and judging


def test_held_out_rows_are_judged_by_the_bound_in_full():
    X = rows_of(400)
    ae = refold.Autoencoder(
        "gaussian(size=2, beta=3.0, warmup=0.9)", recipe="vae", epochs=3, weights="equal"
    ).fit(X)
    model, rows = ae.model_, ae._encode(ae._read(X))
    model.latent.progress = 0.1  # as at a judgement while costs grow in
    found, figures = evaluate(model, rows, None, 0)
    again, _ = evaluate(model, rows, None, 0)
    assert found == again
    assert model.latent.progress == 0.1
    model.eval()
    model.latent.train()
    model.latent.progress = 1.0
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(1)
        whole = model(rows)
    assert found["loss"] == pytest.approx(float(whole.loss), rel=1e-6)
    model.eval()
    with torch.no_grad():
        centre = model(rows)
    kl = float(centre.code.terms["kl"].mean())
    assert found["kl"] == pytest.approx(kl, rel=1e-5)
    assert found["loss"] > float(centre.loss)  # a draw strays where the centre does not
    assert figures["active_units"] <= 2
    assert sum(figures[f"kl_{i}"] for i in range(2)) * 3 == pytest.approx(kl, rel=1e-5)


def test_a_collapsed_posterior_is_said():
    X = rows_of(300)
    with pytest.warns(InputWarning, match="posterior has collapsed: 0 of 2 units"):
        refold.Autoencoder("gaussian(size=2, beta=100.0)", recipe="vae", epochs=30).fit(X)
    with warnings.catch_warnings():
        warnings.simplefilter("error", InputWarning)
        healthy = refold.Autoencoder("gaussian(size=2)", recipe="vae", epochs=20).fit(X)
    assert "freer" not in " ".join(healthy.reasons_)


def test_free_bits_keep_units_in_use():
    X = rows_of(300)
    options = {"recipe": "vae", "epochs": 40, "hidden": (16,)}
    none = refold.Autoencoder("gaussian(size=2, beta=30.0)", **options).fit(X)
    free = refold.Autoencoder("gaussian(size=2, beta=30.0, free_bits=0.8)", **options).fit(X)
    assert sum(none.run_.best[f"kl_{i}"] for i in range(2)) < 0.1
    assert all(free.run_.best[f"kl_{i}"] > 0.3 for i in range(2))


def test_an_importance_weighted_model_draws_rows_given_others():
    X = rows_of()
    ae = refold.Autoencoder("gaussian(size=2, draws=5)", recipe="iwae", epochs=2).fit(X)
    assert ae.sample(3, given=X[:2]).shape == (6, 5)
    assert "train_bound" in ae.history_[-1]


def test_the_score_of_several_draws():
    ae = refold.Autoencoder("gaussian(size=2, draws=3)", recipe="iwae", epochs=1).fit(rows_of())
    rows = ae._encode(ae._read(rows_of()))
    ae.model_.train()
    with torch.no_grad():
        output = ae.model_(rows)
    each = output.nll["x"] + output.code.terms["kl"]
    known = -(torch.logsumexp(-each.view(3, -1), 0) - math.log(3))
    torch.testing.assert_close(output.score, known)
    assert isinstance(output, Output)
    torch.testing.assert_close(output.loss, known.mean())


@pytest.mark.parametrize("wrong", [
    "gaussian(beta=-1.0)", "gaussian(warmup=2.0)", "gaussian(free_bits=-1.0)", "gaussian(draws=0)",
    "gaussian(draws=2, free_bits=0.1)", "total_correlation(alpha=-1.0)", "mixture(components=0)",
    "vamp(components=0)", "flow(where='both ways')", "flow(kind='cubic')", "flow(transforms=0)",
    "flow(hidden=())", "flow(bins=1)",
])  # fmt: skip
def test_wrong_options_are_refused(wrong):
    name, _, rest = wrong.partition("(")
    with pytest.raises(InputError):
        refold.Autoencoder(f"{name}(size=2, {rest}", epochs=1).fit(rows_of(30))


def test_what_is_drawn_is_the_target():
    grey = torch.rand(50, 1, 6, 6, generator=seeded())
    part = refold.data.corruptions.Binarise()
    batch = Batch({"image": grey, "label": torch.ones(50, 1)}, {"image": None, "label": None})
    drawn = part(batch.only(["image"]), seeded(1))
    assert set(drawn.x["image"].unique().tolist()) == {0.0, 1.0}
    target = part.target(batch, drawn)
    assert torch.equal(target.x["image"], drawn.x["image"])
    assert torch.equal(target.x["label"], batch.x["label"])
    g = seeded(2)
    many = torch.stack([part(batch.only(["image"]), g).x["image"] for _ in range(300)])
    error = (grey * (1 - grey) / 300).sqrt()
    assert ((many.mean(0) - grey).abs() < 5 * error + 0.01).all()


def test_specs_of_the_family_survive_json(latent):
    spec = replace(
        refold.Autoencoder("gaussian(size=3)", epochs=0).fit(rows_of(30)).spec_,
        latent=latents.spec(latent),
    )
    again = type(spec).from_json(__import__("json").loads(__import__("json").dumps(spec.to_json())))
    assert latents.build(again.latent, 3).width == latent.width
