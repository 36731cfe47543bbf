"""The Core ML rewrites: one function for every variant, and a program that the Neural Engine can take."""

from collections import Counter

import pytest
import torch
from torch import nn

from mf_deploy.artifact import ModelSource
from mf_deploy.export.coreml import convert
from mf_deploy.export.coreml_quantize import layers_of
from mf_deploy.export.lower import COMMON, lower, reference_graph
from mf_deploy.export.lower.channel_norm import ChannelNorm
from mf_deploy.export.lower.dense_shuffles import DenseShuffles
from mf_deploy.export.lower.neural_engine import TALLEST_KERNEL, NeuralEngine
from mf_deploy.export.module_paths import weighted_modules
from mf_deploy.export.target import ExportOptions
from mf_deploy.mil import Interpreter, MilProgram, read_program
from mf_deploy.models import load_model
from mf_deploy.models.mobile_former import VARIANTS, ChannelShuffle
from mf_deploy.models.stored import ModelRecord
from mf_deploy.preprocessing import Preprocessing

NEURAL_ENGINE_OPERATIONS = {
    *("conv", "matmul", "einsum", "softmax", "layer_norm"),
    *("add", "mul", "maximum", "clip", "relu", "relu6", "gelu", "sigmoid_hard"),
    *("reshape", "split", "slice_by_index", "concat", "reduce_mean", "avg_pool", "squeeze"),
}


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
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    return model


def program_of(name: str, side: int, batch: int = 1) -> tuple[MilProgram, nn.Module]:
    model = model_of(name)
    graph = lower(model, record_of(name, side), "coreml", batch)
    return read_program(convert(graph, "fp32", ExportOptions(), "iOS16"), name), model


def counts(program: MilProgram) -> Counter[str]:
    return Counter(operation.op_type for operation in program.operations if operation.op_type != "const")


@pytest.mark.parametrize("spatial", ["", "_spatial"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_keeps_its_function(variant: str, spatial: str) -> None:
    name = f"mobile_former_{variant}{spatial}"
    graph = lower(model_of(name), record_of(name, 64), "coreml")
    assert graph.rewrites[-1] == "NeuralEngine"
    assert not any(isinstance(module, nn.Linear | nn.LayerNorm) for module in graph.module.modules())


@pytest.mark.parametrize("name", ["mobile_former_26m", "mobile_former_96m_spatial"])
def test_a_batch_keeps_its_function(name: str) -> None:
    graph = lower(model_of(name), record_of(name, 64), "coreml", batch=3)
    assert graph.module(graph.example()).shape == (3, 1000)


def test_shuffles_become_orders_of_weights() -> None:
    name = "mobile_former_26m"
    model = model_of(name)
    graph = lower(model, record_of(name, 64), "coreml", rewrites=(*COMMON, DenseShuffles()))
    assert any(isinstance(module, ChannelShuffle) for module in model.modules())
    assert not any(isinstance(module, ChannelShuffle) for module in graph.module.modules())


def test_other_models_are_left_alone() -> None:
    name = "mobilenet_v3_small"
    graph = reference_graph(load_model(name), record_of(name, 64))
    assert DenseShuffles().apply(graph) is graph
    assert NeuralEngine().apply(graph) is graph


def test_channels_are_normalised() -> None:
    norm = nn.LayerNorm(8)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    x = torch.randn(2, 8, 1, 5)
    expected = norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    torch.testing.assert_close(ChannelNorm(norm)(x), expected)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "batch"), [("mobile_former_26m", 2), ("mobile_former_52m", 1), ("mobile_former_52m_spatial", 1)]
)
def test_the_program_computes_the_same(name: str, batch: int) -> None:
    program, model = program_of(name, 64, batch)
    found = counts(program)
    assert set(found) <= NEURAL_ENGINE_OPERATIONS
    image = torch.randn(batch, 3, 64, 64)
    expected = model(image).numpy()
    actual = Interpreter(program).run({"image": image.numpy()})["logits"]
    assert abs(actual - expected).max() < 1e-5 * (expected.max() - expected.min())


def test_every_layer_has_its_place_in_the_reference_model() -> None:
    model = model_of("mobile_former_52m")
    graph = lower(model, record_of("mobile_former_52m", 64), "coreml")
    modules = {name for name, module in model.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)}
    assert set(weighted_modules(graph.module).values()) <= modules


@pytest.mark.slow
def test_the_26m_is_short() -> None:
    """And what int8 takes of it are the layers: not the sums over the channels of a head."""
    graph = lower(model_of("mobile_former_26m"), record_of("mobile_former_26m", 224), "coreml")
    program = read_program(convert(graph, "fp32", ExportOptions(), "iOS16"), "mobile_former_26m")
    found = counts(program)
    assert found["transpose"] == 0
    assert found["reshape"] <= 30
    assert found["layer_norm"] == 25
    assert found.total() <= 400
    modules = weighted_modules(graph.module)
    assert Counter(layer.path for layer in layers_of(program, modules)) == Counter(modules.values())
    tallest = max(op.inputs["weight"].shape[2] for op in program.operations if op.op_type == "conv")
    assert tallest <= TALLEST_KERNEL
