"""ONNX, for onnxruntime on Android, iOS, servers and NPUs."""

import copy
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from mf_deploy.artifact import Quantization, TensorInfo
from mf_deploy.errors import GATE_FAILED, MfDeployError
from mf_deploy.export.lower.graph import DeployGraph
from mf_deploy.export.lower.pad_columns import unpad
from mf_deploy.export.lower.row_blocks import unrow
from mf_deploy.export.lower.scale_depthwise import unscale
from mf_deploy.export.onnx_file import count_precision
from mf_deploy.export.picture import HalfPrecision, PictureInput
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
from mf_deploy.quantization import QuantPolicy

if TYPE_CHECKING:
    from onnx import ModelProto

MODEL_FILE = "model.onnx"
OPSET = 20  # the first one with Gelu
SIMPLIFY_TOLERANCE = 1e-3  # room for float16; a wrong graph is off by orders of magnitude more


class OnnxExporter(TargetExporter):
    """torch.onnx.export (dynamo), checked, simplified, and checked again."""

    name = "onnx"
    modules = ("onnx", "onnxruntime", "onnxscript", "onnxsim")

    def write(self, graph: DeployGraph, scheme: str, options: ExportOptions, folder: Path) -> WrittenModel:
        import onnx

        model = self._simplified(graph, scheme, options)
        model.producer_name, model.doc_string = "mf-deploy", graph.record.source.name
        onnx.checker.check_model(model, full_check=True)
        onnx.save(model, str(folder / MODEL_FILE))
        return self.written(graph, options)

    def quantizer(
        self, graph: DeployGraph, policy: QuantPolicy, options: ExportOptions, batches: CalibrationBatches
    ) -> Quantizer:
        from mf_deploy.export.onnx_quantize import OnnxQuantizer

        model = self._simplified(graph, policy.scheme, options)
        quantizer = OnnxQuantizer(graph, model, self.written(graph, options), policy.ranges)
        if policy.needs_ranges:
            quantizer.calibrate(batches, options)
        return quantizer

    def count(self, model_path: Path) -> Quantization:
        import onnx

        return count_precision(onnx.load(str(model_path)))

    def _simplified(self, graph: DeployGraph, scheme: str, options: ExportOptions) -> "ModelProto":
        import onnx
        import onnxsim

        module, example = copy.deepcopy(graph.module), graph.example()
        if scheme != "fp32":
            unscale(module)
            unpad(module)
            unrow(module)
        if scheme == "fp16":
            module = HalfPrecision(module)
        if options.input == "uint8":
            module = PictureInput(module, graph.record.preprocessing)
            example = example_pictures(graph)
        try:
            with quiet():
                program = torch.onnx.export(
                    module.eval(),
                    (example,),
                    dynamo=True,
                    opset_version=OPSET,
                    input_names=[INPUT_NAME],
                    output_names=[OUTPUT_NAME],
                    external_data=False,
                    verbose=False,
                )
                assert program is not None
                model = onnx.shape_inference.infer_shapes(program.model_proto)
                simplified, _ = onnxsim.simplify(model)
        except Exception as error:  # torch.export and the ONNX tools raise types of many libraries
            raise MfDeployError(
                f"Cannot convert {graph.record.source.name} to ONNX",
                _first_words(error),
                "Check that the model works with torch.export, or try --graph reference.",
            ) from error
        check_same(model, simplified, example.numpy())
        return onnx.shape_inference.infer_shapes(simplified)

    def written(self, graph: DeployGraph, options: ExportOptions) -> WrittenModel:
        side = graph.record.preprocessing.input_size
        if options.input == "uint8":
            shape: tuple[int, ...] = (graph.batch, side, side, 3)
            taken = TensorInfo(name=INPUT_NAME, shape=shape, layout="NHWC", dtype="uint8", range=(0, 255))
        else:
            shape = (graph.batch, 3, side, side)
            taken = TensorInfo(name=INPUT_NAME, shape=shape, layout="NCHW", dtype="float32")
        logits = TensorInfo(
            name=OUTPUT_NAME,
            shape=(graph.batch, graph.record.source.num_classes),
            layout="NC",
            dtype="float32",
        )
        tools = {name: version(name) for name in self.modules}
        return WrittenModel(MODEL_FILE, taken, [logits], tools)


def _first_words(error: BaseException) -> str:
    """What went wrong at the bottom of ``error``, in one line: the tools wrap it in pages of advice."""
    while error.__cause__ is not None:
        error = error.__cause__
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def example_pictures(graph: DeployGraph) -> torch.Tensor:
    """Seeded (batch, H, W, 3) uint8 pictures."""
    side = graph.record.preprocessing.input_size
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (graph.batch, side, side, 3), generator=generator, dtype=torch.uint8)


def check_same(before: "ModelProto", after: "ModelProto", example: np.ndarray) -> None:
    """Run both models on ``example``; the simplifier must not have changed the outputs."""
    import onnxruntime

    outputs = []
    for model in (before, after):
        session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        outputs.append(session.run(None, {INPUT_NAME: example})[0].astype(np.float64))
    error, spread = np.abs(outputs[0] - outputs[1]).max(), np.ptp(outputs[0])
    if not error <= SIMPLIFY_TOLERANCE * max(spread, 1e-6):
        raise MfDeployError(
            "Simplifying the ONNX graph changed its outputs",
            f"by {error:.2e} at a range of {spread:.2e}",
            "Try another onnxsim version.",
            GATE_FAILED,
        )
