"""Bad input to every command: one clear line, the right exit code, no traceback, nothing left behind."""

import io
import json
import os
import pickle
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import click
import numpy as np
import pytest
import torch
from PIL import Image

from mf_deploy.cli import bench, check, export, quantize, report
from mf_deploy.cli.command import run_command
from mf_deploy.models import load_model

COLOURS = {"blue": (40, 40, 200), "green": (40, 200, 40), "red": (200, 40, 40)}
FACTORY = """
import torch
from torch import nn

def create():
    conv, norm = nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8)
    return nn.Sequential(conv, norm, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))

class Undecided(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, image):
        return self.layer(image.mean((2, 3)) if image.sum() > 0 else image.amax((2, 3)))

def raises():
    raise RuntimeError("weights not found")

def prints():
    print("Loaded.")
    return create()
"""
SMALL = ("--input-size", "32")


def run(command: click.Command, *arguments: object) -> int:
    """The exit code of a command as it is typed."""
    before, sys.argv = sys.argv, [str(command.name), *map(str, arguments)]
    try:
        with pytest.raises(SystemExit) as ended:
            run_command(command)
    finally:
        sys.argv = before
    assert isinstance(ended.value.code, int)
    return ended.value.code


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run a command that must fail, and return its one line."""

    def run_refused(command: click.Command, *arguments: object, code: int = 2) -> str:
        capsys.readouterr()
        assert run(command, *arguments) == code
        printed = capsys.readouterr()
        lines = printed.err.splitlines()
        assert len(lines) == 1, printed.err
        assert lines[0].startswith("error: ")
        assert "Traceback" not in printed.err
        assert printed.out == ""
        return lines[0]

    return run_refused


def write_images(folder: Path, per_class: int = 4, seed: int = 0) -> Path:
    rng = np.random.default_rng(seed)
    for name, colour in COLOURS.items():
        (folder / name).mkdir(parents=True)
        for index in range(per_class):
            pixels = np.array(colour) + rng.normal(0, 30, (32, 32, 3))
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / name / f"{index}.png")
    return folder


@pytest.fixture(scope="module", autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The current folder of these tests: a user's model in it, some images, and a run made of them."""
    folder, before = tmp_path_factory.mktemp("home"), Path.cwd()
    (folder / "mine.py").write_text(FACTORY)
    write_images(folder / "images")
    write_images(folder / "others", seed=1)
    os.chdir(folder)
    try:
        assert run(export.command, "--model", "mine:create", *SMALL, "--target", "onnx") == 0
        arguments = ("--calibration", "images", "--samples", "8", "--seed", "0")
        assert run(quantize.command, "runs/mine", *arguments) == 0
        random = ("--random-weights", "--out", "random")
        assert run(export.command, "--model", "mine:create", *SMALL, "--target", "onnx", *random) == 0
        yield folder
    finally:
        os.chdir(before)


@pytest.fixture
def spoiled(home: Path, tmp_path: Path) -> Callable[[str, Callable[[bytes], bytes]], Path]:
    """A copy of the run with one file changed."""

    def spoil(name: str, change: Callable[[bytes], bytes]) -> Path:
        for path in (home / "runs" / "mine").rglob("*"):
            if path.is_file():
                copy = tmp_path / "run" / path.relative_to(home / "runs" / "mine")
                copy.parent.mkdir(parents=True, exist_ok=True)
                copy.write_bytes(path.read_bytes())
        victim = tmp_path / "run" / name
        victim.write_bytes(change(victim.read_bytes()))
        return tmp_path / "run"

    return spoil


class Code:
    """Unpickling it would create a file."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.witness),)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoints")
    state = load_model("mobile_former_26m").state_dict()
    torch.save({"state_dict": state}, folder / "good.pth")
    whole = (folder / "good.pth").read_bytes()
    (folder / "empty.pth").write_bytes(b"")
    (folder / "truncated.pth").write_bytes(whole[: len(whole) // 2])
    (folder / "text.pth").write_text("not a checkpoint")
    (folder / "pickle.pth").write_bytes(pickle.dumps(Code(folder / "ran")))
    torch.save({"state_dict": {"x": Code(folder / "ran")}}, folder / "code.pth")
    key = next(key for key, value in state.items() if value.dim() == 4)
    torch.save({"state_dict": state | {key: state[key] * float("nan")}}, folder / "nan.pth")
    return folder


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("missing.pth", "no such file"),
        ("empty.pth", "it is empty"),
        ("truncated.pth", "truncated or damaged"),
        ("text.pth", "neither a PyTorch nor a safetensors file"),
        ("pickle.pth", "can run code"),
        ("code.pth", "pickled code"),
        ("nan.pth", "NaN or infinity in "),
        ("good.pth", "It fits mobile_former_26m"),
    ],
)
def test_checkpoints(
    refused: Callable[..., str], checkpoints: Path, tmp_path: Path, name: str, words: str
) -> None:
    arguments = ("--target", "onnx", "--checkpoint", checkpoints / name, "--out", tmp_path / "out")
    line = refused(export.command, "mobile_former_52m", *arguments)
    assert words in line
    assert name in line
    assert not (checkpoints / "ran").exists()
    assert not (tmp_path / "out").exists()


MINE = ("--model", "mine:create", "--target", "onnx", *SMALL)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("mobile_former_295m", "--target", "onnx", "--random-weights"), "Did you mean mobile_former_294m?"),
        (("resnet", "--target", "onnx", "--random-weights"), "See mf-deploy models"),
        (("mobile_former_26m", "--target", "tensorflow-lite"), "Unknown target"),
        (("mobile_former_26m", "--target", "tflit"), "Did you mean tflite?"),
        (("mobile_former_26m", "--target", "onnx", "--precision", "fp61"), "Did you mean fp16?"),
        (("mobile_former_26m", "--target", "onnx", "--graph", "deployed"), "Did you mean deploy?"),
        (("mobile_former_26m", "--target", "onnx", "--input", "int8"), "Did you mean uint8?"),
        (("mobile_former_26m", "--target", "onnx"), "--checkpoint is missing. Give one, or --random-weights"),
        (("mobile_former_26m",), "Missing option '--target'"),
        (("--target", "onnx"), "no model given"),
        (("mobile_former_26m", "--target", "onnx", "--batch", "0"), "'--batch'"),
        (("mobile_former_26m", "--target", "onnx", "--input-size", "many"), "not a valid integer"),
        (("mobile_former_26m", *MINE), "both a name and --model given"),
        (("--model", "mine", "--target", "onnx"), "not of the form package.module:factory"),
        (("mine:create", "--target", "onnx"), "Pass --model mine:create in place of it"),
        (("--model", "nobody:create", "--target", "onnx"), "No module named 'nobody'"),
        (("--model", "mine:creat", "--target", "onnx"), "mine has no creat"),
        (("--model", "mine:raises", "--target", "onnx"), "weights not found"),
        (("--model", "mine:Undecided", "--target", "onnx", *SMALL, "--out", "bad"), "Cannot convert mine"),
        ((*MINE, "--mean", "0.5"), "not three numbers"),
        ((*MINE, "--mean", "nan,0,0"), "mean and std must be finite"),
        ((*MINE, "--std", "1,1,0"), "std must be positive"),
        ((*MINE, "--labels", "imagenet-1k"), "1000 labels for 3 classes"),
        ((*MINE, "--labels", "missing.txt"), "missing.txt"),
        ((*MINE, "--checkpoint", "mine.py", "--random-weights"), "Give one of them"),
        (MINE, "runs/mine/onnx-fp32 exists: it would be overwritten. Pass --force"),
        ((*MINE, "--precision", "fp16", "--crop-fraction", "1"), "runs/mine holds another model"),
        ((*MINE, "--out", "mine.py"), "mine.py"),
        ((*MINE, "--out", "/proc/nowhere"), "Cannot write /proc/nowhere"),
    ],
)
def test_export(refused: Callable[..., str], arguments: tuple[str, ...], words: str) -> None:
    assert words in refused(export.command, *arguments)


QUANTIZE = ("runs/mine", "--force", "--calibration")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((*QUANTIZE, "images", "--scheme", "w8a9"), "Did you mean w8a8?"),
        ((*QUANTIZE, "images", "--target", "onx"), "Did you mean onnx?"),
        ((*QUANTIZE, "nowhere"), "No images at nowhere: no such file or folder"),
        ((*QUANTIZE, "empty"), "No images in empty"),
        ((*QUANTIZE, "texts"), "files skipped, the first is"),
        ((*QUANTIZE, "broken"), "No readable images in broken"),
        ((*QUANTIZE, "images", "--batch", "64"), "12 images are too few for batches of 64"),
        (("nowhere", "--calibration", "images"), "No run at nowhere"),
        (("runs/mine", "--calibration", "images"), "exists: it would be overwritten"),
    ],
)
def test_quantize(refused: Callable[..., str], home: Path, arguments: tuple[str, ...], words: str) -> None:
    (home / "empty").mkdir(exist_ok=True)
    (home / "texts").mkdir(exist_ok=True)
    (home / "texts" / "notes.txt").write_text("no image")
    (home / "broken").mkdir(exist_ok=True)
    (home / "broken" / "a.jpg").write_bytes(b"\xff\xd8\xff no image")
    before = (home / "runs/mine/onnx-w8a8/manifest.json").read_bytes()
    assert words in refused(quantize.command, *arguments)
    assert (home / "runs/mine/onnx-w8a8/manifest.json").read_bytes() == before
    assert sorted(path.name for path in (home / "runs/mine").glob(".*")) == []


def test_a_run_that_does_not_exist(refused: Callable[..., str]) -> None:
    assert "nowhere: no such folder" in refused(check.command, "nowhere", "--data", "images")
    assert "nowhere: no such folder" in refused(bench.bench, "nowhere")
    assert "nowhere: no such file" in refused(check.command, "runs/mine", "--data", "nowhere")


def test_a_report_of_nothing(refused: Callable[..., str]) -> None:
    assert "nowhere" in refused(report.report, "nowhere")


def test_check_refuses_random_weights(refused: Callable[..., str]) -> None:
    line = refused(check.command, "random/mine", "--data", "images")
    assert "mine was exported with random weights" in line


def test_check_refuses_calibration_images(refused: Callable[..., str]) -> None:
    line = refused(check.command, "runs/mine/onnx-w8a8", "--data", "images")
    assert "8 of the 12 images in images are among the 8 from images that it was calibrated on" in line
    assert run(check.command, "runs/mine/onnx-w8a8", "--data", "others") == 0


def test_check_refuses_a_wrong_class_count(refused: Callable[..., str], tmp_path: Path) -> None:
    write_images(tmp_path / "more", per_class=1)
    (tmp_path / "more" / "white").mkdir()
    Image.new("RGB", (32, 32), "white").save(tmp_path / "more" / "white" / "0.png")
    line = refused(check.command, "runs/mine", "--data", tmp_path / "more")
    assert "4" in line
    assert "3" in line


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("onnx-fp32/manifest.json", lambda _: b"{", "Invalid JSON"),
        ("onnx-fp32/manifest.json", lambda _: b"", "Invalid JSON"),
        (
            "onnx-fp32/manifest.json",
            lambda text: text.replace(b'"onnx"', b'"tpu"', 1),
            "target: Input should be",
        ),
        (
            "onnx-fp32/manifest.json",
            lambda text: text.replace(b"model.onnx", b"../a.onnx"),
            "outside the folder",
        ),
        (
            "onnx-fp32/manifest.json",
            lambda text: json.dumps(json.loads(text) | {"files": []}).encode(),
            "not in its list of files",
        ),
        (
            "onnx-fp32/manifest.json",
            lambda text: json.dumps(json.loads(text) | {"schema_version": 2}).encode(),
            "schema_version",
        ),
        (
            "onnx-fp32/model.onnx",
            lambda data: data[:-9] + bytes([data[-9] ^ 1]) + data[-8:],
            "Damaged artifact",
        ),
        ("onnx-fp32/model.onnx", lambda data: data[: len(data) // 2], "Damaged artifact"),
        ("model.json", lambda _: b"[]", "Cannot read"),
        ("model.json", lambda text: text.replace(b"mine:create", b"mine:other"), "made from another model"),
        ("model.safetensors", lambda data: data[:-1], "Damaged run"),
    ],
)
def test_check_refuses_damaged_files(
    refused: Callable[..., str],
    spoiled: Callable[[str, Callable[[bytes], bytes]], Path],
    name: str,
    change: Callable[[bytes], bytes],
    words: str,
) -> None:
    folder = spoiled(name, change)
    assert words in refused(check.command, folder / "onnx-fp32", "--data", "others")


def test_one_corrupt_image_is_counted_and_named(home: Path, tmp_path: Path, capsys) -> None:
    folder = write_images(tmp_path / "images", seed=2)
    (folder / "red" / "9.png").write_bytes(b"\x89PNG no image")
    assert run(check.command, "runs/mine/onnx-fp32", "--data", folder) == 0
    out = capsys.readouterr().out
    assert "12 images" in out
    assert "Skipped 1 files, the first is red/9.png" in out


def test_a_tar_with_escaping_entries_is_read_without_them(home: Path, tmp_path: Path, capsys) -> None:
    folder = write_images(tmp_path / "images", seed=2)
    with tarfile.open(tmp_path / "images.tar", "w") as archive:
        archive.add(folder, "images")
        for name in ("../../escaped.png", "/absolute.png"):
            content = (folder / "red" / "0.png").read_bytes()
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    assert run(check.command, "runs/mine/onnx-fp32", "--data", tmp_path / "images.tar") == 0
    out = capsys.readouterr().out
    assert "12 images" in out
    assert "Skipped 2 files, the first is ../../escaped.png" in out
    assert list(tmp_path.parent.glob("**/escaped.png")) == []


def test_brackets_in_a_path_are_printed(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(export.command, *MINE, "--out", "runs [old]") == 0
    assert "runs [old]/mine/onnx-fp32" in capsys.readouterr().out


def test_what_a_factory_prints_stays_out_of_the_json(home: Path, tmp_path: Path, capsys) -> None:
    arguments = ("--model", "mine:prints", "--target", "onnx", *SMALL, "--out", tmp_path, "--json")
    assert run(export.command, *arguments) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)[0]["target"] == "onnx"
    assert "Loaded." in printed.err


def test_the_installed_command_prints_one_line_too(home: Path) -> None:
    command = [Path(sys.executable).with_name("mf-export"), "mobile_former_26", "--target", "onnx"]
    ended = subprocess.run([*command, "--random-weights"], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.startswith("error: Unknown model 'mobile_former_26'")
    assert ended.stderr.count("\n") == 1
