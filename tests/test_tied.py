"""Tied weights: one parameter, two uses, on any torch modules."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

import refold
from refold.backbones.tied import matching, tie, tie_pairs, ties, untie
from refold.errors import InputError


class Nested(nn.Module):
    """Layers as attributes and deeper down, under names that say nothing."""

    def __init__(self, *widths, bias=True):
        super().__init__()
        self.first = nn.Linear(*widths[:2], bias=bias)
        self.rest = nn.ModuleDict(
            {"a": nn.Sequential(nn.Tanh(), nn.Linear(*widths[1:], bias=bias))}
        )

    def forward(self, x):
        return self.rest["a"](self.first(x))


class Net(nn.Module):
    def __init__(self, bias=True):
        super().__init__()
        self.enc = Nested(7, 5, 3, bias=bias)
        self.dec = Nested(3, 5, 7, bias=bias)

    def forward(self, x):
        return self.dec(self.enc(x))


@pytest.mark.parametrize("bias", [True, False])
def test_a_tied_layer_is_the_transpose_and_both_uses_send_their_gradient(bias):
    torch.manual_seed(0)
    net = Net(bias).double()
    assert matching(net.enc, net.dec) == [("first", "rest.a.1"), ("rest.a.1", "first")]
    tie(net.enc, net.dec)
    x = torch.randn(11, 7, dtype=torch.float64)
    w, v = net.enc.first.weight, net.enc.rest["a"][1].weight
    b = [m.bias if bias else 0.0 for m in (net.enc.first, net.enc.rest["a"][1])]
    c = [m.bias if bias else 0.0 for m in (net.dec.first, net.dec.rest["a"][1])]
    free = [w.detach().clone().requires_grad_(), v.detach().clone().requires_grad_()]
    back = [free[0].detach().clone().requires_grad_(), free[1].detach().clone().requires_grad_()]
    code = torch.tanh(x @ free[0].T + b[0]) @ free[1].T + b[1]
    expected = torch.tanh(code @ back[1] + c[0]) @ back[0] + c[1]
    torch.testing.assert_close(net(x), expected)
    net(x).square().sum().backward()
    expected.square().sum().backward()
    torch.testing.assert_close(w.grad, free[0].grad + back[0].grad)
    torch.testing.assert_close(v.grad, free[1].grad + back[1].grad)


def test_parameters_appear_once_in_the_list_and_in_the_state():
    net = Net()
    before = len(list(net.parameters()))
    tie(net.enc, net.dec)
    assert len(list(net.parameters())) == len(set(net.parameters())) == before - 2
    assert "dec.first.weight" not in net.state_dict()
    assert ties(net) == (("enc.rest.a.1", "dec.first"), ("enc.first", "dec.rest.a.1"))
    again = Net()
    tie_pairs(again, ties(net))
    again.load_state_dict(net.state_dict())
    x = torch.randn(4, 7)
    assert torch.equal(again(x), net(x))


def test_a_copy_and_a_move_to_another_type_keep_the_tie():
    net = Net()
    tie(net.enc, net.dec)
    twin = copy.deepcopy(net).double()
    assert twin.dec.first.source[0] is twin.enc.rest["a"][1]
    with torch.no_grad():
        twin.enc.rest["a"][1].weight.add_(1.0)
    assert torch.equal(twin.dec.first.weight, twin.enc.rest["a"][1].weight.t())
    assert not torch.equal(net.dec.first.weight.double(), twin.dec.first.weight)


@pytest.mark.parametrize("rows", [1, 3, 64, 500])
def test_untying_keeps_the_outputs_to_the_bit_and_frees_the_weight(rows):
    torch.manual_seed(0)
    net = Net()
    tie(net.enc, net.dec)
    x = torch.randn(rows, 7)
    bias = net.dec.first.bias.detach().clone()
    before = net(x)
    untie(net)
    assert torch.equal(net(x), before)
    assert torch.equal(net.dec.first.bias, bias)
    assert type(net.dec.first) is nn.Linear
    with torch.no_grad():
        net.enc.first.weight.zero_()
    assert net.dec.rest["a"][1].weight.abs().sum() > 0
    assert [n for n, _ in net.dec.first.named_parameters()] == ["weight", "bias"]


def test_untying_keeps_what_is_frozen():
    net = Net()
    tie(net.enc, net.dec)
    net.enc.first.weight.requires_grad_(False)
    net.dec.first.bias.requires_grad_(False)
    untie(net)
    frozen = {n for n, p in net.named_parameters() if not p.requires_grad}
    assert frozen == {"enc.first.weight", "dec.rest.a.1.weight", "dec.first.bias"}


def test_any_subset_can_be_tied_and_untied():
    net = Net()
    tie(net.enc, net.dec, layers=[1])
    assert ties(net) == (("enc.rest.a.1", "dec.first"),)
    tie(net.enc, net.dec, layers=[0])
    untie(net.dec, ["first"])
    assert ties(net) == (("enc.first", "dec.rest.a.1"),)
    with pytest.raises(InputError, match=r"'first' is not tied; tied are: rest.a.1"):
        untie(net.dec, ["first"])
    with pytest.raises(InputError, match="no pair 2 to tie; pairs count from 0"):
        tie(net.enc, net.dec, layers=[2])


def test_a_tied_convolution_is_the_adjoint():
    torch.manual_seed(0)
    down = nn.Conv2d(2, 5, 4, stride=3, padding=1, bias=False).double()
    up = nn.ConvTranspose2d(5, 2, 4, stride=3, padding=1, bias=False).double()
    tie(down, up)
    x = torch.randn(3, 2, 11, 11, dtype=torch.float64)
    y = torch.randn_like(down(x))
    torch.testing.assert_close((down(x) * y).sum(), (x * up(y)).sum())
    before = up(y)
    untie(up)
    assert torch.equal(up(y), before)


def test_a_convolution_tied_to_a_convolution_is_its_adjoint_too():
    torch.manual_seed(0)
    down = nn.Conv2d(2, 5, 3, padding=1, bias=False).double()
    up = nn.Conv2d(5, 2, 3, padding=1, bias=False).double()
    tie(down, up)
    x = torch.randn(3, 2, 6, 7, dtype=torch.float64)
    y = torch.randn_like(down(x))
    torch.testing.assert_close((down(x) * y).sum(), (x * up(y)).sum())


@pytest.mark.parametrize(
    ("encoder", "decoder", "message"),
    [
        (nn.Linear(4, 2), nn.Linear(3, 4), "weights are 3 to 4 and 4 to 2"),
        (nn.Sequential(nn.Linear(4, 2), nn.Linear(2, 1)), nn.Linear(2, 4), "2 layers of the enc"),
        (nn.Conv2d(1, 2, 3), nn.ConvTranspose2d(2, 1, 5), "2 to 1 by 5x5 and 1 to 2 by 3x3"),
        (nn.Conv2d(1, 2, 3, 2), nn.ConvTranspose2d(2, 1, 3), "strides"),
        (nn.Linear(4, 2), nn.ConvTranspose2d(2, 4, 1), "linear layers tie to linear ones"),
        (nn.ReLU(), nn.ReLU(), "nothing to tie"),
        (nn.Conv2d(2, 2, 3, groups=2), nn.ConvTranspose2d(2, 2, 3, groups=2), "mirrors|grouped"),
    ],
)
def test_what_cannot_be_tied_is_a_sentence_and_changes_nothing(encoder, decoder, message):
    kept = {k: v.clone() for k, v in decoder.state_dict().items()}
    with pytest.raises(InputError, match=message):
        tie(encoder, decoder)
    assert {k: v.shape for k, v in decoder.state_dict().items()} == {
        k: v.shape for k, v in kept.items()
    }
    assert ties(nn.ModuleList([encoder, decoder])) == ()


def rows(n=120):
    r = np.random.default_rng(0)
    return r.normal(size=(n, 3)) @ r.normal(size=(3, 8)) + 0.1 * r.normal(size=(n, 8))


def test_ties_of_an_estimator_survive_saving_and_untying_survives_too(tmp_path):
    X = rows()
    ae = refold.Autoencoder(2, hidden=(6, 4), tied=True, epochs=2).fit(X)
    assert len(ties(ae.model_)) == 3
    ae.save(tmp_path / "m")
    again = refold.load(tmp_path / "m")
    assert ties(again.model_) == ties(ae.model_) == ae.spec_.ties
    assert np.array_equal(again.reconstruct(X), ae.reconstruct(X))
    before = ae.reconstruct(X)
    untie(ae.model_)
    assert np.array_equal(ae.reconstruct(X), before)
    ae.save(tmp_path / "m")
    free = refold.load(tmp_path / "m")
    assert ties(free.model_) == ()
    assert np.array_equal(free.reconstruct(X), before)


def test_training_keeps_a_tie_exact():
    ae = refold.Autoencoder(2, hidden=(6,), tied=True, epochs=3).fit(rows())
    for mine, other in ties(ae.model_):
        a, b = (ae.model_.get_submodule(k) for k in (mine, other))
        assert torch.equal(a.weight.t(), b.weight)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"latent": "gaussian(size=2)"}, "2 to 6 and 6 to 4, which are not mirrors"),
        ({"latent": 2, "fusion": "concat(mirror=(6, 6))"}, "do not mirror"),
        ({"latent": 2, "tied": "always"}, "expected True, False or 'pretrain'"),
    ],
)
def test_an_estimator_says_why_it_cannot_tie(options, message):
    with pytest.raises(InputError, match=message):
        refold.Autoencoder(**{"hidden": (6,), "tied": True, "epochs": 1, **options}).fit(rows())
