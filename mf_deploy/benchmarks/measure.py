"""The timing loop: one session, or two in turns, on one prepared input."""

import gc
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np

from mf_deploy.benchmarks.latency import TimedConditions
from mf_deploy.benchmarks.machine import conditions
from mf_deploy.benchmarks.protocol import MAX_SAMPLES, Protocol
from mf_deploy.runtimes.session import Session

RUNS_PER_BLOCK = 5
MIN_BLOCKS = 10
PROGRESS_INTERVAL_S = 0.2
CONDITIONS_INTERVAL_S = 10.0

Progress = Callable[[float], None]


@dataclass
class Timed:
    """Inferences one after the other: how long each took, and when it ended.

    At most ``most`` of them are kept, evenly: every ``kept_every``-th.
    """

    most: int = MAX_SAMPLES
    samples_ms: list[float] = field(default_factory=list)
    sampled_at_s: list[float] = field(default_factory=list)
    conditions: list[TimedConditions] = field(default_factory=list)
    kept_every: int = 1
    count: int = 0

    def add(self, milliseconds: float, at_s: float) -> None:
        """Count one inference that ended ``at_s`` seconds after the first began."""
        if self.count % self.kept_every == 0:
            if len(self.samples_ms) == self.most:
                del self.samples_ms[1::2], self.sampled_at_s[1::2]
                self.kept_every *= 2
            if self.count % self.kept_every == 0:
                self.samples_ms.append(milliseconds)
                self.sampled_at_s.append(round(at_s, 3))
        self.count += 1


def seeded_input(session: Session, seed: int) -> np.ndarray:
    """One batch of random pictures, as the model's own input."""
    side = session.preprocessing.input_size
    shape = (session.batch_size, side, side, 3)
    pictures = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    return np.ascontiguousarray(session.prepare(pictures))


def time_once(session: Session, prepared: np.ndarray) -> float:
    """Milliseconds of one inference, rounded to a tenth of a microsecond."""
    start = time.perf_counter_ns()
    session.run_prepared(prepared)
    return round((time.perf_counter_ns() - start) / 1e6, 4)


def warm_up(session: Session, prepared: np.ndarray, protocol: Protocol) -> list[float]:
    """The times of the warm-up, milliseconds."""
    runs, seconds = protocol.warmup_runs, protocol.warmup_seconds
    return _timed(session, prepared, runs, seconds, lambda fraction: None).samples_ms


def sample(session: Session, prepared: np.ndarray, protocol: Protocol, progress: Progress) -> Timed:
    """The times that count; ``progress`` hears the fraction done, five times a second."""
    return _timed(session, prepared, protocol.min_runs, protocol.min_seconds, progress)


def sample_in_turns(
    pair: tuple[Session, Session],
    inputs: tuple[np.ndarray, np.ndarray],
    protocol: Protocol,
    progress: Progress,
) -> tuple[list[list[float]], list[list[float]]]:
    """Blocks of a few inferences of each session in turn: two lists of equally many blocks, milliseconds.

    There are at least ten of them, so that their spread means something. Which one begins changes
    from one pair of blocks to the next, so that a drift of the machine weighs on both; the first
    inference of a block, which finds the other model's data in the caches, is not counted.
    """
    blocks: tuple[list[list[float]], list[list[float]]] = ([], [])
    wanted = max(MIN_BLOCKS, -(-protocol.min_runs // RUNS_PER_BLOCK))
    most = MAX_SAMPLES // RUNS_PER_BLOCK
    start = reported = time.monotonic()
    with _no_garbage_collection():
        while not _done(len(blocks[0]), wanted, time.monotonic() - start, protocol.min_seconds, most):
            for which in (0, 1) if len(blocks[0]) % 2 == 0 else (1, 0):
                session, prepared = pair[which], inputs[which]
                time_once(session, prepared)
                blocks[which].append([time_once(session, prepared) for _ in range(RUNS_PER_BLOCK)])
            if (now := time.monotonic()) - reported >= PROGRESS_INTERVAL_S:
                progress(fraction_done(len(blocks[0]), wanted, now - start, protocol.min_seconds))
                reported = now
    return blocks


def _timed(session: Session, prepared: np.ndarray, runs: int, seconds: float, progress: Progress) -> Timed:
    timed = Timed()
    start = reported = read = time.monotonic()
    with _no_garbage_collection():
        while timed.count < runs or time.monotonic() - start < seconds:
            milliseconds = time_once(session, prepared)
            now = time.monotonic()
            timed.add(milliseconds, now - start)
            if now - reported >= PROGRESS_INTERVAL_S:
                progress(fraction_done(timed.count, runs, now - start, seconds))
                reported = now
            if now - read >= CONDITIONS_INTERVAL_S:
                timed.conditions.append(TimedConditions(at_s=round(now - start, 3), conditions=conditions()))
                read = now
    return timed


def _done(count: int, wanted: int, elapsed_s: float, seconds: float, most: int) -> bool:
    return count >= most or (count >= wanted and elapsed_s >= seconds)


def fraction_done(count: int, wanted: int, elapsed_s: float, seconds: float) -> float:
    """How much of at least ``wanted`` runs and ``seconds`` is done."""
    return min(1.0, count / wanted, elapsed_s / seconds if seconds else 1.0)


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Python's collector would stop an inference now and then for reasons that are not the model's."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
