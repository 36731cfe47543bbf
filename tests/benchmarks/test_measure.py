"""The timing loop on real sessions: small torch models whose cost is known to differ."""

import time

import numpy as np
import torch

from mf_deploy.artifact import TensorInfo
from mf_deploy.benchmarks.measure import RUNS_PER_BLOCK, Timed, sample, sample_in_turns, seeded_input, warm_up
from mf_deploy.benchmarks.protocol import Protocol
from mf_deploy.preprocessing import Preprocessing
from mf_deploy.runtimes.session import Session


class Convolutions(Session):
    """``depth`` convolutions on a small picture; counts its inferences."""

    def __init__(self, depth: int) -> None:
        info = TensorInfo(name="image", shape=(1, 3, 32, 32), layout="NCHW", dtype="float32")
        super().__init__(f"convolutions-{depth}", info, Preprocessing(input_size=32))
        torch.set_num_threads(1)
        layers = [torch.nn.Conv2d(3, 32, 3), *(torch.nn.Conv2d(32, 32, 3, padding=1) for _ in range(depth))]
        self.model = torch.nn.Sequential(*layers).eval()
        self.count = 0

    def _infer(self, prepared: np.ndarray) -> dict[str, np.ndarray]:
        self.count += 1
        with torch.inference_mode():
            return {"logits": self.model(torch.from_numpy(prepared)).numpy()}


def ignore(fraction: float) -> None:
    pass


def test_runs_are_counted_exactly() -> None:
    session = Convolutions(1)
    prepared = seeded_input(session, 0)
    timed = sample(session, prepared, Protocol(min_runs=37), ignore)
    assert len(timed.samples_ms) == len(timed.sampled_at_s) == 37
    assert session.count == 37


def test_seconds_are_a_lower_bound_and_progress_rises_to_the_end() -> None:
    session = Convolutions(1)
    heard: list[float] = []
    start = time.monotonic()
    timed = sample(session, seeded_input(session, 0), Protocol(min_runs=1, min_seconds=0.7), heard.append)
    elapsed = time.monotonic() - start
    assert elapsed >= 0.7
    assert 0 < sum(timed.samples_ms) / 1e3 <= elapsed
    assert timed.sampled_at_s == sorted(timed.sampled_at_s)
    assert 0.5 < timed.sampled_at_s[-1] <= elapsed
    assert heard == sorted(heard)
    assert 0 < heard[-1] <= 1


def test_of_too_many_samples_every_second_one_is_kept_again_and_again() -> None:
    timed = Timed(most=8)
    for index in range(40):
        timed.add(float(index), index / 2)
    assert timed.count == 40
    assert timed.kept_every == 8
    assert timed.samples_ms == [0.0, 8.0, 16.0, 24.0, 32.0]
    assert timed.sampled_at_s == [0.0, 4.0, 8.0, 12.0, 16.0]


def test_the_warm_up_lasts_both_its_runs_and_its_seconds() -> None:
    session = Convolutions(1)
    prepared = seeded_input(session, 0)
    assert len(warm_up(session, prepared, Protocol(warmup_runs=25, warmup_seconds=0))) == 25
    start = time.monotonic()
    warm_up(session, prepared, Protocol(warmup_runs=1, warmup_seconds=0.3))
    assert time.monotonic() - start >= 0.3


def test_the_input_follows_the_seed() -> None:
    session = Convolutions(1)
    assert np.array_equal(seeded_input(session, 3), seeded_input(session, 3))
    assert not np.array_equal(seeded_input(session, 3), seeded_input(session, 4))
    assert seeded_input(session, 3).shape == (1, 3, 32, 32)


def test_two_sessions_take_turns_and_the_dearer_one_is_slower() -> None:
    pair = (Convolutions(12), Convolutions(1))
    inputs = (seeded_input(pair[0], 0), seeded_input(pair[1], 0))
    blocks, against = sample_in_turns(pair, inputs, Protocol(min_runs=60), ignore)
    assert len(blocks) == len(against) == 60 // RUNS_PER_BLOCK
    assert {len(block) for block in blocks + against} == {RUNS_PER_BLOCK}
    assert pair[0].count == pair[1].count == len(blocks) * (RUNS_PER_BLOCK + 1)
    assert np.median(blocks) > 2 * np.median(against)


def test_few_runs_still_make_enough_blocks_for_an_interval() -> None:
    pair = (Convolutions(1), Convolutions(1))
    inputs = (seeded_input(pair[0], 0), seeded_input(pair[1], 0))
    assert len(sample_in_turns(pair, inputs, Protocol(min_runs=1), ignore)[0]) == 10
