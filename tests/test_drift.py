"""Drift: nothing is said without cause, and what is said is what was changed."""

import math
import time

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from safetensors.torch import load, save
from scipy.spatial.distance import cdist
from scipy.stats import binom, chi2_contingency, fisher_exact, ks_2samp

from refold.data.schema import Schema
from refold.data.sources import read
from refold.detection import drift
from refold.detection.drift import ENDING, Reference
from refold.detection.two_samples import adjusted, apart, chosen, exact, levels_apart

P = [0.3, 0.3, 0.2, 0.16, 0.04]


def compared(then, now, kinds=None, codes=None, **options):
    """Compare two sets of rows as a saved and loaded model would."""
    table = read(then)
    few = len(table) // 5  # held out, so that no scale is learnt from them
    schema = Schema.fit(table, np.arange(few, len(table)), kinds)
    rows = schema.encode(table)[0]
    reference = Reference.of(rows, schema, rows.rows(slice(few)))
    kept = Reference.from_tensors(load(save(reference.tensors())))
    assert kept is not None
    return kept.compare(schema.encode(read(now))[0], schema, codes, **options)


def people(n, seed, *, older=0, oslo=0.04, gaps=0.01):
    rng = np.random.default_rng(seed)
    shares = np.array(P) * (1 - oslo) / 0.96
    shares[-1] = oslo
    income = rng.lognormal(10, 1, n)
    income[rng.random(n) < gaps] = np.nan
    return pd.DataFrame(
        {
            "age": rng.integers(20, 58, n) + older,
            "city": rng.choice(["Bern", "Kyiv", "Lima", "Rome", "Oslo"], n, p=shares),
            "income": income,
            "height": rng.normal(170, 9, n).round(),
            "member": rng.random(n) < 0.2,
        }
    )


def test_what_was_changed_is_named_with_its_figures():
    found = compared(people(3000, 0), people(3000, 1, older=13, oslo=0.31, gaps=0.2))
    assert found is not None
    age, city, income, height, member = (
        next(c for c in found.changes if c.name == f"'{k}'")
        for k in ("age", "city", "income", "height", "member")
    )
    assert age.words == ("is higher (median 52, was 38)",)
    assert age.effect == pytest.approx(13 / 38, abs=0.04)
    assert city.words[0].startswith("has more 'Oslo' (3")
    assert city.effect == pytest.approx(0.27, abs=0.03)
    assert income.missing == pytest.approx((0.01, 0.2), abs=0.02)
    assert income.words[0].startswith("is missing in ")
    assert not height.drifted
    assert not member.drifted
    assert [c.name for c in found.drifted] == ["'age'", "'city'", "'income'"]
    assert found.sentence.startswith(
        "the new rows differ from training as a whole: 'age' is higher"
    )
    assert found.sentence.endswith(ENDING)


@pytest.mark.parametrize(("m", "n"), [(200, 40), (2000, 60), (600, 600)])
def test_like_rows_are_reported_no_oftener_than_stated(m, n, monkeypatch):
    # Without floors, so that the tests alone have to hold the level.
    monkeypatch.setattr(drift, "FLOOR", 0.0)
    monkeypatch.setattr(drift, "GAPS", 0.0)
    alpha, rounds = 0.2, 80
    rng = np.random.default_rng(m + n)

    def rows(count):
        z = rng.normal(size=(count, 2))
        gaps = rng.normal(size=count)
        gaps[rng.random(count) < 0.1] = np.nan
        columns = {f"n{i}": z[:, i % 2] + rng.normal(size=count) for i in range(4)}
        columns |= {"ties": rng.poisson(0.3, count) + 0.0, "gaps": gaps}
        columns |= {f"b{i}": rng.random(count) < p for i, p in enumerate((0.5, 0.08, 0.02))}
        # Of many rare levels, new rows always hold some that training had missed.
        columns["rare"] = rng.zipf(1.5, count).clip(0, 300).astype(str)
        return pd.DataFrame(columns), z

    reports = 0
    for _ in range(rounds):
        (then, before), (now, after) = rows(m), rows(n)
        kinds = {"rare": "categorical", "ties": "numeric"}
        reports += compared(then, now, kinds, (before, after), alpha=alpha) is not None
    assert reports <= binom.ppf(0.999, rounds, alpha)


def test_a_trivial_difference_of_many_rows_is_none():
    rng = np.random.default_rng(0)
    then, now = rng.normal(size=100_000), rng.normal(size=100_000) + 0.03
    assert ks_2samp(then, now).pvalue < 1e-6  # it is there
    city = (
        rng.choice(["a", "b"], 100_000, p=[0.5, 0.5]),
        rng.choice(["a", "b"], 100_000, p=[0.53, 0.47]),
    )
    assert compared({"x": then, "y": city[0]}, {"x": now, "y": city[1]}) is None


def test_what_is_significant_in_the_sample_but_small_is_none(monkeypatch):
    rng = np.random.default_rng(0)
    then, now = rng.normal(size=2000), rng.normal(size=2000) + 0.18
    assert ks_2samp(then, now).pvalue < 1e-4
    assert compared({"x": then, "y": then[::-1]}, {"x": now, "y": then[::-1]}) is None
    monkeypatch.setattr(drift, "FLOOR", 0.0)
    assert compared({"x": then, "y": then[::-1]}, {"x": now, "y": then[::-1]}) is not None


def test_few_rows_tell_nothing():
    then = people(500, 0)
    assert compared(then, people(29, 1, older=60)) is None
    assert compared(then, people(30, 1, older=60)) is not None
    assert compared(people(25, 0), people(500, 1, older=60)) is None


def test_a_column_that_is_absent_is_missing_and_an_absent_target_is_not():
    then = people(500, 0)
    found = compared(then, people(400, 1).drop(columns="height"))
    assert found is not None
    assert [c.words for c in found.drifted] == [("is missing in 100% (was 0%)",)]
    bare = people(400, 1).drop(columns="member")
    assert compared(then, bare, {"member": "target"}) is None


def test_a_median_of_zero_is_shown_as_zero():
    rng = np.random.default_rng(0)
    then = {"x": np.maximum(rng.normal(size=500) - 0.5, 0.0), "y": rng.normal(size=500)}
    now = {"x": 3.0 + rng.random(500), "y": rng.normal(size=500)}
    found = compared(then, now)
    assert found is not None
    assert found.drifted[0].words[0].endswith("was 0)")


def test_values_never_seen_are_named_and_many_rare_ones_are_not():
    rng = np.random.default_rng(0)
    then = {"m": rng.choice(20, 2000).astype(str), "x": rng.normal(size=2000)}
    now = {"m": rng.choice(np.arange(6, 30), 2000).astype(str), "x": rng.normal(size=2000)}
    found = compared(then, now)
    assert found is not None
    assert "has more values never seen in training (4" in found.sentence
    many = {"m": rng.choice(500, 2000).astype(str), "x": rng.normal(size=2000)}
    half = {"m": rng.choice(250, 2000).astype(str), "x": rng.normal(size=2000)}
    found = compared(many, half, {"m": "categorical"})
    assert found is not None
    assert found.drifted[0].words == ("has its levels in other shares",)


def test_numbers_that_spread_are_called_wider_and_times_are_shown_as_times():
    rng = np.random.default_rng(0)
    then = rng.normal(size=(1000, 3))
    now = rng.normal(size=(1000, 3)) * [1, 2, 1]
    found = compared(then, now)
    assert found is not None
    assert [c.name for c in found.drifted] == ["'x1'"]
    assert found.drifted[0].words[0].startswith("is wider (")

    def days(start, n):
        return pd.DataFrame(
            {
                "when": pd.Timestamp(start) + pd.to_timedelta(rng.integers(0, 100, n), unit="D"),
                "x": rng.normal(size=n),
            }
        )

    found = compared(days("2024-01-01", 500), days("2025-01-01", 500))
    assert found is not None
    assert found.drifted[0].words[0].startswith("is higher (median 2025-02-")


BLOCKS = {
    "an image": (lambda r, k: (r.random((200, 12, 12)) * 255 * k).astype(np.uint8), "image"),
    "a long vector": (lambda r, k: r.normal(size=(200, 400)) * k, "vector"),
    "a series": (lambda r, k: r.normal(size=(200, 40)).cumsum(1) * k, "series"),
}


@pytest.mark.parametrize("block", BLOCKS)
def test_a_block_is_told_by_a_handful_of_statistics(block):
    make, kind = BLOCKS[block]
    rng = np.random.default_rng(0)
    then = {"x": make(rng, 1.0)}
    assert compared(then, {"x": make(rng, 1.0)}, {"x": kind}) is None
    found = compared(then, {"x": make(rng, 0.5)}, {"x": kind})
    assert found is not None
    assert len(found.changes) == 5
    assert "the spread of 'x' is lower (by " in found.sentence


def test_texts_and_series_of_their_own_length_are_told_by_their_length():
    rng = np.random.default_rng(0)

    def texts(longest):
        return {"t": ["ab" * k for k in rng.integers(1, longest, 300)]}

    found = compared(texts(9), texts(4), {"t": "text(tokens='characters')"})
    assert found is not None
    assert found.drifted[0].name == "the length of 't'"

    def series(longest):
        rows = [rng.normal(size=k).tolist() for k in rng.integers(3, longest, 300)]
        return pa.table({"s": rows})

    found = compared(series(20), series(10))
    assert found is not None
    assert found.drifted[0].name == "the observed part of 's'"


def test_scales_learnt_from_few_rows_of_many_entries_are_no_drift():
    rng = np.random.default_rng(0)
    table, now = read(rng.normal(size=(200, 400))), read(rng.normal(size=(200, 400)))
    schema = Schema.fit(table, np.arange(200))
    rows, new = schema.encode(table)[0], schema.encode(now)[0]
    assert Reference.of(rows, schema, rows).compare(new, schema) is not None
    assert Reference.of(rows, schema, None).compare(new, schema) is None
    assert Reference.of(rows, schema, rows.rows(slice(29))).compare(new, schema) is None


def test_a_block_that_is_missing_is_said_once():
    rng = np.random.default_rng(0)
    then, now = rng.normal(size=(300, 20)), rng.normal(size=(300, 20))
    now[:100] = np.nan
    found = compared({"s": then}, {"s": now}, {"s": "series"})
    assert found is not None
    said = [(c.name, c.words) for c in found.drifted]
    assert said == [("the observed part of 's'", ("is missing in 33% (was 0%)",))]


def test_codes_alone_can_differ():
    rng = np.random.default_rng(0)
    rows, codes = rng.normal(size=(1000, 3)), rng.normal(size=(800, 4))
    now = rng.normal(size=(1000, 3))
    assert compared(rows, now, codes=(codes, rng.normal(size=(700, 4)))) is None
    found = compared(rows, now, codes=(codes, rng.normal(size=(700, 4)) + 0.7))
    assert found is not None
    assert found.code_drifted
    assert not found.drifted
    assert "their codes lie elsewhere" in found.sentence
    assert found.sentence.endswith(ENDING)


def test_the_distance_of_codes_is_that_of_a_plain_reference():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(70, 3)), rng.normal(size=(50, 3)) + 0.5
    between = 2 * cdist(x, y).mean()
    within = cdist(x, x).sum() / (70 * 69) + cdist(y, y).sum() / (50 * 49)
    distance, p = apart(x, y)
    assert distance == pytest.approx(math.sqrt((between - within) / between), rel=1e-4)
    assert p < 0.005
    # Of normals delta apart, E|X - Y| is a folded normal's mean.
    x, y = rng.normal(size=(100_000, 1)), rng.normal(size=(100_000, 1)) + 1.0
    phi, cdf = math.exp(-0.25) / math.sqrt(2 * math.pi), 0.5 * (1 + math.erf(0.5))
    mean = math.sqrt(2) * (2 * phi + math.sqrt(0.5) * (2 * cdf - 1))
    exact = math.sqrt((2 * mean - 4 / math.sqrt(math.pi)) / (2 * mean))
    assert apart(x, y)[0] == pytest.approx(exact, rel=0.15)


def test_exchanged_codes_have_even_p_values():
    rng = np.random.default_rng(0)
    p = [
        apart(rng.normal(size=(40, 2)), rng.normal(size=(35, 2)), alpha=0.05)[1] for _ in range(300)
    ]
    assert ks_2samp(p, np.arange(1, 22) / 21).pvalue > 0.01
    assert apart(np.zeros((40, 2)), np.zeros((40, 2))) == (0.0, 1.0)
    assert apart(np.zeros((29, 2)), np.ones((40, 2))) == (0.0, 1.0)


def test_exact_p_values_are_fishers_or_above():
    then, now = np.array([3, 20, 0]), np.array([9, 21, 0])
    found = exact(then, now, 40, 30)
    for a, b, p in zip(then, now, found, strict=True):
        one_sided = [
            fisher_exact([[b, 30 - b], [a, 40 - a]], alternative=side)[1]
            for side in ("less", "greater")
        ]
        assert p == pytest.approx(min(1.0, 2 * min(one_sided)))


def test_levels_too_rare_are_counted_together_with_values_never_seen():
    then, now = np.array([600, 300, 90, 4, 3, 3, 0]), np.array([500, 280, 90, 2, 1, 2, 125])
    pooled = np.array([[600, 300, 90, 10], [500, 280, 90, 130]])
    effect, p = levels_apart(then, now)
    assert p == pytest.approx(chi2_contingency(pooled).pvalue)
    assert effect == pytest.approx(0.12)
    assert levels_apart(np.array([40, 0, 0]), np.array([40, 1, 0])) == (0.0, 1.0)
    effect, p = levels_apart(np.array([30, 30, 0]), np.array([20, 40, 0]))
    assert p == pytest.approx(2 * exact(np.array([30]), np.array([20]), 60, 60)[0])
    assert effect == pytest.approx(1 / 6)


def test_adjusted_p_values_are_those_of_their_formula():
    p = np.random.default_rng(0).random(9) ** 3
    order, harmonic = np.argsort(p), (1 / np.arange(1, 10)).sum()
    raised = p[order] * 9 / np.arange(1, 10) * harmonic
    expected = np.empty(9)
    expected[order] = [min(1.0, raised[i:].min()) for i in range(9)]
    np.testing.assert_allclose(adjusted(p), expected)


def test_the_same_rows_are_compared_every_time():
    assert torch.equal(chosen(100_000, 500), chosen(100_000, 500))
    assert len(chosen(100_000, 500).unique()) == 500
    a = compared(people(3000, 0), people(9000, 1, older=13))
    b = compared(people(3000, 0), people(9000, 1, older=13))
    assert a == b


def test_what_is_kept_is_small_and_no_summary_is_none():
    table = read(people(20_000, 0))
    schema = Schema.fit(table, np.arange(len(table)))
    kept = Reference.of(schema.encode(table)[0], schema).tensors()
    assert sum(t.numel() for t in kept.values()) == 2000 * 5
    assert all(k.startswith("drift_") for k in kept)
    assert Reference.from_tensors({"scores": torch.zeros(3)}) is None


def test_many_rows_cost_little():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(100_000, 30))
    table = read(x)
    schema = Schema.fit(table, np.arange(len(table)))
    rows = schema.encode(table)[0]
    reference, codes = Reference.of(rows, schema), rng.normal(size=(2000, 8))
    best = math.inf
    for _ in range(3):
        start = time.perf_counter()
        reference.compare(rows, schema, (codes, x[:, :8]))
        best = min(best, time.perf_counter() - start)
    assert best < 0.5  # some 0.03 s on one core left alone
