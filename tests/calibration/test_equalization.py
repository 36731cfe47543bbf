"""Cross-layer equalization: the same function, with channels that share int8's codes fairly."""

import numpy as np
import pytest
import torch
from PIL import Image

from mf_deploy.artifact import ModelSource
from mf_deploy.calibration.equalization import measure_equalization
from mf_deploy.data import LabelledImages, open_images
from mf_deploy.export.lower import REWRITES, lower
from mf_deploy.export.lower.equalize import equalizable
from mf_deploy.export.lower.fold_batch_norm import FoldBatchNorm
from mf_deploy.models import load_model
from mf_deploy.models.stored import ModelRecord
from mf_deploy.preprocessing import Preprocessing

RECORD = ModelRecord(
    source=ModelSource(name="mobile_former_26m", num_classes=1000, random_weights=True),
    preprocessing=Preprocessing(input_size=64),
    labels=None,
    weights_sha256="",
)


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    """Random weights, with channels of very different size, as training leaves them."""
    torch.manual_seed(0)
    net = load_model("mobile_former_26m")
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.weight.data *= torch.logspace(-1, 1, len(module.weight))[
                torch.randperm(len(module.weight))
            ]
    return net


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> LabelledImages:
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for number in range(8):
        Image.fromarray(rng.integers(0, 256, (80, 80, 3), dtype=np.uint8)).save(folder / f"{number}.png")
    return open_images(folder)


def spreads(net: torch.nn.Module, images: LabelledImages) -> list[float]:
    """Largest over median channel peak in front of each depthwise reader of a dynamic ReLU."""
    found: list[float] = []
    hooks = [
        reader.register_forward_pre_hook(lambda m, inputs: found.append(spread_of(inputs[0])))
        for _, _, reader in equalizable(net)
        if reader.groups == reader.in_channels
    ]
    pictures = next(iter(images.batches(RECORD.preprocessing, 8))).pictures
    net(torch.from_numpy(RECORD.preprocessing.normalize(pictures)))
    for hook in hooks:
        hook.remove()
    return found


def spread_of(x: torch.Tensor) -> float:
    peak = x.abs().amax((0, 2, 3))
    return float(peak.max() / peak.median())


def test_channels_before_depthwise_convolutions_get_one_range(
    model: torch.nn.Module, images: LabelledImages
) -> None:
    equalize = measure_equalization(model, RECORD, images)
    assert equalize is not None
    before = lower(model, RECORD, "onnx", 8, (FoldBatchNorm(),)).module
    after = lower(model, RECORD, "onnx", 8, (FoldBatchNorm(), equalize)).module
    uneven, even = spreads(before, images), spreads(after, images)
    assert min(uneven) > 2
    assert np.median(even) < 1.05
    # A channel is scaled up at most fifty times, so nearly dead ones stay small.
    assert all(b <= a for a, b in zip(uneven, even, strict=True))


@pytest.mark.parametrize("target", ["onnx", "tflite", "coreml"])
def test_every_target_takes_it_and_stays_exact(
    target: str, model: torch.nn.Module, images: LabelledImages
) -> None:
    """``lower`` itself proves equality in float64; the 26M has shuffles between the convolutions."""
    equalize = measure_equalization(model, RECORD, images)
    assert equalize is not None
    fold, *others = REWRITES[target]  # type: ignore[index]
    graph = lower(model, RECORD, target, 1, (fold, equalize, *others))  # type: ignore[arg-type]
    assert graph.rewrites[:2] == ("FoldBatchNorm", "Equalize")


def test_a_model_without_dynamic_relus_is_left_alone(images: LabelledImages) -> None:
    assert measure_equalization(load_model("mobilenet_v3_small"), RECORD, images) is None
