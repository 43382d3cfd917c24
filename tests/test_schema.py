"""The schema: what each column is taken for, why some are set aside, and the way there and back."""

import datetime as dt
import json

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch

import refold
from refold.data.schema import Aside, Schema
from refold.data.sources import read
from refold.errors import InputError
from refold.fields import Categorical, Numeric
from refold.fields.base import kind_of

N = 60
DRAW = np.random.default_rng(0)
DAY = dt.date(2024, 1, 1)


def fitted(columns, overrides=None, rows=None) -> Schema:
    table = read(columns)
    return Schema.fit(table, np.arange(len(table)) if rows is None else np.array(rows), overrides)


def kinds(schema: Schema) -> dict[str, str]:
    return {c: kind_of(f) for f in schema.fields.values() for c in f.columns}


def cycle(*values) -> list:
    return [values[i % len(values)] for i in range(N)]


NUMBERS = DRAW.normal(size=N)

# --- kinds -------------------------------------------------------------------------------------

KINDS = {
    "floats": (NUMBERS, "numeric"),
    "floats of single precision": (NUMBERS.astype(np.float32), "numeric"),
    "integers": (DRAW.integers(0, 1000, N), "numeric"),
    "unsigned bytes": (DRAW.integers(0, 255, N).astype(np.uint8), "numeric"),
    "missing numbers": (np.where(np.arange(N) % 3, NUMBERS, np.nan), "numeric"),
    "dates": ([DAY + dt.timedelta(int(d)) for d in DRAW.integers(0, 900, N)], "numeric"),
    "times": (
        [dt.datetime(2024, 1, 1) + dt.timedelta(hours=int(h)) for h in DRAW.integers(0, 900, N)],
        "numeric",
    ),
    "few fractions": (cycle(0.5, 1.5, 2.5), "numeric"),
    "eleven integers": (cycle(*range(11)), "numeric"),
    "integers too seldom": (cycle(*range(7)), "numeric"),
    "row numbers shuffled": (DRAW.permutation(N), "numeric"),
    "binary integers": (cycle(0, 1), "binary"),
    "binary floats": (cycle(2.5, -7.0), "binary"),
    "binary text": (cycle("m", "f"), "binary"),
    "binary with missing": (cycle("m", "f", None), "binary"),
    "binary floats with missing": (cycle(1.0, 0.0, np.nan), "binary"),
    "booleans": (cycle(True, False), "binary"),
    "binary dates": (cycle(DAY, DAY + dt.timedelta(1)), "binary"),
    "text": (cycle("a", "b", "c"), "categorical"),
    "text with missing": (cycle("a", "b", None, "c"), "categorical"),
    "many words": (cycle(*(f"w{i}" for i in range(30))), "categorical"),
    "coded integers": (cycle(1, 2, 3, 4, 5, 6), "categorical"),
    "coded floats": (cycle(1.0, 2.0, 3.0), "categorical"),
    "coded floats with missing": (cycle(1.0, 2.0, 3.0, np.nan), "categorical"),
}


@pytest.mark.parametrize("what", KINDS)
def test_kind_of_a_scalar_column(what):
    values, expected = KINDS[what]
    schema = fitted({"col": values})
    assert kinds(schema) == {"col": expected}
    assert schema.aside == {}


def test_categories_of_data_frames():
    levels = pd.Categorical(cycle("s", "m", "l"))
    assert kinds(fitted(pd.DataFrame({"size": levels}))) == {"size": "categorical"}


def test_kind_of_a_block():
    schema = fitted(
        {"v": DRAW.normal(size=(N, 5)), "i": DRAW.random((N, 8, 6)), "c": DRAW.random((N, 5, 5, 3))}
    )
    assert kinds(schema) == {"v": "vector", "i": "image", "c": "image"}
    assert {k: f.shape for k, f in schema.fields.items()} == {
        "v": (5,), "i": (1, 8, 6), "c": (3, 5, 5),
    }  # fmt: skip
    assert schema.order == ("v", "i", "c")


# --- set aside ---------------------------------------------------------------------------------

SET_ASIDE = {
    "constant number": ([3.5] * N, "the same in every row: 3.5", 3.5),
    "constant text": (["x"] * N, "the same in every row: x", "x"),
    "constant boolean": ([True] * N, "the same in every row: True", True),
    "constant with missing": (cycle(7, None), "the same in every row: 7", 7),
    "constant date": ([DAY] * N, "the same in every row: 2024-01-01", "2024-01-01"),
    "row number": (np.arange(N), "a row number", None),
    "row number from 1": (np.arange(1, N + 1), "a row number", None),
    "row number as float": (np.arange(N, dtype=float), "a row number", None),
    "identifier": ([f"id-{i}" for i in range(N)], f"an identifier or free text: {N} values", None),
    "free text": (
        [f"word {i // 2 if i % 2 else i}" for i in range(N)], "an identifier or free text", None,
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", SET_ASIDE)
def test_a_column_is_set_aside_for_a_reason(what):
    values, reason, constant = SET_ASIDE[what]
    schema = fitted({"col": values, "x": NUMBERS})
    assert kinds(schema) == {"x": "numeric"}
    aside = schema.aside["col"]
    assert reason in aside.reason
    assert (aside.value, aside.output) == (constant, True)
    assert f"set aside: col ({aside.reason})" in schema.describe()


def test_too_many_levels_are_free_text():
    words = [f"w{i}" for i in range(1001)] * 3
    schema = fitted({"word": words, "x": DRAW.normal(size=len(words))})
    assert "1001 values" in schema.aside["word"].reason


def test_nineteen_counted_rows_are_no_row_number():
    assert kinds(fitted({"n": np.arange(19)})) == {"n": "numeric"}


def test_labels_beside_an_array_are_set_aside_and_no_output(tmp_path):
    np.savez(tmp_path / "x.npz", X=DRAW.normal(size=(N, 3)), y=DRAW.integers(0, 3, N))
    table = read(tmp_path / "x.npz")
    schema = Schema.fit(table, np.arange(N))
    assert schema.aside == {"y": Aside("stored beside the data as labels", "int64", output=False)}
    assert schema.order == ("X",)
    asked = Schema.fit(table, np.arange(N), {"y": "categorical"})
    assert kinds(asked) == {"X": "vector", "y": "categorical"}


def test_no_value_in_any_row_is_an_error_that_says_what_to_do():
    with pytest.raises(InputError, match=r"'gone' has no value in any row.*--ignore gone"):
        fitted({"x": NUMBERS, "gone": np.full(N, np.nan)})
    assert kinds(fitted({"x": NUMBERS, "gone": np.full(N, np.nan)}, {"gone": "ignore"})) == {
        "x": "numeric"
    }


def test_nothing_left_names_every_reason():
    with pytest.raises(InputError, match="'a' the same in every row: 1; 'b' ignored as asked"):
        fitted({"a": [1] * N, "b": NUMBERS}, {"b": "ignore"})


# --- overrides ---------------------------------------------------------------------------------


def test_overrides_by_name_option_and_object():
    columns = {"zip": DRAW.integers(0, 900, N), "a": NUMBERS, "b": NUMBERS**2, "code": cycle(1, 2)}
    schema = fitted(
        columns,
        {"zip": "categorical", "a": "numeric(likelihood='l1')", "b": Numeric(weight=2.0),
         "code": "numeric"},
    )  # fmt: skip
    assert kinds(schema) == {
        "zip": "categorical",
        "a": "numeric",
        "b": "numeric",
        "code": "numeric",
    }
    by_column = {c: f for f in schema.fields.values() for c in f.columns}
    assert by_column["a"].likelihood == "l1"
    assert by_column["b"].weight == 2.0
    assert (by_column["code"].likelihood, by_column["code"].weight) == (None, 1.0)


def test_the_users_word_brings_back_what_would_be_set_aside():
    columns = {"n": np.arange(N), "id": [f"id{i}" for i in range(N)], "one": [4] * N, "x": NUMBERS}
    schema = fitted(columns, {"n": "numeric", "id": "categorical", "one": "numeric"})
    assert kinds(schema) == {"n": "numeric", "one": "numeric", "x": "numeric", "id": "categorical"}
    assert schema.aside == {}
    assert torch.isfinite(schema.encode(read(columns))[0].x["numeric"]).all()


def test_ignored_columns_keep_their_place_and_values():
    columns = {"note": [f"n{i}" for i in range(N)], "x": NUMBERS, "skip": cycle(1, 2, 3)}
    schema = fitted(columns, {"skip": "ignore"})
    assert schema.aside["skip"].reason == "ignored as asked"
    table = read(columns)
    back = schema.decode({"x": schema.encode(table)[0].x["x"]}, table)
    assert list(back) == ["note", "x", "skip"]
    assert back["note"].to_pylist() == columns["note"]
    assert back["skip"].to_pylist() == columns["skip"]


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        ({"agee": "numeric"}, "unknown column 'agee'; did you mean 'age'"),
        ({"age": "numerical"}, "unknown field kind 'numerical'; did you mean 'numeric'"),
        ({"age": "numeric(likelihod='l1')"}, "did you mean 'likelihood'"),
        ({"age": "numeric("}, r"cannot read 'numeric\('"),
        ({"age": "binary"}, "'age' was declared binary but has .* levels; declare it categorical"),
        ({"city": "numeric"}, "'city' .* text that is no number"),
        ({"city": "vector"}, "'city' .* arrays"),
    ],
)
def test_wrong_overrides_are_sentences(overrides, says):
    with pytest.raises(InputError, match=says):
        fitted({"age": DRAW.integers(0, 90, N), "city": cycle("a", "b", "c")}, overrides)


# --- packing -----------------------------------------------------------------------------------


def mixed() -> dict:
    draw = np.random.default_rng(1)
    return {
        "a": NUMBERS,
        "city": cycle("x", "y", "z"),
        "b": NUMBERS * 100 + 7,
        "sex": cycle("m", "f"),
        "grade": cycle(1, 2, 3, 4, 5),
        "c": draw.integers(0, 500, N),
        "ok": cycle(True, False, None),
        "day": [DAY + dt.timedelta(int(d)) for d in draw.integers(0, 900, N)],
        "one": ["same"] * N,
    }


def test_columns_of_one_kind_share_one_field():
    schema = fitted(mixed())
    assert {k: f.columns for k, f in schema.fields.items()} == {
        "numeric": ("a", "b", "c", "day"),
        "categorical": ("city", "grade"),
        "binary": ("sex", "ok"),
    }
    batch, notes = schema.encode(read(mixed()))
    assert notes == []
    assert {k: tuple(x.shape) for k, x in batch.x.items()} == {
        "numeric": (N, 4), "categorical": (N, 2), "binary": (N, 2),
    }  # fmt: skip
    assert schema.order == tuple(mixed())
    assert schema.entries() == ["a", "b", "c", "day", "city", "grade", "sex", "ok"]


def test_a_thousand_columns_are_one_field():
    schema = fitted({f"c{i}": DRAW.normal(size=30) for i in range(1000)})
    assert list(schema.fields) == ["numeric"]
    assert len(schema.fields["numeric"].columns) == 1000


def test_blocks_are_never_packed():
    schema = fitted({"v": DRAW.normal(size=(N, 2)), "w": DRAW.normal(size=(N, 2))})
    assert {k: f.columns for k, f in schema.fields.items()} == {"v": ("v",), "w": ("w",)}


def test_columns_of_other_options_are_fields_of_their_own():
    schema = fitted({"a": NUMBERS, "b": NUMBERS, "c": NUMBERS}, {"b": "numeric(weight=2.0)"})
    assert {k: f.columns for k, f in schema.fields.items()} == {
        "numeric": ("a", "c"), "b": ("b",),
    }  # fmt: skip


# --- what is learnt ----------------------------------------------------------------------------


def test_scales_come_from_the_training_rows_and_levels_from_all():
    columns = {"x": [1.0, 3.0, 2.5, 1000.0], "c": ["a", "b", "c", "d"]}
    schema = fitted(columns, rows=[0, 1])
    assert schema.fields["x"].mean == (2.0,)
    assert schema.fields["x"].std == (1.0,)
    assert schema.fields["c"].levels == (("a", "b", "c", "d"),)


def test_missing_cells_are_not_observed():
    columns = {"x": [1.0, None, 3.0, 4.0], "c": ["a", "b", None, "c"], "s": ["m", "f", "m", None]}
    batch, notes = fitted(columns).encode(read(columns))
    assert notes == []
    seen = {k: None if o is None else o[:, 0].tolist() for k, o in batch.observed.items()}
    assert seen == {
        "x": [True, False, True, True],
        "c": [True, True, False, True],
        "s": [True, True, True, False],
    }
    assert all(torch.isfinite(x.float()).all() for x in batch.x.values())
    assert float(batch.x["x"][1, 0]) == 0.0


def test_whole_data_has_no_mask():
    batch, _ = fitted({"x": NUMBERS, "c": cycle("a", "b", "c")}).encode(read({"x": NUMBERS}))
    assert batch.observed["x"] is None


def test_values_come_back_in_their_own_types():
    table = read(mixed())
    schema = fitted(mixed())
    batch, _ = schema.encode(table)
    back = schema.decode(batch.x, table)
    assert list(back) == list(mixed())
    for name, column in table.columns.items():
        assert back[name].type == column.type, name
    np.testing.assert_allclose(back["b"].to_numpy(), mixed()["b"], rtol=1e-5)
    for name in ("city", "grade", "sex", "c", "day", "one"):
        assert back[name].to_pylist() == table.columns[name].to_pylist(), name


# --- JSON --------------------------------------------------------------------------------------


def test_json_round_trip():
    columns = mixed() | {"v": DRAW.normal(size=(N, 3)), "img": DRAW.random((N, 4, 5))}
    table = read(columns)
    schema = fitted(columns, {"a": "numeric(likelihood='huber')", "c": "ignore"})
    again = Schema.from_json(json.loads(json.dumps(schema.to_json(), allow_nan=False)))
    assert again == schema
    batch, other = schema.encode(table)[0], again.encode(table)[0]
    assert batch.x.keys() == other.x.keys()
    for name, x in batch.x.items():
        assert torch.equal(x, other.x[name])


LEVELS = {
    "text": ["b", "a", "c"],
    "integers": [3, 1, 2],
    "floats": [0.5, 2.0, 1.5],
    "dates": [DAY, DAY + dt.timedelta(2), DAY + dt.timedelta(1)],
    "times": [dt.datetime(2024, 1, d, 3, 4, 5, 678) for d in (1, 3, 2)],
    "booleans": [True, False, True],
}


@pytest.mark.parametrize("what", LEVELS)
def test_levels_of_any_type_survive_json(what):
    columns = {"c": LEVELS[what] * 20}
    schema = fitted(columns, {"c": "categorical"})
    again = Schema.from_json(json.loads(json.dumps(schema.to_json())))
    assert again == schema
    batch, notes = again.encode(read(columns))
    assert notes == []
    assert again.decode(batch.x)["c"].to_pylist() == columns["c"]


# --- other data than in training ---------------------------------------------------------------


def test_unseen_levels_are_told_from_missing_ones_and_named():
    schema = fitted({"c": cycle("a", "b", "c"), "s": cycle("m", "f")})
    batch, notes = schema.encode(read({"c": ["a", "z", "y", None], "s": ["f", "m", "x", "m"]}))
    assert batch.x["c"][:, 0].tolist() == [0, -2, -2, -1]
    assert batch.observed["c"][:, 0].tolist() == [True, True, True, False]
    assert batch.observed["s"] is None
    assert batch.x["s"][:, 0].tolist() == [0, 1, -3, 1]
    assert len(notes) == 2
    assert "'c': 2 values never seen in training ('z', 'y')" in notes[0]
    assert "'s': 1 value never seen in training ('x')" in notes[1]


def test_text_among_coded_classes_is_unseen_not_missing():
    batch, notes = fitted({"c": cycle(1, 2, 3)}).encode(read({"c": ["1", "first", None, "3"]}))
    assert batch.x["c"][:, 0].tolist() == [0, -2, -1, 2]
    assert "'c': 1 value never seen in training ('first')" in notes[0]


def test_levels_in_another_type_are_recognised():
    schema = fitted({"c": cycle(1, 2, 3)})
    for values in ([1.0, 3.0, np.nan], ["1", "3", None], np.array([1, 3, 3], np.int8)):
        batch, notes = schema.encode(read({"c": values}))
        assert batch.x["c"][:2, 0].tolist() == [0, 2]
        assert notes == []


def test_a_missing_column_counts_as_missing_in_every_row():
    schema = fitted(mixed())
    columns = {k: v for k, v in mixed().items() if k not in ("b", "city", "sex", "one")}
    batch, notes = schema.encode(read(columns))
    assert len(notes) == 1
    assert all(f"'{c}'" in notes[0] for c in ("b", "city", "sex"))
    assert batch.observed["numeric"].all(0).tolist() == [True, False, True, True]
    assert not batch.observed["numeric"][:, 1].any()
    assert not batch.observed["categorical"][:, 0].any()
    assert not batch.observed["binary"][:, 0].any()


def test_a_missing_block_counts_as_missing_in_every_row():
    schema = fitted({"v": DRAW.normal(size=(N, 3)), "i": DRAW.random((N, 4, 4)), "x": NUMBERS})
    batch, notes = schema.encode(read({"x": NUMBERS}))
    assert notes == ["not in the data, so missing in every row: 'v', 'i'"]
    assert not batch.observed["v"].any()
    assert not batch.observed["i"].any()


def test_other_columns_are_ignored_and_order_does_not_matter():
    schema = fitted(mixed())
    straight, _ = schema.encode(read(mixed()))
    turned = dict(reversed(mixed().items())) | {"new": NUMBERS, "one": ["same"] * N}
    batch, notes = schema.encode(read(turned))
    assert notes == ["columns never seen in training are ignored: 'new'"]
    assert all(torch.equal(straight.x[k], batch.x[k]) for k in straight.x)


def test_none_of_the_columns_is_an_error_that_names_both():
    schema = fitted({f"c{i}": DRAW.normal(size=N) for i in range(8)})
    with pytest.raises(InputError, match=r"expected 'c0', .* and 3 more, got 'x'"):
        schema.encode(read({"x": NUMBERS}))


def test_an_array_needs_no_name_of_its_own():
    x = DRAW.normal(size=(N, 4))
    schema = fitted({"signal": x})
    batch, notes = schema.encode(read(x))
    assert notes == []
    assert torch.equal(batch.x["signal"], schema.encode(read({"signal": x}))[0].x["signal"])


@pytest.mark.parametrize("value", [np.inf, -np.inf])
def test_infinity_is_an_error_that_names_its_place(value):
    schema = fitted({"a": NUMBERS, "b": NUMBERS})
    with pytest.raises(InputError, match="'b' holds infinity in row 2"):
        schema.encode(read({"a": [0.0] * 3, "b": [0.0, 1.0, value]}))


def test_a_template_is_not_changed_by_fitting():
    template = Categorical()
    fitted({"c": cycle("a", "b", "c")}, {"c": template})
    assert template == Categorical()


def test_an_arrow_table_of_several_chunks():
    chunks = pa.chunked_array([["a", "b"], ["c", None], ["a", "a"]])
    schema = Schema.fit(read(pa.table({"c": chunks})), np.arange(6))
    batch, _ = schema.encode(read(pa.table({"c": chunks})))
    assert batch.x["c"][:, 0].tolist() == [0, 1, 2, -1, 0, 0]


def test_pixels_in_another_unit_are_said():
    unit = np.random.default_rng(0).random((30, 6, 6)).astype(np.float32)
    bytes_ = (unit * 255).astype(np.uint8)
    for fitted, given in ((unit, bytes_), (bytes_, unit)):
        ae = refold.Autoencoder(2, epochs=1).fit(fitted)
        with pytest.warns(refold.InputWarning, match="they look like another unit"):
            ae.reconstruct(given)


@pytest.mark.parametrize("kind", [None, "categorical", "ordinal"])
def test_infinity_is_no_class(kind):
    values = {"k": np.where(np.arange(60) == 7, np.inf, np.arange(60) % 3), "x": np.arange(60.0)}
    with pytest.raises(InputError, match="'k' holds infinity"):
        refold.Autoencoder(1, epochs=1, fields=None if kind is None else {"k": kind}).fit(values)
