"""Which integer products can saturate, and the form of the weights that cannot."""

from itertools import pairwise

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from mf_deploy.runtimes.onnx_saturation import as_unsigned, can_saturate, kernel_order, unsigned_twin


def worst_pair(row: list[int]) -> int:
    """How far two neighbouring products with some uint8 activations can leave 16 bits."""
    most = 0
    for first, second in pairwise(row):
        for sign in (1, -1):
            total = 255 * (max(sign * first, 0) + max(sign * second, 0))
            most = max(most, total - (32767 if sign == 1 else 32768))
    return most


@pytest.mark.parametrize(
    "row", [[127, 1], [127, 2], [64, 64], [64, 65], [-127, -1], [-127, -2], [127, -127], [127], [127, 0, 127]]
)
def test_a_pair_saturates_where_its_products_leave_16_bits(row: list[int]) -> None:
    weight = np.array([row, [0] * len(row)], np.int8)
    assert can_saturate(weight) == (worst_pair(row) > 0)


def test_neighbours_are_those_of_the_kernels_order() -> None:
    """Channels lie side by side, positions of a convolution after each other; depthwise kernels widen."""
    weight = np.zeros((1, 2, 1, 2), np.int8)
    weight[0, 0, 0] = 127  # both positions of one channel: never neighbours
    rows = kernel_order(weight, groups=1)
    assert rows is not None
    np.testing.assert_array_equal(rows, [[127, 0, 127, 0]])
    assert kernel_order(np.ones((8, 1, 3, 3), np.int8), groups=8) is None
    assert kernel_order(np.ones((16, 1, 3, 3), np.int8), groups=8) is not None
    np.testing.assert_array_equal(kernel_order(np.array([[1, 2], [3, 4]], np.int8), None), [[1, 3], [2, 4]])


def test_unsigned_weights_are_the_same_numbers() -> None:
    weight = np.arange(-127, 128, dtype=np.int8)
    np.testing.assert_array_equal(as_unsigned(weight).astype(int) - 128, weight.astype(int))


def test_a_twin_changes_only_what_can_saturate() -> None:
    def product(name: str, value: int) -> tuple[helper.NodeProto, list[TensorProto]]:
        stored = {"w": np.full((4, 4), value, np.int8), "wz": np.zeros(4, np.int8)}
        tensors = [numpy_helper.from_array(array, f"{name}{key}") for key, array in stored.items()]
        inputs = ["codes", f"{name}w", "scale", "scale", "zero", f"{name}wz"]
        return helper.make_node("MatMulIntegerToFloat", inputs, [name], domain="com.microsoft"), tensors

    loud, quiet = product("loud", 127), product("quiet", 64)
    shared = {"scale": np.array(1, np.float32), "zero": np.array(0, np.uint8)}
    graph = helper.make_graph(
        [loud[0], quiet[0]],
        "two",
        [helper.make_tensor_value_info("codes", TensorProto.UINT8, (1, 4))],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, (1, 4)) for name in ("loud", "quiet")],
        [*loud[1], *quiet[1], *(numpy_helper.from_array(value, key) for key, value in shared.items())],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("com.microsoft", 1)], ir_version=10)
    twin, changed = unsigned_twin(model)
    assert changed == 1
    assert [node.input[1] for node in twin.graph.node] == ["loudw_unsigned", "quietw"]
    assert [node.input[1] for node in model.graph.node] == ["loudw", "quietw"]
    assert unsigned_twin(twin)[1] == 0
