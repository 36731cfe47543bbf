"""What the native runner (benchmarks/native/bench.c) says, line by line, and the measurement that follows."""

import math

import numpy as np

from mf_deploy.benchmarks.latency import Conditions, EngineInfo, LatencyStatistics, Measurement
from mf_deploy.benchmarks.measure import Progress, Timed, fraction_done
from mf_deploy.benchmarks.probe import Probe
from mf_deploy.benchmarks.protocol import Protocol
from mf_deploy.errors import GATE_FAILED, MfDeployError

MAX_WARMUP = 20_000


class NativeRun:
    """One run so far. ``hear`` takes the output in pieces of any length."""

    def __init__(self, protocol: Protocol, progress: Progress) -> None:
        self.timed = Timed()
        self.pid: int | None = None
        self.error: str | None = None
        self.done = False
        self._protocol, self._progress = protocol, progress
        self._numbers: dict[str, float] = {}
        self._warmup: list[float] = []
        self._logits: list[float] = []
        self._rest = b""

    def hear(self, data: bytes) -> None:
        """Take a piece of the output.

        Raises:
            MfDeployError: it is not what the runner says.
        """
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            word, _, values = line.decode(errors="replace").strip().partition(" ")
            try:
                self._take(word, values)
            except ValueError:
                why = f"it said {line[:100]!r}"
                fix = "Run: mf-deploy setup adb --force"
                raise MfDeployError("Cannot understand the phone", why, fix, GATE_FAILED) from None
        if lines and self.timed.count:
            protocol = self._protocol
            self._progress(
                fraction_done(
                    self.timed.count, protocol.min_runs, self.timed.sampled_at_s[-1], protocol.min_seconds
                )
            )

    def _take(self, word: str, values: str) -> None:
        if word == "s":
            milliseconds, at_s = map(_measured, values.split())
            if "first" not in self._numbers or not self._warmup:
                raise ValueError("timed before it was opened")
            self.timed.add(milliseconds, at_s)
        elif word == "warmup":
            if len(self._warmup) < MAX_WARMUP:
                self._warmup.append(_measured(values))
        elif word == "logits":
            self._logits += map(float, values.split()[1:])
        elif word == "pid":
            self.pid = int(values)
        elif word in ("load", "first", "rss_before", "peak"):
            self._numbers[word] = _measured(values)
        elif word == "error":
            self.error = values[:500]
        elif word == "done":
            self.done = True
        elif word != "engine":
            raise ValueError(word)

    def measurement(
        self,
        engine: EngineInfo,
        batch: int,
        before: Conditions,
        after: Conditions,
        probe: Probe,
        partial: str | None,
    ) -> Measurement:
        """What was measured; ``partial`` says why it ended early. At least one run was timed."""
        statistics = LatencyStatistics.of(self.timed.samples_ms)
        fits = len(self._logits) == probe.expected.size
        logits = np.reshape(self._logits, probe.expected.shape) if fits else np.empty(0)
        finite = fits and bool(np.isfinite(logits).all())
        return Measurement(
            engine=engine,
            load_ms=self._numbers["load"],
            first_inference_ms=self._numbers["first"],
            warmup_ms=self._warmup,
            samples_ms=self.timed.samples_ms,
            sampled_at_s=self.timed.sampled_at_s,
            kept_every=self.timed.kept_every,
            conditions_over_time=self.timed.conditions,
            statistics=statistics,
            images_per_s=batch * 1e3 / statistics.mean_ms,
            rss_before_load_bytes=self._bytes("rss_before"),
            peak_rss_bytes=self._bytes("peak"),
            before=before,
            after=after,
            probe_logits=logits.tolist() if finite else None,
            correctness=probe.judge(logits),
            partial=partial,
        )

    def _bytes(self, name: str) -> int | None:
        return int(self._numbers[name]) if self._numbers.get(name) else None


def _measured(text: str) -> float:
    """A number that a clock or a kernel can give."""
    value = float(text)
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(text)
    return value
