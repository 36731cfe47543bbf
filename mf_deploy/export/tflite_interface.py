"""Integer inputs and outputs of a TFLite model."""

from typing import Literal

import numpy as np

from mf_deploy.export.ranges import Range
from mf_deploy.export.tflite_graph import TfliteGraph
from mf_deploy.export.tflite_quantize import LEVELS, scale_and_zero

PICTURE_ZERO = {"uint8": 0, "int8": -128}
"""The code of black: pictures as int8 are their uint8 values minus 128."""


def integer_input(graph: TfliteGraph, dtype: Literal["uint8", "int8"]) -> None:
    """Take pictures as quantized codes with a scale of one; the converter's CAST becomes a DEQUANTIZE.

    XNNPACK has no CAST from integers, but a DEQUANTIZE: the picture is no reason to leave it.
    """
    image = int(graph.main.inputs[0])
    tensor = graph.tensors[image]
    tensor.type = graph.type_code(dtype)
    tensor.quantization = graph.quantization(1.0, PICTURE_ZERO[dtype])
    for operator in graph.operators:
        if graph.kind(operator) == "CAST" and int(operator.inputs[0]) == image:
            operator.opcodeIndex = graph.opcode("DEQUANTIZE")
            operator.builtinOptionsType, operator.builtinOptions = 0, None


def integer_output(graph: TfliteGraph, dtype: Literal["uint8", "int8"], logits: Range) -> None:
    """Give the logits as codes that span the range ``logits``."""
    real = int(graph.main.outputs[0])
    scale, zero_point = scale_and_zero(logits)
    if dtype == "uint8":
        zero_point += LEVELS // 2 + 1
    codes = graph.add_tensor("codes", graph.shape(real), dtype, graph.quantization(scale, zero_point))
    graph.operators.append(graph.operator("QUANTIZE", [real], [codes]))
    graph.main.outputs = np.array([codes], np.int32)
    for signature in graph.content.signatureDefs or []:
        for each in signature.outputs:
            each.tensorIndex = codes
