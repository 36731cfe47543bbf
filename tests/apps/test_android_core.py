"""The Android app's own code on this computer's Java: protocol, statistics, correctness, result files."""

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from host_bench import ENGINE, compile_host_bench
from tiny_artifacts import write_tiny_artifact

from mf_deploy.artifact import MANIFEST_NAME, Artifact
from mf_deploy.benchmarks.latency import LatencyReport, LatencyStatistics
from mf_deploy.benchmarks.measure import Timed
from mf_deploy.benchmarks.probe import Probe
from mf_deploy.benchmarks.probe_files import write_probe

QUICK = ("runs=40", "seconds=0", "warmup_runs=3", "warmup_seconds=0")


@pytest.fixture(scope="module")
def classes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_host_bench(tmp_path_factory.mktemp("classes"))


def host_bench(classes: Path, *arguments: object) -> "subprocess.CompletedProcess[str]":
    command = ["java", "-Xshare:auto", "-cp", str(classes), "HostBench", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def bench(classes: Path, models: Path, *values: str) -> LatencyReport:
    """Run onnx-fp32 below ``models`` as the app does; the result must fit the schema."""
    result = models / "result.json"
    done = host_bench(
        classes, "run", models, result, "model=tiny/onnx-fp32", f"engine={ENGINE}", *QUICK, *values
    )
    assert done.returncode == 0, done.stderr
    return LatencyReport.model_validate_json(result.read_bytes())


@pytest.fixture
def artifact(tmp_path: Path) -> Artifact:
    found = write_tiny_artifact(tmp_path / "models" / "tiny" / "onnx-fp32", depth=2)
    write_probe(found, found.folder)
    return found


def test_a_run_fits_the_schema_and_its_logits_are_those_of_the_host(
    classes: Path, artifact: Artifact
) -> None:
    report = bench(classes, artifact.folder.parents[1])
    measured = report.measurement
    assert measured is not None
    assert (report.kind, report.measured_by) == ("device", "Android app")
    assert (report.model_sha256, report.model_bytes) == (artifact.sha256, artifact.size_bytes)
    assert len(measured.samples_ms) == len(measured.sampled_at_s or []) == 40
    assert len(measured.warmup_ms) == 3
    assert measured.statistics.p90_ms == pytest.approx(np.percentile(measured.samples_ms, 90))
    assert measured.peak_rss_bytes
    assert measured.partial is None
    assert measured.correctness is not None
    assert measured.correctness.passed
    assert measured.probe_logits is not None
    assert Probe.of(artifact).judge(measured.probe_logits) == measured.correctness
    assert [(of.operator, of.unit) for of in measured.placement or []][:2] == [("Conv", "cpu")] * 2
    assert measured.accelerator_used == "cpu"


def test_wrong_logits_are_caught(classes: Path, artifact: Artifact, tmp_path: Path) -> None:
    other = write_tiny_artifact(tmp_path / "other" / "onnx-fp32", depth=3)
    write_probe(other, artifact.folder)
    measured = bench(classes, artifact.folder.parents[1]).measurement
    assert measured is not None
    assert measured.correctness is not None
    assert not measured.correctness.passed
    assert measured.correctness.max_abs_error
    assert measured.correctness.max_abs_error > measured.correctness.tolerance


def test_without_a_probe_nothing_is_claimed(classes: Path, artifact: Artifact) -> None:
    shutil.rmtree(artifact.folder / "probe")
    measured = bench(classes, artifact.folder.parents[1]).measurement
    assert measured is not None
    assert measured.correctness is None
    assert measured.probe_logits is None


def test_a_run_that_is_stopped_keeps_its_samples(classes: Path, artifact: Artifact) -> None:
    report = bench(classes, artifact.folder.parents[1], "seconds=600", "stop=0.3")
    assert report.measurement is not None
    assert report.measurement.partial == "stopped by the user"
    assert report.measurement.samples_ms
    assert report.protocol.min_seconds == 600


def test_a_damaged_model_is_reported_not_run(classes: Path, artifact: Artifact) -> None:
    artifact.model_path.write_bytes(b"x" * artifact.size_bytes)
    report = bench(classes, artifact.folder.parents[1])
    assert report.measurement is None
    assert report.not_run == "onnx-fp32: the model file is damaged; push it again"


def test_what_an_engine_says_becomes_one_short_line(classes: Path, artifact: Artifact) -> None:
    no_such_program = f"engine=no\n\x1b[2J{'x' * 3000}"  # Java repeats its name
    report = bench(classes, artifact.folder.parents[1], no_such_program)
    assert report.not_run is not None
    assert report.not_run.startswith("cannot open onnx-fp32")
    assert report.not_run.isprintable()
    assert len(report.not_run) == 1000


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (["threads=0"], "threads must be from 1 to 64"),
        (["runs=many"], "runs is not a number"),
        (["seconds=NaN"], "seconds must be from 0"),
        (["id=../x"], "bad id"),
        (["accelerator=tpu"], "unknown accelerator tpu"),
        (["model=../../etc"], "no model ../../etc"),
    ],
)
def test_bad_requests_are_refused_in_one_line(
    classes: Path, tmp_path: Path, values: list[str], message: str
) -> None:
    result = tmp_path / "result.json"
    done = host_bench(classes, "run", tmp_path, result, "engine=none", *values)
    assert done.returncode == 2
    assert done.stderr.startswith(message)
    assert done.stderr.count("\n") == 1
    assert not result.exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_file": "../../other.onnx"}, "lies outside"),
        ({"input": {"name": "image"}}, "bad manifest: dtype"),
        ({"input": {"name": "image", "dtype": "float32", "shape": [1e9]}}, "the input's shape"),
        ({"files": []}, "has 0 files"),
    ],
)
def test_bad_manifests_hide_no_other_model(
    classes: Path, artifact: Artifact, change: dict[str, object], message: str
) -> None:
    bad = artifact.folder.parent / "bad"
    bad.mkdir()
    manifest = json.loads((artifact.folder / MANIFEST_NAME).read_text())
    (bad / MANIFEST_NAME).write_text(json.dumps(manifest | change))
    arguments = ("model=tiny/none", "engine=none")
    done = host_bench(classes, "run", artifact.folder.parents[1], bad / "r.json", *arguments)
    assert message in done.stderr
    assert "no model tiny/none" in done.stderr
    bench(classes, artifact.folder.parents[1])


def test_statistics_are_those_of_the_host(classes: Path, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    for count in (1, 2, 7, 1000):
        samples = generator.lognormal(1, 0.3, count).round(4).tolist()
        (tmp_path / "s.json").write_text(json.dumps({"samples": samples}))
        ours = json.loads(host_bench(classes, "statistics", tmp_path / "s.json").stdout)
        assert ours == pytest.approx(LatencyStatistics.of(samples).model_dump(), rel=1e-12)


def test_too_many_samples_are_thinned_as_on_the_host(classes: Path) -> None:
    for limit, count in ((8, 8), (8, 9), (8, 40), (10, 999)):
        host = Timed(most=limit)
        for index in range(count):
            host.add(float(index), float(index))
        ours = json.loads(host_bench(classes, "thin", limit, count).stdout)
        assert ours == {
            "times": host.samples_ms,
            "ends": host.sampled_at_s,
            "every": host.kept_every,
            "seen": count,
        }


def test_json_goes_in_and_out_unchanged(classes: Path, tmp_path: Path) -> None:
    value = {"a": [1.5, -2e-7, True, None, {}], 'b"\\\n\u00e9\u4e2d\U0001f600': [[], "\u0001"]}
    file = tmp_path / "v.json"
    for text in (json.dumps(value), json.dumps(value, ensure_ascii=False, indent=1)):
        file.write_text(text)
        assert json.loads(host_bench(classes, "json", file).stdout) == value


@pytest.mark.parametrize(
    "text",
    ["", "{", "[1,]", '{"a":1,}', '{"a":1 "b":2}', "[01]", "[1.]", "[NaN]", "nul", '{"a":1,"a":2}', "1 2",
     '"\\x"', '"\\u12g4"', '"a\nb"', "[" * 100 + "]" * 100, "-", "{1:2}"],
)  # fmt: skip
def test_bad_json_is_refused(classes: Path, tmp_path: Path, text: str) -> None:
    (tmp_path / "bad.json").write_text(text)
    done = host_bench(classes, "json", tmp_path / "bad.json")
    assert "BenchException: bad JSON" in done.stderr
    assert done.returncode != 0
