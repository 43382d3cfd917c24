"""Contrastive costs against plain loops, and the views they compare."""

import math

import numpy as np
import pandas as pd
import pytest
import torch

import refold
from refold.data.corruptions import corruptions
from refold.errors import InputError
from refold.parts import PartSpec
from refold.penalties import Contrastive
from refold.penalties.contrastive import ntxent, vicreg
from refold.types import Batch


def draw(*shape, seed=0):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def views(rows=7, size=5):
    a = draw(rows, size)
    return a, a + 0.5 * draw(rows, size, seed=1)


@pytest.mark.parametrize("temperature", [0.1, 0.5, 2.0])
def test_ntxent_is_algorithm_one_of_the_paper(temperature):
    a, b = views()
    n = len(a)
    z = [row for pair in zip(a, b, strict=True) for row in pair]  # 2k-1 and 2k are views of k

    def s(i, k):
        likeness = float(z[i] @ z[k]) / (float(z[i].norm()) * float(z[k].norm()))
        return math.exp(likeness / temperature)

    def cost(i, j):
        return -math.log(s(i, j) / sum(s(i, k) for k in range(2 * n) if k != i))

    paper = sum(cost(2 * k, 2 * k + 1) + cost(2 * k + 1, 2 * k) for k in range(n)) / (2 * n)
    assert float(ntxent(a, b, temperature)) == pytest.approx(paper, rel=1e-12)
    torch.testing.assert_close(ntxent(3 * a, b, temperature), ntxent(a, b, temperature))
    assert torch.autograd.gradcheck(
        lambda a, b: ntxent(a, b, temperature), (a.requires_grad_(), b.requires_grad_())
    )


def test_vicreg_is_the_sum_of_the_papers_three():
    a, b = views()
    n, d = a.shape
    weights = {"invariance": 3.0, "variance": 7.0, "covariance": 2.0}
    alike = sum(float((a[i] - b[i]).square().sum()) for i in range(n)) / n
    spread = crossed = 0.0
    for z in (0.3 * a, b):
        c = np.cov(z.numpy().T)
        spread += sum(max(0.0, 1 - math.sqrt(c[j, j] + 1e-4)) for j in range(d)) / d
        crossed += sum(c[i, j] ** 2 for i in range(d) for j in range(d) if i != j) / d
    alike = sum(float((0.3 * a[i] - b[i]).square().sum()) for i in range(n)) / n
    assert spread > 0.1
    found = vicreg(0.3 * a, b, **weights)
    assert float(found) == pytest.approx(3 * alike + 7 * spread + 2 * crossed, rel=1e-12)
    args = ((0.3 * a).requires_grad_(), b.requires_grad_())
    assert torch.autograd.gradcheck(lambda a, b: vicreg(a, b, **weights), args)


def test_agreement_is_cheapest_and_the_least_is_known():
    apart = torch.eye(4, dtype=torch.float64)
    least = math.log(math.exp(2) + 6) - 2  # views alike, at right angles to all six others
    assert float(ntxent(apart, apart, 0.5)) == pytest.approx(least)
    assert ntxent(apart, apart.roll(1, 0), 0.5) > least
    spread = draw(500, 3)
    spread = torch.linalg.qr(spread - spread.mean(0))[0] * 30
    assert float(vicreg(spread, spread)) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("kind", ["ntxent", "vicreg"])
def test_rows_alone_and_codes_that_collapsed_have_finite_gradients(kind):
    cost = {"ntxent": ntxent, "vicreg": vicreg}[kind]
    for shape in ((1, 3), (6, 3), (6, 1)):
        a = torch.zeros(shape, dtype=torch.float64, requires_grad=True)
        value = cost(a, a + 0.0)
        value.backward()
        assert torch.isfinite(value)
        assert torch.isfinite(a.grad).all()


def vectors():
    return np.random.default_rng(0).normal(size=(60, 6))


def fitted(penalty, x=None, **options):
    options = {"latent": 4, "hidden": (8,), "epochs": 2, "device": "cpu"} | options
    return refold.Autoencoder(penalties=(penalty,), **options).fit(vectors() if x is None else x)


def cost_of(ae, x, seed=0):
    rows = ae._encode(ae._read(x))
    torch.manual_seed(seed)
    return ae.model_.penalties[0](ae.model_, rows, None, {})["contrastive"]


@pytest.mark.parametrize("projection", [None, (5,), (7, 3)])
@pytest.mark.parametrize("kind", ["ntxent", "vicreg"])
def test_the_cost_is_that_of_two_corrupted_batches(kind, projection):
    spec = "masking(fraction=0.4, value=9.0)"
    ae = fitted(Contrastive(kind=kind, corruption=spec, projection=projection, weight=3.0))
    rows = ae._encode(ae._read(vectors()))
    part, head = corruptions.build(PartSpec.parse(spec)), ae.model_.penalties[0].head
    torch.manual_seed(5)
    both = []
    for _ in range(2):
        g = torch.Generator().manual_seed(int(torch.randint(2**62, ())))
        corrupted = part(rows, g)
        assert ((corrupted.x["x"] == 9.0).sum(1) == 2).all()
        both.append(head(ae.model_.encode(corrupted)[0].z))
    assert not torch.equal(*both)
    expected = ntxent(*both) if kind == "ntxent" else vicreg(*both)
    torch.testing.assert_close(cost_of(ae, vectors(), seed=5), 3 * expected)


def test_seeds_govern_the_views_and_evaluation_has_one_draw():
    ae = fitted(Contrastive())
    assert torch.equal(cost_of(ae, vectors()), cost_of(ae, vectors()))
    assert not torch.equal(cost_of(ae, vectors()), cost_of(ae, vectors(), seed=1))
    still = fitted(Contrastive(), lr=1e-30)
    costs = [row["valid_contrastive"] for row in still.history_]
    assert len(costs) > 1
    assert len(set(costs)) == 1


def test_the_projection_is_trained_and_saved_with_the_model(tmp_path):
    ae = fitted(Contrastive(projection=(7, 3)))
    names = [k for k in ae.model_.state_dict() if "head" in k]
    shapes = [tuple(ae.model_.state_dict()[k].shape) for k in names]
    assert shapes == [(7, 4), (7,), (3, 7), (3,)]
    torch.manual_seed(0)
    start = ae.spec_.build(ae.schema_).state_dict()
    assert all(not torch.equal(start[k], ae.model_.state_dict()[k]) for k in names)
    ae.save(tmp_path / "model")
    again = refold.load(tmp_path / "model")
    assert torch.equal(cost_of(ae, vectors()), cost_of(again, vectors()))
    assert fitted(Contrastive()).model_.penalties[0].projection is None
    assert not list(fitted(Contrastive()).model_.penalties[0].parameters())


def test_what_is_predicted_is_no_part_of_a_view():
    r = np.random.default_rng(0)
    frame = pd.DataFrame(r.normal(size=(60, 3)), columns=list("abc"))
    frame["town"] = r.choice(["x", "y", "z"], 60)
    frame["y"] = r.normal(size=60)
    penalty = Contrastive(corruption="swap(fraction=0.5)")
    ae = fitted(penalty, frame, fields={"y": "target"})
    before = cost_of(ae, frame)
    assert torch.isfinite(before)
    assert torch.equal(before, cost_of(ae, frame.assign(y=frame["y"].to_numpy()[::-1])))
    assert not torch.equal(before, cost_of(ae, frame.assign(a=frame["a"].to_numpy()[::-1])))


def test_views_that_hide_need_an_encoder_that_is_told():
    hiding = Contrastive(corruption="hide(rate=0.3)")
    with pytest.raises(InputError, match=r"'hide\(rate=0\.3\)'.*not told.*masking"):
        fitted(hiding)
    told = fitted(hiding, corruption="hide(rate=0.2)")
    assert not torch.equal(cost_of(told, vectors()), cost_of(told, vectors(), seed=1))


def test_views_of_several_corruptions_of_images():
    x = (np.random.default_rng(0).random((40, 9, 8)) * 255).astype(np.uint8)
    penalty = Contrastive(corruption="chain(parts=('shift(pixels=1)', 'boxes(size=3)'))")
    ae = fitted(penalty, x)
    assert torch.isfinite(cost_of(ae, x))
    with pytest.raises(InputError, match="needs images"):
        fitted(penalty)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"kind": "ntxnt"}, "did you mean 'ntxent'"),
        ({"temperature": 0.0}, "temperature is 0.0; it must be above 0"),
        ({"projection": ()}, "projection is ()"),
        ({"projection": (8, 0)}, "one width or more"),
        ({"covariance": -1.0}, "covariance is -1.0"),
        ({"corruption": "maskng"}, "masking"),
        ({"warmup": 3.0}, "share of the training"),
    ],
)
def test_wrong_options_are_said(options, match):
    with pytest.raises(InputError, match=match.replace("(", r"\(").replace(")", r"\)")):
        Contrastive(**options)


def test_warmup_counts_in_training_alone():
    ae = fitted(Contrastive(warmup=0.5))
    penalty = ae.model_.penalties[0]
    whole = cost_of(ae, vectors())
    penalty.train()
    penalty.progress = 0.125
    torch.testing.assert_close(cost_of(ae, vectors()), 0.25 * whole)


def test_views_agree_more_where_that_was_trained():
    r = np.random.default_rng(0)  # two factors that eight columns tell of, and nine that one does
    x = np.hstack([r.normal(size=(300, 2)).repeat(8, 1), r.normal(size=(300, 9))])
    options = {"epochs": 15, "batch_size": 50, "lr": 5e-3, "fusion": "concat(linear=False)"}
    found = []
    for weight in (0.0, 20.0):
        ae = fitted(Contrastive(weight=weight, corruption="gaussian(std=1.0)"), x, **options)
        ae.model_.penalties[0].weight = 1.0
        found.append(float(cost_of(ae, x).detach()))
    assert found[1] < found[0] - 0.1


def test_a_batch_of_one_row_is_a_cost():
    ae = fitted(Contrastive(projection=(3,)))
    rows = ae._encode(ae._read(vectors()))
    one = Batch({k: v[:1] for k, v in rows.x.items()}, rows.observed)
    cost = ae.model_.penalties[0](ae.model_, one, None, {})["contrastive"]
    assert float(cost.detach()) == 0
