"""Warnings about calibration images that cannot be right."""

from pathlib import Path

import numpy as np
from PIL import Image

from mf_deploy.calibration.plausibility import implausible
from mf_deploy.data import open_images
from mf_deploy.preprocessing import Preprocessing

PREPROCESSING = Preprocessing(input_size=32)


def photos(folder: Path, count: int, colour: tuple[int, int, int]) -> Path:
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(count):
        pixels = np.clip(rng.normal(colour, 40, (40, 40, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


def warnings(folder: Path) -> str:
    return "\n".join(implausible(open_images(folder), PREPROCESSING))


def test_usual_images_cause_no_warning(tmp_path: Path) -> None:
    assert warnings(photos(tmp_path / "rgb", 40, (123, 116, 104))) == ""


def test_swapped_channels_are_noticed(tmp_path: Path) -> None:
    assert "BGR" in warnings(photos(tmp_path / "bgr", 40, (104, 116, 123)))


def test_few_images_are_noticed(tmp_path: Path) -> None:
    assert "only 3" in warnings(photos(tmp_path / "few", 3, (123, 116, 104)))


def test_images_far_from_the_training_data_are_noticed(tmp_path: Path) -> None:
    assert "mean" in warnings(photos(tmp_path / "white", 40, (255, 255, 255)))
