"""mf-quantize on the digits model: plans found, replayed, refused, and budgets that cannot be met."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mf_deploy.artifact import Artifact

SIDE = 32


ROOT = Path(__file__).resolve().parent.parent.parent
CHECKPOINT = ROOT / "examples/checkpoints/mobile_former_26m_digits.safetensors"


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the images and the model of the demo, as its first commands make them."""
    folder = tmp_path_factory.mktemp("exported")
    model = ("mobile_former_26m", "--target", "onnx", "--input-size", str(SIDE), "--crop-fraction", "1")
    export = "from mf_deploy.cli.export import main; main()"
    for command in (
        [str(ROOT / "examples/digits.py"), str(folder / "digits")],
        ["-c", export, *model, "--checkpoint", str(CHECKPOINT), "--out", str(folder)],
    ):
        subprocess.run([sys.executable, *command], check=True, capture_output=True)
    return folder


@pytest.fixture
def digits(exported: Path, tmp_path: Path) -> Path:
    """A folder with the demo's images, and its model without artifacts in ``run/``."""
    run = tmp_path / "run"
    run.mkdir()
    for name in ("model.json", "model.safetensors"):
        shutil.copy(exported / "mobile_former_26m" / name, run / name)
    (tmp_path / "digits").symlink_to(exported / "digits")
    return tmp_path


def quantize(digits: Path, *options: str, target: str | None = "onnx") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mf_deploy.cli.quantize", str(digits / "run"), "--samples", "48"]
    command += ["--calibration", str(digits / "digits/train"), *options]
    command += ["--target", target] if target else []
    return subprocess.run(command, capture_output=True, text=True, check=False)


def line_of(done: subprocess.CompletedProcess[str], exit_code: int) -> str:
    """The error line; there is no traceback."""
    assert done.returncode == exit_code, done.stderr
    assert "Traceback" not in done.stderr
    return next(line for line in done.stderr.splitlines() if line.startswith("error: "))


@pytest.mark.slow
def test_a_mixed_plan_is_found_kept_and_replayed(digits: Path) -> None:
    budget = ("--data", str(digits / "digits/held-out"), "--max-drop", "5", "--report")
    done = quantize(digits, "--scheme", "mixed", "--json", *budget)
    assert done.returncode == 0, done.stderr
    assert "Alone in int8" in done.stderr
    assert json.loads(done.stdout)
    found = Artifact.open(digits / "run/onnx-mixed")
    plans = digits / "run/plans"
    assert json.loads((plans / "onnx-mixed.json").read_text())["modules"] == found.manifest.plan
    sensitivity = json.loads((plans / "onnx-sensitivity.json").read_text())
    counted = "costs are multiply-adds" not in done.stderr
    assert ("M ARM instructions" in done.stderr) is counted
    assert all((unit["arm_cost"] is not None) is counted for unit in sensitivity["units"])
    assert 'class="bar"' in (plans / "onnx-sensitivity.html").read_text()
    replayed = quantize(digits, "--plan", str(plans / "onnx-mixed.json"), "--force")
    assert replayed.returncode == 0, replayed.stderr
    assert "was made for" not in replayed.stderr
    assert Artifact.open(digits / "run/onnx-mixed").sha256 == found.sha256


@pytest.mark.slow
def test_a_budget_that_cannot_be_met_keeps_the_best_apart(digits: Path) -> None:
    """Halfway between two digits the slightest error changes some classes; float ones flip none."""
    blends = digits / "blends"
    blends.mkdir()
    pictures = [
        Image.open(file).convert("RGB") for file in sorted((digits / "digits/held-out").rglob("*.png"))
    ]
    partners = np.random.default_rng(0).permutation(len(pictures))[:400]
    for number, partner in enumerate(partners):
        Image.blend(pictures[number], pictures[partner], 0.5).save(blends / f"{number}.png")
    budget = ("--data", str(blends), "--min-agreement", "99.04", "--objective", "npu")
    done = quantize(digits, "--scheme", "mixed", *budget)
    assert done.returncode == 1, done.stderr
    assert "cannot be met" in done.stderr
    assert not (digits / "run/onnx-mixed").exists()
    apart = digits / "run/onnx-mixed-over-budget"
    assert Artifact.open(apart).manifest.scheme == "mixed"
    assert f"{apart} exists" in line_of(quantize(digits, "--scheme", "mixed", *budget), 2)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--max-drop", "1", "--limit", "20"), "Cannot decide --max-drop 1"),
        (("--max-drop", "0"), "Choose a wider budget"),
        (("--min-agreement", "99.9"), "Take about"),
    ],
)
def test_a_budget_that_no_plan_could_keep_is_refused_first(
    digits: Path, options: tuple[str, ...], words: str
) -> None:
    held_out = ("--data", str(digits / "digits/held-out"))
    assert words in line_of(quantize(digits, "--scheme", "mixed", *held_out, *options), 2)


def test_a_drop_on_images_without_labels_is_refused_first(digits: Path) -> None:
    flat = next((digits / "digits/held-out").iterdir())
    done = quantize(digits, "--scheme", "mixed", "--data", str(flat), "--max-drop", "5")
    assert "no labels" in line_of(done, 2)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--target", "onnx", "--scheme", "w8", "--objective", "npu"), "belong to a search"),
        (("--target", "onnx", "--scheme", "w8a8", "--limit", "3"), "belong to a search"),
        (("--target", "onnx", "--scheme", "w8", "--ranges", "mse"), "no activation is quantized"),
        (("--target", "all", "--io", "uint8"), "integer interface"),
        (("--target", "tflite", "--weight-type", "int8"), "integer layers of ONNX"),
        (("--target", "onnx", "--scheme", "w8", "--weight-type", "int8"), "integer layers of ONNX"),
    ],
)
def test_options_that_would_do_nothing_or_fail_later_are_refused(
    digits: Path, options: tuple[str, ...], words: str
) -> None:
    assert words in line_of(quantize(digits, *options, target=None), 2)


@pytest.mark.parametrize("scheme", ["w8", "w8a8", "fp16"])
def test_a_plan_goes_with_no_other_scheme(digits: Path, scheme: str) -> None:
    plan = digits / "plan.json"
    plan.write_text(json.dumps({"model": "mobile_former_26m", "modules": {"": "int8"}}))
    done = quantize(digits, "--plan", str(plan), "--scheme", scheme)
    assert "Cannot use --plan" in line_of(done, 2)


def test_damaged_artifacts_do_not_keep_others_from_being_made(digits: Path) -> None:
    damaged = digits / "run/tflite-w8"
    damaged.mkdir()
    (damaged / "manifest.json").write_text("{}")
    plan = digits / "plan.json"
    plan.write_text(json.dumps({"model": "mobile_former_26m", "modules": {"no.such": "w8"}}))
    assert "no.such" in line_of(quantize(digits, "--plan", str(plan), target=None), 2)


@pytest.mark.slow
def test_images_that_were_not_used_are_named(digits: Path) -> None:
    pictures = digits / "pictures"
    pictures.mkdir()
    for picture in sorted((digits / "digits/train").rglob("*.png"))[:3]:
        shutil.copy(picture, pictures)
    (pictures / "text.png").write_text("no image")
    done = quantize(digits, "--scheme", "w8", "--calibration", str(pictures))
    assert done.returncode == 0, done.stderr
    assert "1 files of" in done.stderr
    assert "text.png" in done.stderr
    assert "only 3 calibration images" in done.stderr


def test_a_plan_of_unknown_modules_is_refused(digits: Path) -> None:
    plan = digits / "plan.json"
    plan.write_text(
        json.dumps({"model": "mobile_former_26m", "modules": {"": "int8", "features.3.conv9": "w8"}})
    )
    assert "features.3.conv9" in line_of(quantize(digits, "--plan", str(plan)), 2)
    plan.write_text(json.dumps({"model": "mobile_former_26m", "modules": {"": "int5"}}))
    assert "modules" in line_of(quantize(digits, "--plan", str(plan)), 2)


def test_a_plan_of_another_model_is_pointed_out(digits: Path) -> None:
    plan = digits / "plan.json"
    plan.write_text(json.dumps({"model": "mobile_former_52m", "modules": {"no.such": "w8"}}))
    done = quantize(digits, "--plan", str(plan))
    assert "no.such" in line_of(done, 2)
    assert "was made for mobile_former_52m, this is mobile_former_26m" in done.stderr


def test_a_search_needs_images_to_judge_on(digits: Path) -> None:
    assert "--data" in line_of(quantize(digits, "--scheme", "mixed"), 2)
    assert "--scheme mixed" in line_of(quantize(digits, "--max-drop", "1"), 2)


def test_calibration_images_do_not_judge(digits: Path) -> None:
    done = quantize(digits, "--scheme", "mixed", "--data", str(digits / "digits/train"))
    assert "calibration images" in line_of(done, 2)


def test_one_image_is_no_calibration(digits: Path) -> None:
    one = digits / "one"
    one.mkdir()
    picture = next((digits / "digits/train").rglob("*.png"))
    shutil.copy(picture, one / picture.name)
    done = quantize(digits, "--calibration", str(one))
    assert "Too few images" in line_of(done, 2)
    assert not (digits / "run/onnx-w8a8").exists()
