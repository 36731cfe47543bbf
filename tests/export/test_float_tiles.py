"""The rewrites that fill the tiles of float kernels and spare their copies."""

import pytest
import torch
from test_lower_tflite import check_other_models_are_left_alone, lowered, model_of, record_of
from torch import nn

from mf_deploy.export.lower import REWRITES, lower
from mf_deploy.export.lower.block_shuffles import BlockShuffle
from mf_deploy.export.lower.fill_tiles import FilledConv2d
from mf_deploy.export.lower.flatten_tokens import FlatBlock, FlatPlainBlock
from mf_deploy.export.lower.head_views import HeadViewsBlock
from mf_deploy.export.lower.integer import INTEGER_REWRITES, WEIGHT_REWRITES
from mf_deploy.export.lower.merge_groups import TILE
from mf_deploy.export.lower.repeat_channels import RepeatedDepthwise
from mf_deploy.export.lower.split_repeats import PARTS, SplitDepthwise
from mf_deploy.export.module_paths import weighted_modules

NEW = ("SplitRepeats", "PadHidden", "FillTiles", "BlockShuffles", "HeadViews")


def test_other_models_are_left_alone() -> None:
    check_other_models_are_left_alone(REWRITES["tflite"], NEW)


def test_integer_kernels_get_what_they_gain_from() -> None:
    names = [rewrite.name for rewrite in INTEGER_REWRITES["tflite"]]
    assert not {"PadHidden", "FillTiles"} & set(names)
    assert {"BlockShuffles", "HeadViews"} <= set(names)


@pytest.mark.parametrize("variant", ["26m", "52m"])
def test_int8_weights_are_stored_without_zeros(variant: str) -> None:
    name = f"mobile_former_{variant}"
    model = model_of(name)
    graph = lower(model, record_of(name, 64), "tflite", rewrites=WEIGHT_REWRITES["tflite"])
    widest = max(conv.out_channels for conv in graph.module.modules() if isinstance(conv, nn.Conv2d))
    assert widest == max(conv.out_channels for conv in model.modules() if isinstance(conv, nn.Conv2d))
    assert not any(isinstance(each, FilledConv2d | SplitDepthwise) for each in graph.module.modules())


@pytest.mark.parametrize(("groups", "outputs"), [(1, 12), (2, 6), (4, 3)])
@pytest.mark.parametrize("batch", [1, 2])
def test_filled_outputs_are_left_out_again(groups: int, outputs: int, batch: int) -> None:
    conv = nn.Conv2d(24, groups * outputs, 1, groups=groups).double()
    filled = FilledConv2d(conv).double()
    assert filled.conv.out_channels % (groups * TILE) == 0
    x = torch.randn(batch, 24, 5, 3, dtype=torch.float64)
    torch.testing.assert_close(filled(x), conv(x))


def test_which_convolutions_of_the_26m_are_filled() -> None:
    """Groups of three or six outputs; the narrow bottleneck becomes dense, so that its shuffles vanish."""
    found = {
        name: (each.conv.groups, each.outputs)
        for name, each in lowered("26m").module.named_modules()
        if isinstance(each, FilledConv2d)
    }
    assert found == {
        "features.0.conv.4": (2, 6),
        "features.1.mobile.conv3.0": (1, 12),
        "features.2.mobile.conv2.0": (4, 6),
        "features.2.mobile.conv4.0": (4, 6),
        "features.3.mobile.conv3.0": (4, 6),
    }


def test_dense_bottlenecks_have_whole_tiles() -> None:
    """Of the dense variants' bottlenecks, those of 36 (52M) and of 60 (214M) hidden channels are padded."""
    for variant, padded in (("52m", 40), ("214m", 64)):
        blocks = [each for each in lowered(variant).module.features if isinstance(each, FlatBlock)]
        hidden = [each.relu("hyper1").channels for each in blocks if not each.down]
        assert padded in hidden
        assert not any(channels % TILE for channels in hidden)


@pytest.mark.parametrize("variant", ["26m", "294m"])
def test_halving_depthwise_convolutions_have_three_parts(variant: str) -> None:
    module = lowered(variant).module
    split = {name: each for name, each in module.named_modules() if isinstance(each, SplitDepthwise)}
    assert len(split) == {"26m": 4, "294m": 4}[variant]
    assert all(len(each.convs) == PARTS for each in split.values())
    whole = [each for each in module.modules() if isinstance(each, RepeatedDepthwise)]
    assert all(each.conv.stride == (1, 1) for each in whole)
    paths = weighted_modules(module)
    for name in split:
        assert len({paths[f"{name}.convs.{part}"] for part in range(PARTS)}) == 1


def test_a_plain_block_with_a_residual_stays_in_rows() -> None:
    """Twelve outputs at 112 × 112 in the 96M: filled, they would go over into planes and back."""
    first = lowered("96m").module.features[0]
    assert isinstance(first, FlatPlainBlock)
    assert isinstance(first.conv[4], nn.Conv2d)


@pytest.mark.parametrize(("groups", "channels"), [(2, 8), (4, 48)])
def test_blocks_are_shuffled(groups: int, channels: int) -> None:
    x = torch.arange(channels, dtype=torch.float64).view(1, -1, 1, 1).expand(2, -1, 3, 2)
    expected = torch.arange(channels).view(groups, groups, -1).transpose(0, 1).flatten()
    assert (BlockShuffle(groups)(x)[1, :, 2, 1] == expected).all()


def test_the_26m_shuffles_blocks_where_they_are_whole() -> None:
    found = [each for each in lowered("26m").module.modules() if isinstance(each, BlockShuffle)]
    assert len(found) == 3  # of 12, 18 and 36 channels; blocks of 4.5 there are not


@pytest.mark.parametrize("variant", ["26m", "294m"])
def test_maps_stay_in_rows_behind_the_first_block(variant: str) -> None:
    features = lowered(variant).module.features
    assert isinstance(features[0], FlatPlainBlock)
    assert all(isinstance(each, HeadViewsBlock) for each in features[1:])
    assert [each.takes_rows for each in features[1:]] == [variant == "294m", *[False] * (len(features) - 2)]
