"""What the data is: which column is of which kind, and the way to tensors and back."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from torch import Tensor

from refold.errors import InputError, unknown
from refold.fields import Categorical, Field, Image, Ordinal, Series, Text, Vector, fields
from refold.fields.base import Following, arrow_type, from_json, kind_of, options_of
from refold.fields.category import Classes
from refold.parts import PartSpec
from refold.table import Arrow, Column, Table, compute, holds_lists
from refold.types import Batch

CODED = 10  # integers with at most so many values, each seen ten times, are codes of classes
MANY = 1000  # levels above which text is no category

IGNORE = "ignore"
ROLES = ("target", "given")  # what a user may say of a column in place of its kind

Override = str | Field | None


@dataclass(frozen=True)
class Aside:
    """A column that is not learnt: why, its type, and its value where it has but one."""

    reason: str
    type: str
    value: Any = None
    output: bool = True
    """False for labels stored beside the data, which are not part of its rows."""


@dataclass(frozen=True)
class Schema:
    """Fields by name, the user's columns in order, and the columns set aside.

    Columns of one kind and options share one field, so that cost does not grow with their number.
    """

    fields: Mapping[str, Field]
    order: tuple[str, ...]
    aside: Mapping[str, Aside] = field(default_factory=dict[str, Aside])
    container: str = "pyarrow"

    @classmethod
    def fit(
        cls,
        table: Table,
        rows: NDArray[np.int64],
        overrides: Mapping[str, Override] | None = None,
        scales: Mapping[str, str] | None = None,
    ) -> Schema:
        """Infer kinds from all of ``table``, and learn scales from the given ``rows``.

        ``overrides`` maps a column to a kind (``"categorical"``, ``"numeric(likelihood='l1')"``)
        or a field object, to a role (``"target"``, ``"given"``) while its kind is inferred, or sets
        it aside (``"ignore"``). ``scales`` says by kind how numbers are scaled where the user
        leaves it open. Raises :class:`InputError` for names that do not exist, and where
        nothing is left to see or to give back.
        """
        overrides = {str(name): kind for name, kind in (overrides or {}).items()}
        table = _called(table, overrides)
        for name in overrides:
            if name not in table.columns:
                raise unknown("column", name, table.columns)
        aside: dict[str, Aside] = {}
        packed: dict[tuple[Field, str], list[str]] = {}
        for name, column in table.columns.items():
            kind = cast_role(name, column, table, overrides.get(name))
            if isinstance(kind, Aside):
                aside[name] = kind
            else:
                if getattr(kind, "scale", "") == "auto" and kind_of(kind) in (scales or {}):
                    kind = dataclasses.replace(kind, scale=(scales or {})[kind_of(kind)])
                apart = kind.block or kind.alone
                packed.setdefault((kind, name if apart else ""), []).append(name)
        training = table.take(rows)
        fitted: dict[str, Field] = {}
        for (template, block), names in packed.items():
            own = dataclasses.replace(template, columns=tuple(names))
            # A level seen in any row is known; scales come from the training rows alone.
            source = table.columns if isinstance(own, Classes) else training
            name = names[0] if len(names) == 1 else kind_of(own)
            try:
                fitted[_free(block or name, fitted)] = own.fit(source)
            except InputError:
                own.fit(table.columns)  # which names a faulty row by its place among all
                raise
        if not fitted:
            reasons = "; ".join(f"'{k}' {a.reason}" for k, a in aside.items())
            raise InputError(f"no column is left to learn from: {reasons or 'the data has none'}")
        if all(f.target for f in fitted.values()):
            raise InputError(
                "every column is a target, so there is nothing to predict it from; leave at least "
                "one that is not"
            )
        if all(f.given for f in fitted.values()):
            raise InputError(
                "every column is given, so there is nothing to learn; leave at least one that is "
                "rebuilt or a target"
            )
        order = tuple(c for c in table.columns if c not in aside or aside[c].output)
        return cls(fitted, order, aside, table.container.kind)

    def encode(self, table: Table, quiet: Collection[str] = ()) -> tuple[Batch, list[str]]:
        """Rows as tensors, and remarks on what had to be handled: new values, absent columns.

        No remark is made where a target or a column in ``quiet`` is absent.
        """
        notes = list[str]()
        columns = self._renamed(dict(table.columns))
        learnt = [c for f in self.fields.values() for c in f.columns]
        needed = [c for f in self.fields.values() for c in f.columns if not f.target]
        expected = [c for c in needed if c not in quiet] or needed
        if not any(c in columns for c in expected) and not (set(needed) - set(expected)):
            raise InputError(
                f"none of the columns the model was trained on is in the data: expected "
                f"{_some(needed)}, got {_some(list(columns))}"
            )
        absent = [c for c in needed if c not in columns and c not in quiet]
        for name in learnt:
            if name not in columns:
                columns[name] = self._nothing(name, len(table))
        if absent:
            notes.append(f"not in the data, so missing in every row: {_some(absent)}")
        extra = [c for c in columns if c not in learnt and c not in self.aside]
        if extra:
            notes.append(f"columns never seen in training are ignored: {_some(extra)}")
        x: dict[str, Tensor] = {}
        observed: dict[str, Tensor | None] = {}
        for name, own in self.fields.items():
            encoded = own.to_tensor(columns)
            x[name], observed[name] = encoded.x, encoded.observed
            notes += encoded.notes
        return Batch(x, observed), notes

    def decode(self, points: Mapping[str, Tensor], given: Table | None = None) -> dict[str, Column]:
        """Values of the columns of the fields in ``points``, in the user's order.

        Columns that are never rebuilt, and those set aside, come from ``given``.
        """
        values = self.values(points, given)
        n = len(next(iter(points.values())))
        for name in (c for f in self.fields.values() if f.given for c in f.columns):
            if given is not None and name in given.columns:
                values[name] = given.columns[name]
        for name, own in self.aside.items():
            if not own.output:
                continue
            kept = given is not None and name in given.columns and own.value is None
            values[name] = given.columns[name] if kept and given else _repeat(own, n)
        return {name: values[name] for name in self.order if name in values}

    def values(self, points: Mapping[str, Tensor], given: Table | None = None) -> dict[str, Column]:
        """Values of the columns of the fields in ``points``, and no others.

        Where they are those of ``given`` rows, a series is as long as the one given.
        """
        values: dict[str, Column] = {}
        known = {} if given is None else self._renamed(dict(given.columns))
        for name, point in points.items():
            own = self.fields[name]
            if isinstance(own, Following) and own.columns[0] in known:
                values |= own.to_values_like(point, known[own.columns[0]])
            else:
                values |= own.to_values(point)
        return {name: values[name] for name in self.order if name in values}

    def field_of(self, column: str) -> str:
        """Return the name of the field that holds a column; an error for one that none does."""
        for name, own in self.fields.items():
            if column in own.columns:
                return name
        raise unknown("column", column, [c for f in self.fields.values() for c in f.columns])

    @property
    def targets(self) -> tuple[str, ...]:
        """Columns that are predicted and never seen, in the user's order."""
        return tuple(c for c in self.order if c not in self.aside and self._own(c).target)

    def _own(self, column: str) -> Field:
        return self.fields[self.field_of(column)]

    def entries(self) -> list[str]:
        """Name of every entry of every field, in the fields' order."""
        return [e for f in self.fields.values() for e in f.entries]

    def describe(self) -> list[str]:
        """One line per field and per reason for setting columns aside."""
        lines: list[str] = []
        for name, own in self.fields.items():
            if own.block:
                lines.append(f"{name}: {kind_of(own)} of {'x'.join(map(str, own.shape))}")
            elif isinstance(own, Ordinal):
                ranked = zip(own.columns, own.levels, strict=True)
                named = [f"{column} ({_ranked(levels)})" for column, levels in ranked]
                lines.append(f"{len(own.columns)} ordinal: {', '.join(named)}")
            else:
                count = f"{len(own.columns)} {kind_of(own)}"
                lines.append(f"{count}: {', '.join(own.columns)}")
        lines += [f"set aside: {name} ({own.reason})" for name, own in self.aside.items()]
        return lines

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "fields": {k: f.to_json() for k, f in self.fields.items()},
            "order": list(self.order),
            "aside": {k: dataclasses.asdict(a) for k, a in self.aside.items()},
            "container": self.container,
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Schema:
        """Rebuild from :meth:`to_json`."""
        return cls(
            {k: from_json(f) for k, f in values["fields"].items()},
            tuple(values["order"]),
            {k: Aside(**a) for k, a in values["aside"].items()},
            values["container"],
        )

    def _renamed(self, columns: dict[str, Column]) -> dict[str, Column]:
        """Give the one block the name of the one field: arrays have no names of their own."""
        own = next(iter(self.fields.values()))
        column = next(iter(columns.values()), None)
        alone = len(self.fields) == 1 == len(columns)
        if alone and holds_lists(column) and isinstance(own, Series):
            return {own.columns[0]: column}
        if not (alone and own.block and isinstance(column, np.ndarray)):
            return columns
        flat = column.ndim == 2 and column.shape[1] == np.prod(own.cell)
        return {own.columns[0]: column.reshape(len(column), *own.cell) if flat else column}

    def _nothing(self, name: str, n: int) -> Column:
        own = next(f for f in self.fields.values() if name in f.columns)
        return np.full((n, *own.cell), np.nan) if own.block else pa.chunked_array([pa.nulls(n)])


def _called(table: Table, overrides: Mapping[str, Override]) -> Table:
    """Give an array, which has no name of its own, the one name declared for a kind of arrays."""
    if table.container.kind not in ("numpy", "tensor", "cells") or len(overrides) != 1:
        return table
    ((name, kind),) = overrides.items()
    word = PartSpec.parse(kind).name if isinstance(kind, str) else ""
    own = fields[word] if word in fields else type(kind)
    block = issubclass(own, Field) and own.block
    return table.renamed(name) if block and len(table.columns) == 1 else table


def cast_role(name: str, column: Column, table: Table, override: Override) -> Field | Aside:
    """Kind and role of a column: those the user says, the rest from its values."""
    text = Text() if name in table.texts else None
    if override not in ROLES:
        override = text if override is None else override
        kind = judge(name, column, override, name in table.aside, table.levels.get(name, ()))
        if isinstance(kind, Field) and kind.target and kind.given:
            raise InputError(
                f"column '{name}' is to be a target, which is never seen, and given, which is "
                f"never predicted; leave one of them out, or both for a column that is rebuilt"
            )
        return kind
    kind = judge(name, column, text, label=False, order=table.levels.get(name, ()))
    if isinstance(kind, Aside):
        raise InputError(
            f"column '{name}' cannot be {override}: it is {kind.reason}; leave it out, or name its "
            f"kind, as in fields={{'{name}': 'categorical({override}=True)'}}"
        )
    return dataclasses.replace(kind, **{str(override): True})


def judge(
    name: str, column: Column, override: Override, label: bool, order: tuple[Any, ...] = ()
) -> Field | Aside:
    """Kind of a column: the user's word, or what its values say; or why it is set aside.

    ``order`` holds the levels of a column whose type gives them one.
    """
    lists = holds_lists(column)
    kind = "array" if lists or isinstance(column, np.ndarray) else str(column.type)
    if override == IGNORE:
        return Aside("ignored as asked", kind)
    if isinstance(override, str):
        spec = PartSpec.parse(override)
        known = options_of(spec.name)
        for option in spec.options:
            if option not in known:
                raise unknown(f"option of field kind '{spec.name}'", option, known)
        return suited(name, column, fields.build(spec), order)
    if override is not None:
        return suited(name, column, override, order)
    if label:
        return Aside("stored beside the data as labels", kind, output=False)
    if isinstance(column, np.ndarray):
        if column.ndim == 2:
            return Vector()
        return Image()
    if lists:
        return Series()
    if order and compute.count_distinct(column.drop_null()).as_py() > 1:
        return Ordinal(order=order)
    return judge_scalar(name, column)


def suited(name: str, column: Column, own: Field, order: tuple[Any, ...]) -> Field:
    """Return the kind a user named, with the column's own order where none was given."""
    if isinstance(column, np.ndarray) and not own.block:
        blocks = ", ".join(k for k in fields if fields[k].block)
        raise InputError(
            f"column '{name}' was declared {kind_of(own)}, which has one value a row, but it holds "
            f"arrays; declare it one of: {blocks}"
        )
    if holds_lists(column) and not isinstance(own, Series):
        raise InputError(
            f"column '{name}' was declared {kind_of(own)}, but it holds series of different "
            f"lengths; declare it series, or give rows of one length"
        )
    if isinstance(own, Ordinal) and not own.order:
        return dataclasses.replace(own, order=order)
    return own


def judge_scalar(name: str, column: Arrow) -> Field | Aside:
    """Kind of a scalar column by its type and how many different values it has."""
    seen = column.drop_null()
    if pa.types.is_floating(seen.type):
        seen = seen.filter(compute.invert(compute.is_nan(seen)))
    if len(seen) == 0:
        raise InputError(
            f"column '{name}' has no value in any row; remove it, or pass --ignore {name}"
        )
    distinct = compute.count_distinct(seen).as_py()
    kind = str(column.type)
    if distinct == 1:
        constant = seen[0].as_py()
        plain = constant if isinstance(constant, bool | int | float | str) else str(constant)
        return Aside(f"the same in every row: {plain}", kind, plain)
    if distinct == 2:
        return fields["binary"]()
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        if distinct > MANY or (distinct > 5 and distinct > 0.5 * len(seen)):
            why = f"an identifier or free text: {distinct} values in {len(seen)} rows"
            return Aside(f"{why}; fields={{'{name}': 'text'}} learns it", kind)
        return Categorical()
    if _whole(seen):
        if distinct == len(column) >= 20 and _counts(seen):
            return Aside("a row number", kind)
        if distinct <= CODED and len(seen) >= 10 * distinct:
            return Categorical()
    return fields["numeric"]()


def _whole(column: Arrow) -> bool:
    if pa.types.is_integer(column.type):
        return True
    return bool(
        pa.types.is_floating(column.type)
        and compute.all(compute.equal(column, compute.round(column))).as_py()
    )


def _counts(column: Arrow) -> bool:
    values = column.to_numpy()
    return bool((np.diff(values) == 1).all())


def _repeat(own: Aside, n: int) -> Column:
    kind = arrow_type(own.type) if own.type != "array" else pa.null()
    value = None if own.value is None else pa.scalar(own.value)
    if value is None:
        return pa.chunked_array([pa.nulls(n, kind)])
    return pa.chunked_array([pa.repeat(value.cast(kind), n)])


def _free(name: str, taken: Mapping[str, Any]) -> str:
    reserved = {"loss", *taken}  # the first is what histories call the sum of all costs
    if name not in reserved:
        return name
    return next(f"{name}{i}" for i in range(2, len(reserved) + 3) if f"{name}{i}" not in reserved)


def _ranked(levels: tuple[Any, ...]) -> str:
    shown = [str(v) for v in levels]
    return " < ".join(shown if len(shown) <= 5 else [*shown[:2], "...", shown[-1]])


def _some(names: list[str]) -> str:
    shown = ", ".join(f"'{n}'" for n in names[:5])
    return shown if len(names) <= 5 else f"{shown} and {len(names) - 5} more"
