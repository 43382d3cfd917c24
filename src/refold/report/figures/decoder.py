"""What the decoder does with a code: its dictionary, single units, and walks along them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from refold.data.schema import Schema
from refold.errors import InputError
from refold.estimator import Autoencoder
from refold.fields import Field, Image, Series, Text
from refold.fields.base import kind_of, scalar
from refold.fields.category import Classes
from refold.report.evidence import Evidence, is_dictionary, unit
from refold.report.figures import draw
from refold.report.figures.figure import Figure, Panel
from refold.report.pictures import signed, signed_strip, strip
from refold.report.text import cell, number, percent, shortened
from refold.uses import inspect, traverse
from refold.uses.inspect import Activity, entry_labels

PICTURES = 48  # pictures of units
LISTS = 24  # lists of units
TOP = 6  # entries of a list
WALKS = 12  # units that are walked along
UNITS = {  # of numbers that are not standardised: what is expected, and what the weights add to
    "bernoulli": ("in shares of its range", "in log-odds of its range"),
    "beta": ("in shares of its range", "in log-odds of its range"),
    "kl": ("in shares of the whole", "in logarithms of shares"),
    "poisson": ("in logarithms of counts", "in logarithms of counts"),
}
SIDE = 80.0  # a picture's side in the drawing


def dictionary(ae: Autoencoder) -> Figure:
    r"""Draw what each unit adds through the decoder's linear map, strongest first.

    .. math:: \hat x = \sum_d z_d \, a_d + \dots

    An atom :math:`a_d` is scaled to one standard deviation of its unit. Images are pictures, other
    fields bars of the entries that move most. Raises :class:`InputError` where no linear map leads
    from the code to a field; :func:`units` draws such models.

    >>> import numpy as np, refold
    >>> X = np.random.default_rng(0).normal(size=(60, 5))
    >>> ae = refold.Autoencoder(2, recipe="pca").fit(X)
    >>> sorted(p.caption for p in dictionary(ae).panels)
    ['latent0', 'latent1']
    """
    return dictionary_of(Evidence.saved(ae))


def dictionary_of(evidence: Evidence) -> Figure:
    """Draw the dictionary of a model, with codes that say how far its units move."""
    ae = evidence.ae
    found = inspect.dictionary(ae.model_, ae.schema_)
    if found is None:
        raise InputError(
            "this model has no dictionary: no linear map leads from its code to its output; draw "
            "its units instead, or fit with recipe 'pca', 'dense' or hidden=()"
        )
    std = Activity.of(evidence.codes).std
    std = std if std.any() else np.ones_like(std)
    panels, note = _drawn({k: a * std for k, a in found.atoms.items()}, evidence, probable=False)
    if is_dictionary(ae):
        said = "The direction of each latent, as long as a standard deviation of its activations."
    elif found.whole:
        said = (
            "What each unit adds as it grows by one standard deviation. The decoder is this linear "
            "map."
        )
    else:
        said = (
            "What each unit adds as it grows by one standard deviation. This is the linear path of "
            "the decoder; the layers beside it add to it."
        )
    return _figure("The decoder's dictionary", panels, f"{said} {note}")


def units(ae: Autoencoder, X: Any = None) -> Figure:
    """Draw what each unit adds to the output by itself, whatever layers the decoder has.

    Each is decoded at its typical activation, less the decoded code it is added to: see
    :func:`refold.uses.traverse.effects`. Activations are those of ``X``, or of the rows saved with
    the model. Raises :class:`InputError` where the decoder needs more than the code.
    """
    return units_of(Evidence.of(ae, X))


def units_of(evidence: Evidence) -> Figure:
    """Draw single units."""
    found, word = traverse.effects(evidence.ae.model_, evidence.codes), unit(evidence.ae)
    panels, note = _drawn(found.added, evidence, probable=True)
    start = (
        f"Each {word} at its mean activation, all others zero, less the decoded zero code."
        if traverse.sparse(evidence.codes)
        else (
            f"The mean code with one {word} a standard deviation higher, less the decoded mean "
            f"code."
        )
    )
    return _figure(f"{word.capitalize()}s, one by one", panels, f"{start} {note}")


def traversals(ae: Autoencoder, X: Any = None, *, row: int = 0, steps: int = 7) -> Figure:
    """Decode a row's code as each unit runs from its low to its high values.

    The middle of the ``steps`` is the row's own reconstruction, the ends are the unit's 2 % and
    98 % quantiles; ``row`` counts the rows of ``X``, or those saved with the model. Units that move
    the output most come first. Raises :class:`InputError` for a row that is not there, an even
    number of steps, and where the decoder needs more than the code.
    """
    evidence = Evidence.of(ae, X)
    rows = np.arange(len(evidence.codes)) if evidence.data is None else evidence.data.rows
    place = np.flatnonzero(rows == row)
    if len(place) == 0:
        raise InputError(
            f"row {row} is not among the {len(rows):,} rows at hand; give one of "
            f"{rows[0]} to {rows[-1]}"
        )
    return traversals_of(evidence, int(place[0]), steps)


def traversals_of(evidence: Evidence, place: int = 0, steps: int = 7) -> Figure:
    """Draw walks from the code at a position of the evidence."""
    model, schema, own = evidence.ae.model_, evidence.ae.schema_, evidence.codes[place]
    values = traverse.span(evidence.codes, own, steps)
    moving = np.flatnonzero(values[:, -1] > values[:, 0])
    size = len(own)
    both = traverse.traverse(model, own, values[:, [0, -1]], moving).reshape(-1, size)
    moved = _moved(traverse.expected(model, both)) if len(moving) else np.zeros(0)
    chosen = moving[np.sort(np.argsort(-moved, kind="stable")[:WALKS])]
    codes = traverse.traverse(model, own, values, chosen)
    panels = [p for i, d in enumerate(chosen) for p in _walk(evidence, schema, int(d), codes[i])]
    whose = f"row {evidence.numbers[place]}"
    silent, word = traverse.sparse(evidence.codes), unit(evidence.ae)
    ends = "zero to the strongest activation" if silent else "the 2 % to the 98 % quantile"
    count = (
        f"The {len(chosen)} of {size:,} {word}s that move the output most. "
        if len(chosen) < size
        else ""
    )
    note = (
        f"{count}Each line runs from {ends} of a {word}, all others held; the middle is the "
        f"reconstruction of {whose}."
    )
    pictures = any(isinstance(schema.fields[k], Image) for k in model.outputs)
    return Figure(
        f"Walks along the {word}s", tuple(panels), note, tile=19, columns=2 if pictures else 3
    )


def _moved(found: dict[str, NDArray[Any]]) -> NDArray[np.float64]:
    """How far apart the two ends of each walk are, ``[units]``."""
    change = [np.square(v[1::2] - v[::2], dtype=np.float64).sum(1) for v in found.values()]
    return np.sum(change, 0)


def _walk(evidence: Evidence, schema: Schema, unit: int, codes: NDArray[Any]) -> list[Panel]:
    """Draw one unit's walk ``[steps, D]``, a panel a field of images and one for all others."""
    model, panels, rest = evidence.ae.model_, list[Panel](), list[tuple[str, str, NDArray[Any]]]()
    means, name = traverse.expected(model, codes), f"latent{unit}"
    span = f"{number(float(codes[0, unit]), 3)} to {number(float(codes[-1, unit]), 3)}"
    for key in model.outputs:
        own = schema.fields[key]
        if isinstance(own, Image):
            x = means[key].reshape(-1, *own.shape)
            wide = 320.0
            high = round(wide / len(x) * own.height / own.width, 1)
            middle = wide / len(x) * (len(x) // 2)
            marks = draw.image(strip(x), 0, 0, wide, high, f"decoded along {name}")
            frame = f"M{middle:g} 0V{high:g}M{middle + wide / len(x):g} 0V{high:g}"
            panels.append(Panel(marks + draw.path(frame, "axis"), wide, high, name, span))
        else:
            rest += _entries(own, means[key])
    if rest:
        rest = sorted(rest, key=lambda r: -float(np.ptp(r[2])))[:TOP]
        top = max(float(np.abs(r[2]).max()) for r in rest)
        marks = "".join(_heat_line(r, i, top) for i, r in enumerate(rest))
        panels.append(Panel(marks, 320, 20 * len(rest), name, span))
    return panels


def _entries(own: Field, means: NDArray[Any]) -> list[tuple[str, str, NDArray[Any]]]:
    """Label, ends in words, and change from the middle ``[steps]`` of each number of a field."""
    change = means - means[len(means) // 2]
    if isinstance(own, Classes | Text) or kind_of(own) == "distribution":
        ends = [[_share(float(v)) for v in means[i]] for i in (0, -1)]
    else:
        ends = [_in_units(own, means[i]) for i in (0, -1)]
    labels = entry_labels(own)
    chosen = np.argsort(-np.ptp(means, axis=0), kind="stable")[:TOP]
    return [(labels[e], f"{ends[0][e]} → {ends[1][e]}", change[:, e]) for e in chosen]


def _share(value: float) -> str:
    """Probability in words; digits of what hardly ever happens say nothing."""
    return "<0.1%" if 0 < value < 0.001 else percent(value)


def _in_units(own: Field, x: NDArray[Any]) -> list[str]:
    """Numbers of a field in the user's own units and types, as text."""
    if isinstance(own, Series):
        return [number(v, 3) for v in own.numbers(torch.from_numpy(x[None])).reshape(-1).tolist()]
    found = own.to_values(torch.from_numpy(x[None]))
    if own.block:
        return [number(float(v), 3) for v in np.asarray(found[own.columns[0]]).reshape(-1)]
    cells = [scalar(found[c]).to_pylist()[0] for c in own.columns]
    return [number(v, 3) if isinstance(v, float) else cell(v) or "–" for v in cells]


def _heat_line(row: tuple[str, str, NDArray[Any]], i: int, top: float) -> str:
    label, ends, change = row
    return (
        draw.text(0, 20 * i + 13, draw.fitted(label, 92))
        + draw.rect(98, 20 * i + 2, 91, 15, "ground")
        + draw.image(signed_strip(change, top), 98, 20 * i + 2, 91, 15)
        + draw.text(320, 20 * i + 13, shortened(ends, 18), anchor="end", kind="ink")
    )


def _drawn(
    added: dict[str, NDArray[Any]], evidence: Evidence, *, probable: bool
) -> tuple[list[Panel], str]:
    """Draw what units add ``{field: [V, D]}``, strongest first, and say how to read it."""
    panels, notes, schema = list[Panel](), list[str](), evidence.ae.schema_
    for name, effect in added.items():
        own, strength = schema.fields[name], np.linalg.norm(effect, axis=0)
        order = np.argsort(-strength, kind="stable")
        order = order[strength[order] > 1e-9]
        most = PICTURES if isinstance(own, Image) else LISTS
        many = schema_name(name) if len(added) > 1 else ""
        if len(order) > most:
            notes.append(f"The {most} strongest of {len(order):,}{' for ' + name if many else ''}.")
        for d in map(int, order[:most]):
            if isinstance(own, Image):
                panels.append(_picture(effect[:, d].reshape(own.shape), d, many))
            else:
                panels.append(_bars(effect[:, d], d, entry_labels(own), many))
        notes.append(_scale_note(evidence, name, own, probable))
    return panels, " ".join(dict.fromkeys(n for n in notes if n))


def schema_name(name: str) -> str:
    """Return a field's name as a note beside a unit's."""
    return shortened(name, 24)


def _scale_note(evidence: Evidence, name: str, own: Field, probable: bool) -> str:
    if isinstance(own, Image):
        return "Orange adds, blue takes away; each picture in its own scale."
    head, shown = evidence.ae.spec_.likelihoods[name].name, schema_name(name).capitalize()
    if isinstance(own, Classes):
        return f"{shown} in {'probability' if probable else 'log-odds'}."
    if head in UNITS:
        return f"{shown} {UNITS[head][0 if probable else 1]}."
    return f"{shown} in standard deviations."


def _picture(atom: NDArray[Any], unit: int, note: str) -> Panel:
    atom = shrunk(atom.mean(0))  # over the colours
    high = round(SIDE * atom.shape[0] / atom.shape[1], 1)
    uri, name = signed(atom, float(np.abs(atom).max())), f"latent{unit}"
    ground = draw.rect(0, 0, SIDE, high, "ground")
    return Panel(
        ground + draw.image(uri, 0, 0, SIDE, high, f"effect of {name}"), SIDE, high, name, note
    )


def shrunk(x: NDArray[Any], most: int = 56) -> NDArray[Any]:
    """Average blocks of pixels ``[H, W]`` so that no side has more than ``most`` and half again."""
    block = max(1, round(max(x.shape) / most))
    high, wide = (s // block * block for s in x.shape)
    parts = x[:high, :wide].reshape(high // block, block, wide // block, block)
    return parts.mean((1, 3))


def _bars(effect: NDArray[Any], unit: int, labels: Sequence[str], note: str) -> Panel:
    order = np.argsort(-np.abs(effect), kind="stable")[:TOP]
    top = float(np.abs(effect[order[0]])) or 1.0
    rows: list[tuple[str, str, float]] = []
    for e in order:
        sign = "+" if effect[e] > 0 else ""
        rows.append((str(labels[e]), sign + number(float(effect[e]), 3), float(effect[e]) / top))
    return Panel(draw.two_way(rows, 300), 300, 18 * len(rows), f"latent{unit}", note)


def _figure(title: str, panels: list[Panel], note: str) -> Figure:
    pictures = bool(panels) and panels[0].width == SIDE
    return Figure(
        title, tuple(panels), note, tile=5 if pictures else 18, most=12 if pictures else 26,
        columns=8 if pictures else 3,
    )  # fmt: skip
