"""The app on an Android phone on adb: installed, given models, started by intents, its results read."""

import hashlib
import shlex
import tempfile
import time
import uuid
from pathlib import Path

from mf_deploy.artifact import Artifact
from mf_deploy.benchmarks.devices import android
from mf_deploy.benchmarks.devices.adb_link import CHECK_CABLE, Phone, find
from mf_deploy.benchmarks.devices.device import Device
from mf_deploy.benchmarks.imports import accept, owner
from mf_deploy.benchmarks.latency import LatencyRatio, LatencyReport, Measurement
from mf_deploy.benchmarks.measure import Progress
from mf_deploy.benchmarks.probe_files import copy_with_probe
from mf_deploy.benchmarks.protocol import Protocol
from mf_deploy.errors import GATE_FAILED, MISSING_TOOL, MfDeployError

PACKAGE = "org.mfdeploy.bench"
FILES = f"/sdcard/Android/data/{PACKAGE}/files"
APK = Path(__file__).parents[3] / "build" / "mf-bench.apk"
ACCELERATORS = ("cpu", "xnnpack", "nnapi")
POLL_S = 2.0
START_S = 30.0


class AdbApp(Device):
    """The app of apps/android on the phone that a name like ``adb`` or ``adb:R5CT1234`` stands for.

    Args:
        accelerator: what the app asks ONNX Runtime for: one of ``ACCELERATORS``.
        apk: installed where the phone has another one, or none; without it, the phone's own is used.

    Raises:
        MfDeployError: the phone is not attached or not ready, or has no app and there is none to install.
    """

    def __init__(self, name: str, accelerator: str = "cpu", apk: Path = APK) -> None:
        self.accelerator = accelerator
        self.phone = Phone(find(name).serial)
        told = self.phone.shell(android.DESCRIBE)
        info = android.device_info(self.phone.serial, told)
        self.info = info.model_copy(update={"name": f"{info.name} --app"[:200]})
        self.kind = "emulated" if android.is_emulated(android.properties(told)) else "device"
        self._install(apk)
        self._make_folders()

    @property
    def slug(self) -> str:
        return f"adb-app-{self.info.model or self.phone.serial}-{self.accelerator}"

    def reason_not_to_run(self, artifact: Artifact) -> str | None:
        if artifact.manifest.target != "onnx":
            return "the app runs ONNX Runtime only"
        logits = artifact.manifest.outputs[0].dtype
        return None if logits == "float32" else f"its logits are {logits}, the app reads float32"

    def check_threads(self, threads: int) -> None:
        if threads > self.info.cores:
            why, fix = f"it has {self.info.cores} cores", f"Pass --threads {self.info.cores} or fewer."
            raise MfDeployError(f"Cannot time {threads} threads on {self.info.name}", why, fix)

    def measure(
        self, artifact: Artifact, threads: int, protocol: Protocol, progress: Progress
    ) -> Measurement:
        run = f"mf-{uuid.uuid4().hex[:16]}"
        extras: dict[str, str | int | float] = {
            "id": run,
            "model": self._push(artifact),
            "threads": threads,
            "accelerator": self.accelerator,
            "runs": protocol.min_runs,
            "seconds": protocol.min_seconds,
            "warmup_runs": protocol.warmup_runs,
            "warmup_seconds": protocol.warmup_seconds,
        }
        try:
            self._start("RunActivity", extras)
            text = self._wait(artifact, run, progress)
        finally:
            # Also when this process is interrupted: the phone must not go on for half an hour.
            self.phone.shell(f"am force-stop {PACKAGE}; rm -f {FILES}/results/{run}.*")
        return self._measurement(artifact, text)

    def compare(
        self, first: Artifact, second: Artifact, threads: int, protocol: Protocol, progress: Progress
    ) -> LatencyRatio:
        why, fix = "two artifacts take turns on the host only", "Time both, and compare their p90."
        raise MfDeployError("Cannot use --vs on a phone", why, fix)

    def _install(self, apk: Path) -> None:
        """Install ``apk`` unless the phone has that very file."""
        told = self.phone.shell(f"pm path {PACKAGE}")
        installed = told.partition("package:")[2].partition("\n")[0].strip()
        if not apk.is_file():
            if installed:
                return
            why = "the app is neither on the phone nor built"
            fix = "Build it with: make apk"
            raise MfDeployError(f"Cannot use {self.info.name}", why, fix, MISSING_TOOL)
        content = apk.read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        if installed and digest in self.phone.shell(f"sha256sum {shlex.quote(installed)}"):
            return
        said = self.phone.shell(f"pm install -r {self.phone.push_bytes(content)} 2>&1")
        if "Success" not in said:
            why = " ".join(said.split())[:300] or "the phone does not say why"
            fix = f"Allow it on the phone's screen, or: adb uninstall {PACKAGE}"
            raise MfDeployError(f"Cannot install the app on {self.info.name}", why, fix)

    def _make_folders(self) -> None:
        """Have the app make its folders: in those that the shell makes, it may not be allowed to write."""
        folder = f"{FILES}/results"
        if self.phone.succeeds(f"[ -d {folder} ]"):
            return
        self._start("MainActivity", {})
        begin = time.monotonic()
        while not self.phone.succeeds(f"[ -d {folder} ]"):
            if time.monotonic() - begin > START_S:
                why, fix = "its screen did not open", "Unlock the phone and open mf-bench once."
                raise MfDeployError(f"Cannot use the app on {self.info.name}", why, fix)
            time.sleep(POLL_S)

    def _push(self, artifact: Artifact) -> str:
        """Put the artifact and its probe where the app looks; returns its path below the app's models."""
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary, "artifact")
            copy_with_probe(artifact, folder)
            files = {str(p.relative_to(folder)): p for p in sorted(folder.rglob("*")) if p.is_file()}
            listing = "".join(f"{n} {hashlib.sha256(p.read_bytes()).hexdigest()}\n" for n, p in files.items())
            digest = hashlib.sha256(listing.encode()).hexdigest()
            pushed = self.phone.push(files, digest)
        model = f"{digest[:16]}/{artifact.name}"
        there = shlex.quote(f"{FILES}/models/{model}")
        if not self.phone.succeeds(f"mkdir -p {there} && cp -r {pushed}/. {there}/"):
            why, fix = "its folder cannot be written", "Free some space on the phone."
            raise MfDeployError(f"Cannot give {artifact.name} to the app on {self.info.name}", why, fix)
        return model

    def _start(self, activity: str, extras: dict[str, str | int | float]) -> None:
        """Start a screen in a process of its own; every value goes as text."""
        words = [word for key, value in extras.items() for word in ("--es", key, str(value))]
        command = f"am start -W -n {PACKAGE}/.{activity} {shlex.join(words)} 2>&1"
        said = self.phone.shell(f"am force-stop {PACKAGE}; {command}")
        if "Error" in said:
            why, fix = " ".join(said.split())[-300:], "Install the app again: make apk"
            raise MfDeployError(f"Cannot start the app on {self.info.name}", why, fix, GATE_FAILED)

    def _wait(self, artifact: Artifact, run: str, progress: Progress) -> str:
        """The result's text, when it is there.

        Raises:
            MfDeployError: the app refused the request, or its process ended without a result.
        """
        base = f"{FILES}/results/{run}"
        alive_if = f"ps -A -o NAME | grep -qxF {PACKAGE}:run && echo running"
        ask = f"{{ cat {base}.progress; echo; ls {base}.json {base}.error; {alive_if}; }} 2>/dev/null"
        begin = alive = time.monotonic()
        while True:
            told = self.phone.shell(ask)
            if f"{base}.json" in told:
                return self.phone.shell(f"cat {base}.json")
            if f"{base}.error" in told:
                raise self._failed(artifact, self.phone.shell(f"cat {base}.error").strip()[:500])
            now = time.monotonic()
            if told.strip().endswith("running"):
                alive = now
            elif now - max(alive, begin) > START_S:
                raise self._failed(artifact, "the app's process ended without a result")
            if (fraction := _fraction(told)) is not None:
                progress(fraction)
            time.sleep(POLL_S)

    def _measurement(self, artifact: Artifact, text: str) -> Measurement:
        """The measurement in a result of the app, doubted like every other that comes from elsewhere."""
        try:
            report = LatencyReport.model_validate_json(text)
        except ValueError:
            raise self._failed(artifact, "the app's result does not fit the schema") from None
        owner(report, [artifact])
        if report.measurement is None:
            raise self._failed(artifact, report.not_run or "the app does not say why")
        measurement = accept(report, artifact).measurement
        assert measurement is not None
        return measurement

    def _failed(self, artifact: Artifact, why: str) -> MfDeployError:
        what = f"Timing {artifact.name} on {self.info.name} failed"
        return MfDeployError(what, why, f"Look at the phone's screen. {CHECK_CABLE}", GATE_FAILED)


def _fraction(told: str) -> float | None:
    """Of the app's progress file: ``0.250 timing``."""
    first, _, step = told.partition("\n")[0].partition(" ")
    try:
        return float(first) if step == "timing" else None
    except ValueError:
        return None
