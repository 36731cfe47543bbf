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
SIGN_BIT = 128
SIMPLIFY_TOLERANCE = 1e-3  # room for float16; a wrong graph is off by orders of magnitude more


class OnnxExporter(TargetExporter):
    """torch.onnx.export (dynamo), checked, simplified, and checked again."""

    name = "onnx"
    modules = ("onnx", "onnxruntime", "onnxscript", "onnxsim")
    quantized_schemes = ("w8a8", "w8a16", "w8", "mixed", "fp16")

    def write(self, graph: DeployGraph, scheme: str, options: ExportOptions, folder: Path) -> WrittenModel:
        import onnx

        if options.output != "float":
            raise MfDeployError(
                f"Cannot give {options.output} logits in {scheme}",
                "their scale comes from calibration",
                "Quantize with --scheme w8a8 or mixed, or keep float outputs.",
            )
        model = self._simplified(graph, scheme, options)
        model.producer_name, model.doc_string = "mf-deploy", graph.record.source.name
        onnx.checker.check_model(model, full_check=True)
        onnx.save(model, str(folder / MODEL_FILE))
        return self._written(graph, options)

    def quantizer(
        self, graph: DeployGraph, policy: QuantPolicy, options: ExportOptions, batches: CalibrationBatches
    ) -> Quantizer:
        from mf_deploy.export.onnx_quantize import OnnxQuantizer

        model = self._simplified(graph, policy.scheme, options)
        sixteen = "w8a16" in policy.plan_for(graph.record.source.name).modules.values()
        quantizer = OnnxQuantizer(
            graph, model, self._written(graph, options), options, policy.ranges, sixteen
        )
        if policy.needs_ranges or options.output != "float":
            quantizer.calibrate(batches)
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
        if options.input != "float":
            shift = SIGN_BIT if options.input == "int8" else 0
            module = PictureInput(module, graph.record.preprocessing, shift)
            example = torch.from_numpy(model_input(example_pictures(graph), graph, options))
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

    def _written(self, graph: DeployGraph, options: ExportOptions) -> WrittenModel:
        side = graph.record.preprocessing.input_size
        if options.input != "float":
            shape: tuple[int, ...] = (graph.batch, side, side, 3)
            limits = (0, 255) if options.input == "uint8" else (-SIGN_BIT, SIGN_BIT - 1)
            taken = TensorInfo(name=INPUT_NAME, shape=shape, layout="NHWC", dtype=options.input, range=limits)
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


def example_pictures(graph: DeployGraph) -> np.ndarray:
    """Seeded (batch, H, W, 3) uint8 pictures."""
    side = graph.record.preprocessing.input_size
    return np.random.default_rng(0).integers(0, 256, (graph.batch, side, side, 3), np.uint8)


def model_input(pictures: np.ndarray, graph: DeployGraph, options: ExportOptions) -> np.ndarray:
    """(N, H, W, 3) uint8 pictures as the model takes them."""
    if options.input == "float":
        return graph.record.preprocessing.normalize(pictures)
    return pictures if options.input == "uint8" else (pictures ^ SIGN_BIT).view(np.int8)


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
