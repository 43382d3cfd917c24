"""Columns → files: whole or not at all.

Everything is written beside its destination and moved there in one step, so that an existing good
file or folder survives a full disk, and a failure leaves nothing behind.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import secrets
import shutil
import zipfile
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.feather as pa_feather
import pyarrow.parquet as pa_parquet
from numpy.typing import NDArray

from refold.data.containers import as_arrow, as_numpy, flatten
from refold.errors import InputError
from refold.table import Arrow, Block, Column, compute, holds_lists

Columns: TypeAlias = Mapping[str, Column]


def write(value_columns: Columns, path: str | os.PathLike[str]) -> Path:
    """Write columns to a file, in the format its ending names, or images to a folder of PNGs.

    Endings are .csv .tsv .parquet .feather .jsonl .npy .npz .txt; a path without one is a folder.
    A vector column becomes columns ``name0``, ``name1``, … in all but .npy and .npz. In .npz,
    which has no missing integer or text, those are NaN and the empty text. Series of different
    lengths go to .parquet, .feather and .jsonl, which have lists; .txt takes one column of texts,
    a line each.

    Raises :class:`InputError` when the format cannot hold the columns, or the disk refuses.
    """
    target = Path(path)
    check_format(path)
    if not value_columns:
        raise InputError(f"there are no columns to write to {target}; choose at least one")
    if _is_folder(path):
        images = _pixels(value_columns, target)
        with atomic_folder(target, replaceable=_holds_pngs, what="a folder of numbered PNGs") as to:
            _write_pngs(images, to)
        return target
    with atomic_path(target) as temporary:
        try:
            WRITERS[target.suffix.lower()](value_columns, temporary)
        except InputError as error:
            raise InputError(f"cannot write {target}: {error}") from error
        except (pa.ArrowException, ValueError) as error:
            raise InputError(f"cannot write {target}: {_first_line(error)}") from error
    return target


def check_format(path: str | os.PathLike[str]) -> None:
    """Raise :class:`InputError` when the ending names no format that :func:`write` knows."""
    suffix = Path(path).suffix.lower()
    if not _is_folder(path) and suffix not in WRITERS:
        raise InputError(
            f"cannot write {path}: unknown ending '{suffix}'; use {' '.join(WRITERS)}, or no "
            f"ending for a folder of PNGs"
        )


def check_writable(path: str | os.PathLike[str]) -> None:
    """Raise :class:`InputError` early when nothing can be written at ``path``."""
    target = Path(path)
    parent = _real(target).parent
    if not parent.is_dir():
        raise InputError(f"cannot write {target}: there is no folder {parent}; create it first")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise InputError(f"cannot write {target}: no permission to write in {parent}")
    if target.suffix.lower() in WRITERS and target.is_dir():
        raise InputError(f"cannot write {target}: it is a folder; choose another name")


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Generator[Path, None, None]:
    """Yield a temporary path beside ``path`` to write a file to, and move it there at the end.

    When the body fails, ``path`` is as it was and the temporary is gone. A failure of the disk is
    raised as :class:`InputError`.
    """
    target = Path(path)
    check_writable(target)
    real = _real(target)
    if real.exists() and not real.is_file():
        raise InputError(f"cannot write {target}: it exists and is no file; choose another name")
    temporary = _beside(real)
    try:
        with _disk_errors(target):
            yield temporary
            if real.exists():
                shutil.copymode(real, temporary)
            _sync(temporary)
            os.replace(temporary, real)  # noqa: PTH105 - one name to fail in tests
            _sync(real.parent)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(
    path: str | os.PathLike[str],
    *,
    replaceable: Callable[[Path], bool],
    what: str = "a folder of the same kind",
) -> Generator[Path, None, None]:
    """Yield a temporary folder beside ``path`` to fill, and swap it in at the end.

    An existing ``path`` is replaced if it is empty or ``replaceable(path)``; ``what`` says in the
    error what that means. When the body fails, ``path`` is as it was and the temporary is gone.
    """
    target = Path(path)
    check_writable(target)
    real = _real(target)
    if not _may_replace(real, replaceable):
        raise InputError(f"{target} exists and is not {what}; choose another")
    temporary, old = _beside(real), _beside(real)
    try:
        with _disk_errors(target):
            temporary.mkdir()
            yield temporary
            for file in temporary.rglob("*"):
                _sync(file)
            if real.exists():
                os.rename(real, old)  # noqa: PTH104
            os.rename(temporary, real)  # noqa: PTH104
            _sync(real.parent)
    finally:
        if old.exists() and not real.exists():
            old.rename(real)
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


# --- the disk ----------------------------------------------------------------------------------


def _real(path: Path) -> Path:
    """Follow links, so that a link stays a link to what is written."""
    return Path(os.path.realpath(path))


def _beside(path: Path) -> Path:
    """Return an unused hidden name beside ``path``, of the same ending."""
    return path.with_name(f".{path.stem}.{secrets.token_hex(4)}{path.suffix}")


def _may_replace(path: Path, replaceable: Callable[[Path], bool]) -> bool:
    if not path.exists():
        return True
    return path.is_dir() and (not any(path.iterdir()) or replaceable(path))


def _sync(path: Path) -> None:
    """Have the disk confirm what was written."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


REASONS = {
    errno.ENOSPC: "no space left on the disk; free some or write elsewhere",
    errno.EDQUOT: "the disk quota is used up; free some space or write elsewhere",
    errno.EFBIG: "the file would be larger than is allowed here; write elsewhere",
    errno.EACCES: "permission denied; write elsewhere",
    errno.EPERM: "permission denied; write elsewhere",
    errno.EROFS: "the disk is read-only; write elsewhere",
    errno.ENAMETOOLONG: "the name is too long; choose a shorter one",
}


@contextmanager
def _disk_errors(path: Path) -> Generator[None, None, None]:
    try:
        yield
    except OSError as error:
        # NumPy counts the bytes that were not taken, and gives no number.
        part = f"the disk took only a part ({_first_line(error)}); free some space"
        reason = REASONS.get(error.errno, error.strerror) if error.errno else part
        raise InputError(f"cannot write {path}: {reason}") from error


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0]


# --- tables ------------------------------------------------------------------------------------


def _scalars(columns: Columns) -> Arrow:
    """Return a flat table: vectors expanded, dictionaries decoded, images refused."""
    for name, values in columns.items():
        if isinstance(values, np.ndarray) and values.ndim > 2:
            raise InputError(
                f"'{name}' holds images, or series of several channels, which no table cell can; "
                f"write .npy, .npz or a folder"
            )
    table = pa.table({name: as_arrow(v) for name, v in flatten(columns).items()})
    for i, kind in enumerate(table.schema.types):
        if pa.types.is_dictionary(kind):
            table = table.set_column(i, table.field(i).name, table[i].cast(kind.value_type))
    return table


def _refuse_lists(columns: Columns, what: str) -> None:
    """Raise where a column holds series of different lengths: only formats with lists take them."""
    for name, values in columns.items():
        if holds_lists(values):
            raise InputError(
                f"'{name}' holds series of different lengths, which {what} cannot; write .parquet, "
                f".feather or .jsonl"
            )


def _write_csv(columns: Columns, path: Path, delimiter: str = ",") -> None:
    _refuse_lists(columns, "delimited text")
    options = pa_csv.WriteOptions(delimiter=delimiter)
    pa_csv.write_csv(_scalars(columns), path, write_options=options)


def _write_tsv(columns: Columns, path: Path) -> None:
    _write_csv(columns, path, "\t")


def _write_parquet(columns: Columns, path: Path) -> None:
    pa_parquet.write_table(_scalars(columns), path)


def _write_feather(columns: Columns, path: Path) -> None:
    pa_feather.write_feather(_scalars(columns), str(path))


def _write_jsonl(columns: Columns, path: Path) -> None:
    """Write one object per row; JSON has no NaN, so that is null, and no infinity."""
    table = _scalars(columns)
    for i, kind in enumerate(table.schema.types):
        if pa.types.is_floating(kind):
            column = compute.if_else(compute.is_nan(table[i]), None, table[i])
            table = table.set_column(i, table.field(i).name, column)
    with path.open("w", encoding="utf-8") as file:
        for batch in table.to_batches(max_chunksize=10_000):
            for row in batch.to_pylist():
                text = json.dumps(row, ensure_ascii=False, allow_nan=False, default=str)
                file.write(text + "\n")


# --- arrays ------------------------------------------------------------------------------------


def _write_txt(columns: Columns, path: Path) -> None:
    """Write a line for every text, line breaks inside it as spaces, and an empty one if missing."""
    if len(columns) != 1:
        raise InputError(f".txt holds one column of text, not {', '.join(columns)}; write .csv")
    name, values = next(iter(columns.items()))
    if isinstance(values, np.ndarray) or not pa.types.is_string(values.type):
        raise InputError(f"'{name}' holds no text, which .txt is for; write .csv")
    with path.open("w", encoding="utf-8") as file:
        for text in values.to_pylist():
            file.write(" ".join((text or "").splitlines()) + "\n")


def _write_npy(columns: Columns, path: Path) -> None:
    """Write one block, or scalar numbers side by side, ``[n, d]``."""
    _refuse_lists(columns, "an array")
    arrays = {name: as_numpy(values) for name, values in columns.items()}
    if len(arrays) > 1:
        for name, values in arrays.items():
            if values.ndim > 1 or values.dtype.kind not in "biuf":
                raise InputError(
                    f".npy holds one array, and '{name}' is no column of numbers to stack with "
                    f"the others; write .npz"
                )
    array = (
        np.column_stack(list(arrays.values()))
        if len(arrays) > 1
        else (_without_objects(next(iter(arrays.values()))))
    )
    with path.open("wb") as file:
        np.lib.format.write_array(file, array, allow_pickle=False)


def _write_npz(columns: Columns, path: Path) -> None:
    """Write each column as an array; not by ``np.savez``, which has no column named 'file'."""
    _refuse_lists(columns, "an array")
    with zipfile.ZipFile(path, "w", allowZip64=True) as archive:
        for name, values in columns.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                array: Any = _without_objects(as_numpy(values))
                np.lib.format.write_array(file, array, allow_pickle=False)


def _without_objects(values: Block) -> Block:
    """Text as an array of text, missing text as the empty one."""
    if values.dtype.kind != "O":
        return values
    return np.array(["" if v is None else str(v) for v in values], dtype=np.str_)


WRITERS: dict[str, Callable[[Columns, Path], None]] = {
    ".csv": _write_csv,
    ".tsv": _write_tsv,
    ".parquet": _write_parquet,
    ".feather": _write_feather,
    ".jsonl": _write_jsonl,
    ".npy": _write_npy,
    ".npz": _write_npz,
    ".txt": _write_txt,
}


# --- images ------------------------------------------------------------------------------------


def _is_folder(path: str | os.PathLike[str]) -> bool:
    return os.fspath(path).endswith(("/", os.sep)) or Path(path).suffix == ""


def _holds_pngs(path: Path) -> bool:
    return all(re.fullmatch(r"\d{6,}\.png", file.name) for file in path.iterdir())


def _pixels(columns: Columns, path: Path) -> NDArray[Any]:
    """Return the one image block, channels last, in a type PNG has."""
    name, values = next(iter(columns.items()))
    if len(columns) > 1 or not isinstance(values, np.ndarray) or values.ndim < 3:
        raise InputError(
            f"a folder ({path}) can hold one column of images, not {', '.join(columns)}; give a "
            f"name with an ending, such as {path.name}.csv or {path.name}.npz"
        )
    if values.ndim == 4 and values.shape[3] not in (1, 3, 4) and values.shape[1] in (1, 3, 4):
        values = np.moveaxis(values, 1, -1)
    if values.ndim == 4 and values.shape[3] == 1:
        values = values[..., 0]
    if values.ndim > 4 or (values.ndim == 4 and values.shape[3] not in (3, 4)):
        raise InputError(f"'{name}' has shape {values.shape}, which is no set of images")
    return _as_levels(values, name)


def _as_levels(values: NDArray[Any], name: str) -> NDArray[Any]:
    """Return 8-bit levels (16-bit grey stays): numbers within [0, 1] are scaled by 255."""
    if values.dtype == np.uint8 or (values.dtype == np.uint16 and values.ndim == 3):
        return values
    low, high = (float(values.min()), float(values.max())) if values.size else (0.0, 0.0)
    if not (low >= 0.0 and high <= 255.0):
        raise InputError(
            f"images of '{name}' range from {low:.4g} to {high:.4g}; PNG holds [0, 1] or [0, 255], "
            f"write .npy or .npz"
        )
    scale = 255.0 if values.dtype.kind in "bf" and high <= 1.0 else 1.0
    return np.rint(values.astype(np.float64) * scale).astype(np.uint8)


def _write_pngs(images: NDArray[Any], folder: Path) -> None:
    from PIL import Image

    for i, pixels in enumerate(images):
        Image.fromarray(np.ascontiguousarray(pixels)).save(folder / f"{i:06d}.png")
