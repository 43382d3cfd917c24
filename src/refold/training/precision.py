"""When matrices are multiplied in bfloat16, and until when."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from refold import processes
from refold.model import Model
from refold.training.machine import fast_bfloat16
from refold.training.plan import Plan
from refold.training.steps.dictionary import suits

GAP = 0.01  # relative difference of held-out losses in two formats that is still the same
WIDE = 2e8  # floating-point operations of a step from which rounding its tensors pays
ROWS = 2048  # held-out rows that are looked at
SMALL = "the network is too small to gain from bfloat16"
EXACT = "the steps of this dictionary are exact, and bfloat16 only finds what may be active"


class Caution:
    r"""bfloat16 for as long as the held-out rows cost the same in it, then single precision.

    .. math:: |L_{16} - L_{32}| \le 0.01 \, |L_{32}|

    Both losses are of the same weights, at every evaluation; where they differ by more, what
    rounding adds to gradients is no longer small against what is left to learn, and the rest of the
    run is in single precision. Weights, sums and the optimiser are in single precision throughout.

    >>> caution = Caution()
    >>> caution.look(100, 2.0, 2.01), caution.look(200, 0.1, 0.12), caution.look(300, 0.1, 0.1)
    (True, False, False)
    >>> caution.sentence()
    'bfloat16 until step 200, where held-out rows cost 0.12 in it and 0.1 in single precision'
    """

    def __init__(self) -> None:
        self.low = True
        self.seen: tuple[int, float, float] | None = None

    def look(self, step: int, full: float, low: float) -> bool:
        """Take note of a loss in both formats; return whether to go on in bfloat16."""
        if self.low:
            self.low, self.seen = abs(low - full) <= GAP * abs(full), (step, full, low)
        return self.low

    def sentence(self) -> str:
        """Say what was done."""
        if self.seen is None:
            return "single precision, as where the run began"
        step, full, low = self.seen
        costs = f"held-out rows cost {low:.4g} in it and {full:.4g} in single precision"
        if self.low:
            return f"matrix products of training in bfloat16: at the end {costs}"
        return f"bfloat16 until step {step}, where {costs}"


@dataclass(frozen=True)
class Precision:
    """Number format of the matrix products of a run: ``bfloat16`` or single, or for as long as.

    ``caution`` looks on where nobody said; ``why`` says in words what is used. ``said`` is False
    where nobody would expect anything else.
    """

    bfloat16: bool
    caution: Caution | None
    why: str
    said: bool = True

    @classmethod
    def of(
        cls, wish: str, model: nn.Module, plan: Plan, device: torch.device, *, plain: bool = True
    ) -> Precision:
        """Decide by what was asked for, ``"auto"`` as well, and by whom (``"bfloat16: recipe"``).

        ``plain`` is False for runs in parts, which have no one to look on.
        """
        asked, _, whose = wish.partition(": ")
        because = f"{whose} asks for it" if whose else f"precision='{asked}'"
        if not plan.steps:
            return cls(False, None, "nothing was trained", said=False)
        if asked == "float32":
            return cls(False, None, f"single precision: {because}")
        if asked == "bfloat16" and selective(model, plan, device):
            return cls(True, None, f"precision='bfloat16' has no effect: {EXACT}")
        if asked == "bfloat16":
            return cls(True, None, f"matrix products of training in bfloat16: {because}")
        found = against(model, plan, device)
        if found is None and not plain:
            found = "layers are trained one by one"
        if found is not None:
            return cls(False, None, f"single precision: {found}", said=found != SMALL)
        return cls(False, Caution(), "")

    def sentence(self) -> str:
        """Say what was used, after the run."""
        return self.why if self.caution is None else self.caution.sentence()


def against(model: nn.Module, plan: Plan, device: torch.device) -> str | None:
    """Say what speaks against bfloat16; None where a step is mostly large products that gain."""
    if not isinstance(model, Model):
        return "the model is no autoencoder of refold"
    if 6 * plan.batch_size * sum(p.numel() for p in model.parameters()) < WIDE:
        return SMALL
    if selective(model, plan, device):
        return EXACT
    if model.fusion.constrained:
        return "bfloat16 is not for dictionaries"
    if any(isinstance(m, nn.RNNBase | nn.MultiheadAttention) for m in model.modules()):
        return "bfloat16 is not for recurrent layers and attention"
    return None if fast_bfloat16(device) else f"this {device.type} is no faster in bfloat16"


def selective(model: nn.Module, plan: Plan, device: torch.device) -> bool:
    """Whether a run's steps are those of a dictionary, computed for what is active alone."""
    return processes.count() == 1 and suits(model, plan, device)
