"""The same images come out of every container, labelled, in order, in batches."""

import gc
import hashlib
import json
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from made_images import CLASSES, tar_of, write_image, zip_of
from PIL import Image

from mf_deploy.data import LabelledImages, digest_of, open_images
from mf_deploy.data.labels import class_list
from mf_deploy.errors import MfDeployError
from mf_deploy.preprocessing import Preprocessing

SMALL = Preprocessing(input_size=16, crop_fraction=1.0)


def names(images: LabelledImages) -> list[str]:
    return [name for batch in images.batches(SMALL, 4) for name in batch.names]


def write_parquet(
    path: Path, folder: Path, class_names: list[str] | None = None, folders: list[str] | None = None
) -> Path:
    """As Hugging Face writes it: the rows in reverse order, two rows a group, labels as numbers.

    The class of ``folders[i]`` is number i and called ``class_names[i]``.
    """
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    files = sorted(folder.rglob("*.*"), reverse=True)
    rows = {
        "image": [{"bytes": f.read_bytes(), "path": f.relative_to(folder).as_posix()} for f in files],
        "label": [(folders or class_names or list(CLASSES)).index(f.parent.name) for f in files],
    }
    table = pa.table(rows)
    if class_names:
        features = {"label": {"names": class_names, "_type": "ClassLabel"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, path, row_group_size=2)
    return path


def test_folder_gives_pictures_labels_names_and_digests(class_folders: Path) -> None:
    images = open_images(class_folders)
    assert images.class_names == list(CLASSES)
    assert len(images) == 12
    batches = list(images.batches(SMALL, batch_size=5))
    assert [len(batch.names) for batch in batches] == [5, 5, 2]
    assert batches[0].pictures.shape == (5, 16, 16, 3)
    assert batches[0].pictures.dtype == np.uint8
    assert batches[0].labels.dtype == np.int64
    assert np.concatenate([batch.labels for batch in batches]).tolist() == [0] * 4 + [1] * 4 + [2] * 4
    file = class_folders / batches[1].names[0]
    assert batches[1].digests[0] == hashlib.sha256(file.read_bytes()).hexdigest()[:16]
    with Image.open(file) as image:
        np.testing.assert_array_equal(batches[1].pictures[0], SMALL.picture(image))
    assert images.skipped == []


@pytest.mark.parametrize("top", ["top", ".", "a/b"])
@pytest.mark.parametrize("pack", [tar_of, zip_of])
def test_archives_read_as_the_folder_they_were_made_of(
    class_folders: Path, tmp_path: Path, pack, top: str
) -> None:
    suffix = {tar_of: ".tar", zip_of: ".zip"}[pack]
    packed = open_images(pack(class_folders, tmp_path / f"packed{suffix}", top))
    plain = open_images(class_folders)
    assert packed.class_names == plain.class_names
    for ours, theirs in zip(packed.batches(SMALL, 3), plain.batches(SMALL, 3), strict=True):
        np.testing.assert_array_equal(ours.pictures, theirs.pictures)
        np.testing.assert_array_equal(ours.labels, theirs.labels)
        assert ours.names == theirs.names
        assert ours.digests == theirs.digests


def test_the_same_seed_chooses_the_same_images_from_every_container(
    class_folders: Path, tmp_path: Path
) -> None:
    sources = [
        class_folders,
        tar_of(class_folders, tmp_path / "p.tar"),
        zip_of(class_folders, tmp_path / "p.zip"),
        write_parquet(tmp_path / "p.parquet", class_folders),
    ]
    chosen = [sorted(names(open_images(source, limit=5, seed=7))) for source in sources]
    assert len(chosen[0]) == 5
    assert all(other == chosen[0] for other in chosen)
    assert sorted(names(open_images(class_folders, limit=5, seed=8))) != chosen[0]
    assert set(names(open_images(class_folders, limit=3, seed=7))) < set(chosen[0])
    assert len(open_images(class_folders, limit=99)) == 12


def test_flat_archive_chooses_as_the_flat_folder_does(flat_folder: Path, tmp_path: Path) -> None:
    packed = open_images(tar_of(flat_folder, tmp_path / "flat.tar"), limit=3)
    assert names(packed) == names(open_images(flat_folder, limit=3))


def test_a_limited_choice_still_knows_all_classes(class_folders: Path) -> None:
    images = open_images(class_folders, limit=1).bind(None, num_classes=3)
    assert images.class_names == list(CLASSES)
    label = next(images.batches(SMALL, 1))
    assert CLASSES[label.labels[0]] == label.names[0].split("/")[0]


def test_parquet_labels_and_order(class_folders: Path, tmp_path: Path) -> None:
    images = open_images(write_parquet(tmp_path / "p.parquet", class_folders))
    assert images.class_names is None
    (batch,) = images.bind(None, num_classes=3).batches(SMALL, 100)
    assert batch.labels.tolist() == [2] * 4 + [1] * 4 + [0] * 4
    assert batch.names[0] == "cat/3.jpg"
    file = class_folders / batch.names[5]
    assert batch.digests[5] == hashlib.sha256(file.read_bytes()).hexdigest()[:16]
    with pytest.raises(MfDeployError, match="go up to 2, the model has 2 classes"):
        images.bind(None, num_classes=2)


def test_parquet_with_class_names_is_bound_by_name(class_folders: Path, tmp_path: Path) -> None:
    images = open_images(write_parquet(tmp_path / "p.parquet", class_folders, ["cat", "ant", "bee"]))
    (batch,) = images.bind(["bee", "cat", "ant", "dog"], num_classes=4).batches(SMALL, 100)
    assert batch.labels.tolist() == [1] * 4 + [0] * 4 + [2] * 4
    wnids = ["n02123159", "n01440764", "n15075141"]
    images = open_images(write_parquet(tmp_path / "w.parquet", class_folders, wnids, list(CLASSES)))
    (batch,) = images.bind(None, num_classes=1000).batches(SMALL, 100)
    assert batch.labels.tolist() == [999] * 4 + [0] * 4 + [282] * 4


def test_a_folder_of_parquet_shards_is_one_set(class_folders: Path, tmp_path: Path) -> None:
    (tmp_path / "shards").mkdir()
    for number in range(2):
        write_parquet(tmp_path / "shards" / f"val-{number}.parquet", class_folders)
    images = open_images(tmp_path / "shards")
    assert len(images) == 24
    assert names(images)[12] == "val-1/00000000"


def test_label_file_with_indices(flat_folder: Path, tmp_path: Path) -> None:
    lines = [f"val_{number}.png {(number * 2) % 5}" for number in range(6)]
    (tmp_path / "val.txt").write_text("\n".join([*lines, "absent.png 1", ""]))
    images = open_images(flat_folder, label_file=tmp_path / "val.txt")
    assert images.class_names is None
    (batch,) = images.bind(None, num_classes=5).batches(SMALL, 10)
    assert batch.labels.tolist() == [0, 2, 4, 1, 3, 0]


def test_label_file_with_class_names_and_further_columns(flat_folder: Path, tmp_path: Path) -> None:
    text = "".join(f"val_{number}.png\t{'sea lion' if number % 2 else 'ant'}\t0\t0\n" for number in range(5))
    (tmp_path / "val_annotations.txt").write_text(text)
    packed = tar_of(flat_folder, tmp_path / "flat.tar", "val/images")
    images = open_images(packed, label_file=tmp_path / "val_annotations.txt")
    assert images.class_names == ["ant", "sea lion"]
    (batch,) = images.bind(["sea lion", "ant"], num_classes=2).batches(SMALL, 10)
    assert batch.labels.tolist() == [1, 0, 1, 0, 1]
    assert images.skipped == ["val_5.png (no line in val_annotations.txt)"]


def test_an_unlabelled_folder_serves_calibration_but_no_accuracy(flat_folder: Path) -> None:
    images = open_images(flat_folder)
    assert images.class_names is None
    assert not images.labelled
    (batch,) = images.batches(SMALL, 10)
    assert batch.labels.tolist() == [-1] * 6
    with pytest.raises(MfDeployError, match="no labels"):
        images.bind(None, 10)


def test_every_pass_is_the_same_whatever_the_number_of_workers(class_folders: Path) -> None:
    images = open_images(class_folders)
    passes = [list(images.batches(SMALL, 5, workers)) for workers in (1, 2, 5)]
    for other in passes[1:]:
        for ours, theirs in zip(passes[0], other, strict=True):
            np.testing.assert_array_equal(ours.pictures, theirs.pictures)
            assert ours.names == theirs.names


def test_digests_without_decoding_are_those_of_the_batches(class_folders: Path) -> None:
    images = open_images(class_folders)
    in_batches = [digest for batch in images.batches(SMALL, 5) for digest in batch.digests]
    assert images.digests() == in_batches
    assert digest_of(in_batches) == digest_of(reversed(in_batches))
    assert digest_of(in_batches) != digest_of(in_batches[1:])


def test_modes_other_than_rgb_become_rgb(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    colour = Image.new("RGB", (20, 20), (200, 30, 90))
    folder = tmp_path / "modes"
    folder.mkdir()
    for mode in ("L", "RGBA", "CMYK", "1"):
        colour.convert(mode).save(folder / f"{mode}.{'jpg' if mode == 'CMYK' else 'png'}")
    palette = colour.convert("P")
    palette.info["transparency"] = bytes([0] * 256)
    palette.save(folder / "P.png")
    (batch,) = open_images(folder).batches(SMALL, 10)
    assert batch.pictures.shape == (5, 16, 16, 3)
    assert np.abs(batch.pictures[batch.names.index("P.png")].astype(int) - (200, 30, 90)).max() < 30
    assert not recwarn.list


def background_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("mf-deploy-background")]


def wait_until_no_thread() -> None:
    deadline = time.monotonic() + 5
    while background_threads() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert background_threads() == []


def test_a_dropped_iterator_leaves_no_threads(class_folders: Path) -> None:
    batches = open_images(class_folders).batches(SMALL, 2)
    next(batches)
    assert background_threads()
    del batches
    gc.collect()
    wait_until_no_thread()


def test_an_exception_in_the_consumer_leaves_no_threads(class_folders: Path) -> None:
    def consume() -> None:
        for _ in open_images(class_folders).batches(SMALL, 2):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        consume()
    wait_until_no_thread()


def test_decoding_runs_ahead_but_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(60):
        write_image(tmp_path / "many" / f"{number:02d}.png", number)
    images = open_images(tmp_path / "many")
    reads: list[str] = []
    read = images._container.read
    monkeypatch.setattr(images._container, "read", lambda entry: reads.append(entry.name) or read(entry))
    batches = images.batches(SMALL, batch_size=4, workers=2)
    next(batches)
    time.sleep(0.5)
    assert 8 <= len(reads) <= 4 + 8 + 2
    assert sum(len(batch.names) for batch in batches) == 56


def test_real_archives(shared: Path) -> None:
    images = open_images(shared / "data" / "tiny-imagenet-val.tar").bind(None, num_classes=200)
    start = time.perf_counter()
    seen = [batch for batch in images.batches(Preprocessing(input_size=96, crop_fraction=1.0), 50)]
    assert time.perf_counter() - start < 10
    labels = np.concatenate([batch.labels for batch in seen])
    assert np.bincount(labels).tolist() == [25] * 200
    wnids = class_list("tiny-imagenet-200")
    assert all(wnids[i] == n.split("/")[0] for b in seen for i, n in zip(b.labels, b.names, strict=True))
    sample = open_images(shared / "data" / "imagenet-sample-1k.tar", limit=20).bind(None, num_classes=1000)
    (batch,) = sample.batches(Preprocessing(), 20)
    wnids = class_list("imagenet-1k")
    assert [wnids[i] for i in batch.labels] == [name.split("/")[0] for name in batch.names]
