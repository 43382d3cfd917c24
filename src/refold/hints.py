"""Values against type annotations: a signature is a schema, and can be checked as one."""

from __future__ import annotations

import types
from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any, Union, get_args, get_origin

WORDS = {int: "a whole number", float: "a number", str: "a name", bool: "True or False"}


def expectation(hint: Any) -> str:
    """Say in words what a type takes.

    >>> expectation(float | None)
    'a number or None'
    """
    return " or ".join(dict.fromkeys(words(h) for h in alternatives(hint) if words(h)))


def fits(value: Any, hint: Any) -> bool:
    """Whether a value is of a type: a class, a union, or a sequence or mapping of such.

    >>> fits(3, float | None), fits(True, int), fits("ab", list[str])
    (True, False, False)
    """
    kinds = alternatives(hint)
    if len(kinds) > 1:
        return any(fits(value, kind) for kind in kinds)
    inner = get_args(hint)
    match get_origin(hint):
        case None if hint in (int, float):
            kind = Integral if hint is int else Real
            return isinstance(value, kind) and value is not True and value is not False
        case None:
            return hint is Any or isinstance(value, hint)
        case origin if issubclass(origin, Mapping):
            whole = isinstance(value, Mapping)
            return whole and all(fits(v, inner[1]) for v in value.values())
        case _:
            whole = isinstance(value, list | tuple)
            return whole and all(fits(v, inner[0]) for v in value)


def alternatives(hint: Any) -> tuple[Any, ...]:
    """Return the members of a union, or the one type."""
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def words(hint: Any) -> str:
    """Say a type in words; nothing for one that only Python code can make."""
    if hint is type(None):
        return "None"
    if get_origin(hint) is None:
        return WORDS.get(hint, "")
    if issubclass(get_origin(hint), Mapping):
        return "{'field': number, ...}"
    one = words(alternatives(get_args(hint)[0])[0])
    return f"{one.removeprefix('a ')}s with commas between"
