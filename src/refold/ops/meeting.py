"""How processes that ``torchrun`` started meet, and tell each other plain values."""

from __future__ import annotations

import atexit
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar, cast, final

import torch
import torch.distributed as dist

from refold import processes
from refold.errors import InputError, ProcessError

WAIT = timedelta(days=7)  # for one that reads more than others; that one ended is told at once

T = TypeVar("T")
_met: list[Any] = []  # where the processes met, which the first one or torchrun holds
_round = 0  # how often all have worked, each its part
_circles: list[Circle] = []  # that of all processes, and that of this machine


@final
@dataclass(frozen=True)
class Circle:
    """Processes that tell each other what they found, of which this is ``number`` of ``count``.

    What one does, all do at the same time. A process alone tells itself.

    >>> Circle().gathered(2), Circle().agreed(lambda: 3), Circle().each(lambda: 4)
    ([2], 3, [4])
    """

    number: int = 0
    count: int = 1
    group: Any = None

    @property
    def first(self) -> bool:
        """Whether this process decides for all."""
        return self.number == 0

    def gathered(self, value: T) -> list[T]:
        """Return every process's value, in all of them."""
        if self.count == 1:
            return [value]
        found: list[Any] = [None] * self.count
        dist.all_gather_object(found, value, group=self.group)
        return found

    def agreed(self, decide: Callable[[], T]) -> T:
        """Return what the first process finds, or raise everywhere what it cannot use."""
        if self.count == 1:
            return decide()
        found: list[Any] = [None, None]
        if self.first:
            try:
                found[0] = decide()
            except InputError as error:
                found[1] = str(error)
        dist.broadcast_object_list(found, group=self.group, group_src=0)
        if found[1] is not None:
            raise InputError(found[1])
        return found[0]

    def each(self, work: Callable[[], T]) -> list[T]:
        """Have every process do its work, and return what all of this circle found.

        What one of all processes cannot use is raised in all; where one fails otherwise, the
        others raise :class:`ProcessError`. Work of theirs ends where it next asks for it by
        :func:`in_vain`.
        """
        if everyone().count == 1:
            return [work()]
        global _round
        _round += 1
        found: Any = None
        try:
            found = work()
        except InVain:
            pass
        except InputError as error:
            self._failed((True, str(error)))
            raise
        except Exception as error:
            self._failed((False, f"{type(error).__name__}: {error}"))
            raise
        told: list[tuple[bool, str] | None] = everyone().gathered(None)
        for number, failure in enumerate(told):
            if failure is not None and failure[0]:
                raise InputError(failure[1])
            if failure is not None:
                said = f"process {number} of this run failed ({failure[1]}), so it cannot go on"
                raise ProcessError(said, first=is_first_to_say())
        return self.gathered(found)

    def _failed(self, failure: tuple[bool, str]) -> None:
        if _met:
            _met[0].add(f"failed {_round}", 1)
        everyone().gathered(failure)


@final
class InVain(Exception):
    """Work need not go on: another process has failed."""


def in_vain() -> None:
    """End work that all do, by :class:`InVain`, where it has failed in another process."""
    if _met and _met[0].add(f"failed {_round}", 0):
        raise InVain


def everyone() -> Circle:
    """Return the circle of all processes of this run."""
    return _told_apart()[0]


def neighbours() -> Circle:
    """Return the circle of those on this machine, which have its disk and its memory in common."""
    return _told_apart()[1]


def meet() -> None:
    """Meet the processes that ``torchrun`` started beside this one, where that has not been."""
    if processes.count() == 1 or dist.is_initialized():
        return
    torch_dist = cast(Any, dist)
    _met.append(next(torch_dist.rendezvous("env://"))[0])
    torch_dist.init_process_group(
        "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo",
        store=torch_dist.PrefixStore("training", _met[0]),
        rank=processes.number(),
        world_size=processes.count(),
    )
    atexit.register(leave)


def leave() -> None:
    """Part from the other processes."""
    _circles.clear()
    if dist.is_initialized():
        dist.destroy_process_group()


@contextmanager
def others_ending(advice: Callable[[], str]) -> Generator[None]:
    """Say in one sentence, with an ``advice``, that another process of this run has ended."""
    try:
        yield
    except RuntimeError as error:
        if processes.count() == 1 or not is_lost(error):
            raise
        said = f"another of the {processes.count()} processes of this run ended"
        raise ProcessError(
            f"{said}, so it cannot go on; {advice()}", first=is_first_to_say()
        ) from error


def is_lost(error: RuntimeError) -> bool:
    """Whether an error says that another process no longer answers."""
    said = str(error)
    return isinstance(error, dist.DistError) or "gloo" in said or "NCCL" in said


def is_first_to_say() -> bool:
    """Whether no other process has asked this: one message is enough."""
    try:
        return not _met or _met[0].add("ended", 1) == 1
    except RuntimeError:  # where they met has ended too
        return True


def _told_apart() -> list[Circle]:
    if processes.count() == 1:
        return [Circle(), Circle()]
    if not _circles:
        meet()
        torch_dist = cast(Any, dist)
        count, number = processes.count(), processes.number()
        every = Circle(number, count, torch_dist.new_group(backend="gloo", timeout=WAIT))
        own = number - processes.local()  # torchrun numbers the processes of a machine in a row
        firsts = every.gathered(own)
        near = Circle()
        for first in sorted(set(firsts)):
            ranks = [r for r, other in enumerate(firsts) if other == first]
            group = torch_dist.new_group(ranks, backend="gloo", timeout=WAIT)
            if first == own:
                near = Circle(ranks.index(number), len(ranks), group)
        _circles.extend((every, near))
    return _circles
