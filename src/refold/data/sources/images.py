"""Pictures → one block column, from a folder or a list of files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refold.data.containers import NumPy
from refold.data.sources.files import DAMAGE, IMAGES, READERS, ending
from refold.errors import InputError
from refold.table import Table
from refold.wording import counted


def read_folder(folder: Path) -> Table:
    """Read every image below a folder, in sorted order."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and not p.name.startswith("."))
    images = [p for p in files if p.suffix.lower() in IMAGES]
    if not images:
        other = [p for p in files if ending(p) in READERS]
        hint = f"; to read other files name them, such as '{_together(other)}'" if other else ""
        raise InputError(f"the folder holds no images ({' '.join(IMAGES)}){hint}")
    table = read_images(images)
    if others := len(files) - len(images):
        note = f"{counted(others, 'file')} ignored: no {'image' if others == 1 else 'images'}"
        return replace(table, notes=(*table.notes, note))
    return table


def _together(files: Sequence[Path]) -> Path:
    """Return the pattern of those in one folder that end alike, most of all; of one file itself."""
    ((folder, suffix), count), *_ = Counter((f.parent, f.suffix) for f in files).most_common()
    alone = next(f for f in files if (f.parent, f.suffix) == (folder, suffix))
    return folder / f"*{suffix}" if count > 1 and suffix else alone


def read_images(files: Sequence[Path]) -> Table:
    """Read images of one size: grey if all are, else RGB."""
    with ThreadPoolExecutor() as pool:
        images = list(pool.map(_image, files))
    for file, image in zip(files, images, strict=True):
        if image.shape[:2] != images[0].shape[:2]:
            (h0, w0), (h, w) = images[0].shape[:2], image.shape[:2]
            raise InputError(
                f"images differ in size: '{files[0]}' is {w0}x{h0} pixels, '{file}' {w}x{h}; "
                f"resize them to one size"
            )
        if image.dtype != images[0].dtype:
            raise InputError(
                f"images differ in depth: '{files[0]}' is {images[0].dtype}, '{file}' "
                f"{image.dtype}; convert them to 8 bits"
            )
    if any(i.ndim == 3 for i in images):
        images = [i if i.ndim == 3 else np.repeat(i[..., None], 3, axis=2) for i in images]
    block = np.stack(images)
    return Table({"image": block}, NumPy("image", block.dtype))


def _image(file: Path) -> NDArray[Any]:
    """Return grey levels ``[H, W]`` or colours ``[H, W, 3]``, upright, without palette or alpha."""
    from PIL import Image, ImageOps

    try:
        with Image.open(file) as opened:
            image = ImageOps.exif_transpose(opened)
            if image.mode in ("1", "L", "LA", "La"):
                return np.asarray(image.convert("L"))
            if image.mode.startswith("I;16"):
                return np.asarray(image).astype(np.uint16)
            return np.asarray(image.convert("RGB"))
    except PermissionError:
        raise InputError(f"image '{file}': permission denied; make it readable") from None
    except (*DAMAGE, Image.DecompressionBombError) as error:
        raise InputError(f"image '{file}' is corrupt or no image; repair or remove it") from error
