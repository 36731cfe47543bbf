"""Quantized TFLite: the plan is in the file, the file computes the network, and codes stay codes."""

import weakref
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_tflite import CLASSES, SIDE, tiny_graph
from torch import Tensor, nn
from torch.nn import functional as F

from mf_deploy.errors import MfDeployError
from mf_deploy.export.lower.graph import DeployGraph
from mf_deploy.export.parity import seeded_pictures
from mf_deploy.export.target import ExportOptions, WrittenModel
from mf_deploy.export.tflite import TfliteExporter, convert, model_input
from mf_deploy.export.tflite_write import MODEL_FILE
from mf_deploy.quantization import QuantPlan, QuantPolicy

pytest.importorskip("litert_torch")

from ai_edge_litert.interpreter import Interpreter

from mf_deploy.export.tflite_file import count, read_operators
from mf_deploy.export.tflite_graph import TfliteGraph
from mf_deploy.export.tflite_half import LARGEST, METADATA
from mf_deploy.export.tflite_quantize import observed_tensors
from mf_deploy.export.tflite_quantizer import TfliteQuantizer, why_it_fails
from mf_deploy.export.tflite_ranges import Observed, observe

FLOAT = ExportOptions()
LAYERS = {
    "stem": 16 * 16 * 16 * 27,
    "depthwise": 16 * 16 * 16 * 9,
    "dead": 16 * 16 * 16 * 16,
    "head": 16 * CLASSES,
}
WEIGHTS = {"stem": 16 * 27, "depthwise": 16 * 9, "dead": 16 * 16, "head": 16 * CLASSES}
BIASES = 3 * 16 + CLASSES


@pytest.fixture(scope="module")
def graph() -> DeployGraph:
    return tiny_graph()


@pytest.fixture(scope="module")
def float_model(graph: DeployGraph) -> bytes:
    return convert(graph, FLOAT)


@pytest.fixture(scope="module")
def pictures() -> np.ndarray:
    return seeded_pictures(16, SIDE)


@pytest.fixture(scope="module")
def observed(graph: DeployGraph, float_model: bytes, pictures: np.ndarray) -> Observed:
    images = model_input(pictures, graph, FLOAT)
    return observe(float_model, observed_tensors(TfliteGraph(float_model)), np.split(images, len(images)))


def expected_logits(graph: DeployGraph, pictures: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        return graph.module(torch.from_numpy(graph.record.preprocessing.normalize(pictures))).numpy()


def run_file(path: Path, images: np.ndarray) -> np.ndarray:
    runner = Interpreter(model_path=str(path)).get_signature_runner("serving_default")
    size = runner.get_input_details()["image"]["shape"][0]
    batches = [images[start : start + size] for start in range(0, len(images), size)]
    return np.concatenate([runner(image=batch)["logits"] for batch in batches])


def relative_error(actual: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(actual - expected).max() / np.ptp(expected))


def kinds(path: Path) -> list[str]:
    return [operator.kind for operator in read_operators(path)]


def test_int8_runs_from_convolution_to_convolution_in_codes(
    graph: DeployGraph, float_model: bytes, observed: Observed, pictures: np.ndarray, tmp_path: Path
) -> None:
    quantizer = TfliteQuantizer(graph, "w8a8", FLOAT, float_model, observed)
    quantizer.write(QuantPlan.uniform("tiny", "int8"), tmp_path)

    path = tmp_path / MODEL_FILE
    assert count(path).macs == {"int8": sum(LAYERS.values())}
    assert count(path).parameters["int8"] == sum(WEIGHTS.values())
    found = kinds(path)
    assert found[:5] == ["QUANTIZE", "PAD", "CONV_2D", "DEPTHWISE_CONV_2D", "CONV_2D"]
    assert found.count("QUANTIZE") == 1
    assert found.count("DEQUANTIZE") == 2  # what is added before the pooling, which is float
    actual = run_file(path, model_input(pictures, graph, FLOAT))
    assert 1e-6 < relative_error(actual, expected_logits(graph, pictures)) <= 0.05


def quantized(kind: type[nn.Module], graph: DeployGraph, pictures: np.ndarray, folder: Path) -> DeployGraph:
    """A seeded network in float; its w8a8 model, calibrated on ``pictures``, is written into ``folder``."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = replace(graph, module=kind().eval().requires_grad_(False))
    policy = QuantPolicy("w8a8")
    quantizer = TfliteExporter().quantizer(network, policy, FLOAT, lambda: iter(np.split(pictures, 16)))
    quantizer.write(policy.plan_for("tiny"), folder)
    return network


class Residual(nn.Module):
    """A sum of two convolutions, one of them padded, that a third one reads."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, 1, 1)
        self.last = nn.Conv2d(8, CLASSES, 1)

    def forward(self, images: Tensor) -> Tensor:
        first = F.relu(self.first(images))
        return self.last(first + self.second(first)).mean((2, 3))


def test_a_sum_between_convolutions_stays_in_codes(
    graph: DeployGraph, pictures: np.ndarray, tmp_path: Path
) -> None:
    residual = quantized(Residual, graph, pictures, tmp_path)

    found = kinds(tmp_path / MODEL_FILE)
    assert (found.count("QUANTIZE"), found.count("DEQUANTIZE")) == (1, 1)
    assert found.index("QUANTIZE") < found.index("ADD") < found.index("DEQUANTIZE")
    actual = run_file(tmp_path / MODEL_FILE, model_input(pictures, graph, FLOAT))
    assert relative_error(actual, expected_logits(residual, pictures)) <= 0.05


class Widened(nn.Module):
    """A map multiplied four positions at a time, by two rows of factors."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 8, 1), nn.Conv2d(8, CLASSES, 1)
        self.register_buffer("factors", torch.linspace(-1, 1, 64).view(2, 32))

    def forward(self, images: Tensor) -> Tensor:
        rows = self.first(images).permute(0, 2, 3, 1)
        wide = rows.reshape(*rows.shape[:2], -1, 32)
        low, high = self.factors
        wider = torch.maximum(low * wide, high * wide)
        return self.last(wider.reshape(rows.shape).permute(0, 3, 1, 2)).mean((2, 3))


def test_codes_are_reshaped_before_they_become_floats(
    graph: DeployGraph, pictures: np.ndarray, tmp_path: Path
) -> None:
    widened = quantized(Widened, graph, pictures, tmp_path)

    found = kinds(tmp_path / MODEL_FILE)
    assert found[:4] == ["QUANTIZE", "CONV_2D", "RESHAPE", "DEQUANTIZE"]
    actual = run_file(tmp_path / MODEL_FILE, model_input(pictures, graph, FLOAT))
    assert relative_error(actual, expected_logits(widened, pictures)) <= 0.05


def test_a_plan_is_what_the_file_holds(
    graph: DeployGraph, float_model: bytes, observed: Observed, pictures: np.ndarray, tmp_path: Path
) -> None:
    quantizer = TfliteQuantizer(graph, "mixed", FLOAT, float_model, observed)
    assert quantizer.modules == list(LAYERS)
    plan = QuantPlan(model="tiny", modules={"": "int8", "depthwise": "w8", "head": "fp32"})
    quantizer.write(plan, tmp_path)

    path = tmp_path / MODEL_FILE
    assert count(path).macs == {
        "int8": LAYERS["stem"] + LAYERS["dead"],
        "fp32": LAYERS["depthwise"] + LAYERS["head"],
    }
    assert count(path).parameters["int8"] == sum(WEIGHTS.values()) - WEIGHTS["head"]
    actual = run_file(path, model_input(pictures, graph, FLOAT))
    assert relative_error(actual, expected_logits(graph, pictures)) <= 0.05


def test_a_depthwise_convolution_between_floats_is_int8_where_the_plan_names_it(
    graph: DeployGraph, float_model: bytes, observed: Observed, tmp_path: Path
) -> None:
    quantizer = TfliteQuantizer(graph, "mixed", FLOAT, float_model, observed)
    for folder in ("inherited", "named"):
        (tmp_path / folder).mkdir()
    inherited = {"": "int8", "stem": "fp32", "dead": "fp32", "head": "fp32"}
    quantizer.write(QuantPlan(model="tiny", modules=inherited), tmp_path / "inherited")
    quantizer.write(QuantPlan(model="tiny", modules={**inherited, "depthwise": "int8"}), tmp_path / "named")

    assert "int8" not in count(tmp_path / "inherited" / MODEL_FILE).macs
    assert count(tmp_path / "named" / MODEL_FILE).macs["int8"] == LAYERS["depthwise"]


@pytest.mark.parametrize(("scheme", "precision", "tolerance"), [("fp16", "fp16", 2e-3), ("w8", "int8", 2e-2)])
def test_stored_weights_are_narrow_and_the_arithmetic_stays_float(
    graph: DeployGraph, pictures: np.ndarray, tmp_path: Path, scheme: str, precision: str, tolerance: float
) -> None:
    exporter = TfliteExporter()
    if scheme == "fp16":
        exporter.write(graph, scheme, FLOAT, tmp_path)
    else:
        policy = QuantPolicy("w8")
        quantizer = exporter.quantizer(graph, policy, FLOAT, lambda: iter(np.split(pictures, len(pictures))))
        quantizer.write(policy.plan_for("tiny"), tmp_path)

    path = tmp_path / MODEL_FILE
    actual = run_file(path, model_input(pictures, graph, FLOAT))
    assert 1e-6 < relative_error(actual, expected_logits(graph, pictures)) <= tolerance
    assert count(path).macs == {"fp32": sum(LAYERS.values())}
    assert count(path).parameters == {precision: sum(WEIGHTS.values()), "fp32": BIASES}
    assert why_it_fails(path) is None


@pytest.mark.parametrize("interface", ["uint8", "int8"])
def test_integers_in_and_out(interface: str, pictures: np.ndarray, tmp_path: Path) -> None:
    graph = tiny_graph(batch=2)
    options = ExportOptions(input=interface, output=interface)  # type: ignore[arg-type]
    batches = [pictures[start : start + 2] for start in range(0, len(pictures), 2)]
    policy = QuantPolicy("w8a8")
    quantizer = TfliteExporter().quantizer(graph, policy, options, lambda: iter(batches))
    written: WrittenModel = quantizer.write(policy.plan_for("tiny"), tmp_path)

    logits = written.outputs[0]
    assert (written.input.dtype, logits.dtype) == (interface, interface)
    codes = pictures if interface == "uint8" else (pictures ^ 0x80).view(np.int8)
    given = run_file(tmp_path / MODEL_FILE, codes)
    assert given.dtype == np.dtype(interface)
    assert logits.scale is not None
    assert logits.zero_point is not None
    actual = (given.astype(np.float32) - logits.zero_point) * logits.scale
    assert relative_error(actual, expected_logits(graph, pictures)) <= 0.1
    assert "CAST" not in kinds(tmp_path / MODEL_FILE)


def test_integer_logits_without_calibration_are_refused(graph: DeployGraph, tmp_path: Path) -> None:
    with pytest.raises(MfDeployError, match="calibration"):
        TfliteExporter().write(graph, "fp32", ExportOptions(output="int8"), tmp_path)


def test_w8a16_is_refused() -> None:
    plan = QuantPlan.uniform("tiny", "int8").with_precision(["head"], "w8a16")
    for policy in (QuantPolicy("w8a16"), QuantPolicy("mixed", plan)):
        with pytest.raises(MfDeployError, match="w8a16 for tflite"):
            TfliteExporter().refuse(policy, FLOAT)


def test_half_precision_is_allowed_only_where_numbers_fit(
    graph: DeployGraph, float_model: bytes, observed: Observed, tmp_path: Path
) -> None:
    plan = QuantPlan.uniform("tiny", "int8")
    for largest, allowed in ((LARGEST * 0.9, True), (LARGEST * 1.1, False)):
        seen = Observed(observed.histograms, largest)
        TfliteQuantizer(graph, "w8a8", FLOAT, float_model, seen).write(plan, tmp_path)
        metadata = TfliteGraph((tmp_path / MODEL_FILE).read_bytes()).content.metadata
        assert (METADATA in [entry.name for entry in metadata]) == allowed


class TurnedProduct(nn.Module):
    """A matrix product whose first operand is transposed, as in spatial-aware dynamic ReLUs."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 3, 3, 2, 1), nn.Linear(CLASSES, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        weights = torch.softmax(self.stem(images).flatten(2), 1)
        slopes = torch.sigmoid(weights[:, :, :CLASSES])
        return self.head((weights.transpose(1, 2) @ slopes).mean(1))


def test_a_product_of_a_transposed_operand_is_spelled_out_for_half_precision(
    graph: DeployGraph, pictures: np.ndarray, tmp_path: Path
) -> None:
    """XNNPACK refuses it in half precision, on processors that this machine is none of."""
    float_model = TfliteGraph(convert(replace(graph, module=TurnedProduct().eval()), FLOAT))
    products = [o for o in float_model.operators if float_model.kind(o) == "BATCH_MATMUL"]
    assert [product.builtinOptions.adjX for product in products] == [True]
    turned = quantized(TurnedProduct, graph, pictures, tmp_path)
    written = TfliteGraph((tmp_path / MODEL_FILE).read_bytes())
    assert METADATA in [entry.name for entry in written.content.metadata]
    products = [o for o in written.operators if written.kind(o) == "BATCH_MATMUL"]
    assert [product.builtinOptions.adjX for product in products] == [False]
    actual = run_file(tmp_path / MODEL_FILE, model_input(pictures, graph, FLOAT))
    assert relative_error(actual, expected_logits(turned, pictures)) <= 0.05


def test_ranges_span_all_images_and_dead_tensors_get_one(float_model: bytes) -> None:
    shape = (1, SIDE, SIDE, 3)
    small, large = np.full(shape, 0.1, np.float32), np.full(shape, -3.0, np.float32)
    tflite = TfliteGraph(float_model)
    seen = observe(float_model, observed_tensors(tflite), [small, large, small, small])

    low, high = seen.range(int(tflite.main.inputs[0]), "minmax")
    assert (low, high) == (pytest.approx(-3), pytest.approx(0.1))
    dead = next(o for o in tflite.operators if tflite.shape(int(o.inputs[1]))[1:] == (1, 1, 16))
    assert seen.range(int(dead.outputs[0]), "minmax") == (0.0, 1.0)
    assert seen.largest >= 3


def test_calibration_keeps_one_batch_in_memory(float_model: bytes) -> None:
    alive: list[weakref.ref[np.ndarray]] = []
    most = 0

    def images() -> Iterator[np.ndarray]:
        nonlocal most
        for seed in range(12):
            image = np.random.default_rng(seed).standard_normal((1, SIDE, SIDE, 3), np.float32)
            alive.append(weakref.ref(image))
            most = max(most, sum(reference() is not None for reference in alive))
            yield image

    observe(float_model, observed_tensors(TfliteGraph(float_model)), images())
    assert most <= 2


def test_calibration_without_images_is_refused(float_model: bytes) -> None:
    with pytest.raises(MfDeployError, match="no calibration images"):
        observe(float_model, [], [])


def test_equal_constants_are_stored_once(float_model: bytes) -> None:
    tflite = TfliteGraph(float_model)
    size = len(tflite.serialize())
    values = np.arange(20_000, dtype=np.float32)
    copies = [tflite.add_constant(f"copy{i}", values) for i in range(3)]
    reshaped = [tflite.add_tensor(f"reshaped{i}", values.shape, np.float32) for i in copies]
    shape = tflite.add_constant("shape", np.array([20_000], np.int32))
    for copy, result in zip(copies, reshaped, strict=True):
        tflite.operators.append(tflite.operator("RESHAPE", [copy, shape], [result]))
    assert 80_000 <= len(tflite.serialize()) - size < 2 * 80_000
