"""Evidence, detectors and calibration, against plain references."""

import math
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.ndimage import gaussian_filter
from scipy.spatial.distance import cdist
from scipy.stats import false_discovery_control
from sklearn.metrics import roc_auc_score

import refold
from refold import Autoencoder, inference
from refold.data.sources import read
from refold.detection import Calibration, Detector, Neighbours, Rule, ordinary
from refold.detection.base import observed
from refold.detection.errors import costs
from refold.detection.judge import learnt
from refold.detection.neighbours import grouped
from refold.errors import InputError
from refold.learn import split
from refold.parts import PartSpec

PLANE = np.random.default_rng(9).normal(size=(3, 6))


def plane(n, seed=0, noise=0.1):
    """Rows near a plane of three dimensions in six."""
    r = np.random.default_rng(seed)
    return r.normal(size=(n, 3)) @ PLANE + noise * r.normal(size=(n, 6))


def people(n, seed=0, gaps=0.1):
    """A table of numbers and classes that follow from one another, with gaps."""
    r = np.random.default_rng(seed)
    town = r.choice(["a", "b", "c", "d"], n, p=[0.4, 0.3, 0.2, 0.1])
    level = np.select([town == "a", town == "b"], [0.0, 2.0], 5.0)
    frame = pd.DataFrame(
        {
            "age": level + r.normal(size=n),
            "pay": 3 * level + r.normal(size=n),
            "tall": r.normal(size=n),
            "town": town,
            "sex": r.choice(["f", "m"], n),
        }
    )
    return frame.mask(r.random(frame.shape) < gaps) if gaps else frame


def images(n, seed=0):
    """A bright square somewhere in the dark."""
    r = np.random.default_rng(seed)
    rows = 0.05 * r.random((n, 8, 8))
    for image, (y, x) in zip(rows, r.integers(0, 5, (n, 2)), strict=True):
        image[y : y + 3, x : x + 3] = 0.9
    return rows


def waves(n, seed=0):
    r = np.random.default_rng(seed)
    steps = np.arange(12) + r.uniform(0, 6, (n, 1))
    return np.stack([np.sin(steps), 0.1 * r.normal(size=(n, 12))], 2)


def quick(X, *evidence, recipe="dense", latent=2, epochs=3, contamination=0, **options):
    return Autoencoder(
        latent,
        recipe=recipe,
        epochs=epochs,
        evidence=evidence,
        contamination=contamination,
        **options,
    ).fit(X)


@torch.inference_mode()
def passed(ae, X, figure):
    """What ``figure`` finds in the outputs of all rows, joined."""
    rows = ae._encode(ae._read(X))
    passes = inference.outputs(ae.model_, rows, ae.schema_)
    return torch.cat([figure(o)[:n].double() for o, n in passes]).numpy()


def seen_by(output):
    there = observed(output)
    return torch.ones_like(costs(output)).bool() if there is None else there


def training(X, seed=0, share=0.1):
    return split(len(X), share, seed)[0]


@pytest.fixture
def no_warnings():
    """Let no warning of a library pass; refold's own are for the user."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", refold.InputWarning)
        yield


# ------------------------------------------------------------------ errors


def root_mean(costs, there, low, unit):
    """Go through a row entry by entry."""
    figures = []
    for cost, seen in zip(costs, there, strict=True):
        parts = [max(c - a, 0) / u for c, s, a, u in zip(cost, seen, low, unit, strict=True) if s]
        figures.append(math.sqrt(sum(parts) / len(parts)) if parts else 1.0)
    return figures


@pytest.mark.parametrize("likelihood", ["mse", "gaussian"])
def test_errors_are_those_of_a_loop_over_entries(likelihood):
    frame = people(300)
    frame["double"] = 2 * frame["age"]
    kind = f"numeric(likelihood='{likelihood}')"
    ae = quick(frame, "errors", fields={"age": kind, "double": kind}, epochs=30)
    part, own = ae.detector_.parts[0], training(frame)
    cost, there = passed(ae, frame, costs), passed(ae, frame, seen_by) > 0
    low, unit = [], []
    for c, s in zip(cost[own].T, there[own].T, strict=True):
        low.append(min(0.0, c[s].min()))
        unit.append((c[s] - low[-1]).mean())
    assert (min(low) < -0.1) == (likelihood == "gaussian")  # a learnt spread has negative costs
    np.testing.assert_allclose(part.low[0], low, rtol=1e-5, atol=1e-6)
    above = part.unit[0].numpy() / np.array(unit)  # kept from 0 by little, where little is known
    assert above.min() > 1 - 1e-6
    assert above[2:].max() < 1.005
    assert above.max() < (3 if likelihood == "gaussian" else 1.005)
    expected = root_mean(cost, there, part.low[0].tolist(), part.unit[0].tolist())
    np.testing.assert_allclose(passed(ae, frame, part.figures)[:, 0], expected, rtol=1e-4)
    shares = passed(ae, frame, part.shares)
    np.testing.assert_allclose(shares.sum(1), 1, rtol=1e-5)
    assert (shares[~there] == 0).all()


def test_errors_of_rows_of_training_have_a_mean_square_of_one():
    X = plane(400)
    ae = quick(X, "errors", epochs=30)
    figures = passed(ae, X, ae.detector_.parts[0].figures)[training(X), 0]
    # Entries have one unit each, so means over rows of entries are one each.
    assert 0.98 < np.square(figures).mean() <= 1 + 1e-5


@pytest.mark.parametrize("recipe", ["pca", "anomaly"])
def test_what_never_varied_or_is_known_for_sure_is_no_needle(recipe):
    X = plane(300)
    X[:, 2] = 3.0
    X[:, 4] = 2 * X[:, 0] + 1
    ae = quick(X, "errors", recipe=recipe, latent=4, epochs=None)
    off = np.stack([X[0]] * 3)
    off[1, 2] += 0.1
    off[2, 4] += 0.1 * X[:, 4].std()
    usual, constant, sure = -ae.score_samples(off)
    assert usual < constant < 30
    assert usual < sure < 30
    assert (ae.detector_.parts[0].unit > 1e-6).all()


def test_rows_that_are_all_alike_are_no_needle_either():
    with pytest.warns(refold.InputWarning, match="no unit of the code is active"):
        ae = quick(np.ones((60, 4)), "errors", recipe="pca", latent=1)
    assert -ae.score_samples(np.full((1, 4), 1.1))[0] < 100


# ------------------------------------------------------------------ neighbours


def linear(frame, own):
    """Rows as numbers whose entries have a variance of one in training; and their entries."""
    numbers, entry = [], []
    for e, name in enumerate(["age", "pay", "tall", "sex", "town"]):
        column = frame[name]
        if column.dtype == float:
            view = column.to_numpy()[:, None]
        else:
            levels = sorted(column.iloc[own].dropna().unique())
            levels = levels[1:] if len(levels) == 2 else levels
            view = np.stack([(column == level).to_numpy(float) for level in levels], 1)
            view[column.isna()] = np.nan
        view = view - np.nanmean(view[own], axis=0)
        view /= np.sqrt(np.square(view[own][~np.isnan(view[own][:, 0])]).mean(0).sum())
        numbers.append(view)
        entry += [e] * view.shape[1]
    return np.concatenate(numbers, 1), np.array(entry)


def stretched(row, points, entry):
    """Distance over what was observed, as if all entries had been."""
    there = ~np.isnan(row)
    seen = len(set(entry[there]))
    if not seen:
        return None
    squares = np.square(row[there] - points[:, there]).sum(1)
    return np.sqrt(squares * (entry.max() + 1) / seen)


@pytest.mark.parametrize(("rows", "references"), [(200, 32), (45, 128)])
def test_distances_are_those_of_brute_force(rows, references):
    frame = people(rows)
    frame.iloc[3] = None
    ae = quick(frame, f"neighbours(references={references}, groups=(4, 16))")
    part, own = ae.detector_.parts[0], training(frame)
    view, entry = linear(frame, own)
    # Entries stand in the order of the model's fields.
    order = [f for k in ae.model_.rebuilt for f in ae.schema_.fields[k].entries]
    assert order == ["age", "pay", "tall", "town", "sex"] or order == [
        "age", "pay", "tall", "sex", "town",
    ]  # fmt: skip
    points, row = part.points.double().numpy(), part.row.numpy()
    assert len(set(row.tolist())) == min(references, len(own))
    if order[3] == "town":
        town = entry == 4
        view = np.concatenate([view[:, :3], view[:, town], view[:, entry == 3]], 1)
        entry = np.array([0, 1, 2, *[3] * town.sum(), 4])

    figures = []
    for i in range(rows):
        distance = stretched(view[i], points, entry)
        if distance is None:
            figures.append([1.0, 1.0])
            continue
        observed_part = math.sqrt(len(set(entry[~np.isnan(view[i])])) / 5)
        length = np.linalg.norm(np.nan_to_num(view[i]))
        near = distance * observed_part < math.sqrt(2e-5) * length
        if len(set(row[near])) > 1:  # so little is known that it is several rows at once
            figures.append([np.nan, np.nan])
            continue
        distance[near] = np.inf
        found = []
        for m, unit in zip((4, 16), part.unit.tolist(), strict=True):
            nearest = [distance[t : t + m].min() for t in range(0, references, m)]
            found.append(np.mean([d for d in nearest if np.isfinite(d)]) / unit)
        figures.append(found)
    mine, figures = passed(ae, frame, part.figures), np.array(figures)
    compared = ~np.isnan(figures[:, 0])
    assert compared.mean() > 0.95
    np.testing.assert_allclose(mine[compared], figures[compared], rtol=2e-3)
    assert mine[3].tolist() == [1.0, 1.0]
    np.testing.assert_allclose(mine[own].mean(0), 1, rtol=0.02)

    shares = passed(ae, frame, part.shares)
    np.testing.assert_allclose(shares.sum(1), 1, rtol=1e-5)
    missing = frame[order].isna().to_numpy()
    missing[3] = False  # of which nothing is known, all share alike
    assert (shares[missing] == 0).all()


def test_references_are_rows_of_training():
    X = plane(200)
    ae = quick(X, "neighbours(references=64, groups=(64,))")
    part = ae.detector_.parts[0]
    own = X[training(X)]
    view = (own - own.mean(0)) / own.std(0)
    distance = cdist(part.points.double().numpy(), view)
    assert distance.min(1).max() < 1e-5
    assert len(set(distance.argmin(1).tolist())) == 64


def test_a_reference_is_not_its_own_neighbour_nor_are_its_copies():
    X = plane(40)
    ae = quick(X, "neighbours(references=512, groups=(512,))")
    part, own = ae.detector_.parts[0], X[training(X)]
    view = (own - own.mean(0)) / own.std(0)
    distance = cdist(view, view)
    np.fill_diagonal(distance, np.inf)
    unit = distance.min(1).mean()
    assert float(part.unit[0]) == pytest.approx(unit, rel=1e-4)
    mine = passed(ae, own, part.figures)[:, 0]
    np.testing.assert_allclose(mine, distance.min(1) / unit, rtol=1e-3)


def test_rows_that_were_there_twice_are_near_each_other():
    X = np.repeat(plane(30), 2, axis=0)
    ae = quick(X, "neighbours(references=64, groups=(64,))", validation=0)
    part = ae.detector_.parts[0]
    assert (passed(ae, X, part.figures) * float(part.unit[0]) < 0.02).all()


def test_codes_are_compared_by_their_plain_distances():
    X = plane(200)
    ae = quick(X, "neighbours(references=32, groups=(8,), space='code')")
    part, new = ae.detector_.parts[0], plane(50, seed=1)
    distance = cdist(ae.transform(new), part.points.numpy())
    mean = np.mean([distance[:, t : t + 8].min(1) for t in range(0, 32, 8)], 0)
    np.testing.assert_allclose(
        passed(ae, new, part.figures)[:, 0], mean / float(part.unit[0]), rtol=2e-3
    )
    assert cdist(part.points.numpy(), ae.transform(X)).min(1).max() < 1e-5


def test_a_missing_class_of_many_levels_is_one_entry():
    # Were its levels counted, the other entries would be stretched to stand for all of them.
    r = np.random.default_rng(0)
    frame = pd.DataFrame({"a": r.normal(size=400), "b": r.normal(size=400)})
    frame["c"] = r.choice([f"level{i}" for i in range(40)], 400)
    ae = quick(frame, "neighbours(groups=(8,), references=64)")
    gone = frame.assign(c=None)
    mean = passed(ae, gone, ae.detector_.parts[0].figures).mean()
    assert mean < 1.5


def test_groups_are_columns_beside_one_another():
    squares = torch.rand(5, 24, generator=torch.Generator().manual_seed(0))
    for m in (1, 2, 4, 12, 24):
        expected = torch.stack([part.amin(1) for part in squares.split(m, 1)], 1)
        torch.testing.assert_close(grouped(squares, m), expected)
    torch.testing.assert_close(grouped(grouped(squares, 3), 4), grouped(squares, 12))


@pytest.mark.parametrize(
    "options",
    [
        {"references": 0},
        {"references": 100, "groups": (64,)},
        {"groups": (3, 64)},
        {"groups": (64, 16)},
        {"groups": (0,)},
        {"groups": ()},
    ],
)
def test_groups_that_do_not_part_the_references_are_refused(options):
    with pytest.raises(InputError, match="each divides the next"):
        Neighbours(**options)


def test_unknown_words_are_refused_with_the_nearest():
    with pytest.raises(InputError, match="unknown evidence 'eror'; did you mean 'errors'"):
        quick(plane(40), "eror")
    with pytest.raises(InputError, match=r"unknown space of neighbours 'cod'; did you mean 'code'"):
        quick(plane(40), "neighbours(space='cod')")
    with pytest.raises(InputError, match=r"unknown setting 'novel'; did you mean 'novelty'"):
        quick(plane(40), "errors(when='novel')")
    with pytest.raises(InputError, match=r"unknown option of evidence 'errors' 'x'"):
        quick(plane(40), "errors(x=3)")
    with pytest.raises(InputError, match="sigma is 0"):
        quick(images(40), "smoothed(sigma=0.0)")
    with pytest.raises(InputError, match="'smoothed' is of images, and the model rebuilds none"):
        quick(plane(40), "smoothed")


# ------------------------------------------------------------------ smoothed


@pytest.mark.parametrize("sigma", [None, 0.8])
def test_blurred_errors_are_those_of_scipy(sigma):
    X = images(120)
    X[5, 2:4, 1:3] = np.nan
    given = "smoothed" if sigma is None else f"smoothed(sigma={sigma})"
    ae = quick(X, given, latent=8)
    part, width = ae.detector_.parts[0], sigma or 8 / 28
    radius = min(math.ceil(3 * width), 7)

    def blurred(x):
        return gaussian_filter(x, width, mode="mirror", radius=radius)

    point = ae.model_.likelihoods[ae.model_.rebuilt[0]].point
    name = ae.model_.rebuilt[0]
    guesses = passed(ae, X, lambda o: point(o.params[name])).reshape(-1, 8, 8)
    field = ae.schema_.fields[name]
    shown = (X - field.low) / (field.high - field.low)
    figures, parts = [], []
    for x, guess in zip(shown, guesses, strict=True):
        squares = np.square(blurred(np.where(np.isnan(x), 0, guess - x)))
        base = blurred(guess)
        contrast = np.square(base - base.mean()).sum()
        figures.append(squares.sum() / math.sqrt(contrast + 1e-3))
        parts.append(squares.ravel() / squares.sum())
    unit = np.mean(np.array(figures)[training(X)])
    assert float(part.unit) == pytest.approx(unit, rel=1e-4)
    np.testing.assert_allclose(passed(ae, X, part.figures)[:, 0], figures / unit, rtol=1e-3)
    np.testing.assert_allclose(passed(ae, X, part.shares), parts, rtol=1e-2, atol=1e-5)


# ------------------------------------------------------------------ settings


def test_hidden_entries_cost_what_five_rates_of_masks_say():
    X = plane(200)
    ae = quick(X, "hidden", corruption="hide")
    part = ae.detector_.parts[0]
    keeps = part.keeps
    assert keeps.shape == (12, 6)
    # At each rate every entry is seen as often as the others, or nearly: six are no multiple of 4.
    hidden = (~keeps).double().split([1, 4, 2, 4, 1])
    assert [h.mean(0).unique().tolist() for h in hidden] == [[0.0], [0.25], [0.5], [0.75], [1.0]]

    def plain(output):
        model, found = output.model, []
        for keep in keeps:
            name = model.rebuilt[0]
            x = torch.where(keep, output.given.x[name], 0.0)
            seen = keep.expand(len(x), -1).clone()
            hidden = model(refold.types.Batch({name: x}, {name: seen}), output.target)
            found.append(hidden.cells[name])
        rates = torch.stack(found, 1).split([1, 4, 2, 4, 1], 1)
        return torch.stack([r.mean(1) for r in rates], 1)

    cost = passed(ae, X, plain)
    unit = cost[training(X)].mean(0)
    np.testing.assert_allclose(part.unit, unit, rtol=5e-3)
    expected = np.sqrt((cost / part.unit.double().numpy()).mean((1, 2)))
    np.testing.assert_allclose(passed(ae, X, part.figures)[:, 0], expected, rtol=1e-4)


def test_robust_distances_do_not_hear_a_cluster_of_outliers():
    r = np.random.default_rng(0)
    mix = r.normal(size=(4, 4))
    X = np.concatenate([r.normal(size=(900, 4)) @ mix, 6 + 0.3 * r.normal(size=(100, 4))])
    y = np.arange(1000) >= 900
    ae = quick(X, "mahalanobis", recipe="pca")
    part = ae.detector_.parts[0]
    figures = passed(ae, X, part.figures)[:, 0]
    plain = X - X.mean(0)
    plain = np.sqrt(np.einsum("ni,ij,nj->n", plain, np.linalg.inv(np.cov(X.T)), plain))
    robust = roc_auc_score(y, figures)
    assert robust > 0.99
    assert robust > roc_auc_score(y, plain) + 0.02
    # The distances are those of the shape of the rows that are no outliers, but for a factor.
    true = np.sqrt(np.einsum("ni,ij,nj->n", X, np.linalg.inv(mix.T @ mix), X))
    assert np.corrcoef(true[~y], figures[~y])[0, 1] > 0.98


def test_rows_of_the_fit_are_judged_as_outliers_and_others_as_novelties():
    X, new = plane(300), plane(50, seed=1)
    spec = "errors(when=novelty)", "neighbours(groups=(16, 64), when=outliers)"
    both = quick(X, *spec, contamination=None)
    figures = [passed(both, np.concatenate([X, new]), p.figures) for p in both.detector_.parts]
    score = -both.score_samples(np.concatenate([X, new]))
    outlying = np.exp(np.log(figures[1] + 1e-3).mean(1))
    np.testing.assert_allclose(score[:300], outlying[:300], rtol=1e-4)
    np.testing.assert_allclose(score[300:], figures[0][300:, 0] + 1e-3, rtol=1e-4)
    # Alone, beside others, and beside a change of one value that makes it another row.
    changed = X[:1].copy()
    changed[0, 0] += 1e-3
    assert -both.score_samples(X[:1])[0] == score[0]
    assert -both.score_samples(changed)[0] == pytest.approx(figures[0][0, 0], rel=0.05)
    for contamination, at in ((0, 0), ("auto", 1)):
        one = quick(X, *spec, contamination=contamination)
        assert [p.when for p in one.detector_.parts] == [["novelty", "outliers"][at]]
        assert one.detector_.setting == ["novelty", "outliers"][at]


def test_of_rows_of_the_fit_a_share_alpha_has_such_p_values():
    X = plane(400)
    ae = quick(X, "errors(when=novelty)", "mahalanobis(when=outliers)", contamination=None)
    p = ae.judge(X, alpha=0.05)["p_value"]
    for alpha in (0.01, 0.05, 0.25):
        assert alpha - 2 / 400 < (p <= alpha).mean() <= alpha


# ------------------------------------------------------------------ detector

EVERY = {
    "vector": (plane, ("errors", "neighbours"), {}),
    "both": (
        plane,
        ("errors(when=novelty)", "mahalanobis(when=outliers)"),
        {"contamination": None},
    ),
    "masks": (plane, ("hidden", "neighbours(space='code')"), {"corruption": "hide"}),
    "table": (people, ("errors", "neighbours", "hidden", "mahalanobis"), {"corruption": "hide"}),
    "image": (images, ("smoothed", "errors", "neighbours"), {}),
    "series": (waves, ("errors", "neighbours"), {"fields": {"x": "series"}}),
    "cost": (people, (), {}),
}


@pytest.fixture(scope="module", params=EVERY)
def judged(request):
    make, evidence, options = EVERY[request.param]
    X = make(120)
    return quick(X, *evidence, **options), X, make(30, seed=1), request.param


def test_the_score_is_the_geometric_mean_of_all_figures(judged):
    ae, _, new, name = judged
    if name == "cost":
        expected = passed(ae, new, lambda o: o.score)
    else:
        heard = [p for p in ae.detector_.parts if p.when in ("always", "novelty")]
        figures = np.concatenate([passed(ae, new, p.figures) for p in heard], 1)
        assert (figures >= 0).all()
        expected = np.exp(np.log(figures + 1e-3).mean(1))
    np.testing.assert_allclose(-ae.score_samples(new), expected, rtol=1e-4)


def test_contributions_add_up_to_the_score_of_every_row(judged):
    ae, X, new, _ = judged
    for rows in (X, new):
        parts = ae.contributions(rows)
        assert set(parts) == set(ae.model_.rebuilt)
        total = sum(p.reshape(len(rows), -1).astype(float).sum(1) for p in parts.values())
        np.testing.assert_allclose(total, -ae.score_samples(rows), rtol=1e-4)
        for p in parts.values():
            assert np.isfinite(p).all()
            assert (p >= -1e-6).all()


def test_missing_cells_have_no_part_in_the_score(judged):
    ae, _, new, name = judged
    if name != "table":
        return
    gone = new.isna()
    gone = gone[~gone.all(axis=1)]
    parts = ae.contributions(new.loc[gone.index])
    for field, part in parts.items():
        flat = part.reshape(len(gone), -1)
        missing = gone[list(ae.schema_.fields[field].entries)].to_numpy()
        assert missing.any()
        scores = -ae.score_samples(new.loc[gone.index])
        # Where the centre of what is most common lies apart from the mean, a gap shows that much.
        assert (flat[missing] / scores[np.nonzero(missing)[0]]).max() < 0.25


def test_a_detector_is_saved_to_the_last_bit(judged, tmp_path):
    ae, X, new, _ = judged
    ae.save(tmp_path / "model")
    again = refold.load(tmp_path / "model")
    for rows in (X, new):
        one, two = ae.judge(rows, alpha=0.2), again.judge(rows, alpha=0.2)
        for column in one:
            np.testing.assert_array_equal(one[column], two[column])
        pd.testing.assert_frame_equal(
            pd.DataFrame(dict(ae.explain(rows))), pd.DataFrame(dict(again.explain(rows)))
        )
        for k, part in ae.contributions(rows).items():
            np.testing.assert_array_equal(part, again.contributions(rows)[k])
    assert again.detector_.specs == ae.detector_.specs
    assert again.detector_.setting == ae.detector_.setting


@pytest.mark.parametrize("make", [people, images])
def test_a_row_of_gaps_alone_is_usual(make):
    X = make(100)
    evidence = ["errors", "neighbours", "hidden", "mahalanobis", "smoothed"]
    evidence = evidence if make is images else evidence[:-1]
    ae = quick(X, *evidence, corruption="hide")
    gone = X[:2] * np.nan if make is images else X.head(2).mask(np.ones((2, 5), dtype=bool))
    for part in ae.detector_.parts:
        assert (passed(ae, gone, part.figures) == 1).all()
    np.testing.assert_allclose(ae.score_samples(gone), -1.001, rtol=1e-6)


@pytest.mark.parametrize("recipe", ["vae", "pca", "denoising"])
@pytest.mark.parametrize(
    "evidence", ["errors", "neighbours", "neighbours(space='code')", "hidden", "mahalanobis"]
)
def test_every_evidence_is_good_for_other_recipes(recipe, evidence, no_warnings):
    ae = quick(plane(80), evidence, recipe=recipe)
    near, far = -ae.score_samples(plane(40, seed=1)), -ae.score_samples(4 * plane(40, seed=1))
    assert np.isfinite(near).all()
    assert np.median(far) > 1.5 * np.median(near)


@pytest.mark.parametrize("recipe", ["conv", "vae"])
@pytest.mark.parametrize("evidence", ["errors", "neighbours", "smoothed", "mahalanobis"])
def test_and_for_those_of_images(recipe, evidence, no_warnings):
    X = images(60)
    ae = quick(X, evidence, recipe=recipe, epochs=1)
    near, far = -ae.score_samples(X), -ae.score_samples(np.random.default_rng(0).random((60, 8, 8)))
    assert np.isfinite(near).all()
    assert np.median(far) > np.median(near)


# ------------------------------------------------------------------ calibration


def calibrated(scores):
    scores = np.sort(np.asarray(scores, dtype=np.float64))
    none = np.zeros((0, 1), np.float32)
    return Calibration(scores, none, scores[:0], none, True)


@pytest.mark.parametrize("m", [1, 9, 99, 100, 997])
def test_the_threshold_is_where_p_values_say_it_is(m):
    r = np.random.default_rng(m)
    known = calibrated(r.normal(size=m).round(1))  # with ties
    around = np.concatenate([known.scores, np.nextafter(known.scores, -9), known.scores - 0.05])
    every = np.concatenate([around, [-1e9, 1e9]])
    p = known.p_values(every)
    levels = np.concatenate([np.arange(1, 100) / 100, 0.1 * np.arange(1, 10), r.random(50), p])
    for alpha in (*levels, 1 - 0.7, 0.7 - 0.4):
        np.testing.assert_array_equal(every <= known.threshold(alpha), p <= alpha)
    assert known.smallest == p.min() == 1 / (1 + m)


def test_ties_count_as_at_least_as_unusual():
    known = calibrated([-2.0, -1.0, -1.0, -1.0, 0.0])
    np.testing.assert_allclose(known.p_values(np.array([-3, -2, -1.5, -1, 0, 1.0])) * 6,
                               [1, 2, 2, 5, 6, 6])  # fmt: skip


def test_p_values_of_new_rows_keep_the_false_positive_rate():
    # Rows held out differ from fit to fit, and so does the share: its spread is of both draws.
    shares = {0.02: [], 0.1: [], 0.3: []}
    for seed in range(8):
        X = plane(400, seed=100 + seed, noise=0.5)
        ae = Autoencoder(recipe="anomaly", epochs=2, seed=seed, contamination=0).fit(X)
        assert len(ae.calibration_.scores) == 80
        p = ae.judge(plane(500, seed=200 + seed, noise=0.5), alpha=0.1)["p_value"]
        for alpha, found in shares.items():
            found.append((p <= alpha).mean())
    for alpha, found in shares.items():
        k = math.floor(alpha * 81)
        error = math.sqrt(k * (81 - k) / 81**2 / 82 + alpha * (1 - alpha) / 500) / math.sqrt(8)
        assert abs(np.mean(found) - k / 81) < 3.5 * error, alpha


def test_what_an_entry_adds_is_compared_with_what_it_adds_elsewhere():
    r = np.random.default_rng(0)
    parts, added = r.random((50, 4)).round(1), r.random((9, 4)).round(1)
    none = np.zeros(0)
    known = Calibration(none, none, none, np.sort(parts, 0), True)
    above = (parts[None] >= added[:, None]).sum(1)
    np.testing.assert_allclose(known.entry_p_values(added), (1 + above) / 51)
    bare = Calibration(none, none, none, np.zeros((0, 1), np.float32), True)
    assert np.isnan(bare.entry_p_values(added)).all()  # of a model saved before there were any


def test_recalibration_moves_p_values_and_not_scores():
    ae = quick(plane(200), "errors", latent=3, epochs=30)
    new, later = plane(500, seed=1, noise=0.6), plane(300, seed=2, noise=0.6)
    before = ae.judge(new, alpha=0.1)
    assert before["is_anomaly"].mean() > 0.5
    assert ae.recalibrate(later) is ae
    after = ae.judge(new, alpha=0.1)
    np.testing.assert_array_equal(after["score"], before["score"])
    rank = (ae.score_samples(later)[:, None] <= after["score"]).sum(0)
    np.testing.assert_allclose(after["p_value"], (1 + rank) / 301)
    assert abs(after["is_anomaly"].mean() - 0.1) < 3.5 * math.sqrt(0.09 * (1 / 300 + 1 / 500))
    with pytest.raises(InputError, match="got 9 rows to compare with; give 10 or more"):
        ae.recalibrate(later[:9])


def test_each_rule_flags_what_it_says():
    ae = quick(plane(800), "errors", validation=0.5)
    new = np.concatenate([plane(180, seed=1), plane(20, seed=2) + 3 * np.eye(6)[1]])
    judged = ae.judge(new)
    score, p = judged["score"], judged["p_value"]
    np.testing.assert_array_equal(judged["is_anomaly"], p <= 0.01)
    np.testing.assert_array_equal(ae.judge(new, 0.2)["is_anomaly"], p <= 0.2)
    most = ae.judge(new, contamination=0.07)["is_anomaly"]
    assert most.sum() == 14
    assert score[most].max() <= score[~most].min()
    np.testing.assert_array_equal(ae.judge(new, expected=4)["is_anomaly"], p <= 4 / 200)
    assert ae.judge(new, expected=1000)["is_anomaly"].all()
    found = ae.judge(new, fdr=0.2)["is_anomaly"]
    np.testing.assert_array_equal(found, false_discovery_control(p) <= 0.2)
    assert found.any()
    assert not found.all()
    np.testing.assert_array_equal(ae.anomalies(new, fdr=0.2)["is_anomaly"], found)


def test_a_rule_is_one_and_within_its_range():
    for given in ({"alpha": 0.1, "contamination": 0.1}, {"expected": 1, "fdr": 0.1}):
        with pytest.raises(InputError, match=" and ".join(given) + " were given; give one"):
            Rule(**given)
    for given, word in (
        ({"alpha": 0}, "alpha is 0; it must lie between 0 and 1"),
        ({"alpha": 1.0}, "alpha is 1.0"),
        ({"alpha": math.nan}, "alpha is nan"),
        ({"contamination": 2}, "contamination is 2; it must lie between 0 and 1"),
        ({"fdr": -0.1}, "fdr is -0.1"),
        ({"expected": 0}, "expected is 0 false alarms; give a number above 0"),
        ({"expected": math.inf}, "expected is inf"),
        ({"alpha": "a"}, "alpha is 'a'; give a number"),
        ({"contamination": True}, "contamination is True; give a number"),
    ):
        with pytest.raises(InputError, match=word):
            Rule(**given)


def test_a_level_below_the_smallest_p_value_is_said():
    ae, new = quick(plane(100), "errors"), plane(20, seed=1)
    for given, level in (({}, "0.01"), ({"expected": 1}, "0.05"), ({"fdr": 0.01}, "0.01")):
        with pytest.warns(refold.InputWarning, match=f"no row can be an anomaly at alpha {level}"):
            ae.judge(new, **given)
    with pytest.warns(refold.InputWarning, match="fewer than 10 rows cannot be discover"):
        ae.judge(new, fdr=0.19)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert ae.judge(new, contamination=0.1)["is_anomaly"].sum() == 2


# ------------------------------------------------------------------ contamination


def tainted(seed=0, n=600):
    """Rows near a plane, and a tenth of all in a cloud off it; 1 for those."""
    r = np.random.default_rng(seed)
    y = np.arange(n) % 10 == 0
    X = plane(n, seed, noise=0.3)
    off = np.linalg.svd(PLANE)[2][4] * X.std()
    X[y] = 5 * off + r.normal(size=(y.sum(), 6))
    return X, y


def test_a_tenth_of_anomalies_does_not_spoil_a_fit_that_knows_of_them():
    X, y = tainted()
    auroc = {}
    for contamination in (0, None, 0.1):
        ae = Autoencoder(recipe="anomaly", epochs=10, contamination=contamination).fit(X)
        auroc[contamination] = roc_auc_score(y, -ae.score_samples(X))
    assert auroc[0.1] > 0.95
    assert auroc[None] > 0.95
    assert auroc[0] < auroc[0.1] - 0.05


def test_a_tenth_that_is_all_alike_does_not_either():
    r = np.random.default_rng(3)
    normal = r.normal(size=(540, 2)) @ r.normal(size=(2, 6)) + 0.1 * r.normal(size=(540, 6))
    alike = 5 * r.choice([-1, 1], 6) + 0.2 * r.normal(size=(60, 6))
    X, y = np.concatenate([normal, alike]), np.repeat([0, 1], [540, 60])
    auroc = {}
    for contamination in (0, 0.1):
        ae = Autoencoder(recipe="anomaly", epochs=5, contamination=contamination).fit(X)
        auroc[contamination] = roc_auc_score(y, -ae.score_samples(X))
    assert auroc[0] < 0.8
    assert auroc[0.1] > 0.97


def test_as_many_rows_are_left_out_as_are_believed_to_be_anomalies():
    X, y = tainted()
    for share, left in ((0.1, 54), ("auto", 54), (0.25, 135), (1e-4, 0), (0, None), (None, None)):
        ae = quick(X, "errors", contamination=share, epochs=1)
        said = [r for r in ae.reasons_ if "not learnt from" in r]
        assert bool(said) == (left is not None)
        if left is not None:
            assert said[0].startswith(f"{left} of 540 rows")
    ae = quick(X, "errors", contamination=0, epochs=1)
    rows = ae._encode(ae._read(X))
    kept = ordinary(ae.model_, rows, ae.schema_, 0.1)
    assert len(kept) == 540
    assert kept.tolist() == sorted(kept.tolist())
    assert y[kept].mean() < 0.07
    few = rows.rows(slice(3))  # two stay, or there would be nothing to learn from
    assert len(ordinary(ae.model_, few, ae.schema_, 0.49)) == 2


@pytest.mark.parametrize("share", [0.7, 0.5, -0.1, math.nan, True, "some"])
def test_a_contamination_that_is_none_is_one_sentence(share):
    with pytest.raises(InputError, match="contamination") as e:
        Autoencoder(contamination=share).fit(plane(40))
    assert "\n" not in str(e.value)
    assert repr(share) in str(e.value)


def test_learning_a_detector_is_the_same_twice():
    X = plane(120)
    ae = quick(X, "errors", "neighbours")
    rows = ae._encode(ae._read(X))
    specs = [PartSpec.parse(s) for s in ("errors", "neighbours", "mahalanobis")]
    one, two = (Detector.learn(specs, ae.model_, rows, ae.schema_).tensors() for _ in range(2))
    assert one.keys() == two.keys()
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=0, atol=0)


def test_binomial_error_is_what_the_bound_above_is_made_of():
    """Of exchangeable scores, ranks are uniform: the spread used above, by simulation."""
    r, k = np.random.default_rng(0), math.floor(0.1 * 81)
    shares = [
        (calibrated(r.normal(size=80)).p_values(r.normal(size=500)) <= 0.1).mean()
        for _ in range(2000)
    ]
    error = math.sqrt(k * (81 - k) / 81**2 / 82 + 0.09 / 500)
    assert np.std(shares) == pytest.approx(error, rel=0.1)
    assert np.mean(shares) == pytest.approx(k / 81, abs=4 * error / math.sqrt(2000))


def test_what_recurs_in_a_fit_is_new_beside_new_rows_and_known_beside_the_others():
    X = plane(300)
    X[::10] = X[0]  # as of a machine that is off
    ae = Autoencoder(recipe="anomaly", epochs=2).fit(X)
    assert len(ae.detector_.known) == 270
    assert len(ae.detector_.recurred) == 1

    def known(rows):
        return learnt(ae.model_, ae.detector_, ae.schema_.encode(read(rows))[0], ae.schema_)

    fresh = plane(300, seed=1)
    fresh[:5] = X[0]
    assert not known(fresh).any()
    assert known(X).all()
    alone = known(X[:11])  # too few to tell
    assert alone.tolist() == [False, *[True] * 9, False]


def test_a_fit_of_nothing_but_recurring_rows_is_the_same_after_loading(tmp_path):
    X = np.repeat(plane(40), 3, 0)
    ae = Autoencoder(recipe="anomaly", epochs=2).fit(X)
    ae.save(tmp_path / "m")
    assert len(ae.detector_.known) == 0
    pd.testing.assert_frame_equal(
        pd.DataFrame(refold.load(tmp_path / "m").judge(X)), pd.DataFrame(ae.judge(X))
    )
