"""Encoded image → picture, under limits that an image from anywhere cannot break."""

import io
import warnings

import numpy as np
from PIL import Image

from mf_deploy.preprocessing import Preprocessing

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "PPM")
MAX_PIXELS = 1 << 26
_EIGHT_BIT_MODES = {
    "1",
    "L",
    "LA",
    "La",
    "P",
    "PA",
    "RGB",
    "RGBA",
    "RGBa",
    "RGBX",
    "CMYK",
    "YCbCr",
    "LAB",
    "HSV",
}

# Pillow warns of large pictures on standard error; those are refused here, with their name, at a lower limit.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


class UnreadableImage(Exception):
    """One image cannot be used; the message says why, in a few words."""


def decode(data: bytes, preprocessing: Preprocessing) -> np.ndarray:
    """The picture of one encoded image: (input_size, input_size, 3) uint8, RGB.

    Alpha is dropped and EXIF orientation ignored, as in the pipelines that published accuracies come from.

    Raises:
        UnreadableImage: damaged, of another format, not 8 bits a channel, or too large.
    """
    if not data:
        raise UnreadableImage("an empty file")
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            _check_size(image, preprocessing)
            if image.mode not in _EIGHT_BIT_MODES:
                raise UnreadableImage(f"mode {image.mode} is not 8 bits a channel")
            if image.mode == "P" and "transparency" in image.info:
                return preprocessing.picture(image.convert("RGBA"))
            return preprocessing.picture(image)
    except (UnreadableImage, MemoryError):
        raise
    except Image.UnidentifiedImageError:
        raise UnreadableImage("not a JPEG, PNG, WebP, BMP or PPM image") from None
    except Exception as error:  # a damaged image can raise nearly anything in Pillow's decoders
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UnreadableImage(reason[:120]) from None


def _check_size(image: Image.Image, preprocessing: Preprocessing) -> None:
    """Refuse a picture that takes too much memory, as it is or resized (1 × 60,000 → 256 × 15 million)."""
    width, height = image.size
    resized = preprocessing.short_side**2 * max(width, height) / max(1, min(width, height))
    if width * height > MAX_PIXELS or resized > max(MAX_PIXELS, 4 * preprocessing.short_side**2):
        raise UnreadableImage(f"{width} × {height} pixels is too large")
