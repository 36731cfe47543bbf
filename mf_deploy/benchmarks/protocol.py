"""How a latency is measured: the same rules on every device, stored with every result."""

from typing import Self

from pydantic import Field

from mf_deploy.artifact import Record

MAX_SAMPLES = 400_000


class Protocol(Record):
    """Single stream: one input, one inference after another, every one timed.

    Timing goes on until ``min_runs`` inferences and ``min_seconds`` have both passed; so does the
    warm-up before it, whose times are not counted. At most ``MAX_SAMPLES`` times are kept: when there
    are more, every second one is dropped, and from then on only every second one is kept, and so on.
    """

    min_runs: int = Field(200, ge=1, le=MAX_SAMPLES)
    min_seconds: float = Field(0.0, ge=0, le=86_400)
    warmup_runs: int = Field(10, ge=1, le=10_000)
    warmup_seconds: float = Field(0.5, ge=0, le=600)
    cool_down_seconds: float = Field(0.0, ge=0, le=3600, description="of rest before a model is opened")
    seed: int = Field(0, ge=0, description="of the random input picture and of the models' order")

    @classmethod
    def single_stream(cls, **changes: float) -> Self:
        """The length of MLPerf Mobile's single-stream scenario, whose headline is the 90th percentile.

        At least 1,024 queries and 60 s: Janapa Reddi et al. 2022, "MLPerf Mobile Inference Benchmark".
        """
        return cls.model_validate({"min_runs": 1024, "min_seconds": 60.0, "warmup_seconds": 2.0} | changes)

    @classmethod
    def quick(cls, **changes: float) -> Self:
        """200 inferences after half a second of warm-up: for a first look."""
        return cls.model_validate(changes)

    @classmethod
    def sustained(cls, seconds: float, **changes: float) -> Self:
        """As long as ``seconds``: what a phone still does when it is warm."""
        return cls.model_validate({"min_runs": 1, "min_seconds": seconds} | changes)
