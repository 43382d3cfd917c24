"""refold: fold data into a small code and unfold it again.

>>> import refold
>>> ae = refold.Autoencoder(latent=2)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from refold.version import VERSION as __version__

if TYPE_CHECKING:
    from refold import backbones, detection, fields, latents, likelihoods, penalties, pyod, saelens
    from refold.comparison import compare
    from refold.data import corruptions
    from refold.data.pairs import Pairs
    from refold.data.windows import per_step, windows
    from refold.errors import InputError, InputWarning
    from refold.estimator import Autoencoder, load
    from refold.monitor import Monitor
    from refold.recipe import recipes
    from refold.report import figures
    from refold.training import checks
    from refold.uses import restore

# Imported when first used, so that the command line answers before torch is loaded. A name is at
# home in a module, or is a module itself.
_HOMES = {
    "Autoencoder": "refold.estimator",
    "InputError": "refold.errors",
    "InputWarning": "refold.errors",
    "Monitor": "refold.monitor",
    "Pairs": "refold.data.pairs",
    "compare": "refold.comparison",
    "load": "refold.estimator",
    "per_step": "refold.data.windows",
    "recipes": "refold.recipe",
    "windows": "refold.data.windows",
}
_ROOMS = {
    "backbones": "refold.backbones",
    "checks": "refold.training.checks",
    "corruptions": "refold.data.corruptions",
    "detection": "refold.detection",
    "fields": "refold.fields",
    "figures": "refold.report.figures",
    "latents": "refold.latents",
    "likelihoods": "refold.likelihoods",
    "penalties": "refold.penalties",
    "pyod": "refold.pyod",
    "restore": "refold.uses.restore",
    "saelens": "refold.saelens",
}

__all__ = [
    "Autoencoder",
    "InputError",
    "InputWarning",
    "Monitor",
    "Pairs",
    "__version__",
    "backbones",
    "checks",
    "compare",
    "corruptions",
    "detection",
    "fields",
    "figures",
    "latents",
    "likelihoods",
    "load",
    "penalties",
    "per_step",
    "pyod",
    "recipes",
    "restore",
    "saelens",
    "windows",
]


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return importlib.import_module(_ROOMS[name])
    if name not in _HOMES:
        raise AttributeError(f"module 'refold' has no attribute '{name}'")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
