"""The statistics, the schema and the ratio against values worked out by other means."""

import json

import numpy as np
import pytest
from pydantic import ValidationError
from scipy import stats

from mf_deploy.benchmarks.latency import Conditions, EngineInfo, LatencyReport, LatencyStatistics, Measurement
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


@pytest.mark.parametrize("times", [[0.1, 0.2], [0.1, 0.3, 0.2], [0.1, 0.2, float("nan")]])
def test_a_time_series_that_does_not_fit_the_samples_is_refused(times: list[float]) -> None:
    Measurement.model_validate(measurement(sampled_at_s=[0.1, 0.2, 0.3]))
    with pytest.raises(ValidationError, match="sampled_at_s"):
        Measurement.model_validate(measurement(sampled_at_s=times))


def test_a_device_that_tells_nothing_of_itself_still_fits() -> None:
    browser = measurement(
        accelerator_requested="webgpu", accelerator_used=None, partial="the page was closed"
    )
    del browser["rss_before_load_bytes"], browser["peak_rss_bytes"]
    assert Measurement.model_validate(browser).peak_rss_bytes is None
    assert Conditions(thermal_state="serious").battery_percent is None
    for wrong in ({"thermal_state": "hot"}, {"battery_percent": 101}, {"temperature_c": float("nan")}):
        with pytest.raises(ValidationError):
            Conditions.model_validate(wrong)


def test_a_result_of_version_1_is_still_read() -> None:
    device = {"name": "host", "cpu": "x", "cores": 2, "memory_bytes": 1, "os": "Linux"}
    engine = {"name": "onnxruntime", "version": "1.0"}
    before = {"load_average": 0.5, "temperature_c": None, "battery_percent": None, "charging": None}
    old = {
        "schema_version": 1,
        "artifact": "onnx-fp32",
        "model": "tiny",
        "target": "onnx",
        "scheme": "fp32",
        "model_sha256": "0" * 64,
        "model_bytes": 1,
        "batch": 1,
        "kind": "host",
        "device": device,
        "threads": 1,
        "protocol": {
            "min_runs": 200, "min_seconds": 0.0, "warmup_runs": 10, "warmup_seconds": 0.5, "seed": 0,
        },
        "measurement": measurement(engine=engine, before=before, after=before),
        "not_run": None,
        "created": "2026-01-01T00:00:00+00:00",
    }  # fmt: skip
    report = LatencyReport.model_validate(old)
    assert report.measurement is not None
    assert report.measurement.accelerator_used == "cpu"
    with pytest.raises(ValidationError, match="schema_version"):
        LatencyReport.model_validate({**old, "schema_version": 3})


def test_the_json_schema_names_every_field_that_apps_must_fill() -> None:
    schema = LatencyReport.model_json_schema()
    fields = schema["$defs"]["Measurement"]["properties"]
    for name in ("samples_ms", "sampled_at_s", "probe_logits", "correctness", "placement", "partial"):
        assert name in fields
    assert schema["properties"]["kind"]["enum"] == ["device", "host", "emulated", "estimated", "browser"]
    assert json.loads(json.dumps(schema)) == schema


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
