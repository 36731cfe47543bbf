"""The rewrites for LiteRT's integer and half-precision kernels: exact, and where they are due."""

import pytest
import torch
from test_lower_tflite import check_other_models_are_left_alone, model_of, record_of
from torch import nn

from mf_deploy.export.lower import lower
from mf_deploy.export.lower.add_tokens import MIN_POSITIONS, AddingFormerToMobile
from mf_deploy.export.lower.batch_heads import BatchedFormerToMobile
from mf_deploy.export.lower.dense_groups import SMALL_GROUP
from mf_deploy.export.lower.graph import DeployGraph
from mf_deploy.export.lower.integer import INTEGER_REWRITES, WEIGHT_REWRITES
from mf_deploy.export.lower.joint_heads import TILE, JointMobileToFormer
from mf_deploy.export.lower.repeat_channels import RepeatedDepthwise
from mf_deploy.export.lower.repeat_words import WordRepeatedDepthwise
from mf_deploy.models.mobile_former import ChannelShuffle

NEW = ("RepeatWords", "DenseGroups", "JointHeads", "AddTokens")


def lowered(variant: str, side: int = 64, batch: int = 1) -> DeployGraph:
    """What ``lower`` has proven to be the reference model."""
    name = f"mobile_former_{variant}"
    rewrites = INTEGER_REWRITES["tflite"]
    return lower(model_of(name), record_of(name, side), "tflite", batch, rewrites)


@pytest.mark.parametrize(("variant", "side", "batch"), [("26m", 224, 1), ("26m", 64, 2), ("52m", 64, 1)])
def test_graphs_for_int8_are_proven(variant: str, side: int, batch: int) -> None:
    applied = lowered(variant, side, batch).rewrites
    assert {"RepeatWords", "JointHeads", "AddTokens"} <= set(applied)
    assert ("DenseGroups" in applied) == (variant == "26m")


def test_other_models_are_left_alone() -> None:
    check_other_models_are_left_alone(INTEGER_REWRITES["tflite"], NEW)


def test_float_arithmetic_gets_what_half_precision_gains_from() -> None:
    names = {rewrite.name for rewrite in WEIGHT_REWRITES["tflite"]}
    assert {"JointHeads", "AddTokens"} <= names
    assert not {"RepeatWords", "DenseGroups"} & names


def test_words_are_repeated_as_channels_are() -> None:
    repeated = RepeatedDepthwise(nn.Conv2d(8, 24, 3, 2, 1, groups=8)).double()
    x = torch.randn(2, 8, 6, 10, dtype=torch.float64)
    expected = repeated(x)
    repeated.__class__ = WordRepeatedDepthwise
    torch.testing.assert_close(repeated(x), expected)


def test_no_small_group_is_left() -> None:
    """And no shuffle behind a convolution that turned dense."""
    module = lowered("26m").module
    convs = [each for each in module.modules() if isinstance(each, nn.Conv2d)]
    grouped = [conv for conv in convs if 1 < conv.groups < conv.in_channels]
    assert grouped
    assert min(conv.in_channels // conv.groups for conv in grouped) >= SMALL_GROUP
    first = module.features[3].stage("conv1")
    assert first[0].groups == 1
    assert not any(isinstance(each, ChannelShuffle) for each in first)


@pytest.mark.parametrize(("variant", "expected"), [("26m", True), ("52m", True), ("508m", False)])
def test_heads_are_joined_where_they_fit_one_tile(variant: str, expected: bool) -> None:
    found = [each for each in lowered(variant).module.modules() if isinstance(each, JointMobileToFormer)]
    assert bool(found) is expected
    assert all(each.proj.in_features <= TILE for each in found)


@pytest.mark.parametrize("tokens", [2, 3, 6])
@pytest.mark.parametrize("positions", [MIN_POSITIONS - 1, MIN_POSITIONS])
def test_tokens_are_added_up(tokens: int, positions: int) -> None:
    scores = 9 * torch.randn(2, tokens, positions, dtype=torch.float64)
    adding = AddingFormerToMobile.__new__(AddingFormerToMobile)
    plain = BatchedFormerToMobile.__new__(BatchedFormerToMobile)
    torch.testing.assert_close(adding.softmax(scores), scores.softmax(-2))
    torch.testing.assert_close(plain.softmax(scores), scores.softmax(-2))
