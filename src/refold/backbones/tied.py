"""Tied weights: a decoder's layer uses the transpose of its encoder's weight, and its own bias.

Works on any torch modules. A tied layer stays the object it was, wherever it is held; it only looks
its weight up in the encoder's layer, which owns it. So the shared weight appears once among the
parameters and in the state, and its gradient sums both uses.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias, cast

from torch import Tensor, nn

from refold.backbones.attention import SelfAttention2d
from refold.errors import InputError

Layer: TypeAlias = nn.Linear | nn.Conv2d | nn.ConvTranspose2d


class TiedLinear(nn.Linear):
    """A linear layer whose weight is the transpose of another's."""

    source: tuple[Layer]  # in a tuple, so that torch does not register the layer a second time

    @property
    def weight(self) -> Tensor:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The encoder's weight, transposed: a view."""
        return self.source[0].weight.t()


class TiedConvTranspose2d(nn.ConvTranspose2d):
    """A transposed convolution with a convolution's own weight: its adjoint."""

    source: tuple[Layer]

    @property
    def weight(self) -> Tensor:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The encoder's weight, of the same shape."""
        return self.source[0].weight


class TiedConv2d(nn.Conv2d):
    """A convolution with another's weight, channels swapped and turned by half a circle."""

    source: tuple[Layer]

    @property
    def weight(self) -> Tensor:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The encoder's weight as its adjoint uses it."""
        return self.source[0].weight.transpose(0, 1).flip(2, 3)


TIED: dict[tuple[type[nn.Module], type[nn.Module]], type[nn.Module]] = {
    (nn.Linear, nn.Linear): TiedLinear,
    (nn.Conv2d, nn.ConvTranspose2d): TiedConvTranspose2d,
    (nn.Conv2d, nn.Conv2d): TiedConv2d,
}
PLAIN: dict[type[nn.Module], type[nn.Module]] = {tied: own for (_, own), tied in TIED.items()}


def matching(encoder: nn.Module, decoder: nn.Module) -> list[tuple[str, str]]:
    """Names of the layers that mirror each other, from the outermost pair to the innermost.

    The i-th layer with a weight matrix or kernel of the encoder meets the i-th last of the decoder,
    in the order in which the modules hold them, whatever their nesting and names; those inside
    attention blocks do not count.

    >>> matching(nn.Sequential(nn.Linear(4, 2), nn.ReLU(), nn.Linear(2, 1)),
    ...          nn.Sequential(nn.Linear(1, 2), nn.ReLU(), nn.Linear(2, 4)))
    [('0', '2'), ('2', '0')]
    """
    return list(zip(_layers(encoder), reversed(list(_layers(decoder))), strict=False))


def tie(encoder: nn.Module, decoder: nn.Module, layers: Sequence[int] | None = None) -> None:
    r"""Let layers of the decoder use the weights of the encoder's layers they mirror.

    .. math:: h = f(W x + b), \qquad \hat x = g(W^\top h + b')

    ``layers`` counts pairs from the outermost, 0, to the innermost; None ties all. A convolution
    lends its kernel to a transposed convolution as it is, to a convolution turned by half a circle.
    What is tied already stays. Raises :class:`InputError`, and changes nothing, where the two are
    not mirrors of each other.

    >>> net = nn.ModuleDict({"down": nn.Linear(4, 2), "up": nn.Linear(2, 4)})
    >>> tie(net["down"], net["up"])
    >>> sorted(net.state_dict())
    ['down.bias', 'down.weight', 'up.bias']
    """
    pairs = matching(encoder, decoder)
    ends = [len(list(_layers(m))) for m in (encoder, decoder)]
    if layers is None and ends[0] != ends[1]:
        raise InputError(
            f"cannot tie {ends[0]} layers of the encoder to {ends[1]} of the decoder; mirror them, "
            f"or name the pairs to tie, counted from the outermost: layers=(0,)"
        )
    if not pairs:
        raise InputError("there is nothing to tie: no layer with a weight on both sides")
    chosen = range(len(pairs)) if layers is None else layers
    for i in chosen:
        if not 0 <= i < len(pairs):
            raise InputError(
                f"there is no pair {i} to tie; pairs count from 0, the outermost, to "
                f"{len(pairs) - 1}"
            )
    for mine, other in [_checked(encoder, decoder, *pairs[i]) for i in chosen]:
        _bind(mine, other)


def tie_pairs(model: nn.Module, pairs: Sequence[tuple[str, str]]) -> None:
    """Tie layers of one model by name, (owner, user): how a saved model finds its ties again."""
    for mine, other in [_checked(model, model, *pair) for pair in pairs]:
        _bind(mine, other)


def untie(module: nn.Module, layers: Sequence[str] | None = None) -> None:
    """Give tied layers in a module weights of their own, equal to those they used.

    Outputs stay the same to the last bit, biases stay what they are, and a copy of a frozen weight
    is frozen. ``layers`` holds names as in ``module.named_modules()``; None: all that are tied.
    Raises :class:`InputError` for a name that is not tied.

    >>> net = nn.Sequential(nn.Linear(4, 2), nn.Linear(2, 4))
    >>> tie(net[0], net[1])
    >>> untie(net)
    >>> sorted(net.state_dict())
    ['0.bias', '0.weight', '1.bias', '1.weight']
    """
    found = {name: m for name, m in module.named_modules() if type(m) in PLAIN}
    for name in found if layers is None else layers:
        if name not in found:
            raise InputError(f"layer '{name}' is not tied; tied are: {', '.join(found) or 'none'}")
        _release(found[name])


def ties(model: nn.Module) -> tuple[tuple[str, str], ...]:
    """Every tie in a model, as names of the layer that owns the weight and of the one that uses it.

    >>> net = nn.Sequential(nn.Linear(4, 2), nn.Linear(2, 4))
    >>> tie(net[0], net[1])
    >>> ties(net)
    (('0', '1'),)
    """
    names = {m: name for name, m in model.named_modules()}
    return tuple(
        (names[cast(Any, m).source[0]], name)
        for m, name in names.items()
        if type(m) in PLAIN and cast(Any, m).source[0] in names
    )


def _layers(module: nn.Module) -> Iterator[str]:
    """Names of the layers with a weight, in order, leaving out what is inside attention."""
    inside = [f"{name}." for name, m in module.named_modules() if isinstance(m, SelfAttention2d)]
    for name, m in module.named_modules():
        if isinstance(m, Layer) and not name.startswith(tuple(inside)):
            yield name


def _checked(encoder: nn.Module, decoder: nn.Module, mine: str, other: str) -> tuple[Layer, Layer]:
    """Return the two layers by name, after checking that one can be the transpose of the other."""
    a, b = encoder.get_submodule(mine), decoder.get_submodule(other)
    assert isinstance(a, Layer)
    assert isinstance(b, Layer)
    own = PLAIN.get(type(b), type(b))
    if (nn.Linear if isinstance(a, nn.Linear) else nn.Conv2d, own) not in TIED:
        raise InputError(
            f"cannot tie {type(b).__name__} '{other}' to {type(a).__name__} '{mine}': linear "
            f"layers tie to linear ones, convolutions to convolutions without weight normalisation"
        )
    _check_sizes(a, b, mine, other)
    return a, b


def _check_sizes(a: Layer, b: Layer, mine: str, other: str) -> None:
    mine, other = mine or "the encoder's layer", other or "the decoder's layer"
    turned = isinstance(b, nn.ConvTranspose2d)
    shape = tuple(a.weight.shape)
    needed = shape if turned else (shape[1], shape[0], *shape[2:])
    if needed != tuple(b.weight.shape):
        raise InputError(
            f"cannot tie '{other}' to '{mine}': their weights are {_size(b)} and {_size(a)}, which "
            f"are not mirrors of each other; make the decoder symmetric, or tie other pairs"
        )
    if isinstance(a, nn.Linear) or isinstance(b, nn.Linear):
        return
    if a.groups != 1 or b.groups != 1 or a.dilation != (1, 1) or b.dilation != (1, 1):
        raise InputError(
            f"cannot tie '{other}' to '{mine}': grouped and dilated convolutions cannot be tied"
        )
    if turned and a.stride != b.stride:
        raise InputError(
            f"cannot tie '{other}' to '{mine}': their strides are {b.stride} and {a.stride}; "
            f"use equal strides"
        )


def _size(layer: Layer) -> str:
    inputs, outputs = (
        (layer.in_features, layer.out_features)
        if isinstance(layer, nn.Linear)
        else (layer.in_channels, layer.out_channels)
    )
    kernel = "" if isinstance(layer, nn.Linear) else f" by {'x'.join(map(str, layer.kernel_size))}"
    return f"{inputs} to {outputs}{kernel}"


def _bind(source: Layer, layer: Layer) -> None:
    """Turn a layer into one that looks its weight up, in place: whoever holds it keeps it."""
    if type(layer) in PLAIN:
        cast(Any, layer).source = (source,)
        return
    kind = TIED[(nn.Linear if isinstance(source, nn.Linear) else nn.Conv2d, type(layer))]
    del layer.weight
    layer.__class__ = cast(Any, kind)
    cast(Any, layer).source = (source,)


def _release(layer: nn.Module) -> None:
    """Turn a tied layer back into a plain one with a copy of the weight."""
    tied = cast(Any, layer)
    frozen = not tied.source[0].weight.requires_grad
    # The strides are kept: a product with a transposed matrix may round differently.
    weight = nn.Parameter(tied.weight.detach().clone(), requires_grad=not frozen)
    bias = tied.bias
    del tied.source
    layer.__class__ = cast(Any, PLAIN[type(layer)])
    del tied.bias  # so that the weight comes first again
    layer.register_parameter("weight", weight)
    layer.register_parameter("bias", bias)
