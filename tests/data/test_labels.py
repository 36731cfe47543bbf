"""The label order: mapped by name, taken from the data only where it is beyond doubt, refused otherwise."""

import re
from pathlib import Path

import numpy as np
import pytest
from made_images import write_image

from mf_deploy.data import open_images
from mf_deploy.data.labels import class_list, indices_of, read_labels
from mf_deploy.errors import MfDeployError
from mf_deploy.preprocessing import Preprocessing

IMAGENET = class_list("imagenet-1k")
TINY = class_list("tiny-imagenet-200")


def test_shipped_lists() -> None:
    assert len(set(IMAGENET)) == 1000
    assert sorted(IMAGENET) == IMAGENET
    assert (IMAGENET[0], IMAGENET[282], IMAGENET[999]) == ("n01440764", "n02123159", "n15075141")
    assert len(set(TINY)) == 200
    assert sorted(TINY) == TINY
    with pytest.raises(MfDeployError, match=r"Did you mean imagenet-1k\?"):
        class_list("imagenet-1000")


def test_a_permuted_model_list_is_mapped_by_name(class_folders: Path) -> None:
    images = open_images(class_folders).bind(["dog", "cat", "ant", "bee"], num_classes=4)
    labels = np.concatenate([batch.labels for batch in images.batches(Preprocessing(input_size=8), 5)])
    assert labels.tolist() == [2] * 4 + [3] * 4 + [1] * 4


def test_without_a_model_list_imagenet_ids_keep_their_places() -> None:
    assert indices_of(["n02123159", "n15075141"], None, 1000) == {"n02123159": 282, "n15075141": 999}
    assert indices_of(TINY, None, 200) == {name: i for i, name in enumerate(TINY)}
    assert indices_of(TINY[50:60], None, 200) == {TINY[i]: i for i in range(50, 60)}


def test_without_a_model_list_other_names_are_sorted() -> None:
    assert indices_of(["ant", "bee"], None, 2) == {"ant": 0, "bee": 1}
    assert indices_of([str(digit) for digit in range(10)], None, 10)["7"] == 7


@pytest.mark.parametrize(
    ("names", "labels", "num_classes", "message"),
    [
        (["a", "b", "c", "d", "e"], None, 200, "the data has 5 classes, the model 200"),
        (["a", "b"], ["a", "c"], 2, "1 of its 2 classes are not the model's, the first is 'b'"),
        (["a"], ["a", "b"], 3, "it names 2 classes, the model has 3"),
        (["crane"], ["crane", "crane"], 2, "names 'crane' twice"),
        (
            ["n01440764"],
            ["tench"],
            1,
            r"its folders are WordNet ids (n01440764), the model's classes words ('tench')",
        ),
        (
            ["tench"],
            IMAGENET,
            1000,
            r"its folders are words ('tench'), the model's classes WordNet ids (n01440764)",
        ),
        (sorted(str(number) for number in range(12)), None, 12, "10 sorts before 2 by name"),
    ],
)
def test_refusals_say_what_differs(names, labels, num_classes: int, message: str) -> None:
    with pytest.raises(MfDeployError, match=re.escape(message)):
        indices_of(names, labels, num_classes)


def test_read_labels(tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_bytes("n01\ttench\r\nn02\tgoldfish\r\n\r\n".encode("utf-8-sig"))
    assert read_labels(str(tmp_path / "words.txt")) == ["n01", "n02"]
    assert read_labels("imagenet-1k") == IMAGENET


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "it is empty"),
        (b"a\n\nb\n", "line 2 has no class"),
        (b"\xff\xfe\x00", "not UTF-8"),
        (b"a\0b", "not a text file"),
        (None, "no such file"),
    ],
)
def test_bad_class_lists(tmp_path: Path, content: bytes | None, message: str) -> None:
    file = tmp_path / "list.txt"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(MfDeployError, match=f"(?i){message}"):
        read_labels(str(file))
    with pytest.raises(MfDeployError, match="no such list or file"):
        read_labels("imagenet1k")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("val_0.png\n", "line 1 is not 'file label'"),
        ("val_0.png 1\nval_0.png 2\n", "line 2 gives val_0.png a second label"),
        ("other.png 1\n", "its 1 lines name none of the 2 images, such as val_0.png"),
        ("", "it is empty"),
    ],
)
def test_bad_label_files(tmp_path: Path, content: str, message: str) -> None:
    for number in range(2):
        write_image(tmp_path / "flat" / f"val_{number}.png", number)
    (tmp_path / "val.txt").write_text(content)
    with pytest.raises(MfDeployError, match=re.escape(message)):
        open_images(tmp_path / "flat", label_file=tmp_path / "val.txt")
