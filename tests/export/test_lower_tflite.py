"""The TFLite rewrites: exact for every variant, and what they leave in the file."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import nn

from mf_deploy.artifact import ModelSource
from mf_deploy.export.lower import COMMON, REWRITES, lower, reference_graph
from mf_deploy.export.lower.batch_heads import BatchHeads
from mf_deploy.export.lower.flatten_tokens import FlatDynamicReLU
from mf_deploy.export.lower.graph import DeployGraph, Rewrite
from mf_deploy.export.lower.repeat_channels import RepeatChannels, RepeatedDepthwise
from mf_deploy.export.lower.repeat_rows import MIN_ROW, RepeatRows, RowRepeatedDepthwise
from mf_deploy.export.lower.row_slopes import WIDE, RowDynamicReLU
from mf_deploy.export.lower.wide_softmax import WideSoftmax
from mf_deploy.export.module_paths import weighted_modules
from mf_deploy.export.target import ExportOptions
from mf_deploy.models import load_model
from mf_deploy.models.mobile_former import VARIANTS, DynamicReLU
from mf_deploy.models.stored import ModelRecord
from mf_deploy.preprocessing import Preprocessing

NEW = ("RepeatRows", "RowSlopes", "WideSoftmax")
MAX_OPERATORS = 816


def record_of(name: str, side: int) -> ModelRecord:
    return ModelRecord(
        source=ModelSource(name=name, num_classes=1000, random_weights=True),
        preprocessing=Preprocessing(input_size=side),
        labels=None,
        weights_sha256="",
    )


def model_of(name: str) -> nn.Module:
    """Untrained, but with other norms and biases than those of a new model, which hide mistakes."""
    model = load_model(name)
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator)
    return model


def lowered(variant: str, side: int = 64, batch: int = 1) -> DeployGraph:
    """What ``lower`` has proven to be the reference model."""
    name = f"mobile_former_{variant}"
    return lower(model_of(name), record_of(name, side), "tflite", batch)


@pytest.mark.parametrize("spatial", ["", "_spatial"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_is_proven(variant: str, spatial: str) -> None:
    rewrites = lowered(variant + spatial).rewrites
    assert {"BatchHeads", "RepeatChannels", "RepeatRows", "SplitLayerNorm"} <= set(rewrites)
    assert ("RowSlopes" in rewrites) == (spatial == "")


@pytest.mark.parametrize("variant", ["26m", "26m_spatial", "96m"])
def test_a_batch_is_proven(variant: str) -> None:
    graph = lowered(variant, batch=2)
    assert graph.module(graph.example()).shape == (2, 1000)


def test_wide_maps_are_proven() -> None:
    """At 224 the softmax of the first bridges is divided after its product."""
    assert set(NEW) <= set(lowered("96m", side=224).rewrites)


@pytest.mark.parametrize("side", [64, 72])
def test_few_channels_are_multiplied_four_positions_at_a_time(side: int) -> None:
    """Proven where four divides the map's width (16), and where it does not (18)."""
    relus = [each for each in lowered("26m", side=side).module.modules() if isinstance(each, RowDynamicReLU)]
    slopes = [(relu.channels, conv.out_channels) for relu in relus for conv in relu.hyper[2]]
    times = {channels: wide // channels for channels, wide in slopes}
    assert times[36] == WIDE
    assert times[72] == 1


def check_other_models_are_left_alone(rewrites: Sequence[Rewrite], names: Sequence[str]) -> None:
    """By the rewrites of these names, all of which are there."""
    name = "mobilenet_v3_small"
    graph = reference_graph(load_model(name), record_of(name, 64))
    found = [rewrite for rewrite in rewrites if rewrite.name in names]
    assert len(found) == len(names)
    assert all(rewrite.apply(graph) is graph for rewrite in found)


def test_other_models_are_left_alone() -> None:
    check_other_models_are_left_alone(REWRITES["tflite"], NEW)


@pytest.mark.parametrize("bias", [-30.0, 30.0])
def test_saturated_slopes_are_exact(bias: float) -> None:
    model = model_of("mobile_former_26m")
    for module in model.modules():
        if isinstance(module, DynamicReLU):
            last = module.hyper[2]
            assert isinstance(last, nn.Linear)
            last.bias.data += bias
    graph = lower(model, record_of("mobile_former_26m", 64), "tflite")
    relus = [module for module in graph.module.modules() if isinstance(module, FlatDynamicReLU)]
    assert len(relus) == 16


def test_few_channels_are_repeated_as_planes() -> None:
    name = "mobile_former_26m"
    rewrites = (*COMMON, BatchHeads(), RepeatChannels(), RepeatRows())
    graph = lower(load_model(name), record_of(name, 64), "tflite", rewrites=rewrites)
    repeats = [module for module in graph.module.modules() if isinstance(module, RepeatedDepthwise)]
    assert {type(module) for module in repeats} == {RepeatedDepthwise, RowRepeatedDepthwise}
    for module in repeats:
        channels = module.conv.in_channels // module.times
        assert isinstance(module, RowRepeatedDepthwise) == (channels >= MIN_ROW)


def test_rewrites_leave_alone_what_they_do_not_follow() -> None:
    name = "mobile_former_26m"
    graph = lower(load_model(name), record_of(name, 64), "tflite", rewrites=COMMON)
    assert RepeatRows().apply(graph) is graph
    assert WideSoftmax().apply(graph) is graph


def test_layers_go_by_the_names_of_the_reference_model() -> None:
    reference = set(weighted_modules(load_model("mobile_former_26m")))
    assert set(weighted_modules(lowered("26m").module).values()) <= reference


@pytest.mark.slow
def test_the_26m_is_short_and_one_partition(tmp_path: Path) -> None:
    pytest.importorskip("litert_torch")
    from ai_edge_litert.interpreter import Interpreter

    from mf_deploy.export.tflite import convert
    from mf_deploy.export.tflite_file import read_operators

    path = tmp_path / "model.tflite"
    name = "mobile_former_26m"
    graph = lower(load_model(name), record_of(name, 224), "tflite")
    path.write_bytes(convert(graph, ExportOptions()))
    found = Counter(operator.kind for operator in read_operators(path))
    assert found.total() <= MAX_OPERATORS
    interpreter = Interpreter(model_path=str(path))
    interpreter.allocate_tensors()
    plan = interpreter._get_ops_details()
    assert [each["op_name"] for each in plan[found.total() :]] == ["DELEGATE"]
