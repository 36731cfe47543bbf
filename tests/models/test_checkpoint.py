"""Checkpoints of every format, whole and damaged, friendly and hostile."""

import argparse
import json
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from mf_deploy.errors import MfDeployError
from mf_deploy.models import checkpoint_file, load_model
from mf_deploy.models.checkpoint import fitting_models, read_checkpoint
from mf_deploy.models.registry import get_spec

SMALL = "mobilenet_v3_small"
CLASSES = 5


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(3)
    return get_spec(SMALL).build(CLASSES).eval()


@pytest.fixture
def state(model: nn.Module) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in model.state_dict().items()}


def shifted(state: dict[str, Tensor], by: float) -> dict[str, Tensor]:
    return {key: value + by if key == "classifier.bias" else value for key, value in state.items()}


def assert_same(loaded: nn.Module, state: dict[str, Tensor]) -> None:
    found = loaded.state_dict()
    assert all(torch.equal(found[key], value) for key, value in state.items())
    assert not loaded.training
    assert not any(parameter.requires_grad for parameter in loaded.parameters())


def line_of(path: Path, name: str = SMALL, num_classes: int | None = None) -> str:
    """The one line with which loading ``path`` fails."""
    with pytest.raises(MfDeployError) as caught:
        load_model(name, path, num_classes)
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)
    return str(caught.value)


class Payload:
    """Runs a command when it is unpickled by something that trusts it."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("key", ["state_dict", "state_dict_ema", "model_ema", "model", "model_state_dict"])
def test_entries_of_a_checkpoint_dict(tmp_path: Path, state: dict[str, Tensor], key: str) -> None:
    torch.save({"arch": SMALL, "epoch": 3, key: state}, tmp_path / "c.pth.tar")
    assert_same(load_model(SMALL, tmp_path / "c.pth.tar"), state)


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod."])
@pytest.mark.parametrize("zipped", [True, False])
def test_bare_state_dicts_and_wrappers(
    tmp_path: Path, state: dict[str, Tensor], prefix: str, zipped: bool
) -> None:
    wrapped = {prefix + key: value for key, value in state.items()}
    torch.save(wrapped, tmp_path / "c.pt", _use_new_zipfile_serialization=zipped)
    assert_same(load_model(SMALL, tmp_path / "c.pt"), state)


def test_averaged_weights_come_first(tmp_path: Path, state: dict[str, Tensor]) -> None:
    path = tmp_path / "c.pth"
    torch.save({"state_dict": shifted(state, 1), "state_dict_ema": state}, path)
    assert_same(load_model(SMALL, path), state)
    assert_same(load_model(SMALL, path, state_key="state_dict"), shifted(state, 1))
    with pytest.raises(MfDeployError, match="no model among its entries: state_dict, state_dict_ema"):
        load_model(SMALL, path, state_key="model")


def test_what_training_scripts_keep_beside_the_weights(tmp_path: Path, state: dict[str, Tensor]) -> None:
    extra = {"args": argparse.Namespace(lr=0.1), "metric": np.float64(75.2), "optimizer": {"state": {}}}
    torch.save({"state_dict": state, **extra}, tmp_path / "c.pth.tar")
    assert_same(load_model(SMALL, tmp_path / "c.pth.tar"), state)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_become_float32(
    tmp_path: Path, state: dict[str, Tensor], dtype: torch.dtype
) -> None:
    other = {key: value.to(dtype) if value.is_floating_point() else value for key, value in state.items()}
    save_file(other, tmp_path / "c.safetensors")
    expected = {key: value.to(state[key].dtype) for key, value in other.items()}
    assert_same(load_model(SMALL, tmp_path / "c.safetensors"), expected)


def test_counters_may_be_missing(tmp_path: Path, state: dict[str, Tensor]) -> None:
    weights = {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}
    torch.save(weights, tmp_path / "c.pth")
    assert_same(load_model(SMALL, tmp_path / "c.pth"), weights)


@pytest.mark.parametrize("key", ["classes", "class_names"])
def test_class_names(tmp_path: Path, state: dict[str, Tensor], key: str) -> None:
    names = ["ape", "bee", "cat", "dog", "elk"]
    torch.save({"state_dict": state, key: names}, tmp_path / "c.pth")
    save_file(state, tmp_path / "c.safetensors", metadata={key: json.dumps(names)})
    for file in ("c.pth", "c.safetensors"):
        assert read_checkpoint(tmp_path / file).classes == names
    torch.save({"state_dict": state, key: names[:4]}, tmp_path / "short.pth")
    assert "4 class names for 5 classes" in line_of(tmp_path / "short.pth")
    torch.save({"state_dict": state, key: 5}, tmp_path / "count.pth")
    assert read_checkpoint(tmp_path / "count.pth").classes is None


def test_without_a_checkpoint_the_weights_are_random_but_repeat() -> None:
    first, second = load_model(SMALL, num_classes=7), load_model(SMALL, num_classes=7)
    assert first(torch.zeros(1, 3, 32, 32)).shape == (1, 7)
    assert_same(first, second.state_dict())


def test_class_count_is_read_and_checked(tmp_path: Path, state: dict[str, Tensor]) -> None:
    torch.save(state, tmp_path / "c.pth")
    assert_same(load_model(SMALL, tmp_path / "c.pth", num_classes=5), state)
    assert "c.pth has 5 classes: 1000 were asked for." in line_of(tmp_path / "c.pth", num_classes=1000)


def test_wrong_variant_names_keys_and_the_right_one(tmp_path: Path, state: dict[str, Tensor]) -> None:
    torch.save(state, tmp_path / "c.pth")
    line = line_of(tmp_path / "c.pth", "mobilenet_v3_large")
    assert "blocks.0.depthwise.conv.weight" not in line
    assert "blocks.1.expand.conv.weight is 72x16x1x1 in the file, 64x16x1x1 in the model" in line
    assert line.endswith("It fits mobilenet_v3_small.")


def test_variants_that_share_keys_are_both_named(tmp_path: Path) -> None:
    torch.save(get_spec("mobile_former_26m").build(11).state_dict(), tmp_path / "c.pth")
    checkpoint = read_checkpoint(tmp_path / "c.pth")
    assert fitting_models(checkpoint) == ["mobile_former_26m", "mobile_former_26m_spatial"]


def test_a_key_too_few_or_too_many(tmp_path: Path, state: dict[str, Tensor]) -> None:
    missing = {key: value for key, value in state.items() if key != "hidden.bias"}
    torch.save(missing, tmp_path / "few.pth")
    assert "does not fit mobilenet_v3_small: hidden.bias is missing in the file." in line_of(
        tmp_path / "few.pth"
    )
    torch.save(state | {"extra.weight": torch.zeros(1)}, tmp_path / "many.pth")
    assert "extra.weight is not in the model. No registered model fits" in line_of(tmp_path / "many.pth")


def test_real_checkpoint(shared: Path) -> None:
    loaded = load_model("mobile_former_52m", shared / "reference" / "mobile_former_52m_tiny_imagenet.pth")
    assert loaded(torch.zeros(1, 3, 96, 96)).shape == (1, 200)


def test_missing_and_empty(tmp_path: Path) -> None:
    assert "no such file" in line_of(tmp_path / "none.pth")
    (tmp_path / "empty.pth").touch()
    assert "it is empty" in line_of(tmp_path / "empty.pth")
    assert "not a file" in line_of(tmp_path)


@pytest.mark.parametrize("kept", [0.0001, 0.5, 0.99999])
@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_truncated(tmp_path: Path, state: dict[str, Tensor], kind: str, kept: float) -> None:
    path = tmp_path / "c.pth"
    if kind == "safetensors":
        save_file(state, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=kind == "zip")
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept)])
    assert "truncated or damaged" in line_of(path)


@pytest.mark.parametrize("zipped", [True, False])
def test_pickled_code_is_refused_and_never_runs(
    tmp_path: Path, state: dict[str, Tensor], zipped: bool
) -> None:
    path, marker = tmp_path / "c.pth", tmp_path / "ran"
    torch.save({"state_dict": state, "extra": Payload(marker)}, path, _use_new_zipfile_serialization=zipped)
    assert "contains pickled code (posix.system)" in line_of(path)
    path.write_bytes(pickle.dumps(Payload(marker)))
    assert "a plain pickle" in line_of(path)
    assert not marker.exists()


def test_whole_models_are_refused(tmp_path: Path, model: nn.Module) -> None:
    torch.save(model, tmp_path / "model.pth")
    assert "pickled code (mf_deploy.models.mobilenet_v3.MobileNetV3)" in line_of(tmp_path / "model.pth")
    scripted = torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2))
    torch.jit.save(scripted, str(tmp_path / "script.pt"))
    assert "TorchScript" in line_of(tmp_path / "script.pt")


def test_other_formats(tmp_path: Path) -> None:
    (tmp_path / "text.pth").write_text("hello, world\n" * 100)
    assert "neither a PyTorch nor a safetensors file" in line_of(tmp_path / "text.pth")
    with zipfile.ZipFile(tmp_path / "archive.pth", "w") as archive:
        archive.writestr("readme.txt", "hello")
    assert "not one of PyTorch's" in line_of(tmp_path / "archive.pth")


@pytest.mark.parametrize(
    "contents", [{}, {"arch": "x", "net": {}}, [1, 2], torch.zeros(3), {"state_dict": {}}]
)
def test_no_state_dict(tmp_path: Path, contents: object) -> None:
    torch.save(contents, tmp_path / "c.pth")
    assert "No state dict in" in line_of(tmp_path / "c.pth")


def test_strange_tensors(tmp_path: Path) -> None:
    for value in (torch.zeros(2, dtype=torch.complex64), torch.eye(3).to_sparse(), "text"):
        torch.save({"state_dict": {"a.weight": value}}, tmp_path / "c.pth")
        assert "a.weight is not a tensor of real numbers" in line_of(tmp_path / "c.pth")


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_not_finite(tmp_path: Path, state: dict[str, Tensor], bad: float) -> None:
    state["blocks.3.project.norm.bias"][2] = bad
    state["hidden.bias"][0] = bad
    torch.save(state, tmp_path / "c.pth")
    assert "NaN or infinity in blocks.3.project.norm.bias" in line_of(tmp_path / "c.pth")


def test_size_limit(tmp_path: Path, state: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save(state, tmp_path / "c.pth")
    vast = torch.zeros(1).expand(1 << 20, 1 << 20)  # four tebibytes, of which the file stores four bytes
    torch.save({"state_dict": {"a.weight": vast}}, tmp_path / "vast.pth")
    assert "more than 4 GiB" in line_of(tmp_path / "vast.pth")
    with zipfile.ZipFile(tmp_path / "bomb.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("c/data.pkl", b"\0" * (1 << 20))
    monkeypatch.setattr(checkpoint_file, "MAX_CHECKPOINT_BYTES", 1 << 19)
    assert "more than" in line_of(tmp_path / "bomb.pth")
    assert "more than" in line_of(tmp_path / "c.pth")
