"""Installs the libraries that refold is measured beside, one by one.

    python bench/peers.py

in the environment that is to have them. Versions are those of the extra ``bench``. One that cannot
be installed is named, and does not keep the others away; torch stays what ``constraints.txt`` says.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
NOTED = "peers.json"  # in the environment: packages that failed, and why


def pins() -> dict[str, str]:
    """Requirements of the extra by the name of their package."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    listed: list[str] = project["optional-dependencies"]["bench"]
    return {re.split(r"[=<>~!\[ ]", one, maxsplit=1)[0]: one for one in listed}


def install(requirement: str) -> str | None:
    """Install one; return why it failed, in pip's last words."""
    constraints = str(ROOT / "constraints.txt")
    done = subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check",
         "-c", constraints, requirement],
        stderr=subprocess.PIPE, text=True, check=False,
    )  # fmt: skip
    if done.returncode == 0:
        return None
    errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
    return errors[-1].removeprefix("ERROR: ") if errors else "pip failed without a word"


def main() -> None:
    """Install all, and note what failed where the suite will look."""
    failed: dict[str, str] = {}
    for package, requirement in pins().items():
        print(f"installing {requirement}", flush=True)
        why = install(requirement)
        if why is not None:
            failed[package] = why
            print(f"  {package} could not be installed, its cases will be left out: {why}")
    (Path(sys.prefix) / NOTED).write_text(json.dumps(failed))


if __name__ == "__main__":
    main()
