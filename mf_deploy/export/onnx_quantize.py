"""ONNX by any quantization plan: calibrated once, written quickly and often."""

import copy
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mf_deploy.artifact import TensorInfo
from mf_deploy.export.lower.graph import DeployGraph
from mf_deploy.export.module_paths import reference_path
from mf_deploy.export.onnx_file import drop_unused, quantize_output, quantize_weights
from mf_deploy.export.onnx_graph import FloatGraph
from mf_deploy.export.onnx_integer import IntegerWriter
from mf_deploy.export.onnx_ranges import MapRanges
from mf_deploy.export.onnx_sixteen import SixteenBits, smallest_scales
from mf_deploy.export.target import (
    INPUT_NAME,
    OUTPUT_NAME,
    CalibrationBatches,
    ExportOptions,
    Quantizer,
    WrittenModel,
)
from mf_deploy.quantization import QuantPlan, RangeMethod

if TYPE_CHECKING:
    from onnx import ModelProto

WEIGHT = ".weight"
PICTURE_INPUT = "network."  # what the names begin with where normalisation is part of the graph


@dataclass
class OnnxQuantizer(Quantizer):
    """uint8 activations and per-channel weights with one zero point, which x86 and ARM both run."""

    graph: DeployGraph
    model: "ModelProto"
    written: WrittenModel
    options: ExportOptions
    method: RangeMethod | None = None
    sixteen: bool = False
    """Whether plans may ask for 16-bit activations, which need the ranges of more tensors."""
    ranges: MapRanges | None = None
    paths: dict[str, str] = field(init=False)
    """Weight tensor → path of its layer in the reference model."""

    def __post_init__(self) -> None:
        layers = {node.input[1] for node in self.source.nodes if node.op_type in ("Conv", "Gemm", "MatMul")}
        named = [name for name in self.source.constants if name in layers and name.endswith(WEIGHT)]
        self.paths = {
            name: reference_path(name.removesuffix(WEIGHT).removeprefix(PICTURE_INPUT)) for name in named
        }

    @cached_property
    def source(self) -> FloatGraph:
        return FloatGraph(self.model)

    @property
    def modules(self) -> list[str]:
        return list(self.paths.values())

    def calibrate(self, batches: CalibrationBatches) -> None:
        """Measure the ranges of all maps and of the logits, one batch in memory at a time."""
        from mf_deploy.export.onnx import model_input

        def inputs() -> Iterator[dict[str, np.ndarray]]:
            for pictures in batches():
                yield {INPUT_NAME: model_input(pictures, self.graph, self.options)}

        self.ranges = MapRanges(self.source)
        layers = [node for node in self.source.nodes if len(node.input) > 1 and node.input[1] in self.paths]
        around = [name for node in layers for name in (node.input[0], node.output[0])]
        self.ranges.extents = dict.fromkeys([OUTPUT_NAME, *(around if self.sixteen else [])], (0.0, 0.0))
        self.ranges.collect(inputs())

    def write(self, plan: QuantPlan, folder: Path) -> WrittenModel:
        import onnx

        precision = {name: plan.precision(path) for name, path in self.paths.items()}
        model = self._integer({name for name, each in precision.items() if each == "int8"})
        sixteen = {name for name, each in precision.items() if each == "w8a16"}
        model = quantize_weights(model, {name for name, each in precision.items() if each == "w8"})
        if sixteen:
            assert self.ranges is not None  # a policy with such a plan needs ranges
            extents = self.ranges.extents
            model = quantize_weights(model, sixteen, smallest_scales(self.source, sixteen, extents))
            SixteenBits(model, extents).apply(sixteen)
            drop_unused(model)
        model.producer_name, model.doc_string = "mf-deploy", self.graph.record.source.name
        outputs = [self._coded(model, output) for output in self.written.outputs]
        path = folder / self.written.model_file
        onnx.save(model, str(path))
        onnx.checker.check_model(str(path))
        integers = "int8" in precision.values()
        return replace(
            self.written, outputs=outputs, weight_type=self.options.weight_type if integers else None
        )

    def _coded(self, model: "ModelProto", output: TensorInfo) -> TensorInfo:
        """Make ``output`` of ``model`` integer codes over the range seen, if they are asked for."""
        if self.options.output == "float":
            return output
        assert self.ranges is not None  # the exporter has calibrated
        low, high = self.ranges.extents[output.name]
        dtype = np.dtype(self.options.output)
        scale, zero = quantize_output(model, output.name, low, high, dtype)
        changes = {"dtype": dtype.name, "scale": scale, "zero_point": zero}
        return output.model_copy(update=changes)

    def _integer(self, weights: set[str]) -> "ModelProto":
        """The model with the layers of ``weights`` on integer kernels."""
        ranges, method = self.ranges, self.method or "mse"
        if not weights:
            model = copy.deepcopy(self.model)
            del model.graph.value_info[:]  # who wants the shapes infers them
            return model
        assert ranges is not None  # a policy with such a plan needs ranges
        return IntegerWriter(
            self.source,
            weights.__contains__,
            lambda name: ranges.range(name, method),
            self.options.weight_type,
        ).write()
