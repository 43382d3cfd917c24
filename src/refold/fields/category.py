"""Columns of classes: two levels, or many."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self, final

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from refold.errors import InputError
from refold.fields.base import Encoded, Field, arrow_type, learnt, register, scalar
from refold.likelihoods.categorical import UNSEEN
from refold.table import Arrow, Column, compute
from refold.wording import counted

NEITHER = -3.0  # a value that is none of two levels


@dataclass(frozen=True, kw_only=True)
class Classes(Field):
    """Columns whose values are drawn from levels seen in training.

    A value never seen in training is remarked on, and scored as rarer than any that was.
    """

    levels: tuple[tuple[Any, ...], ...] = learnt(())
    types: tuple[str, ...] = learnt(())

    @abstractmethod
    def index(self, x: Tensor) -> Tensor:
        """Level of each entry of ``x`` or of points ``[B, K]``: whole numbers, below 0 for none."""

    @property
    def shape(self) -> tuple[int, ...]:
        """One class per column."""
        return (len(self.columns),)

    @property
    def cell(self) -> tuple[int, ...]:
        """Columns of scalars."""
        return ()

    @property
    def entries(self) -> tuple[str, ...]:
        """Return the column names."""
        return self.columns

    def learn(self, columns: Mapping[str, Column]) -> tuple[list[list[Any]], list[str], bool]:
        """Sorted levels and type of each column, and whether any cell is missing."""
        seen = [scalar(columns[c]).unique().drop_null() for c in self.columns]
        for name, values in zip(self.columns, seen, strict=True):
            if pa.types.is_floating(values.type) and compute.any(compute.is_inf(values)).as_py():
                raise InputError(
                    f"column '{name}' holds infinity, which is no class; replace it or leave the "
                    f"cell empty"
                )
        levels = [sorted(plain_levels(values)) for values in seen]
        types = [str(scalar(columns[c]).type) for c in self.columns]
        return levels, types, any(scalar(columns[c]).null_count for c in self.columns)

    def codes(self, columns: Mapping[str, Column]) -> tuple[NDArray[np.int64], list[str]]:
        """Level of each cell ``[B, K]``, -1 missing and -2 unseen, and remarks on the unseen."""
        codes, notes = [], list[str]()
        for name, levels, kind in zip(self.columns, self.levels, self.types, strict=True):
            given = scalar(columns[name])
            column = _as_type(given, arrow_type(kind), name)
            known = level_array(levels, arrow_type(kind))
            index = compute.index_in(column, value_set=known)
            code = compute.fill_null(index, -1).to_numpy().astype(np.int64)
            new = compute.and_(compute.is_valid(given), compute.is_null(index)).to_numpy()
            codes.append(np.where(new, UNSEEN, code))
            notes += _unseen(name, given, index)
        return np.stack(codes, axis=1), notes

    def values(self, codes: NDArray[np.int64]) -> dict[str, Column]:
        """Levels of codes ``[B, K]``, each column in its own type."""
        return {
            c: pa.chunked_array([level_array(levels, arrow_type(t)).take(pa.array(codes[:, k]))])
            for k, (c, levels, t) in enumerate(
                zip(self.columns, self.levels, self.types, strict=True)
            )
        }


@final
@register("binary")
@dataclass(frozen=True, kw_only=True)
class Binary(Classes):
    """Columns of two levels of any type, as 0 and 1; a missing cell holds the share of ones.

    A value that is neither is encoded as -3: no coin gives that, so it costs 4.5 nats and more.

    >>> column = {"sex": pa.chunked_array([["m", "f", None, "f"]])}
    >>> field = Binary(columns=("sex",)).fit(column)
    >>> field.to_tensor(column).x[:, 0]
    tensor([1.0000, 0.0000, 0.3333, 0.0000])
    """

    native: ClassVar[str] = "bernoulli"
    margin: ClassVar[float] = 0.0
    allowed: ClassVar[tuple[str, ...]] = ("bernoulli",)
    mean: tuple[float, ...] = learnt(())

    def fit(self, columns: Mapping[str, Column]) -> Self:
        """Learn the two levels of each column and the share of the second."""
        levels, types, missing = self.learn(columns)
        for name, found in zip(self.columns, levels, strict=True):
            if len(found) > 2:
                raise InputError(
                    f"column '{name}' was declared binary but has {len(found)} levels; "
                    f"declare it categorical"
                )
        fitted = replace(
            self, levels=tuple(map(tuple, levels)), types=tuple(types), missing=missing
        )
        codes, _ = fitted.codes(columns)
        seen = np.maximum((codes >= 0).sum(0), 1)
        return replace(fitted, mean=tuple(((codes == 1).sum(0) / seen).tolist()))

    def to_tensor(self, columns: Mapping[str, Column]) -> Encoded:
        """Encode as 0 and 1."""
        codes, notes = self.codes(columns)
        absent = codes == -1
        x = np.where(absent, np.array(self.mean), np.where(codes == UNSEEN, NEITHER, codes))
        return Encoded(
            torch.from_numpy(x.astype(np.float32)),
            torch.from_numpy(~absent) if absent.any() else None,
            notes,
        )

    def to_values(self, point: Tensor) -> dict[str, Column]:
        """Return the level on the likelier side of one half."""
        last = np.array([len(levels) - 1 for levels in self.levels])
        return self.values(np.minimum((point.cpu().numpy() > 0.5).astype(np.int64), last))

    def index(self, x: Tensor) -> Tensor:
        """Return 1 above one half, else 0."""
        return torch.where(x < -0.5, UNSEEN, (x > 0.5).long())

    @property
    def bounds(self) -> tuple[list[float], list[float]]:
        """Zero and one."""
        return [0.0] * len(self.columns), [1.0] * len(self.columns)

    @property
    def sizes(self) -> tuple[int, ...]:
        """One number (a probability) per column."""
        return (1,) * len(self.columns)


@final
@register("categorical")
@dataclass(frozen=True, kw_only=True)
class Categorical(Classes):
    """Columns of several levels of any type, as class indices; -1 where missing, -2 where unseen.

    >>> column = {"city": pa.chunked_array([["b", "a", None, "c"]])}
    >>> Categorical(columns=("city",)).fit(column).to_tensor(column).x[:, 0]
    tensor([ 1,  0, -1,  2])
    """

    native: ClassVar[str] = "categorical"
    allowed: ClassVar[tuple[str, ...]] = ("categorical",)

    def fit(self, columns: Mapping[str, Column]) -> Self:
        """Learn the levels of each column."""
        levels, types, missing = self.learn(columns)
        return replace(self, levels=tuple(map(tuple, levels)), types=tuple(types), missing=missing)

    def to_tensor(self, columns: Mapping[str, Column]) -> Encoded:
        """Encode as class indices."""
        codes, notes = self.codes(columns)
        absent = codes == -1
        return Encoded(
            torch.from_numpy(codes), torch.from_numpy(~absent) if absent.any() else None, notes
        )

    def to_values(self, point: Tensor) -> dict[str, Column]:
        """Return the level of each class index."""
        return self.values(point.long().cpu().numpy())

    def index(self, x: Tensor) -> Tensor:
        """Class indices are that."""
        return x.long()

    @property
    def bounds(self) -> None:
        """Levels bound a class."""

    @property
    def sizes(self) -> tuple[int, ...]:
        """Levels of each column."""
        return tuple(max(1, len(levels)) for levels in self.levels)


def plain_levels(levels: Arrow) -> list[Any]:
    """Levels as values JSON can hold: times become text."""
    temporal = pa.types.is_temporal(levels.type)
    return (levels.cast(pa.string()) if temporal else levels).to_pylist()


def level_array(levels: tuple[Any, ...], kind: Arrow) -> Arrow:
    """Levels as an Arrow array of a type, from values that JSON can hold."""
    if pa.types.is_temporal(kind):
        return pa.array(levels, pa.string()).cast(kind)
    return pa.array(levels, kind)


def _as_type(column: Arrow, kind: Arrow, name: str) -> Arrow:
    """Cast to the training type; cells of text that do not read as it become missing."""
    if column.type == kind:
        return column
    try:
        return column.cast(kind)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        if not pa.types.is_string(column.type):
            raise InputError(
                f"column '{name}' holds {column.type}, but {kind} in training; convert it"
            ) from error
    # Text in a column of numbers: the cells that do not read as that type are new values.
    unique = column.unique()
    readable = pa.array([_reads_as(v, kind) for v in unique.to_pylist()])
    known = unique.filter(readable)
    return compute.if_else(compute.is_in(column, value_set=known), column, None).cast(kind)


def _reads_as(text: str | None, kind: Arrow) -> bool:
    try:
        pa.scalar(text).cast(kind)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        return False
    return text is not None


def _unseen(name: str, column: Arrow, index: Arrow) -> list[str]:
    new = column.filter(compute.and_(compute.is_valid(column), compute.is_null(index)))
    if len(new) == 0:
        return []
    some = ", ".join(repr(v) for v in new.unique().slice(0, 3).to_pylist())
    return [f"column '{name}': {counted(len(new), 'value')} never seen in training ({some})"]
