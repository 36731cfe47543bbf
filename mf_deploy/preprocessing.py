"""From a decoded picture to the network's input: one definition, stored in every manifest."""

import math
from typing import Literal, Self

import numpy as np
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, model_validator

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


class Preprocessing(BaseModel):
    """Resize the short side, crop the centre square, scale to [0, 1], subtract mean, divide by std.

    The short side becomes ``floor(input_size / crop_fraction)`` pixels with Pillow's antialiased
    filter; the long side keeps the aspect ratio, rounded down, as in torchvision. The crop begins at
    ``(side - input_size) // 2``: integer division is the same in every language that prepares pictures
    for a model, while rounding of halves is not, and one pixel changes a few predictions in 1000.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    input_size: int = Field(default=224, ge=8, le=4096, description="side of the square input, pixels")
    crop_fraction: float = Field(default=0.875, gt=0, le=1)
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not all(map(math.isfinite, (*self.mean, *self.std))):
            raise ValueError("mean and std must be finite")
        if min(self.std) <= 0:
            raise ValueError("std must be positive")
        return self

    @property
    def short_side(self) -> int:
        """The short side after resizing, pixels."""
        return int(self.input_size / self.crop_fraction)

    def picture(self, image: Image.Image) -> np.ndarray:
        """Resize and crop a decoded image: (input_size, input_size, 3) uint8, RGB."""
        image = image.convert("RGB")
        width, height = image.size
        short = self.short_side
        if width <= height:
            size = (short, max(short, int(short * height / width)))
        else:
            size = (max(short, int(short * width / height)), short)
        if size != image.size:
            image = image.resize(size, _FILTERS[self.interpolation])
        left = (size[0] - self.input_size) // 2
        top = (size[1] - self.input_size) // 2
        image = image.crop((left, top, left + self.input_size, top + self.input_size))
        return np.asarray(image, dtype=np.uint8)

    def normalize(self, pictures: np.ndarray) -> np.ndarray:
        """(N, H, W, 3) uint8 pictures to the network's (N, 3, H, W) float32 input."""
        scale = 1.0 / (255.0 * np.asarray(self.std, np.float64))
        offset = -np.asarray(self.mean, np.float64) / np.asarray(self.std, np.float64)
        scaled = pictures.astype(np.float32) * scale.astype(np.float32) + offset.astype(np.float32)
        return np.ascontiguousarray(scaled.transpose(0, 3, 1, 2))
