"""Text: tokens and back, what is cut or never seen, and a model of sentences."""

import builtins

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch

import refold
from refold.assemble import default_recipe
from refold.data.schema import Schema
from refold.data.sinks import write
from refold.data.sources import read
from refold.errors import InputError, MissingExtraError
from refold.fields import Text, text
from refold.fields.base import from_json
from refold.likelihoods import Categorical
from refold.report.evidence import Evidence
from refold.report.overview import overview
from refold.report.rows import row_views
from refold.uses.inspect import differing, examine, tokens_right

WHO = ("the cat", "a dog", "my neighbour", "the old man")
DOES = ("sees", "likes", "hears", "follows")
WHAT = ("the river", "a tree", "music", "the long road")
SENTENCES = [f"{a} {b} {c}." for a in WHO for b in DOES for c in WHAT]


def column(texts):
    return {"t": pa.chunked_array([pa.array(texts, pa.string())])}


def fitted(texts, **options):
    return Text(columns=("t",), **options).fit(column(texts))


def there_and_back(own, texts):
    return own.to_values(own.to_tensor(column(texts)).x)["t"].to_pylist()


# --------------------------------------------------------------------------- tokens


@pytest.mark.parametrize("tokens", ["bpe", "characters"])
def test_training_texts_come_back_and_end_where_they_end(tokens):
    texts = [*SENTENCES, "", "<end> is no token here"]
    own = fitted(texts, tokens=tokens, length=100)
    assert there_and_back(own, texts) == texts
    encoded = own.to_tensor(column(texts))
    x, seen = encoded.x, encoded.observed
    assert x.dtype == torch.int64
    assert own.sizes == (own.known,) * x.shape[1]
    for row, there in zip(x.tolist(), seen.tolist(), strict=True):
        end = row.index(0) if 0 in row else len(row)
        assert set(row[end + 1 :]) <= {-1}
        assert min(row[:end], default=2) >= 2
        assert there == [i <= end for i in range(len(row))]
    assert own == from_json(own.to_json())
    assert hash(own) == hash(from_json(own.to_json()))


def test_bytes_spell_what_was_never_seen():
    own = fitted([*SENTENCES, "".join(map(chr, range(33, 127)))], length=95)
    new = ["Ünïcödé: 漢字 🙂\n\ttab", "  two  spaces ", "e\u0301"]
    encoded = own.to_tensor(column(new))
    assert own.to_values(encoded.x)["t"].to_pylist() == new
    assert not (encoded.x == 1).any()
    assert own.known <= own.vocabulary == 1000
    assert len(own.spelt) == own.known
    assert own.spelt[:2] == ("<end>", "<unk>")


def test_pairs_are_learnt_until_the_vocabulary_is_full_and_each_time_the_same():
    small, large = fitted(SENTENCES, vocabulary=270), fitted(SENTENCES, vocabulary=400)
    assert small.known == 270
    assert small.known < large.known
    assert small.steps > large.steps
    assert fitted(SENTENCES, vocabulary=270) == small


def test_the_most_frequent_characters_are_known_and_the_others_lost():
    own = fitted(["aaabbc", "ab"], tokens="characters", vocabulary=4, length=9)
    assert own.known == 4
    encoded = own.to_tensor(column(["abc", "xa"]))
    assert encoded.x.tolist() == [[2, 3, 1, 0, -1, -1, -1], [1, 2, 0, -1, -1, -1, -1]]
    assert encoded.notes == ["column 't': 2 of 2 texts hold characters never seen in training"]
    assert own.to_values(encoded.x)["t"].to_pylist() == ["ab\ufffd", "\ufffda"]


def test_long_texts_are_cut_with_a_remark():
    texts = ["ab"] * 199 + ["a" * 90]
    own = fitted(texts, tokens="characters")
    assert own.steps == 3  # 99 % of the texts have that many, their end among them
    encoded = own.to_tensor(column(texts))
    assert "1 of 200 texts are longer than 3 tokens with their end" in encoded.notes[0]
    assert own.to_values(encoded.x)["t"].to_pylist()[-1] == "aaa"
    assert fitted(["a" * 400], tokens="characters").steps == 256
    assert fitted(["a" * 400], tokens="characters", length=300).steps == 300
    assert fitted(["abc"], tokens="characters", length=300).steps == 4


def test_missing_texts_are_missing_and_empty_ones_are_their_end():
    own = fitted(["ab", None, ""], tokens="characters")
    encoded = own.to_tensor(column(["ab", None, ""]))
    assert encoded.x.tolist() == [[2, 3, 0], [-1, -1, -1], [0, -1, -1]]
    assert encoded.observed.tolist() == [[True] * 3, [False] * 3, [True, False, False]]
    assert own.missing
    nothing = own.to_tensor({"t": pa.chunked_array([pa.nulls(2)])})
    assert not nothing.observed.any()
    whole = fitted(["ab", "ba"], tokens="characters")
    assert not whole.missing
    assert whole.to_tensor(column(["ab"])).observed is None


def test_bad_options_and_columns_are_refused():
    for options, why in (
        ({"tokens": "words"}, "unknown kind of tokens 'words'"),
        ({"vocabulary": 200}, "vocabulary is 200; with tokens='bpe' it needs at least 258"),
        ({"tokens": "characters", "vocabulary": 2}, "needs at least 3"),
        ({"length": 0}, "length is 0"),
        ({"likelihood": "mse"}, "'mse' cannot predict a field of kind 'text'"),
    ):
        with pytest.raises(InputError, match=why):
            Text(**options).head()
    with pytest.raises(InputError, match="is to be text, but holds int64; give strings"):
        Text(columns=("t",)).fit({"t": pa.chunked_array([[1, 2]])})
    with pytest.raises(InputError, match="has no text in any training row"):
        fitted([None, None])
    with pytest.raises(InputError, match="declared text, which has one value a row"):
        refold.Autoencoder(1, fields={"x": "text"}).fit({"x": np.zeros((9, 2))})


def test_without_the_extra_pairs_say_what_to_install_and_characters_work(monkeypatch):
    true = builtins.__import__

    def absent(name, *rest):
        if name == "tokenizers":
            raise ImportError(name)
        return true(name, *rest)

    monkeypatch.setattr(builtins, "__import__", absent)
    text._tokens.cache_clear()
    with pytest.raises(MissingExtraError, match=r"pip install 'refold\[text\]'"):
        fitted(SENTENCES)
    assert there_and_back(fitted(SENTENCES, tokens="characters"), SENTENCES) == SENTENCES


# --------------------------------------------------------------------------- in a schema


def test_kinds_are_inferred_as_before_and_the_reason_says_how_to_learn_a_text(tmp_path):
    table = read({"t": SENTENCES, "u": SENTENCES[::-1], "k": [i / 7 for i in range(64)]})
    schema = Schema.fit(table, np.arange(64))
    assert "fields={'t': 'text'} learns it" in schema.aside["t"].reason
    schema = Schema.fit(table, np.arange(64), dict.fromkeys("tu", "text(tokens='characters')"))
    assert list(schema.fields) == ["t", "u", "k"]
    assert schema.describe()[0] == "1 text: t"
    file = tmp_path / "lines.txt"
    file.write_text("\ufeffone line\n\n  \nanother\r\nüber\n", encoding="utf-8")
    table = read(file)
    assert table.columns["text"].to_pylist() == ["one line", "another", "über"]
    assert isinstance(Schema.fit(table, np.arange(3)).fields["text"], Text)
    assert default_recipe(Schema.fit(table, np.arange(3))) == "recurrent"
    (tmp_path / "bad.txt").write_bytes(b"\xff\xfe\x00a\n")
    with pytest.raises(InputError, match="is not UTF-8 text"):
        read(tmp_path / "bad.txt")


def test_text_is_written_line_by_line(tmp_path):
    path = write(column(["a\nb", None, "c"]), tmp_path / "t.txt")
    assert path.read_text(encoding="utf-8") == "a b\n\nc\n"
    with pytest.raises(InputError, match="holds one column of text, not t, u"):
        write({**column(["a"]), "u": pa.chunked_array([["b"]])}, tmp_path / "t.txt")
    with pytest.raises(InputError, match="'k' holds no text"):
        write({"k": pa.chunked_array([[1]])}, tmp_path / "t.txt")


# --------------------------------------------------------------------------- in a model


@pytest.fixture(scope="module")
def sentences():
    r = np.random.default_rng(0)
    frame = pd.DataFrame({"t": [*SENTENCES, None, ""], "k": r.normal(size=66)})
    options = "text(tokens='characters', length=40)"
    ae = refold.Autoencoder(
        16, recipe="dense", hidden=(64,), epochs=40, lr=0.01, fields={"t": options}
    )
    return ae.fit(frame), frame


def test_a_model_of_sentences_learns_saves_and_comes_back(sentences, tmp_path):
    ae, frame = sentences
    assert ae.history_[-1]["train_loss"] < 0.5 * ae.history_[1]["train_loss"]
    back = ae.reconstruct(frame)
    assert list(back.columns) == ["t", "k"]
    assert all(isinstance(t, str) for t in back["t"])
    assert [name for name, *_ in ae.quality_.predicted] == ["tokens of t"]
    ae.save(tmp_path / "m")
    again = refold.load(tmp_path / "m")
    assert again.schema_ == ae.schema_
    assert np.array_equal(again.transform(frame), ae.transform(frame))
    assert again.reconstruct(frame).equals(back)


def test_positions_after_the_end_cost_nothing_whatever_is_said_there(sentences):
    ae, frame = sentences
    rows = ae._encode(ae._read(frame))
    cells = examine(ae.model_, rows, ae.schema_).cells["t"]
    seen = rows.observed["t"]
    assert (cells[~seen] == 0).all()
    assert (cells[seen] > 0).double().mean() > 0.9
    assert (cells[64] == 0).all()  # a missing text


def test_texts_differ_token_by_token(sentences):
    ae, frame = sentences
    rows = ae._encode(ae._read(frame))
    points = examine(ae.model_, rows, ae.schema_).points
    x, point, seen = rows.x["t"], points["t"], rows.observed["t"]
    assert np.array_equal(differing(ae.schema_, rows, points)["t"], ((x != point) & seen).numpy())
    right = tokens_right(rows, "t", point)
    assert right.kept == pytest.approx(float((x == point)[seen].double().mean()))
    assert right.rows == int(seen.sum())


def test_missing_texts_are_filled_in_and_others_kept(sentences):
    ae, frame = sentences
    full = ae.impute(frame)
    assert full["t"].notna().all()
    assert full["t"].drop(64).equals(frame["t"].drop(64))


def test_a_report_shows_texts_in_words(sentences):
    ae, frame = sentences
    evidence = Evidence.of(ae, frame)
    first, _, gone = row_views(evidence, np.array([0, 1, 64]))
    (view,) = [c for c in first.cells if c.name == "t"]
    assert (view.given, view.back) == (SENTENCES[0], ae.reconstruct(frame)["t"][0])
    assert view.differs == (view.given != view.back)
    assert next(c for c in gone.cells if c.name == "t").given is None
    line = next(c for c in overview(evidence).columns if c.name == "t")
    assert line.kind == "text"
    assert line.values == "up to 36 tokens, of 25 different ones"
    assert line.back.endswith("of the tokens at their place")
    assert len(refold.figures.pairs(ae, frame, rows=[0, 64]).panels) == 2


def test_a_text_can_be_a_target_and_be_drawn():
    r = np.random.default_rng(0)
    frame = pd.DataFrame({"k": r.normal(size=64), "l": r.normal(size=64), "t": SENTENCES})
    fields = {"t": "text(tokens='characters', target=True)"}
    ae = refold.Autoencoder(2, recipe="vae", epochs=1, fields=fields).fit(frame)
    assert all(isinstance(t, str) for t in ae.predict(frame)["t"])
    assert all(isinstance(t, str) for t in ae.sample(3)["t"])


def test_a_likelihood_of_many_tokens_is_torchs_cross_entropy_at_each_place():
    torch.manual_seed(0)
    head = Categorical((50,) * 7).double()
    params = torch.randn(5, 350, dtype=torch.float64)
    x = torch.randint(50, (5, 7))
    seen = torch.rand(5, 7) > 0.3
    found = head.weighted(params, x.masked_fill(~seen, -1), seen, 1.0)
    whole = -params.view(5, 7, 50).log_softmax(2).gather(2, x[:, :, None])[:, :, 0]
    torch.testing.assert_close(found, whole.masked_fill(~seen, 0.0))
    torch.testing.assert_close(head.point(params), params.view(5, 7, 50).argmax(2))
    torch.testing.assert_close(head.expected(params), params.view(5, 7, 50).softmax(2).flatten(1))
