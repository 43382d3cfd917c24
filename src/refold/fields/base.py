"""What every field is, and the registry that names them."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Protocol, Self, TypeVar, runtime_checkable

import pyarrow as pa
from torch import Tensor

from refold.errors import InputError
from refold.likelihoods import Likelihood, likelihoods
from refold.parts import PartSpec, Registry
from refold.table import Arrow, Column

T = TypeVar("T")


def learnt(default: T) -> T:
    """Declare an attribute that :meth:`Field.fit` sets, and that is no option of the user's."""
    return dataclasses.field(default=default, metadata={"learnt": True})


class Encoded(NamedTuple):
    """A field's rows as tensors, and remarks on values that had to be handled."""

    x: Tensor
    observed: Tensor | None
    notes: list[str]


@dataclass(frozen=True, kw_only=True)
class Field(ABC):
    """A typed column, or a block of columns of one type that share a tensor and a head.

    The keyword options are the user's; what :meth:`fit` learns is kept in a new frozen object, so
    that a template can be fitted many times. ``likelihood`` names how the field is predicted
    and scored and ``backbone`` how it is encoded (None: the recipe's or the kind's own);
    ``weight`` multiplies its share of the objective. A field is an input that is rebuilt, unless
    it is a ``target``, predicted and never seen, or is ``given``, seen and never rebuilt.
    """

    block: ClassVar[bool] = False
    """True where one column's cells are arrays; False where scalar columns are packed."""
    alone: ClassVar[bool] = False
    """True where a column of scalars has entries of its own, so that it is a field by itself."""
    native: ClassVar[str]
    """Likelihood by default."""
    allowed: ClassVar[tuple[str, ...]]
    """Likelihoods that can predict this kind."""
    margin: ClassVar[float] = 3.0
    """How far beyond its training range (in its own scale) an encoder may see a value."""
    shades: ClassVar[tuple[str, ...]] = ()
    """Likelihoods whose draws are no values of this kind: a coin's toss is no shade of grey."""
    apart: ClassVar[float] = 1.0
    """How far two numbers may lie apart, in the field's own scale, and still count as alike."""

    likelihood: str | None = None
    backbone: str | None = None
    weight: float = 1.0
    target: bool = False
    given: bool = False
    columns: tuple[str, ...] = learnt(())
    missing: bool = learnt(False)
    """Whether training rows had missing entries, so that the encoder is told which."""

    @abstractmethod
    def fit(self, columns: Mapping[str, Column]) -> Self:
        """Learn scale or levels from the columns, and nothing else."""

    @abstractmethod
    def to_tensor(self, columns: Mapping[str, Column]) -> Encoded:
        """Encode values as ``x`` ``[B, *shape]`` and a mask ``[B, E]`` (None: all observed)."""

    @abstractmethod
    def to_values(self, point: Tensor) -> dict[str, Column]:
        """Decode flat points ``[B, E]`` of the likelihood to the user's types and units."""

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]:
        """Shape of one row of ``x``."""

    @property
    @abstractmethod
    def cell(self) -> tuple[int, ...]:
        """Shape of one value as the user gives it: ``()`` for a scalar column."""

    @property
    @abstractmethod
    def sizes(self) -> tuple[int, ...]:
        """Levels of each entry: 1 for a number."""

    @property
    @abstractmethod
    def entries(self) -> tuple[str, ...]:
        """Name of each entry, as causes and tables show it."""

    @property
    def units(self) -> tuple[str, ...]:
        """Columns that count as one share each when the objective is balanced."""
        return self.columns

    @property
    def smooth(self) -> bool:
        """Whether a sampled row is best shown by its mean, as pictures are."""
        return PartSpec.parse(self.likelihood or self.native).name in self.shades

    @property
    @abstractmethod
    def bounds(self) -> tuple[list[float], list[float]] | None:
        """Range of each entry of ``x`` in training, for numbers; None where levels bound it."""

    def head(self, default: str | None = None) -> Likelihood:
        """Build the likelihood: the user's, else ``default``, else the kind's own."""
        spec = PartSpec.parse(self.likelihood or default or self.native)
        if spec.name not in self.allowed and spec.name in likelihoods:
            raise InputError(
                f"the likelihood '{spec.name}' cannot predict a field of kind '{kind_of(self)}'; "
                f"use one of: {', '.join(self.allowed)}"
            )
        if not self.weight > 0:
            raise InputError(f"a field's weight is {self.weight}; it must be above 0")
        return likelihoods.build(spec, self.sizes, self.shape)

    def __str__(self) -> str:
        """Write the user's own options in the parts' small language."""
        options = {
            f.name: getattr(self, f.name)
            for f in dataclasses.fields(self)
            if not f.metadata.get("learnt") and getattr(self, f.name) != f.default
        }
        return str(PartSpec(kind_of(self), options))

    def to_json(self) -> dict[str, Any]:
        """Return the options and what was learnt, as plain values."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return {"kind": kind_of(self), **values}


@runtime_checkable
class Following(Protocol):
    """A field whose rebuilt values also depend on the rows they stand for, as a length does."""

    def to_values_like(self, point: Tensor, given: Column) -> dict[str, Column]:
        """Decode flat points ``[B, E]``, each like the row given in its column."""
        ...


@dataclass(frozen=True, kw_only=True)
class Numbers(Field):
    """Scalar columns of numbers side by side, each an entry."""

    @property
    def shape(self) -> tuple[int, ...]:
        """One number per column."""
        return (len(self.columns),)

    @property
    def cell(self) -> tuple[int, ...]:
        """Columns of scalars."""
        return ()

    @property
    def sizes(self) -> tuple[int, ...]:
        """Numbers have one level."""
        return (1,) * len(self.columns)

    @property
    def entries(self) -> tuple[str, ...]:
        """Return the column names."""
        return self.columns


fields: Registry[Field] = Registry("field kind", sized=False)
register = fields.register


def options_of(kind: str) -> list[str]:
    """Options a user may give a registered kind of field, without what it learns.

    >>> options_of("vector")[:3]
    ['likelihood', 'backbone', 'weight']
    """
    known = dataclasses.fields(fields[kind])
    return [f.name for f in known if not f.metadata.get("learnt")]


def kind_of(field: Field) -> str:
    """Registered name of a field's class."""
    return next(name for name in fields if fields[name] is type(field))


def from_json(values: Mapping[str, Any]) -> Field:
    """Rebuild a field from :meth:`Field.to_json`; lists become tuples again."""
    options = {k: _tuples(v) for k, v in values.items() if k != "kind"}
    return fields.build(PartSpec(str(values["kind"]), options))


def _tuples(value: Any) -> Any:
    return tuple(_tuples(v) for v in value) if isinstance(value, list) else value


def scalar(column: Column) -> Arrow:
    """Narrow a column to scalars."""
    assert isinstance(column, pa.ChunkedArray)
    return column


def arrow_type(text: str) -> Arrow:
    """Parse the text of an Arrow type, time zones included.

    >>> arrow_type("timestamp[us, tz=UTC]")
    TimestampType(timestamp[us, tz=UTC])
    """
    if text.startswith("timestamp[") and ", tz=" in text:
        unit, zone = text[len("timestamp[") : -1].split(", tz=")
        return pa.timestamp(unit, zone)
    aliases = {
        "large_string": pa.large_string(),
        "date32[day]": pa.date32(),
        "date64[ms]": pa.date64(),
        "string_view": pa.string_view(),
        "float": pa.float32(),
        "double": pa.float64(),
        "halffloat": pa.float16(),
    }
    return aliases.get(text) or pa.type_for_alias(text)
