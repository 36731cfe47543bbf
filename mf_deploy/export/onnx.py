"""ONNX, for onnxruntime on Android, iOS, servers and NPUs."""

import copy
import tempfile
from dataclasses import dataclass
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
from mf_deploy.export.module_paths import weighted_modules
from mf_deploy.export.onnx_file import count_precision, quantize_weights
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
from mf_deploy.quantization import QuantPlan, QuantPolicy

if TYPE_CHECKING:
    from onnx import ModelProto
    from onnxruntime.quantization.calibrate import TensorsData

MODEL_FILE = "model.onnx"
OPSET = 20  # the first one with Gelu
QUANTIZED_OPS = ["Conv"]
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
        model = self._simplified(graph, policy.scheme, options)
        ranges = activation_ranges(model, graph, options, batches) if policy.needs_ranges else None
        return OnnxQuantizer(self, graph, options, model, ranges)

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


@dataclass(frozen=True)
class OnnxQuantizer(Quantizer):
    """QDQ by onnxruntime: U8 activations and S8 per-channel weights, which x86 and ARM both run."""

    exporter: OnnxExporter
    graph: DeployGraph
    options: ExportOptions
    model: "ModelProto"
    ranges: "TensorsData | None"

    @property
    def modules(self) -> list[str]:
        return weighted_modules(self.graph.module)

    def write(self, plan: QuantPlan, folder: Path) -> WrittenModel:
        import onnx

        model = copy.deepcopy(self.model)
        if self.ranges is None:
            onnx.save(quantize_weights(model), str(folder / MODEL_FILE))
        else:
            self._write_static(model, folder / MODEL_FILE)
        onnx.checker.check_model(str(folder / MODEL_FILE))
        return self.exporter.written(self.graph, self.options)

    def _write_static(self, model: "ModelProto", path: Path) -> None:
        from onnxruntime.quantization import QuantType
        from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

        with quiet():
            quantizer = QDQQuantizer(
                model,
                per_channel=True,
                reduce_range=False,
                weight_qType=QuantType.QInt8,
                activation_qType=QuantType.QUInt8,
                tensors_range=self.ranges,
                nodes_to_quantize=[],
                nodes_to_exclude=[],
                op_types_to_quantize=QUANTIZED_OPS,
                extra_options={},
            )
            quantizer.quantize_model()
            quantizer.model.save_model_to_file(str(path))


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


def activation_ranges(
    model: "ModelProto", graph: DeployGraph, options: ExportOptions, batches: CalibrationBatches
) -> "TensorsData":
    """Running minima and maxima of the tensors to quantize, one batch in memory at a time."""
    import onnx
    from onnxruntime.quantization import CalibrationDataReader
    from onnxruntime.quantization.calibrate import create_calibrator

    class OneBatch(CalibrationDataReader):
        def __init__(self, pictures: np.ndarray) -> None:
            taken = pictures if options.input == "uint8" else graph.record.preprocessing.normalize(pictures)
            self.inputs: dict[str, np.ndarray] | None = {INPUT_NAME: taken}

        def get_next(self) -> dict[str, np.ndarray] | None:
            inputs, self.inputs = self.inputs, None
            return inputs

    with tempfile.TemporaryDirectory() as scratch, quiet():
        base, augmented = Path(scratch) / "float.onnx", Path(scratch) / "augmented.onnx"
        onnx.save(model, str(base))
        calibrator = create_calibrator(base, QUANTIZED_OPS, augmented_model_path=str(augmented))
        for pictures in batches():
            calibrator.collect_data(OneBatch(pictures))
        return calibrator.compute_data()
