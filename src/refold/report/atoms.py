"""The decoder's dictionary: what each dimension of the code adds to the output."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from refold.fields import Field, Image
from refold.parts import PartSpec
from refold.report.evidence import Evidence
from refold.report.pictures import signed
from refold.report.text import number
from refold.uses.inspect import Activity, dictionary

PICTURES = 48  # pictures of the dictionary
ATOMS = 24  # lists of the dictionary
TOP = 6  # entries of a list


@dataclass(frozen=True)
class Bar:
    """An entry that a unit moves, by how much, and its bar: ``left`` and ``width`` in percent."""

    name: str
    value: str
    left: float
    width: float
    positive: bool


@dataclass(frozen=True)
class AtomView:
    """What one dimension adds to a field: a picture, or the entries it moves most."""

    unit: str
    picture: str
    bars: tuple[Bar, ...]


@dataclass(frozen=True)
class FieldAtoms:
    """The dictionary of one field, its strongest atoms first, and how many there are in all."""

    name: str
    unit: str
    atoms: tuple[AtomView, ...]
    total: int


def atoms(evidence: Evidence) -> tuple[tuple[FieldAtoms, ...], bool]:
    """Dictionary of each field, scaled to one standard deviation of each dimension.

    Also says whether the decoder is nothing but this linear map.
    """
    found = dictionary(evidence.ae.model_, evidence.ae.schema_)
    if found is None:
        return (), False
    schema, std = evidence.ae.schema_, Activity.of(evidence.codes).std
    std = std if std.any() else np.ones_like(std)
    views: list[FieldAtoms] = []
    for name, matrix in found.atoms.items():
        effect = matrix * std
        strength = np.linalg.norm(effect, axis=0)
        order = np.argsort(-strength, kind="stable")
        order = order[strength[order] > 1e-9]
        own, total = schema.fields[name], len(order)
        if isinstance(own, Image):
            shown = _picture_atoms(effect, order[:PICTURES], own)
        else:
            shown = [_bar_atom(effect[:, d], int(d), found.labels[name]) for d in order[:ATOMS]]
        if shown:
            views.append(
                FieldAtoms(name, _unit(evidence.ae.spec_.likelihoods, name), tuple(shown), total)
            )
    return tuple(views), found.whole


def _unit(likelihoods: Mapping[str, PartSpec], name: str) -> str:
    if likelihoods[name].name in ("bernoulli", "categorical"):
        return "log-odds"
    return "the model's own scale: standard deviations, or [0, 1] for pixels"


def _picture_atoms(
    effect: NDArray[np.floating], order: NDArray[np.int64], own: Field
) -> list[AtomView]:
    shown: list[AtomView] = []
    for d in order:
        atom = effect[:, d].reshape(own.shape)
        atom = atom.mean(0)  # over the colours
        shown.append(AtomView(f"z{d}", signed(atom, float(np.abs(atom).max())), ()))
    return shown


def _bar_atom(effect: NDArray[np.floating], unit: int, labels: tuple[str, ...]) -> AtomView:
    order = np.argsort(-np.abs(effect), kind="stable")[:TOP]
    top = float(np.abs(effect[order[0]])) or 1.0
    shown: list[Bar] = []
    for e in order:
        value = float(effect[e])
        width = round(50 * abs(value) / top, 2)
        sign = "+" if value > 0 else ""
        left = 50 if value >= 0 else 50 - width
        shown.append(Bar(labels[e], sign + number(value, 3), left, width, value >= 0))
    return AtomView(f"z{unit}", "", tuple(shown))
