"""Ways between codes: lines, arcs, single units moved, and the nearest rows."""

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from scipy.spatial.distance import cdist
from sklearn.datasets import load_digits

import refold
from refold import InputError
from refold.uses.interpolate import between, linear, nearest, spherical


def pair(size=5, seed=0, lengths=(2.0, 2.0)):
    draw = np.random.default_rng(seed)
    found = draw.normal(size=(2, size))
    return found / np.linalg.norm(found, axis=1, keepdims=True) * np.array(lengths)[:, None]


def angles(z):
    unit = z / np.linalg.norm(z, axis=1, keepdims=True)
    return np.arccos(np.clip((unit[1:] * unit[:-1]).sum(1), -1, 1))


@pytest.fixture(scope="module")
def digits():
    return load_digits().images[:400] / 16


@pytest.fixture(scope="module")
def vae(digits):
    return refold.Autoencoder(4, recipe="vae", epochs=3).fit(digits)


@pytest.fixture(scope="module")
def people():
    r = np.random.default_rng(0)
    age = r.integers(18, 80, 300)
    town = r.choice(["Bern", "Graz", "Ulm"], 300)
    pay = 1000 + 40 * age + r.normal(0, 100, 300)
    return pd.DataFrame({"age": age, "pay": pay, "town": town, "rent": pay * 0.3})


# ------------------------------------------------------------------------------- the mathematics


def test_a_line_is_the_weighted_mean():
    a, b = pair()
    assert_allclose(linear(a, b, np.array([0.0, 0.25, 1.0])), [a, 0.75 * a + 0.25 * b, b])


@pytest.mark.parametrize("seed", range(3))
def test_an_arc_keeps_the_norm_and_turns_evenly(seed):
    a, b = pair(seed=seed)
    z = between(a, b, 9, "spherical")
    assert_allclose(np.linalg.norm(z, axis=1), 2.0, rtol=1e-12)
    whole = np.arccos(a @ b / 4)
    assert_allclose(angles(z), whole / 8, rtol=1e-7)


def test_an_arc_stays_in_the_plane_of_its_ends():
    a, b = pair()
    z = between(a, b, 7, "spherical")
    assert np.linalg.matrix_rank(np.stack([a, b, *z]), tol=1e-9) == 2


def test_codes_of_one_length_follow_the_published_formula():
    a, b = pair()
    t = np.linspace(0, 1, 6)
    angle = np.arccos(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))
    white = [(np.sin((1 - s) * angle) * a + np.sin(s * angle) * b) / np.sin(angle) for s in t]
    assert_allclose(spherical(a, b, t), white, rtol=1e-9, atol=1e-12)


def test_between_codes_of_two_lengths_angle_and_length_both_grow_evenly():
    a, b = pair(lengths=(1.0, 3.0))
    z = between(a, b, 5, "spherical")
    assert_allclose(np.linalg.norm(z, axis=1), [1.0, 1.5, 2.0, 2.5, 3.0], rtol=1e-12)
    assert_allclose(angles(z), angles(z)[0], rtol=1e-7)


def test_a_quarter_circle_in_closed_form():
    z = between(np.array([1.0, 0.0]), np.array([0.0, 1.0]), 4, "spherical")
    t = np.linspace(0, np.pi / 2, 4)
    assert_allclose(z, np.stack([np.cos(t), np.sin(t)], 1), atol=1e-12)


@pytest.mark.parametrize("turn", [0.0, 1e-9, 1e-7, 1e-4])
def test_codes_in_nearly_one_direction_have_a_straight_way(turn):
    a, b = np.array([1.0, 0.0]), 2 * np.array([np.cos(turn), np.sin(turn)])
    z = between(a, b, 5, "spherical")
    assert np.isfinite(z).all()
    assert_allclose(z, linear(a, b, np.linspace(0, 1, 5)), atol=max(turn, 1e-12))


def test_ends_are_exact_to_the_last_bit():
    a, b = (v.astype(np.float32) for v in pair(seed=3, lengths=(1.7, 0.3)))
    for kind in ("linear", "spherical"):
        z = between(a, b, 11, kind).astype(np.float32)
        assert_array_equal(z[0], a)
        assert_array_equal(z[-1], b)


def test_there_is_no_one_arc_between_opposite_codes_nor_from_the_origin():
    a, b = pair()
    with pytest.raises(InputError, match=r"opposite directions.*linear"):
        between(a, -3 * a, 5, "spherical")
    with pytest.raises(InputError, match=r"no direction.*linear"):
        between(a, 0 * b, 5, "spherical")
    assert_allclose(between(a, -a, 3), [a, 0 * a, -a])


@pytest.mark.parametrize("steps", [1, 0, -3, 2.5, True, None])
def test_a_way_needs_two_ends(steps):
    with pytest.raises(InputError, match=r"steps is .*2 or more"):
        between(*pair(), steps)


def test_an_unknown_kind_names_the_nearest():
    with pytest.raises(InputError, match="did you mean 'spherical'"):
        between(*pair(), 5, "spheric")


def test_neighbours_are_those_of_all_distances():
    draw = np.random.default_rng(0)
    codes, own = draw.normal(size=(50, 3)), draw.normal(size=3)
    at, far = nearest(codes, own, 7)
    every = cdist(own[None], codes)[0]
    assert_array_equal(at, np.argsort(every)[:7])
    assert_allclose(far, np.sort(every)[:7])


# -------------------------------------------------------------------------------------- on models


@pytest.mark.parametrize("kind", ["linear", "spherical"])
def test_the_ends_are_the_reconstructions_exactly(vae, digits, kind):
    rows = vae.interpolate(digits[3:4], digits[9:10], 6, kind)
    assert rows.shape == (6, 8, 8)
    assert_array_equal(rows[:1], vae.reconstruct(digits[3:4]))
    assert_array_equal(rows[-1:], vae.reconstruct(digits[9:10]))


def test_many_steps_leave_the_ends_as_they_are(vae, digits):
    rows = vae.interpolate(digits[3:4], digits[9:10], 200)
    assert_array_equal(rows[[0, -1]], np.concatenate(
        [vae.reconstruct(digits[3:4]), vae.reconstruct(digits[9:10])]
    ))  # fmt: skip


def test_rows_between_are_decoded_codes(vae, digits):
    a, b = vae.transform(digits[[3, 9]]).astype(np.float64)
    for kind in ("linear", "spherical"):
        rows = vae.interpolate(digits[3:4], digits[9:10], 5, kind)
        assert_allclose(rows, vae.inverse_transform(between(a, b, 5, kind)), atol=1e-6)


def test_one_image_may_come_without_an_axis_for_rows(vae, digits):
    bare = vae.interpolate(digits[3], digits[9], 4)
    assert_array_equal(bare, vae.interpolate(digits[3:4], digits[9:10], 4))


def test_an_arc_needs_a_prior(digits):
    ae = refold.Autoencoder(4, recipe="pca").fit(digits)
    with pytest.raises(InputError, match=r"'plain' latent have none.*recipe='vae'"):
        ae.interpolate(digits[:1], digits[1:2], kind="spherical")


def test_a_decoder_that_sees_more_than_the_code_is_refused(digits):
    ae = refold.Autoencoder(4, recipe="unet", epochs=0).fit(digits)
    for use in (
        lambda: ae.interpolate(digits[:1], digits[1:2]),
        lambda: ae.traverse(digits[:1]),
        lambda: ae.neighbours(digits[:1], digits),
    ):
        with pytest.raises(InputError, match="skips"):
            use()


def test_other_than_one_row_is_refused(vae, digits):
    with pytest.raises(InputError, match="a has 2 rows; give one"):
        vae.interpolate(digits[:2], digits[:1])
    with pytest.raises(InputError, match="b has 3 rows; give one"):
        vae.interpolate(digits[:1], digits[:3])
    with pytest.raises(InputError, match="row has 2 rows"):
        vae.traverse(digits[:2])


def test_a_table_keeps_its_columns_and_types(people):
    ae = refold.Autoencoder(2, epochs=5).fit(people)
    found = ae.interpolate(people.iloc[[0]], people.iloc[[1]], 5)
    assert list(found) == list(people)
    assert (found.dtypes == people.dtypes).all()
    assert set(found["town"]) <= {"Bern", "Graz", "Ulm"}
    first = dict(people.iloc[0])
    assert ae.interpolate(first, people.iloc[[1]], 5).equals(found)


def test_given_columns_are_those_of_the_first_row(people):
    ae = refold.Autoencoder(2, fields={"town": "given"}, epochs=2).fit(people)
    a, b = (people[people["town"] == t].iloc[[0]] for t in ("Graz", "Ulm"))
    assert ae.interpolate(a, b, 4)["town"].tolist() == ["Graz"] * 4
    assert ae.traverse(b, 0, 3)["latent0"]["town"].tolist() == ["Ulm"] * 3


def test_a_walk_moves_one_unit_around_the_row_itself(digits):
    ae = refold.Autoencoder(3, recipe="pca").fit(digits)
    walks = ae.traverse(digits[:1], steps=5)
    assert list(walks) == ["latent0", "latent1", "latent2"]
    own = ae.transform(digits[:1])[0]
    for d, rows in enumerate(walks.values()):
        assert_array_equal(rows[2:3], ae.reconstruct(digits[:1]))
        # The decoder is linear, so steps of a unit are multiples of its atom.
        moved = (rows - rows[2]).reshape(5, -1)
        step = ae.inverse_transform((own + np.eye(3)[d])[None]) - ae.inverse_transform(own[None])
        atom = step.ravel()
        inside = (rows.reshape(5, -1) > 1e-6).all(0) & (rows.reshape(5, -1) < 1 - 1e-6).all(0)
        share = moved[:, inside] @ atom[inside] / (atom[inside] @ atom[inside])
        assert_allclose(moved[:, inside], share[:, None] * atom[inside], atol=1e-4)
        assert (np.diff(share) > 0).all()


def test_a_walk_of_chosen_units(vae, digits):
    every = vae.traverse(digits[:1], steps=3)
    some = vae.traverse(digits[:1], [2, 0], 3)
    assert list(some) == ["latent2", "latent0"]
    for name, rows in some.items():
        assert_array_equal(rows, every[name])
    assert list(vae.traverse(digits[:1], 1, 3)) == ["latent1"]


@pytest.mark.parametrize("unit", [4, -1, 1.5, "latent0", True])
def test_a_unit_that_is_not_there_is_named(vae, digits, unit):
    with pytest.raises(InputError, match=r"there is no unit .*0 to 3"):
        vae.traverse(digits[:1], [unit])


@pytest.mark.parametrize("steps", [2, 1, 4, 2.5])
def test_a_walk_has_a_middle(vae, digits, steps):
    with pytest.raises(InputError, match="odd"):
        vae.traverse(digits[:1], 0, steps)


def test_a_row_is_its_own_nearest_neighbour(vae, digits):
    at, far = vae.neighbours(digits[17:18], digits, 4)
    assert at[0] == 17
    assert far[0] == pytest.approx(0, abs=1e-5)
    codes = vae.transform(digits)
    every = np.linalg.norm(codes - codes[17], axis=1)
    assert_allclose(far, np.sort(every)[:4], atol=1e-5)
    assert (np.diff(far) >= 0).all()


@pytest.mark.parametrize("n", [0, 401, 2.5])
def test_neighbours_are_as_many_as_there_are_rows_at_most(vae, digits, n):
    with pytest.raises(InputError, match="neighbours among 400 rows"):
        vae.neighbours(digits[:1], digits, n)


def test_nothing_random_happens_on_the_way(vae, digits):
    state = torch.random.get_rng_state()
    one = vae.interpolate(digits[3:4], digits[9:10], 5, "spherical")
    assert_array_equal(one, vae.interpolate(digits[3:4], digits[9:10], 5, "spherical"))
    assert torch.equal(state, torch.random.get_rng_state())
