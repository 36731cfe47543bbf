"""Mobile-Former on TFLite: the network itself in float, and a trained one after quantization."""

from pathlib import Path

import numpy as np
import pytest

from mf_deploy.artifact import ModelSource
from mf_deploy.data import open_images
from mf_deploy.export import Probe, export, quantize
from mf_deploy.export.lower import lower, reference_graph
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
    ("scheme", "agreement", "sqnr_db", "int8_share"), [("w8a8", 0.93, 24, 0.9), ("w8", 0.97, 33, 0)]
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


def test_dead_units_do_not_break_the_graph_as_written(shared: Path, tmp_path: Path) -> None:
    """Units that are zero on every image have no range: with a scale of zero LiteRT corrupts its memory."""
    model = load_model("mobile_former_52m", shared / "reference" / "mobile_former_52m_tiny_imagenet.pth")
    preprocessing = Preprocessing(input_size=96, crop_fraction=1.0)
    graph = reference_graph(model, record_of("mobile_former_52m", 200, preprocessing))
    calibration = open_images(shared / "data" / "tiny-imagenet-calibration.tar", limit=64)
    probe = Probe.seeded(model, 96)

    artifact = quantize(graph, "tflite", calibration, QuantPolicy("w8a8"), tmp_path / "w8a8", probe)
    macs = artifact.manifest.quantization.macs
    assert macs["int8"] >= 0.8 * sum(macs.values())
