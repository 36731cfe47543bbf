"""Hostile, damaged and empty sources: skipped and named, or refused in one line."""

import io
import os
import signal
import subprocess
import sys
import tarfile
import threading
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from made_images import tar_of, write_image, zip_of
from PIL import Image

from mf_deploy.data import LabelledImages, decoding, listing, open_images
from mf_deploy.errors import MfDeployError
from mf_deploy.preprocessing import Preprocessing

SMALL = Preprocessing(input_size=16, crop_fraction=1.0)


def png(seed: int = 0) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (20, 20, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def names(images: LabelledImages) -> list[str]:
    return [name for batch in images.batches(SMALL, 4) for name in batch.names]


def write_tar(path: Path, members: list[tuple[str, bytes | str]]) -> Path:
    """Members with bytes are files, with a string links to it."""
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            if isinstance(content, str):
                info.type, info.linkname = tarfile.SYMTYPE, content
                tar.addfile(info)
            else:
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return path


def fails(path: Path, message: str) -> None:
    with pytest.raises(MfDeployError, match=message) as raised:
        names(open_images(path))
    assert "\n" not in str(raised.value)
    assert raised.value.exit_code == 2


def test_escaping_and_foreign_tar_entries_are_skipped_and_named(tmp_path: Path) -> None:
    path = write_tar(
        tmp_path / "evil.tar",
        [
            ("top/a/good.png", png(1)),
            ("top/b/good.png", png(2)),
            ("top/a/../../../out.png", png(3)),
            ("/etc/root.png", png(4)),
            ("C:\\windows\\x.png", png(4)),
            ("top/a/link.png", "/etc/passwd"),
            ("top/a/notes\x1b[31m.txt", b"hello"),
            ("top/stray.png", png(5)),
            ("top/a/._good.png", b"resource fork"),
            ("__MACOSX/top/a/good.png", b"resource fork"),
            ("top/a/.DS_Store", b"finder"),
        ],
    )
    images = open_images(path)
    assert images.class_names == ["a", "b"]
    assert names(images) == ["a/good.png", "b/good.png"]
    assert images.skipped == sorted(
        [
            "top/a/../../../out.png (a path out of the archive)",
            "/etc/root.png (an absolute path)",
            "C:\\windows\\x.png (an absolute path)",
            "top/a/link.png (a link)",
            f"top/a/notes\\x1b[31m.txt ({listing.NOT_AN_IMAGE})",
            "stray.png (not in a class folder, while others are)",
        ]
    )
    assert not (tmp_path.parent / "out.png").exists()


def test_hostile_zip_entries_are_skipped_and_named(tmp_path: Path) -> None:
    path = tmp_path / "evil.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/good.png", png(1))
        archive.writestr("b/good.png", png(2))
        archive.writestr("../out.png", png(3))
        archive.writestr(zipfile.ZipInfo("b/bzip.png"), png(3), zipfile.ZIP_BZIP2)
        archive.writestr("b/bomb.png", b"\0" * (listing.MAX_FILE_BYTES + 1), zipfile.ZIP_DEFLATED)
        link = zipfile.ZipInfo("a/link.png")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
    images = open_images(path)
    assert names(images) == ["a/good.png", "b/good.png"]
    assert images.skipped == [
        "../out.png (a path out of the archive)",
        "a/link.png (a link)",
        "b/bomb.png (larger than 64 MiB)",
        "b/bzip.png (compressed by other than deflate)",
    ]


def test_a_zip_that_lies_about_its_size_yields_no_more_than_it_says(tmp_path: Path) -> None:
    path = tmp_path / "liar.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/bomb.png", b"\0" * 50_000_000)
        archive.writestr("a/good.png", png())
    data = path.read_bytes()
    path.write_bytes(data.replace((50_000_000).to_bytes(4, "little"), (1000).to_bytes(4, "little")))
    images = open_images(path)
    assert names(images) == ["good.png"]
    assert [line.split()[0] for line in images.skipped] == ["bomb.png"]


def test_links_in_a_folder_are_skipped(class_folders: Path, tmp_path: Path) -> None:
    write_image(tmp_path / "secret.png", 1)
    (class_folders / "ant" / "link.png").symlink_to(tmp_path / "secret.png")
    (class_folders / "linked_class").symlink_to(tmp_path)
    os.mkfifo(class_folders / "ant" / "pipe.png")
    images = open_images(class_folders)
    assert len(images) == 12
    assert images.skipped == [
        "ant/link.png (a link)",
        "ant/pipe.png (not a regular file)",
        "linked_class (a link)",
    ]


def test_one_damaged_image_among_good_ones(class_folders: Path, tmp_path: Path) -> None:
    good = (class_folders / "bee" / "0.png").read_bytes()
    (class_folders / "bee" / "0.png").write_bytes(good[: len(good) // 2])
    (class_folders / "bee" / "1.jpg").write_bytes(b"not a picture")
    (class_folders / "bee" / "2.png").write_bytes(b"")
    for source in (
        class_folders,
        tar_of(class_folders, tmp_path / "p.tar"),
        zip_of(class_folders, tmp_path / "p.zip"),
    ):
        images = open_images(source)
        for _ in range(2):
            assert len(names(images)) == 9
        assert [line.split(" ", 1)[0] for line in images.skipped] == ["bee/0.png", "bee/1.jpg", "bee/2.png"]
        assert "empty" in images.skipped[2]


def test_a_zip_entry_with_a_wrong_checksum_is_damaged(class_folders: Path, tmp_path: Path) -> None:
    path = zip_of(class_folders, tmp_path / "p.zip")
    with zipfile.ZipFile(path) as archive:
        crc = archive.getinfo("top/cat/0.png").CRC
    path.write_bytes(
        path.read_bytes().replace(crc.to_bytes(4, "little"), zlib.crc32(b"x").to_bytes(4, "little"))
    )
    images = open_images(path)
    assert len(names(images)) == 11
    assert "Bad CRC" in images.skipped[0]


def test_too_many_damaged_images_are_an_error(tmp_path: Path) -> None:
    for number in range(30):
        write_image(tmp_path / "many" / f"{number:02d}.png", number)
    for number in range(10):
        (tmp_path / "many" / f"{number:02d}.png").write_bytes(b"broken")
    assert len(names(open_images(tmp_path / "many"))) == 20
    (tmp_path / "many" / "10.png").write_bytes(b"broken")
    fails(tmp_path / "many", r"Too many damaged images in .*many: more than 10 of 30, the last is 10.png")


def test_nothing_but_damaged_images_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.jpg").write_bytes(b"broken")
    fails(tmp_path / "bad", r"No readable images in .*: all 1 are damaged, the last is a.jpg \(not a JPEG")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_pictures_that_would_fill_the_memory_are_refused(tmp_path: Path) -> None:
    (tmp_path / "big").mkdir()
    write_image(tmp_path / "big" / "good.png", 1)
    Image.new("1", (10_000, 10_000)).save(tmp_path / "big" / "bomb.png")
    Image.new("1", (1, 60_000)).save(tmp_path / "big" / "thread.png")
    Image.fromarray(np.zeros((9, 9), np.uint16)).save(tmp_path / "big" / "deep.png")
    Image.new("RGB", (9, 9)).save(tmp_path / "big" / "gif.png", "GIF")
    images = open_images(tmp_path / "big")
    (batch,) = images.batches(Preprocessing(), 10)
    assert batch.names == ["good.png"]
    assert images.skipped == [
        "bomb.png (10000 × 10000 pixels is too large)",
        "deep.png (mode I;16 is not 8 bits a channel)",
        "gif.png (not a JPEG, PNG, WebP, BMP or PPM image)",
        "thread.png (1 × 60000 pixels is too large)",
    ]
    assert decoding.MAX_PIXELS < Image.MAX_IMAGE_PIXELS


@pytest.mark.parametrize("keep", [0.3, 0.5, 0.9])
@pytest.mark.parametrize("pack", [tar_of, zip_of])
def test_truncated_archives(class_folders: Path, tmp_path: Path, pack, keep: float) -> None:
    path = pack(class_folders, tmp_path / f"p.{'tar' if pack is tar_of else 'zip'}")
    data = path.read_bytes().rstrip(b"\0")
    path.write_bytes(data[: int(len(data) * keep)])
    fails(path, "Cannot read .*: .*(truncated|unexpected end of data)")


def test_a_tar_cut_between_entries_is_truncated_too(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "p.tar", [("a/1.png", png(1)), ("b/2.png", png(2))])
    with tarfile.open(path) as tar:
        offset = tar.getmember("b/2.png").offset
    path.write_bytes(path.read_bytes()[:offset])
    fails(path, "truncated")


def test_a_tar_with_a_negative_size_does_not_hang(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "p.tar", [("a/1.png", png(1)), ("b/2.png", png(2))])
    data = bytearray(path.read_bytes())
    with tarfile.open(path) as tar:
        start = tar.getmember("b/2.png").offset
    data[start + 124 : start + 136] = b"\xff" + (-(start + 512)).to_bytes(11, "big", signed=True)
    data[start + 148 : start + 156] = b" " * 8
    data[start + 148 : start + 156] = b"%06o\0 " % sum(data[start : start + 512])
    path.write_bytes(data)
    fails(path, "Cannot read")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.tar", b"", "empty"),
        ("text.tar", b"hello " * 500, "Cannot read .*text.tar"),
        ("zeros.tar", bytes(10240), "it holds no images"),
        ("packed.tar.gz", b"\x1f\x8b" + bytes(100), "compressed tar cannot be read in place"),
        ("empty.zip", b"", "no zip file"),
        ("text.zip", b"hello " * 500, "no zip file"),
        ("text.parquet", b"hello " * 500, "Cannot read .*text.parquet"),
        ("model.pth", b"hello", r"\.pth is not supported"),
    ],
)
def test_files_that_are_not_what_they_say(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    fails(tmp_path / name, message)


def test_folders_without_images(tmp_path: Path) -> None:
    fails(tmp_path / "absent", "no such file or folder")
    fails(tmp_path, "it holds no images. Give")
    (tmp_path / "b.txt").write_text("text")
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "a.md").write_text("text")
    fails(tmp_path, r"it holds no images: 2 files skipped, the first is b.txt \(not a JPEG")


def test_parquet_without_the_columns(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    pq.write_table(pa.table({"text": ["a"], "label": [1]}), tmp_path / "a.parquet")
    fails(tmp_path / "a.parquet", "its columns are text, label")
    image = [{"bytes": png(), "path": "a.png"}]
    pq.write_table(pa.table({"image": image, "label": [-1]}), tmp_path / "a.parquet")
    fails(tmp_path / "a.parquet", "it has the label -1")
    pq.write_table(pa.table({"image": [*image, {"bytes": None, "path": "b.png"}]}), tmp_path / "a.parquet")
    images = open_images(tmp_path / "a.parquet")
    assert names(images) == ["a.png"]
    assert images.skipped == ["b.png (the row has no bytes)"]
    assert not images.labelled


def test_more_files_than_the_limit(class_folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing, "MAX_ENTRIES", 5)
    fails(class_folders, "more than 5 files")


def test_bad_numbers(class_folders: Path) -> None:
    with pytest.raises(MfDeployError, match="Bad limit 0"):
        open_images(class_folders, limit=0)
    for batch_size, workers in ((0, 2), (4, 0)):
        with pytest.raises(MfDeployError, match="at least 1"):
            open_images(class_folders).batches(SMALL, batch_size, workers)


@pytest.mark.parametrize("pack", [tar_of, zip_of])
def test_an_archive_read_by_several_passes_at_once(class_folders: Path, tmp_path: Path, pack) -> None:
    images = open_images(pack(class_folders, tmp_path / f"p.{'tar' if pack is tar_of else 'zip'}"))
    expected = images.digests()
    found: list[list[str]] = []

    def read_all() -> None:
        for _ in range(10):
            found.append([digest for batch in images.batches(SMALL, 5, 4) for digest in batch.digests])

    threads = [threading.Thread(target=read_all) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 40
    assert all(digests == expected for digests in found)


def test_ctrl_c_ends_a_pass_at_once(tmp_path: Path) -> None:
    for number in range(200):
        write_image(tmp_path / "many" / f"{number:03d}.jpg", number, side=300)
    script = (
        "import sys\nfrom pathlib import Path\nfrom mf_deploy.data import open_images\n"
        "from mf_deploy.preprocessing import Preprocessing\n"
        "images = open_images(Path(sys.argv[1]))\n"
        "while True:\n    for batch in images.batches(Preprocessing(), 4):\n        print(1, flush=True)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path / "many")], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=10)
    assert process.returncode == -signal.SIGINT
    assert stderr.decode().strip().endswith("KeyboardInterrupt")
