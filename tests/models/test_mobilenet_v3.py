"""MobileNetV3 against torchvision's and timm's key names, and against a functional forward pass."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from mf_deploy.models.counting import count_macs, count_parameters
from mf_deploy.models.registry import get_spec

# Parts of each block (expand, depthwise, squeeze, project), strides, blocks a timm stage, and the
# first block with hard-swish: read from tables 1 and 2 of the paper.
PATTERNS = {
    "mobilenet_v3_large": ["dp", *["edp"] * 2, *["edsp"] * 3, *["edp"] * 4, *["edsp"] * 5],
    "mobilenet_v3_small": ["dsp", *["edp"] * 2, *["edsp"] * 8],
}
STRIDES = {
    "mobilenet_v3_large": [1, 2, 1, 2, 1, 1, 2, 1, 1, 1, 1, 1, 2, 1, 1],
    "mobilenet_v3_small": [2, 2, 1, 2, 1, 1, 1, 1, 2, 1, 1],
}
STAGES = {"mobilenet_v3_large": [1, 2, 3, 4, 2, 3], "mobilenet_v3_small": [1, 2, 3, 2, 3]}
FIRST_HARD_SWISH = {"mobilenet_v3_large": 6, "mobilenet_v3_small": 3}
NAMES = list(PATTERNS)

# Rows of the published listings of torchvision's and timm's parameters.
TORCHVISION_ROWS = {
    "mobilenet_v3_large": {
        "features.0.0.weight": (16, 3, 3, 3),
        "features.1.block.1.0.weight": (16, 16, 1, 1),
        "features.4.block.2.fc1.weight": (24, 72, 1, 1),
        "features.9.block.2.0.weight": (80, 184, 1, 1),
        "features.12.block.2.fc2.bias": (672,),
        "features.13.block.1.0.weight": (672, 1, 5, 5),
        "features.16.0.weight": (960, 160, 1, 1),
        "classifier.0.weight": (1280, 960),
        "classifier.3.weight": (1000, 1280),
    },
    "mobilenet_v3_small": {
        "features.1.block.1.fc1.weight": (8, 16, 1, 1),
        "features.3.block.0.0.weight": (88, 24, 1, 1),
        "features.5.block.2.fc1.weight": (64, 240, 1, 1),
        "features.8.block.2.fc1.weight": (40, 144, 1, 1),
        "features.12.0.weight": (576, 96, 1, 1),
        "classifier.0.weight": (1024, 576),
    },
}
TIMM_ROWS = {
    "mobilenet_v3_large": {
        "conv_stem.weight": (16, 3, 3, 3),
        "blocks.0.0.conv_pw.weight": (16, 16, 1, 1),
        "blocks.0.0.bn2.weight": (16,),
        "blocks.2.0.se.conv_reduce.weight": (24, 72, 1, 1),
        "blocks.3.3.conv_pwl.weight": (80, 184, 1, 1),
        "blocks.5.2.bn3.bias": (160,),
        "blocks.6.0.conv.weight": (960, 160, 1, 1),
        "conv_head.weight": (1280, 960, 1, 1),
        "classifier.weight": (1000, 1280),
    },
    "mobilenet_v3_small": {
        "blocks.4.2.se.conv_expand.weight": (576, 144, 1, 1),
        "blocks.5.0.conv.weight": (576, 96, 1, 1),
        "blocks.5.0.bn1.bias": (576,),
        "conv_head.weight": (1024, 576, 1, 1),
        "classifier.weight": (1000, 1024),
    },
}


def torchvision_modules(name: str) -> list[str]:
    """Modules with weights in torchvision's order; ours come in the same one."""
    modules = ["features.0.0", "features.0.1"]
    for number, pattern in enumerate(PATTERNS[name], start=1):
        for position, part in enumerate(pattern):
            leaves = ("fc1", "fc2") if part == "s" else ("0", "1")
            modules += [f"features.{number}.block.{position}.{leaf}" for leaf in leaves]
    last = len(PATTERNS[name]) + 1
    return [*modules, f"features.{last}.0", f"features.{last}.1", "classifier.0", "classifier.3"]


def timm_modules(name: str) -> list[str]:
    modules = ["conv_stem", "bn1"]
    patterns = iter(PATTERNS[name])
    for stage, blocks in enumerate(STAGES[name]):
        for index in range(blocks):
            pattern, norm = next(patterns), 0
            project = "conv_pwl" if "e" in pattern else "conv_pw"
            for part in pattern:
                prefix = f"blocks.{stage}.{index}"
                if part == "s":
                    modules += [f"{prefix}.se.conv_reduce", f"{prefix}.se.conv_expand"]
                else:
                    norm += 1
                    conv = {"e": "conv_pw", "d": "conv_dw", "p": project}[part]
                    modules += [f"{prefix}.{conv}", f"{prefix}.bn{norm}"]
    last = f"blocks.{len(STAGES[name])}.0"
    return [*modules, f"{last}.conv", f"{last}.bn1", "conv_head", "classifier"]


def filled_model(name: str) -> torch.nn.Module:
    """A model with made weights, whose activations stay where hard-swish and the gates bend."""
    generator = torch.Generator().manual_seed(1)
    model = get_spec(name).build(1000).eval()
    for key, value in model.state_dict().items():
        if key.endswith("running_var"):
            value.copy_(torch.rand(value.shape, generator=generator) * 1.5 + 0.25)
        elif value.dim() == 1:
            offset = 0.3 if key.endswith("project.norm.weight") else float(key.endswith("norm.weight"))
            value.copy_(torch.randn(value.shape, generator=generator) * 0.1 + offset)
        elif value.is_floating_point():
            fan_in = value[0].numel()
            value.copy_(torch.randn(value.shape, generator=generator) * (2 / fan_in) ** 0.5)
    return model


def renamed(state: dict[str, Tensor], modules: list[str]) -> dict[str, Tensor]:
    """``state`` with its modules, in order, called ``modules``."""
    ours = list(dict.fromkeys(key.rpartition(".")[0] for key in state))
    assert len(ours) == len(modules)
    names = dict(zip(ours, modules, strict=True))
    return {
        f"{names[key.rpartition('.')[0]]}.{key.rpartition('.')[2]}": value for key, value in state.items()
    }


def torchvision_forward(name: str, state: dict[str, Tensor], x: Tensor) -> Tensor:
    """torchvision's network, written with functions on its state dict."""

    def conv_norm(prefix: str, x: Tensor, stride: int = 1) -> Tensor:
        weight = state[f"{prefix}.0.weight"]
        groups = x.shape[1] // weight.shape[1]
        x = F.conv2d(x, weight, None, stride, weight.shape[-1] // 2, groups=groups)
        mean, var, gamma, beta = (
            state[f"{prefix}.1.{leaf}"][:, None, None]
            for leaf in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / torch.sqrt(var + 0.001) * gamma + beta

    def squeeze(prefix: str, x: Tensor) -> Tensor:
        gate = x.mean((2, 3), keepdim=True)
        gate = F.relu(F.conv2d(gate, state[f"{prefix}.fc1.weight"], state[f"{prefix}.fc1.bias"]))
        gate = F.conv2d(gate, state[f"{prefix}.fc2.weight"], state[f"{prefix}.fc2.bias"])
        return x * (gate / 6 + 0.5).clamp(0, 1)

    def hard_swish(x: Tensor) -> Tensor:
        return x * (x / 6 + 0.5).clamp(0, 1)

    x = hard_swish(conv_norm("features.0", x, 2))
    for index, (pattern, stride) in enumerate(zip(PATTERNS[name], STRIDES[name], strict=True)):
        activation = hard_swish if index >= FIRST_HARD_SWISH[name] else F.relu
        y = x
        for position, part in enumerate(pattern):
            prefix = f"features.{index + 1}.block.{position}"
            if part == "s":
                y = squeeze(prefix, y)
            else:
                y = conv_norm(prefix, y, stride if part == "d" else 1)
                y = y if part == "p" else activation(y)
        x = x + y if y.shape == x.shape else y
    x = hard_swish(conv_norm(f"features.{len(PATTERNS[name]) + 1}", x)).mean((2, 3))
    x = hard_swish(F.linear(x, state["classifier.0.weight"], state["classifier.0.bias"]))
    return F.linear(x, state["classifier.3.weight"], state["classifier.3.bias"])


@pytest.mark.parametrize(
    ("name", "params", "published_macs"),
    [("mobilenet_v3_large", 5_483_032, 219e6), ("mobilenet_v3_small", 2_542_856, 56e6)],
)
def test_counts(name: str, params: int, published_macs: float) -> None:
    model = get_spec(name).build(1000)
    assert count_parameters(model) == params
    assert count_macs(model, 224) == pytest.approx(published_macs, rel=0.015)


@pytest.mark.parametrize("name", NAMES)
def test_torchvision_state_dict_gives_torchvisions_logits(name: str) -> None:
    source = filled_model(name)
    theirs = renamed(source.state_dict(), torchvision_modules(name))
    for key, shape in TORCHVISION_ROWS[name].items():
        assert tuple(theirs[key].shape) == shape
    spec = get_spec(name)
    assert spec.translate is not None
    model = spec.build(1000).eval()
    model.load_state_dict(spec.translate(theirs), strict=True)
    images = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits, expected = model(images), torchvision_forward(name, theirs, images)
    assert expected.std() > 0.01
    assert (logits - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("name", NAMES)
def test_timm_state_dict_keeps_its_own_epsilon(name: str) -> None:
    source = filled_model(name)
    for module in source.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eps = 1e-5
    theirs = renamed(source.state_dict(), timm_modules(name))
    theirs["conv_head.weight"] = theirs["conv_head.weight"][:, :, None, None]
    for key, shape in TIMM_ROWS[name].items():
        assert tuple(theirs[key].shape) == shape
    spec = get_spec(name)
    assert spec.translate is not None
    model = spec.build(1000).eval()
    model.load_state_dict(spec.translate(theirs), strict=True)
    images = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits, expected = model(images), source(images)
    assert (logits - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_own_state_dict_is_left_alone() -> None:
    spec = get_spec("mobilenet_v3_small")
    assert spec.translate is not None
    state = spec.build(10).state_dict()
    assert spec.translate(state) is state
