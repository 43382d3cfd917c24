"""The command line, as the people who use it find it: their mistakes, and their good days."""

import csv
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import refold
import refold.report  # before a test puts something in the place of what it imports
from refold import cli
from refold.cli.settings import constructor_arguments, fits
from refold.data.sources import read
from refold.modelfile import _checksum
from refold.recipe import RECIPES

HEADER = ["score", "p_value", "is_anomaly", "cause"]
COMMANDS = (
    "fit", "embed", "reconstruct", "score", "sample", "report", "compare", "recipes", "demo",
)  # fmt: skip


class Ran(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def run(capsys, monkeypatch):
    """Run the command line in this process."""

    def run(*words) -> Ran:
        monkeypatch.setattr(sys, "argv", ["refold", *map(str, words)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        said = capsys.readouterr()
        return Ran(ended.value.code or 0, said.out, said.err)

    return run


@pytest.fixture
def refuses(run, tmp_path):
    """Run the command line and expect one sentence with the given words, and nothing written."""

    def refuses(*words, says=(), beside=tmp_path) -> str:
        before = listing(beside)
        code, out, err = run(*words)
        assert (code, out) == (2, ""), err
        assert err.startswith("error: ")
        assert err.count("\n") == 1, "one sentence, on one line"
        assert "Traceback" not in err
        for word in (says,) if isinstance(says, str) else says:
            assert word in err
        assert listing(beside) == before, "something was left behind"
        return err

    return refuses


def listing(folder: Path) -> dict[str, bytes | None]:
    return {
        str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None
        for p in sorted(folder.rglob("*"))
    }


def frame(n: int = 40, seed: int = 0) -> pd.DataFrame:
    draw = np.random.default_rng(seed)
    base = draw.normal(size=n)
    table = pd.DataFrame(
        {
            "length": base.round(4),
            "mass": (3 * base + draw.normal(size=n)).round(4),
            "age": draw.integers(1, 90, n),
            "city": draw.choice(["Bern", "Graz", "Wien"], n),
            "paid": draw.choice([True, False], n),
        }
    )
    table["paid"] = table["paid"].astype(object)
    table.loc[3, "mass"] = np.nan
    table.loc[5, "city"] = None
    return table


def images(folder: Path, n: int = 12, side: int = 8) -> Path:
    folder.mkdir()
    draw = np.random.default_rng(0)
    for i in range(n):
        pixels = draw.integers(0, 255, (side, side), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:03d}.png")
    return folder


@pytest.fixture
def data(tmp_path) -> Path:
    frame().to_csv(tmp_path / "data.csv", index=False)
    return tmp_path / "data.csv"


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A model of :func:`frame` that can sample; tests that change it copy it."""
    folder = tmp_path_factory.mktemp("trained")
    frame().to_csv(folder / "data.csv", index=False)
    arguments = constructor_arguments(
        recipe="vae", latent=2, epochs=1, seed=0, ignore=(), settings=()
    )
    refold.Autoencoder(**arguments).fit(folder / "data.csv").save(folder / "model")
    return folder / "model"


@pytest.fixture(scope="module")
def dense(tmp_path_factory) -> Path:
    """A model of an array that cannot sample."""
    folder = tmp_path_factory.mktemp("dense")
    x = np.random.default_rng(0).normal(size=(30, 4))
    refold.Autoencoder(latent=2, epochs=1).fit(x).save(folder / "model")
    return folder / "model"


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    """A model of images of 8x8 pixels."""
    folder = tmp_path_factory.mktemp("pictures")
    images(folder / "train")
    refold.Autoencoder(latent=2, epochs=1).fit(folder / "train").save(folder / "model")
    return folder / "model"


# --- data that cannot be read ------------------------------------------------------------------

BROKEN = {
    "empty": (b"", "empty"),
    "blank": (b"\n\n", "empty"),
    "header only": (b"a,b\n", "no rows"),
    "ragged": (b"a,b\n1,2\n1,2,3\n", ("line 3", "3 cells", "2")),
    "short line": (b"a,b\n1,2\n1\n", ("line 3", "1 cells")),
    "all missing": (b"a,b\n1,\n2,\n3,\n", ("column 'b'", "no value", "--ignore b")),
    "one row": (b"a,b\n1,2\n", ("1 sample", "minimum of 2")),
    "infinity": (b"a,b\n1,2\ninf,3\n0,5\n", ("column 'a'", "infinity", "row 1")),
    "duplicate": (b"a,a\n1,2\n3,4\n", "'a'"),
    "constant": (b"a,b\n1,x\n1,x\n1,x\n", "no column is left"),
    "binary": (b"a,b\n\x00\x01,2\n", "binary data"),
    "not utf-8": (b"name\nM\xfcller\nMaier\n", "UTF-8"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_table_is_one_sentence(kind, refuses, tmp_path):
    content, says = BROKEN[kind]
    (tmp_path / "data.csv").write_bytes(content)
    refuses("fit", tmp_path / "data.csv", "--out", tmp_path / "model", says=says)


def test_no_such_file(refuses, tmp_path):
    missing = tmp_path / "missing.csv"
    refuses("fit", missing, "--out", tmp_path / "m", says=(str(missing), "no such file"))
    refuses("fit", tmp_path / "*.csv", "--out", tmp_path / "m", says="no file matches")
    (tmp_path / "folder").mkdir()
    refuses("fit", tmp_path / "folder", "--out", tmp_path / "m", says="no images")


@pytest.mark.parametrize("value", [np.inf, -np.inf])
@pytest.mark.parametrize("shape", [(30, 3), (30, 5, 5)])
def test_infinity_in_an_array(value, shape, refuses, tmp_path):
    x = np.random.default_rng(0).normal(size=shape)
    x[(2,) + (1,) * (len(shape) - 1)] = value
    np.save(tmp_path / "x.npy", x)
    refuses("fit", tmp_path / "x.npy", "--out", tmp_path / "m", says=("infinity", "row 2"))


def test_a_corrupt_image(refuses, tmp_path):
    folder = images(tmp_path / "images")
    whole = (folder / "004.png").read_bytes()
    (folder / "004.png").write_bytes(whole[: len(whole) // 2])
    refuses("fit", folder, "--out", tmp_path / "m", says=("004.png", "corrupt"))


def test_an_image_of_another_size(refuses, tmp_path):
    folder = images(tmp_path / "images")
    Image.new("L", (9, 8)).save(folder / "007.png")
    refuses("fit", folder, "--out", tmp_path / "m", says=("007.png", "9x8", "8x8", "resize"))


def test_a_truncated_archive(refuses, tmp_path):
    np.savez(tmp_path / "x.npz", X=np.zeros((30, 3)))
    whole = (tmp_path / "x.npz").read_bytes()
    (tmp_path / "x.npz").write_bytes(whole[:100])
    refuses("fit", tmp_path / "x.npz", "--out", tmp_path / "m", says="x.npz")


# --- models that are none ----------------------------------------------------------------------


def test_what_is_no_model(refuses, tmp_path, data):
    (tmp_path / "folder").mkdir()
    for model, says in (
        (tmp_path / "missing", "no such folder"),
        (tmp_path / "folder", "is no refold model"),
        (data, "is no refold model"),
    ):
        refuses("score", model, data, "--out", tmp_path / "s.csv", says=(says, str(model)))
        refuses("sample", model, "--out", tmp_path / "s.csv", says=says)


@pytest.fixture
def copied(trained, tmp_path) -> Path:
    return shutil.copytree(trained, tmp_path / "model")


@pytest.mark.parametrize(
    "name", ["config.json", "model.safetensors", "calibration.safetensors", "history.csv"]
)
@pytest.mark.parametrize("place", [0.0, 0.5, 0.999])
def test_one_flipped_byte_is_found(name, place, copied, data, refuses, tmp_path):
    content = bytearray((copied / name).read_bytes())
    content[int(place * (len(content) - 1))] ^= 1
    (copied / name).write_bytes(content)
    refuses("embed", copied, data, "--out", tmp_path / "z.csv", says=(str(copied), name))


@pytest.mark.parametrize("keep", [0, 4, 0.5])
def test_truncated_weights_are_found(keep, copied, data, refuses, tmp_path):
    weights = copied / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: int(keep * len(whole)) if keep < 1 else keep])
    refuses("score", copied, data, "--out", tmp_path / "s.csv", says=("model.safetensors", "copy"))


def test_a_missing_part_is_found(copied, data, refuses, tmp_path):
    (copied / "history.csv").unlink()
    refuses("score", copied, data, "--out", tmp_path / "s.csv", says=("history.csv", "incomplete"))


@pytest.mark.parametrize("sealed", [True, False])
def test_a_model_of_a_newer_format(sealed, copied, data, refuses, tmp_path):
    config = json.loads((copied / "config.json").read_text())
    config["format"] += 1
    if sealed:  # as a newer version would write it
        del config["checksum"]
        config["checksum"] = _checksum(config)
    (copied / "config.json").write_text(json.dumps(config))
    says = ("newer refold", "format 2", "up to 1", "pip install --upgrade")
    refuses("score", copied, data, "--out", tmp_path / "s.csv", says=says)


# --- places that cannot be written -------------------------------------------------------------

NOWHERE = {"parent missing": "no/such/place", "under a file": "data.csv/place"}


@pytest.mark.parametrize("place", NOWHERE.values(), ids=NOWHERE)
def test_an_unwritable_place_is_found_before_any_work(
    place, refuses, tmp_path, data, trained, dense, monkeypatch
):
    monkeypatch.setattr("refold.data.sources.read", lambda _: pytest.fail("read before checking"))
    to = tmp_path / place
    refuses("fit", data, "--out", to, says=(str(to), "no folder"))
    for command in ("embed", "reconstruct", "score"):
        refuses(command, trained, data, "--out", f"{to}.csv", says=(str(to), "no folder"))
    refuses("sample", trained, "--out", f"{to}.csv", says="no folder")
    refuses("report", trained, "--out", f"{to}.html", says="no folder")
    refuses("demo", "--out", to, says="no folder")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder(refuses, tmp_path, data, trained):
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    refuses("fit", data, "--out", locked / "m", says="no permission")
    refuses("score", trained, data, "--out", locked / "s.csv", says="no permission")


def test_a_place_that_is_taken_is_found_before_any_work(refuses, tmp_path, data, monkeypatch):
    monkeypatch.setattr("refold.data.sources.read", lambda _: pytest.fail("read before checking"))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("years of work")
    refuses("fit", data, "--out", tmp_path / "full", says=("full", "holds other things"))
    refuses("fit", data, "--out", data, says=("it is a file", "new folder"))
    refuses("demo", "--out", data, says="it is a file")


def test_the_data_is_never_written_over(refuses, data, trained, tmp_path):
    for command in ("embed", "reconstruct", "score"):
        refuses(command, trained, data, "--out", data, says="is the data itself")
    (tmp_path / "link.csv").symlink_to(data)
    refuses("score", trained, data, "--out", tmp_path / "link.csv", says="is the data itself")
    refuses("report", trained, data, "--out", data, says=".html")


@pytest.mark.parametrize("name", ["s.xlsx", "s.csv.bak", "s.pkl"])
def test_an_unknown_ending_is_found_before_any_work(
    name, refuses, tmp_path, data, trained, monkeypatch
):
    monkeypatch.setattr("refold.estimator.load", lambda _: pytest.fail("loaded before checking"))
    says = ("unknown ending", Path(name).suffix, ".csv", ".parquet")
    for command in ("embed", "reconstruct", "score"):
        refuses(command, trained, data, "--out", tmp_path / name, says=says)
    refuses("sample", trained, "--out", tmp_path / name, says=says)
    refuses("report", trained, "--out", tmp_path / name, says="report.html")


def full_disk(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("after", ["old", "nothing"])
def test_a_full_disk_leaves_what_was_there(after, refuses, tmp_path, data, trained, monkeypatch):
    outputs = ("z.csv", "z.parquet", "z.npy", "z.jsonl")
    if after == "old":
        shutil.copytree(trained, tmp_path / "model")
        for name in outputs:
            (tmp_path / name).write_text("good and old")
    monkeypatch.setattr("refold.data.sinks.os.fsync", full_disk)
    refuses(
        "fit", data, "--epochs", 1, "--out", tmp_path / "model",
        says=("no space left", str(tmp_path / "model")),
    )  # fmt: skip
    for name in outputs:
        refuses("embed", trained, data, "--out", tmp_path / name, says=("no space left", name))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_disk_behind_stdout():
    with Path("/dev/full").open("w") as full:
        ran = subprocess.run(
            [sys.executable, "-m", "refold", "recipes"],
            stdout=full, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
    assert ran.returncode == 2
    assert ran.stderr.startswith("error: cannot print the outcome: No space left")
    assert "Traceback" not in ran.stderr


# --- options -----------------------------------------------------------------------------------

TYPED = {
    "fusion=3": "a name",
    "lr=fast": "a number",
    "lr=": "a number",
    "lr=nan": "a number",
    "lr=True": "a number",
    "epochs=abc": "a whole number",
    "labelled=some": "a whole number",
    "evidence=5": "names with commas",
    "memory=[1]": "a whole number or a name",
    "contamination=[1]": "a number or a name",
    "epochs=1.5": "a whole number",
    "epochs=True": "a whole number",
    "batch_size=big": "a whole number",
    "batch_size=2.5": "a whole number",
    "patience=z": "a whole number",
    "seed=x": "a whole number",
    "seed=1.5": "a whole number",
    "latent=2.5": "a whole number or a name",
    "hidden=a,b": "whole numbers with commas",
    "hidden=1.5": "whole numbers with commas",
    "hidden='a','b'": "whole numbers with commas",
    "optimizer=7": "a name",
    "schedule=3": "a name",
    "recipe=3": "a name",
    "precision=4": "a name",
    "device=9": "a name",
    "parallel=9": "a name",
    "corruption=3": "a name",
    "penalties=3": "names with commas",
    "weights=3": "a name or {'field': number",
    "weights={'numeric': 'x'}": "a name or {'field': number",
    "validation=x": "a number",
    "tied=1.5": "True or False or a name or whole numbers with commas",
    "pretrain=5": "a name",
    "freeze=4": "names with commas",
    "min_delta=x": "a number",
}


@pytest.mark.parametrize("setting", TYPED)
def test_a_setting_of_the_wrong_type(setting, refuses, tmp_path):
    key = setting.partition("=")[0]
    # The data does not exist: the setting is wrong before anything is read.
    refuses(
        "fit", "nowhere.csv", "--out", tmp_path / "m", "--set", setting,
        says=(f"--set {key}=", "got", f"expected {TYPED[setting]}"),
    )  # fmt: skip


def test_every_constructor_parameter_has_a_type_that_is_checked():
    hidden = {"fields", "verbose"}
    named = {setting.partition("=")[0] for setting in TYPED}
    assert named == set(refold.Autoencoder().get_params()) - hidden


def test_several_parts_have_commas_between():
    arguments = constructor_arguments(
        recipe=None, latent=None, epochs=None, seed=0, ignore=[],
        settings=["evidence=errors, neighbours(groups=(16, 64))", "corruption=gaussian(std=0.1)"],
    )  # fmt: skip
    assert arguments["evidence"] == ("errors", "neighbours(groups=(16, 64))")
    assert arguments["corruption"] == "gaussian(std=0.1)"


def test_a_mistyped_setting_of_a_monitor(refuses, tmp_path):
    refuses(
        "fit", "nowhere.csv", "--series", "--out", tmp_path / "m", "--set", "windw=3",
        says=("unknown setting 'windw'", "did you mean 'window'"),
    )  # fmt: skip


def test_values_of_the_right_type_pass():
    arguments = constructor_arguments(
        recipe=None, latent=None, epochs=None, seed=0, ignore=["id"],
        settings=["hidden=64", "lr=1", "penalties=contractive", "weights={'numeric': 2}",
                  "patience=None", "field.zip=categorical", "validation=0"],
    )  # fmt: skip
    assert arguments["hidden"] == (64,)
    assert arguments["penalties"] == ("contractive",)
    assert arguments["weights"] == {"numeric": 2}
    assert (arguments["lr"], arguments["patience"], arguments["validation"]) == (1, None, 0)
    assert arguments["fields"] == {"id": "ignore", "zip": "categorical"}
    for name, default in refold.Autoencoder().get_params().items():
        hint = refold.Autoencoder.__init__.__annotations__[name]
        assert fits(default, eval(hint, vars(sys.modules["refold.estimator"]))), name


WRONG = {
    ("--recipe", "vea"): ("'vea'", "did you mean 'vae'?"),
    ("--latent", "0"): ("latent", "is 0", "from 1 to"),
    ("--latent", "-3"): ("latent", "is -3"),
    ("--latent", "two"): ("--latent is 'two'", "as 16", "known: batch_topk"),
    ("--latent", "0.95"): ("--latent is '0.95'", "the size of the code"),
    ("--latent", "4x"): ("--latent is '4x'", "topk(size=64, k=8)"),
    ("--latent", "topk(q=3)"): ("unknown option of latent 'topk' 'q'",),
    ("--epochs", "-1"): ("epochs is -1", "0 or more"),
    ("--epochs", "many"): ("--epochs", "integer"),
    ("--seed", "x"): ("--seed", "integer"),
    ("--seed", "-1"): ("--seed",),
    ("--latnt", "3"): ("--latnt", "--latent", "refold fit --help"),
    ("--set", "latnt=3"): ("'latnt'", "did you mean 'latent'?"),
    ("--set", "verbose=1"): ("'verbose'",),
    ("--set", "lr"): ("--set lr", "key=value"),
    ("--set", "=3"): ("key=value",),
    ("--set", "lr=0"): ("lr is 0", "above 0"),
    ("--set", "validation=1"): ("validation is 1",),
    ("--set", "batch_size=0"): ("batch_size is 0",),
    ("--set", "hidden=0"): ("hidden", "1 or more"),
    ("--set", "optimizer=adamm"): ("did you mean 'adam",),
    ("--set", "schedule=cosin"): ("did you mean 'cosine'?",),
    ("--set", "precision=bfloat"): ("did you mean 'bfloat16'?",),
    ("--set", "weights=balancd"): ("did you mean 'balanced'?",),
    ("--set", "corruption=gausian"): ("did you mean 'gaussian'?",),
    ("--set", "latent=topk(kk=3)"): ("'topk'", "'kk'", "did you mean 'k'?"),
    ("--set", "latent=topk(k=3"): ("cannot read 'topk(k=3'",),
    ("--set", "corruption.std=3"): ("no corruption", "--set corruption=NAME"),
    ("--set", "field.cty=numeric"): ("unknown column 'cty'", "did you mean 'city'?"),
    ("--set", "field.city=categoricl"): ("did you mean 'categorical'?",),
    ("--set", "field.city=numeric"): ("'city'", "no number"),
    ("--set", "field.city=binary"): ("'city'", "3 levels", "categorical"),
    ("--ignore", "cty"): ("unknown column 'cty'", "did you mean 'city'?"),
}


@pytest.mark.parametrize("option", WRONG, ids=" ".join)
def test_a_wrong_option(option, refuses, tmp_path, data):
    refuses("fit", data, "--out", tmp_path / "m", *option, says=WRONG[option])


def test_an_unknown_recipe_is_found_before_the_data_is_read(refuses, tmp_path):
    refuses("fit", "nowhere.csv", "--out", tmp_path / "m", "--recipe", "vea", says="'vae'")


def test_commands_that_are_none(refuses):
    refuses("fti", says=("fti", "fit", "refold --help"))
    refuses("--bogus", says=("--bogus", "refold --help"))
    refuses("fit", says=("DATA", "refold fit --help"))
    refuses("score", "m", "d.csv", says=("--out", "refold score --help"))
    refuses("recipes", "extra", says=("extra", "refold recipes --help"))


@pytest.mark.parametrize("alpha", ["0", "1", "-1", "nan"])
def test_alpha_is_a_probability(alpha, refuses, trained, data, tmp_path):
    to = tmp_path / "s.csv"
    refuses(
        "score", trained, data, "--out", to, "--alpha", alpha, says=("alpha", "between 0 and 1")
    )


# --- data that does not fit the model ----------------------------------------------------------


def test_data_with_none_of_the_columns(refuses, trained, tmp_path):
    (tmp_path / "other.csv").write_text("x,y\n1,2\n3,4\n")
    for command in ("embed", "reconstruct", "score"):
        refuses(
            command, trained, tmp_path / "other.csv", "--out", tmp_path / "o.csv",
            says=("none of the", "'length'", "'x'"),
        )  # fmt: skip


def test_text_among_numbers(refuses, trained, tmp_path):
    wrong = frame()
    wrong["mass"] = wrong["mass"].astype(object)
    wrong.loc[2, "mass"] = "heavy"
    wrong.to_csv(tmp_path / "wrong.csv", index=False)
    refuses(
        "score", trained, tmp_path / "wrong.csv", "--out", tmp_path / "s.csv",
        says=("'mass'", "heavy", "no number"),
    )  # fmt: skip


def test_images_of_another_size_than_in_training(refuses, pictures, tmp_path):
    folder = images(tmp_path / "large", side=9)
    refuses(
        "score", pictures, folder, "--out", tmp_path / "s.csv",
        says=("(9, 9)", "(8, 8)", "training"),
    )  # fmt: skip


def test_rows_of_another_width_than_in_training(refuses, dense, tmp_path):
    np.save(tmp_path / "wide.npy", np.zeros((5, 7)))
    refuses(
        "embed", dense, tmp_path / "wide.npy", "--out", tmp_path / "z.csv",
        says=("7", "4", "training"),
    )  # fmt: skip


def test_a_model_that_cannot_sample(refuses, dense, tmp_path):
    says = ("'plain'", "cannot sample", "gaussian", "--recipe vae")
    refuses("sample", dense, "--out", tmp_path / "s.csv", says=says)


def test_samples_are_counted_from_one(refuses, trained, tmp_path):
    refuses("sample", trained, "--n", "0", "--out", tmp_path / "s.csv", says="0 samples")


def test_images_fit_into_no_table(refuses, pictures, tmp_path):
    folder = images(tmp_path / "images")
    refuses("reconstruct", pictures, folder, "--out", tmp_path / "r.csv", says=("images", ".npy"))


def test_codes_fit_into_no_folder(refuses, trained, data, tmp_path):
    refuses("embed", trained, data, "--out", tmp_path / "codes", says="codes.csv")


def test_a_report_without_its_extra(refuses, trained, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "jinja2", None)
    says = ("jinja2", "pip install 'refold[report]'")
    refuses("report", trained, "--out", tmp_path / "r.html", says=says)


# --- help --------------------------------------------------------------------------------------


def test_no_arguments_show_the_help_and_do_nothing(run):
    code, out, err = run()
    assert (code, out) == (2, "")
    assert all(f"\n  {name} " in err for name in COMMANDS)


def test_help_and_version(run):
    assert run("--version") == (0, f"refold {refold.__version__}\n", "")
    for word in ("--help", "-h"):
        code, out, err = run(word)
        assert (code, err) == (0, "")
        assert all(f"\n  {name} " in out for name in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command, run):
    code, out, err = run(command, "--help")
    assert (code, err) == (0, "")
    assert out.startswith(f"Usage: refold {command} ")
    options = [line for line in out.splitlines() if line.lstrip().startswith("-")]
    assert options
    for line in options:
        assert len(line.split("  ", 2)[-1].split()) > 1, f"no word of help: {line}"


LIGHT = """
import sys
import refold, refold.cli
for words in (["--help"], ["fit", "--help"], ["--version"], ["recipes"], ["fit"], []):
    sys.argv = ["refold", *words]
    try:
        refold.cli.main()
    except SystemExit:
        pass
heavy = {"torch", "numpy", "pyarrow", "pandas", "sklearn"} & set(sys.modules)
sys.exit(f"imported {heavy}" if heavy else 0)
"""


def test_help_imports_nothing_heavy():
    ran = subprocess.run([sys.executable, "-c", LIGHT], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr


def test_recipes(run):
    code, out, err = run("recipes")
    assert (code, err) == (0, "")
    assert [line.split()[0] for line in out.splitlines()] == list(RECIPES)
    assert list(json.loads(run("recipes", "--json").out)) == list(RECIPES)


# --- good days ---------------------------------------------------------------------------------


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def whole_job(run, source: Path, folder: Path, ending: str, *options) -> None:
    """Fit, embed, reconstruct, score and sample; every output has what it should."""
    table = read(source)
    n, model = len(table), folder / "model"
    fit = run("fit", source, "--out", model, "--epochs", 1, "--latent", 3, *options)
    assert (fit.code, fit.err) == (0, "")
    assert "saved" in fit.out
    embed = run("embed", model, source, "--out", folder / "z.csv")
    assert (embed.code, embed.err) == (0, "")
    codes = pd.read_csv(folder / "z.csv")
    assert list(codes.columns) == ["latent0", "latent1", "latent2"]
    assert len(codes) == n
    assert np.isfinite(codes.to_numpy()).all()
    score = run("score", model, source, "--out", folder / "s.csv", "--alpha", "0.5")
    assert (score.code, score.err) == (0, "")
    judged = rows(folder / "s.csv")
    assert list(judged[0]) == HEADER
    assert len(judged) == n
    np.testing.assert_allclose(
        [float(r["score"]) for r in judged], refold.load(model).score_samples(source), rtol=1e-5
    )
    again = folder / f"again{ending}"
    assert run("reconstruct", model, source, "--out", again).code == 0
    rebuilt = read(again)
    assert len(rebuilt) == n
    learnt = [c for c in table.columns if c not in table.aside]
    assert list(rebuilt.columns) == learnt
    drawn = folder / f"drawn{ending}"
    assert run("sample", model, "--n", 7, "--out", drawn).code == 0
    sampled = read(drawn)
    assert len(sampled) == 7
    assert list(sampled.columns) == learnt


@pytest.mark.parametrize("ending", [".csv", ".tsv", ".parquet", ".feather", ".jsonl"])
def test_the_whole_job_on_a_table(ending, run, tmp_path):
    table, source = frame(), tmp_path / f"data{ending}"
    table["paid"] = table["paid"].astype(bool)
    match ending:
        case ".parquet":
            table.to_parquet(source)
        case ".feather":
            table.to_feather(source)
        case ".jsonl":
            table.to_json(source, orient="records", lines=True)
        case _:
            table.to_csv(source, index=False, sep="\t" if ending == ".tsv" else ",")
    whole_job(run, source, tmp_path, ending, "--recipe", "vae")


def test_the_whole_job_on_an_array(run, tmp_path):
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(40, 5)).astype(np.float32))
    whole_job(run, tmp_path / "x.npy", tmp_path, ".npy", "--recipe", "vae")
    rebuilt = np.load(tmp_path / "again.npy")
    assert (rebuilt.shape, rebuilt.dtype) == ((40, 5), np.float32)


def test_the_whole_job_on_an_archive_with_labels(run, tmp_path):
    draw = np.random.default_rng(0)
    np.savez(tmp_path / "x.npz", X=draw.normal(size=(40, 5)), y=draw.integers(0, 2, 40))
    whole_job(run, tmp_path / "x.npz", tmp_path, ".npz", "--recipe", "vae")
    with np.load(tmp_path / "again.npz") as archive:
        assert archive.files == ["X"], "labels are not part of the rows"


def test_the_whole_job_on_images(run, tmp_path):
    whole_job(run, images(tmp_path / "images", n=24), tmp_path, "", "--recipe", "vae")
    assert [p.name for p in sorted((tmp_path / "drawn").iterdir())] == [
        f"{i:06d}.png" for i in range(7)
    ]


@pytest.mark.parametrize("name", ["penguins", "titanic"])
def test_the_whole_job_on_real_tables(name, run, tmp_path, shared):
    source = shared / "tables" / f"{name}.csv"
    whole_job(run, source, tmp_path, ".csv", "--recipe", "vae")
    given, rebuilt = pd.read_csv(source), pd.read_csv(tmp_path / "again.csv")
    assert list(rebuilt.columns) == list(given.columns)
    model = refold.load(tmp_path / "model")
    for field in model.schema_.fields.values():
        for column in field.columns:
            assert rebuilt[column].notna().all(), f"{column} was not filled"
    whole = [c for c in given.columns if pd.api.types.is_integer_dtype(given[c])]
    assert all(pd.api.types.is_integer_dtype(rebuilt[c]) for c in whole)


def test_every_row_is_scored_in_order(run, trained, tmp_path):
    table = frame(50, seed=3)
    table.loc[17, "mass"] = 900.0
    for part, name in ((table, "all"), (table.iloc[::-1], "reversed")):
        part.to_csv(tmp_path / f"{name}.csv", index=False)
        to = tmp_path / f"{name}.scores.csv"
        assert (
            run("score", trained, tmp_path / f"{name}.csv", "--out", to, "--alpha", "0.2").code == 0
        )
    forward, backward = (rows(tmp_path / f"{n}.scores.csv") for n in ("all", "reversed"))
    assert [list(r) for r in forward] == [HEADER] * 50
    np.testing.assert_allclose(
        [float(r["score"]) for r in forward],
        [float(r["score"]) for r in backward[::-1]],
        rtol=1e-6,
    )
    lowest = min(range(50), key=lambda i: float(forward[i]["score"]))
    assert (lowest, forward[17]["cause"], forward[17]["is_anomaly"]) == (17, "mass", "true")


def test_a_missing_cell_is_filled_and_types_are_kept(run, trained, tmp_path):
    table = frame()
    table["age"] = table["age"].astype("Int64")
    table.loc[7, ["length", "age", "city", "paid"]] = None
    table.to_parquet(tmp_path / "holes.parquet")
    to = tmp_path / "again.parquet"
    assert run("reconstruct", trained, tmp_path / "holes.parquet", "--out", to).code == 0
    rebuilt = pd.read_parquet(to)
    assert list(rebuilt.columns) == list(table.columns)
    assert rebuilt.notna().to_numpy().all()
    assert pd.api.types.is_integer_dtype(rebuilt["age"])
    assert set(rebuilt["city"]) <= {"Bern", "Graz", "Wien"}
    assert {type(v) for v in rebuilt["paid"]} <= {bool, np.bool_}


def test_columns_in_another_order_change_nothing(run, trained, data, tmp_path):
    frame()[["paid", "city", "age", "mass", "length"]].to_csv(tmp_path / "o.csv", index=False)
    for source, to in ((data, "a.csv"), (tmp_path / "o.csv", "b.csv")):
        ran = run("score", trained, source, "--out", tmp_path / to, "--alpha", "0.5")
        assert (ran.code, ran.err) == (0, "")
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()


STRANGE = {
    "unseen": (lambda t: t.assign(city=["Rome", *t["city"][1:]]), ("'city'", "never seen", "Rome")),
    "absent": (lambda t: t.drop(columns="mass"), ("'mass'", "not in the data")),
    "extra": (lambda t: t.assign(colour="red"), ("'colour'", "ignored")),
    "far out": (lambda t: t.assign(length=[1e9, *t["length"][1:]]), ("'length'", "ten standard")),
}


@pytest.mark.parametrize("kind", STRANGE)
@pytest.mark.parametrize("command", ["embed", "reconstruct", "score"])
def test_strange_data_is_handled_and_said(kind, command, run, trained, tmp_path):
    change, says = STRANGE[kind]
    change(frame()).to_csv(tmp_path / "strange.csv", index=False)
    ran = run(command, trained, tmp_path / "strange.csv", "--out", tmp_path / "o.csv")
    assert ran.code == 0
    assert len(rows(tmp_path / "o.csv")) == 40
    assert ran.err.startswith("note: ")
    assert all(word in ran.err for word in says)
    assert len(set(ran.err.splitlines())) == len(ran.err.splitlines()), "said twice"
    quiet = run(command, trained, tmp_path / "strange.csv", "--out", tmp_path / "o.csv", "-q")
    assert quiet == (0, "", "")


def jobs(model: Path, data: Path, folder: Path) -> list[tuple]:
    return [
        ("fit", data, "--out", folder / "new", "--epochs", 1),
        ("embed", model, data, "--out", folder / "z.csv"),
        ("reconstruct", model, data, "--out", folder / "r.csv"),
        ("score", model, data, "--out", folder / "s.csv", "--alpha", "0.5"),
        ("sample", model, "--out", folder / "d.csv"),
    ]


def test_json_is_one_object_and_quiet_is_nothing(run, trained, data, tmp_path):
    for job in jobs(trained, data, tmp_path):
        said = run(*job, "--json")
        assert said.code == 0
        values = json.loads(said.out)
        assert said.out.count("\n") == 1
        assert values["out"] == str(job[job.index("--out") + 1])
        assert run(*job, "--quiet") == (0, "", "")


def test_json_has_no_number_that_json_has_not(capsys):
    from refold.cli.screen import say

    values = {"a": float("nan"), "b": [float("inf"), 1.5], "c": {"d": float("-inf")}}
    say([], values, as_json=True, quiet=False)
    assert capsys.readouterr().out == '{"a": null, "b": [null, 1.5], "c": {"d": null}}\n'


def test_no_progress_bar_and_no_colour_without_a_terminal(run, trained, data, tmp_path):
    for job in jobs(trained, data, tmp_path):
        said = run(*job)
        assert (said.code, said.err) == (0, "")
        assert not {"\x1b", "\r", "━", "%|"} & set(said.out)


def test_the_same_seed_gives_the_same_files(run, trained, data, tmp_path):
    for name in ("one", "two"):
        folder = tmp_path / name
        folder.mkdir()
        model = folder / "model"
        run("fit", data, "--out", model, "--epochs", 2, "--recipe", "vae", "--seed", 5)
        run("sample", model, "--n", 5, "--seed", 3, "--out", folder / "drawn.csv")
        run("score", model, data, "--out", folder / "scores.csv")
    one, two = tmp_path / "one", tmp_path / "two"
    for name in (
        "drawn.csv",
        "scores.csv",
        "model/model.safetensors",
        "model/calibration.safetensors",
    ):
        assert (one / name).read_bytes() == (two / name).read_bytes(), name
    run("sample", one / "model", "--n", 5, "--seed", 4, "--out", one / "other.csv")
    assert (one / "other.csv").read_bytes() != (one / "drawn.csv").read_bytes()


def test_a_model_is_replaced_by_a_new_one(run, copied, data):
    before = (copied / "model.safetensors").read_bytes()
    assert run("fit", data, "--out", copied, "--epochs", 1).code == 0
    assert (copied / "model.safetensors").read_bytes() != before
    assert [p.name for p in copied.parent.iterdir() if p.name.startswith(".")] == []


def test_columns_are_ignored_and_declared(run, data, tmp_path):
    ran = run(
        "fit", data, "--out", tmp_path / "m", "--epochs", 1, "--ignore", "mass", "--ignore", "paid",
        "--set", "field.age=categorical", "--set", "latent.k=2", "--recipe", "sparse", "--json",
    )  # fmt: skip
    said = json.loads(ran.out)
    assert said["aside"] == {"mass": "ignored as asked", "paid": "ignored as asked"}
    assert said["fields"] == {"length": ["length"], "categorical": ["age", "city"]}
    assert refold.load(tmp_path / "m").spec_.latent.options["k"] == 2


def test_a_report_is_one_page(run, trained, data, tmp_path):
    pytest.importorskip("jinja2")
    to = tmp_path / "report.html"
    ran = run("report", trained, data, "--out", to, "--json")
    assert json.loads(ran.out) == {"out": str(to)}
    assert to.read_text().lstrip().lower().startswith("<!doctype html")


# --- Ctrl-C ------------------------------------------------------------------------------------


def test_ctrl_c_before_training_leaves_nothing(run, data, tmp_path, monkeypatch):
    def interrupted(_):
        raise KeyboardInterrupt

    monkeypatch.setattr("refold.using.read", interrupted)
    before = listing(tmp_path)
    code, out, err = run("fit", data, "--out", tmp_path / "m")
    assert (code, out) == (130, "")
    assert "interrupted" in err
    assert listing(tmp_path) == before


ENDLESS = """
import sys
from refold.estimator import Autoencoder
import refold.cli

learn, said = Autoencoder.fit, []

def fit(self, X, y=None, *, watch=None, **also):
    def told(progress):
        if progress.step and not said:
            said.append(print("under way", flush=True))
    return learn(self, X, watch=told, **also)

Autoencoder.fit = fit
refold.cli.main()
"""


def test_ctrl_c_while_training_keeps_the_best_model(data, tmp_path):
    model = tmp_path / "model"
    words = ["fit", data, "--out", model, "--epochs", "50000", "--set", "patience=50000"]
    process = subprocess.Popen(
        [sys.executable, "-c", ENDLESS, *map(str, words)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stdout.readline() == "under way\n"
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 130, err
    assert "interrupted" in err
    assert str(model) in err
    assert "Traceback" not in err
    assert "stopped: interrupted" in out
    assert refold.load(model).transform(frame()).shape[0] == 40
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []
