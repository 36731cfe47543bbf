"""Folders of small images that the tests of this room share."""

from pathlib import Path

import pytest
from made_images import CLASSES, PER_CLASS, write_image


@pytest.fixture
def class_folders(tmp_path: Path) -> Path:
    """Three class folders with four images each, PNG and JPEG."""
    root = tmp_path / "photos"
    for label, name in enumerate(CLASSES):
        for number in range(PER_CLASS):
            write_image(root / name / f"{number}.{'jpg' if number % 2 else 'png'}", seed=10 * label + number)
    return root


@pytest.fixture
def flat_folder(tmp_path: Path) -> Path:
    """Six images with no class folders."""
    root = tmp_path / "flat"
    for number in range(6):
        write_image(root / f"val_{number}.png", seed=number)
    return root
