"""What a computation called, in order: every operation of torch below autograd."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, final

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

READS = ("aten::_local_scalar_dense", "aten::nonzero", "aten::equal", "aten::masked_select")
"""Operations whose result decides, in Python or by its shape, what is called next."""


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
        self._known[id(tensor)] = self._places[place(tensor)] = len(self.tensors) - 1
        return len(self.tensors) - 1


def place(tensor: Tensor) -> tuple[Any, ...]:
    """Where and how a tensor lies in memory."""
    return (tensor.data_ptr(), tensor.numel(), tuple(tensor.shape), tensor.stride(), tensor.dtype)


def record(work: Callable[[], Iterable[Tensor | None]]) -> tuple[Tape, list[Ref | None]]:
    """Run ``work`` with a tape; return it and where on it the results are.

    Raises :class:`NotReplayable` where a number decides what is called.
    """
    recorder = _Recorder()
    with recorder:
        results = list(work())
    return recorder.tape, [None if r is None else recorder.tape.ref(r) for r in results]


@final
class _Recorder(TorchDispatchMode):
    """Writes down every call on its way to the kernels."""

    def __init__(self) -> None:
        super().__init__()
        self.tape = Tape()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func.name().split(".")[0] in READS:
            raise NotReplayable(func.name())
        here, named = mapped(self.tape.ref, args), mapped(self.tape.ref, kwargs)
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


def mapped(change: Callable[[Any], Any], value: Any, kind: type = Tensor) -> Any:
    """Change every value of a kind in nested lists, tuples and dictionaries."""
    if isinstance(value, kind):
        return change(value)
    if isinstance(value, dict):
        return {k: mapped(change, v, kind) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(mapped(change, v, kind) for v in value)
    return value
