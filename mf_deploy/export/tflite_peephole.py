"""What the converter writes and XNNPACK computes better in other operators; each change is exact."""

import copy
from collections import Counter

import numpy as np

from mf_deploy.export.tflite_graph import TfliteGraph

PADDED = ("CONV_2D", "DEPTHWISE_CONV_2D")
"""What XNNPACK computes a padding within."""


def pad_each_reader(graph: TfliteGraph) -> None:
    """Give every convolution that reads a padding a PAD of its own.

    The converter merges equal ones; XNNPACK leaves out a PAD only where one convolution alone reads it,
    and copies the map otherwise.
    """
    pads = {int(each.outputs[0]): each for each in graph.operators if graph.kind(each) == "PAD"}
    seen: Counter[int] = Counter()
    operators = []
    for operator in graph.operators:
        read = int(operator.inputs[0]) if graph.kind(operator) in PADDED else -1
        if read in pads:
            seen[read] += 1
            if seen[read] > 1:
                pad = copy.copy(pads[read])
                name = f"{graph.tensors[read].name.decode()};{seen[read]}"
                made = graph.add_tensor(name, graph.shape(read), graph.dtype(read))
                pad.outputs = np.array([made], np.int32)
                operator.inputs = np.array([made, *operator.inputs[1:]], np.int32)
                operators.append(pad)
        operators.append(operator)
    graph.main.operators = operators


def skip_transpositions(graph: TfliteGraph) -> None:
    """Read the first of two transpositions that undo each other where the second one was read."""
    writer = {int(each.outputs[0]): each for each in graph.operators}
    instead: dict[int, int] = {}
    operators = []
    for operator in graph.operators:
        operator.inputs = np.array(
            [instead.get(int(index), int(index)) for index in operator.inputs], np.int32
        )
        former = writer.get(int(operator.inputs[0])) if graph.kind(operator) == "TRANSPOSE" else None
        if former is not None and graph.kind(former) == "TRANSPOSE":
            order, back = (graph.constant(int(each.inputs[1])) for each in (former, operator))
            undone = order is not None and back is not None and (order[back] == np.arange(len(back))).all()
            if undone and int(operator.outputs[0]) not in graph.main.outputs:
                instead[int(operator.outputs[0])] = int(former.inputs[0])
                continue
        operators.append(operator)
    graph.main.operators = operators
    _drop_unread(graph)


def keep_products(graph: TfliteGraph) -> None:
    """Make linear layers whose weights are computed matrix products again.

    The converter turns (1, M, K) × (1, K, N) into a linear layer with (N, K) for weights, and XNNPACK takes
    only constant ones in half precision.
    """
    writer = {int(each.outputs[0]): each for each in graph.operators}
    for operator in graph.operators:
        if graph.kind(operator) != "FULLY_CONNECTED":
            continue
        read, weights = map(int, operator.inputs[:2])
        if graph.constant(weights) is None:
            former = writer[weights]
            turned = graph.kind(former) == "TRANSPOSE"
            operator.opcodeIndex = graph.opcode("BATCH_MATMUL")
            operator.inputs = np.array([read, int(former.inputs[0]) if turned else weights], np.int32)
            operator.builtinOptionsType, operator.builtinOptions = graph.product_options(not turned)
    _drop_unread(graph)


def _drop_unread(graph: TfliteGraph) -> None:
    read = {int(index) for each in graph.operators for index in each.inputs} | set(
        map(int, graph.main.outputs)
    )
    graph.main.operators = [each for each in graph.operators if int(each.outputs[0]) in read]
