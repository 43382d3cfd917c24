"""Layers described: widths, stages, their mirror, and the bodies built from them."""

import json

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from refold.backbones import ACTIVATIONS, Conv, DenseStage, Mlp, Residual
from refold.backbones.base import Geometry
from refold.backbones.layers import initialise
from refold.backbones.mlp import mirrored
from refold.backbones.stages import ConvStage, plain, read
from refold.errors import InputError
from refold.fusion import Concat, Direct, fusions
from refold.parts import PartSpec


def sizes(module):
    linears = [m for m in module.modules() if isinstance(m, nn.Linear)]
    return [(m.in_features, m.out_features) for m in linears]


def count(module):
    return sum(p.numel() for p in module.parameters())


def body(**options):
    return fusions.build(PartSpec("concat", options), {"x": 784}, {"x": 784}, 3, 3)


# The networks that were asked for, a line each


def test_784_128_64_12_3_and_back():
    deep = Concat({"x": 784}, {"x": 784}, 3, 3, hidden=(128, 64, 12))
    assert sizes(deep.down) == [(784, 128), (128, 64), (64, 12), (12, 3)]
    assert sizes(deep.up) == [(3, 12), (12, 64), (64, 128), (128, 784)]
    assert count(deep.down) == 785 * 128 + 129 * 64 + 65 * 12 + 13 * 3
    assert count(deep.up) == 4 * 12 + 13 * 64 + 65 * 128 + 129 * 784
    assert [type(m).__name__ for m in deep.down] == ["Linear", "ReLU"] * 3 + ["Linear"]


def test_784_64_with_leaky_relu():
    torch.manual_seed(0)
    one = Mlp(784, (64,), activation="leaky_relu")
    assert count(one) == 785 * 64
    x = torch.randn(5, 784)
    torch.testing.assert_close(one(x), F.leaky_relu(one[0](x), 0.01))


def test_plain_widths_draw_the_weights_they_always_drew():
    torch.manual_seed(3)
    stack = Mlp(6, (5, 4), final=2)
    torch.manual_seed(3)
    for i, (a, b) in ((0, (6, 5)), (2, (5, 4))):
        linear = nn.Linear(a, b)
        nn.init.kaiming_normal_(linear.weight, nonlinearity="relu")
        assert torch.equal(linear.weight, stack[i].weight)
        assert not stack[i].bias.any()
    last = nn.Linear(4, 2)
    assert torch.equal(last.weight, stack.last.weight)
    assert torch.equal(last.bias, stack.last.bias)


# Stages


def test_a_stage_says_only_what_differs():
    stack = Mlp(
        9,
        (8, {"width": 6, "repeat": 2, "norm": "batch", "bias": False}, DenseStage(4, dropout=0.2)),
        activation="gelu",
        dropout=0.5,
    )
    kinds = [type(m).__name__ for m in stack]
    assert kinds == [
        "Linear", "GELU", "Dropout",
        "Linear", "BatchNorm1d", "GELU", "Dropout",
        "Linear", "BatchNorm1d", "GELU", "Dropout",
        "Linear", "GELU", "Dropout",
    ]  # fmt: skip
    assert [m.bias is None for m in stack if isinstance(m, nn.Linear)] == [0, 1, 1, 0]
    assert [m.p for m in stack if isinstance(m, nn.Dropout)] == [0.5, 0.5, 0.5, 0.2]
    assert [layer.width for layer in stack.layers] == [8, 6, 6, 4]


def test_a_stage_can_do_without_what_the_rest_has():
    stage = {"width": 8, "dropout": 0.0, "norm": "none"}
    kinds = [type(m).__name__ for m in Mlp(5, (stage,), dropout=0.5, norm="batch")]
    assert kinds == ["Linear", "ReLU"]


def test_no_activation_is_none_and_identity():
    torch.manual_seed(0)
    x = torch.randn(3, 4)
    for name in ("none", "identity"):
        stack = Mlp(4, ({"width": 2, "activation": name},))
        torch.testing.assert_close(stack(x), x @ stack[0].weight.T)


def test_a_residual_layer_adds_its_input():
    torch.manual_seed(0)
    stage = {"width": 8, "repeat": 2, "residual": True, "norm": "layer", "dropout": 0.3}
    stack = Mlp(5, (stage,)).eval()
    assert [layer.residual for layer in stack.layers] == [False, True]
    first, norm, _, _, beside = stack
    assert isinstance(beside, Residual)
    assert [type(m).__name__ for m in beside.layers] == ["Linear", "LayerNorm", "ReLU", "Dropout"]
    x = torch.randn(3, 5)
    h = F.relu(norm(first(x)))
    again = F.layer_norm(h @ beside.layers[0].weight.T + beside.layers[0].bias, (8,))
    torch.testing.assert_close(stack(x), h + F.relu(again))
    assert isinstance(Mlp(8, ({"width": 8, "residual": True},))[0], Residual)


def test_the_mirror_has_the_same_layers_in_reverse():
    options = {"width": 8, "repeat": 2, "residual": True, "activation": "tanh", "norm": "batch"}
    whole = body(hidden=(16, options, 4))
    there, back = whole.down, whole.up
    assert sizes(there) == [(784, 16), (16, 8), (8, 8), (8, 4), (4, 3)]
    assert sizes(back) == [(3, 4), (4, 8), (8, 8), (8, 16), (16, 784)]
    kinds = [type(m).__name__ for m in back]
    assert kinds == [
        "Linear", "ReLU", "Linear", "BatchNorm1d", "Tanh", "Residual", "Linear", "ReLU", "Linear"
    ]  # fmt: skip
    assert [(sizes(a), sizes(b)) for a, b in whole.pairs] == [
        ([(m, n)], [(n, m)]) for m, n in sizes(there)
    ]


def test_the_outer_layers_work_without_the_inner():
    torch.manual_seed(0)
    whole = Concat({"a": 4, "b": 2}, {"a": 4, "b": 2}, 2, 2, hidden=(5, 3), activation="tanh")
    a, b = torch.rand(7, 4), torch.rand(7, 2)
    down, up = whole.down, whole.up
    h = torch.tanh(down[0](torch.cat([a, b], 1)))
    expected = up[-1](h)
    one = whole.outer({"a": a, "b": b}, 1)
    torch.testing.assert_close(torch.cat([one["a"], one["b"]], 1), expected)
    h = torch.tanh(up[2](torch.tanh(down[2](h))))
    two = whole.outer({"a": a, "b": b}, 2)
    torch.testing.assert_close(two["b"], up[-1](h)[:, 4:])


def test_a_decoder_of_other_widths_has_no_pairs():
    assert body(hidden=(64,), mirror=(32,)).pairs == ()
    assert body(hidden=(64, 32), mirror=(64,)).pairs == ()
    assert len(body(hidden=(64, 32), mirror=(32, {"width": 64, "norm": "layer"})).pairs) == 3


def test_a_skip_moves_with_the_map_between_two_widths():
    there = Mlp(5, (8, {"width": 8, "residual": True, "activation": "tanh"}, 8)).layers
    assert [layer.residual for layer in there] == [False, True, False]
    back = mirrored(there)
    # 8 to 8, the middle map of three, is the middle one on the way back from the code as well.
    assert [layer.residual for layer in back] == [False, False, True]
    assert [layer.activation for layer in back] == [None, "tanh", None]


def test_a_body_without_layers_is_linear():
    whole = body()
    assert (sizes(whole.down), sizes(whole.up)) == ([(784, 3)], [(3, 784)])
    assert not whole.linear_path().beside


def test_a_mirror_of_its_own():
    whole = body(hidden=(64,), mirror=({"width": 32, "repeat": 2}, 128))
    assert sizes(whole.up) == [(3, 32), (32, 32), (32, 128), (128, 784)]


def test_a_body_of_stages_is_written_to_json_and_read_back():
    stages = (128, DenseStage(64, repeat=2, norm="batch"), {"width": 8, "residual": False})
    whole = body(hidden=(64, {"width": 32, "repeat": 2}))
    assert fusions.spec(Concat({"x": 4}, {"x": 4}, 2, 2, hidden=stages)).options["hidden"] == (
        128, {"width": 64, "repeat": 2, "norm": "batch"}, {"width": 8, "residual": False}
    )  # fmt: skip
    options = json.loads(json.dumps(fusions.spec(whole).options))
    again = body(**options)
    assert str(again) == str(whole)
    text = "concat(hidden=[64, {'width': 32, 'repeat': 2}])"
    assert str(fusions.build(PartSpec.parse(text), {"x": 784}, {"x": 784}, 3, 3)) == str(whole)


def test_stages_read_back_as_written():
    for kind, stage in (
        (DenseStage, DenseStage(8, repeat=3, activation="none", dropout=0.0, bias=False)),
        (ConvStage, ConvStage(8, padding=0, pool=2, attention=4, padding_mode="reflect")),
    ):
        assert read(kind, json.loads(json.dumps(plain([stage])))) == (stage,)


@pytest.mark.parametrize(
    ("widths", "message"),
    [
        ((64, 0), "stage 2: width is 0; it must be 1 or more"),
        ((-3,), "stage 1: width is -3"),
        ((True,), "stage 1: expected a whole number or options like {'width': 64"),
        ((8, None), "stage 2: expected a whole number"),
        (({"widht": 8},), "stage 1: unknown option 'widht'; did you mean 'width'"),
        (({"repeat": 2},), "stage 1: width is missing"),
        (({"width": "8"},), "stage 1: width is '8'; it must be a whole number"),
        (({"width": 8, "repeat": 0},), "stage 1: repeat is 0"),
        (({"width": 8, "bias": 1},), "stage 1: bias is 1; it must be True or False"),
        (({"width": 8, "dropout": 1.5},), "stage 1: dropout is 1.5; it must be a share from 0"),
        (({"width": 8, "activation": "gleu"},), "stage 1: .*did you mean 'gelu'"),
        (({"width": 8, "norm": "lyer"},), "stage 1: .*did you mean 'layer'"),
        (({"width": 8, "init": "xavir"},), "stage 1: .*did you mean 'xavier'"),
        (({"width": 8, "kernel": 3},), "stage 1: unknown option 'kernel'"),
        (
            (64, {"width": 32, "residual": True}),
            "stage 2 is residual, but its one layer goes from 64 to 32 .* set repeat=2",
        ),
    ],
)
def test_bad_stages_are_sentences(widths, message):
    with pytest.raises(InputError, match=message):
        Mlp(16, widths)
    with pytest.raises(InputError, match=message):
        Concat({"x": 16}, {"x": 16}, 2, 2, hidden=widths)


def test_a_stage_checks_itself():
    with pytest.raises(InputError, match="width is 0"):
        DenseStage(0)
    with pytest.raises(InputError, match="padding is 5"):
        ConvStage(4, padding=5)
    with pytest.raises(InputError, match="stage 1: expected a whole number"):
        Mlp(3, (ConvStage(4),))


# What follows the weights, and how they are drawn


@pytest.mark.parametrize("activation", [*sorted(ACTIVATIONS), "none"])
@pytest.mark.parametrize("norm", ["none", "batch", "layer", "group", "weight"])
def test_dense_stacks_of_every_kind(activation, norm):
    torch.manual_seed(0)
    stack = Mlp(5, (8, 4), activation=activation, norm=norm, dropout=0.1)
    assert stack.outputs == 4
    out = stack(torch.randn(6, 5))
    assert out.shape == (6, 4)
    out.square().sum().backward()
    assert all(p.grad is not None for p in stack.parameters())


@pytest.mark.parametrize("width", [2, 4, 8, 16, 20])
def test_group_norm_leaves_something_of_every_width(width):
    torch.manual_seed(0)
    out = Mlp(5, (width,), norm="group", activation="none")(torch.randn(50, 5)).detach()
    groups = next(m for m in Mlp(5, (width,), norm="group") if isinstance(m, nn.GroupNorm))
    parted = out.view(50, groups.num_groups, -1)
    torch.testing.assert_close(
        parted.mean(2), torch.zeros(50, groups.num_groups), atol=1e-5, rtol=0
    )
    assert parted.shape[2] >= min(width, 4)
    assert float(out.std()) > 0.5


@pytest.mark.parametrize("activation", ["relu", "selu", "tanh"])
def test_initialisation_keeps_the_size_of_signals(activation):
    torch.manual_seed(0)
    out = Mlp(256, (256,) * 6, activation=activation)(torch.randn(512, 256))
    assert 0.1 < float(out.detach().std()) < 3


@pytest.mark.parametrize(
    ("init", "activation", "variance"),
    [
        ("xavier", "relu", 2 / (40 + 60)),
        ("he", "tanh", 2 / 40),
        ("auto", "relu", 2 / 40),
        ("auto", "leaky_relu", 2 / 40),
        ("auto", "selu", 1 / 40),
        ("auto", "tanh", 2 / (40 + 60)),
    ],
)
def test_weights_are_drawn_with_the_variance_of_their_rule(init, activation, variance):
    torch.manual_seed(0)
    linear = nn.Linear(400, 600)
    initialise(linear, init, activation)
    assert float(linear.weight.detach().var()) == pytest.approx(variance / 10, rel=0.02)
    conv = nn.Conv2d(40, 60, 5)
    initialise(conv, init, activation)
    assert float(conv.weight.detach().var()) == pytest.approx(variance / 25, rel=0.03)
    assert not conv.bias.any()


@pytest.mark.parametrize("stride", [1, 2, 3])
def test_a_transposed_convolution_keeps_the_size_of_signals(stride):
    torch.manual_seed(0)
    layer = nn.ConvTranspose2d(64, 16, 6, stride)
    initialise(layer, "he", "relu")
    h = F.relu(torch.randn(8, 64, 12, 12))
    inner = layer(h).detach()[..., 6:-6, 6:-6]
    # He's rule: the mean square of what comes out is twice that of rectified numbers going in.
    assert float(inner.square().mean() / h.square().mean()) == pytest.approx(2, rel=0.1)


def test_orthogonal_weights_are_orthogonal():
    geometry = Geometry((1, 6, 6), (1,) * 36, 36, False)
    spine = Conv(geometry, stages=({"channels": 4, "init": "orthogonal", "activation": "tanh"},))
    weight = spine.encoder[0].weight.flatten(1)
    torch.testing.assert_close(weight @ weight.T, torch.eye(4))
    dense = Mlp(6, (4,), init="orthogonal", activation="tanh")[0].weight
    torch.testing.assert_close(dense @ dense.T, torch.eye(4))


# The fusion without layers


def test_direct_is_the_hidden_states_side_by_side():
    fusion = Direct({"a": 2, "b": 3}, {"a": 2, "b": 1}, 5, 3)
    a, b = torch.rand(4, 2), torch.rand(4, 3)
    assert torch.equal(fusion.encode({"b": b, "a": a}, {}), torch.cat([a, b], 1))
    fusion.last_bias().copy_(torch.tensor([1.0, 2.0, 3.0]))
    parts = fusion.decode(torch.zeros(4, 3))
    assert parts["a"].tolist() == [[1.0, 2.0]] * 4
    assert parts["b"].tolist() == [[3.0]] * 4
    assert (fusion.pairs, fusion.linear_path(), list(fusion.parameters())) == ((), None, [])


def test_direct_refuses_a_code_of_another_size():
    with pytest.raises(InputError, match=r"give 8 numbers where the latent takes 5.*take 8 where"):
        fusions.build(PartSpec("direct"), {"x": 8}, {"x": 8}, 5, 5)
