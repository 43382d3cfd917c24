"""The aids for whoever doubts a model must notice what they are for."""

import math

import numpy as np
import pytest
import torch
from torch import nn

import refold
from refold.errors import InputError
from refold.latents import Discrete, Latent, latents
from refold.training.checks import (
    check_gradients,
    dead_units,
    first_broken_layer,
    gradient_norms,
    overfit_one_batch,
)


class Wrong(torch.autograd.Function):
    """Squares, and claims the derivative of a cube."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.square()

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return 3 * x.square() * grad


def fitted(**options):
    r = np.random.default_rng(0)
    X = r.normal(size=(200, 3)) @ r.normal(size=(3, 8)) + 0.1 * r.normal(size=(200, 8))
    ae = refold.Autoencoder(**{"latent": 2, "hidden": (16,), "epochs": 2, **options}).fit(X)
    return ae, ae.schema_.encode(ae._read(X))[0]


STRAIGHT = [k for k in latents if not issubclass(latents[k], Discrete) and k != "jumprelu"]


@pytest.mark.parametrize("name", STRAIGHT)  # of the others gradients are no slopes
def test_gradients_of_every_latent_are_right(name):
    part = latents[name](6)
    assert isinstance(part, Latent)
    torch.manual_seed(1)
    assert check_gradients(part, torch.randn(5, part.width)) < 1e-4


def test_a_wrong_gradient_is_named():
    class Part(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.tensor([2.0]))

        def forward(self, x):
            return x + Wrong.apply(self.scale)

    with pytest.raises(InputError, match="gradient with respect to scale is wrong"):
        check_gradients(Part(), torch.randn(3))
    with pytest.raises(InputError, match="gradient with respect to input 0 is wrong"):
        check_gradients(lambda x: x * x.detach(), torch.randn(3))
    assert check_gradients(lambda x: x * x, torch.randn(3)) < 1e-6


def test_random_parts_draw_the_same_in_every_call_and_leave_the_generator():
    state = torch.get_rng_state()
    assert check_gradients(nn.Dropout(0.5), torch.randn(4, 4)) < 1e-6
    torch.set_rng_state(state)
    first = torch.rand(3)
    torch.set_rng_state(state)
    check_gradients(nn.Tanh(), torch.ones(2))
    assert torch.equal(torch.rand(3), first)


def test_gradient_norms_are_in_the_history_by_layer():
    ae, rows = fitted()
    names = {k for k in ae.history_[-1] if k.startswith("grad_")}
    assert names == {
        f"grad_fusion.{k}" for k in ("down.0", "down.2", "up.0", "up.2", "linear_down", "linear_up")
    }
    assert not any(k.startswith("grad_") for k in ae.history_[0])
    ae.model_(rows).loss.backward()
    layer = ae.model_.fusion.down[0]
    expected = math.hypot(float(layer.weight.grad.norm()), float(layer.bias.grad.norm()))
    assert gradient_norms(ae.model_)["fusion.down.0"] == pytest.approx(expected, rel=1e-5)


def test_dead_units_are_counted_by_layer_and_in_the_history():
    ae, rows = fitted(latent="topk(size=8, k=2)", recipe="sparse")
    assert ae.history_[-1]["dead_units"] >= 0
    layer = ae.model_.fusion.down[0]
    with torch.no_grad():
        layer.weight[:5].zero_()
        layer.bias[:5].fill_(-1.0)
        ae.model_.fusion.down[-1].weight[3].zero_()
        ae.model_.fusion.down[-1].bias[3] = -1e6
    counted = dead_units(ae.model_, rows)
    z = ae.model_(rows).code.z
    assert counted["fusion.down.1"] == 5
    assert counted["latent"] == int((z == z[:1]).all(0).sum()) >= 1


def test_the_first_layer_that_breaks_is_named():
    ae, rows = fitted()
    assert first_broken_layer(ae.model_, rows) is None
    with torch.no_grad():
        ae.model_.fusion.up[0].weight[0, 0] = float("nan")
    assert first_broken_layer(ae.model_, rows) == "fusion.up.0"


def test_a_run_that_leaves_the_range_names_field_and_layer():
    r = np.random.default_rng(0)
    X = {"good": r.normal(size=(300, 4)), "bad": r.normal(size=(300, 3))}
    ae = refold.Autoencoder(2, hidden=(8,), optimizer="sgd", lr=1e18, epochs=3)
    with pytest.raises(InputError, match=r"step \d+, in the cost of 'good'.*first in layer fusion"):
        ae.fit(X)


def test_one_batch_is_learnt_by_heart_unless_something_is_broken():
    ae, rows = fitted(latent="plain(size=4)", recipe="sparse", hidden=(64,), epochs=0)
    few = rows.rows(slice(0, 4))
    before = {k: v.clone() for k, v in ae.model_.state_dict().items()}
    learnt = overfit_one_batch(ae.model_, few)
    assert learnt.share < 0.02
    assert all(torch.equal(v, before[k]) for k, v in ae.model_.state_dict().items())
    broken = overfit_one_batch(ae.model_, few, lr=0.0)
    assert broken.share == pytest.approx(1.0)
