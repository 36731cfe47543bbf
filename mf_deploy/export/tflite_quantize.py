"""Int8 in a float TFLite model: which tensors become codes, and where they turn back into floats."""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from torch import nn

from mf_deploy.export.module_paths import reference_path
from mf_deploy.export.ranges import Range
from mf_deploy.export.tflite_graph import TfliteGraph

Treatment = Literal["static", "dynamic", "rounded", "weights", "half"]
"""Of a convolution or linear layer. ``static``: int8 in and out, ranges from calibration. ``dynamic``: int8
products, activations quantized as they come, each row by its own range. ``rounded``: dynamic, and the result
passes through int8 codes. ``weights``: int8 weights, float arithmetic."""

RangeOf = Callable[[int], Range]

WEIGHT_AXIS = {"CONV_2D": 0, "DEPTHWISE_CONV_2D": 3, "FULLY_CONNECTED": 0}
"""The output channels of each weighted operator's constant; each has its own scale."""

MOVERS = ("PAD", "CONCATENATION", "RESHAPE", "TRANSPOSE", "SLICE", "MAX_POOL_2D")
"""Operators that only move codes about: their output has the scale of their input."""

LEVELS, LOWEST, HIGHEST = 255, -128, 127
BIAS_LIMIT = 2.0**30


def layers(graph: TfliteGraph, module: nn.Module) -> dict[int, str]:
    """Position of each weighted operator → path of its layer in the reference model, "" for none.

    A layer is found by its weights, which the converter only transposes; layers with equal weights
    are told apart by their order.
    """
    paths: dict[bytes, list[str]] = {}
    for name, layer in module.named_modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            paths.setdefault(_layer_key(layer), []).append(reference_path(name))
    found = {}
    for position, operator in enumerate(graph.operators):
        weights = graph.constant(operator.inputs[1]) if graph.kind(operator) in WEIGHT_AXIS else None
        if weights is not None and weights.dtype == np.float32:
            same = paths.get(np.float32(weights).tobytes(), [""])
            found[position] = same.pop(0) if len(same) > 1 else same[0]
    return found


def _layer_key(layer: nn.Conv2d | nn.Linear) -> bytes:
    """The layer's weights as TFLite stores them."""
    weight = layer.weight.detach()
    if isinstance(layer, nn.Conv2d):
        depthwise = layer.groups == layer.in_channels and layer.groups > 1
        weight = weight.permute(1, 2, 3, 0) if depthwise else weight.permute(0, 2, 3, 1)
    values: np.ndarray = weight.contiguous().float().numpy()
    return values.tobytes()


def observed_tensors(graph: TfliteGraph) -> list[int]:
    """Tensors whose ranges some plan may ask for."""
    source = sources(graph)
    wanted = {source(int(index)) for index in graph.main.outputs}
    for operator in graph.operators:
        if graph.kind(operator) in (*WEIGHT_AXIS, "ADD"):
            wanted.update(source(int(index)) for index in (*operator.inputs, *operator.outputs) if index >= 0)
    return sorted(i for i in wanted if graph.constant(i) is None and graph.dtype(i) == np.float32)


def sources(graph: TfliteGraph) -> Callable[[int], int]:
    """A function from a tensor to the one whose values it holds, through operators that only move them."""
    origin: dict[int, int] = {}
    for operator in graph.operators:
        roots = {origin.get(int(i), int(i)) for i in _moved(graph, operator)}
        if graph.kind(operator) in MOVERS and len(roots) == 1:
            origin[int(operator.outputs[0])] = roots.pop()
    return lambda tensor: origin.get(tensor, tensor)


def _moved(graph: TfliteGraph, operator: Any) -> list[int]:
    """The inputs whose values a mover moves: all of a concatenation's, the first of any other's."""
    inputs = [int(index) for index in operator.inputs]
    return inputs if graph.kind(operator) == "CONCATENATION" else inputs[:1]


def int8_operators(graph: TfliteGraph, static: set[int]) -> set[int]:
    """Positions of the operators that compute with codes: ``static``, and what lies between them.

    A mover does when all who read its output do; an addition when its inputs, too, come as codes.
    That is the largest such set: a float island between two int8 layers is quantized once, where it ends.
    """
    source = sources(graph)
    kinds = [graph.kind(operator) for operator in graph.operators]
    readers: dict[int, list[tuple[int, int]]] = {}
    writer = {int(o.outputs[0]): position for position, o in enumerate(graph.operators)}
    for position, operator in enumerate(graph.operators):
        for place, index in enumerate(operator.inputs):
            readers.setdefault(int(index), []).append((position, place))
    ends = {int(index) for index in graph.main.outputs}
    movers = {
        p
        for p, operator in enumerate(graph.operators)
        if kinds[p] in MOVERS and source(int(operator.outputs[0])) != int(operator.outputs[0])
    }
    chosen = static | movers | {p for p, kind in enumerate(kinds) if kind == "ADD"}

    def takes_codes(position: int, place: int) -> bool:
        first_only = kinds[position] not in ("ADD", "CONCATENATION")
        return position in chosen and (place == 0 or not first_only)

    def stays(position: int) -> bool:
        operator = graph.operators[position]
        output = int(operator.outputs[0])
        if output in ends or not all(takes_codes(*reader) for reader in readers.get(output, [])):
            return False
        return position in movers or all(writer.get(source(int(i)), -1) in chosen for i in operator.inputs)

    while leaving := {p for p in chosen - static if not stays(p)}:
        chosen -= leaving
    return chosen


@dataclass
class Quantization:
    """One rewrite of a float graph, in place; ``range_of`` gives the range of a tensor of that graph."""

    graph: TfliteGraph
    treatments: Mapping[int, Treatment]
    range_of: RangeOf
    codes: dict[int, int] = field(default_factory=dict)
    floats: set[int] = field(default_factory=set)
    restored: dict[int, int] = field(default_factory=dict)
    written: list[Any] = field(default_factory=list)

    def apply(self) -> None:
        """Rewrite the operators in their order; a conversion stands where its result is first read."""
        graph = self.graph
        static = {p for p, treatment in self.treatments.items() if treatment == "static"}
        chosen = int8_operators(graph, static)
        self.source = sources(graph)
        outputs = {int(index) for operator in graph.operators for index in operator.outputs}
        self.readers = Counter(int(index) for operator in graph.operators for index in operator.inputs)
        self.floats = set(range(len(graph.tensors))) - outputs
        for position, operator in enumerate(graph.operators):
            if position in chosen or self._reshapes_codes(operator):
                self._to_codes(operator, position in static)
            else:
                self._keep(operator, self.treatments.get(position))
            self.written.append(operator)
            if self.treatments.get(position) == "rounded":
                self._round(int(operator.outputs[0]))
        for index in graph.main.outputs:
            self._float(int(index))
        graph.main.operators = self.written

    def _reshapes_codes(self, operator: Any) -> bool:
        """Whether codes change their shape here that nobody else reads, and become floats afterwards.

        XNNPACK reshapes in place between one writer and one reader; of the floats there may be more.
        """
        read, made = int(operator.inputs[0]), int(operator.outputs[0])
        if self.graph.kind(operator) != "RESHAPE" or read in self.floats or made in self.graph.main.outputs:
            return False
        return self.readers[read] == 1

    def _keep(self, operator: Any, treatment: Treatment | None) -> None:
        """A float operator, perhaps with int8 weights."""
        operator.inputs = np.array([self._float(int(i)) if i >= 0 else -1 for i in operator.inputs], np.int32)
        self.floats.update(int(index) for index in operator.outputs)
        if treatment is None:
            return
        stored = self._stored(operator, treatment)
        if treatment in ("dynamic", "rounded"):
            operator.inputs[1] = stored
            operator.builtinOptions.asymmetricQuantizeInputs = True
            self.graph.needs_int8(operator)
        else:
            operator.inputs[1] = self._restore(int(operator.inputs[1]), stored)

    def _stored(self, operator: Any, treatment: Treatment) -> int:
        """The constant that stands for the operator's weights."""
        tensor = int(operator.inputs[1])
        values = self.graph.constant(tensor)
        if treatment == "half":
            assert values is not None
            return self.graph.add_constant(self._name(tensor), values.astype(np.float16))
        return self._weights(tensor, WEIGHT_AXIS[self.graph.kind(operator)])

    def _round(self, output: int) -> None:
        """Give who reads ``output`` the floats that its codes stand for."""
        self.floats.discard(output)
        exact = self.written[-1]
        raw = self.graph.add_tensor(self._name(output) + "/exact", self.graph.shape(output), np.float32)
        exact.outputs = np.array([raw], np.int32)
        self.codes[output] = self._code_tensor(output)
        self.written.append(self.graph.operator("QUANTIZE", [raw], [self.codes[output]]))

    def _to_codes(self, operator: Any, weighted: bool) -> None:
        """An operator on codes: its tensors are replaced by their int8 versions."""
        output = int(operator.outputs[0])
        places = range(len(operator.inputs)) if self.graph.kind(operator) in ("ADD", "CONCATENATION") else [0]
        for place in places:
            operator.inputs[place] = self._code(int(operator.inputs[place]))
        if weighted:
            self._weigh(operator)
        self.codes[output] = self._code_tensor(output)
        operator.outputs = np.array([self.codes[output]], np.int32)
        self.graph.needs_int8(operator)

    def _weigh(self, operator: Any) -> None:
        """Int8 weights and an int32 bias in units of input scale times weight scale."""
        graph, inputs = self.graph, operator.inputs
        input_scale = float(graph.tensors[int(inputs[0])].quantization.scale[0])
        bias = graph.constant(int(inputs[2])) if len(inputs) > 2 else None
        least = np.zeros(1) if bias is None else np.abs(bias) / (input_scale * BIAS_LIMIT)
        inputs[1] = self._weights(int(inputs[1]), WEIGHT_AXIS[graph.kind(operator)], least)
        if bias is not None:
            scales = graph.tensors[int(inputs[1])].quantization.scale.astype(np.float64) * input_scale
            steps = np.rint(bias / scales).astype(np.int32)
            name = self._name(int(inputs[2]))
            inputs[2] = graph.add_constant(name, steps, graph.quantization(scales))

    def _weights(self, tensor: int, axis: int, least: np.ndarray | None = None) -> int:
        """The constant as int8 codes with a scale per output channel, none below ``least``."""
        graph = self.graph
        values = graph.constant(tensor)
        assert values is not None
        others = tuple(each for each in range(values.ndim) if each != axis)
        scales = np.abs(values).max(others).astype(np.float64) / HIGHEST
        scales = np.maximum(scales, np.zeros(1) if least is None else least)
        scales = np.where(scales > 0, scales, 1.0).astype(np.float32)
        shape = [-1 if each == axis else 1 for each in range(values.ndim)]
        steps = np.rint(values / scales.reshape(shape)).clip(-HIGHEST, HIGHEST).astype(np.int8)
        return graph.add_constant(self._name(tensor), steps, graph.quantization(scales, 0, axis))

    def _restore(self, tensor: int, stored: int) -> int:
        """The float version of a stored constant."""
        if tensor not in self.restored:
            name = self._name(tensor) + "/float"
            made = self.graph.add_tensor(name, self.graph.shape(tensor), np.float32)
            self.written.append(self.graph.operator("DEQUANTIZE", [stored], [made]))
            self.floats.add(made)
            self.restored[tensor] = made
        return self.restored[tensor]

    def _name(self, tensor: int) -> str:
        name: str = self.graph.tensors[tensor].name.decode()
        return name

    def _code_tensor(self, tensor: int) -> int:
        """A new int8 tensor for the values of ``tensor``."""
        scale, zero_point = scale_and_zero(self.range_of(self.source(tensor)))
        graph = self.graph
        name = self._name(tensor) + "/int8"
        return graph.add_tensor(name, graph.shape(tensor), np.int8, graph.quantization(scale, zero_point))

    def _code(self, tensor: int) -> int:
        """``tensor`` as codes, quantized here where it is only a float so far."""
        if tensor not in self.codes:
            self.codes[tensor] = self._code_tensor(tensor)
            self.written.append(self.graph.operator("QUANTIZE", [tensor], [self.codes[tensor]]))
        return self.codes[tensor]

    def _float(self, tensor: int) -> int:
        """``tensor`` as floats, dequantized here where it is only codes so far."""
        if tensor not in self.floats:
            self.written.append(self.graph.operator("DEQUANTIZE", [self.codes[tensor]], [tensor]))
            self.floats.add(tensor)
        return tensor


def scale_and_zero(of: Range) -> tuple[float, int]:
    """Scale and zero point of int8 codes for a range that contains zero, which gets an exact code."""
    low, high = of
    scale = (high - low) / LEVELS
    return scale, int(np.clip(round(LOWEST - low / scale), LOWEST, HIGHEST))
