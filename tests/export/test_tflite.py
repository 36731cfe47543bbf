"""TFLite export: what is in the file, and that it computes the network."""

import io
import struct
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_tflite import CLASSES, SIDE, tiny_graph
from torch import Tensor, nn

from mf_deploy.errors import MfDeployError
from mf_deploy.export.lower.graph import DeployGraph
from mf_deploy.export.parity import seeded_pictures
from mf_deploy.export.target import ExportOptions
from mf_deploy.export.tflite import TfliteExporter, convert, model_input
from mf_deploy.export.tflite_write import MODEL_FILE

pytest.importorskip("litert_torch")

from ai_edge_litert.interpreter import Interpreter

from mf_deploy.export.tflite_file import count, read_operators
from mf_deploy.export.tflite_graph import TfliteGraph
from mf_deploy.export.tflite_metadata import ENTRY_NAME, LABELS_FILE
from mf_deploy.export.tflite_quantizer import why_it_fails
from mf_deploy.export.tflite_write import finish

FLOAT = ExportOptions()
STEM_MACS, DEPTHWISE_MACS, POINTWISE_MACS = 16 * 16 * 16 * 27, 16 * 16 * 16 * 9, 16 * 16 * 16 * 16
HEAD_MACS = 16 * CLASSES
MACS = STEM_MACS + DEPTHWISE_MACS + POINTWISE_MACS + HEAD_MACS
WEIGHTS = 16 * 27 + 16 * 9 + 16 * 16 + HEAD_MACS
BIASES = 3 * 16 + CLASSES


@pytest.fixture(scope="module")
def graph() -> DeployGraph:
    return tiny_graph()


@pytest.fixture(scope="module")
def float_model(graph: DeployGraph) -> bytes:
    return convert(graph, FLOAT)


@pytest.fixture(scope="module")
def pictures() -> np.ndarray:
    return seeded_pictures(8, SIDE)


def expected_logits(graph: DeployGraph, pictures: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        return graph.module(torch.from_numpy(graph.record.preprocessing.normalize(pictures))).numpy()


def run_file(model: bytes, images: np.ndarray) -> np.ndarray:
    """Run through the serving signature, by its names."""
    runner = Interpreter(model_content=model).get_signature_runner("serving_default")
    size = runner.get_input_details()["image"]["shape"][0]
    batches = [images[start : start + size] for start in range(0, len(images), size)]
    return np.concatenate([runner(image=batch)["logits"] for batch in batches])


def test_float_export_computes_the_network_in_nhwc(
    graph: DeployGraph, pictures: np.ndarray, tmp_path: Path
) -> None:
    written = TfliteExporter().write(graph, "fp32", FLOAT, tmp_path)

    expected = expected_logits(graph, pictures)
    actual = run_file((tmp_path / MODEL_FILE).read_bytes(), model_input(pictures, graph, FLOAT))
    assert np.abs(actual - expected).max() <= 1e-5 * np.ptp(expected)
    assert (written.input.layout, written.input.shape) == ("NHWC", (1, SIDE, SIDE, 3))
    operators = read_operators(tmp_path / MODEL_FILE)
    assert operators[0].inputs[0].name == "image"
    assert operators[-1].output.name == "logits"
    assert [operator.kind for operator in operators[:2]] == ["PAD", "CONV_2D"]


def test_float_export_is_counted_from_the_file(graph: DeployGraph, tmp_path: Path) -> None:
    TfliteExporter().write(graph, "fp32", FLOAT, tmp_path)

    counted = TfliteExporter().count(tmp_path / MODEL_FILE)
    assert counted.macs == {"fp32": MACS}
    assert counted.parameters == {"fp32": WEIGHTS + BIASES}


def test_metadata_names_the_model_and_carries_the_labels(graph: DeployGraph, float_model: bytes) -> None:
    from ai_edge_litert.tools import flatbuffer_utils

    data = finish(TfliteGraph(float_model), graph, "fp32", FLOAT)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        assert archive.read(LABELS_FILE).decode() == "cat\ndog\na bird\nfish\nfrog\n"
    content = flatbuffer_utils.read_model_from_bytearray(data)
    assert content.description == b"tiny, fp32, 32x32 RGB to 5 class logits"
    entries = {entry.name: bytes(content.buffers[entry.buffer].data) for entry in content.metadata}
    assert entries[b"min_runtime_version"].strip(b"\0")
    metadata = entries[ENTRY_NAME]
    assert metadata[4:8] == b"M001"
    assert b"tiny" in metadata
    assert LABELS_FILE.encode() in metadata
    mean = [255 * value for value in graph.record.preprocessing.mean]
    assert struct.pack("<3f", *mean) in metadata


def test_what_does_not_convert_is_one_line_that_names_the_operation(graph: DeployGraph) -> None:
    class Eigenvalues(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return torch.linalg.eigvals(images[:, 0]).real

    with pytest.raises(MfDeployError, match="linalg_eig") as raised:
        convert(replace(graph, module=Eigenvalues()), FLOAT)
    assert "\n" not in str(raised.value)


def test_a_damaged_file_is_one_line(float_model: bytes, tmp_path: Path) -> None:
    path = tmp_path / MODEL_FILE
    path.write_bytes(float_model[: len(float_model) // 3])
    assert "Flatbuffer" in (why_it_fails(path) or "")
    with pytest.raises(MfDeployError, match="Cannot read") as raised:
        count(path)
    assert "\n" not in str(raised.value)
    path.write_bytes(b"not a model")
    with pytest.raises(MfDeployError, match="not a TFLite flatbuffer"):
        count(path)


def test_export_is_silent(graph: DeployGraph, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    TfliteExporter().write(graph, "fp16", FLOAT, tmp_path)
    assert capfd.readouterr() == ("", "")
