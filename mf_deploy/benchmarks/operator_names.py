"""Names and shapes for XNNPACK's operators, which know only their kind, from the TFLite file."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from mf_deploy.export.tflite_file import module_path, read_operators
from mf_deploy.runtimes.arm.counting import Operator

# TFLite's operators that XNNPACK calls otherwise; the rest differ in spelling only. A convolution of one
# pixel is a fully connected layer there, so both are one kind here.
LAYER = "fully connected"
XNNPACK_KINDS = {
    "CONV_2D": LAYER,
    "DEPTHWISE_CONV_2D": LAYER,
    "AVERAGE_POOL_2D": "average pooling",
    "BATCH_MATMUL": "batch matrix multiply",
    "CONCATENATION": "copy",
    "DEQUANTIZE": "convert",
    "DIV": "divide",
    "EXPAND_DIMS": "static reshape",
    "HARD_SWISH": "hardswish",
    "LOGISTIC": "sigmoid",
    "MAX_POOL_2D": "max pooling",
    "MUL": "multiply",
    "PAD": "constant pad",
    "QUANTIZE": "convert",
    "RELU": "clamp",
    "RELU6": "clamp",
    "RELU_N1_TO_1": "clamp",
    "RESHAPE": "static reshape",
    "RSQRT": "reciprocal square root",
    "SPLIT": "copy",
    "SQRT": "square root",
    "SQUEEZE": "static reshape",
    "STRIDED_SLICE": "slice",
    "SUB": "subtract",
}


def with_names(operators: Sequence[Operator], model: Path) -> list[Operator]:
    """``operators`` of a .tflite file with the module path and shape of the outputs they stand for.

    XNNPACK keeps the order of the file, but leaves some operators out and adds others, so the two
    sequences of kinds are aligned; what finds no partner stays without a name.
    """
    known = read_operators(model)
    ours = [operator.kind.partition(" (")[0].lower().replace("convolution", LAYER) for operator in operators]
    theirs = [XNNPACK_KINDS.get(of.kind, of.kind.replace("_", " ").lower()) for of in known]
    named = list(operators)
    for our, their in common_subsequence(ours, theirs):
        output = known[their].output
        named[our] = replace(named[our], name=module_path(output.name), shape=output.shape)
    return named


def common_subsequence(ours: Sequence[str], theirs: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Indices of a longest common subsequence, in order; takes len(ours) x len(theirs) steps."""
    longest = [[0] * (len(theirs) + 1) for _ in range(len(ours) + 1)]
    for i in reversed(range(len(ours))):
        row, below = longest[i], longest[i + 1]
        for j in reversed(range(len(theirs))):
            row[j] = below[j + 1] + 1 if ours[i] == theirs[j] else max(below[j], row[j + 1])
    i = j = 0
    while i < len(ours) and j < len(theirs):
        if ours[i] == theirs[j]:
            yield i, j
            i, j = i + 1, j + 1
        elif longest[i + 1][j] >= longest[i][j + 1]:
            i += 1
        else:
            j += 1
