"""Steps that are recorded and replayed: the same model as by plain ones."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch

import refold
from refold.errors import InputWarning
from refold.recording.tape import NotReplayable, record
from refold.training import fit as loop
from refold.training.plan import Plan
from refold.training.steps import Eager, Replay, choose, replay
from refold.training.steps.replay import suits
from refold.types import Batch

pytestmark = pytest.mark.usefixtures("recorded_early")

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


def test_runs_and_shapes_that_come_seldom_are_not_recorded(monkeypatch):
    monkeypatch.undo()
    made = remembered(monkeypatch)
    refold.Autoencoder(epochs=2, batch_size=64).fit(rows())
    refold.Autoencoder(epochs=25, batch_size=64, patience=30).fit(rows())
    few, many = made
    assert isinstance(few, Eager)
    shapes = {key[0][0][0]: found for key, found in many.recorded.items()}
    assert set(shapes) == {64, 41}
    assert shapes[41].used < 25 - 20 < shapes[64].used


def test_how_often_a_shape_came_is_remembered(monkeypatch):
    monkeypatch.setattr(replay, "COMMON", 3)
    model, batch = made_model()
    twin, _ = made_model()
    plan, few = Plan.choose(330, epochs=9, batch_size=330), batch.rows(slice(0, 50))
    first, again = (choose(m, plan, torch.device("cpu")) for m in (model, twin))
    for part in (batch, few, few):
        first.take(part, part)
    assert len(first.recorded) == 1
    again.remember(first.remembered())
    again.take(batch, batch)
    again.take(few, few)
    assert len(again.recorded) == 2


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


class Around(torch.nn.Module):
    """A latent around another, which answers for it."""

    def __init__(self, latent):
        super().__init__()
        self.latent = latent

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("latent"), name)


class Meddling(Around):
    """A latent whose factor is decided outside of torch."""

    def __init__(self, latent, factor):
        super().__init__(latent)
        self.factor = factor

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


def side_by_side(model, twin, plan, rows):
    """Step a model by replay and its twin plainly; say how far apart each step leaves them."""
    step = Replay(model, plan, torch.device("cpu"))
    plain = Eager(twin, plan, torch.device("cpu"))
    apart = []
    for i in range(plan.steps):
        seen = rows(i)
        mine, other = step.take(seen, seen), plain.take(seen, seen)
        costs = [float(mine[k][0]) - float(other[k][0]) for k in other]
        pairs = zip(model.parameters(), twin.parameters(), strict=True)
        moved = [float((a - b).detach().abs().max()) for a, b in pairs]
        apart.append(max(map(abs, [*costs, *moved])))
    return step, apart


@pytest.mark.parametrize(("steps", "noticed"), [(80, 65), (14, 13)])
def test_a_step_that_is_another_from_the_tenth_on_is_noticed_and_said(steps, noticed):
    now = 0
    models = [made_model()[0] for _ in range(2)]
    for model in models:
        model.latent = Meddling(model.latent, lambda: 1.0 if now < 9 else 1.5)
    batch = made_model()[1]

    def rows(i):
        nonlocal now
        now = i
        return batch

    plan = Plan.choose(330, batch_size=330, epochs=steps, optimizer="sgd", lr=1e-2)
    assert plan.steps == steps
    with pytest.warns(InputWarning, match="does something else than when") as said:
        step, apart = side_by_side(*models, plan, rows)
    assert len(said) == 1
    assert list(step.recorded.values()) == [None]
    assert max(apart[:9]) < 1e-5
    assert all(a > 1e-4 for a in apart[9:noticed])  # what a recording cannot know


def test_a_step_that_stays_the_same_is_compared_without_a_trace():
    (model, batch), (twin, _) = made_model(), made_model()
    plan = Plan.choose(330, batch_size=330, epochs=140, optimizer="sgd")
    steps = [Replay(m, plan, torch.device("cpu")) for m in (model, twin)]
    for i in range(plan.steps):
        mine = {k: v.clone() for k, (v, _) in steps[0].take(batch, batch).items()}
        for recorded in steps[1].recorded.values():
            recorded.again = plan.steps  # its twin compares at the last step alone
        other = steps[1].take(batch, batch)
        assert all(torch.equal(mine[k], other[k][0]) for k in mine), i
    (found,) = steps[0].recorded.values()
    assert found.trusted
    assert found.again == 512
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_run_taken_up_is_compared_at_other_steps_and_is_the_same():
    (model, batch), (twin, _) = made_model(), made_model()
    plan = Plan.choose(330, batch_size=330, epochs=100)
    whole = Replay(model, plan, torch.device("cpu"))
    for _ in range(50):
        whole.take(batch, batch)
    kept = {k: v.clone() for k, v in whole.state().items()}
    twin.load_state_dict({k: v.clone() for k, v in model.state_dict().items()})
    rest = Replay(twin, plan, torch.device("cpu"))
    rest.restore(kept)
    rest.remember(whole.remembered())
    for _ in range(50):
        whole.take(batch, batch)
        rest.take(batch, batch)
    assert whole.taken == rest.taken == 100
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(a, b)


def test_rounding_is_not_taken_for_a_change(monkeypatch):
    model, batch = made_model()
    step = Replay(model, Plan.choose(330, batch_size=330, epochs=90), torch.device("cpu"))
    for _ in range(5):
        step.take(batch, batch)
    plainly = step._plainly

    def rounded(*given):
        costs = plainly(*given)
        for gradient in step.flat.gradients:
            gradient.mul_(1.01)
        return costs

    monkeypatch.setattr(step, "_plainly", rounded)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(85):
            step.take(batch, batch)
    (found,) = step.recorded.values()
    assert found.trusted


class Branching(Around):
    """A latent with a shift that batches of an even number of rows do without."""

    def __init__(self, latent):
        super().__init__(latent)
        self.shift = torch.nn.Parameter(torch.full((2,), 0.1))

    def forward(self, h):
        return self.latent(h + self.shift if len(h) % 2 else h)


@pytest.mark.parametrize(
    ("optimizer", "odd_first"),
    [("adamw", True), ("adamw", False), ("sgd(momentum=0.9, weight_decay=0.01)", True)],
)
def test_a_parameter_that_a_later_batch_does_without_stays_where_it_is(optimizer, odd_first):
    models = [made_model()[0] for _ in range(2)]
    for model in models:
        model.latent = Branching(model.latent)
    batch = made_model()[1]
    odd, even = batch.rows(slice(0, 65)), batch.rows(slice(0, 64))
    first, last = (odd, even) if odd_first else (even, odd)
    plan = Plan.choose(330, batch_size=65, epochs=4, optimizer=optimizer, lr=1e-2)
    step, apart = side_by_side(*models, plan, lambda i: last if i % 6 == 5 else first)
    assert step.given_up
    assert max(apart) < 2e-5
    assert all(p.is_leaf for p in models[0].parameters())
    assert len({p.untyped_storage().data_ptr() for p in models[0].parameters()}) > 1


def test_a_gradient_that_is_no_longer_there_is_not_taken_from_the_step_before():
    drop = False

    class Gated(Branching):
        def forward(self, h):
            return self.latent(h if drop else h + self.shift)

    models = [made_model()[0] for _ in range(2)]
    for model in models:
        model.latent = Gated(model.latent)
    batch = made_model()[1]

    def rows(i):
        nonlocal drop
        drop = i >= 14
        return batch

    plan = Plan.choose(330, batch_size=330, epochs=24, optimizer="sgd(momentum=0.9)", lr=1e-2)
    step, apart = side_by_side(*models, plan, rows)
    assert step.given_up
    assert max(apart[:14]) < 1e-5


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


class Tiring(torch.nn.Module):
    """A network that sees half as well from its fortieth look on."""

    def __init__(self):
        super().__init__()
        self.looks = 0

    def forward(self, x):
        self.looks += 1
        return x if self.looks < 40 else 0.5 * x


def test_a_network_of_the_user_is_asked_at_every_step(monkeypatch):
    def fitted():
        look = refold.penalties.Perceptual(network=Tiring(), weight=0.5)
        options = {"epochs": 5, "batch_size": 64, "penalties": (look,)}
        return refold.Autoencoder(3, **options).fit(rows()).history_

    ours = fitted()
    plainly(monkeypatch)
    for mine, other in zip(ours, fitted(), strict=True):
        assert mine["valid_loss"] == other["valid_loss"]


def test_batches_that_lie_in_one_place_only_sometimes_are_told_apart():
    model, batch = made_model()
    twin, _ = made_model()
    plan = Plan.choose(330, batch_size=330, optimizer="sgd")
    step = Replay(model, plan, torch.device("cpu"))
    plain = Eager(twin, plan, torch.device("cpu"))
    noisy = Batch({k: v + 1.0 for k, v in batch.x.items()}, batch.observed)
    same = Batch({k: v.view_as(v) for k, v in batch.x.items()}, batch.observed)
    for seen in (same, same, same, noisy, noisy, same):
        mine, other = step.take(seen, batch), plain.take(seen, batch)
        for name, (value, _) in other.items():
            assert float(mine[name][0]) == pytest.approx(float(value), rel=1e-5)


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
