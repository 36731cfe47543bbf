"""The statistics, the schema and the ratio against values worked out by other means."""

import numpy as np
import pytest
from pydantic import ValidationError
from scipy import stats

from mf_deploy.benchmarks.latency import Conditions, EngineInfo, LatencyStatistics, Measurement
from mf_deploy.benchmarks.ratio import ratio_of_medians


def measurement(**changes: object) -> dict[str, object]:
    samples = [1.0, 2.0, 4.0]
    fields: dict[str, object] = {
        "engine": EngineInfo(name="onnxruntime", version="1.0"),
        "load_ms": 3.0,
        "first_inference_ms": 2.0,
        "warmup_ms": [1.0],
        "samples_ms": samples,
        "statistics": LatencyStatistics.of(samples).model_dump(),
        "images_per_s": 100.0,
        "rss_before_load_bytes": 1,
        "peak_rss_bytes": 2,
        "before": Conditions(),
        "after": Conditions(),
    }
    return fields | changes


def test_statistics_are_those_of_scipy() -> None:
    samples = np.random.default_rng(1).lognormal(1, 0.3, 301)
    ours = LatencyStatistics.of(samples.tolist())
    theirs = stats.describe(samples)
    assert ours.mean_ms == pytest.approx(theirs.mean)
    assert ours.std_ms == pytest.approx(np.sqrt(theirs.variance))
    assert (ours.min_ms, ours.max_ms) == theirs.minmax
    for percent, value in ((50, ours.p50_ms), (90, ours.p90_ms), (95, ours.p95_ms), (99, ours.p99_ms)):
        assert value == pytest.approx(stats.scoreatpercentile(samples, percent))


def test_one_sample_has_no_spread() -> None:
    assert LatencyStatistics.of([2.5]).std_ms == 0.0


def test_a_measurement_whose_statistics_do_not_follow_from_its_samples_is_refused() -> None:
    Measurement.model_validate(measurement())
    with pytest.raises(ValidationError, match="p50_ms does not follow"):
        Measurement.model_validate(measurement(samples_ms=[1.0, 3.0, 4.0]))


@pytest.mark.parametrize("samples", [[], [-1.0], [float("nan")], [float("inf")]])
def test_impossible_samples_are_refused(samples: list[float]) -> None:
    with pytest.raises(ValidationError, match="samples_ms"):
        Measurement.model_validate(measurement(samples_ms=samples))


def test_the_ratio_interval_covers_the_truth_as_often_as_it_says() -> None:
    covered = 0
    for seed in range(40):
        generator = np.random.default_rng(seed)
        drift = generator.lognormal(0, 0.2, (40, 1))  # what slows the machine falls on both of a pair
        first = 3.0 * drift * generator.lognormal(0, 0.05, (40, 5))
        second = 2.0 * drift * generator.lognormal(0, 0.05, (40, 5))
        ratio, low, high = ratio_of_medians(first.tolist(), second.tolist())
        assert low <= ratio <= high
        covered += low <= 1.5 <= high
    assert covered >= 33


def test_swapping_the_two_inverts_the_ratio() -> None:
    generator = np.random.default_rng(0)
    first, second = generator.random((12, 5)).tolist(), generator.random((12, 5)).tolist()
    assert ratio_of_medians(first, second)[0] == pytest.approx(1 / ratio_of_medians(second, first)[0])
