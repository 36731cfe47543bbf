"""Results about tiny artifacts, made by the code that makes real ones."""

from pathlib import Path

import numpy as np

from mf_deploy.artifact import Artifact
from mf_deploy.benchmarks.latency import (
    Conditions,
    DeviceInfo,
    EngineInfo,
    LatencyReport,
    LatencyStatistics,
    Measurement,
    report_on,
)
from mf_deploy.benchmarks.protocol import Protocol
from mf_deploy.evaluation.accuracy import AccuracyReport
from mf_deploy.evaluation.gates import Gates, judge
from mf_deploy.evaluation.statistics import paired_drop, proportion
from mf_deploy.report.results import save_result

IMAGES = 1000
MACHINE = DeviceInfo(name="host", cpu="Test CPU", cores=2, memory_bytes=1 << 30, os="Linux")


def accuracy_of(
    artifact: Artifact, lost: int = 4, gained: int = 2, gates: Gates | None = None
) -> AccuracyReport:
    """An accuracy report: 86.8 % for PyTorch, ``lost`` and ``gained`` images otherwise for the artifact."""
    drop, agreement = paired_drop(lost, gained, IMAGES), proportion(IMAGES - lost - gained, IMAGES)
    judged = judge(gates, drop, agreement, 0) if gates else []
    return AccuracyReport(
        artifact=artifact.name,
        path=str(artifact.folder),
        model=artifact.manifest.model.name,
        target=artifact.manifest.target,
        scheme=artifact.manifest.scheme,
        model_sha256=artifact.sha256,
        model_bytes=artifact.size_bytes,
        kind="emulated" if artifact.manifest.target == "coreml" else "host",
        runtime="test engine 1.0",
        data="/home/someone/pictures.tar",
        images=IMAGES,
        skipped=0,
        top1=proportion(868 - lost + gained, IMAGES),
        top5=proportion(973, IMAGES),
        reference_top1=proportion(868, IMAGES),
        reference_top5=proportion(973, IMAGES),
        drop=drop,
        agreement=agreement,
        sqnr_db=31.4,
        max_abs_error=0.25,
        mean_abs_error=0.01,
        logits_range=20.0,
        non_finite=0,
        images_per_s=50.0,
        reference_images_per_s=40.0,
        gates=judged,
        created="2026-01-02T00:00:00+00:00",
    )


def latency_of(
    artifact: Artifact, median_ms: float = 5.0, threads: int = 1, cpu: str = "Test CPU"
) -> LatencyReport:
    """A latency report whose samples scatter around ``median_ms``, with a few slow ones."""
    generator = np.random.default_rng(int(median_ms * 1000) + threads)
    samples = (median_ms * generator.lognormal(0, 0.08, 200)).round(4).tolist()
    samples[7] = round(4 * median_ms, 4)
    statistics = LatencyStatistics.of(samples)
    measurement = Measurement(
        engine=EngineInfo(name="test engine", version="1.0"),
        load_ms=12.0,
        first_inference_ms=9.0,
        warmup_ms=samples[:10],
        samples_ms=samples,
        statistics=statistics,
        images_per_s=1000 / statistics.mean_ms,
        rss_before_load_bytes=60_000_000,
        peak_rss_bytes=75_000_000,
        before=Conditions(load_average=0.5),
        after=Conditions(load_average=0.9),
    )
    machine = MACHINE.model_copy(update={"cpu": cpu})
    return report_on(artifact, "host", machine, threads, Protocol(), measurement)


def not_run(artifact: Artifact, reason: str) -> LatencyReport:
    return report_on(artifact, "host", MACHINE, 1, Protocol(), reason)


def keep(artifact: Artifact, *results: AccuracyReport | LatencyReport) -> None:
    """Save results beside the artifact, under the names that the commands use."""
    for result in results:
        run: Path = artifact.folder.parent
        if isinstance(result, AccuracyReport):
            save_result(run, f"check-{artifact.name}", result)
        else:
            save_result(run, f"bench-{artifact.name}-host-{result.device.cpu}-t{result.threads}", result)
