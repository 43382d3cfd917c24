"""A long series watched: its grid, its scores, alarms, a stream, and what is kept on disk."""

import datetime
import gc
import json

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

import refold
from refold.errors import InputError
from refold.monitor.alarms import runs
from refold.monitor.calendar import DAY, WEEK, Profile, chosen_profile, dominant_period
from refold.monitor.detector import Detector, Figures
from refold.monitor.evidence import Law, Reference, peaks
from refold.monitor.timeline import SECOND, Grid, moment, timeline

HOURS = 24 * 7 * 10
ANOMALIES = ((410, 422), (903, 909), (1_400, 1_424))


def seasonal(seed=0, steps=HOURS, anomalies=ANOMALIES):
    """Days and weeks with noise, and where said: a flat stretch, a spike, days shifted by half."""
    r = np.random.default_rng(seed)
    t = np.arange(steps)
    week = np.where(t // 24 % 7 >= 5, 0.4, 1.0)
    clean = 10 + 4 * week * np.sin(2 * np.pi * t / 24)
    x = clean + 0.3 * r.normal(size=steps)
    kinds = (lambda v: 10.0 + 0 * v, lambda v: v + 6.0, lambda v: 20.0 - v)
    for (a, b), kind in zip(anomalies, kinds, strict=False):
        x[a:b] = kind(x[a:b])
    times = np.datetime64("2024-01-01") + t * np.timedelta64(1, "h")
    return pd.DataFrame({"timestamp": times, "value": x})


@pytest.fixture(scope="module")
def monitor():
    return refold.Monitor(seed=0).fit(seasonal())


# --------------------------------------------------------------------------- the grid


def stamps(*minutes):
    start = datetime.datetime(2024, 1, 1)
    return [start + datetime.timedelta(minutes=m) for m in minutes]


def test_times_are_found_whatever_they_are_called_and_however_written():
    clock = stamps(*range(0, 50, 10))
    v = [1.0, 2.0, 3.0, 4.0, 5.0]
    seconds = [int((c - datetime.datetime(1970, 1, 1)).total_seconds()) for c in clock]
    written = {
        "typed": pa.table({"when": clock, "v": v}),
        "iso": {"when": [c.isoformat() for c in clock], "v": v},
        "zoned": {"when": [c.isoformat() + "+00:00" for c in clock], "v": v},
        "short": {"when": [c.strftime("%Y-%m-%d %H:%M") for c in clock], "v": v},
        "german": {"when": [c.strftime("%d.%m.%Y %H:%M") for c in clock], "v": v},
        "fraction": {"when": [c.strftime("%Y/%m/%d %H:%M:%S") for c in clock], "v": v},
        "seconds": {"v": v, "unix_time": seconds},
        "milliseconds": {"v": v, "ts": [1000 * s for s in seconds]},
        "pandas": pd.DataFrame({"v": v, "when": clock}),
        "index": pd.DataFrame({"v": v}, index=pd.DatetimeIndex(clock)),
        "polars": pl.DataFrame({"when": clock, "v": v}),
    }
    for kind, series in written.items():
        found = timeline(series)
        assert found.grid == Grid(600 * SECOND, True), kind
        assert found.times.tolist() == [s * SECOND for s in seconds], kind
        assert found.channels == ("v",), kind
        np.testing.assert_array_equal(found.values[:, 0], v)
        assert found.notes == (), kind


def test_rows_are_counted_where_nothing_is_a_time():
    for series in (np.arange(5.0), [0.0, 1, 2, 3, 4], pd.Series(np.arange(5.0), name="a")):
        found = timeline(series)
        assert found.grid == Grid(1, False)
        assert found.times.tolist() == [0, 1, 2, 3, 4]
        assert "no column holds times" in found.notes[0]
    falling = {"time": [3, 2, 1], "v": [1.0, 2.0, 3.0]}
    assert timeline(falling).channels == ("time", "v")
    named = timeline(falling, timestamp="time")
    assert named.channels == ("v",)
    assert named.values[:, 0].tolist() == [3.0, 2.0, 1.0]


def test_steps_off_the_grid_are_snapped_gaps_missing_and_order_restored():
    series = {
        "t": stamps(0, 10, 31, 20, 50, 60, 70, 70),
        "v": [0.0, 1, 3, 2, 5, 6, 7, 9],
        "city": list("abcdefgh"),
    }
    found = timeline(series)
    np.testing.assert_array_equal(found.values[:, 0], [0, 1, 2, 3, np.nan, 5, 6, 8])
    assert found.slots.tolist() == [0, 1, 3, 2, 5, 6, 7, 7]
    said = "; ".join(found.notes)
    for what in ("city", "out of order", "1 row with a time of", "1 of 7 times are off", "1 of 8"):
        assert what in said
    assert found.first_rows(np.array([0, 2, 4, 7])).tolist() == [0, 3, 4, 6]


def test_times_that_cannot_be_used_are_refused_by_row():
    clock = [c.isoformat() for c in stamps(*range(0, 200, 10))]
    v = list(range(20))
    for bad, why in (
        ([*clock[:7], "yesterday", *clock[8:]], r"row 7 of 't' is 'yesterday', which is no time"),
        ([*clock[:3], None, *clock[4:]], "row 3 of 't' is None, which is no time"),
        ([clock[i // 5] for i in range(20)], "4 times for 20 rows"),
        ([clock[0]] * 20, "1 times for 20 rows"),
        ([*clock[:19], "2090-01-01T00:00:00"], "span .* steps of 10 min, but there are 20 rows"),
    ):
        with pytest.raises(InputError, match=why):
            timeline({"t": bad, "v": v}, timestamp="t")
    with pytest.raises(InputError, match="no column 'when' to take times from"):
        timeline({"t": clock, "v": v}, timestamp="when")
    with pytest.raises(InputError, match="no channel: no column of numbers"):
        timeline({"t": clock, "v": ["a", "b"] * 10})
    with pytest.raises(InputError, match="'v' holds infinity in row 4"):
        timeline({"t": clock, "v": [*v[:4], float("inf"), *v[5:]]})


def test_a_csv_is_read(tmp_path):
    path = tmp_path / "series.csv"
    seasonal().to_csv(path, index=False)
    found = timeline(path)
    assert found.name == "timestamp"
    assert len(found) == HOURS
    assert found.grid.step == 3600 * SECOND


# --------------------------------------------------------------------------- the calendar


def test_a_profile_is_the_median_of_each_phase():
    r = np.random.default_rng(0)
    times = DAY * 3 + 3600 * SECOND * np.arange(24 * 9, dtype=np.int64)
    v = r.normal(size=(len(times), 2))
    v[5, 0] = np.nan
    own = Profile.of(times, v, DAY, 3600 * SECOND)
    expected = np.nanmedian(v.reshape(9, 24, 2), axis=0)
    np.testing.assert_allclose(own.medians, expected)
    np.testing.assert_allclose(own.expected(times[24:48]), expected)
    left = v - np.tile(expected, (9, 1))
    np.testing.assert_allclose(own.scale, 1.4826 * np.nanmedian(np.abs(left), axis=0))
    level = Profile.of(times, v, 0, 3600 * SECOND)
    np.testing.assert_allclose(level.medians, np.nanmedian(v, axis=0)[None])


def test_the_period_that_foretells_held_out_time_is_chosen():
    r = np.random.default_rng(0)
    series = timeline(seasonal(anomalies=()))
    folds = np.arange(HOURS) * 8 // HOURS % 4
    given = series.times, series.values, series.grid
    assert dominant_period(series.values) == 24
    assert chosen_profile(*given, 24, folds)[0] == WEEK
    noise = r.normal(size=series.values.shape)
    assert dominant_period(noise) is None
    assert chosen_profile(series.times, noise, series.grid, None, folds)[0] == 0
    daily = 10 + np.sin(2 * np.pi * np.arange(HOURS) / 24)[:, None] + 0.1 * noise
    assert chosen_profile(series.times, daily, series.grid, 24, folds)[0] == DAY


# --------------------------------------------------------------------------- the evidence


def test_the_law_of_peaks_is_recovered_from_draws_with_anomalies_among_them():
    r = np.random.default_rng(0)
    draws = np.exp(1.5 + 0.4 * r.logistic(size=20_000))
    law = Law.of(draws)
    assert abs(law.middle - 1.5) < 0.02
    assert abs(law.spread - 0.4) < 0.02
    share = np.exp(-law.surprise(np.array([10.0, 20.0])))
    counted = [(draws >= x).mean() for x in (10.0, 20.0)]
    np.testing.assert_allclose(share, counted, rtol=0.1)
    spoilt = np.concatenate([draws, np.full(1_000, 1e6)])
    assert abs(Law.of(spoilt).middle - 1.5) < 0.1
    assert np.isnan(law.surprise(np.array([np.nan]))).all()


def figures(shape, distance):
    nothing = np.zeros((len(shape), 1))
    return Figures(shape[:, None], distance, nothing, nothing)


def test_expected_alarms_are_those_of_the_same_law():
    r = np.random.default_rng(1)
    steps, stretch = 40_000, 20

    def drawn():
        return figures(r.chisquare(3, steps), r.chisquare(5, steps))

    reference = Reference.of([drawn()], stretch)
    found = reference.score(drawn())
    for expected in (400, 100, 25):
        limit = reference.limit(expected / steps)
        count = int((peaks(-found, stretch) >= -limit).sum())
        assert expected / 2 < count < 2 * expected
    for alpha in (0.1, 0.01, 0.001):
        p = reference.p_values(found)
        assert abs((p <= alpha).mean() - alpha) < 4 * np.sqrt(alpha / steps)
        np.testing.assert_array_equal(p <= alpha, found <= reference.quantile(alpha))
    assert reference.quantile(1e-6) == -np.inf


def test_shares_of_channels_add_up_to_the_surprise(monitor):
    r = np.random.default_rng(0)
    own = Figures(r.random((9, 3)), r.random(9), r.random((9, 3)), r.random((9, 3)))
    shares = monitor.merged_.shares(own)
    np.testing.assert_allclose(shares.sum(1), -monitor.merged_.score(own))


def test_runs_are_those_of_a_plain_loop():
    r = np.random.default_rng(0)
    for _ in range(50):
        scores = r.normal(size=60)
        scores[r.random(60) < 0.1] = np.nan
        limit, gap = r.normal() - 1, int(r.integers(1, 6))
        expected = []
        for i, s in enumerate(scores):
            if np.isnan(s) or s > limit:
                continue
            if expected and i - expected[-1][-1] <= gap:
                expected[-1].append(i)
            else:
                expected.append([i])
        found = [(x.first, x.last, x.peak) for x in runs(scores, limit, gap)]
        assert found == [(e[0], e[-1], min(e, key=lambda i: scores[i])) for e in expected]


# --------------------------------------------------------------------------- the monitor


def test_three_anomalies_are_found_and_little_else(monitor):
    series = seasonal()
    assert monitor.window_ == 24
    assert "time of week" in " ".join(monitor.reasons_)
    months = HOURS / 24 / 30
    alarms = monitor.alarms(series, per_month=1)
    assert list(alarms) == ["start", "end", "peak", "score", "p_value", "steps", "cause"]
    inside = [
        [i for i, (a, b) in enumerate(ANOMALIES)
         if row.start <= series.timestamp[b - 1] and row.end >= series.timestamp[a]]
        for row in alarms.itertuples()
    ]  # fmt: skip
    assert {i for some in inside for i in some} == {0, 1, 2}
    assert sum(not some for some in inside) <= months
    assert (alarms.start <= alarms.peak).all()
    assert (alarms.peak <= alarms.end).all()
    assert (alarms.start.diff().dropna() > pd.Timedelta(0)).all()


def test_new_series_are_found_out_as_well_and_alarms_are_as_rare_as_said(monitor):
    clean = seasonal(seed=1, anomalies=())
    assert len(monitor.alarms(clean, expected=1)) <= 4
    few, many = (len(monitor.alarms(clean, expected=e)) for e in (1, 30))
    assert few < many
    other = seasonal(seed=2, anomalies=((700, 712),))
    alarms = monitor.alarms(other, expected=1)
    worst = alarms.loc[alarms.score.idxmin()]
    assert worst.start <= other.timestamp[711]
    assert worst.end >= other.timestamp[700]
    p = monitor.score_steps(clean).p_value
    assert (p <= 0.05).mean() < 0.1


def test_steps_are_judged_in_the_order_and_container_given(monitor):
    series = seasonal(seed=3)
    whole = monitor.score_steps(series)
    assert list(whole)[:5] == ["timestamp", "score", "p_value", "is_anomaly", "cause"]
    assert (whole.cause == "value").all()
    assert (whole.is_anomaly == (whole.p_value <= 0.01)).all()
    usual = np.abs(whole.expected - series.value)[100:400]
    assert usual.mean() < 0.5
    order = np.random.default_rng(0).permutation(HOURS)
    mixed = monitor.score_steps(series.iloc[order])
    np.testing.assert_allclose(mixed.score, whole.score.to_numpy()[order])
    assert (mixed.timestamp.to_numpy() == series.timestamp.to_numpy()[order]).all()
    arrow = monitor.score_steps(pa.Table.from_pandas(series, preserve_index=False))
    assert isinstance(arrow, pa.Table)
    np.testing.assert_array_equal(arrow["score"].to_numpy(), whole.score)
    polars = monitor.alarms(pl.from_pandas(series))
    assert isinstance(polars, pl.DataFrame)


def test_the_series_that_was_learnt_is_judged_by_models_that_had_not_seen_it(monitor):
    line = monitor._line(seasonal())
    own = monitor.detector_.merged(line.times, line.values, monitor.stride_)
    held_out = monitor.own_.figures
    np.testing.assert_array_equal(
        monitor.score_steps(seasonal()).score, monitor.merged_.score(held_out)
    )
    assert np.nanmedian(own.shape) < np.nanmedian(held_out.shape)


def test_gaps_have_no_score_and_spoil_no_other_step(monitor):
    series = seasonal(seed=4, anomalies=())
    holed = series.drop(index=range(500, 506)).reset_index(drop=True)
    holed.loc[800, "value"] = np.nan
    whole, found = monitor.score_steps(series), monitor.score_steps(holed)
    assert len(found) == HOURS - 6
    assert np.isnan(found.score[800])
    assert not found.is_anomaly[800]
    far = np.r_[0:450, 550:750]
    np.testing.assert_allclose(
        found.score[far], whole.score[np.where(far < 500, far, far + 6)], rtol=1e-4, atol=1e-6
    )
    assert np.isfinite(found.score.drop(800)).all()


def test_the_channel_at_fault_is_named():
    series = seasonal(anomalies=())
    r = np.random.default_rng(5)
    for i, name in enumerate(("b", "c")):
        series[name] = 100 * (i + 1) + series.value * (i + 2) + r.normal(size=HOURS)
    series["place"] = "x"
    fitted = refold.Monitor(seed=0, epochs=5).fit(series)
    assert fitted.channels_ == ("value", "b", "c")
    assert "place" in " ".join(fitted.notes_)
    spoilt = series.copy()
    spoilt.loc[600:611, "c"] += 40
    alarms = fitted.alarms(spoilt, expected=1)
    worst = alarms.loc[alarms.score.idxmin()]
    assert worst.cause == "c"
    assert abs((worst.peak - spoilt.timestamp[605]) / pd.Timedelta("1h")) < 12
    steps = fitted.score_steps(spoilt)
    assert {"expected_value", "expected_b", "expected_c"} < set(steps)


# --------------------------------------------------------------------------- the stream


def test_a_stream_says_what_the_causal_scores_say(monitor):
    series = seasonal(seed=6).drop(index=[100, 101, 102, 300]).reset_index(drop=True)
    series = series.iloc[:500]
    causal = monitor.score_steps(series, alpha=0.05, causal=True)
    stream = monitor.stream(alpha=0.05)
    pushed = [stream.push(t, v) for t, v in zip(series.timestamp, series.value, strict=True)]
    assert causal.score[:23].isna().all()
    assert causal.score[23:].notna().all()
    np.testing.assert_allclose([s.score for s in pushed], causal.score, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose([s.p_value for s in pushed], causal.p_value, atol=2e-3)
    np.testing.assert_allclose([s.expected["value"] for s in pushed], causal.expected, atol=1e-3)
    raised = np.array([s.is_anomaly for s in pushed])
    assert raised.any()
    assert (raised != causal.is_anomaly).sum() <= 1
    later = series.assign(value=np.where(np.arange(500) >= 400, 0.0, series.value))
    np.testing.assert_allclose(
        monitor.score_steps(later, causal=True).score[:400], causal.score[:400], atol=1e-6
    )


def test_a_stream_needs_no_more_memory_the_longer_it_runs(monitor):
    stream = monitor.stream(per_month=1)
    start = datetime.datetime(2024, 3, 1)

    def run(a, b):
        for i in range(a, b):
            stream.push(start + datetime.timedelta(hours=i), 10.0)

    run(0, 100)
    gc.collect()
    before = len(gc.get_objects())
    run(100, 400)
    gc.collect()
    assert len(gc.get_objects()) - before < 20
    assert stream._ring.shape == (24, 1)


def test_a_stream_refuses_the_past_and_stays_as_it_was(monitor):
    stream, other = monitor.stream(), monitor.stream()
    clock = pd.date_range("2024-03-01", periods=40, freq="h")
    for t in clock[:30]:
        stream.push(t, 10.0)
        other.push(t, 10.0)
    for time, values, why in (
        (clock[29], 10.0, "was pushed already"),
        (clock[3], 10.0, "is before the last one"),
        (clock[30], [1.0, 2.0], "has 2 values, but 1 were expected"),
        (clock[30], float("inf"), "'value' is infinite"),
        (clock[30], "much", "are no numbers"),
        (clock[30], {"level": 3}, "no value of value"),
        ("soon", 10.0, "'soon' is no time"),
        (None, 10.0, "time is missing"),
    ):
        with pytest.raises(InputError, match=why):
            stream.push(time, values)
    one, two = stream.push(clock[30], {"value": 12.0}), other.push(clock[30], 12.0)
    assert one == two
    again = stream.push(clock[30] + pd.Timedelta("10min"), 14.0)
    assert stream._ring[-1, 0] == 13.0
    assert again.score != one.score
    far = stream.push(clock[30] + pd.Timedelta("90D"), 10.0)
    assert np.isnan(far.score)
    assert not far.is_anomaly


def test_counted_steps_are_pushed_by_number():
    t = np.arange(600)
    x = np.sin(2 * np.pi * t / 20) + 0.1 * np.random.default_rng(0).normal(size=600)
    fitted = refold.Monitor(window=20, epochs=2).fit(x)
    other = np.roll(x, 200)
    stream = fitted.stream(alpha=0.05)
    found = [stream.push(i, v).score for i, v in enumerate(other[:100])]
    causal = fitted.score_steps(other, causal=True).score[:100]
    np.testing.assert_allclose(found, causal, rtol=1e-3, atol=1e-4)
    with pytest.raises(InputError, match="no number of a step"):
        stream.push("2024-01-01", 0.0)
    with pytest.raises(InputError, match="no times; give expected= or alpha="):
        fitted.alarms(x, per_month=2)
    assert list(fitted.alarms(x).columns)[:3] == ["start", "end", "peak"]
    assert moment(5, Grid(1, False)) == 5


# --------------------------------------------------------------------------- kept and refused


def test_a_saved_monitor_is_the_same(monitor, tmp_path):
    folder = tmp_path / "watch"
    monitor.save(folder)
    monitor.save(folder)
    other = refold.Monitor.load(folder)
    assert (other.reasons_, other.notes_) == (monitor.reasons_, monitor.notes_)
    assert (other.window_, other.stride_, other.channels_) == (24, monitor.stride_, ("value",))
    for series in (seasonal(), seasonal(seed=7)):
        for causal in (False, True):
            pd.testing.assert_frame_equal(
                other.score_steps(series, causal=causal), monitor.score_steps(series, causal=causal)
            )
        pd.testing.assert_frame_equal(other.alarms(series), monitor.alarms(series))
    assert other.stream(per_month=1).limit == monitor.stream(per_month=1).limit
    names = {p.name for p in folder.rglob("*") if p.is_file()}
    assert not any(name.endswith((".pkl", ".pickle", ".pt")) for name in names)
    assert isinstance(refold.load(folder / "model"), refold.Autoencoder)


def test_folders_that_are_no_monitor_or_were_changed_are_refused(monitor, tmp_path):
    monitor.save(tmp_path / "watch")
    monitor.ae_.save(tmp_path / "model")
    with pytest.raises(InputError, match=r"is no monitor: it holds no monitor\.json"):
        refold.Monitor.load(tmp_path / "model")
    with pytest.raises(InputError, match="is no monitor"):
        refold.Monitor.load(tmp_path / "nowhere")
    with pytest.raises(InputError, match="exists and is not a monitor"):
        monitor.save(tmp_path / "model")
    config = tmp_path / "watch" / "monitor.json"
    text = config.read_text()
    config.write_text(text.replace('"stride": 1', '"stride": 2'))
    with pytest.raises(InputError, match=r"monitor\.json does not match its checksum"):
        refold.Monitor.load(tmp_path / "watch")
    config.write_text(json.dumps({**json.loads(text), "format": 99}))
    with pytest.raises(InputError, match="written by a newer refold"):
        refold.Monitor.load(tmp_path / "watch")
    config.write_text(text)
    arrays = tmp_path / "watch" / "monitor.safetensors"
    arrays.write_bytes(arrays.read_bytes()[:-1] + b"x")
    with pytest.raises(InputError, match=r"monitor\.safetensors does not match its checksum"):
        refold.Monitor.load(tmp_path / "watch")


def test_recalibration_compares_with_new_rows_and_learns_nothing(tmp_path):
    own = refold.Monitor(seed=0, epochs=5, contamination=0).fit(seasonal(anomalies=()))
    noisy = seasonal(seed=8, anomalies=())
    noisy["value"] += 0.6 * np.random.default_rng(9).normal(size=HOURS)
    flagged = own.score_steps(noisy).is_anomaly.mean()
    weights = {k: v.clone() for k, v in own.ae_.model_.state_dict().items()}
    own.recalibrate(noisy)
    assert all((own.ae_.model_.state_dict()[k] == v).all() for k, v in weights.items())
    again = own.score_steps(noisy).is_anomaly.mean()
    assert flagged > 0.03
    assert again <= 0.01
    with pytest.raises(InputError, match="fewer than 8 windows of 24"):
        own.recalibrate(noisy.iloc[:100])


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"window": 1}, "window is 1; give a whole number, 2 or more"),
        ({"window": 2.5}, "window is 2.5"),
        ({"window": 400}, "fewer than 8 windows of 400"),
        ({"stride": 0}, "stride is 0"),
        ({"stride": 30, "window": 20}, "stride is 30, more than a window of 20"),
        ({"contamination": 0.7}, "contamination is 0.7; give a share"),
        ({"fields": {}}, "makes its own field"),
        ({"epochs": "many"}, "epochs is 'many'"),
        ({"timestamp": "when"}, "no column 'when'"),
    ],
)
def test_options_are_checked(options, why):
    with pytest.raises(InputError, match=why):
        refold.Monitor(**options).fit(seasonal())


def test_series_and_limits_that_cannot_be_used_are_refused(monitor):
    with pytest.raises(InputError, match="has 20 steps; give 64 or more"):
        refold.Monitor().fit(seasonal().iloc[:20])
    with pytest.raises(InputError, match="learnt no series yet"):
        refold.Monitor().score_steps(seasonal())
    with pytest.raises(InputError, match="has no times, but the one fitted had"):
        monitor.score_steps({"value": [1.0, 2.0]})
    with pytest.raises(InputError, match="no channel value"):
        monitor.score_steps(seasonal().rename(columns={"value": "level"}))
    with pytest.raises(InputError, match="per_month and alpha were given"):
        monitor.alarms(seasonal(), per_month=1, alpha=0.01)
    with pytest.raises(InputError, match="per_month is -1; it must be above 0"):
        monitor.alarms(seasonal(), per_month=-1)
    with pytest.raises(InputError, match="alpha is 2; it must lie between"):
        monitor.alarms(seasonal(), alpha=2)


def test_any_recipe_and_latent_watches():
    series = seasonal(steps=600, anomalies=ANOMALIES[:1])
    for options in (
        {"latent": "gaussian(size=3)", "recipe": "vae"},
        {"latent": 2, "hidden": (16,)},
    ):
        fitted = refold.Monitor(seed=0, epochs=4, **options).fit(series)
        assert fitted.ae_.spec_.size == (3 if "recipe" in options else 2)
        score = fitted.score_steps(series).score
        assert np.isfinite(score).all()
        assert score[410:422].mean() < 2 * score.mean()


def test_unusual_windows_are_left_out_of_training():
    series = seasonal(anomalies=())
    r = np.random.default_rng(0)
    spoilt = series.copy()
    for start in r.choice(60, 3, replace=False) * 24:
        spoilt.loc[start : start + 23, "value"] = 30 + r.normal(size=24)
    line = timeline(spoilt)

    def learnt(contamination):
        return Detector.learn(
            line.times, line.values, np.ones(HOURS, dtype=bool), window=24, stride=1, period=WEEK,
            grid=line.grid, contamination=contamination, options={"epochs": 2},
        )  # fmt: skip

    clean, all_in = learnt(0.15), learnt(0.0)
    assert clean.ae.n_rows_ < 0.86 * all_in.ae.n_rows_
    high = line.values[:, 0] > 25
    far = [d.merged(line.times, line.values, 1).distance[high].min() for d in (clean, all_in)]
    assert far[0] > 3 * far[1]


def test_constant_and_mostly_constant_channels_are_watched():
    flat = seasonal(anomalies=()).assign(flat=3.0, rare=0.0)
    flat.loc[::97, "rare"] = 1.0
    fitted = refold.Monitor(seed=0, epochs=2).fit(flat)
    assert np.isfinite(fitted.score_steps(flat).score).all()
    moved = flat.copy()
    moved.loc[500:511, "flat"] = 4.0
    alarms = fitted.alarms(moved, expected=1)
    assert alarms.loc[alarms.score.idxmin()].cause == "flat"


def test_labelled_windows_of_real_series_raise_alarms(shared):
    folder = shared / "series"
    labels = json.loads((folder / "nab_windows.json").read_text())
    name = "nyc_taxi.csv"
    fitted = refold.Monitor(seed=0).fit(folder / name)
    alarms = fitted.alarms(folder / name)
    for start, end in labels[name]:
        inside = (alarms.start <= pd.Timestamp(end)) & (alarms.end >= pd.Timestamp(start))
        assert inside.any()
