"""The dictionary's step against autograd, and the choice of active entries against all of them."""

import copy

import pytest
import torch
import torch.nn.functional as F

from refold.backbones import Flat
from refold.backbones.base import Geometry
from refold.fusion import Dictionary
from refold.latents import BatchTopK, TopK
from refold.likelihoods import AbsoluteError, SquaredError
from refold.model import Model
from refold.ops import dictionary as ops
from refold.ops.topk import keep_top_k
from refold.penalties import AuxK
from refold.training.plan import Plan
from refold.training.steps import Eager
from refold.training.steps import dictionary as steps
from refold.training.steps.dictionary import DictionaryStep, suits
from refold.types import Batch

CPU = torch.device("cpu")
LATENTS = {
    "topk": lambda n, k: TopK(n, k=k, rectify=True),
    "batch_topk": lambda n, k: BatchTopK(n, k=k),
}


def model_of(latent, *penalties, width=12, dtype=torch.float64, likelihood=SquaredError):
    torch.manual_seed(0)
    size, widths = latent.size, {"x": width}
    geometry = Geometry((width,), (1,) * width, width, missing=False)
    body = Dictionary(widths, widths, size, size)
    model = Model({"x": Flat(geometry)}, body, latent, {"x": likelihood((1,) * width)}, penalties)
    model.weigh({"x": (0.7,)})
    with torch.no_grad():
        body.encoder.add_(0.1 * torch.randn(size, width))
        body.encoder_bias.normal_(0, 0.02)
        body.centre.normal_(0, 0.1)
    return model.train().to(dtype)


def batches(count, width=12, rows=50, dtype=torch.float64):
    draw = torch.Generator().manual_seed(1)
    for _ in range(count):
        x = torch.randn(rows, width, generator=draw).to(dtype)
        yield Batch({"x": x}, {"x": None})


def plan_of(optimizer="adamw"):
    return Plan.choose(1000, optimizer=optimizer, lr=1e-3)


def run(step, given):
    return [{k: float(v * f) for k, (v, f) in step.take(b, b).items()} for b in given]


def close(ours, theirs, **tolerance):
    for name, value in theirs.items():
        torch.testing.assert_close(
            ours[name], value, msg=lambda m, n=name: f"{n}: {m}", **tolerance
        )


def rough(h):
    """Codes with many equal entries, rows of few positive ones, and rows of none."""
    h = h.round(decimals=1)
    h[0] = -h[0].abs()
    h[1, 3:] = -1.0
    h[2] = 0.5
    return h


@pytest.mark.parametrize("k", [1, 4, 15])
@pytest.mark.parametrize("ties", [False, True])
def test_the_choice_is_that_of_a_full_sort(k, ties):
    h = torch.randn(40, 256, generator=torch.Generator().manual_seed(k), dtype=torch.float64)
    h = rough(h) if ties else h
    maxima = ops.group_maxima(h)
    assert torch.equal(maxima, torch.stack(h.split(16, 1)).amax(0))
    least = ops.kth_largest(maxima, k)
    assert torch.equal(least, maxima.sort(1, descending=True).values[:, k - 1])
    found = ops.at_least(h, maxima, least.clamp_min(1e-300))
    pairs = ops.top_of_rows(*found, k, len(h))
    dense = torch.zeros_like(h)
    dense[pairs.rows, pairs.at] = pairs.values
    assert torch.equal(dense, keep_top_k(h, k).relu())
    assert torch.equal(pairs.rows, pairs.rows.sort().values)
    assert torch.equal(pairs.count, (dense > 0).sum(1))
    level = ops.kth_largest(maxima.view(1, -1), k * len(h)).expand(len(h)).clamp_min(1e-300)
    pairs, last = ops.top_of_all(*ops.at_least(h, maxima, level), k * len(h), len(h))
    dense = torch.zeros_like(h)
    dense[pairs.rows, pairs.at] = pairs.values
    nth = h.flatten().sort(descending=True).values[k * len(h) - 1]
    assert torch.equal(dense, torch.where(h >= nth, h, 0.0).relu())
    assert float(last) == max(0.0, float(nth))


def test_sums_and_products_over_pairs_are_those_of_dense_matrices():
    draw = torch.Generator().manual_seed(0)
    z = torch.randn(9, 30, generator=draw, dtype=torch.float64)
    z *= torch.rand(9, 30, generator=draw) < 0.2
    z[4], z[:, 7] = 0.0, 0.0
    rows, at = z.nonzero(as_tuple=True)
    table = torch.randn(30, 5, generator=draw, dtype=torch.float64)
    starts = ops.ends((z != 0).sum(1))
    torch.testing.assert_close(ops.bags(table, at, z[rows, at], starts), z @ table)
    x = torch.randn(9, 5, generator=draw, dtype=torch.float64)
    torch.testing.assert_close(ops.dots(x, rows, table, at), (x @ table.T)[rows, at])
    bias = torch.randn(30, generator=draw)
    ours = ops.linear(x.float(), table.float(), bias)
    torch.testing.assert_close(ours, F.linear(x.float(), table.float(), bias))


@pytest.mark.parametrize("optimizer", ["adam(weight_decay=0.01)", "adamw"])
@pytest.mark.parametrize("latent", LATENTS)
def test_one_step_is_that_of_autograd_and_adam(latent, optimizer):
    model = model_of(LATENTS[latent](128, 3))
    body, (batch,) = model.fusion, batches(1)
    x = batch.x["x"]
    encoder, bias, decoder, centre = own = [
        p.detach().clone().requires_grad_()
        for p in (body.encoder, body.encoder_bias, body.decoder, body.centre)
    ]
    h = (x - centre) @ encoder.T + bias
    least = h.topk(3).values[:, -1:] if latent == "topk" else h.flatten().topk(150).values[-1]
    z = torch.where((h >= least) & (h > 0), h, 0.0)
    loss = 0.7 * 0.5 * (z @ decoder + centre - x).square().sum(1).mean()
    loss.backward()
    of_decoder = decoder.grad.clone()
    decoder.grad -= decoder * (decoder.grad * decoder).sum(1, keepdim=True)
    kind, decay = (torch.optim.Adam, 0.01) if "(" in optimizer else (torch.optim.AdamW, 1e-4)
    kind(own, lr=1e-3, weight_decay=decay, fused=False).step()

    step = DictionaryStep(model, plan_of(optimizer), CPU)
    step.set_rate(1e-3)
    assert run(step, [batch])[0]["x"] == pytest.approx(float(loss.detach()), rel=1e-12)
    moments = dict(zip([n for n, _ in model.named_parameters()], range(4), strict=True))
    decayed = 0.01 if kind is torch.optim.Adam else 0.0
    start = model_of(LATENTS[latent](128, 3)).state_dict()
    for name, exact in (
        ("encoder", encoder), ("encoder_bias", bias), ("decoder", decoder), ("centre", centre)
    ):  # fmt: skip
        first = step.state()[f"0.{moments[f'fusion.{name}']}.exp_avg"]
        gradient = exact.grad + decayed * start[f"fusion.{name}"]
        torch.testing.assert_close(first / 0.1, gradient, rtol=1e-9, atol=1e-12)
        moved = F.normalize(exact.detach(), dim=1) if name == "decoder" else exact.detach()
        torch.testing.assert_close(getattr(body, name).detach(), moved, rtol=1e-9, atol=1e-11)
    assert not torch.allclose(of_decoder, decoder.grad)  # there was something to project


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("dead", [False, True])
@pytest.mark.parametrize("latent", LATENTS)
def test_many_steps_are_those_of_the_plain_way(latent, dead, dtype, monkeypatch):
    monkeypatch.setattr(steps, "SLICE", 100)  # of which the last has fewer
    penalties = [AuxK(k=5, after=60, weight=0.3)] if dead else []
    plain = model_of(LATENTS[latent](256, 3), *penalties, dtype=dtype)
    ours, plan = copy.deepcopy(plain), plan_of()
    given = list(batches(8, dtype=dtype))
    step, eager = DictionaryStep(ours, plan, CPU), Eager(plain, plan, CPU)
    step.set_rate(2e-3), eager.set_rate(2e-3)
    told, theirs = run(step, given), run(eager, given)
    fine = 1e-6 if dtype == torch.float32 else 1e-9
    for a, b in zip(told, theirs, strict=True):
        assert a == pytest.approx(b, rel=10 * fine)
    assert (not dead) or theirs[-1]["auxk"] > 0
    close(ours.state_dict(), plain.state_dict(), rtol=30 * fine, atol=30 * fine)
    close(step.state(), eager.state(), rtol=1e-3 if fine > 1e-8 else 1e-6, atol=fine)
    assert step.state().keys() == eager.state().keys()
    step.close()
    assert all(p.grad is None for p in ours.parameters())


def wide(latent, seed=0, width=32):
    """A dictionary whose products are rounded, with encoder rows of unlike norms."""
    model = model_of(LATENTS[latent](4096, 8), width=width, dtype=torch.float32)
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        model.fusion.encoder *= 0.7 + 0.6 * torch.rand(4096, 1, generator=draw)
    step = DictionaryStep(model, plan_of(), CPU)
    step.rounded = torch.empty_like(model.fusion.encoder, dtype=torch.bfloat16)
    step.set_rate(1e-3)
    return model, step


def hard_rows(width, draw):
    """Rows of all kinds: normal, constant (whose errors add up), tiny, huge, and zero."""
    x = torch.randn(64, width, generator=draw)
    x[:16] = 1.0 + 2.0**-9 + torch.rand(16, 1, generator=draw)
    x[16:20] *= 1e-6
    x[20:24] *= 1e6
    x[24] = 0.0
    return x


@pytest.mark.parametrize("seed", range(3))
def test_the_bound_of_rounding_holds_and_is_not_far(seed):
    draw = torch.Generator().manual_seed(seed)
    x, weight = hard_rows(32, draw), torch.randn(500, 32, generator=draw)
    weight[:100] = 1.0 + 2.0**-9  # all errors of one sign
    bias = torch.randn(500, generator=draw)
    low, short = x.bfloat16(), bias.bfloat16()
    rounded = torch.empty_like(weight, dtype=torch.bfloat16)
    reach, wrong = ops.round_rows(weight, rounded)
    error = ops.rounding_error(x, low, reach, wrong, (bias - short).abs().amax())
    exact = x.double() @ weight.double().T + bias
    near = low.double() @ rounded.double().T + short
    off = (near - exact).abs().amax(1)
    assert bool((off <= error).all())
    assert float((off / error)[:16].max()) > 0.3  # a bound much nearer would not hold
    h = ops.linear(low, rounded, short).double()
    assert bool((ops.surely(h, error[:, None]) <= exact).all())
    positive = exact > 0
    assert bool((ops.perhaps(exact, error[:, None]) <= h)[positive].all())
    plain = ops.group_maxima(h[:, :496].bfloat16())
    found = ops.positive_maxima(h[:, :496].bfloat16().contiguous())
    assert torch.equal(found.clamp_min(0), plain.clamp_min(0))
    assert torch.equal(found > 0, plain > 0)


@pytest.mark.parametrize("latent", LATENTS)
def test_rounded_candidates_leave_the_choice_as_it_is(latent, monkeypatch):
    monkeypatch.setattr(steps, "MANY", 10**6)  # however many are in doubt
    model, step = wide(latent)
    body = model.fusion
    draw = torch.Generator().manual_seed(3)
    run(step, batches(20, width=32, dtype=torch.float32))
    with torch.no_grad():  # some hundred latents that differ by less than rounding does
        body.encoder[600:] *= 0.1
        body.encoder[:600] = 0.3 + 0.003 * torch.rand(600, 32, generator=draw)
        body.encoder_bias[:600] = 1.0 - 1.3 * body.encoder[:600].sum(1)
        for _ in range(5):
            x = hard_rows(32, draw)
            x[:16] = 1.3 + 0.02 * torch.rand(16, 1, generator=draw)
            if latent == "batch_topk":
                x[16:25] = torch.randn(9, 32, generator=draw)
            got = step.choose(x)
            h = F.linear(x.double(), body.encoder.double(), body.encoder_bias.double())
            lines = h.view(1, -1) if latent == "batch_topk" else h
            k = 8 * len(x) // len(lines)
            least = lines.topk(k, dim=1).values[:, -1:].expand(-1, lines.shape[1]).reshape(h.shape)
            mask = torch.zeros_like(h, dtype=torch.bool)
            mask[got.rows, got.at] = True
            wrong = mask != ((h >= least) & (h > 0))
            scale = h.abs().amax(1, keepdim=True)  # what the exact product may lose itself
            assert bool(((h - least).abs() <= 3e-6 * scale)[wrong].all())
            values = h[got.rows, got.at]
            lost = (got.values - values).abs() / scale[got.rows, 0]
            assert float(lost.max()) < 3e-6


@pytest.mark.parametrize("latent", LATENTS)
def test_with_rounded_candidates_steps_are_those_without(latent):
    (a, with_), (b, without) = wide(latent), wide(latent)
    without.rounded = None
    given = list(batches(6, width=32, dtype=torch.float32))
    ours, theirs = run(with_, given[:3]), run(without, given[:3])
    for model in (a, b):  # what is changed elsewhere is seen
        with torch.no_grad():
            model.fusion.encoder[:500] = F.normalize(model.fusion.encoder[500:1000], dim=1)
    ours, theirs = ours + run(with_, given[3:]), theirs + run(without, given[3:])
    for one, other in zip(ours, theirs, strict=True):
        assert one == pytest.approx(other, rel=1e-5)
    close(a.state_dict(), b.state_dict(), rtol=1e-4, atol=3e-5)


def test_rows_with_few_entries_above_zero_keep_them_all(monkeypatch):
    monkeypatch.setattr(steps, "MANY", 10**6)
    model, step = wide("topk")
    body = model.fusion
    x = torch.rand(1, 32, generator=torch.Generator().manual_seed(0))
    few = torch.tensor([3, 700, 701, 2000, 3500, 4095])
    with torch.no_grad():
        body.encoder_bias.copy_(-(body.encoder @ x[0]) - 10.0)
        body.encoder_bias[few] += 10.001
        near = ops.linear(x.bfloat16(), body.encoder.bfloat16(), body.encoder_bias.bfloat16())
        got = step.choose(x)
    assert bool((near[0, few] < 0).any())  # rounding hides some of them
    assert torch.equal(got.at.sort().values, few)


def test_where_too_many_are_in_doubt_all_are_computed(monkeypatch):
    _, step = wide("topk")
    x = next(batches(1, width=32, dtype=torch.float32)).x["x"]
    with torch.no_grad():
        wanted = step.choose(x)
        monkeypatch.setattr(steps, "MANY", 0)
        monkeypatch.setattr(steps, "dots", None)  # which only candidates need
        got = step.choose(x)
    assert torch.equal(got.at.sort().values, wanted.at.sort().values)


def test_a_run_goes_on_where_it_stood_by_either_way():
    given = list(batches(6))
    model = model_of(TopK(256, k=3, rectify=True), AuxK(k=5, after=60))
    step = DictionaryStep(model, plan_of(), CPU)
    run(step, given[:3])
    kept = copy.deepcopy(step.state()), copy.deepcopy(model)
    run(step, given[3:])
    for way, exact in ((DictionaryStep, True), (Eager, False)):
        again = copy.deepcopy(kept[1])
        later = way(again, plan_of(), CPU)
        later.restore(copy.deepcopy(kept[0]))
        run(later, given[3:])
        tolerance = {"rtol": 0.0, "atol": 0.0} if exact else {"rtol": 1e-7, "atol": 1e-9}
        close(again.state_dict(), model.state_dict(), **tolerance)
    step.forget("fusion.encoder", torch.tensor([2, 5]))
    names = [n for n, _ in model.named_parameters()]
    moment = step.state()[f"0.{names.index('fusion.encoder')}.exp_avg"]
    assert not moment[[2, 5]].any()
    assert moment[[1, 3]].any()


def test_latents_of_which_none_fired_move_as_adam_moves_them():
    plain, _ = wide("topk")  # most slices have no active entry
    ours = copy.deepcopy(plain)
    given = list(batches(4, width=32, rows=1, dtype=torch.float32))
    run(DictionaryStep(ours, plan_of(), CPU), given)
    start = plain.fusion.encoder.detach().clone()
    run(Eager(plain, plan_of(), CPU), given)
    assert bool((plain.fusion.encoder != start).any(1).all())  # by the decay of weights, at least
    close(ours.state_dict(), plain.state_dict(), rtol=1e-5, atol=3e-5)


def test_rows_with_gaps_are_left_to_the_plain_way():
    model = model_of(TopK(256, k=3, rectify=True))
    plain = copy.deepcopy(model)
    given = list(batches(3))
    observed = torch.rand(50, 12, generator=torch.Generator().manual_seed(0)) < 0.8
    given[1] = Batch({"x": given[1].x["x"] * observed}, {"x": observed})
    ours = run(DictionaryStep(model, plan_of(), CPU), given)
    theirs = run(Eager(plain, plan_of(), CPU), given)
    for one, other in zip(ours, theirs, strict=True):
        assert one == pytest.approx(other, rel=1e-7)
    close(model.state_dict(), plain.state_dict(), rtol=1e-7, atol=1e-9)


def test_it_takes_what_it_knows_and_nothing_else():
    def taken(model, optimizer="adamw"):
        return suits(model, plan_of(optimizer), CPU)

    known = model_of(TopK(256, k=3, rectify=True), AuxK())
    assert taken(known)
    assert taken(known, "adam")
    assert taken(model_of(BatchTopK(256, k=3)))
    assert not taken(known, "sgd")
    assert not taken(known, "adamw(amsgrad=True)")
    assert not taken(known, "adam(fused=False)")
    assert not taken(model_of(TopK(256, k=3)))
    assert not taken(model_of(TopK(256, k=16, rectify=True)))
    assert not taken(model_of(TopK(250, k=3, rectify=True)))
    assert not taken(model_of(TopK(256, k=3, rectify=True), likelihood=AbsoluteError))
    known.weigh({"x": (1.0,) * 12})
    assert not taken(known)
    frozen = model_of(TopK(256, k=3, rectify=True))
    frozen.fusion.centre.requires_grad_(False)
    assert not taken(frozen)
    assert not taken(torch.nn.Linear(2, 2))
    assert not suits(known, plan_of(), torch.device("cuda"))
