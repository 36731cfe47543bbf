"""The integer stem on blocks of four pixels."""

import pytest
import torch
from test_lower_tflite import model_of, record_of
from torch import nn

from mf_deploy.export.lower import lower
from mf_deploy.export.lower.block_stem import BlockConv
from mf_deploy.export.lower.integer import INTEGER_REWRITES


@pytest.mark.parametrize("channels", [3, 1])
def test_blocks_reach_the_same_windows(channels: int) -> None:
    conv = nn.Conv2d(channels, 8, 3, 2, 1).double()
    images = torch.randn(2, channels, 12, 16, dtype=torch.float64)
    torch.testing.assert_close(BlockConv(conv)(images), conv(images))


@pytest.mark.parametrize(
    ("variant", "side", "expected"), [("26m", 64, True), ("26m", 66, False), ("96m", 64, False)]
)
def test_only_few_outputs_and_whole_blocks_are_rewritten(variant: str, side: int, expected: bool) -> None:
    name = f"mobile_former_{variant}"
    graph = lower(model_of(name), record_of(name, side), "tflite", rewrites=INTEGER_REWRITES["tflite"])
    assert isinstance(graph.module.stem[0], BlockConv) is expected
    assert ("BlockStem" in graph.rewrites) is expected
