"""Small images that the tests make themselves, in every kind of container."""

import tarfile
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ("ant", "bee", "cat")
PER_CLASS = 4


def write_image(path: Path, seed: int, side: int = 24) -> None:
    """A random picture as PNG, or as JPEG if the name says so."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side + 5, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def tar_of(folder: Path, archive: Path, top: str = "top") -> Path:
    with tarfile.open(archive, "w") as tar:
        tar.add(folder, top)
    return archive


def zip_of(folder: Path, archive: Path, top: str = "top") -> Path:
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as target:
        for file in sorted(folder.rglob("*"), reverse=True):
            target.write(file, Path(top) / file.relative_to(folder))
    return archive
