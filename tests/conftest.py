"""What several tests share."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder of real data; a test that needs it is skipped where it is absent."""
    folder = Path(__file__).parents[2] / "shared" / "data"
    folder = Path(os.environ.get("REFOLD_DATA", folder))
    if not folder.is_dir():
        pytest.skip("no real data: set REFOLD_DATA to its folder")
    return folder


@pytest.fixture
def recorded_early(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have steps be recorded in runs that are too short for it to pay."""
    from refold.training import steps
    from refold.training.steps import replay

    monkeypatch.setattr(steps, "FEW", 0)
    monkeypatch.setattr(replay, "COMMON", 0)
