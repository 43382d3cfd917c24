"""Comparing recipes: the measures against closed forms, the ranking, the page and the command."""

import json
import math
import re
import sys

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from scipy.spatial.distance import cdist
from sklearn.datasets import load_digits
from sklearn.linear_model import LinearRegression

import refold
from refold import InputError, cli
from refold.comparison import MEASURES, Comparison, Contender
from refold.comparison import contest as contest_module
from refold.comparison.contest import USUAL, chosen_recipes, sized, suits
from refold.comparison.measures import Labels, neighbours_kept, unexplained, views
from refold.comparison.outcome import place
from refold.data.sources import read
from refold.learn import split
from refold.recipe import RECIPES, Recipe, get
from refold.report import comparison as page


def people(n=200, seed=0):
    r = np.random.default_rng(seed)
    age = r.normal(50, 10, n)
    pay = 1000 + 40 * age + r.normal(0, 100, n)
    town = r.choice(["Bern", "Graz", "Ulm"], n)
    frame = pd.DataFrame({"age": age, "pay": pay, "town": town, "rent": 0.3 * pay})
    frame.loc[::17, "pay"] = np.nan
    frame["old"] = np.where(age > 50, "yes", "no")
    return frame


@pytest.fixture(scope="module")
def digits():
    d = load_digits()
    return d.images[:400] / 16, d.target[:400]


@pytest.fixture(scope="module")
def found():
    return refold.compare(people(), ["pca", "vae", "unet"], label="old", latent=2, epochs=3)


@pytest.fixture(scope="module")
def pictured(digits):
    images, target = digits
    return refold.compare(images, ["pca", "unet"], label=target, latent=4, epochs=1)


# ---------------------------------------------------------------------------------- the measures


def test_what_does_not_come_back_is_the_squared_error_over_the_variance_in_training():
    rows = people()[["age", "pay", "rent", "town"]]
    train, test = rows.iloc[:150], rows.iloc[150:]
    ae = refold.Autoencoder(2, epochs=3, validation=0.0).fit(train)
    both = [ae.schema_.encode(read(part))[0] for part in (train, test)]
    shares = unexplained(ae.model_, ae.schema_, *both)
    back = ae.reconstruct(test)
    assert list(shares) == ["age", "pay", "rent", "town"]
    for name in ("age", "pay", "rent"):
        error = np.nanmean(np.square(back[name].where(test[name].notna()) - test[name]))
        assert shares[name] == pytest.approx(error / np.nanvar(train[name]), rel=1e-4)
    assert shares["town"] == pytest.approx((back["town"] != test["town"]).mean())


def test_missing_classes_are_not_judged():
    rows = people()[["age", "town", "rent"]]
    rows.loc[160:180, "town"] = None
    ae = refold.Autoencoder(2, epochs=3, validation=0.0).fit(rows[:150])
    both = [ae.schema_.encode(read(part))[0] for part in (rows[:150], rows[150:])]
    kept = rows[150:][rows["town"][150:].notna()]
    wrong = (ae.reconstruct(rows[150:]).loc[kept.index, "town"] != kept["town"]).mean()
    assert unexplained(ae.model_, ae.schema_, *both)["town"] == pytest.approx(wrong)


def test_a_block_is_one_column(digits):
    images = digits[0]
    ae = refold.Autoencoder(4, recipe="pca", validation=0.0).fit(images[:300])
    both = [ae.schema_.encode(read(part))[0] for part in (images[:300], images[300:])]
    error = np.square(ae.reconstruct(images[300:]) - images[300:]).mean(0).sum()
    assert unexplained(ae.model_, ae.schema_, *both) == {
        "image": pytest.approx(error / images[:300].var(0).sum(), rel=1e-4)
    }


def test_a_model_that_says_the_mean_leaves_everything_unexplained():
    x = np.random.default_rng(0).normal(size=(400, 3))
    rows = pd.DataFrame(x, columns=["a", "b", "c"])
    ae = refold.Autoencoder(1, recipe="pca", validation=0.0).fit(rows)
    for p in ae.model_.fusion.parameters():
        torch.nn.init.zeros_(p)
    batch = ae.schema_.encode(read(rows))[0]
    assert_allclose(list(unexplained(ae.model_, ae.schema_, batch, batch).values()), 1.0, rtol=1e-4)


def near(x, k):
    far = cdist(x, x)
    np.fill_diagonal(far, np.inf)
    return [set(row) for row in np.argsort(far, axis=1)[:, :k]]


def test_neighbours_kept_is_the_overlap_of_plain_rankings():
    draw = np.random.default_rng(0)
    x, z = draw.normal(size=(40, 5)), draw.normal(size=(40, 2))
    pairs = zip(near(x, 10), near(z, 10), strict=True)
    assert neighbours_kept(x, z) == pytest.approx(np.mean([len(a & b) / 10 for a, b in pairs]))


def test_codes_that_turn_and_scale_keep_all_neighbours_and_noise_keeps_few():
    draw = np.random.default_rng(0)
    x = draw.normal(size=(600, 3))
    turn = np.linalg.qr(draw.normal(size=(3, 3)))[0]
    assert neighbours_kept(x, 5 * x @ turn + 1) == 1.0
    kept = neighbours_kept(x, draw.normal(size=(600, 3)))
    assert kept == pytest.approx(10 / 599, abs=0.01)
    assert math.isnan(neighbours_kept(x[:2], x[:2]))


def test_views_are_standardised_numbers_and_indicators():
    table = read(people())
    schema = refold.Autoencoder(2, epochs=0, validation=0.0).fit(people()).schema_
    seen = views(schema, schema.encode(table)[0])
    assert seen.shape == (200, 3 + 3 + 1)
    assert np.isfinite(seen).all()


def test_a_probe_of_classes_finds_a_line_and_one_of_numbers_gives_r2():
    draw = np.random.default_rng(0)
    z = draw.normal(size=(300, 3))
    train, test = np.arange(200), np.arange(200, 300)
    codes = {"train": z[train], "test": z[test]}
    side = Labels.of("side", pa.chunked_array([np.where(z[:, 0] > 0, "r", "l")]))
    assert side.classes
    assert side.probe(codes, train, test) > 0.95
    y = z @ [1.0, -2.0, 0.5] + draw.normal(0, 0.5, 300)
    number = Labels.of("y", pa.chunked_array([y]))
    assert not number.classes
    plain = LinearRegression().fit(z[train], y[train]).score(z[test], y[test])
    assert number.probe(codes, train, test) == pytest.approx(plain, abs=0.01)


def test_rows_without_a_label_neither_teach_nor_ask():
    z = np.random.default_rng(0).normal(size=(300, 2))
    y = [None if i % 3 == 0 else "r" if z[i, 0] > 0 else "l" for i in range(300)]
    labels = Labels.of("y", pa.chunked_array([y]))
    assert np.isnan(labels.values[::3]).all()
    train, test = np.arange(200), np.arange(200, 300)
    assert labels.probe({"train": z[train], "test": z[test]}, train, test) > 0.9
    known = [v for v in y[200:] if v is not None]
    assert labels.guess(test) == max(known.count("r"), known.count("l")) / len(known)


def test_a_label_that_says_nothing_is_refused():
    with pytest.raises(InputError, match="same in every row"):
        Labels.of("y", pa.chunked_array([["a"] * 30]))
    with pytest.raises(InputError, match="holds arrays"):
        Labels.of("y", np.zeros((5, 2)))


# ----------------------------------------------------------------------------- choosing and ranking


def test_usual_recipes_exist_and_those_for_images_are_left_out_of_tables():
    assert set(USUAL) <= set(RECIPES)
    table, images = (chosen_recipes(None, kinds) for kinds in ({"numeric"}, {"image"}))
    assert "conv" in images
    assert "conv" not in table
    assert set(table) < set(images) <= set(USUAL)


def test_all_are_all_that_suit():
    every = chosen_recipes("all", {"numeric", "categorical"})
    assert {"imputation", "stacked", "wta"} <= set(every)
    assert not {"unet", "conv_wta", "conv"} & set(every)
    assert {"unet", "conv_wta", "conv"} <= set(chosen_recipes("all", {"image"}))


def test_named_recipes_stay_in_order_each_once():
    assert chosen_recipes(["vae", "pca", "vae"], {"numeric"}) == ["vae", "pca"]
    with pytest.raises(InputError, match="no recipe is named"):
        chosen_recipes([], {"numeric"})


def test_sizes_follow_the_recipe():
    assert sized(get("dense"), 6) == 6
    assert sized(get("sparse"), 6) == 48
    assert sized(get("conv_wta"), 6) is None
    assert sized(get("vae"), None) is None
    assert suits(Recipe(), set())


def contender(name, **figures):
    every = {**dict.fromkeys(MEASURES, math.nan), **figures}
    return Contender(name, None, every, {}, None, ())


def outcome(*ranked, by="reconstruction", refused=None):
    return Comparison(tuple(ranked), refused or {}, by, read(people()), None, 10, ("of note",))


def test_figures_that_are_missing_come_last_whichever_way_is_better():
    assert sorted([0.3, math.nan, 0.1], key=lambda v: place(v, "reconstruction"))[:2] == [0.1, 0.3]
    assert sorted([0.3, math.nan, 0.9], key=lambda v: place(v, "label"))[:2] == [0.9, 0.3]


def test_the_best_of_each_measure_are_marked_unless_all_are_alike():
    both = outcome(
        contender("a", reconstruction=0.2, label=0.5, code=8.0, neighbours=0.5),
        contender("b", reconstruction=0.4, label=0.7, code=8.0),
        contender("c", reconstruction=0.2, label=0.7, code=8.0, neighbours=0.25),
    )
    assert both.leaders("reconstruction") == ("a", "c")
    assert both.leaders("label") == ("b", "c")
    assert both.leaders("neighbours") == ("a",)
    assert both.leaders("code") == ()
    assert both.measures == ("reconstruction", "neighbours", "label", "code")


def test_the_table_for_people():
    one = outcome(
        contender("a", reconstruction=0.2, parameters=1234.0, likelihood=-3.5),
        contender("bb", reconstruction=0.4, parameters=99.0),
        refused={"c": "not today"},
    )
    assert str(one).splitlines() == [
        "recipe  reconstruction   likelihood   parameters",
        "                 lower       higher        lower",
        "a                0.200*       -3.50        1,234",
        "bb               0.400                        99*",
        "refused: c: not today",
        "note: of note",
    ]
    assert one.sentence() == "by reconstruction (lower is better) a comes first: 0.200"


# --------------------------------------------------------------------------------- on real models


def test_the_figures_are_those_of_the_models(found):
    assert {c.recipe for c in found.ranked} == {"pca", "vae"}
    train, held = split(200, 0.2, 0)
    assert (found.trained, len(found.test)) == (160, 40)
    frame = people().drop(columns="old")
    assert_array_equal(read(frame.iloc[held]).columns["age"].to_numpy(), found.test.columns["age"])
    for c in found.ranked:
        assert c.figures["code"] == c.ae.spec_.size == 2
        assert c.figures["parameters"] == sum(p.numel() for p in c.ae.model_.parameters())
        assert c.figures["reconstruction"] == pytest.approx(np.mean(list(c.errors.values())))
        assert_allclose(c.codes, c.ae.transform(frame.iloc[held]), atol=1e-5)
        back = c.ae.reconstruct(frame.iloc[held])["age"]
        error = np.square(back - frame["age"].iloc[held]).mean()
        assert c.errors["age"] == pytest.approx(error / frame["age"].iloc[train].var(ddof=0), 1e-3)
        assert c.figures["seconds"] > 0


def test_the_label_ranks_unless_another_purpose_is_named(found):
    assert found.by == "label"
    figures = [c.figures["label"] for c in found.ranked]
    assert figures == sorted(figures, reverse=True)
    assert found.best is found.ranked[0].ae


def test_no_recipe_has_seen_the_label_nor_the_test_rows(found):
    for c in found.ranked:
        assert "old" not in c.ae.schema_.order
        assert c.ae.n_rows_ == 160


def test_only_models_with_a_posterior_have_a_likelihood(found):
    by_name = {c.recipe: c for c in found.ranked}
    assert math.isnan(by_name["pca"].figures["likelihood"])
    vae = by_name["vae"]
    held = split(200, 0.2, 0)[1]
    rows = people().drop(columns="old").iloc[held]
    assert vae.figures["likelihood"] == pytest.approx(
        vae.ae.log_likelihood(rows, samples=contest_module.DRAWS).mean(), rel=1e-4
    )
    assert any("same likelihoods alone" in note for note in found.notes)


def test_a_recipe_that_refuses_is_listed_with_its_sentence(found):
    assert list(found.refused) == ["unet"]
    assert "for fields of kind image" in found.refused["unet"]
    assert "refused: unet: recipe 'unet' is for" in str(found)


def test_the_same_seed_gives_the_same_figures(found):
    again = refold.compare(people(), ["pca", "vae"], label="old", latent=2, epochs=3)
    for one, two in zip(found.ranked, again.ranked, strict=True):
        for m in MEASURES:
            if m != "seconds":
                assert_array_equal(one.figures[m], two.figures[m])


def test_the_table_as_a_frame(found):
    table = found.table()
    assert isinstance(table, pd.DataFrame)
    assert table["recipe"].tolist()[-1] == "unet"
    assert table["rank"].tolist()[:2] == [1, 2]
    assert table["refusal"].notna().tolist() == [False, False, True]
    assert len(table) == 3


def test_models_that_see_beside_the_code_are_blank_where_codes_are_judged(pictured):
    unet = next(c for c in pictured.ranked if c.recipe == "unet")
    assert unet.codes is None
    assert all(math.isnan(unet.figures[m]) for m in ("neighbours", "label", "likelihood"))
    assert unet.figures["reconstruction"] > 0
    assert pictured.ranked[-1] is unet


def test_models_of_arrays_take_the_users_own_arrays(pictured, digits):
    assert pictured.best.transform(digits[0][:3]).shape == (3, 4)
    x = digits[0].reshape(-1, 64)
    flat = refold.compare(x, "pca", latent=3)
    assert flat.best.transform(x[:3]).shape == (3, 3)
    assert flat.by == "reconstruction"


def test_one_that_breaks_does_not_lose_the_others(monkeypatch):
    def broken():
        raise RuntimeError("out of\nmemory")

    real = contest_module.Arena._fitted

    def fitted(self, wishes, watch):
        return broken() if wishes["recipe"] == "dense" else real(self, wishes, watch)

    monkeypatch.setattr(contest_module.Arena, "_fitted", fitted)
    found = refold.compare(people(60), ["dense", "pca"], epochs=1)
    assert found.refused == {"dense": "RuntimeError: out of memory"}
    assert [c.recipe for c in found.ranked] == ["pca"]


def test_interrupting_ends_the_comparison(monkeypatch):
    def stop(progress):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        refold.compare(people(60), ["dense", "pca"], epochs=1, watch=stop)


def test_a_budget_in_seconds_is_as_many_epochs_as_one_says(monkeypatch):
    asked = []

    class Clock:
        run_ = None
        history_ = ({"seconds": 0.5}, {"seconds": 0.75})

    def fitted(self, wishes, watch):
        asked.append(wishes["epochs"])
        return Clock() if len(asked) == 1 else real(self, wishes, watch)

    real = contest_module.Arena._fitted
    monkeypatch.setattr(contest_module.Arena, "_fitted", fitted)
    refold.compare(people(60), ["dense"], seconds=1.1)
    assert asked == [1, 4]


def test_options_reach_every_recipe():
    found = refold.compare(people(60), ["dense", "nested"], epochs=1, lr=0.0123, hidden=(7,))
    for c in found.ranked:
        assert (c.ae.plan_.lr, c.ae.spec_.fusion.options["hidden"]) == (0.0123, (7,))


def test_roles_and_kinds_are_kept_and_the_labels_kind_is_its_own():
    fields = {"town": "ignore", "old": "categorical"}
    found = refold.compare(people(60), ["pca"], label="old", fields=fields, epochs=1)
    assert found.best.schema_.aside["town"].reason == "ignored as asked"
    assert any("'town' is left out" in note for note in found.notes)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"recipes": ["vea"]}, "did you mean 'vae'"),
        ({"label": "hold"}, "unknown column 'hold'; did you mean 'old'"),
        ({"label": ["a"] * 3}, "3 labels for 200 rows"),
        ({"by": "labels"}, "unknown purpose 'labels'; did you mean 'label'"),
        ({"by": "label"}, "no label is named"),
        ({"epochs": 1, "seconds": 1.0}, "give one of them"),
        ({"seconds": 0.0}, "above 0"),
        ({"test": 1.0}, "below 1"),
        ({"test": 0.001}, "3 or more on both sides"),
        ({"learning_rate": 0.1}, "unknown option 'learning_rate'"),
        ({"recipes": ["unet", "conv_wta"]}, "no recipe could be trained.*unet.*; conv_wta"),
        ({"latent": 0, "recipes": ["pca"]}, "no recipe could be trained.*latent size is 0"),
    ],
)
def test_what_cannot_be_compared_is_said_in_one_sentence(wrong, says):
    with pytest.raises(InputError, match=says) as error:
        refold.compare(people(), **wrong)
    assert "\n" not in str(error.value)


def test_few_rows_are_too_few():
    with pytest.raises(InputError, match="got 19 rows; comparing takes 20 or more"):
        refold.compare(people(19))
    assert len(refold.compare(people(20)[["age", "rent"]], "pca", epochs=1).test) == 4


def test_a_purpose_without_figures_gives_way():
    found = refold.compare(people(60), ["pca"], by="likelihood", epochs=1)
    assert found.by == "reconstruction"
    assert any("no recipe has a figure of likelihood" in note for note in found.notes)


# ------------------------------------------------------------------------------------- the page


def test_the_page_shows_every_figure_and_asks_nothing_of_a_network(found, tmp_path):
    file = page.write(found, tmp_path / "page.html", title="<people> & co")
    text = file.read_text(encoding="utf-8")
    assert "&lt;people&gt; &amp; co" in text
    assert not re.search(r'(src|href)="(?!data:|#)', text)
    for c in found.ranked:
        for m in found.measures:
            assert (found.written(c, m) or "–") in text
    assert "is better" in text
    assert "for fields of kind image" in text
    for name in ("table", "measures", "codes", "columns", "training"):
        assert f'id="{name}"' in text
    assert 'id="pictures"' not in text


def test_the_best_are_marked_on_the_page(found):
    shown = page.contents(found)
    for c, row in zip(found.ranked, shown["rows"], strict=True):
        assert [best for _, best in row] == [c.recipe in found.leaders(m) for m in found.measures]


def test_pictures_stand_side_by_side(pictured, tmp_path):
    figure = page.pictures_of(pictured)
    assert [p.caption for p in figure.panels] == ["as given", *(c.recipe for c in pictured.ranked)]
    assert page.write(pictured, tmp_path / "p.html").read_text().count("<image ") == 3


def test_codes_are_drawn_where_there_are_any(pictured, found):
    assert [p.caption for p in page.maps_of(pictured).panels] == ["pca"]
    maps = page.maps_of(found)
    assert len(maps.panels) == 2
    assert [words for _, words in maps.keys] == ["no", "yes"]
    assert maps.panels[0].marks.count("h0") == len(found.test)


def test_a_page_is_one_html_file(found, tmp_path):
    with pytest.raises(InputError, match=r"name it comparison\.html"):
        page.write(found, tmp_path / "page.pdf")
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------------------------- the command


@pytest.fixture
def run(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    people(80).to_csv("people.csv", index=False)

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["refold", "compare", *map(str, words)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        said = capsys.readouterr()
        return ended.value.code or 0, said.out, said.err

    return run


def test_the_command_prints_a_table_and_writes_a_page(run, tmp_path):
    words = ("people.csv", "--recipes", "pca,dense", "--label", "old", "--epochs", 1)
    code, out, err = run(*words, "--out", "page.html", "--set", "lr=0.01")
    assert (code, err) == (0, "")
    assert out.splitlines()[0].split() == [
        "recipe", "reconstruction", "neighbours", "label", "seconds", "parameters", "code",
    ]  # fmt: skip
    assert out.splitlines()[-1] == "wrote page.html"
    assert "people.csv" in (tmp_path / "page.html").read_text()


def test_the_command_writes_the_table(run, tmp_path):
    code, out, _ = run(
        "people.csv", "--recipes", "pca,unet", "--epochs", 1, "--out", "table.csv", "-q"
    )
    assert (code, out) == (0, "")
    table = pd.read_csv(tmp_path / "table.csv")
    assert table["recipe"].tolist() == ["pca", "unet"]


def test_the_command_speaks_json(run):
    code, out, _ = run("people.csv", "--recipes", "pca", "--epochs", 1, "--json", "--seed", 3)
    facts = json.loads(out)
    assert (code, facts["recipes"][0]["recipe"], facts["tested"]) == (0, "pca", 16)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--recipes", "pca,vea"), "did you mean 'vae'"),
        (("--label", "town2"), "did you mean 'town'"),
        (("--by", "speed"), "unknown purpose 'speed'"),
        (("--out", "page.docx"), "unknown ending"),
        (("--out", "folder"), "name a page"),
        (("--out", "no/page.html"), "there is no folder"),
        (("--set", "latent.k=3"), "use --latent"),
        (("--set", "recipe=vae"), "use --recipes"),
        (("--set", "nonsense=3"), "unknown setting"),
        (("--recipes", "unet"), "no recipe could be trained"),
        (("--recipes", ","), "no recipe is named"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_sentence(run, tmp_path, words, says):
    before = sorted(tmp_path.iterdir())
    code, out, err = run("people.csv", *words)
    assert (code, out) == (2, "")
    assert says in err
    assert err.count("\n") == 1
    assert sorted(tmp_path.iterdir()) == before


def test_few_rows_are_said_on_the_command_line(run, tmp_path):
    people(12).to_csv("few.csv", index=False)
    code, _, err = run("few.csv", "--out", "page.html")
    assert (code, "got 12 rows" in err) == (2, True)
    assert not (tmp_path / "page.html").exists()
