"""Backbones: shapes, gradients, masks; convolutions, the way back, skips and attention."""

import json
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from refold.backbones import (
    ACTIVATIONS,
    Conv,
    ConvStage,
    Dense,
    Mlp,
    Residual,
    SelfAttention2d,
    backbones,
)
from refold.backbones.base import Geometry
from refold.backbones.layers import Style
from refold.backbones.maps import convolution, laid_out, mirrored, up_resampled, up_transposed
from refold.errors import InputError
from refold.fusion import Concat
from refold.parts import PartSpec

FLAT = Geometry((3,), (1, 1, 1), 3, False)
CLASSES = Geometry((3,), (2, 4, 3), 9, False)
IMAGE = Geometry((2, 9, 6), (1,) * 108, 108, False)
CASES = {"flat": FLAT, "embed": CLASSES, "conv": IMAGE, "dense": FLAT, "transformer": IMAGE}
CASES["recurrent"] = Geometry((5, 2), (1,) * 10, 10, False)
READING = sorted(k for k in backbones if not backbones[k].coded)  # others are for targets
RICH = (
    {"channels": 4, "repeat": 2, "kernel": 4, "pool": 2, "residual": True, "norm": "group"},
    {"channels": 6, "repeat": 2, "pool": 2, "attention": 2, "norm": "layer", "bias": False},
)


def image(channels, height, width, params=None):
    size = channels * height * width
    return Geometry((channels, height, width), (1,) * size, params or size, False)


def example(geometry, rows=4):
    if max(geometry.sizes) > 1:
        return torch.stack([torch.randint(n, (rows,)) for n in geometry.sizes], 1)
    return torch.rand(rows, *geometry.shape)


def count(module):
    return sum(p.numel() for p in module.parameters())


def open_gates(module):
    for m in module.modules():
        if isinstance(m, SelfAttention2d):
            nn.init.constant_(m.gamma, 0.7)


@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("name", READING)
def test_shapes_gradients_and_rows(name, missing):
    torch.manual_seed(0)
    base = CASES[name]
    geometry = Geometry(base.shape, base.sizes, base.params, missing)
    spine = backbones.build(PartSpec(name), geometry)
    x = example(geometry)
    seen = torch.rand(4, len(geometry.sizes)) > 0.3 if missing else None
    h, skips = spine.encode(x, seen)
    assert h.shape == (4, spine.encoded)
    assert (len(skips) > 0) == spine.skipping
    params = spine.decode(torch.randn(4, spine.decoded, requires_grad=True), skips)
    assert params.shape == (4, geometry.params)
    (h.square().sum() + params.square().sum()).backward()
    for key, parameter in spine.named_parameters():
        assert parameter.grad is not None, key
        assert torch.isfinite(parameter.grad).all(), key
    alone, _ = spine.encode(x[1:2], None if seen is None else seen[1:2])
    torch.testing.assert_close(alone[0], h[1])


@pytest.mark.parametrize("name", READING)
def test_the_mask_tells_the_encoder(name):
    base = CASES[name]
    spine = backbones.build(PartSpec(name), Geometry(base.shape, base.sizes, base.params, True))
    x, seen = example(base), torch.ones(4, len(base.sizes), dtype=torch.bool)
    hidden = seen.clone()
    hidden[:, 0] = False
    assert torch.equal(spine.encode(x, None)[0], spine.encode(x, seen)[0])
    assert not torch.equal(spine.encode(x, hidden)[0], spine.encode(x, seen)[0])


@pytest.mark.parametrize("up", ["transpose", "upsample"])
@pytest.mark.parametrize("skips", [False, True])
def test_every_parameter_of_a_rich_network_learns_and_rows_stay_apart(up, skips):
    torch.manual_seed(0)
    spine = Conv(IMAGE, stages=RICH, up=up, skips=skips, init="orthogonal").double()
    open_gates(spine)
    x = example(IMAGE).double()
    h, maps = spine.encode(x, None)
    params = spine.decode(h, maps)
    params.square().sum().backward()
    for key, parameter in spine.named_parameters():
        assert parameter.grad is not None, key
        # A key's bias adds the same to every score, and softmax does not see it.
        assert parameter.grad.abs().max() > 1e-9, key
    h1, maps1 = spine.encode(x[2:3], None)
    torch.testing.assert_close(spine.decode(h1, maps1)[0], params[2])


# Sizes


@pytest.mark.parametrize("up", ["transpose", "upsample"])
@pytest.mark.parametrize("down", ["stride", "pool"])
@pytest.mark.parametrize("side", [(4, 4), (5, 7), (28, 28), (29, 17), (4, 31), (3, 3)])
def test_convolutions_restore_any_size(side, down, up):
    spine = Conv(image(1, *side), channels=(4, 6), repeat=2, down=down, up=up, norm="layer")
    h, _ = spine.encode(torch.rand(2, 1, *side), None)
    halved = [-(-n // 4) for n in side]
    assert spine.shapes[-1] == (6, *halved)
    assert h.shape == (2, spine.encoded) == (2, 6 * halved[0] * halved[1])
    assert spine.decode(h, ()).shape == (2, side[0] * side[1])


@pytest.mark.parametrize("up", ["transpose", "upsample"])
@pytest.mark.parametrize("side", [(11, 8), (13, 17), (9, 9)])
def test_every_kernel_stride_padding_and_pool_is_undone(side, up):
    tried = 0
    for kernel, stride, padding, pool in product(
        (1, 2, 3, 5, 6), (1, 2, 3), ("same", 0, 1, 2), (1, 2, 3)
    ):
        if padding != "same" and padding >= kernel:
            continue
        stages = (
            {"channels": 2, "kernel": kernel, "stride": stride, "padding": padding, "pool": pool},
            {"channels": 3, "kernel": 2},
        )
        spine = Conv(image(1, *side), stages=stages, up=up)
        h, _ = spine.encode(torch.rand(2, 1, *side), None)
        assert h.shape == (2, spine.encoded)
        assert spine.decode(h, ()).shape == (2, side[0] * side[1])
        extra = kernel - 1 if padding == "same" else 2 * padding
        convolved = [(n + extra - kernel) // stride + 1 for n in side]
        assert spine.shapes[0] == (2, *(-(-n // pool) for n in convolved))
        tried += 1
    assert tried == 153


@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
@pytest.mark.parametrize("kernel", [3, 6])
def test_padding_is_of_the_kind_asked_for(mode, kernel):
    torch.manual_seed(0)
    spine = Conv(
        image(1, 7, 8),
        stages=({"channels": 2, "kernel": kernel, "activation": "none"},),
        padding_mode=mode,
    )
    conv = next(m for m in spine.encoder.modules() if isinstance(m, nn.Conv2d))
    x = torch.rand(3, 1, 7, 8)
    near, far = (kernel - 1) // 2, kernel // 2
    kind = {"zeros": "constant"}.get(mode, mode)
    padded = F.pad(x, (near, far, near, far), mode=kind)
    expected = F.conv2d(padded, conv.weight, conv.bias)
    torch.testing.assert_close(spine.encode(x, None)[0], expected.flatten(1))


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("kernel", [1, 2, 3, 5, 6])
def test_a_transposed_convolution_is_the_adjoint(kernel, stride):
    g = torch.Generator().manual_seed(0)
    for padding, side in product(("same", 0, 1, kernel - 1), ((9, 8), (7, 11), (10, 13))):
        if padding == 1 and kernel == 1:
            continue
        stage = ConvStage(5, kernel=kernel, stride=stride, padding=padding, bias=False)
        (level,) = laid_out(3, side, [(stage, Style("identity"))], "zeros")
        ((back,),) = mirrored([level], 3, joined=False)
        there = nn.Sequential(*convolution(level.steps[0])).double()
        again = nn.Sequential(*up_transposed(back)).double()
        (one,) = (m for m in there if isinstance(m, nn.Conv2d))
        (two,) = (m for m in again if isinstance(m, nn.ConvTranspose2d))
        with torch.no_grad():
            two.weight.copy_(one.weight)
            two.bias.zero_()
        x = torch.randn(2, 3, *side, dtype=torch.float64, generator=g)
        y = torch.randn(2, 5, *level.side, dtype=torch.float64, generator=g)
        torch.testing.assert_close((there(x) * y).sum(), (x * again(y)).sum())
        assert again(y).shape == x.shape


def test_pooling_is_undone_window_by_window():
    spine = Conv(image(1, 5, 7), stages=({"channels": 1, "kernel": 1, "pool": 3},))
    last = next(m for m in spine.decoder.modules() if isinstance(m, nn.ConvTranspose2d))
    nn.init.ones_(last.weight)
    h = torch.arange(6.0).view(1, 6)
    rows = [[0, 0, 0, 1, 1, 1, 2]] * 3 + [[3, 3, 3, 4, 4, 4, 5]] * 2
    assert spine.decode(h, ()).view(5, 7).tolist() == rows


def test_upsampling_is_nearest_then_a_convolution():
    stage = ConvStage(2, kernel=3, stride=2, padding=0)
    (level,) = laid_out(1, (7, 7), [(stage, Style())], "zeros")
    ((back,),) = mirrored([level], 1, joined=False)
    layers = nn.Sequential(*up_resampled(back))
    conv = next(m for m in layers if isinstance(m, nn.Conv2d))
    h = torch.rand(1, 2, 3, 3)
    expected = F.conv2d(F.interpolate(h, (7, 7)), conv.weight, conv.bias, padding=1)
    torch.testing.assert_close(layers(h), expected)


# The networks that were asked for


def test_four_convolutions_and_pooling_lead_to_a_dense_decoder():
    stages = ({"channels": 8, "kernel": 6, "repeat": 4, "pool": 2},)
    spine = Conv(image(1, 28, 28), stages=stages, up="flat")
    assert (spine.encoded, spine.decoded, spine.pairs) == (8 * 14 * 14, 784, ())
    assert count(spine) == (36 + 1) * 8 + 3 * (36 * 8 + 1) * 8
    kinds = [type(m).__name__ for m in spine.encoder if not isinstance(m, nn.ReLU | nn.ZeroPad2d)]
    assert kinds == ["Conv2d"] * 4 + ["MaxPool2d"]
    h, _ = spine.encode(torch.rand(2, 1, 28, 28), None)
    assert h.shape == (2, 1568)
    params = torch.rand(2, 784)
    assert spine.decode(params, ()) is params
    assert not spine.start_at(params[0])


def test_the_decoder_mirrors_every_convolution_of_the_encoder():
    stages = (
        {"channels": 8, "kernel": 5, "repeat": 2, "pool": 2, "activation": "tanh"},
        {"channels": 16, "stride": 2, "norm": "batch", "bias": False},
    )
    spine = Conv(image(3, 15, 12), stages=stages)
    down = [m for m in spine.encoder.modules() if isinstance(m, nn.Conv2d)]
    up = [m for m in spine.decoder.modules() if isinstance(m, nn.ConvTranspose2d)]
    assert [m.weight.shape for m in down] == [m.weight.shape for m in reversed(up)]
    assert [m.stride for m in down] == [m.stride for m in reversed(up)]
    order = [type(m).__name__ for stage in spine.decoder for m in stage]
    assert order == [
        "ConvTranspose2d", "Tanh", "Enlarge", "ConvTranspose2d", "Tanh", "ConvTranspose2d"
    ]  # fmt: skip
    assert [m.bias is None for m in down] == [False, False, True]
    assert [m.bias is None for m in up] == [False, False, False]


@pytest.mark.parametrize("up", ["transpose", "upsample"])
def test_the_outer_stages_work_without_the_inner(up):
    torch.manual_seed(0)
    spine = Conv(IMAGE, stages=({"channels": 4, "repeat": 2, "pool": 2}, {"channels": 3}), up=up)
    (first, last), (second, _) = spine.pairs
    assert (len(first), len(second)) == (5, 2)
    x = torch.rand(3, 2, 9, 6)
    h = F.max_pool2d(spine.encoder[:4](x), 2, ceil_mode=True)
    torch.testing.assert_close(spine.outer(x, None, 1), spine.decoder[1](h).flatten(1))
    assert last is spine.decoder[1]
    whole = spine.decode(spine.encode(x, None)[0], ())
    torch.testing.assert_close(spine.outer(x, None, 2), whole)


def test_each_map_is_finished_the_same_on_both_ways_and_the_last_convolution_strides():
    stages = (
        {"channels": 4, "repeat": 2, "stride": 2, "bias": False, "norm": "batch"},
        {"channels": 6, "repeat": 2, "norm": "layer", "dropout": 0.2},
    )
    spine = Conv(image(1, 8, 8), stages=stages)
    down = [m for m in spine.encoder if isinstance(m, nn.Conv2d)]
    inner, outer = spine.decoder
    assert [m.stride[0] for m in down] == [1, 2, 1, 1]
    assert [type(m).__name__ for m in inner] == [
        "ConvTranspose2d", "GroupNorm", "ReLU", "Dropout2d",
        "ConvTranspose2d", "BatchNorm2d", "ReLU",
    ]  # fmt: skip
    assert [type(m).__name__ for m in outer] == [
        "ConvTranspose2d", "BatchNorm2d", "ReLU", "ConvTranspose2d"
    ]  # fmt: skip
    up = [m for m in spine.decoder.modules() if isinstance(m, nn.ConvTranspose2d)]
    assert [m.stride[0] for m in up] == [1, 1, 2, 1]
    assert [m.bias is None for m in up] == [False, True, True, False]


def test_the_short_form_is_the_stages_it_stands_for():
    short = Conv(IMAGE, channels=(4, 6), repeat=2, kernel=5, down="stride")
    options = {"repeat": 2, "kernel": 5, "stride": 2}
    long = Conv(IMAGE, stages=({"channels": 4, **options}, ConvStage(6, **options)))
    assert str(short.encoder) == str(long.encoder)
    assert str(short.decoder) == str(long.decoder)
    assert long.stages == ({"channels": 4, **options}, {"channels": 6, **options})
    assert Conv(image(1, 28, 28)).widths == (32, 64, 128)


def test_a_backbone_of_stages_is_written_down_and_built_again():
    text = "conv(stages=[{'channels': 4, 'pool': 2}, 6], up='upsample', padding_mode='reflect')"
    spine = backbones.build(PartSpec.parse(text), IMAGE)
    spec = json.loads(json.dumps(backbones.spec(spine).options))
    assert spec["stages"] == [{"channels": 4, "pool": 2}, 6]
    assert str(backbones.build(PartSpec("conv", spec), IMAGE)) == str(spine)


def test_a_convolution_reads_and_writes_pixels_where_they_stand():
    spine = Conv(image(1, 8, 8), channels=(4,))
    x = torch.zeros(1, 1, 8, 8, requires_grad=True)
    feature = spine.encode(x, None)[0].view(4, 4, 4)[:, 0, 0].sum()
    (reach,) = torch.autograd.grad(feature, x)
    assert reach[0, 0, 3:, 3:].abs().sum() == 0


@pytest.mark.parametrize("up", ["transpose", "upsample"])
def test_a_decoder_starts_at_a_constant(up):
    spine = Conv(image(2, 6, 6), stages=({"channels": 3, "bias": False, "pool": 2},), up=up)
    params = torch.cat([torch.full((36,), 0.3), torch.full((36,), -2.0)])
    assert spine.start_at(params)
    out = spine.decode(torch.zeros(1, spine.decoded), ())
    torch.testing.assert_close(out[0], params)


@pytest.mark.parametrize(("init", "spread"), [("auto", 1 / 3), ("he", 2), ("xavier", 2 / 1.25)])
def test_the_last_convolution_is_drawn_small_unless_said_otherwise(init, spread):
    torch.manual_seed(0)
    spine = Conv(image(16, 8, 8), stages=({"channels": 64, "kernel": 5},), init=init)
    last = spine.decoder[0][-1]
    assert float(last.weight.detach().var()) * 64 * 25 == pytest.approx(spread, rel=0.03)
    assert not last.bias.any()


# Residual stages, skips, attention


def test_a_residual_convolution_adds_its_input():
    torch.manual_seed(0)
    stages = ({"channels": 4, "repeat": 2, "residual": True, "norm": "layer", "pool": 2},)
    spine = Conv(image(1, 6, 6), stages=stages)
    first, norm, _, beside, _ = spine.encoder
    assert isinstance(beside, Residual)
    x = torch.rand(2, 1, 6, 6)
    h = F.relu(norm(first(x)))
    conv, norm, _ = beside.layers
    h = h + F.relu(norm(F.conv2d(h, conv.weight, conv.bias, padding=1)))
    torch.testing.assert_close(spine.encode(x, None)[0], F.max_pool2d(h, 2).flatten(1))
    ((_, beside, last),) = spine.decoder
    assert isinstance(beside, Residual)
    code = torch.rand(2, 4, 3, 3)
    h = F.interpolate(code, (6, 6))
    conv, norm, _ = beside.layers
    h = h + F.relu(norm(F.conv_transpose2d(h, conv.weight, conv.bias, padding=1)))
    torch.testing.assert_close(spine.decode(code.flatten(1), ()), last(h).flatten(1))


def test_skips_join_the_decoder_at_their_own_scale():
    torch.manual_seed(0)
    stages = ({"channels": 3, "pool": 2}, {"channels": 5, "pool": 2})
    spine = Conv(image(1, 9, 7), stages=stages, skips=True, activation="tanh")
    assert spine.skipping
    x = torch.rand(2, 1, 9, 7)
    h, (outer, inner) = spine.encode(x, None)
    one, two = (m for m in spine.encoder if isinstance(m, nn.Conv2d))
    a = torch.tanh(one(x))
    b = torch.tanh(two(F.max_pool2d(a, 2, ceil_mode=True)))
    torch.testing.assert_close(outer, a)
    torch.testing.assert_close(inner, b)
    torch.testing.assert_close(h, F.max_pool2d(b, 2, ceil_mode=True).flatten(1))
    three, four = (m for m in spine.decoder.modules() if isinstance(m, nn.ConvTranspose2d))
    assert (three.in_channels, four.in_channels) == (10, 6)
    up = F.interpolate(h.view(2, 5, 3, 2), scale_factor=2.0)[..., :5, :4]
    up = torch.tanh(three(torch.cat([up, b], 1)))
    up = F.interpolate(up, scale_factor=2.0)[..., :9, :7]
    expected = four(torch.cat([up, a], 1)).flatten(1)
    torch.testing.assert_close(spine.decode(h, (outer, inner)), expected)
    for moved in ((outer + 1, inner), (outer, inner + 1)):
        assert not torch.allclose(spine.decode(h, moved), expected)
    spine.decode(h.detach(), (outer, inner)).sum().backward()
    assert float(one.weight.grad.abs().sum()) > 0
    assert float(two.weight.grad.abs().sum()) > 0


def test_default_stages_with_skips_have_pooling():
    spine = Conv(image(1, 28, 28), skips=True)
    assert [(s.channels, s.pool, s.stride) for s in spine.described] == [
        (32, 2, 1), (64, 2, 1), (128, 2, 1)
    ]  # fmt: skip


@pytest.mark.parametrize("heads", [1, 2, 4])
def test_attention_is_a_softmax_over_all_positions(heads):
    torch.manual_seed(0)
    block = SelfAttention2d(8, heads).double()
    x = torch.randn(2, 8, 3, 5, dtype=torch.float64)
    assert torch.equal(block(x), x)
    nn.init.constant_(block.gamma, 0.5)
    expected = x.clone()
    for b in range(2):
        tokens = block.norm(x)[b].flatten(1).T
        q, k, v = (block.qkv(tokens)[:, 8 * i : 8 * i + 8] for i in range(3))
        found = []
        for head in range(heads):
            own = slice(head * 8 // heads, (head + 1) * 8 // heads)
            scores = q[:, own] @ k[:, own].T / (8 / heads) ** 0.5
            found.append(scores.exp() / scores.exp().sum(1, keepdim=True) @ v[:, own])
        expected[b] += 0.5 * block.out(torch.cat(found, 1)).T.view(8, 3, 5)
    torch.testing.assert_close(block(x), expected)


def test_attention_does_not_know_where_a_position_is():
    torch.manual_seed(0)
    block = SelfAttention2d(8, 2).double()
    nn.init.ones_(block.gamma)
    x = torch.randn(3, 8, 4, 4, dtype=torch.float64)
    moved = torch.randperm(16)
    shuffled = x.flatten(2)[..., moved].view_as(x)
    torch.testing.assert_close(block(shuffled).flatten(2), block(x).flatten(2)[..., moved])


def test_attention_stands_before_the_pooling_and_is_mirrored():
    spine = Conv(image(1, 8, 8), stages=({"channels": 4, "attention": 2, "pool": 2},))
    order = [type(m).__name__ for m in spine.encoder]
    assert order == ["Conv2d", "ReLU", "SelfAttention2d", "MaxPool2d"]
    order = [type(m).__name__ for m in spine.decoder[0]]
    assert order == ["Enlarge", "SelfAttention2d", "ConvTranspose2d"]


# Dense layers of a field's own, and fields that go one way


def test_dense_layers_of_a_field_are_those_of_a_dense_body():
    torch.manual_seed(0)
    hidden = (7, {"width": 6, "norm": "layer", "activation": "tanh"}, 5)
    spine = Dense(FLAT, hidden=hidden).double()
    body = Concat({"x": 5}, {"x": 5}, 2, 2).double()
    whole = Concat({"x": 3}, {"x": 3}, 2, 2, hidden=hidden).double()
    # The body's last linear map leads to the last width, where the backbone's activation waits.
    mine = (*spine.encoder, *body.down, *body.up, spine.enter, *spine.decoder)
    theirs = (*whole.down, *whole.up)
    kinds = [[type(m).__name__ for m in stack] for stack in (mine, theirs)]
    assert kinds[0] == kinds[1]
    for a, b in zip(mine, theirs, strict=True):
        b.load_state_dict(a.state_dict())
    x = torch.rand(4, 3).double()
    h, _ = spine.encode(x, None)
    code = body.encode({"x": h}, {})
    torch.testing.assert_close(code, whole.encode({"x": x}, {}))
    torch.testing.assert_close(spine.decode(body.decode(code)["x"], ()), whole.decode(code)["x"])


def test_dense_pairs_and_what_lies_outside():
    torch.manual_seed(0)
    spine = Dense(image(1, 4, 4), hidden=(9, 5), activation="tanh")
    first, second = spine.pairs
    assert [m.out_features for m in (first[0][0], second[0][0])] == [9, 5]
    assert [m.out_features for m in (first[1][0], second[1][0])] == [16, 9]
    x = torch.rand(3, 1, 4, 4)
    down, up = spine.encoder, spine.decoder
    h = torch.tanh(down[0](x.flatten(1)))
    torch.testing.assert_close(spine.outer(x, None, 1), up[-1](h))
    inner = torch.tanh(up[0](torch.tanh(down[2](h))))
    torch.testing.assert_close(spine.outer(x, None, 2), up[-1](inner))


def test_dense_layers_leave_what_other_fields_share_as_it_is():
    spine = Dense(FLAT, hidden=(4,))
    joined = torch.randn(3, 6, requires_grad=True)
    own, other = (joined * 1).split([4, 2], 1)
    before = own.clone()
    (spine.decode(own, ()).sum() + other.sum()).backward()
    assert torch.equal(own, before)


def test_dense_ways_back():
    spine = Dense(FLAT, hidden=(8, 6), mirror=(5, 7))
    assert (spine.encoded, spine.decoded, spine.pairs) == (6, 5, ())
    assert [m.out_features for m in spine.decoder if isinstance(m, nn.Linear)] == [7, 3]
    params = torch.tensor([1.0, 2.0, 3.0])
    assert spine.start_at(params)
    assert torch.equal(spine.decoder.last.bias, params)
    bare = Dense(FLAT, hidden=(8, 6), mirror=())
    assert (bare.encoded, bare.decoded, bare.pairs) == (6, 3, ())
    assert not bare.start_at(params)
    assert bare.decode(params, ()) is params
    masked = Dense(Geometry((3,), (1, 1, 1), 6, True), hidden=(8,))
    assert (masked.encoder[0].in_features, masked.decoder.last.out_features) == (6, 6)
    assert len(masked.pairs) == 1


def test_classes_are_looked_up_before_dense_layers():
    torch.manual_seed(0)
    spine = Dense(CLASSES, hidden=(6,), embed=3)
    assert (spine.encoder[0].in_features, spine.decoder.last.out_features) == (9, 9)
    assert (spine.pairs, spine.classes.table.shape) == ((), (12, 3))
    x = example(CLASSES)
    h, _ = spine.encode(x, None)
    torch.testing.assert_close(h, spine.encoder(spine.classes.encode(x, None)[0]))
    seen = torch.ones(4, 3, dtype=torch.bool)
    assert torch.equal(spine.encode(x, seen)[0], h)
    seen[0, 1] = False
    assert not torch.equal(spine.encode(x, seen)[0][0], h[0])
    single = Dense(Geometry((2,), (1, 1), 2, False))  # classes of a single level
    assert single.encode(torch.zeros(4, 2, dtype=torch.int64), None)[0].shape == (4, 64)


@pytest.mark.parametrize("name", READING)
@pytest.mark.parametrize("reads", [False, True])
def test_a_field_that_goes_one_way_has_layers_for_that_way_alone(name, reads):
    base = CASES[name]
    params = 0 if reads else base.params
    geometry = Geometry(base.shape, base.sizes, params, True, reads=reads, writes=not reads)
    spine, both = (backbones.build(PartSpec(name), g) for g in (geometry, base))
    assert (spine.pairs, spine.skipping) == ((), False)
    if reads:
        out, _ = spine.encode(example(base), None)
        assert out.shape == (4, spine.encoded)
    else:
        assert spine.decoded == both.decoded
        out = spine.decode(torch.randn(4, spine.decoded, requires_grad=True), ())
        assert out.shape == (4, base.params)
    if out.requires_grad:
        out.square().sum().backward()
    assert all(p.grad is not None for p in spine.parameters())


def test_classes_that_are_only_predicted_have_no_table():
    geometry = Geometry((3,), (2, 4, 3), 9, False, reads=False)
    spine = Dense(geometry, hidden=(6,))
    spine.decode(torch.randn(4, 6), ()).sum().backward()
    assert all(p.grad is not None for p in spine.parameters())
    assert count(spine) == 7 * 9


def test_skips_need_both_ways():
    for way in ("reads", "writes"):
        geometry = Geometry(IMAGE.shape, IMAGE.sizes, 108, False, **{way: False})
        with pytest.raises(InputError, match="only an input or only an output"):
            Conv(geometry, channels=(4,), skips=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hidden": ()}, "hidden is empty; .* backbone 'flat'"),
        ({"hidden": (8, 0)}, "hidden, stage 2: width is 0"),
        ({"mirror": (8, {"widht": 3})}, "mirror, stage 2: unknown option 'widht'"),
        ({"hidden": (8, {"width": 4, "residual": True})}, "hidden, stage 2 is residual"),
        ({"mirror": (8, {"width": 4, "residual": True})}, "mirror, stage 2 is residual"),
        ({"embed": 0}, "embed is 0; it must be 1 or more"),
        ({"activation": "gleu"}, "did you mean 'gelu'"),
    ],
)
@pytest.mark.parametrize("reads", [False, True])
def test_bad_dense_layers_are_sentences(options, message, reads):
    with pytest.raises(InputError, match=message):
        Dense(Geometry((3,), (1, 1, 1), 3, False, reads=reads), **options)


# Options


@pytest.mark.parametrize("activation", [*sorted(ACTIVATIONS), "none"])
@pytest.mark.parametrize("norm", ["none", "batch", "layer", "group", "weight"])
def test_convolutions_of_every_kind(activation, norm):
    spine = Conv(IMAGE, stages=(8, 4), activation=activation, norm=norm, dropout=0.1)
    kinds = {
        "batch": nn.BatchNorm2d, "layer": nn.GroupNorm, "group": nn.GroupNorm
    }  # fmt: skip
    norms = [m for m in spine.modules() if isinstance(m, kinds.get(norm, ()))]
    assert len(norms) == (3 if norm in kinds else 0)
    assert sum(hasattr(m, "parametrizations") for m in spine.modules()) == 3 * (norm == "weight")
    used = type(ACTIVATIONS["identity" if activation == "none" else activation]())
    assert sum(isinstance(m, used) for m in spine.modules()) == 3
    assert sum(isinstance(m, nn.Dropout2d) for m in spine.modules()) == 3
    h, _ = spine.encode(torch.rand(4, 2, 9, 6), None)
    spine.decode(h, ()).square().sum().backward()
    assert all(p.grad is not None for p in spine.parameters())


def test_weight_norm_gives_each_map_that_comes_out_a_length_of_its_own():
    spine = Conv(IMAGE, stages=(8, 4), norm="weight")
    lengths = [m.parametrizations.weight.original0.shape for m in spine.modules()
               if hasattr(m, "parametrizations")]  # fmt: skip
    assert lengths == [(8, 1, 1, 1), (4, 1, 1, 1), (1, 8, 1, 1)]


def test_layer_norm_of_maps_is_over_all_channels_and_positions():
    spine = Conv(IMAGE, stages=(8,), norm="layer", activation="none")
    h, _ = spine.encode(torch.rand(4, 2, 9, 6), None)
    torch.testing.assert_close(h.mean(1), torch.zeros(4), atol=1e-5, rtol=0)
    torch.testing.assert_close(h.var(1, correction=0), torch.ones(4), atol=1e-3, rtol=0)


POOLED = {"channels": 4, "pool": 4}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"down": "pol"}, "did you mean 'pool'"),
        ({"up": "upsampl"}, "did you mean 'upsample'"),
        ({"activation": "rulu"}, "did you mean 'relu'"),
        ({"norm": "bach"}, "did you mean 'batch'"),
        ({"init": "hee"}, "did you mean 'he'"),
        ({"padding_mode": "zero"}, "did you mean 'zeros'"),
        ({"dropout": 1.0}, r"dropout is 1.0; it must be a share"),
        ({"channels": (4, 0)}, "stage 2: channels is 0; it must be 1 or more"),
        ({"kernel": 0}, "stage 1: kernel is 0; it must be 1 or more"),
        ({"stages": (4,), "channels": (4,)}, "not both"),
        ({"stages": (4,), "kernel": 5}, "not both"),
        ({"stages": ()}, "stages is empty"),
        ({"stages": (4, {"channels": 4, "kernle": 5})}, "stage 2: .*did you mean 'kernel'"),
        ({"stages": ({"kernel": 5},)}, "stage 1: channels is missing"),
        ({"stages": (4, "wide")}, "stage 2: expected a whole number or options like"),
        ({"stages": ({"channels": 4, "kernel": -3},)}, "stage 1: kernel is -3"),
        ({"stages": ({"channels": 4, "kernel": 2.5},)}, "kernel is 2.5; it must be a whole"),
        ({"stages": ({"channels": 4, "padding": 3},)}, "padding is 3; .* from 0 to 2"),
        ({"stages": ({"channels": 4, "padding": "valid"},)}, "padding is 'valid'; it must be"),
        ({"stages": ({"channels": 4, "padding_mode": "mirror"},)}, "unknown padding mode 'mirror'"),
        ({"stages": ({"channels": 6, "attention": -1},)}, "attention is -1; it must be 0 or more"),
        ({"stages": ({"channels": 6, "attention": 4},)}, "6 channels do not part into 4 heads"),
        (
            {"stages": (4, {"channels": 4, "pool": 2}, {"channels": 4, "kernel": 5, "padding": 0})},
            r"stage 3 \(kernel 5, padding 0\) does not fit its input of 5x3",
        ),
        (
            {"stages": ({"channels": 4, "pool": 4}, {"channels": 4, "kernel": 3, "padding": 0})},
            r"stage 2 \(kernel 3, padding 0\) does not fit its input of 3x2",
        ),
        (
            {"stages": (POOLED, {"channels": 4, "kernel": 6}), "padding_mode": "reflect"},
            r"input of 3x2: to pad 3 pixels, 'reflect' needs 4 or more",
        ),
        (
            {"stages": (POOLED, {"channels": 4, "kernel": 6}), "padding_mode": "circular"},
            r"input of 3x2: to pad 3 pixels, 'circular' needs 3 or more",
        ),
        (
            {"stages": (POOLED, {"channels": 4, "kernel": 7})},
            "stage 2 has kernels of 7x7, and the images are 9x6; use kernels of at most 6",
        ),
        (
            {"stages": (4, {"channels": 8, "residual": True})},
            r"stage 2 is residual, but none .* \(4x9x6 to 8x9x6\).* set repeat=2",
        ),
        ({"stages": ({"channels": 4, "pool": 2}, 8), "skips": True}, "stage 2 has no pooling"),
        ({"up": "flat", "skips": True}, "skips=True needs a convolutional decoder"),
    ],
)  # fmt: skip
def test_bad_convolutions_are_sentences(options, message):
    with pytest.raises(InputError, match=message):
        Conv(IMAGE, **options)


def test_the_largest_padding_that_fits_is_taken():
    for mode, kernel in (("reflect", 3), ("circular", 5)):
        stages = (POOLED, {"channels": 2, "kernel": kernel})
        spine = Conv(IMAGE, stages=stages, padding_mode=mode)
        assert spine.encode(example(IMAGE), None)[0].shape == (4, 2 * 6)


def test_a_code_alone_does_not_feed_skips():
    spine = Conv(IMAGE, channels=(4,), skips=True)
    with pytest.raises(InputError, match="a code alone cannot be unfolded"):
        spine.decode(torch.zeros(2, spine.decoded), ())


def test_a_convolution_needs_an_image():
    with pytest.raises(InputError, match=r"need images.*shape \(3,\)"):
        Conv(FLAT)
    with pytest.raises(InputError, match="8 channels do not part into 3 heads"):
        SelfAttention2d(8, 3)
    with pytest.raises(InputError, match="did you mean 'gelu'"):
        Mlp(3, (2,), activation="gleu")
