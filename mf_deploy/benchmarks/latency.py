"""What a latency result holds, host, phone or browser: raw samples, their statistics, where they come from.

``LatencyReport.model_json_schema()`` is the JSON Schema that everything which measures must fit.
"""

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
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Label = Annotated[str, Field(max_length=200)]
Note = Annotated[str, Field(max_length=2000)]
Logits = Annotated[list[Finite], Field(min_length=1, max_length=100_000)]

# Apple's ProcessInfo.ThermalState; Android's thermal status none and light are nominal, moderate is fair,
# severe is serious, and what is above it critical.
ThermalState = Literal["nominal", "fair", "serious", "critical", "unknown"]


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
    """The machine that ran the model; None where it does not tell."""

    name: Label = Field(description="how mf-bench addresses it, e.g. host, adb:R5CT, browser, android, ios")
    cpu: Label = Field(description="the processor's name, or the nearest to it that the device tells")
    cores: int = Field(ge=1)
    memory_bytes: int | None = Field(None, ge=0)
    os: Label
    model: Label | None = Field(None, description="of the device, e.g. Pixel 8")
    soc: Label | None = Field(None, description="its system on chip, e.g. Tensor G3")
    browser: Label | None = Field(None, description="name and version")

    @property
    def label(self) -> str:
        """What people call it: the device's model and chip, or else its processor."""
        named = [part for part in (self.model, self.soc, self.browser) if part]
        return ", ".join(named) if self.model or self.browser else self.cpu


class EngineInfo(Record):
    """The program that ran the model."""

    name: Label
    version: Label


class Conditions(Record):
    """What else bears on a time; None where the device does not tell."""

    load_average: float | None = Field(None, ge=0, description="runnable processes over the last minute")
    temperature_c: Finite | None = None
    thermal_state: ThermalState | None = None
    battery_percent: float | None = Field(None, ge=0, le=100)
    charging: bool | None = None


class TimedConditions(Record):
    """The conditions at one moment of the timed part."""

    at_s: Seconds
    conditions: Conditions


class Placement(Record):
    """One operator of the graph and the part of the device that ran it."""

    operator: Label = Field(description="its kind, e.g. Conv2D")
    name: Label = Field("", description="of its first output, where the engine tells")
    unit: Label = Field(description="e.g. cpu, gpu, npu")
    cost: float | None = Field(None, ge=0, le=1, description="its share of the estimated cost")


class Correctness(Record):
    """The device's logits of fixed inputs against those of the artifact's session on the host."""

    reference: Label = Field(description="the host's engine and version")
    inputs: int = Field(ge=1)
    max_abs_error: float | None = Field(
        ge=0, allow_inf_nan=False, description="largest |difference| of any logit; None if not comparable"
    )
    tolerance: float = Field(gt=0, allow_inf_nan=False, description="largest allowed max_abs_error")
    passed: bool


class Measurement(Record):
    """One run of the protocol in a process of its own.

    ``load_ms`` is the time to open the model, its file in the page cache and the engine's library
    loaded. Memory is the process's resident set: before the model was opened, and its peak; None where
    the device does not tell, as in browsers.
    """

    engine: EngineInfo
    accelerator_requested: Label = Field("cpu", description="e.g. cpu, xnnpack, nnapi, webgpu, neural-engine")
    accelerator_used: Label | None = Field("cpu", description="None where the engine does not tell")
    load_ms: Milliseconds
    first_inference_ms: Milliseconds
    warmup_ms: Samples
    samples_ms: Samples
    sampled_at_s: list[Seconds] | None = Field(
        None, max_length=MAX_SAMPLES, description="when each sample ended, since the timed part began"
    )
    kept_every: int = Field(1, ge=1, description="of so many inferences, one sample was kept")
    timer_resolution_ms: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="smallest step of the clock, where it is coarse: in browsers",
    )
    conditions_over_time: list[TimedConditions] = Field(default_factory=list, max_length=10_000)
    statistics: LatencyStatistics
    images_per_s: float = Field(gt=0, allow_inf_nan=False, description="batch / mean time")
    rss_before_load_bytes: int | None = Field(None, ge=0)
    peak_rss_bytes: int | None = Field(None, ge=0)
    before: Conditions
    after: Conditions
    probe_logits: list[Logits] | None = Field(
        None,
        max_length=4096,
        description="of the inputs of benchmarks/probe.py, as the device has them",
    )
    correctness: Correctness | None = Field(None, description="None on the host, which is the reference")
    placement: list[Placement] | None = Field(None, max_length=100_000)
    partial: Note | None = Field(None, description="why it ended early; what was measured is kept")

    @model_validator(mode="after")
    def _statistics_fit_samples(self) -> Self:
        expected = LatencyStatistics.of(self.samples_ms)
        for name, value in self.statistics:
            if not math.isclose(value, getattr(expected, name), rel_tol=1e-6, abs_tol=1e-6):
                raise ValueError(f"statistics.{name} does not follow from samples_ms")
        return self

    @model_validator(mode="after")
    def _one_time_a_sample(self) -> Self:
        times = self.sampled_at_s
        if times is not None and (len(times) != len(self.samples_ms) or times != sorted(times)):
            raise ValueError("sampled_at_s needs one time for each of samples_ms, in order")
        return self


class LatencyReport(Record):
    """One artifact on one device with one number of threads: a measurement, or why there is none.

    Version 1 had no thermal state, accelerator, probe or time series; its files are still read.
    """

    schema_version: Literal[1, 2] = 2
    artifact: Label
    model: Label
    target: Target
    scheme: Scheme
    model_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    model_bytes: int = Field(ge=0)
    batch: int = Field(ge=1)
    kind: Kind
    device: DeviceInfo
    threads: int = Field(ge=1)
    cores: Label | None = Field(None, description="that the process was bound to, e.g. 4-7")
    protocol: Protocol
    measurement: Measurement | None = None
    not_run: Note | None = Field(None, description="why there is no measurement")
    measured_by: Label = Field("mf-bench", description="the program that followed the protocol")
    created: Label = Field(description="UTC, ISO 8601")

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

    schema_version: Literal[1, 2] = 2
    reports: list[LatencyReport]
    ratios: list[LatencyRatio]


def report_on(
    artifact: Artifact,
    kind: Kind,
    device: DeviceInfo,
    threads: int,
    protocol: Protocol,
    outcome: Measurement | str,
    cores: str | None = None,
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
        cores=cores,
        protocol=protocol,
        measurement=None if isinstance(outcome, str) else outcome,
        not_run=outcome if isinstance(outcome, str) else None,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )
