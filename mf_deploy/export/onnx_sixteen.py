"""16-bit activations for NPUs: standard pairs of QuantizeLinear and DequantizeLinear around layers."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from mf_deploy.export.onnx_file import WEIGHT_OPS, least_scales
from mf_deploy.export.onnx_graph import FloatGraph
from mf_deploy.export.ranges import Range

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

OPSET = 21  # the first one whose QuantizeLinear gives 16 bits
LEVELS = 65535


def step(ends: Range) -> float:
    """The scale of 16-bit codes over a range."""
    return max(ends[1] - ends[0], 1e-9) / LEVELS


def smallest_scales(
    source: FloatGraph, weights: set[str], ranges: Mapping[str, Range]
) -> dict[str, np.ndarray]:
    """Weight → the scales below which the bias of its layer would not fit int32."""
    return {
        node.input[1]: least_scales(source.constants[node.input[2]], step(ranges[node.input[0]]))
        for node in source.nodes
        if len(node.input) > 2 and node.input[1] in weights and node.input[2] in source.constants
    }


@dataclass
class SixteenBits:
    """Rewrites a model in place: uint16 codes before and behind layers, int32 codes for their biases.

    onnxruntime's CPU engine has no such kernels and computes what the codes stand for in float; NPUs such
    as Qualcomm's take the pairs for their own. The weights get theirs from ``quantize_weights``.

    Args:
        ranges: the ranges of the layers' inputs and outputs, by name.
    """

    model: "ModelProto"
    ranges: Mapping[str, Range]
    nodes: list["NodeProto"] = field(default_factory=list)
    coded: dict[str, str] = field(default_factory=dict)
    constants: dict[str, np.ndarray] = field(default_factory=dict)

    def apply(self, weights: set[str]) -> None:
        """Give the layers with a weight among ``weights``, already int8, 16-bit activations."""
        from onnx import numpy_helper

        graph = self.model.graph
        self.constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
        for node in graph.node:
            if node.op_type in WEIGHT_OPS and node.input[1] in weights:
                self._layer(node)
            else:
                self.nodes.append(node)
        del graph.node[:]
        graph.node.extend(self.nodes)
        for opset in self.model.opset_import:
            if not opset.domain:
                opset.version = max(opset.version, OPSET)

    def _layer(self, node: "NodeProto") -> None:
        source, output = node.input[0], node.output[0]
        node.input[0] = self._pair(source, source, f"{source}_uint16")
        if len(node.input) > 2:
            self._bias(node, float(self.constants[f"{source}_uint16_scale"]))
        node.output[0] = f"{output}_exact"
        self.nodes.append(node)
        self.coded[output] = self._pair(f"{output}_exact", output, output)

    def _constant(self, name: str, value: np.ndarray) -> str:
        from onnx import numpy_helper

        if name not in self.constants:
            self.model.graph.initializer.append(numpy_helper.from_array(value, name))
            self.constants[name] = value
        return name

    def _pair(self, given: str, ranged: str, result: str) -> str:
        """``given`` as codes and back, named ``result``; what a layer gave as codes already stays."""
        from onnx import helper

        low, high = self.ranges[ranged]
        scale = np.float32(step((low, high)))
        zero = np.uint16(np.clip(round(-low / float(scale)), 0, LEVELS))
        parameters = [
            self._constant(f"{ranged}_uint16_scale", np.array(scale)),
            self._constant(f"{ranged}_uint16_zero", np.array(zero)),
        ]
        if given in self.coded:
            return self.coded[given]
        codes = f"{ranged}_uint16_codes"
        self.nodes.append(helper.make_node("QuantizeLinear", [given, *parameters], [codes]))
        self.nodes.append(helper.make_node("DequantizeLinear", [codes, *parameters], [result]))
        self.coded[given] = result
        return result

    def _bias(self, node: "NodeProto", source_scale: float) -> None:
        """The bias as int32 in units of both scales."""
        from onnx import helper

        name, weight = node.input[2], node.input[1]
        if name not in self.constants:
            return
        scales = (source_scale * self.constants[f"{weight}_scale"].astype(np.float64)).astype(np.float32)
        codes = np.rint(self.constants[name].astype(np.float64) / scales)
        label = f"{weight}_bias"
        parts = [
            self._constant(f"{label}_codes", codes.astype(np.int32)),
            self._constant(f"{label}_scale", scales),
        ]
        self.nodes.append(helper.make_node("DequantizeLinear", parts, [label], axis=0))
        node.input[2] = label
