"""The rewrites for onnxruntime: exact for every variant, and what they leave in the file."""

from collections import Counter

import onnx
import pytest
import torch
from torch import nn

from mf_deploy.artifact import ModelSource
from mf_deploy.export.lower import REWRITES, DeployGraph, lower, reference_graph
from mf_deploy.export.lower.flatten_tokens import FlatBlock
from mf_deploy.export.lower.pad_columns import PaddedPointwise, unpad
from mf_deploy.export.lower.row_blocks import RowBottleneck, RowDownBlock, RowPointwise, row_depthwise, unrow
from mf_deploy.export.lower.scale_depthwise import ScaledBlock, unscale
from mf_deploy.export.lower.split_columns import ColumnConv
from mf_deploy.export.onnx import OnnxExporter
from mf_deploy.export.target import ExportOptions
from mf_deploy.models.mobile_former import VARIANTS, DynamicReLU
from mf_deploy.models.stored import ModelRecord, build
from mf_deploy.preprocessing import Preprocessing


def stored(name: str, size: int) -> tuple[nn.Module, ModelRecord]:
    """A model with random weights, statistics of its batch norms included, and its record."""
    source = ModelSource(name=name, num_classes=10, random_weights=True)
    model = build(source).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_(0, 0.1, generator=generator)
            module.running_var.uniform_(0.5, 1.5, generator=generator)
    record = ModelRecord(
        source=source, preprocessing=Preprocessing(input_size=size), labels=None, weights_sha256="0" * 64
    )
    return model, record


def lowered(variant: str, size: int = 64, batch: int = 1) -> DeployGraph:
    """What ``lower`` has proven to be the reference model."""
    return lower(*stored(f"mobile_former_{variant}", size), "onnx", batch)


def file_of(graph: DeployGraph, scheme: str = "fp32") -> onnx.ModelProto:
    return OnnxExporter()._simplified(graph, scheme, ExportOptions())


def operators(model: onnx.ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node)


@pytest.mark.parametrize("suffix", ["", "_spatial"])
@pytest.mark.parametrize("variant", sorted(VARIANTS))
def test_every_variant_is_proven(variant: str, suffix: str) -> None:
    rewrites = lowered(variant + suffix).rewrites
    assert "BatchHeads" in rewrites
    assert ("ScaleDepthwise" in rewrites) == (suffix == "")


@pytest.mark.parametrize("variant", ["26m", "26m_spatial", "96m"])
def test_a_batch_is_proven_without_the_weights_of_one_image(variant: str) -> None:
    graph = lowered(variant, batch=2)
    assert "ScaleDepthwise" not in graph.rewrites
    assert graph.module(graph.example()).shape == (2, 10)


@pytest.mark.parametrize("variant", ["26m", "96m"])
def test_wide_and_odd_maps_are_proven(variant: str) -> None:
    assert "SplitColumns" in lowered(variant, size=128).rewrites
    assert "SplitColumns" not in lowered(variant, size=113).rewrites


def test_split_columns_reach_the_same_place() -> None:
    conv = nn.Conv2d(4, 8, 3, 2, 1, groups=4).double()
    images = torch.randn(2, 4, 112, 116, dtype=torch.float64)
    torch.testing.assert_close(ColumnConv(conv)(images), conv(images))


@pytest.mark.parametrize("bias", [-30.0, 30.0, 0.0])
def test_saturated_slopes_are_exact(bias: float) -> None:
    """With a1 = 0 for all channels, its ratio to a2 is as large as it gets."""
    model, record = stored("mobile_former_26m", 64)
    for module in model.modules():
        if isinstance(module, DynamicReLU):
            last = module.hyper[2]
            assert isinstance(last, nn.Linear)
            last.bias[: module.channels] = bias
    graph = lower(model, record, "onnx")
    expected, actual = model(graph.example()), graph.module(graph.example())
    assert actual.isfinite().all()
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-4 * float(expected.max() - expected.min()))


def test_padded_pointwise_is_zero_at_the_sides() -> None:
    conv = nn.Conv2d(8, 16, 1, groups=4).double()
    images = torch.randn(2, 8, 5, 7, dtype=torch.float64)
    torch.testing.assert_close(PaddedPointwise(conv)(images), nn.functional.pad(conv(images), (1, 1)))
    torch.testing.assert_close(PaddedPointwise(conv, 1)(images), nn.functional.pad(conv(images), (1, 2)))


@pytest.mark.parametrize("variant", ["26m", "52m"])
def test_maps_of_seven_columns_are_proven(variant: str) -> None:
    graph = lowered(variant, size=224)
    spare = [m.spare for m in graph.module.modules() if isinstance(m, PaddedPointwise)]
    assert sum(spare) == (variant == "26m")  # its last bottleneck; in the 52M that one is rows


@pytest.mark.parametrize("times", [1, 3])
@pytest.mark.parametrize("width", [4, 5, 7])
def test_depthwise_convolution_on_rows(times: int, width: int) -> None:
    conv = nn.Conv2d(4, 4 * times, 3, padding=1, groups=4, bias=False).double()
    images = torch.randn(1, 4, 3, width, dtype=torch.float64)
    expected = conv(images).flatten(2)[0].t()
    torch.testing.assert_close(row_depthwise(conv, images.flatten(2)[0].t(), (3, width)), expected)


def test_small_maps_of_dense_models_are_rows() -> None:
    graph = lowered("52m", size=224)
    kinds = Counter(type(module) for module in graph.module.modules())
    blocks = [block for block in graph.module.features if isinstance(block, FlatBlock)]
    bottlenecks = sum(not block.down for block in blocks)
    assert kinds[RowBottleneck] == bottlenecks - 2  # all but those on maps of 56 and 28 columns
    assert (kinds[RowDownBlock], kinds[RowPointwise]) == (1, 1)
    expected = graph.module(graph.example())
    unscale(graph.module)
    unpad(graph.module)
    unrow(graph.module)
    assert all(type(block) is FlatBlock for block in blocks)
    assert not any(isinstance(module, RowPointwise) for module in graph.module.modules())
    torch.testing.assert_close(graph.module(graph.example()), expected, rtol=0, atol=1e-4)


def test_unpad_gives_the_convolutions_back() -> None:
    graph = lowered("26m")
    expected = graph.module(graph.example())
    assert "PadColumns" in graph.rewrites
    unpad(graph.module)
    assert not any(isinstance(module, PaddedPointwise) for module in graph.module.modules())
    torch.testing.assert_close(graph.module(graph.example()), expected, rtol=0, atol=1e-4)


def test_unscale_gives_constant_weights() -> None:
    graph = lowered("26m")
    expected = graph.module(graph.example())
    assert any(type(block) is ScaledBlock for block in graph.module.modules())
    unscale(graph.module)
    assert any(type(block) is FlatBlock for block in graph.module.modules())
    torch.testing.assert_close(graph.module(graph.example()), expected, rtol=0, atol=1e-4)


@pytest.mark.slow
def test_what_is_left_in_the_file() -> None:
    graph = lowered("26m")
    reference = operators(file_of(reference_graph(*stored("mobile_former_26m", 64))))
    file = file_of(graph)
    deploy = operators(file)
    blocks = sum(isinstance(block, FlatBlock) for block in graph.module.modules())
    assert deploy["LayerNormalization"] == 3 * blocks + 1
    assert deploy["Softmax"] == 2 * blocks + 1  # the positions' softmax over tokens is elementwise
    assert deploy["Max"] == 2 * blocks
    constants = {tensor.name for tensor in file.graph.initializer}
    moving = [node for node in file.graph.node if node.op_type == "Conv" and node.input[1] not in constants]
    assert len(moving) == 2 * sum(
        block.down for block in graph.module.modules() if isinstance(block, FlatBlock)
    )
    assert not {"Cast", "Expand", "Tile"} & set(deploy)
    assert deploy.total() < 0.9 * reference.total()


@pytest.mark.slow
def test_half_precision_weights_are_constants() -> None:
    model = file_of(lowered("26m"), "fp16")
    constants = {tensor.name for tensor in model.graph.initializer}
    assert all(node.input[1] in constants for node in model.graph.node if node.op_type == "Conv")


def test_all_rewrites_apply_to_the_96m() -> None:
    names = [rewrite.name for rewrite in REWRITES["onnx"]]
    assert list(lowered("96m", size=128).rewrites) == names


@pytest.mark.slow
def test_every_beginning_of_the_list_is_proven() -> None:
    """The table of what each rewrite gains leaves out the ones after it."""
    model, record = stored("mobile_former_26m", 64)
    for end in range(len(REWRITES["onnx"])):
        lower(model, record, "onnx", rewrites=REWRITES["onnx"][:end])
