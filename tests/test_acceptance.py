"""The whole path as users type it: real checkpoints, their own models, and what goes wrong in between."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mf_deploy.artifact import TARGETS, Artifact
from mf_deploy.evaluation.accuracy import AccuracyReport, AccuracyReports
from mf_deploy.export.parity import seeded_pictures
from mf_deploy.runtimes import open_session

COMMANDS = Path(sys.executable).parent
SIDE = 48
MINE = """
import torch
from torch import nn

class Mine(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.Hardswish())
        self.depthwise = nn.Sequential(nn.Conv2d(16, 16, 3, 2, 1, groups=16), nn.BatchNorm2d(16), nn.ReLU6())
        self.head = nn.Sequential(nn.Linear(16, 512), nn.ReLU(), nn.Linear(512, 5))

    def forward(self, image):
        features = self.depthwise(self.stem(image))
        attended = features * torch.sigmoid(features.mean((2, 3), keepdim=True))
        return self.head(attended.mean((2, 3)))

def create():
    return Mine()
"""


def mf(command: str, *arguments: object, cwd: Path, **options: object) -> subprocess.CompletedProcess[str]:
    """Run one of the installed commands to its end."""
    line = [str(COMMANDS / command), *map(str, arguments)]
    return subprocess.run(line, cwd=cwd, capture_output=True, text=True, timeout=600, **options)  # type: ignore[call-overload]


def done(command: str, *arguments: object, cwd: Path) -> str:
    """The standard output of a command that must succeed."""
    ended = mf(command, *arguments, cwd=cwd)
    assert ended.returncode == 0, ended.stderr
    return str(ended.stdout)


def refused(ended: subprocess.CompletedProcess[str], *words: str) -> None:
    """One line that says these words, and exit code 2."""
    lines = [line for line in ended.stderr.splitlines() if line]
    assert ended.returncode == 2, ended.stderr
    assert len(lines) == 1, ended.stderr
    assert lines[0].startswith("error: ")
    assert all(word in lines[0] for word in words), lines[0]


def leftovers(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob(".*"))


EXPORT = ("--model", "mine:create", "--input-size", SIDE)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's folder: a model and pictures of five classes."""
    folder = tmp_path_factory.mktemp("home")
    (folder / "mine.py").write_text(MINE)
    for number in range(60):
        name = folder / ("training" if number % 2 else "images") / f"class-{number % 5}" / f"{number}.png"
        name.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (6, 6, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((64, 64), Image.Resampling.BICUBIC).save(name)
    return folder


@pytest.fixture(scope="module")
def mine(home: Path) -> Path:
    """The user's model on all targets, in float and w8a8."""
    done("mf-export", *EXPORT, "--target", "all", cwd=home)
    done("mf-quantize", "runs/mine", "--calibration", "training", cwd=home)
    return home / "runs" / "mine"


@pytest.mark.slow
def test_a_users_model_goes_through_all_commands(home: Path, mine: Path) -> None:
    names = sorted(path.parent.name for path in mine.glob("*/manifest.json"))
    assert names == sorted(f"{target}-{scheme}" for target in TARGETS for scheme in ("fp32", "w8a8"))
    printed = json.loads(done("mf-check", "runs/mine", "--data", "images", "--json", "-", cwd=home))
    reports = AccuracyReports.model_validate(printed).reports
    assert {report.artifact for report in reports} == set(names)
    for report in reports:
        assert report.images == 30
        assert report.agreement.percent == 100 if report.scheme == "fp32" else report.sqnr_db > 15
    timed = done("mf-bench", "runs/mine/onnx-fp32", "--runs", "20", "--json", "-", cwd=home)
    assert json.loads(timed)
    done("mf-report", "runs/mine", cwd=home)
    page = (mine / "report.html").read_text()
    assert all(name in page for name in names)
    assert leftovers(home) == []


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
def test_pictures_as_input_give_the_logits_of_floats(home: Path, mine: Path, target: str) -> None:
    arguments = ("--target", target, "--input", "uint8", "--out", "uint8")
    manifests = json.loads(done("mf-export", *EXPORT, *arguments, "--json", cwd=home))
    assert [manifest["input"]["dtype"] for manifest in manifests] == ["uint8"]
    pictures = seeded_pictures(3, SIDE)
    floats = open_session(Artifact.open(mine / f"{target}-fp32")).run(pictures)["logits"]
    taken = open_session(Artifact.open(home / "uint8" / "mine" / f"{target}-fp32")).run(pictures)["logits"]
    np.testing.assert_allclose(taken, floats, atol=1e-5 * np.ptp(floats))


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(
    ("folder", "arguments", "tolerance"),
    [
        ("fp32", ("--batch", "2"), 1e-5),
        ("fp16", ("--precision", "fp16"), 2e-2),
        ("fp32-reference", ("--graph", "reference"), 1e-5),
    ],
)
def test_ways_to_export(
    home: Path, mine: Path, target: str, folder: str, arguments: tuple[str, ...], tolerance: float
) -> None:
    out = Path("ways") / folder
    manifests = json.loads(
        done("mf-export", *EXPORT, "--target", target, *arguments, "--out", out, "--json", cwd=home)
    )
    made = Artifact.open(home / out / "mine" / f"{target}-{folder}")
    assert made.manifest.model_dump(mode="json") == manifests[0]
    assert made.manifest.input.shape[0] == (2 if "--batch" in arguments else 1)
    if folder == "fp16":
        assert set(made.manifest.quantization.parameters) >= {"fp16"}
        assert made.size_bytes < Artifact.open(mine / f"{target}-fp32").size_bytes
    if folder == "fp32-reference":
        assert made.manifest.rewrites == []
    pictures = seeded_pictures(3, SIDE)
    floats = open_session(Artifact.open(mine / f"{target}-fp32")).run(pictures)["logits"]
    actual = open_session(made).run(pictures)["logits"]
    np.testing.assert_allclose(actual, floats, atol=tolerance * np.ptp(floats))


@pytest.mark.slow
def test_other_weights_need_force_and_make_the_old_artifacts_orphans(home: Path, mine: Path) -> None:
    out = ("--target", "onnx", "--out", "forced")
    done("mf-export", *EXPORT, *out, cwd=home)
    done("mf-quantize", "forced/mine", "--calibration", "training", "--scheme", "w8", cwd=home)
    refused(mf("mf-export", *EXPORT, *out, cwd=home), "forced/mine/onnx-fp32 exists", "--force")
    other = (*EXPORT, "--mean", "0.5,0.5,0.5", *out)
    refused(mf("mf-export", *other, "--precision", "fp16", cwd=home), "holds another model", "--force")
    done("mf-export", *other, "--force", cwd=home)
    done("mf-check", "forced/mine/onnx-fp32", "--data", "images", cwd=home)
    refused(
        mf("mf-check", "forced/mine", "--data", "images", cwd=home), "onnx-w8 was made from another model"
    )
    assert leftovers(home / "forced") == []


@pytest.fixture
def exporting(home: Path, tmp_path: Path) -> Iterator[Callable[[str], subprocess.Popen[str]]]:
    """Start an export to ``tmp_path`` and return it while its artifact is being written."""
    started: list[subprocess.Popen[str]] = []

    def start(target: str) -> subprocess.Popen[str]:
        command = [str(COMMANDS / "mf-export"), *map(str, EXPORT), "--target", target, "--out", str(tmp_path)]
        process = subprocess.Popen(command, cwd=home, stdout=-1, stderr=-1, text=True)
        started.append(process)
        deadline = time.monotonic() + 120
        while not list((tmp_path / "mine").glob(f".{target}-fp32.tmp-*")):
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.01)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
def test_ctrl_c_is_one_line_and_leaves_nothing(
    tmp_path: Path, exporting: Callable[[str], subprocess.Popen[str]], target: str
) -> None:
    process = exporting(target)
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, "")
    assert err.strip() == "error: Interrupted: what was finished is kept, and nothing that is half-written."
    assert leftovers(tmp_path) == []
    assert sorted(path.name for path in (tmp_path / "mine").iterdir()) == ["model.json", "model.safetensors"]


@pytest.mark.slow
def test_a_killed_export_leaves_no_artifact_and_the_next_one_cleans_up(
    home: Path, tmp_path: Path, exporting: Callable[[str], subprocess.Popen[str]]
) -> None:
    process = exporting("onnx")
    process.kill()
    process.communicate()
    assert not (tmp_path / "mine" / "onnx-fp32").exists()
    refused(mf("mf-check", tmp_path, "--data", "images", cwd=home), "No artifact at")
    done("mf-export", *EXPORT, "--target", "onnx", "--out", tmp_path, cwd=home)
    assert Artifact.open(tmp_path / "mine" / "onnx-fp32").manifest.parity.agreement == 1
    assert leftovers(tmp_path) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB: enough for the reference's 48 KiB, too little for an artifact beside it."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount a small file system")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
def test_a_full_disk_is_one_line_and_leaves_nothing(home: Path, small_disk: Path, target: str) -> None:
    ended = mf("mf-export", *EXPORT, "--target", target, "--out", small_disk, cwd=home)
    refused(ended, "Cannot write", "No space left on device", "free some space")
    assert list(small_disk.glob("mine/*-fp32")) == []
    assert leftovers(small_disk) == []


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
def test_a_limit_of_file_size_is_one_line_and_leaves_nothing(home: Path, tmp_path: Path, target: str) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4 << 10, 4 << 10))

    ended = mf("mf-export", *EXPORT, "--target", "onnx", "--out", tmp_path, cwd=home, preexec_fn=limit)
    refused(ended, "File too large")
    assert list(tmp_path.glob("mine/*-fp32")) == []
    assert leftovers(tmp_path) == []


@pytest.mark.slow
def test_a_folder_that_cannot_be_written_is_refused_before_slow_work(home: Path, tmp_path: Path) -> None:
    folder = tmp_path / "fixed"
    folder.mkdir(mode=0o555)
    read_only = ["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", str(folder)]
    mounted = (
        os.geteuid() == 0 and subprocess.run(read_only, capture_output=True, check=False).returncode == 0
    )
    if os.geteuid() == 0 and not mounted:
        pytest.skip("nothing is read-only to this user")
    try:
        started = time.monotonic()
        ended = mf("mf-export", *EXPORT, "--target", "all", "--out", folder, cwd=home)
        refused(ended, f"Cannot write {folder}", "Read-only file system" if mounted else "Permission denied")
        assert time.monotonic() - started < 60
    finally:
        if mounted:
            subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture(scope="module")
def trained(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trained 52M on all targets."""
    folder = tmp_path_factory.mktemp("trained")
    checkpoint = shared / "reference" / "mobile_former_52m_tiny_imagenet.pth"
    arguments = ("--input-size", "96", "--crop-fraction", "1", "--labels", "tiny-imagenet-200")
    done(
        "mf-export",
        "mobile_former_52m",
        "--target",
        "all",
        "--checkpoint",
        checkpoint,
        *arguments,
        cwd=folder,
    )
    return folder


def checked(folder: Path, shared: Path, *arguments: object) -> list[AccuracyReport]:
    data = shared / "data" / "tiny-imagenet-val.tar"
    printed = done("mf-check", *arguments, "--data", data, "--json", "-", cwd=folder)
    return AccuracyReports.model_validate_json(printed).reports


@pytest.mark.slow
def test_the_trained_model_keeps_its_accuracy(trained: Path, shared: Path) -> None:
    """The counts of the checkpoint's card, on all 5000 images."""
    run = Path("runs/mobile_former_52m")
    for report in checked(trained, shared, run / "onnx-fp32", run / "tflite-fp32"):
        assert report.reference_top1 is not None
        assert report.reference_top5 is not None
        assert abs(report.reference_top1.count - 2280) <= 2
        assert abs(report.reference_top5.count - 3556) <= 2
        assert report.images == 5000
        assert report.agreement.percent >= 99.9


@pytest.mark.slow
def test_the_trained_model_agrees_on_core_ml(trained: Path, shared: Path) -> None:
    (report,) = checked(trained, shared, "runs/mobile_former_52m/coreml-fp32", "--limit", 500)
    assert (report.images, report.kind) == (500, "host" if sys.platform == "darwin" else "emulated")
    assert report.agreement.percent >= 99.8


@pytest.mark.slow
def test_efficientnet_lite0_on_imagenet(shared: Path, tmp_path: Path) -> None:
    """A model that is not ours: 868 and 973 of these 1000 images in PyTorch."""
    root = Path(__file__).parent.parent
    numbers = ("--mean", ",".join([str(127 / 255)] * 3), "--std", ",".join([str(128 / 255)] * 3))
    model = ("--model", "examples.efficientnet_lite0:create", "--interpolation", "bicubic", *numbers)
    done("mf-export", *model, "--target", "onnx", "--out", tmp_path, cwd=root)
    data = ("--data", shared / "data" / "imagenet-sample-1k.tar", "--json", "-")
    printed = done("mf-check", tmp_path / "efficientnet_lite0", *data, cwd=root)
    (report,) = AccuracyReports.model_validate_json(printed).reports
    for rate, count in (
        (report.top1, 868),
        (report.reference_top1, 868),
        (report.top5, 973),
        (report.reference_top5, 973),
    ):
        assert rate is not None
        assert rate.count == count
