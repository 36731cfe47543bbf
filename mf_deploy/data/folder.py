"""Images in a folder: in class folders, or flat."""

import os
from pathlib import Path

from mf_deploy.data.listing import Container, Entry, Listing, is_hidden
from mf_deploy.errors import MfDeployError


class Folder(Container):
    """A folder of class folders, or of images. Links are refused: they may lead anywhere."""

    def __init__(self, path: Path) -> None:
        listing = Listing(path)
        _scan(path, listing)
        self.entries = listing.entries()
        self.skipped = listing.skipped

    def read(self, entry: Entry) -> bytes:
        return Path(entry.place).read_bytes()


def _scan(root: Path, listing: Listing) -> None:
    folders = [("", str(root))]
    while folders:
        prefix, folder = folders.pop()
        try:
            with os.scandir(folder) as items:
                for item in items:
                    if item.is_dir(follow_symlinks=False):
                        if not is_hidden(item.name):
                            folders.append((f"{prefix}{item.name}/", item.path))
                    else:
                        size = item.stat(follow_symlinks=False).st_size
                        listing.add(prefix + item.name, item.path, size, _problem(item))
        except OSError as error:
            raise MfDeployError(
                f"Cannot read {folder}", error.strerror or str(error), "Check the folder and its permissions."
            ) from None


def _problem(item: os.DirEntry[str]) -> str | None:
    if item.is_symlink():
        return "a link"
    return None if item.is_file() else "not a regular file"
