"""Recurrent backbones: lengths, masks, both ways, orders and teachers, against plain loops."""

from itertools import product

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

import refold
from refold.backbones import Recurrent, backbones
from refold.backbones.base import Geometry
from refold.errors import InputError
from refold.ops.jacobian import frobenius
from refold.parts import PartSpec

ROWS, STEPS, CHANNELS, LEVELS = 6, 7, 2, 5
SERIES = Geometry((STEPS, CHANNELS), (1,) * STEPS * CHANNELS, 2 * STEPS * CHANNELS, False)
TEXT = Geometry((STEPS,), (LEVELS,) * STEPS, LEVELS * STEPS, False)
GEOMETRY = {"series": SERIES, "text": TEXT}
LENGTHS = torch.tensor([7, 3, 1, 0, 5, 7])
CELLS = {"lstm": nn.LSTM, "gru": nn.GRU}


def told(kind, missing=True):
    g = GEOMETRY[kind]
    return Geometry(g.shape, g.sizes, g.params, missing)


def spine(kind, missing=False, **options):
    torch.manual_seed(0)
    return Recurrent(told(kind, missing), **{"width": 4, **options}).double()


def rows(kind):
    torch.manual_seed(1)
    if kind == "text":
        return torch.randint(LEVELS, (ROWS, STEPS))
    return torch.randn(ROWS, STEPS, CHANNELS, dtype=torch.float64)


def ragged(kind):
    """Which entries are there where rows end at their lengths, ``[B, E]``."""
    there = torch.arange(STEPS) < LENGTHS[:, None]
    return there if kind == "text" else there.repeat_interleave(CHANNELS, 1)


ENCODERS = [
    {"cell": cell, "layers": layers, "bidirectional": both}
    for cell, layers, both in product(CELLS, (1, 2), (False, True))
]


def shortened(net, steps):
    """The same layers for sequences of fewer steps."""
    g = net.geometry
    each = [n // STEPS * steps for n in (len(g.sizes), g.params)]
    short = Geometry((steps, *g.shape[1:]), g.sizes[: each[0]], each[1], g.missing)
    options = {k: getattr(net, k) for k in backbones.options("recurrent")}
    other = Recurrent(short, **options).double()
    other.load_state_dict(net.state_dict())
    return other


@pytest.mark.parametrize("kind", GEOMETRY)
@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("options", ENCODERS, ids=str)
def test_rows_of_any_length_are_read_as_if_alone(kind, missing, options):
    net, x, seen = spine(kind, missing, **options), rows(kind), ragged(kind)
    h, skips = net.encode(x, seen)
    assert h.shape == (ROWS, net.encoded)
    assert skips == ()
    for i, n in enumerate(LENGTHS.tolist()):
        alone = shortened(net, n).encode(x[i : i + 1, :n], None)[0][0] if n else 0 * h[i]
        torch.testing.assert_close(h[i], alone)
    padding = torch.where(seen.view(x.shape), x, -1 if kind == "text" else 9.0)
    assert torch.equal(net.encode(padding, seen)[0], h)


@pytest.mark.parametrize("options", ENCODERS, ids=str)
def test_the_state_is_that_of_packed_sequences(options):
    """The same weights in torch's own stack of layers, which packs rows of several lengths."""
    net, x = spine("series", True, **options), rows("series")
    theirs = CELLS[options["cell"]](
        2 * CHANNELS, 4, options["layers"], batch_first=True,
        bidirectional=options["bidirectional"],
    ).double()  # fmt: skip
    for n, ways in enumerate(net.encoder):
        for way, suffix in zip(ways, ("", "_reverse"), strict=False):
            for name, value in way.named_parameters():
                getattr(theirs, name.replace("l0", f"l{n}{suffix}")).data.copy_(value)
    full = LENGTHS > 0
    told_x = torch.cat([x, torch.ones_like(x)], 2)
    _, state = theirs(pack_padded_sequence(told_x[full], LENGTHS[full], batch_first=True,
                                           enforce_sorted=False))  # fmt: skip
    state = state[0] if options["cell"] == "lstm" else state
    last = state[-2:] if options["bidirectional"] else state[-1:]
    expected = torch.cat(list(last), 1)
    torch.testing.assert_close(net.encode(x, ragged("series"))[0][full], expected)


@pytest.mark.parametrize("kind", GEOMETRY)
def test_a_gap_is_told_and_what_stands_there_has_no_say(kind):
    net, x = spine(kind, True, bidirectional=True), rows(kind)
    seen = torch.ones(ROWS, len(told(kind).sizes), dtype=torch.bool)
    everything = net.encode(x, None)[0]
    assert torch.equal(everything, net.encode(x, seen)[0])
    seen[:, 3] = False
    hidden = net.encode(x, seen)[0]
    assert (hidden != everything).any(1).all()
    other = torch.where(seen.view(x.shape), x, 0 if kind == "text" else 5.0)
    assert torch.equal(net.encode(other, seen)[0], hidden)
    if kind == "series":
        zero = torch.where(seen.view(x.shape), x, 0.0)
        assert (net.encode(zero, None)[0] != hidden).any(1).all()


# The way back


def by_hand(net, h, truth=None):
    """What the decoder writes, step after step with torch's own cells; ``truth`` is told always."""
    kind = "text" if net.levels > 1 else "series"
    cell = nn.LSTMCell if net.cell == "lstm" else nn.GRUCell
    cells = []
    for layer in net.decoder:
        cells.append(cell(layer.input_size, 4).double())
        cells[-1].load_state_dict({k[:-3]: v for k, v in layer.state_dict().items()})
    state = [torch.tanh(h)] * net.layers
    memory = [torch.zeros_like(h)] * net.layers
    before = torch.zeros(len(h), CHANNELS).double() if kind == "series" else None
    if kind == "text" and net.teacher:
        before = net.spoken[0].expand(len(h), -1)
    written = []
    order = list(range(STEPS))[:: -1 if net.order == "reversed" else 1]
    for t in order:
        fed = torch.cat([h, before], 1) if net.teacher else h
        for n, one in enumerate(cells):
            if net.cell == "lstm":
                state[n], memory[n] = one(fed, (state[n], memory[n]))
            else:
                state[n] = one(fed, state[n])
            fed = state[n]
        written.append(net.last(fed))
        if kind == "series":
            before = written[-1][:, :CHANNELS] if truth is None else truth[:, t]
        elif net.teacher:
            said = written[-1].argmax(1) if truth is None else truth[:, t]
            before = net.spoken[said + 1]
    steps = [written[order.index(t)] for t in range(STEPS)]
    if kind == "text":
        return torch.cat(steps, 1)
    # First the means of all steps and channels, then what else a likelihood asks for.
    return torch.cat([s[:, :CHANNELS] for s in steps] + [s[:, CHANNELS:] for s in steps], 1)


@pytest.mark.parametrize("kind", GEOMETRY)
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("order", ["forward", "reversed"])
@pytest.mark.parametrize("teacher", [0.0, 0.5])
def test_a_code_is_written_step_by_step(kind, cell, layers, order, teacher):
    net = spine(kind, cell=cell, layers=layers, order=order, teacher=teacher)
    h = torch.randn(ROWS, net.decoded, dtype=torch.float64)
    params = net.decode(h, ())
    assert params.shape == (ROWS, net.geometry.params)
    torch.testing.assert_close(params, by_hand(net, h))
    torch.testing.assert_close(net.decode(h[2:3], ())[0], params[2])


@pytest.mark.parametrize("kind", GEOMETRY)
@pytest.mark.parametrize("order", ["forward", "reversed"])
def test_a_teacher_tells_the_step_before_in_training_alone(kind, order):
    net, x = spine(kind, order=order, teacher=1.0), rows(kind)
    h, skips = net.encode(x, None)
    assert net.eval().encode(x, None)[1] == ()
    assert not net.skipping
    taught = net.decode(h, skips)
    torch.testing.assert_close(taught, by_hand(net, h, x))
    assert not torch.allclose(taught, by_hand(net, h))
    torch.testing.assert_close(net.decode(h, ()), by_hand(net, h))
    # Nearly always is, but for single coins, always.
    net.teacher = 1 - 1e-12
    torch.testing.assert_close(net.decode(h, skips), taught)
    net.teacher = 1e-12
    torch.testing.assert_close(net.decode(h, skips), by_hand(net, h))


@pytest.mark.parametrize("kind", GEOMETRY)
def test_a_teacher_does_not_tell_what_is_missing(kind):
    net, x, seen = spine(kind, True, teacher=1.0), rows(kind), ragged(kind)
    other = torch.where(seen.view(x.shape), x, 0 if kind == "text" else 5.0)
    assert torch.equal(net.encode(x, seen)[1][0], net.encode(other, seen)[1][0])


def test_a_coin_is_tossed_for_every_step_and_row():
    net, x = spine("series", teacher=0.5), torch.full((400, STEPS, CHANNELS), 50.0).double()
    h, skips = net.encode(x, None)
    seen = []
    net.decoder[0].register_forward_hook(lambda _, fed, __: seen.append(fed[0][:, 0, -1] > 25))
    torch.manual_seed(0)
    net.decode(h, skips)
    toldx = torch.stack(seen, 1).double()[:, 1:]
    assert (toldx.mean(0) - 0.5).abs().max() < 0.1
    assert (toldx.mean(1) - 0.5).abs().min() == 0
    assert np.abs(np.corrcoef(toldx.T.numpy()) - np.eye(STEPS - 1)).max() < 0.2


@pytest.mark.parametrize("kind", GEOMETRY)
def test_it_starts_at_the_mean_of_the_steps(kind):
    net = spine(kind)
    params = torch.arange(net.geometry.params).double()
    assert net.start_at(params)
    net.last.weight.data.zero_()
    found = net.decode(torch.zeros(2, 4).double(), ())[0]
    blocks = (1, STEPS, LEVELS) if kind == "text" else (2, STEPS, CHANNELS)
    torch.testing.assert_close(
        found.view(blocks), params.view(blocks).mean(1, keepdim=True).expand(blocks)
    )


def test_dropout_acts_in_training_alone_and_between_layers_alone():
    net, x = spine("series", layers=2, dropout=0.5), rows("series")
    fed = []
    net.encoder[0][0].register_forward_hook(lambda _, given, __: fed.append(given[0]))
    one, two = net.encode(x, None)[0], net.encode(x, None)[0]
    assert not torch.equal(one, two)
    assert torch.equal(fed[0], x)
    net.eval()
    assert torch.equal(net.encode(x, None)[0], net.encode(x, None)[0])


@pytest.mark.parametrize("kind", GEOMETRY)
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("teacher", [0.0, 0.5, 1.0])
def test_every_parameter_learns(kind, cell, teacher):
    net = spine(kind, True, cell=cell, layers=2, bidirectional=True, teacher=teacher)
    h, skips = net.encode(rows(kind), ragged(kind))
    net.decode(h[:, :4] + h[:, 4:], skips).square().sum().backward()
    for name, p in net.named_parameters():
        assert p.grad is not None, name
        assert p.grad.abs().sum() > 0, name


def test_forget_gates_begin_open_and_states_apart():
    layer = spine("series", cell="lstm").decoder[0]
    assert layer.bias_ih_l0[4:8].tolist() == [1.0] * 4
    for block in layer.weight_hh_l0.split(4):
        torch.testing.assert_close(block @ block.T, torch.eye(4).double(), atol=1e-6, rtol=0)


@pytest.mark.parametrize("kind", GEOMETRY)
def test_a_field_that_is_only_read_or_only_written_has_half_the_layers(kind):
    g = GEOMETRY[kind]
    options = {"width": 4, "teacher": 0.5}
    whole = set(dict(Recurrent(g, **options).named_parameters()))
    read = Recurrent(Geometry(g.shape, g.sizes, 0, False, writes=False), **options)
    write = Recurrent(Geometry(g.shape, g.sizes, g.params, False, reads=False), **options)
    halves = [set(dict(net.named_parameters())) for net in (read, write)]
    assert halves[0] | halves[1] == whole
    assert not halves[0] & halves[1]
    assert read.encode(rows(kind).float() if kind == "series" else rows(kind), None)[1] == ()
    assert write.decode(torch.zeros(2, 4), ()).shape == (2, g.params)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_encoder_can_be_differentiated_twice(cell, dtype):
    """Contraction needs it; single precision runs other kernels than double."""
    net, x = spine("series", cell=cell, bidirectional=True).to(dtype), rows("series").to(dtype)
    for samples in (None, 3):
        net.zero_grad()
        found = frobenius(lambda v: net.encode(v, ragged("series"))[0], x, samples=samples)
        found.sum().backward()
        assert net.encoder[0][0].weight_hh_l0.grad.abs().sum() > 0
        assert found[3] == 0
    one = x[:1].requires_grad_()
    jacobian = torch.autograd.functional.jacobian(lambda v: net.encode(v, None)[0], one)
    exact = frobenius(lambda v: net.encode(v, None)[0], one.detach())
    torch.testing.assert_close(exact, jacobian.square().sum()[None])


# Errors, and the whole


@pytest.mark.parametrize(
    "geometry",
    [
        Geometry((1, 9, 6), (1,) * 54, 54, False),
        Geometry((9,), (1,) * 9, 9, False),
        Geometry((3,), (2, 4, 3), 9, False),
    ],
)
def test_only_sequences_are_read(geometry):
    with pytest.raises(InputError, match="need series, of steps and channels, or texts"):
        Recurrent(geometry)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cell": "lstn"}, "did you mean 'lstm'"),
        ({"order": "backward"}, "unknown order"),
        ({"width": 0}, "1 is the least"),
        ({"layers": 0}, "1 is the least"),
        ({"teacher": 1.5}, "from 0 to 1"),
        ({"dropout": 1.0}, "below 1"),
    ],
)
def test_a_wrong_option_is_a_sentence(options, message):
    with pytest.raises(InputError, match=message):
        backbones.build(PartSpec("recurrent", options), SERIES)


def sequences(kind):
    """Rows of several lengths, gaps among them."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(2, 9, 40)
    if kind == "text":
        return pd.DataFrame({"x": ["".join(rng.choice(list("abc"), n)) for n in lengths]})
    waves = [np.sin(np.arange(n) + rng.normal()) for n in lengths]
    waves[3][1] = np.nan
    return pd.DataFrame({"x": waves})


OWN = {"series": "series", "text": "text(tokens=characters)"}


@pytest.mark.parametrize("kind", OWN)
def test_the_recipe_learns_sequences_of_any_length_and_rows_stay_apart(kind, tmp_path):
    data = sequences(kind)
    ae = refold.Autoencoder(3, recipe="recurrent", fields={"x": OWN[kind]}, epochs=2).fit(data)
    assert isinstance(ae.model_.backbones["x"], Recurrent)
    z = ae.transform(data)
    assert np.array_equal(ae.transform(data.iloc[5:9]), z[5:9])
    assert np.isfinite(ae.score_samples(data)).all()
    back = ae.reconstruct(data)["x"]
    if kind == "series":
        assert [len(v) for v in back] == [len(v) for v in data["x"]]
    ae.save(tmp_path / "model")
    again = refold.load(tmp_path / "model")
    assert np.array_equal(again.transform(data), z)
    assert np.array_equal(again.score_samples(data), ae.score_samples(data))


def test_short_texts_come_back():
    """Every word of three letters of four: a code of six numbers tells them apart."""
    words = pd.DataFrame({"x": ["".join(w) for w in product("abcd", repeat=3)] * 4})
    own = "text(tokens=characters, backbone='recurrent(width=32, order=reversed)')"
    ae = refold.Autoencoder(6, recipe="recurrent", fields={"x": own}, epochs=60, validation=0)
    back = ae.fit(words).reconstruct(words)["x"]
    assert (back == words["x"]).mean() > 0.9
