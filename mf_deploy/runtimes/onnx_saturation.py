"""Integer products that some x86 kernels get wrong, and the form of the same weights that all get right.

On x86 without VNNI, ONNX Runtime multiplies uint8 activations by int8 weights with ``VPMADDUBSW``, which
adds two neighbouring products in 16 bits and saturates. Its kernels for uint8 by uint8 widen first, as do
all of those for depthwise convolutions. So weights minus −128 with zero point 128 are the same numbers, and
exact everywhere (source: onnxruntime/core/mlas, QgemmU8S8KernelAvx2, ConvSymKernelAvx2, QgemmU8U8KernelAvx2).
"""

import math
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

import numpy as np

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

WeightType = Literal["uint8", "int8"]
"""How integer kernels get their weights where the two differ: ``uint8`` with zero point 128, or ``int8``."""

UNSIGNED_ZERO: Final = 128
LARGEST_PAIR = 128
"""Two neighbours of one sign fit 16 bits up to this sum of magnitudes: 255 · 128 ≤ 32767 < 255 · 129."""

WEIGHT_AND_ZERO = {"QLinearConv": (3, 5), "MatMulIntegerToFloat": (1, 5)}
"""Integer operators, and their inputs that are the weight and its zero point."""


def can_saturate(weight: np.ndarray) -> bool:
    """Whether int8 products with some uint8 activations leave 16 bits.

    Args:
        weight: (N, K) int8, each row in the order in which a kernel adds its products.
    """
    pairs = np.stack([weight[:, :-1], weight[:, 1:]]).astype(np.int16)
    return any((np.maximum(each, 0).sum(0) > LARGEST_PAIR).any() for each in (pairs, -pairs))


def kernel_order(weight: np.ndarray, groups: int | None) -> np.ndarray | None:
    """A weight as rows for ``can_saturate``; None where its kernels widen before they add.

    Args:
        weight: of a convolution (O, I, *kernel), or of a matrix product (K, N).
        groups: of a convolution; None for a matrix product.
    """
    if groups is None:
        return weight.T
    if weight.shape[1] == 1 and groups == len(weight):
        return None
    return np.moveaxis(weight, 1, -1).reshape(len(weight), -1)


def needs_unsigned(weight: np.ndarray, groups: int | None) -> bool:
    """Whether int8 products of a weight, as for ``kernel_order``, saturate on some processor."""
    rows = kernel_order(weight, groups)
    return rows is not None and can_saturate(rows)


def as_unsigned(weight: np.ndarray) -> np.ndarray:
    """int8 weights as uint8 with zero point 128."""
    return (weight.astype(np.int16) + UNSIGNED_ZERO).astype(np.uint8)


def unsigned_twin(model: "ModelProto") -> tuple["ModelProto", int]:
    """The same function with uint8 weights wherever int8 ones can saturate, and how many layers that are."""
    from onnx import ModelProto, numpy_helper

    twin = ModelProto()
    twin.CopyFrom(model)
    constants = {tensor.name: tensor for tensor in twin.graph.initializer}
    changed = 0
    for node in twin.graph.node:
        if node.op_type not in WEIGHT_AND_ZERO:
            continue
        place, zero_place = WEIGHT_AND_ZERO[node.op_type]
        tensor = constants.get(node.input[place])
        weight = None if tensor is None else numpy_helper.to_array(tensor)
        if weight is None or weight.dtype != np.int8:
            continue
        if not needs_unsigned(weight, _groups(node) if node.op_type == "QLinearConv" else None):
            continue
        changed += 1
        name, zero = f"{node.input[place]}_unsigned", f"{node.input[place]}_unsigned_zero"
        stored = {name: as_unsigned(weight), zero: np.array(UNSIGNED_ZERO, np.uint8)}
        twin.graph.initializer.extend(numpy_helper.from_array(value, key) for key, value in stored.items())
        node.input[place], node.input[zero_place] = name, zero
    return twin, changed


def exact_form(path: Path) -> bytes | None:
    """The unsigned twin of a model file that this machine's kernels would saturate; None for any other."""
    if not host_saturates():
        return None
    import onnx

    twin, changed = unsigned_twin(onnx.load(str(path)))
    return twin.SerializeToString() if changed else None


def _groups(node: "NodeProto") -> int:
    return next((attribute.i for attribute in node.attribute if attribute.name == "group"), 1)


@cache
def host_saturates() -> bool:
    """Whether ONNX Runtime's kernels of this machine saturate: they are asked for 255 · 127 · 64."""
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    length = 64
    constants: dict[str, np.ndarray] = {
        "weight": np.full((length, 16), 127, np.int8),
        "weight_scale": np.array(1, np.float32),
        "scale": np.array(1, np.float32),
        "zero": np.array(0, np.uint8),
        "weight_zero": np.array(0, np.int8),
    }
    inputs = ["codes", "weight", "scale", "weight_scale", "zero", "weight_zero"]
    graph = helper.make_graph(
        [helper.make_node("MatMulIntegerToFloat", inputs, ["sums"], domain="com.microsoft")],
        "saturation",
        [helper.make_tensor_value_info("codes", TensorProto.UINT8, (4, length))],
        [helper.make_tensor_value_info("sums", TensorProto.FLOAT, (4, 16))],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (sums,) = session.run(None, {"codes": np.full((4, length), 255, np.uint8)})
    return not math.isclose(float(sums.min()), 255 * 127 * length)
