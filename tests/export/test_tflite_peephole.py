"""Changes of the converted graph: found where they are due, and exact."""

from collections import Counter

import numpy as np
import pytest
import torch
from test_lower_tflite import record_of
from torch import Tensor, nn

from mf_deploy.export.lower.graph import DeployGraph
from mf_deploy.export.lower.repeat_channels import RepeatedDepthwise
from mf_deploy.export.lower.split_repeats import PARTS, SplitDepthwise
from mf_deploy.export.target import ExportOptions
from mf_deploy.export.tflite import convert
from mf_deploy.export.tflite_graph import TfliteGraph
from mf_deploy.export.tflite_peephole import skip_transpositions

pytest.importorskip("litert_torch")

from ai_edge_litert.interpreter import Interpreter


def converted(network: nn.Module) -> TfliteGraph:
    """The file of ``network`` on 8 × 8 images, which computes what ``network`` does."""
    graph = DeployGraph(network.eval().requires_grad_(False), record_of("mobile_former_26m", 8))
    content = convert(graph, ExportOptions())
    check(content, network, graph.example())
    return TfliteGraph(content)


def check(content: bytes, network: nn.Module, images: Tensor) -> None:
    interpreter = Interpreter(model_content=content)
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], images.permute(0, 2, 3, 1).numpy())
    interpreter.invoke()
    actual = interpreter.get_tensor(interpreter.get_output_details()[0]["index"])
    np.testing.assert_allclose(actual, network(images).numpy(), rtol=1e-5, atol=1e-5)


def kinds(graph: TfliteGraph) -> list[str]:
    return [graph.kind(operator) for operator in graph.operators]


def test_every_convolution_has_a_padding_of_its_own() -> None:
    """XNNPACK leaves out a PAD that one convolution alone reads; the converter merges equal ones."""
    source = RepeatedDepthwise(nn.Conv2d(3, 18, 3, 2, 1, groups=3))
    tflite = converted(SplitDepthwise(source, nn.Identity()))
    pads = [int(each.outputs[0]) for each in tflite.operators if tflite.kind(each) == "PAD"]
    read = Counter(int(index) for each in tflite.operators for index in each.inputs)
    assert len(pads) == PARTS
    assert [read[pad] for pad in pads] == [1] * PARTS


class Product(nn.Module):
    """Scores of every position against every other one, and the map weighed by them."""

    def forward(self, images: Tensor) -> Tensor:
        x = images.flatten(2).squeeze(0)
        return (x @ x.transpose(0, 1)) @ x


def test_products_of_what_is_computed_stay_products() -> None:
    found = kinds(converted(Product()))
    assert found.count("BATCH_MATMUL") == 2
    assert "FULLY_CONNECTED" not in found


class ThereAndBack(nn.Module):
    """A map that is read as planes and, beside that, by a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)

    def forward(self, images: Tensor) -> Tensor:
        x = self.first(images)
        return self.second(x).mean((2, 3)) + x.flatten(2).amax(2)


def test_transpositions_that_undo_each_other_are_skipped() -> None:
    network = ThereAndBack()
    graph = converted(network)
    convolution = next(each for each in graph.operators if graph.kind(each) == "CONV_2D")
    made, shape = int(convolution.outputs[0]), graph.shape(int(convolution.outputs[0]))
    before = kinds(graph)

    order = graph.add_constant("order", np.array([0, 3, 1, 2], np.int32))
    back = graph.add_constant("back", np.array([0, 2, 3, 1], np.int32))
    planes = graph.add_tensor("planes", [shape[axis] for axis in (0, 3, 1, 2)], np.float32)
    rows = graph.add_tensor("rows", shape, np.float32)
    for operator in graph.operators:
        operator.inputs = np.array([rows if i == made else i for i in operator.inputs], np.int32)
    place = graph.operators.index(convolution) + 1
    graph.operators[place:place] = [
        graph.operator("TRANSPOSE", [made, order], [planes]),
        graph.operator("TRANSPOSE", [planes, back], [rows]),
    ]
    assert kinds(graph).count("TRANSPOSE") == before.count("TRANSPOSE") + 2
    skip_transpositions(graph)
    assert kinds(graph) == before
    check(graph.serialize(), network, torch.zeros(1, 3, 8, 8))
