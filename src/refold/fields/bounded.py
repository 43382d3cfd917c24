"""Columns of numbers between two ends, packed into one block."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Self, final

import numpy as np
import pyarrow as pa
from torch import Tensor

from refold.errors import InputError
from refold.fields.base import Encoded, Numbers, arrow_type, learnt, register, scalar
from refold.fields.numeric import matrix, mean_of, own_types, refuse_infinite, tensors
from refold.table import Column
from refold.wording import counted


@final
@register("bounded")
@dataclass(frozen=True, kw_only=True)
class Bounded(Numbers):
    r"""Numbers that cannot leave an interval: :math:`x = (v - \text{low}) / (\text{high} -
    \text{low})`.

    ``x`` is ``[B, K]`` in [0, 1]; a missing cell holds its column's mean. An end that is not given
    is the smallest or largest value of training. Values never come back outside. Where rows to be
    used lie outside, they are taken as the nearer end, and remarked on. Under the likelihood
    ``bernoulli`` (a fractional logit) sampled values are means: it says nothing of their spread.

    Raises :class:`InputError` for a value outside ends that were given, in training, and for ends
    that are no interval.

    >>> import torch
    >>> column = {"share": pa.chunked_array([[0.0, 25.0, None]])}
    >>> field = Bounded(low=0.0, high=100.0, columns=("share",)).fit(column)
    >>> field.to_tensor(column).x[:, 0]
    tensor([0.0000, 0.2500, 0.1250])
    >>> field.to_values(torch.tensor([[0.5], [1.5]]))["share"].to_pylist()
    [50.0, 100.0]
    """

    native: ClassVar[str] = "beta"
    allowed: ClassVar[tuple[str, ...]] = ("beta", "bernoulli", "mse")
    shades: ClassVar[tuple[str, ...]] = ("bernoulli",)
    margin: ClassVar[float] = 0.0
    apart: ClassVar[float] = 0.25
    low: float | None = None
    high: float | None = None
    least: tuple[float, ...] = learnt(())
    most: tuple[float, ...] = learnt(())
    fill: tuple[float, ...] = learnt(())
    types: tuple[str, ...] = learnt(())

    def __post_init__(self) -> None:
        low = -math.inf if self.low is None else self.low
        high = math.inf if self.high is None else self.high
        finite = all(v is None or math.isfinite(v) for v in (self.low, self.high))
        if not (finite and low < high):
            raise InputError(
                f"numbers are to lie from {self.low} to {self.high}, which is no interval; give "
                f"finite ends, the lower one first"
            )

    def fit(self, columns: Mapping[str, Column]) -> Self:
        """Learn the ends that were not given, each column's mean and type."""
        values = matrix(columns, self.columns)
        seen = np.isfinite(values)
        least = np.where(seen, values, np.inf).min(0, initial=np.inf)
        most = np.where(seen, values, -np.inf).max(0, initial=-np.inf)
        nothing, given = ~seen.any(0), [v for v in (self.low, self.high) if v is not None]
        least[nothing] = most[nothing] = given[0] if given else 0.0
        for name, a, b in zip(self.columns, least, most, strict=True):
            low, high = a if self.low is None else self.low, b if self.high is None else self.high
            if a < low or b > high:
                raise InputError(
                    f"column '{name}' holds {a if a < low else b:g}, outside its ends {low:g} and "
                    f"{high:g}; correct the value, or declare other ends"
                )
        least = least if self.low is None else np.full_like(least, self.low)
        most = most if self.high is None else np.full_like(most, self.high)
        fitted = replace(
            self,
            least=tuple(least.tolist()),
            most=tuple(most.tolist()),
            missing=bool(np.isnan(values).any()),
            types=tuple(str(scalar(columns[c]).type) for c in self.columns),
        )
        return replace(fitted, fill=mean_of((np.where(seen, values, np.nan) - least) / fitted.span))

    @property
    def span(self) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        """Distance between the ends of each column, 1 where they are one."""
        span = np.array(self.most) - np.array(self.least)
        return np.where(span > 0, span, 1.0)

    def to_tensor(self, columns: Mapping[str, Column]) -> Encoded:
        """Scale to [0, 1]; a missing cell becomes the mean."""
        values = matrix(columns, self.columns)
        refuse_infinite(values, self.columns)
        least, most = np.array(self.least), np.array(self.most)
        outside = ((values < least) | (values > most)).sum(0)
        notes = [
            f"column '{self.columns[i]}': {counted(outside[i], 'value')} outside {least[i]:g} to "
            f"{most[i]:g} taken as the nearer end"
            for i in np.flatnonzero(outside)[:5]
        ]
        x = (np.clip(values, least, most) - least) / self.span
        return Encoded(*tensors(x, np.array(self.fill)), notes)

    def to_values(self, point: Tensor) -> dict[str, Column]:
        """Return to units, between the ends, and to each column's own type."""
        least, most = np.array(self.least), np.array(self.most)
        values = point.double().cpu().numpy() * self.span + least
        whole = np.array([pa.types.is_integer(arrow_type(t)) for t in self.types])
        # Integers are rounded later: the nearest whole number may lie beyond an end that is none.
        low, high = np.where(whole, np.ceil(least), least), np.where(whole, np.floor(most), most)
        return own_types(np.clip(values, low, high), self.columns, self.types)

    @property
    def bounds(self) -> tuple[list[float], list[float]]:
        """Zero and one."""
        return [0.0] * len(self.columns), [1.0] * len(self.columns)
