"""ONNX in int8: what the file holds, that plans are kept, and how close it stays to the float model."""

import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from test_lower_onnx import stored
from tiny_tflite import CLASSES, tiny_graph
from torch import nn

from mf_deploy.artifact import Scheme
from mf_deploy.errors import MfDeployError
from mf_deploy.export.lower import DeployGraph, lower
from mf_deploy.export.lower.integer import INTEGER_REWRITES
from mf_deploy.export.lower.patch_stem import PatchConv
from mf_deploy.export.onnx import MODEL_FILE, OnnxExporter
from mf_deploy.export.onnx_ranges import PAIRS, LeakSample, leak_error
from mf_deploy.export.parity import seeded_pictures
from mf_deploy.export.target import ExportOptions, Quantizer
from mf_deploy.quantization import Precision, QuantPlan, QuantPolicy
from mf_deploy.runtimes.onnx import decoded

SIZE = 64
TINY_MACS = 16 * 16 * 16 * (27 + 9 + 16) + 16 * CLASSES


def integer_graph(variant: str, batch: int = 1) -> DeployGraph:
    """What ``lower`` has proven to be the reference model."""
    model, record = stored(f"mobile_former_{variant}", SIZE)
    return lower(model, record, "onnx", batch, INTEGER_REWRITES["onnx"])


def quantizer_of(
    graph: DeployGraph,
    options: ExportOptions = ExportOptions(),  # noqa: B008 (frozen)
    scheme: Scheme = "w8a8",
) -> Quantizer:
    pictures = seeded_pictures(4 * graph.batch, graph.record.preprocessing.input_size)

    def batches() -> Iterator[np.ndarray]:
        yield from pictures.reshape(4, graph.batch, *pictures.shape[1:])

    return OnnxExporter().quantizer(graph, QuantPolicy(scheme), options, batches)


@pytest.fixture(scope="module")
def graph() -> DeployGraph:
    return integer_graph("26m")


@pytest.fixture(scope="module")
def quantizer(graph: DeployGraph) -> Quantizer:
    return quantizer_of(graph)


@pytest.fixture(scope="module")
def tiny() -> tuple[DeployGraph, Quantizer]:
    graph = tiny_graph()
    return graph, quantizer_of(graph)


def written(quantizer: Quantizer, folder: Path, **modules: Precision) -> onnx.ModelProto:
    """The file of a plan; ``__`` in a keyword is a dot, and ``all`` is the whole model."""
    plan = {("" if path == "all" else path.replace("__", ".")): each for path, each in modules.items()}
    quantizer.write(QuantPlan(model="any", modules=plan), folder)
    return onnx.load(folder / MODEL_FILE)


def weights_by(model: onnx.ModelProto) -> dict[str, set[str]]:
    """Operator → names of the weights it reads."""
    places = {"QLinearConv": 3, "MatMulIntegerToFloat": 1, "DequantizeLinear": 0, "Conv": 1, "Gemm": 1}
    found: dict[str, set[str]] = {kind: set() for kind in places}
    constants = {tensor.name for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type in places and node.input[places[node.op_type]] in constants:
            found[node.op_type].add(
                node.input[places[node.op_type]].removesuffix("_int8").removesuffix("_uint8")
            )
    return found


def logits(model: onnx.ModelProto, images: np.ndarray) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return np.concatenate([session.run(None, {"image": image[None]})[0] for image in images])


def sqnr(expected: np.ndarray, actual: np.ndarray) -> float:
    return float(10 * np.log10(np.square(expected).sum() / np.square(expected - actual).sum()))


def images_and_logits(graph: DeployGraph) -> tuple[np.ndarray, np.ndarray]:
    pictures = seeded_pictures(6, graph.record.preprocessing.input_size)[2:]
    images = graph.record.preprocessing.normalize(pictures)
    with torch.inference_mode():
        rows = [graph.module(torch.from_numpy(image[None])) for image in images]
    return images, torch.cat(rows).numpy()


@pytest.mark.parametrize("variant", ["26m", "96m"])
def test_the_rewrites_are_proven_and_leave_the_slopes_bounded(variant: str) -> None:
    assert {"FactorSlopes", "PatchStem", "RepeatPlanes"} <= set(integer_graph(variant).rewrites)


def test_a_batch_and_spatial_slopes_do_without_factors() -> None:
    assert "FactorSlopes" not in integer_graph("26m", batch=2).rewrites
    assert "FactorSlopes" not in integer_graph("26m_spatial").rewrites


def test_patches_reach_the_same_place() -> None:
    conv = nn.Conv2d(3, 8, 3, 2, 1).double()
    images = torch.randn(2, 3, 12, 16, dtype=torch.float64)
    torch.testing.assert_close(PatchConv(conv)(images), conv(images))


def test_hidden_channels_fill_vectors(graph: DeployGraph) -> None:
    convs = [module for module in graph.module.modules() if isinstance(module, nn.Conv2d)]
    depthwise = [conv for conv in convs if 1 < conv.groups == conv.in_channels]
    assert len(depthwise) > 10
    assert all(conv.in_channels % 8 == 0 for conv in depthwise)


def test_everything_is_int8_and_stays_close(tiny: tuple[DeployGraph, Quantizer], tmp_path: Path) -> None:
    graph, quantizer = tiny
    model = written(quantizer, tmp_path, all="int8")
    counted = OnnxExporter().count(tmp_path / MODEL_FILE)
    assert counted.macs == {"int8": TINY_MACS}
    weights = 16 * (27 + 9 + 16) + 16 * CLASSES
    assert counted.parameters["int8"] == weights
    assert not {"Conv", "Gemm"} & {node.op_type for node in model.graph.node}
    images, expected = images_and_logits(graph)
    assert sqnr(expected, logits(model, images)) > 25


def test_a_mobile_former_keeps_its_layout(quantizer: Quantizer, tmp_path: Path) -> None:
    """A dynamic ReLU is one product and one maximum of codes; no map is dequantized for it."""
    model = written(quantizer, tmp_path, all="int8")
    kinds = Counter(node.op_type for node in model.graph.node)
    assert kinds["QLinearMul"] == 16
    assert sum(n.op_type == "Max" and n.input[0].endswith("_scaled") for n in model.graph.node) == 16
    assert kinds["DequantizeLinear"] == 0
    assert not {"Conv", "Gemm"} & set(kinds)
    macs = OnnxExporter().count(tmp_path / MODEL_FILE).macs
    assert macs["int8"] > 0.95 * sum(macs.values())


def test_exactly_the_named_modules_are_int8(quantizer: Quantizer, tmp_path: Path) -> None:
    model = written(
        quantizer, tmp_path, features__1="int8", features__1__global_block="fp32", features__2__conv2="w8"
    )
    found = weights_by(model)
    integer = found["QLinearConv"] | found["MatMulIntegerToFloat"]
    assert integer
    assert all(name.startswith("features.1.") and ".global_block." not in name for name in integer)
    assert not any(
        n.startswith("features.1.") and ".global_block." not in n for n in found["Conv"] | found["Gemm"]
    )
    assert found["DequantizeLinear"] == {"features.2.mobile.conv2.0.weight"}
    assert "features.3.mobile.conv1.0.weight" in found["Conv"]


def test_without_integers_it_is_the_float_model(
    quantizer: Quantizer, graph: DeployGraph, tmp_path: Path
) -> None:
    images, expected = images_and_logits(graph)
    actual = logits(written(quantizer, tmp_path, all="fp32"), images)
    assert np.abs(actual - expected).max() < 1e-4 * np.ptp(expected)


@pytest.mark.parametrize("part", ["features.3", "classifier", "stem"])
def test_one_part_in_int8_stays_close(
    quantizer: Quantizer, graph: DeployGraph, tmp_path: Path, part: str
) -> None:
    """Also at the borders: integer convolutions beside float ones."""
    images, expected = images_and_logits(graph)
    plan: dict[str, Precision] = {part.replace(".", "__"): "int8"}
    actual = logits(written(quantizer, tmp_path, **plan), images)
    assert 15 < sqnr(expected, actual) < 80


@pytest.mark.slow
@pytest.mark.parametrize(("variant", "batch"), [("26m", 2), ("26m_spatial", 1)])
def test_other_dynamic_relus_run_between_integer_convolutions(
    variant: str, batch: int, tmp_path: Path
) -> None:
    graph = integer_graph(variant, batch)
    model = written(quantizer_of(graph), tmp_path, features__3="int8")
    images = graph.example()
    with torch.inference_mode():
        expected = graph.module(images).numpy()
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    assert sqnr(expected, session.run(None, {"image": images.numpy()})[0]) > 10


def test_a_leak_s_range_is_judged_behind_it() -> None:
    """Negative values that leave the ReLU shrunk to a hundredth need no codes of their own."""
    sample, random = LeakSample(), np.random.default_rng(0)
    for _ in range(300):
        scaled = random.normal(0, 1, (1, 4, 8, 8)).astype(np.float32) - 2
        sample.update(scaled.astype(np.float32), np.full((1, 4, 1, 1), 0.01, np.float32))
    assert sample.values.shape == (2, PAIRS)
    low, high = sample.range("mse")
    assert low > 0.5 * sample.low
    ratio, value = sample.values[1], sample.values[0]
    assert leak_error(value, ratio, low, high) < 0.5 * leak_error(value, ratio, sample.low, sample.high)


@pytest.mark.parametrize("precision", ["int8", "w8a16"])
def test_a_bias_without_weights_fits_its_integers(precision: Precision, tmp_path: Path) -> None:
    """The scale of a channel follows its weights; where they are next to nothing, its bias decides."""
    graph = tiny_graph()
    stem = graph.module.get_submodule("stem")
    assert isinstance(stem, nn.Conv2d)
    assert stem.bias is not None
    stem.weight[0], stem.bias[0] = 1e-12, 3.0
    model = written(quantizer_of(graph, scheme="w8a16"), tmp_path, all=precision)
    images, expected = images_and_logits(graph)
    assert sqnr(expected, logits(model, images)) > 25


def test_16_bit_activations_are_standard_pairs(tmp_path: Path) -> None:
    graph = tiny_graph()
    model = written(quantizer_of(graph, scheme="w8a16"), tmp_path, all="w8a16")
    assert {opset.domain for opset in model.opset_import if opset.domain} == set()
    counted = OnnxExporter().count(tmp_path / MODEL_FILE)
    assert counted.macs == {"w8a16": TINY_MACS}
    assert counted.parameters["int8"] == 16 * (27 + 9 + 16) + 16 * CLASSES
    images, expected = images_and_logits(graph)
    assert sqnr(expected, logits(model, images)) > 35


@pytest.mark.parametrize("interface", ["uint8", "int8"])
def test_integer_interface(interface: Literal["uint8", "int8"], tmp_path: Path) -> None:
    """Pictures in, codes out: decoded by what the manifest will say, they are the logits."""
    graph, options = tiny_graph(), ExportOptions(input=interface, output=interface)
    quantizer = quantizer_of(graph, options)
    (output,) = quantizer.write(QuantPlan.uniform("tiny", "int8"), tmp_path).outputs
    assert output.dtype == interface
    assert output.zero_point is not None
    assert "head" in quantizer.modules
    assert OnnxExporter().count(tmp_path / MODEL_FILE).macs == {"int8": TINY_MACS}
    pictures = seeded_pictures(6, graph.record.preprocessing.input_size)[2:]
    given = pictures if interface == "uint8" else (pictures.astype(np.int16) - 128).astype(np.int8)
    codes = logits(onnx.load(tmp_path / MODEL_FILE), given)
    assert codes.dtype == interface
    _, expected = images_and_logits(graph)
    assert sqnr(expected, decoded(codes, output)) > 20


def test_float_files_refuse_codes_as_logits(tmp_path: Path) -> None:
    with pytest.raises(MfDeployError, match="calibration"):
        OnnxExporter().write(tiny_graph(), "fp32", ExportOptions(output="int8"), tmp_path)


def test_w8_is_hardly_more_than_its_weights(tiny: tuple[DeployGraph, Quantizer], tmp_path: Path) -> None:
    graph, quantizer = tiny
    model = written(quantizer, tmp_path, all="w8")
    stored_weights = OnnxExporter().count(tmp_path / MODEL_FILE).parameters
    assert stored_weights["int8"] == 16 * (27 + 9 + 16) + 16 * CLASSES
    assert math.isclose(stored_weights["fp32"], 3 * 16 + CLASSES, abs_tol=4)
    images, expected = images_and_logits(graph)
    assert sqnr(expected, logits(model, images)) > 35
