"""Core ML, for iPhone, iPad and Mac: an ML Program in a ``.mlpackage``."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mf_deploy.artifact import Quantization, TensorInfo
from mf_deploy.errors import MfDeployError, nearest, require
from mf_deploy.export.coreml_package import (
    PROBABILITIES_NAME,
    describe,
    make_classifier,
    share_constants,
    write_package,
)
from mf_deploy.export.lower.graph import DeployGraph
from mf_deploy.export.module_paths import weighted_modules
from mf_deploy.export.ranges import Range
from mf_deploy.export.target import (
    INPUT_NAME,
    OUTPUT_NAME,
    CalibrationBatches,
    ExportOptions,
    Quantizer,
    TargetExporter,
    WrittenModel,
)
from mf_deploy.mil import count_package, quiet_coremltools, read_program
from mf_deploy.preprocessing import Preprocessing
from mf_deploy.quantization import QuantPlan, QuantPolicy

if TYPE_CHECKING:
    import coremltools as ct

    from mf_deploy.export.coreml_quantize import Layer

PACKAGE = "model.mlpackage"
OLDEST_TARGET = "iOS16"
W8A8_TARGET = "iOS17"
"""Quantized activations exist since iOS 17 (the MIL operations quantize and dequantize)."""


class CoremlExporter(TargetExporter):
    """torch.export, coremltools.convert, and the labels and descriptions that Xcode shows.

    The package always has the float32 output ``logits``. With labels and batch 1 it is a classifier as
    well: ``classLabel`` and ``classLabel_probs`` are what Vision and Xcode look for. float16 and quantized
    schemes compute in float16; ``w8a8`` raises the deployment target to iOS17 where it is lower.
    """

    name = "coreml"
    modules = ("coremltools",)

    def write(self, graph: DeployGraph, scheme: str, options: ExportOptions, folder: Path) -> WrittenModel:
        target = deployment_target(options.deployment_target, OLDEST_TARGET)
        model = convert(graph, scheme, options, target)
        return self.written(model, graph, scheme, options, target, folder)

    def refuse(self, policy: QuantPolicy, options: ExportOptions) -> None:
        super().refuse(policy, options)
        _refuse_integers(options)

    def quantizer(
        self, graph: DeployGraph, policy: QuantPolicy, options: ExportOptions, batches: CalibrationBatches
    ) -> Quantizer:
        from mf_deploy.export.coreml_quantize import RANGE_METHOD, layers_of, measure_ranges

        oldest = W8A8_TARGET if policy.needs_ranges else OLDEST_TARGET
        target = deployment_target(options.deployment_target, oldest)
        model = convert(graph, "fp16", options, target)
        program = read_program(model, graph.record.source.name)
        layers = layers_of(program, weighted_modules(graph.module))
        ranges: dict[str, Range] = {}
        if policy.needs_ranges:
            method = policy.ranges or RANGE_METHOD
            ranges = measure_ranges(program, layers, batches, options, graph.record.preprocessing, method)
        return CoremlQuantizer(self, graph, policy.scheme, options, target, model, layers, ranges)

    def count(self, model_path: Path) -> Quantization:
        return count_package(model_path)

    def written(
        self,
        model: "ct.models.MLModel",
        graph: DeployGraph,
        scheme: str,
        options: ExportOptions,
        target: str,
        folder: Path,
    ) -> WrittenModel:
        spec = model.get_spec()
        if PROBABILITIES_NAME in [feature.name for feature in spec.description.output]:
            make_classifier(spec, graph.record.labels or [])
        describe(spec, graph.record, scheme)
        share_constants(spec)
        write_package(spec, Path(model.weights_dir) / "weight.bin", folder / PACKAGE)
        tools = {"coremltools": version("coremltools"), "deployment_target": target}
        return WrittenModel(PACKAGE, input_info(graph, options), [output_info(graph)], tools)


@dataclass(frozen=True)
class CoremlQuantizer(Quantizer):
    """coremltools' passes, with the ranges that the MIL interpreter measured."""

    exporter: CoremlExporter
    graph: DeployGraph
    scheme: str
    options: ExportOptions
    target: str
    model: "ct.models.MLModel"
    layers: "list[Layer]"
    ranges: "dict[str, Range]"

    @property
    def modules(self) -> list[str]:
        return [layer.path for layer in self.layers if layer.path]

    def write(self, plan: QuantPlan, folder: Path) -> WrittenModel:
        from mf_deploy.export.coreml_quantize import quantize_model

        quantized = quantize_model(self.model, self.layers, plan, self.ranges)
        return self.exporter.written(quantized, self.graph, self.scheme, self.options, self.target, folder)


class Interface(nn.Module):
    """The network with what a Core ML model adds to it: normalisation before, probabilities after.

    Takes (batch, 3, H, W): pictures in [0, 255] if ``preprocessing`` is given, else normalised floats.
    """

    scale: Tensor
    offset: Tensor

    def __init__(self, network: nn.Module, preprocessing: Preprocessing | None, probabilities: bool) -> None:
        super().__init__()
        self.network, self.normalises, self.probabilities = network, preprocessing is not None, probabilities
        if preprocessing is not None:
            mean, std = (torch.tensor(value).double() for value in (preprocessing.mean, preprocessing.std))
            self.register_buffer("scale", (1 / (255 * std)).float().reshape(1, 3, 1, 1))
            self.register_buffer("offset", (-mean / std).float().reshape(1, 3, 1, 1))

    def forward(self, image: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        if self.normalises:
            image = image * self.scale + self.offset
        logits = self.network(image)
        return (logits, torch.softmax(logits, -1)) if self.probabilities else logits


def _refuse_integers(options: ExportOptions) -> None:
    if options.input == "int8" or options.output != "float":
        raise MfDeployError(
            "Cannot give a Core ML model an integer interface",
            "it takes pictures or floats, and gives floats",
            "Use --input uint8 for pictures.",
        )


def convert(graph: DeployGraph, precision: str, options: ExportOptions, target: str) -> "ct.models.MLModel":
    """Convert to an ML Program with inputs and outputs in float32.

    Args:
        precision: ``fp32`` or ``fp16``, of weights and arithmetic.

    Raises:
        MfDeployError: coremltools is missing or cannot convert the model, or for a batch of pictures.
    """
    require("coremltools", "coreml")
    _refuse_integers(options)
    if options.input == "uint8" and graph.batch != 1:
        raise MfDeployError(
            "Cannot export batches of pictures to Core ML",
            "its image inputs hold one picture",
            "Use --batch 1, or --input float.",
        )
    probabilities = graph.record.labels is not None and graph.batch == 1
    preprocessing = graph.record.preprocessing if options.input == "uint8" else None
    module = Interface(copy.deepcopy(graph.module), preprocessing, probabilities).eval()
    with quiet_coremltools():
        import coremltools as ct
        import numpy as np

        from mf_deploy.export.coreml_operations import register_operations

        register_operations()
        shape = tuple(graph.example().shape)
        names = [OUTPUT_NAME, PROBABILITIES_NAME] if probabilities else [OUTPUT_NAME]
        image: Any = ct.ImageType(name=INPUT_NAME, shape=shape, color_layout=ct.colorlayout.RGB)
        floats = ct.TensorType(name=INPUT_NAME, shape=shape, dtype=np.float32)
        try:
            program = torch.export.export(module, (graph.example(),)).run_decompositions({})
            return ct.convert(
                program,
                inputs=[image if options.input == "uint8" else floats],
                outputs=[ct.TensorType(name=name, dtype=np.float32) for name in names],
                minimum_deployment_target=ct.target[target],
                compute_precision=ct.precision.FLOAT32 if precision == "fp32" else ct.precision.FLOAT16,
                skip_model_load=True,
            )
        except (
            Exception
        ) as error:  # torch.export and coremltools raise of all kinds for a model they cannot take
            reason = str(error).strip().splitlines()
            raise MfDeployError(
                f"Cannot convert {graph.record.source.name} to Core ML",
                reason[0] if reason else type(error).__name__,
                "Check that the model works with torch.export, or try --graph reference.",
            ) from error


def deployment_target(wanted: str, oldest: str) -> str:
    """``wanted``, checked, or ``oldest`` where that is newer.

    Raises:
        MfDeployError: not a target of coremltools, or one before iOS 16.
    """
    require("coremltools", "coreml")
    with quiet_coremltools():
        import coremltools as ct

    usable = [name for name, value in ct.target.__members__.items() if value >= ct.target[OLDEST_TARGET]]
    if wanted not in usable:
        old = wanted in ct.target.__members__
        raise MfDeployError(
            f"Unknown deployment target {wanted!r}",
            f"older than {OLDEST_TARGET}" if old else "coremltools does not know it",
            f"Choose one of: {', '.join(usable)}." if old else nearest(wanted, usable),
        )
    return wanted if ct.target[wanted] >= ct.target[oldest] else oldest


def input_info(graph: DeployGraph, options: ExportOptions) -> TensorInfo:
    """What a caller gives: the picture, or the normalised tensor."""
    side = graph.record.preprocessing.input_size
    if options.input == "uint8":
        shape: Sequence[int] = (graph.batch, side, side, 3)
        return TensorInfo(name=INPUT_NAME, shape=tuple(shape), layout="NHWC", dtype="uint8", range=(0, 255))
    return TensorInfo(name=INPUT_NAME, shape=(graph.batch, 3, side, side), layout="NCHW", dtype="float32")


def output_info(graph: DeployGraph) -> TensorInfo:
    """The logits; a classifier's label and dictionary are for apps, and not tensors."""
    shape = (graph.batch, graph.record.source.num_classes)
    return TensorInfo(name=OUTPUT_NAME, shape=shape, layout="NC", dtype="float32")
