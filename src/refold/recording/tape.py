"""What a computation called, in order: every operation of torch below autograd."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, final

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

DECIDING = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}
"""What marks operations whose result decides, in Python or by its shape, what is called next."""

LEAVES = (Tensor.numpy, Tensor.tolist, Tensor.__array__, Tensor.data_ptr)
"""Ways out of torch."""


class NotReplayable(Exception):
    """A computation that may call something else for other numbers."""


@dataclass(frozen=True, slots=True)
class Ref:
    """A tensor of the tape, by its number."""

    number: int


@dataclass(frozen=True, slots=True)
class Call:
    """One operation: its arguments with references for tensors, and what it gave."""

    op: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    outs: tuple[Ref, ...]
    single: bool


@dataclass
class Tape:
    """Calls in order, and every tensor they met, all kept alive so that no memory is used twice."""

    calls: list[Call] = field(default_factory=list[Call])
    tensors: list[Tensor] = field(default_factory=list[Tensor])
    storages: list[int] = field(default_factory=list[int])
    """Where the memory of each began when it was met: tensors may have moved since."""
    given: set[int] = field(default_factory=set[int])
    """Numbers of tensors that no call made."""
    _known: dict[int, int] = field(default_factory=dict[int, int])
    _places: dict[tuple[Any, ...], int] = field(default_factory=dict[tuple[Any, ...], int])

    def ref(self, tensor: Tensor) -> Ref:
        """Return the number of a tensor; one never seen, or another view of one, gets its own."""
        number = self._known.get(id(tensor))
        if number is None:
            number = self._places.get(place(tensor))
        if number is None:
            number = self._add(tensor)
            self.given.add(number)
        return Ref(number)

    def made(self, tensor: Tensor) -> Ref:
        """Return the number of a tensor that a call gave."""
        number = self._known.get(id(tensor))
        return Ref(self._add(tensor) if number is None else number)

    def _add(self, tensor: Tensor) -> int:
        self.tensors.append(tensor)
        self.storages.append(tensor.untyped_storage().data_ptr())
        self._known[id(tensor)] = self._places[place(tensor)] = len(self.tensors) - 1
        return len(self.tensors) - 1


def place(tensor: Tensor) -> tuple[Any, ...]:
    """Where and how a tensor lies in memory."""
    with torch._C.DisableTorchFunction():  # pyright: ignore[reportPrivateUsage]
        address = tensor.data_ptr()
    return (address, tensor.numel(), tuple(tensor.shape), tensor.stride(), tensor.dtype)


def record(work: Callable[[], Iterable[Tensor | None]]) -> tuple[Tape, list[Ref | None]]:
    """Run ``work`` with a tape; return it and where on it the results are.

    Raises :class:`NotReplayable` where a number decides what is called.
    """
    recorder = _Recorder()
    with recorder, _Guard():
        results = list(work())
    return recorder.tape, [None if r is None else recorder.tape.ref(r) for r in results]


@final
class _Recorder(TorchDispatchMode):
    """Writes down every call on its way to the kernels."""

    def __init__(self) -> None:
        super().__init__()
        self.tape = Tape()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """No: to skip a compiler that nobody uses, torch would import it, which takes a second."""
        return False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if DECIDING & set(func.tags) and not _by_number(func, args):
            raise NotReplayable(func.name())
        here, named = mapped(self.tape.ref, args), mapped(self.tape.ref, kwargs)
        with torch._C.DisableTorchFunction():  # pyright: ignore[reportPrivateUsage]
            out = func(*args, **kwargs)
        if func.name() == "aten::promote_types":
            return out  # the same for all numbers
        single = isinstance(out, Tensor)
        found = (out,) if single else tuple(out) if isinstance(out, tuple | list) else ()
        if not found or not all(isinstance(o, Tensor) for o in found):
            raise NotReplayable(func.name())
        refs = tuple(map(self.tape.made, found))
        self.tape.calls.append(Call(func, here, named, refs, single))
        return out


@final
class _Guard(TorchFunctionMode):
    """Refuses to hand numbers to others, whose results would be taken for constants."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in LEAVES:
            raise NotReplayable(func.__name__)
        return func(*args, **(kwargs or {}))


def _by_number(func: Any, args: Any) -> bool:
    """Whether rows are picked by their numbers, so that the shape is known, and not by a mask."""
    found: list[Tensor] = []
    mapped(found.append, args)
    return func.name() == "aten::index.Tensor" and not any(
        t.dtype in (torch.bool, torch.uint8) for t in found[1:]
    )


def mapped(change: Callable[[Any], Any], value: Any, kind: type = Tensor) -> Any:
    """Change every value of a kind in nested lists, tuples and dictionaries."""
    if isinstance(value, kind):
        return change(value)
    if isinstance(value, dict):
        return {k: mapped(change, v, kind) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(mapped(change, v, kind) for v in value)
    return value
