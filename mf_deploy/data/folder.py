"""Images in a folder: in class folders, or flat."""

import os
from pathlib import Path

from mf_deploy.data.listing import Container, Entry, Listing
from mf_deploy.errors import MfDeployError


class Folder(Container):
    """A folder of class folders, or of images. Links are refused: they may lead anywhere."""

    def __init__(self, path: Path) -> None:
        listing = Listing(path)
        _scan(path, "", listing)
        self.entries = listing.entries()
        self.skipped = listing.skipped

    def read(self, entry: Entry) -> bytes:
        return Path(entry.place).read_bytes()


def _scan(folder: Path | str, prefix: str, listing: Listing) -> None:
    try:
        with os.scandir(folder) as found:
            items = sorted(found, key=lambda item: item.name)
    except OSError as error:
        raise MfDeployError(
            f"Cannot read {folder}", error.strerror or str(error), "Check the folder and its permissions."
        ) from None
    for item in items:
        if item.is_symlink():
            listing.add(prefix + item.name, None, 0, "a link")
        elif item.is_dir():
            if not item.name.startswith(".") and item.name != "__MACOSX":
                _scan(item.path, f"{prefix}{item.name}/", listing)
        elif item.is_file():
            listing.add(prefix + item.name, item.path, item.stat().st_size)
        else:
            listing.add(prefix + item.name, None, 0, "not a regular file")
