"""Core ML packages: what Xcode shows, parity, int8, and the models of the paper."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from mf_deploy.artifact import ModelSource
from mf_deploy.data import open_images
from mf_deploy.errors import MfDeployError
from mf_deploy.export import Probe, export, quantize
from mf_deploy.export.coreml import CoremlExporter
from mf_deploy.export.coreml_quantize import layers_of, measure_ranges
from mf_deploy.export.lower import DeployGraph, lower, reference_graph
from mf_deploy.export.module_paths import weighted_modules
from mf_deploy.export.ranges import Range
from mf_deploy.export.target import ExportOptions, WrittenModel
from mf_deploy.mil import Interpreter, load_package, quiet_coremltools
from mf_deploy.models import load_model
from mf_deploy.models.counting import count_layers, count_macs
from mf_deploy.models.stored import ModelRecord
from mf_deploy.preprocessing import Preprocessing
from mf_deploy.quantization import QuantPlan, QuantPolicy
from mf_deploy.runtimes import open_session

SIDE = 32
LABELS = ["crane", "tabby", "crane", "maillot", "hen"]
EXPORTER = CoremlExporter()


class Net(nn.Module):
    """A residual block with a depthwise convolution and a hard swish."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU6(inplace=True)
        )
        self.depthwise = nn.Conv2d(16, 16, 3, 1, 1, groups=16)
        self.point = nn.Conv2d(16, 16, 1)
        self.head = nn.Linear(16, len(LABELS))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = self.stem(image)
        x = x + self.point(nn.functional.hardswish(self.depthwise(x)))
        return self.head(x.mean((2, 3)))


@pytest.fixture(scope="module")
def net() -> nn.Module:
    torch.manual_seed(0)
    return Net().eval().requires_grad_(False)


def graph_of(net: nn.Module, labels: list[str] | None = None, batch: int = 1) -> DeployGraph:
    record = ModelRecord(
        source=ModelSource(name="tiny", num_classes=len(LABELS), checkpoint_sha256="ab" * 32),
        preprocessing=Preprocessing(input_size=SIDE, crop_fraction=1.0),
        labels=labels,
        weights_sha256="",
    )
    return reference_graph(net, record, batch)


def write(
    graph: DeployGraph, folder: Path, scheme: str = "fp32", **options: str
) -> tuple[Path, WrittenModel]:
    folder.mkdir(parents=True, exist_ok=True)
    written = EXPORTER.write(graph, scheme, ExportOptions(**options), folder)  # type: ignore[arg-type]
    return folder / written.model_file, written


def spec_of(package: Path):
    with quiet_coremltools():
        from coremltools.models import MLModel

        return MLModel(str(package), skip_model_load=True).get_spec()


def pictures(count: int, seed: int = 0) -> np.ndarray:
    noise = np.random.default_rng(seed).integers(0, 256, (count, SIDE // 8, SIDE // 8, 3), dtype=np.uint8)
    return noise.repeat(8, axis=1).repeat(8, axis=2)


def relative_error(actual: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(actual - expected).max() / np.ptp(expected))


def test_a_float_input_gives_float32_logits(net: nn.Module, tmp_path: Path) -> None:
    package, written = write(graph_of(net, batch=2), tmp_path)
    spec = spec_of(package)
    assert [feature.name for feature in spec.description.input] == ["image"]
    assert list(spec.description.input[0].type.multiArrayType.shape) == [2, 3, SIDE, SIDE]
    assert [feature.name for feature in spec.description.output] == ["logits"]
    assert written.input.layout == "NCHW"
    assert written.outputs[0].shape == (2, len(LABELS))
    image = torch.randn(2, 3, SIDE, SIDE)
    actual = Interpreter(package).run({"image": image.numpy()})["logits"]
    assert relative_error(actual, net(image).numpy()) < 1e-5


@pytest.mark.parametrize(("scheme", "tolerance"), [("fp32", 1e-5), ("fp16", 1e-2)])
def test_a_picture_input_is_normalised_in_the_graph(
    net: nn.Module, tmp_path: Path, scheme: str, tolerance: float
) -> None:
    graph = graph_of(net)
    package, written = write(graph, tmp_path, scheme, input="uint8")
    image = spec_of(package).description.input[0].type.imageType
    assert (image.width, image.height, image.ColorSpace.Name(image.colorSpace)) == (SIDE, SIDE, "RGB")
    assert (written.input.shape, written.input.dtype) == ((1, SIDE, SIDE, 3), "uint8")
    picture = pictures(1)
    expected = net(torch.from_numpy(graph.record.preprocessing.normalize(picture))).numpy()
    actual = Interpreter(package).run({"image": picture.transpose(0, 3, 1, 2)})["logits"]
    assert relative_error(actual, expected) < tolerance


def test_fp16_stores_half_the_bytes(net: nn.Module, tmp_path: Path) -> None:
    full, _ = write(graph_of(net), tmp_path / "full")
    half, _ = write(graph_of(net), tmp_path / "half", "fp16")
    macs = count_macs(net, SIDE)
    assert EXPORTER.count(full).macs == {"fp32": macs}
    assert EXPORTER.count(half).macs == {"fp16": macs}
    # Batch norm is folded: its scale and shift become the stem's bias.
    weights = sum(value.numel() for value in net.parameters()) - net.stem[1].weight.numel()
    assert EXPORTER.count(full).parameters == {"fp32": weights}
    assert EXPORTER.count(half).parameters == {"fp16": weights}


def test_labels_make_a_classifier_that_keeps_its_logits(net: nn.Module, tmp_path: Path) -> None:
    package, written = write(graph_of(net, LABELS), tmp_path, "fp16", input="uint8")
    spec = spec_of(package)
    assert spec.description.predictedFeatureName == "classLabel"
    assert spec.description.predictedProbabilitiesName == "classLabel_probs"
    names = [feature.name for feature in spec.description.output]
    assert names == ["classLabel", "classLabel_probs", "logits"]
    assert [output.name for output in written.outputs] == ["logits"]
    with quiet_coremltools():
        from coremltools.models import MLModel

        kept = ["crane (0)", "tabby", "crane (2)", "maillot", "hen"]
        assert MLModel(str(package), skip_model_load=True).get_spec() == spec
    classes = _classify(spec).inputs["classes"].arguments[0].value.immediateValue.list.values
    assert [value.immediateValue.tensor.strings.values[0] for value in classes] == kept
    outputs = Interpreter(package, ["logits", "probabilities"]).run(
        {"image": pictures(1).transpose(0, 3, 1, 2)}
    )
    expected = torch.softmax(torch.from_numpy(outputs["logits"]), -1).numpy()
    np.testing.assert_allclose(outputs["probabilities"], expected, atol=2e-3)


def test_the_classifier_is_the_one_that_coremltools_makes(net: nn.Module, tmp_path: Path) -> None:
    """coremltools can make one of a model with one output; ours must be the same operation."""
    with quiet_coremltools():
        import coremltools as ct

        program = torch.export.export(nn.Sequential(net, nn.Softmax(-1)), (torch.randn(1, 3, SIDE, SIDE),))
        theirs = ct.convert(
            program.run_decompositions({}),
            outputs=[ct.TensorType(name="probabilities", dtype=np.float32)],
            classifier_config=ct.ClassifierConfig(["a", "b", "c", "d", "e"]),
            minimum_deployment_target=ct.target.iOS16,
            skip_model_load=True,
        ).get_spec()
    package, _ = write(graph_of(net, ["a", "b", "c", "d", "e"]), tmp_path, "fp16")
    ours = spec_of(package)
    for spec in (theirs, ours):
        _classify(spec).attributes.clear()
        for feature in spec.description.output:
            feature.shortDescription = ""
    assert _classify(ours) == _classify(theirs)
    assert list(ours.description.output)[:2] == list(theirs.description.output)


def _classify(spec):
    function = spec.mlProgram.functions["main"]
    operation = function.block_specializations[function.opset].operations[-1]
    assert operation.type == "classify"
    return operation


def test_xcode_shows_who_made_it_and_what_it_takes(net: nn.Module, tmp_path: Path) -> None:
    package, written = write(graph_of(net, LABELS), tmp_path, deployment_target="iOS17")
    description = spec_of(package).description
    metadata = description.metadata
    assert metadata.shortDescription.startswith("tiny, fp32: 5 classes")
    assert all((metadata.author, metadata.license, metadata.versionString))
    assert metadata.userDefined["mf_deploy.checkpoint_sha256"] == "ab" * 32
    assert json.loads(metadata.userDefined["mf_deploy.labels"]) == LABELS
    assert Preprocessing.model_validate_json(metadata.userDefined["mf_deploy.preprocessing"])
    assert all(feature.shortDescription for feature in [*description.input, *description.output])
    assert written.tools["deployment_target"] == "iOS17"


def test_the_same_model_gives_the_same_bytes(net: nn.Module, tmp_path: Path) -> None:
    def digest(package: Path) -> list[tuple[str, str]]:
        files = sorted(path for path in package.rglob("*") if path.is_file())
        return [(path.name, hashlib.sha256(path.read_bytes()).hexdigest()) for path in files]

    first, _ = write(graph_of(net, LABELS), tmp_path / "first", "fp16")
    second, _ = write(graph_of(net, LABELS), tmp_path / "second", "fp16")
    assert digest(first) == digest(second)
    assert [name for name, _ in digest(first)] == ["model.mlmodel", "weight.bin", "Manifest.json"]


def test_exporting_says_nothing(net: nn.Module, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write(graph_of(net), tmp_path)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("options", "batch", "message"),
    [
        ({"deployment_target": "iOS15"}, 1, "older than iOS16"),
        ({"deployment_target": "iOS171"}, 1, "Did you mean iOS17"),
        ({"input": "uint8"}, 2, "--batch 1"),
    ],
)
def test_bad_options_are_refused(
    net: nn.Module, tmp_path: Path, options: dict[str, str], batch: int, message: str
) -> None:
    with pytest.raises(MfDeployError, match=message):
        write(graph_of(net, batch=batch), tmp_path, **options)
    assert not list(tmp_path.iterdir())


class Random(nn.Module):
    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return torch.linalg.svdvals(image.mean(1))[:, :5]


def test_a_model_that_cannot_be_converted_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(MfDeployError, match="Cannot convert tiny to Core ML") as caught:
        write(graph_of(Random()), tmp_path)
    assert "\n" not in str(caught.value)


def quantized(
    graph: DeployGraph,
    folder: Path,
    scheme: str,
    calibration: np.ndarray,
    plan: QuantPlan | None = None,
    **options: str,
) -> Path:
    def batches() -> Iterator[np.ndarray]:
        for start in range(0, len(calibration), graph.batch):
            yield calibration[start : start + graph.batch]

    folder.mkdir(parents=True, exist_ok=True)
    policy = QuantPolicy(scheme, plan)  # type: ignore[arg-type]
    quantizer = EXPORTER.quantizer(graph, policy, ExportOptions(**options), batches)  # type: ignore[arg-type]
    return folder / quantizer.write(policy.plan_for("tiny"), folder).model_file


def test_w8_stores_int8_weights_and_computes_in_fp16(net: nn.Module, tmp_path: Path) -> None:
    package = quantized(graph_of(net), tmp_path, "w8", pictures(0))
    count = EXPORTER.count(package)
    weights = sum(value.numel() for name, value in net.named_parameters() if value.ndim > 1)
    assert count.parameters["int8"] == weights
    assert count.macs == {"fp16": count_macs(net, SIDE)}


@pytest.mark.parametrize("input", ["float", "uint8"])
def test_w8a8_quantizes_weights_and_activations(net: nn.Module, tmp_path: Path, input: str) -> None:
    graph, shown = graph_of(net, LABELS), pictures(8, seed=1)
    package = quantized(graph, tmp_path, "w8a8", pictures(16), input=input)
    assert EXPORTER.count(package).macs == {"int8": count_macs(net, SIDE)}
    images = graph.record.preprocessing.normalize(shown)
    expected = net(torch.from_numpy(images)).numpy()
    given = shown.transpose(0, 3, 1, 2) if input == "uint8" else images
    interpreter = Interpreter(package, ["logits"])
    actual = np.concatenate([interpreter.run({"image": image[None]})["logits"] for image in given])
    sqnr_db = 10 * np.log10(np.square(expected).sum() / np.square(expected - actual).sum())
    assert 20 < sqnr_db < 60


def test_w8a8_spends_its_bits_on_what_a_clip_leaves(tmp_path: Path) -> None:
    network = nn.Sequential(
        *(nn.Conv2d(3, 8, 3), Clip(), nn.Conv2d(8, 4, 3), nn.Flatten()),
        nn.Linear(4 * (SIDE - 4) ** 2, len(LABELS)),
    )
    package = quantized(graph_of(network.eval().requires_grad_(False)), tmp_path, "w8a8", pictures(4))
    clip = next(op for op in load_package(package).operations if op.op_type == "clip")
    assert clip.inputs["x"].op.op_type == "conv"
    assert [child.op_type for child in clip.outputs[0].child_ops] == ["quantize"]


def test_a_plan_decides_layer_by_layer(net: nn.Module, tmp_path: Path) -> None:
    plan = QuantPlan(model="tiny", modules={"": "int8", "point": "w8", "depthwise": "fp32"})
    package = quantized(graph_of(net), tmp_path, "mixed", pictures(4), plan)
    macs, parameters = EXPORTER.count(package).macs, EXPORTER.count(package).parameters
    layers = count_layers(net, SIDE)
    assert macs["fp16"] == layers["point"] + layers["depthwise"]
    assert macs["int8"] == layers["stem.0"] + layers["head"]
    assert parameters["int8"] == sum(net.get_submodule(n).weight.numel() for n in ("stem.0", "head", "point"))


class Twins(nn.Module):
    """Constants that are equal: the weights of two layers, a norm's offsets and a layer's biases."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 16, 3, 2, 1), nn.Conv2d(3, 16, 3, 2, 1)
        self.second.load_state_dict(self.first.state_dict())
        self.norm, self.head = nn.LayerNorm(16), nn.Linear(16, 16)
        nn.init.zeros_(self.head.bias)
        self.last = nn.Linear(16, len(LABELS))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        tokens = (self.first(image) - torch.tanh(self.second(image))).mean((2, 3))
        return self.last(self.norm(self.head(tokens)))


@pytest.mark.parametrize("second", ["w8", "fp32"])
@pytest.mark.parametrize("scheme", ["w8", "w8a8"])
def test_equal_constants_may_be_quantized_apart(scheme: str, second: str, tmp_path: Path) -> None:
    """A package holds them once, and coremltools refuses settings that contradict each other."""
    torch.manual_seed(0)
    twins = Twins().eval().requires_grad_(False)
    graph, shown = graph_of(twins), pictures(4)
    quantizer = EXPORTER.quantizer(
        graph, QuantPolicy(scheme), ExportOptions(), lambda: iter(np.split(shown, 4))
    )
    precision = "int8" if scheme == "w8a8" else "w8"
    plan = QuantPlan(model="tiny", modules={"": precision, "second": second})
    package = tmp_path / quantizer.write(plan, tmp_path).model_file
    stored = sum(twins.get_submodule(name).weight.numel() for name in ("first", "head", "last"))
    assert EXPORTER.count(package).parameters["int8"] == stored  # what both have in int8 is there once
    image = graph.record.preprocessing.normalize(shown)
    actual = np.concatenate([Interpreter(package).run({"image": each[None]})["logits"] for each in image])
    assert relative_error(actual, twins(torch.from_numpy(image)).numpy()) < 0.1


class Clip(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.clamp(x, 0, 6)


def test_ranges_cover_all_calibration_pictures(net: nn.Module, tmp_path: Path) -> None:
    """The extreme picture is in the middle; a recorder that keeps the last one only would miss it."""
    graph, options = graph_of(net), ExportOptions()
    package, _ = write(graph, tmp_path, "fp16")
    program, preprocessing = load_package(package), graph.record.preprocessing
    layers = layers_of(program, weighted_modules(graph.module))
    grey = np.full((1, SIDE, SIDE, 3), 128, np.uint8)
    extreme = pictures(1)

    def measured(*stream: np.ndarray) -> dict[str, Range]:
        return measure_ranges(program, layers, lambda: iter(stream), options, preprocessing, "minmax")

    together, alone = measured(grey, extreme, grey), [measured(grey), measured(extreme)]
    assert len(together) == 4
    for name, (low, high) in together.items():
        assert low == min(ranges[name][0] for ranges in alone)
        assert high == max(ranges[name][1] for ranges in alone)
    assert together != alone[0]


def test_calibration_without_pictures_is_refused(net: nn.Module, tmp_path: Path) -> None:
    with pytest.raises(MfDeployError, match="no pictures"):
        quantized(graph_of(net), tmp_path, "w8a8", pictures(0))


def test_overflowing_activations_are_refused(net: nn.Module, tmp_path: Path) -> None:
    import copy

    loud = copy.deepcopy(net)
    loud.point.weight.mul_(1e6)
    with pytest.raises(MfDeployError, match="overflows float16"):
        quantized(graph_of(loud), tmp_path, "w8a8", pictures(2))


@pytest.mark.parametrize("input", ["float", "uint8"])
def test_an_artifact_runs_as_a_session(net: nn.Module, tmp_path: Path, input: str) -> None:
    graph, shown = graph_of(net, LABELS), pictures(5)
    artifact = export(
        graph, "coreml", "fp32", tmp_path / "coreml-fp32", Probe.seeded(net, SIDE), ExportOptions(input)
    )
    session = open_session(artifact, threads=2)
    before = torch.get_num_threads()
    logits = session.run(shown)["logits"]
    assert torch.get_num_threads() == before
    expected = net(torch.from_numpy(graph.record.preprocessing.normalize(shown))).numpy()
    assert relative_error(logits, expected) < 1e-5
    inside = next(session.intermediates(shown))
    np.testing.assert_array_equal(inside["logits"], logits[:1])


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["reference", "deploy"])
def test_mobile_former_equals_its_reference(kind: str, tmp_path: Path) -> None:
    model = load_model("mobile_former_26m")
    record = ModelRecord(
        source=ModelSource(name="mobile_former_26m", num_classes=1000, random_weights=True),
        preprocessing=Preprocessing(),
        labels=None,
        weights_sha256="",
    )
    graph = reference_graph(model, record) if kind == "reference" else lower(model, record, "coreml")
    package, _ = write(graph, tmp_path)
    image = graph.example()
    actual = Interpreter(package).run({"image": image.numpy()})["logits"]
    assert relative_error(actual, model(image).numpy()) < 1e-5


@pytest.mark.slow
def test_trained_mobile_former_in_int8(shared: Path, tmp_path: Path) -> None:
    model = load_model("mobile_former_52m", shared / "reference/mobile_former_52m_tiny_imagenet.pth")
    record = ModelRecord(
        source=ModelSource(name="mobile_former_52m", num_classes=200),
        preprocessing=Preprocessing(input_size=96, crop_fraction=1.0),
        labels=None,
        weights_sha256="",
    )
    graph, probe = lower(model, record, "coreml"), Probe.seeded(model, 96)
    calibration = open_images(shared / "data/tiny-imagenet-calibration.tar", limit=32)
    artifact = quantize(graph, "coreml", calibration, QuantPolicy("w8a8"), tmp_path / "coreml-w8a8", probe)
    assert artifact.manifest.tools["deployment_target"] == "iOS17"
    held_out = open_images(shared / "data/tiny-imagenet-val.tar", limit=50)
    shown = next(held_out.batches(record.preprocessing, 50)).pictures
    expected = model(torch.from_numpy(record.preprocessing.normalize(shown))).numpy()
    actual = open_session(artifact).run(shown)["logits"]
    sqnr_db = 10 * np.log10(np.square(expected).sum() / np.square(expected - actual).sum())
    assert sqnr_db > 18
    assert (actual.argmax(1) == expected.argmax(1)).mean() > 0.85
