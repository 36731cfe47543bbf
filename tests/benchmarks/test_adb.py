"""mf-bench on a phone: real adb, real protocol, the real ARM runner, and an emulated CPU."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
from pretend_phone import PretendPhone, pretend_phone, require_tools
from tiny_artifacts import write_tiny_artifact
from tiny_tflite import SIDE

from mf_deploy.artifact import Artifact, read_record
from mf_deploy.benchmarks import Protocol, bench, open_device
from mf_deploy.benchmarks.devices.adb import core_mask
from mf_deploy.benchmarks.devices.adb_link import Phone, attached
from mf_deploy.benchmarks.latency import LatencyReport
from mf_deploy.benchmarks.native.runner import COMPILER, Runner, open_runner, set_up
from mf_deploy.benchmarks.probe import INFERENCES, probe_pictures
from mf_deploy.errors import MISSING_TOOL, MfDeployError
from mf_deploy.runtimes import open_session

SHORT = Protocol(min_runs=3, warmup_runs=1, warmup_seconds=0)
ARTIFACTS = ("onnx-fp32", "onnx-w8a8", "tflite-fp32", "tflite-w8a8")


@pytest.fixture(scope="session")
def runner() -> Runner:
    """The runner in this machine's cache, made now if it is not there."""
    require_tools()
    return set_up()


@pytest.fixture(scope="module")
def phone(tmp_path_factory: pytest.TempPathFactory, runner: Runner) -> Iterator[PretendPhone]:
    """An attached phone, for this process too."""
    with pretend_phone(tmp_path_factory.mktemp("phone")) as phone, pytest.MonkeyPatch.context() as patch:
        for name in ("ANDROID_ADB_SERVER_PORT", "ADB_MDNS"):
            patch.setenv(name, phone.environment[name])
        yield phone


@pytest.fixture
def short_lived(tmp_path: Path, runner: Runner, monkeypatch: pytest.MonkeyPatch) -> Iterator[PretendPhone]:
    """A phone of the test's own, to be cut off."""
    with pretend_phone(tmp_path / "phone") as phone:
        monkeypatch.setenv("ANDROID_ADB_SERVER_PORT", phone.environment["ANDROID_ADB_SERVER_PORT"])
        yield phone


@pytest.fixture
def run(runner: Runner, tiny_run: Path) -> Path:
    """The small network's artifacts, where they can run."""
    return tiny_run


@pytest.mark.parametrize("name", ARTIFACTS)
def test_the_phone_s_logits_are_the_host_s(run: Path, phone: PretendPhone, name: str) -> None:
    artifact = Artifact.open(run / name)
    report = bench(artifact, open_device("adb"), protocol=SHORT)
    measured = report.measurement
    assert measured is not None
    expected = open_session(artifact).run(probe_pictures(INFERENCES, SIDE))["logits"]
    atol = 5e-3 if artifact.manifest.half_precision else 1e-5  # where the CPU computes floats in float16
    np.testing.assert_allclose(measured.probe_logits, expected, rtol=0, atol=atol)
    assert np.ptp(expected) > 1e-2
    assert measured.correctness is not None
    assert measured.correctness.passed

    assert report.kind == "emulated"  # its properties say that it is no real phone
    assert (report.device.model, report.device.soc) == ("Acme Pretend 1", "Acme A1")
    assert len(measured.samples_ms) == 3
    assert measured.partial is None
    assert (measured.before.thermal_state, measured.before.battery_percent) == ("fair", 83.0)
    assert measured.after.charging is True
    engine = {"onnx": "ONNX Runtime", "tflite": "LiteRT"}[artifact.manifest.target]
    assert measured.engine.name == engine


def test_what_is_on_the_phone_is_not_pushed_again(run: Path, phone: PretendPhone) -> None:
    artifact, device = Artifact.open(run / "tflite-fp32"), open_device(f"adb:{phone.serial}")
    bench(artifact, device, protocol=SHORT)
    before = len(phone.log)
    bench(artifact, device, protocol=SHORT)
    assert not [line for line in phone.log[before:] if line.startswith("push ")]
    bench(artifact, device, protocol=SHORT.model_copy(update={"seed": 5}))
    assert len([line for line in phone.log[before:] if line.startswith("push ")]) == 1  # another input


def test_files_travel_byte_for_byte(phone: PretendPhone, tmp_path: Path) -> None:
    content = np.random.default_rng(0).integers(0, 256, 700_001, np.uint8).tobytes()
    remote = Phone(phone.serial).push_bytes(content)
    assert (phone.root / remote.lstrip("/")).read_bytes() == content
    back = tmp_path / "back"
    assert phone.adb("-s", phone.serial, "pull", remote, str(back)).returncode == 0
    assert back.read_bytes() == content
    assert phone.adb("-s", phone.serial, "shell", "exit 7").returncode == 7


def test_the_command_keeps_emulated_times_and_never_calls_them_latency(
    run: Path, phone: PretendPhone
) -> None:
    command = phone.mf_bench(run / "onnx-fp32", "--device", "adb", "--runs", "4", "--cores", "0")
    printed, said = command.communicate(timeout=120)
    assert command.returncode == 0, said
    assert "its logits are right" in printed
    assert "Emulated times are no latency" in printed
    assert "Acme Pretend 1" in printed
    (path,) = (run / "results").glob("bench-onnx-fp32-adb-*.json")
    report = read_record(path, LatencyReport, "")
    assert (report.kind, report.cores, report.schema_version) == ("emulated", "0", 2)
    assert any(" exec taskset 1 " in line for line in phone.log)


def test_a_fast_wrong_model_is_caught(tmp_path: Path, phone: PretendPhone) -> None:
    right = write_tiny_artifact(tmp_path / "tiny" / "onnx-fp32", depth=3)
    remote = Phone(phone.serial).push({"model.onnx": right.model_path}, right.sha256)
    wrong = write_tiny_artifact(tmp_path / "other" / "onnx-fp32", depth=1)
    (phone.root / remote.lstrip("/") / "model.onnx").write_bytes(wrong.model_path.read_bytes())
    command = phone.mf_bench(right.folder, "--device", "adb", "--runs", "2")
    printed, _ = command.communicate(timeout=120)
    assert command.returncode == 1
    assert "onnx-fp32: its logits are WRONG" in printed


def test_a_pulled_cable_is_one_clear_line_and_the_samples_are_kept(
    tmp_path: Path, short_lived: PretendPhone
) -> None:
    artifact = write_tiny_artifact(tmp_path / "tiny" / "onnx-fp32")
    (short_lived.root / "fuse").touch()
    command = short_lived.mf_bench(artifact.folder, "--device", "adb", "--seconds", "300")
    printed, said = command.communicate(timeout=120)
    assert command.returncode == 1
    assert "Traceback" not in printed + said
    (line,) = [line for line in printed.splitlines() if "ended early" in line]
    assert f"the connection to adb:{short_lived.serial} was lost" in line
    (path,) = (tmp_path / "tiny" / "results").iterdir()
    assert path.name.endswith("-partial.json")
    measured = read_record(path, LatencyReport, "").measurement
    assert measured is not None
    assert measured.samples_ms
    assert "was lost" in (measured.partial or "")
    assert measured.correctness is not None
    assert measured.correctness.passed
    until(lambda: not emulated_processes(short_lived))


def test_after_a_pulled_cable_nothing_else_is_tried(tmp_path: Path, short_lived: PretendPhone) -> None:
    for name in ("onnx-fp32", "onnx-fp16", "onnx-w8"):
        write_tiny_artifact(tmp_path / "tiny" / name)
    (short_lived.root / "fuse").touch()
    command = short_lived.mf_bench(
        tmp_path / "tiny", "--device", "adb", "--seconds", "300", "--cool-down", "300"
    )
    _, said = command.communicate(timeout=120)
    assert command.returncode == 1, said
    assert len(list((tmp_path / "tiny" / "results").iterdir())) == 1


def test_a_process_that_the_phone_ends_keeps_its_samples(tmp_path: Path, phone: PretendPhone) -> None:
    artifact, device = write_tiny_artifact(tmp_path / "tiny" / "onnx-fp32"), open_device("adb")

    def out_of_memory(fraction: float) -> None:
        for process in emulated_processes(phone):
            process.kill()

    forever = SHORT.model_copy(update={"min_seconds": 300.0})
    measured = device.measure(artifact, 1, forever, out_of_memory)
    assert measured.samples_ms
    assert measured.partial == "the phone's process ended with 137"
    assert not device.lost
    assert bench(artifact, device, protocol=SHORT).measurement is not None


def test_interrupted_it_stops_the_phone_s_process(tmp_path: Path, short_lived: PretendPhone) -> None:
    artifact = write_tiny_artifact(tmp_path / "tiny" / "onnx-fp32")
    command = short_lived.mf_bench(artifact.folder, "--device", "adb", "--seconds", "300")
    until(lambda: "timed" in short_lived.log)
    assert emulated_processes(short_lived)
    command.send_signal(signal.SIGINT)
    _, said = command.communicate(timeout=60)
    assert command.returncode == 130
    assert said.strip().startswith("error: Interrupted")
    until(lambda: not emulated_processes(short_lived))


def test_devices_lists_the_host_the_lab_and_the_phone(phone: PretendPhone) -> None:
    command = phone.mf_bench("--devices")
    printed, said = command.communicate(timeout=60)
    assert command.returncode == 0, said
    (line,) = [line for line in printed.splitlines() if phone.serial in line]
    assert "emulated" in line
    assert "Acme Pretend 1" in line
    assert "host" in printed
    assert "arm:cortex-a76" in printed


def test_without_a_phone_the_error_says_what_to_do(short_lived: PretendPhone) -> None:
    with pytest.raises(MfDeployError, match="adb does not list nobody"):
        open_device("adb:nobody")
    short_lived.adb("disconnect", short_lived.serial)
    assert attached() == []
    with pytest.raises(MfDeployError, match=r"no phone is attached\. Switch USB debugging on"):
        open_device("adb")


def test_a_server_that_does_not_start_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANDROID_ADB_SERVER_PORT", "9")
    monkeypatch.setenv("ADBUTILS_ADB_PATH", "/bin/false")
    with pytest.raises(MfDeployError, match="The adb server does not start") as error:
        attached()
    assert error.value.exit_code == MISSING_TOOL


def test_without_the_runner_the_error_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MF_DEPLOY_CACHE", str(tmp_path))
    with pytest.raises(MfDeployError, match="Run: mf-deploy setup adb") as error:
        open_runner()
    assert error.value.exit_code == MISSING_TOOL


@pytest.mark.skipif(not Path("/etc/debian_version").exists(), reason="it is made on Debian and Ubuntu")
def test_a_missing_compiler_is_named_with_the_command_that_installs_it(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "from mf_deploy.cli.deploy import main; main()", "setup", "adb"]
    environment = {"PATH": str(tmp_path), "MF_DEPLOY_CACHE": str(tmp_path / "cache")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == MISSING_TOOL
    assert done.stderr.startswith(f"error: {COMPILER} is not installed: ")
    assert "Run: apt-get install gcc-aarch64-linux-gnu" in done.stderr
    assert not (tmp_path / "cache").exists()


def test_what_a_phone_cannot_do_is_refused(tmp_path: Path, phone: PretendPhone) -> None:
    device = open_device("adb")
    coreml = write_tiny_artifact(tmp_path / "run" / "coreml-fp32", target="coreml")
    assert device.reason_not_to_run(coreml) == "Core ML needs an iPhone or a Mac"
    broken = write_tiny_artifact(tmp_path / "run" / "onnx-fp32")
    with pytest.raises(MfDeployError, match="--vs on a phone"):
        device.compare(broken, broken, 1, SHORT, lambda fraction: None)
    with pytest.raises(MfDeployError, match="Cannot time 4000 threads"):
        device.check_threads(4000)
    with pytest.raises(MfDeployError, match="Cannot use --cores on host"):
        open_device("host", "0")


def test_cores_become_a_mask() -> None:
    assert core_mask("0", 8) == 0b1
    assert core_mask("4-7", 8) == 0b11110000
    assert core_mask("0, 2,6-7", 8) == 0b11000101
    for bad in ("8", "3-1", "", "a", "-1", "0-", "0-99"):
        with pytest.raises(MfDeployError, match="Bad --cores"):
            core_mask(bad, 8)


def until(condition: Callable[[], bool], seconds: float = 60) -> None:
    """Wait for something that happens in another process."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def emulated_processes(phone: PretendPhone) -> list[psutil.Process]:
    """The running benchmarks of a phone, also after its daemon has gone."""
    everything = psutil.process_iter(["name", "cmdline"])
    emulated = [process for process in everything if process.info["name"].startswith("qemu-aarch64")]
    root = str(phone.root)
    return [process for process in emulated if any(root in word for word in process.info["cmdline"] or ())]
