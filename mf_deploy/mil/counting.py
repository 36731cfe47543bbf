"""What a Core ML package holds: multiply-adds and stored weights by precision."""

from collections import Counter
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mf_deploy.artifact import Quantization
from mf_deploy.mil.program import load_package, parameter

if TYPE_CHECKING:
    from coremltools.converters.mil.mil import Operation, Var

_OPERANDS = {
    "conv": ("x", "weight"),
    "conv_transpose": ("x", "weight"),
    "linear": ("x", "weight"),
    "matmul": ("x", "y"),
}
_PAYLOADS = ("quantized_data", "data", "indices", "nonzero_data", "source_val")
"""What a ``constexpr_`` operation expands; its scales and tables are not weights."""


def count_package(package: Path) -> Quantization:
    """Count ``package``.

    A multiply-add is ``int8`` where both operands are stored or quantized to 8 bits right before the
    operation; otherwise it has the precision of the activations, ``fp16`` or ``fp32``. A parameter is an
    element of a stored constant tensor of rank 1 or more, in the precision that the file stores.
    """
    macs: Counter[str] = Counter()
    parameters: Counter[str] = Counter()
    for operation in load_package(package).operations:
        multiplications = _macs(operation)
        if multiplications:
            macs[_precision(operation)] += multiplications
        for variable in _stored(operation):
            parameters[_dtype(variable)] += prod(variable.shape)
    return Quantization(macs=dict(macs), parameters=dict(parameters))


def _macs(operation: "Operation") -> int:
    kind = operation.op_type
    if kind == "einsum":
        return _einsum_macs(operation)
    if kind not in _OPERANDS:
        return 0
    x, other = (operation.inputs[name] for name in _OPERANDS[kind])
    if kind == "conv":
        return prod(operation.outputs[0].shape) * prod(other.shape[1:])
    if kind == "conv_transpose":
        return prod(x.shape) * prod(other.shape[1:])
    inner = x.shape[-2] if kind == "matmul" and parameter(operation, "transpose_x") else x.shape[-1]
    return prod(operation.outputs[0].shape) * int(inner)


def _einsum_macs(operation: "Operation") -> int:
    """The product of the sizes of all indices."""
    sizes: dict[str, int] = {}
    left = str(parameter(operation, "equation")).split("->")[0].replace(" ", "")
    for labels, variable in zip(left.split(","), operation.inputs["values"], strict=True):
        sizes.update(zip(labels, variable.shape, strict=True))
    return prod(sizes.values())


def _precision(operation: "Operation") -> str:
    names = _OPERANDS.get(operation.op_type)
    operands: list[Any] = [operation.inputs[name] for name in names] if names else operation.inputs["values"]
    return "int8" if all(_is_int8(variable) for variable in operands) else _dtype(operands[0])


def _is_int8(variable: "Var") -> bool:
    producer = variable.op
    if producer is None:
        return False
    if producer.op_type == "dequantize":
        return _dtype(producer.inputs["input"]) in ("int8", "uint8")
    payload = producer.inputs.get("quantized_data") or producer.inputs.get("data")
    return (
        producer.op_type.startswith("constexpr_")
        and payload is not None
        and _dtype(payload) in ("int8", "uint8")
    )


def _stored(operation: "Operation") -> list["Var"]:
    """The weights that ``operation`` stores: a constant that is used as it is, or a compressed one."""
    from coremltools.converters.mil.mil import types

    if operation.op_type.startswith("constexpr_"):
        payloads = [operation.inputs.get(name) for name in _PAYLOADS]
        return [variable for variable in payloads if variable is not None and variable.op.op_type == "const"]
    variable = operation.outputs[0]
    if operation.op_type != "const" or not types.is_tensor(variable.sym_type):
        return []
    if not _dtype(variable).startswith("fp"):
        return []
    feeds_compressed = all(child.op_type.startswith("constexpr_") for child in variable.child_ops)
    return [] if feeds_compressed and variable.child_ops else [variable]


def _dtype(variable: "Var") -> str:
    from coremltools.converters.mil.mil import types

    name = types.builtin_to_string(variable.dtype)
    return "int8" if name == "uint8" else name
