"""A run that was cut off goes on as if it had not been, to the last bit."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from refold import Autoencoder, InputError
from refold.data.streams import stream
from refold.training import checkpoint, precision
from refold.training.checkpoint import Checkpoints, Kept

pytestmark = pytest.mark.usefixtures("recorded_early")


@pytest.fixture(autouse=True)
def often(monkeypatch):
    """Have a checkpoint be due whenever one may be written."""
    monkeypatch.setattr(Checkpoints, "due", lambda self: True)


def rows(n=150, width=6, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, 3)) @ rng.normal(size=(3, width)) + 0.1 * rng.normal(size=(n, width))


def mixed(n=150):
    X = rows(n)
    return {
        "x": X[:, :3],
        "price": X[:, 3],
        "side": np.where(X[:, 4] > 0, "left", "right"),
        "kind": np.array(list("abc"))[(X[:, 5] > 0).astype(int) + (X[:, 3] > 0)],
    }


class Killed(Exception):
    pass


def killing(step):
    def watch(progress):
        if progress.step >= step:
            raise Killed

    return watch


def told(ae):
    state = {k: v.clone() for k, v in ae.model_.state_dict().items()}
    for i, member in enumerate(ae.members_):
        state |= {f"{i}.{k}": v for k, v in member.state_dict().items()}
    history = [{k: v for k, v in row.items() if k != "seconds"} for row in ae.history_]
    best = {k: v for k, v in ae.run_.best.items() if k != "seconds"}
    return state, history, best, ae.run_.stopped


CASES = {
    "plain": (rows, {"hidden": (16,), "latent": 2}),
    "noise and dropout": (
        rows,
        {"corruption": "gaussian(std=0.3)", "fusion": "concat(dropout=0.2, norm='batch')"},
    ),
    "vae": (rows, {"recipe": "vae", "latent": 2}),
    "uncertainty": (mixed, {"weights": "uncertainty", "latent": 2}),
    "gradnorm": (mixed, {"weights": "gradnorm(alpha=0)", "latent": 2}),
    "plateau": (rows, {"schedule": "plateau", "latent": 2, "lr": 0.02}),
    "adversarial": (rows, {"latent": "matched(size=2)", "penalties": ("adversarial",)}),
    "books": (rows, {"latent": "vq(size=4, codes=8)", "optimizer": "sgd(momentum=0.9)"}),
    "ladder": (rows, {"fusion": "ladder", "latent": 2}),
    "layerwise": (rows, {"pretrain": "layerwise", "hidden": (8, 4), "latent": 2}),
    "members": (rows, {"recipe": "imputation", "latent": 3}),
}


@pytest.mark.parametrize("name", CASES)
def test_a_run_that_is_cut_off_ends_as_one_that_is_not(name, tmp_path):
    make, arguments = CASES[name]
    X, arguments = make(), {"epochs": 12, "batch_size": 32, "seed": 3, **arguments}
    whole = told(Autoencoder(**arguments).fit(X))
    steps = int(whole[1][-1]["step"])
    for at in (steps // 3, steps - 2):  # the second cut is in a run that was taken up itself
        with pytest.raises(Killed):
            Autoencoder(**arguments).fit(
                X, checkpoint=tmp_path / "run", resume=True, watch=killing(at)
            )
    ae = Autoencoder(**arguments).fit(X, checkpoint=tmp_path / "run", resume=True)
    again = told(ae)
    assert any("taken up at step" in reason for reason in ae.reasons_)
    assert again[1:] == whole[1:]
    assert again[0].keys() == whole[0].keys()
    for key, value in whole[0].items():
        assert torch.equal(again[0][key], value), key
    ae.save(tmp_path / "model")
    assert not (tmp_path / "run").exists()


def cut(tmp_path, **arguments):
    with pytest.raises(Killed):
        Autoencoder(2, epochs=9, **arguments).fit(
            rows(), checkpoint=tmp_path / "run", watch=killing(20)
        )
    return tmp_path / "run"


def test_other_arguments_and_other_rows_are_refused(tmp_path):
    folder = cut(tmp_path)
    with pytest.raises(InputError, match="seed was 0 and is 1 now"):
        Autoencoder(2, epochs=9, seed=1).fit(rows(), checkpoint=folder, resume=True)
    X = rows()
    X[7, 2] += 1e-3
    with pytest.raises(InputError, match="the rows are not those of the unfinished run"):
        Autoencoder(2, epochs=9).fit(X, checkpoint=folder, resume=True)
    with pytest.raises(InputError, match=r"hidden was not given and is \[8, 4\] now"):
        Autoencoder(2, epochs=9, hidden=(8, 4)).fit(rows(), checkpoint=folder, resume=True)


def test_an_argument_that_was_not_given_is_said_in_words(tmp_path):
    folder = cut(tmp_path, recipe="dense")
    with pytest.raises(InputError, match="recipe was 'dense' and is not given now; give the same"):
        Autoencoder(2, epochs=9).fit(rows(), checkpoint=folder, resume=True)


def streamed(tmp_path):
    """Files that would be read at once but for what the tests below do."""
    X = rows(5000)
    for i in (0, 1):
        table = pa.table({f"c{j}": X[i::2, j] for j in range(6)})
        pq.write_table(table, tmp_path / f"{i}.parquet", row_group_size=700)
    return str(tmp_path / "*.parquet")


STREAM = {"latent": 2, "epochs": 4, "batch_size": 64, "seed": 1}


def cut_in_parts(tmp_path, files, **arguments):
    with pytest.raises(Killed):
        Autoencoder(**STREAM, **arguments).fit(
            files, checkpoint=tmp_path / "run", watch=killing(100)
        )
    return tmp_path / "run"


def test_a_run_goes_on_with_the_memory_it_began_with(tmp_path, monkeypatch):
    files = streamed(tmp_path)
    monkeypatch.setattr(stream, "PEAK", 10_000)
    free = [64_000_000]
    monkeypatch.setattr(stream, "available", lambda: free[0])
    monkeypatch.setattr(stream, "WINDOW", 5000)
    whole = Autoencoder(**STREAM).fit(files)
    assert any("32.0 MB, half of what is free" in reason for reason in whole.reasons_)
    folder = cut_in_parts(tmp_path, files)
    for now in (10**15, 400_000_000):  # all rows would fit, or come in another order
        free[0] = now
        shutil.copytree(folder, tmp_path / "copy")
        again = Autoencoder(**STREAM).fit(files, checkpoint=tmp_path / "copy", resume=True)
        assert any("32.0 MB, as before" in reason for reason in again.reasons_)
        assert told(again)[1:] == told(whole)[1:]
        for key, value in told(whole)[0].items():
            assert torch.equal(told(again)[0][key], value), key
        shutil.rmtree(tmp_path / "copy")


def test_a_run_that_read_all_rows_at_once_does_so_again(tmp_path, monkeypatch):
    files = streamed(tmp_path)
    whole = Autoencoder(**STREAM).fit(files)
    folder = cut_in_parts(tmp_path, files)
    monkeypatch.setattr(stream, "available", lambda: 33_000_000)
    monkeypatch.setattr(stream, "PEAK", 10_000)
    assert (
        told(Autoencoder(**STREAM).fit(files, checkpoint=folder, resume=True))[1:]
        == (told(whole)[1:])
    )


def test_another_memory_is_taken_where_rows_come_in_the_same_order(tmp_path, monkeypatch):
    files = streamed(tmp_path)
    monkeypatch.setattr(stream, "PEAK", 10_000)
    whole = Autoencoder(**STREAM, memory="32MB").fit(files)
    folder = cut_in_parts(tmp_path, files, memory="32MB")
    again = Autoencoder(**STREAM, memory="64MB").fit(files, checkpoint=folder, resume=True)
    assert told(again)[1:] == told(whole)[1:]


def test_another_memory_that_changes_the_order_is_refused_in_words(tmp_path, monkeypatch):
    files = streamed(tmp_path)
    monkeypatch.setattr(stream, "PEAK", 10_000)
    monkeypatch.setattr(stream, "WINDOW", 5000)
    folder = cut_in_parts(tmp_path, files, memory="32MB")
    began = r"the run read rows in parts within 32\.0 MB, and with this memory it would read "
    ending = r", in another order; leave memory out to go on as it began, or fit anew"
    with pytest.raises(InputError, match=began + r"rows in parts within 64\.0 MB" + ending):
        Autoencoder(**STREAM, memory="64MB").fit(files, checkpoint=folder, resume=True)
    monkeypatch.setattr(stream, "PEAK", 4)
    with pytest.raises(InputError, match=began + "all rows at once" + ending):
        Autoencoder(**STREAM, memory="64MB").fit(files, checkpoint=folder, resume=True)


@pytest.mark.parametrize("fast", [(True, True), (True, False), (False, True)], ids=str)
def test_a_run_goes_on_in_the_format_it_was_in(tmp_path, monkeypatch, fast):
    X = np.tanh(rows(400, 20)) + 0.1 * np.random.default_rng(1).normal(size=(400, 20))
    monkeypatch.setattr(precision, "WIDE", 0)
    arguments = {"latent": 3, "recipe": "dense", "hidden": (16,), "epochs": 8, "seed": 1}
    now = [fast[0]]
    monkeypatch.setattr(precision, "fast_bfloat16", lambda device: now[0])
    whole = Autoencoder(**arguments).fit(X)
    with pytest.raises(Killed):
        Autoencoder(**arguments).fit(X, checkpoint=tmp_path / "run", watch=killing(30))
    now[0] = fast[1]
    again = Autoencoder(**arguments).fit(X, checkpoint=tmp_path / "run", resume=True)
    low, single = (any(word in r for r in again.reasons_) for word in ("in bfloat16", "single"))
    if fast == (True, False):  # it began in bfloat16, and goes on without
        assert single
        assert told(again)[1][:2] == told(whole)[1][:2]
        assert len(again.history_) == len(whole.history_)
        assert again.run_.best["valid_loss"] == pytest.approx(
            whole.run_.best["valid_loss"], rel=0.01
        )
        return
    assert low == fast[0]
    assert told(again)[1:] == told(whole)[1:]
    for key, value in told(whole)[0].items():
        assert torch.equal(told(again)[0][key], value), key


def test_a_run_that_is_interrupted_before_it_looks_at_held_out_rows(tmp_path, monkeypatch):
    from refold.training import fit as loop

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(loop, "evaluate", interrupted)
    with pytest.warns(UserWarning, match="interrupted"):
        ae = Autoencoder(2, epochs=9).fit(rows(), checkpoint=tmp_path / "run")
    assert ae.run_.stopped == "interrupted"
    assert ae.history_ == []
    assert not (tmp_path / "run").exists()
    assert ae.transform(rows()).shape == (150, 2)
    ae.save(tmp_path / "model")
    assert Autoencoder.load(tmp_path / "model").history_ == []


def test_a_damaged_checkpoint_is_refused(tmp_path):
    folder = cut(tmp_path)
    (file,) = folder.glob("*.safetensors")
    data = bytearray(file.read_bytes())
    data[-3] ^= 1
    file.write_bytes(data)
    with pytest.raises(InputError, match="is damaged"):
        Autoencoder(2, epochs=9).fit(rows(), checkpoint=folder, resume=True)
    file.write_bytes(data[: len(data) // 2])
    with pytest.raises(InputError, match="is damaged"):
        Autoencoder(2, epochs=9).fit(rows(), checkpoint=folder, resume=True)


def test_nothing_to_resume_is_said_and_a_folder_is_needed(tmp_path):
    ae = Autoencoder(2, epochs=1).fit(rows(), checkpoint=tmp_path / "run", resume=True)
    assert any("begun anew" in reason for reason in ae.reasons_)
    with pytest.raises(InputError, match="give checkpoint="):
        Autoencoder(2).fit(rows(), resume=True)


def test_a_disk_that_is_full_does_not_end_a_run(tmp_path, monkeypatch):
    def full(path, kept):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "write", full)
    with pytest.warns(UserWarning, match="no checkpoint was written: .*No space left"):
        ae = Autoencoder(2, epochs=2).fit(rows(), checkpoint=tmp_path / "run")
    assert ae.run_.stopped == "the budget was used"


@pytest.mark.parametrize(
    ("options", "ended"),
    [
        ({"epochs": 9}, "no improvement in 5 evaluations"),
        ({"epochs": 9, "patience": 100}, "the budget was used"),
    ],
)
def test_an_interrupted_run_keeps_its_checkpoint(tmp_path, options, ended):
    def watch(progress):
        if progress.step >= 20:
            raise KeyboardInterrupt

    with pytest.warns(UserWarning, match="interrupted"):
        ae = Autoencoder(2, **options).fit(rows(), checkpoint=tmp_path / "run", watch=watch)
    ae.save(tmp_path / "model")
    resumed = Autoencoder(2, **options).fit(rows(), checkpoint=tmp_path / "run", resume=True)
    whole = Autoencoder(2, **options).fit(rows())
    assert told(resumed)[1:] == told(whole)[1:]
    assert resumed.run_.stopped == ended
    resumed.save(tmp_path / "model")
    assert not (tmp_path / "run").exists()


def test_checkpoints_come_at_most_so_often(tmp_path, monkeypatch):
    monkeypatch.undo()
    clock = [0.0]
    monkeypatch.setattr(checkpoint.time, "perf_counter", lambda: clock[0])
    kept = Checkpoints(tmp_path / "run", {}, every=30.0)
    kept.begin(lambda: "rows")
    clock[0] = 29.0
    assert not kept.due()
    clock[0] = 30.0
    assert kept.due()
    monkeypatch.setattr(checkpoint, "write", lambda path, kept: clock.__setitem__(0, 33.0))
    kept.write(Kept({}, {}))  # took three seconds, so the next is due after 150
    clock[0] = 182.0
    assert not kept.due()
    clock[0] = 183.0
    assert kept.due()


def test_a_checkpoint_comes_back_as_it_was(tmp_path):
    tensors = {"a/x": torch.randn(3, 2).T, "a/n": torch.tensor(4), "b/bytes": torch.get_rng_state()}
    values = {"loss": 0.1 + 0.2, "none": None, "end": float("inf")}
    checkpoint.write(tmp_path / "0.safetensors", Kept(values, tensors))
    again = checkpoint.read(tmp_path / "0.safetensors")
    assert again.values == values
    assert {k: v.dtype for k, v in again.tensors.items()} == {
        k: v.dtype for k, v in tensors.items()
    }
    assert all(torch.equal(again.tensors[k], v) for k, v in tensors.items())
    assert set(again.part("a")) == {"x", "n"}


SCRIPT = """
import sys
from refold.training.checkpoint import Checkpoints
Checkpoints.due = lambda self: True
from refold.cli import main
sys.argv = ["refold", *sys.argv[1:]]
main()
"""


def test_a_killed_process_is_resumed_on_the_command_line(tmp_path):
    np.savetxt(tmp_path / "rows.csv", rows(2000), delimiter=",", header="a,b,c,d,e,f", comments="")

    def command(out, *more):
        return [
            sys.executable, "-c", SCRIPT, "fit", str(tmp_path / "rows.csv"), "--out", str(out),
            "--epochs", "60", "--set", "patience=1000", *more,
        ]  # fmt: skip

    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    file = tmp_path / "cut.unfinished" / "0.safetensors"
    process = subprocess.Popen(command(tmp_path / "cut", "-q"), env=environment)
    while not file.exists() or checkpoint.read(file).values["step"] < 100:
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "cut").exists()
    step = checkpoint.read(file).values["step"]
    again = subprocess.run(
        command(tmp_path / "cut", "--resume", "--json"),
        env=environment, capture_output=True, check=True,
    )  # fmt: skip
    assert f"taken up at step {step:,}" in " ".join(json.loads(again.stdout)["reasons"])
    subprocess.run(command(tmp_path / "whole", "-q"), env=environment, check=True)
    assert sorted(Path(p).name for p in tmp_path.iterdir()) == ["cut", "rows.csv", "whole"]
    cut, whole = (Autoencoder.load(tmp_path / name) for name in ("cut", "whole"))
    assert step < whole.history_[-1]["step"]
    left, right = cut.model_.state_dict(), whole.model_.state_dict()
    assert all(torch.equal(left[k], right[k]) for k in right)
    for a, b in zip(cut.history_, whole.history_, strict=True):
        assert {**a, "seconds": 0} == {**b, "seconds": 0}
