"""The start, the loop and what it keeps: numbers, not falling losses."""

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

import refold
from refold.assemble import Wishes, assemble
from refold.data.containers import container
from refold.data.corruptions import GaussianNoise, Masking
from refold.data.feed import Memory, shuffling
from refold.data.schema import Schema
from refold.errors import InputError
from refold.table import Table
from refold.training import fit as loop
from refold.training.plan import OPTIMIZERS, SCHEDULES, Plan
from refold.training.start import balance, can_start_pca, start_constant, start_pca


def data(n=203, width=9, seed=0):
    r = np.random.default_rng(seed)
    base = r.normal(size=(n, 4)) * [4, 2, 1, 0.5]
    return base @ r.normal(size=(4, width)) + 0.2 * r.normal(size=(n, width)) + 3


def assembled(X, **wishes):
    table = Table({"x": X}, container("numpy"))
    schema = Schema.fit(table, np.arange(len(X)))
    rows, _ = schema.encode(table)
    chosen = assemble(schema, rows, Wishes(**wishes))
    torch.manual_seed(0)
    model = chosen.spec.build(schema)
    start_constant(model, rows)
    if can_start_pca(model):
        start_pca(model, rows, chosen.principal)
    return model, rows, chosen


@pytest.mark.parametrize("hidden", [(), (16, 8)])
@pytest.mark.parametrize("missing", [False, True])
def test_a_dense_model_starts_as_pca(hidden, missing):
    X = data()
    if missing:
        X[np.random.default_rng(1).random(X.shape) < 0.1] = np.nan
    model, rows, _ = assembled(X, recipe="dense", latent=3, hidden=hidden)
    x = rows.x["x"].double().numpy()
    pca = PCA(3).fit(x)
    expected = pca.inverse_transform(pca.transform(x))
    with torch.no_grad():
        output = model(rows)
    np.testing.assert_allclose(output.params["x"].numpy(), expected, atol=1e-4)
    if hidden:
        spread = np.sqrt(pca.explained_variance_ / pca.explained_variance_[0])
        np.testing.assert_allclose(output.code.z.std(0, correction=0), spread, atol=1e-3)


def test_the_start_minimises_the_weighted_loss():
    r = np.random.default_rng(0)
    values = {"a": data(), "b": data(width=5, seed=3)}
    table = Table(values, container("dict"))
    schema = Schema.fit(table, np.arange(203))
    rows, _ = schema.encode(table)
    chosen = assemble(schema, rows, Wishes(recipe="pca", latent=3, weights={"a": 0.2, "b": 5.0}))
    model = chosen.spec.build(schema)
    start_pca(model, rows, chosen.principal)
    best = float(model(rows).loss.detach())
    root = np.sqrt(np.r_[np.full(9, 0.2), np.full(5, 5.0)])
    x = torch.cat(list(rows.x.values()), 1).double().numpy() * root
    pca = PCA(3).fit(x)
    lost = np.square(x - pca.inverse_transform(pca.transform(x))).sum(1).mean() / 2
    assert best == pytest.approx(lost, rel=1e-4)
    for p in model.parameters():
        kept = p.detach().clone()
        p.data += 0.01 * torch.from_numpy(r.normal(size=tuple(p.shape))).float()
        assert float(model(rows).loss.detach()) > best - 1e-6
        p.data = kept


def test_the_pca_recipe_spans_the_principal_subspace_of_all_rows():
    X = (np.random.default_rng(0).random((300, 6, 5)) ** 3).astype(np.float64)
    ae = refold.Autoencoder(recipe="pca", latent=4).fit(X)
    truth = PCA(4).fit(X.reshape(300, -1))
    axes = ae.model_.fusion.linear_path().up.detach().double().numpy()
    cosines = np.linalg.svd(truth.components_ @ np.linalg.qr(axes)[0])[1]
    assert np.degrees(np.arccos(cosines.clip(max=1))).max() < 0.1
    assert ae.plan_.steps == 0
    assert len(ae.history_) == 1
    lost = np.square(X.reshape(300, -1) - truth.inverse_transform(
        truth.transform(X.reshape(300, -1)))).sum(1).mean()  # fmt: skip
    assert ae.squared_error(X) == pytest.approx(lost, rel=1e-4)


def test_training_never_ends_worse_than_pca():
    for seed in range(3):
        ae = refold.Autoencoder(latent=2, epochs=3, seed=seed, lr=0.05).fit(data(seed=seed))
        held = [row["valid_loss"] for row in ae.history_]
        assert ae.run_.best["valid_loss"] <= held[0]


def test_balanced_weights_give_equal_shares_and_keep_the_total():
    r = np.random.default_rng(0)
    frame = {"a": r.normal(size=400), "b": r.choice(["x", "y"], 400, p=[0.9, 0.1]),
             "c": r.choice(list("pqrst"), 400), "v": 50 * r.normal(size=(400, 30))}  # fmt: skip
    ae = refold.Autoencoder(epochs=0, hidden=(8,), latent=2).fit(frame)
    rows = ae._encode(ae._read(frame))
    plain = balance(ae.model_.likelihoods, ae.schema_.fields, rows, "equal")
    assert all(set(w) == {1.0} for w in plain.values())
    start_constant(ae.model_, rows)
    constant = {k: h.marginal(rows.x[k], None) for k, h in ae.model_.likelihoods.items()}
    shares, total = [], 0.0
    for name, head in ae.model_.likelihoods.items():
        cells = head.cells(constant[name].expand(400, -1), rows.x[name])
        weight = torch.tensor(ae.spec_.weights[name])
        shares.append(float((cells * weight).sum(1).mean()))
        total += float(cells.sum(1).mean())
    np.testing.assert_allclose(shares, np.mean(shares), rtol=0.05)
    assert sum(shares) == pytest.approx(total, rel=0.05)


def test_epoch_losses_are_means_over_rows_however_short_the_last_batch():
    X = data(n=65)
    X[-1] += 100
    model, rows, _ = assembled(X, recipe="dense", latent=2, hidden=(4,))
    plan = Plan.choose(65, epochs=1, batch_size=64, lr=1e-12)
    run = loop.fit(model, rows, None, plan)
    with torch.no_grad():
        truth = float(model(rows).score.mean())
    assert run.history[-1]["train_loss"] == pytest.approx(truth, rel=1e-5)
    assert run.history[-1]["valid_loss"] == pytest.approx(truth, rel=1e-5)


def test_an_epoch_sees_every_row_once():
    rows = assembled(data(n=70), latent=2)[1]
    stream = Memory(rows, 16).batches()
    epochs = [torch.cat([next(stream)[0].x["x"] for _ in range(5)]) for _ in range(2)]
    for epoch in epochs:
        assert torch.equal(epoch.sort(0).values, rows.x["x"].sort(0).values)
    assert not torch.equal(*epochs)


def test_one_step_is_the_optimisers_step_on_the_loss():
    model, rows, _ = assembled(data(n=40), recipe="vae", latent=2, hidden=(8,))
    model.latent.beta = 0.0
    twin = assembled(data(n=40), recipe="vae", latent=2, hidden=(8,))[0]
    twin.latent.beta = 0.0
    plan = Plan.choose(40, epochs=1, batch_size=40, optimizer="sgd", lr=1e-4, schedule="constant")
    torch.manual_seed(1)
    loop.fit(model, rows, None, plan)
    torch.manual_seed(1)
    twin.train()
    order = torch.randperm(40, generator=shuffling(0, 0))
    optimizer = torch.optim.SGD(twin.parameters(), lr=1e-4)
    twin(rows.rows(order)).loss.backward()
    optimizer.step()
    for (name, p), q in zip(model.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-6, msg=name)


def test_the_best_weights_are_kept_and_patience_ends_the_run(monkeypatch):
    losses = iter([5.0, 3.0, 1.0, 2.0, 4.0, 6.0, 7.0])
    states = []
    model, rows, _ = assembled(data(), latent=2, hidden=(4,))

    def scripted(m, *_):
        states.append({k: v.clone() for k, v in m.state_dict().items()})
        return {"loss": next(losses)}, {}

    monkeypatch.setattr(loop, "evaluate", scripted)
    run = loop.fit(model, rows, rows, Plan.choose(203, epochs=50, patience=3))
    assert "no improvement in 3" in run.stopped
    assert [r["valid_loss"] for r in run.history] == [5, 3, 1, 2, 4, 6]
    assert run.best["valid_loss"] == 1
    assert all(torch.equal(v, states[2][k]) for k, v in model.state_dict().items())


def test_a_worse_negative_loss_is_no_improvement(monkeypatch):
    losses = iter([-10 * (1 - 0.9e-5) ** i for i in range(60)])
    model, rows, _ = assembled(data(), latent=2, hidden=(4,))
    monkeypatch.setattr(loop, "evaluate", lambda *_: ({"loss": next(losses)}, {}))
    run = loop.fit(model, rows, rows, Plan.choose(203, epochs=50, patience=3))
    assert run.best["valid_loss"] == -10
    assert len(run.history) == 4


def test_an_interruption_keeps_the_best_so_far(monkeypatch):
    model, rows, _ = assembled(data(), latent=2, hidden=(4,))
    seen = []

    def watch(progress):
        if progress.row is not None:
            seen.append(progress.row["valid_loss"])
        if len(seen) == 4:
            raise KeyboardInterrupt

    run = loop.fit(model, rows, rows, Plan.choose(203, epochs=50), watch=watch)
    assert run.stopped == "interrupted"
    assert loop.evaluate(model, rows, None, 0)[0]["loss"] == pytest.approx(min(seen), rel=1e-6)


def test_numbers_out_of_range_name_the_term():
    model, rows, _ = assembled(data(), latent=2, hidden=(4,))
    rows.x["x"][0, 0] = float("nan")
    with pytest.raises(InputError, match=r"step 0, in the cost of .x. \(first in layer fusion"):
        loop.fit(model, rows, rows, Plan.choose(203, epochs=1))


def test_the_held_out_noise_is_one_draw():
    model, rows, _ = assembled(data(), latent=2, hidden=(4,))
    noise = GaussianNoise(std=0.5)
    a, b = (loop.evaluate(model, rows, noise, 3)[0]["loss"] for _ in range(2))
    assert a == b != loop.evaluate(model, rows, noise, 4)[0]["loss"]
    assert a != loop.evaluate(model, rows, None, 3)[0]["loss"]


def test_denoising_scores_against_the_clean_rows():
    X = data(n=4000, width=6)
    noisy = refold.Autoencoder(latent=6, hidden=(), corruption="gaussian(std=1.0)", epochs=30)
    noisy.fit(X)
    rows = noisy._encode(noisy._read(X)).x["x"].double().numpy()
    covariance = rows.T @ rows / len(rows)
    wiener = covariance @ np.linalg.inv(covariance + np.eye(6))
    expected = np.square(rows - rows @ wiener).sum(1).mean() + np.square(wiener).sum()
    reached = min(2 * row["valid_loss"] for row in noisy.history_)
    assert reached == pytest.approx(expected, rel=0.1)


def test_masking_hides_an_exact_share_and_noise_has_its_moments():
    rows = assembled(data(n=500, width=20), latent=2)[1]
    masked = Masking(fraction=0.35, value=-9.0)(rows, torch.Generator().manual_seed(0))
    assert (masked.x["x"] == -9).sum(1).unique().tolist() == [7]
    noise = GaussianNoise(std=0.7, mean=0.2)(rows, torch.Generator().manual_seed(0))
    difference = (noise.x["x"] - rows.x["x"]).double()
    assert float(difference.mean()) == pytest.approx(0.2, abs=0.03)
    assert float(difference.std()) == pytest.approx(0.7, rel=0.02)


@pytest.mark.parametrize("schedule", sorted(SCHEDULES))
def test_schedules_are_torchs_own_and_stay_positive(schedule):
    plan = Plan.choose(1000, epochs=40, schedule=schedule, lr=0.01)
    rates = plan.rates()
    assert len(rates) == plan.steps // plan.tick + 1
    assert max(rates) == pytest.approx(0.01, rel=0.1)
    assert min(rates) >= 0
    falls = schedule in ("cosine", "linear", "step", "exponential", "onecycle")
    assert (rates[-1] < 0.02 * 0.01) == falls if schedule != "exponential" else rates[-1] < 2e-4


@pytest.mark.parametrize("name", ["adamw", "adam", "sgd", "rmsprop", "adagrad", "nadam", "radam"])
def test_optimisers_by_name_lower_the_loss(name):
    model, rows, _ = assembled(data(), recipe="sparse", latent=16, hidden=(16,))
    run = loop.fit(model, rows, rows, Plan.choose(203, epochs=20, optimizer=name, lr=0.01))
    assert name in OPTIMIZERS
    assert run.best["valid_loss"] < 0.8 * run.history[0]["valid_loss"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"optimizer": "adamm"}, "did you mean 'adam"),
        ({"schedule": "cosin"}, "did you mean 'cosine'"),
        ({"optimizer": "adamw(beta=1)"}, "did you mean 'betas'"),
    ],
)
def test_bad_plans_are_sentences(options, message):
    model = assembled(data(), latent=2)[0]
    with pytest.raises(InputError, match=message):
        Plan.choose(100, **options).make_optimizers(model)


@pytest.mark.parametrize("latent", ["topk(size=12, k=2, alpha=3)", "lifetime(size=12, k=3)"])
def test_held_out_rows_are_judged_under_the_constraint_of_training(latent):
    model, rows, _ = assembled(data(n=40), latent=latent, recipe="sparse")
    judged = loop.evaluate(model, rows, None, 0, portion=10)[0]["loss"]
    model.eval()
    model.latent.train()
    with torch.no_grad():
        losses = [float(model(rows.rows(slice(i, i + 10))).loss) for i in range(0, 40, 10)]
        relaxed = float(model.eval()(rows).loss)
    assert judged == pytest.approx(np.mean(losses), rel=1e-5)
    assert judged != pytest.approx(relaxed, rel=1e-3)


def test_a_random_constraint_is_one_draw_on_held_out_rows():
    model, rows, _ = assembled(data(), recipe="nested", latent=5, hidden=(16,))
    a, b = (loop.evaluate(model, rows, None, 3)[0]["loss"] for _ in range(2))
    assert a == b != loop.evaluate(model, rows, None, 4)[0]["loss"]


def test_nested_layers_improve_on_the_principal_components_they_start_from():
    X = np.tanh(data(n=1000))
    ae = refold.Autoencoder(recipe="nested", latent=5, epochs=60).fit(X)
    assert ae.run_.best["step"] > 0
    curve = {d: (kept, pca) for d, kept, pca in ae.quality_.curve}
    assert curve[2][0] > curve[2][1] + 0.01


def test_small_improvements_add_up_for_patience(monkeypatch):
    model, rows, _ = assembled(data(), latent=2, hidden=(4,))
    losses = iter([100.0, 98.0, 96.0, 94.0, 92.0, 90.0, 90.0, 90.0, 90.0, 1.0])
    monkeypatch.setattr(loop, "evaluate", lambda *a, **k: ({"loss": next(losses)}, {}))
    plan = Plan.choose(203, epochs=9, patience=3, min_delta=0.05)
    run = loop.fit(model, rows, rows, plan)
    assert [row["valid_loss"] for row in run.history] == [100, 98, 96, 94, 92, 90, 90]
    assert run.best["valid_loss"] == 90.0


def test_a_last_row_alone_joins_the_batch_before_it():
    X = data(n=33)
    ae = refold.Autoencoder(
        2, hidden=(8,), fusion="concat(norm='batch')", batch_size=16, epochs=2, validation=0.0
    ).fit(X)
    assert ae.plan_.steps_per_epoch == 2
    assert ae.history_[-1]["step"] == 4
    stream = Memory(ae._encode(ae._read(X)), 16).batches()
    assert [len(next(stream)[0]) for _ in range(4)] == [16, 17, 16, 17]


@pytest.mark.parametrize("latent", ["l1(size=12, weight=0.0)", "lifetime(size=12, fraction=0.3)"])
def test_rectified_codes_start_at_the_constant_and_come_alive(latent):
    X = np.abs(data(n=500)).reshape(-1, 3, 3).repeat(2, 1).repeat(2, 2)
    X = (X / X.max()).astype(np.float32)
    ae = refold.Autoencoder(latent, epochs=15).fit(X)
    x = X[:, None].reshape(len(X), -1)
    constant = 0.5 * np.square(x - x.mean(0)).sum(1).mean()
    assert ae.history_[0]["valid_loss"] == pytest.approx(constant, rel=0.2)
    assert ae.history_[-1]["dead_units"] <= 6
    assert ae.run_.best["valid_loss"] < 0.3 * constant


def test_everything_frozen_is_a_sentence():
    with pytest.raises(InputError, match="every parameter is frozen"):
        refold.Autoencoder(2, freeze=("*",), epochs=1).fit(data())


@pytest.mark.parametrize(("epochs", "said"), [(1, "up to 1 epoch of"), (2, "up to 2 epochs of")])
def test_one_epoch_is_in_the_singular(epochs, said):
    assert Plan.choose(100, epochs=epochs).sentence().startswith(said)
