"""A fitted estimator as the contents of a model folder, and back."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from refold.backbones.tied import ties
from refold.data.corruptions import Corruption, corruptions
from refold.data.schema import Schema
from refold.detection.calibration import Calibration
from refold.detection.detector import Detector
from refold.detection.drift import Reference
from refold.fields import Field
from refold.latents import Latent, latents
from refold.model import Model
from refold.modelfile import Saved
from refold.parts import PartSpec
from refold.penalties import Penalty, penalties
from refold.spec import ModelSpec
from refold.training.fit import Run
from refold.training.plan import Plan
from refold.uses.inspect import Quality
from refold.uses.local import Local
from refold.version import VERSION

if TYPE_CHECKING:
    from refold.estimator import Autoencoder


def pack(ae: Autoencoder) -> Saved:
    """Return everything a fitted estimator is, as plain values and tensors."""
    config: dict[str, Any] = {
        "refold": VERSION,
        "params": {k: plain(v) for k, v in ae.get_params(deep=False).items()},
        "recipe": ae.recipe_,
        "spec": dataclasses.replace(ae.spec_, ties=ties(ae.model_)).to_json(),
        "schema": ae.schema_.to_json(),
        "plan": ae.plan_.to_json(),
        "quality": dataclasses.asdict(ae.quality_),
        "run": {
            "stopped": ae.run_.stopped,
            "seconds": ae.run_.seconds,
            "phases": list(ae.run_.phases),
            "precision": ae.run_.precision,
        },
        "reasons": list(ae.reasons_),
        "notes": list(ae.notes_),
        "rows": ae.n_rows_,
        "held_out": ae.calibration_.held_out,
        "evidence": [str(spec) for spec in ae.detector_.specs],
        "setting": ae.detector_.setting,
        "n_features": getattr(ae, "n_features_in_", None),
        "feature_names": [str(n) for n in getattr(ae, "feature_names_in_", ())],
    }
    weights = {k: v.cpu() for k, v in ae.model_.state_dict().items()}
    for i, member in enumerate(ae.members_, 1):
        weights |= {f"member{i}.{k}": v.cpu() for k, v in member.state_dict().items()}
    config["turned"] = [k for k, v in weights.items() if v.ndim == 2 and not v.is_contiguous()]
    local = {} if ae.local_ is None else ae.local_.tensors()
    learnt = {**ae.detector_.tensors(), **ae.reference_.tensors()}
    calibration = {**ae.calibration_.tensors(), **local, **learnt}
    return Saved(config, weights, ae.history_, calibration)


def arguments(saved: Saved) -> dict[str, Any]:
    """Return the constructor's arguments; lists become tuples."""
    given: Mapping[str, Any] = saved.config["params"]
    return {k: tuple(v) if isinstance(v, list) else v for k, v in given.items()}


def unpack(saved: Saved, ae: Autoencoder) -> None:
    """Set everything an estimator had learnt."""
    config = saved.config
    ae.schema_ = Schema.from_json(config["schema"])
    ae.spec_ = ModelSpec.from_json(config["spec"])
    names = sorted({k.split(".")[0] for k in saved.weights if k.startswith("member")})
    ae.model_, *members = (_model(saved, ae, prefix) for prefix in ("", *names))
    ae.members_ = tuple(members)
    ae.plan_ = Plan.from_json(config["plan"])
    judged: dict[str, Any] = {"curve": [], **config["quality"]}
    judged["curve"] = tuple(tuple(point) for point in judged["curve"])
    ae.quality_ = Quality(**judged)
    ae.history_ = saved.history
    run = config["run"]
    ae.run_ = Run(
        saved.history,
        phases=tuple(run.get("phases", ())),
        stopped=run["stopped"],
        seconds=run["seconds"],
        precision=run.get("precision", ""),
    )
    ae.calibration_ = Calibration.from_tensors(saved.calibration, config["held_out"])
    ae.detector_ = Detector.from_tensors(
        saved.calibration, config.get("evidence", ()), config.get("setting", "novelty")
    )
    ae.detector_.to(ae.model_.fusion.last_bias().device)
    ae.reference_ = Reference.from_tensors(saved.calibration) or Reference({})
    ae.local_ = Local.from_tensors(saved.calibration)
    ae.recipe_ = config["recipe"]
    ae.reasons_, ae.notes_ = tuple(config["reasons"]), tuple(config["notes"])
    ae.n_rows_ = config["rows"]
    if config["n_features"] is not None:
        ae.n_features_in_ = config["n_features"]
    if config["feature_names"]:
        ae.feature_names_in_ = np.array(config["feature_names"], dtype=object)


def _model(saved: Saved, ae: Autoencoder, prefix: str) -> Model:
    """Build a model and load its weights: those of the given prefix, or without any."""
    with torch.random.fork_rng([]):
        model = ae.spec_.build(ae.schema_)
    names = {f"{prefix}.{k}" if prefix else k: k for k in model.state_dict()}
    model.load_state_dict({k: saved.weights[name] for name, k in names.items()})
    for name in saved.config.get("turned", ()):
        if name in names:
            # A weight that was untied lies in memory as its transpose did, and so rounds the same.
            weight = model.get_parameter(names[name])
            weight.data = weight.data.t().contiguous().t()
    model.eval()
    return model.to("cuda") if ae.device == "auto" and torch.cuda.is_available() else model


def plain(value: Any) -> Any:
    """Constructor arguments as JSON can hold them: parts in their own small language."""
    if isinstance(value, Latent):
        spec = latents.spec(value)
        return str(PartSpec(spec.name, {"size": value.size, **spec.options}))
    if isinstance(value, Corruption):
        return str(corruptions.spec(value))
    if isinstance(value, Penalty):
        spec = penalties.spec(value)
        known = {k: type(v).__name__ if isinstance(v, nn.Module) else v
                 for k, v in spec.options.items()}  # fmt: skip
        return str(PartSpec(spec.name, known))
    if isinstance(value, Field):
        return str(value)
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [plain(v) for v in value]
    return value.item() if isinstance(value, np.generic) else value
