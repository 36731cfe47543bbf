"""Where a layer of a rewritten graph stands in the reference model: the words of a quantization plan."""

import re
from collections.abc import Callable

from torch import nn

RENAMED: tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...] = (
    (r"^(features\.\d+)\.(?:mobile|hyper)\.", r"\1."),
    (r"(\.hyper\.2)\.[01]$", r"\1"),  # the layers of a1 and of a2, one in the reference model
    (r"\.(?:conv|source)$", ""),  # a depthwise convolution behind a repeat of its input; a padded one
    (r"\.convs\.\d+$", ""),  # the parts of a depthwise convolution
    # the Neural Engine's form, whose blocks follow one plain block, and whose merged layers go by their first
    (r"^plain\.", "features."),
    (r"^blocks\.(\d+)\.(?:mobile\.)?", lambda found: f"features.{int(found[1]) + 1}."),
    (r"(^|\.)to_former\.", r"\1local_global."),
    (r"\.former\.", ".global_block."),
    (r"\.project$", ".global_local.k"),
    (r"\.slopes\.first$", ".hyper1.hyper.0"),
    (r"\.slopes\.last$", ".hyper1.hyper.2"),
    (r"^head\.conv\.", "classifier.conv."),
    (r"^head\.fc$", "classifier.fc.0"),
    (r"^head\.classifier$", "classifier.classifier.1"),
)
"""What the rewrites call things, and what the reference model calls them."""


def reference_path(path: str) -> str:
    """``features.1.mobile.conv1.0`` of a deploy graph is ``features.1.conv1.0`` of the reference model."""
    for pattern, replacement in RENAMED:
        path = re.sub(pattern, replacement, path)
    return path


def weighted_modules(module: nn.Module) -> dict[str, str]:
    """Path of each convolution and linear layer of a module, in its order, → its path in the reference."""
    layers = (nn.Conv2d, nn.Linear)
    return {name: reference_path(name) for name, each in module.named_modules() if isinstance(each, layers)}
