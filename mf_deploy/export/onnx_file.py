"""Reading and rewriting ONNX files: what they compute at which precision, and int8 weights."""

import math
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from mf_deploy.artifact import Quantization

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

WEIGHT_OPS = {"Conv": 1, "Gemm": 1, "MatMul": 1}
INTEGER_OPS = {"QLinearConv": 3, "MatMulIntegerToFloat": 1}
PARAMETER_INPUTS = {
    "QuantizeLinear": (1, 2),
    "DequantizeLinear": (1, 2),
    "QLinearConv": (1, 2, 4, 5, 6, 7),
    "QLinearMul": (1, 2, 4, 5, 6, 7),
    "MatMulIntegerToFloat": (2, 3, 4, 5),
}
"""Inputs that hold scales and zero points. The scales of a weight may be a product with an image's gains."""

MIN_QUANTIZED_ELEMENTS = 64


def count_precision(model: "ModelProto") -> Quantization:
    """Multiply-adds and stored weights of ``model`` by precision.

    A multiply-add is int8 where both factors come out of a DequantizeLinear, which is what an engine
    fuses into an integer kernel; weights alone in int8 leave the arithmetic in float.
    """
    import onnx

    model = onnx.shape_inference.infer_shapes(model)
    graph = model.graph
    shapes = {
        value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (*graph.input, *graph.output, *graph.value_info)
    }
    types = {
        value.name: value.type.tensor_type.elem_type
        for value in (*graph.input, *graph.output, *graph.value_info)
    }
    constants = {tensor.name: tensor for tensor in graph.initializer}
    shapes |= {name: list(tensor.dims) for name, tensor in constants.items()}
    types |= {name: tensor.data_type for name, tensor in constants.items()}
    dequantized = {n.output[0]: n for n in graph.node if n.op_type == "DequantizeLinear"}
    macs: Counter[str] = Counter()
    for node in graph.node:
        if node.op_type in WEIGHT_OPS:
            macs[_precision(node, dequantized, constants, types)] += _macs(node, shapes)
        elif node.op_type in INTEGER_OPS:
            macs["int8"] += _integer_macs(node, shapes)
    return Quantization(macs=dict(macs), parameters=_stored(model))


def _precision(node: "NodeProto", dequantized: dict, constants: dict, types: dict[str, int]) -> str:
    import onnx

    sources = [dequantized.get(name) for name in node.input[:2]]
    if all(sources) and any(source.input[0] not in constants for source in sources if source):
        wide = any(types.get(source.input[0]) == onnx.TensorProto.UINT16 for source in sources if source)
        return "w8a16" if wide else "int8"
    half = types.get(node.output[0]) == onnx.TensorProto.FLOAT16
    return "fp16" if half else "fp32"


def _macs(node: "NodeProto", shapes: dict[str, list[int]]) -> int:
    out = math.prod(shapes[node.output[0]])
    if node.op_type == "Conv":
        return out * math.prod(shapes[node.input[1]][1:])
    transposed = any(attribute.name == "transA" and attribute.i for attribute in node.attribute)
    return out * shapes[node.input[0]][-2 if transposed else -1]


def _integer_macs(node: "NodeProto", shapes: dict[str, list[int]]) -> int:
    out, weight = math.prod(shapes[node.output[0]]), shapes[node.input[INTEGER_OPS[node.op_type]]]
    return out * (math.prod(weight[1:]) if node.op_type == "QLinearConv" else weight[0])


def _stored(model: "ModelProto") -> dict[str, int]:
    """Weights by precision; scales, zero points and integer shape operands are not weights."""
    import onnx

    names = {
        onnx.TensorProto.FLOAT: "fp32",
        onnx.TensorProto.FLOAT16: "fp16",
        onnx.TensorProto.INT8: "int8",
        onnx.TensorProto.UINT8: "int8",
        onnx.TensorProto.INT32: "int32",
    }
    helpers = {
        name
        for node in model.graph.node
        for index in PARAMETER_INPUTS.get(node.op_type, ())
        if index < len(node.input) and (name := node.input[index])
    }
    helpers |= {
        name
        for node in model.graph.node
        if node.op_type == "Mul" and node.output[0] in helpers
        for name in node.input
    }
    stored: Counter[str] = Counter()
    for tensor in model.graph.initializer:
        if tensor.name not in helpers and tensor.data_type in names:
            stored[names[tensor.data_type]] += math.prod(tensor.dims)
    return dict(stored)


def quantize_weights(
    model: "ModelProto", names: set[str] | None = None, least: Mapping[str, np.ndarray] | None = None
) -> "ModelProto":
    """Store weights of Conv, Gemm and MatMul as int8 per output channel, symmetric; in place.

    Each becomes an int8 constant behind a DequantizeLinear; the arithmetic stays in float.

    Args:
        names: which weights; None: all of them.
        least: weight → the smallest scales its channels may have.
    """
    from onnx import helper, numpy_helper

    graph = model.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    done: set[str] = set()
    inserted = []
    for node in graph.node:
        name = node.input[WEIGHT_OPS[node.op_type]] if node.op_type in WEIGHT_OPS else ""
        tensor = constants.get(name)
        if tensor is None or len(tensor.dims) < 2 or math.prod(tensor.dims) < MIN_QUANTIZED_ELEMENTS:
            continue
        if names is not None and name not in names:
            continue
        if name not in done:
            done.add(name)
            axis = _output_axis(node, len(tensor.dims))
            codes, scale = int8_codes(numpy_helper.to_array(tensor), axis, (least or {}).get(name))
            graph.initializer.remove(tensor)
            graph.initializer.extend(
                [
                    numpy_helper.from_array(codes, f"{name}_int8"),
                    numpy_helper.from_array(scale, f"{name}_scale"),
                ]
            )
            operands = [f"{name}_int8", f"{name}_scale"]
            inserted.append(helper.make_node("DequantizeLinear", operands, [name], axis=axis))
    for node in reversed(inserted):
        graph.node.insert(0, node)
    return model


def quantize_output(
    model: "ModelProto", name: str, low: float, high: float, dtype: np.dtype
) -> tuple[float, int]:
    """Make the output ``name`` integer codes over [low, high], in place; their scale and zero point."""
    from onnx import helper, numpy_helper

    graph, limits = model.graph, np.iinfo(dtype)
    scale = np.float32(max(high - low, 1e-9) / (int(limits.max) - int(limits.min)))
    zero = int(np.clip(limits.min + round(-low / float(scale)), limits.min, limits.max))
    real = f"{name}_real"
    for node in graph.node:
        for names in (node.input, node.output):
            for index, each in enumerate(names):
                if each == name:
                    names[index] = real
    constants = {f"{name}_code_scale": np.array(scale), f"{name}_code_zero": np.array(zero, dtype)}
    graph.initializer.extend(numpy_helper.from_array(value, key) for key, value in constants.items())
    graph.node.append(helper.make_node("QuantizeLinear", [real, *constants], [name]))
    output = next(value for value in graph.output if value.name == name)
    shape = [dim.dim_value for dim in output.type.tensor_type.shape.dim]
    graph.value_info.append(helper.make_tensor_value_info(real, output.type.tensor_type.elem_type, shape))
    output.type.tensor_type.elem_type = helper.np_dtype_to_tensor_dtype(dtype)
    return float(scale), zero


def drop_unused(model: "ModelProto") -> None:
    """Remove constants that no node reads, in place."""
    used = {name for node in model.graph.node for name in node.input}
    kept = [tensor for tensor in model.graph.initializer if tensor.name in used]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)


def _output_axis(node: "NodeProto", rank: int) -> int:
    """The axis of a weight that counts output channels."""
    if node.op_type == "Conv":
        return 0
    transposed = any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
    return 0 if transposed else rank - 1


def int8_codes(
    weight: np.ndarray, axis: int, least: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Symmetric int8 codes in [−127, 127] and the scales of slices along ``axis``, none below ``least``."""
    others = tuple(i for i in range(weight.ndim) if i != axis)
    peak = np.abs(weight).max(axis=others)
    scale = np.where(peak > 0, peak / 127, 1).astype(np.float32)
    if least is not None:
        scale = np.maximum(scale, least.astype(np.float32))
    steps = scale.reshape([-1 if i == axis else 1 for i in range(weight.ndim)])
    return np.rint(weight / steps).clip(-127, 127).astype(np.int8), scale


def least_scales(bias: np.ndarray, input_scale: float) -> np.ndarray:
    """The weight scales below which a bias would not fit int32 steps of input scale times weight scale.

    Channels without a weight to speak of may have a large bias. onnxruntime quantizes the biases of float
    files itself, and lets them overflow.
    """
    return np.abs(bias) / (input_scale * 2.0**30)
