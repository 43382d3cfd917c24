"""Columns → files: whole or not at all.

Everything is written beside its destination and moved there in one step, so that an existing good
file or folder survives a full disk, and a failure leaves nothing behind.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import shutil
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from refold.data.writers import AT_ONCE, WRITERS, Columns
from refold.errors import InputError


def write(value_columns: Columns, path: str | os.PathLike[str]) -> Path:
    """Write columns to a file, in the format its ending names, or images to a folder of PNGs.

    Endings are .csv .tsv .parquet .feather .jsonl .npy .npz .txt; a path without one is a folder.
    A vector column becomes columns ``name0``, ``name1``, … in all but .npy and .npz. In .npz,
    which has no missing integer or text, those are NaN and the empty text. Series of different
    lengths go to .parquet, .feather and .jsonl, which have lists; .txt takes one column of texts,
    a line each.

    Raises :class:`InputError` when the format cannot hold the columns, or the disk refuses.
    """
    with writing(path) as add:
        add(value_columns)
    return Path(path)


@contextmanager
def writing(path: str | os.PathLike[str]) -> Generator[Callable[[Columns], None]]:
    """Yield what adds rows to a file, as :func:`write` does; it is there once the body has ended.

    Rows may be added several times, but to an .npz or a folder of PNGs: see :func:`check_parts`.
    Later rows have the columns of the first, and are cast to their types; in .npy a type that holds
    both is taken. When the body fails, ``path`` is as it was.
    """
    target = Path(path)
    check_format(path)
    if _is_folder(path):
        with atomic_folder(target, replaceable=_holds_pngs, what="a folder of numbered PNGs") as to:
            yield lambda columns: _write_pngs(_pixels(_some(columns, target), target), to)
        return
    with atomic_path(target) as temporary:
        with _format_errors(target):
            writer = WRITERS[target.suffix.lower()](temporary)

        def add(columns: Columns) -> None:
            with _format_errors(target):
                writer.add(_some(columns, target))

        try:
            yield add
        except BaseException:
            with contextlib.suppress(Exception):  # of what failed first there is more to say
                writer.close()
            raise
        with _format_errors(target):
            writer.close()


def _some(columns: Columns, path: Path) -> Columns:
    if not columns:
        raise InputError(f"there are no columns to write to {path}; choose at least one")
    return columns


@contextmanager
def _format_errors(path: Path) -> Generator[None]:
    try:
        yield
    except InputError as error:
        raise InputError(f"cannot write {path}: {error}") from error
    except OSError:
        raise
    except (pa.ArrowException, ValueError) as error:
        raise InputError(f"cannot write {path}: {_first_line(error)}") from error


def check_format(path: str | os.PathLike[str]) -> None:
    """Raise :class:`InputError` when the ending names no format that :func:`write` knows."""
    suffix = Path(path).suffix.lower()
    if not _is_folder(path) and suffix not in WRITERS:
        raise InputError(
            f"cannot write {path}: unknown ending '{suffix}'; use {' '.join(WRITERS)}, or no "
            f"ending for a folder of PNGs"
        )


def check_parts(path: str | os.PathLike[str]) -> None:
    """Raise :class:`InputError` when the format takes all rows at once."""
    if _is_folder(path) or Path(path).suffix.lower() in AT_ONCE:
        what = "a folder of PNGs" if _is_folder(path) else Path(path).suffix
        parts = " ".join(suffix for suffix in WRITERS if suffix not in AT_ONCE)
        raise InputError(
            f"cannot write {path}: the rows are read in parts, and {what} takes all at once; use "
            f"{parts}, or give more memory"
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

    assert not any(folder.iterdir()), "rows come after others"
    for i, pixels in enumerate(images):
        Image.fromarray(np.ascontiguousarray(pixels)).save(folder / f"{i:06d}.png")
