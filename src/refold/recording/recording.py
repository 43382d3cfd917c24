"""A function of tensors that is called many times with others of the same shapes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import final

import torch
from torch import Tensor

from refold.recording.program import program
from refold.recording.tape import NotReplayable, record


@final
class Recording:
    """Calls a function that gives one tensor, from the third time on as it was recorded.

    The first call is recorded, the second compared with the recording, bit for bit; a function that
    does not call the same for all numbers is called as it is. The result may be overwritten by the
    next call. Without autograd.

    >>> double = Recording(lambda given: given[0] * 2 + 1)
    >>> [double([torch.tensor([float(i)])]).item() for i in range(4)]
    [1.0, 3.0, 5.0, 7.0]
    >>> double.run is not None
    True
    """

    def __init__(self, work: Callable[[Sequence[Tensor]], Tensor]) -> None:
        self.work = work
        self.inputs: list[Tensor] | None = None
        self.run: Callable[[], None] | None = None
        self.result: Tensor | None = None
        self.compared = False

    @torch.inference_mode()
    def __call__(self, given: Sequence[Tensor]) -> Tensor:
        """Call it."""
        if self.inputs is None:
            return self._record(given)
        if self.run is None:
            return self.work(given)
        for own, value in zip(self.inputs, given, strict=True):
            own.copy_(value)
        self.run()
        assert self.result is not None
        if not self.compared:
            self.compared, plain = True, self.work(given)
            if not torch.equal(plain, self.result):
                self.run = None
                return plain
        return self.result

    def _record(self, given: Sequence[Tensor]) -> Tensor:
        self.inputs = [torch.empty_like(v) for v in given]
        kept: list[Tensor] = []

        def work() -> list[Tensor]:
            kept.append(self.work(given))
            return kept

        try:
            tape, results = record(work)
            places = {tape.ref(v).number: own for v, own in zip(given, self.inputs, strict=True)}
            self.run, (self.result,) = program(tape, places, results, [None])
        except NotReplayable:
            return kept[0] if kept else self.work(given)
        return kept[0]
