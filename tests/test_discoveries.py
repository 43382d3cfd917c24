"""Discoveries: the procedure itself, and what it promises of conformal p-values."""

import numpy as np
import pytest
from scipy.stats import false_discovery_control

from refold.detection.discoveries import benjamini_hochberg
from refold.errors import InputError


def stepped_up(p, q):
    """Go down from the largest p-value until one lies on or below its line, in plain words."""
    order = np.argsort(p)
    found = np.zeros(len(p), dtype=bool)
    for k in range(len(p), 0, -1):
        if p[order[k - 1]] <= q * k / len(p):
            found[order[:k]] = True
            break
    return found


@pytest.mark.parametrize("q", [0.01, 0.1, 0.5])
def test_discoveries_are_those_of_a_plain_reference_and_of_scipy(q):
    rng = np.random.default_rng(0)
    for n in (1, 2, 17, 300):
        for _ in range(20):
            p = rng.random(n) ** rng.integers(1, 6)
            found = benjamini_hochberg(p, q)
            assert found.dtype == bool
            np.testing.assert_array_equal(found, stepped_up(p, q))
            np.testing.assert_array_equal(found, false_discovery_control(p) <= q)


def test_a_p_value_on_its_line_is_a_discovery():
    for n in range(1, 60):
        p = np.full(n, 1.0)
        p[0] = 0.1 / n
        assert benjamini_hochberg(p, 0.1).tolist() == [True, *[False] * (n - 1)]


def test_conformal_p_values_keep_the_rate_of_false_discoveries():
    # 180 normal and 20 anomalous rows share 1,000 calibration rows, which makes p-values depend on
    # one another. The rate is that of independent ones, q times the share that is normal.
    rng, q, rates, power = np.random.default_rng(0), 0.2, [], []
    for _ in range(400):
        known = np.sort(rng.normal(size=1000))
        score = np.concatenate([rng.normal(size=180), rng.normal(size=20) + 3.5])
        above = len(known) - np.searchsorted(known, score, side="left")
        found = benjamini_hochberg((1 + above) / (1 + len(known)), q)
        rates.append(found[:180].sum() / max(1, found.sum()))
        power.append(found[180:].mean())
    error = np.std(rates) / len(rates) ** 0.5
    assert np.mean(rates) <= 0.9 * q + 3 * error
    assert np.mean(rates) >= 0.9 * q - 0.03 - 3 * error  # the bound is nearly reached
    assert np.mean(power) > 0.5


def test_of_normal_rows_alone_few_batches_hold_a_discovery():
    rng, hits = np.random.default_rng(1), 0
    for _ in range(500):
        known, score = np.sort(rng.normal(size=500)), rng.normal(size=40)
        above = len(known) - np.searchsorted(known, score, side="left")
        hits += benjamini_hochberg((1 + above) / 501, 0.1).any()
    assert hits / 500 <= 0.1 + 3 * (0.1 * 0.9 / 500) ** 0.5


def test_bad_input_is_one_sentence():
    assert benjamini_hochberg([], 0.1).shape == (0,)
    for p, q, word in (
        ([0.1], 0.0, "q is 0.0"),
        ([0.1], 1.0, "q is 1.0"),
        ([0.1, 1.5], 0.1, "row 1 is 1.5"),
        ([np.nan], 0.1, "row 0 is nan"),
        ([[0.1]], 0.1, "shape"),
    ):
        with pytest.raises(InputError, match=word):
            benjamini_hochberg(p, q)
