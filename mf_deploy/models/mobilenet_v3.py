"""MobileNetV3 Large and Small (Howard et al., ICCV 2019, arXiv 1905.02244): the paper's baseline.

Besides its own state dicts it loads those of torchvision (``mobilenet_v3_large``) and of timm
(``mobilenetv3_large_100``), whose modules are the same ones under other names.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mf_deploy.models.registry import ModelSpec, register

NORM_EPS = 1e-3  # the paper's TensorFlow models and torchvision
TIMM_NORM_EPS = 1e-5  # timm's own MobileNetV3 weights (not its tf_* ports, which also pad differently)


@dataclass(frozen=True)
class BlockSpec:
    """One row of the paper's tables 1 and 2; ``stage`` and ``index`` are where timm puts it."""

    kernel: int
    expanded: int
    channels: int
    squeeze: bool
    hard_swish: bool
    stride: int
    stage: int
    index: int


@dataclass(frozen=True)
class VariantSpec:
    """The blocks, and the widths of the last convolution and of the hidden layer of the classifier."""

    blocks: tuple[BlockSpec, ...]
    last_channels: int
    head_dim: int


def _squeezed(channels: int) -> int:
    """A quarter of ``channels``, rounded to a multiple of 8 and never more than 10 % lower."""
    quarter = channels // 4
    rounded = max(8, (quarter + 4) // 8 * 8)
    return rounded if rounded >= 0.9 * quarter else rounded + 8


class ConvNorm(nn.Sequential):
    """Convolution, batch normalisation and, where there is one, the activation."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        activation: type[nn.Module] | None,
        stride: int = 1,
        groups: int = 1,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(
            in_channels, out_channels, kernel, stride, kernel // 2, groups=groups, bias=False
        )
        self.norm = nn.BatchNorm2d(out_channels, eps=NORM_EPS)
        if activation is not None:
            self.activation = activation()


class SqueezeExcite(nn.Module):
    """Scale each channel by a gate in [0, 1] that the channel means decide (paper section 5.3)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(channels, _squeezed(channels), 1)
        self.expand = nn.Conv2d(_squeezed(channels), channels, 1)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.activation = nn.ReLU()
        self.gate = nn.Hardsigmoid()

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(self.expand(self.activation(self.reduce(self.pool(x)))))


class InvertedResidual(nn.Sequential):
    """Expand 1×1 (where it widens), depthwise, squeeze-and-excite (where the table says so), project 1×1."""

    def __init__(self, in_channels: int, spec: BlockSpec) -> None:
        super().__init__()
        activation = nn.Hardswish if spec.hard_swish else nn.ReLU
        expanded = spec.expanded
        self.residual = spec.stride == 1 and in_channels == spec.channels
        if expanded != in_channels:
            self.expand = ConvNorm(in_channels, expanded, 1, activation)
        self.depthwise = ConvNorm(expanded, expanded, spec.kernel, activation, spec.stride, groups=expanded)
        if spec.squeeze:
            self.squeeze = SqueezeExcite(expanded)
        self.project = ConvNorm(expanded, spec.channels, 1, None)

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return x + y if self.residual else y


class MobileNetV3(nn.Module):
    """Images (N, 3, H, W) to logits (N, num_classes)."""

    def __init__(self, variant: VariantSpec, num_classes: int = 1000) -> None:
        super().__init__()
        self.stem = ConvNorm(3, 16, 3, nn.Hardswish, stride=2)
        self.blocks = nn.Sequential()
        channels = 16
        for spec in variant.blocks:
            self.blocks.append(InvertedResidual(channels, spec))
            channels = spec.channels
        self.last = ConvNorm(channels, variant.last_channels, 1, nn.Hardswish)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.hidden = nn.Linear(variant.last_channels, variant.head_dim)
        self.activation = nn.Hardswish()
        self.dropout = nn.Dropout(0.2)
        self.classifier = nn.Linear(variant.head_dim, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        x = self.last(self.blocks(self.stem(images)))
        x = self.activation(self.hidden(self.pool(x).flatten(1)))
        return self.classifier(self.dropout(x))


def _blocks(table: str) -> tuple[BlockSpec, ...]:
    """Read rows ``kernel expanded channels squeeze activation stride``; ``;`` starts timm's next stage."""
    blocks = []
    for stage, rows in enumerate(table.split(";")):
        for index, row in enumerate(rows.split("|")):
            kernel, expanded, channels, squeeze, activation, stride = row.split()
            shape = (
                int(kernel),
                int(expanded),
                int(channels),
                squeeze == "SE",
                activation == "HS",
                int(stride),
            )
            blocks.append(BlockSpec(*shape, stage=stage, index=index))
    return tuple(blocks)


LARGE = VariantSpec(
    _blocks(
        "3 16 16 - RE 1;3 64 24 - RE 2|3 72 24 - RE 1;5 72 40 SE RE 2|5 120 40 SE RE 1|5 120 40 SE RE 1"
        ";3 240 80 - HS 2|3 200 80 - HS 1|3 184 80 - HS 1|3 184 80 - HS 1;3 480 112 SE HS 1|3 672 112 SE HS 1"
        ";5 672 160 SE HS 2|5 960 160 SE HS 1|5 960 160 SE HS 1"
    ),
    last_channels=960,
    head_dim=1280,
)
SMALL = VariantSpec(
    _blocks(
        "3 16 16 SE RE 2;3 72 24 - RE 2|3 88 24 - RE 1;5 96 40 SE HS 2|5 240 40 SE HS 1|5 240 40 SE HS 1"
        ";5 120 48 SE HS 1|5 144 48 SE HS 1;5 288 96 SE HS 2|5 576 96 SE HS 1|5 576 96 SE HS 1"
    ),
    last_channels=576,
    head_dim=1024,
)


def module_names(variant: VariantSpec) -> list[tuple[str, str, str]]:
    """The name of every module with weights: ours, torchvision's, timm's."""
    rows = [("stem.conv", "features.0.0", "conv_stem"), ("stem.norm", "features.0.1", "bn1")]
    channels = 16
    for number, spec in enumerate(variant.blocks):
        rows += _block_names(number, spec, widens=spec.expanded != channels)
        channels = spec.channels
    last = len(variant.blocks) + 1
    stage = variant.blocks[-1].stage + 1
    return [
        *rows,
        ("last.conv", f"features.{last}.0", f"blocks.{stage}.0.conv"),
        ("last.norm", f"features.{last}.1", f"blocks.{stage}.0.bn1"),
        ("hidden", "classifier.0", "conv_head"),
        ("classifier", "classifier.3", "classifier"),
    ]


def _block_names(number: int, spec: BlockSpec, widens: bool) -> list[tuple[str, str, str]]:
    timm_convs = {"expand": "conv_pw", "depthwise": "conv_dw", "project": "conv_pwl" if widens else "conv_pw"}
    parts = ["expand"] * widens + ["depthwise"] + ["squeeze"] * spec.squeeze + ["project"]
    rows, norms = [], 0
    for position, part in enumerate(parts):
        ours, theirs = f"blocks.{number}.{part}", f"features.{number + 1}.block.{position}"
        timm = f"blocks.{spec.stage}.{spec.index}"
        if part == "squeeze":
            rows.append((f"{ours}.reduce", f"{theirs}.fc1", f"{timm}.se.conv_reduce"))
            rows.append((f"{ours}.expand", f"{theirs}.fc2", f"{timm}.se.conv_expand"))
        else:
            norms += 1
            rows.append((f"{ours}.conv", f"{theirs}.0", f"{timm}.{timm_convs[part]}"))
            rows.append((f"{ours}.norm", f"{theirs}.1", f"{timm}.bn{norms}"))
    return rows


def translate(state: dict[str, Tensor], variant: VariantSpec) -> dict[str, Tensor]:
    """A state dict in torchvision's or timm's layout under our names; any other one unchanged.

    Keys that the layout does not know are kept, so that loading reports them. timm's normalisations
    have another epsilon, which goes into their weights: γ/√(σ²+1e-5) = γ'/√(σ²+1e-3).
    """
    if "features.0.0.weight" in state:
        names = {theirs: ours for ours, theirs, _ in module_names(variant)}
    elif "conv_stem.weight" in state:
        names = {timm: ours for ours, _, timm in module_names(variant)}
    else:
        return state
    renamed = {}
    for key, value in state.items():
        module, _, leaf = key.rpartition(".")
        renamed[f"{names.get(module, module)}.{leaf}"] = value
    return _from_timm(renamed) if "conv_stem.weight" in state else renamed


def _from_timm(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """timm's hidden layer is a 1×1 convolution, and its normalisations have another epsilon."""
    changed = dict(state)
    hidden = state.get("hidden.weight")
    if hidden is not None and hidden.dim() == 4:
        changed["hidden.weight"] = hidden.flatten(1)
    for key, variance in state.items():
        weight = key.removesuffix("running_var") + "weight"
        if key.endswith("norm.running_var") and weight in state and state[weight].shape == variance.shape:
            scale = torch.sqrt((variance.double() + NORM_EPS) / (variance.double() + TIMM_NORM_EPS))
            changed[weight] = (state[weight].double() * scale).float()
    return changed


def _register(name: str, variant: VariantSpec, top1: float, params_m: float, macs_m: float) -> None:

    register(
        ModelSpec(
            name=name,
            build=lambda num_classes: MobileNetV3(variant, num_classes),
            source="MobileNetV3, ICCV 2019, arXiv 1905.02244",
            translate=lambda state: translate(state, variant),
            published_top1=top1,
            published_params_m=params_m,
            published_macs_m=macs_m,
        )
    )


_register("mobilenet_v3_large", LARGE, top1=75.2, params_m=5.4, macs_m=219.0)
_register("mobilenet_v3_small", SMALL, top1=67.4, params_m=2.5, macs_m=56.0)
