"""Scikit-learn's handwritten digits as two folders of PNG files: what `make demo` trains and checks with.

    python examples/digits.py runs/digits

writes runs/digits/train/3/0005.png and so on, 1,297 images, and runs/digits/held-out/, the other 500.
The scans are 8 × 8 pixels of 17 grey levels; they are written as they are, and enlarged when they are read.
"""

import sys
from pathlib import Path

HELD_OUT = 500
SEED = 0
LEVELS = 16


def write_digits(folder: Path) -> tuple[Path, Path]:
    """Write the scans into ``folder``; the fixed split keeps the shares of the ten digits.

    Returns the folders of the training and of the held-out images, each with one folder a digit.
    """
    from PIL import Image
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    scans, labels = load_digits(return_X_y=True)
    pictures = (scans.reshape(-1, 8, 8) * (255 / LEVELS)).round().astype("uint8")
    train, held_out = train_test_split(
        range(len(labels)), test_size=HELD_OUT, random_state=SEED, stratify=labels
    )
    for part, indices in (("train", train), ("held-out", held_out)):
        for index in indices:
            path = folder / part / str(labels[index]) / f"{index:04}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pictures[index]).save(path)
    return folder / "train", folder / "held-out"


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python examples/digits.py FOLDER")
    for written in write_digits(Path(sys.argv[1])):
        print(f"{written}: {sum(1 for _ in written.rglob('*.png')):,} images")
