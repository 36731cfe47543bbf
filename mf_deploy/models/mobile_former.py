"""Mobile-Former (Chen et al., CVPR 2022, arXiv 2108.05895), as its authors released it.

A MobileNet (feature maps, N×C×H×W) and a small Transformer (``tokens``, T×N×D, T ≤ 6) run side by
side; in every block a two-way bridge joins them. Module names follow the released state dicts, so
those load with ``strict=True``. This is the reference model: never edited for a target.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mf_deploy.models.registry import ModelSpec, register

BRIDGE_HEADS = 2
FORMER_HEADS = 4


@dataclass(frozen=True)
class BlockSpec:
    """One block: ``down`` has two depthwise convolutions; ``expand2`` 0 means convolution only."""

    down: bool
    expand1: int
    channels: int
    stride: int
    expand2: int


@dataclass(frozen=True)
class VariantSpec:
    """Widths of one published variant; ``groups`` applies to its 1×1 convolutions."""

    stem_channels: int
    num_tokens: int
    token_dim: int
    head_dim: int
    groups: int
    blocks: tuple[BlockSpec, ...]


class HardSigmoid(nn.Module):
    """relu6(v + 3) / 6."""

    def forward(self, v: Tensor) -> Tensor:
        return F.relu6(v + 3) / 6


class HardSwish(nn.Module):
    """v · relu6(v + 3) / 6."""

    def forward(self, v: Tensor) -> Tensor:
        return v * (F.relu6(v + 3) / 6)


class ChannelShuffle(nn.Module):
    """Interleave the channels of ``groups`` groups."""

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.groups = groups

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        x = x.view(batch, self.groups, channels // self.groups, height, width)
        return x.transpose(1, 2).reshape(batch, channels, height, width)


def shuffle_if(condition: bool, groups: int) -> list[nn.Module]:
    return [ChannelShuffle(groups)] if condition else []


class DynamicReLU(nn.Module):
    """max(a1·x, a2·x) with slopes that the tokens give (paper section 3.2; arXiv 2003.10027).

    Without ``spatial`` the first token drives all positions. With it every token gives slopes, and
    ``attention`` (N, T, H, W) mixes them at each position.
    """

    def __init__(self, token_dim: int, channels: int, spatial: bool) -> None:
        super().__init__()
        self.channels = channels
        self.spatial = spatial
        self.hyper = nn.Sequential(
            nn.Linear(token_dim, token_dim // 4),
            nn.ReLU(),
            nn.Linear(token_dim // 4, 2 * channels),
            HardSigmoid(),
        )

    def forward(self, x: Tensor, tokens: Tensor, attention: Tensor | None) -> Tensor:
        if self.spatial:
            assert attention is not None
            slopes = self.hyper(tokens).permute(1, 2, 0)
            batch, _, height, width = attention.shape
            slopes = (slopes @ attention.flatten(2)).view(batch, -1, height, width)
        else:
            slopes = self.hyper(tokens[0])[:, :, None, None]
        a1, a2 = slopes.split(self.channels, dim=1)
        return torch.maximum((2 * (a1 - 0.5) + 1) * x, 2 * (a2 - 0.5) * x)


class MobileToFormer(nn.Module):
    """The tokens attend to the feature map (paper equation 2); the map itself is key and value.

    Returns the new tokens and the scaled scores before their softmax, (N, heads, T, HW).
    """

    def __init__(self, token_dim: int, channels: int) -> None:
        super().__init__()
        self.scale = (channels // BRIDGE_HEADS) ** -0.5
        self.alpha = nn.Sequential(nn.Linear(token_dim, channels), HardSigmoid())
        self.q = nn.Linear(token_dim, channels)
        self.proj = nn.Linear(channels, token_dim)
        self.layer_norm = nn.LayerNorm(token_dim)

    def forward(self, x: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        num_tokens, batch, _ = tokens.shape
        channels = x.shape[1]
        q = self.q(tokens).view(num_tokens, batch, BRIDGE_HEADS, channels // BRIDGE_HEADS).permute(1, 2, 0, 3)
        k = x.reshape(batch, BRIDGE_HEADS, channels // BRIDGE_HEADS, -1)
        scores = (q @ k) * self.scale
        attended = scores.softmax(dim=-1) @ k.transpose(2, 3)
        attended = attended.permute(2, 0, 1, 3).reshape(num_tokens, batch, channels)
        attended = attended * (2 * self.alpha(tokens))
        return self.layer_norm(tokens + self.proj(attended)), scores


class Former(nn.Module):
    """Self-attention among the tokens, then a feed-forward network (paper equation 3)."""

    def __init__(self, token_dim: int) -> None:
        super().__init__()
        self.scale = (token_dim // FORMER_HEADS) ** -0.5
        self.ffn = nn.Sequential(
            nn.Linear(token_dim, 2 * token_dim), nn.GELU(), nn.Linear(2 * token_dim, token_dim)
        )
        self.ffn_norm = nn.LayerNorm(token_dim)
        self.q = nn.Linear(token_dim, token_dim)
        self.channel_mlp = nn.Linear(token_dim, token_dim)
        self.layer_norm = nn.LayerNorm(token_dim)

    def forward(self, tokens: Tensor) -> Tensor:
        num_tokens, batch, dim = tokens.shape
        heads = (num_tokens, batch, FORMER_HEADS, dim // FORMER_HEADS)
        q = self.q(tokens).view(heads).permute(1, 2, 0, 3)
        k = tokens.reshape(heads).permute(1, 2, 3, 0)
        attended = ((q @ k) * self.scale).softmax(dim=-1) @ k.transpose(2, 3)
        attended = attended.permute(2, 0, 1, 3).reshape(num_tokens, batch, dim)
        tokens = self.layer_norm(tokens + self.channel_mlp(attended))
        return self.ffn_norm(tokens + self.ffn(tokens))


class FormerToMobile(nn.Module):
    """Every position of the feature map attends to the tokens (paper equation 4)."""

    def __init__(self, token_dim: int, channels: int) -> None:
        super().__init__()
        self.scale = (channels // BRIDGE_HEADS) ** -0.5
        self.k = nn.Linear(token_dim, channels)
        self.proj = nn.Linear(token_dim, channels)

    def forward(self, x: Tensor, tokens: Tensor) -> Tensor:
        num_tokens, batch, _ = tokens.shape
        shape = x.shape
        heads = (num_tokens, batch, BRIDGE_HEADS, shape[1] // BRIDGE_HEADS)
        q = x.reshape(batch, BRIDGE_HEADS, shape[1] // BRIDGE_HEADS, -1).transpose(2, 3)
        k = self.k(tokens).view(heads).permute(1, 2, 3, 0)
        v = self.proj(tokens).view(heads).permute(1, 2, 0, 3)
        attended = ((q @ k) * self.scale).softmax(dim=-1) @ v
        return x + attended.transpose(2, 3).reshape(shape)


def token_attention(scores: Tensor, size: tuple[int, int], stride: int) -> Tensor:
    """Weights of the tokens at each output position, (N, T, H, W), for the spatial-aware dynamic ReLU.

    ``scores`` is what ``MobileToFormer`` returns; ``size`` the height and width of its feature map.
    """
    batch, _, num_tokens, _ = scores.shape
    maps = scores.mean(dim=1).view(batch, num_tokens, *size)
    if stride > 1:
        maps = F.adaptive_avg_pool2d(maps, (math.ceil(size[0] / stride), math.ceil(size[1] / stride)))
    return maps.softmax(dim=1)


def conv_bn(
    in_channels: int, out_channels: int, kernel: int, stride: int = 1, groups: int = 1
) -> list[nn.Module]:
    conv = nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(out_channels)]


class PlainBlock(nn.Module):
    """The first block: convolutions only; the tokens pass through."""

    def __init__(self, in_channels: int, spec: BlockSpec, groups: int) -> None:
        super().__init__()
        hidden = in_channels * spec.expand1
        self.residual = spec.stride == 1 and in_channels == spec.channels
        # The position of the shuffle is kept by an Identity: the keys of the state dict count on it.
        self.conv = nn.Sequential(
            *conv_bn(in_channels, hidden, 3, spec.stride, in_channels),
            nn.ReLU6(),
            ChannelShuffle(in_channels) if groups > 1 else nn.Identity(),
            *conv_bn(hidden, spec.channels, 1, groups=groups),
        )

    def forward(self, x: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        y = self.conv(x)
        return (x + y if self.residual else y), tokens


class BridgedBlock(nn.Module):
    """What both block kinds share: bridges, Former and the residual around the Mobile convolutions."""

    def __init__(self, in_channels: int, spec: BlockSpec, spatial: bool) -> None:
        super().__init__()
        self.stride = spec.stride
        self.spatial = spatial
        self.residual = spec.stride == 1 and in_channels == spec.channels

    def add_bridges(self, in_channels: int, spec: BlockSpec, token_dim: int) -> None:
        """Create the token side; after the convolutions, as in the released state dicts."""
        self.local_global = MobileToFormer(token_dim, in_channels)
        self.global_block = Former(token_dim)
        self.global_local = FormerToMobile(token_dim, spec.channels)

    def update_tokens(self, x: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor | None]:
        """The new tokens, and the token weights for spatial dynamic ReLUs (None without them)."""
        height, width = x.shape[2:]
        tokens, scores = self.local_global(x, tokens)
        attention = token_attention(scores, (height, width), self.stride) if self.spatial else None
        return self.global_block(tokens), attention


class BottleneckBlock(BridgedBlock):
    """Inverted bottleneck: expand 1×1, depthwise 3×3, project 1×1."""

    def __init__(self, in_channels: int, spec: BlockSpec, groups: int, token_dim: int, spatial: bool) -> None:
        super().__init__(in_channels, spec, spatial)
        hidden = in_channels * spec.expand1
        shuffle = partial(shuffle_if, groups > 1)
        self.conv1 = nn.Sequential(*conv_bn(in_channels, hidden, 1, groups=groups), *shuffle(groups))
        self.hyper1 = DynamicReLU(token_dim, hidden, spatial)
        self.conv2 = nn.Sequential(*conv_bn(hidden, hidden, 3, spec.stride, hidden))
        self.hyper2 = DynamicReLU(token_dim, hidden, spatial)
        self.conv3 = nn.Sequential(*conv_bn(hidden, spec.channels, 1, groups=groups), *shuffle(groups))
        self.add_bridges(in_channels, spec, token_dim)

    def forward(self, x: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        tokens, attention = self.update_tokens(x, tokens)
        y = self.hyper1(self.conv1(x), tokens, attention)
        y = self.conv3(self.hyper2(self.conv2(y), tokens, attention))
        return self.global_local(x + y if self.residual else y, tokens), tokens


class DownBlock(BridgedBlock):
    """Two depthwise–pointwise pairs, the second one residual; halves the resolution."""

    def __init__(self, in_channels: int, spec: BlockSpec, groups: int, token_dim: int, spatial: bool) -> None:
        super().__init__(in_channels, spec, spatial)
        hidden1, hidden2 = in_channels * spec.expand1, spec.channels * spec.expand2
        shuffle = partial(shuffle_if, groups > 1)
        self.conv1 = nn.Sequential(
            *conv_bn(in_channels, hidden1, 3, spec.stride, in_channels), *shuffle(in_channels)
        )
        self.hyper1 = DynamicReLU(token_dim, hidden1, spatial)
        self.conv2 = nn.Sequential(*conv_bn(hidden1, spec.channels, 1, groups=groups))
        self.conv3 = nn.Sequential(
            *conv_bn(spec.channels, hidden2, 3, 1, spec.channels), *shuffle(spec.channels)
        )
        self.hyper3 = DynamicReLU(token_dim, hidden2, spatial)
        self.conv4 = nn.Sequential(*conv_bn(hidden2, spec.channels, 1, groups=groups))
        self.add_bridges(in_channels, spec, token_dim)

    def forward(self, x: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        tokens, attention = self.update_tokens(x, tokens)
        y = self.conv2(self.hyper1(self.conv1(x), tokens, attention))
        y = self.conv4(self.hyper3(self.conv3(y), tokens, attention)) + y
        y = self.global_local(y, tokens)
        return (x + y if self.residual else y), tokens


class ClassificationHead(nn.Module):
    """Pooled features and the first token, through two linear layers."""

    def __init__(self, channels: int, variant: VariantSpec, num_classes: int) -> None:
        super().__init__()
        hidden = 6 * channels
        self.conv = nn.Sequential(
            ChannelShuffle(variant.groups) if variant.groups > 1 else nn.Identity(),
            *conv_bn(channels, hidden, 1, groups=variant.groups),
            nn.ReLU6(),
        )
        self.avgpool = nn.Sequential(nn.AdaptiveAvgPool2d(1), HardSwish())
        self.fc = nn.Sequential(
            nn.Linear(hidden + variant.token_dim, variant.head_dim),
            nn.BatchNorm1d(variant.head_dim),
            HardSwish(),
        )
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(variant.head_dim, num_classes))

    def forward(self, x: Tensor, tokens: Tensor) -> Tensor:
        pooled = self.avgpool(self.conv(x)).flatten(1)
        return self.classifier(self.fc(torch.cat([pooled, tokens[0]], dim=1)))


class MobileFormer(nn.Module):
    """Images (N, 3, H, W) to logits (N, num_classes)."""

    def __init__(self, variant: VariantSpec, num_classes: int = 1000, spatial: bool = False) -> None:
        super().__init__()
        self.variant = variant
        self.tokens = nn.Embedding(variant.num_tokens, variant.token_dim)
        self.stem = nn.Sequential(*conv_bn(3, variant.stem_channels, 3, 2), nn.ReLU6())
        self.features = nn.ModuleList()
        channels = variant.stem_channels
        for spec in variant.blocks:
            self.features.append(_block(channels, spec, variant, spatial))
            channels = spec.channels
        self.local_global = MobileToFormer(variant.token_dim, channels)
        self.classifier = ClassificationHead(channels, variant, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        x = self.stem(images)
        tokens = self.tokens.weight[:, None].repeat(1, images.shape[0], 1)
        for block in self.features:
            x, tokens = block(x, tokens)
        tokens, _ = self.local_global(x, tokens)
        return self.classifier(x, tokens)


def _block(in_channels: int, spec: BlockSpec, variant: VariantSpec, spatial: bool) -> nn.Module:
    if spec.expand2 == 0:
        return PlainBlock(in_channels, spec, variant.groups)
    kind = DownBlock if spec.down else BottleneckBlock
    return kind(in_channels, spec, variant.groups, variant.token_dim, spatial)


def _blocks(table: str) -> tuple[BlockSpec, ...]:
    """Read rows ``kind expand1 channels stride expand2``, kind D (down) or B (bottleneck)."""
    rows = (row.split() for row in table.split("|"))
    return tuple(BlockSpec(kind == "D", *map(int, numbers)) for kind, *numbers in rows)


_BLOCKS_SMALL = _blocks(
    "D 3 12 2 0|B 3 12 1 3|D 6 24 2 4|B 3 24 1 3|D 6 48 2 4|B 4 48 1 4|B 6 64 1 4|D 6 96 2 4|B 6 96 1 4"
)

VARIANTS = {
    "26m": VariantSpec(8, 3, 128, 1024, 4, _BLOCKS_SMALL),
    "52m": VariantSpec(8, 3, 128, 1024, 1, _BLOCKS_SMALL),
    "96m": VariantSpec(
        *(12, 4, 128, 1280, 1),
        _blocks(
            "D 2 12 1 0|D 6 16 2 4|D 6 32 2 4|B 3 32 1 3|D 6 64 2 4|B 4 64 1 4"
            "|B 6 88 1 4|D 6 128 2 4|B 6 128 1 4"
        ),
    ),
    "151m": VariantSpec(
        *(12, 6, 192, 1280, 1),
        _blocks(
            "D 2 12 1 0|D 6 16 2 4|B 3 16 1 3|D 6 32 2 4|B 3 32 1 3|D 6 64 2 4"
            "|B 4 64 1 4|B 6 88 1 4|B 6 88 1 4|D 6 128 2 4|B 6 128 1 4|B 6 128 1 4"
        ),
    ),
    "214m": VariantSpec(
        *(12, 6, 192, 1600, 1),
        _blocks(
            "D 2 12 1 0|D 6 20 2 4|B 3 20 1 4|D 6 40 2 4|B 4 40 1 4|D 6 80 2 4"
            "|B 4 80 1 4|B 6 112 1 4|B 6 112 1 4|D 6 160 2 4|B 6 160 1 4|B 6 160 1 4"
        ),
    ),
    "294m": VariantSpec(
        *(16, 6, 192, 1920, 1),
        _blocks(
            "D 2 16 1 0|D 6 24 2 4|B 4 24 1 4|D 6 48 2 4|B 4 48 1 4|D 6 96 2 4"
            "|B 4 96 1 4|B 6 128 1 4|B 6 128 1 4|D 6 192 2 4|B 6 192 1 4|B 6 192 1 4"
        ),
    ),
    "508m": VariantSpec(
        *(24, 6, 192, 1920, 1),
        _blocks(
            "D 2 24 1 0|D 6 40 2 4|B 3 40 1 3|D 6 72 2 4|B 3 72 1 3|D 6 128 2 4"
            "|B 4 128 1 4|B 6 176 1 4|B 6 176 1 4|D 6 240 2 4|B 6 240 1 4|B 6 240 1 4"
        ),
    ),
}

_PUBLISHED = {  # top-1 %, parameters M (paper tables 1 and 2); the name is the paper's multiply-adds in M
    "26m": (64.0, 3.2),
    "52m": (68.7, 3.5),
    "96m": (72.8, 4.6),
    "151m": (75.2, 7.6),
    "214m": (76.7, 9.4),
    "294m": (77.9, 11.4),
    "508m": (79.3, 14.0),
}


def _builder(variant: str, spatial: bool) -> Callable[[int], nn.Module]:
    return lambda num_classes: MobileFormer(VARIANTS[variant], num_classes, spatial)


for _spatial in (False, True):
    for _variant, (_top1, _params_m) in _PUBLISHED.items():
        register(
            ModelSpec(
                name=f"mobile_former_{_variant}" + ("_spatial" if _spatial else ""),
                build=_builder(_variant, _spatial),
                source="Mobile-Former, CVPR 2022, arXiv 2108.05895",
                published_top1=None if _spatial else _top1,
                published_params_m=_params_m,
                published_macs_m=None if _spatial else float(_variant[:-1]),
            )
        )
