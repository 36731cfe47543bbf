"""Batch normalisation becomes part of the layer before it."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten

from mf_deploy.export.lower.graph import DeployGraph, Rewrite

_LAYERS = (F.conv1d, F.conv2d, F.linear)


class FoldBatchNorm(Rewrite):
    """Fold each BatchNorm into the convolution or linear layer before it.

    Exact in real arithmetic: w' = w·γ/√(σ²+ε), b' = β + (b − μ)·γ/√(σ²+ε). Pairs are found by running
    the module once and following the tensors, so it works for any model, however it is written.
    """

    def apply(self, graph: DeployGraph) -> DeployGraph:
        pairs = layer_norm_pairs(graph.module, graph.example())
        for layer, norm_name in pairs:
            norm = graph.module.get_submodule(norm_name)
            assert isinstance(norm, Norm)
            fuse_(layer, norm)
            graph.module.set_submodule(norm_name, nn.Identity())
        return graph.rewritten(self.name, graph.module) if pairs else graph


@dataclass
class _Recorder(TorchFunctionMode):
    """Which layer made the input of each batch norm, and how often every tensor is used."""

    layer_of: dict[int, Tensor] = field(default_factory=dict)
    uses: Counter[int] = field(default_factory=Counter)
    norms: list[tuple[int, Tensor]] = field(default_factory=list)
    alive: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_function__(
        self, function: Callable, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        out = function(*args, **kwargs)
        if not any(isinstance(value, Tensor) for value in tree_flatten(out)[0]):
            return out  # a question about a shape or a type is no use of the values
        for value in tree_flatten((args, kwargs))[0]:
            if isinstance(value, Tensor):
                self.uses[id(value)] += 1
        if function in _LAYERS:
            self.layer_of[id(out)] = kwargs.get("weight", args[1] if len(args) > 1 else None)
        elif function is F.batch_norm:
            self.norms.append((id(args[0]), args[1]))
        self.alive.append((args, kwargs, out))  # an id names a tensor only while it lives
        return out


Layer = nn.Conv2d | nn.Linear
Norm = nn.BatchNorm1d | nn.BatchNorm2d


def layer_norm_pairs(module: nn.Module, example: Tensor) -> list[tuple[Layer, str]]:
    """Each (layer, name of the batch norm) where the norm is the only reader of the layer's output."""
    recorder = _Recorder()
    with torch.no_grad(), recorder:
        module(example.to(next((p.dtype for p in module.parameters()), example.dtype)))
    layers = {id(layer.weight): layer for layer in module.modules() if isinstance(layer, Layer)}
    norms = {
        id(norm.running_mean): name
        for name, norm in module.named_modules()
        if isinstance(norm, Norm) and norm.track_running_stats
    }
    pairs: list[tuple[Layer, str]] = []
    for source, running_mean in recorder.norms:
        weight = recorder.layer_of.get(source)
        if weight is None or recorder.uses[source] != 1 or recorder.uses[id(weight)] != 1:
            continue
        layer, norm_name = layers.get(id(weight)), norms.get(id(running_mean))
        if layer is not None and norm_name is not None:
            pairs.append((layer, norm_name))
    return pairs


def fuse_(layer: Layer, norm: Norm) -> None:
    """Fold ``norm``'s statistics and affine parameters into ``layer``'s weight and bias, in place."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    gain = torch.rsqrt(norm.running_var + norm.eps)
    if norm.affine:
        gain = gain * norm.weight
    bias = -norm.running_mean if layer.bias is None else layer.bias - norm.running_mean
    bias = bias * gain + (norm.bias if norm.affine else 0.0)
    weight = layer.weight * gain.view(-1, *[1] * (layer.weight.dim() - 1))
    layer.weight = nn.Parameter(weight, requires_grad=False)
    layer.bias = nn.Parameter(bias, requires_grad=False)
