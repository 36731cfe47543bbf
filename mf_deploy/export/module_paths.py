"""Where a layer of a rewritten graph stands in the reference model: the words of a quantization plan."""

import re

from torch import nn

RENAMED: tuple[tuple[str, str], ...] = (
    (r"^(features\.\d+)\.(?:mobile|hyper)\.", r"\1."),
    (r"\.conv$", ""),  # the depthwise convolution behind a repeat of its input
)
"""What the rewrites for TFLite and ONNX call things, and what the reference model calls them."""


def reference_path(path: str) -> str:
    """``features.1.mobile.conv1.0`` of a deploy graph is ``features.1.conv1.0`` of the reference model."""
    for pattern, replacement in RENAMED:
        path = re.sub(pattern, replacement, path)
    return path


def weighted_modules(module: nn.Module) -> list[str]:
    """Reference paths of the convolutions and linear layers of a deploy graph, in its order."""
    layers = (nn.Conv2d, nn.Linear)
    return [reference_path(name) for name, each in module.named_modules() if isinstance(each, layers)]
