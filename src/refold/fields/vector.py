"""A block of numbers that belong together: one row of an array."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Self, final

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from refold.casting import as_dtype
from refold.errors import InputError, unknown
from refold.fields.base import Encoded, Field, learnt, register
from refold.fields.numeric import Scale, only_whole, refuse_infinite, scaled
from refold.table import Column

SCALES = ("auto", "standard", "pooled", "centred", "unit")


@final
@register("vector")
@dataclass(frozen=True, kw_only=True)
class Vector(Field):
    r"""A row of ``d`` numbers, ``[n, d]``, centred and scaled.

    ``scale="standard"`` divides each entry by its own standard deviation, ``"pooled"`` all
    entries by one, so that entries of one unit (pixels, spectra) keep their relative size.
    ``"centred"`` takes the mean away and leaves the unit as it is.
    ``"unit"`` is for entries in [0, 1], which stay as they are and are scored as probabilities
    (``bernoulli``) unless ``likelihood`` says otherwise.
    ``"auto"`` is ``"unit"`` for booleans, and pools where most entries share the same smallest and
    largest value, as pixels do.
    ``size``, where given, is the ``d`` that is expected.

    Raises :class:`InputError` for rows of another size, for an unknown ``scale``, and for entries
    outside [0, 1] where that is the unit.

    >>> str(Vector(100, scale="pooled"))
    "vector(size=100, scale='pooled')"
    """

    block: ClassVar[bool] = True
    native: ClassVar[str] = "mse"
    allowed: ClassVar[tuple[str, ...]] = (
        "mse", "l1", "huber", "gaussian", "laplace", "student", "bernoulli",
    )  # fmt: skip
    size: int | None = field(default=None, kw_only=False)
    scale: str = "auto"
    mean: tuple[float, ...] = learnt(())
    std: tuple[float, ...] = learnt(())
    low: tuple[float, ...] = learnt(())
    high: tuple[float, ...] = learnt(())
    dtype: str = learnt("float64")
    whole: bool = learnt(False)
    """Whether every number of training was whole."""

    def __post_init__(self) -> None:
        if self.scale not in SCALES:
            raise unknown("scale", self.scale, SCALES)

    def fit(self, columns: Mapping[str, Column]) -> Self:
        """Learn each entry's mean, scale and range."""
        given = block(columns, self.columns[0])
        values = given.reshape(len(given), -1)
        check_size(self.columns[0], values.shape[1], self.size)
        refuse_infinite(values, tuple(f"{self.columns[0]}{i}" for i in range(values.shape[1])))
        if self.scale == "unit" or (self.scale == "auto" and given.dtype.kind == "b"):
            return self._unit(values, str(given.dtype))
        if (self.likelihood or "").startswith("bernoulli"):
            raise InputError(
                f"field '{self.columns[0]}' is to be scored as probabilities (bernoulli), that lie "
                f"in [0, 1] as they are given; add scale='unit'"
            )
        missing = bool(np.isnan(values).any())
        open_ = self.scale == "auto" and values.shape[1] >= 16 and not missing
        scale = Scale.of(values, same_unit if open_ else self.scale == "pooled")
        scale = scale.unit() if self.scale == "centred" else scale
        return replace(
            self,
            mean=tuple(scale.mean.tolist()),
            std=tuple(scale.std.tolist()),
            low=tuple(scale.low.tolist()),
            high=tuple(scale.high.tolist()),
            missing=missing,
            dtype=str(given.dtype),
            whole=only_whole(values),
        )

    def _unit(self, values: NDArray[np.float64], dtype: str) -> Self:
        """Leave entries in [0, 1] as they are; a missing one is 0."""
        low, high = np.nanmin(values), np.nanmax(values)
        if low < 0 or high > 1:
            raise InputError(
                f"field '{self.columns[0]}' was declared with scale='unit', but holds values from "
                f"{low:g} to {high:g}; give values in [0, 1], or use scale='standard'"
            )
        width = values.shape[1]
        return replace(
            self,
            likelihood=self.likelihood or "bernoulli",
            mean=(0.0,) * width,
            std=(1.0,) * width,
            low=(0.0,) * width,
            high=(1.0,) * width,
            missing=bool(np.isnan(values).any()),
            dtype=dtype,
        )

    def to_tensor(self, columns: Mapping[str, Column]) -> Encoded:
        """Standardise; a missing entry becomes 0, its mean."""
        values = block(columns, self.columns[0])
        values = values.reshape(len(values), -1)
        check_width(self.columns[0], values.shape[1], len(self.mean))
        return scaled(values, self.mean, self.std, self.low, self.high, self.entries)

    def to_values(self, point: Tensor) -> dict[str, Column]:
        """Return to the array's units and type."""
        values = point.double().cpu().numpy() * np.array(self.std) + np.array(self.mean)
        return {self.columns[0]: as_dtype(values, np.dtype(self.dtype))}

    @property
    def shape(self) -> tuple[int, ...]:
        """One number per entry."""
        return (len(self.mean),)

    @property
    def cell(self) -> tuple[int, ...]:
        """One number per entry."""
        return (len(self.mean),)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Numbers have one level."""
        return (1,) * len(self.mean)

    @property
    def entries(self) -> tuple[str, ...]:
        """Return the block's name and the entry's position."""
        return tuple(f"{self.columns[0]}{i}" for i in range(len(self.mean)))

    @property
    def bounds(self) -> tuple[list[float], list[float]]:
        """Standardised training range."""
        return list(self.low), list(self.high)


def block(columns: Mapping[str, Column], name: str) -> NDArray[Any]:
    """Narrow a column to a block."""
    values = columns[name]
    if not isinstance(values, np.ndarray):
        raise InputError(
            f"field '{name}' was learnt from arrays, but now holds one value a row "
            f"({values.type}); give arrays again"
        )
    return values


def check_size(name: str, found: int, said: int | None) -> None:
    """Raise where rows do not have the size the user said."""
    if said is not None and said != found:
        raise InputError(
            f"field '{name}' was declared with rows of {said} numbers, but they have {found}; give "
            f"rows of {said}, or declare size={found}"
        )


def check_width(name: str, found: int, expected: int) -> None:
    """Raise where rows do not have the size of training."""
    if found != expected:
        raise InputError(
            f"field '{name}' has {found} numbers a row, but {expected} in training; give rows of "
            f"{expected}"
        )


def same_unit(low: NDArray[np.float64], high: NDArray[np.float64]) -> bool:
    """Whether most columns share one smallest and many one largest value, as pixels do."""
    span = high.max() - low.min()
    at_floor = (low <= low.min() + 0.01 * span).mean()
    at_ceiling = (high >= high.max() - 0.1 * span).mean()
    return bool(at_floor > 0.8 and at_ceiling > 0.4)
