"""This machine: every artifact is timed in a fresh process, so that its memory is its own."""

import json
import re
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import IO, Any

from mf_deploy.artifact import Artifact
from mf_deploy.benchmarks.devices.device import Device
from mf_deploy.benchmarks.latency import LatencyRatio, Measurement
from mf_deploy.benchmarks.machine import this_machine
from mf_deploy.benchmarks.measure import Progress
from mf_deploy.benchmarks.protocol import Protocol
from mf_deploy.errors import GATE_FAILED, MfDeployError

WORKER = "mf_deploy.benchmarks.worker"


class Host(Device):
    """The machine that the command runs on."""

    kind = "host"

    def __init__(self) -> None:
        self.info = this_machine()

    @property
    def slug(self) -> str:
        return "host-" + re.sub(r"[^a-z0-9]+", "-", self.info.cpu.lower()).strip("-")

    def reason_not_to_run(self, artifact: Artifact) -> str | None:
        if artifact.manifest.target == "coreml" and sys.platform != "darwin":
            return "Core ML needs macOS"
        return None

    def check_threads(self, threads: int) -> None:
        if threads > self.info.cores:
            raise MfDeployError(
                f"Cannot time {threads} threads",
                f"this process may use {self.info.cores} cores",
                f"Pass --threads {self.info.cores} or fewer.",
            )

    def measure(
        self, artifact: Artifact, threads: int, protocol: Protocol, progress: Progress
    ) -> Measurement:
        return Measurement.model_validate(_ask([artifact.folder], threads, protocol, progress)["measurement"])

    def compare(
        self, first: Artifact, second: Artifact, threads: int, protocol: Protocol, progress: Progress
    ) -> LatencyRatio:
        return LatencyRatio.model_validate(
            _ask([first.folder, second.folder], threads, protocol, progress)["ratio"]
        )


def _ask(folders: list[Path], threads: int, protocol: Protocol, progress: Progress) -> dict[str, Any]:
    """Send a request to a fresh worker, pass its progress on, and return its last answer."""
    request = {
        "folders": [str(folder) for folder in folders],
        "threads": threads,
        "protocol": protocol.model_dump(),
    }
    with tempfile.TemporaryFile() as said, tempfile.TemporaryFile() as asked:
        asked.write(json.dumps(request).encode())
        asked.seek(0)
        worker = subprocess.Popen(
            [sys.executable, "-m", WORKER], stdin=asked, stdout=subprocess.PIPE, stderr=said, text=True
        )
        try:
            for line in worker.stdout or ():
                message: dict[str, Any] = json.loads(line)
                if "progress" in message:
                    progress(message["progress"])
                elif "error" in message:
                    raise MfDeployError(*message["error"])
                else:
                    return message
            worker.wait()
            raise _died(folders, worker.returncode, said)
        finally:
            worker.kill()
            worker.communicate()


def _died(folders: list[Path], exit_code: int, said: IO[bytes]) -> MfDeployError:
    """The error of a worker that ended without an answer, with the last line that it printed."""
    said.seek(0)
    lines = said.read()[-4000:].decode(errors="replace").strip().splitlines()
    how = f"ended by {signal.Signals(-exit_code).name}" if exit_code < 0 else f"exit code {exit_code}"
    return MfDeployError(
        f"Timing {' and '.join(folder.name for folder in folders)} failed",
        f"the process {how}" + (f", {lines[-1][:200]}" if lines else ""),
        "SIGKILL usually means too little memory; otherwise the engine cannot run this model.",
        GATE_FAILED,
    )
