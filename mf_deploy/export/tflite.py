"""TFLite, for LiteRT on Android and everywhere else."""

from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor, nn

from mf_deploy.artifact import Quantization, TensorInfo
from mf_deploy.errors import GATE_FAILED, MfDeployError
from mf_deploy.export.lower.graph import DeployGraph
from mf_deploy.export.module_paths import weighted_modules
from mf_deploy.export.picture import PictureInput
from mf_deploy.export.quiet import quiet
from mf_deploy.export.target import (
    INPUT_NAME,
    OUTPUT_NAME,
    CalibrationBatches,
    ExportOptions,
    Quantizer,
    TargetExporter,
    WrittenModel,
)
from mf_deploy.quantization import QuantPlan, QuantPolicy
from mf_deploy.runtimes.native_log import quiet_native

if TYPE_CHECKING:
    from mf_deploy.export.tflite_quantize import Ranges

MODEL_FILE = "model.tflite"


class TfliteExporter(TargetExporter):
    """litert-torch for the float model, ai-edge-quantizer for the rest, NHWC throughout."""

    name = "tflite"
    modules = ("litert_torch", "ai_edge_litert", "ai_edge_quantizer")

    def write(self, graph: DeployGraph, scheme: str, options: ExportOptions, folder: Path) -> WrittenModel:
        if scheme == "fp16":
            quantizer = TfliteQuantizer(self, graph, scheme, options, convert(graph, options), None)
            return quantizer.write(QuantPlan.uniform(graph.record.source.name, "fp32"), folder)
        (folder / MODEL_FILE).write_bytes(finished(convert(graph, options), graph, scheme, options))
        return self.written(graph, options)

    def quantizer(
        self, graph: DeployGraph, policy: QuantPolicy, options: ExportOptions, batches: CalibrationBatches
    ) -> Quantizer:
        from mf_deploy.export.tflite_quantize import activation_ranges

        model = convert(graph, options)
        ranges = None
        if policy.needs_ranges:
            ranges = activation_ranges(model, (model_input(each, graph, options) for each in batches()))
        return TfliteQuantizer(self, graph, policy.scheme, options, model, ranges)

    def count(self, model_path: Path) -> Quantization:
        from mf_deploy.export.tflite_file import count

        return count(model_path)

    def written(self, graph: DeployGraph, options: ExportOptions) -> WrittenModel:
        side = graph.record.preprocessing.input_size
        shape = (graph.batch, side, side, 3)
        if options.input == "uint8":
            taken = TensorInfo(name=INPUT_NAME, shape=shape, layout="NHWC", dtype="uint8", range=(0, 255))
        else:
            taken = TensorInfo(name=INPUT_NAME, shape=shape, layout="NHWC", dtype="float32")
        classes = graph.record.source.num_classes
        logits = TensorInfo(name=OUTPUT_NAME, shape=(graph.batch, classes), layout="NC", dtype="float32")
        tools = {name.replace("_", "-"): version(name) for name in self.modules}
        return WrittenModel(MODEL_FILE, taken, [logits], tools)


@dataclass(frozen=True)
class TfliteQuantizer(Quantizer):
    """ai-edge-quantizer: the first recipe of the scheme whose model LiteRT loads and runs."""

    exporter: TfliteExporter
    graph: DeployGraph
    scheme: str
    options: ExportOptions
    model: bytes
    ranges: "Ranges | None"

    @property
    def modules(self) -> list[str]:
        return weighted_modules(self.graph.module)

    def write(self, plan: QuantPlan, folder: Path) -> WrittenModel:
        from mf_deploy.export.tflite_quantize import RECIPES, apply_recipe, why_it_fails

        why: str | None = None
        for recipe in RECIPES[self.scheme]:
            quantized = apply_recipe(self.model, recipe, self.ranges)
            content = finished(quantized, self.graph, self.scheme, self.options)
            (folder / MODEL_FILE).write_bytes(content)
            why = why_it_fails(folder / MODEL_FILE)
            if why is None:
                return self.exporter.written(self.graph, self.options)
        raise MfDeployError(
            f"Cannot quantize {self.graph.record.source.name} to TFLite {self.scheme}",
            why or "no recipe for it",
            "Choose another --scheme.",
            GATE_FAILED,
        )


class ChannelsLast(nn.Module):
    """Takes NHWC where ``network`` takes NCHW; the converter folds the permutation away."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images.permute(0, 3, 1, 2))


class Named(nn.Module):
    """Names the input and the output: the converter makes them the signature's."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        return {OUTPUT_NAME: self.network(image)}


def convert(graph: DeployGraph, options: ExportOptions) -> bytes:
    """The float TFLite model of ``graph`` as the converter writes it.

    Raises:
        MfDeployError: the graph holds an operation that the converter does not know.
    """
    import torch

    side = graph.record.preprocessing.input_size
    if options.input == "uint8":
        network: nn.Module = PictureInput(graph.module, graph.record.preprocessing)
        example = torch.zeros(graph.batch, side, side, 3, dtype=torch.uint8)
    else:
        network = ChannelsLast(graph.module)
        example = torch.zeros(graph.batch, side, side, 3)
    try:
        with quiet_native(), quiet():
            import litert_torch

            litert_torch.config.show_progress = False
            model = litert_torch.convert(Named(network).eval(), sample_kwargs={INPUT_NAME: example})
            return model.model_content()
    except Exception as error:  # the converter and torch.export raise types of many libraries
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise MfDeployError(
            f"Cannot convert {graph.record.source.name} to TFLite",
            lines[0],
            "Replace the operation named here, or export to another target.",
        ) from error


def model_input(pictures: np.ndarray, graph: DeployGraph, options: ExportOptions) -> np.ndarray:
    """(batch, H, W, 3) uint8 pictures as the model takes them."""
    if options.input == "uint8":
        return pictures
    normalized = graph.record.preprocessing.normalize(pictures)
    return np.ascontiguousarray(normalized.transpose(0, 2, 3, 1))


def finished(model: bytes, graph: DeployGraph, scheme: str, options: ExportOptions) -> bytes:
    """``model`` with tensors named as the signature names them, a description, metadata and labels."""
    from ai_edge_litert import schema_py_generated as schema
    from ai_edge_litert.tools import flatbuffer_utils

    from mf_deploy.export.tflite_metadata import ENTRY_NAME, build_metadata, describe, label_archive

    content = flatbuffer_utils.read_model_from_bytearray(model)
    subgraph = content.subgraphs[0]
    subgraph.tensors[subgraph.inputs[0]].name = INPUT_NAME.encode()
    subgraph.tensors[subgraph.outputs[0]].name = OUTPUT_NAME.encode()
    content.description = describe(graph, scheme).encode()
    buffer, entry = schema.BufferT(), schema.MetadataT()
    buffer.data = np.frombuffer(build_metadata(graph, scheme, options), np.uint8)
    entry.name, entry.buffer = ENTRY_NAME, len(content.buffers)
    content.buffers.append(buffer)
    content.metadata = [*(content.metadata or []), entry]
    return bytes(flatbuffer_utils.convert_object_to_bytearray(content)) + label_archive(graph.record.labels)
