"""Figures: what they draw is what the model says, and a saved figure stands alone."""

import base64
import dataclasses
import io
import re
import sys
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image as Pillow
from sklearn.datasets import load_digits

import refold
from refold import inference
from refold.data.sources import read
from refold.errors import InputError, MissingExtraError
from refold.model import Model
from refold.ops.pca import principal_components
from refold.report import figures
from refold.report.evidence import Evidence
from refold.report.figures.code import correlated
from refold.report.figures.points import projected, turned
from refold.report.figures.training import best_row, health_of, phase_starts
from refold.report.page import drawn_of, write
from refold.training.start import design
from refold.uses import inspect, traverse
from refold.uses.inspect import Activity, Quality, prefix_curve, quality

DIGITS = load_digits()
IMAGES = DIGITS.images[:400] / 16
HOSTILE = "</svg><script>alert(1)</script>"


@pytest.fixture(scope="module")
def vectors():
    rng = np.random.default_rng(2)
    return rng.normal(size=(80, 3)) @ rng.normal(size=(3, 6)) + 0.1 * rng.normal(size=(80, 6))


@pytest.fixture(scope="module")
def pca(vectors):
    return refold.Autoencoder(3, recipe="pca").fit(vectors)


@pytest.fixture(scope="module")
def digits():
    return refold.Autoencoder(4, epochs=4).fit(IMAGES)


@pytest.fixture(scope="module")
def sparse():
    return refold.Autoencoder("topk(size=12, k=3)", recipe="sparse", epochs=3).fit(IMAGES)


@pytest.fixture(scope="module")
def table():
    rng = np.random.default_rng(0)
    kind = rng.choice(["red", "green", HOSTILE], 150)
    return pd.DataFrame(
        {
            "height": rng.normal(170, 10, 150) + 8 * (kind == "red"),
            "größe 名": np.where(rng.random(150) < 0.1, np.nan, rng.normal(5, 2, 150)),
            "kind": kind,
            "who": rng.choice(["a", "b"], 150),
        }
    )


@pytest.fixture(scope="module")
def table_model(table):
    return refold.Autoencoder(3, epochs=3, fields={"who": "ignore"}).fit(table)


def pictures(markup):
    found = re.findall(r"base64,([A-Za-z0-9+/=]+)", markup)
    return [np.asarray(Pillow.open(io.BytesIO(base64.b64decode(f)))) for f in found]


def tree(figure):
    return ElementTree.fromstring(figure.svg())


# --- a figure stands alone -----------------------------------------------------------------------


def every(ae, X, size=3):
    yield figures.units(ae, X)
    yield figures.activity(ae, X)
    yield figures.codes(ae, X)
    yield figures.scatter(ae, X)
    yield figures.traversals(ae, X)
    yield figures.histograms(ae, X)
    yield figures.correlation(ae, X)
    yield figures.pairs(ae, X)
    if size > 2:
        yield figures.scatter(ae, X, dims=3)


def test_every_figure_is_well_formed_and_asks_nothing_of_a_network(
    table_model, table, digits, sparse, tmp_path
):
    for ae, X in ((table_model, table), (digits, IMAGES), (sparse, IMAGES)):
        for i, figure in enumerate(every(ae, X)):
            drawn = figure.save(tmp_path / f"{i}.svg").read_text(encoding="utf-8")
            root = ElementTree.fromstring(drawn)
            assert root.tag.endswith("svg")
            assert "var(" not in drawn
            assert "alert(1)</script>" not in drawn
            page = figure.save(tmp_path / f"{i}.html").read_text(encoding="utf-8")
            assert "alert(1)</script>" not in page
            assert "<svg" in figure._repr_html_()
            for text in (drawn, page):
                links = re.findall(r'(?:href|src)="([^"]{0,20})', text)
                assert all(link.startswith("data:image") for link in links)
                assert "url(" not in text


def test_saving_names_its_formats_and_leaves_a_good_file_alone(pca, tmp_path):
    figure = figures.dictionary(pca)
    with pytest.raises(InputError, match=r"use \.svg or \.html"):
        figure.save(tmp_path / "x.png")
    path = tmp_path / "no" / "x.svg"
    with pytest.raises(InputError, match="there is no folder"):
        figure.save(path)
    assert figure.save(tmp_path / "x.svg") == tmp_path / "x.svg"
    assert [p.name for p in tmp_path.iterdir()] == ["x.svg"]


def test_panels_stand_beside_each_other_in_the_drawing(pca):
    root = tree(figures.histograms(pca))
    groups = [g for g in root if g.tag.endswith("g")]
    places = [g.get("transform") for g in groups]
    assert len(places) == len(set(places)) == 3
    width = float(root.get("width"))
    assert all(float(re.findall(r"[\d.]+", p)[0]) < width for p in places)


def test_an_unfitted_model_has_no_figures(vectors):
    for draw in (figures.dictionary, figures.losses, figures.histograms):
        with pytest.raises(InputError, match="not fitted"):
            draw(refold.Autoencoder(2))


# --- the decoder ---------------------------------------------------------------------------------


def test_dictionary_bars_are_the_weights(pca):
    figure = figures.dictionary(pca)
    weights = pca.model_.fusion.linear_path().up.detach().numpy()
    effect = weights * Activity.of(pca.calibration_.codes).std
    order = np.argsort(-np.linalg.norm(effect, axis=0))
    assert [p.caption for p in figure.panels] == [f"latent{d}" for d in order]
    top = effect[:, order[0]]
    strongest = np.argsort(-np.abs(top))
    texts = re.findall(r"<text[^>]*>([^<]+)</text>", figure.panels[0].marks)
    assert texts[::2] == [f"x{e}" for e in strongest]
    values = [float(v.replace("−", "-")) for v in texts[1::2]]
    np.testing.assert_allclose(values, top[strongest], rtol=6e-3)


def test_dictionary_pictures_are_the_weights():
    ae = refold.Autoencoder("topk(size=6, k=3)", recipe="sparse", hidden=(), epochs=2).fit(IMAGES)
    figure = figures.dictionary(ae)
    atoms = ae.model_.fusion.up.last.weight.detach().numpy()
    for panel in figure.panels:
        atom = atoms[:, int(panel.caption.removeprefix("latent"))].reshape(8, 8)
        picture = pictures(panel.marks)[0].astype(float)
        orange = picture[..., 0] > picture[..., 2]
        strength = np.abs(atom) / np.abs(atom).max()
        np.testing.assert_allclose(picture[..., 3] / 255, strength, atol=0.003)
        assert (orange == (atom > 0))[strength > 0.01].all()


def test_units_of_a_linear_decoder_are_its_atoms(pca):
    codes = pca.calibration_.codes
    found = traverse.effects(pca.model_, codes)
    atoms = pca.model_.fusion.linear_path().up.detach().numpy()
    np.testing.assert_allclose(found.added["x"], atoms * codes.std(0), atol=1e-4)
    np.testing.assert_allclose(found.base, codes.mean(0), atol=1e-5)


def test_units_of_a_sparse_model_stand_on_the_zero_code(sparse):
    codes = sparse.transform(IMAGES)
    found = traverse.effects(sparse.model_, codes)
    assert not found.base.any()
    unit = int((codes != 0).sum(0).argmax())
    typical = np.abs(codes[codes[:, unit] != 0, unit]).mean()
    assert codes[:, unit].sum() > 0
    assert found.values[unit] == pytest.approx(typical, rel=1e-4)
    one = np.zeros((2, 12), dtype=np.float32)
    one[1, unit] = typical
    rows = sparse.inverse_transform(one).reshape(2, -1)
    np.testing.assert_allclose(found.added["image"][:, unit], rows[1] - rows[0], atol=1e-5)


def test_the_middle_of_a_walk_is_the_row_s_reconstruction(digits):
    codes = digits.transform(IMAGES)
    values = traverse.span(codes, codes[7], 5)
    walk = traverse.traverse(digits.model_, codes[7], values, np.arange(4))
    assert walk.shape == (4, 5, 4)
    back = traverse.expected(digits.model_, walk[:, 2])["image"]
    expected = digits.reconstruct(IMAGES[7:8]).reshape(-1)
    np.testing.assert_allclose(back, np.tile(expected, (4, 1)), atol=1e-5)
    low, high = np.quantile(codes, (0.02, 0.98), axis=0)
    np.testing.assert_allclose(values[:, 0], np.minimum(low, codes[7]), atol=1e-6)
    np.testing.assert_allclose(values[:, -1], np.maximum(high, codes[7]), atol=1e-6)
    assert (np.diff(values, axis=1) >= 0).all()
    figure = figures.traversals(digits, IMAGES, row=7, steps=5)
    strip = pictures(figure.panels[0].marks)[0]
    assert strip.shape == (8, 5 * 8 + 4, 2)
    shown = strip[:, 18:26, 0] / 255
    np.testing.assert_allclose(shown, expected.reshape(8, 8).clip(0, 1), atol=0.003)


def test_a_walk_over_a_table_is_in_the_user_s_units(table_model, table):
    figure = figures.traversals(table_model, table, row=3)
    panel = figure.panels[0]
    unit = int(panel.caption.removeprefix("latent"))
    codes = table_model.transform(table)
    ends = traverse.span(codes, codes[3], 7)[unit][[0, -1]]
    walk = np.repeat(codes[3][None], 2, 0)
    walk[:, unit] = ends
    heights = table_model.inverse_transform(walk)["height"].to_numpy()
    assert f"{heights[0]:.3g} → {heights[1]:.3g}" in panel.marks


def test_rows_and_steps_that_cannot_be_walked(digits):
    with pytest.raises(InputError, match="row 400 is not among"):
        figures.traversals(digits, IMAGES, row=400)
    for steps in (1, 4):
        with pytest.raises(InputError, match="odd number"):
            figures.traversals(digits, IMAGES, steps=steps)


def test_a_model_without_a_linear_way_has_units_but_no_dictionary(sparse):
    with pytest.raises(InputError, match="no linear map leads"):
        figures.dictionary(sparse)
    assert figures.units(sparse).panels


def test_codes_that_are_not_enough_are_not_decoded(digits, monkeypatch, tmp_path):
    monkeypatch.setattr(Model, "skipping", property(lambda self: ("image",)))
    for draw in (figures.units, figures.traversals):
        with pytest.raises(InputError, match="also sees the encoder's feature maps"):
            draw(digits)
    found = dict(drawn_of(Evidence.of(digits, IMAGES)))
    assert not found["units"].panels
    assert not found["walks"].panels
    page = write(digits, tmp_path / "r.html", IMAGES).read_text(encoding="utf-8")
    assert "a code alone cannot be decoded" in page


# --- the code ------------------------------------------------------------------------------------


def test_activity_is_the_codes(sparse):
    codes = sparse.transform(IMAGES)
    panel = figures.activity(sparse, IMAGES).panels[0]
    picture = pictures(panel.marks)[0].astype(float)
    top = np.quantile(np.abs(codes[:100]), 0.995)
    np.testing.assert_allclose(
        picture[..., 3] / 255, np.clip(np.abs(codes[:100]) / top, 0, 1), atol=0.003
    )


def test_histograms_are_of_the_liveliest_units_that_ever_speak(sparse):
    codes = sparse.transform(IMAGES)
    alive = np.flatnonzero((codes != 0).any(0))
    captions = [p.caption for p in figures.histograms(sparse, IMAGES).panels]
    assert captions == [f"latent{d}" for d in alive]


def test_correlations(digits):
    codes = digits.transform(IMAGES)
    found = correlated(codes)
    np.testing.assert_allclose(found.r, np.corrcoef(codes.T.astype(float)), atol=1e-9)
    i, j, r = found.strongest
    off = np.abs(found.r - np.eye(4))
    assert off.max() == pytest.approx(abs(r), abs=1e-5)
    assert off[i, j] == off.max()
    assert f"latent{i} and latent{j}" in figures.correlation(digits, IMAGES).note
    assert correlated(np.ones((5, 2), dtype=np.float32)).strongest is None


def test_codes_stand_between_input_and_output(digits):
    panel = figures.codes(digits, IMAGES).panels[2]
    given, code, back = pictures(panel.marks)
    assert panel.caption == "Row 2"
    np.testing.assert_allclose(given / 255, IMAGES[2], atol=0.003)
    np.testing.assert_allclose(back / 255, digits.reconstruct(IMAGES)[2].clip(0, 1), atol=0.003)
    z = digits.transform(IMAGES)
    top = np.quantile(np.abs(z), 0.995)
    expected = np.clip(np.abs(z[2]) / top, 0, 1).reshape(2, 2)
    np.testing.assert_allclose(code[..., 3] / 255, expected, atol=0.003)


# --- points --------------------------------------------------------------------------------------


def test_points_by_label(digits):
    labels = DIGITS.target[:400]
    figure = figures.scatter(digits, IMAGES, labels)
    assert [words for _, words in figure.keys] == [str(d) for d in range(10)]
    paths = re.findall(
        r'class="point (?:square )?(s\d)[^"]*"[^>]*d="([^"]+)"', figure.panels[0].marks
    )
    assert [d.count("M") for _, d in paths] == np.bincount(labels).tolist()


def test_a_label_set_aside_or_a_column_colours(table_model, table):
    assert [w for _, w in figures.scatter(table_model, table).keys] == ["a", "b"]
    named = figures.scatter(table_model, table, "kind")
    assert [w for _, w in named.keys] == sorted(["red", "green", HOSTILE])
    by_number = figures.scatter(table_model, table, "height")
    assert by_number.keys == ()
    assert "Colour: height" in by_number.note
    with pytest.raises(InputError, match="did you mean 'height'"):
        figures.scatter(table_model, table, "heigt")
    with pytest.raises(InputError, match="there are 3 labels for 150 rows"):
        figures.scatter(table_model, table, [1, 2, 3])


def test_projections(digits, pca, vectors):
    codes = pca.transform(vectors)
    found = projected(codes, 2, "pca")
    variance = np.linalg.eigvalsh(np.cov(codes.T.astype(float)))[::-1]
    np.testing.assert_allclose(found.points.var(0, ddof=1), variance[:2], rtol=1e-5)
    assert projected(codes, 3, "code").axes == ("latent0", "latent1", "latent2")
    np.testing.assert_allclose(projected(codes, 3).points, codes, rtol=1e-6)
    with pytest.raises(InputError, match="unknown method of scatter 'tnse'; did you mean 'tsne'"):
        figures.scatter(pca, vectors, method="tnse")
    with pytest.raises(InputError, match="give 2 or 3"):
        figures.scatter(pca, vectors, dims=4)
    with pytest.raises(InputError, match="a code of 3 numbers cannot be drawn in 4"):
        projected(codes, 4)


def test_tsne_keeps_neighbours_and_its_seed():
    rng = np.random.default_rng(0)
    groups = np.repeat(np.eye(3, 6) * 20, 30, 0) + rng.normal(size=(90, 6))
    a, b = (projected(groups.astype(np.float32), 2, "tsne", seed=1) for _ in range(2))
    np.testing.assert_array_equal(a.points, b.points)
    centres = a.points.reshape(3, 30, 2).mean(1)
    nearest = ((a.points[:, None] - centres) ** 2).sum(2).argmin(1)
    assert (nearest == np.repeat(np.arange(3), 30)).all()
    many = projected(np.zeros((1200, 2), np.float32) + rng.normal(size=(1200, 2)).astype("f"), 2)
    assert len(many.rows) == 1200


def test_umap_says_how_to_install_it(digits, monkeypatch):
    monkeypatch.setitem(sys.modules, "umap", None)
    with pytest.raises(MissingExtraError, match=r"umap-learn: pip install 'refold\[umap\]'"):
        figures.scatter(digits, IMAGES, method="umap")


def test_umap_parts_groups():
    pytest.importorskip("umap")
    rng = np.random.default_rng(0)
    groups = np.repeat(np.eye(3, 6) * 20, 30, 0) + rng.normal(size=(90, 6))
    points = projected(groups.astype(np.float32), 2, "umap").points
    centres = points.reshape(3, 30, 2).mean(1)
    nearest = ((points[:, None] - centres) ** 2).sum(2).argmin(1)
    assert (nearest == np.repeat(np.arange(3), 30)).all()


def test_three_dimensions_turn_in_html_and_stand_in_svg(pca, vectors, tmp_path):
    figure = figures.scatter(pca, vectors, dims=3)
    page = figure.save(tmp_path / "x.html").read_text(encoding="utf-8")
    assert 'class="rf-orbit"' in page
    assert "pointermove" in page
    assert "<script" not in figure.svg()
    eye = turned(np.eye(3))
    np.testing.assert_allclose(eye @ eye.T, np.eye(3), atol=1e-12)


# --- rows ----------------------------------------------------------------------------------------


def test_pairs_are_inputs_and_outputs(digits, table_model, table):
    panel = figures.pairs(digits, IMAGES, rows=[5]).panels[0]
    given, back, _ = pictures(panel.marks)
    np.testing.assert_allclose(given / 255, IMAGES[5], atol=0.003)
    np.testing.assert_allclose(back / 255, digits.reconstruct(IMAGES)[5].clip(0, 1), atol=0.003)
    row = int(np.flatnonzero(table["größe 名"].isna())[0])
    panel = figures.pairs(table_model, table, rows=[row]).panels[0]
    batch, _ = table_model.schema_.encode(read(table))
    x = float(batch.x["numeric"][row, 0])
    assert f'cx="{215 + min(3, max(-3, x)) * 97 / 3:.1f}"' in panel.marks
    assert panel.marks.count("<circle") == 3  # height given and back, the missing one back alone
    with pytest.raises(InputError, match="there is no row 150"):
        figures.pairs(table_model, table, rows=[150])
    with pytest.raises(InputError, match="give X"):
        figures.codes(table_model, None)


def test_restoration_shows_clean_corrupted_and_restored():
    pytest.importorskip("skimage")
    ae = refold.Autoencoder(16, recipe="denoising", epochs=3).fit(IMAGES)
    figure = figures.restoration(ae, IMAGES)
    clean, noisy, back = pictures(figure.panels[0].marks)
    np.testing.assert_allclose(clean / 255, IMAGES[0], atol=0.003)
    assert np.abs(noisy / 255 - IMAGES[0]).mean() > 0.05
    assert np.abs(back / 255 - IMAGES[0]).mean() < np.abs(noisy / 255 - IMAGES[0]).mean()
    assert "PSNR from" in figure.note
    assert figure == figures.restoration(ae, IMAGES)
    assert figure != figures.restoration(ae, IMAGES, seed=1)


# --- targets and gaps ----------------------------------------------------------------------------


def answers(n=220, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 4))
    shares = np.exp(x @ rng.normal(size=(4, 3)))
    return {
        "x": x,
        "side": np.where(x[:, 0] + 0.3 * rng.normal(size=n) > 0, "right", HOSTILE),
        "grade": np.array(["low", "mid", "high"])[np.digitize(x[:, 1], [-0.5, 0.5])],
        "price": 50 + 10 * x @ [3.0, 1.0, 0.0, 1.0] + rng.normal(size=n),
        "visits": rng.poisson(np.exp(x[:, 2])),
        "when": pd.Timestamp("2024-01-01") + pd.to_timedelta(np.round(x[:, 3] * 5000), "s"),
        "spectrum": x @ rng.normal(size=(4, 6)),
        "mix": shares / shares.sum(1, keepdims=True),
    }


@pytest.fixture(scope="module")
def targets():
    X = answers()
    kinds = {
        "side": "target", "grade": "ordinal(order=('low', 'mid', 'high'), target=True)",
        "price": "target", "visits": "count(target=True)", "when": "target",
        "spectrum": "vector(target=True)", "mix": "distribution(target=True)",
    }  # fmt: skip
    return refold.Autoencoder(4, fields=kinds, epochs=6).fit(X), X


def words(panel):
    return re.findall(r"<text[^>]*>([^<]+)</text>", panel.marks)


def test_confusion_counts_what_predict_says(targets):
    ae, X = targets
    figure = figures.confusion(ae, X)
    assert [p.caption for p in figure.panels] == ["side", "grade"]
    answer = ae.predict(X)
    panel = figure.panels[1]
    levels = ["low", "mid", "high"]
    counts = [[((X["grade"] == a) & (answer["grade"] == b)).sum() for b in levels] for a in levels]
    shown = [w for w in words(panel)[5:] if w.isdigit()]
    assert shown == [str(c) for line in counts for c in line if c]
    assert f"{(X['grade'] == answer['grade']).mean():.1%}".removesuffix("%") in panel.note
    opacity = [float(v) for v in re.findall(r'fill-opacity="([\d.]+)"', panel.marks)]
    shares = [c / sum(line) for line in counts for c in line]
    np.testing.assert_allclose(opacity, np.array(shares) * 0.55, atol=0.006)
    kinds = re.findall(r'class="(plus|minus)"', panel.marks)
    assert [k == "minus" for k in kinds] == np.eye(3, dtype=bool).ravel().tolist()
    assert "may have been trained on" in figure.note
    assert "alert(1)</script>" not in figure.svg()


def test_rare_levels_share_a_line_and_new_ones_are_never_right():
    rng = np.random.default_rng(0)
    X = pd.DataFrame({"a": rng.normal(size=400), "b": rng.normal(size=400)})
    X["shop"] = [f"s{i}" for i in np.minimum(rng.geometric(0.2, 400), 20)]
    ae = refold.Autoencoder(1, epochs=1, fields={"shop": "target"}).fit(X)
    panel = figures.confusion(ae, X).panels[0]
    levels = X["shop"].nunique()
    assert f"others ({levels - 11})" in words(panel)
    assert panel.marks.count("fill-opacity") == 144
    few = X.assign(shop=np.where(X["a"] > 0, "s1", "s2"))
    ae = refold.Autoencoder(1, epochs=1, fields={"shop": "target"}).fit(few)
    new = few.assign(shop=["s1"] * 300 + ["new"] * 100)
    panel = figures.confusion(ae, new).panels[0]
    assert "never seen" in words(panel)
    right = (ae.predict(new)["shop"] == new["shop"]).mean()
    assert panel.note.startswith(f"{100 * right:.1f}".removesuffix(".0"))


def test_parity_is_of_what_predict_says(targets):
    ae, X = targets
    figure = figures.parity(ae, X)
    assert {p.caption for p in figure.panels} == {"price", "visits", "when", "spectrum"}
    panels, answer = {p.caption: p for p in figure.panels}, ae.predict(X)

    def explained(true, found):
        return 1 - ((true - found) ** 2).sum() / ((true - true.mean(0)) ** 2).sum()

    for name, change in (("price", float), ("visits", np.log1p)):
        true, found = (np.vectorize(change)(v[name]).astype(float) for v in (X, answer))
        assert panels[name].note.startswith(f"R² {explained(true, found):.3g}".replace("-", "−"))
    assert panels["visits"].note.endswith("on a log scale")
    assert panels["price"].marks.count("h0") == 220
    assert panels["spectrum"].marks.count("h0") == 220 * 6
    ticks = [float(w) for w in words(panels["price"]) if w.replace(".", "").isdigit()]
    assert len(set(ticks)) > 2
    assert min(X["price"]) <= min(ticks) <= max(ticks) <= max(X["price"])
    assert {"0", "1", "2", "5"} <= set(words(panels["visits"]))
    assert any(w.startswith("2024-01-0") for w in words(panels["when"]))
    xy = re.search(r'class="point s0 small" d="M([\d.]+) ([\d.]+)h0', panels["price"].marks)
    tick = r'<text x="([\d.]+)" y="289" text-anchor="middle">([^<]+)<'
    ends = re.findall(tick, panels["price"].marks)
    (at, a), (to, b) = ([float(v) for v in end] for end in (ends[0], ends[-1]))
    value = a + (float(xy[1]) - at) / (to - at) * (b - a)
    assert value == pytest.approx(X["price"][0], abs=1)


def test_shares_are_means_and_their_divergence_is_kullback_and_leiblers(targets):
    ae, X = targets
    (panel,) = figures.shares(ae, X).panels
    true, found = X["mix"], ae.predict(X)["mix"]
    means = [w for w in words(panel) if w.endswith("%")]
    expected = [v for pair in zip(true.mean(0), found.mean(0), strict=True) for v in pair]
    assert means == [f"{100 * v:.1f}".removesuffix(".0") + "%" for v in expected]
    divergence = (true * np.log(true / found)).sum(1).mean()
    assert panel.note.startswith(f"divergence {divergence:.3g}")


def test_targets_that_are_not_there_are_not_drawn(targets, pca, vectors):
    ae, X = targets
    for draw in (figures.confusion, figures.parity, figures.shares):
        with pytest.raises(InputError, match="to predict here"):
            draw(ae, {"x": X["x"]})
        with pytest.raises(InputError, match="to predict here"):
            draw(pca, vectors)
    some = {k: v for k, v in X.items() if k in ("x", "side")}
    assert [p.caption for p in figures.confusion(ae, some).panels] == ["side"]


def test_the_page_shows_predictions(targets, tmp_path):
    ae, X = targets
    page = write(ae, tmp_path / "r.html", X).read_text(encoding="utf-8")
    for draw in (figures.confusion, figures.parity, figures.shares, figures.pairs):
        assert draw(ae, X).panels
    assert figures.confusion(ae, X).html() in page
    assert figures.parity(ae, X).html() in page
    assert figures.shares(ae, X).html() in page


def test_missing_shares_by_column(table_model, table, pca, vectors):
    (panel,) = figures.missing(table_model, table).panels
    share = table["größe 名"].isna().mean()
    assert words(panel) == ["größe 名", f"{100 * share:.1f}".removesuffix(".0") + "%"]
    gone = table.drop(columns="height")
    assert words(figures.missing(table_model, gone).panels[0])[:2] == ["height", "100%"]
    with pytest.raises(InputError, match="no value is missing"):
        figures.missing(pca, vectors)


# --- training ------------------------------------------------------------------------------------


def test_weights_are_drawn_where_they_move(tmp_path):
    X = answers()
    X = {k: X[k] for k in ("x", "side", "price")}
    still = refold.Autoencoder(2, epochs=4, fields={"side": "target"}).fit(X)
    with pytest.raises(InputError, match="do not move"):
        figures.weights(still)
    ae = refold.Autoencoder(
        2, epochs=12, weights="uncertainty", fields={"side": "target", "price": "target"}
    ).fit(X)
    figure = figures.weights(ae)
    assert [name for _, name in figure.keys] == list(ae.model_.outputs)
    assert figure.html() in write(ae, tmp_path / "r.html", X).read_text(encoding="utf-8")
    assert not any("weight" in p.caption for p in figures.losses(ae).panels)
    assert best_row(ae.history_) == int(np.argmin([r["objective"] for r in ae.history_]))


@pytest.fixture
def phased(digits):
    """A run of two phases, with norms of gradients and dead units in its history."""
    rows = [
        {
            "step": 10.0 * i, "epoch": float(i), "phase": float(i >= 3),
            "train_loss": 2.0 / (i + 1),
            "valid_loss": 3.0 / (i + 1) + 5 * (i < 3) - 4 * (i == 2), "grad_up.0": 0.1 * (i + 1),
            "grad_down.0": 0.01, "dead_units": float(2 - i % 3), "seconds": 0.1 * i,
        }
        for i in range(6)
    ]  # fmt: skip
    ae = refold.Autoencoder(4)
    ae.__dict__.update(digits.__dict__)
    ae.run_ = dataclasses.replace(digits.run_, history=rows)
    ae.run_.phases = ("first <layer>", "everything")
    ae.history_ = rows
    return ae


def test_phases_part_the_losses_and_other_columns_are_no_terms(phased, tmp_path):
    assert phase_starts(phased) == [(0.0, "first <layer>"), (30.0, "everything")]
    figure = figures.losses(phased)
    assert [p.caption for p in figure.panels] == ["loss"]
    assert "everything" in figure.panels[0].marks
    assert "first &lt;layer&gt;" in figure.panels[0].marks
    kept = re.findall(r'class="kept" d="M([\d.]+)', figure.panels[0].marks)
    assert float(kept[0]) == 392  # the best of the last phase, not the lower loss of the first
    page = write(phased, tmp_path / "r.html").read_text(encoding="utf-8")
    assert "Norm of each layer&#x27;s gradient," in page
    assert "everything" in page


def test_gradients_and_dead_units_have_charts_of_their_own(phased, digits):
    health = health_of(phased)
    assert [words for _, words in health.keys] == ["up.0", "down.0"]
    assert [p.caption for p in health.panels] == [
        "Norm of each layer's gradient,", "Units that were zero in every row,"
    ]  # fmt: skip
    for row in phased.history_:
        row["dead_units"] = 0.0
    assert len(health_of(phased).panels) == 1
    with pytest.raises(InputError, match="no steps were trained"):
        figures.losses(refold.Autoencoder(2, recipe="pca").fit(np.eye(30, 4)))


def test_prefixes_of_a_pca_code_keep_what_components_keep(vectors, pca):
    batch, _ = pca.schema_.encode(read(vectors))
    principal = principal_components(design(pca.model_.likelihoods, batch))
    curve = prefix_curve(pca.model_, batch, pca.schema_, principal)
    assert [d for d, _, _ in curve] == [1, 2, 3]
    for _, kept, pca_kept in curve:
        assert kept == pytest.approx(pca_kept, abs=1e-5)
    whole = quality(pca.model_, batch, pca.schema_, principal)
    assert curve[-1][1] == pytest.approx(whole.kept, abs=1e-6)
    assert curve[0][1] < curve[1][1] < curve[2][1]


def test_prefixes_cut_the_code(digits):
    batch, _ = digits.schema_.encode(read(IMAGES))
    principal = principal_components(design(digits.model_.likelihoods, batch))
    curve = prefix_curve(digits.model_, batch, digits.schema_, principal)
    z = inference.embed(digits.model_, batch, digits.schema_).clone()
    z[:, 2:] = 0
    back = traverse.expected(digits.model_, z.numpy())["image"]
    x, mean = batch.x["image"].flatten(1).numpy(), principal.mean.numpy()
    expected = 1 - np.square(x - back).sum() / np.square(x - mean).sum()
    assert curve[1][1] == pytest.approx(expected, abs=1e-5)
    few = prefix_curve(digits.model_, batch, digits.schema_, principal, most=2)
    assert few == (curve[0], curve[-1])


def test_the_curve_survives_json_and_is_drawn(digits, tmp_path):
    plain = {"kept": 0.9, "pca_kept": 0.8, "squared_error": 1.0, "rows": 5}
    assert Quality(**plain).curve == ()
    curved = Quality(**plain, curve=[[1, 0.5, 0.4], [4, 0.9, 0.8]])
    assert curved.curve == ((1, 0.5, 0.4), (4, 0.9, 0.8))
    assert Quality(**dataclasses.asdict(curved)) == curved
    with pytest.raises(InputError, match="not ordered"):
        figures.prefixes(digits)
    ae = refold.Autoencoder(4)
    ae.__dict__.update(digits.__dict__, quality_=curved)
    marks = figures.prefixes(ae).panels[0].marks
    ys = {k: float(y) for k, y in re.findall(r'class="dot (\w+)" cx="392" cy="([\d.]+)"', marks)}
    assert ys["model"] > ys["pca"]  # lower on the page: less is lost
    assert 'id="prefixes"' in write(ae, tmp_path / "r.html").read_text(encoding="utf-8")


def test_figures_leave_the_global_generators_alone(digits):
    state, other = torch.random.get_rng_state(), np.random.get_state()[1].copy()
    figures.scatter(digits, IMAGES[:60], method="tsne")
    figures.pairs(digits, IMAGES)
    assert torch.equal(state, torch.random.get_rng_state())
    assert (other == np.random.get_state()[1]).all()


def test_the_report_shows_the_figures_it_names(digits, tmp_path):
    evidence = Evidence.of(digits, IMAGES)
    page = write(digits, tmp_path / "r.html", IMAGES).read_text(encoding="utf-8")
    shown = {name for name, figure in drawn_of(evidence) if figure.panels and figure.html() in page}
    assert shown == {
        "training", "health", "deep", "histograms", "activity", "codes", "correlation",
        "dictionary", "units", "walks", "scores", "p_values",
    }  # fmt: skip
    assert figures.histograms(digits, IMAGES).html() in page
    assert inspect.dictionary(digits.model_, digits.schema_) is not None
