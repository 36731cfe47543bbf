"""What an instruction count holds: how much work an inference is for a CPU, where no time can be measured."""

from typing import Literal, Self

from pydantic import Field, model_validator

from mf_deploy.artifact import Record, Scheme, Target
from mf_deploy.benchmarks.latency import EngineInfo


class Instructions(Record):
    """Executed ARM64 instructions by class; each instruction is in one class."""

    fmla: int = Field(ge=0, description="vector multiply-adds in floating point")
    dot: int = Field(ge=0, description="int8 dot products: SDOT, UDOT, USDOT, SUDOT")
    mmla: int = Field(ge=0, description="int8 matrix products: SMMLA, UMMLA, USMMLA")
    simd: int = Field(ge=0, description="other vector and floating-point arithmetic")
    memory: int = Field(ge=0, description="loads and stores")
    branch: int = Field(ge=0)
    other: int = Field(ge=0, description="integer and address arithmetic, system instructions")

    @property
    def total(self) -> int:
        """Of all classes."""
        return sum(value for _, value in self)


class OperatorInstructions(Record):
    """One operator of the graph that the engine ran; ``name`` and ``shape`` where the engine tells."""

    kind: str
    name: str
    shape: tuple[int, ...] = Field(description="of the first output")
    instructions: Instructions


class InstructionReport(Record):
    """One artifact on one emulated CPU with one thread: counts, or why there are none.

    ``instructions`` is the inference with the median total of ``totals``, which are one or more inferences
    after the first.
    """

    schema_version: Literal[1] = 1
    artifact: str
    model: str
    target: Target
    scheme: Scheme
    model_sha256: str
    model_bytes: int = Field(ge=0)
    batch: int = Field(ge=1)
    macs: int = Field(ge=0, description="multiply-adds of one inference")
    kind: Literal["emulated"] = "emulated"
    device: str = Field(description="as mf-bench addresses it, e.g. arm:cortex-a76")
    emulator: str
    threads: Literal[1] = 1
    engine: EngineInfo | None = None
    instructions: Instructions | None = None
    totals: list[int] = Field(default_factory=list)
    operators: list[OperatorInstructions] | None = Field(None, description="in the order of execution")
    not_run: str | None = Field(None, description="why there are no counts")
    created: str = Field(description="UTC, ISO 8601")

    @property
    def per_mac(self) -> float | None:
        """Instructions for one multiply-add."""
        return self.instructions.total / self.macs if self.instructions and self.macs else None

    @model_validator(mode="after")
    def _counted_or_not_run(self) -> Self:
        if (self.instructions is None) == (self.not_run is None):
            raise ValueError("give either instructions or not_run")
        if self.instructions and self.instructions.total not in self.totals:
            raise ValueError("instructions are not one of totals")
        return self


class InstructionReports(Record):
    """Everything that one mf-bench command counted."""

    schema_version: Literal[1] = 1
    reports: list[InstructionReport]
