"""What a TFLite file holds: multiply-adds and stored parameters by precision, read from the flatbuffer."""

import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mf_deploy.artifact import Quantization
from mf_deploy.errors import MfDeployError, require


@dataclass(frozen=True)
class Tensor:
    """One tensor of the graph; ``dtype`` is the schema's name in lower case, e.g. ``float32``."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    buffer: int
    constant: bool
    quantized: bool


@dataclass(frozen=True)
class Operator:
    """One operator in execution order; ``kind`` is the schema's name, e.g. ``CONV_2D``."""

    kind: str
    inputs: tuple[Tensor, ...]
    output: Tensor
    options: Any


def read_operators(model_path: Path) -> list[Operator]:
    """The operators of the main subgraph.

    Raises:
        MfDeployError: the file is missing, truncated or no TFLite model.
    """
    require("ai_edge_litert", "tflite")
    from ai_edge_litert.tools import flatbuffer_utils

    try:
        data = model_path.read_bytes()
        if data[4:8] != b"TFL3":
            raise ValueError("not a TFLite flatbuffer")
        return list(_operators(flatbuffer_utils.read_model_from_bytearray(data)))
    except OSError as error:
        why = error.strerror or str(error)
    except Exception as error:  # a damaged flatbuffer fails in as many ways as it has fields
        why = str(error) or type(error).__name__
    raise MfDeployError(f"Cannot read {model_path}", why, "Export it again with mf-export --force.")


def module_path(tensor: str) -> str:
    """``classifier.fc.1`` of ``pkg.Net_network/pkg.Head_classifier/torch.Sequential_fc/torch.Linear_1;``.

    litert-torch names a tensor after the modules that made it: class and attribute, from the outside in.
    """
    name = tensor.partition(";")[0]
    if "/" not in name:
        return name
    parts = [part for part in name.split("/") if part]
    names = [part.rpartition(".")[2].partition("_")[2] if "." in part else part for part in parts]
    while names and names[0] in ("", "network"):  # the wrappers that the export puts around a model
        names.pop(0)
    return ".".join(name for name in names if name)


def count(model_path: Path) -> Quantization:
    """MACs and stored parameters by precision.

    A multiply-add is ``int8`` where activations and weights both are, also where the activations are
    quantized as they come (float tensors, int8 weights, no DEQUANTIZE between). Weights that are
    stored in fewer bits and dequantized before a float operator are parameters of their stored type.
    """
    operators = read_operators(model_path)
    macs: Counter[str] = Counter()
    parameters: dict[int, tuple[str, int]] = {}
    for operator in operators:
        if operator.kind in MACS_OF:
            macs[_precision(operator)] += MACS_OF[operator.kind](operator)
        for tensor in operator.inputs:
            if tensor.constant and _is_parameter(tensor):
                name = PRECISION_OF.get(tensor.dtype, tensor.dtype)
                parameters[tensor.buffer] = (name, math.prod(tensor.shape))
    stored: Counter[str] = Counter()
    for name, elements in parameters.values():
        stored[name] += elements
    return Quantization(macs=dict(macs), parameters=dict(stored))


PRECISION_OF = {"float32": "fp32", "float16": "fp16", "uint8": "int8", "int16": "int16"}


def _is_parameter(tensor: Tensor) -> bool:
    """Shapes, axes and paddings are integers without a scale; everything else is learned."""
    return tensor.dtype in ("float32", "float16") or tensor.quantized


def _precision(operator: Operator) -> str:
    activation, weight = (PRECISION_OF.get(tensor.dtype, tensor.dtype) for tensor in operator.inputs[:2])
    if activation == "int16":
        return f"int16x{weight.removeprefix('int')}"
    return weight if weight == "int8" else activation


def _conv_macs(operator: Operator) -> int:
    """Weights (out, kh, kw, in per group)."""
    return math.prod(operator.output.shape) * math.prod(operator.inputs[1].shape[1:])


def _depthwise_macs(operator: Operator) -> int:
    """Weights (1, kh, kw, out)."""
    return math.prod(operator.output.shape) * math.prod(operator.inputs[1].shape[1:3])


def _linear_macs(operator: Operator) -> int:
    """Weights (out, in)."""
    return math.prod(operator.output.shape) * operator.inputs[1].shape[-1]


def _matmul_macs(operator: Operator) -> int:
    depth = operator.inputs[0].shape[-2 if operator.options.adjX else -1]
    return math.prod(operator.output.shape) * depth


MACS_OF: dict[str, Callable[[Operator], int]] = {
    "CONV_2D": _conv_macs,
    "DEPTHWISE_CONV_2D": _depthwise_macs,
    "FULLY_CONNECTED": _linear_macs,
    "BATCH_MATMUL": _matmul_macs,
}


def _operators(model: Any) -> Iterator[Operator]:
    from ai_edge_litert import schema_py_generated as schema

    kinds = {code: name for name, code in vars(schema.BuiltinOperator).items() if isinstance(code, int)}
    dtypes = {code: name.lower() for name, code in vars(schema.TensorType).items() if isinstance(code, int)}
    codes = [max(code.builtinCode, code.deprecatedBuiltinCode) for code in model.operatorCodes]
    subgraph = model.subgraphs[0]

    def tensor(index: int) -> Tensor:
        raw = subgraph.tensors[index]
        data = model.buffers[raw.buffer].data
        scale = raw.quantization.scale if raw.quantization is not None else None
        return Tensor(
            name=raw.name.decode(),
            shape=tuple(int(size) for size in (raw.shape if raw.shape is not None else ())),
            dtype=dtypes[raw.type],
            buffer=raw.buffer,
            constant=data is not None and len(data) > 0,
            quantized=scale is not None and len(scale) > 0,
        )

    for raw in subgraph.operators:
        yield Operator(
            kind=kinds[codes[raw.opcodeIndex]],
            inputs=tuple(tensor(index) for index in raw.inputs if index >= 0),
            output=tensor(raw.outputs[0]),
            options=raw.builtinOptions,
        )
