"""Paddings that XNNPACK computes within a convolution."""

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
