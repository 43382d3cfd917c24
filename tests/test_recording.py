"""What is recorded gives what was recorded, or is not used."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import refold
from refold.errors import InputError, InputWarning
from refold.ops import products
from refold.recording.program import program, writing
from refold.recording.recording import Recording, close, closed
from refold.recording.tape import NotReplayable, record


def replayed(work, *given):
    """Run a recorded function on other tensors than it was recorded with."""
    tape, results = record(lambda: work(*given))
    own = [torch.randn_like(t) for t in given]
    places = {tape.ref(t).number: o for t, o in zip(given, own, strict=True)}
    run, found = program(tape, places, results, [None] * len(results))
    with torch.inference_mode():
        run()
        run()
    return found, list(work(*own))


CASES = {
    "layers": lambda x: [nn.functional.gelu(x @ x.T + 1).softmax(1)],
    "views": lambda x: [x.t()[1:, ::2].flatten().expand(3, -1).sum(0)],
    "a view of a result": lambda x: [(x * 2).t().relu()[1:]],
    "in place": lambda x: [x.mul(2).add_(1).clamp_(min=0), x.exp()],
    "a view that is changed": lambda x: [(lambda y: (y[:, 0].zero_(), y)[1])(x * 3)],
    "without a form that writes": lambda x: [*x.topk(2), nn.functional.mse_loss(x, x * 2)],
    "several results": lambda x: [*torch.sort(x, 1), *torch.max(x, 1)],
    "lists": lambda x: [torch.cat([x, x * 2], 1), torch.stack([x, x])],
    "indices": lambda x: [x[torch.tensor([1, 0])], x.index_select(1, torch.tensor([2]))],
    "norms": lambda x: [nn.functional.layer_norm(x, (x.shape[1],)), x.norm(dim=1)],
    "types": lambda x: [x.double().cumsum(0), (x > 0).float(), x.to(torch.bfloat16)],
    "the given itself": lambda x: [x, x.t()],
    "the same each time": lambda x: [x + torch.arange(3).repeat(2), torch.arange(4).view(2, 2)],
    "written over each time": lambda x: [
        torch.zeros(6).add_(x.sum(0)),
        (lambda y: (y[1:].mul_(x[0, 0]), y)[1])(torch.arange(3.0)),
        torch.zeros(2, 6).index_copy_(0, torch.tensor([1]), x[:1]),
    ],
    "rectified": lambda x: [
        nn.functional.relu(nn.functional.linear(x, x), inplace=True),
        (x @ x.T).relu(),
        (lambda y: y.relu() + y)(x @ x.T + 0),
        (torch.ones(4, 6) @ torch.ones(6, 3)).relu() + x[:, :3],
    ],
    "convolutions": lambda x: [nn.functional.conv1d(x[None], torch.ones(2, len(x), 3))],
}


@pytest.mark.parametrize("other", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_a_program_gives_what_the_function_gives(name, other, monkeypatch):
    monkeypatch.setattr(products, "LEAST", 0.0)
    monkeypatch.setattr(products, "onednn_is_faster", lambda: other)
    found, expected = replayed(CASES[name], torch.randn(4, 6))
    assert len(found) == len(expected)
    for mine, its in zip(found, expected, strict=True):
        assert mine.dtype == its.dtype
        torch.testing.assert_close(mine, its, rtol=1e-5 if other else 0, atol=1e-5 if other else 0)


def test_gradients_are_recorded_with_what_they_are_of():
    layer = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3))
    weights = list(layer.parameters())
    found, expected = replayed(
        lambda x: torch.autograd.grad(layer(x).square().sum(), weights), torch.randn(8, 5)
    )
    for mine, other in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, other)


def test_memory_serves_again_and_results_keep_theirs():
    def work(x):
        kept = x + 1
        for _ in range(20):
            x = (x * 1.1).tanh()
        return [x, kept]

    given = torch.randn(64, 64)
    tape, results = record(lambda: work(given))
    run, found = program(tape, {tape.ref(given).number: given}, results, [None, None])
    run()
    stores = {
        v.untyped_storage().data_ptr()
        for v in run.__globals__.values() if isinstance(v, torch.Tensor)
    }  # fmt: skip
    assert len(stores) <= 5
    for mine, other in zip(found, work(given), strict=True):
        assert torch.equal(mine, other)


def test_results_are_left_where_they_are_wanted():
    x, weight = torch.randn(6, 4), torch.randn(3, 4, requires_grad=True)
    tape, results = record(lambda: torch.autograd.grad((x @ weight.t()).square().sum(), [weight]))
    target = torch.full((3, 4), torch.nan)
    run, (found,) = program(tape, {}, results, [target])
    run()
    assert found is target
    torch.testing.assert_close(target, 2 * (x @ weight.detach().t()).t() @ x)


@pytest.mark.parametrize(
    "work",
    [
        lambda x: [x * float(x.sum())],
        lambda x: [x[x > 0]],
        lambda x: [torch.from_numpy(x.numpy() * 2)],
        lambda x: [x * x.tolist()[0][0]],
        lambda x: [x * np.asarray(x).mean()],
        lambda x: [x if bool(x.sum() > 0) else -x],
    ],
)
def test_what_leaves_torch_is_refused(work):
    with pytest.raises(NotReplayable):
        record(lambda: work(torch.randn(3, 4)))


def test_what_is_drawn_is_drawn_in_every_run():
    x = torch.randn(4, 6)
    tape, results = record(lambda: [x + torch.rand(4, 6) + torch.zeros(4, 6)])
    run, (found,) = program(tape, {}, results, [None])
    run()
    before = found.clone()
    run()
    assert not torch.equal(before, found)


def test_nothing_is_copied_or_viewed_in_a_run_that_could_be_before():
    layer, x = nn.Linear(4, 3), torch.randn(6, 4)
    weights = list(layer.parameters())
    tape, results = record(lambda: torch.autograd.grad(layer(x).square().sum(), weights))
    names = [tape.ref(w).number for w in weights]
    for w in weights:
        w.data = w.data.clone()  # as parameters move to lie side by side
    targets = [torch.empty(3, 4), torch.empty(3)]
    run, _ = program(tape, dict(zip(names, weights, strict=True)), results, targets)
    with Calls() as seen, torch.no_grad():
        run()
    assert not seen.names & {"aten::copy_", "aten::t", "aten::view"}
    for mine, own in zip(
        targets, torch.autograd.grad(layer(x).square().sum(), weights), strict=True
    ):
        torch.testing.assert_close(mine, own)


class Calls(TorchDispatchMode):
    """Names of the operations that are called."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(func.overloadpacket._qualified_op_name)
        return func(*args, **(kwargs or {}))


def test_a_recording_that_differs_on_other_numbers_is_not_used():
    seen = []

    def work(given):
        seen.append(None)
        return given[0] * len(seen)

    function = Recording(work)
    assert [function([torch.ones(1)]).item() for _ in range(3)] == [1.0, 2.0, 3.0]
    assert function.run is None


def test_tensors_that_lie_in_one_place_are_not_taken_for_one():
    def work(given):
        return given[0] - given[1]

    function, whole = Recording(work), torch.ones(3)
    assert not function([whole, whole.view(3)]).any()
    assert function.run is None
    assert function([whole, whole * 2]).tolist() == [-1.0] * 3


def test_tensors_of_another_shape_are_no_input_of_a_recording():
    double = Recording(lambda given: given[0] * 2)
    double([torch.ones(4, 2)])
    with pytest.raises(AssertionError):
        double([torch.ones(1, 2)])


class Counting(nn.Module):
    """A module from outside of refold that does something else from its tenth call on."""

    def __init__(self, inside=None):
        super().__init__()
        self.inside, self.calls = inside, 0

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("inside"), name)

    def forward(self, x):
        self.calls += 1
        x = x * (1.0 if self.calls < 10 else 1.5)
        return x if self.inside is None else self.inside(x)


def test_results_that_are_no_numbers_are_alike_where_both_are_none():
    nan, inf = torch.tensor([torch.nan, 1.0]), torch.tensor([torch.inf, 1.0])
    assert close(nan, nan.clone())
    assert close(inf, inf.clone())
    assert not close(nan, torch.tensor([0.0, 1.0]))
    assert not close(torch.tensor([0.0, 1.0]), nan)
    assert not close(inf, -inf)


def test_a_part_from_elsewhere_is_seen_wherever_it_is_held():
    layers = nn.Sequential(nn.Linear(2, 2))
    assert closed(layers)
    layers.held = (nn.Linear(2, 2), 3)
    assert closed(layers)
    layers.held = (nn.Sequential(nn.Linear(2, 2), Counting()),)
    assert not closed(layers)
    assert not closed(nn.Sequential(Counting()))


@pytest.mark.parametrize("scored", [False, True])
def test_a_part_that_changes_at_its_tenth_call_is_called_each_time(scored):
    X = np.random.default_rng(0).normal(size=(300, 3))
    ae = refold.Autoencoder(2, epochs=1).fit(X)
    many = np.tile(X, (330, 1))
    ask = ae.score_samples if scored else ae.transform
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        before = ask(many)
        ae.model_.latent = Counting(ae.model_.latent)
        after = ask(many)
    finally:
        torch.set_num_threads(threads)
    assert ae.model_.latent.calls == 13
    differs = ~np.isclose(before, after, rtol=1e-3).reshape(len(many), -1).all(1)
    assert not differs[: 9 * 8192].any()
    assert differs[9 * 8192 :].mean() > 0.9


def test_operations_whose_form_that_writes_only_copies_are_called_as_they_are():
    assert writing(torch.ops.aten.mm.default, "cpu") is not None
    assert writing(torch.ops.aten.convolution.default, "cpu") is None
    assert writing(torch.ops.aten.mse_loss.default, "cpu") is None


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("recipe", ["dense", "vae", "sparse", "anomaly"])
def test_many_rows_are_scored_and_embedded_as_few(recipe, threads):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(600, 4)) @ rng.normal(size=(4, 9)) + 0.1 * rng.normal(size=(600, 9))
    ae = refold.Autoencoder(recipe=recipe, epochs=2).fit(X)
    many = np.tile(rng.permutation(X), (30, 1))[:16_400] + 0.01
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        scores, codes = ae.score_samples(many), ae.transform(many)
    finally:
        torch.set_num_threads(before)
    few = slice(4000, 4100)
    np.testing.assert_allclose(scores[few], ae.score_samples(many[few]), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(codes[few], ae.transform(many[few]), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(scores[600:1200], scores[:600], rtol=1e-5, atol=1e-6)
    last = ae.score_samples(many[-500:])
    np.testing.assert_allclose(scores[-500:], last, rtol=1e-5, atol=1e-6)


def test_many_rows_of_plain_numbers_are_encoded_on_the_way():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(600, 4)) @ rng.normal(size=(4, 9))
    X[:50, 3] = np.nan
    ae = refold.Autoencoder(2, epochs=2).fit(X)
    many = np.tile(X, (30, 1))
    many[:5000, 3] = 0.5  # the first portion has no gap
    whole = ae._encode(ae._read(many))
    assert len(many) >= 16_384
    expected = refold.inference.embed(ae.model_, whole, ae.schema_).numpy()
    assert np.array_equal(ae.transform(many), expected)


@pytest.mark.parametrize("named", [False, True])
def test_what_is_wrong_with_one_of_many_rows_is_said_of_the_table(named):
    def given(X):
        return {f"c{i}": X[:, i] for i in range(X.shape[1])} if named else X

    many = np.random.default_rng(0).normal(size=(17_000, 4))
    many[:, 3] *= 3
    ae = refold.Autoencoder(2, epochs=2).fit(given(many[:500]))
    wild, broken = many.copy(), many.copy()
    wild[16_999, 1], broken[16_500, 2] = 1e9, np.inf
    with pytest.warns(InputWarning, match="ten standard deviations"):
        scores = ae.score_samples(given(wild))
    assert scores.argmin() == 16_999
    if named:  # of an array, scikit-learn's own check says so first
        with pytest.raises(InputError, match="row 16500"):
            ae.score_samples(given(broken))


def test_a_part_of_a_result_is_not_written_where_the_whole_would_not_fit():
    eye, flat = torch.eye(4), torch.zeros(60)
    given = torch.randn(10, 4)

    def work():
        whole = given @ eye
        part = whole[:5]
        part.mul_(2)
        return [part]

    tape, results = record(work)
    run, _ = program(tape, {}, results, [flat[:20].view(5, 4)])
    run()
    assert torch.equal(flat[:20].view(5, 4), given[:5] * 2)
    assert not flat[20:].any()
