"""Local kriging of residuals: the arithmetic, and that it helps where neighbours know more."""

import numpy as np
import pandas as pd
import pytest
import torch

import refold
from refold.data.sources import read
from refold.uses import local as near
from refold.uses.local import Local, judged, more_right, views_of


def test_carried_errors_are_kriging_by_hand():
    g = torch.Generator().manual_seed(0)
    rows = torch.randn(7, 3, generator=g, dtype=torch.float64)
    residuals = torch.randn(7, 3, generator=g, dtype=torch.float64)
    residuals[2, 1] = torch.nan
    points = torch.randn(4, 3, generator=g, dtype=torch.float64)
    known = Local(rows, residuals, torch.ones(3), torch.ones(3), torch.ones(3))
    found = known.carried(points, torch.tensor([1]))[:, 0].numpy()
    keep = [0, 1, 3, 4, 5, 6]
    there, errors = rows.numpy()[keep].copy(), residuals.numpy()[keep, 1]
    there[:, 1] -= errors
    for i, p in enumerate(points.numpy()):
        far = np.linalg.norm(there - p, axis=1)
        scale = far.mean()
        between = np.linalg.norm(there[:, None] - there[None], axis=2)
        kernel = np.exp(-between / scale) + near.NUGGET * np.eye(6)
        weights = np.linalg.solve(kernel, np.exp(-far / scale))
        assert found[i] == pytest.approx(weights @ errors, rel=1e-6)


def test_only_the_nearest_count(monkeypatch):
    monkeypatch.setattr(near, "NEAR", 2)
    rows = torch.tensor([[0.0, 0.0], [1.0, 0.0], [50.0, 0.0]])
    residuals = torch.tensor([[0.0, 1.0], [0.0, 1.0], [0.0, 99.0]])
    rows[:, 1] += residuals[:, 1]  # values are predictions of 0 with these errors
    found = Local(rows, residuals, torch.ones(2), torch.ones(2), torch.ones(2)).carried(
        torch.tensor([[0.4, 0.0]]), torch.tensor([1])
    )
    assert 0.5 < float(found) < 1.5


def test_residuals_are_of_each_entry_hidden():
    r = np.random.default_rng(0)
    frame = pd.DataFrame({"a": r.normal(size=150), "k": r.choice(list("uvw"), 150)})
    frame["b"] = frame["a"] + 0.1 * r.normal(size=150)
    frame.loc[3, "a"] = np.nan
    ae = refold.Autoencoder(recipe="imputation", epochs=5).fit(frame)
    rows = ae.schema_.encode(read(frame))[0]
    filled, errors = judged(ae.model_, rows, ae.schema_)
    names = {k: ae.schema_.fields[k].columns for k in ae.model_.rebuilt}
    assert errors[3].isnan().sum() == 1
    blind = frame.assign(b=np.nan)
    expected = views_of(ae.model_, ae.schema_.encode(read(blind))[0], ae.schema_)
    field = ae.schema_.field_of("b")
    place = names[field].index("b")
    at = sum(sum(ae.schema_.fields[k].sizes) for k in list(names)[: list(names).index(field)])
    value = rows.x[field][:, place]
    np.testing.assert_allclose(errors[:, at + place], value - expected[field][:, place], atol=1e-5)
    np.testing.assert_allclose(filled[:, at + place], value, atol=1e-6)


def test_neighbours_help_where_the_network_cannot_follow():
    """Columns full of detail, of which another row nearby knows the value."""
    r = np.random.default_rng(0)
    u = r.random((1500, 2))
    wavy = np.sin(25 * u[:, 0]) + np.cos(25 * u[:, 1])
    x = np.column_stack([u, u + 0.01 * r.normal(size=u.shape), wavy])
    holes = x.copy()
    gone = r.random(1500) < 0.2
    holes[gone, 4] = np.nan
    ae = refold.Autoencoder(recipe="imputation", hidden=(16,), epochs=10).fit(holes)
    assert ae.local_ is not None
    assert 0 <= float(ae.local_.strength.min()) <= float(ae.local_.strength.max()) <= 1
    full = ae.impute(holes)
    alone = ae.reconstruct(holes)
    error, before = (np.square(y - x)[gone, 4].mean() for y in (full, alone))
    assert error < 0.5 * before


def test_levels_are_changed_only_where_more_come_right():
    shares = torch.tensor([[0.6, 0.4], [0.6, 0.4], [0.4, 0.6]])
    true = torch.tensor([[0.0, 1.0], [0.0, 1.0], [0.0, 1.0]])
    assert more_right(shares, torch.tensor([-0.3, 0.3]).expand(3, 2), true - shares)
    assert not more_right(shares, torch.tensor([0.3, -0.3]).expand(3, 2), true - shares)
    assert not more_right(shares, torch.zeros(3, 2), true - shares)


def test_what_is_kept_is_saved(tmp_path):
    r = np.random.default_rng(0)
    x = r.normal(size=(300, 1)) @ np.ones((1, 4)) + 0.1 * r.normal(size=(300, 4))
    x[::9, 1] = np.nan
    ae = refold.Autoencoder(recipe="imputation", epochs=5).fit(x)
    ae.save(tmp_path / "m")
    again = refold.load(tmp_path / "m")
    np.testing.assert_array_equal(again.impute(x), ae.impute(x))
    assert len(again.members_) == len(ae.members_) == 3
    torch.testing.assert_close(again.local_.strength, ae.local_.strength)


def test_too_few_rows_or_too_many_entries_have_no_neighbours():
    r = np.random.default_rng(0)
    few = refold.Autoencoder(recipe="imputation", epochs=1).fit(r.normal(size=(60, 3)))
    assert few.local_ is not None
    assert float(few.local_.strength.max()) == 0
    assert float(few.local_.spread.min()) > 0
    wide = r.normal(size=(200, near.WIDEST + 1))
    assert refold.Autoencoder(recipe="imputation", epochs=1).fit(wide).local_ is None
    assert refold.Autoencoder(2, epochs=1).fit(r.normal(size=(300, 3))).local_ is None


def twins(n=900, share=0.3):
    r = np.random.default_rng(0)
    z = r.normal(size=n)
    frame = pd.DataFrame({"a": z, "b": z + 0.3 * r.normal(size=n), "c": r.normal(size=n)})
    return frame, frame.mask(r.random(frame.shape) < share)


def test_draws_cover_the_truth_and_keep_relations():
    frame, holes = twins()
    ae = refold.Autoencoder(recipe="imputation", epochs=60).fit(holes)
    drawn = ae.impute(holes, 20)
    for name in "ab":
        gone = holes[name].isna()
        found = np.stack([d[name][gone] for d in drawn])
        low, high = np.quantile(found, [0.05, 0.95], axis=0)
        inside = ((frame[name][gone] >= low) & (frame[name][gone] <= high)).mean()
        assert 0.75 < inside < 0.97
    both = holes["a"].isna() & holes["b"].isna()
    together = np.mean([np.corrcoef(d["a"][both], d["b"][both])[0, 1] for d in drawn])
    assert together > 0.6


def test_whole_arrays_are_filled_with_whole_numbers():
    r = np.random.default_rng(0)
    x = np.round(10 * r.normal(size=(300, 1)) @ np.ones((1, 4)))
    x[::5, 1] = np.nan
    full = refold.Autoencoder(recipe="imputation", epochs=10).fit(x).impute(x)
    assert (full % 1 == 0).all()


def test_a_gap_that_training_never_had_is_said():
    r = np.random.default_rng(0)
    x = r.normal(size=(200, 3))
    ae = refold.Autoencoder(2, epochs=1).fit(x)
    x[0, 0] = np.nan
    with pytest.warns(UserWarning, match="fitted without gaps in 'x'"):
        ae.impute(x)
