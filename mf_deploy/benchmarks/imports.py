"""Results that were measured elsewhere: read, doubted, and given to the artifacts that they are about."""

import hashlib
import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from mf_deploy.artifact import Artifact
from mf_deploy.benchmarks.latency import BenchReport, Correctness, LatencyReport, Measurement
from mf_deploy.benchmarks.probe import Probe
from mf_deploy.errors import MfDeployError

MAX_BYTES = 256 << 20
MAX_REPORTS = 1000
FIX = "Give a file as the apps or mf-bench --json write it."
_CLOCK_SLACK = 1.01  # of a run's length: two clocks, and rounding


def read_reports(path: Path) -> list[LatencyReport]:
    """The reports in a file: one, a list of them, or all that one mf-bench command wrote.

    Raises:
        MfDeployError: not such a file, too large, or of a schema that this version does not know.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise MfDeployError(f"Cannot read {path}", f"larger than {MAX_BYTES} bytes", FIX)
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise MfDeployError(f"Cannot read {path}", error.strerror or str(error), FIX) from None
    except (ValueError, RecursionError):
        raise MfDeployError(f"Cannot read {path}", "not JSON", FIX) from None
    _refuse_control_characters(content, path)
    try:
        if isinstance(content, dict) and "reports" in content:
            reports = BenchReport.model_validate(content).reports
        else:
            items = content if isinstance(content, list) else [content]
            reports = [LatencyReport.model_validate(item) for item in items[: MAX_REPORTS + 1]]
    except ValidationError as error:
        raise MfDeployError(f"Cannot read {path}", _first(error), FIX) from None
    if not 0 < len(reports) <= MAX_REPORTS:
        raise MfDeployError(f"Cannot read {path}", f"not 1 to {MAX_REPORTS} results in it", FIX)
    return reports


def owner(report: LatencyReport, artifacts: Iterable[Artifact]) -> Artifact:
    """The artifact whose model file the report is about.

    Raises:
        MfDeployError: it is not among ``artifacts``, or the report contradicts its manifest.
    """
    for artifact in artifacts:
        if artifact.sha256 == report.model_sha256:
            _check_identity(report, artifact)
            return artifact
    raise MfDeployError(
        f"No artifact for {report.model}/{report.artifact}",
        f"none has the sha256 {report.model_sha256[:12]}",
        "Name its model folder with --to.",
    )


def accept(report: LatencyReport, artifact: Artifact) -> LatencyReport:
    """The report as it is stored: doubted, under the artifact's present name, its logits judged here.

    Raises:
        MfDeployError: its figures contradict each other, or are not those of a device.
    """
    if report.kind in ("emulated", "estimated") and report.measurement:
        raise _refusal(report, f"its times are {report.kind}, and no latencies")
    measurement = report.measurement
    if measurement is not None:
        for problem in _contradictions(report, measurement):
            raise _refusal(report, problem)
        verdict = _verdict(measurement, artifact)
        measurement = measurement.model_copy(update={"correctness": verdict})
    return report.model_copy(
        update={"artifact": artifact.name, "model": artifact.manifest.model.name, "measurement": measurement}
    )


def result_name(report: LatencyReport, artifact: Artifact) -> str:
    """A name for the result's file that the same report always gets, and no other."""
    digest = hashlib.sha256(report.model_dump_json().encode()).hexdigest()[:12]
    parts = [artifact.name, report.device.name[:40], report.device.label[:40]]
    if report.measurement:
        parts.append(report.measurement.accelerator_requested[:20])
    return f"bench-{'-'.join(parts)}-t{report.threads}-{digest}"


def _contradictions(report: LatencyReport, measured: Measurement) -> Iterable[str]:
    """What cannot be true of a run of the protocol, however the device behaved."""
    rate = report.batch * 1e3 / measured.statistics.mean_ms if measured.statistics.mean_ms > 0 else math.inf
    if not math.isclose(rate, measured.images_per_s, rel_tol=1e-6):
        yield "images_per_s does not follow from samples_ms"
    count, protocol = len(measured.samples_ms), report.protocol
    lasted = measured.sampled_at_s[-1] if measured.sampled_at_s else None
    if lasted is not None and sum(measured.samples_ms) > lasted * 1e3 * _CLOCK_SLACK + 1:
        yield "samples_ms take longer than the run did"
    if measured.partial is None:
        if count * measured.kept_every < protocol.min_runs:
            yield f"{count} samples are fewer than its protocol's, and it does not say that it ended early"
        if lasted is not None and lasted * _CLOCK_SLACK < protocol.min_seconds:
            yield "it is shorter than its protocol's, and it does not say that it ended early"


def _verdict(measured: Measurement, artifact: Artifact) -> Correctness | None:
    """Of the logits that came back; without any, only a failure is believed."""
    told = measured.correctness
    if measured.probe_logits is None:
        return told if told and not told.passed else None
    try:
        return Probe.of(artifact).judge(measured.probe_logits)
    except MfDeployError:  # this machine cannot run the artifact: what the app was told to expect counts
        return told


def _check_identity(report: LatencyReport, artifact: Artifact) -> None:
    manifest = artifact.manifest
    known = {
        "target": manifest.target,
        "scheme": manifest.scheme,
        "model_bytes": artifact.size_bytes,
        "batch": manifest.input.shape[0],
    }
    for name, value in known.items():
        if getattr(report, name) != value:
            raise _refusal(report, f"{name} is {getattr(report, name)}, and {value} in the manifest")


def _refusal(report: LatencyReport, why: str) -> MfDeployError:
    what = f"Refused the result of {report.artifact} on {report.device.label}"
    return MfDeployError(what, why, "Measure again.")


def _refuse_control_characters(content: Any, path: Path) -> None:
    """Names from outside end up in terminals, which obey some characters."""
    waiting = [content]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            waiting += [*value.keys(), *value.values()]
        elif isinstance(value, list):
            waiting += value
        elif isinstance(value, str) and not value.isprintable():
            raise MfDeployError(f"Cannot read {path}", "a text in it has control characters", FIX)


def _first(error: ValidationError) -> str:
    """The first thing that is wrong, in words; a newer schema is named as such."""
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"]) or "the file"
    if where.endswith("schema_version"):
        return f"it has schema version {first['input']}, which this mf-deploy does not know"
    return f"{where}: {first['msg']}"
