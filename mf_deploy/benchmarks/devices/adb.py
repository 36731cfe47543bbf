"""An Android phone on adb: the engines' ARM64 builds in a native runner, with no app to install."""

import re
import shlex
import time
from contextlib import closing, suppress

import numpy as np

from mf_deploy.artifact import Artifact
from mf_deploy.benchmarks.devices import android
from mf_deploy.benchmarks.devices.adb_link import (
    CHECK_CABLE,
    EXIT,
    STDERR,
    STDOUT,
    ConnectionLost,
    Phone,
    find,
)
from mf_deploy.benchmarks.devices.device import Device
from mf_deploy.benchmarks.devices.native_run import NativeRun
from mf_deploy.benchmarks.engines import ENGINES
from mf_deploy.benchmarks.latency import Conditions, EngineInfo, LatencyRatio, Measurement, TimedConditions
from mf_deploy.benchmarks.measure import Progress, seeded_input
from mf_deploy.benchmarks.native.runner import LOADER, PROGRAM, Runner, open_runner
from mf_deploy.benchmarks.probe import Probe
from mf_deploy.benchmarks.protocol import Protocol
from mf_deploy.errors import GATE_FAILED, MfDeployError
from mf_deploy.runtimes import open_session

CONDITIONS_INTERVAL_S = 30.0


class Adb(Device):
    """The phone that a name like ``adb`` or ``adb:R5CT1234`` stands for.

    Args:
        cores: what the phone's ``taskset`` binds the process to, e.g. ``4-7`` or ``0,2``; None: all.

    Raises:
        MfDeployError: it is not attached or not ready, is no 64-bit ARM, or the runner is not set up.
    """

    def __init__(self, name: str, cores: str | None = None) -> None:
        self.runner: Runner = open_runner()
        self.phone = Phone(find(name).serial)
        told = self.phone.shell(android.DESCRIBE)
        self.info = android.device_info(self.phone.serial, told)
        of = android.properties(told)
        self.kind = "emulated" if android.is_emulated(of) else "device"
        if "arm64-v8a" not in of.get("ro.product.cpu.abilist", "arm64-v8a"):
            why = f"it runs {of['ro.product.cpu.abilist']}"
            raise MfDeployError(f"Cannot use {self.info.name}", why, "Use a phone with a 64-bit ARM system.")
        self.cores = cores
        self._mask = core_mask(cores, self.info.cores) if cores else None

    @property
    def slug(self) -> str:
        words = ["adb", self.info.model or self.phone.serial, *(["cores", self.cores] if self.cores else [])]
        return re.sub(r"[^a-z0-9]+", "-", " ".join(words).lower()).strip("-")

    def reason_not_to_run(self, artifact: Artifact) -> str | None:
        target = artifact.manifest.target
        if target == "coreml":
            return "Core ML needs an iPhone or a Mac"
        if target not in self.runner.record.engines:
            return f"the runner was set up without {ENGINES[target].name}"
        if artifact.manifest.outputs[0].dtype != "float32":
            return f"its logits are {artifact.manifest.outputs[0].dtype}, the runner reads float32"
        return None

    def check_threads(self, threads: int) -> None:
        available = self._mask.bit_count() if self._mask else self.info.cores
        if threads > available:
            why = f"{self.info.name} has {available} cores for it"
            raise MfDeployError(
                f"Cannot time {threads} threads", why, f"Pass --threads {available} or fewer."
            )

    def conditions(self) -> Conditions:
        """How the phone is doing."""
        return android.conditions(self.phone.shell(android.READ_CONDITIONS))

    def measure(
        self, artifact: Artifact, threads: int, protocol: Protocol, progress: Progress
    ) -> Measurement:
        session = open_session(artifact)
        probe = Probe.of(artifact, session)
        inputs = np.concatenate([seeded_input(session, protocol.seed)[None], probe.inputs])
        command = self._command(artifact, threads, protocol, inputs)
        before, run = self.conditions(), NativeRun(protocol, progress)
        partial = self._run(command, run)
        if not run.timed.samples_ms:
            raise self._failed(artifact, partial or "nothing was timed")
        target = artifact.manifest.target
        engine = EngineInfo(name=ENGINES[target].name, version=self.runner.record.engines[target])
        after = Conditions()
        if partial is None:
            after = self.conditions()
        return run.measurement(engine, artifact.manifest.input.shape[0], before, after, probe, partial)

    def compare(
        self, first: Artifact, second: Artifact, threads: int, protocol: Protocol, progress: Progress
    ) -> LatencyRatio:
        raise MfDeployError(
            "Cannot use --vs on a phone",
            "two artifacts take turns on the host only",
            "Time both with --cool-down 60, and compare their p90.",
        )

    def _command(self, artifact: Artifact, threads: int, protocol: Protocol, inputs: np.ndarray) -> str:
        """Push what is needed; the command line of the phone's shell."""
        manifest, runner = artifact.manifest, self.runner
        programs = self.phone.push({of.name: runner.folder / of.name for of in runner.files}, runner.digest)
        model = self.phone.push(
            {of.name: artifact.folder / of.name for of in manifest.files}, artifact.sha256
        )
        arguments = {
            "engine": manifest.target,
            "model": f"{model}/{manifest.model_file}",
            "inputs": self.phone.push_bytes(inputs.tobytes()),
            "threads": threads,
            "input_name": manifest.input.name,
            "input_type": manifest.input.dtype,
            "input_shape": ",".join(map(str, manifest.input.shape)),
            "output_name": manifest.outputs[0].name,
            "output_shape": ",".join(map(str, manifest.outputs[0].shape)),
            "warmup_runs": protocol.warmup_runs,
            "warmup_seconds": protocol.warmup_seconds,
            "min_runs": protocol.min_runs,
            "min_seconds": protocol.min_seconds,
        }
        bound = ["taskset", f"{self._mask:x}"] if self._mask else []
        words = [*bound, f"./{LOADER}", "--library-path", ".", f"./{PROGRAM}"]
        words += [f"{key}={value}" for key, value in arguments.items()]
        return f"cd {programs} && exec {shlex.join(words)}"

    def _run(self, command: str, run: NativeRun) -> str | None:
        """Run the command to its end; returns why it ended early, None if it did not.

        The phone's process is stopped if this one is interrupted.
        """
        said = b""
        read = time.monotonic()
        try:
            with closing(self.phone.stream(command)) as packets:
                for kind, data in packets:
                    if kind == STDOUT:
                        run.hear(data)
                    elif kind == STDERR:
                        said = (said + data)[-4000:]
                    elif kind == EXIT and not run.done:
                        return run.error or _last_words(data[0] if data else -1, said)
                    if run.timed.count and time.monotonic() - read >= CONDITIONS_INTERVAL_S:
                        read = time.monotonic()
                        self._note_conditions(run)
        except ConnectionLost as error:
            self.lost = True
            return f"the connection to {self.info.name} was lost ({error})"
        except BaseException:
            self._stop(run.pid)
            raise
        return None

    def _note_conditions(self, run: NativeRun) -> None:
        """Read the phone's conditions while it runs; where the phone is gone, its output will tell."""
        with suppress(MfDeployError):
            now = TimedConditions(at_s=run.timed.sampled_at_s[-1], conditions=self.conditions())
            run.timed.conditions.append(now)

    def _stop(self, pid: int | None) -> None:
        """End the phone's process, which also ends by itself when nobody reads what it writes."""
        if pid is not None:
            with suppress(MfDeployError):
                self.phone.shell(f"grep -q {PROGRAM} /proc/{pid}/cmdline && kill -9 {pid}")

    def _failed(self, artifact: Artifact, why: str) -> MfDeployError:
        cannot = "The phone's engine cannot run this model, or the phone ended it."
        fix = CHECK_CABLE if "was lost" in why else cannot
        return MfDeployError(f"Timing {artifact.name} on {self.info.name} failed", why, fix, GATE_FAILED)


def core_mask(cores: str, count: int) -> int:
    """``4-7`` or ``0,2`` as taskset's mask of a device with ``count`` cores.

    Raises:
        MfDeployError: not such a list, or a core that the device does not have.
    """
    mask = 0
    for part in cores.split(","):
        found = re.fullmatch(r"(\d{1,3})(?:-(\d{1,3}))?", part.strip())
        first, last = (int(found[1]), int(found[2] or found[1])) if found else (1, 0)
        if not first <= last < count:
            why = f"not cores from 0 to {count - 1}, e.g. 0-1 or 0,2"
            raise MfDeployError(f"Bad --cores {cores}", why, "mf-bench --devices tells how many there are.")
        mask |= sum(1 << core for core in range(first, last + 1))
    return mask


def _last_words(status: int, said: bytes) -> str:
    lines = said.decode(errors="replace").strip().splitlines()
    return f"the phone's process ended with {status}" + (f", {lines[-1][:200]}" if lines else "")
