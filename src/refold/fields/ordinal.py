"""Columns of ordered classes."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self, final

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from refold.errors import InputError
from refold.fields.base import Encoded, arrow_type, learnt, register
from refold.fields.category import NEITHER, Classes, level_array, plain_levels
from refold.likelihoods.categorical import UNSEEN
from refold.table import Column


@final
@register("ordinal")
@dataclass(frozen=True, kw_only=True)
class Ordinal(Classes):
    r"""Columns of classes that have an order, as ranks scaled to [0, 1].

    .. math:: x = j / (L - 1) \text{ for the } j\text{-th of } L \text{ levels, from 0}

    ``x`` is ``[B, K]``; it is 0 where a column has one level. Levels are sorted unless ``order``
    names them from the lowest to the highest; it may name levels that the data does not hold. A
    missing cell holds the column's mean, a value never seen in training is encoded as -3.

    Raises :class:`InputError` for an ``order`` that names a level twice or misses one.

    >>> column = {"size": pa.chunked_array([["l", "s", None, "m"]])}
    >>> field = Ordinal(order=("s", "m", "l"), columns=("size",)).fit(column)
    >>> field.to_tensor(column).x[:, 0]
    tensor([1.0000, 0.0000, 0.5000, 0.5000])
    """

    native: ClassVar[str] = "ordinal"
    margin: ClassVar[float] = 0.0
    allowed: ClassVar[tuple[str, ...]] = ("ordinal",)
    order: tuple[Any, ...] = ()
    mean: tuple[float, ...] = learnt(())

    def __post_init__(self) -> None:
        if isinstance(self.order, str):
            raise InputError(
                f"the order is '{self.order}'; name the levels from the lowest to the highest, as "
                f"in order=('low', 'high')"
            )
        order = tuple(_plain(level) for level in self.order)
        object.__setattr__(self, "order", order)
        if twice := [v for i, v in enumerate(order) if v in order[:i]]:
            raise InputError(f"the order names {twice[0]!r} twice; name every level once")

    def fit(self, columns: Mapping[str, Column]) -> Self:
        """Learn the levels of each column, their order, and the mean rank."""
        found, types, missing = self.learn(columns)
        levels = [
            self._ordered(c, seen, t) for c, seen, t in zip(self.columns, found, types, strict=True)
        ]
        fitted = replace(self, levels=tuple(levels), types=tuple(types), missing=missing)
        codes, _ = fitted.codes(columns)
        seen = codes >= 0
        total = np.where(seen, codes, 0).sum(0) / fitted._last()
        return replace(fitted, mean=tuple((total / np.maximum(seen.sum(0), 1)).tolist()))

    def _ordered(self, name: str, seen: list[Any], kind: str) -> tuple[Any, ...]:
        """Levels of a column in order, as values JSON can hold."""
        if not self.order:
            return tuple(seen)
        try:
            levels = plain_levels(level_array(self.order, arrow_type(kind)))
        except (pa.ArrowException, TypeError, ValueError) as error:
            raise InputError(
                f"the order {self.order} does not suit column '{name}', which holds {kind}; name "
                f"the levels as the column holds them"
            ) from error
        if absent := [v for v in seen if v not in levels]:
            raise InputError(
                f"the order of column '{name}' misses {absent[0]!r}, which the data holds; name "
                f"every level, from the lowest to the highest"
            )
        return tuple(levels)

    def to_tensor(self, columns: Mapping[str, Column]) -> Encoded:
        """Encode as scaled ranks."""
        codes, notes = self.codes(columns)
        absent = codes == -1
        ranks = np.where(codes == UNSEEN, NEITHER, codes / self._last())
        return Encoded(
            torch.from_numpy(np.where(absent, np.array(self.mean), ranks).astype(np.float32)),
            torch.from_numpy(~absent) if absent.any() else None,
            notes,
        )

    def to_values(self, point: Tensor) -> dict[str, Column]:
        """Return the level of the nearest rank."""
        return self.values(self.index(point).clamp_min(0).cpu().numpy())

    def index(self, x: Tensor) -> Tensor:
        """Nearest rank, counted from 0."""
        last = torch.tensor([len(levels) - 1 for levels in self.levels], device=x.device)
        ranks = (x * last).round().long()
        return torch.where(x < -0.5, UNSEEN, torch.minimum(ranks, last).clamp_min(0))

    def _last(self) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Rank of each column's last level, 1 where there is but one."""
        return np.array([max(1, len(levels) - 1) for levels in self.levels])

    @property
    def bounds(self) -> tuple[list[float], list[float]]:
        """Zero and one."""
        return [0.0] * len(self.columns), [1.0] * len(self.columns)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Levels of each column."""
        return tuple(max(1, len(levels)) for levels in self.levels)


def _plain(level: Any) -> Any:
    """Value of a level that JSON can hold: dates and times become text."""
    if isinstance(level, dt.date | dt.time | dt.datetime):
        return str(level)
    return level.item() if isinstance(level, np.generic) else level
