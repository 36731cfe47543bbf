"""A float ONNX graph becomes one that onnxruntime's integer kernels run, layout included.

onnxruntime's own rewriting of QuantizeLinear and DequantizeLinear pairs leaves a Mobile-Former slower than
fp32: every dynamic ReLU takes its map out of the integers and out of the layout. Here the kernels are
written down: maps are uint8 codes with channels last between convolutions, ``QLinearConv`` carries the
gains of dynamic ReLUs in the scales of its weights, and a convolution whose readers want floats ends in them
(``MatMulIntegerToFloat``), so that nothing is rounded twice.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from mf_deploy.export.onnx_file import int8_codes, least_scales
from mf_deploy.export.onnx_graph import MOVING, Chain, FloatGraph, attribute
from mf_deploy.export.ranges import Range
from mf_deploy.runtimes.onnx_saturation import UNSIGNED_ZERO, WeightType, as_unsigned, needs_unsigned

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

MICROSOFT = "com.microsoft"
Form = Literal["float", "rows", "planes", "codes"]
"""How a tensor is there: float32 as in the float graph; float32 with channels last; uint8 codes as in the
float graph; uint8 codes with channels last."""

TO_LAST, TO_FIRST = [0, 2, 3, 1], [0, 3, 1, 2]
LEVELS = 255
RATIO_SCALE, RATIO_ZERO = 1 / 127, 128
MIN_ROW = 512  # channels from which a row needs no repeats to keep a kernel's loop busy
ELEMENTWISE = {"Add", "Sub", "Mul", "Div", "Max", "Min", "Clip", "Relu"}


@dataclass
class IntegerWriter:
    """Writes the integer graph, node by node, in the order of the float graph.

    Args:
        is_int8: whether the layer with a weight of that name takes part.
        range_of: the range of a float tensor, for its codes.
        weight_type: the form of weights whose int8 products can saturate; the others are int8.
    """

    source: FloatGraph
    is_int8: Callable[[str], bool]
    range_of: Callable[[str], Range]
    weight_type: WeightType = "uint8"
    nodes: list["NodeProto"] = field(default_factory=list)
    constants: dict[str, np.ndarray] = field(default_factory=dict)
    shapes: dict[str, tuple[int, tuple[int, ...]]] = field(default_factory=dict)
    forms: dict[str, dict[Form, str]] = field(default_factory=lambda: defaultdict(dict))
    done: set[int] = field(default_factory=set)
    later: dict[int, tuple["NodeProto", Chain]] = field(default_factory=dict)
    names: Counter[str] = field(default_factory=Counter)
    dynamic: dict[str, tuple[str, str, str]] = field(default_factory=dict)

    def write(self) -> "ModelProto":
        from onnx import helper, numpy_helper

        source = self.source.model
        for value in source.graph.input:
            self.forms[value.name]["float"] = value.name
        for name in self.source.constants:
            self.forms[name]["float"] = name
        for index, node in enumerate(self.source.nodes):
            if index in self.later:
                self._convolution(*self.later[index])
            elif index not in self.done:
                self._visit(node)
        for value in source.graph.output:
            self.floats(value.name)
        used = {name for node in self.nodes for name in node.input}
        kept = [tensor for tensor in source.graph.initializer if tensor.name in used]
        graph = helper.make_graph(
            self.nodes,
            source.graph.name,
            source.graph.input,
            source.graph.output,
            [*kept, *(numpy_helper.from_array(value, name) for name, value in self.constants.items())],
            value_info=[helper.make_tensor_value_info(n, t, s) for n, (t, s) in self.shapes.items()],
        )
        opsets = [*source.opset_import, helper.make_opsetid(MICROSOFT, 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=source.ir_version)

    # Writing

    def emit(self, kind: str, inputs: list[str], name: str, domain: str = "", **attributes: Any) -> str:
        from onnx import helper

        self.names[name] += 1
        output = name if self.names[name] == 1 else f"{name}_{self.names[name]}"
        node = helper.make_node(kind, inputs, [output], output, domain=domain, **attributes)
        self.nodes.append(node)
        return output

    def constant(self, name: str, value: np.ndarray) -> str:
        self.constants[name] = value
        return name

    def declare(self, name: str, shape: tuple[int, ...], integer: bool) -> str:
        """State the shape of what an operator of onnxruntime gives: nothing else could infer it."""
        from onnx import TensorProto

        self.shapes[name] = (TensorProto.UINT8 if integer else TensorProto.FLOAT, shape)
        return name

    def codes_of(self, name: str) -> list[str]:
        """Scale and zero point of the codes of ``name``, as constants."""
        name = self.source.origin(name)
        low, high = self.range_of(name)
        scale = np.float32(max(high - low, 1e-9) / LEVELS)
        zero = np.uint8(np.clip(round(-low / float(scale)), 0, LEVELS))
        return [
            self.constant(f"{name}_scale", np.array(scale)),
            self.constant(f"{name}_zero", np.array(zero)),
        ]

    # Forms of a tensor

    def floats(self, name: str) -> str:
        have = self.forms[name]
        if "float" not in have:
            if "planes" in have and "rows" not in have:
                have["float"] = self.emit("DequantizeLinear", [have["planes"], *self.codes_of(name)], name)
            else:
                have["float"] = self.emit("Transpose", [self.rows(name)], name, perm=TO_FIRST)
        return have["float"]

    def rows(self, name: str) -> str:
        have = self.forms[name]
        if "rows" not in have:
            target = f"{name}_rows"
            if "codes" in have:
                have["rows"] = self.emit("DequantizeLinear", [have["codes"], *self.codes_of(name)], target)
            else:
                have["rows"] = self.emit("Transpose", [self.floats(name)], target, perm=TO_LAST)
        return have["rows"]

    def planes(self, name: str) -> str:
        have = self.forms[name]
        if "planes" not in have:
            target = f"{name}_planes"
            if "codes" in have:
                have["planes"] = self.emit("Transpose", [have["codes"]], target, perm=TO_FIRST)
            else:
                have["planes"] = self.emit(
                    "QuantizeLinear", [self.floats(name), *self.codes_of(name)], target
                )
        return have["planes"]

    def codes(self, name: str) -> str:
        have = self.forms[name]
        if "codes" not in have:
            target = f"{name}_codes"
            if "rows" in have and "planes" not in have:
                have["codes"] = self.emit("QuantizeLinear", [have["rows"], *self.codes_of(name)], target)
            else:
                have["codes"] = self.emit("Transpose", [self.planes(name)], target, perm=TO_LAST)
        return have["codes"]

    # Operators

    def _visit(self, node: "NodeProto") -> None:
        weight = node.input[1] if len(node.input) > 1 else ""
        if node.op_type == "Conv" and self.is_int8(weight):
            chain = self._chain(node)
            self.done.update(chain.skipped)
            if chain.skipped:
                self.later[max(chain.skipped)] = (node, chain)  # when its gains are there
            else:
                self._convolution(node, chain)
        elif self._is_linear(node) and self.is_int8(weight):
            self._linear(node)
        elif node.op_type in MOVING and self._takes_codes(node):
            if node.op_type == "Concat" and len(set(node.input)) == 1:
                self._repeat(node)
            else:
                self._move(node)
        elif node.op_type in ELEMENTWISE and self._in_rows(node):
            parts = [self._row_operand(name) for name in node.input]
            self._copy(node, parts, "rows")
        elif node.op_type == "ReduceMean" and self._means_rows(node):
            axes = self.constant(f"{node.output[0]}_axes", np.array([1, 2], np.int64))
            self._copy(node, [self.rows(node.input[0]), axes], "rows")
        elif node.op_type == "GlobalAveragePool" and self._has_rows(node.input[0]):
            axes = self.constant(f"{node.output[0]}_axes", np.array([1, 2], np.int64))
            rows = self.emit("ReduceMean", [self.rows(node.input[0]), axes], f"{node.output[0]}_rows")
            self.forms[node.output[0]]["rows"] = rows
        else:
            for name in node.input:
                if name:
                    self.floats(name)
            self.nodes.append(node)
            for name in node.output:
                self.forms[name]["float"] = name

    def _repeat(self, node: "NodeProto") -> None:
        """Copies of a map side by side, for a depthwise convolution with channels last.

        Whole planes are copied and then transposed, as a matrix: onnxruntime would push a transposition of
        maps through the concatenation, and copy the few channels of one position after another.
        """
        source, output = node.input[0], node.output[0]
        batch, channels, height, width = self.source.shapes[output]
        matrix = self.constant(f"{source}_matrix", np.array([batch, -1, height * width], np.int64))
        flat = self.emit("Reshape", [self.planes(source), matrix], f"{source}_flat")
        flat = self.emit("Concat", [flat] * len(node.input), f"{output}_flat", axis=1)
        flat = self.emit("Transpose", [flat], f"{output}_turned", perm=[0, 2, 1])
        shape = self.constant(f"{output}_shape", np.array([batch, height, width, channels], np.int64))
        self.forms[output]["codes"] = self.emit("Reshape", [flat, shape], f"{output}_codes")

    def _move(self, node: "NodeProto") -> None:
        """``node`` on codes in the layout of the float graph."""
        moved = self.source.moved(node)
        inputs = [self.planes(name) for name in moved] + list(node.input[len(moved) :])
        if node.op_type == "Pad":
            _, zero = self.codes_of(moved[0])
            inputs = [*inputs[:2], zero, *inputs[3:]]
        self._copy(node, inputs, "planes")

    def _copy(self, node: "NodeProto", inputs: list[str], form: Form) -> None:
        """``node`` on operands of another form."""
        from onnx import helper

        name = node.output[0]
        attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        self.forms[name][form] = self.emit(node.op_type, inputs, f"{name}_{form}", **attributes)

    def _has_rows(self, name: str) -> bool:
        return bool({"rows", "codes"} & set(self.forms[name])) and "float" not in self.forms[name]

    def _in_rows(self, node: "NodeProto") -> bool:
        """Whether all maps that ``node`` reads are there with channels last, and none as floats."""
        if len(self.source.shapes.get(node.output[0], ())) != 4:
            return False
        maps = [n for n in node.input if math.prod(self.source.shapes.get(n, ())) > self._channels(node)]
        fits = all(self._has_rows(name) for name in maps)
        return bool(maps) and fits and all(self._row_shaped(name) for name in node.input)

    def _channels(self, node: "NodeProto") -> int:
        return self.source.shapes[node.output[0]][1]

    def _row_shaped(self, name: str) -> bool:
        shape = self.source.shapes.get(name, ())
        return not name or math.prod(shape) == 1 or len(shape) == 4

    def _row_operand(self, name: str) -> str:
        if not name or math.prod(self.source.shapes.get(name, ())) == 1:
            return name and self.floats(name)
        return self.rows(name)

    def _means_rows(self, node: "NodeProto") -> bool:
        axes = self.source.constants.get(node.input[1]) if len(node.input) > 1 else None
        spatial = axes is not None and {int(a) % 4 for a in axes} == {2, 3}
        return spatial and bool(attribute(node, "keepdims", 1)) and self._has_rows(node.input[0])

    def _is_linear(self, node: "NodeProto") -> bool:
        if node.op_type == "Gemm":
            plain = all(attribute(node, name, 1.0) == 1.0 for name in ("alpha", "beta"))
            return plain and not attribute(node, "transA", 0)
        return node.op_type == "MatMul" and node.input[1] in self.source.constants

    def _linear(self, node: "NodeProto") -> None:
        """Rows of activations, quantized as they come, times int8 columns."""
        source, output = node.input[0], node.output[0]
        weight = self.source.constants[node.input[1]]
        if attribute(node, "transB", 0):
            weight = weight.T
        if source not in self.dynamic:
            parts = (f"{source}_q", f"{source}_q_scale", f"{source}_q_zero")
            self._dynamic(self.floats(source), parts)
            self.dynamic[source] = parts
        codes, scale, zero = self.dynamic[source]
        operands = [codes, *self._matrix(node.input[1], weight, scale, zero), *node.input[2:3]]
        result = self.emit("MatMulIntegerToFloat", operands, output, MICROSOFT)
        self.forms[output]["float"] = self.declare(result, self.source.shapes[output], False)

    def _dynamic(self, name: str, parts: tuple[str, str, str]) -> None:
        from onnx import helper

        self.nodes.append(helper.make_node("DynamicQuantizeLinear", [name], list(parts), parts[0]))

    def _matrix(self, name: str, weight: np.ndarray, scale: str, zero: str) -> list[str]:
        """Operands 1 to 5 of ``MatMulIntegerToFloat`` for a weight (K, N)."""
        codes, scales = int8_codes(weight, 1)
        stored, weight_zero = self._stored(name, codes, None)
        return [stored, scale, self.constant(f"{name}_scale", scales), zero, weight_zero]

    def _stored(self, name: str, codes: np.ndarray, groups: int | None) -> tuple[str, str]:
        """int8 ``codes`` of a weight in a form that every host computes exactly, and their zero point: one
        for all channels is cheaper than one for each, by 0.4 % of the 294M (cortex-a76).
        """
        if self.weight_type == "int8" or not needs_unsigned(codes, groups):
            zero = self.constant("weight_zero_int8", np.array(0, np.int8))
            return self.constant(f"{name}_int8", np.ascontiguousarray(codes)), zero
        zero = self.constant("weight_zero_uint8", np.array(UNSIGNED_ZERO, np.uint8))
        return self.constant(f"{name}_uint8", np.ascontiguousarray(as_unsigned(codes))), zero

    def _chain(self, node: "NodeProto") -> Chain:
        """What becomes part of ``node``; not a clip that leads to floats, where the sums can be floats."""
        chain = self.source.chain(node.output[0])
        keeps_floats = chain.clipped and self._gives_floats(node) and not self._wants_codes(chain.end)
        return Chain(node.output[0]) if keeps_floats else chain

    def _gives_floats(self, node: "NodeProto") -> bool:
        """Whether ``node`` is a plain matrix product, for which a kernel with float results exists."""
        kernel = self.source.constants[node.input[1]].shape[2:]
        moves = any(attribute(node, "pads", [0])) or set(attribute(node, "strides", [1])) != {1}
        return kernel == (1, 1) and attribute(node, "group", 1) == 1 and not moves

    def _convolution(self, node: "NodeProto", chain: Chain) -> None:
        weight = self.source.constants[node.input[1]]
        if self._gives_floats(node) and not chain.skipped and not self._only_codes_wanted(chain.end):
            self._pointwise(node, weight)
        else:
            self._integer_convolution(node, weight, chain)

    def _takes_codes(self, node: "NodeProto") -> bool:
        """Whether ``node`` is an integer convolution, or moves values and leads to those alone."""
        if node.op_type in MOVING:
            output = node.output[0]
            return self.source.origin(output) != output and self._only_codes_wanted(output)
        return node.op_type == "Conv" and self.is_int8(node.input[1])

    def _wants_codes(self, name: str) -> bool:
        return any(self._takes_codes(self.source.nodes[i]) for i in self.source.readers[name])

    def _only_codes_wanted(self, name: str) -> bool:
        readers = [self.source.nodes[i] for i in self.source.readers[name]]
        return bool(readers) and all(map(self._takes_codes, readers)) and name not in self.source.outputs

    def _pointwise(self, node: "NodeProto", weight: np.ndarray) -> None:
        """A 1×1 convolution that ends in floats, channels last."""
        source, output = node.input[0], node.output[0]
        scale, zero = self.codes_of(source)
        matrix = self._matrix(node.input[1], weight[:, :, 0, 0].T, scale, zero)
        operands = [self.codes(source), *matrix, *node.input[2:3]]
        result = self.emit("MatMulIntegerToFloat", operands, f"{output}_rows", MICROSOFT)
        batch, channels, height, width = self.source.shapes[output]
        self.forms[output]["rows"] = self.declare(result, (batch, height, width, channels), False)

    def _integer_convolution(self, node: "NodeProto", weight: np.ndarray, chain: Chain) -> None:
        source, end, name = node.input[0], chain.end, node.input[1]
        source_scale, source_zero = self.codes_of(source)
        end_codes = self.codes_of(end)
        input_scale = float(self.constants[source_scale])
        bias = self.source.constants[node.input[2]] if len(node.input) > 2 else np.zeros(len(weight))
        codes, scales = int8_codes(weight, 0, least_scales(bias, input_scale))
        weight_scale = self.constant(f"{name}_scale", scales)
        steps = np.rint(bias / (input_scale * scales.astype(np.float64))).astype(np.int32)
        if chain.gain:
            gain = self._vector(chain.gain)
            weight_scale = self.emit("Mul", [gain, weight_scale], f"{name}_gained_scale")
        operands = [self.codes(source), source_scale, source_zero]
        stored, weight_zero = self._stored(name, codes, attribute(node, "group", 1))
        operands += [stored, weight_scale, weight_zero, *end_codes]
        operands.append(self.constant(f"{name}_bias", steps))
        attributes = {
            key: attribute(node, key, default)
            for key, default in (("strides", [1, 1]), ("pads", [0] * 4), ("group", 1), ("dilations", [1, 1]))
        }
        kernel = list(weight.shape[2:])
        batch, channels, height, width = self.source.shapes[end]
        shape = (batch, height, width, channels)
        label = f"{end}_scaled" if chain.ratio else f"{end}_codes"
        result = self.emit(
            "QLinearConv", operands, label, MICROSOFT, channels_last=1, kernel_shape=kernel, **attributes
        )
        self.declare(result, shape, True)
        self.forms[end]["codes"] = self._leak(result, chain, end_codes, shape) if chain.ratio else result

    def _vector(self, name: str) -> str:
        """(1, C, 1, 1) as (C,)."""
        shape = self.constant("vector_shape", np.array([-1], np.int64))
        return self.emit("Reshape", [self.floats(name), shape], f"{name}_vector")

    def _leak(self, scaled: str, chain: Chain, codes: list[str], shape: tuple[int, ...]) -> str:
        """max(v, r·v) on codes: r·v has the scale of v, so the maximum is that of the codes."""
        ratio_codes = [
            self.constant("ratio_scale", np.array(RATIO_SCALE, np.float32)),
            self.constant("ratio_zero", np.array(RATIO_ZERO, np.uint8)),
        ]
        ratio = self._vector(chain.ratio)
        ratio = self.emit("QuantizeLinear", [ratio, *ratio_codes], f"{chain.end}_ratio")
        width, channels = shape[2:]
        if channels < MIN_ROW:
            row = self.constant(f"row_{width}_{channels}", np.array([width, channels], np.int64))
            ratio = self.emit("Expand", [ratio, row], f"{chain.end}_ratios")
        operands = [scaled, *codes, ratio, *ratio_codes, *codes]
        product = self.emit("QLinearMul", operands, f"{chain.end}_product", MICROSOFT)
        self.declare(product, shape, True)
        return self.emit("Max", [scaled, product], f"{chain.end}_codes")
