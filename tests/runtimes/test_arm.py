"""The ARM lab: real engines on emulated CPUs, against the same engines on this machine."""

import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
import pytest
from tiny_artifacts import write_tiny_artifact
from tiny_tflite import CLASSES, SIDE

from mf_deploy.artifact import Artifact, read_record
from mf_deploy.benchmarks.devices.arm import Arm
from mf_deploy.benchmarks.instructions import InstructionReport, InstructionReports
from mf_deploy.errors import MISSING_TOOL, MfDeployError
from mf_deploy.export.parity import seeded_pictures
from mf_deploy.runtimes import open_session
from mf_deploy.runtimes.arm import CPUS
from mf_deploy.runtimes.arm.emulator import Emulator
from mf_deploy.runtimes.arm.lab import QEMU, Lab, LabRecord, open_lab
from mf_deploy.runtimes.arm.laps import operator_laps
from mf_deploy.runtimes.arm.session import ArmSession
from mf_deploy.runtimes.session import Session

HALF_PRECISION = 5e-3  # of logits around one half, where the CPU computes floats in float16
ARTIFACTS = ("onnx-fp32", "onnx-w8a8", "tflite-fp32", "tflite-w8a8")


@pytest.fixture
def run(lab: Lab, tiny_run: Path) -> Path:
    """The small network's artifacts, where they can run."""
    return tiny_run


@pytest.mark.parametrize("cpu", list(CPUS))
def test_arm_kernels_give_the_host_s_results(run: Path, cpu: str) -> None:
    pictures = seeded_pictures(3, SIDE)
    artifacts = [Artifact.open(run / name) for name in ARTIFACTS]
    with ThreadPoolExecutor(2) as pool:
        sessions = list(pool.map(lambda artifact: open_session(artifact, f"arm:{cpu}"), artifacts))
    for artifact, session in zip(artifacts, sessions, strict=True):
        assert session.device == f"arm:{cpu}"
        on_host = open_session(artifact).run(pictures)["logits"]
        on_arm = session.run(pictures)["logits"]
        assert on_arm.shape == on_host.shape == (3, CLASSES)
        atol = HALF_PRECISION if artifact.manifest.half_precision else 1e-5
        np.testing.assert_allclose(on_arm, on_host, rtol=0, atol=atol, err_msg=artifact.name)
        assert np.ptp(on_host) > 1e-2


def count(run: Path, name: str, cpu: str, per_op: bool = False) -> InstructionReport:
    return Arm(f"arm:{cpu}").count(Artifact.open(run / name), per_op=per_op)


@pytest.mark.parametrize("target", ["onnx", "tflite"])
def test_counts_repeat_and_are_those_of_the_model(run: Path, target: str) -> None:
    report = count(run, f"{target}-fp32", "cortex-a76", per_op=True)
    assert report.instructions is not None
    low, high = min(report.totals), max(report.totals)
    assert len(report.totals) == 3
    assert high - low <= 0.001 * high + 20_000  # of an allocator that tidies up now and then
    assert 4 * report.instructions.fmla > 0.9 * report.macs  # an FMLA is four multiply-adds in fp32
    assert report.instructions.dot == report.instructions.mmla == 0
    assert report.operators is not None
    explained = sum(of.instructions.total for of in report.operators)
    assert explained == pytest.approx(report.instructions.total, rel=0.05, abs=50_000)
    costs = {of.kind: of.instructions for of in report.operators}
    assert any("Conv" in kind and cost.fmla > 1000 for kind, cost in costs.items())
    assert sum(of.instructions.fmla for of in report.operators) == report.instructions.fmla


@pytest.mark.parametrize("target", ["onnx", "tflite"])
def test_each_cpu_has_its_int8_instructions(run: Path, target: str) -> None:
    with ThreadPoolExecutor(2) as pool:
        reports = list(pool.map(lambda cpu: count(run, f"{target}-w8a8", cpu), CPUS))
    a72, a76, newest = (report.instructions for report in reports)
    assert a72 is not None
    assert a76 is not None
    assert newest is not None
    assert (a72.dot, a72.mmla, a76.mmla) == (0, 0, 0)
    assert a76.dot > 0
    assert newest.mmla > 0
    assert a76.total < a72.total


def test_an_operator_in_parts_keeps_all_its_laps() -> None:
    """A concatenation of three parts between two convolutions; every duration is off by a microsecond."""
    operators = [
        {"opens": True, "elapsed_us": 99},
        {"opens": False, "elapsed_us": 14},
        {"opens": False, "elapsed_us": 51},
    ]
    durations_us = [5, 5, 5, 1, 100, 5, 5, 5, 50, 7, 7, 7]
    times = np.cumsum(durations_us) * 1000
    assert operator_laps(operators, list(times)) == [(3, 4), (4, 7), (7, 8)]
    with pytest.raises(ValueError, match="3 operators"):
        operator_laps(operators, list(times[:8]))


def test_the_command_prints_counts_and_never_a_time(run: Path, tmp_path: Path) -> None:
    json_file = tmp_path / "counts.json"
    arguments = ["--device", "arm:cortex-a72", "--runs", "1", "--json", json_file]
    command = [sys.executable, "-m", "mf_deploy.cli.bench", run / "tflite-fp32", *arguments]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (report,) = read_record(json_file, InstructionReports, "").reports
    kept = run / "results" / "instructions-tflite-fp32-arm-cortex-a72.json"
    assert read_record(kept, InstructionReport, "") == report
    assert report.kind == "emulated"
    assert " ms" not in done.stdout
    assert "emulated" in done.stdout
    assert f"{report.instructions.total / 1e6:.2f}" in done.stdout if report.instructions else False


def test_a_model_that_the_engine_refuses_is_one_line(run: Path, tmp_path: Path) -> None:
    artifact = write_tiny_artifact(tmp_path / "run" / "tflite-fp32", target="tflite")
    before = emulated_processes()
    with pytest.raises(MfDeployError, match=r"tflite-fp32/model.tflite fails on an emulated max") as error:
        open_session(artifact, "arm:max")
    assert "\n" not in str(error.value)
    assert emulated_processes() == before


def test_core_ml_is_refused(tmp_path: Path, lab: Lab) -> None:
    artifact = write_tiny_artifact(tmp_path / "run" / "coreml-fp32", target="coreml")
    with pytest.raises(MfDeployError, match="Core ML needs macOS"):
        open_session(artifact, "arm:max")
    assert Arm("arm:max").count(artifact).not_run == "Core ML needs macOS"


def test_closing_a_session_ends_its_process(run: Path) -> None:
    before = set(emulated_processes())
    session = open_session(Artifact.open(run / "tflite-fp32"), "arm:cortex-a76")
    assert isinstance(session, ArmSession)
    (process,) = set(emulated_processes()) - before
    session.close()
    assert not process.is_running()
    with pytest.raises(MfDeployError, match="it was closed"):
        session.run(seeded_pictures(1, SIDE))


def test_an_interrupted_command_leaves_no_process(run: Path) -> None:
    command = [sys.executable, "-m", "mf_deploy.cli.bench", str(run), "--device", "arm:max", "--runs", "2000"]
    started = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 30
    while not (found := emulated_processes(started.pid)) and time.monotonic() < deadline:
        time.sleep(0.05)
    started.send_signal(signal.SIGINT)
    _, said = started.communicate(timeout=15)
    assert started.returncode == 130
    assert "error: Interrupted" in said
    assert len(found) == 1
    assert not found[0].is_running()


def emulated_processes(parent: int | None = None) -> list[psutil.Process]:
    """Below ``parent``, or below this process: other workers of a test run have emulators of their own."""
    descendants = psutil.Process(parent).children(recursive=True)
    return [process for process in descendants if process.name().startswith(QEMU[:15])]


def test_without_a_lab_the_error_says_how_to_get_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MF_DEPLOY_CACHE", str(tmp_path))
    with pytest.raises(MfDeployError, match="Run: mf-deploy setup arm") as error:
        open_lab()
    assert error.value.exit_code == MISSING_TOOL


@pytest.mark.skipif(not Path("/etc/debian_version").exists(), reason="the lab is for Debian and Ubuntu")
def test_a_missing_tool_is_named_with_the_command_that_installs_it(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "from mf_deploy.cli.deploy import main; main()", "setup", "arm"]
    environment = {"PATH": str(tmp_path), "MF_DEPLOY_CACHE": str(tmp_path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == MISSING_TOOL
    assert done.stderr.startswith("error: qemu-aarch64 is not installed: ")
    assert "Run: apt-get install qemu-user gcc" in done.stderr
    assert not list(tmp_path.iterdir())


def test_other_engines_need_another_lab(lab: Lab) -> None:
    record = LabRecord.of_this_machine()
    assert record.folder == lab.folder
    assert read_record(lab.folder / "lab.json", LabRecord, "") == record
    assert record.model_copy(update={"wheels": {"numpy": "1.0"}}).folder != lab.folder


def test_an_unknown_cpu_is_answered_with_the_nearest(run: Path) -> None:
    with pytest.raises(MfDeployError, match="Did you mean arm:cortex-a76"):
        open_session(Artifact.open(run / "onnx-fp32"), "arm:cortex-a77")


def test_what_is_not_a_model_is_refused_before_anything_starts(lab: Lab, tmp_path: Path) -> None:
    (tmp_path / "model.pt").touch()
    with pytest.raises(MfDeployError, match=r"not a \.onnx or \.tflite file"):
        Emulator(lab, "max", tmp_path / "model.pt")
    with pytest.raises(MfDeployError, match="no such file"):
        Emulator(lab, "max", tmp_path / "model.onnx")


def test_the_device_of_a_host_session_is_host(run: Path) -> None:
    session: Session = open_session(Artifact.open(run / "onnx-fp32"))
    assert session.device == "host"
