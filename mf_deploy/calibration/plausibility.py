"""Do calibration images look like photographs in the channel order that the model expects?"""

import numpy as np

from mf_deploy.data import LabelledImages
from mf_deploy.preprocessing import Preprocessing

FEW_IMAGES = 32
SAMPLED_IMAGES = 64
BLUE_OVER_RED = 0.02
"""Photographs are redder than blue on average (ImageNet: 0.485 against 0.406 of the full scale)."""

OFF_CENTRE = 1.5
"""Standard deviations that the mean of the normalised images may be away from zero."""


def implausible(images: LabelledImages, preprocessing: Preprocessing) -> list[str]:
    """What is odd about the first ``images``, a line each; nothing, for a usual calibration set."""
    pictures = _first_pictures(images, preprocessing)
    if not len(pictures):
        return []
    found = []
    if len(pictures) < FEW_IMAGES:
        found.append(
            f"only {len(pictures)} calibration images: the ranges of activations need more, e.g. 256"
        )
    red, _, blue = (pictures.astype(np.float64).mean((0, 1, 2)) / 255).tolist()
    if len(pictures) >= FEW_IMAGES and blue > red + BLUE_OVER_RED:
        found.append(
            f"the calibration images are bluer ({blue:.2f}) than red ({red:.2f}), which photographs are not: "
            "are their channels in the order BGR?"
        )
    normalized = preprocessing.normalize(pictures)
    if abs(float(normalized.mean())) > OFF_CENTRE:
        found.append(
            f"the calibration images have mean {normalized.mean():+.1f} after normalisation, far from zero: "
            "are they of the kind that the model was trained on?"
        )
    return found


def _first_pictures(images: LabelledImages, preprocessing: Preprocessing) -> np.ndarray:
    for batch in images.batches(preprocessing, SAMPLED_IMAGES):
        return batch.pictures
    return np.zeros((0, 1, 1, 3), np.uint8)
