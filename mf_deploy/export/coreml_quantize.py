"""int8 for Core ML: coremltools' passes, with activation ranges measured by the MIL interpreter.

coremltools' own ``linear_quantize_activations`` needs Apple's runtime, holds all samples in memory, and its
recorder overwrites minimum and maximum with those of the last sample (version 9.0). Here the ranges are
accumulated over all batches, one batch in memory at a time, and handed to the passes that it consists of.
"""

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from mf_deploy.errors import MfDeployError
from mf_deploy.export.target import INPUT_NAME, CalibrationBatches, ExportOptions
from mf_deploy.mil import Interpreter, MilProgram, quiet_coremltools
from mf_deploy.preprocessing import Preprocessing

if TYPE_CHECKING:
    import coremltools as ct

QUANTIZED_OPERATIONS = ("conv", "linear", "add", "avg_pool", "max_pool")
FUSED_ACTIVATIONS = ("relu", "relu6", "clip", "leaky_relu", "tanh", "scaled_tanh", "sigmoid", "sigmoid_hard")
"""What coremltools' passes may quantize, and the activations that are quantized together with it.

coremltools leaves out ``clip``, which is what a ReLU6 becomes, and misspells ``sigmoid_hard``: it would spend
most of the 8 bits on values that the clip then cuts off.
"""

WEIGHTED_OPERATIONS = ("conv", "conv_transpose", "linear", "matmul", "einsum")

PREFIX_PASS = "compression::insert_prefix_quantize_dequantize_pair"
SUFFIX_PASS = "compression::insert_suffix_quantize_dequantize_pair"
MERGE_PASS = "common::dequantize_quantize_pair_elimination"
WEIGHT_PASS = "compression::linear_quantize_weights"

ACTIVATION_MODE = "linear"  # with a zero point: 2.5 dB better than symmetric after ReLUs (52M, 96 px)

SMALLEST_SPREAD = 2.0**-10
"""A narrower range would give a scale of zero in float16."""

FLOAT16_MAX = 65504.0

Ranges = dict[str, dict[str, float]]
"""Smallest and largest value (``rmin``, ``rmax``) of tensors by name, as coremltools' passes take them."""


def quantize_model(model: "ct.models.MLModel", ranges: Ranges | None) -> "ct.models.MLModel":
    """int8 weights, symmetric, one scale per output channel, for every convolution and matrix product.

    Args:
        ranges: what ``measure_ranges`` gives, for int8 activations as well, around every convolution,
            linear layer and addition; the model then needs a target of iOS 17 or newer.
    """
    with quiet_coremltools():
        from coremltools.models.utils import _apply_graph_pass
        from coremltools.optimize import coreml as cto

        passes = []
        if ranges is not None:
            activations = cto.OpLinearQuantizerConfig(mode=ACTIVATION_MODE, dtype="int8")
            settings = {
                "config": cto.OptimizationConfig(global_config=activations),
                "activation_stats": ranges,
            }
            passes = [
                _graph_pass(PREFIX_PASS, **settings),
                _graph_pass(SUFFIX_PASS, **settings, _allowed_activations=set(FUSED_ACTIVATIONS)),
                _graph_pass(MERGE_PASS),
            ]
        weights = cto.OpLinearQuantizerConfig(mode="linear_symmetric", dtype="int8", weight_threshold=0)
        config = cto.OptimizationConfig(op_type_configs=dict.fromkeys(WEIGHTED_OPERATIONS, weights))
        passes.append(_graph_pass(WEIGHT_PASS, config=config))
        return _apply_graph_pass(model, passes)


def _graph_pass(name: str, **settings: Any) -> Any:
    """A new object of a registered pass: the registry's own would keep our settings for other users."""
    from coremltools.converters.mil.mil.passes.pass_registry import PASS_REGISTRY

    graph_pass = type(PASS_REGISTRY[name])()
    for setting, value in settings.items():
        setattr(graph_pass, setting, value)
    return graph_pass


def measure_ranges(
    program: MilProgram, batches: CalibrationBatches, options: ExportOptions, preprocessing: Preprocessing
) -> Ranges:
    """Smallest and largest value, over all calibration pictures, of the tensors that will be quantized.

    Raises:
        MfDeployError: no calibration pictures, or an activation that overflows float16.
    """
    interpreter = Interpreter(program)
    recorder = RangeRecorder(_quantized_tensors(program))
    pictures: np.ndarray | None = None
    for pictures in batches():
        if options.input == "uint8":
            images = pictures.transpose(0, 3, 1, 2)
        else:
            images = preprocessing.normalize(pictures)
        recorder(INPUT_NAME, torch.from_numpy(np.ascontiguousarray(images)))
        interpreter.run({INPUT_NAME: images}, recorder)
    if pictures is None:
        raise MfDeployError(
            "Cannot calibrate", "there are no pictures", "Give --calibration a folder of images."
        )
    return {name: _usable(name, bounds) for name, bounds in recorder.ranges.items()}


class RangeRecorder:
    """Running minimum and maximum of the tensors ``names``."""

    def __init__(self, names: set[str]) -> None:
        self.names = names
        self.ranges: Ranges = {}

    def __call__(self, name: str, value: torch.Tensor) -> None:
        if name not in self.names:
            return
        low, high = (bound.item() for bound in torch.aminmax(value))
        seen = self.ranges.setdefault(name, {"rmin": low, "rmax": high})
        seen["rmin"], seen["rmax"] = min(low, seen["rmin"]), max(high, seen["rmax"])


def _quantized_tensors(program: MilProgram) -> set[str]:
    names = {INPUT_NAME}
    for operation in program.operations:
        if operation.op_type in QUANTIZED_OPERATIONS:
            operands = [operation.inputs["x"], operation.inputs.get("y")]
            names |= {variable.name for variable in operands if variable is not None}
        if operation.op_type in QUANTIZED_OPERATIONS + FUSED_ACTIVATIONS:
            names.add(operation.outputs[0].name)
    return names


def _usable(name: str, bounds: dict[str, float]) -> dict[str, float]:
    low, high = bounds["rmin"], bounds["rmax"]
    if not high - low <= FLOAT16_MAX:
        raise MfDeployError(
            "Cannot calibrate",
            f"the activation {name} reaches {low} to {high} in float16",
            "Use --scheme w8, or rescale the model.",
        )
    return {"rmin": low, "rmax": max(high, low + SMALLEST_SPREAD)}
