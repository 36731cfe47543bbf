"""What the ARM proof accepts, and what becomes of a file that ARM refuses in half precision."""

from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from tiny_tflite import SIDE, tiny_graph

from mf_deploy.artifact import Artifact, Parity
from mf_deploy.data import open_images
from mf_deploy.export import Probe, quantize
from mf_deploy.export.arm_proof import RefusedOnArm, difference
from mf_deploy.quantization import QuantPolicy
from scripts.artifacts import save_pictures

LOGITS = np.random.default_rng(0).normal(0, 1, (4, 100))


def parity(sqnr_db: float, tolerance: float | None = None) -> Parity:
    return Parity(
        inputs="seeded pictures",
        samples=4,
        max_abs_error=0.1,
        logits_range=float(np.ptp(LOGITS)),
        agreement=1,
        sqnr_db=sqnr_db,
        tolerance=tolerance,
    )


def with_noise(sqnr_db: float) -> np.ndarray:
    noise = np.random.default_rng(1).normal(0, 1, LOGITS.shape)
    noise *= np.sqrt(np.square(LOGITS).mean() / np.square(noise).mean())
    return LOGITS + noise * 10 ** (-sqnr_db / 20)


@pytest.mark.parametrize(("arm_db", "fits"), [(40, True), (23, True), (21, False), (8, False)])
def test_arm_may_round_as_much_again_as_quantization_did(arm_db: float, fits: bool) -> None:
    why = difference(LOGITS, with_noise(arm_db), parity(25))
    assert (why is None) == fits
    assert why is None or f"{arm_db}.0 dB" in why


def test_a_model_that_quantization_has_ruined_is_still_one_model() -> None:
    assert difference(LOGITS, with_noise(5), parity(-3)) is not None
    assert difference(LOGITS, with_noise(7), parity(-3)) is None


def test_a_tolerance_goes_before_noise() -> None:
    assert difference(LOGITS, LOGITS + 0.02, parity(60, tolerance=5e-2)) is None
    assert difference(LOGITS, LOGITS + 0.02 * np.ptp(LOGITS), parity(10, tolerance=1e-3)) is not None


def test_half_precision_may_round_as_much_as_fp16() -> None:
    """Also where int8 weights cost next to nothing, as in a MobileNetV3."""
    halved = LOGITS + 0.03 * np.ptp(LOGITS)
    assert difference(LOGITS, halved, parity(60), half=True) is None
    assert difference(LOGITS, halved, parity(60)) is not None
    assert difference(LOGITS, LOGITS + 0.3 * np.ptp(LOGITS), parity(60), half=True) is not None


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_one_logit_that_is_no_number_is_a_difference(wrong: float) -> None:
    actual = LOGITS.copy()
    actual[2, 3] = wrong
    assert difference(LOGITS, actual, parity(25)) is not None
    assert difference(LOGITS, actual, parity(25, tolerance=5e-2)) is not None


def refuse_halves(artifact: Artifact, name: str, pictures: np.ndarray) -> list[str]:
    """An ARM CPU whose engine cannot prepare a file that leaves it to compute in half precision."""
    assert len(pictures) == 4
    if artifact.manifest.half_precision:
        raise RefusedOnArm(f"{name} fails on an emulated max", "Node 7 failed to prepare", "Report it.")
    return ["arm:max"]


def make(scheme: Literal["fp16", "w8a8"], folder: Path) -> Artifact:
    """The small network for TFLite, as ``folder``/tflite."""
    graph, pictures = tiny_graph(), folder / "pictures"
    save_pictures(pictures, 4, SIDE)
    probe, out = Probe.seeded(graph.module, SIDE), folder / "tflite"
    return quantize(graph, "tflite", open_images(pictures), QuantPolicy(scheme), out, probe)


@pytest.mark.parametrize("scheme", ["fp16", "w8a8"])
def test_what_arm_refuses_in_half_precision_goes_without(
    scheme: Literal["fp16", "w8a8"], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mf_deploy.export.prove_on_arm", refuse_halves)
    artifact = make(scheme, tmp_path)
    assert not artifact.manifest.half_precision
    (remark,) = artifact.manifest.remarks
    assert remark.startswith("without half precision: ")
    assert "Node 7 failed to prepare" in remark
    assert artifact.manifest.ran_on == ([] if scheme == "fp16" else ["arm:max"])


def test_what_arm_refuses_in_full_precision_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(artifact: Artifact, name: str, pictures: np.ndarray) -> list[str]:
        raise RefusedOnArm(f"{name} is wrong on arm:max", "its logits differ", "Report it.")

    monkeypatch.setattr("mf_deploy.export.prove_on_arm", refuse)
    with pytest.raises(RefusedOnArm, match="tflite is wrong on arm:max"):
        make("w8a8", tmp_path)
    assert not (tmp_path / "tflite").exists()
