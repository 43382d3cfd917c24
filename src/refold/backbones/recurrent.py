"""Recurrent encoder and decoder of sequences: step by step there, and step by step back."""

from __future__ import annotations

from typing import Any, TypeAlias, cast, final

import torch
from torch import Tensor, nn

from refold.backbones.base import Backbone, Geometry, Pairs, Skips, register, with_mask
from refold.errors import InputError, unknown

Cell: TypeAlias = nn.LSTM | nn.GRU
CELLS: dict[str, type[Cell]] = {"lstm": nn.LSTM, "gru": nn.GRU}
ORDERS = ("forward", "reversed")


@final
@register("recurrent")
class Recurrent(Backbone):
    r"""Recurrent layers that read a sequence into a state, and others that write it out of one.

    .. math:: s_t = f(s_{t-1}, x_t), \quad c = s_T, \qquad
              r_t = g(r_{t-1}, [c', y_{t-1}]), \quad \text{params}_t = W r_t + b, \quad
              r_0 = \tanh c'

    For series ``[B, T, C]`` of numbers, and for texts ``[B, T]`` of classes that all have the same
    levels, each a learnt vector of ``width`` numbers. Both halves are ``layers`` of ``width``
    units, of ``cell`` ``"lstm"`` or ``"gru"``; ``bidirectional`` has other layers read backwards,
    and the state of both ways is twice as wide. ``dropout`` acts on what a layer gives to the next,
    not on what it tells itself. Rows end at their last visible step: what stands after it is not
    read, and a row without one has a state of zeros. A gap before it is zero, and where entries can
    be missing a mask per step and channel says so; a missing class has a vector of its own.

    ``order="reversed"`` writes the last step first, which the state remembers best. The decoder
    sees :math:`c'` at every step; with ``teacher=0`` that is all, and there is no :math:`y`. With
    ``teacher`` above 0 it also sees the step before: in training the true one with that
    probability, at each step and row anew, and its own otherwise (the first ``C`` outputs of a
    series, for most likelihoods where the value is expected; the likeliest class of a text). In
    evaluation it always goes by its own, as it must where there is but a code, so with
    ``teacher=1`` it was never trained for what it then meets. Raises :class:`InputError`.

    Sources: Srivastava, Mansimov & Salakhutdinov 2015 (arXiv:1502.04681); Cho et al. 2014
    (arXiv:1406.1078) for a state that is seen at every step; Bengio et al. 2015 (arXiv:1506.03099)
    for ``teacher``; Zaremba et al. 2014 (arXiv:1409.2329) for dropout; Jozefowicz et al. 2015 for
    forget gates that begin open.

    >>> series = Geometry(shape=(20, 3), sizes=(1,) * 60, params=60, missing=False)
    >>> spine = Recurrent(series, cell="gru", width=8, bidirectional=True)
    >>> h, _ = spine.encode(torch.zeros(5, 20, 3), None)
    >>> h.shape, spine.decode(torch.zeros(5, spine.decoded), ()).shape
    (torch.Size([5, 16]), torch.Size([5, 60]))
    """

    def __init__(
        self,
        geometry: Geometry,
        *,
        cell: str = "lstm",
        width: int = 64,
        layers: int = 1,
        bidirectional: bool = False,
        order: str = "forward",
        teacher: float = 0.0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(geometry)
        self.cell, self.width, self.layers, self.bidirectional = cell, width, layers, bidirectional
        self.order, self.teacher, self.dropout = order, teacher, dropout
        self._check()
        self.steps, self.channels = geometry.shape[0], 1
        self.levels = geometry.sizes[0]
        if self.levels == 1:
            self.channels = geometry.shape[1]
        outputs, rest = divmod(geometry.params, self.steps)
        assert rest == 0
        self.drop = nn.Dropout(dropout)
        told = self.channels * (2 if geometry.missing else 1)
        ways = 2 if bidirectional else 1
        if geometry.reads:
            if self.levels > 1:
                self.table = _vectors(self.levels, width)
            inner = [told if self.levels == 1 else width, *[width * ways] * (layers - 1)]
            self.encoder = nn.ModuleList(
                nn.ModuleList(_cell(cell, inputs, width) for _ in range(ways)) for inputs in inner
            )
        if not geometry.writes:
            return
        fed = 0
        if teacher > 0:
            fed = self.channels if self.levels == 1 else width
            if self.levels > 1:
                self.spoken = _vectors(self.levels, width)
        inner = [width + fed, *[width] * (layers - 1)]
        self.decoder = nn.ModuleList(_cell(cell, inputs, width) for inputs in inner)
        self.last = nn.Linear(width, outputs)

    @property
    def encoded(self) -> int:
        """One state, or that of either way."""
        return self.width * (2 if self.bidirectional else 1)

    @property
    def decoded(self) -> int:
        """Return the width of a layer."""
        return self.width

    @property
    def pairs(self) -> Pairs:
        """No layer undoes another."""
        return ()

    @property
    def skipping(self) -> bool:
        """Nothing that is needed passes beside the code; the truth is told in training alone."""
        return False

    def encode(self, x: Tensor, visible: Tensor | None) -> tuple[Tensor, Skips]:
        """Read to the last visible step; beside the state, in training, what a teacher tells."""
        lengths = None if visible is None else self._lengths(visible)
        h = self._seen(x, visible)
        finals: list[Tensor] = []
        for depth, ways in enumerate(self.encoder, 1):
            onwards, *backwards = cast(nn.ModuleList, ways)
            # Backwards, a row begins at its own end.
            outs = [onwards(h)[0], *(reader(_flipped(h, lengths))[0] for reader in backwards)]
            finals = [_at_end(out, lengths) for out in outs]
            if depth < self.layers:
                outs[1:] = [_flipped(out, lengths) for out in outs[1:]]
                h = self.drop(torch.cat(outs, 2))
        told = self.training and self.teacher > 0 and self.geometry.writes
        return self.drop(torch.cat(finals, 1)), (self._truth(x, visible),) if told else ()

    def decode(self, h: Tensor, skips: Skips) -> Tensor:
        """Write all steps; without the truth beside the state each goes by what was written."""
        if self.teacher == 0:
            params = self._written(h.unsqueeze(1).expand(-1, self.steps, -1), self._begun(h))[0]
        elif skips and self.teacher == 1:
            fed = torch.cat([h.unsqueeze(1).expand(-1, self.steps, -1), skips[0]], 2)
            params = self._written(fed, self._begun(h))[0]
        else:
            params = self._step_by_step(h, skips[0] if skips else None)
        if self.order == "reversed":
            params = params.flip(1)
        if self.levels > 1:
            return params.flatten(1)
        return params.unflatten(2, (-1, self.channels)).transpose(1, 2).flatten(1)

    def outer(self, x: Tensor, visible: Tensor | None, count: int) -> Tensor:
        """Never asked: there are no pairs."""
        raise AssertionError

    @torch.no_grad()
    def start_at(self, params: Tensor) -> bool:
        """Start the bias that all steps share at the mean of theirs."""
        # Blocks of parameters stand outside of a series. Levels of a text are all at its steps.
        each = params.view(-1, self.steps, self.levels if self.levels > 1 else self.channels)
        self.last.bias.copy_(each.mean(1).flatten())
        return True

    def _check(self) -> None:
        g = self.geometry
        series = len(g.shape) == 2 and set(g.sizes) == {1}
        text = len(g.shape) == 1 and len(set(g.sizes)) == 1 and g.sizes[0] > 1
        if not (series or text):
            raise InputError(
                f"recurrent layers need series, of steps and channels, or texts, whose steps all "
                f"have the same levels; this field's rows have the shape {g.shape}: use the "
                f"backbone 'flat' ('embed' for classes, 'conv' for images)"
            )
        if self.cell not in CELLS:
            raise unknown("cell", self.cell, CELLS)
        if self.order not in ORDERS:
            raise unknown("order", self.order, ORDERS)
        if min(self.width, self.layers) < 1:
            raise InputError(f"width is {self.width} and layers {self.layers}; 1 is the least")
        if not 0 <= self.teacher <= 1:
            raise InputError(f"teacher is {self.teacher}; it is a probability, from 0 to 1")
        if not 0 <= self.dropout < 1:
            raise InputError(f"dropout is {self.dropout}; it must be a share from 0 to below 1")

    def _lengths(self, visible: Tensor) -> Tensor:
        """Steps of each row up to its last visible one, ``[B]``."""
        there = visible.view(len(visible), self.steps, -1).any(2)
        return (there * torch.arange(1, self.steps + 1, device=visible.device)).amax(1)

    def _seen(self, x: Tensor, visible: Tensor | None) -> Tensor:
        """What the encoder reads at each step, ``[B, T, C]``: numbers and mask, or vectors."""
        if self.levels > 1:
            return _looked_up(self.table, x, visible)
        if not self.geometry.missing:
            return x
        both = with_mask(x.flatten(1), visible, self.geometry)
        return torch.cat([half.view(x.shape) for half in both.chunk(2, 1)], 2)

    def _truth(self, x: Tensor, visible: Tensor | None) -> Tensor:
        """What a teacher tells at each step, ``[B, T, C]``: the true step before, in the order."""
        if self.levels > 1:
            before = _looked_up(self.spoken, x, visible)
        else:
            before = x if visible is None else x * visible.view(x.shape).to(x.dtype)
        before = before.flip(1) if self.order == "reversed" else before
        first = self._first(len(x)).unsqueeze(1)
        return torch.cat([first, before[:, :-1]], 1)

    def _first(self, rows: int) -> Tensor:
        """What stands before the first step, ``[B, C]``: zeros, or the vector of no class."""
        if self.levels > 1:
            return self.spoken[:1].expand(rows, -1)
        return self.last.weight.new_zeros(rows, self.channels)

    def _begun(self, h: Tensor) -> list[Any]:
        """Return the state of each layer before the first step."""
        state = torch.tanh(h).unsqueeze(0)
        begun = (state, torch.zeros_like(state)) if self.cell == "lstm" else state
        return [begun] * self.layers

    def _written(self, fed: Tensor, states: list[Any]) -> tuple[Tensor, list[Any]]:
        """Outputs of steps that are fed ``[B, T, C]``, and the states after them."""
        after: list[Any] = []
        for layer, state in zip(self.decoder, states, strict=True):
            fed, state = layer(fed, state)
            fed = self.drop(fed)
            after.append(state)
        return self.last(fed), after

    def _step_by_step(self, h: Tensor, truth: Tensor | None) -> Tensor:
        """Outputs of all steps, each fed the one before: the true one where a coin says so."""
        states, own, written = self._begun(h), self._first(len(h)), list[Tensor]()
        for t in range(self.steps):
            if truth is not None:
                coin = torch.rand(len(h), 1, device=h.device) < self.teacher
                own = torch.where(coin, truth[:, t], own)
            params, states = self._written(torch.cat([h, own], 1).unsqueeze(1), states)
            written.append(params)
            step = params[:, 0]
            own = step[:, : self.channels] if self.levels == 1 else self._said(step)
        return torch.cat(written, 1)

    def _said(self, logits: Tensor) -> Tensor:
        """Vector of the likeliest class."""
        return self.spoken.index_select(0, logits.argmax(1) + 1)


def _cell(kind: str, inputs: int, width: int) -> Cell:
    """Return a layer whose states keep apart at first, and whose gates let them pass."""
    cell = CELLS[kind](inputs, width, batch_first=True)
    named = dict(cell.named_parameters())
    for block in named["weight_hh_l0"].data.split(width):
        nn.init.orthogonal_(block)
    if kind == "lstm":
        with torch.no_grad():
            named["bias_ih_l0"][width : 2 * width] = 1.0
    return cell


def _vectors(levels: int, width: int) -> nn.Parameter:
    """Return a vector for each class, after one for none, which says nothing at first."""
    table = torch.randn(levels + 1, width)
    table[0] = 0.0
    return nn.Parameter(table)


def _looked_up(table: Tensor, x: Tensor, visible: Tensor | None) -> Tensor:
    """Vectors ``[B, T, C]`` of classes ``[B, T]``; the first is for none."""
    classes = (x if visible is None else x.masked_fill(~visible, -1)).clamp_min(-1)
    # Adding up the gradient by rows takes an eighth of the time that F.embedding's way takes.
    return table.index_select(0, (classes + 1).flatten()).view(*x.shape, table.shape[1])


def _at_end(outputs: Tensor, lengths: Tensor | None) -> Tensor:
    """Outputs ``[B, T, H]`` at each row's last step; zeros in a row of none."""
    if lengths is None:
        return outputs[:, -1]
    at = (lengths - 1).clamp_min(0).view(-1, 1, 1).expand(-1, 1, outputs.shape[2])
    return outputs.gather(1, at).squeeze(1) * (lengths > 0).to(outputs.dtype).unsqueeze(1)


def _flipped(h: Tensor, lengths: Tensor | None) -> Tensor:
    """``[B, T, C]`` with the steps of each row in reverse, and what stands after them in place."""
    if lengths is None:
        return h.flip(1)
    steps = torch.arange(h.shape[1], device=h.device)
    end = lengths.unsqueeze(1)
    at = torch.where(steps < end, end - 1 - steps, steps)
    return h.gather(1, at.unsqueeze(2).expand_as(h))
