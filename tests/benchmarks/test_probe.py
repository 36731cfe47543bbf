"""The probe tells a right device from a wrong one."""

from pathlib import Path

import numpy as np
import pytest
from tiny_artifacts import CLASSES, SIDE, write_tiny_artifact

from mf_deploy.benchmarks.probe import INFERENCES, Probe, probe_pictures
from mf_deploy.runtimes import open_session


@pytest.fixture
def probe(tmp_path: Path) -> Probe:
    return Probe.of(write_tiny_artifact(tmp_path / "tiny" / "onnx-fp32", depth=2))


def test_inputs_are_raw_tensors_and_expected_is_what_they_give(tmp_path: Path) -> None:
    artifact = write_tiny_artifact(tmp_path / "tiny" / "onnx-fp32", depth=2)
    probe = Probe.of(artifact)
    assert probe.inputs.shape == (INFERENCES, 1, 3, SIDE, SIDE)
    assert probe.inputs.dtype == np.float32
    session = open_session(artifact)
    for tensor, expected in zip(probe.inputs, probe.expected, strict=True):
        np.testing.assert_array_equal(session.run_prepared(tensor)["logits"][0], expected)
    np.testing.assert_array_equal(Probe.of(artifact).inputs, probe.inputs)


def test_pictures_differ_from_each_other_and_use_the_whole_range() -> None:
    pictures = probe_pictures(3, 64)
    assert pictures.dtype == np.uint8
    assert pictures.min() < 40
    assert pictures.max() > 215
    assert not np.array_equal(pictures[0], pictures[1])


def test_the_host_s_own_logits_pass_and_a_permutation_of_them_does_not(probe: Probe) -> None:
    same = probe.judge(probe.expected)
    assert same.passed
    assert (same.max_abs_error, same.inputs) == (0.0, INFERENCES)
    swapped = probe.judge(probe.expected[::-1])
    assert not swapped.passed
    assert swapped.max_abs_error is not None
    assert swapped.max_abs_error > swapped.tolerance


def test_rounding_passes_and_more_than_the_tolerance_does_not(probe: Probe) -> None:
    assert probe.judge(probe.expected + 0.9 * probe.tolerance).passed
    assert not probe.judge(probe.expected + 1.1 * probe.tolerance).passed


@pytest.mark.parametrize(
    "logits", [[], [[0.0] * CLASSES], [[0.0], [0.0, 1.0]], [[float("nan")] * CLASSES] * INFERENCES]
)
def test_what_cannot_be_compared_never_passes(probe: Probe, logits: list[list[float]]) -> None:
    found = probe.judge(logits)
    assert not found.passed
    assert found.max_abs_error is None
