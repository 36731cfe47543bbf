"""How a latency is measured: the same rules on every device, stored with every result."""

from pydantic import Field

from mf_deploy.artifact import Record

MAX_SAMPLES = 400_000


class Protocol(Record):
    """Single stream: one input, one inference after another, every one timed.

    Timing goes on until ``min_runs`` inferences and ``min_seconds`` have both passed; so does the
    warm-up before it, whose times are not counted.
    """

    min_runs: int = Field(200, ge=1, le=MAX_SAMPLES)
    min_seconds: float = Field(0.0, ge=0, le=86_400)
    warmup_runs: int = Field(10, ge=1, le=10_000)
    warmup_seconds: float = Field(0.5, ge=0, le=600)
    seed: int = Field(0, ge=0, description="of the random picture that is the input")
