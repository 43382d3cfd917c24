"""Aids for whoever doubts a model: gradients, dead units, layers that give no numbers."""

from __future__ import annotations

import copy
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from refold.errors import InputError
from refold.model import Model
from refold.ops.ranks import whole
from refold.types import Batch, Code

TOLERANCE = 1e-4  # relative; a wrong gradient is off by far more, a right one by far less
STEP = 1e-6  # of the numerical derivative, in double precision


def gradient_norms(model: nn.Module) -> dict[str, float]:
    r"""Norm of the loss's gradient with respect to each layer's own parameters, by layer.

    .. math:: g_\ell = \sqrt{\textstyle\sum_{p \in \ell} \lVert \partial L / \partial p \rVert^2}

    Read from the gradients of the last backward pass; layers without any are left out.

    >>> layer = nn.Sequential(nn.Linear(2, 1, bias=False))
    >>> layer(torch.tensor([[3.0, 4.0]])).sum().backward()
    >>> gradient_norms(layer)
    {'0': 5.0}
    """
    squares: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            layer = name.rpartition(".")[0]
            square = whole(parameter.grad.detach()).float().square().sum()
            squares[layer] = squares[layer] + square if layer in squares else square
    if not squares:
        return {}
    norms = torch.stack(list(squares.values())).sqrt().tolist()
    return dict(zip((spoken(model, k) for k in squares), norms, strict=True))


def spoken(model: nn.Module, layer: str) -> str:
    """Name a layer of a :class:`Model`, or of a module that holds one, by its field."""
    for prefix, held in model.named_modules():
        if isinstance(held, Model):
            inner = layer.removeprefix(f"{prefix}.") if prefix else layer
            kind, _, rest = inner.partition(".")
            if kind not in ("_backbones", "_likelihoods"):
                return inner
            index, _, rest = rest.partition(".")
            head = kind == "_likelihoods"
            name = (held.outputs if head else tuple(held.backbones))[int(index)]
            return ".".join([name, *(["likelihood"] if head else []), *([rest] if rest else [])])
    return layer


@torch.no_grad()
def dead_units(model: Model, rows: Batch) -> dict[str, int]:
    """Count the units that never change over ``rows``: of every activation layer, and of the code.

    A unit that gives the same number for every row says nothing; behind a rectifier that number
    is zero. Keys are layers' names and ``"latent"``; only layers with dead units are named.
    """
    counts: dict[str, int] = {}

    def count(name: str, values: Tensor) -> None:
        flat = values.flatten(0, -2) if values.ndim == 2 else values.transpose(0, 1).flatten(1).T
        dead = int((flat == flat[:1]).all(0).sum())
        if dead:
            counts[spoken(model, name)] = dead

    kinds = (nn.ReLU, nn.LeakyReLU, nn.ELU, nn.SELU, nn.GELU, nn.SiLU, nn.Tanh, nn.Sigmoid)
    watched = {k: m for k, m in model.named_modules() if isinstance(m, kinds)}
    was = model.training
    model.eval()
    with _watching(watched, count):
        count("latent", model(rows).code.z)
    model.train(was)
    return counts


@torch.no_grad()
def first_broken_layer(model: nn.Module, rows: Batch) -> str | None:
    """Name of the first layer, in the order of computation, that gives a value that is no number.

    None where every layer's outputs are finite.
    """
    broken: list[str] = []

    def look(name: str, values: Tensor) -> None:
        if not torch.isfinite(values).all():
            broken.append(name)

    leaves = {k: m for k, m in model.named_modules() if not list(m.children())}
    with _watching(leaves, look):
        model(rows, rows)
    return spoken(model, broken[0]) if broken else None


@contextmanager
def _watching(
    layers: Mapping[str, nn.Module], look: Callable[[str, Tensor], None]
) -> Generator[None]:
    """Call ``look`` with the name and the output of each layer that runs."""

    def hook(name: str) -> Callable[..., None]:
        def see(_: nn.Module, __: Any, output: Any) -> None:
            values = output.z if isinstance(output, Code) else output
            if isinstance(values, Tensor):
                look(name, values)

        return see

    handles = [layer.register_forward_hook(hook(name)) for name, layer in layers.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def check_gradients(part: nn.Module | Callable[..., Any], *inputs: Any, seed: int = 0) -> float:
    r"""Compare a part's gradients with numerical ones; return the largest relative difference.

    .. math:: \frac{\partial f}{\partial x_i} \approx \frac{f(x + \epsilon e_i)
              - f(x - \epsilon e_i)}{2 \epsilon}

    ``part`` is any module or function of tensors; ``inputs`` are what it takes. It is copied,
    turned to double precision and asked for every tensor it gives (a :class:`refold.types.Code`
    gives its code, terms and aux); :math:`f` is a fixed random combination of all their entries,
    and every floating-point input and trainable parameter is checked. Random draws are the same
    in every call. Raises :class:`InputError` that names the tensor whose gradient is wrong, where
    the difference is above 1e-4 of the largest gradient.

    >>> check_gradients(nn.Linear(3, 2), torch.randn(4, 3)) < 1e-6
    True
    """
    with torch.random.fork_rng([]):
        return _compare(part, inputs, seed)


def _compare(part: nn.Module | Callable[..., Any], inputs: tuple[Any, ...], seed: int) -> float:
    own = copy.deepcopy(part).double() if isinstance(part, nn.Module) else part
    if isinstance(own, nn.Module):
        for p in own.parameters():  # an untied weight lies as its transpose did
            p.data = p.data.contiguous()
    given = [_doubled(x) for x in inputs]
    leaves = {f"input {i}": x for i, x in enumerate(given) if _floating(x)}
    if isinstance(own, nn.Module):
        leaves |= {k: p for k, p in own.named_parameters() if p.requires_grad}

    def value() -> Tensor:
        torch.manual_seed(seed)
        # Copies, because a part may begin with an operation in place.
        outputs = list(_tensors(own(*(x.clone() if _floating(x) else x for x in given))))
        torch.manual_seed(seed + 1)
        return torch.stack([(o * torch.randn_like(o)).sum() for o in outputs]).sum()

    whole = value()
    if not whole.requires_grad:
        raise InputError(
            f"nothing that was given ({', '.join(leaves)}) reaches the output; look for a detach"
        )
    exact = torch.autograd.grad(
        whole, list(leaves.values()), allow_unused=True, materialize_grads=True
    )
    worst = 0.0
    for (name, leaf), got in zip(leaves.items(), exact, strict=True):
        numeric = _numerical(value, leaf)
        scale = max(float(numeric.abs().max()), float(got.abs().max()), 1e-8)
        off = float((got - numeric).abs().max()) / scale
        if not off <= TOLERANCE:
            raise InputError(
                f"the gradient with respect to {name} is wrong: autograd and finite differences "
                f"differ by {off:.2g} of the largest entry; look for a detach, an operation in "
                f"place, or a kink at the input given"
            )
        worst = max(worst, off)
    return worst


@torch.no_grad()
def _numerical(value: Callable[[], Tensor], leaf: Tensor) -> Tensor:
    flat = leaf.detach().view(-1)
    numeric = torch.zeros_like(flat)
    for i in range(flat.numel()):
        kept = float(flat[i])
        flat[i] = kept + STEP
        above = value()
        flat[i] = kept - STEP
        numeric[i] = (above - value()) / (2 * STEP)
        flat[i] = kept
    return numeric.view_as(leaf)


def _floating(x: Any) -> bool:
    return isinstance(x, Tensor) and x.is_floating_point()


def _doubled(x: Any) -> Any:
    if not _floating(x):
        return x
    return x.detach().double().clone(memory_format=torch.contiguous_format).requires_grad_()


def _tensors(output: Any) -> Iterator[Tensor]:
    """Every floating-point tensor in what a part gives."""
    if _floating(output):
        yield output
    elif isinstance(output, Code):
        yield from _tensors([output.z, output.terms, output.aux])
    elif isinstance(output, Mapping):
        yield from _tensors(list(output.values()))
    elif isinstance(output, list | tuple):
        for each in output:
            yield from _tensors(each)


@dataclass(frozen=True)
class Overfit:
    """Loss on one batch ``before`` and ``after`` training on nothing else, in ``steps`` steps."""

    before: float
    after: float
    steps: int

    @property
    def share(self) -> float:
        """Share of the loss that is left: near 0 where a model can learn the batch by heart."""
        return self.after / self.before


def overfit_one_batch(model: Model, rows: Batch, *, steps: int = 300, lr: float = 3e-3) -> Overfit:
    """Train a copy of a model on one batch alone: what cannot learn that cannot learn anything.

    The quickest test of a new part. A share near zero says that gradients arrive and the parts
    fit together; a share near one that they do not, or that the bottleneck is too narrow even for
    these rows. The model itself is not changed.
    """
    own = copy.deepcopy(model)
    trainable = [p for p in own.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(trainable, lr=lr)

    def loss() -> float:
        own.eval()
        with torch.no_grad():
            return float(own(rows).loss)

    before = loss()
    own.train()
    for _ in range(steps):
        optimizer.zero_grad()
        own(rows).loss.backward()
        optimizer.step()
    return Overfit(before, loss(), steps)
