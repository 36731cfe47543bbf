"""Mobile-Former on TFLite: the network itself in float, and a trained one after quantization."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mf_deploy.artifact import ModelSource
from mf_deploy.data import open_images
from mf_deploy.errors import MfDeployError
from mf_deploy.export import ExportOptions, Probe, export, quantize, tflite_quantize
from mf_deploy.export.lower import lower, reference_graph
from mf_deploy.export.tflite import MODEL_FILE, TfliteExporter
from mf_deploy.models import load_model
from mf_deploy.models.stored import ModelRecord
from mf_deploy.preprocessing import Preprocessing
from mf_deploy.quantization import QuantPolicy
from mf_deploy.runtimes import open_session
from mf_deploy.runtimes.torch import TorchSession

pytest.importorskip("litert_torch")
pytestmark = pytest.mark.slow

IMAGES = 300


def record_of(name: str, num_classes: int, preprocessing: Preprocessing) -> ModelRecord:
    source = ModelSource(name=name, num_classes=num_classes)
    return ModelRecord(source=source, preprocessing=preprocessing, labels=None, weights_sha256="0" * 64)


@pytest.mark.parametrize("kind", ["deploy", "reference"])
def test_float_mobile_former_is_the_reference(kind: str, tmp_path: Path) -> None:
    model = load_model("mobile_former_26m")
    record = record_of("mobile_former_26m", 1000, Preprocessing())
    graph = lower(model, record, "tflite") if kind == "deploy" else reference_graph(model, record)

    artifact = export(graph, "tflite", "fp32", tmp_path / "tflite-fp32", Probe.seeded(model, 224))
    assert artifact.manifest.parity.relative_error <= 1e-5
    assert artifact.manifest.quantization.macs.keys() == {"fp32"}


@pytest.mark.parametrize(
    ("scheme", "agreement", "sqnr_db", "int8_share"), [("w8a8", 0.9, 18, 0.95), ("w8", 0.95, 30, 0)]
)
def test_quantized_mobile_former_keeps_its_answers(
    shared: Path, tmp_path: Path, scheme: str, agreement: float, sqnr_db: float, int8_share: float
) -> None:
    checkpoint = shared / "reference" / "mobile_former_52m_tiny_imagenet.pth"
    model = load_model("mobile_former_52m", checkpoint)
    preprocessing = Preprocessing(input_size=96, crop_fraction=1.0)
    graph = lower(model, record_of("mobile_former_52m", 200, preprocessing), "tflite")
    calibration = open_images(shared / "data" / "tiny-imagenet-calibration.tar", limit=128)
    images = open_images(shared / "data" / "tiny-imagenet-val.tar", limit=IMAGES)
    pictures = np.concatenate([batch.pictures for batch in images.batches(preprocessing, 50)])

    probe = Probe(model, pictures[:4], "validation images")
    artifact = quantize(graph, "tflite", calibration, QuantPolicy(scheme), tmp_path / scheme, probe)
    expected = TorchSession(model, preprocessing, batch=50).run(pictures)["logits"]
    actual = open_session(artifact).run(pictures)["logits"]
    assert (expected.argmax(1) == actual.argmax(1)).mean() >= agreement
    noise = np.square(expected - actual).mean() / np.square(expected).mean()
    assert -10 * np.log10(noise) >= sqnr_db
    macs = artifact.manifest.quantization.macs
    assert macs.get("int8", 0) >= int8_share * sum(macs.values())


def test_a_recipe_that_crashes_the_runtime_gives_way_to_the_next(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dead units with ranges of zero make LiteRT corrupt its memory: only the probe may die of it."""
    fallback = tflite_quantize.Recipe(static=tflite_quantize.CONVOLUTIONS)
    crashing = replace(fallback, static=(*tflite_quantize.CONVOLUTIONS, *tflite_quantize.LINEAR))
    monkeypatch.setattr(tflite_quantize, "DEAD_RANGE", 0)
    monkeypatch.setitem(tflite_quantize.RECIPES, "w8a8", (crashing, fallback))
    model = load_model("mobile_former_52m", shared / "reference" / "mobile_former_52m_tiny_imagenet.pth")
    preprocessing = Preprocessing(input_size=96, crop_fraction=1.0)
    graph = reference_graph(model, record_of("mobile_former_52m", 200, preprocessing))
    images = open_images(shared / "data" / "tiny-imagenet-calibration.tar", limit=128)

    def batches() -> Iterator[np.ndarray]:
        return (batch.pictures for batch in images.batches(preprocessing, 1))

    exporter = TfliteExporter()
    exporter.quantize(graph, "w8a8", ExportOptions(), batches, tmp_path)
    assert exporter.count(tmp_path / MODEL_FILE).macs["fp32"] > 4_000_000  # the linear layers

    monkeypatch.setitem(tflite_quantize.RECIPES, "w8a8", (crashing,))
    with pytest.raises(MfDeployError, match="crashes on it with SIG"):
        exporter.quantize(graph, "w8a8", ExportOptions(), batches, tmp_path)
