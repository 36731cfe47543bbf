"""Images in a zip archive, read in place."""

import stat
import struct
import weakref
import zipfile
import zlib
from pathlib import Path

from mf_deploy.data.listing import MAX_FILE_BYTES, Container, Entry, Listing
from mf_deploy.errors import MfDeployError

_ENCRYPTED = 0x1
_DAMAGE = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, OverflowError, RuntimeError)
# Only these two are decompressed piece by piece, so that a bomb cannot fill the memory.
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


class Zip(Container):
    """A zip of class folders, or of images.

    Raises:
        MfDeployError: not a zip, truncated, or damaged.
    """

    def __init__(self, path: Path) -> None:
        # ZipFile never closes a file that it was given, and locks it for every read: threads can share it.
        try:
            file = open(path, "rb")  # noqa: SIM115
            weakref.finalize(self, file.close)
            self._archive = zipfile.ZipFile(file)
        except (*_DAMAGE, OSError, ValueError) as error:
            raise MfDeployError(
                f"Cannot read {path}",
                f"it is no zip file, or it is truncated ({error})",
                "Copy or download the archive again.",
            ) from None
        listing = Listing(path)
        for info in self._archive.infolist():
            if not info.is_dir():
                listing.add(info.filename, info, info.file_size, _problem(info))
        self.entries = listing.entries()
        self.skipped = listing.skipped

    def read(self, entry: Entry) -> bytes:
        try:
            with self._archive.open(entry.place) as member:
                return member.read(MAX_FILE_BYTES)
        except _DAMAGE as error:
            raise ValueError(str(error)) from None


def _problem(info: zipfile.ZipInfo) -> str | None:
    mode = info.external_attr >> 16
    if stat.S_ISLNK(mode):
        return "a link"
    if info.flag_bits & _ENCRYPTED:
        return "encrypted"
    return None if info.compress_type in _METHODS else "compressed by other than deflate"
