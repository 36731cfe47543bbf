"""Images in parquet files as Hugging Face writes them: columns ``image`` {bytes, path} and ``label``."""

import json
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

from mf_deploy.data.listing import MAX_ENTRIES, MAX_FILE_BYTES, Container, Entry, no_images, printable
from mf_deploy.errors import MfDeployError, require

MAX_ROW_GROUP_BYTES = 1 << 30


class Parquet(Container):
    """One parquet file, or the shards of one data set. Rows keep the file's order: a row group is read once.

    Raises:
        MfDeployError: pyarrow is missing (exit code 3), or the file is damaged or lacks the columns.
    """

    def __init__(self, path: Path, shards: list[Path]) -> None:
        require("pyarrow", "parquet")
        self.skipped = {}
        self._lock = threading.Lock()
        self._files: list[Any] = []
        self._group: tuple[tuple[int, int], Any] | None = None
        rows: list[tuple[str | None, Entry]] = []
        for shard in shards:
            rows += self._index(shard)
            if len(rows) > MAX_ENTRIES:
                raise MfDeployError(
                    f"Cannot read {path}", f"it holds more than {MAX_ENTRIES:,} rows", "Give fewer shards."
                )
        if not rows:
            raise no_images(path, {})
        self.entries = _named(rows)

    def _index(self, shard: Path) -> list[tuple[str | None, Entry]]:
        """Each row's image path, if it has one, and its entry under the name ``shard/row``."""
        import pyarrow
        import pyarrow.parquet

        fix = "Give a parquet file with the columns image {bytes, path} and label."
        try:
            file = pyarrow.parquet.ParquetFile(shard)
            schema = file.schema_arrow
            if "image" not in schema.names or not pyarrow.types.is_struct(schema.field("image").type):
                raise MfDeployError(f"Cannot read {shard}", f"its columns are {', '.join(schema.names)}", fix)
            parts = [field.name for field in schema.field("image").type]
            if "bytes" not in parts:
                raise MfDeployError(f"Cannot read {shard}", "its column image has no bytes", fix)
            columns = [name for name in ("label",) if name in schema.names]
            table = file.read(columns=columns + (["image.path"] if "path" in parts else []))
        except (pyarrow.ArrowException, OSError) as error:
            raise MfDeployError(f"Cannot read {shard}", str(error), fix) from None
        count = file.metadata.num_rows
        labels = _labels(shard, table.column("label").to_pylist(), fix) if columns else [None] * count
        paths = (
            [row["path"] for row in table.column("image").to_pylist()] if "path" in parts else [None] * count
        )
        self.label_names = _label_names(schema.metadata or {})
        self._files.append(file)
        entries: list[tuple[str | None, Entry]] = []
        for group in range(file.metadata.num_row_groups):
            if file.metadata.row_group(group).total_byte_size > MAX_ROW_GROUP_BYTES:
                raise MfDeployError(
                    f"Cannot read {shard}", "a row group exceeds 1 GiB", "Write smaller row groups."
                )
            for row in range(file.metadata.row_group(group).num_rows):
                place = (len(self._files) - 1, group, row)
                number = len(entries)
                entries.append((paths[number], Entry(f"{shard.stem}/{number:08d}", place, labels[number])))
        return entries

    def read(self, entry: Entry) -> bytes:
        file, group, row = entry.place
        with self._lock:
            if self._group is None or self._group[0] != (file, group):
                self._group = None
                self._group = ((file, group), self._read_group(file, group))
            data = self._group[1][row]["bytes"].as_py()
        if data is None or len(data) > MAX_FILE_BYTES:
            raise ValueError(
                "the row has no bytes" if data is None else f"larger than {MAX_FILE_BYTES >> 20} MiB"
            )
        return data

    def _read_group(self, file: int, group: int) -> Any:
        import pyarrow

        try:
            return self._files[file].read_row_group(group, columns=["image.bytes"]).column("image")
        except pyarrow.ArrowException as error:
            raise ValueError(str(error)) from None


def shards_in(folder: Path) -> list[Path]:
    """The parquet files directly in ``folder``, sorted."""
    return sorted(path for path in folder.glob("*.parquet") if not path.name.startswith("."))


def _named(rows: list[tuple[str | None, Entry]]) -> list[Entry]:
    """Rows named by their image path, as in other containers, where every row has a path of its own."""
    paths = {path for path, _ in rows if path}
    if len(paths) < len(rows):
        return [entry for _, entry in rows]
    return [replace(entry, name=printable(path or "")) for path, entry in rows]


def _labels(shard: Path, values: list[Any], fix: str) -> list[str | int]:
    for value in values:
        if not isinstance(value, str | int) or (isinstance(value, int) and value < 0):
            raise MfDeployError(f"Cannot read {shard}", f"it has the label {value!r}", fix)
    return values


def _label_names(metadata: dict[bytes, bytes]) -> list[str] | None:
    """The class names that Hugging Face's ``ClassLabel`` stores beside the schema, or None."""
    try:
        names = json.loads(metadata[b"huggingface"])["info"]["features"]["label"]["names"]
    except (KeyError, TypeError, ValueError):
        return None
    return names if isinstance(names, list) and all(isinstance(name, str) for name in names) else None
