"""Questions about a float ONNX model: shapes, constants, who reads what, and what follows a convolution."""

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

MOVING = {"Concat", "Pad", "Reshape", "Slice", "Transpose"}
"""Operators that do as well on codes: they move values, and put zeros between them."""


@dataclass(frozen=True)
class Chain:
    """What an integer convolution computes besides itself: up to ``end``, by a gain and a ratio or a clip."""

    end: str
    gain: str = ""
    ratio: str = ""
    clipped: bool = False
    skipped: tuple[int, ...] = ()


class FloatGraph:
    """Questions about a float model: shapes, constants, and who reads what."""

    def __init__(self, model: "ModelProto") -> None:
        from onnx import numpy_helper

        graph = model.graph
        self.model, self.nodes = model, list(graph.node)
        self.constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
        self.shapes = {name: value.shape for name, value in self.constants.items()} | {
            value.name: tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim)
            for value in (*graph.input, *graph.output, *graph.value_info)
        }
        self.outputs = {value.name for value in graph.output}
        self.readers: defaultdict[str, list[int]] = defaultdict(list)
        for index, node in enumerate(self.nodes):
            for name in node.input:
                self.readers[name].append(index)
        self.makers = {name: node for node in self.nodes for name in node.output}

    def only_reader(self, name: str) -> tuple[int, "NodeProto"] | None:
        found = self.readers[name]
        if len(found) != 1 or name in self.outputs:
            return None
        return found[0], self.nodes[found[0]]

    def is_vector(self, name: str, channels: int) -> bool:
        return self.shapes.get(name) == (1, channels, 1, 1)

    def origin(self, name: str) -> str:
        """The tensor whose values, and zeros, ``name`` has in another place; ``name`` itself if it is new."""
        node = self.makers.get(name)
        if node is None or node.op_type not in MOVING:
            return name
        sources = {self.origin(each) for each in self.moved(node)}
        return sources.pop() if len(sources) == 1 else name

    def moved(self, node: "NodeProto") -> list[str]:
        """The inputs of a node of ``MOVING`` whose values it moves."""
        return list(node.input) if node.op_type == "Concat" else list(node.input[:1])

    def other(self, node: "NodeProto", name: str) -> str:
        return next((each for each in node.input if each != name), name)

    def chain(self, name: str) -> Chain:
        """What follows the convolution that makes ``name`` and can be part of it."""
        found = self.only_reader(name)
        if found is None:
            return Chain(name)
        index, node = found
        if self._clips(node):
            return Chain(node.output[0], clipped=True, skipped=(index,))
        gain = self.other(node, name)
        if node.op_type != "Mul" or not self.is_vector(gain, self.shapes[name][1]):
            return Chain(name)
        scaled = node.output[0]
        relu = self._leak(scaled)
        if relu is None:
            return Chain(scaled, gain, skipped=(index,))
        ratio, multiply, maximum = relu
        return Chain(self.nodes[maximum].output[0], gain, ratio, skipped=(index, multiply, maximum))

    def _leak(self, name: str) -> tuple[str, int, int] | None:
        """max(name, ratio·name): the ratio and both nodes."""
        readers = self.readers[name]
        if len(readers) != 2 or {self.nodes[i].op_type for i in readers} != {"Mul", "Max"}:
            return None
        multiply, maximum = sorted(readers, key=lambda i: self.nodes[i].op_type, reverse=True)
        product, ratio = self.nodes[multiply].output[0], self.other(self.nodes[multiply], name)
        if self.readers[product] != [maximum] or not self.is_vector(ratio, self.shapes[name][1]):
            return None
        return ratio, multiply, maximum

    def _clips(self, node: "NodeProto") -> bool:
        """A ReLU, or a clip from zero: what the range of uint8 codes does by itself."""
        if node.op_type == "Relu":
            return True
        if node.op_type != "Clip" or len(node.input) < 3:
            return False
        return all(name in self.constants for name in node.input[1:]) and not self.constants[node.input[1]]


def attribute(node: "NodeProto", name: str, default: Any) -> Any:
    """The value of an attribute of ``node``."""
    from onnx import helper

    return next((helper.get_attribute_value(a) for a in node.attribute if a.name == name), default)
