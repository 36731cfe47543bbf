"""TFLite, for LiteRT on Android and everywhere else."""

from importlib.metadata import version
from pathlib import Path

import numpy as np
from torch import Tensor, nn

from mf_deploy.artifact import Quantization, TensorInfo
from mf_deploy.errors import GATE_FAILED, MfDeployError
from mf_deploy.export.lower.graph import DeployGraph
from mf_deploy.export.picture import PictureInput
from mf_deploy.export.quiet import quiet
from mf_deploy.export.target import (
    INPUT_NAME,
    OUTPUT_NAME,
    CalibrationBatches,
    ExportOptions,
    TargetExporter,
    WrittenModel,
)
from mf_deploy.runtimes.native_log import quiet_native

MODEL_FILE = "model.tflite"


class TfliteExporter(TargetExporter):
    """litert-torch for the float model, ai-edge-quantizer for the rest, NHWC throughout."""

    name = "tflite"
    modules = ("litert_torch", "ai_edge_litert", "ai_edge_quantizer")

    def write(self, graph: DeployGraph, scheme: str, options: ExportOptions, folder: Path) -> WrittenModel:
        if scheme == "fp16":
            return self._quantized(graph, scheme, options, None, folder)
        (folder / MODEL_FILE).write_bytes(finished(convert(graph, options), graph, scheme, options))
        return self._written(graph, options)

    def quantize(
        self,
        graph: DeployGraph,
        scheme: str,
        options: ExportOptions,
        batches: CalibrationBatches,
        folder: Path,
    ) -> WrittenModel:
        return self._quantized(graph, scheme, options, batches if scheme == "w8a8" else None, folder)

    def count(self, model_path: Path) -> Quantization:
        from mf_deploy.export.tflite_file import count

        return count(model_path)

    def _quantized(
        self,
        graph: DeployGraph,
        scheme: str,
        options: ExportOptions,
        batches: CalibrationBatches | None,
        folder: Path,
    ) -> WrittenModel:
        """Quantize by the first recipe of ``scheme`` whose model LiteRT loads and runs."""
        from mf_deploy.export.tflite_quantize import RECIPES, activation_ranges, apply_recipe, why_it_fails

        model = convert(graph, options)
        ranges = None
        if batches is not None:
            images = (model_input(pictures, graph, options) for pictures in batches())
            ranges = activation_ranges(model, images)
        why: str | None = None
        for recipe in RECIPES[scheme]:
            quantized = apply_recipe(model, recipe, ranges)
            (folder / MODEL_FILE).write_bytes(finished(quantized, graph, scheme, options))
            why = why_it_fails(folder / MODEL_FILE)
            if why is None:
                return self._written(graph, options)
        raise MfDeployError(
            f"Cannot quantize {graph.record.source.name} to TFLite {scheme}",
            why or "no recipe for it",
            "Choose another --scheme.",
            GATE_FAILED,
        )

    def _written(self, graph: DeployGraph, options: ExportOptions) -> WrittenModel:
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
