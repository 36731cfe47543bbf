"""The measuring that one mf-bench command does: each result is kept as soon as it is there."""

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from mf_deploy.errors import GATE_FAILED, MfDeployError

if TYPE_CHECKING:
    from mf_deploy.artifact import Artifact
    from mf_deploy.benchmarks import Device, LatencyReport, Protocol
    from mf_deploy.benchmarks.latency import LatencyRatio
    from mf_deploy.benchmarks.measure import Progress

Result = TypeVar("Result")


@dataclass
class Job:
    """What one command measures; each result is kept as soon as it is there."""

    device: "Device"
    protocol: "Protocol"
    ratios: "list[LatencyRatio]" = field(default_factory=list)
    exit_codes: list[int] = field(default_factory=list)
    _warm: bool = False

    def bench(self, artifact: "Artifact", threads: int) -> "LatencyReport":
        """Time one artifact alone; a failure becomes a report without a measurement, and an exit code."""
        from mf_deploy.benchmarks import bench
        from mf_deploy.benchmarks.latency import report_on

        device, protocol = self.device, self.protocol
        self._cool_down()
        try:
            report = _with_progress(
                f"{artifact.name}, threads {threads}",
                lambda progress: bench(artifact, device, threads, protocol, progress),
            )
        except MfDeployError as error:
            self.exit_codes.append(error.exit_code)
            report = report_on(
                artifact, device.kind, device.info, threads, protocol, str(error), device.cores
            )
        if (measured := report.measurement) is not None:
            self._warm = True
            wrong = measured.correctness is not None and not measured.correctness.passed
            if measured.partial or wrong:
                self.exit_codes.append(GATE_FAILED)
        _keep(artifact.folder.parent, f"bench-{artifact.name}-{device.slug}-t{threads}", report)
        return report

    def _cool_down(self) -> None:
        """Rest before a model that follows another one."""
        seconds = self.protocol.cool_down_seconds
        if self._warm and seconds:
            _with_progress(f"cooling down for {seconds:g} s", lambda progress: _rest(seconds, progress))

    def compare(self, artifact: "Artifact", partner: "Artifact", threads: int) -> None:
        """Time two artifacts in turns.

        Raises:
            MfDeployError: the partner cannot be timed here.
        """
        ratio = _with_progress(
            f"{artifact.name} in turns with {partner.name}, threads {threads}",
            lambda progress: self.device.compare(artifact, partner, threads, self.protocol, progress),
        )
        self.ratios.append(ratio)


def _with_progress(label: str, work: "Callable[[Progress], Result]") -> Result:
    """Do ``work`` with a progress bar on standard error, drawn only on a terminal."""
    from rich.console import Console
    from rich.progress import Progress

    out = Console(stderr=True)
    with Progress(console=out, transient=True, disable=not out.is_terminal) as bar:
        task = bar.add_task(label, total=1.0)
        return work(lambda fraction: bar.update(task, completed=fraction))


def _rest(seconds: float, progress: "Progress") -> None:
    start = time.monotonic()
    while (passed := time.monotonic() - start) < seconds:
        progress(passed / seconds)
        time.sleep(min(0.2, seconds - passed))


def _keep(run_folder: Path, name: str, report: "LatencyReport") -> None:
    """Save a report; one without a measurement never replaces a measurement of the same file.

    One that ended early has a file of its own, until a whole one replaces it.
    """
    from mf_deploy.artifact import read_record
    from mf_deploy.benchmarks.latency import LatencyReport
    from mf_deploy.report.results import result_path, save_result

    part = f"{name}-partial"
    if report.measurement and report.measurement.partial:
        save_result(run_folder, part, report)
        return
    path = result_path(run_folder, name)
    if report.measurement is None and path.exists():
        with suppress(MfDeployError):
            before = read_record(path, LatencyReport, "It is replaced.")
            if before.measurement is not None and before.model_sha256 == report.model_sha256:
                return
    save_result(run_folder, name, report)
    if report.measurement:
        result_path(run_folder, part).unlink(missing_ok=True)
