"""mf-bench import: results find their artifact, and what cannot be true is refused."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_artifacts import write_tiny_artifact

from mf_deploy.artifact import Artifact
from mf_deploy.benchmarks.imports import MAX_BYTES
from mf_deploy.benchmarks.latency import (
    BenchReport,
    Conditions,
    DeviceInfo,
    EngineInfo,
    LatencyReport,
    LatencyStatistics,
    Measurement,
    report_on,
)
from mf_deploy.benchmarks.probe import Probe
from mf_deploy.benchmarks.protocol import Protocol
from mf_deploy.report import load_results

PHONE = DeviceInfo(
    name="android", cpu="Tensor G3", cores=9, memory_bytes=8 << 30, os="Android 14", model="Pixel 8"
)


@pytest.fixture
def artifact(tmp_path: Path) -> Artifact:
    write_tiny_artifact(tmp_path / "runs" / "tiny" / "onnx-w8", scheme="w8", depth=3)
    return write_tiny_artifact(tmp_path / "runs" / "tiny" / "onnx-fp32")


def result(artifact: Artifact, **changes: Any) -> dict[str, Any]:
    """A phone's result as JSON; ``changes`` are those of the measurement."""
    samples = [round(2 + 0.01 * (index % 7), 4) for index in range(50)]
    statistics = LatencyStatistics.of(samples)
    ends = [round(sum(samples[: index + 1]) / 1e3, 4) for index in range(50)]
    fields: dict[str, Any] = {
        "engine": EngineInfo(name="ONNX Runtime", version="1.29.0"),
        "accelerator_requested": "xnnpack",
        "accelerator_used": "cpu, xnnpack",
        "load_ms": 20.0,
        "first_inference_ms": 5.0,
        "warmup_ms": [3.0],
        "samples_ms": samples,
        "sampled_at_s": ends,
        "statistics": statistics,
        "images_per_s": 1e3 / statistics.mean_ms,
        "before": Conditions(thermal_state="nominal"),
        "after": Conditions(thermal_state="fair"),
        "probe_logits": Probe.of(artifact).expected.tolist(),
    }
    measurement = Measurement.model_validate(fields | changes)
    report = report_on(artifact, "device", PHONE, 4, Protocol(min_runs=50), measurement)
    return json.loads(report.model_copy(update={"measured_by": "Android app"}).model_dump_json())


def mf_bench_import(tmp_path: Path, content: object, *arguments: str) -> "subprocess.CompletedProcess[str]":
    file = tmp_path / "results.json"
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    to = arguments or ("--to", str(tmp_path / "runs"))
    command = [sys.executable, "-m", "mf_deploy.cli.bench", "import", str(file), *to]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def stored(tmp_path: Path) -> list[LatencyReport]:
    return load_results(tmp_path / "runs" / "tiny").latency


def test_a_result_goes_to_its_artifact_and_its_logits_are_judged_here(
    tmp_path: Path, artifact: Artifact
) -> None:
    renamed = result(artifact) | {"artifact": "a phone's own name"}
    done = mf_bench_import(tmp_path, renamed)
    assert done.returncode == 0, done.stderr
    assert "tiny/onnx-fp32 on Pixel 8 (device): p90 2.06 ms, logits as on the host" in done.stdout
    (report,) = stored(tmp_path)
    assert report.artifact == "onnx-fp32"
    assert report.measurement is not None
    assert report.measurement.correctness is not None
    assert report.measurement.correctness.max_abs_error == 0
    assert report.measurement.correctness.passed


def test_a_claim_to_be_right_is_not_believed(tmp_path: Path, artifact: Artifact) -> None:
    content = result(artifact)
    content["measurement"]["probe_logits"] = (Probe.of(artifact).expected + 1).tolist()
    content["measurement"]["correctness"] = {
        "reference": "me", "inputs": 3, "max_abs_error": 0.0, "tolerance": 1.0, "passed": True,
    }  # fmt: skip
    assert "WRONG LOGITS" in mf_bench_import(tmp_path, content).stdout
    content["measurement"]["probe_logits"] = None
    assert "logits not checked" in mf_bench_import(tmp_path, content).stdout


def test_lists_and_whole_commands_are_taken_and_nothing_twice(tmp_path: Path, artifact: Artifact) -> None:
    one, other = result(artifact), result(artifact, load_ms=21.0)
    assert mf_bench_import(tmp_path, [one, other]).returncode == 0
    again = mf_bench_import(tmp_path, [one, other])
    assert again.returncode == 0
    assert again.stdout.count("already there") == 2
    reports = [LatencyReport.model_validate(one)]
    whole = mf_bench_import(tmp_path, BenchReport(reports=reports, ratios=[]).model_dump_json())
    assert "already there" in whole.stdout
    assert len(stored(tmp_path)) == 2


def edit(path: str, value: object) -> Callable[[dict[str, Any]], None]:
    def apply(content: dict[str, Any]) -> None:
        *parents, last = path.split(".")
        for part in parents:
            content = content[part]
        content[last] = value

    return apply


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (edit("measurement.statistics.p90_ms", 0.5), "statistics.p90_ms does not follow from samples_ms"),
        (edit("measurement.images_per_s", 9999.0), "images_per_s does not follow"),
        (edit("measurement.sampled_at_s", [0.001] * 50), "samples_ms take longer than the run did"),
        (edit("protocol.min_runs", 1024), "50 samples are fewer than its protocol's"),
        (edit("protocol.min_seconds", 60.0), "shorter than its protocol's"),
        (edit("model_sha256", "0" * 64), "none has the sha256 000000000000"),
        (edit("model_bytes", 7), "model_bytes is 7"),
        (edit("scheme", "w8"), "scheme is w8, and fp32 in the manifest"),
        (edit("kind", "emulated"), "its times are emulated"),
        (edit("schema_version", 99), "schema version 99, which this mf-deploy does not know"),
        (edit("device.model", "\x1b[2J"), "control characters"),
        (edit("measurement.samples_ms", [-1.0] * 50), "greater than or equal to 0"),
        (edit("surprise", 1), "Extra inputs are not permitted"),
    ],
)
def test_what_cannot_be_true_is_refused_in_one_line(
    tmp_path: Path, artifact: Artifact, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    content = result(artifact)
    change(content)
    done = mf_bench_import(tmp_path, content)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert stored(tmp_path) == []


@pytest.mark.parametrize("content", ["", "[]", "3", "[" * 100_000, '{"reports": 1}', "\x00\xff", "{}"])
def test_files_that_are_no_results_are_refused(tmp_path: Path, artifact: Artifact, content: str) -> None:
    done = mf_bench_import(tmp_path, content)
    assert done.returncode == 2
    assert done.stderr.startswith("error: Cannot read")
    assert done.stderr.count("\n") == 1


def test_a_huge_file_is_refused_unread(tmp_path: Path, artifact: Artifact) -> None:
    file = tmp_path / "huge.json"
    with file.open("wb") as stream:
        stream.truncate(MAX_BYTES + 1)
    to = ("--to", str(tmp_path / "runs"))
    command = [sys.executable, "-m", "mf_deploy.cli.bench", "import", str(file), *to]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "larger than" in done.stderr


def test_good_results_beside_a_bad_one_are_kept(tmp_path: Path, artifact: Artifact) -> None:
    bad = result(artifact)
    edit("measurement.images_per_s", 1.0)(bad)
    done = mf_bench_import(tmp_path, [bad, result(artifact)])
    assert done.returncode == 2
    assert len(stored(tmp_path)) == 1


def test_without_artifacts_there_is_nothing_to_import_to(tmp_path: Path) -> None:
    done = mf_bench_import(tmp_path, "[]")
    assert done.returncode == 2
    assert "No artifact at" in done.stderr
