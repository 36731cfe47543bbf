"""mf-bench from the command line, on real onnxruntime sessions in real processes."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import psutil
import pytest
from onnx import helper, numpy_helper
from tiny_artifacts import write_tiny_artifact

from mf_deploy.artifact import MANIFEST_NAME, Artifact, list_files, read_record
from mf_deploy.benchmarks import Protocol, bench, open_device
from mf_deploy.benchmarks.latency import BenchReport, LatencyReport
from mf_deploy.errors import MISSING_TOOL, MfDeployError

QUICK = Protocol(min_runs=20, warmup_runs=2, warmup_seconds=0)


def mf_bench(*arguments: str | Path) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "mf_deploy.cli.bench", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    """A model folder with a slow and a fast ONNX artifact, and a Core ML one."""
    folder = tmp_path / "tiny"
    write_tiny_artifact(folder / "onnx-fp32", depth=12)
    write_tiny_artifact(folder / "onnx-w8a8", scheme="w8a8", depth=1)
    write_tiny_artifact(folder / "coreml-fp32", target="coreml")
    return folder


def read_result(run: Path, name: str) -> LatencyReport:
    (path,) = (run / "results").glob(f"bench-{name}-host-*-t1.json")
    return read_record(path, LatencyReport, "")


def test_a_run_is_timed_compared_and_kept(run_folder: Path, tmp_path: Path) -> None:
    json_file = tmp_path / "all.json"
    done = mf_bench(run_folder, "--runs", "40", "--vs", run_folder / "onnx-w8a8", "--json", json_file)
    assert done.returncode == 0, done.stderr
    everything = read_record(json_file, BenchReport, "")
    assert [report.artifact for report in everything.reports] == ["coreml-fp32", "onnx-fp32", "onnx-w8a8"]

    slow, fast = read_result(run_folder, "onnx-fp32"), read_result(run_folder, "onnx-w8a8")
    assert slow == everything.reports[1]
    assert slow.kind == "host"
    assert slow.model_sha256 == Artifact.open(run_folder / "onnx-fp32").sha256
    assert slow.measurement is not None
    assert fast.measurement is not None
    assert len(slow.measurement.samples_ms) == 40
    assert slow.measurement.statistics.p50_ms > 2 * fast.measurement.statistics.p50_ms
    assert slow.measurement.engine.name == "ONNX Runtime"

    (ratio,) = everything.ratios
    assert ratio.against.endswith("onnx-w8a8")
    assert 2 < ratio.low <= ratio.ratio <= ratio.high
    assert ": slower" in done.stdout


@pytest.mark.skipif(sys.platform == "darwin", reason="Core ML runs on macOS")
def test_core_ml_off_macos_stays_in_the_table_without_a_time(run_folder: Path) -> None:
    done = mf_bench(run_folder / "coreml-fp32")
    assert done.returncode == MISSING_TOOL
    assert done.stdout.splitlines()[-1] == "coreml-fp32: not run: Core ML needs macOS"
    report = read_result(run_folder, "coreml-fp32")
    assert report.measurement is None
    assert report.not_run == "Core ML needs macOS"

    before = report.model_sha256
    shutil.rmtree(run_folder / "coreml-fp32")
    write_tiny_artifact(run_folder / "coreml-fp32", target="coreml", depth=2)
    assert mf_bench(run_folder / "coreml-fp32").returncode == MISSING_TOOL
    assert read_result(run_folder, "coreml-fp32").model_sha256 != before


@pytest.mark.parametrize("same_file", [True, False])
def test_a_reason_replaces_only_the_measurement_of_an_earlier_file(run_folder: Path, same_file: bool) -> None:
    assert mf_bench(run_folder / "onnx-w8a8", "--runs", "5").returncode == 0
    break_model(run_folder / "onnx-w8a8")
    before = read_result(run_folder, "onnx-w8a8")
    if same_file:
        before.model_sha256 = Artifact.open(run_folder / "onnx-w8a8").sha256
        (path,) = (run_folder / "results").glob("bench-onnx-w8a8-*.json")
        path.write_text(before.model_dump_json())
    done = mf_bench(run_folder / "onnx-w8a8", "--runs", "5")
    assert done.returncode == 2
    assert "not run: Cannot load" in done.stdout
    after = read_result(run_folder, "onnx-w8a8")
    assert after == before if same_file else after.measurement is None


def test_one_broken_artifact_does_not_stop_the_others(run_folder: Path) -> None:
    break_model(run_folder / "onnx-fp32")
    done = mf_bench(run_folder, "--runs", "5")
    assert done.returncode == 2
    assert "Traceback" not in done.stdout + done.stderr
    assert read_result(run_folder, "onnx-w8a8").measurement is not None
    assert "Cannot load" in (read_result(run_folder, "onnx-fp32").not_run or "")


def test_memory_is_the_artifacts_own(tmp_path: Path) -> None:
    megabytes = 64
    artifact = write_tiny_artifact(tmp_path / "tiny" / "onnx-fp32")
    add_ballast(artifact.folder, megabytes)
    parents_own = np.ones(400 << 20, np.uint8)  # a child that counted its parent's memory would show this
    report = bench(Artifact.open(artifact.folder), open_device("host"), protocol=QUICK)
    assert parents_own.all()
    assert report.measurement is not None
    added = report.measurement.peak_rss_bytes - report.measurement.rss_before_load_bytes
    assert megabytes << 20 < added < 4 * (megabytes << 20)
    assert report.measurement.peak_rss_bytes < 400 << 20


def test_an_engine_that_dies_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    artifact = write_tiny_artifact(tmp_path / "tiny" / "onnx-fp32")
    (tmp_path / "onnxruntime.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(
        MfDeployError, match="Timing onnx-fp32 failed: the process ended by SIGKILL"
    ) as raised:
        bench(artifact, open_device("host"), protocol=QUICK)
    assert raised.value.exit_code == 1


def test_interrupted_it_leaves_no_process_and_no_half_result(run_folder: Path) -> None:
    command = [sys.executable, "-m", "mf_deploy.cli.bench", str(run_folder / "onnx-fp32"), "--seconds", "60"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    deadline = time.monotonic() + 30
    while not (workers := psutil.Process(process.pid).children()) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert workers
    time.sleep(1)
    os.killpg(process.pid, signal.SIGINT)
    _, stderr = process.communicate(timeout=20)
    assert process.returncode == 130
    assert stderr.strip().startswith("error: Interrupted")
    assert "Traceback" not in stderr
    assert not any(worker.is_running() for worker in workers)
    assert not list((run_folder / "results").iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--threads", "0"], "Bad --threads 0"),
        (["--threads", "1,x"], "Bad --threads 1,x"),
        (["--threads", "1000"], "Cannot time 1000 threads"),
        (["--runs", "5", "--seconds", "1"], "Cannot use --runs with --seconds"),
        (["--quick", "--sustained", "2m"], "Cannot use --quick with --sustained"),
        (["--sustained", "forever"], "Bad --sustained forever"),
        (["--runs", "0"], "0 is not in the range"),
        (["--cores", "0"], "Cannot use --cores on host"),
        (["--device", "arm:cortex-a76", "--quick"], "Cannot use --quick on arm:cortex-a76"),
        (["--vs", "nowhere"], "nowhere: no such folder"),
        (["--json", "/dev/null/x.json"], "Cannot write"),
    ],
)
def test_bad_options_are_refused_in_one_line_before_anything_runs(
    run_folder: Path, arguments: list[str], message: str
) -> None:
    done = mf_bench(run_folder, *arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert not list(run_folder.glob("results/*"))


def test_sustained_keeps_a_time_series(run_folder: Path) -> None:
    done = mf_bench(run_folder / "onnx-w8a8", "--sustained", "1s")
    assert done.returncode == 0, done.stderr
    report = read_result(run_folder, "onnx-w8a8")
    measured = report.measurement
    assert measured is not None
    assert measured.sampled_at_s is not None
    assert len(measured.sampled_at_s) == len(measured.samples_ms)
    assert measured.sampled_at_s[-1] > 0.5
    assert report.protocol.min_seconds == 1.0


def test_the_protocol_is_mlperf_mobile_s_unless_told_otherwise() -> None:
    default, quick = Protocol.single_stream(seed=3), Protocol.quick()
    assert (default.min_runs, default.min_seconds, default.seed) == (1024, 60.0, 3)
    assert (quick.min_runs, quick.min_seconds) == (200, 0.0)


def test_models_are_timed_in_an_order_of_the_seed_and_shown_in_their_own(run_folder: Path) -> None:
    orders = set()
    for seed in (0, 1):
        rest = ["--seed", str(seed), "--cool-down", "0.1"]
        done = mf_bench(run_folder, "--runs", "1", *rest, "--json", "-")
        assert done.returncode == 0, done.stderr
        reports = BenchReport.model_validate_json(done.stdout).reports
        assert [report.artifact for report in reports] == ["coreml-fp32", "onnx-fp32", "onnx-w8a8"]
        assert {report.protocol.seed for report in reports} == {seed}
        assert {report.protocol.cool_down_seconds for report in reports} == {0.1}
        times = {of.artifact: (run_folder / "results").glob(f"bench-{of.artifact}-*") for of in reports}
        written = {name: next(paths).stat().st_mtime_ns for name, paths in times.items()}
        orders.add(tuple(sorted(written, key=lambda name: written[name])))
    assert len(orders) == 2


def test_json_on_standard_output_is_nothing_but_json(run_folder: Path) -> None:
    done = mf_bench(run_folder / "onnx-w8a8", "--runs", "5", "--json", "-")
    assert BenchReport.model_validate_json(done.stdout).reports[0].artifact == "onnx-w8a8"
    assert "onnx-w8a8" in done.stderr


def test_the_current_folder_can_be_the_artifact(run_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(run_folder / "onnx-w8a8")
    assert mf_bench(".", "--runs", "5").returncode == 0
    assert read_result(run_folder, "onnx-w8a8").artifact == "onnx-w8a8"


def test_a_comparison_without_a_partner_is_refused(run_folder: Path) -> None:
    done = mf_bench(run_folder / "onnx-fp32", "--vs", run_folder / "onnx-fp32")
    assert done.returncode == 2
    assert "Nothing to compare with" in done.stderr


def break_model(folder: Path) -> None:
    """Replace the model by bytes that no engine loads, and make the manifest fit."""
    (folder / "model.onnx").write_bytes(b"not a model")
    refresh_manifest(folder)


def add_ballast(folder: Path, megabytes: int) -> None:
    """Give the model a weight of ``megabytes`` that its output depends on."""
    model = onnx.load(str(folder / "model.onnx"))
    rows = (megabytes << 20) // 4 // 10
    ballast = np.random.default_rng(0).standard_normal((10, rows)).astype(np.float32)
    model.graph.initializer.append(numpy_helper.from_array(ballast, "ballast"))
    model.graph.node[-1].output[0] = "before"
    model.graph.node.append(helper.make_node("MatMul", ["before", "ballast"], ["wide"]))
    model.graph.node.append(helper.make_node("ReduceMax", ["wide"], ["most"], keepdims=1))
    model.graph.node.append(helper.make_node("Add", ["before", "most"], ["logits"]))
    onnx.save(model, str(folder / "model.onnx"))
    refresh_manifest(folder)


def refresh_manifest(folder: Path) -> None:
    from mf_deploy.artifact import Manifest

    manifest = read_record(folder / MANIFEST_NAME, Manifest, "")
    changed = manifest.model_copy(update={"files": list_files(folder)})
    (folder / MANIFEST_NAME).write_text(changed.model_dump_json())
