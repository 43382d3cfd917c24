"""A model on disk: a folder of JSON, safetensors and CSV with checksums; no pickle."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from refold.data.sinks import atomic_folder
from refold.errors import InputError

FORMAT = 1
CONFIG, WEIGHTS, HISTORY, CALIBRATION = (
    "config.json",
    "model.safetensors",
    "history.csv",
    "calibration.safetensors",
)


MONITOR = "monitor.json"
"""What a folder has instead that holds the monitor of a series."""


@dataclass(frozen=True)
class Saved:
    """The contents of a model folder."""

    config: Mapping[str, Any]
    weights: Mapping[str, Tensor]
    history: list[dict[str, float]]
    calibration: Mapping[str, Tensor]


def is_model(path: Path) -> bool:
    """Whether a folder looks like a model, so that it may be replaced by another."""
    return (path / CONFIG).is_file() and (path / WEIGHTS).is_file()


def save(path: str | Path, saved: Saved) -> None:
    """Write a model folder in one step: the old one stays until the new one is complete."""
    parts = {
        WEIGHTS: safetensors.torch.save({k: v.contiguous() for k, v in saved.weights.items()}),
        CALIBRATION: safetensors.torch.save(
            {k: v.contiguous() for k, v in saved.calibration.items()}
        ),
        HISTORY: _history_csv(saved.history).encode(),
    }
    config = {"format": FORMAT, **saved.config}
    config["checksums"] = {name: hashlib.sha256(data).hexdigest() for name, data in parts.items()}
    config["checksum"] = _checksum(config)
    with atomic_folder(Path(path), replaceable=is_model) as folder:
        for name, data in parts.items():
            (folder / name).write_bytes(data)
        (folder / CONFIG).write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")


def load(path: str | Path) -> Saved:
    """Read a model folder and verify every byte of it; each refusal is one sentence."""
    folder = Path(path)
    if not folder.exists():
        raise InputError(f"there is no model at '{folder}': no such folder; fit one with --out")
    if (folder / MONITOR).is_file():
        raise InputError(
            f"'{folder}' holds the monitor of a series, which has no rows; score or report it, or "
            f"use refold.Monitor.load"
        )
    if not (folder / CONFIG).is_file():
        raise InputError(
            f"'{folder}' is no refold model: it holds no {CONFIG}; give the folder that --out named"
        )
    config = _read_config(folder)
    data: dict[str, bytes] = {}
    for name in (WEIGHTS, CALIBRATION, HISTORY):
        try:
            data[name] = (folder / name).read_bytes()
        except OSError as error:
            raise InputError(
                f"the model '{folder}' is incomplete: {name} cannot be read ({error.strerror}); "
                f"copy the whole folder again"
            ) from error
        if hashlib.sha256(data[name]).hexdigest() != config["checksums"].get(name):
            raise InputError(
                f"the model '{folder}' is damaged or was changed: {name} does not match its "
                f"checksum; copy it again or fit anew"
            )
    return Saved(
        config,
        safetensors.torch.load(data[WEIGHTS]),
        _history_rows(data[HISTORY].decode()),
        safetensors.torch.load(data[CALIBRATION]),
    )


def _read_config(folder: Path) -> dict[str, Any]:
    try:
        config: Any = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(
            f"the model '{folder}' is damaged: {CONFIG} cannot be read; copy it again"
        ) from error
    if not isinstance(config, dict) or "format" not in config or "checksums" not in config:
        raise InputError(f"'{folder}' is no refold model: its {CONFIG} is of something else")
    if not isinstance(config["format"], int) or config["format"] > FORMAT:
        raise InputError(
            f"the model '{folder}' was written by a newer refold (format {config['format']}, this "
            f"version reads up to {FORMAT}): pip install --upgrade refold"
        )
    if config.pop("checksum", None) != _checksum(config):
        raise InputError(
            f"the model '{folder}' is damaged or was changed: {CONFIG} does not match its "
            f"checksum; copy it again or fit anew"
        )
    return config


def _checksum(config: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()


def _history_csv(history: list[dict[str, float]]) -> str:
    names = list(dict.fromkeys(name for row in history for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, names, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(history)
    return text.getvalue()


def _history_rows(text: str) -> list[dict[str, float]]:
    rows = csv.DictReader(io.StringIO(text))
    return [{k: float(v) for k, v in row.items() if v != ""} for row in rows]
