"""Parts by name: the registries, and the small language in which a user names a part.

A part's signature is its schema. Positional arguments are sizes, which the assembler gives;
keyword-only arguments are hyperparameters, which the user gives and the part keeps as attributes
of the same name. So ``"topk(k=8)"``, ``TopK(64, k=8)`` and
``{"name": "topk", "options": {"k": 8}}`` all say the same, and any part can be written to JSON.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar, cast, get_type_hints

from refold.errors import InputError, unknown
from refold.hints import expectation, fits

T = TypeVar("T")
P = TypeVar("P")


@dataclass(frozen=True)
class PartSpec:
    """A part's registered name and its hyperparameters.

    >>> PartSpec.parse("topk(k=8)")
    PartSpec(name='topk', options={'k': 8})
    >>> str(PartSpec("gaussian", {"beta": 4.0}))
    'gaussian(beta=4.0)'
    """

    name: str
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])

    @classmethod
    def parse(cls, text: str) -> PartSpec:
        """Read ``name`` or ``name(key=value, ...)``; values are Python literals or bare words.

        Raises :class:`InputError` for anything else.
        """
        wrong = InputError(
            f"cannot read '{text}': expected a name like 'topk' or options like 'topk(k=8)'"
        )
        try:
            node = ast.parse(text.strip(), mode="eval").body
        except SyntaxError as error:
            raise wrong from error
        if isinstance(node, ast.Name):
            return cls(node.id)
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name)) or node.args:
            raise wrong
        options: dict[str, Any] = {}
        for keyword in node.keywords:
            if keyword.arg is None or keyword.arg in options:
                raise wrong
            value = keyword.value
            try:
                word = value.id if isinstance(value, ast.Name) else ast.literal_eval(value)
            except ValueError as error:
                raise wrong from error
            options[keyword.arg] = word
        return cls(node.func.id, options)

    def __str__(self) -> str:
        inside = ", ".join(f"{k}={v!r}" for k, v in self.options.items())
        return f"{self.name}({inside})" if inside else self.name


class Registry(Generic[T]):
    """Parts of one kind, by name.

    >>> shapes: Registry[object] = Registry("shape")
    >>> @shapes.register("square")
    ... class Square:
    ...     def __init__(self, size, *, tilt=0.0):
    ...         self.tilt = tilt
    >>> shapes.build(PartSpec("square", {"tilt": 0.5}), 3).tilt
    0.5

    Where parts are not ``sized``, no assembler gives them sizes, and arguments that may be
    positional are the user's as well.
    """

    def __init__(self, kind: str, *, sized: bool = True) -> None:
        self.kind, self.sized = kind, sized
        self._parts: dict[str, type[T]] = {}

    def register(self, name: str) -> Callable[[type[P]], type[P]]:
        """Class decorator that makes a part known by ``name``."""

        def add(part: type[P]) -> type[P]:
            known = self._parts.get(name)  # the same class again is a notebook's cell run twice
            again = known is not None and known.__qualname__ == part.__qualname__
            assert known is None or again, f"{self.kind} '{name}' is registered twice"
            self._parts[name] = cast("type[T]", part)
            return part

        return add

    def __getitem__(self, name: str) -> type[T]:
        """Return the part's class; an unknown name is an error that names the nearest."""
        if name not in self._parts:
            raise unknown(self.kind, name, self._parts)
        return self._parts[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._parts)

    def options(self, name: str) -> dict[str, Any]:
        """Hyperparameters a part takes, with their defaults."""
        theirs = [inspect.Parameter.KEYWORD_ONLY]
        theirs += [] if self.sized else [inspect.Parameter.POSITIONAL_OR_KEYWORD]
        return {
            p.name: p.default
            for p in inspect.signature(self[name]).parameters.values()
            if p.kind in theirs
        }

    def build(self, spec: PartSpec, *sizes: Any) -> T:
        """Make the part; an unknown hyperparameter is an error that names the nearest."""
        self.check(spec)
        return self[spec.name](*sizes, **spec.options)

    def spec(self, part: T) -> PartSpec:
        """Read back the name and hyperparameters of a part."""
        for name, kind in self._parts.items():
            if type(part) is kind:
                return PartSpec(name, {k: getattr(part, k) for k in self.options(name)})
        raise InputError(
            f"{type(part).__name__} is not a registered {self.kind}: decorate the class with "
            f'@register("name")'
        )

    def resolve(self, given: str | PartSpec | T) -> PartSpec:
        """Turn a user's string, spec or object into a spec, checked against the registry."""
        spec = (
            PartSpec.parse(given)
            if isinstance(given, str)
            else given
            if isinstance(given, PartSpec)
            else self.spec(given)
        )
        self.check(spec)
        return spec

    def check(self, spec: PartSpec) -> None:
        """Raise for an unknown name or option without building anything."""
        known = self.options(spec.name)
        hints = get_type_hints(self[spec.name].__init__)
        for option, value in spec.options.items():
            if option not in known:
                raise unknown(f"option of {self.kind} '{spec.name}'", option, known)
            if not fits(value, hints.get(option, Any)):
                raise InputError(
                    f"{option}={value!r} does not suit {self.kind} '{spec.name}': expected "
                    f"{expectation(hints[option])}"
                )
