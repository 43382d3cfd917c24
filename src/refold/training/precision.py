"""When matrices are multiplied in bfloat16, and until when."""

from __future__ import annotations

import torch
from torch import nn

from refold.model import Model
from refold.training.machine import fast_bfloat16

GAP = 0.01  # relative difference of held-out losses in two formats that is still the same
WIDE = 2e8  # floating-point operations of a step from which rounding its tensors pays
ROWS = 2048  # held-out rows that are looked at


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


def pays(model: nn.Module, batch_size: int, device: torch.device) -> bool:
    """Whether a step is mostly products of matrices large enough to gain from bfloat16."""
    if not isinstance(model, Model) or not fast_bfloat16(device):
        return False
    steps = any(isinstance(m, nn.RNNBase | nn.MultiheadAttention) for m in model.modules())
    operations = 6 * batch_size * sum(p.numel() for p in model.parameters())
    return operations >= WIDE and not steps and not model.fusion.constrained
