"""Clean images, their corrupted copies, and what a model restores."""

from __future__ import annotations

from typing import Any

import torch

from refold.data.corruptions import corruptions, resolve
from refold.errors import InputError, MissingExtraError
from refold.estimator import Autoencoder
from refold.fields import Image
from refold.report.evidence import Evidence
from refold.report.figures import draw
from refold.report.figures.figure import Figure, Panel
from refold.report.pictures import picture
from refold.report.text import number
from refold.uses.restore import Likeness, Restoration, image_field, pixels, restore

SHOWN = 8  # rows that are drawn
JUDGED = 256  # rows that the figures are means of
SIDE = 96.0


def restoration(ae: Autoencoder, X: Any, corruption: Any = None, *, seed: int = 0) -> Figure:
    """Draw images of ``X`` clean, corrupted and restored, with PSNR and SSIM.

    ``corruption`` by name or object; not given, the one the model was trained with. The figures are
    scikit-image's and left out where it is not installed. Raises :class:`InputError` for a model
    without images, and where no corruption is known.
    """
    return restoration_of(Evidence.of(ae, X), corruption, seed)


def restorable(evidence: Evidence) -> bool:
    """Whether a report can show it: a corruption, one field of whole images, and rows."""
    images = [k for k, f in evidence.ae.schema_.fields.items() if isinstance(f, Image)]
    if evidence.data is None or len(images) != 1 or evidence.ae.spec_.corruption is None:
        return False
    if images[0] not in evidence.ae.model_.rebuilt:
        return False
    return evidence.data.batch.observed[images[0]] is None


def restoration_of(evidence: Evidence, corruption: Any = None, seed: int = 0) -> Figure:
    """Draw the first rows at hand, and measure more of them."""
    ae, data = evidence.ae, evidence.given()
    name = image_field(ae.schema_, None)
    spec = ae.spec_.corruption if corruption is None else resolve(corruption)
    if spec is None:
        raise InputError(
            "the model was trained without a corruption; say which to restore from, as in "
            "corruption='gaussian(std=0.1)'"
        )
    clean = data.batch.rows(torch.arange(min(JUDGED, len(data.rows))))
    given, back = restore(ae, clean, corruptions.build(spec), seed, name)
    original = pixels(clean.x[name])
    try:
        found = Restoration(
            str(spec), Likeness.of(original, pixels(given)), Likeness.of(original, pixels(back))
        )
    except MissingExtraError:
        found = None
    panels: list[Panel] = []
    for i, row in enumerate(data.rows[:SHOWN]):
        marks = "".join(
            draw.rect(k * (SIDE + 6), 0, SIDE, SIDE, "ground")
            + draw.image(picture(x[i].numpy()), k * (SIDE + 6), 0, SIDE, SIDE, label)
            for k, (x, label) in enumerate(
                ((clean.x[name], "clean"), (given, "corrupted"), (back, "restored"))
            )
        )
        note = "" if found is None else _note(found, i)
        panels.append(Panel(marks, 3 * SIDE + 12, SIDE, f"Row {data.number(row)}", note))
    words = "" if found is None else f" {found.sentence()}."
    note = f"Clean, corrupted (seed {seed}) and restored.{words}"
    return Figure("Restoration", tuple(panels), note, tile=15, most=26, columns=3)


def _note(found: Restoration, i: int) -> str:
    before, after = found.corrupted, found.restored
    return (
        f"{number(float(before.psnr[i]), 3)} → {number(float(after.psnr[i]), 3)} dB, SSIM "
        f"{number(float(before.ssim[i]), 2)} → {number(float(after.ssim[i]), 2)}"
    )
