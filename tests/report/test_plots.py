"""Axes, fronts, labels and histograms against brute force."""

import math

import numpy as np
import pytest

from mf_deploy.report.figures import count, digits, points, scientific
from mf_deploy.report.plots import (
    CHARACTER_WIDTH,
    Axis,
    Datum,
    _text_box,
    histogram,
    pareto_front,
    scatter,
    shares,
)


def datum(number: int, x: float, y: float, name: str = "onnx-w8a8") -> Datum:
    return Datum(number, name, "onnx", "w8a8", x, x * 1.1, y, y - 1, y + 1)


def random_data(seed: int, size: int = 9) -> list[Datum]:
    generator = np.random.default_rng(seed)
    return [datum(i, float(generator.uniform(1, 30)), float(generator.uniform(60, 80))) for i in range(size)]


@pytest.mark.parametrize("seed", range(5))
def test_the_front_is_what_no_other_beats(seed: int) -> None:
    data = random_data(seed, 40)
    brute = {
        d.number
        for d in data
        if not any((o.x <= d.x and o.y > d.y) or (o.x < d.x and o.y >= d.y) for o in data)
    }
    assert {d.number for d in pareto_front(data)} == brute


def test_axes_keep_order_and_hold_every_point() -> None:
    for seed in range(5):
        plot = scatter("t", "ms", "%", random_data(seed), reference=70.0)
        for point in plot.points:
            assert plot.x.start < point.x < plot.x.end
            assert plot.y.end <= point.y_high <= point.y <= point.y_low <= plot.y.start
        by_cost = sorted(plot.points, key=lambda p: p.datum.x)
        assert [p.x for p in by_cost] == sorted(p.x for p in by_cost)
        assert len(plot.x.ticks) >= 3
        assert len(plot.y.ticks) >= 3


def test_costs_far_apart_get_a_logarithmic_axis() -> None:
    plot = scatter("t", "ms", "%", [datum(1, 1.0, 70), datum(2, 10.0, 71), datum(3, 100.0, 72)])
    assert plot.x.log
    first, second, third = (point.x for point in plot.points)
    assert second - first == pytest.approx(third - second, abs=0.2)
    assert {"1", "10", "100"} <= {text for _, text in plot.x.ticks}
    assert not scatter("t", "ms", "%", [datum(1, 5.0, 70), datum(2, 10.0, 71)]).x.log


@pytest.mark.parametrize("values", [(70.0, 70.0), (100.0, 100.0), (0.0, 0.0)])
def test_equal_and_extreme_accuracies_have_an_axis(values: tuple[float, float]) -> None:
    data = [Datum(i, "a", "onnx", "fp32", 1.0, 1.0, y, y, y) for i, y in enumerate(values)]
    axis = scatter("t", "ms", "%", data).y
    assert 0 <= axis.low < axis.high <= 100


def test_labels_do_not_cover_each_other() -> None:
    spread = [datum(i, 3.0 + 3 * (i % 3), 60.0 + 6 * (i // 3)) for i in range(9)]
    close = [datum(i, 10.0 + 0.1 * i, 70.0 + 0.1 * i) for i in range(4)]
    for data in (spread, close):
        boxes = [
            _text_box((p.text_x, p.text_y, p.anchor), len(p.text) * CHARACTER_WIDTH)
            for p in scatter("t", "ms", "%", data).points
        ]
        for i, a in enumerate(boxes):
            for b in boxes[:i]:
                assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]


def test_many_points_are_numbered_as_the_table_is() -> None:
    plot = scatter("t", "ms", "%", [datum(number, 1.0 + number, 70.0) for number in range(3, 20)])
    assert plot.numbered
    assert [point.text for point in plot.points] == [str(number) for number in range(3, 20)]


def test_ticks_are_round_and_inside() -> None:
    for low, high in ((0.0, 7.3), (44.2, 47.1), (0.0, 0.013), (12.0, 9000.0)):
        axis = Axis("a", low, high, 0.0, 100.0)
        values = [float(text) for _, text in axis.ticks]
        assert 3 <= len(values) <= 7
        assert low <= values[0] < values[-1] <= high
        step = values[1] - values[0]
        assert round(step / 10 ** math.floor(math.log10(step) + 1e-9), 6) in (1, 2, 5)


def test_a_histogram_counts_every_sample_once() -> None:
    samples = [*np.random.default_rng(0).lognormal(1, 0.1, 500).tolist(), 50.0, 60.0]
    plot = histogram(samples, {"p50": 2.7, "p99": 99.0})
    inside = np.histogram(samples, 48, (plot.low, plot.high))[0]
    assert plot.beyond + int(inside.sum()) == len(samples)
    assert plot.beyond >= 2
    assert len(plot.bars) == int((inside > 0).sum())
    assert max(height for *_, height in plot.bars) == 100.0
    assert [name for name, *_ in plot.marks] == ["p50"]


def test_identical_samples_have_a_histogram() -> None:
    assert len(histogram([2.0] * 10, {"p50": 2.0}).bars) == 1


def test_shares_fill_the_bar_from_coarse_to_fine() -> None:
    parts = shares({"fp32": 25, "int8": 75, "none": 0})
    assert [(p.precision, p.start, p.width) for p in parts] == [("int8", 0.0, 75.0), ("fp32", 75.0, 25.0)]
    assert shares({}) == []
    assert shares({"fp32": 0}) == []


def test_numbers_read_well() -> None:
    assert [digits(v) for v in (0, 0.01234, 4.567, 45.67, 12345.6, -3.0)] == [
        "0", "0.0123", "4.57", "45.7", "12346", "−3.00",
    ]  # fmt: skip
    assert [points(v) for v in (0.001, -0.001, -1.234)] == ["0.00", "0.00", "−1.23"]
    assert [count(v) for v in (7, 25_900_000, 1_500)] == ["7", "25.9 M", "1.50 k"]
    assert scientific(1.23e-6) == "1.2e−06"
