"""Labels from a text file with one ``file label`` a line, as for ImageNet's flat validation folder."""

from dataclasses import replace
from pathlib import Path

from mf_deploy.data.listing import Entry
from mf_deploy.errors import MfDeployError

MAX_LABEL_FILE_BYTES = 256 << 20


def read_lines(path: Path, max_bytes: int, fix: str) -> list[str]:
    """The lines of a UTF-8 text file without the empty ones at its end.

    Raises:
        MfDeployError: no such file, too large, not text, or empty.
    """
    try:
        if path.stat().st_size > max_bytes:
            raise MfDeployError(f"Cannot read {path}", f"larger than {max_bytes >> 20} MiB", fix)
        text = path.read_text("utf-8-sig")
    except OSError as error:
        raise MfDeployError(f"Cannot read {path}", error.strerror or str(error), fix) from None
    except UnicodeDecodeError:
        raise MfDeployError(f"Cannot read {path}", "it is not UTF-8 text", fix) from None
    lines = text.rstrip().split("\n")
    if not text.strip() or "\0" in text:
        raise MfDeployError(
            f"Cannot read {path}", "it is not a text file" if "\0" in text else "it is empty", fix
        )
    return [line.rstrip("\r") for line in lines]


def read_label_file(path: Path) -> dict[str, str | int]:
    """File name → label; all labels as indices when every one is a whole number, else all as class names.

    A line is ``file label``, or with tabs ``file<TAB>label<TAB>ignored…`` (then both may hold spaces).
    """
    fix = "Write one 'file label' a line, the label a class index or a class name."
    labels: dict[str, str] = {}
    for number, line in enumerate(read_lines(path, MAX_LABEL_FILE_BYTES, fix), start=1):
        parts = [part.strip() for part in (line.split("\t")[:2] if "\t" in line else line.split(maxsplit=1))]
        if len(parts) != 2 or not all(parts):
            raise MfDeployError(
                f"Cannot read {path}", f"line {number} is not 'file label': {line[:60]!r}", fix
            )
        name = parts[0].removeprefix("./")
        if labels.setdefault(name, parts[1]) != parts[1]:
            raise MfDeployError(f"Cannot read {path}", f"line {number} gives {name} a second label", fix)
    if all(label.isascii() and label.isdigit() for label in labels.values()):
        return {name: int(label) for name, label in labels.items()}
    return dict(labels)


def labelled_by(entries: list[Entry], label_file: Path, skipped: dict[str, str]) -> list[Entry]:
    """``entries`` with the labels of ``label_file``, by relative name or else by file name.

    An image without a line is skipped, a line without an image is ignored.

    Raises:
        MfDeployError: no image has a line.
    """
    labels = read_label_file(label_file)
    found = []
    for entry in entries:
        label = labels.get(entry.name, labels.get(entry.name.rsplit("/", 1)[-1]))
        if label is None:
            skipped[entry.name] = f"no line in {label_file.name}"
        else:
            found.append(replace(entry, label=label))
    if not found:
        raise MfDeployError(
            f"No labels in {label_file}",
            f"its {len(labels):,} lines name none of the {len(entries):,} images, such as {entries[0].name}",
            "Give the label file that belongs to these images.",
        )
    return found
