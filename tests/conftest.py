"""Fixtures that every room's tests share."""

from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parent.parent.parent / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with real images and checkpoints beside the checkout; skips where there is none."""
    if not (SHARED / "reference").is_dir():
        pytest.skip("needs the folder ../shared with images and checkpoints")
    return SHARED
