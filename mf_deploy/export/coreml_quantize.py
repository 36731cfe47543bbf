"""int8 for Core ML: coremltools' passes, with activation ranges measured by the MIL interpreter.

coremltools' own ``linear_quantize_activations`` needs Apple's runtime, holds all samples in memory, and its
recorder overwrites minimum and maximum with those of the last sample (version 9.0). Here the ranges are
accumulated over all batches, one batch in memory at a time, and handed to the passes that it consists of.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from mf_deploy.errors import MfDeployError
from mf_deploy.export.ranges import Histogram, Range
from mf_deploy.export.target import INPUT_NAME, CalibrationBatches, ExportOptions
from mf_deploy.mil import Interpreter, MilProgram, quiet_coremltools
from mf_deploy.preprocessing import Preprocessing
from mf_deploy.quantization import QuantPlan, RangeMethod

if TYPE_CHECKING:
    import coremltools as ct

ACTIVATED_OPERATIONS = ("conv", "linear")
"""What gets int8 inputs. Their outputs, additions and pools stay in float16: quantizing those too costs
4 dB (52M, 96 px), and the product needs int8 operands only."""

BUFFER_PREFIX = "b_network_"
"""What torch.export puts before the name of a buffer; parameters have another."""

WEIGHTED_OPERATIONS = ("conv", "conv_transpose", "linear", "matmul", "einsum")

PREFIX_PASS = "compression::insert_prefix_quantize_dequantize_pair"
WEIGHT_PASS = "compression::linear_quantize_weights"

ACTIVATION_MODE = "linear"  # with a zero point: 2.5 dB better than symmetric after ReLUs (52M, 96 px)
RANGE_METHOD: RangeMethod = "mse"

SMALLEST_SPREAD = 2.0**-10
"""A narrower range would give a scale of zero in float16."""

FLOAT16_MAX = 65504.0


@dataclass(frozen=True)
class Layer:
    """An operation with weights: its name, the tensor it reads, its module in the reference model.

    ``weight``: the name of its input that holds them.
    """

    name: str
    kind: str
    input: str
    path: str
    weight: str


def layers_of(program: MilProgram, paths: Mapping[str, str]) -> list[Layer]:
    """The operations of ``program`` with constant weights, but for sums: weights that no one learned.

    Args:
        paths: module of the exported graph → module of the reference model. torch.export names a weight
            after the module that holds it; an operation whose weight has no such name has the empty path.
    """
    by_weight = {f"p_network_{path}_weight".replace(".", "_"): path for path in paths}
    found = []
    for operation in program.operations:
        place = "weight" if "weight" in operation.inputs else "y"
        weight = operation.inputs.get(place)
        if operation.op_type not in WEIGHTED_OPERATIONS or weight is None or weight.op is None:
            continue
        if weight.val is None and not weight.op.op_type.startswith("constexpr_"):
            continue
        if weight.name.startswith(BUFFER_PREFIX):
            continue
        path = paths.get(by_weight.get(weight.name.removesuffix("_to_fp16"), ""), "")
        found.append(Layer(operation.name, operation.op_type, operation.inputs["x"].name, path, place))
    return found


def quantize_model(
    model: "ct.models.MLModel", layers: Sequence[Layer], plan: QuantPlan, ranges: Mapping[str, Range]
) -> "ct.models.MLModel":
    """int8 weights, symmetric, one scale per output channel, for every layer that ``plan`` quantizes.

    Args:
        ranges: of the tensors that int8 layers read; the model then needs a target of iOS 17 or newer.
    """
    precisions = {layer.name: plan.precision(layer.path) for layer in layers}
    with quiet_coremltools():
        from coremltools.models.utils import _apply_graph_pass
        from coremltools.optimize import coreml as cto

        passes = []
        activations = cto.OpLinearQuantizerConfig(mode=ACTIVATION_MODE, dtype="int8")
        int8 = [x.name for x in layers if precisions[x.name] == "int8" and x.kind in ACTIVATED_OPERATIONS]
        if int8:
            stats = {name: {"rmin": low, "rmax": high} for name, (low, high) in ranges.items()}
            config = cto.OptimizationConfig(op_name_configs=dict.fromkeys(int8, activations))
            passes.append(_graph_pass(PREFIX_PASS, config=config, activation_stats=stats))
        weights = cto.OpLinearQuantizerConfig(mode="linear_symmetric", dtype="int8", weight_threshold=0)
        weighted = {x.name: x.weight for x in layers if precisions[x.name] in ("int8", "w8")}
        config = cto.OptimizationConfig(op_name_configs=dict.fromkeys(map(own_weight, weighted), weights))
        passes += [own_weights_pass(weighted), _graph_pass(WEIGHT_PASS, config=config)]
        return _apply_graph_pass(model, passes)


def own_weight(operation: str) -> str:
    """The name of the constant that holds the weights of ``operation`` alone."""
    return f"{operation}_own_weight"


def own_weights_pass(weighted: Mapping[str, str]) -> Any:
    """A pass that gives each operation of ``weighted`` (name → input) a constant of its own for its weights.

    A package holds equal constants once, whoever reads them, and coremltools refuses to quantize one that
    operations with other settings read as well: the zeros of a LayerNorm and of a convolution's bias, in
    half of the variants with random weights. So weights are chosen by constants that have one reader; those
    that stay equal are shared again when the package is written.
    """
    from coremltools.converters.mil.mil import Builder
    from coremltools.converters.mil.mil.passes.graph_pass import AbstractGraphPass
    from coremltools.converters.mil.mil.passes.helper import block_context_manager

    @block_context_manager
    def separate(block: Any) -> None:
        for operation in list(block.operations):
            if operation.name not in weighted:
                continue
            shared = operation.inputs[weighted[operation.name]]
            own = Builder.const(val=shared.val, before_op=operation, name=own_weight(operation.name))
            block.replace_uses_of_var_after_op(
                anchor_op=own.op, end_op=operation, old_var=shared, new_var=own
            )
            if not shared.child_ops and shared not in block.outputs:
                block.remove_ops([shared.op])

    class OwnWeights(AbstractGraphPass):  # type: ignore[misc]
        def apply(self, prog: Any) -> None:
            for function in prog.functions.values():
                separate(function)

    return OwnWeights()


def _graph_pass(name: str, **settings: Any) -> Any:
    """A new object of a registered pass: the registry's own would keep our settings for other users."""
    from coremltools.converters.mil.mil.passes.pass_registry import PASS_REGISTRY

    graph_pass = type(PASS_REGISTRY[name])()
    for setting, value in settings.items():
        setattr(graph_pass, setting, value)
    return graph_pass


def measure_ranges(
    program: MilProgram,
    layers: Sequence[Layer],
    batches: CalibrationBatches,
    options: ExportOptions,
    preprocessing: Preprocessing,
    method: RangeMethod,
) -> dict[str, Range]:
    """The range, over all calibration pictures, of each tensor that a layer reads.

    Raises:
        MfDeployError: no calibration pictures, or an activation that overflows float16.
    """
    interpreter = Interpreter(program)
    histograms = {layer.input: Histogram() for layer in layers if layer.kind in ACTIVATED_OPERATIONS}

    def watch(name: str, value: torch.Tensor) -> None:
        if name in histograms:
            if not torch.isfinite(value).all():
                raise _overflow(name)
            histograms[name].update(value.numpy())

    pictures: np.ndarray | None = None
    for pictures in batches():
        images = pictures.transpose(0, 3, 1, 2)
        if options.input == "float":
            images = preprocessing.normalize(pictures)
        watch(INPUT_NAME, torch.from_numpy(np.ascontiguousarray(images)))
        interpreter.run({INPUT_NAME: images}, watch)
    if pictures is None:
        raise MfDeployError(
            "Cannot calibrate", "there are no pictures", "Give --calibration a folder of images."
        )
    return {name: _usable(name, histogram.range(method)) for name, histogram in histograms.items()}


def _usable(name: str, bounds: Range) -> Range:
    low, high = bounds
    if not high - low <= FLOAT16_MAX:
        raise _overflow(name)
    return low, max(high, low + SMALLEST_SPREAD)


def _overflow(name: str) -> MfDeployError:
    return MfDeployError(
        "Cannot calibrate",
        f"the activation {name} overflows float16",
        "Use --scheme w8, or rescale the model.",
    )
