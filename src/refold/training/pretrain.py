"""Layers one pair at a time, weights from a shallower model, and layers held still."""

from __future__ import annotations

import dataclasses
import fnmatch
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn

from refold.backbones.tied import Layer, untie
from refold.data.feed import Feed
from refold.errors import InputError
from refold.fusion import LinearPath
from refold.model import Model
from refold.training.fit import Progress, Run, Watch, fit
from refold.training.plan import Plan
from refold.training.start import start_latent
from refold.types import Batch, Code

LAYERWISE = "layerwise"  # how users name what is done here


@final
class Outer(nn.Module):
    """The outermost pairs of a model's layers, with all that lies inside them left out.

    ``count`` pairs of the body (``body=True``) or of the backbones that have layers. Its parameters
    are the model's own, so what is trained here is in place there.
    """

    def __init__(self, model: Model, count: int, *, body: bool) -> None:
        super().__init__()
        self.model, self.count, self.body = model, count, body

    def set_progress(self, share: float) -> None:
        """Nothing here warms up: costs are those of the fields alone."""

    def weights(self) -> dict[str, float]:
        """Return the model's own."""
        return self.model.weights()

    def forward(self, batch: Batch, target: Batch) -> Shell:
        """Rebuild the fields from the outermost hidden state instead of from the code."""
        m = self.model
        if not self.body:
            layered = {k: b for k, b in m.backbones.items() if len(b.pairs) >= self.count}
            params = {
                k: b.outer(batch.x[k], batch.observed[k], self.count) for k, b in layered.items()
            }
            return Shell(m.field_costs(params, target))
        hidden = {k: b.encode(batch.x[k], batch.observed[k])[0] for k, b in m.backbones.items()}
        outer = m.fusion.outer(hidden, self.count)
        params = {k: b.decode(outer[k], ()) for k, b in m.backbones.items()}
        return Shell(m.field_costs(params, target))


@dataclass
class Shell:
    """What the outermost pairs give: the fields' costs, and no code."""

    costs: dict[str, tuple[Tensor, float]]
    code: Code | None = None


@dataclass(frozen=True)
class Phase:
    """One part of a layer-wise run: what computes, and the modules that learn in it."""

    name: str
    module: nn.Module
    learning: tuple[nn.Module, ...]


def phases(model: Model) -> list[Phase]:
    """Pairs of layers from the outermost to the innermost, each with all outer ones around it.

    Pairs of the backbones come first, then those of the body; the innermost has the latent between
    its two layers. Phases in which nothing could learn are left out. Raises
    :class:`InputError` for a model whose layers do not come in pairs.
    """
    if model.skipping:
        raise InputError(
            f"layers of '{model.skipping[0]}' cannot be trained one by one: skips lead around "
            f"them; use a backbone without skips"
        )
    once = [k for k in model.backbones if k not in model.rebuilt]
    if once:
        raise InputError(
            f"layers cannot be trained one by one here: '{once[0]}' is only an input or only an "
            f"output, so that what leads to it does not mirror what leads from it"
        )
    if not model.fusion.pairs and not any(b.pairs for b in model.backbones.values()):
        raise InputError(
            "there are no layers to train one by one: the body's decoder does not mirror its "
            "encoder; use the fusion 'concat', or backbones with layers of their own"
        )
    found: list[Phase] = []
    depth = max(len(b.pairs) for b in model.backbones.values())
    for count in range(1, depth + 1):
        fresh = [m for b in model.backbones.values() for m in b.pairs[count - 1 : count]]
        found.append(Phase(f"stage {count}", Outer(model, count, body=False), _modules(fresh)))
    pairs = model.fusion.pairs
    bare = [b for b in model.backbones.values() if not b.pairs]
    for count in range(1, len(pairs)):
        also = [*bare, *model.likelihoods.values()] if count == 1 else []
        learning = (*_modules([pairs[count - 1]]), *also)
        found.append(Phase(f"pair {count}", Outer(model, count, body=True), learning))
    if not found:
        raise InputError(
            "there are no layers to train one by one: the model has a single pair; give hidden "
            "layers, as in hidden=(128, 64)"
        )
    inner = _modules(pairs[-1:]) or (model.fusion,)
    found.append(Phase(f"pair {len(pairs)}" if pairs else "code", model, (*inner, model.latent)))
    return [p for p in found if any(w.requires_grad for m in p.learning for w in m.parameters())]


def _modules(pairs: Sequence[tuple[nn.Module, nn.Module]]) -> tuple[nn.Module, ...]:
    return tuple(half for pair in pairs for half in pair)


def fit_layerwise(
    model: Model,
    train: Batch | Feed,
    held_out: Batch | None,
    plan: Plan,
    *,
    share: float = 0.5,
    loosen: bool = False,
    watch: Watch | None = None,
    **options: Any,
) -> Run:
    """Train a model's layers one pair at a time from the outside, then all of them together.

    Every phase trains one pair, with the pairs around it frozen and those inside it left out; all
    phases but the last divide ``share`` of the plan's steps among them, and the last fine-tunes
    everything. With ``loosen`` tied weights are untied before it. The history counts phases and
    goes on counting steps; other options are those of :func:`refold.training.fit.fit`.

    Sources: Hinton & Salakhutdinov 2006; Bengio et al., Greedy Layer-Wise Training of Deep
    Networks, 2007.
    """
    parts = phases(model)
    each = round(share * plan.steps / len(parts))
    whole, done = Run(phases=(*(p.name for p in parts), "all layers")), 0
    for index, phase in enumerate([*parts, Phase("all layers", model, (model,))]):
        final = index == len(parts)
        if phase.module is model and index and parts[index - 1].module is not model:
            rows = train.sample() if isinstance(train, Feed) else train
            start_latent(model, rows)  # what it first met came through layers that knew nothing
        if final and loosen:
            untie(model)
        steps = plan.steps - done if final else each
        with learning_only(model, phase.learning):
            run = fit(
                phase.module,
                train,
                held_out,
                dataclasses.replace(plan, steps=steps, period=max(1, min(plan.period, steps))),
                watch=_shifted(watch, done, plan.steps),
                **options,
            )
        for row in run.history:
            row["phase"] = float(index)
            row["step"] += done
            row["epoch"] += done / plan.steps_per_epoch
            row["seconds"] += whole.seconds
        whole.history += run.history
        whole.seconds += run.seconds
        whole.best, whole.stopped = run.best, run.stopped
        done += int(run.history[-1]["step"]) - done if run.history else steps
        if run.stopped == "interrupted":
            break
    if loosen:
        untie(model)
    return whole


def _shifted(watch: Watch | None, done: int, total: int) -> Watch | None:
    """Let a watcher see one run of ``total`` steps."""
    if watch is None:
        return None

    def see(progress: Progress) -> None:
        step = progress.step + done
        watch(dataclasses.replace(progress, step=step, steps=max(total, step)))

    return see


@contextmanager
def learning_only(model: nn.Module, parts: Sequence[nn.Module]) -> Generator[None]:
    """Let only the parameters in ``parts`` learn; afterwards all that did before do so again.

    What the user froze stays frozen. A tied layer learns with the layer whose weight it uses.
    """
    before = {p: p.requires_grad for p in model.parameters()}
    chosen = {p for part in parts for p in part.parameters()}
    for p, free in before.items():
        p.requires_grad_(free and p in chosen)
    try:
        yield
    finally:
        for p in model.parameters():
            p.requires_grad_(before.get(p, p.requires_grad))


def freeze(model: nn.Module, patterns: Sequence[str]) -> int:
    """Hold still every parameter whose name matches a pattern; return how many there are.

    Names are those of ``model.named_parameters()``, patterns those of a shell
    (``"fusion.down.*"``). Raises :class:`InputError` for a pattern that matches nothing.

    >>> net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    >>> freeze(net, ["0.*"])
    2
    >>> unfreeze(net, ["*.weight"])
    2
    """
    return _let_learn(model, patterns, False)


def unfreeze(model: nn.Module, patterns: Sequence[str]) -> int:
    """Let every parameter whose name matches a pattern learn again; see :func:`freeze`."""
    return _let_learn(model, patterns, True)


def _let_learn(model: nn.Module, patterns: Sequence[str], free: bool) -> int:
    named = dict(model.named_parameters())
    chosen: set[str] = set()
    for pattern in patterns:
        found = fnmatch.filter(named, pattern)
        if not found:
            raise InputError(f"no parameter is called '{pattern}'; there are: {', '.join(named)}")
        chosen.update(found)
    for name in chosen:
        named[name].requires_grad_(free)
    return len(chosen)


def start_from(model: Model, shallower: Model) -> int:
    """Copy a trained model's outer pairs of layers into a model with the same ones.

    Pairs are compared from the outermost inwards, field by field, until one differs in size; what
    lies inside keeps its own start. Returns the number of pairs copied. Raises
    :class:`InputError` where not even the outermost fits.
    """
    if any(path and path.beside for path in map(_linear_path, (model, shallower))):
        raise InputError(
            "cannot start from that model: layers that add to a linear path beside them mean "
            "nothing without it; fit both with fusion='concat(linear=False)', or the shallower "
            "with recipe='stacked'"
        )
    copied = 0
    for name, own in model.backbones.items():
        other = shallower.backbones.get(name)
        if other is None or type(other) is not type(own):
            raise InputError(
                f"cannot start from that model: it has no field '{name}' of the same kind"
            )
        if not own.pairs:
            _copy(own, other)
        fitting = _copy_pairs(own.pairs, other.pairs)
        copied += fitting
        if fitting < max(len(own.pairs), len(other.pairs)):
            return _some(copied, model, shallower)
    copied += _copy_pairs(model.fusion.pairs, shallower.fusion.pairs)
    return _some(copied, model, shallower)


def _some(copied: int, model: Model, shallower: Model) -> int:
    if copied:
        return copied
    if not all(
        m.fusion.pairs or any(b.pairs for b in m.backbones.values()) for m in (model, shallower)
    ):
        raise InputError(
            "cannot start from that model: layers can be taken over only where those of the "
            "decoder mirror those of the encoder; use the fusion 'concat' in both"
        )
    raise InputError(
        f"cannot start from that model: its outermost layers {_widths(shallower)} differ from "
        f"{_widths(model)} here; give the same outer widths"
    )


def _widths(model: Model) -> str:
    """Shapes of the outermost layer's tensors, as messages show them."""
    outer = next((b.pairs for b in model.backbones.values() if b.pairs), model.fusion.pairs)
    return " and ".join(str(tuple(p.shape)) for half in outer[0] for p in half.parameters())


def _copy_pairs(
    own: Sequence[tuple[nn.Module, nn.Module]], other: Sequence[tuple[nn.Module, nn.Module]]
) -> int:
    copied = 0
    for mine, theirs in zip(own, other, strict=False):
        if not all(_alike(a, b) for a, b in zip(mine, theirs, strict=True)):
            break
        for a, b in zip(mine, theirs, strict=True):
            _copy(a, b)
        copied += 1
    return copied


def _linear_path(model: Model) -> LinearPath | None:
    return model.fusion.linear_path()


def _lead(block: nn.Module) -> Layer | None:
    """Return the layer with a weight that a block is named for."""
    return next((m for m in block.modules() if isinstance(m, Layer)), None)


def _alike(mine: nn.Module, theirs: nn.Module) -> bool:
    """Whether the layer that leads a block is of the same shape; norms after it may be fewer."""
    a, b = _lead(mine), _lead(theirs)
    return a is not None and b is not None and a.weight.shape == b.weight.shape


@torch.no_grad()
def _copy(mine: nn.Module, theirs: nn.Module) -> None:
    """Copy what is of the same name and shape, and the leading weight even where it is tied."""
    state = theirs.state_dict()
    mine.load_state_dict(
        {k: state[k] if k in state and state[k].shape == v.shape else v
         for k, v in mine.state_dict().items()}
    )  # fmt: skip
    a, b = _lead(mine), _lead(theirs)
    if a is not None and b is not None and type(a) is not type(b):
        a.weight.copy_(b.weight)
