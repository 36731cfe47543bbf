"""What a folder or an archive holds: which files are images, which are refused, and why."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mf_deploy.errors import MfDeployError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".ppm", ".pgm")
NOT_AN_IMAGE = "not a JPEG, PNG, WebP, BMP or PPM file"
MAX_ENTRIES = 2_000_000
MAX_FILE_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class Entry:
    """One image: its name below the common top folder, where its container reads it, and its label."""

    name: str
    place: Any
    label: str | int | None = None


class Container(ABC):
    """Images listed once, then read one by one, in any order and from several threads.

    ``entries`` come in the order in which they are best read, ``skipped`` maps a refused name to the
    reason, and ``label_names`` names integer labels where the container knows their names.
    """

    entries: list[Entry]
    skipped: dict[str, str]
    label_names: list[str] | None = None

    @abstractmethod
    def read(self, entry: Entry) -> bytes:
        """The encoded image.

        Raises:
            OSError, ValueError: this one image cannot be read; the others may be fine.
        """


class Listing:
    """Collects the files of a tree, whatever holds it, and refuses what should not be read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.skipped: dict[str, str] = {}
        self._places: dict[str, Any] = {}
        self._count = 0

    def add(self, name: str, place: Any, size: int, problem: str | None = None) -> None:
        """Take or refuse one file; ``problem`` is what its container already found wrong with it.

        Hidden files and those that macOS adds to archives are ignored without a word.
        """
        self._count += 1
        if self._count > MAX_ENTRIES:
            raise MfDeployError(
                f"Cannot read {self.path}",
                f"it holds more than {MAX_ENTRIES:,} files",
                "Split it into parts.",
            )
        parts = [part for part in name.replace("\\", "/").split("/") if part not in ("", ".")]
        problem = _escape(name, parts) or problem
        if problem is None:
            if not parts or any(is_hidden(part) for part in parts):
                return
            if not parts[-1].lower().endswith(IMAGE_SUFFIXES):
                problem = NOT_AN_IMAGE
            elif size > MAX_FILE_BYTES:
                problem = f"larger than {MAX_FILE_BYTES >> 20} MiB"
        if problem is None:
            self._places[printable("/".join(parts))] = place
        else:
            self.skipped[printable(name)] = problem

    def entries(self) -> list[Entry]:
        """The images, sorted by name below the common top folder; the first folder below it is the class.

        Raises:
            MfDeployError: there is none.
        """
        if not self._places:
            raise no_images(self.path, self.skipped)
        depth = _common_depth(list(self._places))
        named = {name.split("/", depth)[-1]: place for name, place in self._places.items()}
        entries = [Entry(name, place, _folder(name)) for name, place in sorted(named.items())]
        if any(entry.label is not None for entry in entries):
            for entry in entries:
                if entry.label is None:
                    self.skipped[entry.name] = "not in a class folder, while others are"
            entries = [entry for entry in entries if entry.label is not None]
        if len({entry.label for entry in entries}) == 1:
            entries = [replace(entry, name=entry.name.split("/", 1)[-1]) for entry in entries]
        return entries


def no_images(path: Path, skipped: dict[str, str]) -> MfDeployError:
    """The error for a source without a single image."""
    why = "it holds no images"
    if skipped:
        name, problem = min(skipped.items())
        why += f": {len(skipped):,} files skipped, the first is {name} ({problem})"
    return MfDeployError(
        f"No images in {path}", why, "Give a folder, .tar or .zip of class folders with images."
    )


def printable(text: str) -> str:
    """``text`` with control characters and undecodable bytes escaped: safe for terminals and JSON."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def is_hidden(part: str) -> bool:
    """Whether a file or folder of this name is nobody's data: hidden, or added to archives by macOS."""
    return part.startswith(".") or part == "__MACOSX"


def _escape(name: str, parts: list[str]) -> str | None:
    if name.startswith(("/", "\\")) or (parts and parts[0].endswith(":")):
        return "an absolute path"
    return "a path out of the archive" if ".." in parts else None


def _folder(name: str) -> str | None:
    """The class folder of ``n01440764/images/a.jpg``: its first part."""
    return name.split("/", 1)[0] if "/" in name else None


def _common_depth(names: list[str]) -> int:
    """How many leading folders all images lie in, leaving one folder to be the class.

    Images above that depth do not count: they are strays beside the class folders.
    """
    folders = [name.split("/")[:-1] for name in names]
    depth = 0
    while True:
        below = [parts for parts in folders if len(parts) > depth]
        if len({parts[depth] for parts in below}) != 1 or all(len(parts) == depth + 1 for parts in below):
            return depth
        depth += 1
