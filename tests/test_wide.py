"""Tables too wide to be held as numbers all at once give what they would give in one piece."""

import platform
import subprocess
import sys

import numpy as np
import pytest
import torch

from refold import Autoencoder, inference
from refold.likelihoods import Categorical, SquaredError
from refold.ops import pca
from refold.training import evaluation, start
from refold.training import fit as loop
from refold.types import Batch
from refold.uses import inspect

SIZES = (30, 40, 2)


@pytest.fixture
def classes():
    torch.manual_seed(0)
    return torch.stack([torch.randint(n, (500,)) for n in SIZES], 1)


@pytest.fixture(scope="module")
def wide():
    """A model whose code is ordered, and rows with gaps."""
    draw = np.random.default_rng(0)
    rows = {f"n{k}": draw.normal(size=400) for k in range(5)}
    rows |= {"c": np.array([f"level {n}" for n in draw.integers(40, size=400)], dtype=object)}
    rows["n0"][::7] = np.nan
    rows["c"][::5] = None
    ae = Autoencoder("nested(size=4)", epochs=2, fields={"c": "categorical"}).fit(rows)
    return ae, ae._encode(ae._read(rows))


def test_indicators_are_made_of_as_many_rows_as_fit(classes, monkeypatch):
    heads = {"c": Categorical(SIZES)}
    rows = Batch({"c": classes}, {"c": None})
    whole = start.design(heads, rows)
    monkeypatch.setattr(start, "MOST", 2000)
    some = start.design(heads, rows)
    assert torch.equal(some, whole[::18])
    assert len(some) == 28


def test_of_numbers_the_principal_components_are_those_of_all_rows(monkeypatch):
    monkeypatch.setattr(start, "MOST", 1)
    x = torch.randn(50, 3)
    assert torch.equal(
        start.design({"x": SquaredError((1, 1, 1))}, Batch({"x": x}, {"x": None})), x
    )


@pytest.mark.parametrize("gaps", [False, True])
def test_the_cost_of_a_constant_is_the_same_portion_by_portion(classes, gaps, monkeypatch):
    seen = torch.rand(classes.shape) > 0.3 if gaps else None
    head = Categorical(SIZES)
    whole = start.baseline(head, classes, seen)
    monkeypatch.setattr(start, "MOST", 1000)
    torch.testing.assert_close(start.baseline(head, classes, seen), whole, rtol=1e-7, atol=0)


def test_components_of_wide_rows_are_those_of_rows_that_fit(monkeypatch):
    monkeypatch.setattr(pca, "MOST", 5000 * 40)
    x = torch.randn(300, 3) @ torch.randn(3, 5000)
    found = pca.principal_components(x, 3)
    some = (x[::8].double() - x.double().mean(0)).square().sum() / len(x[::8])
    assert found.total == pytest.approx(float(some))
    assert float(found.variance.sum()) == pytest.approx(found.total)


def test_rows_of_an_evaluation_are_fewer_where_outputs_are_wide(wide, monkeypatch):
    model = wide[0].model_
    rows = wide[1]
    assert loop.portion_of(model) == evaluation.VALIDATION_ROWS
    whole, _ = loop.evaluate(model, rows, None, 0)
    monkeypatch.setattr(evaluation, "VALIDATION_NUMBERS", (45 + model.latent.width) * 30)
    assert loop.portion_of(model) == 30
    assert loop.evaluate(model, rows, None, 0, portion=30)[0] == pytest.approx(whole, rel=1e-6)
    model.eval()  # the code's own constraint was in force


def test_quality_is_the_same_part_by_part(wide, monkeypatch):
    ae, rows = wide
    principal = pca.principal_components(start.design(ae.model_.likelihoods, rows))

    def figures():
        quality = inspect.quality(ae.model_, rows, ae.schema_, principal)
        curve = inspect.prefix_curve(ae.model_, rows, ae.schema_, principal)
        flat = [quality.kept, quality.pca_kept, quality.squared_error, *np.ravel(curve)]
        return flat, inspect.squared_errors(ae.model_, rows, ae.schema_)

    monkeypatch.setattr(inference, "PORTION", 100)
    whole, each = figures()
    monkeypatch.setattr(inspect, "MOST", 1)
    parts, again = figures()
    assert parts == pytest.approx(whole, rel=1e-9)
    assert torch.equal(again, each)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's habits")
def test_large_data_goes_back_after_a_fit():
    # In a process of its own: what others freed here could hold the data and stay.
    ended = subprocess.run([sys.executable, "-c", HELD], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr


HELD = """
from pathlib import Path
import torch
from refold.training.machine import keeping_memory

def held():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

with keeping_memory(torch.nn.Linear(2, 40_000), 256):
    torch.ones(1000)
before = held()
data = torch.ones(32 << 20)
assert held() - before > 100 << 20
del data
assert held() - before < 16 << 20
"""
