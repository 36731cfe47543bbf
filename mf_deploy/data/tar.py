"""Images in a tar archive, read in place: indexed once, then read by offset."""

import tarfile
from pathlib import Path

from mf_deploy.data.listing import Container, Entry, Listing
from mf_deploy.errors import MfDeployError

_BLOCK = 512
_COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")


class Tar(Container):
    """An uncompressed tar of class folders, or of images.

    Every read opens the file anew, so threads share nothing.

    Raises:
        MfDeployError: not a tar, compressed, truncated, or damaged.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        listing = Listing(path)
        try:
            self._index(listing)
        except (tarfile.TarError, OSError, ValueError, OverflowError, RecursionError) as error:
            why = " ".join(str(error).split()) or type(error).__name__
            raise MfDeployError(f"Cannot read {path}", why, "Give a complete, uncompressed .tar.") from None
        self.entries = listing.entries()
        self.skipped = listing.skipped

    def _index(self, listing: Listing) -> None:
        with open(self._path, "rb") as file:
            if file.read(6).startswith(_COMPRESSED):
                raise ValueError("a compressed tar cannot be read in place")
            file.seek(0)
            archive = tarfile.open(fileobj=file, mode="r:")  # noqa: SIM115
            end = -1
            while (member := archive.next()) is not None:
                if archive.offset <= end:
                    raise ValueError("its entries overlap")
                end = archive.offset
                if not member.isdir():
                    listing.add(member.name, (member.offset_data, member.size), member.size, _problem(member))
                archive.members = []  # type: ignore[attr-defined]
            # tarfile takes garbage, or the end of a truncated file, for the end of the archive.
            file.seek(archive.offset)
            if file.read(_BLOCK) != bytes(_BLOCK):
                raise ValueError("it is truncated or damaged: the end mark is missing")

    def read(self, entry: Entry) -> bytes:
        offset, size = entry.place
        with open(self._path, "rb") as file:
            file.seek(offset)
            return file.read(size)


def _problem(member: tarfile.TarInfo) -> str | None:
    if member.size < 0:
        return "damaged: its size is negative"
    if member.issym() or member.islnk():
        return "a link"
    return None if member.isreg() and not member.issparse() else "not a regular file"
