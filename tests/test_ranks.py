"""Several processes train what one would have trained."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import warnings
from contextlib import contextmanager

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp

from refold import Autoencoder
from refold.cli import screen
from refold.cli.commands import app
from refold.latents import latents
from refold.training import checkpoint
from refold.training.checkpoint import Checkpoints
from refold.training.ranks import Ranks

COUNT = 2
ROWS = 167  # 150 are learnt from, in batches of 32: the last has 22 rows


def rows(n=ROWS, width=6, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, 3)) @ rng.normal(size=(3, width)) + 0.1 * rng.normal(size=(n, width))


def mixed():
    X = rows()
    return {
        "x": X[:, :3],
        "price": X[:, 3],
        "side": np.where(X[:, 4] > 0, "left", "right"),
        "kind": np.array(list("abc"))[(X[:, 5] > 0).astype(int) + (X[:, 3] > 0)],
    }


def pictures():
    return np.random.default_rng(0).random((60, 8, 8))


PLAIN = {"optimizer": "sgd(momentum=0.9)", "lr": 0.002}
"""Where a gradient is zero but for rounding, which Adam would make as large as any other."""
CASES = {
    "dense": (rows, {"latent": 2, "hidden": (16,)}),
    "ragged": (lambda: rows(ROWS - 21), {"latent": 2}),
    "fewer rows than processes": (
        lambda: rows(40), {"latent": "gaussian(size=2)", "batch_size": 1, "epochs": 1}
    ),
    "batch norm": (rows, {"latent": 2, "fusion": "concat(norm='batch')", **PLAIN}),
    "noise": (rows, {"latent": 2, "corruption": "swap(fraction=0.3)"}),
    "hidden entries": (rows, {"latent": 2, "corruption": "mask(fraction=0.3)"}),
    "maps": (pictures, {"latent": 4, "recipe": "conv"}),
    "uncertainty": (mixed, {"latent": 2, "weights": "uncertainty"}),
    "gradnorm": (mixed, {"latent": 2, "weights": "gradnorm(alpha=0)"}),
    "ladder": (rows, {"latent": 2, "fusion": "ladder(noise=0.0, hidden=(8,))", **PLAIN}),
    "maps and norms": (pictures, {"latent": 4, "recipe": "conv", "fusion": "concat", **PLAIN}),
    "several draws": (rows, {"latent": "gaussian(size=2, draws=3)", **PLAIN}),
    "free bits": (rows, {"latent": "gaussian(size=2, free_bits=0.5)", **PLAIN}),
    "dictionary": (rows, {"recipe": "dictionary", "latent": "batch_topk(size=24, k=3)"}),
    "shards": (rows, {"latent": "gaussian(size=2)", "hidden": (16,), "parallel": "fsdp"}),
    "tied shards": (
        rows,
        {"latent": 2, "fusion": "concat(norm='batch')", "tied": True, "parallel": "fsdp",
         **PLAIN, "lr": 0.0005},
    ),
    "gated": (rows, {"recipe": "dictionary", "latent": "gated(size=24)", **PLAIN}),
    **{
        f"latent {name}": (rows, {"latent": f"{name}(size=4)", **PLAIN})
        for name in latents if name != "matched" and not latents[name].needs
    },
    **{
        f"penalty {name}": (rows, {"latent": "matched(size=4)", "penalties": (name,), **PLAIN})
        for name in ("adversarial", "mmd")
    },
    "penalties of the code": (
        rows,
        {"latent": 4, "penalties": ("decorrelation", "kl(weight=0.01)", "l1", "orthogonality"),
         **PLAIN},
    ),
    "penalty contractive": (
        rows, {"latent": 4, "penalties": ("contractive(method='exact')",), **PLAIN}
    ),
}  # fmt: skip
"""What has to come out as in one process."""


def fitted(name, **more):
    make, arguments = CASES[name]
    usual = {"epochs": 3, "batch_size": 32, "seed": 1}
    return Autoencoder(**{**usual, **arguments}).fit(make(), **more)


def told(ae):
    history = [{k: v for k, v in row.items() if k != "seconds"} for row in ae.history_]
    return {"state": ae.model_.state_dict(), "history": history, "stopped": ae.run_.stopped}


def work(rank, port, count, body, given, folder):
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip
    torch.set_num_threads(1)
    torch.save(body(given), folder / f"{rank}.pt")


def spawned(body, given, folder, count=COUNT):
    """What each of several processes returns."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(work, (port, count, body, given, folder), nprocs=count)
    return [torch.load(folder / f"{r}.pt", weights_only=False) for r in range(count)]


class Killed(Exception):
    pass


@contextmanager
def at(step, happens):
    """Have something happen in a step of every process."""
    plain = Ranks.stopped

    def stopped(self, now):
        if now == step:
            happens()
        return plain(self, now)

    Ranks.stopped = stopped
    try:
        yield
    finally:
        Ranks.stopped = plain


def cut_off():
    raise Killed


def asked_to_stop():
    if os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.SIGINT)


def resumed(name, folder):
    """Two halves of a run."""
    plain, Checkpoints.due = Checkpoints.due, lambda self: True
    with at(8, cut_off), pytest.raises(Killed):
        fitted(name, checkpoint=folder)
    Checkpoints.due = plain
    return fitted(name, checkpoint=folder, resume=True)


def many(folder):
    found = {name: told(fitted(name)) for name in CASES}
    found["resumed"] = told(resumed("shards", folder / "run"))
    with at(8, asked_to_stop), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found["interrupted"] = told(fitted("dense"))
    return found


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    return spawned(many, folder, folder)


@pytest.mark.parametrize("name", CASES)
def test_two_processes_learn_what_one_does(name, together):
    alone = told(fitted(name))
    first, second = (found[name] for found in together)
    for key, value in alone["state"].items():
        assert torch.equal(first["state"][key], second["state"][key]), key
        torch.testing.assert_close(first["state"][key], value, rtol=1e-4, atol=2e-5)
    for row, other in zip(first["history"], alone["history"], strict=True):
        assert row.keys() == other.keys()
        for key in row:
            assert row[key] == pytest.approx(other[key], rel=1e-4, abs=2e-5), key


def test_shards_go_on_from_a_checkpoint(together):
    for found in together:
        whole, again = found["shards"], found["resumed"]
        assert again["history"] == whole["history"]
        for key, value in whole["state"].items():
            assert torch.equal(again["state"][key], value), key


def test_a_wish_to_stop_is_every_processs(together):
    for found in together:
        assert found["interrupted"]["stopped"] == "interrupted"
        assert (
            found["interrupted"]["history"][:2] == found["dense"]["history"][:2]
        )  # five steps each
        assert [row["step"] for row in found["interrupted"]["history"]] == [0, 5, 9]


SCRIPT = """
import os
from pathlib import Path
from refold.training.checkpoint import Checkpoints
Checkpoints.due = lambda self: True
Path(os.environ["RANK"]).with_suffix(".pid").write_text(str(os.getpid()))
from refold.cli import main
main()
"""


def started(folder, *arguments):
    """Start the command line in two processes, as torchrun does."""
    (folder / "go.py").write_text(SCRIPT)
    torchrun = ("-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={COUNT}")
    return subprocess.Popen(
        [sys.executable, *torchrun, "go.py", *arguments],
        cwd=folder, env={**os.environ, "OMP_NUM_THREADS": "1"}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def test_a_killed_worker_ends_the_run_with_a_sentence_and_a_checkpoint(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.savetxt("rows.csv", rows(2000), delimiter=",", header="a,b,c,d,e,f", comments="")
    fit = ("fit", "rows.csv", "--out", "model", "--epochs", "12", "--set", "patience=1000")
    process = started(tmp_path, *fit)
    kept = tmp_path / "model.unfinished" / "0.safetensors"
    while not kept.exists() or checkpoint.read(kept).values["step"] < 60:
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    os.kill(int((tmp_path / "1.pid").read_text()), signal.SIGKILL)
    _, said = process.communicate()
    assert process.returncode
    (line,) = [line for line in said.splitlines() if line.startswith("error:")]
    assert "another of the 2 processes of this run ended" in line
    assert "start it again with --resume to go on from model.unfinished" in line
    assert not (tmp_path / "model").exists()
    shutil.copytree("model.unfinished", "alone.unfinished")

    process = started(tmp_path, *fit, "--resume")
    said, _ = process.communicate()
    assert process.returncode == 0
    assert said.count("taken up at step") == said.count("saved   model") == 1
    app([*fit, "--resume", "--out", "alone", "-q"], standalone_mode=False)
    app([*fit, "--out", "whole", "-q"], standalone_mode=False)
    assert not list(tmp_path.glob("*.unfinished"))
    whole = Autoencoder.load("whole")
    for name in ("model", "alone"):
        ae = Autoencoder.load(name)
        for key, value in whole.model_.state_dict().items():
            torch.testing.assert_close(ae.model_.state_dict()[key], value, rtol=1e-2, atol=1e-3)
        assert len(ae.history_) == len(whole.history_)
        losses = [[row["valid_loss"] for row in each.history_] for each in (ae, whole)]
        assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_the_first_process_speaks_for_all(monkeypatch, capfd):
    waited = []
    monkeypatch.setattr(screen.time, "sleep", waited.append)
    monkeypatch.setattr(screen, "errors", screen.Console(stderr=True))
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        screen.complain(f"mistake of {rank}")
        screen.remark(f"remark of {rank}")
        screen.say([f"outcome of {rank}"], {}, as_json=False, quiet=False)
    assert waited == [screen.PATIENCE]  # torchrun ends the other process meanwhile
    out, err = capfd.readouterr()
    assert out == "outcome of 0\n"
    assert [line.partition(" of ")[::2] for line in err.splitlines()] == [
        ("error: mistake", "0"), ("note: remark", "0"), ("error: mistake", "1")
    ]  # fmt: skip
