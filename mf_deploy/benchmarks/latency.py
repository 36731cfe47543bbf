"""What a latency result holds, host or phone: raw samples, their statistics, and where they come from."""

import math
from datetime import UTC, datetime
from typing import Annotated, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from mf_deploy.artifact import Artifact, Record, Scheme, Target
from mf_deploy.benchmarks.protocol import MAX_SAMPLES, Protocol

Kind = Literal["device", "host", "emulated", "estimated", "browser"]
Milliseconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Samples = Annotated[list[Milliseconds], Field(min_length=1, max_length=MAX_SAMPLES)]


class LatencyStatistics(Record):
    """Of the samples; percentiles interpolate linearly between them, std is that of a sample (n - 1)."""

    p50_ms: float
    p90_ms: float
    p95_ms: float
    p99_ms: float
    mean_ms: float
    std_ms: float
    min_ms: float
    max_ms: float

    @classmethod
    def of(cls, samples_ms: list[float]) -> Self:
        """The statistics of at least one sample, milliseconds."""
        samples = np.asarray(samples_ms, np.float64)
        p50, p90, p95, p99 = (float(value) for value in np.percentile(samples, [50, 90, 95, 99]))
        return cls(
            p50_ms=p50,
            p90_ms=p90,
            p95_ms=p95,
            p99_ms=p99,
            mean_ms=float(samples.mean()),
            std_ms=float(samples.std(ddof=1)) if len(samples) > 1 else 0.0,
            min_ms=float(samples.min()),
            max_ms=float(samples.max()),
        )


class DeviceInfo(Record):
    """The machine that ran the model."""

    name: str = Field(description="how mf-bench addresses it, e.g. host")
    cpu: str
    cores: int = Field(ge=1)
    memory_bytes: int = Field(ge=0)
    os: str


class EngineInfo(Record):
    """The program that ran the model."""

    name: str
    version: str


class Conditions(Record):
    """What else bears on a time; None where the device does not tell."""

    load_average: float | None = Field(None, description="runnable processes over the last minute")
    temperature_c: float | None = None
    battery_percent: float | None = None
    charging: bool | None = None


class Measurement(Record):
    """One run of the protocol in a process of its own.

    ``load_ms`` is the time to open the model, its file in the page cache and the engine's library
    loaded. Memory is the process's resident set: before the model was opened, and its peak.
    """

    engine: EngineInfo
    load_ms: Milliseconds
    first_inference_ms: Milliseconds
    warmup_ms: Samples
    samples_ms: Samples
    statistics: LatencyStatistics
    images_per_s: float = Field(gt=0, allow_inf_nan=False, description="batch / mean time")
    rss_before_load_bytes: int = Field(ge=0)
    peak_rss_bytes: int = Field(ge=0)
    before: Conditions
    after: Conditions

    @model_validator(mode="after")
    def _statistics_fit_samples(self) -> Self:
        expected = LatencyStatistics.of(self.samples_ms)
        for name, value in self.statistics:
            if not math.isclose(value, getattr(expected, name), rel_tol=1e-6, abs_tol=1e-6):
                raise ValueError(f"statistics.{name} does not follow from samples_ms")
        return self


class LatencyReport(Record):
    """One artifact on one device with one number of threads: a measurement, or why there is none."""

    schema_version: Literal[1] = 1
    artifact: str
    model: str
    target: Target
    scheme: Scheme
    model_sha256: str
    model_bytes: int = Field(ge=0)
    batch: int = Field(ge=1)
    kind: Kind
    device: DeviceInfo
    threads: int = Field(ge=1)
    protocol: Protocol
    measurement: Measurement | None = None
    not_run: str | None = Field(None, description="why there is no measurement")
    created: str = Field(description="UTC, ISO 8601")

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if (self.measurement is None) == (self.not_run is None):
            raise ValueError("give either measurement or not_run")
        return self


class LatencyRatio(Record):
    """Two artifacts timed in turns in one process: how many times the first one's time is the second's.

    ``blocks_ms[i]`` and ``against_blocks_ms[i]`` were measured right after each other.
    """

    artifact: str = Field(description="folder of the first artifact")
    against: str = Field(description="folder of the second artifact")
    threads: int = Field(ge=1)
    ratio: float = Field(gt=0, description="median time of artifact / median time of against")
    low: float = Field(gt=0, description="lower end of the 95 % interval")
    high: float = Field(gt=0, description="upper end of the 95 % interval")
    blocks_ms: list[Samples]
    against_blocks_ms: list[Samples]


class BenchReport(Record):
    """Everything that one mf-bench command measured."""

    schema_version: Literal[1] = 1
    reports: list[LatencyReport]
    ratios: list[LatencyRatio]


def report_on(
    artifact: Artifact,
    kind: Kind,
    device: DeviceInfo,
    threads: int,
    protocol: Protocol,
    outcome: Measurement | str,
) -> LatencyReport:
    """The report of a measurement, or of the reason why there is none."""
    manifest = artifact.manifest
    return LatencyReport(
        artifact=artifact.name,
        model=manifest.model.name,
        target=manifest.target,
        scheme=manifest.scheme,
        model_sha256=artifact.sha256,
        model_bytes=artifact.size_bytes,
        batch=manifest.input.shape[0],
        kind=kind,
        device=device,
        threads=threads,
        protocol=protocol,
        measurement=None if isinstance(outcome, str) else outcome,
        not_run=outcome if isinstance(outcome, str) else None,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )
