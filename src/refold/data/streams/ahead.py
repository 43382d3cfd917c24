"""Items made ahead of their use, by a thread."""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")
PATIENCE = 0.1  # seconds after which a thread that waits for room asks whether it is still needed


@dataclass(frozen=True)
class _Failed:
    """What ended the thread: an exception, or None where there are no more items."""

    error: BaseException | None


def ahead(items: Iterator[T], depth: int = 1) -> Generator[T]:
    """Give ``items`` in order, up to ``depth`` of them made while others are in use.

    What the making raises is raised here. The thread ends with the loop over this generator,
    however that ends.

    >>> list(ahead(iter("abc"), 2))
    ['a', 'b', 'c']
    """
    room: queue.Queue[T | _Failed] = queue.Queue(depth)
    unneeded = threading.Event()

    def put(item: T | _Failed) -> None:
        while not unneeded.is_set():
            try:
                room.put(item, timeout=PATIENCE)
            except queue.Full:
                continue
            return

    def make() -> None:
        try:
            for item in items:
                put(item)
                if unneeded.is_set():
                    return
            put(_Failed(None))
        except BaseException as error:
            put(_Failed(error))

    thread = threading.Thread(target=make, name="refold-ahead", daemon=True)
    thread.start()
    try:
        while True:
            item = room.get()
            if not isinstance(item, _Failed):
                yield item
            elif item.error is not None:
                raise item.error
            else:
                return
    finally:
        unneeded.set()
        while not room.empty():  # whoever waits for room sees at once that nobody needs it
            room.get_nowait()
        thread.join()
