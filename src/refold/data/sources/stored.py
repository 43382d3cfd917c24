"""Where arrays lie in files, so that some of their rows can be read."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refold.errors import InputError

NUMBERS = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "I64": "<i8", "I32": "<i4",
    "I16": "<i2", "I8": "i1", "U8": "u1", "BOOL": "?",
}  # fmt: skip


@dataclass(frozen=True)
class Stored:
    """Where an array lies in a file: rows of ``shape[1:]``, one after the other."""

    path: Path
    offset: int
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    brain: bool = False
    """Whether these are bfloat16, which NumPy does not know: the upper half of float32."""

    def rows(self, begin: int, end: int) -> NDArray[Any]:
        """Read some rows."""
        cells = int(np.prod(self.shape[1:]))
        with self.path.open("rb") as file:
            file.seek(self.offset + begin * cells * self.dtype.itemsize)
            found = np.fromfile(file, self.dtype, (end - begin) * cells)
        if len(found) < (end - begin) * cells:
            raise InputError("the file ends before its last row; get it again")
        if self.brain:
            found = (found.astype(np.uint32) << np.uint32(16)).view(np.float32)
        native = found.astype(found.dtype.newbyteorder("="), copy=False)
        return native.reshape(end - begin, *self.shape[1:])


def stored_npy(path: Path) -> Stored:
    """Find the array in a ``.npy`` file."""
    with path.open("rb") as file:
        version = np.lib.format.read_magic(file)
        read = getattr(np.lib.format, f"read_array_header_{version[0]}_0", None)
        if read is None:
            raise InputError("this .npy file is of a version that is not known; save it again")
        shape, turned, dtype = read(file)
        if turned and len(shape) > 1:
            raise InputError("the array is stored by columns; save it with order='C'")
        if dtype.hasobject:
            raise InputError("it holds Python objects, and pickle is never loaded")
        return Stored(path, file.tell(), dtype, shape)


def stored_safetensors(path: Path) -> Stored:
    """Find the one tensor of two dimensions in a safetensors file."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        if size > path.stat().st_size:
            raise ValueError("its header is longer than the file")
        listed = {k: v for k, v in json.loads(file.read(size)).items() if k != "__metadata__"}
    tables = {k: v for k, v in listed.items() if len(v["shape"]) == 2}
    if len(tables) != 1:
        raise InputError(
            f"it holds {len(tables)} tensors of two dimensions; give one, a row for each row"
        )
    (own,) = tables.values()
    if own["dtype"] not in NUMBERS:
        raise InputError(f"its tensor is of type {own['dtype']}; give one of {', '.join(NUMBERS)}")
    dtype = np.dtype(NUMBERS[own["dtype"]])
    begin = 8 + size + own["data_offsets"][0]
    return Stored(path, begin, dtype, tuple(own["shape"]), own["dtype"] == "BF16")
