"""The token path without its batch axis, and heads without reshapes."""

import torch
from torch import Tensor, nn

from mf_deploy.export.lower.graph import DeployGraph, Rewrite
from mf_deploy.models import mobile_former as reference
from mf_deploy.models.mobile_former import BRIDGE_HEADS, FORMER_HEADS, MobileFormer


class FlattenTokens(Rewrite):
    """Tokens are (T, D) for one image, (N, T, D) for a batch; never T×N×D with its permutations.

    Attention heads are slices of channels: each head is a plain matrix product, so nothing is
    reshaped into heads and back.
    """

    def apply(self, graph: DeployGraph) -> DeployGraph:
        if not isinstance(graph.module, MobileFormer):
            return graph
        return graph.rewritten(self.name, FlatMobileFormer(graph.module, graph.batch))


def scaled(value: Tensor, factor: float) -> Tensor:
    """``factor · value``, without an operation where the factor is one."""
    return value if factor == 1 else value * factor


def attend(query: Tensor, key: Tensor, value: Tensor, heads: int, scale: float) -> Tensor:
    """Multi-head attention on slices: query (…, Q, C), key (…, C, K), value (…, K, C) → (…, Q, C)."""
    parts = zip(query.chunk(heads, -1), key.chunk(heads, -2), value.chunk(heads, -1), strict=True)
    return torch.cat([scaled(q @ k, scale).softmax(-1) @ v for q, k, v in parts], dim=-1)


class FlatMobileToFormer(nn.Module):
    """Tokens attend to the feature map; takes the map as (…, C, HW), tokens as (…, T, D)."""

    q: nn.Linear
    alpha: nn.Sequential
    proj: nn.Linear
    layer_norm: nn.Module
    scale: float
    gate_gain: float

    def __init__(self, source: reference.MobileToFormer) -> None:
        super().__init__()
        self.scale, self.gate_gain = source.scale, 2.0
        self.q, self.alpha, self.proj, self.layer_norm = (
            source.q,
            source.alpha,
            source.proj,
            source.layer_norm,
        )

    def query_and_gate(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """What depends on the tokens alone: the query and the gate of each channel, (…, T, C)."""
        return self.q(tokens), scaled(self.alpha(tokens), self.gate_gain)

    def forward(self, x: Tensor, tokens: Tensor) -> Tensor:
        query, gate = self.query_and_gate(tokens)
        attended = attend(query, x, x.transpose(-1, -2), BRIDGE_HEADS, self.scale)
        return self.layer_norm(tokens + self.proj(attended * gate))

    def mean_scores(self, x: Tensor, tokens: Tensor) -> Tensor:
        """Scaled scores averaged over the heads, (…, T, HW): their sum is one product over all channels."""
        query, _ = self.query_and_gate(tokens)
        return (query @ x) * (self.scale / BRIDGE_HEADS)


class FlatFormer(nn.Module):
    """Self-attention and feed-forward network on tokens (…, T, D)."""

    q: nn.Linear
    scale: float

    def __init__(self, source: reference.Former) -> None:
        super().__init__()
        self.scale = source.scale
        self.q, self.channel_mlp, self.layer_norm = source.q, source.channel_mlp, source.layer_norm
        self.ffn, self.ffn_norm = source.ffn, source.ffn_norm

    def attend(self, tokens: Tensor) -> Tensor:
        """Self-attention before its output projection."""
        return attend(self.q(tokens), tokens.transpose(-1, -2), tokens, FORMER_HEADS, self.scale)

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = self.layer_norm(tokens + self.channel_mlp(self.attend(tokens)))
        return self.ffn_norm(tokens + self.ffn(tokens))


class FlatFormerToMobile(nn.Module):
    """Positions attend to the tokens; feature map (…, C, HW) in and out, the residual included."""

    k: nn.Linear
    proj: nn.Linear
    scale: float

    def __init__(self, source: reference.FormerToMobile) -> None:
        super().__init__()
        self.scale = source.scale
        self.k, self.proj = source.k, source.proj

    def forward(self, x: Tensor, tokens: Tensor) -> Tensor:
        key, value = self.k(tokens), self.proj(tokens)
        heads = zip(
            x.chunk(BRIDGE_HEADS, -2), key.chunk(BRIDGE_HEADS, -1), value.chunk(BRIDGE_HEADS, -1), strict=True
        )
        # Transposed throughout (softmax over the token axis), so that the map keeps its layout.
        parts = [v.transpose(-1, -2) @ scaled(k @ q, self.scale).softmax(-2) for q, k, v in heads]
        return x + torch.cat(parts, dim=-2)


class FlatDynamicReLU(nn.Module):
    """max(a1·x, a2·x); slopes from the first token, or mixed per position by ``attention`` (…, T, HW)."""

    hyper: nn.Sequential

    def __init__(self, source: reference.DynamicReLU) -> None:
        super().__init__()
        self.channels, self.spatial, self.hyper = source.channels, source.spatial, source.hyper
        self.affine = True

    def permute_(self, order: Tensor) -> None:
        """Give the slopes in another order of channels, in place."""
        last = self.hyper[2]
        both = torch.cat([order, order + self.channels])
        last.weight = nn.Parameter(last.weight[both], requires_grad=False)
        last.bias = nn.Parameter(last.bias[both], requires_grad=False)

    def forward(self, x: Tensor, tokens: Tensor, attention: Tensor | None) -> Tensor:
        if self.spatial:
            slopes = (self.hyper(tokens).transpose(-1, -2) @ attention).view(x.shape[0], -1, *x.shape[2:])
        else:
            slopes = self.hyper(tokens[..., :1, :]).view(x.shape[0], -1, 1, 1)
        a1, a2 = slopes.split(self.channels, dim=1)
        if self.affine:
            a1, a2 = 2 * a1, 2 * a2 - 1
        return torch.maximum(a1 * x, a2 * x)


class FlatBlock(nn.Module):
    """Either bridged block; ``lead`` is () for one image and (N,) for a batch."""

    def __init__(self, source: reference.BridgedBlock, lead: tuple[int, ...]) -> None:
        super().__init__()
        self.lead, self.stride, self.spatial, self.residual = (
            lead,
            source.stride,
            source.spatial,
            source.residual,
        )
        self.mobile = nn.ModuleDict({n: m for n, m in source.named_children() if n.startswith("conv")})
        self.hyper = nn.ModuleDict(
            {
                n: FlatDynamicReLU(m)
                for n, m in source.named_children()
                if isinstance(m, reference.DynamicReLU)
            }
        )
        self.down = isinstance(source, reference.DownBlock)
        self.local_global = FlatMobileToFormer(source.local_global)
        self.global_block = FlatFormer(source.global_block)
        self.global_local = FlatFormerToMobile(source.global_local)

    def stage(self, name: str) -> nn.Sequential:
        """The convolution ``name`` with what follows it up to its dynamic ReLU."""
        stage = self.mobile[name]
        assert isinstance(stage, nn.Sequential)
        return stage

    def relu(self, name: str) -> FlatDynamicReLU:
        """The dynamic ReLU ``name``."""
        relu = self.hyper[name]
        assert isinstance(relu, FlatDynamicReLU)
        return relu

    def flat(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (…, C, HW)."""
        return x.reshape(*self.lead, x.shape[1], -1)

    def attention(self, x: Tensor, tokens: Tensor) -> Tensor | None:
        if not self.spatial:
            return None
        scores = self.local_global.mean_scores(self.flat(x), tokens)
        size = x.shape[2:]
        if self.stride > 1:
            maps = scores.view(x.shape[0], -1, *size)
            half = (-(-size[0] // self.stride), -(-size[1] // self.stride))
            scores = self.flat(nn.functional.adaptive_avg_pool2d(maps, half))
        return scores.softmax(-2)

    def convolve(self, x: Tensor, tokens: Tensor, attention: Tensor | None) -> Tensor:
        """The Mobile convolutions with their dynamic ReLUs, without the residual around them."""
        conv, hyper = self.mobile, self.hyper
        y = hyper["hyper1"](conv["conv1"](x), tokens, attention)
        if self.down:
            y = conv["conv2"](y)
            return conv["conv4"](hyper["hyper3"](conv["conv3"](y), tokens, attention)) + y
        return conv["conv3"](hyper["hyper2"](conv["conv2"](y), tokens, attention))

    def forward(self, x: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        attention = self.attention(x, tokens)
        tokens = self.global_block(self.local_global(self.flat(x), tokens))
        y = self.convolve(x, tokens, attention)
        y = x + y if self.residual and not self.down else y
        y = self.global_local(self.flat(y), tokens).view(y.shape)
        return (x + y if self.down and self.residual else y), tokens


class FlatPlainBlock(nn.Module):
    """The first block, which leaves the tokens alone."""

    def __init__(self, source: reference.PlainBlock) -> None:
        super().__init__()
        self.conv, self.residual = source.conv, source.residual
        first = source.conv[0]
        assert isinstance(first, nn.Conv2d)
        self.stride = first.stride[0]

    def forward(self, x: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        y = self.conv(x)
        return (x + y if self.residual else y), tokens


class FlatMobileFormer(nn.Module):
    """The whole network for a fixed batch: (batch, 3, H, W) to (batch, classes)."""

    tokens: Tensor

    def __init__(self, source: MobileFormer, batch: int) -> None:
        super().__init__()
        self.lead = () if batch == 1 else (batch,)
        tokens = source.tokens.weight.detach()
        self.register_buffer("tokens", tokens.clone() if batch == 1 else tokens.repeat(batch, 1, 1))
        self.stem = source.stem
        self.features = nn.ModuleList(
            FlatBlock(block, self.lead)
            if isinstance(block, reference.BridgedBlock)
            else FlatPlainBlock(block)
            for block in source.features
        )
        self.local_global = FlatMobileToFormer(source.local_global)
        self.classifier = source.classifier

    def forward(self, images: Tensor) -> Tensor:
        x, tokens = self.stem(images), self.tokens
        for block in self.features:
            x, tokens = block(x, tokens)
        # The head reads one token, and every token attends to the map by itself: the others end here.
        first = self.local_global(x.reshape(*self.lead, x.shape[1], -1), tokens[..., :1, :])
        head = self.classifier
        pooled = head.avgpool(head.conv(x)).flatten(1)
        return head.classifier(head.fc(torch.cat([pooled, first.view(x.shape[0], -1)], dim=1)))
