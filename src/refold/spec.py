"""The model as plain values: a frozen dataclass that JSON can hold, and its way to modules."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from refold.backbones import backbones
from refold.backbones.base import Geometry
from refold.backbones.tied import tie_pairs
from refold.data.corruptions import corruptions
from refold.data.schema import Schema
from refold.errors import InputError
from refold.fields import Field
from refold.fusion import fusions
from refold.latents import Latent, latents
from refold.likelihoods import Likelihood, likelihoods
from refold.model import Model, References
from refold.parts import PartSpec
from refold.penalties import penalties


@dataclass(frozen=True)
class ModelSpec:
    """Everything that decides a model's modules, apart from the data's schema.

    ``backbones`` and ``likelihoods`` are specs by field name, ``weights`` one number per field or
    one per entry, ``size`` the size of the code; ``ties`` names pairs of the model's layers of
    which the second uses the first one's weight. A corruption that hides entries has the encoder
    told which are there, whether or not any was missing in training.
    """

    latent: PartSpec
    size: int
    fusion: PartSpec
    backbones: Mapping[str, PartSpec]
    likelihoods: Mapping[str, PartSpec]
    weights: Mapping[str, tuple[float, ...]]
    corruption: PartSpec | None = None
    penalties: tuple[PartSpec, ...] = field(default=())
    ties: tuple[tuple[str, str], ...] = ()

    def build(self, schema: Schema) -> Model:
        """Make the modules, with fresh parameters drawn from torch's global generator."""
        heads = {
            k: likelihoods.build(p, schema.fields[k].sizes, schema.fields[k].shape)
            for k, p in self.likelihoods.items()
        }
        spines = {
            k: backbones.build(p, geometry(schema.fields[k], heads.get(k), self.corruption))
            for k, p in self.backbones.items()
        }
        latent = latents.build(self.latent, self.size)
        fusion = fusions.build(
            self.fusion,
            {k: b.encoded for k, b in spines.items() if b.geometry.reads},
            {k: b.decoded for k, b in spines.items() if b.geometry.writes and not b.coded},
            latent.width,
            latent.size,
        )
        extra = tuple(penalties.build(p) for p in self.penalties)
        read = {k: schema.fields[k] for k, b in spines.items() if b.geometry.reads}
        model = Model(spines, fusion, latent, heads, extra, references(latent, read))
        model.weigh(dict(self.weights))
        tie_pairs(model, self.ties)
        return model

    def to_json(self) -> dict[str, Any]:
        """Return plain values; parts are written in their own small language.

        A penalty that holds a network of the user's is left out: it is needed to train, not to use
        a model.
        """
        return {
            "latent": part_json(self.latent),
            "size": self.size,
            "fusion": part_json(self.fusion),
            "backbones": {k: part_json(p) for k, p in self.backbones.items()},
            "likelihoods": {k: part_json(p) for k, p in self.likelihoods.items()},
            "weights": {k: list(w) for k, w in self.weights.items()},
            "corruption": None if self.corruption is None else part_json(self.corruption),
            "penalties": [part_json(p) for p in self.penalties if is_plain(p)],
            "ties": [list(pair) for pair in self.ties],
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> ModelSpec:
        """Rebuild from :meth:`to_json`."""
        return cls(
            part_from_json(values["latent"]),
            values["size"],
            part_from_json(values["fusion"]),
            {k: part_from_json(p) for k, p in values["backbones"].items()},
            {k: part_from_json(p) for k, p in values["likelihoods"].items()},
            {k: tuple(w) for k, w in values["weights"].items()},
            None if values["corruption"] is None else part_from_json(values["corruption"]),
            tuple(part_from_json(p) for p in values["penalties"]),
            tuple((mine, other) for mine, other in values.get("ties", ())),
        )


def geometry(own: Field, head: Likelihood | None, corruption: PartSpec | None) -> Geometry:
    """Sizes of a field for its backbone; ``head`` is None where it is never rebuilt."""
    told = corruption is not None and corruptions.build(corruption).hides
    width = 0 if head is None else head.width
    return Geometry(
        own.shape,
        own.sizes,
        width,
        own.missing or told,
        reads=not own.target,
        writes=head is not None,
    )


def references(latent: Latent, fields: Mapping[str, Field]) -> References | None:
    """Make the inputs that a latent's prior has encoded, where it asks for any."""
    if not latent.references:
        return None
    for name, own in fields.items():
        if max(own.sizes) > 1:
            raise InputError(
                f"the latent '{latents.spec(latent).name}' learns inputs of its own, which must be "
                f"numbers, and '{name}' holds classes; use another prior"
            )
    return References({k: own.shape for k, own in fields.items()}, latent.references)


def is_plain(spec: PartSpec) -> bool:
    """Whether JSON can hold a part's options: not where one is a network of the user's."""
    try:
        json.dumps(dict(spec.options))
    except TypeError:
        return False
    return True


def part_json(spec: PartSpec) -> dict[str, Any]:
    """Return a part's name and options as plain values."""
    return {"name": spec.name, "options": dict(spec.options)}


def part_from_json(values: Mapping[str, Any]) -> PartSpec:
    """Rebuild a part's spec; lists become tuples."""
    options = {k: tuple(v) if isinstance(v, list) else v for k, v in values["options"].items()}
    return PartSpec(values["name"], options)


def default_backbone(kind: str) -> str:
    """Backbone of a kind of field where the recipe names none."""
    return "embed" if kind == "categorical" else "flat"
