"""Labelled images from any source, decoded in the background, as batches of pictures."""

import hashlib
import heapq
from collections.abc import Iterable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mf_deploy.data.background import in_background
from mf_deploy.data.decoding import UnreadableImage, decode
from mf_deploy.data.folder import Folder
from mf_deploy.data.label_file import labelled_by
from mf_deploy.data.labels import check_range, indices_of, shipped_order
from mf_deploy.data.listing import Container, Entry
from mf_deploy.data.parquet import Parquet, shards_in
from mf_deploy.data.tar import Tar
from mf_deploy.data.zip import Zip
from mf_deploy.errors import MfDeployError
from mf_deploy.preprocessing import Preprocessing

UNLABELLED = -1
DIGEST_HEX_DIGITS = 16
_FIX_DAMAGED = "Copy or download the images again."
_FIX_SOURCE = "Give a folder, .tar or .zip of class folders, a flat folder of images, or a .parquet file."


@dataclass(frozen=True)
class Batch:
    """Decoded pictures with what is known of each.

    ``pictures``: (N, H, W, 3) uint8, RGB. ``labels``: (N,) int64, −1 where unlabelled. ``names``: N names
    inside the source. ``digests``: first 16 hex digits of the sha256 of each encoded image file.
    """

    pictures: np.ndarray
    labels: np.ndarray
    names: list[str]
    digests: list[str]


class LabelledImages:
    """A fixed, ordered choice of images of one source; made by ``open_images``.

    ``class_names`` are the data's classes, sorted, of the whole source even when only some images were
    chosen; None when the labels are numbers or there are none.
    """

    def __init__(
        self,
        path: Path,
        container: Container,
        chosen: list[Entry],
        labels: set[str | int],
        indices: dict[Any, int],
    ) -> None:
        self.path = path
        self._container, self._chosen, self._labels, self._indices = container, chosen, labels, indices
        self.class_names: list[str] | None = sorted(str(x) for x in labels if isinstance(x, str)) or None

    def __len__(self) -> int:
        return len(self._chosen)

    @property
    def labelled(self) -> bool:
        """Whether the images have labels at all; without, they serve for calibration only."""
        return bool(self._labels)

    @property
    def skipped(self) -> list[str]:
        """Files that were not used, as ``name (reason)``; a pass over the images adds the damaged ones."""
        return [f"{name} ({reason})" for name, reason in sorted(self._container.skipped.items())]

    def bind(self, labels: list[str] | None, num_classes: int) -> "LabelledImages":
        """The same images with the model's class indices as labels.

        Args:
            labels: the model's classes in the order of its outputs; the data may have a subset of them. None
                if the model does not say: the order is then taken from the data, where it is beyond doubt.
            num_classes: number of outputs of the model.

        Raises:
            MfDeployError: the images have no labels, or their classes are not the model's.
        """
        if not self._labels:
            raise MfDeployError(
                f"{self.path} has no labels",
                "nothing says what its images show",
                "Give class folders, or a label file.",
            )
        indices: dict[Any, int]
        if self.class_names is not None:
            indices = dict(indices_of(self.class_names, labels, num_classes))
        else:
            indices = self._number_indices(
                {x for x in self._labels if isinstance(x, int)}, labels, num_classes
            )
        return LabelledImages(self.path, self._container, self._chosen, self._labels, indices)

    def _number_indices(
        self, numbers: set[int], labels: list[str] | None, num_classes: int
    ) -> dict[Any, int]:
        """By name where the container names its numbers and the model has these names, else as they are."""
        names = self._container.label_names or []
        order = labels or shipped_order(names, num_classes) or []
        if names and names != order and set(names) <= set(order):
            check_range(max(numbers), len(names))
            by_name = indices_of(names, order, num_classes)
            return {number: by_name[names[number]] for number in numbers}
        check_range(max(numbers), num_classes)
        return {number: number for number in numbers}

    def digests(self) -> list[str]:
        """``Batch.digests`` of all images, read without decoding; unreadable files are left out."""
        digests = []
        for entry in self._chosen:
            with suppress(OSError, ValueError):
                digests.append(_digest(self._container.read(entry)))
        return digests

    def batches(self, preprocessing: Preprocessing, batch_size: int, workers: int = 2) -> Iterator[Batch]:
        """Decode all images in a fixed order; the last batch may be short.

        ``workers`` threads decode at most two batches ahead of the consumer, and end when the iterator does,
        is closed or is dropped. Damaged images are skipped and named in ``skipped``.

        Raises:
            MfDeployError: more than 10 images and more than 1 % are damaged, or all are.
        """
        if batch_size < 1 or workers < 1:
            raise MfDeployError(
                "Cannot read in batches",
                f"batch size {batch_size}, {workers} workers",
                "Both must be at least 1.",
            )
        return self._batches(preprocessing, batch_size, workers)

    def _batches(self, preprocessing: Preprocessing, batch_size: int, workers: int) -> Iterator[Batch]:
        ready: list[_Decoded] = []
        damaged = good = 0
        last = ""

        def decode_one(entry: Entry) -> _Decoded | _Damaged:
            return self._decode(entry, preprocessing)

        ahead = max(2 * batch_size, 4 * workers)
        with closing(in_background(decode_one, self._chosen, ahead, workers)) as results:
            for result in results:
                if isinstance(result, _Damaged):
                    damaged += 1
                    last = f"{result.entry.name} ({result.reason})"
                    self._note(result, damaged)
                    continue
                good += 1
                ready.append(result)
                if len(ready) == batch_size:
                    yield self._batch(ready)
                    ready = []
        if not good:
            raise MfDeployError(
                f"No readable images in {self.path}",
                f"all {damaged} are damaged, the last is {last}",
                _FIX_DAMAGED,
            )
        if ready:
            yield self._batch(ready)

    def _decode(self, entry: Entry, preprocessing: Preprocessing) -> "_Decoded | _Damaged":
        try:
            data = self._container.read(entry)
            return _Decoded(entry, decode(data, preprocessing), _digest(data))
        except (UnreadableImage, OSError, ValueError) as error:
            return _Damaged(entry, " ".join(str(error).split()))

    def _note(self, result: "_Damaged", damaged: int) -> None:
        self._container.skipped[result.entry.name] = result.reason
        allowed = max(10, len(self) // 100)
        if damaged > allowed:
            raise MfDeployError(
                f"Too many damaged images in {self.path}",
                f"more than {allowed} of {len(self):,}, the last is {result.entry.name} ({result.reason})",
                _FIX_DAMAGED,
            )

    def _batch(self, decoded: list["_Decoded"]) -> Batch:
        labels = [self._indices.get(item.entry.label, UNLABELLED) for item in decoded]
        return Batch(
            pictures=np.stack([item.picture for item in decoded]),
            labels=np.asarray(labels, dtype=np.int64),
            names=[item.entry.name for item in decoded],
            digests=[item.digest for item in decoded],
        )


@dataclass(frozen=True)
class _Decoded:
    entry: Entry
    picture: np.ndarray
    digest: str


@dataclass(frozen=True)
class _Damaged:
    entry: Entry
    reason: str


def open_images(
    path: Path, limit: int | None = None, seed: int = 0, label_file: Path | None = None
) -> LabelledImages:
    """Open a folder or .tar or .zip of class folders or of flat images, or Hugging Face parquet.

    Nothing is unpacked. Files that are not images, links and paths that lead out of an archive are skipped,
    see ``LabelledImages.skipped``.

    Args:
        path: the folder, archive or parquet file.
        limit: take this many images: a pseudo-random choice that depends on ``seed`` and the images' names
            only, so a folder and an archive of it give the same, and a smaller limit gives a subset.
        label_file: text file with one ``file label`` a line, the label an index or a class name.

    Raises:
        MfDeployError: no such source, no images in it, or it is damaged.
    """
    if limit is not None and limit < 1:
        raise MfDeployError(f"Bad limit {limit}", "at least one image is needed", "Give a positive limit.")
    container = _open_container(Path(path))
    entries = container.entries
    if label_file is not None:
        entries = labelled_by(entries, Path(label_file), container.skipped)
    labels = {entry.label for entry in entries if entry.label is not None}
    ordered = sorted(labels, key=lambda label: (isinstance(label, str), label))
    indices = {x: x if isinstance(x, int) else position for position, x in enumerate(ordered)}
    return LabelledImages(Path(path), container, _choose(entries, limit, seed), labels, indices)


def _open_container(path: Path) -> Container:
    suffix = path.suffix.lower()
    if path.is_dir():
        shards = shards_in(path)
        return Parquet(path, shards) if shards else Folder(path)
    if not path.is_file():
        raise MfDeployError(f"No images at {path}", "no such file or folder", _FIX_SOURCE)
    if suffix == ".parquet":
        return Parquet(path, [path])
    if suffix == ".zip":
        return Zip(path)
    if suffix in (".tar", ".tgz") or ".tar" in path.suffixes:
        return Tar(path)
    raise MfDeployError(
        f"Cannot read {path}", f"{suffix or 'a file without suffix'} is not supported", _FIX_SOURCE
    )


def _choose(entries: list[Entry], limit: int | None, seed: int) -> list[Entry]:
    """The ``limit`` entries whose names hash lowest, in their old order."""
    if limit is None or limit >= len(entries):
        return entries

    def rank(position: int) -> bytes:
        return hashlib.sha256(f"{seed}:{entries[position].name}".encode()).digest()

    return [entries[position] for position in sorted(heapq.nsmallest(limit, range(len(entries)), key=rank))]


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:DIGEST_HEX_DIGITS]


def digest_of(digests: Iterable[str]) -> str:
    """The digest of a set of images in any order: sha256 over their sorted digests, one a line."""
    return hashlib.sha256("\n".join(sorted(digests)).encode()).hexdigest()
