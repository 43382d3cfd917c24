"""Contestants in processes of their own: started once for a case, and run when told to.

Each has its own memory, threads and habits of the C library, and its own peak of memory. A process
waits while another runs. What contestants print goes to a file, of which the end is told when one
fails.
"""

from __future__ import annotations

import gc
import json
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

from contest import FULL, HALF, Found, Lap, Run

SIZE, TRIES = 2048, 4  # side of the matrices whose product tells the peak, and products a round
PEAK = "peak"  # the process that measures it


class Failed(Exception):
    """A contestant that cannot run, and why."""


class Worker:
    """The parent's end of a contestant's process; raises :class:`Failed` when that ends."""

    def __init__(self, case: str, name: str, quick: bool) -> None:
        self.log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115, closed with the process
        told = json.dumps({"case": case, "name": name, "quick": quick})
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__)), told],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},  # all on the processor
        )

    def ready(self) -> float:
        """Wait until it has imported and made all it needs; return the memory it holds, in MiB."""
        return self._answer()["memory"]

    def lap(self) -> Lap:
        """Have it run once."""
        answer = self.ask()
        return Lap(answer["seconds"], Found(**answer["found"]), answer["memory"])

    def ask(self) -> dict[str, Any]:
        """Have it run once; return what it says."""
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):
            self.process.stdin.write(b"run\n")
            self.process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.wait()
        self.log.close()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if line:
            return json.loads(line)
        self.process.wait()
        self.log.seek(0)
        said = self.log.read().decode(errors="replace").strip().splitlines()
        raise Failed(said[-1] if said else f"its process ended with {self.process.returncode}")


STATUS, FORGET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def most_memory(*, anew: bool = False) -> float:
    """Return the most memory this process has held since it was asked ``anew``, in MiB.

    Only Linux can begin anew; elsewhere it is the most since the process began.
    """
    if STATUS.exists():
        if anew:
            FORGET.write_text("5")
        found = re.search(r"VmHWM:\s+(\d+) kB", STATUS.read_text())
        assert found is not None
        return int(found[1]) / 1024
    unit = 1 << 20 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def peak() -> Mapping[str, float]:
    """GFLOP/s of a product of two large matrices, the best of a few, by kind of number."""
    import torch

    best: dict[str, float] = {}
    for name in (FULL, HALF):
        a = torch.ones(SIZE, SIZE, dtype=getattr(torch, name))
        times: list[float] = []
        out = a @ a
        for _ in range(TRIES):
            began = time.perf_counter()
            torch.mm(a, a, out=out)
            times.append(time.perf_counter() - began)
        best[name] = 2 * SIZE**3 / min(times) / 1e9
    return best


def serve(case: str, name: str, quick: bool, out: IO[str]) -> None:
    """Prepare a contestant, then run it once for every line that comes in."""

    def say(**answer: Any) -> None:
        out.write(json.dumps(answer) + "\n")
        out.flush()

    if name == PEAK:
        say(memory=0.0)
        for _ in sys.stdin:
            say(**peak())
        return
    from cases import every

    every(quick=True)[case].contestants[name]()()()  # imports what is imported at first use
    run: Run = every(quick)[case].contestants[name]()
    gc.collect()
    say(memory=most_memory(anew=True))
    for _ in sys.stdin:
        began = time.perf_counter()
        tell = run()
        seconds = time.perf_counter() - began
        memory = most_memory()
        say(seconds=seconds, found=asdict(tell()), memory=memory)


def main() -> None:
    """Serve, with standard output for answers alone: whatever prints there goes to the log."""
    told = json.loads(sys.argv[1])
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    try:
        serve(told["case"], told["name"], told["quick"], answers)
    except Exception as error:
        traceback.print_exc()
        sentence = " ".join(str(error).split())
        print(f"{type(error).__name__}: {sentence}"[:300], file=sys.stderr)
        sys.stderr.flush()
        os._exit(1)


if __name__ == "__main__":
    main()
