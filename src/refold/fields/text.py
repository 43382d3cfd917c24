"""Text: a column of strings as tokens in order."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, ClassVar, Self, final

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from refold.errors import InputError, missing_extra, unknown
from refold.fields.base import Encoded, Field, learnt, register, scalar
from refold.table import Arrow, Column

TOKENS = ("bpe", "characters")
END, UNK = 0, 1  # the first two tokens: the end of a text, and what was never seen
BYTES = 256  # tokens of one byte each, of which any text can be made
LONGEST = 256  # tokens of a text that are kept where the user does not say
SHARE = 0.99  # of the training texts that are kept whole
LOST = "\ufffd"  # what is shown for a character never seen


@final
@register("text")
@dataclass(frozen=True, kw_only=True)
class Text(Field):
    """A column of texts as tokens: ``x`` ``[B, T]``, -1 after the token ``<end>``.

    ``tokens="bpe"`` learns byte pairs from the training rows until there are ``vocabulary`` tokens
    or no pair occurs twice. Every byte is one, so any text comes back from its tokens exactly. It
    needs the extra ``text``. ``tokens="characters"`` takes the ``vocabulary - 2`` most frequent
    characters; another one becomes ``<unk>``, and comes back as U+FFFD.

    ``T`` is at most ``length``, or where that is not given as many tokens as 99 % of the training
    texts have with their end, at most 256. Longer texts are cut, with a remark. Positions after the
    end are not observed: they cost nothing. A missing text is missing as a whole, an empty one is
    its end alone. All tokens have one size, the number of tokens known.

    Sources: Sennrich et al., Neural Machine Translation of Rare Words with Subword Units, 2016
    (arXiv:1508.07909); Radford et al., Language Models are Unsupervised Multitask Learners, 2019,
    for bytes.

    Raises :class:`InputError` for an unknown kind of tokens and a vocabulary that is too small.

    >>> column = {"t": pa.chunked_array([["abba", "a", None]])}
    >>> own = Text(tokens="characters", columns=("t",)).fit(column)
    >>> own.to_tensor(column).x
    tensor([[ 2,  3,  3,  2,  0],
            [ 2,  0, -1, -1, -1],
            [-1, -1, -1, -1, -1]])
    >>> own.to_values(own.to_tensor(column).x)["t"].to_pylist()
    ['abba', 'a', '']
    """

    alone: ClassVar[bool] = True
    native: ClassVar[str] = "categorical"
    allowed: ClassVar[tuple[str, ...]] = ("categorical",)
    apart: ClassVar[float] = 0.5
    tokens: str = "bpe"
    vocabulary: int = 1000
    length: int | None = None
    words: str = learnt("")
    """What the tokens are, as JSON: characters in order, or what ``tokenizers`` writes."""
    known: int = learnt(2)
    """Number of tokens, ``<end>`` and ``<unk>`` among them."""
    steps: int = learnt(0)

    def __post_init__(self) -> None:
        if self.tokens not in TOKENS:
            raise unknown("kind of tokens", self.tokens, TOKENS)
        least = BYTES + 2 if self.tokens == "bpe" else 3
        if self.vocabulary < least:
            raise InputError(
                f"a text's vocabulary is {self.vocabulary}; with tokens='{self.tokens}' it needs "
                f"at least {least}"
            )
        if self.length is not None and self.length < 1:
            raise InputError(f"a text's length is {self.length}; give the most tokens, 1 or more")

    def fit(self, columns: Mapping[str, Column]) -> Self:
        """Learn the tokens, and how many a text has."""
        texts = self._texts(columns)
        seen = [text for text in texts if text is not None]
        if not seen:
            raise InputError(
                f"column '{self.columns[0]}' has no text in any training row; give some, or leave "
                f"it out"
            )
        words = (learn_pairs if self.tokens == "bpe" else learn_characters)(seen, self.vocabulary)
        tokens = _tokens(self.tokens, words)
        counts = np.array([len(ids) + 1 for ids in tokens.encode(seen)])
        usual = int(np.quantile(counts, SHARE, method="higher"))
        most = min(usual, LONGEST) if self.length is None else self.length
        steps = min(most, int(counts.max()))
        return replace(
            self,
            words=words,
            known=tokens.count + 2,
            steps=steps,
            missing=len(seen) < len(texts) or bool((counts < steps).any()),
        )

    def to_tensor(self, columns: Mapping[str, Column]) -> Encoded:
        """Encode as tokens, each text closed by its end where that is within ``T``."""
        texts = self._texts(columns)
        there = [i for i, text in enumerate(texts) if text is not None]
        encoded = _tokens(self.tokens, self.words).encode([texts[i] or "" for i in there])
        x = np.full((len(texts), self.steps), -1)
        cut = unread = 0
        for i, ids in zip(there, encoded, strict=True):
            row = [*ids, END][: self.steps]
            x[i, : len(row)] = row
            cut += len(ids) >= self.steps
            unread += UNK in row
        name, notes = self.columns[0], list[str]()
        if cut:
            notes.append(
                f"column '{name}': {cut} of {len(there)} texts are longer than {self.steps} tokens "
                f"with their end, and were cut there"
            )
        if unread:
            notes.append(
                f"column '{name}': {unread} of {len(there)} texts hold characters never seen in "
                f"training"
            )
        observed = x >= 0
        return Encoded(
            torch.from_numpy(x), None if observed.all() else torch.from_numpy(observed), notes
        )

    def to_values(self, point: Tensor) -> dict[str, Column]:
        """Return the texts that tokens ``[B, T]`` spell, up to the first end."""
        rows = point.long().cpu().numpy()
        ended = rows <= END
        lengths = np.where(ended.any(1), ended.argmax(1), rows.shape[1])
        ids = [row[:n].tolist() for row, n in zip(rows, lengths, strict=True)]
        texts = _tokens(self.tokens, self.words).decode(ids)
        return {self.columns[0]: pa.chunked_array([pa.array(texts, pa.string())])}

    def _texts(self, columns: Mapping[str, Column]) -> list[str | None]:
        column = columns[self.columns[0]]
        if isinstance(column, np.ndarray) or not _readable(column.type):
            kind = "arrays" if isinstance(column, np.ndarray) else column.type
            raise InputError(
                f"column '{self.columns[0]}' is to be text, but holds {kind}; give strings"
            )
        return scalar(column).cast(pa.string()).to_pylist()

    @property
    def shape(self) -> tuple[int, ...]:
        """One token per position."""
        return (self.steps,)

    @property
    def cell(self) -> tuple[int, ...]:
        """A column of strings."""
        return ()

    @property
    def sizes(self) -> tuple[int, ...]:
        """As many levels at each position as there are tokens."""
        return (self.known,) * self.steps

    @property
    def entries(self) -> tuple[str, ...]:
        """Return ``name[position]``."""
        return tuple(f"{self.columns[0]}[{t}]" for t in range(self.steps))

    @property
    def spelt(self) -> tuple[str, ...]:
        """What each token stands for, by its number."""
        tokens = _tokens(self.tokens, self.words)
        return ("<end>", "<unk>", *tokens.decode([[i] for i in range(2, self.known)]))

    @property
    def bounds(self) -> None:
        """Tokens bound a text."""


def learn_characters(texts: Sequence[str], vocabulary: int) -> str:
    """Most frequent characters as JSON, in the order of their code points.

    >>> learn_characters(["abba", "cab"], 4)
    '"ab"'
    """
    counts = Counter[str]()
    for text in texts:
        counts.update(text)
    ranked = sorted(counts, key=lambda c: (-counts[c], c))
    return json.dumps("".join(sorted(ranked[: vocabulary - 2])))


def learn_pairs(texts: Sequence[str], vocabulary: int) -> str:
    """Byte pairs that ``tokenizers`` learns from texts, as the JSON it writes."""
    library = _library()
    learner = library.Tokenizer(library.models.BPE())
    learner.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    learner.decoder = library.decoders.ByteLevel()
    trainer = library.trainers.BpeTrainer(
        vocab_size=vocabulary - 2,
        min_frequency=2,
        initial_alphabet=sorted(library.pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    learner.train_from_iterator(texts, trainer)
    return str(learner.to_str())


class _Characters:
    """Texts to tokens and back, a character each."""

    def __init__(self, words: str) -> None:
        self.characters: str = json.loads(words)
        self.count = len(self.characters)
        self.place = {c: i + 2 for i, c in enumerate(self.characters)}
        self.shown = ["", LOST, *self.characters]

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        return [[self.place.get(c, UNK) for c in text] for text in texts]

    def decode(self, rows: Sequence[Sequence[int]]) -> list[str]:
        return ["".join(self.shown[i] for i in row) for row in rows]


class _Pairs:
    """Texts to tokens and back, by byte pairs."""

    def __init__(self, words: str) -> None:
        self.library: Any = _library().Tokenizer.from_str(words)
        self.count: int = self.library.get_vocab_size()

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        found = self.library.encode_batch(list(texts), add_special_tokens=False)
        return [[i + 2 for i in one.ids] for one in found]

    def decode(self, rows: Sequence[Sequence[int]]) -> list[str]:
        # What is no token of a text (<unk>) is none of the library's either.
        ids = [[i - 2 for i in row if i > UNK] for row in rows]
        return self.library.decode_batch(ids, skip_special_tokens=False)


@lru_cache(16)
def _tokens(kind: str, words: str) -> _Characters | _Pairs:
    return _Pairs(words) if kind == "bpe" else _Characters(words)


def _library() -> Any:
    try:
        import tokenizers
    except ImportError as error:
        raise missing_extra("tokenizers", "text", "text by byte pairs (tokens='bpe')") from error
    return tokenizers


def _readable(kind: Arrow) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_null(kind)
