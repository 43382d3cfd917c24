"""Anything → columns: data in memory, files, folders of images, patterns of these.

Missing is null in a scalar column and NaN in a block. Nothing of a file is executed: no pickle.
"""

from __future__ import annotations

import glob
import os
from pathlib import Path
from typing import Any

from refold.data.sources.files import (
    IMAGES,
    READERS,
    concatenated,
    ending,
    guarded,
    matching,
    read_file,
)
from refold.data.sources.images import read_folder, read_images
from refold.data.sources.memory import read_memory
from refold.errors import InputError
from refold.table import Table

__all__ = ["read"]


def read(source: Any) -> Table:
    """Read data frames, arrays, dicts of these by field name, or a path, into named columns.

    A 2-D array is one block column ``x``, a 3-D or 4-D array one block column ``image``, a list of
    arrays of different lengths a column ``x`` of lists. A path is a file, a pattern of files
    (``data/*.parquet``) or a folder of images; of a text file (``.txt``) each line that is not
    blank is a row, in the column ``text``. Types that no field
    can hold are set aside with a note. Raises :class:`InputError` for what cannot be read, and
    ``TypeError`` for a sparse matrix.

    >>> table = read({"age": [39, None], "city": ["Bern", "Graz"]})
    >>> table.columns["age"].to_pylist()
    [39, None]
    """
    if isinstance(source, Table):
        return source
    if isinstance(source, str | os.PathLike):
        return _read_path(Path(source))
    table = read_memory(source)
    if not table.columns:
        raise InputError("; ".join(["the data has no column that can be used", *table.notes]))
    return table


def _read_path(path: Path) -> Table:
    try:
        there = path.exists()
    except OSError as error:  # a name too long, a parent that may not be entered
        raise InputError(f"{path}: {error.strerror}; check the path") from error
    if not there and glob.has_magic(str(path)):
        return _read_pattern(path)
    if not there:
        raise InputError(f"{path}: no such file or folder; check the path")
    if path.is_dir():
        if ending(path) in READERS:
            raise InputError(f"{path}: this is a folder, not a file; give the file in it")
        return guarded(path, read_folder)
    if ending(path) in IMAGES:
        return guarded(path, lambda p: read_images([p]))
    return read_file(path)


def _read_pattern(pattern: Path) -> Table:
    """Read all files that match, in sorted order, as one table."""
    files = matching(pattern)
    if all(ending(p) in IMAGES for p in files):
        return guarded(pattern, lambda _: read_images(files))
    return concatenated([read_file(p) for p in files], files)
