"""Models without weights, for questions about shapes and counts."""

from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from mf_deploy.models.registry import ModelSpec


class _SkipDrawing(TorchFunctionMode):
    """Leave tensors as they are where they would be filled with random numbers.

    That takes longer than all the rest; on the ``meta`` device PyTorch even imports its symbolic
    shapes for it, for a second.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") in ("uniform_", "normal_"):
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


def build_empty(spec: ModelSpec, num_classes: int, device: str = "meta") -> nn.Module:
    """The model of ``spec`` with undefined weights; on ``meta`` they have shapes and no storage."""
    with torch.device(device), _SkipDrawing():
        return spec.build(num_classes)
