"""Mobile-Former in the layout of Apple's Neural Engine.

Its engineers advise (N, C, 1, S) tensors, 1×1 convolutions for linear layers, and few reshapes and
transposes (https://machinelearning.apple.com/research/neural-engine-transformers). Here tokens are
(N, D, 1, T), and a head is a chunk of channels: (N, heads, C/heads, S), S being T or H·W.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mf_deploy.export.lower.channel_norm import ChannelNorm
from mf_deploy.export.lower.flatten_tokens import (
    FlatBlock,
    FlatFormer,
    FlatMobileFormer,
    FlatMobileToFormer,
    FlatPlainBlock,
)
from mf_deploy.export.lower.graph import DeployGraph, Rewrite
from mf_deploy.models.mobile_former import BRIDGE_HEADS, FORMER_HEADS, ClassificationHead


class NeuralEngine(Rewrite):
    """Replace the network by the same one on (N, C, 1, S); follows FoldAttentionScale, -Slopes and -Gates.

    Key and value of a block's way to the map, query and gate of the next block's way back are one
    convolution of the same tokens; each layer of its two dynamic ReLUs is one convolution as well.
    The map is seen in heads from the end of one block to the start of the next.
    """

    def apply(self, graph: DeployGraph) -> DeployGraph:
        if not isinstance(graph.module, FlatMobileFormer):
            return graph
        return graph.rewritten(self.name, EngineMobileFormer(graph.module))


def heads_of(x: Tensor, heads: int = BRIDGE_HEADS) -> Tensor:
    """(N, C, H, W) or (N, C, 1, T) as (N, heads, C/heads, positions)."""
    return x.reshape(x.shape[0], heads, x.shape[1] // heads, x.shape[2] * x.shape[3])


def linears(module: nn.Module) -> list[nn.Linear]:
    return [layer for layer in module.modules() if isinstance(layer, nn.Linear)]


def as_conv(*layers: nn.Linear, rows: int | None = None, groups: int = 1) -> nn.Conv2d:
    """Linear layers on one input (or on one group each) as one 1×1 convolution.

    ``rows``: pad each layer to so many outputs. The outputs added repeat others and are never read:
    zeros would have no scale in int8.
    """
    picks = [torch.arange(rows or layer.out_features) % layer.out_features for layer in layers]
    weight = torch.cat([layer.weight[pick] for layer, pick in zip(layers, picks, strict=True)])
    bias = torch.cat([layer.bias[pick] for layer, pick in zip(layers, picks, strict=True)])
    conv = nn.Conv2d(weight.shape[1] * groups, weight.shape[0], 1, groups=groups)
    conv.weight = nn.Parameter(weight[..., None, None], requires_grad=False)
    conv.bias = nn.Parameter(bias, requires_grad=False)
    return conv


GATE_RANGE = 6
"""FoldGates leaves gates in [0, 6]. Divided by it they do not widen what int8 must cover for key, value and
query, which share their tensor (0.1 dB on the 52M); the projection behind the gate makes up for it."""


class EngineMobileToFormer(nn.Module):
    """The tokens attend to the map; ``query`` and ``gate`` come from the block before."""

    def __init__(self, source: FlatMobileToFormer) -> None:
        super().__init__()
        self.proj, self.norm = as_conv(source.proj), ChannelNorm(source.layer_norm)
        self.proj.weight.data *= GATE_RANGE

    def forward(self, maps: Tensor, tokens: Tensor, query: Tensor, gate: Tensor) -> tuple[Tensor, Tensor]:
        """Maps, query and gate in heads; gives the tokens and the scores (N, heads, T, HW)."""
        scores = query.transpose(-1, -2) @ maps
        attended = (maps @ scores.softmax(-1).transpose(-1, -2)) * gate
        attended = attended.reshape(maps.shape[0], -1, 1, attended.shape[-1])
        return self.norm(tokens + self.proj(attended)), scores


class EngineFormer(nn.Module):
    """Self-attention and feed-forward network on tokens (N, D, 1, T)."""

    def __init__(self, source: FlatFormer) -> None:
        super().__init__()
        self.q, self.channel_mlp = as_conv(source.q), as_conv(source.channel_mlp)
        self.norm, self.ffn_norm = ChannelNorm(source.layer_norm), ChannelNorm(source.ffn_norm)
        expand, reduce = linears(source.ffn)
        self.ffn = nn.Sequential(as_conv(expand), nn.GELU(), as_conv(reduce))

    def forward(self, tokens: Tensor) -> Tensor:
        keys, query = heads_of(tokens, FORMER_HEADS), heads_of(self.q(tokens), FORMER_HEADS)
        weights = (query.transpose(-1, -2) @ keys).softmax(-1)
        attended = (keys @ weights.transpose(-1, -2)).reshape(tokens.shape)
        tokens = self.norm(tokens + self.channel_mlp(attended))
        return self.ffn_norm(tokens + self.ffn(tokens))


class EngineProjection(nn.Module):
    """Tokens to key and value of this block, query and gate of the next one, each in heads."""

    def __init__(self, block: FlatBlock, reader: FlatMobileToFormer) -> None:
        super().__init__()
        bridge = block.global_local
        self.conv = as_conv(bridge.k, bridge.proj, reader.q, *linears(reader.alpha))
        for parameter in self.conv.parameters():
            parameter.data[-reader.q.out_features :] /= GATE_RANGE

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        key, value, query, gate = heads_of(self.conv(tokens), 4 * BRIDGE_HEADS).chunk(4, dim=1)
        return key, value, query, gate.clamp(0, 1)


class EngineSlopes(nn.Module):
    """Slopes of both dynamic ReLUs of a block, (N, C, 1, 1) each; (N, C, H, W) with ``attention``."""

    shift: Tensor

    def __init__(self, relus: nn.ModuleDict) -> None:
        super().__init__()
        firsts, lasts = zip(*map(linears, relus.values()), strict=True)
        rows = max(last.out_features for last in lasts)
        self.first, self.last = as_conv(*firsts), as_conv(*lasts, rows=rows, groups=len(lasts))
        shifts = [relu.get_buffer("hyper.3.shift") for relu in relus.values()]
        shift = torch.cat([F.pad(shift, (0, rows - len(shift))) for shift in shifts])
        self.register_buffer("shift", shift[:, None, None])
        self.sizes: list[int] = []
        self.places: list[int] = []
        for last in lasts:
            self.places.append(len(self.sizes))
            unread = rows - last.out_features
            self.sizes += [last.out_features // 2] * 2 + [unread] * (unread > 0)

    def forward(self, tokens: Tensor, attention: Tensor | None) -> list[tuple[Tensor, Tensor]]:
        driving = tokens[..., :1] if attention is None else tokens
        slopes = F.hardtanh(self.last(self.first(driving).relu())) + self.shift
        if attention is not None:
            slopes = torch.einsum("nchw,nwhu->nchu", slopes, attention)
        parts = slopes.split(self.sizes, dim=1)
        return [(parts[place], parts[place + 1]) for place in self.places]


def dynamic_relu(x: Tensor, slopes: tuple[Tensor, Tensor]) -> Tensor:
    return torch.maximum(slopes[0] * x, slopes[1] * x)


@dataclass
class State:
    """What goes from block to block; ``maps`` is ``x`` in heads."""

    x: Tensor
    maps: Tensor
    tokens: Tensor
    query: Tensor
    gate: Tensor


class EngineBlock(nn.Module):
    """Either bridged block; ``reader`` is the next block's way from map to tokens."""

    def __init__(self, source: FlatBlock, reader: FlatMobileToFormer) -> None:
        super().__init__()
        self.stride, self.spatial = source.stride, source.spatial
        self.down, self.residual = source.down, source.residual
        self.to_former = EngineMobileToFormer(source.local_global)
        self.former = EngineFormer(source.global_block)
        self.project = EngineProjection(source, reader)
        self.slopes = EngineSlopes(source.hyper)
        self.mobile = source.mobile

    def attention(self, scores: Tensor, x: Tensor) -> Tensor | None:
        """Weights of the tokens at each output position, (N, T, H', W')."""
        if not self.spatial:
            return None
        mean = scores.mean(1).reshape(x.shape[0], -1, *x.shape[2:])
        if self.stride > 1:
            height, width = (-(-side // self.stride) for side in x.shape[2:])
            mean = F.adaptive_avg_pool2d(mean, (height, width))
        return mean.softmax(1)

    def convolve(self, x: Tensor, slopes: list[tuple[Tensor, Tensor]]) -> Tensor:
        conv = self.mobile
        y = dynamic_relu(conv["conv1"](x), slopes[0])
        if self.down:
            y = conv["conv2"](y)
            return conv["conv4"](dynamic_relu(conv["conv3"](y), slopes[1])) + y
        y = conv["conv3"](dynamic_relu(conv["conv2"](y), slopes[1]))
        return x + y if self.residual else y

    def forward(self, state: State) -> State:
        tokens, scores = self.to_former(state.maps, state.tokens, state.query, state.gate)
        tokens = self.former(tokens)
        y = self.convolve(state.x, self.slopes(tokens, self.attention(scores, state.x)))
        key, value, query, gate = self.project(tokens)
        maps = heads_of(y)
        # Softmax over the token axis, so that the map keeps its layout.
        maps = maps + value @ (key.transpose(-1, -2) @ maps).softmax(-2)
        if self.down and self.residual:
            maps = maps + state.maps
        return State(maps.reshape(y.shape), maps, tokens, query, gate)


class EngineHead(nn.Module):
    """Pooled features and the first token, through two 1×1 convolutions."""

    def __init__(self, source: ClassificationHead) -> None:
        super().__init__()
        self.conv = source.conv
        self.fc, self.classifier = as_conv(*linears(source.fc)), as_conv(*linears(source.classifier))

    def forward(self, x: Tensor, tokens: Tensor) -> Tensor:
        pooled = hard_swish(F.adaptive_avg_pool2d(self.conv(x), 1))
        features = torch.cat([pooled, tokens[..., :1]], dim=1)
        return self.classifier(hard_swish(self.fc(features))).flatten(1)


def hard_swish(v: Tensor) -> Tensor:
    return v * F.hardsigmoid(v)


def one_image(tokens: Tensor) -> Tensor:
    """(T, D), or the first of (N, T, D), as (1, D, 1, T)."""
    return tokens.reshape(-1, *tokens.shape[-2:])[:1].transpose(1, 2)[:, :, None].contiguous()


class EngineMobileFormer(nn.Module):
    """The whole network: (N, 3, H, W) to (N, classes)."""

    tokens: Tensor
    query: Tensor
    gate: Tensor

    def __init__(self, source: FlatMobileFormer) -> None:
        super().__init__()
        plain = [block for block in source.features if isinstance(block, FlatPlainBlock)]
        bridged = [block for block in source.features if isinstance(block, FlatBlock)]
        readers = [block.local_global for block in bridged[1:]] + [source.local_global]
        self.stem, self.plain = source.stem, nn.ModuleList(plain)
        self.blocks = nn.ModuleList(map(EngineBlock, bridged, readers))
        self.to_former = EngineMobileToFormer(source.local_global)
        self.head = EngineHead(source.classifier)
        tokens = source.get_buffer("tokens")
        query, gate = bridged[0].local_global.query_and_gate(tokens)
        self.register_buffer("tokens", one_image(tokens))
        self.register_buffer("query", heads_of(one_image(query)))
        self.register_buffer("gate", heads_of(one_image(gate)) / GATE_RANGE)

    def forward(self, images: Tensor) -> Tensor:
        x = self.stem(images)
        for block in self.plain:
            x, _ = block(x, self.tokens)
        state = State(x, heads_of(x), self.tokens, self.query, self.gate)
        for block in self.blocks:
            state = block(state)
        tokens, _ = self.to_former(state.maps, state.tokens, state.query, state.gate)
        return self.head(state.x, tokens)
