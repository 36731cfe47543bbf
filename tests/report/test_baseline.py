"""Regressions against a baseline: what is beyond the noise is marked, what is within it is not."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from sample_results import accuracy_of, keep, latency_of
from tiny_artifacts import write_tiny_artifact

from mf_deploy.artifact import Artifact
from mf_deploy.benchmarks.latency import Correctness, LatencyReport
from mf_deploy.report import collect, compare, render
from mf_deploy.report.baseline import Comparison, latency_ratio
from mf_deploy.report.summary import summarize


def made(folder: Path, name: str = "onnx-w8a8", depth: int = 1) -> Artifact:
    return write_tiny_artifact(folder / "tiny" / name, scheme="w8a8", depth=depth)


def verdicts(comparison: Comparison) -> dict[str, str]:
    return {change.figure: change.verdict for change in comparison.changes}


@pytest.fixture
def old(tmp_path: Path) -> Path:
    artifact = made(tmp_path / "old")
    keep(artifact, accuracy_of(artifact, 4, 2), latency_of(artifact, 5.0))
    return tmp_path / "old"


@pytest.mark.parametrize(
    ("median_ms", "lost", "depth", "expected"),
    [
        (5.0, 4, 1, {"size": "same", "drop of top-1": "same", "p50": "same", "p90": "same"}),
        (5.1, 8, 1, {"size": "same", "drop of top-1": "same", "p50": "same", "p90": "same"}),
        (7.0, 4, 1, {"size": "same", "drop of top-1": "same", "p50": "worse", "p90": "worse"}),
        (3.0, 60, 1, {"size": "same", "drop of top-1": "worse", "p50": "better", "p90": "better"}),
        (5.0, 4, 2, {"size": "worse", "drop of top-1": "same", "p50": "same", "p90": "same"}),
    ],
)
def test_only_what_is_beyond_the_noise_is_worse(
    tmp_path: Path, old: Path, median_ms: float, lost: int, depth: int, expected: dict[str, str]
) -> None:
    artifact = made(tmp_path / "new", depth=depth)
    keep(artifact, accuracy_of(artifact, lost, 2), latency_of(artifact, median_ms))
    assert verdicts(compare(collect(tmp_path / "new"), collect(old))) == expected


def test_two_runs_of_the_same_speed_rarely_differ() -> None:
    """Autocorrelated noise, as of a machine with slow spells: a bootstrap of single samples would err."""
    generator = np.random.default_rng(1)
    wrong = 0
    for _ in range(60):
        pair = []
        for _ in range(2):
            spells = np.repeat(generator.lognormal(0, 0.04, 30), 10)
            pair.append((5 * spells * generator.lognormal(0, 0.03, 300)).tolist())
        _, low, high = latency_ratio(pair[0], pair[1], 50)
        wrong += not low <= 1 <= high
    assert wrong <= 9  # 5 % of 60 is 3; a bootstrap of single samples is wrong in about 20


def test_a_real_slowdown_is_found_in_its_size() -> None:
    generator = np.random.default_rng(2)
    old, new = (generator.lognormal(0, 0.1, 1024) * scale for scale in (5.0, 5.5))
    for percentile in (50, 90):
        ratio, low, high = latency_ratio(old.tolist(), new.tolist(), percentile)
        assert 1.03 < low < ratio < high < 1.2
        assert ratio == pytest.approx(np.percentile(new, percentile) / np.percentile(old, percentile))


def test_another_machine_other_images_and_other_artifacts_are_not_compared(tmp_path: Path, old: Path) -> None:
    artifact = made(tmp_path / "new")
    made(tmp_path / "new", "onnx-fp32")
    accuracy = accuracy_of(artifact, 60).model_copy(update={"data": "/elsewhere/others.tar"})
    keep(artifact, accuracy, latency_of(artifact, 50.0, cpu="Another CPU"))
    found = compare(collect(tmp_path / "new"), collect(old))
    assert verdicts(found) == {"size": "same", "drop of top-1": "not compared"}
    assert found.missing == [
        "onnx-fp32: not in the baseline",
        "onnx-w8a8: latency on Test CPU, 1 thread (host) only in the baseline",
    ]


def with_logits(report: LatencyReport, passed: bool) -> LatencyReport:
    assert report.measurement is not None
    verdict = Correctness(reference="host", inputs=3, max_abs_error=2.0, tolerance=0.1, passed=passed)
    measurement = report.measurement.model_copy(update={"correctness": verdict})
    return report.model_copy(update={"measurement": measurement})


def test_logits_that_became_wrong_are_worse(tmp_path: Path, old: Path) -> None:
    artifact = made(tmp_path / "new")
    keep(artifact, with_logits(latency_of(artifact, 5.0), passed=False))
    found = compare(collect(tmp_path / "new"), collect(old))
    assert verdicts(found)["logits"] == "worse"
    assert "onnx-w8a8: accuracy only in the baseline" in found.missing


def mf_report(*arguments: str | Path) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "mf_deploy.cli.report", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_exit_code_is_for_ci(tmp_path: Path, old: Path) -> None:
    same = mf_report(old, "--baseline", old)
    assert same.returncode == 0, same.stderr
    assert "0 of 4 figures worse" in same.stdout
    artifact = made(tmp_path / "new")
    keep(artifact, with_logits(latency_of(artifact, 9.0), passed=False))
    slow = mf_report(tmp_path / "new", "--baseline", old)
    assert slow.returncode == 1
    assert "worse: onnx-w8a8: p90 " in slow.stdout
    assert "WRONG LOGITS: onnx-w8a8 on Test CPU, 1 thread (host)" in slow.stdout
    assert "Against the baseline: 3 worse" in (tmp_path / "new/report.html").read_text()
    other = write_tiny_artifact(tmp_path / "third" / "different" / "onnx-fp32")
    none = mf_report(other.folder.parent, "--baseline", old)
    assert none.returncode == 2
    assert "Cannot compare with the baseline" in none.stderr


def test_markdown_has_the_comparison_too(tmp_path: Path, old: Path) -> None:
    artifact = made(tmp_path / "new")
    keep(artifact, latency_of(artifact, 9.0))
    new = collect(tmp_path / "new")
    text = render(new, ".md", compare(new, collect(old)))
    (line,) = [line for line in text.splitlines() if line.startswith("| onnx-w8a8 | p90")]
    assert line.endswith("| worse |")


def test_a_fast_model_with_wrong_logits_is_on_no_front(tmp_path: Path) -> None:
    right, wrong = made(tmp_path / "new", "onnx-w8a8"), made(tmp_path / "new", "onnx-w8")
    keep(right, accuracy_of(right), latency_of(right, 5.0))
    keep(wrong, accuracy_of(wrong), with_logits(latency_of(wrong, 1.0), passed=False))
    new = collect(tmp_path / "new")
    rows = {row.label: row for row in summarize(new)}
    assert (rows["onnx-w8a8"].on_front, rows["onnx-w8"].on_front) == (True, False)
    assert (rows["onnx-w8"].p90.small, rows["onnx-w8"].p90.tone) == ("wrong logits", "bad")
    page = render(new, ".html")
    (plot,) = re.findall(r"against latency:.*?</svg>", page, re.DOTALL)
    assert "<title>onnx-w8a8:" in plot
    assert "<title>onnx-w8:" not in plot
