"""How long an artifact takes: the protocol, and the devices that it is timed on."""

from mf_deploy.artifact import Artifact
from mf_deploy.benchmarks.devices import Device, open_device
from mf_deploy.benchmarks.latency import LatencyReport, report_on
from mf_deploy.benchmarks.measure import Progress
from mf_deploy.benchmarks.protocol import Protocol

__all__ = ["Device", "LatencyReport", "Protocol", "bench", "open_device"]


def bench(
    artifact: Artifact,
    device: Device,
    threads: int = 1,
    protocol: Protocol | None = None,
    progress: Progress = lambda fraction: None,
) -> LatencyReport:
    """Time one artifact; a time that would not be a latency there is not measured, and the report says why.

    Raises:
        MfDeployError: the engine is missing, refuses the model, or dies.
    """
    protocol = protocol or Protocol.single_stream()
    device.check_threads(threads)
    reason = device.reason_not_to_run(artifact)
    outcome = reason if reason else device.measure(artifact, threads, protocol, progress)
    return report_on(artifact, device.kind, device.info, threads, protocol, outcome, device.cores)
