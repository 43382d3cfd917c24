"""A function of tensors that is called many times with others of the same shapes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import final

import torch
from torch import Tensor, nn

from refold.recording.program import program
from refold.recording.tape import NotReplayable, record

CLOSE = 1e-4  # relative difference that rounding may make


@final
class Recording:
    """Calls a function that gives one tensor as it was recorded the first time.

    The second call is compared with the function itself; one that does not call the same for all
    numbers is called as it is, and so is one of which two tensors lay in one place. That it keeps
    nothing in Python from call to call is for the caller to know (:func:`closed`). The result may
    be overwritten by the next call. Without autograd.

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
        self.calls = 0

    @torch.inference_mode()
    def __call__(self, given: Sequence[Tensor]) -> Tensor:
        """Call it."""
        if self.inputs is None:
            self.inputs = self._record(given)
        if self.run is None:
            return self.work(given)
        for own, value in zip(self.inputs, given, strict=True):
            assert own.shape == value.shape
            own.copy_(value)
        self.run()
        assert self.result is not None
        self.calls += 1
        if self.calls == 2 and not close(plain := self.work(given), self.result):
            self.run = None
            return plain
        return self.result

    def _record(self, given: Sequence[Tensor]) -> list[Tensor]:
        """Record the function where that can be done; return where it will look for its inputs."""
        inputs = [torch.empty_like(v) for v in given]
        try:
            tape, results = record(lambda: [self.work(given)])
            places = {tape.ref(v).number: own for v, own in zip(given, inputs, strict=True)}
            if len(places) < len(given):
                raise NotReplayable("tensors that lie in one place")
            self.run, (self.result,) = program(tape, places, results, [None])
        except NotReplayable:
            self.run = None
        return inputs


def closed(model: nn.Module) -> bool:
    """Whether all parts are refold's and torch's own; others may keep state that no tape sees.

    Networks that a part holds in a tuple, so as not to train them, count too.

    >>> closed(nn.Sequential(nn.Linear(2, 2)))
    True
    """
    own = list(model.modules())
    held = [m for part in own for v in vars(part).values() if isinstance(v, tuple) for m in v]
    own += [m for top in held if isinstance(top, nn.Module) for m in top.modules()]
    return all(type(m).__module__.partition(".")[0] in ("refold", "torch") for m in own)


def close(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors differ by no more than rounding may make of them."""
    if a.equal(b):
        return True
    if not a.numel() or not a.is_floating_point():
        return False
    a, b = (t.nan_to_num(torch.finfo(t.dtype).max) for t in (a, b))  # no number is like no number
    return float((a - b).abs().max()) <= CLOSE * float(a.abs().max())
