r"""Dictionaries in the folders of SAELens: read from there, and written so that it can read them.

Its encoder and decoder act on activations as they are,

.. math:: z = f\bigl((x - b_d) W_e + b_e\bigr), \qquad \hat x = z W_d + b_d

and refold's on rows that a field has centred and scaled, which is folded into the weights. A folder
holds ``cfg.json`` and ``sae_weights.safetensors``.

Source: Bloom, Tigges, Duong & Chanin, SAELens, 2024 (https://github.com/decoderesearch/SAELens),
format of version 6.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from refold.data.schema import Schema
from refold.data.sinks import atomic_folder
from refold.detection import Calibration, Detector, Reference
from refold.errors import InputError, unknown
from refold.estimator import Autoencoder
from refold.fields import Vector
from refold.fields.numeric import FAR
from refold.fusion import Dictionary
from refold.latents import L1, BatchTopK, Gated, JumpReLU, Latent, TopK
from refold.likelihoods.numbers import FixedSpread, Location
from refold.parts import PartSpec
from refold.spec import ModelSpec
from refold.training.fit import Run
from refold.training.plan import Plan
from refold.uses.inspect import Quality
from refold.version import VERSION

CONFIG, WEIGHTS = "cfg.json", "sae_weights.safetensors"
BATCHED = ("batchtopk", "matryoshka_batchtopk")
KNOWN = ("standard", "topk", "jumprelu", "gated", *BATCHED)
BY_ROW = ("layer_norm", "constant_norm_rescale")
"""Normalisations that have another scale for each row, which no weights can stand for."""
NORMALISED = ("none", "expected_average_only_in")


def write(ae: Autoencoder, folder: str | Path) -> Path:
    r"""Write a dictionary for SAELens: its reconstructions are those of ``ae``, in the user's unit.

    Where the field divides all entries by one deviation :math:`s`, SAELens' codes are :math:`s`
    times those of ``transform``, and its decoder keeps rows of unit norm; where each entry has a
    deviation of its own, codes are the same and rows have other norms. A latent ``batch_topk``
    becomes ``jumprelu``, as SAELens itself saves it. Inputs are not kept near the training range
    there.

    Raises :class:`InputError` for models that are no dictionary of one block of numbers or are not
    fitted, and where the folder holds something else.
    """
    if not hasattr(ae, "model_"):
        raise InputError("the model is not fitted, so there is nothing to write; call fit first")
    body, own = _dictionary(ae)
    std = torch.tensor(own.std, dtype=torch.float64)
    unit = float(std[0]) if float(std.max()) == float(std.min()) else 1.0
    encoder, bias, decoder, centre = (
        p.detach().cpu().double()
        for p in (body.encoder, body.encoder_bias, body.decoder, body.centre)
    )
    weights = {
        "W_enc": (encoder * (unit / std)).T,
        "W_dec": decoder * (std / unit),
        "b_dec": centre * std + torch.tensor(own.mean, dtype=torch.float64),
    }
    kind, extra = _written(ae.model_.latent, bias, unit)
    config = {
        "d_in": encoder.shape[1],
        "d_sae": encoder.shape[0],
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": {"trained_with": f"refold {VERSION}"},
        **kind,
    }
    found = {k: v.float().contiguous() for k, v in {**weights, **extra}.items()}
    with atomic_folder(folder, replaceable=_is_theirs, what="a folder of SAELens") as to:
        (to / WEIGHTS).write_bytes(safetensors.torch.save(found))
        (to / CONFIG).write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
    return Path(folder)


def read(folder: str | Path) -> Autoencoder:
    """Read a dictionary that SAELens wrote, as a fitted estimator: its codes and reconstructions.

    It knows no rows: p-values are 1 and there are no flags until ``recalibrate`` has seen some.
    Rows are to be normalised as SAELens' own ``encode`` wants them, which is not at all unless
    activations were scaled before training and that was not folded in.

    Raises :class:`InputError` for architectures that refold does not have, for normalisation by
    row or of a kind that is not known, for activations of another shape than ``[n, d]``, for
    weights that are not finite, and for folders that are incomplete.
    """
    try:
        return _estimated(folder)
    except InputError:
        raise
    except (KeyError, RuntimeError, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"{folder}: what is said of the dictionary and its weights do not fit together "
            f"({type(error).__name__}: {error}); copy the whole folder again"
        ) from error


def _estimated(folder: str | Path) -> Autoencoder:
    config, weights = _read(Path(folder))
    kind = _architecture(config, folder)
    encoder, decoder = weights["W_enc"].T, weights["W_dec"]
    bias = weights["b_gate" if kind == "gated" else "b_enc"]
    shift = torch.zeros_like(bias)
    if not config.get("apply_b_dec_to_input", True):
        shift = encoder @ weights["b_dec"]  # the centre is taken off here, and was not there
    norms = torch.ones_like(bias)
    if config.get("rescale_acts_by_decoder_norm"):
        norms = decoder.norm(dim=1).clamp_min(1e-8)
    latent = _latent(kind, config, len(decoder))
    reason = f"read from {folder}, which is '{kind}' of SAELens"
    ae = _estimator(latent, encoder.shape[1], reason, len(decoder))
    body = ae.model_.fusion
    assert isinstance(body, Dictionary)
    with torch.no_grad():
        body.encoder.copy_(encoder * norms[:, None])
        body.encoder_bias.copy_((bias + shift) * norms)
        body.decoder.copy_(decoder / norms[:, None])
        body.centre.copy_(weights["b_dec"])
        _fill(ae.model_.latent, weights, bias)
    return ae


def _dictionary(ae: Autoencoder) -> tuple[Dictionary, Vector]:
    """Return the body and the field of a fitted dictionary; raise for what is none."""
    model, fields = ae.model_, list(ae.schema_.fields.values())
    body, own = model.fusion, fields[0]
    head = next(iter(model.likelihoods.values()))
    if not isinstance(body, Dictionary) or len(fields) > 1 or not isinstance(own, Vector):
        raise InputError(
            f"SAELens holds dictionaries over one block of numbers, and this is recipe "
            f"'{ae.recipe_}' with {', '.join(ae.schema_.describe())}; fit recipe='dictionary' to "
            f"an array [n, d]"
        )
    plain = isinstance(head, Location) and isinstance(head, FixedSpread)
    if own.missing or not body.centred or not plain:
        raise InputError(
            "SAELens' dictionaries rebuild all of what they read by squared error, and this one "
            "was fitted with gaps or another likelihood; fit it to complete rows without"
        )
    return body, own


def _written(latent: Latent, bias: Tensor, unit: float) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return what SAELens' configuration and weights say of a latent, and of the encoder's bias."""
    if isinstance(latent, TopK) and latent.rectify:
        k = min(latent.size, round(latent.alpha * latent.k))
        kind = {"architecture": "topk", "k": k, "rescale_acts_by_decoder_norm": False}
        return kind, {"b_enc": unit * bias}
    if isinstance(latent, BatchTopK | JumpReLU):
        threshold = latent.threshold.detach().cpu().double().expand(latent.size)
        return {"architecture": "jumprelu"}, {"b_enc": unit * bias, "threshold": unit * threshold}
    if isinstance(latent, Gated):
        scale, shift = (p.detach().cpu().double() for p in (latent.scale, latent.bias))
        magnitude = unit * (shift + scale.exp() * bias)
        more = {"b_gate": unit * bias, "r_mag": scale, "b_mag": magnitude}
        return {"architecture": "gated"}, more
    if isinstance(latent, L1) and latent.activation == "relu":
        return {"architecture": "standard"}, {"b_enc": unit * bias}
    raise InputError(
        f"SAELens has no latent like '{type(latent).__name__}' as it is set here; use topk with "
        f"rectify=True, batch_topk, jumprelu, gated or l1"
    )


def _is_theirs(folder: Path) -> bool:
    return (folder / CONFIG).is_file() and (folder / WEIGHTS).is_file()


def _read(folder: Path) -> tuple[Mapping[str, Any], dict[str, Tensor]]:
    """Read a folder's configuration and its weights, in single precision."""
    if not _is_theirs(folder):
        raise InputError(
            f"'{folder}' is no dictionary of SAELens: it does not hold {CONFIG} and {WEIGHTS}; "
            f"give the folder that its save_model wrote"
        )
    try:
        config: Any = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        weights = safetensors.torch.load_file(folder / WEIGHTS)
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        raise InputError(
            f"the dictionary '{folder}' cannot be read: {error}; copy it again"
        ) from error
    found = {k: v.float() for k, v in weights.items()}
    for name, weight in found.items():
        if not bool(weight.isfinite().all()):
            raise InputError(
                f"the dictionary '{folder}' cannot be used: its weight '{name}' holds NaN or "
                f"infinite values; train it again, or copy the whole folder again"
            )
    return config, found


def _architecture(config: Mapping[str, Any], folder: str | Path) -> str:
    """Return the architecture; raise for those that refold does not have."""
    kind = str(config.get("architecture", "standard"))
    activation = config.get("activation_fn", config.get("activation_fn_str", "relu"))
    if kind == "standard" and activation == "topk":  # as it was written before version 6
        kind = "topk"
    if kind not in KNOWN:
        raise unknown("architecture of SAELens", kind, KNOWN)
    normalised = config.get("normalize_activations") or "none"
    if normalised in BY_ROW:
        raise InputError(
            f"the dictionary '{folder}' scales each row by itself ('{normalised}'), which refold's "
            f"do not; normalise the rows, and set normalize_activations to 'none' in its {CONFIG}"
        )
    if normalised not in NORMALISED:
        raise InputError(
            f"the dictionary '{folder}' normalises activations by '{normalised}', which refold "
            f"does not know; fold it into the weights, and set normalize_activations to 'none' in "
            f"its {CONFIG}"
        )
    shaped = config.get("reshape_activations") or "none"
    if shaped != "none":
        raise InputError(
            f"the dictionary '{folder}' reshapes activations by '{shaped}', which refold does not "
            f"do; flatten them to [n, d], and set reshape_activations to 'none' in its {CONFIG}"
        )
    return kind


def _latent(kind: str, config: Mapping[str, Any], size: int) -> PartSpec:
    """Return the latent that does what an architecture does."""
    k = config.get("k", (config.get("activation_fn_kwargs") or {}).get("k", 1))
    if kind == "topk":
        return PartSpec("topk", {"k": min(int(k), size), "rectify": True})
    if kind in BATCHED:
        return PartSpec("batch_topk", {"k": min(max(1, round(k)), size)})
    if kind == "standard":
        return PartSpec("l1", {"weight": 0.0})
    return PartSpec(kind)


def _fill(latent: Latent, weights: Mapping[str, Tensor], bias: Tensor) -> None:
    """Set what a latent learns besides."""
    if isinstance(latent, BatchTopK):
        latent.threshold.copy_(weights["topk_threshold"])
    elif isinstance(latent, JumpReLU):
        least = torch.finfo(torch.float32).tiny  # of a threshold that is none
        latent.log_threshold.copy_(weights["threshold"].clamp_min(least).log())
    elif isinstance(latent, Gated):
        scale = weights["r_mag"]
        latent.scale.copy_(scale)
        latent.bias.copy_(weights["b_mag"] - scale.exp() * bias)


def _estimator(latent: PartSpec, width: int, reason: str, size: int) -> Autoencoder:
    """Return an estimator that is as fitted to rows of ``width`` numbers as they are."""
    far = (FAR,) * width
    own = Vector(
        width, scale="centred", columns=("x",), mean=(0.0,) * width, std=(1.0,) * width,
        low=tuple(-v for v in far), high=far, dtype="float32",
    )  # fmt: skip
    whole = PartSpec(latent.name, {"size": size, **latent.options})
    ae = Autoencoder(str(whole), recipe="dictionary")
    ae.schema_ = Schema({"x": own}, ("x",), container="numpy")
    penalties = tuple(map(PartSpec, ("gate",) if latent.name == "gated" else ()))
    ae.spec_ = ModelSpec(
        latent, size, PartSpec("dictionary"), {"x": PartSpec("flat")}, {"x": PartSpec("mse")},
        {"x": (1.0,)}, penalties=penalties,
    )  # fmt: skip
    with torch.random.fork_rng([]):
        ae.model_ = ae.spec_.build(ae.schema_).eval()
    ae.recipe_, ae.reasons_, ae.notes_ = "dictionary", (reason,), ()
    ae.plan_, ae.run_ = Plan.choose(1).without_steps(), Run(stopped="it was read, not trained")
    ae.history_, ae.members_, ae.local_ = ae.run_.history, (), None
    ae.quality_, ae.detector_ = Quality(None, None, None, 0), Detector()
    nothing = np.zeros(0)
    codes, parts = np.zeros((0, size), np.float32), np.zeros((0, width), np.float32)
    ae.calibration_ = Calibration(nothing, codes, nothing, parts, held_out=False)
    ae.reference_, ae.n_rows_, ae.n_features_in_ = Reference({}), 0, width
    return ae
