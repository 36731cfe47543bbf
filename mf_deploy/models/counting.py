"""Multiply-adds and parameters, counted on the model itself."""

from typing import Any, Literal

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from mf_deploy.artifact import Record
from mf_deploy.models.empty import build_empty
from mf_deploy.models.registry import ModelSpec


class ModelSummary(Record):
    """One model of the registry: counted and published figures. Top-1 is in percent on ImageNet."""

    name: str
    input_size: int
    num_classes: int
    params: int
    macs: int
    published_params_m: float | None
    published_macs_m: float | None
    published_top1: float | None
    source: str


class ModelList(Record):
    """What ``mf-deploy models --json`` prints."""

    schema_version: Literal[1] = 1
    models: list[ModelSummary]


def count_parameters(model: nn.Module) -> int:
    """Numbers that training sets; running statistics and other buffers are not among them."""
    return sum(parameter.numel() for parameter in model.parameters())


def count_macs(model: nn.Module, input_size: int) -> int:
    """Multiply-adds of convolutions and matrix products (linear layers, attention) for one image.

    Runs the model once on zeros (1, 3, input_size, input_size), where its parameters are, and leaves
    its mode as it was. Element-wise work, such as normalisation or a gate, is not counted, as in the
    papers.
    """
    parameter = next(model.parameters(), None)
    image = torch.zeros(1, 3, input_size, input_size, device=None if parameter is None else parameter.device)
    modes = {module: module.training for module in model.modules()}
    try:
        model.eval()
        with torch.no_grad(), _MacCounter() as counter:
            model(image)
    finally:
        for module, training in modes.items():
            module.training = training
    return counter.macs


def count_layers(model: nn.Module, input_size: int) -> dict[str, int]:
    """Path of each convolution and linear layer → its multiply-adds for one image (0 where it is not run)."""
    layers = {n: m for n, m in model.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))}
    macs = dict.fromkeys(layers, 0)

    def count(name: str, weight: torch.Tensor, out: torch.Tensor) -> None:
        macs[name] += out.numel() * weight[0].numel()

    hooks = [
        layer.register_forward_hook(lambda m, _, out, name=name: count(name, m.weight, out))
        for name, layer in layers.items()
    ]
    try:
        with torch.no_grad():
            model(torch.zeros(1, 3, input_size, input_size))
    finally:
        for hook in hooks:
            hook.remove()
    return macs


class _MacCounter(TorchDispatchMode):
    """Adds up the operators for which PyTorch has a formula; it counts a multiply-add as two."""

    def __init__(self) -> None:
        super().__init__()
        self.macs = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing is compiled here, and True imports the compiler, for a second

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        formula = flop_registry.get(func.overloadpacket)
        if formula is not None:
            self.macs += formula(*args, **kwargs, out_val=out) // 2
        return out


def summarize(spec: ModelSpec) -> ModelSummary:
    """Build the model with all weights zero (drawing random ones is slower) and count it."""
    model = build_empty(spec, spec.num_classes, device="cpu")
    for value in model.state_dict().values():
        value.zero_()
    return ModelSummary(
        name=spec.name,
        input_size=spec.preprocessing.input_size,
        num_classes=spec.num_classes,
        params=count_parameters(model),
        macs=count_macs(model, spec.preprocessing.input_size),
        published_params_m=spec.published_params_m,
        published_macs_m=spec.published_macs_m,
        published_top1=spec.published_top1,
        source=spec.source,
    )
