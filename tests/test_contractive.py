"""The contractive penalty: every way to its cost against autograd's own Jacobian, row by row."""

from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn
from torch.autograd.functional import jacobian

import refold
import refold.data.corruptions
from refold.assemble import Wishes, assemble
from refold.data.containers import container
from refold.data.schema import Schema
from refold.data.sources import read
from refold.errors import InputError
from refold.ops.jacobian import dense_frobenius, frobenius, layer_frobenius
from refold.penalties import Contractive, jacobian_norms
from refold.penalties.contractive import dense_layers
from refold.table import Table
from refold.types import Batch

ROWS = 6
ACTIVATIONS = ("relu", "leaky_relu", "elu", "selu", "gelu", "silu", "tanh", "sigmoid")


def draw(*shape, seed=0):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def vectors():
    return read(np.random.default_rng(0).normal(size=(40, 7)))


def images():
    return Table({"x": np.random.default_rng(0).random((40, 9, 8))}, container("numpy"))


def mixed(missing=False):
    r = np.random.default_rng(0)
    frame = pd.DataFrame(
        {
            "age": r.normal(size=40),
            "pay": r.normal(size=40),
            "sex": r.choice(["f", "m"], 40),
            "town": r.choice(["a", "b", "c"], 40),
        }
    )
    if missing:
        frame.loc[0, "pay"] = np.nan
        frame.loc[2, "town"] = None
        frame.loc[3, "sex"] = None
        frame.loc[4] = None
    return read(frame)


def gapped():
    x = np.random.default_rng(0).normal(size=(40, 7))
    x[np.random.default_rng(1).random(x.shape) < 0.3] = np.nan
    return read(x)


def built(table, fields=None, **wishes):
    """A model in double precision with no weight at zero, in training mode, and rows."""
    torch.manual_seed(0)
    schema = Schema.fit(table, np.arange(len(table)), fields)
    rows = schema.encode(table)[0]
    model = assemble(schema, rows, Wishes(**wishes)).spec.build(schema).double()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(0.4 * torch.randn_like(p))
        for name, b in model.named_buffers():
            if "running" in name:
                b.copy_(torch.rand_like(b) + 0.5)
    rows = rows.rows(slice(0, ROWS))
    x = {k: v.double() if v.is_floating_point() else v for k, v in rows.x.items()}
    return model.train(), Batch(x, rows.observed)


def reference(model, batch, names=None):
    """Squared norms by autograd's own Jacobian of one row at a time, over what is there."""
    model.eval()
    names = names or [k for k in model.inputs if batch.x[k].is_floating_point()]
    found = []
    for i in range(len(batch)):
        row = batch.rows(slice(i, i + 1)).only(model.inputs)
        total = 0.0
        for name in names:
            j = jacobian(
                lambda x, name=name, row=row: (
                    model.encode(Batch({**row.x, name: x}, row.observed))[0].z
                ),
                row.x[name],
            ).reshape(model.latent.size, -1)
            seen = row.observed[name]
            total += (j if seen is None else j * seen).square().sum()
        found.append(total)
    model.train()
    return torch.stack(found)


DENSE = {"recipe": "dense", "latent": 3}
CASES = {
    "one layer": lambda: built(vectors(), **DENSE, hidden=()),
    "one layer there, two back": lambda: built(
        vectors(), **DENSE, hidden=(), fusion="concat(mirror=(5,), linear=True)"
    ),
    "one layer, rectified code": lambda: built(vectors(), latent="l1(size=9)", hidden=()),
    "one layer, squashed code": lambda: built(vectors(), latent="kl(size=9)", hidden=()),
    "one layer, gaps": lambda: built(gapped(), **DENSE, hidden=()),
    **{
        f"deep, {a}": lambda a=a: built(
            vectors(), **DENSE, hidden=(8, 5), fusion=f"concat(linear=False, activation={a!r})"
        )
        for a in ACTIVATIONS
    },
    "one hidden layer": lambda: built(
        vectors(), **DENSE, hidden=(5,), fusion="concat(linear=False)"
    ),
    "linear path": lambda: built(vectors(), **DENSE, hidden=(5,)),
    "linear path, deep": lambda: built(
        vectors(), **DENSE, hidden=(8, 5), fusion="concat(linear=True, activation='tanh')"
    ),
    "linear path, sparse code": lambda: built(
        vectors(), latent="topk(size=9, k=3)", hidden=(8, 5), fusion="concat(linear=True)"
    ),
    "few inputs": lambda: built(
        vectors(), latent="kl(size=4)", hidden=(30, 20), fusion="concat(activation='gelu')"
    ),
    "batch norm and dropout": lambda: built(
        vectors(), **DENSE, hidden=(8, 5), fusion="concat(norm='batch', dropout=0.5)"
    ),
    "gaussian": lambda: built(vectors(), recipe="vae", latent=3, hidden=(8,)),
    "nested": lambda: built(vectors(), latent="nested(size=3)", hidden=(8,)),
    "winners": lambda: built(vectors(), latent="lifetime(size=9, top=4)", hidden=(8,)),
    "gaps": lambda: built(gapped(), **DENSE, hidden=(8, 5)),
    "gaps, one hidden layer": lambda: built(gapped(), **DENSE, hidden=(5,)),
    "mixed": lambda: built(mixed(), **DENSE, hidden=(8, 5)),
    "mixed, one layer": lambda: built(mixed(), **DENSE, hidden=()),
    "mixed, gaps": lambda: built(mixed(missing=True), **DENSE, hidden=(8,)),
    "mixed, gaps, gaussian": lambda: built(mixed(missing=True), recipe="vae", latent=3),
}
OTHERS = {
    "residual": lambda: built(
        vectors(), **DENSE, hidden=(8, {"width": 8, "residual": True}), fusion="concat"
    ),
    "layer norm": lambda: built(vectors(), **DENSE, hidden=(8,), fusion="concat(norm='layer')"),
    "weight norm": lambda: built(
        vectors(), **DENSE, fields={"x": "vector(backbone='dense(hidden=(6,), norm=weight)')"}
    ),
    "conv": lambda: built(images(), recipe="conv", latent=3),
    "conv, pooled, norms": lambda: built(
        images(),
        {"x": "image(backbone='conv(channels=(4, 8), down=pool, norm=batch, kernel=4)')"},
        recipe="conv",
        latent=3,
    ),
    "conv with self-attention": lambda: built(
        images(),
        {"x": "image(backbone=\"conv(stages=({'channels': 8, 'stride': 2, 'attention': 2}, 4), "
              "padding_mode='reflect', activation='silu')\")"},
        recipe="conv",
        latent=3,
    ),
    "u-net": lambda: built(images(), recipe="unet", latent=3),
    **{
        f"{fusion} of mixed": lambda f=fusion: built(
            mixed(), latent="gaussian(size=3)", hidden=(8,), fusion=f
        )
        for fusion in ("attention", "gated", "sum", "mean", "poe", "moe", "mopoe")
    },
    "attention, gaps": lambda: built(mixed(missing=True), **DENSE, fusion="attention(heads=1)"),
}  # fmt: skip


@pytest.mark.parametrize("name", [*CASES, *OTHERS])
def test_every_exact_way_is_autograds_own_jacobian(name):
    model, batch = {**CASES, **OTHERS}[name]()
    layers = dense_layers(model)
    assert (layers is not None) == (name in CASES)
    expected = reference(model, batch)
    assert expected.max() > 1e-4
    close = {"rtol": 1e-9, "atol": 1e-12}
    torch.testing.assert_close(jacobian_norms(model, batch), expected, **close)
    names = [k for k in model.inputs if batch.x[k].is_floating_point()]
    model.eval()

    def masked(*xs):
        x = dict(batch.x)
        for k, v in zip(names, xs, strict=True):
            seen = batch.observed[k]
            x[k] = v if seen is None else torch.where(seen.view_as(v), v, x[k])
        return model.encode(Batch(x, batch.observed).only(model.inputs))[0].z

    general = frobenius(masked, *(batch.x[k] for k in names))
    torch.testing.assert_close(general, expected, **close)
    if layers is not None and len(layers) == 1:
        closed = jacobian_norms(model, batch, method="closed")
        torch.testing.assert_close(closed, expected, **close)
    else:
        with pytest.raises(InputError, match="one dense layer"):
            jacobian_norms(model, batch, method="closed")


@pytest.mark.parametrize("name", ["one layer, gaps", "deep, tanh", "linear path, sparse code",
                                  "linear path", "few inputs", "mixed, gaps", "conv",
                                  "attention, gaps"])  # fmt: skip
@pytest.mark.parametrize("samples", [1, 5])
def test_the_estimate_is_unbiased_within_its_own_error(name, samples):
    model, batch = {**CASES, **OTHERS}[name]()
    exact = jacobian_norms(model, batch).detach()
    torch.manual_seed(0)
    times = 60
    many = batch.rows(torch.arange(len(batch)).repeat(20))
    with torch.no_grad():
        drawn = torch.cat(
            [
                jacobian_norms(model, many, method="hutchinson", samples=samples).view(20, -1)
                for _ in range(times // (3 if samples > 1 else 1))
            ]
        )
    error = drawn.std(0) / len(drawn) ** 0.5
    assert ((drawn.mean(0) - exact).abs() <= 4 * error + 1e-12).all()
    assert (drawn.std(0) > 1e-3 * exact).any()


def test_more_samples_have_less_variance():
    model, batch = CASES["deep, silu"]()
    many = batch.rows(torch.zeros(4000, dtype=torch.long))
    torch.manual_seed(0)
    with torch.no_grad():
        one = jacobian_norms(model, many, method="hutchinson").var()
        four = jacobian_norms(model, many, method="hutchinson", samples=4).var()
    assert float(one / four) == pytest.approx(4, rel=0.2)


@pytest.mark.parametrize("name", [
    "one layer", "one layer, squashed code", "deep, sigmoid", "deep, relu", "linear path",
    "linear path, deep", "linear path, sparse code", "batch norm and dropout", "gaussian",
    "mixed, gaps", "few inputs", "conv", "conv with self-attention", "attention of mixed",
])  # fmt: skip
@pytest.mark.parametrize("method", ["exact", "hutchinson"])
def test_gradients_are_those_of_finite_differences(name, method):
    model, batch = {**CASES, **OTHERS}[name]()
    penalty = Contractive(weight=1.0, method=method)

    def cost():
        torch.manual_seed(3)
        return penalty(model, batch, None, {})["contractive"]

    model.zero_grad()
    cost().backward()
    assert any(p.grad is not None for p in model.parameters())
    for i, p in enumerate(model.parameters()):
        way = draw(*p.shape, seed=i)
        grad = torch.zeros_like(p) if p.grad is None else p.grad
        found, step = float((grad * way).sum()), 1e-5
        with torch.no_grad():
            p.add_(way, alpha=step)
            up = float(cost())
            p.sub_(way, alpha=2 * step)
            down = float(cost())
            p.add_(way, alpha=step)
        assert found == pytest.approx((up - down) / (2 * step), rel=1e-4, abs=1e-7)


@pytest.mark.parametrize("ends", [False, True])
@pytest.mark.parametrize("beside", [False, True])
@pytest.mark.parametrize("seen", [False, True])
@pytest.mark.parametrize("widths", [(9, 4, 3), (3, 9, 8, 2), (5, 4, 6, 3, 2)])
def test_dense_layers_by_their_product_row_by_row(widths, ends, beside, seen):
    ws = [draw(b, a, seed=i) for i, (a, b) in enumerate(pairwise(widths))]
    slopes = [draw(ROWS, len(w), seed=9 + i) for i, w in enumerate(ws[:-1])]
    last = draw(ROWS, widths[-1], seed=20) if ends else None
    path = draw(widths[-1], widths[0], seed=21) if beside else None
    there = draw(ROWS, widths[0], seed=22) > 0 if seen else None
    found = dense_frobenius(ws, slopes, ends=last, beside=path, seen=there)
    for i in range(ROWS):
        j = ws[0]
        for w, s in zip(ws[1:], slopes, strict=True):
            j = w @ (s[i][:, None] * j)
        j = j if path is None else j + path
        j = j if last is None else last[i][:, None] * j
        j = j if there is None else j * there[i]
        torch.testing.assert_close(found[i], j.square().sum())


def test_one_layer_is_slopes_times_lengths_as_in_the_paper():
    w, a = draw(4, 6), draw(ROWS, 4, seed=1)
    h = a.sigmoid()
    paper = ((h * (1 - h)).square()[:, :, None] * w.square()).sum((1, 2))
    torch.testing.assert_close(layer_frobenius(w, h * (1 - h)), paper)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_and_transformer_encoders_have_second_derivatives(kind):
    torch.manual_seed(0)
    read_by = kind(2, 4, batch_first=True).double()
    layer = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True).double()

    def encode(x):
        return layer(read_by(x)[0])[:, -1] @ torch.ones(4, 2).double().tril()

    x = draw(3, 5, 2)
    found = frobenius(encode, x)
    rows = [jacobian(lambda r: encode(r[None])[0], row).square().sum() for row in x]
    torch.testing.assert_close(found, torch.stack(rows))
    found.sum().backward()
    assert all(p.grad is not None for p in [*read_by.parameters(), layer.linear1.weight])


def test_modes_and_gradient_states_are_left_as_they_were():
    model, batch = CASES["batch norm and dropout"]()
    model.fusion.up.eval()
    before = [m.training for m in model.modules()]
    state = {k: v.clone() for k, v in model.state_dict().items()}
    first = jacobian_norms(model, batch)
    assert [m.training for m in model.modules()] == before
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    with torch.no_grad():
        assert not jacobian_norms(model, batch).requires_grad
    for name in ("batch norm and dropout", "deep, silu", "conv", "attention, gaps"):
        model, batch = {**CASES, **OTHERS}[name]()
        expected = jacobian_norms(model, batch).detach()
        with torch.inference_mode():
            torch.testing.assert_close(jacobian_norms(model, batch), expected)
            twin = Batch({k: x.clone() for k, x in batch.x.items()}, batch.observed)
            torch.testing.assert_close(jacobian_norms(model, twin), expected)
    assert first.requires_grad


def test_named_fields_alone_and_what_has_no_derivative():
    model, batch = CASES["mixed, gaps"]()
    numbers = [k for k in model.inputs if batch.x[k].is_floating_point()]
    assert len(numbers) == 2
    each = [jacobian_norms(model, batch, fields=(k,)) for k in numbers]
    torch.testing.assert_close(each[0], reference(model, batch, numbers[:1]))
    torch.testing.assert_close(sum(each), jacobian_norms(model, batch))
    flipped = jacobian_norms(model, batch, fields=tuple(reversed(numbers)))
    torch.testing.assert_close(flipped, jacobian_norms(model, batch))
    (other,) = set(model.inputs) - set(numbers)
    with pytest.raises(InputError, match="input of numbers"):
        jacobian_norms(model, batch, fields=(other,))
    towns = read(pd.DataFrame({"town": list("abc") * 10}))
    with pytest.raises(InputError, match="all classes"):
        jacobian_norms(*built(towns, **DENSE, hidden=()))


@pytest.mark.parametrize(
    ("name", "exact"),
    [("one layer, gaps", True), ("linear path", True), ("one hidden layer", True),
     ("gaps, one hidden layer", False), ("deep, relu", False), ("conv", False)],
)  # fmt: skip
def test_auto_is_exact_where_that_is_cheap_and_estimates_elsewhere(name, exact):
    model, batch = {**CASES, **OTHERS}[name]()
    torch.manual_seed(0)
    found = jacobian_norms(model, batch, method="auto")
    torch.manual_seed(0)
    method = "exact" if exact else "hutchinson"
    torch.testing.assert_close(found, jacobian_norms(model, batch, method=method))
    assert exact == torch.allclose(found, jacobian_norms(model, batch))


def test_warmup_and_weight_and_wrong_options():
    model, batch = CASES["one hidden layer"]()
    penalty = Contractive(weight=3.0, warmup=0.5)
    penalty.progress = 0.25
    half = penalty(model, batch, None, {})["contractive"]
    torch.testing.assert_close(half, 1.5 * jacobian_norms(model, batch).mean())
    whole = penalty.eval()(model, batch, None, {})["contractive"]
    torch.testing.assert_close(whole, 2 * half)
    for options, match in (({"method": "closd"}, "closed"), ({"samples": 0}, "1 or more"),
                           ({"warmup": 2.0}, "share")):  # fmt: skip
        with pytest.raises(InputError, match=match):
            Contractive(**options)


def test_training_with_it_contracts_the_encoder():
    x = np.random.default_rng(0).normal(size=(400, 8))
    options = {"latent": 4, "hidden": (16,), "epochs": 10, "batch_size": 50, "device": "cpu"}
    norms = []
    for weight in (0.0, 1.0):
        ae = refold.Autoencoder(penalties=(Contractive(weight=weight),), **options).fit(x)
        with torch.no_grad():
            norms.append(jacobian_norms(ae.model_, ae._encode(ae._read(x))).mean())
    assert norms[1] < 0.7 * norms[0]
    assert "valid_contractive" in ae.history_[0]


def test_rows_of_which_only_hidden_entries_are_scored_count_whole():
    model, rows = built(gapped(), corruption="hide(rate=0.5, score=hidden)", hidden=(5,), latent=3)
    noise = refold.data.corruptions.resolve("hide(rate=0.5, score=hidden)")
    hide = refold.data.corruptions.corruptions.build(noise)
    target = hide.target(rows, hide(rows, torch.Generator().manual_seed(0)))
    found = jacobian_norms(model, target, method="exact")
    torch.testing.assert_close(found, jacobian_norms(model, rows, method="exact"))
