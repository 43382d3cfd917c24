"""What held-out rows cost, and figures of their codes."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn

from refold.data.corruptions import Corruption
from refold.errors import InputError
from refold.fusion import Fusion
from refold.latents import Latent, readings
from refold.likelihoods import Likelihood
from refold.training.checks import first_broken_layer
from refold.training.totals import Row, Totals
from refold.types import Batch, Code, Costs

DRAWS = 1024  # rows that tell of a model under a corruption that hides
VALIDATION_ROWS = 8192  # rows in one forward pass of the evaluation
VALIDATION_NUMBERS = 1 << 24  # and numbers, where the outputs are wider than 2,048


class Outcome(Protocol):
    """What a forward pass gives the loop: costs, and the code if there is one."""

    code: Code | None

    @property
    def costs(self) -> Costs:
        """Every cost by name."""
        ...


@torch.no_grad()
def evaluate(
    model: nn.Module,
    rows: Batch,
    corruption: Corruption | None,
    seed: int,
    inputs: Batch | None = None,
    portion: int = VALIDATION_ROWS,
) -> tuple[Row, Row]:
    """Mean over the rows of the loss and of every term, and figures of the code.

    There is one fixed draw of the corruption. A latent that is relaxed in evaluation is constrained
    here as in training, over ``portion`` rows at a time and with one fixed draw too. ``dead_units``
    counts the entries of the code that are zero in every row; gauges read what the latent says of
    each row.
    """
    model.eval()
    growing = [(m, m.progress) for m in model.modules() if isinstance(m, Latent)]
    for part in relaxed(model):
        part.train()
    for latent, _ in growing:
        latent.progress = 1.0  # costs that grow in count in full
    totals = Totals()
    device = next(iter(rows.x.values())).device
    draw = torch.Generator(device).manual_seed(seed + 1)
    alive: Tensor | None = None
    stats: dict[str, list[Tensor]] = {}
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed + 1)
        for start in range(0, len(rows), portion):
            at = slice(start, start + portion)
            clean = rows.rows(at)
            batch = clean if inputs is None else inputs.rows(at)
            if corruption is not None:
                batch = corruption(batch, draw)
                clean = corruption.target(clean, batch)
            output: Outcome = model(batch, clean)
            totals.add(output.costs, len(clean))
            if output.code is not None:
                active = (output.code.z != 0).any(0)
                alive = active if alive is None else alive | active
                for name, value in output.code.stats.items():
                    stats.setdefault(name, []).append(value.detach())
    for latent, progress in growing:
        latent.progress = progress
    means = totals.means()
    if alive is None:
        return means, {}
    return means, {"dead_units": float((~alive).sum()), **readings(stats)}


def under_draws(rows: Batch, inputs: Batch | None) -> tuple[Batch, Batch | None]:
    """Repeat rows where they are few: what is hidden in them is luck, so each has several draws."""
    if len(rows) >= DRAWS:
        return rows, inputs
    device = next(iter(rows.x.values())).device
    again = torch.arange(-(-DRAWS // len(rows)) * len(rows), device=device) % len(rows)
    return rows.rows(again), None if inputs is None else inputs.rows(again)


def portion_of(model: nn.Module) -> int:
    """Rows in one forward pass of the evaluation of a model with outputs or a code that wide."""
    width = sum(m.width for m in model.modules() if isinstance(m, Likelihood | Latent))
    return max(1, min(VALIDATION_ROWS, VALIDATION_NUMBERS // max(1, width)))


def relaxed(model: nn.Module) -> list[nn.Module]:
    """Return the latents and bodies whose constraint holds in training only."""
    return [m for m in model.modules() if isinstance(m, Latent | Fusion) and m.relaxed]


def refuse_nan(row: Row, model: nn.Module, rows: Batch) -> None:
    """Raise for a loss that is no number, naming the field or term and the layer to blame."""
    wrong = [
        k for k, v in row.items()
        if k.startswith(("train_", "valid_")) and (v != v or abs(v) == float("inf"))
    ]  # fmt: skip
    if not wrong:
        return
    terms = dict.fromkeys(k.partition("_")[2] for k in wrong)
    terms.pop("loss", None)
    layer = first_broken_layer(model, rows.rows(slice(0, portion_of(model))))
    where = "" if layer is None else f" (first in layer {layer})"
    raise InputError(
        f"training left the range of numbers at step {row['step']:.0f}, in the cost of "
        f"{' and '.join(repr(t) for t in terms) or 'a batch'}{where}; use a smaller lr"
    )
