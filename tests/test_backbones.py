"""Backbones and the dense stack: shapes, gradients, masks."""

import pytest
import torch

from refold.backbones import ACTIVATIONS, Conv, Mlp, backbones
from refold.backbones.base import Geometry
from refold.errors import InputError
from refold.parts import PartSpec

FLAT = Geometry((3,), (1, 1, 1), 3, False)
CLASSES = Geometry((3,), (2, 4, 3), 9, False)
IMAGE = Geometry((2, 9, 6), (1,) * 108, 108, False)
CASES = {"flat": FLAT, "embed": CLASSES, "conv": IMAGE}


def example(geometry, rows=4):
    if max(geometry.sizes) > 1:
        return torch.stack([torch.randint(n, (rows,)) for n in geometry.sizes], 1)
    return torch.rand(rows, *geometry.shape)


@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("name", sorted(backbones))
def test_shapes_gradients_and_rows(name, missing):
    torch.manual_seed(0)
    base = CASES[name]
    geometry = Geometry(base.shape, base.sizes, base.params, missing)
    spine = backbones.build(PartSpec(name), geometry)
    x = example(geometry)
    seen = torch.rand(4, len(geometry.sizes)) > 0.3 if missing else None
    h = spine.encode(x, seen)
    assert h.shape == (4, spine.encoded)
    params = spine.decode(torch.randn(4, spine.decoded, requires_grad=True))
    assert params.shape == (4, geometry.params)
    (h.square().sum() + params.square().sum()).backward()
    for key, parameter in spine.named_parameters():
        assert parameter.grad is not None, key
        assert torch.isfinite(parameter.grad).all(), key
    alone = spine.encode(x[1:2], None if seen is None else seen[1:2])
    torch.testing.assert_close(alone[0], h[1])


@pytest.mark.parametrize("name", sorted(backbones))
def test_the_mask_tells_the_encoder(name):
    base = CASES[name]
    spine = backbones.build(PartSpec(name), Geometry(base.shape, base.sizes, base.params, True))
    x, seen = example(base), torch.ones(4, len(base.sizes), dtype=torch.bool)
    hidden = seen.clone()
    hidden[:, 0] = False
    assert torch.equal(spine.encode(x, None), spine.encode(x, seen))
    assert not torch.equal(spine.encode(x, hidden), spine.encode(x, seen))


@pytest.mark.parametrize("up", ["transpose", "upsample"])
@pytest.mark.parametrize("down", ["stride", "pool"])
@pytest.mark.parametrize("side", [(4, 4), (5, 7), (28, 28), (29, 17), (4, 31)])
def test_convolutions_restore_any_size(side, down, up):
    geometry = Geometry((1, *side), (1,) * (side[0] * side[1]), side[0] * side[1], False)
    spine = Conv(geometry, channels=(4, 6), repeat=2, down=down, up=up, norm="batch")
    h = spine.encode(torch.rand(2, 1, *side), None)
    assert h.shape == (2, spine.encoded)
    assert spine.decode(h).shape == (2, side[0] * side[1])


def test_a_convolution_reads_and_writes_pixels_where_they_stand():
    spine = Conv(Geometry((1, 8, 8), (1,) * 64, 64, False), channels=(4,))
    x = torch.zeros(1, 1, 8, 8, requires_grad=True)
    feature = spine.encode(x, None).view(4, 4, 4)[:, 0, 0].sum()
    (reach,) = torch.autograd.grad(feature, x)
    assert reach[0, 0, 3:, 3:].abs().sum() == 0


@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
@pytest.mark.parametrize("norm", ["none", "batch", "layer", "group", "weight"])
def test_dense_stacks_of_every_kind(activation, norm):
    stack = Mlp(5, (8, 4), activation=activation, norm=norm, dropout=0.1)
    assert stack.outputs == 4
    out = stack(torch.randn(6, 5))
    assert out.shape == (6, 4)
    out.square().sum().backward()
    assert all(p.grad is not None for p in stack.parameters())


def test_the_widths_of_a_deep_encoder_are_one_line():
    linears = [m for m in Mlp(784, (128, 64, 12, 3)) if isinstance(m, torch.nn.Linear)]
    assert [(m.in_features, m.out_features) for m in linears] == [
        (784, 128), (128, 64), (64, 12), (12, 3)
    ]  # fmt: skip


@pytest.mark.parametrize("activation", ["relu", "selu", "tanh"])
def test_initialisation_keeps_the_size_of_signals(activation):
    torch.manual_seed(0)
    out = Mlp(256, (256,) * 6, activation=activation)(torch.randn(512, 256))
    assert 0.1 < float(out.detach().std()) < 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"down": "pol"}, "did you mean 'pool'"),
        ({"kernel": 4}, "must be odd"),
        ({"activation": "rulu"}, "did you mean 'relu'"),
        ({"norm": "layer"}, "norm of a convolution"),
    ],
)
def test_bad_convolutions_are_sentences(options, message):
    with pytest.raises(InputError, match=message):
        Conv(IMAGE, **options)
    with pytest.raises(InputError, match="did you mean 'gelu'"):
        Mlp(3, (2,), activation="gleu")
