"""The demo, whole, and the trained checkpoint that it deploys."""

import csv
import hashlib
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mf_deploy.data import open_images
from mf_deploy.models import load_model
from mf_deploy.preprocessing import Preprocessing

ROOT = Path(__file__).resolve().parent.parent
CHECKPOINT = ROOT / "examples/checkpoints/mobile_former_26m_digits.safetensors"
PREPROCESSING = Preprocessing(input_size=32, crop_fraction=1)
CLASSES = list("0123456789")


def example(script: str, *arguments: str | Path) -> str:
    """What ``python examples/SCRIPT`` prints."""
    command = [sys.executable, str(ROOT / "examples" / script), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("digits")
    assert "held-out: 500 images" in example("digits.py", folder)
    return folder


def digests_of(folder: Path) -> list[str]:
    return [hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.rglob("*.png"))]


def test_the_digits_are_split_once_and_for_all(digits: Path, tmp_path: Path) -> None:
    train, held_out = digests_of(digits / "train"), digests_of(digits / "held-out")
    assert (len(train), len(held_out)) == (1297, 500)
    assert len({*train, *held_out}) == 1797
    example("digits.py", tmp_path)
    assert digests_of(tmp_path / "held-out") == held_out


def test_the_checkpoint_is_as_accurate_as_its_card_says(digits: Path) -> None:
    card = CHECKPOINT.with_suffix(".md").read_text(encoding="utf-8")
    claimed = re.search(r"Held-out top-1: ([\d.]+) %\*\* \((\d+) of 500", card)
    assert claimed is not None
    assert CHECKPOINT.stat().st_size <= 5_000_000
    assert f"sha256 `{hashlib.sha256(CHECKPOINT.read_bytes()).hexdigest()}`" in card
    model = load_model("mobile_former_26m", CHECKPOINT)
    correct = 0
    for batch in open_images(digits / "held-out").bind(CLASSES, 10).batches(PREPROCESSING, 100):
        logits = model(torch.from_numpy(PREPROCESSING.normalize(batch.pictures)))
        correct += int((logits.argmax(dim=1).numpy() == batch.labels).sum())
    assert correct == int(claimed[2])
    assert correct / 500 == pytest.approx(float(claimed[1]) / 100)
    assert correct / 500 >= 0.97


def test_the_training_example_writes_a_checkpoint_that_loads(tmp_path: Path) -> None:
    printed = example("train_digits.py", "--epochs", "1", "--data", tmp_path / "data", "--out", tmp_path)
    checkpoint = tmp_path / CHECKPOINT.name
    assert f"{checkpoint}: " in printed
    assert load_model("mobile_former_26m", checkpoint).classifier.classifier[1].out_features == 10
    assert "CC BY 4.0" in checkpoint.with_suffix(".md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_demo_deploys_a_model_that_reads_digits(demo: tuple[Path, str]) -> None:
    out, printed = demo
    csv_file = out / "report.csv"
    subprocess.run(
        [sys.executable, "-m", "mf_deploy.cli.report", str(out), "--out", str(csv_file)], check=True
    )
    rows = {row["artifact"]: row for row in csv.DictReader(csv_file.open(encoding="utf-8"))}
    schemes = ("fp32", "w8", "w8a8")
    assert set(rows) == {
        f"{target}-{scheme}" for target in ("onnx", "coreml", "tflite") for scheme in schemes
    }
    for name, row in rows.items():
        assert float(row["top1_percent"]) >= (97 if name.endswith("fp32") else 95), name
        assert float(row["agreement_percent"]) == 100 or not name.endswith("fp32"), name
        assert row["p50_ms"] or "macOS" in row["not_run"], name
        assert name in printed


@pytest.mark.slow
def test_the_demo_shows_its_commands_and_one_table(demo: tuple[Path, str]) -> None:
    out, printed = demo
    for command in ("mf-export", "mf-quantize", "mf-check", "mf-bench", "mf-report"):
        assert f"\n$ {command} " in printed
    assert printed.count("top-1 %") == 1
    assert f"{out}/report.html: 9 artifacts, 9 of them measured" in printed
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "tflite-w8a8" in page
    assert "http://" not in page.replace("http://www.w3.org", "")
