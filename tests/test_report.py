"""The report: what the page says is what the model says, and the page asks nothing of a network."""

import base64
import hashlib
import io
import json
import re
import sys
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image as Pillow

import refold
from refold.errors import InputError, MissingExtraError
from refold.report import write
from refold.report.charts import Axis, histogram, round_values
from refold.report.text import script_json
from refold.uses.inspect import Activity, dictionary, differing, entry_labels, examine, fidelity

pytest.importorskip("jinja2")

HOSTILE = "</script><img src=x onerror=alert(1)>"
VOID = {"meta", "img", "br", "link", "input", "hr"}


class Page(HTMLParser):
    """Elements of a page, as a browser would see them."""

    def __init__(self, text):
        super().__init__()
        self.text, self.tags, self.open, self.misnested = text, [], [], []
        self.inside, self.words = {}, []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append((tag, dict(attrs).get("id")))

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if not self.open or self.open.pop()[0] != tag:
            self.misnested.append(tag)

    def handle_data(self, data):
        self.words.append(data)
        for tag, name in self.open:
            if name:
                self.inside[name] = self.inside.get(name, "") + data
            elif tag == "script":
                self.inside["code"] = data

    def all(self, tag, css=None):
        return [a for t, a in self.tags if t == tag and (not css or css in a.get("class", ""))]

    @property
    def headings(self):
        return [int(r) for r in re.findall(r'class="row-name">Row (\d+)', self.text)]

    @property
    def data(self):
        return json.loads(self.inside["report-data"])

    def section(self, name):
        return " ".join(self.inside[name].split())


def report(ae, path, data=None, **kw):
    return Page(write(ae, path / "report.html", data, **kw).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def frame():
    rng = np.random.default_rng(0)
    n = 120
    kind = rng.choice(["red", "green", "<i>blue</i>"], n)
    table = pd.DataFrame(
        {
            HOSTILE: rng.normal(size=n) + (kind == "red"),
            "größe 名": np.where(rng.random(n) < 0.1, np.nan, rng.normal(5, 2, n)),
            "kind": kind,
            "when": pd.date_range("2024-01-01", periods=n, freq="h"),
            "note": [f"{HOSTILE} {i} " + "long " * 200 for i in range(n)],
        }
    )
    table.loc[3:9, "kind"] = None
    return table


@pytest.fixture(scope="module")
def table_model(frame):
    return refold.Autoencoder(latent=3, epochs=2).fit(frame)


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(1).integers(0, 256, (40, 6, 5), dtype=np.uint8)


@pytest.fixture(scope="module")
def vectors():
    rng = np.random.default_rng(2)
    return rng.normal(size=(60, 2)) @ rng.normal(size=(2, 6)) + 0.1 * rng.normal(size=(60, 6))


@pytest.fixture(scope="module")
def vector_model(vectors):
    return refold.Autoencoder(latent=2, epochs=1).fit(vectors)


# --- one self-contained page ---------------------------------------------------------------------


def test_page_is_well_formed_and_asks_nothing_of_a_network(table_model, frame, tmp_path):
    page = report(table_model, tmp_path, frame)
    assert page.misnested == []
    assert page.open == []
    for _, attrs in page.tags:
        for name in ("src", "href", "srcset", "action", "data", "poster"):
            if name in attrs:
                assert attrs[name].startswith(("data:", "#")), attrs
    style = page.text.split("<style>")[1].split("</style>")[0]
    assert "@import" not in style
    assert "url(" not in style
    assert "http" not in style + page.inside["code"]
    identified = {a["id"] for _, a in page.tags if "id" in a}
    assert {a["href"][1:] for a in page.all("a")} <= identified


def test_security_policy_admits_the_page_s_own_script_alone(table_model, tmp_path):
    page = report(table_model, tmp_path)
    policy = next(a["content"] for a in page.all("meta") if "http-equiv" in a)
    digest = base64.b64encode(hashlib.sha256(page.inside["code"].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none'")


def test_hostile_names_and_cells_stay_text(table_model, frame, tmp_path):
    page = report(table_model, tmp_path, frame, title=HOSTILE)
    assert not any("onerror" in a for a in page.all("img"))
    assert len(page.all("script")) == 2
    assert page.all("i") == []
    assert HOSTILE in page.section("data")
    assert "<i>blue</i>" in page.section("rows")
    assert HOSTILE in [c["name"] for c in page.data["latent"]["colours"]]


def test_json_in_a_script_cannot_end_it():
    text = script_json({HOSTILE: ["<!--", "&", "\u2028"]})
    assert not set("<>&\u2028") & set(text)
    assert json.loads(text) == {HOSTILE: ["<!--", "&", "\u2028"]}


def test_same_model_and_rows_give_the_same_bytes(vector_model, vectors, tmp_path):
    vector_model.save(tmp_path / "model")
    a = write(vector_model, tmp_path / "a.html", vectors, title="t").read_bytes()
    b = write(refold.load(tmp_path / "model"), tmp_path / "b.html", vectors, title="t").read_bytes()
    assert a == b


def test_failure_leaves_an_existing_report_alone(vector_model, tmp_path):
    path = tmp_path / "report.html"
    path.write_text("good")
    with pytest.raises(InputError):
        write(vector_model, path, {"other": [1.0, 2.0]})
    assert path.read_text() == "good"
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]


def test_missing_extra_says_how_to_install_it(vector_model, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(MissingExtraError, match=r"refold\[report\]"):
        write(vector_model, tmp_path / "report.html")


# --- the numbers are the model's -----------------------------------------------------------------


def test_embedded_numbers_are_the_model_s(table_model, frame, tmp_path):
    page = report(table_model, tmp_path, frame)
    plain = [
        {k: v for k, v in row.items() if not k.startswith("weight_")}
        for row in table_model.history_
    ]
    assert page.data["history"] == plain
    assert "weight_" not in page.section("training")
    latent = page.data["latent"]
    assert latent["rows"] == list(range(len(frame)))
    colours = {c["name"]: c for c in latent["colours"]}
    np.testing.assert_allclose(
        colours["score"]["values"], table_model.score_samples(frame), rtol=1e-5
    )
    codes = table_model.transform(frame)
    axes = {a["name"]: a["values"] for a in latent["axes"]}
    np.testing.assert_allclose(axes["latent1"], codes[:, 1], rtol=1e-3)
    kind = colours["kind"]
    shown = [None if v < 0 else kind["levels"][v] for v in kind["values"]]
    assert shown == [None if pd.isna(v) else v for v in frame["kind"]]
    assert [v is None for v in colours["größe 名"]["values"]] == list(frame["größe 名"].isna())


def test_first_axes_are_the_codes_principal_components(table_model, frame, tmp_path):
    latent = report(table_model, tmp_path, frame).data["latent"]
    codes = table_model.transform(frame).astype(float)
    variance = np.linalg.eigvalsh(np.cov(codes.T))[::-1]
    assert latent["axes"][0]["name"] == f"PC 1 ({variance[0] / variance.sum():.1%})"
    np.testing.assert_allclose(np.var(latent["axes"][0]["values"], ddof=1), variance[0], rtol=1e-3)


def test_without_data_the_page_shows_what_was_saved(vector_model, tmp_path):
    page = report(vector_model, tmp_path)
    latent, kept = page.data["latent"], vector_model.calibration_
    np.testing.assert_allclose(latent["colours"][0]["values"], kept.code_scores, rtol=1e-5)
    np.testing.assert_allclose(latent["axes"][0]["values"], kept.codes[:, 0], rtol=1e-3)
    assert [a["name"] for a in latent["axes"]] == ["latent0", "latent1", "score"]
    for name in ("data", "rows", "worst"):
        assert "refold report MODEL DATA" in page.section(name)


def test_quality_sentence_leads(vector_model, tmp_path):
    page = report(vector_model, tmp_path)
    assert vector_model.quality_.sentence(2) in " ".join(page.words)


def test_at_most_two_thousand_rows_enter_the_page(tmp_path):
    X = np.random.default_rng(0).normal(size=(2300, 3))
    page = report(refold.Autoencoder(latent=1, epochs=0).fit(X), tmp_path, X)
    rows = page.data["latent"]["rows"]
    assert len(rows) == len(set(rows)) == 2000
    assert "2,000 rows drawn at random (seed 0) from the 2,300 rows" in page.section("latent")


# --- rows beside reconstructions -----------------------------------------------------------------


def test_exactly_the_differing_cells_are_marked(table_model, frame, tmp_path):
    page = report(table_model, tmp_path, frame)
    back, scale = table_model.reconstruct(frame), table_model.schema_.fields["numeric"]
    std = dict(zip(scale.columns, scale.std, strict=True))
    differs = {
        HOSTILE: (frame[HOSTILE] - back[HOSTILE]).abs() > std[HOSTILE],
        "größe 名": (frame["größe 名"] - back["größe 名"]).abs() > std["größe 名"],
        "kind": (frame["kind"] != back["kind"]) & frame["kind"].notna(),
        "when": (frame["when"].astype("int64") - back["when"].astype("int64")).abs() > std["when"],
    }
    headings = page.headings
    cells = page.all("td", "cell")
    assert len(cells) == 4 * len(headings)
    marked = ["differs" in a["class"].split() for a in cells]
    names = [HOSTILE[:29] + "…", "größe 名", "kind", "when"]
    assert [a["data-name"] for a in cells[:4]] == names
    expected = [bool(d[row]) for row in headings for d in differs.values()]
    assert marked == expected
    assert 0 < sum(marked) < len(marked)


def test_missing_and_unseen_cells_are_told_apart(frame, table_model, tmp_path):
    rows = frame.iloc[[5, 20]].assign(kind=[None, "purple"])
    with pytest.warns(refold.InputWarning):
        table_model.transform(rows)
    page = report(table_model, tmp_path, rows)
    kinds = [a for a in page.all("td", "cell") if a["data-name"] == "kind"][:2]
    assert ["differs" in a["class"] for a in kinds] == [False, True]
    assert "missing" in page.section("rows")
    assert "purple" in page.section("rows")


def test_worst_rows_are_those_with_the_lowest_scores(vector_model, vectors, tmp_path):
    page = report(vector_model, tmp_path, vectors)
    rows = page.headings[8:]
    assert rows == np.argsort(vector_model.score_samples(vectors), kind="stable")[:12].tolist()
    causes = vector_model.anomalies(vectors)["cause"]
    assert f"p {causes[rows[0]]} " in page.section("worst")


def test_pictures_are_the_images_and_captions_their_errors(images, tmp_path):
    ae = refold.Autoencoder(latent=3, epochs=1).fit(images)
    page = report(ae, tmp_path, images)
    given = [a for a in page.all("img") if a.get("alt", "").startswith("input, row")]
    assert len(given) == 20
    row = int(given[0]["alt"].split()[-1])
    encoded = given[0]["src"].removeprefix("data:image/png;base64,")
    pixels = np.asarray(Pillow.open(io.BytesIO(base64.b64decode(encoded))))
    np.testing.assert_array_equal(pixels, images[row])
    batch, _ = ae.schema_.encode(refold.data.sources.read(images))
    back = examine(ae.model_, batch, ae.schema_).points["image"][row]
    error = float((batch.x["image"][row].flatten() - back).double().square().sum())
    assert f"squared error {error:.4g}" in page.section("rows")
    assert page.data["latent"]["sheet"] == [7, 5, 6]


def test_points_are_coloured_by_a_label_set_aside(vectors, tmp_path):
    X = pd.DataFrame(vectors).rename(columns=str).assign(same=1, label=["a", "b"] * 30)
    ae = refold.Autoencoder(latent=2, epochs=0, fields={"label": "ignore"}).fit(X)
    latent = report(ae, tmp_path, X).data["latent"]
    assert latent["colours"][latent["colour"]]["name"] == "label"
    assert report(ae, tmp_path).data["latent"]["colour"] == 0


def test_long_vectors_are_curves(tmp_path):
    X = np.random.default_rng(0).normal(size=(40, 50))
    X[0, :5] = np.nan
    page = report(refold.Autoencoder(latent=2, epochs=0).fit(X), tmp_path, X)
    assert page.all("td", "cell") == []
    lines = [a for a in page.all("path", "line given") if a["d"].startswith("M44 ")]
    assert len(lines) >= 19


# --- cases at the edge ---------------------------------------------------------------------------


def test_no_steps_no_curves(vectors, tmp_path):
    page = report(refold.Autoencoder(latent=2, recipe="pca").fit(vectors), tmp_path, vectors)
    assert not any("data-term" in a for a in page.all("svg"))
    assert "solved in closed form" in page.section("training")
    assert "The decoder is this linear map." in page.section("dictionary")


@pytest.mark.parametrize("shown", [None, 1, 5])
def test_few_rows(vectors, tmp_path, shown):
    ae = refold.Autoencoder(latent=1, epochs=1).fit(vectors[:3])
    page = report(ae, tmp_path, None if shown is None else vectors[:shown])
    assert page.misnested == []
    assert "too few to hold any out" in " ".join(page.words)


def test_constant_codes_and_dead_units(vectors, tmp_path):
    ae = refold.Autoencoder(latent=4, recipe="pca").fit(vectors)
    with torch.no_grad():
        path = ae.model_.fusion.linear_path()
        path.down.zero_()
        path.down_bias.copy_(torch.tensor([0.0, 1.0, 1.0, 1.0]))
    page = report(ae, tmp_path, vectors)
    assert "1 of 4 units are zero in every row" in page.section("units")
    assert "3 of 4 units are constant" in page.section("units")


def test_thousands_of_columns_are_capped_and_said(tmp_path):
    rng = np.random.default_rng(0)
    wide = pd.DataFrame(rng.normal(size=(30, 1500)), columns=[f"c{i}" for i in range(1500)])
    page = report(
        refold.Autoencoder(latent=70, epochs=0, recipe="sparse").fit(wide), tmp_path, wide
    )
    assert "And 1,300 more columns" in page.section("data")
    assert "Of 1500 cells, the 24 costliest of each row" in page.section("rows")
    assert len(page.data["latent"]["colours"]) == 43
    assert len(page.data["latent"]["axes"]) == 2 + 64 + 1
    assert len(page.text) < 1_000_000


# --- figures about a model -----------------------------------------------------------------------


def test_atoms_are_what_a_unit_adds(table_model, vectors):
    ae = refold.Autoencoder(latent=3, recipe="pca").fit(vectors)
    found = dictionary(ae.model_, ae.schema_)
    assert found is not None
    assert found.whole
    z = torch.randn(1, 3)
    for d in range(3):
        step = ae.model_.decode(z + torch.eye(3)[d])["x"] - ae.model_.decode(z)["x"]
        np.testing.assert_allclose(step[0].detach(), found.atoms["x"][:, d], atol=1e-5)
    mixed = dictionary(table_model.model_, table_model.schema_)
    assert mixed is not None
    assert not mixed.whole
    assert mixed.labels["kind"] == ("kind = <i>blue</i>", "kind = green", "kind = red")


def test_no_dictionary_without_a_linear_way(vectors):
    ae = refold.Autoencoder(latent=2, recipe="sparse", epochs=0).fit(vectors)
    assert dictionary(ae.model_, ae.schema_) is None


def test_fidelity_and_differences_against_their_definitions(table_model, frame):
    schema = table_model.schema_
    batch, _ = schema.encode(refold.data.sources.read(frame))
    points = examine(table_model.model_, batch, schema).points
    kept = fidelity(schema, batch, points)
    back, seen = table_model.reconstruct(frame), frame["kind"].notna()
    right = (back["kind"] == frame["kind"])[seen].mean()
    assert kept["kind"][0].kept == pytest.approx(right)
    assert kept["kind"][0].guess == frame["kind"].value_counts().max() / seen.sum()
    x, y = frame[HOSTILE], back[HOSTILE]
    expected = 1 - ((x - y) ** 2).sum() / ((x - x.mean()) ** 2).sum()
    assert kept["numeric"][0].kept == pytest.approx(expected, abs=1e-5)
    assert not differing(schema, batch, points)["kind"][3:10].any()


def test_activity():
    codes = np.array([[0, 1, 2], [0, 1, 0]], dtype=np.float32)
    found = Activity.of(codes)
    assert found.share.tolist() == [0, 1, 0.5]
    assert found.std.tolist() == [0, 0, 1]


# --- roles and kinds -----------------------------------------------------------------------------


def mixed(n=160, seed=0):
    """Rows of every kind of column, half of which depend on the first numbers."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 4))
    shares = np.exp(x @ rng.normal(size=(4, 3)))
    return {
        "x": x,
        "side": np.where(x[:, 0] > 0, "right", "left"),
        "size": np.array(["s", "m", "l"])[np.digitize(x[:, 1], [-0.5, 0.5])],
        "price": x @ [3.0, 1.0, 0.0, 1.0],
        "visits": rng.poisson(np.exp(x[:, 2])),
        "part": 1 / (1 + np.exp(-x[:, 3])),
        "mix": shares / shares.sum(1, keepdims=True),
        "image": (x[:, :1, None] > np.linspace(-1, 1, 20).reshape(4, 5)) * 1.0,
    }


KINDS = {
    "size": "ordinal(order=('s', 'm', 'l'))", "visits": "count", "part": "bounded(low=0, high=1)",
    "mix": "distribution",
}  # fmt: skip


def roles(role, *names):
    kinds = dict(KINDS)
    for name in names:
        kind = KINDS.get(name)
        if name in ("x", "image"):
            kind = {"x": "vector", "image": "image"}[name]
        option = f"{role}=True)"
        end = f"{kind[:-1]}, {option}" if kind and kind.endswith(")") else f"{kind}({option}"
        kinds[name] = role if kind is None else end
    return kinds


MIXES = {
    "all rebuilt": ({}, KINDS),
    "targets": ({}, roles("target", "side", "price", "mix")),
    "every kind a target": (
        {}, roles("target", "side", "size", "price", "visits", "part", "mix", "image")
    ),
    "given": ({}, roles("given", "x", "size", "price", "mix", "image")),
    "gated": ({"fusion": "gated"}, roles("target", "side", "visits")),
    "experts": ({"fusion": "poe", "recipe": "vae"}, roles("target", "size", "part")),
}  # fmt: skip


@pytest.mark.parametrize("mix", MIXES)
def test_the_page_of_every_mix_of_roles_and_kinds(mix, tmp_path):
    options, fields = MIXES[mix]
    X = mixed()
    ae = refold.Autoencoder(3, epochs=1, fields=fields, **options).fit(X)
    page = report(ae, tmp_path, X)
    assert page.misnested == []
    assert page.open == []
    assert "nan" not in page.text.split('id="report-data"')[0].split("<body>")[1].lower().split()
    targets = ae.schema_.targets
    assert ('id="predictions"' in page.text) == bool(set(targets) - {"image"})
    assert 'id="missing"' not in page.text
    assert report(ae, tmp_path).misnested == []
    known = {k: v for k, v in X.items() if k not in targets}
    if targets:
        absent = report(ae, tmp_path, known)
        assert 'id="predictions"' not in absent.text
        assert "not in the data" in absent.section("data")
        assert "look more usual" in absent.section("worst")
    gone = {k: np.full(v.shape, np.nan) if v.dtype.kind == "f" else v for k, v in X.items()}
    page = report(ae, tmp_path, gone)
    assert page.misnested == []
    assert 'id="missing"' in page.text


def test_a_page_without_anything_rebuilt(tmp_path):
    X = mixed()
    names = [k for k in X if k != "side"]
    ae = refold.Autoencoder(3, epochs=2, fields={**roles("given", *names), "side": "target"}).fit(X)
    assert ae.quality_.kept is None
    page = report(ae, tmp_path, X)
    assert "Rows beside predictions" in page.section("rows")
    assert "Kept by PCA" not in " ".join(page.words)
    assert "side, predicted" in " ".join(page.words)


def test_given_columns_stand_as_they_are_and_targets_as_seen_and_predicted(tmp_path):
    X = {k: v for k, v in mixed().items() if k in ("price", "side", "visits")}
    ae = refold.Autoencoder(
        2, epochs=2, fields={"price": "given", "side": "target", "visits": "count"}
    ).fit(X)
    page = report(ae, tmp_path, X)
    cells = {a["data-name"] for a in page.all("td", "cell")}
    assert cells == {"price · given", "side · target", "visits"}
    shown = re.findall(
        r'data-name="side · target">\s*<span class="given"[^>]*>(\w+)<.*?</span> (\w+)</span>',
        page.text, re.DOTALL,
    )  # fmt: skip
    answer = ae.predict(X)["side"]
    rows = page.headings
    assert shown == [(str(X["side"][r]), str(answer[r])) for r in rows]
    given = re.findall(
        r'data-name="price · given">\s*<span class="given" title="([^"]+)">[^<]*</span>\s*</td>',
        page.text,
    )
    assert given == [refold.report.text.number(X["price"][r]) for r in rows]
    assert "binary · target" in page.section("data")
    assert "numeric · given" in page.section("data")


def test_an_unknown_target_is_not_called_missing(tmp_path):
    X = mixed()
    ae = refold.Autoencoder(2, epochs=1, fields=roles("target", "side")).fit(X)
    page = report(ae, tmp_path, {k: v for k, v in X.items() if k != "side"})
    assert "unknown" in page.section("rows")
    assert 'id="missing"' not in page.text


def test_missing_values_are_counted_and_filled_as_impute_does(tmp_path):
    X = {k: v for k, v in mixed().items() if k in ("price", "side", "part")}
    X["price"] = X["price"].copy()
    X["price"][:40] = np.nan
    ae = refold.Autoencoder(2, epochs=2, fields={"part": "given"}).fit(X)
    page = report(ae, tmp_path, X)
    text = page.section("missing")
    assert "1 of 3 columns has missing values" in text
    assert "25%" in text
    full = ae.impute(X)["price"]
    filled = re.findall(
        r'Row (\d+)</span>[^<]*<span class="soft">1 of 3 filled.*?class="gap filled" '
        r'data-name="price">\s*<span title="([^"]+)">',
        page.text, re.DOTALL,
    )  # fmt: skip
    assert len(filled) == 6
    assert all(refold.report.text.number(full[int(row)]) == value for row, value in filled)
    X["part"] = X["part"].copy()
    X["part"][0] = np.nan
    assert "cannot fill gaps in part" in report(ae, tmp_path, X).section("missing")
    X["side"] = [None] * len(X["side"])
    assert "100%" in report(ae, tmp_path, X).section("missing")


def test_new_kinds_are_judged_as_what_they_are():
    X = mixed()
    ae = refold.Autoencoder(4, epochs=2, fields=KINDS).fit(X)
    schema = ae.schema_
    batch, _ = schema.encode(refold.data.sources.read(X))
    points = examine(ae.model_, batch, schema).points
    kept, differs, back = (
        fidelity(schema, batch, points), differing(schema, batch, points), ae.reconstruct(X)
    )  # fmt: skip
    assert kept["size"][0].kept == pytest.approx((back["size"] == X["size"]).mean())
    commonest = np.unique(X["size"], return_counts=True)[1].max() / len(X["size"])
    assert kept["size"][0].guess == pytest.approx(commonest)
    np.testing.assert_array_equal(differs["size"][:, 0], back["size"] != X["size"])
    np.testing.assert_array_equal(differs["mix"], np.abs(back["mix"] - X["mix"]) > 0.25)
    np.testing.assert_array_equal(differs["part"][:, 0], np.abs(back["part"] - X["part"]) > 0.25)
    assert len(kept["mix"]) == 3
    shares = X["mix"][:, 1]
    expected = 1 - ((shares - back["mix"][:, 1]) ** 2).sum() / ((shares - shares.mean()) ** 2).sum()
    assert kept["mix"][1].kept == pytest.approx(expected, abs=1e-4)
    assert kept["visits"][0].guess == 0
    assert entry_labels(schema.fields["size"]) == ("size = s", "size = m", "size = l")
    assert entry_labels(schema.fields["mix"]) == ("mix0", "mix1", "mix2")
    found = dictionary(ae.model_, schema)
    assert found is not None
    assert all(len(found.labels[k]) == len(found.atoms[k]) for k in found.labels)
    assert found.labels["size"] == ("size",)


def test_a_target_that_is_constant_in_held_out_rows_is_left_out(tmp_path):
    rng = np.random.default_rng(0)
    X = {"x": rng.normal(size=(60, 3)), "rare": np.zeros(60)}
    X["rare"][0] = 1.0
    for seed in range(3):
        ae = refold.Autoencoder(
            2, epochs=0, seed=seed, fields={"rare": "numeric(target=True)"}
        ).fit(X)
        assert all(kept == kept for _, kept, _ in ae.quality_.predicted)
        assert "nan" not in ae.quality_.sentence(2)
        assert report(ae, tmp_path, X).misnested == []


# --- charts --------------------------------------------------------------------------------------


def test_axes():
    assert Axis.over([1, 1000], 0, 300, log=True).at(10) == 100
    assert not Axis.over([1, 10], 0, 300, log=True).log
    assert not Axis.over([-1, 1000], 0, 300, log=True).log
    single = Axis.over([5.0], 0, 10)
    assert single.at(5.0) == 5.0
    assert round_values(-1, 1) == [-1, -0.5, 0, 0.5, 1]
    for top in (10.0, 1e4, 1e12):
        ticks = Axis.over([1e-3, top], 160, 0, log=True).ticks(4)
        assert 1 < len(ticks) <= 6
        assert all(0 <= t.at <= 160 for t in ticks)


def test_histogram_scales_to_its_highest_bar():
    found = histogram(np.array([0.0, 0.0, 1.0, np.nan]), bins=2, width=10, height=40)
    assert found.path == "M0 40V0.0H4.3V40ZM5 40V20.0H9.3V40Z"
    assert (found.low, found.high) == ("0", "1")
    assert histogram(np.array([np.nan])).path == ""
