"""Elementwise operations: arithmetic, activations, comparisons, casts, quantize and dequantize."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from mf_deploy.mil.program import parameter, unsupported
from mf_deploy.mil.rules import Kernel, register_function, rule

if TYPE_CHECKING:
    from coremltools.converters.mil.mil import Operation

_UNARY: dict[str, Kernel] = {
    "abs": torch.abs,
    "ceil": torch.ceil,
    "cos": torch.cos,
    "erf": torch.erf,
    "exp": torch.exp,
    "exp2": torch.exp2,
    "floor": torch.floor,
    "logical_not": torch.logical_not,
    "round": torch.round,
    "sign": torch.sign,
    "silu": F.silu,
    "sin": torch.sin,
    "sigmoid": torch.sigmoid,
    "softplus": F.softplus,
    "softsign": F.softsign,
    "sqrt": torch.sqrt,
    "square": torch.square,
    "tanh": torch.tanh,
}
_BINARY: dict[str, Kernel] = {
    "add": torch.add,
    "equal": torch.eq,
    "floor_div": torch.floor_divide,
    "greater": torch.gt,
    "greater_equal": torch.ge,
    "less": torch.lt,
    "less_equal": torch.le,
    "logical_and": torch.logical_and,
    "logical_or": torch.logical_or,
    "logical_xor": torch.logical_xor,
    "maximum": torch.maximum,
    "minimum": torch.minimum,
    "mod": torch.remainder,
    "mul": torch.mul,
    "not_equal": torch.ne,
    "pow": torch.pow,
    "real_div": torch.true_divide,
    "sub": torch.sub,
}
for _kind, _function in _UNARY.items():
    register_function(_kind, _function)
for _kind, _function in _BINARY.items():
    register_function(_kind, _function, "x", "y")
register_function("relu", torch.relu, moves_only=True)
register_function("relu6", F.relu6, moves_only=True)
register_function("select", torch.where, "cond", "a", "b")


@rule("clip")
def _clip(operation: "Operation") -> Kernel:
    low, high = parameter(operation, "alpha"), parameter(operation, "beta")
    return lambda x: torch.clamp(x, low, high)


@rule("gelu")
def _gelu(operation: "Operation") -> Kernel:
    mode = parameter(operation, "mode")
    if mode == "SIGMOID_APPROXIMATION":
        return lambda x: x * torch.sigmoid(1.702 * x)
    approximate = "none" if mode == "EXACT" else "tanh"
    return lambda x: F.gelu(x, approximate=approximate)


@rule("sigmoid_hard")
def _sigmoid_hard(operation: "Operation") -> Kernel:
    alpha, beta = parameter(operation, "alpha"), parameter(operation, "beta")
    return lambda x: torch.clamp(alpha * x + beta, 0, 1)


@rule("linear_activation")
def _linear_activation(operation: "Operation") -> Kernel:
    alpha, beta = parameter(operation, "alpha"), parameter(operation, "beta")
    return lambda x: alpha * x + beta


@rule("scaled_tanh")
def _scaled_tanh(operation: "Operation") -> Kernel:
    alpha, beta = parameter(operation, "alpha"), parameter(operation, "beta")
    return lambda x: alpha * torch.tanh(beta * x)


@rule("clamped_relu")
def _clamped_relu(operation: "Operation") -> Kernel:
    alpha, beta = parameter(operation, "alpha"), parameter(operation, "beta")
    return lambda x: torch.clamp(torch.where(x >= 0, x, alpha * x), max=beta)


@rule("threshold")
def _threshold(operation: "Operation") -> Kernel:
    alpha = parameter(operation, "alpha")
    return lambda x: torch.clamp(x, min=alpha)


@rule("thresholded_relu")
def _thresholded_relu(operation: "Operation") -> Kernel:
    alpha = parameter(operation, "alpha")
    return lambda x: torch.where(x >= alpha, x, 0)


@rule("leaky_relu")
def _leaky_relu(operation: "Operation") -> Kernel:
    slope = parameter(operation, "alpha")
    return lambda x: F.leaky_relu(x, slope)


@rule("elu")
def _elu(operation: "Operation") -> Kernel:
    alpha = parameter(operation, "alpha")
    return lambda x: F.elu(x, alpha)


register_function("prelu", F.prelu, "x", "alpha")


@rule("softmax")
def _softmax(operation: "Operation") -> Kernel:
    axis = parameter(operation, "axis")
    return lambda x: torch.softmax(x, axis)


@rule("rsqrt", "inverse", "log")
def _guarded(operation: "Operation") -> Kernel:
    """These add a small ``epsilon`` to their input."""
    function: Kernel = {"rsqrt": torch.rsqrt, "inverse": torch.reciprocal, "log": torch.log}[
        operation.op_type
    ]
    epsilon = parameter(operation, "epsilon")
    return lambda x: function(x + epsilon)


@rule("cast")
def _cast(operation: "Operation") -> Kernel:
    """To fp16 the interpreter rounds, as after every operation that has an fp16 result."""
    kind = parameter(operation, "dtype")
    if kind in ("fp16", "fp32"):
        return lambda x: x.to(torch.float32)
    if kind == "bool":
        return lambda x: x.to(torch.bool)
    if kind.startswith(("int", "uint")):
        return lambda x: x.to(torch.int64)
    raise unsupported(operation, f"casting to {kind} is not supported")


def _along_axis(operation: "Operation", name: str) -> Tensor:
    """``scale`` or ``zero_point``, shaped to broadcast along the operation's ``axis``."""
    value = torch.as_tensor(parameter(operation, name), dtype=torch.float32)
    if value.ndim == 0:
        return value
    shape = [1] * operation.inputs["input"].rank
    shape[parameter(operation, "axis")] = -1
    return value.reshape(shape)


@rule("quantize", tensors=("input",), moves_only=True)
def _quantize(operation: "Operation") -> Kernel:
    """clip(round(x / scale) + zero_point); the integers are kept in a float tensor, exactly."""
    scale = _along_axis(operation, "scale")
    low, high = {"int8": (-128.0, 127.0), "uint8": (0.0, 255.0)}[parameter(operation, "output_dtype")]
    if operation.inputs.get("zero_point") is None:
        return lambda x: (x / scale).round_().clamp_(low, high)
    zero_point = _along_axis(operation, "zero_point")
    return lambda x: (x / scale).round_().add_(zero_point).clamp_(low, high)


@rule("dequantize", tensors=("input",))
def _dequantize(operation: "Operation") -> Kernel:
    scale = _along_axis(operation, "scale")
    if operation.inputs.get("zero_point") is None:
        return lambda q: q * scale
    zero_point = _along_axis(operation, "zero_point")
    return lambda q: (q - zero_point).mul_(scale)
