"""The encoder of a fitted model as a module for other torch models."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, final

import torch
from sklearn.exceptions import NotFittedError
from sklearn.utils.validation import check_is_fitted
from torch import Tensor, nn

from refold.data.schema import Schema
from refold.errors import InputError
from refold.fields import Binary, Field, Image, Ordinal
from refold.fields.category import Classes
from refold.model import Model, fold
from refold.types import Batch

if TYPE_CHECKING:
    from refold.estimator import Autoencoder


@final
class EncoderModule(nn.Module):
    r"""The encoder of a fitted model, as a part of another torch model.

    .. math:: z = \operatorname{encode}(x), \qquad x\ [B, *\text{shape}] \mapsto z\ [B, D]

    It owns its weights, trains, and has nothing of the decoder. In evaluation it gives what
    ``transform`` gives. Inputs are in the model's own scale, per kind of field:

    - ``numeric`` ``[B, K]`` and ``vector`` ``[B, E]``: ``(value - mean) / std``
    - ``image`` ``[B, C, H, W]``: ``(value - low) / (high - low)``, channels first
    - ``binary`` ``[B, K]``: 0 or 1, the position of the level
    - ``ordinal`` ``[B, K]``: the position of the level, from 0 for the first to 1 for the last
    - ``count`` ``[B, K]``: ``log(1 + value)``
    - ``bounded`` ``[B, K]``: ``(value - low) / (high - low)``
    - ``distribution`` ``[B, K]``: the shares
    - ``categorical`` ``[B, K]`` of int64: the position of the level

    Missing is NaN, -1 for a categorical one. The numbers are in :attr:`scales` by field, and
    printed with the module; ``ae.schema_.encode(refold.data.sources.read(X))`` applies them.

    Raises :class:`InputError` for a field that is absent or unknown.
    """

    def __init__(self, model: Model, schema: Schema) -> None:
        super().__init__()
        own = copy.deepcopy(model).requires_grad_(True)
        needed = _needed(own, schema)
        for part in (own.fusion, *own.backbones.values()):
            _prune(part, needed)
        self.names = own.inputs
        self.backbones = nn.ModuleList(own.backbones[k] for k in own.inputs)
        self.fusion, self.latent = own.fusion, own.latent
        self.latent.progress = 1.0
        self.scales = {k: _scale(schema.fields[k]) for k in own.inputs}
        self._bounds = tuple(schema.fields[k].bounds is not None for k in self.names)
        for i, name in enumerate(self.names):
            self._keep_range(i, schema.fields[name])
        self.to(model.fusion.last_bias().device)

    def _keep_range(self, i: int, field: Field) -> None:
        """Keep what stands for a missing value, and the range transform keeps inputs in."""
        fill = field.mean if isinstance(field, Binary | Ordinal) else getattr(field, "fill", 0.0)
        self.register_buffer(f"fill{i}", torch.tensor(fill))
        if field.bounds is not None:
            low, high = (torch.tensor(b).view(field.shape) for b in field.bounds)
            self.register_buffer(f"low{i}", low - field.margin)
            self.register_buffer(f"high{i}", high + field.margin)

    def forward(self, x: Tensor | None = None, /, **fields: Tensor) -> Tensor:
        """Code ``[B, D]`` of one field's ``x``, or of several by name."""
        if x is not None and not fields and len(self.names) == 1:
            fields = {self.names[0]: x}
        if set(fields) != set(self.names):
            given = ", ".join(fields) or ("one tensor" if x is not None else "nothing")
            raise InputError(
                f"the encoder was given {given}; expected the fields by name: "
                f"{', '.join(self.names)}"
            )
        seen = {k: _seen(v.flatten(1)) for k, v in fields.items()}
        return self.code(Batch(fields, {**seen}))

    def code(self, batch: Batch) -> Tensor:
        """Code ``[B, D]`` of a batch as the schema encodes it."""
        inside: dict[str, Tensor] = {}
        for i, name in enumerate(self.names):
            x = batch.x[name]
            if x.is_floating_point():
                x = torch.where(x.isnan(), self.get_buffer(f"fill{i}"), x)
            if self._bounds[i]:
                x = x.clamp(self.get_buffer(f"low{i}"), self.get_buffer(f"high{i}"))
            inside[name] = x
        backbones: Any = dict(zip(self.names, self.backbones, strict=True))
        rows = Batch(inside, batch.observed)
        return fold(backbones, self.fusion, self.latent, rows).z.flatten(1)

    def extra_repr(self) -> str:
        """Return the scale of each field."""
        scales = [
            (k, ", ".join(f"{n} {_brief(v)}" for n, v in s.items())) for k, s in self.scales.items()
        ]
        return "\n".join(f"{name}: {scale}" for name, scale in scales)


def encoder_module(ae: Autoencoder) -> EncoderModule:
    """Hand over the encoder of a fitted model, with its own copy of the weights.

    >>> import numpy as np, refold
    >>> X = np.random.default_rng(0).normal(size=(64, 6)).astype(np.float32)
    >>> encoder = encoder_module(refold.Autoencoder(2, epochs=1).fit(X))
    >>> mean, std = (torch.tensor(encoder.scales["x"][k]) for k in ("mean", "std"))
    >>> z = encoder((torch.from_numpy(X) - mean) / std)
    >>> z.shape, z.requires_grad
    (torch.Size([64, 2]), True)
    """
    refuse_unfitted(ae)
    return EncoderModule(ae.model_, ae.schema_).train(False)


def _seen(x: Tensor) -> Tensor:
    return ~x.isnan() if x.is_floating_point() else x != -1


def _scale(field: Any) -> dict[str, Any]:
    """Numbers that take a field's values to the model's own scale."""
    if isinstance(field, Classes):
        return {"columns": field.columns, "levels": field.levels}
    if isinstance(field, Image):
        return {"shape": field.shape, "low": field.low, "high": field.high}
    scale = {k: getattr(field, k) for k in ("mean", "std") if hasattr(field, k)}
    return {"columns": field.columns, **scale}


def _brief(value: Any) -> str:
    values: Sequence[Any] = value if isinstance(value, tuple) else (value,)
    shown = ", ".join(f"{v:.4g}" if isinstance(v, float) else str(v) for v in values[:4])
    return f"[{shown}{', ...' if len(values) > 4 else ''}]"


def _needed(model: Model, schema: Schema) -> set[int]:
    """Identities of the parameters that the code depends on: those a gradient reaches.

    Found in training mode, where codes that are rounded pass gradients on, and on a copy, because
    a pass may teach a layer its running means.
    """
    trial, device = copy.deepcopy(model).train(), model.fusion.last_bias().device
    x = {
        k: torch.zeros(4, *f.shape, dtype=torch.int64 if f.bounds is None else torch.float32)
        for k, f in schema.fields.items()
    }
    with torch.random.fork_rng(), torch.enable_grad():
        z = trial.encode(Batch(x, dict.fromkeys(x)).to(device))[0].z
        if z.requires_grad:
            z.sum().backward()
    pairs = zip(model.parameters(), trial.parameters(), strict=True)
    return {id(p) for p, other in pairs if other.grad is not None}


def _prune(part: nn.Module, needed: set[int]) -> None:
    """Take away the layers whose parameters are all of no need for the code."""
    for name, child in list(part.named_children()):
        held = {id(p) for p in child.parameters()}
        if needed and held and not held & needed:
            delattr(part, name)
        else:
            _prune(child, needed)


def refuse_unfitted(ae: Any) -> None:
    """Raise :class:`InputError` for what is no fitted estimator."""
    try:
        check_is_fitted(ae)
    except (NotFittedError, TypeError) as error:
        raise InputError(
            f"the encoder is {type(ae).__name__}, which is not fitted; fit an Autoencoder first "
            f"and give that"
        ) from error
