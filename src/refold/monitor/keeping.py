"""A monitor on disk: the folder of its autoencoder, with JSON and arrays beside it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy
from numpy.typing import NDArray

from refold.data.sinks import atomic_folder
from refold.errors import InputError
from refold.estimator import Autoencoder
from refold.modelfile import MONITOR
from refold.monitor.calendar import Profile
from refold.monitor.detector import Detector, Figures, Own
from refold.monitor.evidence import Law, Reference
from refold.monitor.timeline import Grid
from refold.version import VERSION

FORMAT = 1
CONFIG, ARRAYS, MODEL = MONITOR, "monitor.safetensors", "model"


def is_monitor(path: Path) -> bool:
    """Whether a folder looks like a monitor, so that it may be replaced by another."""
    return (path / CONFIG).is_file() and (path / ARRAYS).is_file()


def save(
    path: str | Path,
    state: Mapping[str, Any],
    detector: Detector,
    merged: Reference,
    causal: Reference,
    own: Own,
) -> None:
    """Write a monitor in one step: an old one stays until the new one is complete."""
    arrays = {
        "medians": detector.profile.medians,
        "scale": detector.profile.scale,
        "unit": detector.unit,
        "centre": detector.centre,
        "whitening": detector.whitening,
        "merged": merged.scores,
        "causal": causal.scores,
        "times": own.times,
        "values": own.values,
        **own.figures._asdict(),
    }
    data = safetensors.numpy.save({k: np.ascontiguousarray(v) for k, v in arrays.items()})
    config: dict[str, Any] = {
        "format": FORMAT,
        "refold": VERSION,
        **state,
        "window": detector.window,
        "period": detector.profile.period,
        "references": {"merged": _law(merged), "causal": _law(causal)},
        "arrays": hashlib.sha256(data).hexdigest(),
    }
    try:
        text = json.dumps({**config, "checksum": _checksum(config)}, indent=1)
    except TypeError as error:
        raise InputError(
            f"the monitor cannot be saved: an option is no plain value ({error}); give parts by "
            f"name, as in latent='topk(size=64, k=8)'"
        ) from error
    with atomic_folder(Path(path), replaceable=is_monitor, what="a monitor") as folder:
        detector.ae.save(folder / MODEL)
        (folder / ARRAYS).write_bytes(data)
        (folder / CONFIG).write_text(text + "\n", encoding="utf-8")


def load(path: str | Path) -> tuple[dict[str, Any], Detector, Reference, Reference, Own]:
    """Read a folder that :func:`save` wrote, and verify it."""
    folder = Path(path)
    if not (folder / CONFIG).is_file():
        raise InputError(
            f"'{folder}' is no monitor: it holds no {CONFIG}; give a folder that Monitor.save wrote"
        )
    config = _config(folder)
    try:
        data = (folder / ARRAYS).read_bytes()
    except OSError as error:
        raise InputError(
            f"the monitor '{folder}' is incomplete: {ARRAYS} cannot be read ({error.strerror}); "
            f"copy the whole folder again"
        ) from error
    if hashlib.sha256(data).hexdigest() != config["arrays"]:
        raise _damaged(folder, ARRAYS)
    arrays = safetensors.numpy.load(data)
    profile = Profile(
        config["period"], config["step"], arrays["medians"], arrays["scale"], config["zone"]
    )
    detector = Detector(
        Autoencoder.load(folder / MODEL), profile, config["window"], arrays["unit"],
        arrays["centre"], arrays["whitening"],
    )  # fmt: skip
    laws = config["references"]
    merged, causal = (_reference(laws[k], arrays[k]) for k in ("merged", "causal"))
    figures = Figures(*(arrays[k] for k in Figures._fields))
    return config, detector, merged, causal, Own(arrays["times"], arrays["values"], figures)


def grid(state: Mapping[str, Any]) -> Grid:
    """Where steps lie."""
    return Grid(state["step"], state["timed"], state["zone"])


def _law(reference: Reference) -> dict[str, Any]:
    """Everything but the scores."""
    values = dataclasses.asdict(reference)
    return {k: v for k, v in values.items() if k != "scores"}


def _reference(law: Mapping[str, Any], scores: NDArray[np.float64]) -> Reference:
    values: dict[str, Any] = {**law, **{k: Law(**law[k]) for k in ("shape", "code")}}
    return Reference(**values, scores=scores)


def _config(folder: Path) -> dict[str, Any]:
    try:
        config: Any = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _damaged(folder, CONFIG) from error
    if not isinstance(config, dict) or not isinstance(config.get("format"), int):
        raise InputError(f"'{folder}' is no monitor: its {CONFIG} is of something else")
    if config["format"] > FORMAT:
        raise InputError(
            f"the monitor '{folder}' was written by a newer refold (format {config['format']}, "
            f"this version reads up to {FORMAT}): pip install --upgrade refold"
        )
    if config.pop("checksum", None) != _checksum(config):
        raise _damaged(folder, CONFIG)
    return config


def _checksum(config: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()


def _damaged(folder: Path, file: str) -> InputError:
    return InputError(
        f"the monitor '{folder}' is damaged or was changed: {file} does not match its checksum; "
        f"copy it again or fit anew"
    )
