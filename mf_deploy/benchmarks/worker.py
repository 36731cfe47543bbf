"""A fresh process that opens and times one artifact, or two in turns.

A request comes as JSON on standard input; answers go out as JSON, one a line, on what was standard
output: any number of ``{"progress": fraction}``, then one ``measurement``, ``ratio`` or ``error``.
"""

import importlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

from pydantic import Field

from mf_deploy.artifact import Artifact, Record
from mf_deploy.benchmarks.engines import ENGINES, engine_of
from mf_deploy.benchmarks.latency import LatencyRatio, LatencyStatistics, Measurement
from mf_deploy.benchmarks.machine import conditions, peak_rss_bytes, rss_bytes
from mf_deploy.benchmarks.measure import Progress, sample, sample_in_turns, seeded_input, time_once, warm_up
from mf_deploy.benchmarks.protocol import Protocol
from mf_deploy.benchmarks.ratio import ratio_of_medians
from mf_deploy.errors import MfDeployError
from mf_deploy.runtimes import open_session


class Request(Record):
    """One artifact folder to time alone, or two to time in turns."""

    folders: list[Path] = Field(min_length=1, max_length=2)
    threads: int = Field(ge=1)
    protocol: Protocol


def measure(artifact: Artifact, threads: int, protocol: Protocol, progress: Progress) -> Measurement:
    """Run the protocol on one artifact in this process."""
    engine = engine_of(artifact.manifest.target)
    importlib.import_module(ENGINES[artifact.manifest.target].module)  # opening a model does not pay for it
    before, rss_before = conditions(), rss_bytes()
    start = time.perf_counter()
    session = open_session(artifact, threads=threads, as_written=True)
    load_ms = (time.perf_counter() - start) * 1e3
    prepared = seeded_input(session, protocol.seed)
    first_ms = time_once(session, prepared)
    warmup_ms = warm_up(session, prepared, protocol)
    timed = sample(session, prepared, protocol, progress)
    statistics = LatencyStatistics.of(timed.samples_ms)
    return Measurement(
        engine=engine,
        load_ms=round(load_ms, 4),
        first_inference_ms=first_ms,
        warmup_ms=warmup_ms,
        samples_ms=timed.samples_ms,
        sampled_at_s=timed.sampled_at_s,
        kept_every=timed.kept_every,
        conditions_over_time=timed.conditions,
        statistics=statistics,
        images_per_s=session.batch_size * 1e3 / statistics.mean_ms,
        rss_before_load_bytes=rss_before,
        peak_rss_bytes=peak_rss_bytes(),
        before=before,
        after=conditions(),
    )


def compare(
    first: Artifact, second: Artifact, threads: int, protocol: Protocol, progress: Progress
) -> LatencyRatio:
    """Time two artifacts in turns in this process."""
    sessions = (
        open_session(first, threads=threads, as_written=True),
        open_session(second, threads=threads, as_written=True),
    )
    inputs = (seeded_input(sessions[0], protocol.seed), seeded_input(sessions[1], protocol.seed))
    for session, prepared in zip(sessions, inputs, strict=True):
        warm_up(session, prepared, protocol)
    blocks, against = sample_in_turns(sessions, inputs, protocol, progress)
    ratio, low, high = ratio_of_medians(blocks, against)
    return LatencyRatio(
        artifact=str(first.folder),
        against=str(second.folder),
        threads=threads,
        ratio=ratio,
        low=low,
        high=high,
        blocks_ms=blocks,
        against_blocks_ms=against,
    )


def answer(request: Request, send: Callable[[dict[str, object]], None]) -> None:
    """Do what the request asks for and send the result."""

    def progress(fraction: float) -> None:
        send({"progress": fraction})

    artifacts = [Artifact.open(folder) for folder in request.folders]
    if len(artifacts) == 1:
        measurement = measure(artifacts[0], request.threads, request.protocol, progress)
        send({"measurement": measurement.model_dump()})
    else:
        ratio = compare(artifacts[0], artifacts[1], request.threads, request.protocol, progress)
        send({"ratio": ratio.model_dump()})


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends this process when it is interrupted
    answers = _take_standard_output()

    def send(message: dict[str, object]) -> None:
        answers.write(json.dumps(message) + "\n")
        answers.flush()

    try:
        answer(Request.model_validate_json(sys.stdin.read()), send)
    except MfDeployError as error:
        send({"error": [error.what, error.why, error.fix, error.exit_code]})


def _take_standard_output() -> TextIO:
    """Keep standard output for the answers; what an engine prints there goes to standard error."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return answers


if __name__ == "__main__":
    main()
