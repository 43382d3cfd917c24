"""Every snippet of the documents runs, and prints what the page says it prints."""

import contextlib
import doctest
import importlib.util
import io
import re
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_wine

import refold
from refold import cli, recipe
from refold.latents import latents

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs" / "gallery").glob("*.md"))]
FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```[ \t]*$", re.MULTILINE | re.DOTALL)


@dataclass
class Fence:
    """A fenced block: its language, its text, the output shown after it, and its line."""

    language: str
    body: str
    shown: str | None
    line: int


def fences(page):
    """Fences in order; a ``text`` fence right after another is what that one prints."""
    text = page.read_text(encoding="utf-8")
    found, end = [], 0
    for match in FENCE.finditer(text):
        language, body = match.groups()
        between, end = text[end : match.start()], match.end()
        if language == "text" and found and not between.strip() and found[-1].shown is None:
            found[-1].shown = body
        else:
            found.append(Fence(language, body, None, text[: match.start()].count("\n") + 1))
    return found


def agree(shown, printed):
    """Compare what a page shows with what was printed; ``...`` stands for anything."""
    rules = doctest.ELLIPSIS | doctest.DONT_ACCEPT_TRUE_FOR_1 | doctest.DONT_ACCEPT_BLANKLINE
    return doctest.OutputChecker().check_output(tidy(shown), tidy(printed), rules)


def tidy(text):
    """Drop spaces at the ends of lines and empty lines around."""
    return "\n".join(line.rstrip() for line in text.strip("\n").splitlines()).strip("\n")


def check(shown, printed, place):
    """Fail with both texts where they differ."""
    if not agree(shown, printed):
        pytest.fail(f"{place} shows\n{shown}\nbut prints\n{printed}", pytrace=False)


def run_python(fence, page, names):
    """Run a fence in the page's namespace and return what it prints."""
    # Padded, so that a traceback names the line of the page.
    code = compile("\n" * fence.line + fence.body, str(page), "exec")
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(code, names)
    return out.getvalue()


def commands(fence):
    """Split a console fence into its commands, each with the output shown under it."""
    found = []
    for line in fence.body.replace("\\\n", " ").splitlines():
        if line.startswith("$ "):
            found.append((line[2:], []))
        elif found:
            found[-1][1].append(line)
    return [(command, "\n".join(shown)) for command, shown in found]


def run_console(command, monkeypatch):
    """Run a command of refold in this process; return its output, errors and exit code."""
    out, err = io.StringIO(), io.StringIO()
    monkeypatch.setattr(sys, "argv", shlex.split(command, comments=True))
    with (
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        pytest.raises(SystemExit) as end,
    ):
        cli.main()
    return out.getvalue(), err.getvalue(), end.value.code or 0


def check_console(fence, page, monkeypatch):
    """Run a fence's commands of refold in order, and compare what each prints."""
    printed = ""
    for command, shown in commands(fence):
        if shlex.split(command, comments=True)[:1] != ["refold"]:
            continue
        place = f"{page.name}:{fence.line} '$ {command}'"
        out, err, code = run_console(command, monkeypatch)
        if shown.startswith("error: "):
            assert code == 2, place
            check(shown, err, place)
            continue
        assert code == 0, f"{place} ended with {code}: {err}"
        if shown:
            check(shown, out, place)
        printed += out
    if fence.shown is not None:
        check(fence.shown, printed, f"{page.name}:{fence.line}")


@pytest.fixture(autouse=True)
def one_thread():
    """Use one thread: small products gain nothing from more, and lose much on busy cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.stem)
def test_every_snippet_prints_what_its_page_shows(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    names = {"__name__": "__main__"}
    for fence in fences(page):
        if fence.language == "python":
            printed = run_python(fence, page, names)
            if fence.shown is not None:
                check(fence.shown, printed, f"{page.name}:{fence.line}")
        elif fence.language == "console":
            check_console(fence, page, monkeypatch)


def test_the_index_names_every_page_and_every_row_shown():
    index = (ROOT / "docs" / "gallery" / "README.md").read_text(encoding="utf-8")
    for page in PAGES[1:]:
        if page.name == "README.md":
            continue
        assert f"({page.name})" in index, page.name
        rows = re.findall(r"^## (\w\d+) ", page.read_text(encoding="utf-8"), re.MULTILINE)
        assert rows, page.name
        for row in rows:
            assert re.search(rf"^\| {row} \|", index, re.MULTILINE), row


@pytest.mark.parametrize(
    ("shown", "printed", "same"),
    [
        ("a ... c\n", "a b c\n", True),
        ("a\n...\nd\n", "a\nb\nc\nd\n", True),
        ("a  \n", "a\n", True),
        ("1.0\n", "1.05\n", False),
        ("a\n", "a\nb\n", False),
        ("a.c\n", "abc\n", False),
        ("", "a\n", False),
        ("True\n", "1\n", False),
        ("a ... " * 30 + "b\n", "a c " * 300 + "\n", False),
    ],
)
def test_three_dots_are_the_only_wildcard(shown, printed, same):
    assert agree(shown, printed) is same


# --------------------------------------------------------------------- the example of CONTRIBUTING


@pytest.fixture
def example(tmp_path, monkeypatch):
    """Follow the five steps of CONTRIBUTING.md, and undo them after the test."""
    files = {}
    for fence in fences(ROOT / "CONTRIBUTING.md"):
        path = re.match(r"# (\S+\.py)\n", fence.body)
        if fence.language == "python" and path:
            files[path[1]] = fence.body
    monkeypatch.setattr(latents, "_parts", {n: latents[n] for n in latents})
    monkeypatch.setitem(recipe.RECIPES, "sphere", None)
    file = tmp_path / "sphere.py"
    file.write_text(files["src/refold/latents/sphere.py"], encoding="utf-8")
    spec = importlib.util.spec_from_file_location("refold.latents.sphere", file)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "refold.latents.sphere", module)
    spec.loader.exec_module(module)
    line = files["src/refold/latents/__init__.py"].splitlines()[1]
    assert line == "from refold.latents.sphere import Sphere"
    monkeypatch.setattr(refold.latents, "Sphere", module.Sphere, raising=False)
    exec(files["src/refold/recipe/sparse.py"], dict(vars(recipe)))
    return module.Sphere, files


def test_the_example_latent_passes_its_own_test(example):
    _, files = example
    names = {}
    exec(files["tests/test_latents.py"], names)
    tests = [f for name, f in names.items() if name.startswith("test_")]
    assert tests
    for test in tests:
        test()


def test_the_ways_to_ask_for_the_example_work(example):
    ways = [f for f in fences(ROOT / "CONTRIBUTING.md") if f.language == "python"][-1]
    asked = [line for line in ways.body.splitlines() if line]
    assert len(asked) == 3
    for line in asked:
        eval(line, {"refold": refold}).set_params(epochs=0).fit(load_wine().data)


def test_the_example_latent_trains_as_an_object_by_name_and_by_recipe(example, tmp_path):
    Sphere, _ = example
    X = load_wine().data
    codes = []
    for wish in ({"latent": Sphere(3)}, {"latent": "sphere(size=3)"}, {"recipe": "sphere"}):
        ae = refold.Autoencoder(**wish, epochs=3).fit(X)
        assert type(ae.model_.latent) is Sphere
        z = ae.transform(X)
        np.testing.assert_allclose(np.linalg.norm(z, axis=1), 1.0, atol=1e-5)
        assert ae.history_[-1]["valid_loss"] < ae.history_[0]["valid_loss"]
        ae.save(tmp_path / "model")
        assert np.array_equal(refold.load(tmp_path / "model").transform(X), z)
        codes.append(z)
    assert np.array_equal(codes[0], codes[1])
    assert refold.recipes()["sphere"].startswith("Codes of unit norm")


def test_the_example_latent_keeps_the_promises_of_every_latent(example):
    Sphere, _ = example
    latent = Sphere(4)
    h = torch.randn(5, latent.width, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: latent(x).z, (h,))
    with pytest.raises(refold.InputError, match=r"cannot sample.*gaussian"):
        latent.sample(1)


def test_the_example_leaves_no_trace():
    assert "sphere" not in latents
    assert "sphere" not in recipe.RECIPES
