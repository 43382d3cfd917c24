"""A tape as a program: the same operations on memory that was set aside once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from refold.ops import products
from refold.recording.tape import Call, NotReplayable, Ref, Tape, mapped

aten = torch.ops.aten
QUICK: dict[Any, Callable[..., Any]] = {
    aten.addmm.out: torch.addmm,
    aten.mm.out: torch.mm,
    aten.bmm.out: torch.bmm,
    aten.mul.out: torch.mul,
    aten.add.out: torch.add,
    aten.sub.out: torch.sub,
    aten.sum.IntList_out: torch.sum,
    aten.sigmoid.out: torch.sigmoid,
    aten.tanh.out: torch.tanh,
    aten.exp.out: torch.exp,
}
"""Torch's own bindings of some, which cost a microsecond less a call."""
PRODUCTS = (aten.addmm.default, aten.mm.default)
RECTIFIED = (aten.relu.default, aten.relu_.default)
COPIES = (aten._to_copy.default, aten.clone.default)  # pyright: ignore[reportPrivateUsage]


def program(
    tape: Tape,
    places: Mapping[int, Tensor],
    results: Sequence[Ref | None],
    targets: Sequence[Tensor | None],
) -> tuple[Callable[[], None], list[Tensor]]:
    """Build a function that runs the tape, and the tensors in which it leaves the results.

    ``places`` maps numbers of given tensors to those that are read in their stead. A result with a
    target is left there. Memory of what is no longer needed serves again within a run, and
    everything that only looks at memory another way is worked out now; what has no form that writes
    where it is told allocates as usual.
    """
    return _Builder(tape, places).build(results, targets)


class _Builder:
    """Turns calls into lines of a function: fixed tensors become its globals."""

    def __init__(self, tape: Tape, places: Mapping[int, Tensor]) -> None:
        self.tape = tape
        self.fixed: dict[int, Tensor] = {
            n: places.get(n, tape.tensors[n]).detach() for n in tape.given
        }
        self.constants: set[int] = set()  # numbers of tensors that no given one has a part in
        self.changed: set[int] = set()  # addresses of what calls write to
        self.names: dict[str, Any] = {}
        self.lines: list[str] = []
        self.last: dict[int, int] = {}  # by address of the memory: the last call that needs it
        self.wanted: dict[int, Tensor] = {}  # by address: where a result shall be
        self.free: dict[tuple[int, Any], list[Tensor]] = {}
        self.owned: dict[int, Tensor] = {}  # by recorded address: memory set aside for it

    def build(
        self, results: Sequence[Ref | None], targets: Sequence[Tensor | None]
    ) -> tuple[Callable[[], None], list[Tensor]]:
        """Write the function."""
        for i, call in enumerate(self.tape.calls):
            mapped(lambda r, i=i: self._note(r, i), (call.args, call.kwargs), Ref)
            if call.op._schema.is_mutable:
                mapped(lambda r: self.changed.add(self._address(r)), (call.args, call.kwargs), Ref)
        made_by: dict[int, Call] = {}  # by address: the call that took the memory first
        for call in self.tape.calls:
            for made in call.outs:
                made_by.setdefault(self._address(made), call)
        for result, target in zip(results, targets, strict=True):
            if result is None:
                continue
            self.last[self._address(result)] = len(self.tape.calls)
            value = self.tape.tensors[result.number]
            call = made_by.get(self._address(result))
            if target is None or call is None or call.op.is_view or result.number in self.fixed:
                continue
            whole = self.tape.tensors[call.outs[0].number]
            fits = whole.untyped_storage().nbytes() == target.numel() * target.itemsize
            if call.single and fits and same_layout(value, target):
                self.wanted.setdefault(self._address(result), target)
        followed = self._followed()
        for i, call in enumerate(self.tape.calls):
            if i - 1 not in followed:
                self._write(call, followed.get(i))
            self._release(i)
        out: list[Tensor] = []
        for result, target in zip(results, targets, strict=True):
            if result is None:
                continue
            number = result.number
            if target is None and number in self.fixed:
                target = self.fixed[number]
            elif target is None:
                target = torch.empty_like(self.tape.tensors[number])
            if number not in self.fixed or self.fixed[number].data_ptr() != target.data_ptr():
                self.lines.append(f"{self._name(target)}.copy_({self._value(result)})")
            out.append(target)
        source = "def run():\n" + "\n".join(f"    {line}" for line in self.lines or ["pass"])
        exec(compile(source, "<recorded step>", "exec"), self.names)
        return self.names.pop("run"), out  # else it would hold itself

    def _address(self, ref: Ref) -> int:
        return self.tape.storages[ref.number]

    def _note(self, ref: Ref, call: int) -> None:
        self.last[self._address(ref)] = call

    def _name(self, value: Any) -> str:
        name = f"v{len(self.names)}"
        self.names[name] = value
        return name

    def _value(self, ref: Ref) -> str:
        fixed = self.fixed.get(ref.number)
        return f"t{ref.number}" if fixed is None else self._name(fixed)

    def _followed(self) -> dict[int, Any]:
        """Products that are rectified at once, and needed for nothing else: by number, what is."""
        calls, found = self.tape.calls, dict[int, Any]()
        for i, call in enumerate(calls[:-1]):
            after = calls[i + 1]
            first = call.outs[0]
            alone = self.last.get(self._address(first)) == i + 1
            ours = after.op in RECTIFIED and after.args == (first,) and not after.kwargs
            free = not {self._address(o) for o in (first, *after.outs)} & set(self.wanted)
            if ours and free and (alone or after.op is aten.relu_.default) and self._operands(call):
                found[i] = after
        return found

    def _write(self, call: Call, after: Any = None) -> None:
        """Work a view out, or write a line; ``after`` rectifies what a product gives."""
        refs: list[Ref] = []
        mapped(refs.append, (call.args, call.kwargs), Ref)
        fixed = all(r.number in self.fixed for r in refs)
        mine = {self._address(r) for r in refs}
        aliases = [self._address(o) in mine for o in call.outs]
        if after is None and self._constant(call, refs):
            self._fix(call)
            self.constants |= {o.number for o in call.outs}
        elif call.op._schema.is_mutable:
            self._call(call, call.op, "")
            for out in call.outs:
                self._same(out, refs)
        elif any(aliases):
            if not all(aliases):
                raise NotReplayable(call.op.name())
            if fixed:
                self._fix(call)
            else:
                self._assign(call)
        elif call.op in COPIES:
            (out,) = call.outs
            self.fixed[out.number] = self._memory(out)
            self.lines.append(f"{self._value(out)}.copy_({self._value(call.args[0])})")
        elif (product := self._product(call, after)) is not None:
            (out,) = call.outs if after is None else after.outs
            if self._address(out) in self.wanted:
                self.fixed[out.number] = self._memory(out)
                self.lines.append(f"{self._value(out)}.copy_({product})")
            else:
                self.lines.append(f"t{out.number} = {product}")
        else:
            into = writing(call.op, self.tape.tensors[call.outs[0].number].device.type)
            if into is None:
                self._assign(call)
                return
            op, names = into
            for out in call.outs:
                self.fixed[out.number] = self._memory(out)
            outs = ", ".join(f"{k}={self._value(o)}" for k, o in zip(names, call.outs, strict=True))
            self._call(call, op, outs)

    def _operands(self, call: Call) -> tuple[Ref, Ref, Ref | None, bool] | None:
        """Rows, weight and bias of a product that is for oneDNN, and whether it turns the weight.

        None where it is none, or where oneDNN would not be faster.
        """
        if call.kwargs or call.op not in (aten.linear.default, *PRODUCTS):
            return None
        turns = call.op is aten.linear.default  # as it is where no gradient is asked for
        given: list[Any] = list(call.args) if turns else [*call.args[-2:], *call.args[:-2]]
        x, weight, bias = given[0], given[1], given[2] if len(given) > 2 else None
        columns = self._tensor(weight).shape[0 if turns else 1]
        plain = bias is None or self._tensor(bias).dim() == 1
        pays = plain and products.pays(self._tensor(x), columns)
        return (x, weight, bias, turns) if pays else None

    def _product(self, call: Call, after: Any) -> str | None:
        """Write a product of two matrices for oneDNN, where that is faster."""
        found = self._operands(call)
        if found is None:
            return None
        x, weight, bias, turns = found
        fixed = self.fixed.get(weight.number)
        turned = self._value(weight)
        if not turns:
            turned = f"{turned}.t()" if fixed is None else self._name(fixed.t())
        added = "None" if bias is None else self._value(bias)
        then = "" if after is None else ", 'relu'"
        return f"{self._name(products.linear)}({self._value(x)}, {turned}, {added}{then})"

    def _tensor(self, ref: Ref) -> Tensor:
        return self.tape.tensors[ref.number]

    def _same(self, out: Ref, refs: list[Ref]) -> None:
        """Have what a call gave back be the argument it changed."""
        if out.number in self.fixed or out in refs:
            return
        raise NotReplayable("a view of what is changed")

    def _constant(self, call: Call, refs: Sequence[Ref]) -> bool:
        """Whether a call gives the same in every run, and nothing writes over it."""
        drawn = torch.Tag.nondeterministic_seeded in call.op.tags
        known = all(r.number in self.constants for r in refs)
        return known and not drawn and not {*map(self._address, call.outs)} & self.changed

    def _fix(self, call: Call) -> None:
        """Work out now what a call gives."""
        args, kwargs = mapped(lambda r: self.fixed[r.number], (call.args, call.kwargs), Ref)
        found = call.op(*args, **kwargs)
        for out, tensor in zip(call.outs, (found,) if call.single else found, strict=True):
            self.fixed[out.number] = tensor

    def _arguments(self, call: Call) -> str:
        text = [self._text(a) for a in call.args]
        return ", ".join([*text, *(f"{k}={self._text(v)}" for k, v in call.kwargs.items())])

    def _text(self, value: Any) -> str:
        if isinstance(value, Ref):
            return self._value(value)
        if isinstance(value, list):
            return f"[{', '.join(map(self._text, value))}]"
        return self._name(value)

    def _call(self, call: Call, op: Any, more: str) -> None:
        function = self._name(QUICK.get(op, op._op))
        arguments = ", ".join(filter(None, (self._arguments(call), more)))
        self.lines.append(f"{function}({arguments})")

    def _assign(self, call: Call) -> None:
        self._call(call, call.op, "")
        left = ", ".join(f"t{o.number}" for o in call.outs)
        self.lines[-1] = f"{left}{'' if call.single else ','} = {self.lines[-1]}"

    def _memory(self, out: Ref) -> Tensor:
        """Set memory aside for a result: where it is wanted, or what is free, or new."""
        like, address = self.tape.tensors[out.number], self._address(out)
        target = self.wanted.pop(address, None)
        if target is not None:
            return target.as_strided(like.shape, like.stride())
        store = like.untyped_storage().nbytes() // like.itemsize
        key = (store, like.dtype)
        waiting = self.free.get(key)
        memory = waiting.pop() if waiting else like.new_empty(store)
        self.owned[address] = memory
        return memory.as_strided(like.shape, like.stride(), like.storage_offset())

    def _release(self, call: int) -> None:
        """Free the memory that no later call needs."""
        for address in [a for a in self.owned if self.last.get(a, -1) <= call]:
            memory = self.owned.pop(address)
            self.free.setdefault((memory.numel(), memory.dtype), []).append(memory)


def same_layout(value: Tensor, target: Tensor) -> bool:
    """Whether a whole tensor and its target put entries in memory in the same order."""
    return (
        value.shape == target.shape
        and value.dtype == target.dtype
        and value.storage_offset() == 0
        and all(n < 2 or a == b for n, a, b in
                zip(value.shape, value.stride(), target.stride(), strict=True))
    )  # fmt: skip


@lru_cache(256)
def writing(op: Any, device: str) -> tuple[Any, tuple[str, ...]] | None:
    """Return the form of an operation that writes into given tensors, and what it calls them.

    None where a device has no kernel of that form: it would compute and then copy. Losses that sum
    up use what they are given for the parts, and resize it twice.
    """
    packet = op.overloadpacket
    if packet.__name__.endswith(("_loss", "cross_entropy")):
        return None
    asked = [(a.name, str(a.type)) for a in op._schema.arguments]
    for name in packet.overloads():
        other = getattr(packet, name)
        arguments = other._schema.arguments
        outs = tuple(a.name for a in arguments if a.is_out)
        rest = [(a.name, str(a.type)) for a in arguments if not a.is_out]
        if outs and rest == asked and len(outs) == len(op._schema.returns):
            full = other._schema.name + (f".{name}" if name != "default" else "")
            known = torch._C._dispatch_has_kernel_for_dispatch_key(full, device.upper())  # pyright: ignore[reportPrivateUsage]
            return (other, outs) if known else None
    return None
