"""mf-bench --device adb --app: real adb, the app's own protocol code, and a shell in place of Android.

``am`` and ``pm`` are stand-ins: the first starts HostBench (the app's core with ONNX Runtime beside it), the
second keeps a file. What Android itself does was not run on a device.
"""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from host_bench import ENGINE, compile_host_bench
from pretend_phone import PretendPhone, pretend_phone
from tiny_artifacts import write_tiny_artifact

from mf_deploy.artifact import Artifact
from mf_deploy.benchmarks import Protocol, bench
from mf_deploy.benchmarks.devices import adb_app
from mf_deploy.benchmarks.devices.adb_app import PACKAGE, AdbApp
from mf_deploy.benchmarks.probe import Probe
from mf_deploy.errors import MISSING_TOOL, MfDeployError

SHORT = Protocol(min_runs=20, warmup_runs=2, warmup_seconds=0)

AM = """
files="{files}"
[ "$1" = force-stop ] && exit 0
case "$4" in *MainActivity) mkdir -p "$files/models" "$files/results"; exit 0 ;; esac
shift 4
arguments=""
while [ $# -gt 0 ]; do [ "$2" = id ] && id=$3; arguments="$arguments $2=$3"; shift 3; done
echo "0.500 timing" > "$files/results/$id.progress"
java -cp "{classes}" HostBench run "$files/models" "$files/results/$id.json" $arguments \\
    "engine={engine}" 2> "$files/results/$id.said" || mv "$files/results/$id.said" "$files/results/$id.error"
"""
PM = """
case "$1" in
path) [ -f "{files}/../base.apk" ] && echo "package:{files}/../base.apk" ;;
install) mkdir -p "{files}" && cp "$3" "{files}/../base.apk" && echo Success ;;
esac
"""


@pytest.fixture(scope="module")
def classes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not shutil.which("adb"):
        pytest.skip("needs adb: make system-packages")
    return compile_host_bench(tmp_path_factory.mktemp("classes"))


@pytest.fixture
def phone(tmp_path: Path, classes: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[PretendPhone]:
    files = tmp_path / "phone" / "sdcard" / PACKAGE / "files"
    monkeypatch.setattr(adb_app, "FILES", str(files))
    monkeypatch.setattr(adb_app, "POLL_S", 0.2)
    monkeypatch.setattr(adb_app, "START_S", 10.0)
    with pretend_phone(tmp_path / "phone") as phone:
        monkeypatch.setenv("ANDROID_ADB_SERVER_PORT", phone.environment["ANDROID_ADB_SERVER_PORT"])
        for name, script in (("am", AM), ("pm", PM)):
            path = phone.root / "bin" / name
            path.write_text("#!/bin/sh" + script.format(files=files, classes=classes, engine=ENGINE))
            path.chmod(0o755)
        yield phone


@pytest.fixture
def apk(tmp_path: Path) -> Path:
    path = tmp_path / "app.apk"
    path.write_bytes(b"an app")
    return path


@pytest.fixture
def artifact(tmp_path: Path) -> Artifact:
    return write_tiny_artifact(tmp_path / "tiny" / "onnx-fp32", depth=2)


def test_a_run_goes_to_the_app_and_its_result_comes_back(
    phone: PretendPhone, apk: Path, artifact: Artifact
) -> None:
    heard: list[float] = []
    report = bench(artifact, AdbApp("adb", "xnnpack", apk), 1, SHORT, heard.append)
    measured = report.measurement
    assert measured is not None, report.not_run
    assert (report.kind, report.device.model) == ("emulated", "Acme Pretend 1")
    assert report.device.name.endswith(" --app")
    assert len(measured.samples_ms) == 20
    assert measured.accelerator_requested == "xnnpack"
    assert measured.correctness is not None
    assert measured.correctness.passed
    assert measured.probe_logits is not None
    left = sorted(path.name for path in Path(adb_app.FILES, "results").iterdir())
    assert left == []


def test_app_and_models_are_pushed_once(phone: PretendPhone, apk: Path, artifact: Artifact) -> None:
    for _ in range(2):
        assert bench(artifact, AdbApp("adb", apk=apk), 1, SHORT).measurement
    assert sum("pm install" in line for line in phone.log) == 1
    assert sum(line.startswith("push") and "manifest.json" in line for line in phone.log) == 1
    apk.write_bytes(b"a newer app")
    AdbApp("adb", apk=apk)
    assert sum("pm install" in line for line in phone.log) == 2


def test_a_request_that_the_app_refuses_says_why(phone: PretendPhone, apk: Path, artifact: Artifact) -> None:
    device = AdbApp("adb", "tpu", apk)
    with pytest.raises(MfDeployError, match="unknown accelerator tpu") as refused:
        bench(artifact, device, 1, SHORT)
    assert "\n" not in str(refused.value)


def test_an_app_that_dies_is_noticed(phone: PretendPhone, apk: Path, artifact: Artifact) -> None:
    device = AdbApp("adb", apk=apk)
    (phone.root / "bin" / "am").write_text("#!/bin/sh\nexit 0\n")
    adb_app.START_S = 1.0
    with pytest.raises(MfDeployError, match="ended without a result"):
        bench(artifact, device, 1, SHORT)


def test_an_activity_that_does_not_start_is_reported(
    phone: PretendPhone, apk: Path, artifact: Artifact
) -> None:
    device = AdbApp("adb", apk=apk)
    (phone.root / "bin" / "am").write_text("#!/bin/sh\necho 'Error: Activity class does not exist.'\n")
    with pytest.raises(MfDeployError, match="Activity class does not exist"):
        bench(artifact, device, 1, SHORT)


def test_without_an_app_the_fix_is_named(phone: PretendPhone, tmp_path: Path) -> None:
    with pytest.raises(MfDeployError, match="make apk") as refused:
        AdbApp("adb", apk=tmp_path / "none.apk")
    assert refused.value.exit_code == MISSING_TOOL


def test_what_the_app_cannot_run_is_not_run(phone: PretendPhone, apk: Path, tmp_path: Path) -> None:
    tflite = write_tiny_artifact(tmp_path / "tiny" / "tflite-fp32", target="tflite")
    report = bench(tflite, AdbApp("adb", apk=apk), 1, SHORT)
    assert report.not_run == "the app runs ONNX Runtime only"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--app"], "Cannot use --app on host: it is for phones"),
        (["--accelerator", "nnapi"], "it is for the app"),
        (["--device", "adb", "--app", "--cores", "0-1"], "Cannot use --cores with --app"),
    ],
)
def test_options_that_do_not_fit_are_refused(artifact: Artifact, options: list[str], message: str) -> None:
    command = [sys.executable, "-m", "mf_deploy.cli.bench", str(artifact.folder), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_bundle_holds_what_an_app_needs(artifact: Artifact, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mf_deploy.cli.bench", "bundle", str(artifact.folder)]
    for _ in range(2):
        done = subprocess.run([*command, "--out", str(tmp_path / "b")], capture_output=True, check=False)
        assert done.returncode == 0, done.stderr
    copy = Artifact.open(tmp_path / "b" / "tiny" / "onnx-fp32")
    assert copy.sha256 == artifact.sha256
    inputs = (copy.folder / "probe" / "inputs.bin").read_bytes()
    assert len(inputs) == len(Probe.of(artifact).inputs.tobytes())
    nothing = subprocess.run([*command, "--out", "x", "--target", "coreml"], capture_output=True, check=False)
    assert nothing.returncode == 2
    assert b"mf-export MODEL --target coreml" in nothing.stderr
