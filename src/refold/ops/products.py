"""Which library multiplies matrices of single precision."""

from __future__ import annotations

import platform
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

LEAST = 2.5e6  # operations of a product for each thread; below, asking takes longer than it saves


@cache
def onednn_is_faster() -> bool:
    """Whether oneDNN has wider vectors than the library that torch asks for single precision.

    Torch asks MKL, which on processors of another maker uses half of theirs: on an AMD EPYC of the
    fifth generation it reaches 105 GFLOP/s a core and oneDNN 235.
    """
    both = torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()
    wide = torch.backends.cpu.get_cpu_capability() == "AVX512"
    return both and wide and "GenuineIntel" not in maker()


def maker() -> str:
    """What the system says of who made the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith("vendor_id")), platform.processor())


def pays(x: Tensor, columns: int) -> bool:
    """Whether oneDNN is the faster one for a product of ``x`` ``[m, k]`` with ``columns``."""
    single = x.dtype == torch.float32 and x.device.type == "cpu" and x.dim() == 2
    least = LEAST * torch.get_num_threads()
    return single and 2.0 * x.numel() * columns >= least and onednn_is_faster()


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, after: str = "none") -> Tensor:
    r"""Linear map of rows by oneDNN, :math:`x W^\top + b`, ``[m, n]``; without autograd.

    ``after`` names an activation that it applies on the way, such as ``"relu"``.

    >>> linear(torch.ones(1, 2), torch.ones(3, 2), torch.zeros(3))
    tensor([[2., 2., 2.]])
    """
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, after, [], "")
