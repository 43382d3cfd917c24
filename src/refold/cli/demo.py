"""The whole job on data that a dependency ships."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from refold.cli import commands, judging, using, viewing


@commands.app.command()
def demo(
    out: Annotated[Path, typer.Option("--out", help="folder for everything")] = Path("refold-demo"),
    quiet: commands.Quiet = False,
) -> None:
    """Do the whole job on handwritten digits: fit, embed, reconstruct, score, report."""
    import numpy as np
    from sklearn.datasets import load_digits

    from refold.data.sinks import check_writable, write
    from refold.errors import InputError

    check_writable(out)
    if out.exists() and not out.is_dir():
        raise InputError(f"cannot write the demo to {out}: it is a file; name a folder")
    out.mkdir(exist_ok=True)
    digits: Any = load_digits()
    images = (digits.images / 16.0).astype(np.float32)
    data, model, report = out / "digits.npz", out / "model", out / "report.html"
    write({"X": images, "y": digits.target}, data)
    if not quiet:
        print(f"data    {len(images):,} handwritten digits, 8x8 pixels, from scikit-learn: {data}")
    commands.fit(str(data), model, quiet=quiet)
    using.embed(model, str(data), out / "codes.csv", quiet=quiet)
    using.reconstruct(model, str(data), out / "reconstructed.npy", quiet=quiet)
    judging.score(model, str(data), out / "scores.csv", quiet=quiet)
    viewing.report(model, report, str(data), quiet=quiet)
    if not quiet:
        print(f"\nopen    {report.resolve()}")
