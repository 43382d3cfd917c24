"""Steps that are recorded and replayed: the same model as by plain ones."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import refold
from refold.recording.tape import NotReplayable, record
from refold.training import fit as loop
from refold.training.plan import Plan
from refold.training.steps import Eager, Replay, choose
from refold.training.steps.replay import suits
from refold.types import Batch

RECIPES = ("dense", "pca", "sparse", "wta", "contractive", "residual", "denoising", "vae", "iwae",
           "tcvae", "infovae", "fsq", "wae", "nested", "imputation")  # fmt: skip


def rows(mixed: bool = False, n: int = 330):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(n, 3)) @ rng.normal(size=(3, 8)) + 0.3 * rng.normal(size=(n, 8))
    if not mixed:
        return X
    gaps = np.where(rng.random(n) < 0.2, np.nan, X[:, 7])
    numbers = {f"c{i}": X[:, i] for i in range(6)}
    return {**numbers, "level": rng.choice(list("abc"), n), "gaps": gaps}


def plainly(monkeypatch):
    monkeypatch.setattr(loop, "choose", Eager)


def remembered(monkeypatch) -> list[Replay]:
    made: list[Replay] = []

    def chosen(*args, **kwargs):
        step = choose(*args, **kwargs)
        made.append(step)
        return step

    monkeypatch.setattr(loop, "choose", chosen)
    return made


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("recipe", RECIPES)
def test_a_replayed_run_is_the_plain_run(recipe, mixed, monkeypatch):
    data = rows(mixed)
    made = remembered(monkeypatch)
    ours = refold.Autoencoder(recipe=recipe, epochs=5, batch_size=64).fit(data)
    plainly(monkeypatch)
    plain = refold.Autoencoder(recipe=recipe, epochs=5, batch_size=64).fit(data)
    known = [r for step in made for r in step.recorded.values()]
    assert recipe == "pca" or any(r is not None and r.trusted for r in known)
    for mine, other in zip(ours.history_, plain.history_, strict=True):
        assert mine.keys() == other.keys()
        for name in mine.keys() - {"seconds"}:
            assert mine[name] == pytest.approx(other[name], rel=2e-4, abs=2e-6), name
    np.testing.assert_allclose(ours.transform(data), plain.transform(data), rtol=0.02, atol=2e-3)


@pytest.mark.parametrize(
    "optimizer", ["sgd(momentum=0.9)", "adam", "rmsprop", "adamw(amsgrad=True)"]
)
def test_any_elementwise_optimiser_moves_one_vector_as_it_moves_many(optimizer, monkeypatch):
    options = {"optimizer": optimizer, "epochs": 3, "lr": 1e-3, "batch_size": 64}
    ours = refold.Autoencoder(3, **options).fit(rows())
    plainly(monkeypatch)
    plain = refold.Autoencoder(3, **options).fit(rows())
    for mine, other in zip(ours.model_.parameters(), plain.model_.parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-3, atol=1e-5)


def made_model(**options):
    ae = refold.Autoencoder(2, hidden=(8,), epochs=1, **options).fit(rows())
    return ae.model_.train(), ae._encode(ae._read(rows()))


def test_parameters_are_ordinary_again_afterwards():
    model, batch = made_model()
    plan = Plan.choose(330, epochs=1, batch_size=330)
    step = choose(model, plan, torch.device("cpu"))
    before = [p.detach().clone() for p in model.parameters()]
    step.take(batch, batch)
    storages = {p.untyped_storage().data_ptr() for p in model.parameters()}
    assert len(storages) == 1
    step.close()
    storages = {p.untyped_storage().data_ptr() for p in model.parameters()}
    assert len(storages) == len(before)
    assert all(p.grad is None for p in model.parameters())
    moved = [not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True)]
    assert any(moved)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd(momentum=0.9)"])
def test_what_the_optimiser_remembers_can_be_put_back(optimizer):
    model, batch = made_model()
    twin, _ = made_model()
    plan = Plan.choose(330, epochs=1, batch_size=330, optimizer=optimizer)
    first = choose(model, plan, torch.device("cpu"))
    for _ in range(4):
        first.take(batch, batch)
    kept = {k: v.clone() for k, v in first.state().items()}
    weights = {k: v.clone() for k, v in model.state_dict().items()}
    first.take(batch, batch)
    for other in (choose(twin, plan, torch.device("cpu")), Eager(twin, plan, torch.device("cpu"))):
        twin.load_state_dict(weights)
        other.restore(kept)
        other.take(batch, batch)
        for mine, its in zip(model.parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(mine, its, rtol=1e-5, atol=1e-7)
        other.close()


def test_rows_of_a_parameter_are_forgotten():
    model, batch = made_model()
    name, weight = next((k, p) for k, p in model.named_parameters() if p.ndim == 2)
    step = choose(model, Plan.choose(330, batch_size=330), torch.device("cpu"))
    for _ in range(3):
        step.take(batch, batch)
    step.forget(name, torch.tensor([1]))
    number = [k for k, _ in model.named_parameters()].index(name)
    moment = step.state()[f"0.{number}.exp_avg"]
    assert moment.shape == weight.shape
    assert not moment[1].any()
    assert moment[0].any()


class Meddling(torch.nn.Module):
    """A latent whose factor is decided outside of torch."""

    def __init__(self, latent, factor):
        super().__init__()
        self.latent, self.factor = latent, factor

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("latent"), name)

    def forward(self, h):
        return self.latent(h * self.factor())


def test_a_recording_that_does_not_agree_is_never_used():
    model, batch = made_model()
    calls = iter(range(1, 100))
    model.latent = Meddling(model.latent, lambda: 1.0 + 0.1 * next(calls))
    step = Replay(model, Plan.choose(330, batch_size=330), torch.device("cpu"))
    for _ in range(3):
        step.take(batch, batch)
    assert list(step.recorded.values()) == [None]


def test_what_a_number_decides_is_left_to_plain_steps():
    model, batch = made_model()
    model.latent = Meddling(model.latent, lambda: float(torch.rand(())))
    step = Replay(model, Plan.choose(330, batch_size=330), torch.device("cpu"))
    torch.manual_seed(0)
    step.take(batch, batch)
    assert step.given_up
    twin, _ = made_model()
    twin.latent = Meddling(twin.latent, lambda: float(torch.rand(())))
    plain = Eager(twin, Plan.choose(330, batch_size=330), torch.device("cpu"))
    torch.manual_seed(0)
    plain.take(batch, batch)
    for mine, its in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(mine, its)


def test_a_tape_refuses_results_read_in_python():
    with pytest.raises(NotReplayable):
        record(lambda: [torch.ones(3) * float(torch.rand(()))])


def test_models_whose_steps_change_are_not_recorded():
    cpu, plan = torch.device("cpu"), Plan.choose(330)
    ladder = refold.Autoencoder(recipe="ladder", epochs=1).fit(rows()).model_
    adversarial = refold.Autoencoder(recipe="adversarial", epochs=1).fit(rows()).model_
    dense = refold.Autoencoder(2, epochs=1).fit(rows()).model_
    assert suits(dense, plan, cpu)
    assert not suits(ladder, plan, cpu)
    assert not suits(adversarial, plan, cpu)
    assert not suits(dense, Plan.choose(330, optimizer="adafactor"), cpu)


def test_parts_from_elsewhere_are_stepped_plainly():
    model, _ = made_model()
    plan = Plan.choose(330)
    assert suits(model, plan, torch.device("cpu"))
    model.latent = Meddling(model.latent, lambda: 1.0)
    assert not suits(model, plan, torch.device("cpu"))


def test_a_batch_of_which_a_part_is_the_clean_one_is_another_kind_of_batch():
    model, rows = made_model()
    twin, _ = made_model()
    plan = Plan.choose(330, batch_size=330, optimizer="sgd")
    step = Replay(model, plan, torch.device("cpu"))
    plain = Eager(twin, plan, torch.device("cpu"))
    noisy = Batch({k: v + 1.0 for k, v in rows.x.items()}, rows.observed)
    same = Batch(dict(rows.x), dict(rows.observed))
    for seen in (same, noisy, noisy, same, noisy, same, noisy):
        mine, other = step.take(seen, rows), plain.take(seen, rows)
        for name, (value, _) in other.items():
            assert float(mine[name][0]) == pytest.approx(float(value), rel=1e-5)


def test_numbers_that_parameters_share_are_no_moments():
    from refold.training.steps.flat import Flat

    for optimizer in ("nadam", "asgd"):
        given = [torch.nn.Parameter(torch.tensor(2.0)), torch.nn.Parameter(torch.ones(3))]
        plan = Plan.choose(330, optimizer=optimizer)
        flat = Flat(given, plan)
        for gradient in flat.gradients:
            gradient.fill_(0.5)
        flat.step()
        kept = {k: v.clone() for k, v in flat.state().items()}
        flat.restore(kept)
        for name, value in flat.state().items():
            assert torch.equal(value, kept[name]), name
