"""The one definition of preprocessing: sizes, the crop's place, and the arithmetic of normalisation."""

import numpy as np
import pytest
from PIL import Image

from mf_deploy.preprocessing import Preprocessing


@pytest.mark.parametrize(("width", "left"), [(256, 16), (341, 58), (342, 59), (343, 59), (345, 60)])
def test_crop_begins_at_half_the_margin_rounded_down(width: int, left: int) -> None:
    """Every column has its own colour, so that the crop shows where it begins."""
    columns = np.arange(width)
    pixels = np.zeros((256, width, 3), np.uint8)
    pixels[..., 0], pixels[..., 1] = columns // 256, columns % 256
    picture = Preprocessing(input_size=224, crop_fraction=0.875).picture(Image.fromarray(pixels))
    assert picture.shape == (224, 224, 3)
    high, low = map(int, picture[0, 0, :2])
    assert high * 256 + low == left


@pytest.mark.parametrize("size", [(500, 375), (375, 500), (100, 100), (64, 640)])
def test_short_side_is_resized_and_the_aspect_kept(size: tuple[int, int]) -> None:
    """A horizontal ramp stays a ramp: the crop's centre is the picture's centre."""
    ramp = np.tile(np.linspace(0, 255, size[0]), (size[1], 1)).astype(np.uint8)
    picture = Preprocessing(input_size=96).picture(Image.fromarray(ramp))
    assert picture.shape == (96, 96, 3)
    assert 124 <= picture[48, 47:49, 0].mean() <= 131


def test_normalisation_is_x_minus_127_over_128() -> None:
    preprocessing = Preprocessing(input_size=8, mean=(127 / 255,) * 3, std=(128 / 255,) * 3)
    pictures = np.arange(192, dtype=np.uint8).reshape(1, 8, 8, 3)
    expected = (pictures.astype(np.float64).transpose(0, 3, 1, 2) - 127) / 128
    np.testing.assert_allclose(preprocessing.normalize(pictures), expected, atol=1e-6)
