"""What reports say about anomalies: scores, p-values, causes, drift, and series with alarms."""

import base64
import io
import re
from copy import copy
from dataclasses import replace
from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from PIL import Image as Pillow
from scipy import stats

import refold
from refold.errors import InputError
from refold.monitor.timeline import Grid, Timeline
from refold.report import figures, write
from refold.report.anomalies import anomalies
from refold.report.charts import line_chart, shaded
from refold.report.evidence import Evidence
from refold.report.figures.alarms import TOP, alarms_of, closer_of, drawn_channels
from refold.report.figures.anomaly import HIGH, band, compared, levels, p_values_of, spread
from refold.report.monitor import write as write_monitor
from refold.report.text import number, percent
from refold.report.timeaxis import TimeAxis, curve, envelope
from refold.report.watched import Watched

pytest.importorskip("jinja2")

HOSTILE = "</script><img src=x onerror=alert(1)>"
DAY = 86_400 * 10**9


class Page(HTMLParser):
    """Words of each element with an id, and cells of tables by their class."""

    def __init__(self, path):
        super().__init__()
        self.html = path.read_text(encoding="utf-8")
        self.open, self.inside, self.tags, self.tables, self.misnested = [], {}, [], {}, []
        self.feed(self.html)

    def handle_starttag(self, tag, attrs):
        known = dict(attrs)
        self.tags.append((tag, known))
        if tag not in {"meta", "img", "br", "link", "input"}:
            self.open.append((tag, known))
        if tag == "table":
            self.rows = self.tables.setdefault(known["class"], [])
        if tag == "tr" and self.open[-2][0] != "thead":
            self.rows.append([])
        if tag in ("td", "th") and "thead" not in [t for t, _ in self.open]:
            self.rows[-1].append("")

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if not self.open or self.open.pop()[0] != tag:
            self.misnested.append(tag)

    def handle_data(self, data):
        tags = [t for t, _ in self.open]
        for _, known in self.open:
            if "id" in known:
                self.inside[known["id"]] = self.inside.get(known["id"], "") + data
        if ("td" in tags or "th" in tags) and "thead" not in tags:
            self.rows[-1][-1] += data

    def section(self, name):
        return " ".join(self.inside.get(name, "").split())

    def table(self, css):
        return [[" ".join(c.split()) for c in row] for row in self.tables.get(css, [])]


def report(ae, path, data=None, **kw):
    return Page(write(ae, path / "report.html", data, **kw))


def table(n, seed=0):
    """Numbers that depend on one another, and a class that depends on them."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 2)) @ rng.normal(size=(2, 4), scale=1.0) + 0.1 * rng.normal(size=(n, 4))
    found = pd.DataFrame(x, columns=["a", "b", "c", HOSTILE])
    found["side"] = np.where(x[:, 0] > 0, "right", "left")
    return found


@pytest.fixture(scope="module")
def rows():
    return table(1000)


@pytest.fixture(scope="module")
def detector(rows):
    return refold.Autoencoder(recipe="anomaly", seed=0, epochs=8).fit(rows[:700])


@pytest.fixture(scope="module")
def spoilt(rows):
    new = rows[700:].reset_index(drop=True)
    new.loc[5, "b"] = 40.0
    new.loc[17, "side"] = "up"
    new.loc[30, ["a", "c"]] = None
    return new


@pytest.fixture(scope="module")
def plain():
    X = np.random.default_rng(1).normal(size=(400, 5))
    return refold.Autoencoder(2, recipe="pca").fit(X[:300]), X[300:]


def points(d):
    return [tuple(map(float, p)) for p in re.findall(r"[ML]?(-?[\d.]+) (-?[\d.]+)", d)]


def path(panel, kind):
    return re.search(rf'<path class="{kind}" d="([^"]+)"/>', panel.marks)[1]


# --- scores --------------------------------------------------------------------------------------


def test_bars_are_shares_of_the_held_out_rows_and_the_line_those_given(plain):
    ae, X = plain
    figure = figures.scores(ae, X, alpha=0.1)
    (panel,) = figure.panels
    (found,) = compared(Evidence.of(ae, X), 0.1)
    axis, log = spread(found.others, found.given, found.limit)
    bins = np.geomspace if log else np.linspace
    counts, edges = np.histogram(found.others, bins(axis.low, axis.high, 49))
    corners = re.findall(r"M([\d.]+) [\d.]+V([\d.]+)H", path(panel, "bars"))
    lefts = np.array([float(x) for x, _ in corners])
    heights = HIGH - np.array([float(y) for _, y in corners])
    kept = counts > 0
    np.testing.assert_allclose(lefts, [axis.at(e) for e in edges[:-1][kept]])
    np.testing.assert_allclose(heights / heights.sum(), counts[kept] / counts.sum(), atol=2e-3)
    given = np.histogram(np.clip(-ae.score_samples(X), axis.low, axis.high), edges)[0]
    steps = [HIGH - float(v) for v in re.findall(r"V([\d.]+)H", path(panel, "line back"))]
    scale = heights.max() / (counts.max() / counts.sum())
    np.testing.assert_allclose(np.array(steps) / scale, given / len(X), atol=2e-3)


@pytest.mark.parametrize("alpha", [0.05, 0.1, 0.31])
def test_rows_right_of_the_limit_are_the_anomalies(detector, rows, spoilt, plain, alpha):
    for ae, X in (
        plain, (detector, spoilt), (detector, rows[:700]), (detector, rows[600:]),
    ):  # fmt: skip
        flagged = ae.judge(X, alpha)["is_anomaly"]
        evidence = Evidence.of(ae, X)
        learnt = evidence.data.learnt
        found = {g.caption: g.given >= g.limit for g in compared(evidence, alpha)}
        for caption, mine in (("New rows", ~learnt), ("Rows of the fit", learnt)):
            if mine.any():
                np.testing.assert_array_equal(found[caption], flagged[mine])
        assert len(found) == len(set(learnt.tolist()))


def test_the_limit_is_drawn_where_it_lies_and_told_in_words(plain):
    ae, X = plain
    (panel,) = figures.scores(ae, X, alpha=0.1).panels
    (found,) = compared(Evidence.of(ae, X), 0.1)
    axis, _ = spread(found.others, found.given, found.limit)
    assert path(panel, "limit").startswith(f"M{axis.at(-ae.calibration_.threshold(0.1)):g} ")
    assert "right of this line: anomalies at 10%" in panel.marks
    ticks = len(re.findall("M", path(panel, "tick")))
    assert 0 < ticks <= int(ae.judge(X, 0.1)["is_anomaly"].sum())
    (strict,) = figures.scores(ae, X, alpha=0.001).panels
    assert 'class="limit"' not in strict.marks
    assert "no limit at 0.1%" in strict.marks


def test_far_rows_neither_squeeze_the_chart_nor_are_lost():
    held = np.random.default_rng(0).normal(size=1000)
    limit = float(np.quantile(held, 0.99))
    narrow, _ = spread(held, np.zeros(0), limit)
    assert narrow.high == held.max()
    wide, log = spread(held, np.array([1e9, 0.0]), limit)
    assert not log
    assert limit < wide.high < 10
    usual, _ = spread(held, np.array([-1e9]), limit)
    assert usual.low > -10
    positive, log = spread(np.exp(held), np.array([1e3]), float(np.exp(limit)))
    assert log
    assert np.exp(limit) < positive.high <= 1e3
    single, log = spread(np.ones(5), np.ones(2), 1.0)
    assert not log
    assert single.low < 1 < single.high


def test_rows_beyond_the_chart_are_counted(plain):
    ae, X = plain
    far = X.copy()
    far[3:6] *= 1000
    (found,) = compared(Evidence.of(ae, far), 0.01)
    axis, _ = spread(found.others, found.given, found.limit)
    every = np.concatenate([found.others, found.given])
    beyond = int(((every < axis.low) | (every > axis.high)).sum())
    assert beyond >= 3
    assert figures.scores(ae, far).panels[0].note.startswith(f"{beyond} beyond the chart")
    assert figures.scores(ae).panels[0].note == ""


# --- p-values ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("m", "n"), [(20, 50), (100, 1), (199, 700)])
def test_the_band_is_beta_binomial(m, n):
    ranks = np.array([1, 2, m // 2, m])
    low, high = band(ranks, m, n)
    for end, found in ((0.025, low), (0.975, high)):
        expected = stats.betabinom.ppf(end, n, ranks, m + 1 - ranks) / n
        np.testing.assert_allclose(found, expected)


def test_the_band_of_many_rows_is_that_of_the_exact_law():
    ranks = np.array([3, 50, 180])
    exact, close = band(ranks, 199, 10_000), band(ranks, 199, 10_001)
    np.testing.assert_allclose(exact, close, rtol=0.01, atol=2e-4)


def test_p_values_of_new_rows_like_those_held_out_stay_in_the_band():
    """Monte-Carlo: of many batches, about 95 % lie within at every level."""
    rng, m, n = np.random.default_rng(0), 99, 60
    ranks = levels(m)[:-1]
    low, high = band(ranks, m, n)
    inside = []
    for _ in range(800):
        held = np.sort(rng.normal(size=m))
        p = (1 + np.searchsorted(held, rng.normal(size=n), side="right")) / (1 + m)
        share = (p[None] <= ranks[:, None] / (m + 1) + 1e-12).mean(1)
        inside.append((low <= share) & (share <= high))
    covered = np.mean(inside, 0)
    assert covered.min() > 0.93
    assert covered[ranks > 20].max() < 0.985


def test_the_curve_is_the_share_of_rows_up_to_each_level(plain):
    ae, X = plain
    whole, small = figures.p_values(ae, X).panels
    p, m = ae.judge(X, 0.5)["p_value"], len(ae.calibration_.scores)
    drawn = points(path(whole, "line back"))[1:]
    left, right, bottom, top = 40.0, 244.0, 210.0, 6.0
    alpha = levels(m) / (m + 1)
    share = [(p <= a + 1e-12).mean() for a in alpha]
    np.testing.assert_allclose([x for x, _ in drawn], left + alpha * (right - left), atol=0.051)
    heights = bottom - np.array(share) * (bottom - top)
    np.testing.assert_allclose([y for _, y in drawn], heights, atol=0.051)
    least = 1 / (m + 1)
    drawn = points(path(small, "line back"))
    places = left + np.log(alpha / least) / np.log(1 / least) * (right - left)
    np.testing.assert_allclose([x for x, _ in drawn], places, atol=0.051)


def test_rows_of_the_fit_have_no_plot_of_p_values(detector, rows, spoilt):
    assert not p_values_of(Evidence.of(detector, rows[:700])).panels
    assert p_values_of(Evidence.of(detector, spoilt)).panels
    assert "300 new rows" in p_values_of(Evidence.of(detector, rows)).note
    assert not p_values_of(Evidence.saved(detector)).panels
    with pytest.raises(InputError, match="too few new rows"):
        figures.p_values(detector, spoilt[:9])


def test_a_model_without_scores_to_compare_with_is_refused(plain, tmp_path):
    ae, X = plain
    small = ae.truncate(1)
    for draw in (figures.scores, figures.p_values):
        with pytest.raises(InputError, match="recalibrate"):
            draw(small, X)
    text = report(small, tmp_path, X).section("anomalies")
    assert "No scores were kept" in text


# --- the page ------------------------------------------------------------------------------------


def test_the_page_says_how_many_are_anomalies_and_shows_each_chart(detector, spoilt, tmp_path):
    page = report(detector, tmp_path, spoilt)
    assert page.misnested == []
    text = page.section("anomalies")
    flagged = int(detector.judge(spoilt)["is_anomaly"].sum())
    assert f"{flagged} of 300 rows are anomalies at 1%" in text
    assert "up to 3 would be expected" in text
    assert "errors: Error of every entry" in text
    assert "hidden" not in text  # evidence about rows of the fit, of which there are none
    assert "would lie on the diagonal" in text
    assert "no difference from training is seen" in text.lower()
    assert [a["href"] for t, a in page.tags if t == "a"][:3] == ["#data", "#anomalies", "#worst"]


def test_causes_on_the_page_are_those_of_explain(detector, spoilt, tmp_path):
    page = report(detector, tmp_path, spoilt)
    order = [int(r) for r in re.findall(r'class="row-name">Row (\d+)', page.html)][:12]
    score = detector.score_samples(spoilt)
    assert order == np.argsort(score, kind="stable")[:12].tolist()
    told = detector.explain(spoilt)
    shown = page.table("causes")
    assert len(shown) == 36
    for i, row in enumerate(order):
        mine = told[told["row"] == row]
        for line, (_, cause) in zip(shown[3 * i : 3 * i + 3], mine.iterrows(), strict=True):
            name, seen, expected, share, p = line
            assert name == (cause["cause"] if len(cause["cause"]) <= 24 else HOSTILE[:23] + "…")
            assert share == percent(cause["share"])
            assert p == number(cause["p_value"], 2)
            if name not in ("side",):
                assert expected == number(float(cause["expected"]))
                missing = cause["seen"] is None or cause["seen"] != cause["seen"]
                assert seen == ("missing" if missing else number(float(cause["seen"])))
    assert order[0] == 5
    assert shown[0][:2] == ["b", "40"]
    widths = re.findall(r'cause-fill" style="width:([\d.]+)%', page.html)
    shares = [f"{100 * s:.1f}" for row in order for s in told[told["row"] == row]["share"]]
    assert widths == shares
    assert ["side", "up"] in [line[:2] for line in shown]


def test_rows_of_the_fit_are_said_to_be_such(detector, rows, tmp_path):
    text = report(detector, tmp_path, rows[:700]).section("anomalies")
    assert "All of them were in the fit" in text
    assert "hidden: Error" in text
    assert "errors: Error" not in text
    both = report(detector, tmp_path, rows).section("anomalies")
    assert "700 of them were in the fit" in both
    assert f"300 beside {len(detector.calibration_.scores)} held-out rows" in both
    assert "700 beside 700 rows of the fit" in both


def test_without_rows_the_page_shows_the_scores_of_those_held_out(detector, tmp_path):
    page = report(detector, tmp_path)
    text = page.section("anomalies")
    assert f"{len(detector.calibration_.scores)} held-out rows" in text
    assert "P-values" not in text
    assert "as a whole" not in text
    assert "refold report MODEL DATA" in page.section("worst")


def test_drift_on_the_page_is_that_of_the_model(detector, spoilt, tmp_path):
    moved = spoilt.assign(a=spoilt["a"] + 5)
    page = report(detector, tmp_path, moved)
    found = detector.drift(moved)
    assert found.sentence[1:] in page.section("anomalies")
    lines = [r for r in page.table("columns") if len(r) == 4]
    assert lines[0][0] == found.drifted[0].name.strip("'") == "a"
    assert lines[0][1] == " and ".join(found.drifted[0].words)
    assert lines[0][2] == percent(found.drifted[0].size)
    few = report(detector, tmp_path, moved[:20]).section("anomalies")
    assert "20 rows are too few" in few


def test_an_old_model_still_has_scores_causes_and_p_values(plain, tmp_path):
    """Saved before evidence, parts of entries and references for drift were kept."""
    ae, X = plain
    old = copy(ae)
    old.reference_ = None
    old.calibration_ = replace(ae.calibration_, parts=np.zeros((0, 1), np.float32))
    page = report(old, tmp_path, X)
    text = page.section("anomalies")
    assert "P-values" in text
    assert "as a whole" not in text
    assert "cost of a row" in text
    shown = page.table("causes")
    assert {len(line) for line in shown} == {4}
    first = np.argsort(ae.score_samples(X), kind="stable")[0]
    assert shown[0][0] == ae.explain(X[first : first + 1], top=1)["cause"][0]


def test_too_few_rows_to_compare_with_are_told(tmp_path):
    X = np.random.default_rng(0).normal(size=(60, 3))
    ae = refold.Autoencoder(1, epochs=1).fit(X)
    assert "No row can be called an anomaly at 1%" in report(ae, tmp_path, X).section("anomalies")


def test_heat_maps_are_what_pixels_add_to_the_score(tmp_path):
    r = np.random.default_rng(0)
    X = r.integers(60, 120, (150, 6, 5), dtype=np.uint8)
    X[7, 2, 3] = 255
    ae = refold.Autoencoder(3, epochs=1, evidence=("errors",)).fit(X[20:])
    page = report(ae, tmp_path, X[:20])
    maps = [a for t, a in page.tags if t == "img" and a.get("alt") == "heat map"]
    assert len(maps) == 12
    assert page.table("causes") == []
    encoded = maps[0]["src"].removeprefix("data:image/png;base64,")
    pixels = np.asarray(Pillow.open(io.BytesIO(base64.b64decode(encoded))))
    worst = int(ae.score_samples(X[:20]).argmin())
    heat = ae.contributions(X[:20])["image"][worst].sum(0)
    assert worst == 7
    assert np.unravel_index(pixels[..., 3].argmax(), heat.shape) == (2, 3)
    np.testing.assert_allclose(pixels[..., 3], 255 * heat / heat.max(), atol=0.51)


def test_pictures_beside_columns_have_their_part_of_the_score(tmp_path):
    r = np.random.default_rng(0)
    X = {"photo": r.random((90, 4, 4)), "size": r.normal(size=90)}
    ae = refold.Autoencoder(3, epochs=1, evidence=("errors",)).fit(X)
    page = report(ae, tmp_path, X)
    worst = int(ae.score_samples(X).argmin())
    added = {k: v[worst].sum() for k, v in ae.contributions(X).items()}
    share = added.pop("image" if "image" in added else "photo")
    told = f"photo: {percent(float(share / (share + sum(added.values()))))} of the score"
    assert told in page.section("worst")
    assert {line[0] for line in page.table("causes")} <= {"size"}


def test_causes_in_a_text_are_spelt(tmp_path):
    r = np.random.default_rng(0)
    texts = ["".join(r.choice(list("ab"), 4)) for _ in range(119)] + ["abzb"]
    kind = "text(tokens='characters')"
    ae = refold.Autoencoder(2, epochs=1, fields={"t": kind}).fit({"t": texts, "n": np.arange(120)})
    (one,) = anomalies(Evidence.of(ae, {"t": texts, "n": np.arange(120)}), np.array([119]))
    seen = {c.name: c.seen for c in one.causes}
    assert seen["t[2]"] == "'z'"
    assert {c.expected for c in one.causes if c.name != "n"} <= {"'a'", "'b'", "'<end>'"}


def test_causes_are_shaded_in_the_curves():
    r = np.random.default_rng(0)
    X = np.sin(np.arange(40) / 3 + r.uniform(0, 6, (160, 1)))[:, :, None] * [1.0, -1.0]
    X += 0.05 * r.normal(size=X.shape)
    spoilt = X[120:].copy()
    spoilt[4, 10:16, 1] += 3
    ae = refold.Autoencoder(6, epochs=15, fields={"s": "series"}).fit({"s": X[:120]})
    evidence = Evidence.of(ae, {"s": spoilt})
    (one,) = anomalies(evidence, np.array([4]))
    told = ae.explain({"s": spoilt[4:5]})
    spans = {0: [], 1: []}
    for name in told["cause"]:
        first, last, channel = map(
            int, re.match(r"s\[(\d+)(?::(\d+))?,\s*(\d)\]", name).groups(default=-1)
        )
        spans[channel].append((first - 0.5, (last if last >= 0 else first + 1) - 0.5))
    assert any(a <= 11 and b >= 14 for a, b in spans[1])
    for channel, chart in enumerate(one.view.curves):
        ends = [(max(0, a), min(39, b)) for a, b in spans[channel]]
        assert list(chart.spans) == [(chart.x.at(a), chart.x.at(b)) for a, b in ends]
    assert [c.name for c in one.causes] == list(told["cause"])


def test_what_lies_off_a_chart_is_not_shaded():
    chart = line_chart("t", [("given", range(10), range(10))], box=(0, 0, 90, 10))
    assert shaded(chart, [(-5, -1), (-1, 2), (8.5, 20), (11, 12)]).spans == ((0, 20), (85, 90))


# --- long series ---------------------------------------------------------------------------------


def test_every_peak_of_a_long_series_survives():
    values = np.random.default_rng(0).normal(size=50_001)
    values[31_415], values[271] = 99.0, -99.0
    values[40_000:40_300] = np.nan
    at, low, high = envelope(values, 400)
    assert len(at) == len(low) == len(high) == 400
    assert np.nanmax(high) == 99
    assert np.nanmin(low) == -99
    assert abs(at[np.nanargmax(high)] - 31_415) <= 50_001 / 400
    assert np.isnan(low[320])
    for i in range(0, 400, 37):
        part = values[int(i * 50_001 / 400) : int((i + 1) * 50_001 / 400)]
        if not np.isnan(part).all():
            assert (low[i], high[i]) == (np.nanmin(part), np.nanmax(part))


def test_a_curve_has_a_gap_where_nothing_is_known():
    nan = np.nan
    x, y = np.arange(5.0), np.array([1.0, 2.0, nan, 4.0, 5.0])
    assert curve(x, y, y) == "M0.0 1.0L1.0 2.0M3.0 4.0L4.0 5.0"
    low, high = np.array([0.0, 1.0]), np.array([3.0, 1.0])
    assert curve(np.arange(2.0), low, high) == "M0.0 0.0L0.0 3.0L1.0 1.0"


@pytest.mark.parametrize(
    ("start", "days", "first"),
    [
        ("2014-07-01", 214, "2014-07"), ("2014-03-09", 5, "2014-03-09"),
        ("2014-03-09T20:00", 0.5, "2014-03-09 20:00"), ("1999-12-25", 4000, "2000"),
        ("2020-01-01T00:00:05", 1 / 2880, "2020-01-01 00:00:05"),
    ],
)  # fmt: skip
def test_ticks_of_time_are_round_and_inside(start, days, first):
    low = int(np.datetime64(start, "ns").astype(np.int64))
    axis = TimeAxis(low, low + int(days * DAY), 50.0, 950.0, timed=True)
    ticks = axis.ticks(8)
    assert 3 <= len(ticks) <= 8
    assert ticks[0].label == first
    places = [t.at for t in ticks]
    assert places == sorted(places)
    assert places[0] >= 50
    assert places[-1] <= 950


# --- watched series ------------------------------------------------------------------------------


def series(steps=1200, seed=0):
    r, t = np.random.default_rng(seed), np.arange(steps)
    times = np.datetime64("2024-01-01") + t * np.timedelta64(1, "h")
    wave = np.sin(2 * np.pi * t / 24)
    a, b = (s * wave + 0.1 * r.normal(size=steps) for s in (1, -5))
    return pd.DataFrame({"time": times, "a": a, HOSTILE: b})


@pytest.fixture(scope="module")
def monitor():
    return refold.Monitor(24, seed=0, epochs=5).fit(series())


@pytest.fixture(scope="module")
def bad():
    found = series(900, seed=1)
    found.loc[300:305, HOSTILE] += 30
    found.loc[600:640, "a"] = 4.0
    return found.drop(index=range(450, 470))


def test_the_page_lists_the_alarms_of_the_monitor(monitor, bad, tmp_path):
    page = Page(write_monitor(monitor, tmp_path / "a.html", bad, title=HOSTILE, expected=1.0))
    assert page.misnested == []
    assert page.open == []
    assert not any("onerror" in a for t, a in page.tags if t == "img")
    found = monitor.alarms(bad, expected=1.0)
    assert len(found) >= 2
    shown = page.table("alarms")
    assert [line[1] for line in shown] == [str(v) for v in found["start"]]
    assert [line[2] for line in shown] == [str(v) for v in found["end"]]
    assert [line[3] for line in shown] == [str(v) for v in found["peak"]]
    assert [line[4] for line in shown] == [str(v) for v in found["steps"]]
    assert [line[5] for line in shown] == [number(v) for v in found["score"]]
    assert [line[7] for line in shown] == list(found["cause"])
    assert "steps without" not in page.html
    assert "20 of 900 steps have no row" in page.section("choices")
    for _, attrs in page.tags:
        for name in ("src", "href"):
            assert attrs.get(name, "#").startswith(("#", "data:"))


def test_alarms_are_drawn_where_and_when_they_are(monitor, bad):
    watched = Watched.of(monitor, bad, expected=1.0)
    figure = alarms_of(watched)
    assert [p.caption for p in figure.panels] == ["a", HOSTILE, "How unusual"]
    times, axis = watched.line.times, (52.0, 992.0)
    hour = 3600 * 10**9

    def place(time):
        return axis[0] + (time - times[0]) / (times[-1] - times[0]) * (axis[1] - axis[0])

    found = monitor.alarms(bad, expected=1.0)
    starts = found["start"].astype("datetime64[ns]").astype("int64")
    ends = found["end"].astype("datetime64[ns]").astype("int64")
    peaks = found["peak"].astype("datetime64[ns]").astype("int64")
    for panel in figure.panels:
        spans = re.findall(r'<rect class="span" x="([\d.]+)" y="[\d.]+" width="([\d.]+)"',
                           panel.marks)  # fmt: skip
        lefts = [float(x) for x, _ in spans]
        np.testing.assert_allclose(lefts, [place(t - hour / 2) for t in starts], atol=0.06)
        rights = [float(x) + float(w) for x, w in spans]
        expected = [max(place(b + hour / 2), left + 2) for b, left in zip(ends, lefts, strict=True)]
        np.testing.assert_allclose(rights, expected, atol=0.16)
        marks = re.findall(r'class="peak" d="M([\d.]+) ', panel.marks)
        np.testing.assert_allclose([float(x) for x in marks], [place(t) for t in peaks], atol=0.06)


def test_the_scores_are_drawn_against_the_limit(monitor, bad):
    watched = Watched.of(monitor, bad, expected=1.0)
    panel = alarms_of(watched).panels[-1]
    score = monitor.score_steps(bad)["score"].to_numpy()
    top = max(-score.min(), -watched.limit)
    drawn = points(path(panel, "line score"))
    assert min(y for _, y in drawn) == pytest.approx(
        150 + (-score.min() / top) * (TOP - 150), abs=0.06
    )
    limit = monitor.limit(expected=1.0, steps=900)
    level = float(re.match(r"M52 ([\d.]+)H", path(panel, "limit"))[1])
    assert level == pytest.approx(150 - limit / top * (TOP - 150), abs=0.06)
    assert len(drawn) == 880  # a point for each step that has a row
    assert path(panel, "line score").count("M") == 2


def test_each_alarm_is_shown_by_itself_in_its_own_channel(monitor, bad):
    watched = Watched.of(monitor, bad, expected=1.0)
    panels = closer_of(watched).panels
    assert len(panels) == min(12, len(watched.alarms))
    for panel in panels:
        alarm = watched.alarms[int(panel.caption.split(".")[0]) - 1]
        assert alarm.start in panel.caption
        assert alarm.cause in panel.note
        assert 'class="span"' in panel.marks


def test_a_quiet_series_of_counted_steps(tmp_path):
    x = np.sin(np.arange(700) / 3) + 0.1 * np.random.default_rng(0).normal(size=700)
    monitor = refold.Monitor(20, seed=0, epochs=2).fit(x)
    page = Page(write_monitor(monitor, tmp_path / "a.html", x[:300], expected=1e-6))
    assert "No alarm from step 0 to 299" in page.html
    assert 'id="alarms"' not in page.html
    assert 'id="closer"' not in page.html
    figure = figures.alarms(monitor, x, expected=5.0)
    assert figure.panels[0].caption == "x0"
    figure.save(tmp_path / "a.svg")
    causal = Watched.of(monitor, x, causal=True)
    assert np.isnan(causal.score[:19]).all()
    assert alarms_of(causal).panels


def test_a_figure_of_a_long_series_stays_small():
    """However long the series: geometry depends on pixels alone."""
    steps, r = 120_000, np.random.default_rng(0)
    minute = 60 * 10**9
    line = Timeline(
        Grid(minute, True), np.arange(steps) * minute, r.normal(size=(steps, 8)),
        tuple("abcdefgh"), np.arange(steps), "time", np.arange(steps), None,
    )  # fmt: skip
    expected, score = r.normal(size=(steps, 8)), -r.exponential(size=steps)
    watched = Watched(None, line, expected, score, -5.0, (), "")
    assert len(alarms_of(watched).html()) < 800_000


def test_of_many_channels_those_with_alarms_are_drawn():
    names = tuple(f"c{i}" for i in range(20))
    causes = [SimpleNamespace(cause=c) for c in ("c19", "c7", "c19")]
    watched = SimpleNamespace(line=SimpleNamespace(channels=names), alarms=causes)
    assert drawn_channels(watched) == [0, 1, 2, 3, 4, 5, 7, 19]


def test_what_cannot_be_written_is_refused_before_anything_is_judged(monitor, bad, tmp_path):
    with pytest.raises(InputError, match="one HTML file"):
        write_monitor(monitor, tmp_path / "a.png", bad)
    with pytest.raises(InputError, match="call fit"):
        write_monitor(refold.Monitor(), tmp_path / "a.html", bad)
    assert list(tmp_path.iterdir()) == []
