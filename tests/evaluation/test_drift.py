"""The layer that is at fault is the one that is named."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from colours import PREPROCESSING, ColourNet, fitted, write_artifact, write_images
from torch import nn

from mf_deploy.data import open_images
from mf_deploy.errors import MfDeployError
from mf_deploy.evaluation.drift import find_drift, first_pictures, layer_outputs
from mf_deploy.runtimes import open_session
from mf_deploy.runtimes.session import Session
from mf_deploy.runtimes.torch import TorchSession


@pytest.fixture
def model() -> ColourNet:
    return fitted()


@pytest.fixture
def pictures() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), np.uint8)


def test_an_exact_artifact_does_not_drift(model: ColourNet, pictures: np.ndarray, tmp_path: Path) -> None:
    artifact = write_artifact(tmp_path / "onnx-fp32", model)
    report = find_drift(artifact, open_session(artifact), model, pictures)
    assert [(layer.layer, layer.tensor) for layer in report.layers] == [
        ("norm", "normed"),
        ("act", "active"),
        ("head", "logits"),
    ]
    assert min(layer.sqnr_db for layer in report.layers) > 100
    assert report.first_drift is None
    assert report.images == 3


def test_the_layer_with_wrong_weights_is_named(
    model: ColourNet, pictures: np.ndarray, tmp_path: Path
) -> None:
    artifact = write_artifact(tmp_path / "onnx-fp32", model, noise=0.5)
    report = find_drift(artifact, open_session(artifact), model, pictures)
    assert report.first_drift == "head"
    model.conv.weight.mul_(1.5)
    report = find_drift(artifact, open_session(artifact), model, pictures)
    assert report.first_drift == "norm"


class ChannelsLast(Session):
    """The layers of a module, as a runtime shows them that keeps channels last and has its own names."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__("nhwc", TorchSession(module, PREPROCESSING, batch=1).input, PREPROCESSING)
        self.module = module

    def _infer(self, prepared: np.ndarray) -> dict[str, np.ndarray]:
        return {"logits": self.module(torch.from_numpy(prepared)).numpy()}

    def intermediates(self, batch: np.ndarray) -> Iterator[dict[str, np.ndarray]]:
        for chunk in self._chunks(batch):
            outputs, _ = layer_outputs(self.module, torch.from_numpy(chunk))
            tensors = enumerate(outputs.values())
            yield {str(i): np.moveaxis(x, 1, -1) if x.ndim == 4 else x for i, x in tensors}


def test_counterparts_are_found_in_another_layout(
    model: ColourNet, pictures: np.ndarray, tmp_path: Path
) -> None:
    report = find_drift(write_artifact(tmp_path / "a", model), ChannelsLast(model), model, pictures)
    assert [layer.tensor for layer in report.layers] == ["0", "1", "2"]
    assert min(layer.sqnr_db for layer in report.layers) == 200


class Chain(nn.Module):
    """Everything that hooks stumble over: in-place, handed-on, repeated, tuple, constant outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU(inplace=True))
        self.nothing = nn.Identity()
        self.split = Split()
        self.zero = nn.Threshold(1e9, 0.0)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = self.nothing(self.first(image))
        left, right = self.split(x)
        return self.first[0](torch.cat([left, right[:, :1]], 1)) + self.zero(x)


class Split(nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x[:, :2] * 2, x[:, 2:] * 3


def test_layer_outputs_are_what_each_module_gave() -> None:
    model = Chain().eval()
    image = torch.randn(2, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    outputs, activations = layer_outputs(model, image)
    names = ["first.1", "first.2", "split[0]", "split[1]", "first.0#2", "logits"]
    assert list(outputs) == names
    assert activations == {"first.1": "first.2", "first.2": "zero"}
    normed = model.first[1](model.first[0](image)).detach()
    np.testing.assert_allclose(outputs["first.1"], normed)
    np.testing.assert_allclose(outputs["first.2"], normed.relu())
    np.testing.assert_allclose(outputs["split[1]"], normed.relu()[:, 2:] * 3)
    np.testing.assert_allclose(outputs["logits"], model(image).detach())


def test_a_runtime_that_shows_outputs_only_says_so(
    model: ColourNet, pictures: np.ndarray, tmp_path: Path
) -> None:
    session = TorchSession(model, PREPROCESSING)
    with pytest.raises(MfDeployError, match="shows outputs only"):
        find_drift(write_artifact(tmp_path / "a", model), session, model, pictures)


def test_a_few_pictures_fill_whole_batches(model: ColourNet, tmp_path: Path) -> None:
    images = open_images(write_images(tmp_path / "set", per_class=1))
    assert len(first_pictures(images, TorchSession(model, PREPROCESSING, batch=1))) == 4
    assert len(first_pictures(images, TorchSession(model, PREPROCESSING, batch=8))) == 8
