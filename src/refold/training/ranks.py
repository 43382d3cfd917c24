"""Several processes that train one model: each takes its share of every batch."""

from __future__ import annotations

import signal
import threading
import warnings
from collections.abc import Callable, Generator
from contextlib import contextmanager
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, cast, final

import torch
import torch.distributed as dist
from torch import Tensor, nn

from refold import processes
from refold.errors import InputError
from refold.fusion import Fusion
from refold.latents import Latent
from refold.model import Model
from refold.ops import ranks as shared
from refold.ops.meeting import everyone, meet, others_ending
from refold.ops.ranks import Share
from refold.penalties import Penalty
from refold.types import Batch, Code

T = TypeVar("T")
Norm = nn.BatchNorm1d | nn.BatchNorm2d
LOOKED = 32  # steps between two looks at a flag that lies on an accelerator


@final
class Ranks:
    """The processes of a run, of which this is number ``rank`` of ``count``."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.count = dist.get_world_size() if dist.is_initialized() else 1
        self.rank = dist.get_rank() if dist.is_initialized() else 0
        self.shards = False
        """Whether parameters are in shards, whose gradients are summed on their way back."""
        self._asked = False
        self._told: Tensor | None = None

    @property
    def several(self) -> bool:
        """Whether there is any other process."""
        return self.count > 1

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes."""
        return self.rank == 0

    def share(self, rows: int, key: int) -> Share:
        """Return what this process takes of a batch: runs of rows as equal as can be."""
        counts = tuple(rows // self.count + (r < rows % self.count) for r in range(self.count))
        return Share(self.rank, counts, key, self.device)

    def own(self, rows: int) -> slice:
        """Where the rows of this process are in a batch of so many."""
        return self.share(rows, 0).rows

    @torch.no_grad()
    def begin(self, model: nn.Module) -> None:
        """Have every process begin with the first one's tensors."""
        for value in (*model.parameters(), *model.buffers()):
            whole = value.detach().contiguous()
            dist.broadcast(whole, 0)
            value.copy_(whole)

    def sharded(self, model: nn.Module) -> nn.Module:
        """Return a copy of a model whose parameters are shared out between the steps.

        Each process has a part of every parameter, of its gradient and of what the optimiser
        remembers; the whole is put together for a step, or to judge rows, and let go after it.
        Raises :class:`InputError` for bodies with constraints, which are on whole tensors.
        """
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import FSDPModule, fully_shard

        if any(isinstance(m, Fusion) and m.constrained for m in model.modules()):
            raise InputError(
                "parallel='fsdp' cuts parameters into shards, and a dictionary's directions are "
                "constrained as a whole; use parallel='ddp'"
            )
        copy = deepcopy(model)
        for mine, other in zip(model.modules(), copy.modules(), strict=True):
            if isinstance(mine, Model) and isinstance(other, Model):
                other.shares = mine.shares
        mesh = init_device_mesh(self.device.type, (self.count,))
        module: FSDPModule = fully_shard(copy, mesh=mesh)
        module.set_gradient_divide_factor(1.0)
        module.set_force_sum_reduction_for_comms(True)
        self.shards = True
        return copy

    def let_go(self, model: nn.Module) -> None:
        """Keep of the parameters this process's shards alone, until the next step."""
        if self.shards:
            cast(Any, model).reshard()

    @torch.no_grad()
    def add_gradients(self, parameters: list[nn.Parameter]) -> None:
        """Sum gradients over processes, and learn on the way whether any was asked to stop."""
        grads = [] if self.shards else [p.grad for p in parameters if p.grad is not None]
        wide = torch.promote_types(torch.float32, parameters[0].dtype)
        asked = torch.tensor([float(self._asked)], dtype=wide, device=self.device)
        flat = torch.cat([*(g.flatten().to(wide) for g in grads), asked])
        dist.all_reduce(flat)
        at = 0
        for grad in grads:
            grad.copy_(flat[at : at + grad.numel()].view_as(grad))
            at += grad.numel()
        self._told = flat[-1:]

    def stopped(self, step: int) -> bool:
        """Whether any process was asked to stop; all learn of it in the same step."""
        if not self.several:
            return self._asked
        if self._told is None or (self.device.type == "cuda" and step % LOOKED):
            return False
        return bool(self._told.item())

    def sums(self, values: list[float]) -> list[float]:
        """Sum each of some numbers over processes."""
        if not self.several:
            return values
        found = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(found)
        return found.tolist()

    def agreed(self, decide: Callable[[], T]) -> T:
        """Return what the first process finds, or raise everywhere what it cannot use."""
        return everyone().agreed(decide) if self.several else decide()

    def gathered(self, value: T) -> list[T]:
        """Return every process's value, in all of them."""
        return everyone().gathered(value) if self.several else [value]

    @contextmanager
    def listening(self, folder: Path | None) -> Generator[None]:
        """Take Ctrl-C as a wish that the step be the last, and another's end as one sentence.

        ``folder`` is where checkpoints are.
        """
        main = threading.current_thread() is threading.main_thread()
        before = signal.getsignal(signal.SIGINT)
        heard = main and before not in (None, signal.SIG_IGN)
        if heard:
            signal.signal(signal.SIGINT, self._ask)
        try:
            with others_ending(partial(going_on, folder)):
                yield
        finally:
            if heard:
                signal.signal(signal.SIGINT, before)

    def _ask(self, *_: Any) -> None:
        if self._asked and not self.several:
            raise KeyboardInterrupt  # who asks twice does not want to wait for the step
        self._asked = True


def join(device: torch.device) -> Ranks:
    """Meet the processes that ``torchrun`` started beside this one; alone where there are none."""
    if processes.count() > 1 and device.type == "cuda":
        torch.cuda.set_device(device)
    meet()
    return Ranks(device)


def going_on(folder: Path | None) -> str:
    """Advise what to do where a process ended, by the folder where checkpoints are."""
    kept = folder is not None and any(folder.glob("*.safetensors"))
    return f"start it again with --resume to go on from {folder}" if kept else "start anew"


def parted(batch: Batch, share: Share) -> Batch:
    """Rows of a batch that a process has, with all that is known of them."""
    part = batch.rows(share.rows)
    if batch.known is not None:
        part.known = {k: None if o is None else o[share.rows] for k, o in batch.known.items()}
    return part


@contextmanager
def across(model: nn.Module, ranks: Ranks) -> Generator[None]:
    """Have parts in which rows meet, or that draw, see the rows of all processes within.

    Norms reduce their statistics. A latent that is not row by row makes the codes of all rows in
    every process, from the same draws, and keeps those of its own. Everything else that draws does
    so for its own rows.
    """
    if not ranks.several:
        yield
        return
    refuse(model)
    changed: list[tuple[nn.Module, str]] = []

    def replace(module: nn.Module, name: str, wrap: Callable[..., Any]) -> None:
        module.__dict__[name] = partial(wrap, module, getattr(module, name))
        changed.append((module, name))

    for module in model.modules():
        if isinstance(module, Norm):
            replace(module, "forward", normed)
        elif isinstance(module, Latent) and not module.rowwise:
            replace(module, "forward", coded)
        elif isinstance(module, Penalty) and not module.joint:
            replace(module, "forward", by_itself)
        elif isinstance(module, Model):
            replace(module, "hidden", by_itself)
            replace(module, "unfold", by_itself)
    if not isinstance(model, Model):
        replace(model, "forward", by_itself)
    try:
        with warnings.catch_warnings():
            # Nothing here writes into what a model gave.
            warnings.filterwarnings("ignore", message="FSDP2-wrapped module")
            yield
    finally:
        for module, name in changed:
            del module.__dict__[name]


def refuse(model: nn.Module) -> None:
    """Raise :class:`InputError` for what processes cannot share a batch of."""
    for part in (m for m in model.modules() if isinstance(m, Model)):
        if part.references is not None and any(isinstance(m, Norm) for m in part.modules()):
            raise InputError(
                "a prior of learnt inputs (vamp) and batch norm meet in one batch, which several "
                "processes cannot share; use norm='layer', or one process"
            )


def normed(module: Norm, plain: Callable[[Tensor], Tensor], h: Tensor) -> Tensor:
    """Batch norm by the mean and the variance over the rows of all processes."""
    if shared.current() is None or not module.training:
        return plain(h)
    over = [d for d in range(h.dim()) if d != 1]
    shape = [1, -1, *(1,) * (h.dim() - 2)]
    count = shared.rows(len(h)) * (h[0, 0].numel() if len(h) else 1)
    exact = h.to(torch.promote_types(h.dtype, torch.float32))
    mean = shared.total(exact.sum(over)) / count
    centred = exact - mean.view(shape)
    variance = shared.total(centred.square().sum(over)) / count
    z = centred * (variance + module.eps).rsqrt().view(shape)
    if module.affine:
        z = z * module.weight.view(shape) + module.bias.view(shape)
    follow(module, mean.detach(), variance.detach() * (count / max(1, count - 1)))
    return z.to(h.dtype)


@torch.no_grad()
def follow(module: Norm, mean: Tensor, variance: Tensor) -> None:
    """Let the running statistics follow those of a batch, as torch's own norms do."""
    if module.running_mean is None or module.running_var is None:
        return
    assert module.num_batches_tracked is not None
    module.num_batches_tracked.add_(1)
    share = module.momentum
    share = 1.0 / float(module.num_batches_tracked) if share is None else share
    module.running_mean.lerp_(mean.to(module.running_mean.dtype), share)
    module.running_var.lerp_(variance.to(module.running_var.dtype), share)


def coded(module: Latent, plain: Callable[[Tensor], Code], h: Tensor) -> Code:
    """Own rows of the code of all rows; costs of the batch are those of all."""
    if shared.current() is None or not module.training:
        return plain(h)
    code = plain(shared.together(h))
    return Code(
        shared.own(code.z, code.draws),
        {k: shared.own(v, code.draws) for k, v in code.terms.items()},
        code.aux,
        beside={k: shared.own(v) for k, v in code.beside.items()},
        draws=code.draws,
    )


def by_itself(module: nn.Module, plain: Callable[..., T], *given: Any, **more: Any) -> T:
    """Call what draws for the rows of this process alone."""
    if shared.current() is None:
        return plain(*given, **more)
    with shared.apart():
        return plain(*given, **more)
