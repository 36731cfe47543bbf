"""Sustained runs and placements: what is drawn is what was measured."""

from pathlib import Path

import numpy as np
import pytest
from sample_results import accuracy_of, keep, latency_of
from tiny_artifacts import write_tiny_artifact

from mf_deploy.benchmarks.latency import (
    Conditions,
    LatencyReport,
    LatencyStatistics,
    Measurement,
    Placement,
    TimedConditions,
)
from mf_deploy.report import collect, render
from mf_deploy.report.curves import curve, placed, unit_counts


def throttled(report: LatencyReport, seconds: float = 600.0, slower: float = 1.0) -> Measurement:
    """A run in which the phone becomes half as fast in the middle."""
    assert report.measurement is not None
    at = np.linspace(0, seconds, 3000)
    noise = np.random.default_rng(0).uniform(0, 0.2, at.size)
    samples = slower * (np.where(at < seconds / 2, 5.0, 10.0) + noise)
    warm = TimedConditions(at_s=400, conditions=Conditions(thermal_state="serious"))
    return report.measurement.model_copy(
        update={
            "samples_ms": samples.tolist(),
            "sampled_at_s": at.tolist(),
            "statistics": LatencyStatistics.of(samples.tolist()),
            "conditions_over_time": [
                TimedConditions(at_s=1, conditions=Conditions(thermal_state="nominal")),
                warm,
            ],
        }
    )


@pytest.fixture
def report(tmp_path: Path) -> LatencyReport:
    return latency_of(write_tiny_artifact(tmp_path / "tiny" / "onnx-fp32"))


def test_throttling_shows(report: LatencyReport) -> None:
    drawn = curve(throttled(report))
    assert drawn is not None
    assert drawn.ratio == pytest.approx(2, rel=0.03)
    assert (drawn.window_s, drawn.lasted_s, drawn.thermal) == (60, 600, "serious")
    points = [tuple(map(float, point.split(","))) for point in drawn.median.split()]
    x, y = np.array(points).T
    assert (np.diff(x) > 0).all()
    assert ((y >= 0) & (y <= 100)).all()
    assert y[: len(y) // 3].min() > y[-len(y) // 3 :].max()  # slower is higher up
    assert len(drawn.band.split()) == 2 * len(points)


def test_short_runs_and_those_without_times_have_no_curve(report: LatencyReport) -> None:
    assert report.measurement is not None
    assert curve(report.measurement) is None
    assert curve(throttled(report, seconds=5)) is None


def test_placement_is_counted() -> None:
    units = ["neural-engine"] * 3 + ["cpu"] + ["gpu"]
    kinds = ["conv", "conv", "conv", "conv", "softmax"]
    placement = [Placement(operator=k, unit=u) for k, u in zip(kinds, units, strict=True)]
    assert unit_counts(placement) == {"neural-engine": 3, "cpu": 1, "gpu": 1}
    first, second = placed(placement)
    assert (first.operator, first.total, first.counts) == ("conv", 4, {"neural-engine": 3, "cpu": 1})
    assert (second.operator, second.counts) == ("softmax", {"gpu": 1})


def test_the_page_shows_both(tmp_path: Path, report: LatencyReport) -> None:
    placement = [
        Placement(operator="Conv", name="stem", unit="nnapi"),
        Placement(operator="Gelu", unit="cpu"),
    ]
    measurement = throttled(report).model_copy(update={"placement": placement})
    artifact = collect(tmp_path / "tiny").entries[0].artifact
    phone = report.device.model_copy(update={"model": "Pixel 8", "name": "android"})
    update = {"measurement": measurement, "kind": "device", "device": phone, "measured_by": "Android app"}
    keep(artifact, accuracy_of(artifact), report.model_copy(update=update))
    page = render(collect(tmp_path / "tiny"), ".html")
    for text in ("hottest thermal state: serious", "<td>Conv</td>", "nnapi", "Pixel 8, 1 thread (device)",
                 "Android app", "not checked"):  # fmt: skip
        assert text in page, text
