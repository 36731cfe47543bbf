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
    FlatDynamicReLU,
    FlatFormer,
    FlatMobileFormer,
    FlatMobileToFormer,
    FlatPlainBlock,
)
from mf_deploy.export.lower.graph import DeployGraph, Rewrite
from mf_deploy.models.mobile_former import BRIDGE_HEADS, FORMER_HEADS, ClassificationHead

TALLEST_KERNEL = 29
"""Rows that the kernel of a convolution may have on A13; from A14 on they are 32
(https://ane-guide.readthedocs.io, appendix A)."""

GATE_RANGE = 6
"""FoldGates leaves gates in [0, 6]. Divided by it they do not widen what int8 must cover for key, value and
query, which share their tensor (0.1 dB on the 52M); the projection behind the gate makes up for it."""


class NeuralEngine(Rewrite):
    """Replace the network by the same one on (N, C, 1, S); follows FoldAttentionScale, -Slopes and -Gates.

    Key and value of a block's way to the map, query and gate of the next block's way back are one
    convolution of the same tokens, and so are the hidden layers of its two dynamic ReLUs where the kernel
    of their last layers can read them in heads. The map is seen in heads from the end of one block to the
    start of the next.
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


def pad_outputs(layer: nn.Linear, rows: int) -> nn.Linear:
    """``layer`` with ``rows`` outputs. Those added repeat others and are never read: zeros would have no
    scale in int8."""
    pick = torch.arange(rows) % layer.out_features
    padded = nn.Linear(layer.in_features, rows)
    padded.weight = nn.Parameter(layer.weight[pick], requires_grad=False)
    padded.bias = nn.Parameter(layer.bias[pick], requires_grad=False)
    return padded


def as_conv(*layers: nn.Linear, groups: int = 1, head: int = 1, tokens: int = 1) -> nn.Conv2d:
    """Linear layers on one input (or on one group each) as one convolution.

    Args:
        head: rows of a head; 1 to read (N, C, 1, S), C/heads to read (N, heads, C/heads, S) without a
            reshape. Inputs that fill no whole head are padded: there the weights are zero.
        tokens: step along S; with all T tokens it reads the first one alone and gives (N, C, 1, 1).
    """
    weight = torch.cat([layer.weight for layer in layers])
    heads = -(-weight.shape[1] // head)
    weight = F.pad(weight, (0, heads * head - weight.shape[1])).reshape(-1, heads, head, 1)
    conv = nn.Conv2d(heads * groups, len(weight), (head, 1), (1, tokens), groups=groups)
    conv.weight = nn.Parameter(weight, requires_grad=False)
    conv.bias = nn.Parameter(torch.cat([layer.bias for layer in layers]), requires_grad=False)
    return conv


@dataclass
class MapState:
    """What the first block gets: the map (N, C, H, W), and the same in heads."""

    x: Tensor
    maps: Tensor


@dataclass
class State(MapState):
    """What goes from block to block; query and gate, in heads, are for the next way from map to tokens."""

    tokens: Tensor
    query: Tensor
    gate: Tensor


def attend(query: Tensor, maps: Tensor) -> tuple[Tensor, Tensor]:
    """Query (N, heads, C/heads, T) to the map in heads: attended, of its shape; scores (N, heads, T, HW)."""
    scores = query.transpose(-1, -2) @ maps
    return maps @ scores.softmax(-1).transpose(-1, -2), scores


class EngineFirstTokens(nn.Module):
    """The first way from map to tokens, where query, gate and tokens are the same for every image.

    With a kernel over all tokens, the weights of the projection hold the gate, its bias the tokens.
    """

    query: Tensor

    def __init__(self, source: FlatMobileToFormer, tokens: Tensor) -> None:
        super().__init__()
        query, gate = source.query_and_gate(tokens)
        self.register_buffer("query", heads_of(one_image(query)))
        tokens, gate = one_image(tokens)[0, :, 0], one_image(gate)[0, :, 0]
        dim, count = tokens.shape
        weight = torch.einsum("dc,ct,tu->dtcu", source.proj.weight, gate, torch.eye(count).to(gate))
        channels = len(gate) // BRIDGE_HEADS
        self.proj = nn.Conv2d(BRIDGE_HEADS, dim * count, (channels, count))
        weight = weight.reshape(self.proj.weight.shape)
        self.proj.weight = nn.Parameter(weight, requires_grad=False)
        bias = (tokens + source.proj.bias[:, None]).flatten()
        self.proj.bias = nn.Parameter(bias, requires_grad=False)
        self.norm, self.count = ChannelNorm(source.layer_norm), count

    def forward(self, state: MapState) -> tuple[Tensor, Tensor]:
        attended, scores = attend(self.query, state.maps)
        return self.norm(self.proj(attended).reshape(len(attended), -1, 1, self.count)), scores


class EngineMobileToFormer(nn.Module):
    """The tokens attend to the map."""

    def __init__(self, source: FlatMobileToFormer) -> None:
        super().__init__()
        head = source.proj.in_features // BRIDGE_HEADS
        self.reads_heads = head <= TALLEST_KERNEL
        self.proj = as_conv(source.proj, head=head if self.reads_heads else 1)
        self.proj.weight.data *= GATE_RANGE
        self.norm = ChannelNorm(source.layer_norm)

    def forward(self, state: State) -> tuple[Tensor, Tensor]:
        """The tokens (N, D, 1, T) and the scores (N, heads, T, HW)."""
        attended, scores = attend(state.query, state.maps)
        attended = attended * state.gate
        if not self.reads_heads:
            attended = attended.reshape(len(attended), -1, 1, attended.shape[-1])
        return self.norm(state.tokens + self.proj(attended)), scores


class EngineFormer(nn.Module):
    """Self-attention and feed-forward network on tokens (N, D, 1, T).

    Heads without a reshape: with ``q`` and ``k`` of one channel as a row each, their product is (T, T).
    A convolution of ones adds the channels of a head, another gives each of them the head's weights.
    """

    sums: Tensor
    copies: Tensor

    def __init__(self, source: FlatFormer) -> None:
        super().__init__()
        self.q, self.channel_mlp = as_conv(source.q), as_conv(source.channel_mlp)
        self.norm, self.ffn_norm = ChannelNorm(source.layer_norm), ChannelNorm(source.ffn_norm)
        expand, reduce = linears(source.ffn)
        self.ffn = nn.Sequential(as_conv(expand), nn.GELU(), as_conv(reduce))
        dim = source.q.in_features
        self.register_buffer("sums", source.q.weight.new_ones(FORMER_HEADS, dim // FORMER_HEADS, 1, 1))
        self.register_buffer("copies", source.q.weight.new_ones(dim, 1, 1, 1))

    def forward(self, tokens: Tensor) -> Tensor:
        products = self.q(tokens).transpose(-1, -2) @ tokens
        weights = F.conv2d(products, self.sums, groups=FORMER_HEADS).softmax(-1)
        weights = F.conv2d(weights, self.copies, groups=FORMER_HEADS)
        attended = tokens @ weights.transpose(-1, -2)
        tokens = self.norm(tokens + self.channel_mlp(attended))
        return self.ffn_norm(tokens + self.ffn(tokens))


class EngineProjection(nn.Module):
    """Tokens to key and value of this block, query and gate of the next one, each in heads.

    ``hidden``: layers whose rectified outputs come with them, in as many heads as they fill.
    """

    def __init__(self, block: FlatBlock, reader: FlatMobileToFormer, hidden: list[nn.Linear]) -> None:
        super().__init__()
        bridge, (alpha,) = block.global_local, linears(reader.alpha)
        self.conv = as_conv(bridge.k, bridge.proj, reader.q, alpha, *hidden)
        channels = bridge.k.out_features
        for parameter in self.conv.parameters():
            parameter.data[3 * channels : 4 * channels] /= GATE_RANGE
        self.rows = channels // BRIDGE_HEADS
        self.sizes = [BRIDGE_HEADS] * 4
        if hidden:
            self.sizes.append(sum(layer.out_features for layer in hidden) // self.rows)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]:
        key, value, query, gate, *hidden = heads_of(self.conv(tokens), sum(self.sizes)).split(self.sizes, 1)
        return key, value, query, gate.clamp(0, 1), hidden[0].relu() if hidden else None


class EngineSlopes(nn.Module):
    """Slopes of both dynamic ReLUs of a block, (N, C, 1, 1) each; (N, C, H, W) with ``attention``.

    ``hidden`` is for the projection: where the kernel can read heads of ``rows`` rows, their hidden layers
    are part of its convolution.
    """

    shift: Tensor

    def __init__(self, relus: list[FlatDynamicReLU], tokens: int, rows: int) -> None:
        super().__init__()
        firsts, lasts = zip(*(linears(relu.hyper) for relu in relus), strict=True)
        count, step = max(last.out_features for last in lasts), 1 if relus[0].spatial else tokens
        padded = [pad_outputs(last, count) for last in lasts]
        self.hidden: list[nn.Linear] = []
        if rows <= TALLEST_KERNEL:
            self.hidden = [pad_outputs(first, -(-first.out_features // rows) * rows) for first in firsts]
            self.first = None
            self.last = as_conv(*padded, groups=len(lasts), head=rows, tokens=step)
        else:
            self.first = as_conv(*firsts, tokens=step)
            self.last = as_conv(*padded, groups=len(lasts))
        shifts = [relu.hyper[3].get_buffer("shift") for relu in relus]
        shift = torch.cat([F.pad(shift, (0, count - len(shift))) for shift in shifts])
        self.register_buffer("shift", shift[:, None, None])
        self.sizes: list[int] = []
        self.places: list[int] = []
        for last in lasts:
            self.places.append(len(self.sizes))
            unread = count - last.out_features
            self.sizes += [last.out_features // 2] * 2 + [unread] * (unread > 0)

    def forward(
        self, tokens: Tensor, hidden: Tensor | None, attention: Tensor | None
    ) -> list[tuple[Tensor, Tensor]]:
        """``hidden``: what the projection gives of the hidden layers, in heads, or None."""
        if self.first is not None:
            hidden = self.first(tokens).relu()
        slopes = F.hardtanh(self.last(hidden)) + self.shift
        if attention is not None:
            slopes = torch.einsum("nchw,nwhu->nchu", slopes, attention)
        parts = slopes.split(self.sizes, dim=1)
        return [(parts[place], parts[place + 1]) for place in self.places]


def dynamic_relu(x: Tensor, slopes: tuple[Tensor, Tensor]) -> Tensor:
    return torch.maximum(slopes[0] * x, slopes[1] * x)


class EngineBlock(nn.Module):
    """Either bridged block, ``to_former`` its way from map to tokens, ``reader`` that of the next one."""

    def __init__(
        self, source: FlatBlock, to_former: nn.Module, reader: FlatMobileToFormer, tokens: int
    ) -> None:
        super().__init__()
        self.stride, self.spatial = source.stride, source.spatial
        self.down, self.residual = source.down, source.residual
        self.to_former = to_former
        self.former = EngineFormer(source.global_block)
        relus = [source.relu(name) for name in source.hyper]
        rows = source.global_local.k.out_features // BRIDGE_HEADS
        self.slopes = EngineSlopes(relus, tokens, rows)
        self.project = EngineProjection(source, reader, self.slopes.hidden)
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

    def forward(self, state: MapState) -> State:
        tokens, scores = self.to_former(state)
        tokens = self.former(tokens)
        key, value, query, gate, hidden = self.project(tokens)
        y = self.convolve(state.x, self.slopes(tokens, hidden, self.attention(scores, state.x)))
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

    def __init__(self, source: FlatMobileFormer) -> None:
        super().__init__()
        plain = [block for block in source.features if isinstance(block, FlatPlainBlock)]
        bridged = [block for block in source.features if isinstance(block, FlatBlock)]
        tokens = source.get_buffer("tokens")
        first = EngineFirstTokens(bridged[0].local_global, tokens)
        readers = [block.local_global for block in bridged[1:]] + [source.local_global]
        ways = [first, *map(EngineMobileToFormer, readers)]
        self.stem, self.plain = source.stem, nn.ModuleList(plain)
        self.blocks = nn.ModuleList(
            EngineBlock(block, way, reader, tokens.shape[-2])
            for block, way, reader in zip(bridged, ways, readers, strict=False)
        )
        self.to_former = ways[-1]
        self.register_buffer("tokens", one_image(tokens))
        self.head = EngineHead(source.classifier)

    def forward(self, images: Tensor) -> Tensor:
        x = self.stem(images)
        for block in self.plain:
            x, _ = block(x, self.tokens)
        state = MapState(x, heads_of(x))
        for block in self.blocks:
            state = block(state)
        tokens, _ = self.to_former(state)
        return self.head(state.x, tokens)
