"""What a browser may post, and the result that it becomes. Everything here came over a network."""

from datetime import UTC, datetime
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from mf_deploy.artifact import Record
from mf_deploy.benchmarks.latency import (
    Conditions,
    DeviceInfo,
    EngineInfo,
    LatencyReport,
    LatencyStatistics,
    Logits,
    Measurement,
    report_on,
)
from mf_deploy.benchmarks.protocol import MAX_SAMPLES, Protocol
from mf_deploy.benchmarks.server.offers import EngineName, Offer

ENGINES: dict[EngineName, tuple[str, str]] = {
    "ort": ("ONNX Runtime Web", "onnxruntime-web"),
    "litert": ("LiteRT.js", "@litertjs/core"),
}


def _printable(text: str) -> str:
    """On one line, and nothing in it that a terminal obeys."""
    return " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())


# Bounds that keep every statistic finite; no inference of a benchmark takes a day.
Time = Annotated[float, Field(ge=0, le=86_400_000, allow_inf_nan=False)]
Times = Annotated[list[Time], Field(min_length=1, max_length=MAX_SAMPLES)]
Text = Annotated[str, Field(min_length=1, max_length=200), AfterValidator(_printable)]
LongText = Annotated[str, Field(min_length=1, max_length=2000), AfterValidator(_printable)]


class PostedDevice(Record):
    """What a browser tells of the phone that it is on."""

    model: Text | None = None
    os: Text
    browser: Text
    architecture: Text | None = None
    cores: int = Field(ge=1, le=1024)
    memory_bytes: int | None = Field(None, ge=0, le=1 << 50)

    def info(self) -> DeviceInfo:
        """As the result schema has it; browsers do not tell the processor's name."""
        return DeviceInfo(
            name="browser",
            cpu=self.architecture or "not told",
            cores=self.cores,
            memory_bytes=self.memory_bytes,
            os=self.os,
            model=self.model,
            browser=self.browser,
        )


class PostedMeasurement(Record):
    """A measurement without what the host works out itself: statistics and correctness."""

    accelerator_used: Text | None
    load_ms: Time
    first_inference_ms: Time
    warmup_ms: Times
    samples_ms: Times
    sampled_at_s: Times | None = None
    kept_every: int = Field(1, ge=1, le=1 << 30)
    timer_resolution_ms: float | None = Field(None, gt=0, le=1000, allow_inf_nan=False)
    before: Conditions
    after: Conditions
    probe_logits: list[Logits] = Field(min_length=1, max_length=16)
    partial: LongText | None = None


class Post(Record):
    """One artifact that a browser has timed, or why it could not. ``id`` is the phone's own, and random."""

    schema_version: Literal[1]
    id: str = Field(pattern=r"^[0-9a-f]{32}$")
    artifact: str = Field(pattern=r"^[0-9a-f]{16}$")
    model_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    engine: EngineName
    accelerator: Literal["wasm", "webgpu", "webnn"]
    threads: int = Field(ge=1, le=1024)
    protocol: Protocol
    device: PostedDevice
    measurement: PostedMeasurement | None = None
    not_run: LongText | None = None

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if (self.measurement is None) == (self.not_run is None):
            raise ValueError("give either measurement or not_run")
        return self

    def report(self, offer: Offer, engine_version: str) -> LatencyReport:
        """The result in the schema of all devices, judged by the host.

        Raises:
            MfDeployError: the host cannot run the artifact.
            ValueError: the measurement contradicts itself.
        """
        outcome = (
            self.not_run
            if self.measurement is None
            else self._measured(self.measurement, offer, engine_version)
        )
        return report_on(
            offer.artifact, "browser", self.device.info(), self.threads, self.protocol, outcome or "not told"
        )

    def result_name(self, offer: Offer) -> str:
        """A name for the result's file: no other post has it, whatever device it came from."""
        device = (self.device.model or self.device.os)[:40]
        time = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
        return (
            f"bench-{offer.artifact.name}-browser-{device}-{self.engine}-{self.accelerator}"
            f"-t{self.threads}-{time}-{self.id}"
        )

    def _measured(self, measured: PostedMeasurement, offer: Offer, engine_version: str) -> Measurement:
        statistics = LatencyStatistics.of(measured.samples_ms)
        if statistics.mean_ms <= 0:
            raise ValueError("samples_ms: every time is zero, the browser's clock is too coarse")
        name, _ = ENGINES[self.engine]
        return Measurement.model_validate(
            measured.model_dump()
            | {
                "engine": EngineInfo(name=name, version=engine_version),
                "accelerator_requested": self.accelerator,
                "statistics": statistics,
                "images_per_s": offer.artifact.manifest.input.shape[0] * 1e3 / statistics.mean_ms,
                "correctness": offer.probe().judge(measured.probe_logits),
            }
        )
