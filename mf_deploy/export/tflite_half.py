"""Leave for XNNPACK to compute what is float in half precision, where the processor has it.

The file stays float: its metadata say that half precision is precise enough. XNNPACK then computes with
eight numbers an instruction on ARMv8.2 (every phone since 2018); elsewhere nothing changes.
"""

from typing import Any

import numpy as np

from mf_deploy.export.tflite_graph import TfliteGraph

METADATA = b"reduced_precision_support"
HALF = b"fp16accfp16"
LARGEST = 65504 / 4
"""Largest absolute value that calibration may see: half precision ends at 65504.

On the trained 52M (3336 seen, in the bridges' sums of exponentials) half precision costs 0.3 of 27 dB."""


def allow_half(graph: TfliteGraph) -> None:
    """Mark ``graph``, and put what would keep XNNPACK from half precision into other words.

    From the first operator that it has in float32 only, XNNPACK computes everything that follows in
    float32. Three such are exact in other words: a mean of squares, which is what it makes of mean(c·c), a
    matrix product with a constant, and one whose first operand is transposed, both of which it refuses.
    """
    writer = {int(index): operator for operator in graph.operators for index in operator.outputs}
    for operator in graph.operators:
        if graph.kind(operator) == "MUL" and operator.inputs[0] == operator.inputs[1]:
            _spell_square(graph, operator, writer.get(int(operator.inputs[0])))
    rewritten = []
    for operator in graph.operators:
        if graph.kind(operator) == "BATCH_MATMUL":
            rewritten += [
                _computed(graph, operator, place) for place in (0, 1) if _constant(graph, operator, place)
            ]
            if operator.builtinOptions.adjX:
                rewritten.append(_turned(graph, operator))
        rewritten.append(operator)
    graph.main.operators = rewritten
    graph.add_metadata(METADATA, HALF)


def _spell_square(graph: TfliteGraph, square: Any, centring: Any | None) -> None:
    """c·c as c·x where c = x − mean(x): the means are equal, because those of c are zero."""
    if centring is not None and graph.kind(centring) == "SUB":
        square.inputs = np.array([square.inputs[0], centring.inputs[0]], np.int32)


def _constant(graph: TfliteGraph, operator: Any, place: int) -> bool:
    return graph.constant(int(operator.inputs[place])) is not None


def _computed(graph: TfliteGraph, product: Any, place: int) -> Any:
    """An operator that computes the constant operand: a reshape of the same numbers in one row."""
    tensor = int(product.inputs[place])
    values, name = graph.constant(tensor), graph.tensors[tensor].name.decode()
    assert values is not None
    row = graph.add_constant(f"{name}/row", values.reshape(-1))
    shape = graph.add_constant(f"{name}/shape", np.array(values.shape, np.int32))
    result = graph.add_tensor(f"{name}/computed", values.shape, np.float32)
    product.inputs[place] = result
    return graph.operator("RESHAPE", [row, shape], [result])


def _turned(graph: TfliteGraph, product: Any) -> Any:
    """An operator that transposes the first operand, which the product no longer does."""
    tensor = int(product.inputs[0])
    shape, name = graph.shape(tensor), graph.tensors[tensor].name.decode()
    axes = [*range(len(shape) - 2), len(shape) - 1, len(shape) - 2]
    order = graph.add_constant(f"{name}/axes", np.array(axes, np.int32))
    result = graph.add_tensor(f"{name}/turned", [shape[axis] for axis in axes], np.float32)
    product.inputs[0], product.builtinOptions.adjX = result, False
    return graph.operator("TRANSPOSE", [tensor, order], [result])
