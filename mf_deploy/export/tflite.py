"""TFLite, for LiteRT on Android and everywhere else."""

from collections.abc import Iterable
from itertools import islice
from pathlib import Path

import numpy as np
from torch import Tensor, nn

from mf_deploy.artifact import Quantization
from mf_deploy.errors import MfDeployError
from mf_deploy.export.lower.graph import DeployGraph
from mf_deploy.export.parity import seeded_pictures
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
from mf_deploy.export.tflite_graph import TfliteGraph
from mf_deploy.export.tflite_peephole import keep_products, pad_each_reader, skip_transpositions
from mf_deploy.export.tflite_quantize import observed_tensors
from mf_deploy.export.tflite_quantizer import BEST_RANGES, TfliteQuantizer
from mf_deploy.export.tflite_ranges import observe
from mf_deploy.export.tflite_write import MODEL_FILE, TOOLS, finish, written
from mf_deploy.quantization import QuantPlan, QuantPolicy
from mf_deploy.runtimes.native_log import quiet_native

PICTURES_FOR_HALF = 32
"""Calibration pictures that tell whether half precision is wide enough, where no ranges are measured."""


class TfliteExporter(TargetExporter):
    """litert-torch makes the float model; what becomes of it is rewritten here. NHWC throughout."""

    name = "tflite"
    modules = TOOLS

    def write(self, graph: DeployGraph, scheme: str, options: ExportOptions, folder: Path) -> WrittenModel:
        if options.output != "float":
            raise MfDeployError(
                f"Cannot give {options.output} logits in {scheme}",
                "their range comes from calibration images",
                "Quantize to w8a8 with mf-quantize --io.",
            )
        model = convert(graph, options)
        if scheme == "fp16":
            pictures = seeded_pictures(graph.batch, graph.record.preprocessing.input_size)
            observed = observe(model, [], [model_input(pictures, graph, options)])
            quantizer = TfliteQuantizer(graph, scheme, options, model, observed, floats="half")
            return quantizer.write(QuantPlan.uniform(graph.record.source.name, "fp32"), folder)
        tflite = TfliteGraph(model)
        (folder / MODEL_FILE).write_bytes(finish(tflite, graph, scheme, options))
        return written(graph, options, tflite)

    def quantizer(
        self, graph: DeployGraph, policy: QuantPolicy, options: ExportOptions, batches: CalibrationBatches
    ) -> Quantizer:
        model = convert(graph, options)
        pictures: Iterable[np.ndarray] = batches()
        tensors: list[int] = []
        if policy.needs_ranges or options.output != "float":
            tensors = observed_tensors(TfliteGraph(model))
        else:
            pictures = islice(pictures, PICTURES_FOR_HALF)
        observed = observe(model, tensors, (model_input(each, graph, options) for each in pictures))
        return TfliteQuantizer(graph, policy.scheme, options, model, observed, policy.ranges or BEST_RANGES)

    def count(self, model_path: Path) -> Quantization:
        from mf_deploy.export.tflite_file import count

        return count(model_path)


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
    """The float TFLite model of ``graph`` as the converter writes it, with shorter names.

    Raises:
        MfDeployError: the graph holds an operation that the converter does not know.
    """
    import torch

    side = graph.record.preprocessing.input_size
    if options.input != "float":
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
            tflite = TfliteGraph(model.model_content())
    except Exception as error:  # the converter and torch.export raise types of many libraries
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise MfDeployError(
            f"Cannot convert {graph.record.source.name} to TFLite",
            lines[0],
            "Replace the operation named here, or export to another target.",
        ) from error
    pad_each_reader(tflite)
    skip_transpositions(tflite)
    keep_products(tflite)
    tflite.shorten_names()
    return tflite.serialize()


def model_input(pictures: np.ndarray, graph: DeployGraph, options: ExportOptions) -> np.ndarray:
    """(batch, H, W, 3) uint8 pictures as the model takes them."""
    if options.input != "float":
        return pictures
    normalized = graph.record.preprocessing.normalize(pictures)
    return np.ascontiguousarray(normalized.transpose(0, 2, 3, 1))
