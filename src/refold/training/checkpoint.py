"""Where a run stands, on disk, so that it can go on after a crash as if there had been none."""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, final, runtime_checkable

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from refold.data.sinks import atomic_path, check_writable
from refold.data.streams import Reading
from refold.data.streams.budget import in_words
from refold.errors import InputError, InputWarning
from refold.ops.ranks import like, whole
from refold.types import Batch

EVERY = 30.0  # seconds of training between two checkpoints, so that short runs have none
NOTHING = "null"  # an argument that was not given, as JSON has it
MOST = 100  # letters of an argument in a message
SHARE = 50  # and at least so many times as long as the last one took to write


@runtime_checkable
class Remembering(Protocol):
    """What learns and keeps plain values from step to step that are no tensors of a module."""

    def remembered(self) -> dict[str, Any]:
        """Return these values, as JSON can hold them."""
        ...

    def remember(self, values: Mapping[str, Any]) -> None:
        """Put back what :meth:`remembered` gave."""
        ...


@dataclass(frozen=True)
class Kept:
    """A checkpoint: plain values and tensors by name."""

    values: Mapping[str, Any]
    tensors: Mapping[str, Tensor]

    def part(self, name: str) -> dict[str, Tensor]:
        """Tensors whose names begin with ``name`` and a slash, without these."""
        start = f"{name}/"
        return {k.removeprefix(start): v for k, v in self.tensors.items() if k.startswith(start)}


@final
class Checkpoints:
    """The checkpoints of everything that one ``fit`` trains, in a folder: a file per run.

    Training may be several runs, one after the other (layer by layer, or the members of a group);
    each has the number in which it comes. One that was finished is not repeated on resuming, nor
    is what only takes seconds ever written. ``arguments`` say by name what was asked for: to
    ``resume`` with others raises :class:`InputError`, and so does resuming with other rows. A
    checkpoint is one file without pickle, replaced in one step, with a checksum of its contents.
    """

    def __init__(
        self,
        folder: str | Path,
        arguments: Mapping[str, str],
        *,
        resume: bool = False,
        every: float = EVERY,
    ) -> None:
        self.folder, self.arguments, self.every = Path(folder), dict(arguments), every
        self.resume, self.number = resume, -1
        self.reading = Reading()
        """How the rows are read; a run that goes on must read them in the same order."""
        self.resumed: int | None = None
        """Step at which a run was taken up; None where none was."""
        self._last, self._took, self._digest = 0.0, 0.0, ""
        check_writable(self.folder)
        if self.folder.is_file():
            raise InputError(f"cannot keep checkpoints in {self.folder}: it is a file")

    @property
    def file(self) -> Path:
        """File of the run that is under way."""
        return self.folder / f"{self.number}.safetensors"

    def before(self) -> Reading | None:
        """Return how the run that is to go on reads its rows; None where there is none."""
        files = sorted(self.folder.glob("*.safetensors")) if self.resume else []
        return Reading(**read(files[0]).values["reading"]) if files else None

    def begin(self, rows: Callable[[], str]) -> Kept | None:
        """Begin the next run on ``rows``, told by a digest; return where it is to go on from."""
        self.number += 1
        self._last, self._digest = time.perf_counter(), ""
        self._rows = rows
        if not self.resume or not self.file.is_file():
            return None
        kept = read(self.file)
        self._check(kept.values)
        self.resumed = int(kept.values["step"])
        return kept

    def due(self) -> bool:
        """Whether so much time has passed that a checkpoint should be written."""
        wait = max(self.every, SHARE * self._took)
        return time.perf_counter() - self._last >= wait

    def write(self, kept: Kept) -> None:
        """Write where the run stands; a disk that is full does not end it."""
        began = time.perf_counter()
        asked = {"arguments": self.arguments, "reading": asdict(self.reading)}
        told = {**kept.values, **asked, "rows": self._rows_digest()}
        try:
            self.folder.mkdir(exist_ok=True)
            write(self.file, Kept(told, kept.tensors))
        except (InputError, OSError) as error:
            warnings.warn(f"no checkpoint was written: {error}", InputWarning, stacklevel=2)
        self._last = time.perf_counter()
        self._took = self._last - began

    def sentence(self) -> str | None:
        """Say what came of resuming; None where it was not asked for."""
        if not self.resume:
            return None
        if self.resumed is None:
            return f"begun anew: there was nothing to resume in {self.folder}"
        return f"taken up at step {self.resumed:,}, where {self.folder} had it"

    def _rows_digest(self) -> str:
        self._digest = self._digest or self._rows()
        return self._digest

    def _check(self, values: Mapping[str, Any]) -> None:
        """Raise where the run that was kept is another than the one asked for."""
        before: Mapping[str, str] = values["arguments"]
        for name in dict.fromkeys((*before, *self.arguments)):
            was, now = before.get(name, NOTHING), self.arguments.get(name, NOTHING)
            if was != now:
                raise InputError(
                    f"cannot resume from {self.folder}: {name} was {_said(was)} and is "
                    f"{_said(now)} now; give the same arguments, or fit anew without resuming"
                )
        reading = Reading(**values["reading"])
        if reading.order != self.reading.order:
            raise InputError(
                f"cannot resume from {self.folder}: the run read {_read_how(reading)}, and with "
                f"this memory it would read {_read_how(self.reading)}, in another order; leave "
                f"memory out to go on as it began, or fit anew without resuming"
            )
        if values["rows"] != self._rows_digest():
            raise InputError(
                f"cannot resume from {self.folder}: the rows are not those of the unfinished run; "
                f"give the same data, or fit anew without resuming"
            )


def remove(folder: Path) -> None:
    """Delete the checkpoints in a folder, and the folder where it held nothing else."""
    for file in folder.glob("*.safetensors"):
        file.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        folder.rmdir()


def write(path: Path, kept: Kept) -> None:
    """Write a checkpoint in one step: until it is complete there is the one before it."""
    tensors = {k: v.detach().cpu().contiguous().clone() for k, v in kept.tensors.items()}
    text = json.dumps(kept.values)
    metadata = {"run": text, "checksum": _checksum(text, tensors)}
    with atomic_path(path) as temporary:
        temporary.write_bytes(safetensors.torch.save(tensors, metadata))


def read(path: Path) -> Kept:
    """Read a checkpoint; raises :class:`InputError` for one that is damaged."""
    try:
        data = path.read_bytes()
        tensors = safetensors.torch.load(data)
        header = 8 + int.from_bytes(data[:8], "little")
        metadata: Mapping[str, str] = json.loads(data[8:header])["__metadata__"]
        text = metadata["run"]
        if metadata["checksum"] != _checksum(text, tensors):
            raise ValueError("its checksum is of other contents")
    except (OSError, KeyError, ValueError, safetensors.SafetensorError) as error:
        raise InputError(
            f"the checkpoint {path} is damaged ({error}); delete it and fit anew"
        ) from error
    return Kept(json.loads(text), tensors)


def digest(*batches: Batch | None) -> str:
    """Return a word that tells rows apart: equal for equal values in the same order."""
    told = hashlib.sha256()
    for batch in batches:
        told.update(b"-" if batch is None else b"+")
        for parts in () if batch is None else (batch.x, batch.observed):
            for name, values in parts.items():
                told.update(name.encode())
                told.update(b"" if values is None else _bytes(values))
    return told.hexdigest()


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """Return all tensors that a module holds, those too that a saved model is without."""
    named = (*model.named_parameters(), *model.named_buffers())
    return {k: whole(v.detach()) for k, v in named}


@torch.no_grad()
def put_back(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Put back what :func:`tensors_of` gave."""
    for name, own in (*model.named_parameters(), *model.named_buffers()):
        own.copy_(like(tensors[name].to(own.device), own))


def memories(model: nn.Module) -> dict[str, dict[str, Any]]:
    """Return what modules keep from step to step beside their tensors, by module."""
    return {k: m.remembered() for k, m in model.named_modules() if isinstance(m, Remembering)}


def remember(model: nn.Module, values: Mapping[str, Mapping[str, Any]]) -> None:
    """Put back what :func:`memories` gave."""
    for name, module in model.named_modules():
        if isinstance(module, Remembering):
            module.remember(values[name])


def generators(draw: torch.Generator) -> dict[str, Tensor]:
    """Return the states of torch's global generators and of the one given."""
    states = {"torch": torch.get_rng_state(), "draw": draw.get_state()}
    if draw.device.type == "cuda":
        states["device"] = torch.cuda.get_rng_state(draw.device)
    return states


def set_generators(draw: torch.Generator, states: Mapping[str, Tensor]) -> None:
    """Put back what :func:`generators` gave."""
    torch.set_rng_state(states["torch"])
    draw.set_state(states["draw"])
    if "device" in states:
        torch.cuda.set_rng_state(states["device"], draw.device)


def _said(argument: str) -> str:
    """Write an argument, which is JSON or a digest of a model, as a person would."""
    if argument == NOTHING:
        return "not given"
    return f"'{json.loads(argument)}'" if argument.startswith('"') else argument[:MOST]


def _read_how(reading: Reading) -> str:
    if reading.memory is None:
        return "all rows at once"
    return f"rows in parts within {in_words(reading.memory)}"


def _checksum(text: str, tensors: Mapping[str, Tensor]) -> str:
    told = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        told.update(name.encode())
        told.update(_bytes(tensors[name]))
    return told.hexdigest()


def _bytes(values: Tensor) -> Any:
    return values.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data
